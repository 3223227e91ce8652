"""The clock of every shape: whole updates, integers until a fraction of a length is needed."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrlab.schedules import _checks

_HALF_PI = np.float32(np.pi / 2)
_NOTHING = 104.0  # exp(-104) is 0 in float32


def updates(t: jax.typing.ArrayLike) -> jax.Array:
    """Updates so far as int32, at least 0: a phase that has not begun is at its start."""
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(f"a schedule counts whole updates, got {t.dtype}")
    return jnp.clip(t, 0, min(_checks.MAX, jnp.iinfo(t.dtype).max)).astype(jnp.int32)


def fractions(t: jax.Array, steps: Any) -> tuple[jax.Array, jax.Array]:
    """Done and left of `steps`, each in [0, 1] and exact to float32's last bits near its zero.

    `1 - done` would not be: both are differences of integers before they are floats.
    """
    t = jnp.clip(t, 0, steps)
    length = jnp.asarray(steps, jnp.float32)
    return t.astype(jnp.float32) / length, (steps - t).astype(jnp.float32) / length


def between(t: jax.Array, begin: Any, end: Any) -> tuple[jax.Array, jax.Array]:
    """Done and left of a stretch whose corners may lie between two updates; not clipped."""
    (first, after), (last, beyond) = _split(begin), _split(end)
    length = jnp.asarray(end - begin, jnp.float32)
    done = ((t - first).astype(jnp.float32) - after) / length
    return done, ((last - t).astype(jnp.float32) + beyond) / length


def _split(x: Any) -> tuple[Any, Any]:
    """Whole updates and the rest."""
    if _checks.traced(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return x, np.float32(0)
        first = jnp.floor(x)
        return first.astype(jnp.int32), jnp.asarray(x - first, jnp.float32)
    return math.floor(x), np.float32(x - math.floor(x))


def half_cosine(done: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(1 - cos(pi * done)) / 2 and its complement, without the cancellation near zero."""
    first = done < left
    small = jnp.sin(_HALF_PI * jnp.where(first, done, left)) ** 2  # one sine: they compile slowly
    return jnp.where(first, small, 1 - small), jnp.where(first, 1 - small, small)


def power(rate: Any, n: jax.Array) -> jax.Array:
    """exp(-rate * n) for whole n >= 0.

    A concrete rate is multiplied up in float64 when the shape is built, one table for each byte
    of n, so that the result is right to float32's last bits at any n; with float32 alone the error
    grows with n. A traced rate leaves an error of about 1e-7 * rate * n.
    """
    if _checks.traced(rate):
        return jnp.exp(-rate * n.astype(jnp.float32))
    result: Any = np.float32(1)
    if rate == 0:
        return result
    for byte in range(4):
        if rate * 256.0**byte > _NOTHING:
            return jnp.where(n >> (8 * byte) > 0, 0, result)
        table = np.exp(-rate * (np.arange(256.0) * 256.0**byte)).astype(np.float32)
        digit = (n >> (8 * byte)) & 255
        result = result * jnp.asarray(table).at[digit].get(mode="promise_in_bounds")
    return result


def rate_of(factor: Any) -> Any:
    """The k where factor = exp(-k)."""
    if _checks.traced(factor):
        return -jnp.log1p(factor - 1)  # factor - 1 is exact above 1/2, log(factor) is not
    return -math.log(factor)


def nearest(x: Any) -> Any:
    """The whole update nearest to x."""
    return jnp.round(x).astype(jnp.int32) if _checks.traced(x) else math.floor(x + 0.5)


def through(
    t: jax.Array, corners: Sequence[Any], values: Sequence[Any], cosine: bool, jump: bool = False
) -> jax.Array:
    """Half cosines or lines through values at corners, which may lie between updates.

    It stays at the last value; `jump`: the last stretch goes on past its end.
    """
    result: Any = None
    for i in reversed(range(len(values) - 1)):
        done, left = between(t, corners[i], corners[i + 1])
        if not (jump and i == len(values) - 2):
            done, left = jnp.clip(done, 0, 1), jnp.clip(left, 0, 1)
        up, down = half_cosine(done, left) if cosine else (done, left)
        value = values[i] * down + values[i + 1] * up
        result = value if result is None else jnp.where(t <= corners[i + 1], value, result)
    return result
