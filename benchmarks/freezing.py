"""What freezing layers saves: an update of the whole network, of its last layers, of its head.

    python benchmarks/freezing.py [--rounds=7]

SmallCNN and MnistCNN on images of 28x28, random values, one process, by turns. "all": every layer
trains. "dense": the convolutions are frozen. "head": all but the last layer. "features": the head
alone on precomputed features. Ratios are of "all" to each; FLOPs are those that XLA counts in the
compiled loop's body.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np

from lrlab import build, devices, epoch, records
from lrlab.data import Dataset, Source, Split

MODELS = {"SmallCNN": ("cnn.SmallCNN", 18, 300), "MnistCNN": ("cnn.MnistCNN", 1024, 8)}
WAYS = {
    "all": (),
    "dense": (("Dense_.*", 1.0), (".*", 0.0)),
    "head": (("Dense_1/.*", 1.0), (".*", 0.0)),
}
EXAMPLES = 4000


def source(shape: tuple[int, ...] = (28, 28, 1)) -> Source:
    """Random values of a shape, ten classes."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        x = rng.normal(size=(n, *shape)).astype(np.float32)
        return Split(x, rng.integers(0, 10, n).astype(np.int32))

    def load() -> Dataset:
        one, names = np.ones(1, np.float32), tuple(map(str, range(10)))
        return Dataset("random", split(EXAMPLES), split(10), split(10), 10, names, one * 0, one)

    return Source("random", (EXAMPLES, 10, 10), shape, 10, load)


def trained(config: dict[str, Any]) -> tuple[Any, Any, float]:
    """(its training, a state, MFLOP of an update)."""
    recipe = build.check(config)
    training = epoch.Training(recipe.train_step(100), recipe.read(), 100, "resident", 0)
    state = recipe.init()
    compiled = training.compile(state)
    return training, state, (compiled.cost_analysis() or {}).get("flops", 0.0) / 1e6


def config(model: str, rules: Any, shape: tuple[int, ...] = (28, 28, 1)) -> dict[str, Any]:
    """A run of a network, or of a head on features."""
    head = len(shape) == 1
    return {
        "epochs": 1,
        "data": {"name": "freezing:source", "shape": shape},
        "model": {"name": "mlp.MLP", "widths": ()} if head else {"name": model},
        "batch": {"name": "fixed", "size": 100},
        "optimizer": {"name": "momentum"},
        "lr": 0.01,
        "lr_multipliers": rules,
    }


def rounds_of(model: str, width: int, count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds an update of each way, and ratios by round."""
    sides = {way: trained(config(model, rules)) for way, rules in WAYS.items()}
    sides["features"] = trained(config(model, (), (width,)))
    found: dict[str, list[float]] = {way: [] for way in sides}
    for number in range(rounds + 1):  # the first one warms up
        for way, (training, state, flops) in list(sides.items()):
            began, left = time.perf_counter(), count
            while left:
                part = min(left, training.updates)
                state, _ = training.run(state, 0, 0, part, 0.01)
                left -= part
            jax.block_until_ready(state)
            if number:
                found[way].append(1000 * (time.perf_counter() - began) / count)
            sides[way] = training, state, flops
    return {
        way: {
            "ms": spread(times),
            "faster": spread([a / b for a, b in zip(found["all"], times, strict=True)]),
            "mflop": round(sides[way][2], 3),
        }
        for way, times in found.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    ends = statistics.median(values), min(values), max(values)
    return dict(zip(("median", "min", "max"), (round(v, 4) for v in ends), strict=True))


def _main() -> None:
    parser = argparse.ArgumentParser(description="what freezing layers saves")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=measure.default_out("freezing"))
    known = parser.parse_args()
    devices.use_cache()
    rows = {name: rounds_of(*told, known.rounds) for name, told in MODELS.items()}
    for name, ways in rows.items():
        for way, row in ways.items():
            ratio = row["faster"]
            print(
                f"{name:<10}{way:<10}{row['ms']['median']:>9.3f} ms  {ratio['median']:.2f}x "
                f"({ratio['min']:.2f} .. {ratio['max']:.2f}), {row['mflop']:,.1f} MFLOP"
            )
    record = {
        "benchmark": "freezing",
        "date": time.strftime("%Y-%m-%d"),
        "device": measure.device(),
        "versions": records.environment(),
        "rounds": known.rounds,
        "rows": rows,
    }
    known.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {known.out}")


if __name__ == "__main__":
    _main()
