"""What a second process costs: two that train one run, against one process with two devices.

    LRLAB_DATA_DIR=... python benchmarks/hosts.py [--rounds=5] [--rows=...] [--quick]

`python -m lrlab.main` with the digits' MLP in several widths and with the small CNN on MNIST, by
turns: one process with one device, on one core; one process with two devices, on two cores; two
processes with a device each, a core each, which average gradients over loopback. The batch is the
same in all, so a device has half of it where there are two. An update's time is that of the median
epoch after the first, from the records; looks at validation examples are not in it.

"overhead": what an update of two processes takes beyond one of two devices, and its fit over the
MLPs, seconds = a + b x weights.
"""

import argparse
import json
import socket
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
from turns import are_clean, others, spread, text

ONE, DEVICES, HOSTS = "1 process, 1 device", "1 process, 2 devices", "2 processes, 1 device each"
SIDES = ONE, DEVICES, HOSTS
EPOCHS = {64: 60, 256: 60, 512: 30, 1024: 12, 1536: 8}  # by width of the MLP
CNN = "cnn_mnist"
CNN_EPOCHS = 4
LIMIT = 300  # seconds that a run may take


def _main() -> None:
    names = [*(f"mlp_{width}" for width in EPOCHS), CNN]
    parser = argparse.ArgumentParser(description="two processes against two devices")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(names), help="which, of %(default)s")
    parser.add_argument(
        "--random", action="store_true", help="random values, even if MNIST is here"
    )
    parser.add_argument("--quick", action="store_true", help="a look; writes to a temporary folder")
    parser.add_argument("--out", type=Path, help="of the record")
    options = parser.parse_args()
    wanted = options.rows.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.quick)
        data = bench.store(options.random) if CNN in wanted else {}
        rows: dict[str, Any] = {}
        for name in wanted:
            rows[name] = bench.measured(name, options.rounds)
            _show(name, rows[name])
    out = options.out or measure.default_out("hosts")
    if options.quick and not options.out:
        out = Path(tempfile.mkdtemp(prefix="hosts-")) / out.name
    record = {"benchmark": "hosts", "versions": bench.versions, "data": data}
    record["minutes"] = round((time.perf_counter() - began) / 60, 1)
    fitted = {name: row for name, row in rows.items() if name != CNN}
    if len(fitted) > 1:
        record["fit"] = _fit(list(fitted.values()))
        a, b = record["fit"]["a_seconds"], record["fit"]["b_seconds_a_weight"]
        print(f"\noverhead of an update = {a * 1e6:.0f} µs + {b * 1e9:.3f} ns x weights")
    measure.write(out, {**record, "rows": rows})


class Bench:
    """The folder that holds data, caches and runs."""

    def __init__(self, folder: Path, quick: bool):
        self.folder, self.quick = folder, quick
        self.env = {**measure.environment(folder / "cache"), "PJRT_NPROC": "16"}
        self.versions: dict[str, Any] = {}
        self._runs = 0

    def store(self, random: bool) -> dict[str, str]:
        """Writes MNIST for all runs; returns what it is."""
        return measure.store({"mnist": str(self.folder / "mnist.npz")}, random, self.env)

    def measured(self, name: str, rounds: int) -> dict[str, Any]:
        """A row of the record."""
        config, changes = self._told(name)
        found: list[dict[str, Any]] = []
        weights = 0
        for number in range(rounds):
            turns = {}
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                turns[side], weights = self._turn(side, config, changes)
            found.append({side: turns[side] for side in SIDES})
        overheads = [turns[HOSTS]["update"] - turns[DEVICES]["update"] for turns in found]
        return {
            "title": f"{config}, {name}, {weights:,} weights",
            "parameters": weights,
            "sides": {
                side: {
                    "ms_per_update": spread([turns[side]["update"] * 1e3 for turns in found]),
                    "updates_per_second": spread([1 / turns[side]["update"] for turns in found]),
                }
                for side in SIDES
            },
            "overhead_ms": spread([value * 1e3 for value in overheads]),
            "ratios": {
                f"{one} / {two}": spread(
                    [turns[one]["update"] / turns[two]["update"] for turns in found]
                )
                for one, two in ((HOSTS, DEVICES), (HOSTS, ONE), (DEVICES, ONE))
            },
            "accuracy": {side: [turns[side]["accuracy"] for turns in found] for side in SIDES},
            "goals": [],
            "clean": are_clean([turn for turns in found for turn in turns.values()]),
            "rounds": found,
        }

    def _told(self, name: str) -> tuple[str, dict[str, Any]]:
        """A row's config and changes."""
        if name == CNN:
            data = {"name": "stored:npz", "path": str(self.folder / "mnist.npz")}
            changes = {"data": data, "epochs": 2 if self.quick else CNN_EPOCHS}
            return "configs/mnist.py", changes
        width = int(name.removeprefix("mlp_"))
        epochs = 3 if self.quick else EPOCHS[width]
        return "configs/digits.py", {"model.widths": (width, width), "epochs": epochs}

    def _turn(
        self, side: str, config: str, changes: Mapping[str, Any]
    ) -> tuple[dict[str, Any], int]:
        """A run by one side: seconds an update, and what it came to; and its weights."""
        self._runs += 1
        folder, before = self.folder / f"run{self._runs}", others()
        command = [sys.executable, "-m", "lrlab.main", f"--config={config}", f"--workdir={folder}"]
        command += [f"--config.{key}={value}" for key, value in changes.items()]
        if side == HOSTS:
            where = f"--coordinator=127.0.0.1:{_free_port()}"
            both = [
                [*command, "--distributed", where, "--process_count=2", f"--process_index={i}"]
                for i in range(2)
            ]
            processes = [self._start(words, 1, measure.pin(1, i)) for i, words in enumerate(both)]
        else:
            devices = 2 if side == DEVICES else 1
            processes = [self._start(command, devices, measure.pin(devices))]
        try:
            for process in processes:
                _, said = process.communicate(timeout=LIMIT)
                if process.returncode:
                    raise RuntimeError(f"{side} ended, code {process.returncode}: {said[-3000:]}")
        finally:
            for process in processes:
                process.kill()  # the other one, where one failed
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row.get("examples_per_second")]
        about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        self.versions = {k: about[k] for k in ("lrlab", "jax", "flax", "numpy", "python")}
        assert len(about["devices"]) == (1 if side == ONE else 2), about["devices"]
        updates = [row["batch_size"] / row["examples_per_second"] for row in rows[1:]]
        found = {"update": statistics.median(updates), "accuracy": rows[-1]["val_accuracy"]}
        return {**found, "others": before}, about["model"]["parameters"]

    def _start(
        self, command: Sequence[str], devices: int, pinned: Callable[[], None]
    ) -> subprocess.Popen:
        flags = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            command,
            cwd=measure.ROOT,
            env={**self.env, "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=pinned,
        )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _fit(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Least squares of a + b x weights, each row weighed by 1 / its time: relative errors count."""
    weights = np.array([row["parameters"] for row in rows], float)
    overhead = np.array([row["overhead_ms"]["median"] for row in rows]) / 1e3
    scale = 1 / np.array([row["sides"][HOSTS]["ms_per_update"]["median"] for row in rows])
    design = np.stack([np.ones_like(weights), weights], 1)
    (a, b), *_ = np.linalg.lstsq(design * scale[:, None], overhead * scale)
    told = a + b * weights
    return {
        "a_seconds": float(f"{a:.4g}"),
        "b_seconds_a_weight": float(f"{b:.4g}"),
        "points": [
            {"weights": int(w), "seconds": float(f"{o:.4g}"), "fitted": float(f"{t:.4g}")}
            for w, o, t in zip(weights, overhead, told, strict=True)
        ],
    }


def _show(name: str, row: Mapping[str, Any]) -> None:
    """Prints a row of the table."""
    print(f"\n{row['title']}")
    for side, found in row["sides"].items():
        print(f"  {side:<28} {text(found['ms_per_update'])} ms/update")
    print(f"  overhead of two processes    {text(row['overhead_ms'])} ms/update")
    for pair, ratio in row["ratios"].items():
        print(f"  {pair} = {text(ratio)}x")
    if not row["clean"]:
        print("  others worked meanwhile: this proves nothing")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
