"""What the section `pbt` of a config asks for, checked before any data is read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lrlab import batching, fields, points, population, values
from lrlab.build import Recipe
from lrlab.jobs import _held
from lrlab.lanes import Lane
from lrlab.points import Axis
from lrlab.resolve import ConfigError

DEFAULTS: dict[str, Any] = {
    "population": 32,
    "generations": 20,
    "interval": None,
    "search": None,
    "exploit": "truncation",
    "fraction": 0.2,
    "factors": (1.2, 0.8),
    "resample": 0.25,
    "score": "accuracy",
    "seeds": None,
    "compare": 0,
}
ARMS = ("population", "fixed", "replay", "best fixed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A population to be trained.

    config: as it is recorded. base: of a single run. spec: the section, filled.
    recipe: with one member's numbers. ends: updates done at the end of each generation.
    first: numbers of each member to begin with.
    """

    config: dict[str, Any]
    base: dict[str, Any]
    spec: dict[str, Any]
    recipe: Recipe
    axes: tuple[Axis, ...]
    rules: population.Rules
    ends: tuple[int, ...]
    first: tuple[dict[str, Any], ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """What is trained, one after another."""
        return ARMS if self.spec["compare"] else ARMS[:1]


@dataclasses.dataclass(frozen=True)
class Arm:
    """Lanes that train together; those of the population copy each other."""

    name: str
    recipe: Recipe
    seeds: tuple[int, ...]
    values: tuple[dict[str, Any], ...]

    def lanes(self, numbers: Sequence[Mapping[str, Any]]) -> list[Lane]:
        """The members with these numbers."""
        return [
            _held.lane(self.recipe, seed, own)
            for seed, own in zip(self.seeds, numbers, strict=True)
        ]


def check(config: Mapping[str, Any]) -> Plan:
    """What a config asks for; reads no data and compiles nothing.

    Raises:
      ConfigError: every problem of the section and of the recipe.
    """
    full = fields.fill(config)
    example = "search=(dict(key='lr', low=1e-3, high=1.0),)"
    spec, problems = _held.section(full, "pbt", DEFAULTS, example)
    problems += _spec_problems(spec)
    search = _search(spec, full, problems)
    axes = search.axes if search else ()
    base = {k: v for k, v in full.items() if k not in ("pbt", "job")}
    recipe = _held.recipe("pbt.search", base, axes, problems)
    if recipe:
        lost = "a member that diverges is replaced"
        problems += _held.refused(recipe, "a population", "members", lost)
    lasts: tuple[int, ...] = ()
    if recipe and not values.whole("generations", spec["generations"], 1):
        lasts = _ends(spec, recipe, problems)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    assert search
    assert recipe
    rules = population.Rules(
        spec["exploit"],
        float(spec["fraction"]),
        tuple(map(float, spec["factors"])),
        float(spec["resample"]),
    )
    return Plan(
        config={**full, "pbt": spec},
        base=base,
        spec=spec,
        recipe=recipe,
        axes=axes,
        rules=rules,
        ends=lasts,
        first=tuple(search.expand()),
    )


def _spec_problems(spec: Mapping[str, Any]) -> list[str]:
    """Problems of the section's plain fields."""
    problems = values.whole("pbt.population", spec["population"], 2)
    problems += values.whole("pbt.generations", spec["generations"], 1)
    problems += values.choice("pbt.exploit", spec["exploit"], population.EXPLOITS)
    problems += values.choice("pbt.score", spec["score"], ("accuracy", "loss"))
    problems += values.number("pbt.fraction", spec["fraction"], 0, 0.5, open_low=True)
    problems += values.number("pbt.resample", spec["resample"], 0, 1)
    problems += values.whole("pbt.compare", spec["compare"], 0)
    factors = spec["factors"]
    if not isinstance(factors, tuple) or not factors:
        problems.append(f"pbt.factors={factors!r} must be a tuple of numbers, such as (1.2, 0.8)")
    else:
        for i, factor in enumerate(factors):
            problems += values.number(f"pbt.factors[{i}]", factor, 0, open_low=True)
    if spec["seeds"] is not None:
        problems += values.whole("pbt.seeds", spec["seeds"], 1)
    return problems


def _search(
    spec: Mapping[str, Any], full: Mapping[str, Any], problems: list[str]
) -> points.Sweep | None:
    """The axes, checked, with a sample of them to begin with; None where they have problems."""
    size, seed = spec["population"], full["seed"]
    asked = {
        "axes": spec["search"],
        "method": "random",
        "points": 2 if values.whole("", size, 2) else int(size),
        "seed": 0 if values.whole("", seed, 0) else int(seed),
        "limit": 2**31,
    }
    return _held.axes("pbt.search", asked, full, "members", problems)


def _ends(spec: Mapping[str, Any], recipe: Recipe, problems: list[str]) -> tuple[int, ...]:
    """Updates done at the end of each generation."""
    count, asked, epochs = int(spec["generations"]), spec["interval"], recipe.epochs()
    total = sum(e.updates for e in epochs)
    if asked is None:
        if total < count:
            problems.append(f"pbt.generations={count} are more than the run's {total} updates")
        return tuple(round((g + 1) * total / count) for g in range(count))
    whole = asked.get("epochs") if values.is_duration(asked) else None
    if isinstance(whole, int) and whole > 0 and whole * count <= len(epochs):
        lasts = [epochs[(g + 1) * whole - 1] for g in range(count)]
        return tuple(e.first + e.updates for e in lasts)
    try:
        one = batching.to_updates(asked, total, recipe.per_epoch, recipe.regime.sizes[0])
    except ValueError as e:
        problems.append(f"pbt.interval: {e}")
        return ()
    if one < 1:
        problems.append(f"pbt.interval={asked!r} is under one update")
    elif one * count > total:
        needed = -(-one * count // recipe.per_epoch)
        problems.append(
            f"pbt has {count} generations of {one:,} updates, {one * count:,}, and the run has "
            f"{total:,}: set epochs={needed}, or leave pbt.interval out"
        )
    return tuple((g + 1) * one for g in range(count))
