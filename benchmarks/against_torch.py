"""lrlab against PyTorch on a CPU: training, evaluation, start; by turns, ratios by round.

    python benchmarks/against_torch.py --torch-python=PATH [--rounds=7] [--rows=cnn_1t,start]

PATH is the Python of an environment with torch. lrlab trains what `python -m lrlab.main` trains,
recipe, checks and records included; both read the same arrays, real where LRLAB_DATA_DIR has them.

torch runs with measure.KEEP, at its best and not as its allocator's luck has it; lrlab runs in the
environment that it is given.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import measure
from measure import Goal, Row, Side, Turn, Worker

LAST, NCHW, FUSED = "torch channels_last", "torch NCHW", "torch fused Adam"
KEPT = "lrlab, memory kept"
BATCHES = {f"{LAST}, batch {n}": n for n in (100, 1000)}
WARM, COLD, TORCH = "lrlab, warm cache", "lrlab, cold cache", "torch"

SMALL = {"data": "mnist", "model": "cnn.SmallCNN", "size": 100, "layout": "channels_last"}
SGD = {**SMALL, "optimizer": "sgd", "lr": 0.05}
LARGE = {**SMALL, "model": "cnn.MnistCNN", "optimizer": "adam", "lr": 0.001}
TABULAR = {"data": "covertype", "model": "mlp.Tabular", "optimizer": "adam", "lr": 6e-4}


@dataclasses.dataclass(frozen=True)
class Comparison(Row):
    """A row, and what its workers are told."""

    data: str = "mnist"
    recipe: str = "mnist.py"
    job: str = "train"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    torch: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    kept: bool = False  # lrlab with measure.KEEP is one side more


def _small(threads: int, *goals: Goal) -> Comparison:
    return Comparison(
        "SmallCNN, batch 100, SGD",
        threads,
        300,
        goals,
        changes={"optimizer": {"name": "sgd"}, "lr": 0.05},
        torch={LAST: SGD, NCHW: {**SGD, "layout": "contiguous_format"}},
    )


def _tabular(size: int, count: int, number: int | None = None) -> Comparison:
    return Comparison(
        f"Tabular, batch {size:,}, Adam, dropout",
        2,
        count,
        (Goal("speedup", "lrlab", (FUSED,), 1.8, number=number),),
        data="covertype",
        recipe="covertype.py",
        changes={"batch": {"name": "fixed", "size": size}},
        torch={FUSED: {**TABULAR, "size": size, "layout": "contiguous_format"}},
    )


def _evaluation(threads: int) -> Comparison:
    return Comparison(
        "SmallCNN, evaluation of the training split",
        threads,
        1,
        (Goal("speedup", "lrlab", tuple(BATCHES), 2.5, number=12),),
        per="pass",
        job="evaluate",
        torch={side: {**SGD, "size": size} for side, size in BATCHES.items()},
    )


ROWS = {
    "cnn_1t": _small(
        1,
        Goal("speedup", "lrlab", (LAST,), 3.0, number=6),
        Goal("speedup", "lrlab", (NCHW,), 4.5, number=6),
    ),
    "cnn_2t": _small(2, Goal("speedup", "lrlab", (LAST,)), Goal("speedup", "lrlab", (NCHW,))),
    "tabular_256": _tabular(256, 100, 7),
    "tabular_1280": _tabular(1280, 24, 8),
    "tabular_6400": _tabular(6400, 6),
    "large_cnn_1t": Comparison(
        "MnistCNN, 3,274,634 weights, batch 100, Adam, dropout",
        1,
        6,
        (
            Goal("speedup", "lrlab", (LAST,), 0.85, number=17),
            Goal("speedup", KEPT, (LAST,)),
        ),
        recipe="mnist_large.py",
        torch={LAST: LARGE},
        kept=True,
    ),
    "eval_1t": _evaluation(1),
    "eval_2t": _evaluation(2),
    "start": Comparison(
        "a new process, SmallCNN and Adam, until lrlab's first stretch (8 updates) is on record; "
        "torch: 10 updates",
        2,
        1,
        (
            Goal("overhead", WARM, (TORCH,), 0.6, seconds=2.5, number=10),
            Goal("overhead", COLD, (TORCH,), 1.2, number=11),
        ),
        per="start",
        job="start",
        torch={TORCH: {**SMALL, "optimizer": "adam", "lr": 0.005}},
    ),
}


def _main() -> None:
    parser = argparse.ArgumentParser(description="lrlab against PyTorch on a CPU")
    parser.add_argument("--torch-python", required=True, help="Python of an environment with torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of %(default)s")
    parser.add_argument("--random", action="store_true", help="random values, even if data is here")
    parser.add_argument("--out", type=Path, default=measure.default_out("against_torch"))
    options = parser.parse_args()
    names = options.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.torch_python)
        notes = bench.store({ROWS[name].data for name in names}, options.random)
        print(*notes.values(), sep="\n")
        rows = {}
        for name in names:
            rows[name] = measure.summary(ROWS[name], bench.rounds(ROWS[name], options.rounds))
            measure.show(name, ROWS[name], rows[name])
    record = {"benchmark": "against_torch", "versions": bench.versions, "data": notes}
    record["torch_environment"] = measure.KEEP
    measure.write(options.out, {**record, "rows": rows})


class Bench:
    """The two environments, and the folder that holds data and caches."""

    def __init__(self, folder: Path, torch_python: str):
        self.folder, self.torch_python = folder, torch_python
        self.env = measure.environment(folder / "cache")
        self.versions: dict[str, Any] = {}
        self._starts = 0

    def store(self, names: set[str], random: bool) -> dict[str, str]:
        """Writes the data sets for both sides; returns what they are."""
        paths = {name: str(self._data(name)) for name in sorted(names)}
        return measure.store(paths, random, self.env)

    def _data(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _torch(self, task: Mapping[str, Any], threads: int) -> Worker:
        task = {**task, "data": str(self._data(task["data"]))}
        env = {**self.env, **measure.KEEP}
        return Worker(self.torch_python, "torch_worker.py", task, threads, env)

    def rounds(self, row: Comparison, rounds: int) -> list[dict[str, Turn]]:
        """Measures a row."""
        if row.job == "start":
            sides: dict[str, Side] = {
                WARM: partial(self._start, row, self.env),
                COLD: partial(self._start, row, None),
                TORCH: partial(self._start_torch, row),
            }
            return measure.alternate(sides, rounds)
        task = {
            "job": row.job,
            "recipe": row.recipe,
            "changes": row.changes,
            "data": str(self._data(row.data)),
        }
        with ExitStack() as stack:
            ours = stack.enter_context(closing(measure.lrlab(task, row.threads, self.env)))
            self.versions["lrlab"] = ours.about["versions"]
            sides = {"lrlab": partial(ours.turn, "lrlab", row.count)}
            if row.kept:
                env = {**self.env, **measure.KEEP}
                kept = stack.enter_context(closing(measure.lrlab(task, row.threads, env)))
                sides[KEPT] = partial(kept.turn, "lrlab", row.count)
            for name, told in row.torch.items():
                theirs = stack.enter_context(closing(self._torch(told, row.threads)))
                self.versions["torch"] = theirs.about["versions"]
                weights = ours.about["parameters"], theirs.about["parameters"]
                assert weights[0] == weights[1], f"{row.title}: {weights} weights"
                sides[name] = partial(theirs.turn, row.job, row.count)
            return measure.alternate(sides, rounds)

    def _start(self, row: Comparison, env: dict[str, str] | None) -> Turn:
        """`python -m lrlab.main` with the row's recipe on our data; without `env`, a cold cache."""
        self._starts += 1
        folder = self.folder / f"start{self._starts}"
        data = {"name": "stored:npz", "path": str(self._data(row.data))}
        config = measure.ROOT / "configs" / row.recipe
        arguments = [f"--config={config}", f"--config.data={data}"]
        env = env or measure.environment(self.folder / f"cache{self._starts}")
        return measure.start_of_run(arguments, folder, env, row.threads)

    def _start_torch(self, row: Comparison) -> Turn:
        """A worker answers when it has done 10 updates."""
        began = time.perf_counter()
        worker = self._torch(row.torch[TORCH], row.threads)
        wall = time.perf_counter() - began
        return {"wall": wall, "cpu": worker.about["cpu"], "used": worker.close()}


if __name__ == "__main__":
    _main()
