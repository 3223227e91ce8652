"""What a search leaves behind, and what it says in a terminal."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrlab import console, points, records
from lrlab.jobs import _found, _held, _search_study, _start
from lrlab.jobs._search import Plan
from lrlab.report.search import rungs_words, write_search

Row = dict[str, Any]


def ranked(found: Sequence[Sequence[Any]], score: str) -> list[int]:
    """Of points of curves, (updates, accuracy, loss), the best first."""
    row = {"val_accuracy": [f[1] for f in found], "val_loss": [f[2] for f in found]}
    return _found.ranked(row, score) if found else []


def point(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {points.label(value)}" for key, value in numbers.items())


def conclude(folder: Path, plan: Plan, rows: Sequence[Row], progress: Sequence[Row]) -> None:
    """Writes what the rows say: summary.json, the study where all is over, figures, the report."""
    if not rows:
        return
    finished = [row for row in rows if row["outcome"] == "finished"]
    ends = [(row["updates"], row["val_accuracy"], row["val_loss"]) for row in finished]
    order = ranked(ends, plan.spec["score"])
    kept = "trial", "values", "val_accuracy", "val_loss", "test_accuracy", "test_loss"
    outcomes = [row["outcome"] for row in rows]
    said = {
        "method": plan.spec["method"],
        "score": plan.spec["score"],
        "trials": len(rows),
        "planned": plan.trials,
        "rounds": len(plan.rounds),
        "examples": sum(row["examples"] for row in rows),
        "updates": sum(row["updates"] for row in rows),
        "budget": int(plan.spec["trials"]) * int(plan.taken[-1]),
        "best": {k: finished[order[0]].get(k) for k in kept} if finished else None,
        "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
        "logarithmic": [axis.key for axis in plan.axes if _held.is_logarithmic(axis)],
        "rungs": [list(rung) for rung in plan.rounds[0].rungs],
        "total": plan.total,
        "seconds": progress[-1]["seconds"],
        "study": False,
        "digest": records.digest(rows),
    }
    if len(rows) == plan.trials:
        said["study"] = _search_study.write(folder, plan, rows)
    records.write_json(folder / "summary.json", said)
    write_search(folder, plan.trials)


def banner(plan: Plan, folder: Path, options: _start.Options) -> str:
    spec, rounds, whole = plan.spec, plan.rounds, int(plan.taken[-1])
    together = f"of {plan.lanes} that train together"
    if rounds[-1].trials != plan.lanes:
        together += f", the last of {rounds[-1].trials}"
    many = f"{len(rounds)} round{'s' * (len(rounds) > 1)} {together}"
    share = plan.cost / whole
    items = [
        *_held.about(plan.recipe, plan.axes),
        ("method", f"{spec['method']}, by validation {spec['score']}"),
        ("trial", f"{plan.total:,} updates, {whole:,} examples, {len(plan.looks)} evaluations"),
        ("trials", f"{plan.trials:,} in {many}"),
    ]
    if rounds[0].rungs:
        items.append(("rungs", rungs_words(rounds[0].trials, rounds[0].rungs, plan.total)))
    items += [
        ("budget", f"{spec['trials']:,} whole trials; {share:,.4g} of them are what it comes to"),
        *_held.warnings(plan.recipe),
    ]
    return console.banner(f"lrlab search {options.source}", [*items, ("folder", str(folder))])


def ending(folder: Path) -> str:
    said = records.read_json(folder / "summary.json")
    best, config = said["best"], records.read_json(folder / "config.json")
    outcomes = ", ".join(f"{n:,} {name}" for name, n in said["outcomes"].items())
    tested = best.get("test_accuracy")
    score = f"validation {console.percent(best['val_accuracy'])}"
    score += f", loss {console.loss(best['val_loss'])}"
    score += f", test {console.percent(tested)}" if tested is not None else ""
    values = [f"--config.{key}={value!r}" for key, value in best["values"].items()]
    again = shlex.join([*_elsewhere(config["command"]), "--config.job.name=train", *values])
    study = f"study {folder / 'study.db'}: optuna-dashboard sqlite:///{folder / 'study.db'}"
    lines = [
        f"{said['trials']:,} trials: {outcomes}; {said['examples']:,} examples, "
        f"{said['examples'] / said['budget']:.1%} of the budget",
        f"best is trial {best['trial']}: {score}, at {point(best['values'])}",
        f"that one alone: {again}",
        study if said["study"] else "study.db was left out: it needs pip install 'lrlab[search]'",
    ]
    return "\n".join([*lines, f"report {folder / 'report.html'}"])


def _elsewhere(command: str) -> list[str]:
    """A command without its folder."""
    words = shlex.split(command)
    while "--workdir" in words:
        at = words.index("--workdir")
        del words[at : at + 2]
    return [word for word in words if not word.startswith("--workdir=")]
