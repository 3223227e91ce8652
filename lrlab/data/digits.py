"""The digits that scikit-learn carries: 1,797 images of 8 x 8, at hand without a download."""

import gzip
import importlib.util
import numbers
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrlab.data import DataError, Dataset, Source, Split
from lrlab.data._splits import check_seed, split_sizes, standard, stratified

_EXAMPLES, _CLASSES = 1797, 10


def digits(
    validation: int | float = 180,
    test: int | float = 360,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> Source:
    """Handwritten digits, uint8 [8, 8, 1] of 0 to 16, split with every class in its share.

    Args:
      validation, test: examples, or a share of the 1,797; validation may be 0.
      seed: chooses the split; the run's own seed does not.
      classes: the digits to keep, such as (5, 6, 7, 8, 9), whose classes are then 0, 1, ... in this
        order; they keep their places in the splits, which are so much smaller.
    Raises:
      ValueError: no training example would be left, or a value makes no sense.
    Source:
      The test part of Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI.
    """
    sizes = whole = split_sizes(_EXAMPLES, validation, test)
    check_seed(seed)
    if classes is not None:
        _check_classes(classes)
    kept = tuple(range(_CLASSES)) if classes is None else tuple(classes)

    def rows_of(y: np.ndarray) -> list[np.ndarray]:
        return [rows[np.isin(y[rows], kept)] for rows in stratified(y, whole, seed)]

    if classes is not None:
        train, held, last = map(len, rows_of(_table()[:, 64].astype(np.int32)))
        sizes = train, held, last

    def read() -> Dataset:
        table = _table()
        x, y = table[:, :64].reshape(-1, 8, 8, 1), table[:, 64].astype(np.int32)
        train, *others = rows_of(y)
        place = np.full(_CLASSES, -1, np.int32)
        place[list(kept)] = np.arange(len(kept))
        y = place[y]
        pixels = x[train].astype(np.int64)
        shift, scale = standard(pixels.size, [pixels.sum()], [np.square(pixels).sum()])
        return Dataset(
            "digits",
            *(Split(x[rows], y[rows]) for rows in (train, *others)),
            num_classes=len(kept),
            class_names=tuple(map(str, kept)),
            shift=shift.reshape(1, 1, 1),
            scale=scale.reshape(1, 1, 1),
        )

    return Source("digits", sizes, (8, 8, 1), len(kept), read)


def _check_classes(classes: Sequence[int]) -> None:
    known = [c for c in classes if isinstance(c, numbers.Integral) and 0 <= c < _CLASSES]
    if len(known) < len(classes) or len(set(known)) < len(known) or len(known) < 2:
        raise ValueError(
            f"classes={tuple(classes)!r} must be two or more different digits, 0 to {_CLASSES - 1}"
        )


def _table() -> np.ndarray:
    """64 pixels and a label a row, uint8; from scikit-learn's file, whose import takes 1.5 s."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.origin:
        raise DataError("digits come with scikit-learn, which is absent: pip install scikit-learn")
    path = Path(found.origin).with_name("datasets") / "data" / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    else:  # a release that keeps the file elsewhere: ask it, slowly
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        table = np.column_stack([x, y]).astype(np.uint8)
    if table.shape != (_EXAMPLES, 65):
        raise DataError(
            f"digits: scikit-learn's file has shape {table.shape}, not ({_EXAMPLES}, 65): "
            "another release of the set? Install scikit-learn again."
        )
    return table
