"""The Dataset contract, and the names that a config's `data.name` can take.

A data function checks its arguments, looks (cheaply) whether the set is there, and returns a
`Source`; nothing is read before `Source.read()`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


class DataError(RuntimeError):
    """Data that is absent, unreadable or not what it says; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    x: [n, *feature_shape], uint8 (images) or float32; may be memory-mapped.
    y: int32 [n], class indices.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits and what the training split says about them.

    shift, scale: float32, broadcastable to a feature; a model sees (x - shift) * scale, computed on
      the device. Both come from the training split only.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    shift: np.ndarray
    scale: np.ndarray

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.train.x.shape[1:]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read.

    sizes: examples in (train, validation, test).
    read: reads it; raises DataError.
    notes: lines for the banner, such as "92,962 of 581,012 rows".
    """

    name: str
    sizes: tuple[int, int, int]
    feature_shape: tuple[int, ...]
    num_classes: int
    read: Callable[[], Dataset]
    notes: tuple[str, ...] = ()
