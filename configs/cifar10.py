"""CIFAR-10 with WRN-16-4, Nesterov momentum and one cosine: for a GPU or TPU.

Source:   Zagoruyko & Komodakis 2016, arXiv:1605.07146; settings of Loshchilov & Hutter 2017,
          arXiv:1608.03983, 4.1 (rate 0.1, weight decay 5e-4, Nesterov 0.9, batch 128).
Expected: not measured here yet; without augmentation it stays below the papers' numbers.
Run:      python -m lrlab.main --config=configs/cifar10.py --dry_run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed, c.epochs = 0, 60
    c.data = dict(name="tfds.images", dataset="cifar10")
    c.model = dict(name="resnet.WideResNet", depth=16, width=4)
    c.batch = dict(name="fixed", size=128)
    c.optimizer = dict(name="momentum", decay=0.9, nesterov=True)
    c.l2 = 5e-4
    c.lr = 0.1  # the peak; every shape below is relative to it
    c.schedule = (
        dict(name="linear", start=0.1, end=1.0, fraction=0.03),
        dict(name="cosine", start=1.0, end=0.0),
    )
    return c
