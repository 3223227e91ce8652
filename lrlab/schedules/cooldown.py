"""Long and flat, then down: cooldowns, and the shapes that end with one."""

import jax
import jax.numpy as jnp
import optax

from lrlab.schedules import _checks, _clock
from lrlab.schedules.decay import Number, Updates, constant, cosine, linear, rex
from lrlab.schedules.phases import join
from lrlab.schedules.warmup import geometric, warmup_linear


def one_minus_sqrt(start: Number, end: Number, steps: Updates) -> optax.Schedule:
    """Falls fast, then slower, to `end`; flat afterwards.

    shape(t) = end + (start - end) * (1 - sqrt(t / steps))

    Raises:
      ValueError: steps < 1, a negative multiplier, end > start.
    Source:
      Hägele et al. 2024, arXiv:2405.18392, 3.
    """
    start = _checks.at_least("one_minus_sqrt", "start", start, 0)
    end = _checks.at_least("one_minus_sqrt", "end", end, 0)
    _checks.not_above("one_minus_sqrt", "end", end, "start", start)
    steps = _checks.whole("one_minus_sqrt", "steps", steps)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        done, left = _clock.fractions(_clock.updates(t), steps)
        root = jnp.sqrt(done)
        return start * (left / (1 + root)) + end * root  # 1 - sqrt(z) = (1 - z) / (1 + sqrt(z))

    return shape


_COOLDOWNS = {
    "cosine": cosine,
    "exponential": geometric,
    "linear": linear,
    "one_minus_sqrt": one_minus_sqrt,
    "rex": rex,
}


def warmup_stable_decay(
    steps: Updates,
    warmup: Updates,
    cooldown: Updates,
    start: Number = 0.0,
    end: Number = 0.0,
    shape: str = "one_minus_sqrt",
) -> optax.Schedule:
    """A line up to 1, flat, then a cooldown to `end` over the last `cooldown` updates.

    Args:
      steps: length of all three together, in updates.
      warmup, cooldown: lengths of the first and the last part, 0 for none.
      start, end: multipliers at t = 0 and t = steps.
      shape: of the cooldown: "one_minus_sqrt", "linear", "cosine", "rex" or "exponential".
    Raises:
      ValueError: warmup + cooldown > steps, a negative length, an unknown cooldown.
    Source:
      Hu et al. 2024, arXiv:2404.06395, 4; Hägele et al. 2024, arXiv:2405.18392.
    """
    if shape not in _COOLDOWNS:
        raise ValueError(
            f"warmup_stable_decay has no cooldown {shape!r}; it has {', '.join(_COOLDOWNS)}"
        )
    name = "warmup_stable_decay"
    steps = _checks.whole(name, "steps", steps)
    warmup = _checks.whole(name, "warmup", warmup, 0)
    cooldown = _checks.whole(name, "cooldown", cooldown, 0)
    stable = steps - warmup - cooldown
    if not _checks.traced(stable) and stable < 0:
        raise ValueError(
            f"{name} needs warmup + cooldown <= steps, got {warmup} + {cooldown} = "
            f"{warmup + cooldown} > {steps}"
        )
    parts = []
    if _checks.traced(warmup) or warmup > 0:
        parts.append((warmup_linear(warmup, start), warmup))
    if _checks.traced(stable) or stable > 0:
        parts.append((constant(1.0), stable))
    if _checks.traced(cooldown) or cooldown > 0:
        parts.append((_COOLDOWNS[shape](1.0, end, cooldown), cooldown))
    return join([p[0] for p in parts], [p[1] for p in parts])


def flat_then_cosine(
    steps: Updates, flat: Number = 0.75, end: Number | None = None, dialect: str | None = None
) -> optax.Schedule:
    """Flat at 1, then half a cosine to `end` at t = steps.

    Args:
      steps: length of both together, in updates.
      flat: the part of `steps` before the fall; the corner is the nearest update.
      end: the last multiplier, 0 if not given.
      dialect: "fastai" (fit_flat_cos) has its corner between updates, at flat * steps, and ends at
        1e-5 if not given.
    Raises:
      ValueError: steps < 1, flat outside (0, 1), a part under one update, end > 1.
    """
    given = _checks.dialect("flat_then_cosine", dialect, ("fastai",))
    steps = _checks.whole("flat_then_cosine", "steps", steps)
    flat = _checks.fraction("flat_then_cosine", "flat", flat)
    if end is None:
        end = 1e-5 if given == "fastai" else 0.0
    last = _checks.at_least("flat_then_cosine", "end", end, 0)
    _checks.not_above("flat_then_cosine", "end", end, "the peak", 1)
    if given == "fastai":

        def shape(t: jax.typing.ArrayLike) -> jax.Array:
            done, left = _clock.between(_clock.updates(t), flat * steps, steps)
            up, down = _clock.half_cosine(jnp.clip(done, 0, 1), jnp.clip(left, 0, 1))
            return down + last * up

        return shape
    corner = _clock.nearest(flat * steps)
    for part, length in ("flat", corner), ("cosine", steps - corner):
        if not _checks.traced(length) and length < 1:
            raise ValueError(
                f"flat_then_cosine: its {part} part is under one update; flat={flat}, steps={steps}"
            )
    return join([constant(1.0), cosine(1.0, end, steps - corner)], [corner, steps - corner])
