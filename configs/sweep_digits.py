"""Which rate, for which optimizer? Digits, six rules and 13 rates each, three seeds.

Source:   the valley of D. Mack 2018, on data that comes along.
Expected: a valley for each rule; Adam's a hundred times lower than momentum's.
Run:      python -m lrlab.main --config=configs/sweep_digits.py --workdir=runs/sweep
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    c = digits.get_config()
    c.job = dict(name="sweep")
    c.epochs = 10
    c.schedule = (dict(name="constant"),)
    rules = "sgd", "momentum", "adagrad", "adadelta", "rmsprop", "adam"
    c.sweep = dict(
        axes=(
            dict(key="optimizer", values=tuple(dict(name=rule) for rule in rules)),
            dict(key="lr", low=1e-5, high=10.0, points=13),
            dict(key="seed", values=(0, 1, 2)),
        ),
    )
    return c
