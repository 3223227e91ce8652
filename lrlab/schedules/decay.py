"""Shapes that go from one multiplier to another, smoothly or in steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrlab.schedules import _checks, _clock

Number = Any  # a float, or a traced scalar
Updates = Any  # an int, or a traced one


def constant(value: Number = 1.0) -> optax.Schedule:
    """The same multiplier at every update.

    Raises:
      ValueError: value < 0.
    """
    value = _checks.at_least("constant", "value", value, 0)
    return lambda t: jnp.full(jnp.shape(t), value, jnp.float32)


def linear(start: Number, end: Number, steps: Updates) -> optax.Schedule:
    """A line from `start` to `end`, flat at `end` afterwards; warm-up when start < end.

    shape(t) = start + (end - start) * t / steps

    PyTorch's LinearLR, Optax and Keras (PolynomialDecay, power 1) agree; LinearLR's defaults are
    start 1/3, end 1, 5 updates.

    Args:
      start, end: multipliers of config.lr at t = 0 and t = steps; dimensionless.
      steps: length in optimizer updates.
    Raises:
      ValueError: steps < 1, a negative multiplier.
    Source:
      Goyal et al. 2017, arXiv:1706.02677, 2.2 (as warm-up).
    """
    start, end = _ends("linear", start, end)
    steps = _checks.whole("linear", "steps", steps)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        done, left = _clock.fractions(_clock.updates(t), steps)
        return start * left + end * done

    return shape


def linear_to_zero(steps: Updates, start: Number = 1.0) -> optax.Schedule:
    """A line from `start` to zero over the whole phase ("D2Z").

    shape(t) = start * (1 - t / steps)

    Raises:
      ValueError: steps < 1, a negative start.
    Source:
      Bergsma et al. 2025, arXiv:2502.15938.
    """
    return linear(start, 0.0, steps)


def polynomial(
    start: Number, end: Number, steps: Updates, power: Number, cycle: bool = False
) -> optax.Schedule:
    """From `start` to `end` as a power of the updates left, flat at `end` afterwards.

    shape(t) = end + (start - end) * (1 - t / steps) ** power

    PyTorch, Optax, Keras and TF1 agree; Keras and TF1 also have `cycle`.

    Args:
      start, end, steps: as for `linear`.
      power: 1 is a line; larger ones fall earlier.
      cycle: after the end, go on with a length of steps * ceil(t / steps): each cycle starts lower
        and reaches `end` at the next multiple of `steps`.
    Raises:
      ValueError: steps < 1, power <= 0, a negative multiplier.
    """
    start, end = _ends("polynomial", start, end)
    steps = _checks.whole("polynomial", "steps", steps)
    power = _checks.above("polynomial", "power", power, 0)
    if not _checks.traced(power) and power == int(power):
        power = int(power)  # multiplications instead of exp and log

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        _, left = _clock.fractions(t, steps)
        if cycle:
            cycles = 1 + jnp.maximum(t - 1, 0) // steps
            rest = steps - 1 - jnp.maximum(t - 1, 0) % steps  # to the next multiple of steps
            left = jnp.where(t == 0, 1, rest.astype(jnp.float32) / steps / cycles)
        weight = left**power
        return start * weight + end * (1 - weight)

    return shape


def cosine(
    start: Number, end: Number, steps: Updates, dialect: str | None = None
) -> optax.Schedule:
    """Half a cosine from `start` to `end`, flat at `end` afterwards.

    shape(t) = end + (start - end) * (1 + cos(pi * t / steps)) / 2

    Args:
      start, end: multipliers of config.lr at t = 0 and t = steps; dimensionless.
      steps: length in optimizer updates (not epochs, not micro-batches).
      dialect: "torch" (CosineAnnealingLR) goes on after the end: it rises to `start` again at
        2 * steps, and so on. "optax", "keras", "tf1" are as ours.
    Raises:
      ValueError: steps < 1, a negative multiplier, an unknown dialect.
    Source:
      Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, one cycle.
    """
    start, end = _ends("cosine", start, end)
    steps = _checks.whole("cosine", "steps", steps)
    periodic = _checks.dialect("cosine", dialect, ("torch", "keras", "optax", "tf1")) == "torch"

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        done, left = _clock.fractions(t % steps if periodic else t, steps)
        up, down = _clock.half_cosine(done, left)
        if periodic:
            rising = t // steps % 2 == 1
            up, down = jnp.where(rising, down, up), jnp.where(rising, up, down)
        return start * down + end * up

    return shape


def rex(start: Number, end: Number, steps: Updates) -> optax.Schedule:
    """Reflected exponential: above a line all the way, steepest at the end, flat afterwards.

    shape(t) = end + (start - end) * (1 - z) / (1/2 + (1 - z) / 2), z = t / steps

    Raises:
      ValueError: steps < 1, a negative multiplier, end > start.
    Source:
      Chen, Wolfe & Kyrillidis 2022, arXiv:2107.04197, 3.
    """
    start, end = _ends("rex", start, end)
    _checks.not_above("rex", "end", end, "start", start)
    steps = _checks.whole("rex", "steps", steps)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        done, left = _clock.fractions(_clock.updates(t), steps)
        return start * (2 * left / (1 + left)) + end * (done / (1 + left))

    return shape


def step(factor: Number, every: Updates, start: Number = 1.0) -> optax.Schedule:
    """Multiplies by `factor` after every `every` updates.

    shape(t) = start * factor ** floor(t / every)

    PyTorch's StepLR and Optax's exponential_decay(staircase=True) agree.

    Raises:
      ValueError: every < 1, factor outside (0, 1), a negative start.
    """
    every = _checks.whole("step", "every", every)
    rate = _clock.rate_of(_checks.fraction("step", "factor", factor))
    start = _checks.at_least("step", "start", start, 0)
    return lambda t: start * _clock.power(rate, _clock.updates(t) // every)


def multi_step(
    boundaries: Sequence[Updates],
    factor: Number = 0.1,
    start: Number = 1.0,
    steps: Updates | None = None,
    dialect: str | None = None,
) -> optax.Schedule:
    """Multiplies by `factor` at each boundary.

    shape(t) = start * factor ** (number of boundaries <= t)

    Args:
      boundaries: updates, increasing; update b is the first with the next value.
      factor: as a multiplier of the value before.
      steps: the phase's length, if known, to check the boundaries against.
      dialect: "tf1", "keras" drop one update later, as their piecewise constants do; "torch"
        (MultiStepLR), "optax" are as ours.
    Raises:
      ValueError: boundaries out of order, under 1 or not before `steps`; factor outside (0, 1).
    """
    factor = _checks.fraction("multi_step", "factor", factor)
    start = _checks.at_least("multi_step", "start", start, 0)
    several = _checks.several("multi_step", "boundaries", boundaries)
    values = [start * factor**i for i in range(len(several) + 1)]
    return _held("multi_step", boundaries, values, steps, dialect)


def piecewise(
    boundaries: Sequence[Updates],
    values: Sequence[Number],
    steps: Updates | None = None,
    dialect: str | None = None,
) -> optax.Schedule:
    """A value of its own between each two boundaries.

    shape(t) = values[number of boundaries <= t]

    Args:
      boundaries: updates, increasing; update b is the first with the next value.
      values: multipliers, one more than boundaries.
      steps: the phase's length, if known, to check the boundaries against.
      dialect: "keras" (PiecewiseConstantDecay), "tf1" keep the old value at update b itself and
        change at b + 1; "torch" (MultiStepLR), "optax" (piecewise_constant_schedule) are as ours.
    Raises:
      ValueError: boundaries out of order, under 1 or not before `steps`; another number of values,
        a negative value.
    """
    values = _checks.each_at_least("piecewise", "values", values, 0)
    return _held("piecewise", boundaries, values, steps, dialect)


def _held(
    name: str, boundaries: Sequence[Any], values: Sequence[Any], steps: Any, dialect: str | None
) -> optax.Schedule:
    given = _checks.dialect(name, dialect, ("torch", "keras", "optax", "tf1"))
    last = None if steps is None else steps - 1
    found = _checks.increasing(name, "boundaries", boundaries, 1, last)
    if len(values) != len(found) + 1:
        raise ValueError(
            f"{name} needs one value more than boundaries, got {len(values)} values for "
            f"{len(found)} boundaries"
        )
    late = 1 if given in ("keras", "tf1") else 0
    return lambda t: _stack(values, jnp.float32)[
        _index([b + late for b in found], _clock.updates(t))
    ]


def _stack(values: Sequence[Any], dtype: Any) -> jax.Array:
    """Scalars as one array, traced or not."""
    if _checks.traced(*values):
        return jnp.stack([jnp.asarray(v, dtype) for v in values])
    return jnp.asarray(np.asarray(values, dtype))


def _index(firsts: Sequence[Any], t: jax.Array) -> jax.Array:
    """How many of `firsts`, increasing updates, are not after t."""
    if not firsts:
        return jnp.zeros_like(t)
    method = "compare_all" if len(firsts) <= 32 else "scan_unrolled"
    return jnp.searchsorted(_stack(firsts, jnp.int32), t, side="right", method=method)


def exponential(
    decay: Number,
    every: Updates,
    start: Number = 1.0,
    end: Number = 0.0,
    staircase: bool = False,
) -> optax.Schedule:
    """Shrinks by `decay` over each `every` updates, smoothly or at once, never under `end`.

    shape(t) = max(end, start * decay ** (t / every)); staircase: floor(t / every)

    PyTorch's ExponentialLR is every=1 (one update, or one epoch of updates); Keras, Optax and TF1
    agree. a_0 * exp(-k * t) is `natural_exponential`.

    Raises:
      ValueError: every < 1, decay outside (0, 1), a negative start, end > start.
    """
    rate = _clock.rate_of(_checks.fraction("exponential", "decay", decay))
    return _exponential("exponential", rate, every, start, end, staircase)


def natural_exponential(
    rate: Number,
    every: Updates = 1,
    start: Number = 1.0,
    end: Number = 0.0,
    staircase: bool = False,
) -> optax.Schedule:
    """Shrinks by exp(-rate) over each `every` updates, never under `end`.

    shape(t) = max(end, start * exp(-rate * t / every)); staircase: floor(t / every)

    TF1's natural_exp_decay agrees.

    Raises:
      ValueError: every < 1, rate <= 0, a negative start, end > start.
    """
    _checks.above("natural_exponential", "rate", rate, 0)
    return _exponential("natural_exponential", rate, every, start, end, staircase)


def _exponential(
    name: str, rate: Any, every: Any, start: Any, end: Any, staircase: bool
) -> optax.Schedule:
    every = _checks.whole(name, "every", every)
    start, end = _ends(name, start, end)
    _checks.not_above(name, "end", end, "start", start)
    if not staircase and not _checks.traced(rate, every):
        rate = float(rate) / every

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        if staircase:
            shrunk = _clock.power(rate, t // every)
        elif _checks.traced(rate, every):
            shrunk = jnp.exp(-rate * (t.astype(jnp.float32) / every))
        else:
            shrunk = _clock.power(rate, t)
        return jnp.maximum(end, start * shrunk)

    return shape


def inverse_time(
    rate: Number, every: Updates, start: Number = 1.0, staircase: bool = False
) -> optax.Schedule:
    """Falls with one over time.

    shape(t) = start / (1 + rate * t / every); staircase: floor(t / every)

    Keras and TF1 agree.

    Raises:
      ValueError: every < 1, rate <= 0, a negative start.
    """
    every = _checks.whole("inverse_time", "every", every)
    rate = _checks.above("inverse_time", "rate", rate, 0)
    start = _checks.at_least("inverse_time", "start", start, 0)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        times = (t // every).astype(jnp.float32) if staircase else t.astype(jnp.float32) / every
        return start / (1 + rate * times)

    return shape


def reciprocal_sqrt(timescale: Updates, start: Number = 1.0) -> optax.Schedule:
    """Falls with the root of time, from `start`.

    shape(t) = start * sqrt(timescale / (timescale + t))

    After a linear warm-up of `timescale` updates this is 1 / sqrt(t) from there on.

    Raises:
      ValueError: timescale < 1, a negative start.
    Source:
      Zhai et al. 2022, arXiv:2106.04560, 3.5.
    """
    timescale = _checks.whole("reciprocal_sqrt", "timescale", timescale)
    start = _checks.at_least("reciprocal_sqrt", "start", start, 0)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        return start / jnp.sqrt(1 + _clock.updates(t).astype(jnp.float32) / timescale)

    return shape


def noam(warmup: Updates) -> optax.Schedule:
    """A line up over `warmup` updates, then one over the root of time; its clock starts at 1.

    shape(t) = min((t + 1) / warmup, sqrt(warmup / (t + 1)))

    The peak, 1, is at t = warmup - 1. In the paper's words config.lr is (d_model * warmup)^-1/2.

    Raises:
      ValueError: warmup < 1.
    Source:
      Vaswani et al. 2017, arXiv:1706.03762, eq. 3.
    """
    warmup = _checks.whole("noam", "warmup", warmup)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        # t + 1 in integers would overflow at the clock's end, in float32 it is one bit off at most.
        now = jnp.minimum(_clock.updates(t), _checks.MAX - 1) + 1
        up = now.astype(jnp.float32) / warmup
        return jnp.minimum(up, 1 / jnp.sqrt(up))

    return shape


def table(
    values: Sequence[Number],
    at: Sequence[Updates] | None = None,
    steps: Updates | None = None,
    interpolate: bool = True,
) -> optax.Schedule:
    """Given values at given updates, with lines between them or held; the last one stays.

    Args:
      values: multipliers.
      at: the update of each value, from 0, increasing; left out, they are spread evenly over
        `steps`: the last value at the end, or, when held, each for the same time.
      steps: the phase's length.
      interpolate: lines between values, or each value until the next one's update.
    Raises:
      ValueError: no value, a negative one, another number of updates, updates out of order or past
        the phase, more values than updates.
    """
    found = _checks.each_at_least("table", "values", values, 0)
    if not found:
        raise ValueError("table needs at least one value, got none")
    if at is None:
        if _checks.traced(steps):
            raise ValueError("table needs `at` where steps is traced")
        length = _checks.whole("table", "steps", 0 if steps is None else steps)
        parts = max(len(found) - 1, 1) if interpolate else len(found)
        at = [(2 * i * length + parts) // (2 * parts) for i in range(len(found))]  # to the nearest
        if len(set(at)) < len(at):
            raise ValueError(f"table has {len(found)} values for {length} updates: more than fit")
    else:
        at = _checks.increasing("table", "at", at, 0, steps)
    if len(at) != len(found):
        raise ValueError(f"table needs one update a value, got {len(at)} and {len(found)}")
    if not _checks.traced(at[0]) and at[0] != 0:
        raise ValueError(f"table needs at[0] = 0, the start of its phase, got {at[0]}")

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        i, knots = _index(at[1:], t), _stack(found, jnp.float32)
        if not interpolate:
            return knots[i]
        firsts = _stack([*at, _checks.MAX], jnp.int32)
        done, left = _clock.fractions(t - firsts[i], jnp.maximum(firsts[i + 1] - firsts[i], 1))
        return knots[i] * left + knots[jnp.minimum(i + 1, len(found) - 1)] * done

    return shape


def _ends(name: str, start: Any, end: Any) -> tuple[Any, Any]:
    return _checks.at_least(name, "start", start, 0), _checks.at_least(name, "end", end, 0)
