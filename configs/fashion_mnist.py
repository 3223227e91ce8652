"""Fashion-MNIST with a CNN half as wide as the 500-run study's.

Source:   Xiao et al. 2017, arXiv:1708.07747.
Expected: about 92 % test accuracy; no row in README yet.
Run:      python -m lrlab.main --config=configs/fashion_mnist.py
"""

from ml_collections import ConfigDict

from configs import mnist


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.data = dict(name="tfds.images", dataset="fashion_mnist")
    c.model = dict(name="cnn.MnistCNN", scale=0.5)
    c.lr = 0.001
    return c
