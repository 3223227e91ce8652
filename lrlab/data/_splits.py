"""What the data functions share: sizes of splits, fixed orders, standardisation, checks."""

import math
import numbers

import numpy as np

from lrlab.data import DataError


def count(field: str, value: int | float, total: int) -> int:
    """Examples that a count or a share of `total` asks for, at least one."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and 1 <= value < total:
        return int(value)
    if (
        isinstance(value, numbers.Real)
        and not isinstance(value, numbers.Integral)
        and 0 < value < 1
    ):
        return max(1, round(float(value) * total))
    raise ValueError(
        f"{field}={value!r} must be a number of examples, 1 to {total - 1:,}, "
        f"or a share between 0 and 1, of {total:,}"
    )


def split_sizes(total: int, validation: int | float, test: int | float) -> tuple[int, int, int]:
    """(train, validation, test) of a set that comes in one piece."""
    held = count("validation", validation, total), count("test", test, total)
    if sum(held) >= total:
        raise ValueError(
            f"validation={validation!r} and test={test!r} leave no training example of {total:,}: "
            "make one smaller"
        )
    return total - sum(held), *held


def check_seed(seed: int) -> None:
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number, 0 or more; it chooses the split")


def order(n: int, seed: int) -> np.ndarray:
    """A permutation of n, the same for good: NumPy promises raw bits, not what it makes of them."""
    return np.argsort(np.random.PCG64(int(seed)).random_raw(n), kind="stable")


def stratified(y: np.ndarray, sizes: tuple[int, int, int], seed: int) -> list[np.ndarray]:
    """Rows of (train, validation, test), ascending; each class in each within one of its share.

    Every class is spread evenly over [0, 1); any stretch of that line has all in their shares.
    """
    shuffled = order(len(y), seed)
    place = np.empty(len(y))
    for c in np.unique(y):
        of_class = shuffled[y[shuffled] == c]
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    line = shuffled[np.argsort(place[shuffled], kind="stable")]
    _, validation, test = sizes
    parts = line[validation + test :], line[test : validation + test], line[:test]
    return [np.sort(part) for part in parts]


def standard(count: int, sums: object, squares: object) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale), float32, of features whose `count` values have these sums, exactly.

    In whole numbers until the one division, so that every platform gets the same bits.
    """
    sums = [int(s) for s in np.asarray(sums)]
    spread = [count * int(q) - s * s for s, q in zip(sums, np.asarray(squares), strict=True)]
    shift = [s / count for s in sums]
    scale = [1 / math.sqrt(v / count**2) if v else 1.0 for v in spread]  # a constant stays itself
    return np.array(shift, np.float32), np.array(scale, np.float32)


def check(where: str, x: np.ndarray, y: np.ndarray, classes: int, first: int = 0) -> None:
    """Refuses labels outside [0, classes) and NaN or infinite features; `first`: row of x[0]."""
    bad = (y < 0) | (y >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{where}: label {y[row]} of record {first + row} is outside [0, {classes})"
            f" ({int(bad.sum()):,} such records here); is the number of classes right?"
        )
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        row, *feature = np.argwhere(~finite)[0].tolist()
        raise DataError(
            f"{where}: feature {feature} of record {first + row} is {x[(row, *feature)]}"
            f" ({int((~finite).sum()):,} such values here); remove or fill them first"
        )
