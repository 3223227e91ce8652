"""How good is what a range test says? Its rates trained to the end, beside the best of a grid.

Claim: the suggested rate's final loss is within 5 % of the best of a grid of twelve rates.
Run:   LRLAB_DATA_DIR=... python -m experiments.range_test (--problems="digits;mnist": some of them)
Makes: experiments/results/range_test_<device>.json, and a table on the terminal.

The suggestion's two constants (`suggest.PLAIN`, `ADAPTIVE`) were chosen after looking at these very
problems, so the claim is about them; it is no estimate for a problem that was not looked at.

Each reading of the curve is trained as well: what would a user get who took that one? All rates of
a recipe, over the same seeds, are lanes of one program.
"""

import argparse
import dataclasses
import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.recipes import device
from lrlab import build, devices, main, records
from lrlab.data import Dataset
from lrlab.jobs import range_test
from lrlab.lanes import Lane, Lanes
from lrlab.train_step import RECORDED

RESULTS = Path(__file__).parent / "results"
SEEDS = 3
POINTS = 12


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is trained: a recipe, changed, at rates a decade and more around what is usual."""

    recipe: str
    low: float
    high: float
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SHORT = {"epochs": 6}  # for the time it takes
PROBLEMS = {
    "digits": Problem("digits", 0.003, 1.0),
    "mnist": Problem("mnist", 0.0005, 0.1),
    "covertype": Problem("covertype", 0.0002, 0.05, SHORT),
    "digits, Adam": Problem("digits", 0.0001, 0.05, {"optimizer": {"name": "adam"}}),
    "mnist, SGD": Problem("mnist", 0.01, 2.0, {"optimizer": {"name": "sgd"}}),
    "mnist, RMSProp": Problem("mnist", 0.0002, 0.05, {"optimizer": {"name": "rmsprop"}}),
    "covertype, momentum": Problem(
        "covertype", 0.002, 0.5, {**SHORT, "optimizer": {"name": "momentum"}}
    ),
}
NEAR = 1.05  # of the best loss of the grid
LOOK = 200  # updates between two looks at who diverged


def final_losses(recipe: build.Recipe, dataset: Dataset, lrs: np.ndarray) -> dict[str, Any]:
    """Losses of whole runs at each rate: {"train", "validation"}: [rates, seeds], inf: diverged."""
    each = [Lane(seed, float(lr)) for lr in lrs for seed in range(SEEDS)]
    lanes = Lanes(recipe, dataset, each, LOOK)
    while lanes.active and lanes.step < recipe.total:
        seen = lanes.advance(min(LOOK, recipe.total - lanes.step))
        finite = seen[..., RECORDED.index("finite")].min(0)
        lanes.keep([i for i in lanes.active if finite[i] > 0])
    found = {}
    for split in "train", "validation":
        losses = np.full(len(each), np.inf)
        losses[lanes.active] = [m["loss"] for m in lanes.evaluate(split, lanes.active)]
        found[split] = losses.reshape(len(lrs), SEEDS)
    return found


def study(name: str) -> dict[str, Any]:
    """A recipe's range test, and whole runs at its grid and at every rate that was read."""
    problem = PROBLEMS[name]
    config = main.load_config(f"configs/{problem.recipe}.py") | dict(problem.changes)
    section = {**range_test.DEFAULTS, "high": 100.0}
    plan = range_test.check({**config, "range_test": section})
    recipe = build.check(config, parts=1)
    dataset = recipe.read()
    (curve,) = range_test.measure(plan, dataset)
    said = curve.found
    read = {"suggested": said.lr, "consensus": said.consensus, **said.readings}
    read = {reading: lr for reading, lr in read.items() if lr}
    read |= {"edge/15": said.edge / 15} if said.edge else {}
    grid = np.geomspace(problem.low, problem.high, POINTS)
    losses = final_losses(recipe, dataset, np.array([*grid, *read.values()]))
    means = {split: values.mean(1) for split, values in losses.items()}
    best = {split: float(values[:POINTS].min()) for split, values in means.items()}
    rows = [
        {
            "reading": reading,
            "lr": float(lr),
            **{f"{split}_loss": float(means[split][POINTS + i]) for split in means},
            **{f"{split}_ratio": float(means[split][POINTS + i]) / best[split] for split in means},
        }
        for i, (reading, lr) in enumerate(read.items())
    ]
    return {
        "problem": name,
        "changes": problem.changes,
        "updates": recipe.total,
        "data": recipe.source.name,
        "said": said.as_dict(),
        "best": {k: {"lr": float(grid[means[k][:POINTS].argmin()]), "loss": best[k]} for k in best},
        "spread_at_best": {
            k: float(losses[k][means[k][:POINTS].argmin()].std(ddof=1)) for k in best
        },
        "grid": [
            {"lr": float(lr), **{f"{k}_losses": _shown(losses[k][i]) for k in losses}}
            for i, lr in enumerate(grid)
        ],
        "readings": rows,
    }


def _shown(losses: np.ndarray) -> list[float | None]:
    return [float(f"{x:.6g}") if np.isfinite(x) else None for x in losses]


def _table(found: Mapping[str, Any]) -> str:
    best = found["best"]["validation"]
    lines = [
        f"{found['problem']}: best of the grid {best['lr']:.3g}, validation loss {best['loss']:.4f}"
    ]
    for row in found["readings"]:
        ratio = row["validation_ratio"]
        text = f"{ratio:6.3f} x" if np.isfinite(ratio) else "diverged"
        lines.append(f"  {row['reading']:<10} {row['lr']:<9.3g} {text}")
    return "\n".join(lines)


def command() -> None:
    """Runs, prints, records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default=";".join(PROBLEMS))
    known = parser.parse_args()
    main._device_a_core()
    devices.use_cache()
    slug = re.sub(r"\W+", "_", device().lower()).strip("_")
    path = RESULTS / f"range_test_{slug}.json"
    studies = {s["problem"]: s for s in records.read_json(path).get("studies", [])}
    for name in known.problems.split(";"):
        studies[name] = study(name) | {
            "date": datetime.date.today().isoformat(),
            "lrlab": records.environment(),
        }
        print(_table(studies[name]), flush=True)
        records.write_json(path, _record(studies))
    print(f"record {path.relative_to(RESULTS.parent.parent)}")


def _record(studies: Mapping[str, Any]) -> dict[str, Any]:
    """All problems that were studied, in this run or before, and which met the claim."""
    there = [studies[name] for name in PROBLEMS if name in studies]
    ratios = {s["problem"]: s["readings"][0]["validation_ratio"] for s in there}
    return {
        "seeds": SEEDS,
        "near": NEAR,
        "met": {name: ratio is not None and ratio <= NEAR for name, ratio in ratios.items()},
        "studies": there,
        "device": device(),
    }


if __name__ == "__main__":
    command()
