"""Which rate for momentum on digits? A ramp of 400 updates, three seeds.

Source:   L. N. Smith 2017, arXiv:1506.01186, 3.3 (the range test).
Expected: a rate between 0.03 and 0.3; `configs/digits.py` uses 0.1.
Run:      python -m lrlab.main --config=configs/range_test_digits.py --workdir=runs/range
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    c = digits.get_config()
    c.job = dict(name="range_test")
    c.range_test = dict(low=1e-5, high=10.0, updates=400, seeds=3)
    return c
