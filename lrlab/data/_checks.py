"""What data must be before it is trained on: as it says, finite, its labels in range."""

import numpy as np

_BYTES = 1 << 24  # of features that are looked at at once


class DataError(RuntimeError):
    """Data that is absent, unreadable or not what it says; the message says what to do."""


def check(where: str, x: np.ndarray, y: np.ndarray, classes: int, first: int = 0) -> None:
    """Refuses labels outside [0, classes) and NaN or infinite features; `first`: row of x[0].

    Whole numbers are always finite: of a memory-mapped set of images only the labels are read.
    """
    bad = (y < 0) | (y >= classes)
    if bad.any():
        row, *position = np.argwhere(bad)[0].tolist()
        label = y[(row, *position)]
        raise DataError(
            f"{where}: label {label} of record {first + row} is outside [0, {classes})"
            f" ({int(bad.sum()):,} such records here); is the number of classes right?"
        )
    if x.dtype.kind != "f" or not len(x):
        return
    rows = max(1, _BYTES // max(1, x[:1].nbytes))
    for begin in range(0, len(x), rows):
        part = x[begin : begin + rows]
        if not (finite := np.isfinite(part)).all():
            row, *feature = np.argwhere(~finite)[0].tolist()
            raise DataError(
                f"{where}: feature {feature} of record {first + begin + row} is "
                f"{part[(row, *feature)]}; remove such values or fill them first"
            )


def check_split(
    where: str,
    x: object,
    y: object,
    size: int,
    feature_shape: tuple[int, ...],
    target_shape: tuple[int, ...] = (),
) -> None:
    """Refuses arrays that are not [size, *feature_shape] numbers, [size, *target_shape] labels."""
    for key, array, shape, kinds in (
        ("x", x, (size, *feature_shape), "uif"),
        ("y", y, (size, *target_shape), "ui"),
    ):
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: {key} is a {type(array).__name__}, not a NumPy array")
        if array.shape != shape:
            raise DataError(
                f"{where}: {key} has shape {list(array.shape)}; the Source promised {list(shape)}"
            )
        if array.dtype.kind not in kinds:
            wanted = "class indices, int32" if key == "y" else "uint8 or float32"
            raise DataError(f"{where}: {key} is {array.dtype}, not {wanted}")


def check_constant(where: str, values: np.ndarray, feature_shape: tuple[int, ...]) -> None:
    """Refuses a shift or scale that does not fit a feature, or is not finite."""
    try:
        np.broadcast_to(values, feature_shape)
    except ValueError:
        shape = list(np.shape(values))
        raise DataError(
            f"{where} of shape {shape} does not fit a feature of {list(feature_shape)}"
        ) from None
    if not np.isfinite(values).all():
        raise DataError(f"{where} is not finite; does a feature never change?")
