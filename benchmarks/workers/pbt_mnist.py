"""A population of the small CNN on MNIST, as large as the digits' one; for benchmarks/pbt.py."""

from ml_collections import ConfigDict

from configs import mnist, pbt_digits


def get_config() -> ConfigDict:
    c, like = mnist.get_config(), pbt_digits.get_config().to_dict()
    c.epochs, c.job = 4, {"name": "pbt"}
    c.optimizer = {"name": "momentum", "decay": 0.9, "nesterov": True}
    c.schedule = ({"name": "constant"},)
    c.pbt = {**like["pbt"], "interval": 100, "compare": 0}
    return c
