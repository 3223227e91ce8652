"""What the study trains, what its folders hold of it, and the published points."""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lrlab import records

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "third_party" / "mack_2018"
BATCH, TRAIN = 100, 55_000
LOOK = 50  # updates between two looks, his
RULES: dict[str, dict[str, Any]] = {  # TensorFlow 1's; his names
    "Adam": {"name": "adam", "dialect": "tf1"},
    "Adadelta": {"name": "adadelta", "dialect": "tf1"},
    "Momentum": {"name": "momentum", "decay": 0.5, "dialect": "tf1"},
    "Adagrad": {"name": "adagrad", "dialect": "tf1"},
    "GD": {"name": "sgd"},
    "RMSProp": {"name": "rmsprop", "dialect": "tf1"},
}
SIZE_RATES = (1e-4, 5e-4, 1e-3, 1.46e-3, 5e-3, 1e-2)  # of Adam, in the study of sizes
STUDIES = ("clean", "published", "growth")
SEMANTICS = ("published", "clean", "cumulative")  # his points; ours in either semantics
HIS_CAP = 122.0  # seconds
TIE = 1.05  # times as long as the fastest: the same look of his clock

Row = dict[str, Any]
Times = dict[str, list[tuple[float, float]]]  # of each rule (rate, time to target), by rate


def rates() -> tuple[float, ...]:
    """His 48, a sixth of a decade apart, 1e-6 to 100; 1.0 is not among them."""
    return tuple(10 ** (i / 6) for i in (*range(-36, 0), *range(1, 13)))


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    target: accuracy to reach; goal: that of the study of model sizes. clean, published, growth:
    updates of a trial at most.
    """

    model: dict[str, Any]
    rates: tuple[float, ...]
    target: float
    goal: float
    clean: int
    published: int
    growth: int
    scales: tuple[float, ...]
    seeds: tuple[int, ...]


SMALL, LARGE = {"name": "cnn.SmallCNN"}, {"name": "cnn.MnistCNN", "dropout": 0.4}
SIZES = {
    # Low targets, so that something trains and every part runs.
    "smoke": Size(
        SMALL, rates()[2::8], 0.8, 0.8, 200, 200, 200, scales=(1.0, 1.5, 2.0), seeds=(0,)
    ),
    # The small net's fastest trials are done after 600 updates in clean semantics and 3,500 in
    # published ones: caps of 2,000 and 8,000 leave room for others.
    "desk": Size(
        SMALL,
        rates(),
        0.97,
        0.96,
        2000,
        8000,
        2000,
        scales=tuple(1 + i / 2 for i in range(7)),
        seeds=(0, 1, 2),
    ),
    # His cap was 120 s: some 16,000 updates, if one took his K80 7 ms.
    "paper": Size(
        LARGE,
        rates(),
        0.97,
        0.96,
        4000,
        16_000,
        4000,
        scales=tuple(1 + i / 4 for i in range(36)),
        seeds=(0,),
    ),
}


def config(
    size: Size, study: str, rule: str | None = None, chosen: Sequence[float] | None = None
) -> dict[str, Any]:
    """The sweep of a study; of one rule and chosen rates only, where they are given."""
    cap = getattr(size, study)
    rules = [RULES[rule]] if rule else list(RULES.values())
    axes: tuple[dict[str, Any], ...] = (
        {"key": "optimizer", "values": tuple(rules)},
        {"key": "lr", "values": tuple(chosen or size.rates)},
    )
    target: dict[str, Any] = {"accuracy": size.target}
    if study == "published":
        target |= {"examples": None, "every": LOOK}
    if study == "growth":
        target = {"accuracy": size.goal}
        axes = (
            {"key": "model.scale", "values": size.scales},
            {"key": "lr", "values": SIZE_RATES},
            {"key": "seed", "values": size.seeds},
        )
    return {
        "seed": 0,
        "epochs": -(-cap * BATCH // TRAIN),
        "data": {"name": "tfds.images", "dataset": "mnist"},
        "model": dict(size.model),
        "batch": {"name": "fixed", "size": BATCH},
        "optimizer": RULES["Adam"],
        "lr": 1e-3,
        "schedule": ({"name": "constant"},),
        "job": {"name": "sweep"},
        "sweep": {"axes": axes, "updates": cap, "look": LOOK, "target": target},
    }


def cost(model: str, scale: float) -> tuple[int, float]:
    """(weights, floating-point operations of one training example) of a net on MNIST."""
    small = model == SMALL["name"]
    first, second = round((4 if small else 32) * scale), round((8 if small else 64) * scale)
    dense = round(18 * scale) if small else 1024
    sides = (24, 8) if small else (28, 14)
    flat = (sides[1] // 2) ** 2 * second
    kernels = 25 * first, 25 * first * second, flat * dense, dense * 10
    products = sides[0] ** 2 * kernels[0], sides[1] ** 2 * kernels[1], *kernels[2:]
    # Forward, and twice as much backward, without the gradient of the image.
    return sum(kernels) + first + second + dense + 10, 2.0 * (3 * sum(products) - products[0])


def read(folder: Path) -> list[Row]:
    """The trials of a sweep: their point's values, flat, and what became of them."""
    titles = {spec["name"]: title for title, spec in RULES.items()}
    found = []
    for row in sorted(records.read_lines(folder / "trials.jsonl"), key=lambda r: r["trial"]):
        point = dict(row["point"])
        if "optimizer" in point:
            point["rule"] = titles[point.pop("optimizer")["name"]]
        if "model.scale" in point:
            point["scale"] = point.pop("model.scale")
        found.append({**point, **{k: v for k, v in row.items() if k != "point"}})
    return found


def is_in_reach(row: Row, accuracy: float, cap: int) -> bool:
    """Whether a trial may ever reach a cumulative accuracy, or has; from the curve it began.

    Wrong answers only add up: with more of them than the cap allows there is no way back.
    """
    done, wrong = 0, 0.0  # in updates' worth of examples
    for update, _, right in row["curve"]:
        wrong += (update - done) * (1 - right)
        done = update
        if wrong <= (1 - accuracy) * done:
            return True
    return row["outcome"] != "diverged" and wrong <= (1 - accuracy) * cap


def times(rows: Iterable[Row], what: str = "updates") -> Times:
    """Of each rule the rates that reached the target, and the time they took."""
    found: Times = {rule: [] for rule in RULES}
    for row in rows:
        if row["outcome"] == "target":
            found[row["rule"]].append((row["lr"], row[what]))
    return {rule: sorted(pairs) for rule, pairs in found.items()}


def his_times() -> tuple[Times, int]:
    """His points, in seconds on a K80, and how many runs there were."""
    with (SOURCE / "time_vs_lr.csv").open() as f:
        rows = [
            {
                "rule": r["optimizer"],
                "lr": float(r["learning_rate"]),
                "seconds": float(r["seconds"]),
                "outcome": "target" if r["success"] == "1" else "budget",
            }
            for r in csv.DictReader(f)
        ]
    return times(rows, "seconds"), len(rows)


def his_sizes() -> list[Row]:
    """His study of sizes: scale, lr, seconds."""
    with (SOURCE / "time_vs_size.csv").open() as f:
        return [
            {"scale": float(r["scale"]), "lr": float(r["learning_rate"]), "seed": 0}
            | {"seconds": float(r["seconds"]), "outcome": "target"}
            for r in csv.DictReader(f)
        ]
