"""What lrlab's own machinery costs, and what keeps its compiled loops fast; by turns.

    python benchmarks/overheads.py [--rounds=7] [--rows=dropout,guard_small_cnn]

Each row runs lrlab with one thing and without it, in one process: dropout, records, pmap, the loop,
the checks. The process has measure.KEEP: else a call from Python, which allocates anew each time,
would be slowed by page faults, and the guard would pass a loop that is twice too slow.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import measure
from measure import Goal, Row, Turn

UNSAVED = "recorded, saves off the clock"


@dataclasses.dataclass(frozen=True)
class Overhead(Row):
    """A row, and what its worker is told; without a recipe, it starts processes."""

    job: str = ""
    recipe: str = ""
    data: str | None = None
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _guard(
    title: str,
    count: int,
    recipe: str,
    data: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Overhead:
    goal = Goal("overhead", "in the loop", ("called from Python",), 1.1, number=15)
    told = {"changes": changes or {}}
    return Overhead(title, 2, count, (goal,), job="guard", recipe=recipe, data=data, told=told)


def _pmap(title: str, count: int, recipe: str, data: str | None = None) -> Overhead:
    goal = Goal("overhead", "pmap", ("jit",), 1.03, number=14)
    return Overhead(title, 1, count, (goal,), job="pmap", recipe=recipe, data=data)


def _checks(title: str, count: int, recipe: str, data: str | None = None) -> Overhead:
    goal = Goal("overhead", "checked", ("unchecked",), 1.01)
    return Overhead(title, 1, count, (goal,), job="checks", recipe=recipe, data=data)


def _logging(title: str, count: int, epochs: int, recipe: str, data: str | None = None) -> Overhead:
    goals = (
        Goal("overhead", UNSAVED, ("bare",), 1.02, number=13),
        Goal("overhead", "recorded", ("bare",)),
    )
    told = {"changes": {"epochs": epochs}}
    return Overhead(title, 2, count, goals, job="logging", recipe=recipe, data=data, told=told)


def _small_images(name: str, **model: Any) -> dict[str, Any]:
    return {"model": {"name": name, **model}, "batch": {"name": "fixed", "size": 32}}


ROWS = {
    "dropout": Overhead(
        "Tabular, batch 256, with dropout and without",
        2,
        100,
        (Goal("overhead", "with dropout", ("without",), 1.05, number=9),),
        job="dropout",
        recipe="covertype.py",
        data="covertype",
        told={"changes": {}, "dry": {"name": "mlp.Tabular", "dropout": 0.0}},
    ),
    "logging_mlp": _logging("MLP on digits, a whole run of 30 epochs", 570, 30, "digits.py"),
    "logging_small_cnn": _logging(
        "SmallCNN, a whole run of 2 epochs", 1100, 2, "mnist.py", "mnist"
    ),
    "pmap_mlp": _pmap("MLP on digits, 19 updates a call", 570, "digits.py"),
    "pmap_small_cnn": _pmap("SmallCNN", 550, "mnist.py", "mnist"),
    "pmap_tabular": _pmap("Tabular, batch 256", 100, "covertype.py", "covertype"),
    "guard_small_cnn": _guard("SmallCNN, batch 100", 400, "mnist.py", "mnist"),
    "guard_mnist_cnn": _guard("MnistCNN, batch 100", 6, "mnist_large.py", "mnist"),
    "guard_mlp": _guard("MLP on digits, batch 64", 570, "digits.py"),
    "guard_tabular": _guard("Tabular, batch 256", 100, "covertype.py", "covertype"),
    "guard_resnet": _guard(
        "ResNet of 2 stages, width 16, batch 32",
        20,
        "cifar10.py",
        "cifar10",
        _small_images("resnet.ResNet", stage_sizes=(1, 1), width=16),
    ),
    "guard_wide_resnet": _guard(
        "WRN-10-1, batch 32",
        20,
        "cifar10.py",
        "cifar10",
        _small_images("resnet.WideResNet", depth=10, width=1),
    ),
    "checks_mlp": _checks("MLP on digits", 570, "digits.py"),
    "checks_small_cnn": _checks("SmallCNN", 550, "mnist.py", "mnist"),
    "checks_tabular": _checks("Tabular, batch 256", 60, "covertype.py", "covertype"),
    "start_digits": Overhead(
        "a second `python -m lrlab.main --config=configs/digits.py` until its first stretch is on "
        "record",
        2,
        1,
        (Goal("overhead", "start", seconds=5.0),),
        per="start",
    ),
}


def _main() -> None:
    parser = argparse.ArgumentParser(description="what lrlab's own machinery costs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of %(default)s")
    parser.add_argument("--random", action="store_true", help="random values, even if data is here")
    parser.add_argument("--out", type=Path, default=measure.default_out("overheads"))
    options = parser.parse_args()
    names = options.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as name:
        folder, rows, versions = Path(name), {}, {}
        env = measure.environment(folder / "cache")
        paths = {d: str(folder / f"{d}.npz") for n in names if (d := ROWS[n].data)}
        notes = measure.store(paths, options.random, env) if paths else {}
        print(*notes.values(), sep="\n")
        for name in names:
            row = ROWS[name]
            if row.per == "start":
                turns = _starts(folder, env, row, options.rounds)
            else:
                turns, versions = _rounds(row, paths, env, options.rounds)
            rows[name] = measure.summary(row, turns)
            measure.show(name, row, rows[name])
    record = {"benchmark": "overheads", "versions": versions, "data": notes}
    record |= {"environment": measure.KEEP, "rows": rows}
    measure.write(options.out, record)


def _rounds(
    row: Overhead, paths: Mapping[str, str], env: dict[str, str], rounds: int
) -> tuple[list[dict[str, Turn]], dict[str, Any]]:
    task = {"job": row.job, "recipe": row.recipe, "changes": {}, **row.told}
    if row.data:
        task["data"] = paths[row.data]
    env = {**env, **measure.KEEP}
    with closing(measure.lrlab(task, row.threads, env, "overheads_worker.py")) as worker:
        sides = {name: partial(worker.turn, name, row.count) for name in worker.about["sides"]}
        found = measure.alternate(sides, rounds)
        if row.job == "logging":
            for turns in found:
                whole = turns["recorded"]
                saving = {k: whole[k] - whole["saving"][k] for k in ("wall", "cpu")}
                turns[UNSAVED] = {**whole, **saving}
        return found, worker.about["versions"]


def _starts(folder: Path, env: dict[str, str], row: Overhead, rounds: int) -> list[dict[str, Turn]]:
    """The first start fills the cache and only warms up."""
    config, done = f"--config={measure.ROOT / 'configs' / 'digits.py'}", iter(range(rounds + 1))

    def start() -> Turn:
        return measure.start_of_run([config], folder / f"run{next(done)}", env, row.threads)

    return measure.alternate({"start": start}, rounds)


if __name__ == "__main__":
    _main()
