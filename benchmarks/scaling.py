"""What a sweep costs beside its updates, by trials and tasks; and a model on paper of many devices.

    python benchmarks/scaling.py [--rounds=3] [--trials=100,1000,10000]

Measured here: checking a sweep of so many trials, cutting it into tasks, looking how they stand,
reading the rows, the report; what a task costs beside its updates (a process that imports,
compiles and trains a single update); the decisions of a population of so many members. The printed
tables are those of docs/scaling.md; what a lane's update costs by weights they take from the record
of sweep_against_torch.py. `on_paper` says what follows for 10,000 lanes on 1,000 devices, and from
what; `one_run` what a ring of all-reduce would leave of one run's speed.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np

from lrlab import fields, points, population, records
from lrlab.jobs import _tasks, sweep
from lrlab.main import load_config

LANES, DEVICES = 10_000, 1_000  # of the model on paper
UPDATES = 10_000  # of each lane
NETWORK = {"latency": 10e-6, "bytes_per_second": 10e9}  # one step of a ring; of each link
PER_TASK = 10  # trials


def config(trials: int) -> dict[str, Any]:
    """A sweep of so many trials in one program: rates by weight decays, on digits."""
    side = math.isqrt(trials)
    found = fields.fill(load_config(str(measure.ROOT / "configs" / "digits.py")))
    axes = (
        {"key": "lr", "low": 1e-4, "high": 1.0, "points": trials // side},
        {"key": "weight_decay", "low": 1e-6, "high": 1e-2, "points": side},
    )
    return {**found, "job": {"name": "sweep"}, "sweep": {"axes": axes, "updates": 100}}


def rows_of(plan: Any, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows like those that a sweep writes, of invented scores."""
    rows = []
    for trial in plan.trials:
        loss = float(rng.uniform(0.1, 2.3))
        scores = {f"{s}_{k}": round(loss, 6) for s in ("val", "test") for k in ("loss", "accuracy")}
        curve = [[10 * (i + 1), round(loss, 6), 0.5] for i in range(10)]
        rows.append(
            {
                "trial": trial.number,
                "point": trial.point,
                "shown": trial.point,
                "outcome": "budget",
                "updates": 100,
                "examples": 6400,
                "last_lr": 0.1,
                "last_loss": loss,
                "train_loss": loss,
                "train_accuracy": 0.5,
                "curve": curve,
                "seconds": 0.1,
                **scores,
            }
        )
    return rows


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def of_trials(count: int, folder: Path) -> dict[str, float]:
    """Seconds of everything that is done once for a sweep of so many trials."""
    whole = config(count)
    checking, plan = timed(lambda: sweep.check(whole))
    found = {"check": checking}
    groups = [(g.name, [t.number for t in g.trials], 100) for g in plan.groups]
    wanted = max(1, count // PER_TASK)
    keys = [axis.key for axis in plan.sweep.axes]
    found["cut into tasks"], tasks = timed(
        lambda: _tasks.write(folder, _tasks.plan(keys, groups, wanted))
    )
    records.write_json(folder / "config.json", {"config": whole, "hash": "", "lrlab": ""})
    rows = rows_of(plan, np.random.default_rng(0))
    for task in tasks:
        task.folder.mkdir(parents=True)
        lines = [records.line(rows[i]) for i in task.trials]
        (task.folder / "trials.jsonl").write_text("".join(lines))
        start = {"event": "start", "trials": 0, "checkpoint": 0}
        records.write_text(task.folder / "events.jsonl", records.line(start))
        (task.folder / "lock").touch()
    found["look at tasks"], _ = timed(lambda: _tasks.states(folder))
    found["read rows"], read = timed(lambda: records.trials(folder))
    assert len(read) == len(rows)
    found["conclude"], _ = timed(lambda: _tasks.conclude(folder))
    page = folder / "report.html"
    found["report, MB"] = page.stat().st_size / 1e6
    return found


def decisions(members: int) -> dict[str, float]:
    """Seconds that a population's decisions between two generations take on the host."""
    axes = tuple(points.Axis(key, (), 1e-4, 1.0) for key in ("lr", "weight_decay", "decay"))
    rng = np.random.default_rng(0)
    values = [{a.key: float(rng.uniform(1e-4, 1)) for a in axes} for _ in range(members)]
    scores = rng.uniform(size=members)

    def decide() -> population.Turn:
        ranked = population.order(scores, 1 - scores)
        draws = population.Draws.of(0, 1, members, len(axes))
        return population.turn(population.Rules(), axes, values, ranked, draws)

    return {"decide": timed(decide)[0]}


def of_a_task(folder: Path, env: Mapping[str, str]) -> float:
    """Seconds of a process that trains a task of one trial and one update."""
    words = [sys.executable, "-m", "lrlab.main", "--config=configs/sweep_digits.py"]
    axis = "{'key': 'lr', 'values': (0.1,)}"
    words += [f"--workdir={folder}", f"--config.sweep={{'axes': ({axis},), 'updates': 1}}"]
    seconds, _ = timed(
        lambda: subprocess.run(
            words, check=True, cwd=measure.ROOT, env=dict(env), capture_output=True
        )
    )
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range, three digits."""
    pick = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {k: float(f"{v:.3g}") for k, v in pick.items()}


def stored(name: str) -> dict[str, Any]:
    """The record of another benchmark on this device, or of any."""
    own = measure.default_out(name)
    found = [own] if own.exists() else sorted(own.parent.glob(f"{name}_*.json"))
    return json.loads(found[0].read_text()) if found else {}


def lane_times(record: Mapping[str, Any]) -> list[dict[str, float]]:
    """Weights, and milliseconds of one core for a lane's update, where a program has many lanes."""
    found = []
    for name, row in record.get("rows", {}).items():
        if name.startswith("growth_"):
            many = row["sides"]["96 lanes"]["ms_per_lane_update"]
            core = {k: many[k] * row["threads"] for k in ("median", "min", "max")}
            found.append({"weights": row["parameters"], **core})
    return found


def on_paper(lanes: Sequence[Mapping[str, float]], task: float, conclude: float) -> dict[str, Any]:
    """Hours of LANES lanes of UPDATES updates on DEVICES devices like a core here, and what else.

    Assumes that lanes know nothing of each other, that all devices are alike and begin together,
    and that a task is LANES / DEVICES lanes.
    """
    each = LANES // DEVICES
    rows = []
    for entry in lanes:
        train = each * UPDATES * entry["median"] / 1e3
        rows.append(
            {
                "weights": entry["weights"],
                "train_seconds": round(train),
                "start_seconds": task,
                "conclude_seconds": conclude,
                "efficiency": round(train / (train + task + conclude), 4),
            }
        )
    return {"lanes": LANES, "devices": DEVICES, "updates": UPDATES, "rows": rows}


def one_run(alone: float, weights: int, hosts: int) -> dict[str, float]:
    """On paper: milliseconds of an update of one run on hosts of one device each, and efficiency.

    Args:
      alone: milliseconds of the whole batch on one device, of which each host takes its part. Of a
        ring of all-reduce: 2 (hosts - 1) steps, each with 1 / hosts of the gradient.
    """
    steps = 2 * (hosts - 1)
    sent = steps * 4 * weights / hosts / NETWORK["bytes_per_second"]
    taken = alone / hosts + 1e3 * (steps * NETWORK["latency"] + sent)
    found = {"alone_ms": alone, "weights": weights, "hosts": hosts, "ms": round(taken, 2)}
    return {**found, "efficiency": round(alone / hosts / taken, 4)}


def _main() -> None:
    parser = argparse.ArgumentParser(description="what grows with trials, tasks and hosts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", default="100,1000,10000")
    parser.add_argument("--out", type=Path, default=measure.default_out("scaling"))
    known = parser.parse_args()
    sizes = [int(text) for text in known.trials.split(",")]
    trials: dict[str, Any] = {}
    for count in sizes:
        found = []
        for _ in range(known.rounds):
            with tempfile.TemporaryDirectory() as home:
                found.append({**of_trials(count, Path(home)), **decisions(count)})
        trials[str(count)] = {key: spread([one[key] for one in found]) for key in found[0]}
        print(count, {k: v["median"] for k, v in trials[str(count)].items()}, flush=True)
    with tempfile.TemporaryDirectory() as home:
        env = measure.environment(Path(home) / "cache")
        starts = [of_a_task(Path(home) / str(i), env) for i in range(known.rounds + 1)]
    task = {"cold": round(starts[0], 2), "warm": spread(starts[1:])}
    print("a task of one update:", task)
    lanes = lane_times(stored("sweep_against_torch"))
    last = trials[str(sizes[-1])]
    record = {
        "benchmark": "scaling",
        "date": time.strftime("%Y-%m-%d"),
        "device": measure.device(),
        "versions": records.environment(),
        "rounds": known.rounds,
        "by_trials": trials,
        "task_seconds": task,
        "ms_of_a_core_per_lane_update": lanes,
        "on_paper": on_paper(lanes, task["cold"], last["conclude"]["median"]),
        "one_run_on_paper": [
            one_run(alone, weights, count)
            for weights in (1_000_000, 25_000_000)
            for alone in (100.0, 1000.0)
            for count in (2, 8, 64)
        ],
    }
    known.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(record)
    print(f"wrote {known.out}")


def show(record: Mapping[str, Any]) -> None:
    """Prints the tables of docs/scaling.md."""
    names = list(next(iter(record["by_trials"].values())))
    print("| trials | " + " | ".join(names) + " |")
    print("| --- " * (len(names) + 1) + "|")
    for count, row in record["by_trials"].items():
        cells = [f"{row[n]['median']:.3g} ({row[n]['min']:.3g}–{row[n]['max']:.3g})" for n in names]
        print(f"| {int(count):,} | " + " | ".join(cells) + " |")
    print("| weights | training | start | conclusion | efficiency |")
    print("| --- " * 5 + "|")
    for row in record["on_paper"]["rows"]:
        print(
            f"| {row['weights']:,} | {row['train_seconds']:,} s | {row['start_seconds']:.1f} s | "
            f"{row['conclude_seconds']:.1f} s | {row['efficiency']:.1%} |"
        )
    print("| weights | on one device | hosts | update | efficiency |")
    print("| --- " * 5 + "|")
    for row in record["one_run_on_paper"]:
        print(
            f"| {row['weights']:,} | {row['alone_ms']:,.0f} ms | {row['hosts']} | "
            f"{row['ms']:.1f} ms | {row['efficiency']:.0%} |"
        )


if __name__ == "__main__":
    _main()
