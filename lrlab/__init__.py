"""lrlab: a laboratory for learning rates on JAX and Optax.

`lrlab.plot_schedule` and `lrlab.plot_noise` draw what a run will do, `lrlab.range_test` finds a
rate for a loss of yours, `lrlab.finetune` takes a trained model to another task; all else is in the
modules.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_HOMES = {
    "finetune": "lrlab.jobs.finetune",
    "plot_noise": "lrlab.preview",
    "plot_schedule": "lrlab.preview",
    "range_test": "lrlab.analysis.ramp",
}


def __getattr__(name: str) -> Any:
    """What is asked for, when it is: it imports JAX, and `import lrlab` does not."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
