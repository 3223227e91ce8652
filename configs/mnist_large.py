"""MNIST with the CNN of the 500-run study, 3,274,634 weights: for a GPU, or a patient CPU.

Source:   Mack 2018, "How to pick the best learning rate for your machine learning project";
          MNIST tutorial net, with dropout 0.4 and batch 100.
Expected: the row `mnist_large` in README: test accuracy, time, device.
Run:      python -m lrlab.main --config=configs/mnist_large.py --config.epochs=3
"""

from ml_collections import ConfigDict

from configs import mnist


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.epochs = 10
    c.model = dict(name="cnn.MnistCNN", scale=1.0)
    c.lr = 0.001
    return c
