"""Numbers that the lanes of one program can hold: axes of them, checked, and lanes with them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrlab import build, console, devices, fields, optimizers, points, resolve, values
from lrlab.build import Recipe
from lrlab.lanes import Lane, Lanes
from lrlab.points import Axis
from lrlab.resolve import ConfigError


def chain_name(key: str) -> str:
    """What the chain calls a key of the config."""
    return key.removeprefix("optimizer.")


def lane(recipe: Recipe, seed: int, numbers: Mapping[str, Any]) -> Lane:
    """A lane of the recipe with numbers of its own."""
    held = {chain_name(k): float(v) for k, v in numbers.items() if k != "lr"}
    return Lane(seed, float(numbers.get("lr", recipe.config["lr"])), held)


def section(
    full: Mapping[str, Any], name: str, defaults: Mapping[str, Any], example: str
) -> tuple[dict[str, Any], list[str]]:
    """A section of the config, filled, and problems of the names in it.

    Raises:
      ConfigError: it is no section.
    """
    given = full.get(name)
    if not isinstance(given, Mapping):
        raise ConfigError([f"{name}={given!r} must be a section, such as {name}=dict({example})"])
    unknown = [k for k in given if k not in defaults]
    problems = [f"unknown field {name}.{k}; {values.near(k, defaults)}" for k in unknown]
    return {**defaults, **given}, problems


def axes(
    field: str, asked: Mapping[str, Any], full: Mapping[str, Any], who: str, problems: list[str]
) -> points.Sweep | None:
    """The axes of a section, and points of them; None where they have problems.

    Args:
      field: what the section calls them. asked: as `points.read` takes it. full: the config.
      who: holds their numbers, such as "members"; for messages.
    """
    before = len(problems)
    try:
        found = points.read(asked)
    except ConfigError as e:
        problems += [p.replace("sweep.axes", field) for p in e.problems]
        return None
    known = _known(full)
    for i, axis in enumerate(found.axes):
        where, section = f"{field}[{i}]", full.get(axis.key.partition(".")[0])
        inside = section.get(chain_name(axis.key)) if isinstance(section, Mapping) else None
        if known and axis.key not in known:
            problems.append(
                f"{where}.key={axis.key!r} is no number that {who} of one program can hold; "
                f"{values.near(axis.key, known)}"
            )
        elif fields.is_schedule(section) or fields.is_schedule(inside):
            problems.append(f"{where}: {axis.key} has a schedule of its own: keep one")
        if axis.whole:
            problems.append(f"{where}.whole: {who} hold real numbers")
        for j, value in enumerate(axis.values):
            problems += values.number(f"{where}.values[{j}]", value, -math.inf)
    twice = [chain_name(axis.key) for axis in found.axes]
    for name in sorted({n for n in twice if twice.count(n) > 1}):
        problems.append(f"{field} has {name} beside optimizer.{name}: keep one")
    return found if len(problems) == before else None


def _known(full: Mapping[str, Any]) -> list[str]:
    """The keys that a lane can hold; none where the rule itself is wrong."""
    try:
        spec = full["optimizer"]
        rule = resolve.find("lrlab.optimizers", spec.get("name"))
        found = optimizers.schedulable(spec)
    except (ConfigError, AttributeError, TypeError):
        return []  # the check of the whole config says what is wrong
    own = resolve.parameters(rule)
    return [
        "lr",
        "label_smoothing",
        *(f"optimizer.{name}" if name in own else name for name in found),
    ]


def recipe(
    field: str, base: Mapping[str, Any], found: Sequence[Axis], problems: list[str]
) -> Recipe | None:
    """The recipe, sound at both ends of all axes at once; None where it is not, or has no axes."""
    made: Recipe | None = None
    for choose in (min, max) if found else ():
        ends = {axis.key: choose(axis.values or (axis.low, axis.high)) for axis in found}
        where = ", ".join(f"{k}={points.label(v)}" for k, v in ends.items())
        try:
            made = build.check(points.assign(base, ends), parts=1)
        except ConfigError as e:
            bare = _problems_of(base)
            problems += [p if p in bare else f"{field}, at {where}: {p}" for p in e.problems]
    if not found:
        problems += _problems_of(base)
    return made


def _problems_of(base: Mapping[str, Any]) -> tuple[str, ...]:
    """Problems of the recipe with no axes."""
    try:
        build.check(base, parts=1)
    except ConfigError as e:
        return e.problems
    return ()


def refused(recipe: Recipe, whole: str, who: str, lost: str) -> list[str]:
    """What lanes cannot do that train to one end.

    Args:
      whole, who: such as "a population", "members". lost: what becomes of a lane that diverges.
    """
    found = []
    if recipe.regime.reads:
        found.append(
            f"batch.name={recipe.config['batch']['name']!r} looks at each run by itself; all "
            f"{who} of {whole} take the same batches: fixed, or a plan of epochs"
        )
    if recipe.config["patience"] is not None:
        found.append(f"patience ends a single run; {who} of {whole} train to the end")
    if recipe.config["nonfinite"]["policy"] == "rollback":
        found.append(f"nonfinite.policy='rollback' is for a single run: {lost}")
    if getattr(recipe.model, "axis_name", None):
        found.append(f"model.axis_name must be left out: each of the {who} is whole on one device")
    if recipe.source.sizes[1] < 1:
        found.append(
            f"{recipe.source.name} has no validation examples, which choose the {who}: set "
            "data.validation"
        )
    return found


def is_logarithmic(axis: Axis) -> bool:
    """Whether a picture of its numbers needs a logarithmic scale."""
    if not axis.values:
        return axis.scale == "log"
    return 0 < 20 * min(axis.values) < max(axis.values)


def check_memory(lanes: Lanes, field: str, what: str) -> None:
    """Raises ConfigError where a device cannot hold its lanes; `what`: there should be fewer of."""
    needed, free = sum(lanes.memory().values()), devices.bytes_free()
    if needed > free:
        raise ConfigError(
            [
                f"{field}={len(lanes.lanes)} takes {needed / 1e6:,.0f} MB of a device, "
                f"which has {free / 1e6:,.0f} MB for it: fewer {what}, or more devices"
            ]
        )


def about(recipe: Recipe, found: Sequence[Axis]) -> list[tuple[str, str]]:
    """What a banner says of the data, the model, the devices and the axes."""
    train, validation, test = recipe.source.sizes
    return [
        (
            "data",
            f"{recipe.source.name}: {train:,} train, {validation:,} validation, {test:,} test",
        ),
        ("model", f"{recipe.config['model']['name']}, {recipe.parameters:,} parameters"),
        ("devices", f"{devices.count()} x {devices.describe()['device_kind']}"),
        *((axis.key, _span(axis)) for axis in found),
    ]


def warnings(recipe: Recipe) -> list[tuple[str, str]]:
    """What a banner warns of; the recipe's own rate is none of those that train."""
    return [("warning", w) for w in recipe.warnings if not w.startswith("lr=")]


def _span(axis: Axis) -> str:
    if axis.values:
        return ", ".join(map(points.label, axis.values))
    return f"{axis.low:g} … {axis.high:g}, {axis.scale}"


def say_warnings(found: Sequence[str]) -> None:
    """Says what a restored checkpoint warned of."""
    for warning in found:
        console.say(f"warning: {warning}")
