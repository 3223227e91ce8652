"""MNIST with the small CNN of 3,424 weights: real data, minutes on two CPU cores.

Source:   LeCun et al. 1998; the net is the CPU's sibling of Mack 2018's (see `mnist_large`).
Expected: the row `mnist` in README: test accuracy, time, device.
Run:      python -m lrlab.main --config=configs/mnist.py --workdir=runs/m --config.lr=0.005
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed, c.epochs = 0, 12
    c.data = dict(name="tfds.images", dataset="mnist")
    c.model = dict(name="cnn.SmallCNN")
    c.batch = dict(name="fixed", size=100)
    c.optimizer = dict(name="adam")
    c.lr = 0.005  # the peak; every shape below is relative to it
    c.schedule = (
        dict(name="linear", start=0.1, end=1.0, fraction=0.1),
        dict(name="cosine", start=1.0, end=0.0),
    )
    return c
