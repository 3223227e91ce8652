"""Batch-size regimes, and the one clock: all durations become optimizer updates here.

A regime is a pure function (epoch, losses so far) -> (batch size, lr scale), so a resumed run
replays it from its own record.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from lrlab.values import UNITS, near

__all__ = ["fixed", "plateau"]  # what a config may name


@dataclasses.dataclass(frozen=True)
class Regime:
    """How the batch goes through a run.

    at: (epoch from 0, validation losses of the epochs before) -> (examples an update, factor of the
    rate). sizes: every batch size that can occur: one compilation each. micro: parts that an
    update's batch is taken in, one after another, when memory says so. reads_losses: `at` looks at
    them, so that the data needs validation examples.
    """

    at: Callable[[int, Sequence[float]], tuple[int, float]]
    sizes: tuple[int, ...]
    micro: int = 1
    reads_losses: bool = False


def fixed(size: int, micro: int = 1) -> Regime:
    """The same batch size throughout.

    Args:
      size: examples an update, over all devices.
      micro: parts an update is accumulated from; the result is that of one part, to rounding.
    Raises:
      ValueError: size < 1, micro < 1, or micro does not divide size.
    """
    for name, value in ("size", size), ("micro", micro):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"batch.{name}={value!r} must be a whole number >= 1")
    if size % micro:
        raise ValueError(
            f"batch.size={size} is not divisible by batch.micro={micro}; {nearest(size, micro)}"
        )
    return Regime(at=lambda epoch, losses: (size, 1.0), sizes=(size,), micro=micro)


def plateau(
    size: int,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_scale: float = 0.0,
    micro: int = 1,
    dialect: str = "lrlab",
) -> Regime:
    """A fixed batch whose rate is multiplied by `factor` when the validation loss stops improving.

    It is one factor of the rate: any schedule goes on beside it.

    Args:
      size, micro: as for `fixed`.
      factor: of the rate, at each reduction.
      patience: epochs without improvement that cost a reduction.
      threshold, threshold_mode: what improves on the best: "rel", below best - threshold * |best|;
        "abs", below best - threshold.
      cooldown: epochs after a reduction that are not counted.
      min_scale: the product of factors never goes below it.
      dialect: "lrlab" reduces at the end of the `patience`-th epoch in a row that did not improve,
        and passes over a loss that is not finite. "torch" waits one epoch more; "keras" and
        "fastai" count as we do, but a cooldown covers one epoch less; "optax" as we do. In these
        four a NaN is an epoch without improvement, and a relative threshold is
        best * (1 - threshold), lenient for negative losses. Their defaults: torch rel 1e-4; keras
        abs 1e-4; fastai abs 0; optax rel 1e-4 (its patience 0 is inverted, so it is refused).
    Raises:
      ValueError: a value out of its range, or an unknown dialect.
    Source:
      semantics of torch 2.13, Keras 3.15, fastai 2.8 and optax 0.2.8, read from running them.
    """
    base = fixed(size, micro)
    if not (_is_number(factor) and 0 < factor < 1):
        raise ValueError(
            f"batch.factor={factor!r} must lie in (0, 1): the rate is multiplied by it"
        )
    if dialect not in _COUNTS:
        raise ValueError(f"batch.dialect={dialect!r} is not allowed; {near(str(dialect), _COUNTS)}")
    least = 0 if dialect in ("torch", "keras", "fastai") else 1
    for name, value, low in ("patience", patience, least), ("cooldown", cooldown, 0):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"batch.{name}={value!r} must be a whole number >= {low}")
    if threshold_mode not in ("rel", "abs"):
        raise ValueError(f"batch.threshold_mode={threshold_mode!r} is not allowed; known: abs, rel")
    for name, value in ("threshold", threshold), ("min_scale", min_scale):
        if not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"batch.{name}={value!r} must lie in [0, 1)")

    def improves(loss: float, best: float) -> bool:
        if threshold_mode == "abs" or math.isinf(best):
            return loss < best - threshold
        if dialect == "lrlab":
            return loss < best - threshold * abs(best)
        return loss < best * (1 - threshold)

    def at(epoch: int, losses: Sequence[float]) -> tuple[int, float]:
        reductions = _COUNTS[dialect](losses[:epoch], improves, patience, cooldown)
        return size, max(factor**reductions, min_scale)

    return dataclasses.replace(base, at=at, reads_losses=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Improves = Callable[[float, float], bool]


def _count_ours(losses: Sequence[float], improves: Improves, patience: int, cooldown: int) -> int:
    """Reductions so far: `patience` epochs in a row outside a cooldown did not improve."""
    return _count_optax([x for x in losses if math.isfinite(x)], improves, patience, cooldown)


def _count_optax(losses: Sequence[float], improves: Improves, patience: int, cooldown: int) -> int:
    """Optax: an epoch in cooldown may set the best, and is not counted."""
    best, bad, rest, reductions = math.inf, 0, 0, 0
    for loss in losses:
        better = improves(loss, best)
        best = loss if better else best
        if rest:
            rest, bad = rest - 1, 0
            continue
        bad = 0 if better else bad + 1
        if bad == patience:
            bad, rest, reductions = 0, cooldown, reductions + 1
    return reductions


def _count_torch(losses: Sequence[float], improves: Improves, patience: int, cooldown: int) -> int:
    """torch: more than `patience` epochs."""
    best, bad, rest, reductions = math.inf, 0, 0, 0
    for loss in losses:
        better = improves(loss, best)
        best, bad = (loss, 0) if better else (best, bad + 1)
        if rest:
            rest, bad = rest - 1, 0
        if bad > patience:
            bad, rest, reductions = 0, cooldown, reductions + 1
    return reductions


def _count_keras(losses: Sequence[float], improves: Improves, patience: int, cooldown: int) -> int:
    """Keras and fastai: the cooldown is counted down before the epoch is looked at."""
    best, bad, rest, reductions = math.inf, 0, 0, 0
    for loss in losses:
        if rest:
            rest, bad = rest - 1, 0
        if improves(loss, best):
            best, bad = loss, 0
        elif not rest:
            bad += 1
            if bad >= patience:
                bad, rest, reductions = 0, cooldown, reductions + 1
    return reductions


_COUNTS = {
    "lrlab": _count_ours,
    "torch": _count_torch,
    "keras": _count_keras,
    "fastai": _count_keras,
    "optax": _count_optax,
}


def nearest(size: int, divisor: int) -> str:
    """Text that names the valid sizes around one that `divisor` does not divide."""
    below = size // divisor * divisor
    return f"nearest valid: {f'{below} or ' if below else ''}{below + divisor}"


def updates_per_epoch(examples: int, size: int) -> int:
    """Whole batches in an epoch; the examples left over sit out, others in each epoch."""
    return examples // size


def to_updates(duration: Mapping[str, float] | float, total: int, per_epoch: int, size: int) -> int:
    """A duration in optimizer updates, at least 0.

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
