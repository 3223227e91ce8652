"""How does the best rate grow with the batch? Digits, 13 rates by seven batch sizes, three seeds.

Source:   the noise scale lr N / (B (1 - m)) of Smith & Le 2018, arXiv:1710.06451; linear scaling
          of Goyal et al. 2017, arXiv:1706.02677.
Expected: a ridge in the report's heat map, from a best rate near 0.01 at batch 4 to 0.2 at 256;
          its low flank moves in proportion to the batch. Half a minute on two cores.
Run:      python -m lrlab.main --config=configs/lr_by_batch.py --workdir=runs/lr_by_batch
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    c = digits.get_config()
    c.job = dict(name="sweep")
    c.epochs = 5
    c.model = dict(name="mlp.MLP", widths=(64,))
    c.optimizer = dict(name="momentum", decay=0.9)
    c.schedule = (dict(name="constant"),)
    c.sweep = dict(
        axes=(
            dict(key="batch.size", values=(4, 8, 16, 32, 64, 128, 256)),
            dict(key="lr", low=1e-4, high=1.0, points=13),
            dict(key="seed", values=(0, 1, 2)),
        ),
    )
    return c
