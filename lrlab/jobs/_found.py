"""What a population found: who came from whom, the schedule of it, what it is worth."""

import itertools
import math
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import batching, console, fields, points, population
from lrlab.build import Recipe
from lrlab.jobs import _held
from lrlab.jobs._population import ARMS, Plan

Row = dict[str, Any]
Rows = Mapping[str, Sequence[Row]]  # by arm, a row a generation


def ranked(row: Row, score: str) -> list[int]:
    """The members of a generation from the best on, without those that diverged."""
    known = (row["val_accuracy"], row["val_loss"])
    accuracy, loss = (np.array([math.nan if v is None else v for v in found]) for found in known)
    pair = (accuracy, loss) if score == "accuracy" else (-loss, -accuracy)
    return population.order(*pair)


def clock(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Where schedules stand in each update, int32 [updates], and the regime's factor."""
    epochs = recipe.epochs()
    base = epochs[0].updates
    ticks = [batching.ticks(e.number, 0, e.updates, e.updates, base) for e in epochs]
    scales = [np.full(e.updates, e.scale) for e in epochs]
    return np.concatenate(ticks), np.concatenate(scales)


def replay(plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """The config of a single run that uses what the best member's ancestors used.

    The rate is a table of it over its largest value; other numbers are tables of themselves.
    """
    path = _path(rows, ranked(rows[-1], plan.spec["score"])[0])
    ticks, _ = clock(plan.recipe)
    begins = np.array([ticks[row["first"]] for row in rows])
    at = np.searchsorted(begins, np.arange(plan.recipe.total), side="right") - 1
    changed = dict(plan.base)
    for axis in plan.axes:
        used = [row["values"][axis.key][i] for row, i in zip(rows, path, strict=True)]
        held = np.array(used, np.float64)[at]
        if axis.key == "lr":
            every = np.arange(plan.recipe.total, dtype=np.int32)
            held = held * np.asarray(jax.jit(jax.vmap(plan.recipe.shape))(every), np.float64)
            top = float(held.max())
            changed = points.assign(changed, {"lr": top, "schedule": _table(held / top)})
        else:
            changed = points.assign(changed, {axis.key: {"schedule": _table(held)}})
    return changed


def _table(series: np.ndarray) -> tuple[dict[str, Any], ...]:
    """A schedule that holds these values; nine digits tell a float32 from its neighbours."""
    at, found = population.pieces([float(f"{v:.9g}") for v in series])
    return ({"name": "table", "values": found, "at": at, "interpolate": False},)


def _path(rows: Sequence[Row], member: int) -> list[int]:
    """The member that had a member's state in each generation."""
    return population.ancestry([row["donors"] for row in rows[:-1]], member)


def summary(plan: Plan, rows: Rows) -> dict[str, Any]:
    """What the rows say so far; of a population with at least one member left."""
    known, score = rows["population"], plan.spec["score"]
    last, left = known[-1], ranked(known[-1], score)
    best = left[0]
    back = [
        row["read_back"][i]
        for before, row in itertools.pairwise(known)
        for i, donor in enumerate(before["donors"])
        if donor != i
    ]
    spent = {
        key: round(sum(row["seconds"][key] for row in known), 3)
        for key in ("train", "evaluate", "exploit")
    }
    return {
        "generations": len(known),
        "members": len(last["donors"]),
        "keys": [axis.key for axis in plan.axes],
        "logarithmic": [axis.key for axis in plan.axes if _held.is_logarithmic(axis)],
        "updates": last["updates"],
        "examples": last["examples"] * len(last["donors"]),
        "best": _member(last, best),
        "path": _path(known, best),
        "paths": [_path(known, i) for i in left],
        "first_ancestors": len({_path(known, i)[0] for i in left}),
        "copies": sum(d != i for row in known for i, d in enumerate(row["donors"])),
        "diverged": sum(len(row["diverged"]) for row in known),
        "read_back": {"copies": len(back), "equal": sum(back)},
        "seconds": spent,
        "exploit_share": spent["exploit"] / max(sum(spent.values()), 1e-9),
        "digest": last.get("digest"),
        "comparison": _comparison(rows, score),
    }


def _member(row: Row, i: int) -> dict[str, Any]:
    """What a row says of a member."""
    scores = {
        k: row[k][i]
        for k in ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_loss")
        if k in row
    }
    return {"member": i, "values": {k: v[i] for k, v in row["values"].items()}, **scores}


def _comparison(rows: Rows, score: str) -> list[dict[str, Any]]:
    """What each arm that is over came to; of those of several seeds the mean over them."""
    found = []
    for name, known in rows.items():
        if not known or "digest" not in known[-1]:
            continue
        last, left = known[-1], ranked(known[-1], score)
        entry = {"arm": name, "runs": len(last["donors"])}
        entry["examples"] = last["examples"] * entry["runs"]
        entry["diverged"] = len(last["diverged"])
        chosen = left if name in ARMS[2:] else left[:1]
        entry["best"] = left[0] if left else None
        entry["values"] = _member(last, left[0])["values"] if left else {}
        for key in ("val_accuracy", "val_loss", "test_accuracy", "test_loss"):
            got = [last[key][i] for i in chosen] if key in last else []
            entry[key] = float(np.mean(got)) if got else None
            if name in ARMS[2:] and len(got) > 1:
                entry[f"{key}_sd"] = float(np.std(got, ddof=1))
        found.append(entry)
    return found


def replay_file(plan: Plan, rows: Sequence[Row], folder: Path) -> str:
    """A config that trains with the schedule that was found."""
    found = replay(plan, rows)
    kept = {k: v for k, v in found.items() if k == "seed" or v != fields.DEFAULTS.get(k)}
    best = ranked(rows[-1], plan.spec["score"])[0]
    score = console.percent(rows[-1]["val_accuracy"][best])
    lines = [
        f'"""The schedule that a population of {len(rows[-1]["donors"])} found, as one run.',
        "",
        f"Member {best} was the best after {len(rows)} generations, with {score} in validation:",
        "this is what it and its ancestors used, from the first update on.",
        "",
        f"Run: python -m lrlab.main --config={folder / 'replay.py'}",
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "",
        "def get_config() -> ConfigDict:",
        "    c = ConfigDict()",
    ]
    for key, value in kept.items():
        text = pprint.pformat(value, width=88, compact=True, sort_dicts=False)
        several = "\n" in text
        inside = "".join(f"        {line}\n" for line in text.splitlines())
        lines.append(f"    c.{key} = (\n{inside}    )" if several else f"    c.{key} = {text}")
    return "\n".join([*lines, "    return c", ""])
