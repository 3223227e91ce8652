"""The valley on real MNIST: six rules, 49 rates, the CNN of 3,424 weights, as lanes.

Source:   after D. Mack 2018; the study itself is `experiments/mack_2018`.
Expected: Adam's best rate near 0.005, SGD's near 0.2.
Run:      python -m lrlab.main --config=configs/sweep_mnist.py --workdir=runs/valley
"""

from ml_collections import ConfigDict

from configs import mnist


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.job = dict(name="sweep")
    c.schedule = (dict(name="constant"),)
    rules = "sgd", "momentum", "adagrad", "adadelta", "rmsprop", "adam"
    c.sweep = dict(
        axes=(
            dict(key="optimizer", values=tuple(dict(name=rule) for rule in rules)),
            dict(key="lr", low=1e-6, high=100.0, points=49),
        ),
        updates=2000,
        target=dict(accuracy=0.97),
    )
    return c
