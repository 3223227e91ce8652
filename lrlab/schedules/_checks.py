"""What a shape's arguments may be: concrete ones are checked when a shape is built.

A traced argument (under `jit`, `vmap`, `grad`) has no value yet and passes through.
"""

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MAX = np.iinfo(np.int32).max  # the last update that the clock can count


def traced(*values: Any) -> bool:
    """Whether any of the values is known only when the program runs."""
    return any(isinstance(v, Tracer) for v in values)


def _finite(shape: str, what: str, value: Any) -> float:
    scalar = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not scalar and getattr(value, "ndim", None) != 0:
        raise ValueError(f"{shape} needs a number for {what}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{shape} needs a finite {what}, got {value}")
    return float(value)


def at_least(shape: str, what: str, value: Any, low: float) -> Any:
    """The value as float32, at least `low`."""
    if traced(value):
        return jnp.asarray(value, jnp.float32)
    if not _finite(shape, what, value) >= low:
        raise ValueError(f"{shape} needs {what} >= {low:g}, got {value}")
    return np.float32(value)


def above(shape: str, what: str, value: Any, low: float) -> Any:
    """The value as float32, above `low`."""
    if traced(value):
        return jnp.asarray(value, jnp.float32)
    if not _finite(shape, what, value) > low:
        raise ValueError(f"{shape} needs {what} > {low:g}, got {value}")
    return np.float32(value)


def fraction(shape: str, what: str, value: Any, one: bool = False) -> Any:
    """The value itself, strictly between 0 and 1; 1 is allowed where `one`."""
    if traced(value):
        return value
    number = _finite(shape, what, value)
    if not (0 < number < 1 or (one and number == 1)):
        raise ValueError(f"{shape} needs {what} in (0, 1{']' if one else ')'}, got {value}")
    return number


def whole(shape: str, what: str, value: Any, low: int = 1) -> Any:
    """A number of updates, at least `low`."""
    if traced(value):
        return value
    if isinstance(value, bool) or np.ndim(value) or np.asarray(value).dtype.kind not in "iu":
        raise ValueError(f"{shape} needs whole updates for {what}, got {value!r}")
    if value < low:
        cause = ": is its phase under one update?" if what == "steps" else ""
        raise ValueError(f"{shape} needs {what} >= {low}, got {value}{cause}")
    if value > MAX:
        raise ValueError(f"{shape} needs {what} <= {MAX}, got {value}: the clock is an int32")
    return int(value)


def below(shape: str, what: str, value: Any, other: str, limit: Any) -> None:
    """Raises unless value < limit."""
    if not traced(value, limit) and not value < limit:
        raise ValueError(f"{shape} needs {what} < {other}, got {what}={value!s}, {other}={limit!s}")


def not_above(shape: str, what: str, value: Any, other: str, limit: Any) -> None:
    """Raises unless value <= limit."""
    if not traced(value, limit) and not value <= limit:
        raise ValueError(
            f"{shape} needs {what} <= {other}, got {what}={value!s}, {other}={limit!s}"
        )


def several(shape: str, what: str, values: Any) -> Sequence[Any]:
    """The values themselves, if there may be several of them."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(f"{shape} needs a tuple for {what}, such as (1, 2), got {values!r}")
    return values


def each_at_least(shape: str, what: str, values: Any, low: float) -> list[Any]:
    """Values as float32, each at least `low`."""
    listed = enumerate(several(shape, what, values))
    return [at_least(shape, f"{what}[{i}]", v, low) for i, v in listed]


def increasing(shape: str, what: str, values: Any, low: int, high: Any) -> list[Any]:
    """Updates in strictly increasing order, from `low` to `high` (None: wherever they end)."""
    listed = enumerate(several(shape, what, values))
    found = [whole(shape, f"{what}[{i}]", v, low) for i, v in listed]
    for i, (a, b) in enumerate(itertools.pairwise(found)):
        if not traced(a, b) and not a < b:
            raise ValueError(
                f"{shape} needs increasing {what}, got {what}[{i}]={a} before {what}[{i + 1}]={b}"
            )
    if high is not None and found and not traced(found[-1], high) and found[-1] > high:
        raise ValueError(
            f"{shape} needs {what}[{len(found) - 1}] <= {high}, inside its phase, got {found[-1]}: "
            "epochs given where updates were meant, or the other way round?"
        )
    return found


def dialect(shape: str, given: str | None, allowed: Sequence[str]) -> str | None:
    """The dialect, one of those that the shape speaks."""
    if given is not None and given not in allowed:
        raise ValueError(
            f"{shape} has no dialect {given!r}; it has {', '.join(allowed)}, and None for ours"
        )
    return given
