"""What a sweep trains: its trials, and which of them are lanes of one program."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lrlab import build, fields, optimizers, points, records, resolve
from lrlab.build import Recipe
from lrlab.lanes import Lane
from lrlab.resolve import ConfigError

_PLAIN = ("seed", "lr", "label_smoothing")  # lane values of every chain


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the sweep: its number, what varies, and its whole config."""

    number: int
    point: dict[str, Any]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that differ in lane values only, and the recipe of the first of them."""

    recipe: Recipe
    trials: tuple[Trial, ...]
    keys: tuple[str, ...]  # the lane values that vary

    @property
    def name(self) -> str:
        """What sets the group apart."""
        rest = [points.label(v) for k, v in self.trials[0].point.items() if k not in self.keys]
        return ", ".join(rest) or "all"

    def lane(self, trial: Trial) -> Lane:
        """A trial's own numbers."""
        full = trial.config
        values = {
            key.removeprefix("optimizer."): float(_at(full, key))
            for key in self.keys
            if key not in ("seed", "lr")
        }
        return Lane(int(full["seed"]), float(full["lr"]), values)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All trials in their groups; `sweep` is the checked section of the config."""

    sweep: points.Sweep
    trials: tuple[Trial, ...]
    groups: tuple[Group, ...]

    def updates(self, recipe: Recipe) -> int:
        """Updates of a trial at most."""
        total = sum(e.updates for e in recipe.epochs())
        return min(total, self.sweep.updates or total)

    @property
    def keys(self) -> list[str]:
        """What varies."""
        return [axis.key for axis in self.sweep.axes]

    @property
    def most(self) -> dict[int, int]:
        """Updates that each trial takes at most."""
        return {t.number: self.updates(g.recipe) for g in self.groups for t in g.trials}

    def part(self, numbers: Collection[int]) -> "Plan":
        """The plan of these trials alone."""
        groups = []
        for group in self.groups:
            if kept := tuple(t for t in group.trials if t.number in numbers):
                groups.append(dataclasses.replace(group, trials=kept))
        trials = tuple(t for t in self.trials if t.number in numbers)
        return dataclasses.replace(self, trials=trials, groups=tuple(groups))


def check(config: Mapping[str, Any]) -> Plan:
    """Expands and checks a sweep; reads no data and compiles nothing.

    Raises:
      ConfigError: every problem of the section, and of the first config that has one.
    """
    sweep = points.read(fields.fill(config).get("sweep"))
    base = {k: v for k, v in config.items() if k not in ("sweep", "job")}
    trials = []
    for i, point in enumerate(sweep.expand()):
        trials.append(Trial(i, point, fields.fill(points.assign(base, point))))
    sorted_out: dict[str, tuple[tuple[str, ...], list[Trial]]] = {}
    known: dict[str, tuple[set[str], set[str]] | None] = {}  # by optimizer: slow to find out
    for trial in trials:
        spec = trial.config["optimizer"]
        if repr(spec) not in known:
            known[repr(spec)] = _own(spec)
        found = known[repr(spec)]
        keys = _lane_keys(trial, *found) if found else ()
        rest = {k: v for k, v in trial.point.items() if k not in keys}
        name = records.canonical([keys, rest])
        sorted_out.setdefault(name, (keys, []))[1].append(trial)
    groups = []
    for keys, members in sorted_out.values():
        for trial in _extremes(members, keys):
            try:
                recipe = build.check(trial.config, parts=1)
            except ConfigError as e:
                where = ", ".join(f"{k}={points.label(v)}" for k, v in trial.point.items())
                raise ConfigError(f"trial {trial.number} ({where}): {p}" for p in e.problems) from e
        recipe = build.check(members[0].config, parts=1)
        _refuse(recipe)
        groups.append(Group(recipe, tuple(members), keys))
    return Plan(sweep, tuple(trials), tuple(groups))


def _at(config: Mapping[str, Any], key: str) -> Any:
    section, dot, inner = key.partition(".")
    return config[section][inner] if dot else config[section]


def _own(spec: Any) -> tuple[set[str], set[str]] | None:
    """What of a chain can vary by lane, and the rule's own parameters; None where it is wrong."""
    try:
        own = resolve.parameters(resolve.find("lrlab.optimizers", spec.get("name")))
        return set(optimizers.schedulable(spec)), set(own)
    except (ConfigError, AttributeError, TypeError):
        return None  # the check of the whole config says what is wrong


def _lane_keys(trial: Trial, schedulable: set[str], own: set[str]) -> tuple[str, ...]:
    """The keys of a point that are lane values of its chain."""
    found = []
    for key in trial.point:
        section, _, name = key.rpartition(".")
        value = _at(trial.config, key)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        inside = section == "optimizer" and name in schedulable
        outside = not section and name in optimizers.CHAIN and name not in own
        if numeric and (key in _PLAIN or inside or outside):
            found.append(key)
    return tuple(found)


def _extremes(members: Sequence[Trial], keys: Sequence[str]) -> list[Trial]:
    """Trials at the ends of every lane value: if they are sound, so are those between."""
    found = {members[0].number: members[0]}
    for key in keys:
        for choose in min, max:
            trial = choose(members, key=lambda t, k=key: _at(t.config, k))
            found[trial.number] = trial
    return list(found.values())


def _refuse(recipe: Recipe) -> None:
    """What lanes cannot do (yet)."""
    if recipe.config["nonfinite"]["policy"] == "rollback":
        raise ConfigError(
            ["nonfinite.policy='rollback' is for a single run; a sweep takes stop and skip"]
        )
    if recipe.config["patience"] is not None:
        raise ConfigError(["patience ends a single run; in a sweep all trials have all epochs"])
    if getattr(recipe.model, "axis_name", None):
        raise ConfigError(
            ["model.axis_name must be left out in a sweep: each lane is whole on one device"]
        )
