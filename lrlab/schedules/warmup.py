"""Warm-ups: from a small multiplier to `end`, where they stay; and a warm-up with its decay.

As phases before anything: `join([warmup_linear(w), anything], [w, n])`, or a phase in a config.
"""

import math

import jax
import jax.numpy as jnp
import optax

from lrlab.schedules import _checks, _clock
from lrlab.schedules.decay import Number, Updates, cosine, linear, piecewise
from lrlab.schedules.phases import join


def warmup_linear(
    steps: Updates, start: Number | None = None, end: Number = 1.0, dialect: str | None = None
) -> optax.Schedule:
    """A line from `start` up to `end`, reached at t = steps.

    shape(t) = start + (end - start) * t / steps

    Args:
      steps: length in optimizer updates.
      start, end: multipliers at both ends; `start` is 0 if not given.
      dialect: "torch" (LinearLR) starts at 1/3 if not given; "optax" and "keras" are as ours.
    Raises:
      ValueError: steps < 1, a negative multiplier, start > end.
    Source:
      Goyal et al. 2017, arXiv:1706.02677, 2.2.
    """
    given = _checks.dialect("warmup_linear", dialect, ("torch", "keras", "optax"))
    if start is None:
        start = 1 / 3 if given == "torch" else 0.0
    _checks.not_above("warmup_linear", "start", start, "end", end)
    return linear(start, end, steps)


def warmup_cosine(steps: Updates, start: Number = 0.0, end: Number = 1.0) -> optax.Schedule:
    """Half a cosine from `start` up to `end`, flat at both ends.

    shape(t) = start + (end - start) * (1 - cos(pi * t / steps)) / 2

    Raises:
      ValueError: steps < 1, a negative multiplier, start > end.
    """
    _checks.not_above("warmup_cosine", "start", start, "end", end)
    return cosine(start, end, steps)


def warmup_exponential(steps: Updates, start: Number, end: Number = 1.0) -> optax.Schedule:
    """Grows by the same factor at each update, from `start` to `end`; also the range test's rise.

    shape(t) = start * (end / start) ** (t / steps)

    Raises:
      ValueError: steps < 1, start <= 0, start > end.
    """
    _checks.not_above("warmup_exponential", "start", start, "end", end)
    return geometric(start, end, steps)


def geometric(start: Number, end: Number, steps: Updates) -> optax.Schedule:
    """From `start` to `end` by the same factor at each update, flat at `end` afterwards.

    shape(t) = start * (end / start) ** (t / steps)

    Raises:
      ValueError: steps < 1, start <= 0, end <= 0.
    """
    first = _checks.above("geometric", "start", start, 0)
    last = _checks.above("geometric", "end", end, 0)
    steps = _checks.whole("geometric", "steps", steps)

    if _checks.traced(first, last, steps):

        def shape(t: jax.typing.ArrayLike) -> jax.Array:
            done, left = _clock.fractions(_clock.updates(t), steps)
            nearer = jnp.log(last) - jnp.log(first)
            return jnp.where(
                done < left, first * jnp.exp(nearer * done), last * jnp.exp(-nearer * left)
            )

        return shape
    rate = abs(math.log(end / start)) / steps
    high = max(first, last)

    def exact(t: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.minimum(_clock.updates(t), steps)
        value = high * _clock.power(rate, t if start > end else steps - t)
        return jnp.where(t == 0, first, jnp.where(t == steps, last, value))

    return exact


def warmup_constant(steps: Updates, start: Number, end: Number = 1.0) -> optax.Schedule:
    """Stays at `start`, then jumps to `end`.

    shape(t) = start while t < steps, end from there on

    PyTorch's ConstantLR agrees; its defaults are start 1/3 and 5 updates.

    Raises:
      ValueError: steps < 1, a negative multiplier, start > end.
    """
    _checks.not_above("warmup_constant", "start", start, "end", end)
    _checks.at_least("warmup_constant", "start", start, 0)
    return piecewise([_checks.whole("warmup_constant", "steps", steps)], [start, end])


def warmup_cosine_decay(
    steps: Updates,
    warmup: Updates,
    start: Number | None = None,
    end: Number = 0.0,
    dialect: str | None = None,
) -> optax.Schedule:
    """A line up from `start` to 1, then half a cosine down to `end`.

    Args:
      steps: length of both together, in updates.
      warmup: length of the line.
      start, end: multipliers at t = 0 and t = steps; `start` is 0 if not given.
      dialect: "keras" (CosineDecay with warmup_steps) counts `steps` after the warm-up;
        "torch" (SequentialLR of LinearLR and CosineAnnealingLR) starts at 1/3 if not given and
        rises again after the end; "optax" (warmup_cosine_decay_schedule) is as ours.
    Raises:
      ValueError: warmup >= steps, a length < 1, a negative multiplier.
    """
    given = _checks.dialect("warmup_cosine_decay", dialect, ("torch", "keras", "optax"))
    steps = _checks.whole("warmup_cosine_decay", "steps", steps)
    warmup = _checks.whole("warmup_cosine_decay", "warmup", warmup)
    rest = steps
    if given != "keras":
        _checks.below("warmup_cosine_decay", "warmup", warmup, "steps", steps)
        rest = steps - warmup
    periodic = "torch" if given == "torch" else None
    shapes = [warmup_linear(warmup, start, dialect=given), cosine(1.0, end, rest, periodic)]
    return join(shapes, [warmup, rest])
