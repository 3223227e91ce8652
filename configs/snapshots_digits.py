"""A snapshot ensemble of digits: five cosine cycles of eight epochs, five states that vote.

Source:   Huang et al. 2017, arXiv:1704.00109 (snapshots); Izmailov et al. 2018, arXiv:1803.05407
          (averaged weights).
Expected: a table of accuracy, likelihood and calibration against the number of snapshots; 10 s.
Run:      python -m lrlab.main --config=configs/snapshots_digits.py --workdir=runs/snapshots
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    c = digits.get_config()
    c.job = dict(name="snapshot")
    c.epochs = 40
    c.schedule = (dict(name="cosine_restarts", t_0=dict(epochs=8)),)
    return c
