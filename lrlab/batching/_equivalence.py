"""Which batch regimes inject the noise that a decaying rate does.

For SGD the scale of the noise is g = lr N / (B (1 - m)), so a rate divided by f and a batch
multiplied by f are one (Smith & Le 2018, arXiv:1710.06451; Smith et al. 2018, arXiv:1711.00489).
For Adam it goes as lr^2 N / B: a rate divided by f is a batch multiplied by f and a rate divided by
sqrt(f) (Meterez et al. 2025, arXiv:2510.14717).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from lrlab.batching._clock import ticks, updates_per_epoch
from lrlab.batching._regimes import MOST_SIZES, Regime
from lrlab.values import near

POWERS = {"sgd": 1.0, "adam": 2.0}  # of the rate in the noise


@dataclasses.dataclass(frozen=True)
class Noise:
    """Every update of a run: examples seen before it, rate, batch size, momentum, noise scale."""

    examples: np.ndarray
    lr: np.ndarray
    size: np.ndarray
    momentum: np.ndarray
    g: np.ndarray

    @property
    def updates(self) -> int:
        """Of the run."""
        return len(self.g)


def noise_scale(
    schedule: optax.Schedule,
    regime: Regime,
    n: int,
    momentum: float | optax.Schedule = 0.0,
    *,
    epochs: int,
    lr: float = 1.0,
    rule: str = "sgd",
    seen: Sequence[float] = (),
) -> Noise:
    """The noise scale of every update.

    Args:
      schedule: update at the first batch size -> multiplier of `lr`.
      n: training examples. momentum: or b1; a number, or a schedule on the same clock.
      rule: "sgd" or "adam", as the head of this module says.
      seen: losses or noise scales of the epochs, where the regime reads them.
    Raises:
      ValueError: an unknown rule.
    """
    power = _power(rule)
    base = updates_per_epoch(n, regime.sizes[0])
    at, sizes, scales = [], [], []
    for epoch in range(epochs):
        size, scale = regime.at(epoch, seen)
        updates = updates_per_epoch(n, size)
        at.append(ticks(epoch, 0, updates, updates, base))
        sizes.append(np.full(updates, size))
        scales.append(np.full(updates, scale))
    place, size, scale = map(np.concatenate, (at, sizes, scales))
    rate = lr * scale * _values(schedule, place)
    m = _values(momentum, place) if callable(momentum) else np.full(len(place), float(momentum))
    g = rate**power * n / (size * (1 - m))
    return Noise(np.cumsum(size) - size, rate, size, m, g)


def to_batches(
    schedule: optax.Schedule,
    n: int,
    size: int,
    epochs: int,
    *,
    factor: float = 2.0,
    cap: int | None = None,
    rule: str = "sgd",
) -> dict[str, Any]:
    """The section `batch` of a config that keeps a decaying schedule's noise with growing batches.

    The schedule stays in the config: its rate is multiplied by what the batch has grown by, to the
    power that keeps g, so g is the same at every update, and the rate falls only where the batch
    cannot grow: between two sizes, and beyond the cap. Batches do not shrink, so one grows only
    where the schedule stays below for good: after a warm-up, and not between restarts.

    Args:
      schedule: update at the first batch size -> multiplier. n: training examples.
      size: examples an update at first. epochs: of the run.
      factor: between one batch size and the next. cap: examples an update at most.
      rule: "sgd" or "adam", as the head of this module says.
    Raises:
      ValueError: an unknown rule; more sizes than can be compiled.
    """
    power, most = _power(rule), cap or n
    per_epoch = updates_per_epoch(n, size)
    highest = _values(schedule, np.arange(epochs * per_epoch)).reshape(epochs, per_epoch).max(1)
    to_come = np.maximum.accumulate(highest[::-1])[::-1]
    peak = to_come[0]
    sizes, at = [size], [0]
    for epoch, value in enumerate(to_come):
        # The batch takes all of the decay for SGD, and the square of its root for Adam.
        room = min(peak / max(value, 1e-30) * (1 + 1e-6), most / size)
        now = round(size * factor ** int(np.floor(np.log(room) / np.log(factor) + 1e-9)))
        if now > sizes[-1]:
            sizes.append(now)
            at.append(epoch)
    if len(sizes) > MOST_SIZES:
        raise ValueError(f"{len(sizes)} batch sizes are too many to compile; raise factor")
    coupling = "linear" if power == 1 else "sqrt"
    return {"name": "stages", "sizes": tuple(sizes), "at": tuple(at), "coupling": coupling}


def _power(rule: str) -> float:
    if rule not in POWERS:
        raise ValueError(f"rule={rule!r} is not allowed; {near(str(rule), POWERS)}")
    return POWERS[rule]


def _values(schedule: Callable[[Any], Any], at: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(schedule))(at.astype(np.int32)), np.float64)
