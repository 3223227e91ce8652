"""What the data functions share: sizes of splits, fixed orders, standardisation."""

import math
import numbers

import numpy as np


def count(field: str, value: int | float, total: int, least: int = 1) -> int:
    """Examples that a count, from `least`, or a share of `total` asks for."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and least <= value < total:
        return int(value)
    if (
        isinstance(value, numbers.Real)
        and not isinstance(value, numbers.Integral)
        and 0 < value < 1
    ):
        return max(1, round(float(value) * total))
    raise ValueError(
        f"{field}={value!r} must be a number of examples, {least} to {total - 1:,}, "
        f"or a share between 0 and 1, of {total:,}"
    )


def split_sizes(total: int, validation: int | float, test: int | float) -> tuple[int, int, int]:
    """(train, validation, test) of a set that comes in one piece; validation may be 0."""
    held = count("validation", validation, total, 0), count("test", test, total)
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
