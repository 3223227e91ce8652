"""Data sets in .npz files that every worker reads: real ones, or random ones of the same shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lrlab.data import DataError, Dataset, Source, Split, digits, tabular, tfds

__all__ = ["npz"]

SPLITS = "train", "validation", "test"
REAL: dict[str, Callable[[], Source]] = {
    "mnist": lambda: tfds.images("mnist"),
    "cifar10": lambda: tfds.images("cifar10"),
    "covertype": tabular.covertype,
    "digits": digits.digits,
}
RANDOM: dict[str, tuple[tuple[int, ...], Any, int, tuple[int, int, int]]] = {
    "mnist": ((28, 28, 1), np.uint8, 10, (55_000, 5_000, 10_000)),
    "cifar10": ((32, 32, 3), np.uint8, 10, (5_000, 500, 500)),
    "covertype": ((54,), np.float32, 7, (60_000, 9_000, 23_000)),
}


def write(name: str, path: Path, random: bool) -> str:
    """Writes a set for `npz` to read; returns what a record says about it."""
    if random and name in RANDOM:
        data, notes = _random(name), ("random values",)
    else:
        try:
            source = REAL[name]()
        except DataError:
            data, notes = _random(name), (f"random values, for {name} itself is not here",)
        else:
            data, notes = source.read(), source.notes
    arrays: dict[str, Any] = {
        f"{s}_{k}": getattr(getattr(data, s), k) for s in SPLITS for k in ("x", "y")
    }
    arrays |= {"shift": data.shift, "scale": data.scale, "shape": np.array(data.feature_shape)}
    np.savez(path, **arrays, names=np.array(data.class_names))
    sizes = " + ".join(f"{len(getattr(data, s)):,}" for s in SPLITS)
    return "; ".join([f"{name}, {sizes}", *notes])


def _random(name: str) -> Dataset:
    shape, dtype, classes, sizes = RANDOM[name]
    generator = np.random.default_rng(0)

    def split(n: int) -> Split:
        y = generator.integers(0, classes, n, np.int32)
        if dtype is np.uint8:
            return Split(generator.integers(0, 256, (n, *shape), np.uint8), y)
        return Split(generator.standard_normal((n, *shape), np.float32), y)

    images = dtype is np.uint8
    return Dataset(
        name,
        *(split(n) for n in sizes),
        num_classes=classes,
        class_names=tuple(str(i) for i in range(classes)),
        shift=np.array([127.5 if images else 0.0], np.float32),
        scale=np.array([1 / 73.9 if images else 1.0], np.float32),
    )


def npz(path: str) -> Source:
    """What `write` wrote; a config names it `stored:npz`."""
    with np.load(path) as found:
        sizes = tuple(len(found[f"{s}_y"]) for s in SPLITS)
        shape, classes = tuple(int(n) for n in found["shape"]), len(found["names"])

    def read() -> Dataset:
        with np.load(path) as found:
            return Dataset(
                Path(path).stem,
                *(Split(found[f"{s}_x"], found[f"{s}_y"]) for s in SPLITS),
                num_classes=classes,
                class_names=tuple(found["names"].tolist()),
                shift=found["shift"],
                scale=found["scale"],
            )

    assert len(sizes) == 3
    return Source(Path(path).stem, sizes, shape, classes, read)
