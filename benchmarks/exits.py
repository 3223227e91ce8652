"""What ending trials early saves, and whether it ever ends a good one: a whole study, three times.

    LRLAB_DATA_DIR=... python benchmarks/exits.py

The study: configs/sweep_mnist.py with 48 rates, 288 runs of at most 2,000 updates. "none": every
trial to its end. "target": a trial ends where it reaches its accuracy. "rules": a trial that is
dead or stuck ends too. Updates are exact; times are of one study each, programs compiled before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from lrlab import records

STUDY = (
    "--config=configs/sweep_mnist.py",
    '--config.sweep.axes=({"key": "optimizer", "values": ({"name": "sgd"}, {"name": "momentum"}, '
    '{"name": "adagrad"}, {"name": "adadelta"}, {"name": "rmsprop"}, {"name": "adam"})}, '
    '{"key": "lr", "low": 1e-6, "high": 100.0, "points": 48})',
)
WAYS = {
    "none": ("--config.sweep.target=None",),
    "target": (),
    "rules": ('--config.sweep.stop=("dead", "stuck")',),
}
GOALS = {"saved_by_rules": 1.6, "study_seconds": 300.0}  # numbers 3 and 4


def study(folder: Path, more: tuple[str, ...], updates: int) -> dict[str, Any]:
    """One study in a process of its own: seconds, updates, and what became of each trial."""
    command = [sys.executable, "-m", "lrlab.main", *STUDY, *more, f"--workdir={folder}"]
    command += [f"--config.sweep.updates={updates}"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=measure.ROOT)
    seconds = time.perf_counter() - began
    rows, cores = records.trials(folder), len(os.sched_getaffinity(0))
    summary = records.read_json(folder / "summary.json")
    return {
        "seconds": round(seconds, 1),
        "training_seconds": round(sum(r["seconds"] for r in rows) / cores, 1),
        "updates": summary["updates"],
        "at_most": summary["at_most"],
        "outcomes": summary["outcomes"],
        "trials": {r["trial"]: [r["outcome"], r["updates"]] for r in rows},
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description="what ending trials early saves")
    parser.add_argument("--updates", type=int, default=2000, help="of a trial at most; %(default)s")
    parser.add_argument("--out", type=Path, default=measure.default_out("exits"))
    known = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for name, more in WAYS.items():  # a short one first: it compiles
            study(Path(home) / f"{name} short", more, min(200, known.updates))
            found[name] = study(Path(home) / name, more, known.updates)
            print(name, {k: v for k, v in found[name].items() if k != "trials"}, flush=True)
    trials = {name: found[name].pop("trials") for name in found}
    changed = [t for t, told in trials["target"].items() if told[0] == "target"]
    changed = [t for t in changed if trials["rules"][t] != trials["target"][t]]
    saved, sooner = (
        round(found["none"][what] / found["rules"][what], 3)
        for what in ("updates", "training_seconds")
    )
    record = {
        "benchmark": "exits",
        "date": time.strftime("%Y-%m-%d"),
        "device": measure.device(),
        "versions": records.environment(),
        "studies": found,
        "updates_saved": saved,
        "time_saved": sooner,
        "targets_changed": changed,
        "goals": GOALS,
        "met": {
            "saved_by_rules": saved >= GOALS["saved_by_rules"] and not changed,
            "study_seconds": found["rules"]["seconds"] <= GOALS["study_seconds"],
        },
    }
    known.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print({k: record[k] for k in ("updates_saved", "time_saved", "targets_changed", "met")})
    print(f"wrote {known.out}")


if __name__ == "__main__":
    _main()
