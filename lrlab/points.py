"""What a sweep asks for: axes of a config, and the points that they span.

An axis names a place in the config and what it takes there: `values`, or a range `low` to `high` on
a linear or logarithmic scale. Points are their grid, or a random, Sobol or Halton sample of it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lrlab import fields, values
from lrlab.resolve import ConfigError

METHODS = ("grid", "random", "sobol", "halton")
SCALES = ("log", "linear")
RULES = ("dead", "stuck")
DEFAULTS: dict[str, Any] = {
    "method": "grid",
    "points": None,
    "seed": 0,
    "updates": None,
    "look": 100,
    "target": None,
    "stop": (),
    "limit": 10_000,
}
TARGET: dict[str, Any] = {"accuracy": None, "examples": 2000, "every": 1}
_AXIS = ("key", "values", "low", "high", "points", "scale", "whole")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One place of the config: `values`, or else a range of which a grid takes `points`."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    points: int | None = None
    scale: str = "log"
    whole: bool = False

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1] of the way: 0 is the first, 1 the last."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.scale == "log":
            found = math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        else:
            found = self.low * (1 - share) + self.high * share
        found = float(f"{found:.12g}")  # 0.01, not 0.010000000000000002
        found = min(max(found, self.low), self.high)
        return round(found) if self.whole else found

    def grid(self) -> tuple[Any, ...]:
        """Every value of a grid, each once."""
        if self.values:
            return self.values
        count = self.points or 0
        if count == 1:
            return (self.at(0.0),)
        return tuple(dict.fromkeys(self.at(i / (count - 1)) for i in range(count)))


@dataclasses.dataclass(frozen=True)
class Target:
    """Training accuracy at which a trial is done.

    examples: it is the mean over the last so many; None is all since the start, a mean that only
      luck passes early (Mack 2018). every: updates between two looks at it.
    """

    accuracy: float
    examples: int | None = 2000
    every: int = 1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The section `sweep` of a config, checked.

    updates: of a trial at most; None is the whole run. look: updates between two decisions.
    stop: rules that end a hopeless trial, of RULES; they are approximations.
    """

    axes: tuple[Axis, ...]
    method: str
    points: int | None
    seed: int
    updates: int | None
    look: int
    target: Target | None
    stop: tuple[str, ...]
    limit: int

    def expand(self) -> list[dict[str, Any]]:
        """Every point as {key: value}, in order; the last axis of a grid changes fastest."""
        keys = [axis.key for axis in self.axes]
        if self.method == "grid":
            grids = [axis.grid() for axis in self.axes]
            return [dict(zip(keys, point, strict=True)) for point in itertools.product(*grids)]
        shares = _sample(self.method, len(keys), self.points or 0, self.seed)
        return [
            {axis.key: axis.at(float(s)) for axis, s in zip(self.axes, row, strict=True)}
            for row in shares
        ]


def _sample(method: str, dimensions: int, count: int, seed: int) -> np.ndarray:
    """Float64 [count, dimensions] in [0, 1); the first n of more points are the n points."""
    if method == "random":
        return np.random.default_rng(seed).random((count, dimensions))
    from scipy.stats import qmc

    engine = {"sobol": qmc.Sobol, "halton": qmc.Halton}[method](dimensions, rng=seed)
    if method == "sobol":  # balanced only in powers of two; take the first of the next one
        return engine.random_base2(max(0, (count - 1).bit_length()))[:count]
    return engine.random(count)


def read(spec: Any) -> Sweep:
    """Checks the section `sweep` of a config.

    Raises:
      ConfigError: every problem of it.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError([f"sweep={spec!r} must be a section, such as sweep=dict(axes=(...))"])
    problems = [
        f"unknown field sweep.{key}; {values.near(key, ('axes', *DEFAULTS))}"
        for key in spec
        if key not in DEFAULTS and key != "axes"
    ]
    full = {**DEFAULTS, **spec}
    given = full.get("axes")
    axes: list[Axis] = []
    if not isinstance(given, tuple) or not given:
        problems.append(
            f"sweep.axes={given!r} must be a tuple of axes, such as "
            "(dict(key='lr', low=1e-4, high=1.0, points=13),)"
        )
    else:
        for i, axis in enumerate(given):
            found = _axis(f"sweep.axes[{i}]", axis, full["method"])
            problems += found if isinstance(found, list) else []
            axes += [found] if isinstance(found, Axis) else []
        for key in sorted({a.key for a in axes if [b.key for b in axes].count(a.key) > 1}):
            problems.append(f"sweep.axes name {key!r} twice: give all its values in one axis")
    problems += values.choice("sweep.method", full["method"], METHODS)
    problems += values.whole("sweep.limit", full["limit"], 1)
    problems += values.whole("sweep.seed", full["seed"], 0)
    problems += values.whole("sweep.look", full["look"], 1)
    for key in ("updates", "points"):
        if full[key] is not None:
            problems += values.whole(f"sweep.{key}", full[key], 1)
    if full["method"] == "grid" and full["points"] is not None:
        problems.append(
            f"sweep.points={full['points']} is for a sample; the points of a grid are each axis's"
        )
    elif full["method"] in METHODS[1:] and full["points"] is None:
        problems.append(f"sweep.points is missing: how many points of {full['method']}?")
    stop = full["stop"] if isinstance(full["stop"], tuple) else (full["stop"],)
    for rule in stop:
        problems += values.choice("sweep.stop", rule, RULES)
    target = _target(full["target"], problems)
    if problems:
        raise ConfigError(problems)
    sweep = Sweep(
        tuple(axes),
        full["method"],
        full["points"],
        int(full["seed"]),
        full["updates"],
        int(full["look"]),
        target,
        stop,
        int(full["limit"]),
    )
    count = full["points"] or math.prod(len(a.grid()) for a in axes)
    if count > sweep.limit:
        raise ConfigError(
            [
                f"sweep has {count:,} points, more than sweep.limit={sweep.limit:,}; "
                "raise the limit if they are meant"
            ]
        )
    return sweep


def _axis(field: str, spec: Any, method: str) -> Axis | list[str]:
    if not isinstance(spec, Mapping):
        return [f"{field}={spec!r} must be an axis, such as dict(key='lr', values=(0.1, 0.2))"]
    problems = [
        f"unknown field {field}.{key}; {values.near(key, _AXIS)}"
        for key in spec
        if key not in _AXIS
    ]
    key = spec.get("key")
    if not isinstance(key, str) or not key:
        return [*problems, f"{field}.key={key!r} must be a place in the config, such as 'lr'"]
    known = [*fields.DEFAULTS, *fields.REQUIRED]
    if key.partition(".")[0] not in known:
        problems.append(f"{field}.key={key!r} is no field of a config; {values.near(key, known)}")
    ranged = {"low", "high", "points", "scale", "whole"} & spec.keys()
    if "values" in spec:
        if ranged:
            problems.append(f"{field} has values and {sorted(ranged)[0]} too: keep one")
        return problems or _of_values(field, key, spec["values"])
    for end in ("low", "high"):
        problems += values.number(f"{field}.{end}", spec.get(end), -math.inf)
    problems += values.choice(f"{field}.scale", spec.get("scale", "log"), SCALES)
    if method == "grid":
        problems += values.whole(f"{field}.points", spec.get("points"), 1)
    elif "points" in spec:
        problems.append(f"{field}.points: a sample has sweep.points, not points of its axes")
    if problems:
        return problems
    low, high = float(spec["low"]), float(spec["high"])
    if low >= high:
        return [f"{field}: low={low:g} must be below high={high:g}"]
    if spec.get("scale", "log") == "log" and low <= 0:
        return [f"{field}: low={low:g} has no logarithm; a range with 0 needs scale='linear'"]
    points = spec.get("points")
    whole = bool(spec.get("whole", False))
    return Axis(key, (), low, high, points and int(points), spec.get("scale", "log"), whole)


def _of_values(field: str, key: str, given: Any) -> Axis | list[str]:
    if not isinstance(given, tuple) or not given:
        return [f"{field}.values={given!r} must be a tuple of at least one value"]
    kinds = {"a number" if _is_number(v) else type(v).__name__ for v in given}
    if len(kinds) > 1 and None not in given:
        return [f"{field}.values mix {' and '.join(sorted(kinds))}: one axis has one kind"]
    texts = [repr(v) for v in given]
    twice = sorted({t for t in texts if texts.count(t) > 1})
    if twice:
        return [f"{field}.values hold {', '.join(twice)} twice: a trial runs once (vary seed)"]
    return Axis(key, given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _target(spec: Any, problems: list[str]) -> Target | None:
    if spec is None:
        return None
    if not isinstance(spec, Mapping):
        problems.append(f"sweep.target={spec!r} must be a section, such as dict(accuracy=0.97)")
        return None
    full = {**TARGET, **spec}
    before = len(problems)
    for key in spec:
        if key not in TARGET:
            problems.append(f"unknown field sweep.target.{key}; {values.near(key, TARGET)}")
    problems += values.number("sweep.target.accuracy", full["accuracy"], 0, 1, open_low=True)
    problems += values.whole("sweep.target.every", full["every"], 1)
    if full["examples"] is not None:
        problems += values.whole("sweep.target.examples", full["examples"], 1)
    if len(problems) > before:
        return None
    examples = None if full["examples"] is None else int(full["examples"])
    return Target(float(full["accuracy"]), examples, int(full["every"]))


def assign(config: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a point's values in their places; what it came from stays as it was."""
    changed = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for key, value in point.items():
        section, dot, inner = key.partition(".")
        if not dot:
            changed[key] = value
            continue
        if not isinstance(changed.get(section), dict):
            raise ConfigError(
                [f"sweep: {key!r} is a place in {section}, which is {changed.get(section)!r}"]
            )
        changed[section][inner] = value
    return changed


def label(value: Any) -> str:
    """A value as a table or a legend shows it: a section by its name and what else it sets."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k}={label(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}{f' ({rest})' * bool(rest)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " + ".join(map(label, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def names(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys that differ between points, in their order."""
    points = list(points)
    keys = list(points[0]) if points else []
    return [k for k in keys if len({repr(p[k]) for p in points}) > 1]
