"""A whole learning-rate study as lanes, against the same runs in PyTorch; what lanes cost.

    python benchmarks/sweep_against_torch.py --torch-python=PATH [--rounds=7] [--quick]

PATH is the Python of an environment with torch. The study: the small CNN on MNIST, six optimizers
by 48 rates, 2,000 updates each. No side does all of it: every turn is a sample of every optimizer,
and its time is multiplied up to the 576,000 lane-updates ("wall" is that, "sampled" what was done).
Both sides follow the training accuracy over the last 2,000 examples.

grid: lrlab, a device a core as `main` lays sweeps out, PyTorch in four ways, and the machine's
matrix product, which says what share of its peak the useful arithmetic gets. growth: cost by lanes
a program and by size of the model, also docs/lanes_cost.png. quarter: a quarter of the lanes left.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import measure
from matplotlib.ticker import LogLocator, NullFormatter
from measure import Goal, Row, Side, Turn, Worker

from lrlab import charts

RATES, UPDATES = 48, 2000
LANE_UPDATES = 6 * RATES * UPDATES
MFLOP = 55.3  # that an update of the small CNN needs, forward and backward, at 100 examples
OURS = "lrlab, lanes"
DEFAULT, KEPT = "torch as it comes", "torch as it comes, memory kept"
LAST, PAIR = "torch channels_last", "torch channels_last, 2 processes x 1 thread"
PEAKS = "matrix product, NumPy", "matrix product, JAX"
CORES = 2
LRS = (1e-3, 1e-1)  # that PyTorch is sampled at with every optimizer; time hardly depends on them
GROWTH_ROUNDS = 5  # at most: most of that time goes into compiling
FIGURE = measure.ROOT / "docs" / "lanes_cost.png"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    ours, theirs: updates of a run in a turn. growth: lane-updates in a turn at scale 1.
    """

    rounds: int
    ours: int
    theirs: int
    growth: int
    lanes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 96)
    scales: tuple[int, ...] = (1, 2, 3, 4)


FULL = Effort(rounds=7, ours=25, theirs=50, growth=1000)
QUICK = Effort(rounds=2, ours=4, theirs=10, growth=200, lanes=(1, 8, 96), scales=(1, 2))

GRID = Row(
    f"SmallCNN, batch 100, six optimizers x {RATES} rates x {UPDATES:,} updates = "
    f"{LANE_UPDATES:,} lane-updates, from samples",
    CORES,
    LANE_UPDATES,
    (
        Goal("speedup", OURS, (DEFAULT,), 6.0, number=1),
        Goal("speedup", OURS, (KEPT,)),
        Goal("speedup", OURS, (LAST,)),
        Goal("speedup", OURS, (DEFAULT, KEPT, LAST, PAIR), 4.0, number=2),
        Goal("speedup", OURS, PEAKS),
    ),
    per="lane_update",
)


def _main() -> None:
    parser = argparse.ArgumentParser(description="a learning-rate study: lrlab against PyTorch")
    parser.add_argument("--torch-python", required=True, help="Python of an environment with torch")
    parser.add_argument("--rounds", type=int, help="at least 5 for a record; 7")
    parser.add_argument("--quick", action="store_true", help="a look; writes to a temporary folder")
    parser.add_argument("--rows", default="grid,quarter,growth", help="which, of %(default)s")
    parser.add_argument("--random", action="store_true", help="random values, even if data is here")
    parser.add_argument("--out", type=Path, help="of the record")
    options = parser.parse_args()
    names = options.rows.split(",")
    if unknown := set(names) - {"grid", "quarter", "growth"}:
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; there are grid, quarter, growth")
    effort = QUICK if options.quick else FULL
    effort = dataclasses.replace(effort, rounds=options.rounds or effort.rounds)
    out, figure = options.out or measure.default_out("sweep_against_torch"), FIGURE
    if options.quick:
        home = Path(tempfile.mkdtemp(prefix="sweep_against_torch-"))
        out, figure = options.out or home / out.name, home / figure.name
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.torch_python, effort)
        print(data := bench.store(options.random))
        rows: dict[str, Any] = {}
        if "grid" in names:
            rows["grid"] = _with_projection(bench.grid())
        if "quarter" in names:
            rows["quarter"] = bench.quarter()
        if "growth" in names:
            rows |= bench.growth()
            _draw(rows, effort, figure)
    record = {"benchmark": "sweep_against_torch", "versions": bench.versions, "data": data}
    record["torch_environment"] = measure.KEEP
    record["effort"] = {**dataclasses.asdict(effort), "lrs": LRS, "mflop": MFLOP}
    record["extrapolated"] = f"every time is of a sample, multiplied up to {LANE_UPDATES:,}"
    record["minutes"] = round((time.perf_counter() - began) / 60, 1)
    measure.write(out, {**record, "rows": rows})


class Bench:
    """The two environments, and the folder that holds data and caches."""

    def __init__(self, folder: Path, torch_python: str, effort: Effort):
        self.torch_python, self.effort = torch_python, effort
        self.data = str(folder / "mnist.npz")
        self.env = measure.environment(folder / "cache")
        # What `main` does for a sweep: a device a core, and no more threads than these.
        flags = f"--xla_force_host_platform_device_count={CORES}"
        self.lanes_env = {**self.env, "XLA_FLAGS": flags}
        self.lanes_env.pop("PJRT_NPROC", None)
        self.versions: dict[str, Any] = {}

    def store(self, random: bool) -> str:
        """Writes the data for all workers; returns what it is."""
        return measure.store({"mnist": self.data}, random, self.env)["mnist"]

    def _ours(self, task: Mapping[str, Any], env: dict[str, str] | None = None) -> Worker:
        env = env or self.lanes_env
        task = {"recipe": "mnist.py", "data": self.data, **task}
        worker = measure.lrlab(task, CORES, env, "lanes_worker.py")
        wanted = CORES if env is self.lanes_env else 1
        assert worker.about["devices"] == wanted, f"{worker.about['devices']} devices"
        self.versions |= {"lrlab": worker.about["versions"]}
        return worker

    def _torch(self, told: Mapping[str, Any], kept: bool, spared: int | None = None) -> Worker:
        """With all cores, or with one of them: the last but `spared`."""
        task = {"data": self.data, "model": "cnn.SmallCNN", "size": 100, "lrs": LRS, **told}
        env = {**self.env, **measure.KEEP} if kept else self.env
        threads, spared = (CORES, 0) if spared is None else (1, spared)
        script = "torch_sweep_worker.py"
        worker = Worker(self.torch_python, script, task, threads, env, spared)
        self.versions["torch"] = worker.about["versions"]
        return worker

    def grid(self) -> dict[str, Any]:
        """Measures the study."""
        plain = {"layout": "contiguous_format", "fast": False}
        tuned = {"layout": "channels_last", "fast": True}
        with ExitStack() as stack:

            def enter(worker: Worker) -> Worker:
                return stack.enter_context(closing(worker))

            task = {"job": "grid", "recipe": "sweep_mnist.py", "points": RATES}
            ours = enter(self._ours({**task, "length": self.effort.ours}))
            workers = {
                DEFAULT: (enter(self._torch(plain, kept=False)),),
                KEPT: (enter(self._torch(plain, kept=True)),),
                LAST: (enter(self._torch(tuned, kept=True)),),
                PAIR: tuple(
                    enter(self._torch({**tuned, "lrs": [lr]}, kept=True, spared=i))
                    for i, lr in enumerate(LRS)
                ),
            }
            for theirs in workers.values():
                weights = ours.about["parameters"], theirs[0].about["parameters"]
                assert weights[0] == weights[1], f"{weights} weights"
            products = enter(self._ours({"job": "peak"}, self.env))
            sides: dict[str, Side] = {OURS: _whole(ours, OURS, self.effort.ours)}
            for name, theirs in workers.items():
                sides[name] = _together([_whole(w, "torch", self.effort.theirs) for w in theirs])
            sides |= {name: _whole(products, name, 5) for name in PEAKS}
            return self._measured("grid", GRID, sides)

    def quarter(self) -> dict[str, Any]:
        """Measures what is left of a program when three quarters of its lanes are over."""
        lanes = (48, 288)
        goals = tuple(
            Goal("overhead", f"{n // 4} of {n} lanes", (f"{n} lanes",), 1.15, number=5)
            for n in lanes
        )
        row = Row("SmallCNN, Adam, lanes left", CORES, LANE_UPDATES, goals, per="lane_update")
        task = {"job": "quarter", "lanes": lanes, "length": 100}
        with closing(self._ours(task)) as worker:
            sides: dict[str, Side] = {}
            for n in lanes:
                work = 2 * self.effort.growth
                sides[f"{n} lanes"] = _whole(worker, f"{n} lanes", max(1, work // n))
                few = f"{n // 4} of {n} lanes"
                sides[few] = _whole(worker, few, min(100, max(1, 4 * work // n)))
            found = self._measured("quarter", row, sides)
        for turn in found["rounds"]:
            for name, side in turn.items():
                if "shrunk" in side:
                    found.setdefault("shrunk", {})[name] = side.pop("shrunk")
        for name, by_way in found["shrunk"].items():
            for way, what in by_way.items():
                print(f"  to {name}, {way}: {what['compiled']} compiled, {what['seconds']:.3f} s")
        return found

    def growth(self) -> dict[str, Any]:
        """Measures lanes a program, a row for each size of the model."""
        rows = {}
        for scale in self.effort.scales:
            title = f"SmallCNN, Adam, widths x {scale}, by lanes a program on {CORES} devices"
            row = Row(title, CORES, LANE_UPDATES, (), per="lane_update")
            model = {"name": "cnn.SmallCNN", "scale": float(scale)}
            task = {"job": "growth", "lanes": self.effort.lanes, "length": 100}
            work = self.effort.growth / scale**1.5
            with closing(self._ours({**task, "changes": {"model": model}})) as worker:
                sides: dict[str, Side] = {
                    f"{n} lane{'s' * (n > 1)}": _whole(worker, str(n), max(1, round(work / n)))
                    for n in self.effort.lanes
                }
                weights = {"parameters": worker.about["parameters"]}
                rows[_row(scale)] = self._measured(_row(scale), row, sides) | weights
        return rows

    def _measured(self, name: str, row: Row, sides: Mapping[str, Side]) -> dict[str, Any]:
        began, rounds = time.perf_counter(), self.effort.rounds
        if name.startswith("growth"):
            rounds = min(rounds, GROWTH_ROUNDS)
        found = measure.summary(row, measure.alternate(sides, rounds))
        measure.show(name, row, found)
        print(f"  {rounds} rounds, {time.perf_counter() - began:.0f} s", flush=True)
        return found


def _row(scale: int) -> str:
    return f"growth_x{scale}"


def _whole(worker: Worker, side: str, count: int) -> Side:
    """A side whose times are multiplied up to the whole study."""

    def turn() -> Turn:
        found = worker.turn(side, count)
        if flops := found.pop("flops", None):
            times = LANE_UPDATES * MFLOP * 1e6 / flops
            found["gflop_per_second"] = round(flops / found["wall"] / 1e9, 1)
            found["faults"] /= count
        else:
            times = LANE_UPDATES / found["lane_updates"]
        found["sampled"] = {k: round(found[k], 4) for k in ("wall", "cpu")}
        return found | {k: round(found[k] * times, 3) for k in ("wall", "cpu", "faults")}

    return turn


def _together(sides: Sequence[Callable[[], Turn]]) -> Side:
    """Sides that each do an equal part of the study, at the same time."""

    def turn() -> Turn:
        with ThreadPoolExecutor(len(sides)) as pool:
            found = [future.result() for future in [pool.submit(side) for side in sides]]
        n = len(found)
        return found[0] | {
            "wall": max(turn["wall"] for turn in found) / n,
            "cpu": sum(turn["cpu"] for turn in found) / n,
            "faults": sum(turn["faults"] for turn in found) / n,
            "used": sum(turn["used"] for turn in found),
            "lane_updates": sum(turn["lane_updates"] for turn in found),
            "accuracy": max(turn["accuracy"] for turn in found),
        }

    return turn


def _with_projection(row: dict[str, Any]) -> dict[str, Any]:
    """The grid's row with the time of the whole study by side, and the share of the peak."""
    for name, side in row["sides"].items():
        ms = side["ms_per_lane_update"]
        if name in PEAKS:
            side["gflop_per_second"] = round(MFLOP / ms["median"], 1)
            continue
        side["projected_minutes"] = round(ms["median"] * LANE_UPDATES / 60e3, 1)
        print(f"  {name:<44} {side['projected_minutes']:>6.1f} min projected")
    row["share_of_peak"] = next(g["ratio"] for g in row["goals"] if g["theirs"] in PEAKS)
    print(
        f"  useful arithmetic at {row['share_of_peak']['median']:.0%} of the matrix product's rate"
    )
    return row


def _draw(rows: Mapping[str, Any], effort: Effort, out: Path) -> None:
    """Cost against lanes, a line for each size of the model."""
    series = {}
    for scale in effort.scales:
        row = rows[_row(scale)]
        costs = [side["ms_per_lane_update"] for side in row["sides"].values()]
        series[f"{row['parameters']:,} weights"] = [
            (n, ms["median"], ms["min"], ms["max"])
            for n, ms in zip(effort.lanes, costs, strict=True)
        ]
    figure = charts.lines(
        series,
        f"What an update of a lane costs, {CORES} cores",
        "milliseconds",
        log_y=True,
        x="lanes a program",
    )
    axes = figure.axes[0]
    axes.set_xticks(effort.lanes, [str(n) for n in effort.lanes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    _main()
