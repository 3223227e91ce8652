"""Digits, the embedded default: an MLP in seconds, a tenth of warm-up, then cosine to zero.

Source:   scikit-learn's 8x8 digits (a test set of UCI's Optical Recognition of Handwritten Digits).
Expected: the row `digits` in README: test accuracy, mean and s.d. over seeds, time, device.
Run:      python -m lrlab.main --config=configs/digits.py --workdir=runs/d --config.lr=0.05
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed, c.epochs = 0, 30
    c.data = dict(name="digits")
    c.model = dict(name="mlp.MLP", widths=(256, 256), dropout=0.2)
    c.batch = dict(name="fixed", size=64)
    c.optimizer = dict(name="momentum", decay=0.9, nesterov=True)
    c.lr = 0.1  # the peak; every shape below is relative to it
    c.schedule = (
        dict(name="linear", start=0.1, end=1.0, fraction=0.1),
        dict(name="cosine", start=1.0, end=0.0),  # the rest of the run
    )
    return c
