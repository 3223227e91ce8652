"""Which rate for Adam on MNIST with the CNN of 3,424 weights? A ramp of 400 updates, three seeds.

Source:   L. N. Smith 2017, arXiv:1506.01186, 3.3 (the range test).
Expected: a rate between 0.01 and 0.04.
Run:      python -m lrlab.main --config=configs/range_test_mnist.py --workdir=runs/range
"""

from ml_collections import ConfigDict

from configs import mnist


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.job = dict(name="range_test")
    c.range_test = dict(low=1e-6, high=10.0, updates=400, seeds=3)
    return c
