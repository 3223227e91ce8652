"""What exploit and explore cost a population, and the population against Ray Tune's.

    LRLAB_DATA_DIR=... python benchmarks/pbt.py --ray-python=PATH [--rounds=3] [--quick]

PATH is the Python of an environment with ray[tune] and torch.

share_digits, share_mnist: `python -m lrlab.main` in a fresh folder, 32 members, 20 generations:
the share of a population's time (training, looks, exploit and explore) that exploit and explore
take, and the command's whole time, its report included. The first run has a cold cache.

ray_digits, ray_mnist: the same model, data, batch, rule, search, fractions and updates in both, by
turns. Ray has both cores, an actor on each, PyTorch one thread in each (workers/ray_pbt.py). A
population's time is told as: whole, from the start of the program to its end, lrlab's report
included; fit, without what comes before and after (Ray's actors start in it, lrlab compiles in it);
generation, the median one after the first; steps, what training and looks alone take. Digits'
intervals are 19 updates, a hundredth of the seconds that Ray wants of a call; MNIST's are 550.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from turns import are_clean, others, spread, text

from lrlab import main
from lrlab.jobs import _population

CORES = 2
DIGITS, MNIST = "configs/pbt_digits.py", "benchmarks/workers/pbt_mnist.py"
MEASURES = "whole", "fit", "generation", "steps"
SHARE, MINUTE = 0.01, 60.0
LONG = {"epochs": 5, "pbt.population": 10, "pbt.generations": 5, "pbt.interval": 550}
QUICK = {"pbt.population": 6, "pbt.generations": 4}
ROWS = "share_digits", "share_mnist", "ray_digits", "ray_mnist"


def _main() -> None:
    parser = argparse.ArgumentParser(description="populations: exploit's share, and Ray Tune")
    parser.add_argument("--ray-python", help="Python of an environment with ray[tune] and torch")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s; of MNIST 2 at most")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of %(default)s")
    parser.add_argument(
        "--random", action="store_true", help="random values, even if MNIST is here"
    )
    parser.add_argument("--quick", action="store_true", help="a look; writes to a temporary folder")
    parser.add_argument("--out", type=Path, help="of the record")
    options = parser.parse_args()
    names = options.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if not options.ray_python and any(name.startswith("ray") for name in names):
        parser.error("--ray-python is missing; without it: --rows=share_digits,share_mnist")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.ray_python, options.quick)
        print(data := bench.store(options.random))
        rows = {}
        for name in names:
            rounds = min(options.rounds, 2) if name.endswith("mnist") else options.rounds
            rows[name] = bench.measured(name, rounds)
            _show(name, rows[name])
        out = options.out or measure.default_out("pbt")
        if options.quick and not options.out:
            out = Path(tempfile.mkdtemp(prefix="pbt-")) / out.name
    record = {"benchmark": "pbt", "versions": bench.versions, "data": data}
    record["minutes"] = round((time.perf_counter() - began) / 60, 1)
    measure.write(out, {**record, "rows": rows})


class Bench:
    """The environments, and the folder that holds data, caches and runs."""

    def __init__(self, folder: Path, ray_python: str | None, quick: bool):
        self.folder, self.ray_python, self.quick = folder, ray_python, quick
        self.env = measure.environment(folder / "cache")
        self.versions: dict[str, Any] = {}
        self._runs = 0

    def store(self, random: bool) -> dict[str, str]:
        """Writes the data for all sides; returns what they are."""
        paths = {name: str(self.folder / f"{name}.npz") for name in ("digits", "mnist")}
        return measure.store(paths, random, self.env)

    def measured(self, name: str, rounds: int) -> dict[str, Any]:
        """A row of the record."""
        kind, _, data = name.partition("_")
        changes: dict[str, Any] = {}
        if data == "mnist":
            path = str(self.folder / "mnist.npz")
            changes["data"] = {"name": "stored:npz", "path": path}
        changes |= LONG if name == "ray_mnist" else {}
        changes |= QUICK if self.quick else {}
        config = DIGITS if data == "digits" else MNIST
        if kind == "share":
            return self._share(config, changes, rounds)
        return self._against_ray(config, data, {**changes, "pbt.compare": 0}, rounds)

    def _share(self, config: str, changes: Mapping[str, Any], rounds: int) -> dict[str, Any]:
        cold = self._lrlab(config, changes)
        turns = [self._lrlab(config, changes) for _ in range(rounds)]
        share = spread([turn["share"] for turn in turns])
        found = {
            "title": f"{config}, {cold['members']} members, {cold['generations']} generations",
            "parameters": cold["parameters"],
            "share": share,
            "exploit_ms": spread([turn["exploit"] * 1e3 for turn in turns]),
            "generation_ms": spread([turn["generation"] * 1e3 for turn in turns]),
            "seconds": spread([turn["whole"] for turn in turns]),
            "seconds_cold": round(cold["whole"], 2),
            "goals": [_goal("share", f"< {SHARE:.0%}", share["median"] < SHARE)],
        }
        if config == DIGITS:
            slowest = max(turn["whole"] for turn in (cold, *turns))
            found["goals"].append(_goal("seconds", f"< {MINUTE:g}", slowest < MINUTE))
        return found | {"clean": are_clean([cold, *turns]), "rounds": [cold, *turns]}

    def _against_ray(
        self, config: str, data: str, changes: Mapping[str, Any], rounds: int
    ) -> dict[str, Any]:
        task: dict[str, Any] = _task(config, changes)
        task["data"] = str(self.folder / f"{data}.npz")
        cold = self._lrlab(config, changes)
        pairs = []
        for number in range(rounds):
            sides = {
                "lrlab": lambda: self._lrlab(config, changes),
                "ray": lambda: self._ray(task),
            }
            order = list(sides) if number % 2 == 0 else list(reversed(sides))
            turns = {name: sides[name]() for name in order}
            pairs.append({name: turns[name] for name in sides})
            told = ", ".join(f"{name} {turns[name]['whole']:.1f} s" for name in sides)
            print(f"  round {number}: {told}", flush=True)
        assert task["parameters"] == pairs[0]["ray"]["parameters"], "not the same model"
        updates = task["population"] * task["generations"] * task["interval"]
        return {
            "title": f"{config}, {task['population']} members, {task['generations']} generations "
            f"of {task['interval']} updates",
            "updates": updates,
            "parameters": task["parameters"],
            "sides": {name: _side([pair[name] for pair in pairs], updates) for name in pairs[0]},
            "ratios": {
                key: spread([pair["ray"][key] / pair["lrlab"][key] for pair in pairs])
                for key in MEASURES
            },
            "seconds_cold": round(cold["whole"], 2),
            "goals": [],
            "clean": are_clean([turn for pair in pairs for turn in pair.values()]),
            "rounds": [{"lrlab, cold": cold}, *pairs],
        }

    def _lrlab(self, config: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """A population in a process of its own and a fresh folder."""
        self._runs += 1
        folder, before = self.folder / f"run{self._runs}", others()
        command = [sys.executable, "-m", "lrlab.main", f"--config={config}", f"--workdir={folder}"]
        command += [f"--config.{key}={value}" for key, value in changes.items()]
        began = time.perf_counter()
        subprocess.run(
            command, check=True, cwd=measure.ROOT, env=self.env, stdout=subprocess.DEVNULL
        )
        whole = time.perf_counter() - began
        lines = (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["arm"] == "population"]
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        self.versions["lrlab"] = {k: about[k] for k in ("lrlab", "jax", "flax", "numpy", "python")}
        seconds = [row["seconds"] for row in rows]
        each = [s["train"] + s["evaluate"] + s["exploit"] for s in seconds]
        exploit = [s["exploit"] for s in seconds]
        members = len(rows[0]["val_accuracy"])
        return {
            "whole": whole,
            "fit": sum(sum(s.values()) for s in seconds),
            "generation": statistics.median(each[1:]),
            "steps": sum(s["train"] + s["evaluate"] for s in seconds),
            "exploit": statistics.median(exploit[:-1]),  # nobody copies after the last generation
            "share": sum(exploit) / sum(each),
            "accuracy": summary["best"]["val_accuracy"],
            "copies": summary["copies"],
            "read_back": summary["read_back"],
            "members": members,
            "generations": len(rows),
            "parameters": about["model"]["parameters"],
            "others": before,
        }

    def _ray(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Ray's population, in a process of its own with those that it starts."""
        assert self.ray_python
        env, before = {**self.env, "RAY_USAGE_STATS_ENABLED": "0"}, others()
        env["PYTHONPATH"] = str(measure.WORKERS)
        command = [self.ray_python, str(measure.WORKERS / "ray_pbt.py"), json.dumps(task)]
        began, clock = time.perf_counter(), time.time()
        done = subprocess.run(command, cwd=measure.ROOT, env=env, capture_output=True, check=False)
        whole = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"Ray ended, code {done.returncode}: {done.stderr.decode()[-3000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        self.versions["ray"] = found["versions"]
        rows, size = sorted(found["rows"]), task["population"]
        wanted = size * task["generations"]
        assert len(rows) == wanted, f"Ray did {len(rows)} of {wanted} intervals"
        ends = [row[0] for row in rows[size - 1 :: size]]
        spans = [b - a for a, b in itertools.pairwise(ends)]
        return {
            "whole": whole,
            "init": found["ready"] - clock,
            "fit": found["over"] - found["ready"],
            "first": ends[0] - found["ready"],
            "generation": statistics.median(spans),
            "slowest": max(spans),
            "steps": sum(row[4] + row[5] for row in rows) / task["cpus"],
            "accuracy": max(row[3] for row in rows if row[2] == task["generations"]),
            "copies": found["copies"],
            "parameters": found["parameters"],
            "spans": [round(span, 2) for span in spans],
            "others": before,
        }


def _task(config: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray is told: the numbers of the plan that lrlab trains."""
    sys.path.append(str(measure.WORKERS))  # where `stored` is
    told: Any = main.load_config(str(measure.ROOT / config))
    for key, value in changes.items():
        place, names = told, key.split(".")
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = value
    plan = _population.check(told)
    rate, decay = plan.axes
    members, interval, model = len(plan.first), plan.ends[0], plan.recipe.config["model"]
    assert plan.ends == tuple((g + 1) * interval for g in range(len(plan.ends)))
    assert (rate.key, decay.key) == ("lr", "optimizer.decay"), "Ray's side knows these two"
    return {
        "model": model["name"],
        "widths": list(model.get("widths", ())),
        "dropout": model.get("dropout", 0.0),
        "layout": "contiguous_format" if "widths" in model else "channels_last",
        "parameters": plan.recipe.parameters,
        "features": math.prod(plan.recipe.source.feature_shape),
        "size": plan.recipe.epochs()[0].size,
        "interval": interval,
        "generations": len(plan.ends),
        "population": members,
        "rates": [rate.low, rate.high],
        "decays": list(decay.values),
        # Ray rounds up and lrlab rounds down: this is the same number of members in both.
        "fraction": (int(plan.rules.fraction * members + 1e-9) or 1) / members,
        "resample": plan.rules.resample,
        "factors": list(plan.rules.factors),
        "synch": True,
        "cpus": CORES,
    }


def _side(turns: Sequence[Mapping[str, Any]], updates: int) -> dict[str, Any]:
    """What a record says of a side: seconds, updates a second, how good its best member was."""
    return {
        **{f"{key}_seconds": spread([turn[key] for turn in turns]) for key in MEASURES},
        "updates_per_second": spread([updates / turn["whole"] for turn in turns]),
        "updates_per_second_fit": spread([updates / turn["fit"] for turn in turns]),
        "accuracy": spread([turn["accuracy"] for turn in turns]),
        "copies": [turn["copies"] for turn in turns],
    }


def _goal(what: str, goal: str, met: bool) -> dict[str, Any]:
    return {"ours": what, "goal": goal, "met": met}


def _show(name: str, row: Mapping[str, Any]) -> None:
    """Prints a row of the table."""
    print(f"\n{name}: {row['title']}, {row['parameters']:,} weights")
    if "share" in row:
        print(
            f"  exploit and explore {text(row['share'])} of the time, {text(row['exploit_ms'])} ms"
        )
        print(f"  a generation {text(row['generation_ms'])} ms")
        print(f"  command {text(row['seconds'])} s, with a cold cache {row['seconds_cold']:g} s")
    for side, found in row.get("sides", {}).items():
        print(
            f"  {side:<6} {text(found['updates_per_second'])} updates/s, best member "
            f"{text(found['accuracy'])}"
        )
    for key, ratio in row.get("ratios", {}).items():
        ours, theirs = (row["sides"][side][f"{key}_seconds"]["median"] for side in ("lrlab", "ray"))
        print(f"  {key:<11} ray {theirs:g} s / lrlab {ours:g} s = {text(ratio)}x")
    for goal in row["goals"]:
        print(f"  {goal['ours']} {goal['goal']}: {'met' if goal['met'] else 'NOT MET'}")
    if not row["clean"]:
        print("  others worked meanwhile: this proves nothing")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
