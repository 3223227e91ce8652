"""Population-based training against other searches: `python -m experiments.pbt_2017 --help`."""
