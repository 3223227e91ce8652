"""A language model of WikiText-2: a transformer of 1.1 million weights, slanted triangle.

Source:   Merity et al. 2016, arXiv:1609.07843 (the text); Howard & Ruder 2018, arXiv:1801.06146
          (3.2, slanted triangles), whose language model is an LSTM of other size and text.
Expected: validation loss 4.84 nats a piece (of 4,000 pieces of words; not comparable with
          perplexities of words) after its one epoch, in 3 minutes on two cores.
Run:      python -m lrlab.main --config=configs/wikitext2.py --workdir=runs/wikitext2
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed, c.epochs = 0, 1
    c.data = dict(name="text.wikitext2", length=64)
    c.model = dict(name="text.LanguageModel", width=128, depth=3, heads=4, positions=64)
    c.batch = dict(name="fixed", size=32)
    c.optimizer = dict(name="adam")
    c.lr = 2e-3
    c.clip_norm = 1.0
    c.schedule = (dict(name="slanted_triangular", cut_frac=0.1, ratio=32.0),)
    return c
