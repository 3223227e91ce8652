"""The job "range_test": which rate? One ramp of it, for several seeds as lanes of one program.

<folder>/range_test.csv    the value of every point, the loss of every seed, their smoothed mean
<folder>/range_test.json   what was read from them

The section `range_test` of a config, with its defaults in DEFAULTS:
key: what is ramped: "lr", a number of the chain ("weight_decay", "optimizer.decay"), or
  "batch.size": then every size from low to high, by doubling, trains `updates` updates from the
  start, and the suggestion is the size beyond which larger ones are no use.
loss: "train", of every update, or "validation", looked at LOOKS times.
groups: True for a ramp of each layer's rate, or patterns of paths; other layers stay frozen.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrlab import build, charts, console, devices, fields, optimizers, plots, records, values
from lrlab.analysis import ramp, suggest
from lrlab.data import Dataset
from lrlab.jobs import _start
from lrlab.lanes import Lane, Lanes
from lrlab.resolve import ConfigError
from lrlab.train_step import RECORDED

__all__ = ["run"]
DEFAULTS: dict[str, Any] = {
    "key": "lr",
    "low": 1e-6,
    "high": 10.0,
    "scale": "log",
    "updates": 400,
    "seeds": 3,
    "loss": "train",
    "groups": (),
}
SIZE = "batch.size"
LOOKS = 200  # at the held-out loss, along a ramp
TAIL = 0.2  # of a batch size's updates, at their end: their mean loss stands for it


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: a ramp, or one of every group of layers.

    recipes: by group, "" where there are none; of a ramp of batch sizes, by size.
    values: of the ramp, float32 [points].
    """

    config: dict[str, Any]
    spec: dict[str, Any]
    recipes: dict[str, build.Recipe]
    values: np.ndarray

    @property
    def recipe(self) -> build.Recipe:
        """One of them, for what they share."""
        return next(iter(self.recipes.values()))


@dataclasses.dataclass(frozen=True)
class Curve:
    """A ramp that was measured, and what it says.

    values: [points]. losses: [seeds, points], NaN from where a seed stopped.
    smooth: their smoothed mean, NaN from where the first of them stopped.
    """

    group: str
    values: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    found: suggest.Suggestion


def check(config: Mapping[str, Any]) -> Plan:
    """What a config asks for; its section `range_test` gets its defaults.

    Raises:
      ConfigError: every problem of the section and of the recipe.
    """
    full = fields.fill(config)
    given = full.get("range_test") or {}
    if not isinstance(given, Mapping):
        raise ConfigError([f"range_test={given!r} must be a section, such as dict(updates=200)"])
    spec = {**DEFAULTS, **given}
    problems = [
        f"unknown field range_test.{k}; {values.near(k, DEFAULTS)}"
        for k in given
        if k not in DEFAULTS
    ]
    problems += _range_problems(spec, given)
    plain = {k: v for k, v in full.items() if k != "range_test"}
    if not fields.is_bad(full, "ema"):
        plain["ema"] = None  # an average of weights lags behind the rate that is looked at
    try:
        recipe = build.check(plain, parts=1)
    except ConfigError as e:
        raise ConfigError([*problems, *e.problems]) from e
    name = str(spec["key"]).removeprefix("optimizer.")
    known = optimizers.schedulable(full["optimizer"])
    if name not in ("lr", "label_smoothing", SIZE, *known):
        problems.append(
            f"range_test.key={spec['key']!r} is no number of the chain; known: lr, {SIZE}, "
            f"label_smoothing, {', '.join(known)}"
        )
    if len(recipe.regime.sizes) > 1:
        problems.append("batch: a range test takes one batch size")
    if spec["loss"] == "validation" and recipe.source.sizes[1] < 1:
        problems.append(
            f"range_test.loss='validation': {recipe.source.name} has no validation examples here; "
            "set data.validation or take loss='train'"
        )
    if problems:
        raise ConfigError(problems)
    filled = {**recipe.config, "range_test": spec, "job": {"name": "range_test"}}
    if spec["key"] == SIZE:
        sizes = _doublings(spec)
        made = {str(n): build.check(_with_size(plain, n), parts=1) for n in sizes}
        return Plan(filled, spec, made, np.array(sizes, np.float32))
    return Plan(filled, spec, _by_group(plain, recipe, spec["groups"]), _ramp(spec))


def _range_problems(spec: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    is_size, problems = spec["key"] == SIZE, []
    for end in ("low", "high"):
        if is_size and end not in given:
            problems.append(f"range_test.{end} is missing: the batch sizes to try, such as 16")
        elif is_size:
            problems += values.whole(f"range_test.{end}", spec[end], 1)
        else:
            problems += values.number(f"range_test.{end}", spec[end], 0)
    problems += values.choice("range_test.scale", spec["scale"], ("log", "linear"))
    problems += values.choice("range_test.loss", spec["loss"], ("train", "validation"))
    problems += values.whole("range_test.updates", spec["updates"], suggest.LEAST)
    problems += values.whole("range_test.seeds", spec["seeds"], 1)
    groups = spec["groups"]
    patterns = groups if isinstance(groups, tuple | list) else ()
    is_sound = isinstance(groups, bool) or groups == patterns
    if not is_sound or not all(isinstance(pattern, str) for pattern in patterns):
        problems.append(
            f"range_test.groups={groups!r} must be True, or patterns of paths: ('Conv_0/.*', '.*')"
        )
    elif groups and spec["key"] != "lr":
        problems.append(f"range_test.groups are of the rate, and key={spec['key']!r}")
    if problems:
        return problems
    if spec["low"] >= spec["high"]:
        problems.append(f"range_test.low={spec['low']:g} must be below high={spec['high']:g}")
    if spec["scale"] == "log" and spec["low"] <= 0:
        problems.append("range_test.low=0 has no logarithm; use scale='linear' or a low above 0")
    return problems


def _doublings(spec: Mapping[str, Any]) -> list[int]:
    sizes = [int(spec["low"])]
    while 2 * sizes[-1] <= spec["high"]:
        sizes.append(2 * sizes[-1])
    return sizes


def _with_size(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    return {**config, "batch": {**config["batch"], "size": size}}


def _by_group(
    config: Mapping[str, Any], recipe: build.Recipe, groups: bool | Sequence[str]
) -> dict[str, build.Recipe]:
    """A recipe for each group, in which all other layers are frozen."""
    if not groups:
        return {"": recipe}
    params = recipe.shapes.params
    if groups is True:
        layers = dict.fromkeys(path.split("/")[0] for path in optimizers.paths(params))
        groups = tuple(f"{re.escape(layer)}/.*" for layer in layers)
    made = {}
    for group in groups:
        rules = [(g, float(g == group)) for g in groups]
        rules += [(".*", 0.0)] if _leaves_some(groups, params) else []
        try:
            made[group] = build.check({**config, "lr_multipliers": tuple(rules)}, parts=1)
        except ConfigError as e:
            raise ConfigError([f"range_test.groups: {problem}" for problem in e.problems]) from e
    return made


def _leaves_some(groups: Sequence[str], params: Any) -> bool:
    """Whether there are leaves of no group."""
    try:
        known = [re.compile(group) for group in groups]
    except re.error:
        return True  # build.check says which
    return not all(any(r.fullmatch(path) for r in known) for path in optimizers.paths(params))


def _ramp(spec: Mapping[str, Any]) -> np.ndarray:
    """The value of every update, float32 [updates]; the first is `low`, the last `high`."""
    low, high = float(spec["low"]), float(spec["high"])
    if spec["scale"] == "log":
        return ramp.exponential(low, high, int(spec["updates"]))
    return np.linspace(low, high, int(spec["updates"]), dtype=np.float32)


def measure(plan: Plan, dataset: Dataset) -> Iterator[Curve]:
    """Trains along every ramp. The states that it trains are its own: no run is touched."""
    if plan.spec["key"] == SIZE:
        yield _sizes(plan, dataset)
        return
    for group, recipe in plan.recipes.items():
        shown, losses = _along(_ramped(recipe, plan), plan, dataset)
        is_plain = plan.config["optimizer"]["name"] in optimizers.PLAIN_RULES
        below = suggest.PLAIN if is_plain else suggest.ADAPTIVE
        smooth, found = _smooth_mean(losses), suggest.suggest(shown, losses, below)
        yield Curve(group, shown, losses, smooth, found)


def _ramped(recipe: build.Recipe, plan: Plan) -> build.Recipe:
    """The recipe whose key takes the ramp's values."""
    table, name = plan.values, str(plan.spec["key"]).removeprefix("optimizer.")

    def along(step: jax.typing.ArrayLike) -> jax.Array:
        return jnp.asarray(table)[step]

    if name == "lr":
        return dataclasses.replace(recipe, total=len(table), shape=along)
    return _steady(recipe, len(table), {**recipe.scheduled, name: along})


def _steady(
    recipe: build.Recipe, total: int, scheduled: Mapping[str, Any] | None = None
) -> build.Recipe:
    """The recipe at its full rate, for so many updates."""
    return dataclasses.replace(
        recipe,
        total=total,
        shape=lambda step: jnp.float32(1.0),
        scheduled=recipe.scheduled if scheduled is None else scheduled,
    )


def _lanes(recipe: build.Recipe, plan: Plan, dataset: Dataset, length: int) -> Lanes:
    """A lane a seed, at the config's rate unless that is what is ramped."""
    lr = 1.0 if plan.spec["key"] == "lr" else float(plan.config["lr"])
    first = int(plan.config["seed"])
    each = [Lane(first + i, lr) for i in range(int(plan.spec["seeds"]))]
    return Lanes(recipe, dataset, each, length, watch=ramp.Blowup())


def _train_losses(lanes: Lanes, count: int) -> np.ndarray:
    """Mean losses of the next updates, float [seeds, count]; NaN after a stop."""
    seen = lanes.advance(count)
    loss = seen[..., RECORDED.index("loss")] / seen[..., RECORDED.index("weight")]
    return np.where(seen[..., RECORDED.index("finite")] > 0, loss, np.nan).T


def _along(recipe: build.Recipe, plan: Plan, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(values [points], losses [seeds, points]) of a ramp."""
    updates, values = recipe.total, plan.values
    if plan.spec["loss"] == "train":
        return values, _train_losses(_lanes(recipe, plan, dataset, updates), updates)
    stride = -(-updates // LOOKS)
    lanes = _lanes(recipe, plan, dataset, stride)
    begins = range(0, updates, stride)
    losses = np.full((len(begins), len(lanes.lanes)), np.nan)
    for i, begin in enumerate(begins):
        seen = _train_losses(lanes, min(stride, updates - begin))
        ended = np.isnan(seen).any(1) | lanes.stopped()
        if ended.all():
            break
        held = [row["loss"] for row in lanes.evaluate("validation", lanes.active)]
        losses[i] = np.where(ended, np.nan, held)
    return values[[min(begin + stride, updates) - 1 for begin in begins]], losses.T


def _sizes(plan: Plan, dataset: Dataset) -> Curve:
    """What loss each batch size came to after equally many updates from the same start."""
    updates, losses, starts = int(plan.spec["updates"]), [], []
    for recipe in plan.recipes.values():
        lanes = _lanes(_steady(recipe, updates), plan, dataset, updates)
        seen = _train_losses(lanes, updates)
        starts.append(seen[:, 0])
        if plan.spec["loss"] == "train":
            losses.append(seen[:, -max(1, round(TAIL * updates)) :].mean(1))
        else:
            held = [row["loss"] for row in lanes.evaluate("validation", lanes.active)]
            losses.append(np.where(np.isnan(seen[:, -1]), np.nan, held))
    curves = np.array(losses).T
    found = suggest.knee(plan.values, curves, float(np.nanmean(starts)))
    return Curve("", plan.values, curves, curves.mean(0), found)


def _smooth_mean(curves: np.ndarray) -> np.ndarray:
    """Smoothed mean over seeds, NaN from where the first of them stopped."""
    end = min(map(suggest.ending, curves))
    out = np.full(curves.shape[1], np.nan)
    out[:end] = np.mean([suggest.level(c[:end]) for c in curves], axis=0)
    return out


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Measures, reads and shows.

    Raises:
      ConfigError, DataError, LockedError: see `main` for their exit codes.
    """
    plan = check(config)
    folder = workdir or _start.default_folder(plan.config, options.source)
    _start.same_config(folder, plan.config)
    console.say(_banner(plan, folder, options))
    if options.dry_run:
        console.say("dry run: nothing was trained or written")
        return
    dataset = plan.recipe.read()
    with records.locked(folder):
        _start.claim(folder, plan.config, plan.recipe, options)
        curves = []
        for curve in measure(plan, dataset):
            curves.append(curve)
            console.say("\n".join(_shown(curve, plan.spec)))
        _write(folder, plan.spec, curves)
    if any(curve.group for curve in curves):
        console.say(_multipliers(curves, plan.recipe.shapes.params))
    console.say(f"plots in {folder / 'plots'}")


def _stem(group: str) -> str:
    """What the files of a group's figure are called."""
    words = re.sub(r"\W+", "_", group).strip("_")
    return f"range_test_{words}" if words else "range_test"


def _write(folder: Path, spec: Mapping[str, Any], curves: Sequence[Curve]) -> None:
    key, grouped = str(spec["key"]), any(curve.group for curve in curves)
    seeds = [f"loss_{i}" for i in range(len(curves[0].losses))]
    lines = [",".join([*(["group"] if grouped else []), "point", key, *seeds, "smooth"])]
    for curve in curves:
        for i, row in enumerate(zip(curve.values, *curve.losses, curve.smooth, strict=True)):
            cells = [str(i), *("" if np.isnan(v) else str(v) for v in row)]
            lines.append(",".join([*([f'"{curve.group}"'] if grouped else []), *cells]))
    records.write_text(folder / "range_test.csv", "\n".join(lines) + "\n")
    found = {curve.group: curve.found.as_dict() for curve in curves}
    told = {"groups": found} if grouped else found[""]
    records.write_json(folder / "range_test.json", {"range_test": dict(spec), **told})
    name = {"lr": "learning rate", SIZE: "batch size"}.get(key, key)
    log = key == SIZE or spec["scale"] == "log"
    y = f"{'training' if spec['loss'] == 'train' else 'validation'} loss (nats)"
    for curve in curves:
        figure = charts.range_test(
            curve.values,
            curve.losses,
            curve.smooth,
            curve.found.as_dict(),
            f"{name} of {curve.group}" if curve.group else name,
            log,
            y,
        )
        plots.save(figure, folder / "plots" / _stem(curve.group))
    if key != SIZE:
        plots.save(charts.ramp(curves[0].values, name), folder / "plots" / "ramp")


def _banner(plan: Plan, folder: Path, options: _start.Options) -> str:
    recipe, spec = plan.recipe, plan.spec
    source = recipe.source
    ramped = (
        f"{spec['key']} {', '.join(plan.recipes)}: {spec['updates']:,} updates each"
        if spec["key"] == SIZE
        else f"{spec['key']} from {spec['low']:g} to {spec['high']:g}, {spec['scale']}, "
        f"{spec['updates']:,} updates"
    )
    items = [
        ("data", f"{source.name}: {source.sizes[0]:,} train"),
        ("model", f"{recipe.config['model']['name']}, {recipe.parameters:,} parameters"),
        ("optimizer", f"{recipe.config['optimizer']['name']}, batch {recipe.regime.sizes[0]:,}"),
        ("devices", f"{devices.count()} x {devices.describe()['device_kind']}"),
        ("ramp", f"{ramped}, {spec['seeds']} seeds as lanes, {spec['loss']} loss"),
    ]
    if spec["groups"]:
        items.append(("groups", f"{', '.join(plan.recipes)}; the others frozen"))
    return console.banner(f"lrlab range_test {options.source}", [*items, ("folder", str(folder))])


def _shown(curve: Curve, spec: Mapping[str, Any]) -> list[str]:
    """A curve for the terminal, and what it says."""
    found, key, of = curve.found, spec["key"], f" of {curve.group}" if curve.group else ""
    lines = [f"smoothed loss along the ramp{of}"]
    lines += console.curve(curve.smooth[np.isfinite(curve.smooth)])
    if found.outcome != "ok":
        return [*lines, f"{found.outcome}: {found.advice}; no {key}{of} is suggested"]
    for name, value in found.readings.items():
        lines.append(f"  {name:<10}{f'{value:.3g}' if value else 'none'}")
    if found.consensus:
        agree = f"they differ by {found.spread:.0f}x"
        lines.append(f"the readings' consensus is {found.consensus:.3g}; {agree}")
    if found.advice:
        lines.append(found.advice)
    if key not in ("lr", SIZE):
        lines.append(f"at one rate the loss falls anyway: trust where it breaks, and sweep {key}")
    band = f", {found.low:.2g} to {found.high:.2g} over seeds" if found.low else ""
    return [*lines, f"suggested {key}{of} {found.lr:.3g}{band}"]


def _multipliers(curves: Sequence[Curve], params: Any) -> str:
    """The groups' rates as flags of a run."""
    rates = {curve.group: curve.found.lr for curve in curves if curve.found.lr}
    if len(rates) < len(curves):
        return "some groups have no suggestion: no lr_multipliers are suggested"
    top = max(rates.values())
    rules = [f'("{group}", {lr / top:.3g})' for group, lr in rates.items()]
    rules += ['(".*", 1.0)'] if _leaves_some(list(rates), params) else []
    return f"as flags: --config.lr={top:.3g} --config.lr_multipliers='({', '.join(rules)},)'"
