"""Regimes that look at the validation loss: the rate falls, or the batch grows, on a plateau."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from lrlab.batching._regimes import Coupling, Regime, above_one, fixed, grown, limit, whole
from lrlab.values import near


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
    if not (_is_number(min_scale) and 0 <= min_scale < 1):
        raise ValueError(f"batch.min_scale={min_scale!r} must lie in [0, 1)")
    count = _counter(dialect, patience, cooldown, threshold, threshold_mode)

    def at(epoch: int, losses: Sequence[float]) -> tuple[int, float]:
        return size, max(factor ** count(losses[:epoch]), min_scale)

    return dataclasses.replace(base, at=at, reads="losses")


def plateau_growth(
    size: int,
    factor: float = 5.0,
    patience: int = 3,
    cap: int | float | None = 0.1,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
    dialect: str = "lrlab",
    examples: int | None = None,
) -> Regime:
    """Multiplies the batch by `factor` where `plateau` would divide the rate; at the cap, the rate.

    Args:
      size: examples an update at first.
      factor: of the batch at each plateau; beyond the cap the rate is divided by it.
      cap: no batch is larger: examples, or, up to 1, a fraction of the training split.
      patience, threshold, threshold_mode, cooldown, dialect: what a plateau is; as for `plateau`.
      coupling, base, most, examples: as for `increasing`.
    Raises:
      ValueError: a value out of its range, an unknown dialect or coupling.
    Source:
      The Keras article on Covertype, after Smith et al. 2018, arXiv:1711.00489.
    """
    whole("size", size, 1)
    f = above_one("factor", factor)
    sizes = grown(size, f, limit(cap, examples, size), 64)
    scale = Coupling.of(coupling, base, size)
    count = _counter(dialect, patience, cooldown, threshold, threshold_mode)
    if most is not None:
        whole("most", most, 1)

    def at(epoch: int, losses: Sequence[float]) -> tuple[int, float]:
        plateaus = count(losses[:epoch])
        now = sizes[min(plateaus, len(sizes) - 1)]
        return now, scale(now) * f ** -max(0, plateaus - len(sizes) + 1)

    return Regime(at=at, sizes=sizes, most=most, reads="losses")


def _counter(
    dialect: str, patience: int, cooldown: int, threshold: float, threshold_mode: str
) -> Callable[[Sequence[float]], int]:
    """Losses so far -> plateaus so far; raises ValueError."""
    if dialect not in _COUNTS:
        raise ValueError(f"batch.dialect={dialect!r} is not allowed; {near(str(dialect), _COUNTS)}")
    whole("patience", patience, 0 if dialect in ("torch", "keras", "fastai") else 1)
    whole("cooldown", cooldown, 0)
    if threshold_mode not in ("rel", "abs"):
        raise ValueError(f"batch.threshold_mode={threshold_mode!r} is not allowed; known: abs, rel")
    if not (_is_number(threshold) and 0 <= threshold < 1):
        raise ValueError(f"batch.threshold={threshold!r} must lie in [0, 1)")

    def improves(loss: float, best: float) -> bool:
        if threshold_mode == "abs" or math.isinf(best):
            return loss < best - threshold
        if dialect == "lrlab":
            return loss < best - threshold * abs(best)
        return loss < best * (1 - threshold)

    return lambda losses: _COUNTS[dialect](losses, improves, patience, cooldown)


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
