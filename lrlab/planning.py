"""From phases in a config to schedules: lengths in updates, horizons checked.

A phase says its length in updates, epochs, examples or a fraction of the run; so may any keyword of
a shape (`every=dict(epochs=10)`). All become updates here, by `batching.to_updates`.

Our own shapes check their numbers when they are built. What others wrote, and values beside the
rate, are looked at over the whole run: compiling that takes a tenth of a second.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import optax

from lrlab import batching, fields, optimizers, resolve, schedules, values
from lrlab.resolve import ConfigError, Problems

MOST = 1_000_000  # updates that a schedule is looked at; of a longer run, as many evenly spread


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of a schedule, placed: updates [first, first + length)."""

    spec: Mapping[str, Any]
    first: int
    length: int

    @property
    def span(self) -> tuple[str, int, int]:
        """(name, first update, updates): what `console.curve` and `plots.schedule` mark."""
        return str(self.spec.get("name")), self.first, self.length


@dataclasses.dataclass(frozen=True)
class Plan:
    """A schedule, its phases, and what is odd about it."""

    shape: optax.Schedule
    phases: tuple[Phase, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Clock:
    """How long a run is: updates, updates an epoch, examples an update; None is not known yet.

    Without a run to measure by, phases are still checked, against one of a plausible length.
    """

    total: int | None
    per_epoch: int | None
    size: int | None

    @property
    def is_known(self) -> bool:
        """Whether lengths are those of the run."""
        return None not in (self.total, self.per_epoch, self.size)

    @property
    def updates(self) -> int:
        """Of the run."""
        return self.total or 10_000

    def of(self, duration: Mapping[str, float] | float) -> int:
        """A duration in updates."""
        return batching.to_updates(duration, self.updates, self.per_epoch or 100, self.size or 100)

    def epochs(self, updates: int) -> str:
        """Updates as text, in both units."""
        return f"{updates} updates ({updates / (self.per_epoch or 100):g} epochs)"


def sample(shape: optax.Schedule, updates: int) -> tuple[np.ndarray, np.ndarray]:
    """(updates, values) of a schedule from 0 on: every update, or MOST of a long run."""
    at = np.linspace(0, updates - 1, min(updates, MOST)).round().astype(np.int32)
    return at, np.asarray(jax.jit(jax.vmap(shape))(at))


def plan(specs: Any, clock: Clock, field: str = "schedule") -> Plan:
    """The joined shape of a tuple of phases.

    Raises:
      ConfigError: every problem of every phase.
    """
    if isinstance(specs, Mapping | str) or not isinstance(specs, Sequence) or not specs:
        raise ConfigError(
            [f"{field}={specs!r} must be a tuple of phases, such as (dict(name='cosine', ...),)"]
        )
    problems, shapes, phases, first = Problems(), [], [], 0
    for i, spec in enumerate(specs):
        where, is_last = f"{field}[{i}]", i == len(specs) - 1
        rest = clock.updates - first if is_last else None
        length = problems.attempt(functools.partial(_length, spec, where, rest, clock))
        if length is not None and length < 1 and first < clock.updates and clock.is_known:
            why = f"is it under one update? (an epoch is {clock.per_epoch})"
            problems.found.append(f"{where} is {length} updates long: {why}")
        length = max(length or 1, 1)
        lasts = max(length, clock.updates - first) if is_last else length
        shapes.append(
            problems.attempt(functools.partial(_shape, spec, where, length, lasts, clock))
        )
        phases.append(Phase(spec if isinstance(spec, Mapping) else {}, first, length))
        first += length
    last = phases[-1]
    if clock.is_known and len(phases) > 1 and last.first >= clock.updates:
        problems.found.append(
            f"{field}: the phases before the last one take {clock.epochs(last.first)}, and the run "
            f"has {clock.epochs(clock.updates)}: the last phase would never begin; shorten them or "
            "raise epochs"
        )
    if problems.found:
        raise ConfigError(problems.found)
    shape = schedules.join(shapes, [p.length for p in phases])
    return Plan(shape, tuple(phases), _horizon(field, first, clock, last))


def scheduled(full: Mapping[str, Any], clock: Clock) -> dict[str, optax.Schedule]:
    """Schedules of values beside the rate, by name; their phases hold values, not multiples.

    Raises:
      ConfigError: every problem of every phase, or one name in two places.
    """
    chain = {k: full[k]["schedule"] for k in fields.SCHEDULABLE if fields.is_schedule(full[k])}
    spec = full["optimizer"].items()
    rule = {k: v["schedule"] for k, v in spec if fields.is_schedule(v)}
    problems, out = Problems(), {}
    for name in sorted(chain.keys() & full["optimizer"].keys()):
        problems.found.append(f"{name} is scheduled, and set in optimizer.{name} too: keep one")
    named = [
        *((k, k, v) for k, v in sorted(chain.items())),
        *((f"optimizer.{k}", k, v) for k, v in sorted(rule.items())),
    ]
    for field, name, phases in named:
        found = problems.attempt(functools.partial(plan, phases, clock, f"{field}.schedule"))
        if found:
            out[name] = found.shape
    if not problems.found and clock.is_known:
        for field, name, _ in named:
            problems.found += _range(full, field, name, out, clock)
    if problems.found:
        raise ConfigError(problems.found)
    still = "label_smoothing" not in out and not fields.is_bad(full, "label_smoothing")
    if still and full["label_smoothing"]:
        out["label_smoothing"] = schedules.constant(float(full["label_smoothing"]))
    return out


def _length(spec: Any, field: str, rest: int | None, clock: Clock) -> int:
    """A phase's length in updates; the last phase may leave it out and takes the rest."""
    if not isinstance(spec, Mapping):
        raise ConfigError([f"{field}={spec!r} must be a phase, such as dict(name='cosine', ...)"])
    units = {k: v for k, v in spec.items() if k in values.UNITS}
    if len(units) > 1:
        listed = " and ".join(f"{k}={v!r}" for k, v in units.items())
        raise ConfigError([f"{field} gives its length twice, {listed}: keep one"])
    if not units and rest is None:
        raise ConfigError([f"{field} has no length; give it one of {', '.join(values.UNITS)}"])
    try:
        return clock.of(units) if units else rest or 0
    except ValueError as e:
        raise ConfigError([f"{field}: {e}"]) from e


def _range(
    full: Mapping[str, Any],
    field: str,
    name: str,
    scheduled: Mapping[str, optax.Schedule],
    clock: Clock,
) -> list[str]:
    """Problems of a scheduled value at its least and its largest: those of a fixed one."""
    at, found = sample(scheduled[name], clock.updates)
    for i in int(found.argmin()), int(found.argmax()):
        value = float(found[i])
        if name == field:
            problems = [
                p for p in fields.problems({**full, name: value}) if p.startswith(f"{name}=")
            ]
        else:
            problems = _refused(full["optimizer"], name, value, scheduled)
        if problems:
            where = f"{field}.schedule reaches {value:g} at update {at[i]:,}"
            return [f"{where}: {p}" for p in problems]
    return []


def _refused(
    rule: Mapping[str, Any], name: str, value: float, scheduled: Mapping[str, optax.Schedule]
) -> list[str]:
    """What the update rule says of this value; nothing where it refuses the first one already."""
    first = {
        k: float(np.asarray(scheduled[k](0))) for k, v in rule.items() if fields.is_schedule(v)
    }
    problems = Problems()
    problems.attempt(lambda: optimizers.make({**rule, **first})(1.0))
    if problems.found:  # it is refused as a number would be, by whoever makes the optimizer
        return []
    problems.attempt(lambda: optimizers.make({**rule, **first, name: value})(1.0))
    return problems.found


def _shape(spec: Any, field: str, length: int, lasts: int, clock: Clock) -> Any:
    """A phase's shape, with durations turned into updates; `lasts`: updates that it is used for."""
    if not isinstance(spec, Mapping):
        return None

    def in_updates(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(in_updates, value))
        return clock.of(value) if values.is_duration(value) else value

    kwargs = {}
    for key in [k for k in spec if k not in values.UNITS]:
        try:
            kwargs[key] = in_updates(spec[key])
        except ValueError as e:
            raise ConfigError([f"{field}.{key}: {e}"]) from e
    name = spec.get("name")
    target = resolve.find("lrlab.schedules", name, f"{field}.name")
    given = {"steps": length} if "steps" in resolve.parameters(target) else {}
    shape = resolve.resolve("lrlab.schedules", kwargs, field, given)
    if ":" in str(name) and clock.is_known:
        _check_foreign(shape, f"{field} ({name})", lasts)
    return shape


def _check_foreign(shape: Any, what: str, updates: int) -> None:
    """Raises ConfigError unless a schedule that others wrote gives a number >= 0 everywhere."""
    if not callable(shape):
        kind = type(shape).__name__
        raise ConfigError([f"{what} gives {kind}, not a schedule: a function of the update"])
    try:
        at, found = sample(cast(optax.Schedule, shape), updates)
    except Exception as e:  # whatever their code raises, the user named it here
        raise ConfigError(
            [
                f"{what} cannot be compiled: {resolve.cause(e)}. It must be a function of the "
                "update in JAX: jnp.where in place of if"
            ]
        ) from e
    if found.shape != at.shape or found.dtype.kind not in "fiu":
        raise ConfigError(
            [
                f"{what} gives {found.dtype} of shape {list(found.shape[1:])} at an update; it "
                "must give one number"
            ]
        )
    finite = np.isfinite(found)
    rounding = 1e-6 * np.abs(found[finite]).max(initial=0.0)  # a zero may come out as -1e-9
    bad = ~(finite & (found >= -rounding))
    if bad.any():
        i = int(bad.argmax())
        raise ConfigError(
            [
                f"{what} is {found[i]:g} at update {at[i]:,} of its {updates:,}; it must be "
                "finite and >= 0"
            ]
        )


def _horizon(field: str, end: int, clock: Clock, last: Phase) -> tuple[str, ...]:
    """A warning where the schedule's end is not the run's.

    A shape that takes no `steps` has no end: it goes on as it began, however long its phase is.
    """
    target = resolve.find("lrlab.schedules", last.spec["name"])
    if end == clock.updates or not clock.is_known or "steps" not in resolve.parameters(target):
        return ()
    numbers = f"{clock.epochs(end)} of {clock.epochs(clock.updates)}"
    if end < clock.updates:
        done = f"{end / clock.updates:.0%} of the run"
        return (f"{field} ends after {numbers}, {done}, and holds its last value",)
    return (f"{field} is longer than the run, {numbers}: its end is never reached",)
