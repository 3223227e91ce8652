"""From phases in a config to schedules: lengths in updates, horizons checked.

A phase says its length in updates, epochs, examples or a fraction of the run; so may any keyword of
a shape (`every=dict(epochs=10)`). All become updates here, by `batching.to_updates`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from lrlab import batching, fields, resolve, schedules, values
from lrlab.resolve import ConfigError, Problems


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of a schedule, placed: updates [first, first + length)."""

    spec: Mapping[str, Any]
    first: int
    length: int


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
        shapes.append(problems.attempt(functools.partial(_shape, spec, where, length, clock)))
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
    for field, name, phases in (
        *((k, k, v) for k, v in sorted(chain.items())),
        *((f"optimizer.{k}", k, v) for k, v in sorted(rule.items())),
    ):
        found = problems.attempt(functools.partial(plan, phases, clock, f"{field}.schedule"))
        if found:
            out[name] = found.shape
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


def _shape(spec: Any, field: str, length: int, clock: Clock) -> Any:
    """A phase's shape, with durations turned into updates."""
    if not isinstance(spec, Mapping):
        return None

    def in_updates(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(in_updates, value))
        return clock.of(value) if values.is_duration(value) else value

    kwargs = {k: in_updates(v) for k, v in spec.items() if k not in values.UNITS}
    target = resolve.find("lrlab.schedules", spec.get("name"), f"{field}.name")
    given = {"steps": length} if "steps" in resolve.parameters(target) else {}
    return resolve.resolve("lrlab.schedules", kwargs, field, given)


def _horizon(field: str, end: int, clock: Clock, last: Phase) -> tuple[str, ...]:
    """A warning where the schedule's end is not the run's."""
    if end == clock.updates or not clock.is_known or last.spec.get("name") == "constant":
        return ()
    numbers = f"{clock.epochs(end)} of {clock.epochs(clock.updates)}"
    if end < clock.updates:
        done = f"{end / clock.updates:.0%} of the run"
        return (f"{field} ends after {numbers}, {done}, and holds its last value",)
    return (f"{field} is longer than the run, {numbers}: its end is never reached",)
