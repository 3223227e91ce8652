r"""Questions of TREC-6 by their kind, from a language model of WikiText-2, layer by layer (ULMFiT).

Source:   Howard & Ruder 2018, arXiv:1801.06146, 3.3: gradual unfreezing, a layer at 2.6 times the
          rate of the one below it, slanted triangles.
Expected: the study `experiments/ulmfit_2018.py` compares ways of doing this; README has its table.
Run:      python -m lrlab.main --config=configs/wikitext2.py --workdir=runs/wikitext2
          python -m lrlab.main --config=configs/trec6.py --workdir=runs/trec6
"""

from ml_collections import ConfigDict

from configs import wikitext2


def get_config() -> ConfigDict:
    c = wikitext2.get_config()
    c.job = dict(name="finetune")
    c.data = dict(name="text.trec6", length=28)
    c.start = dict(run="runs/wikitext2", fresh=("Hidden/.*", "Head/.*"))
    c.model = dict(name="text.Classifier", width=128, depth=3, heads=4, positions=64)
    c.lr = 1e-3
    blocks = ("Block_0/.*", "Block_1/.*", "(Block_2|Norm)/.*")
    c.finetune = dict(
        groups=("Embedding/.*", *blocks, "(Hidden|Head)/.*"),
        phases=dict(name="gradual", last=4, factor=2.6, schedule=c.schedule),
    )
    return c
