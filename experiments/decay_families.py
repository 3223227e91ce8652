"""Every decay family and adaptive rule on one task at equal budget, each at its best rate.

Claim:  decay beats a constant rate; which shape it has matters little where it ends near zero;
        warm-up helps at large rates and allows larger ones; adaptive rules beat tuned momentum.
Source: shapes and rules as `lrlab.schedules` and `lrlab.optimizers` cite them. Near zero at equal
        budget: Li, Yumer & Ramanan 2020, arXiv:1905.04753. Warm-up: Goyal et al. 2017,
        arXiv:1706.02677, 2.2. Tuning decides rankings: Choi et al. 2019, arXiv:1910.05446.
Run:    LRLAB_DATA_DIR=... python -m experiments.decay_families --size=desk --workdir=runs/decay
        (--size=smoke: seconds; --size=paper: for a GPU)
Makes:  <workdir>/plots; desk and paper also
        experiments/results/decay_families_<size>_<device>.json, desk docs/decay_families.png and
        docs/decay_families_warmup.png. The same command goes on with what is not done.

1. Tuning: each setting at POINTS rates, judged by validation accuracy at the end, on seeds that
   are used for nothing else. A best rate at the grid's end is marked.
2. Comparison: each setting at its best rate on other seeds, by test accuracy at the end, which
   nothing is chosen by. Intervals of accuracies are bootstrapped over seeds; a setting cannot be
   told from the best of its table where Student's 95 % interval of the gap, seed by seed, holds
   zero. The best was picked for being best, and nothing is corrected for many comparisons.
3. Warm-up: one cosine at many rates, with and without.

Not every family is combined with every rule: families x (momentum, Adam) and rules x (constant,
cosine). Four settings more are an article's, at its rate: it tuned nothing, so they are no ranks.
With warm-up, WARM of the run is a line from zero and the family has the rest. linear, polynomial of
power 1 and linear_to_zero are one shape; so are geometric and exponential, piecewise and
multi-step, sgdr and cosine restarts: each is there once.

Schedules are lanes here, as rates and seeds are: the rule `planned` holds all of them as a table
and each lane reads a row. So a rule is one program to compile and not one for each schedule.

The size "paper" has never been run. It has no augmentation.
"""

import dataclasses
import functools
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import arms
from lrlab import build, charts, fields, optimizers, planning, plots, records, values
from lrlab.analysis import valley
from lrlab.lanes import Lane, Lanes
from lrlab.train_step import RECORDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
WARM = 0.1  # of the run
WARMED = " + warm-up"
NEAR_ZERO = 0.02  # of the peak: where a schedule that decays to zero is at its last update
SPAN, POINTS = 25.0, 5  # of a rule's grid of rates: highest / lowest, and how many
DOUBLINGS = 8  # of the rate, from the same lowest on, when warm-up is looked at


def _part(fraction: float) -> dict[str, float]:
    return {"fraction": fraction}


DECAYS: dict[str, dict[str, Any]] = {
    "constant": {"name": "constant"},
    "step": {"name": "step", "factor": 0.1, "every": _part(1 / 3)},
    "multi-step": {
        "name": "multi_step",
        "boundaries": (_part(0.3), _part(0.6), _part(0.8)),
        "factor": 0.2,
    },
    "exponential": {"name": "exponential", "decay": 0.01, "every": _part(1)},
    "e^-kt": {"name": "natural_exponential", "rate": 3.0, "every": _part(1)},
    "inverse time": {"name": "inverse_time", "rate": 9.0, "every": _part(1)},
    "reciprocal root": {"name": "reciprocal_sqrt", "timescale": _part(WARM)},
    "linear": {"name": "linear_to_zero"},
    "polynomial 2": {"name": "polynomial", "start": 1.0, "end": 0.0, "power": 2.0},
    "cosine": {"name": "cosine", "start": 1.0, "end": 0.0},
    "1 - sqrt": {"name": "one_minus_sqrt", "start": 1.0, "end": 0.0},
    "REX": {"name": "rex", "start": 1.0, "end": 0.0},
    "flat, cosine": {"name": "flat_then_cosine", "flat": 0.75},
    "stable, decay": {"name": "warmup_stable_decay", "warmup": 0, "cooldown": _part(0.2)},
    "cosine restarts": {
        "name": "cosine_restarts",
        "t_0": _part(1 / 3),
        "t_mult": 2,
        "cycles": 2,  # thirds are rounded, and a third cycle would begin at the peak
    },
}
RISING: dict[str, dict[str, Any]] = {  # begin low of themselves
    "Noam": {"name": "noam", "warmup": _part(WARM)},
    "one cycle": {"name": "one_cycle"},
    "slanted triangle": {"name": "slanted_triangular", "cut_frac": WARM},
    "triangles": {"name": "triangular", "low": 0.25, "up": _part(1 / 6)},
    "triangles, halved": {"name": "triangular2", "low": 0.25, "up": _part(1 / 6)},
}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "momentum", "decay": 0.9},
    "nesterov": {"name": "nesterov", "decay": 0.9},
    "adagrad": {"name": "adagrad"},
    "adadelta": {"name": "adadelta"},  # rho 0.9, eps 1e-6
    "rmsprop": {"name": "rmsprop"},
    "adam": {"name": "adam"},
    "adam, b2 .99": {"name": "adam", "b2": 0.99},
}
ADAPTIVE = "adagrad", "adadelta", "rmsprop", "adam"
COMPARED = "momentum", "adam"  # with every schedule
PLAIN = "constant", "cosine"  # with every rule


@dataclasses.dataclass(frozen=True)
class Setting:
    """A rule and a schedule by their names; rate: where it is given and not tuned."""

    rule: str
    schedule: str
    rate: float | None = None

    @property
    def name(self) -> str:
        """Of the setting."""
        return f"{self.rule}, {self.schedule}" + (f", {self.rate:g}" if self.rate else "")


ARTICLE = (
    Setting("sgd", "step", 0.1),
    Setting("adagrad", "constant", 0.1),
    Setting("adadelta", "constant", 0.1),
    Setting("adam, b2 .99", "constant", 0.1),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    lowest: rate of each rule's grid. tuning, seeds: how many seeds to tune and to compare with.
    most: lanes at once, and in one file of what is kept.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    epochs: int
    lowest: dict[str, float]
    tuning: int
    seeds: int
    most: int
    l2: float = 0.0


SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 180},
        model={"name": "mlp.MLP", "widths": (16,)},
        batch=25,
        epochs=2,
        lowest={
            "sgd": 0.05,
            "momentum": 0.01,
            "nesterov": 0.01,
            "adagrad": 0.02,
            "adadelta": 0.6,
            "rmsprop": 0.001,
            "adam": 0.003,
        },
        tuning=1,
        seeds=3,
        most=200,
    ),
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 10_000},
        model={"name": "cnn.SmallCNN"},
        batch=50,
        epochs=2,
        lowest={
            "sgd": 0.02,
            "momentum": 0.003,
            "nesterov": 0.003,
            "adagrad": 0.01,
            "adadelta": 0.3,
            "rmsprop": 0.0004,
            "adam": 0.0008,
        },
        tuning=1,
        seeds=5,
        most=90,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 5000},
        model={"name": "resnet.WideResNet", "depth": 16, "width": 2},
        batch=128,
        epochs=30,
        lowest={
            "sgd": 0.05,
            "momentum": 0.01,
            "nesterov": 0.01,
            "adagrad": 0.005,
            "adadelta": 0.3,
            "rmsprop": 0.0002,
            "adam": 0.0003,
        },
        tuning=2,
        seeds=5,
        most=20,
        l2=5e-4,
    ),
}


def _shrunk(value: Any, part: float) -> Any:
    """A phase's durations, given as fractions, shrunk to a part of the run."""
    if values.is_duration(value):
        return {unit: part * n for unit, n in value.items()}
    if isinstance(value, dict):
        return {k: _shrunk(v, part) for k, v in value.items()}
    return tuple(_shrunk(v, part) for v in value) if isinstance(value, tuple) else value


def schedules(updates: int) -> dict[str, tuple[dict[str, Any], ...]]:
    """The phases of every schedule, by name, for a run of so many updates."""
    found: dict[str, tuple[dict[str, Any], ...]] = {}
    for name, phase in DECAYS.items():
        found[name] = (phase,)
        rest = _shrunk(phase, 1 - WARM)
        found[name + WARMED] = ({"name": "warmup_linear", **_part(WARM)}, rest)
    found |= {name: (phase,) for name, phase in RISING.items()}
    up, gamma = _part(1 / 6), 0.1 ** (1 / updates)  # a tenth of the height is left at the end
    found["triangles, shrinking"] = ({"name": "exp_range", "gamma": gamma, "low": 0.25, "up": up},)
    return found


NAMES = tuple(schedules(1000))  # of whatever length


def warms_up(schedule: str) -> bool:
    """Whether a schedule begins low."""
    return schedule not in DECAYS


def settings() -> list[Setting]:
    """What is tuned and compared."""
    return [
        Setting(rule, schedule)
        for rule in RULES
        if rule != ARTICLE[-1].rule
        for schedule in (NAMES if rule in COMPARED else PLAIN)
    ]


def grid(size: Size, rule: str) -> list[float]:
    """The rates that are tried."""
    shares = np.arange(POINTS) / (POINTS - 1)
    return [float(f"{size.lowest[rule] * SPAN**share:.4g}") for share in shares]


def config(size: Size, setting: Setting, lr: float) -> dict[str, Any]:
    """The plain recipe of a setting at a peak rate: what its lanes compute."""
    base = {
        "seed": 0,
        "epochs": size.epochs,
        "data": size.data,
        "model": size.model,
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": RULES[setting.rule],
        "l2": size.l2,
        "lr": lr,
    }
    total = _updates(records.canonical(base))
    return {**base, "schedule": schedules(total)[setting.schedule]}


def lanes_config(size: Size, rule: str) -> dict[str, Any]:
    """The recipe whose lanes are a rule's settings: `planned` with all schedules."""
    base = config(size, Setting(rule, "constant"), 1.0)
    total = build.check(base, parts=1).total
    rule_of_all = {
        "name": "experiments.decay_families:planned",
        "rule": RULES[rule],
        "schedules": tuple(schedules(total).values()),
        "updates": total,
    }
    return {**base, "optimizer": rule_of_all}


@functools.cache
def _updates(base: str) -> int:
    return build.check(fields.plain(json.loads(base)), parts=1).total


class PlannedState(NamedTuple):
    """Updates done, and the state of the rule itself."""

    count: jax.Array
    rule: Any


def planned(
    rule: Mapping[str, Any],
    schedules: Sequence[Any],
    updates: int,
    number: optimizers.Rate = 0.0,
    learning_rate: optimizers.Rate = 1.0,
) -> optax.GradientTransformation:
    """An update rule that follows one of several schedules, whose number a lane may set.

    The rate of update t is learning_rate * schedules[number](t), with the arithmetic of a plain
    recipe; config.schedule should be constant.

    Args:
      rule: as in config.optimizer. schedules: each as in config.schedule, lengths as fractions.
      updates: of the run.
      number: a whole number as a float, as lanes hold floats.
      learning_rate: set by lrlab.
    Raises:
      ConfigError: a schedule that cannot be.
    """
    table = jnp.asarray(_multipliers(records.canonical(schedules), updates))
    make_tx = optimizers.make(rule)

    def init(params: Any) -> PlannedState:
        return PlannedState(jnp.int32(0), make_tx(1.0).init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, PlannedState]:
        row = jnp.asarray(number).astype(jnp.int32)
        tx = make_tx(learning_rate * table[row, state.count])
        updates, inner = tx.update(updates, state.rule, params)
        return updates, PlannedState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


@functools.cache
def _multipliers(text: str, updates: int) -> np.ndarray:
    """Schedules in JSON at every update, float32 [schedules, updates]."""
    clock = planning.Clock(updates, None, None)
    with jax.ensure_compile_time_eval():
        shapes = [planning.plan(specs, clock).shape for specs in fields.plain(json.loads(text))]
        return np.stack([planning.sample(shape, updates)[1] for shape in shapes])


def train(
    name: str, config: Mapping[str, Any], lanes: Sequence[Lane], test: bool
) -> dict[str, Any]:
    """Trains lanes of `lanes_config`.

    Returns:
      lanes: of each, by epoch train_loss, train_accuracy, val_loss and val_accuracy; diverged;
      test_accuracy, where `test`. A lane that diverged stays where it was.
    """
    recipe = build.check(config, parts=1)
    runs, each = Lanes(recipe, recipe.read(), lanes, arms.LOOK), range(len(lanes))
    finite, epochs = np.ones(len(lanes)), []
    for epoch in recipe.epochs():
        parts, end = [], epoch.first + epoch.updates
        while runs.step < end:
            parts.append(runs.advance(min(arms.LOOK, end - runs.step)))
        seen = np.moveaxis(np.concatenate(parts), -1, 0)
        rows = dict(zip(RECORDED, seen, strict=False))
        finite = np.minimum(finite, rows["finite"].min(0))
        weight, found = rows["weight"].sum(0), runs.evaluate("validation", each)
        epochs.append(
            {
                "train_loss": rows["loss"].sum(0) / weight,
                "train_accuracy": rows["correct"].sum(0) / weight,
                "val_loss": np.array([m["loss"] for m in found]),
                "val_accuracy": np.array([m["accuracy"] for m in found]),
            }
        )
        print(f"{name}: {len(lanes)} lanes, epoch {len(epochs)} of {recipe.config['epochs']}")
        sys.stdout.flush()
    tested = [m["accuracy"] for m in runs.evaluate("test", each)] if test else None
    return {
        "lanes": [
            {
                **{key: [float(e[key][i]) for e in epochs] for key in epochs[0]},
                "test_accuracy": tested and tested[i],
                "diverged": bool(finite[i] == 0),
            }
            for i in each
        ]
    }


def measured(
    name: str, config: Mapping[str, Any], lanes: Sequence[Lane], test: bool, most: int, folder: Path
) -> tuple[list[dict[str, Any]], float]:
    """(what `train` says of each lane, seconds), in equal waves that are kept as they are done."""
    found: list[dict[str, Any]] = []
    seconds = 0.0
    waves = np.array_split(np.arange(len(lanes)), -(-len(lanes) // most))
    for i, wave in enumerate(waves):
        title = f"{name} {i + 1} of {len(waves)}"
        chosen = [lanes[j] for j in wave.tolist()]
        asked = {"config": config, "lanes": [dataclasses.asdict(a) for a in chosen], "test": test}
        kept = arms.remembered(
            folder / f"{re.sub(r'[^A-Za-z0-9.]+', '_', title)}.json",
            asked,
            lambda t=title, c=chosen: train(t, config, c, test),
        )
        found += kept["lanes"]
        seconds += kept["seconds"]
    return found, seconds


def score(lanes: Sequence[Mapping[str, Any]]) -> float:
    """Mean validation accuracy at the end; one that diverged has none."""
    return float(np.mean([0 if a["diverged"] else a["val_accuracy"][-1] for a in lanes]))


def best_rate(rates: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """The best rate of a grid (the lowest of equals), and whether a better one may lie outside."""
    best = int(np.argmax(scores))
    return {
        "lr": rates[best],
        "edge": best in (0, len(rates) - 1),
        "rates": [*rates],
        "scores": [*scores],
    }


def summary(setting: Setting, tuned: Mapping[str, Any], lanes: Sequence[Mapping]) -> dict[str, Any]:
    """A row of the comparison: a setting's lanes at its rate, one a seed."""
    finals = [lane["test_accuracy"] for lane in lanes]
    low, high = valley.bootstrap(finals)

    def means(key: str) -> list[float | None]:
        by_epoch = np.mean(np.array([lane[key] for lane in lanes], np.float64), 0)
        return [float(f"{x:.5g}") if np.isfinite(x) else None for x in by_epoch]

    keys = "train_loss", "train_accuracy", "val_loss", "val_accuracy"
    return {
        "setting": setting.name,
        "rule": setting.rule,
        "schedule": setting.schedule,
        "tuned": setting.rate is None,
        **tuned,
        "n": len(finals),
        "accuracy": float(np.mean(finals)),
        "sd": float(np.std(finals, ddof=1)),
        "interval": [low, high],
        "finals": finals,
        "diverged": sum(lane["diverged"] for lane in lanes),
        **{key: means(key) for key in keys},
    }


def rank(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows from the best on, with their gap to it and whether they can be told from it.

    behind: best - row, as `arms.gap` says it. tied: its interval holds zero; so is the best itself.
    """
    ordered = sorted(rows, key=lambda row: -row["accuracy"])
    found = []
    for row in ordered:
        behind = arms.gap(ordered[0]["finals"], row["finals"])
        found.append({**row, "behind": behind, "tied": behind["low"] <= 0})
    return found


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rankings: schedules under each rule of COMPARED, and rules under PLAIN schedules."""
    tuned = [row for row in rows if row["tuned"]]
    found = {
        f"schedules, {rule}": rank([row for row in tuned if row["rule"] == rule])
        for rule in COMPARED
    }
    found["rules"] = rank([row for row in tuned if row["schedule"] in PLAIN])
    return found


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A ranking for a terminal."""
    name = (lambda row: row["setting"]) if title == "rules" else (lambda row: row["schedule"])
    width = max(26, *(len(name(row)) for row in rows))
    lines = [
        f"{title:<{width + 4}}{'lr':>10}{'test acc.':>11}{'95 % interval':>17}"
        f"{'best is ahead by':>25}  = cannot be told from the best"
    ]
    for i, row in enumerate(rows):
        low, high = (f"{100 * x:.2f}" for x in row["interval"])
        marks = ["=" if row["tied"] else " "]
        marks += ["rate at the grid's end"] if row["edge"] else []
        marks += [f"{row['diverged']} diverged"] if row["diverged"] else []
        ahead = arms.percent(row["behind"]) if i else ""
        lines.append(
            f"{i + 1:>3} {name(row):<{width}}{row['lr']:>10.4g}{row['accuracy']:>11.2%}"
            f"{f'{low} to {high}':>17}{ahead:>25}  {', '.join(marks)}".rstrip()
        )
    return "\n".join(lines)


def epochs_of(row: Mapping[str, Any], multipliers: np.ndarray) -> str:
    """A setting's epochs as lines, means over its seeds; the rate is that of the last update."""
    count, lines = len(row["val_loss"]), []
    for i in range(count):
        lr = row["lr"] * multipliers[(i + 1) * len(multipliers) // count - 1]
        numbers = (row[k][i] for k in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"))
        shown = ("none" if x is None else f"{x:.4f}" for x in numbers)
        lines.append(
            "Epoch [{}/{}] train loss {}, train accuracy {}, val loss {}, val accuracy {}, ".format(
                i + 1, count, *shown
            )
            + f"lr {lr:.3g}  {row['setting']}"
        )
    return "\n".join(lines)


def warmed(
    rates: Sequence[float], plain: np.ndarray, warm: np.ndarray, margin: float = valley.NEAR
) -> dict[str, Any]:
    """What warm-up buys at which rate.

    Args:
      rates: rising. plain, warm: accuracy without and with it [rates, seeds].
    Returns:
      rates, and by rate plain and warm, their means, and gap, the second's over the first; above:
      that gap in the mean over the rates above the plain runs' best; highest: the highest rate
      within `margin` of the best mean, without and with; doublings: of it by warm-up, over seeds.
    """
    means = plain.mean(1), warm.mean(1)
    best = int(np.argmax(means[0]))

    def highest(curve: np.ndarray) -> float:
        good = [bool(x >= curve.max() - margin) for x in curve]
        return valley.band(rates, good, int(np.argmax(curve)))[1]

    def logs(curves: np.ndarray) -> list[float]:
        return [float(np.log2(highest(curve))) for curve in curves.T]

    beyond = slice(best + 1, None)
    return {
        "rates": [*rates],
        "plain": means[0].tolist(),
        "warm": means[1].tolist(),
        "seeds": {"plain": plain.tolist(), "warm": warm.tolist()},
        "gap": [arms.gap(w, p) for w, p in zip(warm, plain, strict=True)],
        "above": arms.gap(warm[beyond].mean(0), plain[beyond].mean(0))
        if best + 1 < len(rates)
        else None,
        "highest": [highest(means[0]), highest(means[1])],
        "doublings": arms.gap(logs(warm), logs(plain)),
    }


def verdicts(
    rows: Sequence[Mapping[str, Any]],
    warmups: Mapping[str, Mapping[str, Any]],
    ends: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many seeds.

    Args:
      ends: the multiplier of each schedule's last update.
    """
    finals = {(r["rule"], r["schedule"]): np.array(r["finals"]) for r in rows if r["tuned"]}
    said: list[dict[str, Any]] = []

    def say(claim: str, seen: str, holds: str, **more: Any) -> None:
        said.append({"claim": claim, "seen": seen, "holds": holds, **more})

    decaying = [name for name in DECAYS if name != "constant"]
    to_zero = [name for name in decaying if ends[name] <= NEAR_ZERO]
    for rule in COMPARED:
        of = {name: finals[rule, name] for name in ends}
        mean = np.mean([of[name] for name in decaying], 0)
        found = arms.gap(mean, of["constant"])
        each = [arms.is_above(arms.gap(of[name], of["constant"])) for name in decaying]
        say(
            f"{rule}: decay beats a constant rate, in the mean of its families",
            f"{arms.percent(found)}; by itself each of {each.count('yes')} of {len(each)}",
            arms.is_above(found),
            gap=found,
        )
        mean = np.mean([of[name] for name in to_zero], 0)
        gaps = {name: arms.gap(of[name], mean) for name in to_zero}
        each = {arms.is_small(gap) for gap in gaps.values()}
        far = max(gaps, key=lambda name: abs(gaps[name]["gap"]))
        say(
            f"{rule}: the {len(to_zero)} families that end near zero are within "
            f"{arms.MARGIN:.1%} of their mean",
            f"the furthest from it: {far} {arms.percent(gaps[far])}",
            "no" if "no" in each else "yes" if each == {"yes"} else "unclear",
            gaps=gaps,
        )
        pairs = [(of[name + WARMED], of[name]) for name in DECAYS]
        found = arms.gap(*np.mean(pairs, 0))
        say(
            f"{rule}: warm-up helps where both rates are tuned, in the mean of all families",
            arms.percent(found),
            arms.is_above(found),
            gap=found,
        )
    for rule, bought in warmups.items():
        above, grown = bought["above"], bought["doublings"]
        say(
            f"{rule}: above the best rate, warm-up helps",
            arms.percent(above) if above else "no rate above the best was tried",
            arms.is_above(above) if above else "unclear",
        )
        say(
            f"{rule}: warm-up allows a higher rate",
            "within {:.0%} of the best up to {:.3g} without, {:.3g} with; ".format(
                valley.NEAR, *bought["highest"]
            )
            + "{gap:+.1f} doublings [{low:.1f}, {high:.1f}]".format(**grown),
            "no" if grown["high"] <= 0 else arms.is_above(grown),
        )
    for rule in ADAPTIVE:
        found = arms.gap(finals[rule, "cosine"], finals["momentum", "cosine"])
        say(
            f"{rule}: beats momentum, both tuned, with a cosine",
            arms.percent(found),
            arms.is_above(found),
            gap=found,
        )
    return said


def _dots(ax: "Axes", title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Means and intervals, the best at the top; hollow where a row can be told from the best."""
    blue, orange = charts.COLORS[0], charts.COLORS[1]
    for i, row in enumerate(rows):
        color = orange if warms_up(row["schedule"]) else blue
        face = color if row["tied"] else plots.LIGHT.surface
        ax.plot(row["interval"], [i, i], color=color, linewidth=1.4, solid_capstyle="butt")
        ax.plot(row["accuracy"], i, marker="o", color=color, markerfacecolor=face, markersize=5)
    ax.set_yticks(range(len(rows)), names, fontsize=7.5)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel("test accuracy")
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:g}%")
    ax.grid(visible=False, axis="y")


def draw(ranked: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """The rankings, a panel each."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with plots.style(plots.LIGHT):
        height = 1.5 + 0.16 * max(map(len, ranked.values()))
        figure = Figure(figsize=(10.8, height), layout="constrained")
        for ax, (title, rows) in zip(figure.subplots(1, len(ranked)), ranked.items(), strict=True):
            by = "setting" if title == "rules" else "schedule"
            _dots(ax, title[0].upper() + title[1:], rows, [row[by] for row in rows])
        looks: dict[str, dict[str, Any]] = {
            "begins at its peak": {"color": charts.COLORS[0]},
            "warms up": {"color": charts.COLORS[1]},
            "cannot be told from the best": {"color": plots.LIGHT.ink},
            "can be told from it": {
                "color": plots.LIGHT.ink,
                "markerfacecolor": plots.LIGHT.surface,
            },
        }
        handles = [
            Line2D([], [], marker="o", linestyle="none", label=label, **look)
            for label, look in looks.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def draw_warmup(warmups: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Accuracy against peak rate without and with warm-up, and what it buys, by rule.

    Bands and bars: 95 % intervals over seeds, bootstrapped above, Student's below.
    """
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(5.2 * len(warmups), 5.6), layout="constrained")
        axes = figure.subplots(2, len(warmups), sharex="col", height_ratios=(3, 2), squeeze=False)
        for (top, below), (rule, bought) in zip(axes.T, warmups.items(), strict=True):
            rates = bought["rates"]
            looks = zip(charts.COLORS, charts.MARKERS, strict=True)
            for key, label in ("plain", "no warm-up"), ("warm", f"warm-up, {WARM:.0%} of the run"):
                color, marker = next(looks)
                band = np.array([valley.bootstrap(row) for row in bought["seeds"][key]]).T
                top.plot(rates, bought[key], color=color, marker=marker, label=label)
                top.fill_between(rates, *band, color=color, alpha=0.15, linewidth=0)
            gaps = np.array([[g["gap"], g["low"], g["high"]] for g in bought["gap"]]).T
            bars = gaps[0] - gaps[1], gaps[2] - gaps[0]
            below.axhline(0, color=plots.LIGHT.soft, linewidth=0.8)
            below.errorbar(rates, gaps[0], bars, color=plots.LIGHT.ink, marker="o", capsize=2)
            low, high = min(0.0, *gaps[0]), max(0.0, *gaps[0])
            room = max(0.01, 0.25 * (high - low))  # an interval of few seeds may be far longer
            below.set_ylim(low - room, high + room)
            for ax in top, below:
                ax.set_xscale("log")
                ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:g}%")
            below.yaxis.set_major_formatter(lambda v, _: f"{100 * v:+g}%")
            top.set_title(f"{rule}, cosine", loc="left", fontsize=10, fontweight="bold")
            top.set_ylabel("test accuracy")
            below.set_ylabel("gain by warm-up")
            below.set_xlabel("peak learning rate")
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def compare(size: Size, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """(a row a setting, tuned on its own seeds and compared on others, seconds)."""
    chosen: dict[str, list[Setting]] = {}
    for setting in [*settings(), *ARTICLE]:
        chosen.setdefault(setting.rule, []).append(setting)
    numbers = {name: float(i) for i, name in enumerate(NAMES)}
    rows, seconds = [], 0.0
    others = range(size.tuning, size.tuning + size.seeds)
    for rule, members in chosen.items():
        recipe, found = lanes_config(size, rule), {}
        tuned = [setting for setting in members if setting.rate is None]
        if tuned:
            rates = grid(size, rule)
            points = [(s, lr) for s in tuned for lr in rates]
            lanes = [
                Lane(seed, lr, {"number": numbers[s.schedule]})
                for s, lr in points
                for seed in range(size.tuning)
            ]
            seen, took = measured(f"{rule} tuning", recipe, lanes, False, size.most, folder)
            seconds += took
            scores = np.array([score([lane]) for lane in seen]).reshape(len(tuned), -1, size.tuning)
            for setting, of_rates in zip(tuned, scores.mean(2).tolist(), strict=True):
                found[setting] = best_rate(rates, of_rates)
        for setting in members:
            if setting.rate is not None:
                found[setting] = {"lr": setting.rate, "edge": False}
        lanes = [
            Lane(seed, found[s]["lr"], {"number": numbers[s.schedule]})
            for s in members
            for seed in others
        ]
        seen, took = measured(f"{rule} comparison", recipe, lanes, True, size.most, folder)
        seconds += took
        for i, setting in enumerate(members):
            own = seen[i * size.seeds : (i + 1) * size.seeds]
            rows.append(summary(setting, found[setting], own))
    return rows, seconds


def warm_up(size: Size, folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """(`warmed` by rule, seconds)."""
    found, seconds = {}, 0.0
    numbers = [float(NAMES.index(name)) for name in ("cosine", "cosine" + WARMED)]
    seeds = range(size.tuning, size.tuning + size.seeds)
    for rule in COMPARED:
        rates = [size.lowest[rule] * 2.0**k for k in range(DOUBLINGS + 1)]
        lanes = [
            Lane(seed, lr, {"number": number})
            for number in numbers
            for lr in rates
            for seed in seeds
        ]
        recipe = lanes_config(size, rule)
        seen, took = measured(f"{rule} warm-up", recipe, lanes, True, size.most, folder)
        tested = np.array([lane["test_accuracy"] for lane in seen])
        without, with_it = tested.reshape(2, len(rates), size.seeds)
        found[rule] = warmed(rates, without, with_it)
        lost = np.array([lane["diverged"] for lane in seen]).reshape(2, len(rates), size.seeds)
        found[rule]["diverged"] = lost.sum(2).tolist()
        seconds += took
    return found, seconds


def show_warmup(warmups: Mapping[str, Mapping[str, Any]]) -> str:
    """What warm-up buys, for a terminal."""
    lines = ["warm-up with a cosine: at lr, test accuracy without, with, gain"]
    for rule, bought in warmups.items():
        rows = zip(*(bought[k] for k in ("rates", "plain", "warm", "gap")), strict=True)
        for lr, plain, warm, gap in rows:
            lines.append(f"{rule:<10}{lr:>10.4g}{plain:>9.2%}{warm:>9.2%}  {arms.percent(gap)}")
    return "\n".join(lines)


def report(
    name: str,
    size: Size,
    rows: Sequence[Mapping[str, Any]],
    warmups: Mapping[str, Mapping[str, Any]],
    workdir: Path,
    seconds: float,
) -> None:
    """Tables, figures, verdicts and record of what was trained."""
    planned = lanes_config(size, COMPARED[0])["optimizer"]
    text = records.canonical(planned["schedules"])
    multipliers = dict(zip(NAMES, _multipliers(text, planned["updates"]), strict=True))
    ends = {schedule: float(m[-1]) for schedule, m in multipliers.items()}
    ranked, found = tables(rows), verdicts(rows, warmups, ends)
    figures = workdir / "plots"
    plots.save(draw(ranked), figures / "decay_families")
    plots.save(draw_warmup(warmups), figures / "decay_families_warmup")
    for row in rows:
        print(epochs_of(row, multipliers[row["schedule"]]))
    for title, members in ranked.items():
        print(show(title, members))
    print("an article's rates, not tuned:")
    for row in rows:
        if not row["tuned"]:
            low, high = (f"{100 * x:.2f}" for x in row["interval"])
            print(f"    {row['setting']:<36}{row['accuracy']:>8.2%}  {low} to {high}")
    print(show_warmup(warmups), arms.text_of(found), sep="\n")
    record = {
        "study": f"decay_families, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.seeds,
        "updates": planned["updates"],
        "schedules": dict(zip(NAMES, planned["schedules"], strict=True)),
        "rules": RULES,
        "arms": [*rows],
        "tables": {
            title: [{k: row[k] for k in ("setting", "behind", "tied")} for row in members]
            for title, members in ranked.items()
        },
        "warm_up": warmups,
        "verdicts": found,
        "seconds": round(seconds, 1),
    }
    path = arms.save(record, f"decay_families_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        for figure in "decay_families", "decay_families_warmup":
            shutil.copyfile(figures / f"{figure}.png", ROOT / "docs" / f"{figure}.png")
    print(f"{seconds:,.0f} s of training\nrecord {path}\nfigures {figures}")


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records."""
    rows, seconds = compare(size, workdir)
    warmups, more = warm_up(size, workdir)
    report(name, size, rows, warmups, workdir, seconds + more)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
