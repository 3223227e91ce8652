"""Trains the arms of the study and says what came of each; keeps what is done."""

import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import arms
from experiments.pbt_2017 import plan
from experiments.pbt_2017.plan import (
    EARLIER,
    END,
    FIXED,
    KEYS,
    LATER,
    LINE,
    MOMENTUM,
    PBT,
    RATE,
    REPLAY,
    SEARCHES,
    STEPS,
    Size,
)
from lrlab import build, records
from lrlab.lanes import Lane, Lanes
from lrlab.train_step import RECORDED


def rising(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """(examples, best so far) of (examples, accuracy) in their order."""
    best = np.maximum.accumulate([accuracy for _, accuracy in points])
    return [[examples, float(b)] for (examples, _), b in zip(points, best, strict=True)]


def so_far(curve: Sequence[Sequence[float]], examples: float) -> float:
    """The best so far at a budget; NaN where nothing had been looked at."""
    at = int(np.searchsorted([x for x, _ in curve], examples * (1 + 1e-9), side="right"))
    return curve[at - 1][1] if at else float("nan")


def of_search(folder: Path) -> dict[str, Any]:
    """What came of a run of the job "search"."""
    summary = records.read_json(folder / "summary.json")
    best, rows = summary["best"], records.read_lines(folder / "progress.jsonl")
    seen = [(row["examples"], row["val_accuracy"]) for row in rows]
    return {
        "accuracy": best["test_accuracy"],
        "validation": best["val_accuracy"],
        "values": best["values"],
        "examples": summary["examples"],
        "trials": len(records.read_lines(folder / "trials.jsonl")),
        "curve": rising([(x, y) for x, y in seen if y is not None]),
    }


def of_population(folder: Path) -> dict[str, Any]:
    """What came of a run of the job "pbt", with what it compared."""
    summary = records.read_json(folder / "summary.json")
    rows = records.read_lines(folder / "generations.jsonl")
    known = [row for row in rows if row["arm"] == "population"]
    each = [
        (row["examples"] * summary["members"], [v for v in row["val_accuracy"] if v is not None])
        for row in known
    ]
    path, best = summary["path"], summary["best"]
    own = {key: [row["values"][key][i] for row, i in zip(known, path, strict=True)] for key in KEYS}
    last = {row["arm"]: row for row in rows}
    compared = {entry["arm"]: entry for entry in summary["comparison"]}
    held = compared.get("fixed", {"values": None, "test_accuracy": None})
    return {
        "accuracy": best["test_accuracy"],
        "validation": best["val_accuracy"],
        "values": best["values"],
        "examples": summary["examples"],
        "trials": summary["members"],
        "curve": rising([(x, max(found)) for x, found in each if found]),
        "lineage": {"first": [row["first"] for row in known], **own},
        "updates": summary["updates"],
        "copies": summary["copies"],
        "read_back": summary["read_back"],
        "from_scratch": {
            ours: {
                "accuracies": [v for v in last[theirs]["test_accuracy"] if v is not None],
                "diverged": len(last[theirs]["diverged"]),
            }
            for ours, theirs in ((REPLAY, "replay"), (FIXED, "best fixed"))
            if theirs in last
        },
        "fixed": held["values"],
        "fixed_accuracy": held["test_accuracy"],
    }


def course(lineage: Mapping[str, Sequence[float]], updates: int) -> np.ndarray:
    """Rate and momentum of a lineage in each update, float64 [updates, 2]."""
    at = np.searchsorted(lineage["first"], np.arange(updates), side="right") - 1
    return np.stack([lineage[key] for key in KEYS], 1)[at]


def warped(numbers: np.ndarray, power: float) -> np.ndarray:
    """The same numbers in the same order, at other times; later with a power above 1."""
    n = len(numbers)
    return numbers[(n * (np.arange(n) / n) ** power + 1e-9).astype(int)]


def line(values: Mapping[str, float], updates: int) -> np.ndarray:
    """Numbers whose rate falls to zero in equal steps; float64 [updates, 2]."""
    step = -(-updates // STEPS)
    middle = np.minimum(np.arange(updates) // step * step + step / 2, updates)
    left = 1 - middle / updates
    return np.stack([values[RATE] * left, np.full(updates, values[MOMENTUM])], 1)


def courses(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What is trained from scratch beside what the job compares, by `of_population`."""
    numbers = course(found["lineage"], found["updates"])
    return {
        LATER: warped(numbers, 2.0),
        EARLIER: warped(numbers, 0.5),
        END: np.repeat(numbers[-1:], len(numbers), 0),
        LINE: line(found["fixed"], len(numbers)),
    }


def train(
    config: Mapping[str, Any], numbers: Mapping[str, np.ndarray], seeds: Sequence[int]
) -> dict[str, Any]:
    """Trains runs whose rate and momentum follow courses, every seed with each.

    Returns:
      of each course: accuracies of its seeds on the test set, without those that diverged.
    """
    recipe = build.check({k: v for k, v in config.items() if k not in ("job", "pbt")}, parts=1)
    each = [(found, seed) for found in numbers.values() for seed in seeds]

    def at(update: int) -> list[Lane]:
        return [
            Lane(seed, float(found[update, 0]), {"decay": float(found[update, 1])})
            for found, seed in each
        ]

    changes = [1 + np.flatnonzero(np.diff(f, axis=0).any(1)) for f in numbers.values()]
    ends = [0, *sorted({int(t) for found in changes for t in found}), recipe.total]
    lanes = Lanes(recipe, recipe.read(), at(0), int(max(np.diff(ends))))
    last = np.ones(0)
    for begin, end in itertools.pairwise(ends):
        lanes.tune(at(begin))
        last = lanes.advance(end - begin)[-1, :, RECORDED.index("finite")]
    tested = lanes.evaluate("test", range(len(each)))
    found = {}
    for i, name in enumerate(numbers):
        own = range(i * len(seeds), (i + 1) * len(seeds))
        sound = [j for j in own if last[j] > 0 and np.isfinite(tested[j]["loss"])]
        accuracies = [tested[j]["accuracy"] for j in sound]
        found[name] = {"accuracies": accuracies, "diverged": len(own) - len(sound)}
    return found


def perform(size: Size, data: str, seed: int, workdir: Path) -> dict[str, dict[str, Any]]:
    """What came of every arm, or what an earlier run of the study kept of it."""
    found: dict[str, dict[str, Any]] = {}

    def keep(name: str, asked: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> None:
        path = workdir / f"{_stem(name, data, seed)}.json"
        found[name] = arms.remembered(path, asked, make)
        said = found[name].get("accuracy")
        told = "" if said is None else f" test {said:.2%},"
        print(f"{path.stem}:{told} {found[name]['seconds']:.1f} s", file=sys.stderr, flush=True)

    for arm in (*SEARCHES, *plan.populations(size)):
        asked = plan.config(size, data, arm, seed)
        keep(arm, asked, lambda asked=asked, arm=arm: _job(asked, arm, data, seed, workdir))
    winner = {key: found[PBT][key] for key in ("lineage", "fixed")}
    asked = {
        "config": plan.config(size, data, PBT, seed),
        "of": winner,
        "seeds": plan.seeds(size, seed),
    }
    keep(
        "from scratch",
        asked,
        lambda: train(asked["config"], courses(found[PBT]), asked["seeds"]),
    )
    return found


def _job(asked: Mapping[str, Any], arm: str, data: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Trains what a job is asked for, in a folder of its own."""
    from lrlab.jobs import _start, pbt, search

    folder = workdir / "runs" / _stem(arm, data, seed)
    command = f"python -m experiments.pbt_2017 --workdir={workdir}"
    job, outcome = (search, of_search) if "search" in asked else (pbt, of_population)
    job.run(asked, folder, _start.Options("experiments/pbt_2017.py", command))
    return outcome(folder)


def _stem(arm: str, data: str, seed: int) -> str:
    return re.sub(r"\W+", "_", f"{arm} {data} {seed}").strip("_").lower()
