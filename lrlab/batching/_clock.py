"""The one clock: all durations become optimizer updates here."""

from collections.abc import Mapping

import numpy as np

from lrlab.values import UNITS


def nearest(size: int, divisor: int) -> str:
    """Text that names the valid sizes around one that `divisor` does not divide."""
    below = size // divisor * divisor
    return f"nearest valid: {f'{below} or ' if below else ''}{below + divisor}"


def updates_per_epoch(examples: int, size: int) -> int:
    """Whole batches in an epoch; the examples left over sit out, others in each epoch."""
    return examples // size


def ticks(epoch: int, first: int, count: int, updates: int, base: int) -> np.ndarray:
    """Where schedules stand at `count` updates of an epoch from `first` on, int32 [count].

    Their clock counts updates at the first batch size, of which an epoch has `base`, whatever it
    has now (`updates`); so a schedule keeps its place in epochs and examples where batches grow.
    """
    done = np.arange(first, first + count, dtype=np.int64)
    return (epoch * base + done * base // updates).astype(np.int32)


def to_updates(duration: Mapping[str, float] | float, total: int, per_epoch: int, size: int) -> int:
    """A duration in optimizer updates, at least 0.

    Where the batch grows, these are updates at its first size: the clock of the schedules.

    Args:
      duration: {"updates": n}, {"epochs": n}, {"examples": n} or {"fraction": of the run}; a bare
        number is updates.
      total: updates of the run. per_epoch: updates an epoch. size: examples an update.
    Raises:
      ValueError: a negative length, or not exactly one known unit.
    """
    if not isinstance(duration, Mapping):
        duration = {"updates": duration}
    if len(duration) != 1 or next(iter(duration)) not in UNITS:
        raise ValueError(f"a duration has exactly one of {', '.join(UNITS)}, got {dict(duration)}")
    unit, n = next(iter(duration.items()))
    if isinstance(n, bool) or not isinstance(n, int | float) or not 0 <= n < float("inf"):
        raise ValueError(f"{unit}={n!r} must be a number >= 0")
    one = {"updates": 1, "epochs": per_epoch, "examples": 1 / size, "fraction": total}[unit]
    return round(n * one)
