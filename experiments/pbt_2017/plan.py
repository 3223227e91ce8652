"""What the study of populations trains: sizes, arms, and the config of each run."""

import dataclasses
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SEARCHES = RANDOM, GRID, HALVING, TPE = "random", "grid", "halving", "TPE"
PBT, SHORT, LONG = "PBT", "PBT, short intervals", "PBT, long intervals"
COURSES = LATER, EARLIER, END, LINE = (
    "the schedule, later",
    "the schedule, earlier",
    "its end, held",
    "best fixed, a line to zero",
)
REPLAY, FIXED = "the schedule", "best fixed"
SEARCHED = *SEARCHES, PBT, SHORT, LONG
SCRATCH = REPLAY, *COURSES, FIXED
KEYS = RATE, MOMENTUM = "lr", "optimizer.decay"
STEPS = 60  # of the line
POINTS = 40  # of a curve in the record


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    members: of the population, and whole runs that every search may take. generations: of PBT, and
    of the populations with shorter and with longer intervals. again: seeds from scratch.
    low, high: rates, of which the grid takes `rates`, with each momentum. search: of halving, TPE.
    """

    sets: dict[str, dict[str, Any]]
    model: dict[str, Any]
    batch: int
    epochs: int
    members: int
    generations: tuple[int, int, int]
    seeds: int
    again: int
    low: float
    high: float
    rates: int
    momenta: tuple[float, ...]
    search: dict[str, dict[str, Any]]


def _images(dataset: str, **rest: Any) -> dict[str, Any]:
    return {"name": "tfds.images", "dataset": dataset, **rest}


SIZES = {
    "smoke": Size(
        sets={"digits": {"name": "digits", "validation": 360}},
        model={"name": "mlp.MLP", "widths": (16,)},
        batch=32,
        epochs=2,
        members=6,
        generations=(6, 12, 3),
        seeds=2,
        again=2,
        low=1e-3,
        high=1.0,
        rates=2,
        momenta=(0.0, 0.5, 0.9),
        search={HALVING: {"eta": 3}, TPE: {"lanes": 2}},
    ),
    "desk": Size(
        sets={
            "MNIST": _images("mnist", examples=38_400),
            "Fashion-MNIST": _images("fashion_mnist", examples=38_400),
        },
        model={"name": "cnn.SmallCNN"},
        batch=64,
        epochs=2,
        members=20,
        generations=(20, 60, 5),
        seeds=5,
        again=5,
        low=1e-4,
        high=1.0,
        rates=4,
        momenta=(0.0, 0.5, 0.8, 0.9, 0.95),
        search={HALVING: {"eta": 3}, TPE: {"lanes": 4}},
    ),
    "paper": Size(
        sets={"CIFAR-10": _images("cifar10"), "CIFAR-100": _images("cifar100")},
        model={"name": "resnet.WideResNet", "depth": 16, "width": 4},
        batch=128,
        epochs=60,
        members=20,
        generations=(60, 180, 15),
        seeds=5,
        again=5,
        low=1e-4,
        high=1.0,
        rates=4,
        momenta=(0.0, 0.5, 0.8, 0.9, 0.95),
        search={HALVING: {"eta": 3}, TPE: {"lanes": 4}},
    ),
}


def populations(size: Size) -> dict[str, int]:
    """Generations of each."""
    return dict(zip((PBT, SHORT, LONG), size.generations, strict=True))


def config(size: Size, data: str, arm: str, seed: int) -> dict[str, Any]:
    """What the job is asked for; no two seeds of the study share one of a run."""
    first = seed * (size.members + size.again)
    rate: dict[str, Any] = {"key": RATE, "low": size.low, "high": size.high}
    momentum: dict[str, Any] = {"key": MOMENTUM, "values": size.momenta}
    base = {
        "seed": first,
        "epochs": size.epochs,
        "data": size.sets[data],
        "model": size.model,
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": {"name": "momentum", "decay": 0.9},
        "lr": 0.1,
    }
    if arm in populations(size):
        section = {
            "population": size.members,
            "generations": populations(size)[arm],
            "search": (rate, momentum),
            "seeds": 1,  # of all members, as trials of a search share theirs
            "compare": size.again if arm == PBT else 0,
        }
        return {**base, "job": {"name": "pbt"}, "pbt": section}
    if arm == GRID:
        rate["points"] = size.rates
    section = {
        "axes": (rate, momentum),
        "method": arm.lower(),
        "trials": size.members,
        "looks": size.generations[0],
        "seed": first,
        **size.search.get(arm, {}),
    }
    return {**base, "job": {"name": "search"}, "search": section}


def seeds(size: Size, seed: int) -> list[int]:
    """The seeds of a study's seed by which nothing was chosen: those that the job compares with."""
    first = seed * (size.members + size.again) + size.members
    return list(range(first, first + size.again))
