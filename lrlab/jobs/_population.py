"""What the section `pbt` of a config asks for, checked before any data is read."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrlab import batching, build, fields, optimizers, points, population, resolve, values
from lrlab.build import Recipe
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
            Lane(
                seed,
                float(own.get("lr", self.recipe.config["lr"])),
                {chain_name(k): float(v) for k, v in own.items() if k != "lr"},
            )
            for seed, own in zip(self.seeds, numbers, strict=True)
        ]


def chain_name(key: str) -> str:
    """What the chain calls a key of the config."""
    return key.removeprefix("optimizer.")


def check(config: Mapping[str, Any]) -> Plan:
    """What a config asks for; reads no data and compiles nothing.

    Raises:
      ConfigError: every problem of the section and of the recipe.
    """
    full = fields.fill(config)
    given = full.get("pbt")
    if not isinstance(given, Mapping):
        raise ConfigError(
            [
                f"pbt={given!r} must be a section, such as "
                "pbt=dict(search=(dict(key='lr', low=1e-3, high=1.0),))"
            ]
        )
    spec = {**DEFAULTS, **given}
    problems = [
        f"unknown field pbt.{k}; {values.near(k, DEFAULTS)}" for k in given if k not in DEFAULTS
    ]
    problems += _spec_problems(spec)
    search = _search(spec, full, problems)
    axes = search.axes if search else ()
    base = {k: v for k, v in full.items() if k not in ("pbt", "job")}
    recipe: Recipe | None = None
    for choose in (min, max) if search else ():
        ends = {axis.key: choose(axis.values or (axis.low, axis.high)) for axis in axes}
        where = ", ".join(f"{k}={points.label(v)}" for k, v in ends.items())
        try:
            recipe = build.check(points.assign(base, ends), parts=1)
        except ConfigError as e:
            bare = _problems_of(base)
            problems += [p if p in bare else f"pbt.search, at {where}: {p}" for p in e.problems]
    if not search:
        problems += _problems_of(base)
    if recipe:
        problems += _refused(recipe)
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


def _problems_of(base: Mapping[str, Any]) -> tuple[str, ...]:
    """Problems of the recipe with no search."""
    try:
        build.check(base, parts=1)
    except ConfigError as e:
        return e.problems
    return ()


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
    before = len(problems)
    size, seed = spec["population"], full["seed"]
    asked = {
        "axes": spec["search"],
        "method": "random",
        "points": 2 if values.whole("", size, 2) else int(size),
        "seed": 0 if values.whole("", seed, 0) else int(seed),
        "limit": 2**31,
    }
    try:
        search = points.read(asked)
    except ConfigError as e:
        problems += [p.replace("sweep.axes", "pbt.search") for p in e.problems]
        return None
    known = _known(full)
    for i, axis in enumerate(search.axes):
        where, section = f"pbt.search[{i}]", full.get(axis.key.partition(".")[0])
        inside = section.get(chain_name(axis.key)) if isinstance(section, Mapping) else None
        if known and axis.key not in known:
            problems.append(
                f"{where}.key={axis.key!r} is no number that members of one program can hold; "
                f"{values.near(axis.key, known)}"
            )
        elif fields.is_schedule(section) or fields.is_schedule(inside):
            problems.append(f"{where}: {axis.key} has a schedule of its own: keep one")
        if axis.whole:
            problems.append(f"{where}.whole: members hold real numbers")
        for j, value in enumerate(axis.values):
            problems += values.number(f"{where}.values[{j}]", value, -math.inf)
    twice = [chain_name(axis.key) for axis in search.axes]
    for name in sorted({n for n in twice if twice.count(n) > 1}):
        problems.append(f"pbt.search has {name} beside optimizer.{name}: keep one")
    return search if len(problems) == before else None


def _known(full: Mapping[str, Any]) -> list[str]:
    """The keys that a member can hold; none where the rule itself is wrong."""
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


def _refused(recipe: Recipe) -> list[str]:
    """What a population cannot do."""
    found = []
    if recipe.regime.reads:
        found.append(
            f"batch.name={recipe.config['batch']['name']!r} looks at each run by itself; all "
            "members of a population take the same batches: fixed, or a plan of epochs"
        )
    if recipe.config["patience"] is not None:
        found.append("patience ends a single run; members of a population train to the end")
    if recipe.config["nonfinite"]["policy"] == "rollback":
        found.append(
            "nonfinite.policy='rollback' is for a single run: a member that diverges is replaced"
        )
    if getattr(recipe.model, "axis_name", None):
        found.append("model.axis_name must be left out: each member is whole on one device")
    if recipe.source.sizes[1] < 1:
        found.append(
            f"{recipe.source.name} has no validation examples, which choose the members: set "
            "data.validation"
        )
    return found


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
