"""The 500-run valley of D. Mack (2018): `python -m experiments.mack_2018 --help`."""
