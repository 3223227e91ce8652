"""What growing the batch costs a run: its compilations, and nothing more.

    LRLAB_DATA_DIR=... python benchmarks/growth.py [--rounds=5]

The Covertype recipe, 20 epochs, whose batch grows through 256, 640, 1,280 and 5,120 examples, from
a cold and from a warm cache, by turns with the same run at 256 throughout and with a short run at
each other size. "compiling": the share of a run's seconds in which it waited for programs, warm.
"pace": seconds an example of the growing run's epochs over those of fixed batches of that size.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from lrlab import records

SIZES = 256, 640, 1280, 5120
AT = 0, 10, 14, 17
GOALS = {"compiling": 0.10, "pace": 1.05}
# A process that trains and then says how long it waited for programs.
CHILD = """
import json, sys, time
from lrlab import loop, main
waited, compile = [], loop.Run.compile
def timed(self, size):
    began = time.perf_counter()
    compile(self, size)
    waited.append(time.perf_counter() - began)
loop.Run.compile = timed
code = main.main(["lrlab", *sys.argv[1:]])
print(json.dumps({"compiling": sum(waited), "code": code}))
"""


def run(folder: Path, env: dict[str, str], batch: dict[str, Any], epochs: int) -> dict[str, Any]:
    """One run in a process of its own: seconds, those of compiling, and pace by batch size."""
    command = [sys.executable, "-c", CHILD, "--config=configs/covertype.py", f"--workdir={folder}"]
    command += [f"--config.batch={batch}", f"--config.epochs={epochs}"]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, cwd=measure.ROOT, env=env, capture_output=True)
    wall = time.perf_counter() - began
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0, done.stderr.decode()
    paces: dict[int, list[float]] = {}
    record = records.read(folder)
    for row in record.rows:
        paces.setdefault(row["batch_size"], []).append(row["examples_per_second"])
    return {
        "wall": wall,
        "run": record.final["seconds"] if record.final else None,
        "compiling": said["compiling"],
        "pace": {size: statistics.median(found) for size, found in paces.items()},
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description="what growing the batch costs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of a run; %(default)s")
    parser.add_argument("--out", type=Path, default=measure.default_out("growth"))
    known = parser.parse_args()
    at = [a * known.epochs // 20 for a in AT]
    growth = {"name": "stages", "sizes": SIZES, "at": tuple(at)}
    rounds = []
    with tempfile.TemporaryDirectory() as home:
        env = measure.environment(Path(home) / "cache")
        for number in range(known.rounds + 1):
            here = Path(home) / str(number)
            if number == 0:  # and this one fills the cache
                found = {"growing": run(here / "growing", env, growth, known.epochs)}
            else:
                found = {
                    "growing": run(here / "growing", env, growth, known.epochs),
                    **{
                        str(size): run(
                            here / str(size),
                            env,
                            {"name": "fixed", "size": size},
                            known.epochs if size == SIZES[0] else 3,
                        )
                        for size in SIZES
                    },
                }
            rounds.append(found)
            grown = found["growing"]
            print(
                f"{'cold' if number == 0 else 'warm'}: growing {grown['wall']:.1f} s, "
                f"{grown['compiling']:.2f} s of them compiling",
                flush=True,
            )
    record = {
        "benchmark": "growth",
        "date": time.strftime("%Y-%m-%d"),
        "device": measure.device(),
        "versions": records.environment(),
        "sizes": SIZES,
        "at": at,
        "epochs": known.epochs,
        "rounds": rounds,
        **_summary(rounds[1:], rounds[0]["growing"]),
    }
    known.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print({k: record[k] for k in ("compiling", "cold", "pace", "time", "met")})
    print(f"wrote {known.out}")


def _summary(warm: list[dict[str, Any]], cold: dict[str, Any]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float]:
        middle = statistics.median(values)
        return {"median": round(middle, 4), "min": round(min(values), 4),
                "max": round(max(values), 4)}  # fmt: skip

    share = spread([r["growing"]["compiling"] / r["growing"]["run"] for r in warm])
    paces = {
        str(size): spread([r[str(size)]["pace"][size] / r["growing"]["pace"][size] for r in warm])
        for size in SIZES
    }
    return {
        "compiling": share,
        "cold": {
            "seconds": round(cold["compiling"], 2),
            "share": round(cold["compiling"] / cold["run"], 4),
        },
        "pace": paces,
        "time": spread([r["growing"]["run"] / r[str(SIZES[0])]["run"] for r in warm]),
        "goals": GOALS,
        "met": {
            "compiling": share["median"] < GOALS["compiling"],
            "pace": all(p["median"] <= GOALS["pace"] for p in paces.values()),
        },
    }


if __name__ == "__main__":
    _main()
