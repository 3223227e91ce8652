"""Covertype, where the batch grows fivefold on a plateau, and the rate falls once it cannot.

Source:   the Keras article on growing the batch (studies.md D), after Smith et al. 2018,
          arXiv:1711.00489: batch 256; when the validation loss has not improved for 3 epochs the
          batch grows x 5, while it is at most a tenth of the training split, then the rate is
          divided by 5; Adam 6e-4, 60 epochs. The article's baseline, and what the gain comes from:
          experiments/keras_covertype.py.
Expected: the arm `growth` in experiments/results/keras_covertype_*.json: validation loss and test
          accuracy over 5 seeds, rows, time, device.
Run:      python -m lrlab.main --config=configs/covertype_growth.py --config.epochs=25
"""

from ml_collections import ConfigDict

from configs import covertype


def get_config() -> ConfigDict:
    c = covertype.get_config()
    c.epochs = 60
    c.batch = dict(
        name="plateau_growth",
        size=256,
        factor=5.0,
        patience=3,
        cap=0.1,  # of the training split
        dialect="keras",
        threshold_mode="abs",
    )
    c.schedule = (dict(name="constant"),)
    return c
