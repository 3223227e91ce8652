"""docs/schedules.md and docs/schedules.png: every shape that a config may name.

Run:   python -m experiments.gallery
"""

import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrlab import schedules

DOCS = Path(__file__).parent.parent / "docs"
STEPS = 100
# Keywords for a run of 100 updates, where the shape has no defaults of its own.
SHOWN: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {"start": 1.0, "end": 0.0},
    "cosine_restarts": {"t_0": 14, "t_mult": 2},
    "exp_range": {"gamma": 0.98, "low": 0.1, "up": 10},
    "exponential": {"decay": 0.5, "every": 20},
    "flat_then_cosine": {},
    "geometric": {"start": 1.0, "end": 0.01},
    "inverse_time": {"rate": 1.0, "every": 20},
    "linear": {"start": 1.0, "end": 0.0},
    "linear_to_zero": {},
    "multi_step": {"factor": 0.3, "boundaries": (30, 60, 80)},
    "natural_exponential": {"rate": 0.03},
    "noam": {"warmup": 20},
    "one_cycle": {},
    "one_cycle_momentum": {},
    "one_minus_sqrt": {"start": 1.0, "end": 0.0},
    "piecewise": {"boundaries": (30, 70), "values": (1.0, 0.5, 0.1)},
    "polynomial": {"start": 1.0, "end": 0.0, "power": 2.0},
    "reciprocal_sqrt": {"timescale": 20},
    "rex": {"start": 1.0, "end": 0.0},
    "sgdr": {"cycle_len": 14, "cycle_mult": 2},
    "slanted_triangular": {},
    "step": {"factor": 0.5, "every": 25},
    "table": {"values": (0.1, 1.0, 0.4, 0.0), "at": (0, 20, 60, 100)},
    "triangular": {"low": 0.1, "up": 12},
    "triangular2": {"low": 0.1, "up": 12},
    "triangular_momentum": {"up": 12},
    "warmup_constant": {"start": 0.1},
    "warmup_cosine": {"start": 0.0},
    "warmup_cosine_decay": {"warmup": 20},
    "warmup_exponential": {"start": 0.01},
    "warmup_linear": {"start": 0.0},
    "warmup_stable_decay": {"warmup": 10, "cooldown": 25},
}


def keywords(name: str) -> dict[str, Any]:
    """What a shape is shown with: SHOWN, `steps` if it takes them."""
    takes = inspect.signature(getattr(schedules, name)).parameters
    given = {k: v for k, v in SHOWN.get(name, {}).items() if k in takes}
    return given | ({"steps": STEPS} if "steps" in takes else {})


def curve(name: str) -> np.ndarray:
    """The shape's values, float32 [STEPS + 20]: a little past the end."""
    shape = getattr(schedules, name)(**keywords(name))
    return np.asarray(jax.vmap(shape)(np.arange(STEPS + 20)))


def main() -> None:
    """Draws and writes."""
    names = sorted(schedules.__all__)
    figure = Figure(figsize=(13, 1.55 * -(-len(names) // 6)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 6), 6, i + 1)
        values = curve(name)
        axes.plot(values, color="#0072B2", linewidth=1.6)
        axes.axvline(STEPS, color="0.6", linewidth=0.8, linestyle="--")
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_ylim(min(0.0, values.min()) - 0.03, max(1.05, values.max() * 1.05))
        axes.tick_params(labelsize=7)
        for side in "top", "right":
            axes.spines[side].set_visible(False)
    figure.supxlabel("optimizer updates; the dashed line is the end of the run", fontsize=9)
    figure.supylabel("multiplier of the peak rate", fontsize=9)
    figure.savefig(DOCS / "schedules.png", dpi=90, metadata={"Software": None})
    lines = [
        "# Schedules",
        "",
        "Every shape that a phase of `config.schedule` may name, for 100 updates. `steps` is the",
        'phase\'s own length, given by lrlab; it may be `{"epochs": 3}` and so on,',
        "wherever updates are meant. Written by `python -m experiments.gallery`.",
        "",
        "![All shapes](schedules.png)",
    ]
    for name in names:
        shape = getattr(schedules, name)
        shown = {"name": name} | {k: v for k, v in keywords(name).items() if k != "steps"}
        lines += ["", f"## {name}", "", f"    {shown}", "", "```text"]
        lines += [(inspect.getdoc(shape) or "").strip(), "```"]
    (DOCS / "schedules.md").write_text("\n".join(lines) + "\n")
    print(f"schedules.md, schedules.png: {len(names)} shapes")


if __name__ == "__main__":
    main()
