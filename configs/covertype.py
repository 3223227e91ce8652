"""Forest Covertype with the seven-layer network of the Keras article, at batch 256.

Source:   the Keras article on growing the batch (studies.md D): dense 512-256-256-128-256-256-512,
          dropout 0.25 after layers 1, 3, 6 and 7, Adam 6e-4, batch 256; its plateau rule comes with
          the batch regimes.
Expected: the row `covertype` in README: test accuracy, rows, time, device.
Run:      python -m lrlab.main --config=configs/covertype.py --config.epochs=5
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed, c.epochs = 0, 20
    c.data = dict(name="tabular.covertype")
    c.model = dict(name="mlp.Tabular")
    c.batch = dict(name="fixed", size=256)
    c.optimizer = dict(name="adam")
    c.lr = 6e-4  # the peak; every shape below is relative to it
    c.schedule = (
        dict(name="linear", start=0.1, end=1.0, fraction=0.05),
        dict(name="cosine", start=1.0, end=0.02),
    )
    return c
