r"""The whole recipe of fine-tuning on the digits 5 to 9, from a network that learnt 0 to 4.

Source:   "Understanding learning rates", after fast.ai 2018: head on precomputed features at a rate
          from a range test, head alone, then all layers, earlier ones three times slower, at a rate
          from a second range test, in cycles of 1, 2 and 4 epochs.
Expected: test accuracy above 97 % from 620 training examples, in some 15 s on two cores.
Run:      python -m lrlab.main --config=configs/digits.py \\
              --config.data.classes='(0, 1, 2, 3, 4)' --workdir=runs/low_digits
          python -m lrlab.main --config=configs/finetune_recipe.py --workdir=runs/recipe
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed, c.epochs = 0, 7
    c.job = dict(name="finetune")
    c.data = dict(name="digits", classes=(5, 6, 7, 8, 9))
    c.start = dict(run="runs/low_digits", fresh=("Dense_2/.*",))
    c.model = dict(name="mlp.MLP", widths=(256, 256), dropout=0.2)
    c.batch = dict(name="fixed", size=32)
    c.optimizer = dict(name="momentum", decay=0.9)
    c.lr = 0.05  # where a phase says nothing, and no range test does
    c.finetune = dict(phases=dict(name="eight_steps"))
    return c
