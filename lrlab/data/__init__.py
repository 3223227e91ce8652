"""The Dataset contract, and the names that a config's `data.name` can take.

A data function checks its arguments, looks (cheaply) whether the set is there, and returns a
`Source`; nothing is read before `Source.read()`, which checks what it reads.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from lrlab.data._checks import DataError, check, check_constant, check_split

__all__: list[str] = []  # a config names functions of this package's modules


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    x: [n, *feature_shape], uint8 (images), float32, or int32 (token ids, which a model sees as the
      whole float32 numbers that they are); may be memory-mapped.
    y: int32 [n] or [n, *target_shape], class indices.
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

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of one example's labels: () where it has one, (positions,) where each position has."""
        return self.train.y.shape[1:]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read.

    sizes: examples in (train, validation, test); without validation examples no epoch is the best.
    load: makes the Dataset; DataError says what the user can do, anything else it may raise too.
    notes: lines for the banner, such as "92,962 of 581,012 rows".
    target_shape: of one example's labels. vocabulary: where features are token ids, how many.
    """

    name: str
    sizes: tuple[int, int, int]
    feature_shape: tuple[int, ...]
    num_classes: int
    load: Callable[[], Dataset]
    notes: tuple[str, ...] = ()
    target_shape: tuple[int, ...] = ()
    vocabulary: int | None = None

    def read(self) -> Dataset:
        """The data set, which is what this source says.

        Raises:
          DataError: it cannot be read, or has other shapes or classes, a label outside
          [0, num_classes), a feature that is not finite; the message has the record's index.
        """
        try:
            found: object = self.load()
        except (DataError, MemoryError):
            raise
        except Exception as e:  # a loader is anybody's code
            raise DataError(f"{self.name} cannot be read: {type(e).__name__}: {e}") from e
        if not isinstance(found, Dataset):
            raise DataError(
                f"{self.name}: its loader gives {type(found).__name__}, not a lrlab.data.Dataset"
            )
        if found.num_classes != self.num_classes:
            raise DataError(
                f"{self.name} has {found.num_classes} classes; its Source promised "
                f"{self.num_classes}"
            )
        splits = {"train": found.train, "validation": found.validation, "test": found.test}
        for (key, split), size in zip(splits.items(), self.sizes, strict=True):
            where = f"{self.name}, split {key!r}"
            check_split(where, split.x, split.y, size, self.feature_shape, self.target_shape)
            check(where, split.x, split.y, self.num_classes)
        for key, values in (("shift", found.shift), ("scale", found.scale)):
            check_constant(f"{self.name}: {key}", values, self.feature_shape)
        return found
