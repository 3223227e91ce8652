"""Population-based training: 32 MLPs on digits find rate and momentum while they train.

Source:   Jaderberg et al. 2017, arXiv:1711.09846: the worst fifth become copies of the best fifth.
Expected: under a minute on two cores; the rate falls along the best member's ancestors. The
          schedule from scratch against the best held numbers: the report has both.
Run:      python -m lrlab.main --config=configs/pbt_digits.py --workdir=runs/pbt
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    c = digits.get_config()
    c.job = dict(name="pbt")
    c.epochs = 20
    c.model = dict(name="mlp.MLP", widths=(64, 64), dropout=0.2)
    c.schedule = (dict(name="constant"),)
    c.pbt = dict(
        population=32,
        generations=20,
        search=(
            dict(key="lr", low=1e-3, high=1.0),
            dict(key="optimizer.decay", values=(0.0, 0.5, 0.8, 0.9, 0.95, 0.98)),
        ),
        compare=8,
    )
    return c
