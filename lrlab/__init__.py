"""lrlab: a laboratory for learning rates on JAX and Optax.

`lrlab.plot_schedule` draws a schedule; everything else is in the modules.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`plot_schedule`, when it is first asked for: it imports JAX, and `import lrlab` does not."""
    if name == "plot_schedule":
        return importlib.import_module("lrlab.preview").plot_schedule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
