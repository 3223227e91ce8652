"""What the section `search` of a config asks for, checked before any data is read."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrlab import batching, fields, points, searches, values
from lrlab.build import Recipe
from lrlab.jobs import _held
from lrlab.points import Axis
from lrlab.resolve import ConfigError
from lrlab.searches import Round

DEFAULTS: dict[str, Any] = {
    "axes": None,
    "method": "random",
    "trials": 32,
    "lanes": None,
    "eta": 3,
    "first": None,
    "looks": 5,
    "score": "accuracy",
    "seed": None,
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search to be done.

    config: as it is recorded. spec: the section, filled. recipe: with one trial's numbers.
    rounds: trials that train together. points: of all trials, where no score changes them.
    looks: updates after which a trial is evaluated, its end among them, rungs aside.
    taken: examples of a trial after each number of updates, int [total + 1].
    """

    config: dict[str, Any]
    spec: dict[str, Any]
    recipe: Recipe
    axes: tuple[Axis, ...]
    rounds: tuple[Round, ...]
    points: tuple[dict[str, Any], ...] | None
    looks: tuple[int, ...]
    taken: np.ndarray

    @property
    def total(self) -> int:
        """Updates of a whole trial."""
        return len(self.taken) - 1

    @property
    def trials(self) -> int:
        """That begin."""
        return sum(r.trials for r in self.rounds)

    @property
    def lanes(self) -> int:
        """That train together at most."""
        return max(r.trials for r in self.rounds)

    @property
    def cost(self) -> int:
        """Examples of all trials together, if none diverges."""
        return sum(searches.cost(r.trials, r.rungs, self.total, self.taken) for r in self.rounds)

    def marks(self, one: Round) -> list[tuple[int, int | None]]:
        """(updates, how many go on, None: all) wherever trials of a round are evaluated."""
        kept = dict(one.rungs)
        return [(at, kept.get(at)) for at in sorted({*self.looks, *kept})]

    def proposer(self) -> searches.Proposer:
        """What says which points are tried."""
        if self.points is not None:
            return searches.Known(self.points)
        method, seed = self.spec["method"], _seed(self.spec, self.config)
        return searches.Suggested(method, self.axes, seed, self.lanes, int(self.spec["trials"]))


def check(config: Mapping[str, Any]) -> Plan:
    """What a config asks for; reads no data and compiles nothing.

    Raises:
      ConfigError: every problem of the section and of the recipe.
    """
    full = fields.fill(config)
    example = "axes=(dict(key='lr', low=1e-3, high=1.0),), trials=32"
    spec, problems = _held.section(full, "search", DEFAULTS, example)
    is_sound = not (own := _spec_problems(spec))
    problems += own
    found = _held.axes("search.axes", _asked(spec, full), full, "trials", problems)
    base = {k: v for k, v in full.items() if k not in ("search", "job")}
    recipe = _held.recipe("search.axes", base, found.axes if found else (), problems)
    rounds: tuple[Round, ...] = ()
    taken = np.zeros(1, int)
    if recipe:
        lost = "a trial that diverges is over"
        problems += _held.refused(recipe, "a search", "trials", lost)
        sizes = [np.full(e.updates, e.size) for e in recipe.epochs()]
        taken = np.cumsum(np.concatenate([[0], *sizes]))
        problems += _looks_problems(spec, len(taken) - 1)
    if recipe and found and is_sound:
        rounds = _rounds(spec, found, recipe, taken, problems)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    assert found
    assert recipe
    total, looks = len(taken) - 1, int(spec["looks"])
    known = None
    if spec["method"] not in searches.SUGGESTED:
        count = sum(r.trials for r in rounds)
        sample = found if found.method == "grid" else dataclasses.replace(found, points=count)
        known = tuple(sample.expand())
    return Plan(
        config={**full, "search": spec},
        spec=spec,
        recipe=recipe,
        axes=found.axes,
        rounds=rounds,
        points=known,
        looks=tuple(round((i + 1) * total / looks) for i in range(looks)),
        taken=taken,
    )


def _seed(spec: Mapping[str, Any], full: Mapping[str, Any]) -> int:
    """The search's own, or else the run's."""
    return int(full["seed"] if spec["seed"] is None else spec["seed"])


def _spec_problems(spec: Mapping[str, Any]) -> list[str]:
    """Problems of the section's plain fields."""
    method = spec["method"]
    problems = values.choice("search.method", method, searches.METHODS)
    problems += values.whole("search.trials", spec["trials"], 1)
    problems += values.whole("search.looks", spec["looks"], 1)
    problems += values.choice("search.score", spec["score"], ("accuracy", "loss"))
    problems += values.number("search.eta", spec["eta"], 1, open_low=True)
    if spec["lanes"] is not None:
        problems += values.whole("search.lanes", spec["lanes"], 1)
    if spec["seed"] is not None:
        problems += values.whole("search.seed", spec["seed"], 0, 2**32 - 1)
    for key in ("eta", "first"):
        if method != "halving" and spec[key] != DEFAULTS[key]:
            problems.append(
                f"search.{key}={spec[key]!r} is for search.method='halving'; trials of "
                f"{method!r} all train to their end"
            )
    if not problems and (absent := searches.missing(method)):
        problems.append(
            f"search.method={method!r} needs {' and '.join(absent)}: pip install "
            f"'lrlab[search]', or {' '.join(absent)}; or take halving, which needs neither"
        )
    return problems


def _looks_problems(spec: Mapping[str, Any], total: int) -> list[str]:
    looks = spec["looks"]
    if not values.whole("", looks, 1) and looks > total:
        return [f"search.looks={looks} are more than the {total} updates of a trial"]
    return []


def _asked(spec: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """The section as `points.read` takes it.

    A range's `points` are for a grid alone; where it has none, the budget says how many.
    """
    method, trials = spec["method"], spec["trials"]
    given, is_grid = spec["axes"], method == "grid"
    listed = given if isinstance(given, tuple) else ()
    mine = [dict(axis) if isinstance(axis, Mapping) else axis for axis in listed]
    ranges = [axis for axis in mine if isinstance(axis, dict) and "values" not in axis]
    if is_grid and not values.whole("", trials, 1):
        free = [axis for axis in ranges if "points" not in axis]
        others = [_length(axis) for axis in mine if all(axis is not one for one in free)]
        share = trials // max(1, math.prod(others))
        for axis in free:
            axis["points"] = max(1, int(share ** (1 / len(free)) + 1e-9))
    elif not is_grid:
        for axis in ranges:
            axis.pop("points", None)
    seed = spec["seed"] if spec["seed"] is not None else full["seed"]
    return {
        "axes": tuple(mine) if isinstance(given, tuple) else given,
        "method": method if method in points.METHODS else "random",
        "points": None if is_grid else 1,
        "seed": 0 if values.whole("", seed, 0) else int(seed),
        "limit": 2**31,
    }


def _length(axis: Any) -> int:
    """Points of an axis on a grid, if it says so soundly."""
    own = axis.get("values", axis.get("points", 1)) if isinstance(axis, Mapping) else 1
    own = len(own) if isinstance(own, tuple) else own
    return 1 if values.whole("", own, 1) else int(own)


def _rounds(
    spec: Mapping[str, Any],
    found: points.Sweep,
    recipe: Recipe,
    taken: np.ndarray,
    problems: list[str],
) -> tuple[Round, ...]:
    """All rounds; what is sound so far is the section and the axes."""
    method, trials, lanes = spec["method"], int(spec["trials"]), spec["lanes"]
    if method == "halving":
        until = _until(spec, recipe, len(taken) - 1, problems)
        if not until:
            return ()
        # As many as leave one at the last rung, so all that are compared had equal chances.
        most = lanes or math.ceil(spec["eta"] ** (len(until) - 1) - 1e-9)
        budget = trials * int(taken[-1])
        return searches.brackets(int(most), until, float(spec["eta"]), taken, budget)
    if method == "grid":
        size = math.prod(len(axis.grid()) for axis in found.axes)
        if size > trials:
            problems.append(
                f"search.axes make {size:,} points of a grid, more than "
                f"search.trials={trials:,}: raise it, or take fewer points"
            )
            return ()
        trials = size
    default = -(-trials // 8) if method in searches.SUGGESTED else trials
    return searches.plain(trials, min(trials, int(lanes or max(default, 4))))


def _until(
    spec: Mapping[str, Any], recipe: Recipe, total: int, problems: list[str]
) -> Sequence[int]:
    """Updates of a trial at each rung of successive halving."""
    asked, eta = spec["first"], float(spec["eta"])
    if asked is None:
        first = max(1.0, total / eta ** (searches.RUNGS - 1))
    else:
        try:
            first = batching.to_updates(asked, total, recipe.per_epoch, recipe.regime.sizes[0])
        except ValueError as e:
            problems.append(f"search.first: {e}")
            return ()
        if first < 1:
            problems.append(f"search.first={asked!r} is under one update")
            return ()
    if first >= total:
        problems.append(
            f"search.first={asked!r}, {first:,.0f} updates, leaves nothing to halve: a whole trial "
            f"has {total:,}"
        )
        return ()
    return searches.ends(total, first, eta)
