"""The 500-run valley: D. Mack's study of learning rates on MNIST (2018), trained again as lanes.

Claims: most rates fail; each rule has a valley; no rate suits all; and more (`verdicts`).
Source: "How to pick the best learning rate for your machine learning project"; his points are in
        third_party/mack_2018, his program's settings are RULES, `rates`, and what `config` says.
Run:    LRLAB_DATA_DIR=... python -m experiments.mack_2018 --size=desk --workdir=runs/mack
        (--size=smoke: seconds; --size=paper: his net, for a GPU; --dry_run: the plans only)
Makes:  <workdir>/plots; desk and paper also experiments/results/mack_2018_<size>_<device>.json,
        desk docs/mack_2018.png. The same command goes on where it was stopped.

Two semantics of "trained to 97 %". clean: the mean training accuracy of the last 2,000 examples.
published: that of all examples since the start, looked at every 50 updates; a late riser carries
its early errors along, so the cap must be higher. No stop rule is used. But what the clean sweep
saw can rule a trial out of the published one exactly, since both train it alike: a trial with more
wrong answers than 3 % of all that the cap allows can never pass.
"""

import argparse
import csv
import dataclasses
import datetime
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.recipes import device
from lrlab import charts, devices, plots, records
from lrlab import main as command
from lrlab.analysis import valley
from lrlab.jobs import sweep, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "third_party" / "mack_2018"
BATCH, TRAIN = 100, 55_000
LOOK = 50  # updates between two looks, his
RULES: dict[str, dict[str, Any]] = {  # TensorFlow 1's; his names
    "Adam": {"name": "adam", "dialect": "tf1"},
    "Adadelta": {"name": "adadelta", "dialect": "tf1"},
    "Momentum": {"name": "momentum", "decay": 0.5, "dialect": "tf1"},
    "Adagrad": {"name": "adagrad", "dialect": "tf1"},
    "GD": {"name": "sgd"},
    "RMSProp": {"name": "rmsprop", "dialect": "tf1"},
}
SIZE_RATES = (1e-4, 5e-4, 1e-3, 1.46e-3, 5e-3, 1e-2)  # of Adam, in the study of sizes
STUDIES = ("clean", "published", "growth")
SEMANTICS = ("published", "clean", "cumulative")  # his points; ours in either semantics
HIS_CAP = 122.0  # seconds
TIE = 1.05  # times as long as the fastest: the same look of his clock

Row = dict[str, Any]
Times = dict[str, list[tuple[float, float]]]  # of each rule (rate, time to target), by rate


def rates() -> tuple[float, ...]:
    """His 48, a sixth of a decade apart, 1e-6 to 100; 1.0 is not among them."""
    return tuple(10 ** (i / 6) for i in (*range(-36, 0), *range(1, 13)))


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    target: accuracy to reach; goal: that of the study of model sizes. clean, published, growth:
    updates of a trial at most.
    """

    model: dict[str, Any]
    rates: tuple[float, ...]
    target: float
    goal: float
    clean: int
    published: int
    growth: int
    scales: tuple[float, ...]
    seeds: tuple[int, ...]


SMALL, LARGE = {"name": "cnn.SmallCNN"}, {"name": "cnn.MnistCNN", "dropout": 0.4}
SIZES = {
    # Low targets, so that something trains and every part runs.
    "smoke": Size(
        SMALL, rates()[2::8], 0.8, 0.8, 200, 200, 200, scales=(1.0, 1.5, 2.0), seeds=(0,)
    ),
    # The small net's fastest trials are done after 600 updates in clean semantics and 3,500 in
    # published ones: caps of 2,000 and 8,000 leave room for others.
    "desk": Size(
        SMALL,
        rates(),
        0.97,
        0.96,
        2000,
        8000,
        2000,
        scales=tuple(1 + i / 2 for i in range(7)),
        seeds=(0, 1, 2),
    ),
    # His cap was 120 s: some 16,000 updates, if one took his K80 7 ms.
    "paper": Size(
        LARGE,
        rates(),
        0.97,
        0.96,
        4000,
        16_000,
        4000,
        scales=tuple(1 + i / 4 for i in range(36)),
        seeds=(0,),
    ),
}


def config(
    size: Size, study: str, rule: str | None = None, chosen: Sequence[float] | None = None
) -> dict[str, Any]:
    """The sweep of a study; of one rule and chosen rates only, where they are given."""
    cap = getattr(size, study)
    rules = [RULES[rule]] if rule else list(RULES.values())
    axes: tuple[dict[str, Any], ...] = (
        {"key": "optimizer", "values": tuple(rules)},
        {"key": "lr", "values": tuple(chosen or size.rates)},
    )
    target: dict[str, Any] = {"accuracy": size.target}
    if study == "published":
        target |= {"examples": None, "every": LOOK}
    if study == "growth":
        target = {"accuracy": size.goal}
        axes = (
            {"key": "model.scale", "values": size.scales},
            {"key": "lr", "values": SIZE_RATES},
            {"key": "seed", "values": size.seeds},
        )
    return {
        "seed": 0,
        "epochs": -(-cap * BATCH // TRAIN),
        "data": {"name": "tfds.images", "dataset": "mnist"},
        "model": dict(size.model),
        "batch": {"name": "fixed", "size": BATCH},
        "optimizer": RULES["Adam"],
        "lr": 1e-3,
        "schedule": ({"name": "constant"},),
        "job": {"name": "sweep"},
        "sweep": {"axes": axes, "updates": cap, "look": LOOK, "target": target},
    }


def cost(model: str, scale: float) -> tuple[int, float]:
    """(weights, floating-point operations of one training example) of a net on MNIST."""
    small = model == SMALL["name"]
    first, second = round((4 if small else 32) * scale), round((8 if small else 64) * scale)
    dense = round(18 * scale) if small else 1024
    sides = (24, 8) if small else (28, 14)
    flat = (sides[1] // 2) ** 2 * second
    kernels = 25 * first, 25 * first * second, flat * dense, dense * 10
    products = sides[0] ** 2 * kernels[0], sides[1] ** 2 * kernels[1], *kernels[2:]
    # Forward, and twice as much backward, without the gradient of the image.
    return sum(kernels) + first + second + dense + 10, 2.0 * (3 * sum(products) - products[0])


# What was trained


def read(folder: Path) -> list[Row]:
    """The trials of a sweep: their point's values, flat, and what became of them."""
    titles = {spec["name"]: title for title, spec in RULES.items()}
    found = []
    for row in sorted(records.read_lines(folder / "trials.jsonl"), key=lambda r: r["trial"]):
        point = dict(row["point"])
        if "optimizer" in point:
            point["rule"] = titles[point.pop("optimizer")["name"]]
        if "model.scale" in point:
            point["scale"] = point.pop("model.scale")
        found.append({**point, **{k: v for k, v in row.items() if k != "point"}})
    return found


def is_in_reach(row: Row, accuracy: float, cap: int) -> bool:
    """Whether a trial may ever reach a cumulative accuracy, or has; from the curve it began.

    Wrong answers only add up: with more of them than the cap allows there is no way back.
    """
    done, wrong = 0, 0.0  # in updates' worth of examples
    for update, _, right in row["curve"]:
        wrong += (update - done) * (1 - right)
        done = update
        if wrong <= (1 - accuracy) * done:
            return True
    return row["outcome"] != "diverged" and wrong <= (1 - accuracy) * cap


def times(rows: Iterable[Row], what: str = "updates") -> Times:
    """Of each rule the rates that reached the target, and the time they took."""
    found: Times = {rule: [] for rule in RULES}
    for row in rows:
        if row["outcome"] == "target":
            found[row["rule"]].append((row["lr"], row[what]))
    return {rule: sorted(pairs) for rule, pairs in found.items()}


def his_times() -> tuple[Times, int]:
    """His points, in seconds on a K80, and how many runs there were."""
    with (SOURCE / "time_vs_lr.csv").open() as f:
        rows = [
            {
                "rule": r["optimizer"],
                "lr": float(r["learning_rate"]),
                "seconds": float(r["seconds"]),
                "outcome": "target" if r["success"] == "1" else "budget",
            }
            for r in csv.DictReader(f)
        ]
    return times(rows, "seconds"), len(rows)


def his_sizes() -> list[Row]:
    """His study of sizes: scale, lr, seconds."""
    with (SOURCE / "time_vs_size.csv").open() as f:
        return [
            {"scale": float(r["scale"]), "lr": float(r["learning_rate"]), "seed": 0}
            | {"seconds": float(r["seconds"]), "outcome": "target"}
            for r in csv.DictReader(f)
        ]


# What it says


def band(pairs: Sequence[tuple[float, float]], grid: Sequence[float]) -> dict[str, Any]:
    """The rates of a rule that trained: how many, from where to where, with how many gaps.

    below, above: rates of the grid that are too low and too high.
    """
    if not pairs:
        return {"trained": 0}
    lrs, took = [lr for lr, _ in pairs], [t for _, t in pairs]
    inside = sum(min(lrs) * 0.99 <= lr <= max(lrs) * 1.01 for lr in grid)
    best = took.index(min(took))
    return {
        "trained": len(pairs),
        "low": min(lrs),
        "high": max(lrs),
        "decades": valley.decades(min(lrs), max(lrs)),
        "gaps": inside - len(pairs),
        "below": sum(lr < min(lrs) * 0.99 for lr in grid),
        "above": sum(lr > max(lrs) * 1.01 for lr in grid),
        "best_lr": lrs[best],
        "best": took[best],
        "median": float(np.median(took)),
    }


def bands(grid: Sequence[float], clean: Times, cumulative: Times) -> list[dict[str, Any]]:
    """Of each rule the rates that train: his, and ours in both semantics."""
    his = his_times()[0]
    return [
        {
            "rule": rule,
            "published": band(his[rule], rates()),
            "clean": band(clean[rule], grid),
            "cumulative": band(cumulative[rule], grid),
        }
        for rule in RULES
    ]


def overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> float | None:
    """Decades that two bands share, negative: how far apart they are; None where one is empty."""
    if not (a["trained"] and b["trained"]):
        return None
    return math.log10(min(a["high"], b["high"]) / max(a["low"], b["low"]))


def at_rates(found: Times) -> dict[float, dict[str, float]]:
    """For each rate, by its first four digits, the rules that trained there and their times."""
    rows: dict[float, dict[str, float]] = {}
    for rule, pairs in found.items():
        for lr, took in pairs:
            rows.setdefault(float(f"{lr:.4g}"), {})[rule] = took
    return dict(sorted(rows.items()))


def roughness(found: Times) -> float | None:
    """By what factor a time differs from the geometric mean of its two neighbours', r.m.s.

    Neighbours are next to each other among the 48 rates; a smooth valley is near 1.
    """
    steps = []
    for pairs in found.values():
        for (a, x), (b, y), (c, z) in zip(pairs, pairs[1:], pairs[2:], strict=False):
            if _place(c) - _place(b) == _place(b) - _place(a) == 1:
                steps.append(math.log10(y) - (math.log10(x) + math.log10(z)) / 2)
    return 10 ** float(np.sqrt(np.mean(np.square(steps)))) if steps else None


def _place(lr: float) -> int:
    """Which of the 48 rates it is."""
    sixths = round(6 * math.log10(lr))
    return sixths - (sixths > 0)


def ties(found: Times) -> dict[str, Any]:
    """Trials that took no longer than TIE times the fastest of their rule: how many beside it."""
    near = {
        rule: [lr for lr, t in pairs if t <= TIE * min(t for _, t in pairs)]
        for rule, pairs in found.items()
    }
    widths = [valley.decades(lrs[0], lrs[-1]) for lrs in near.values() if lrs]
    return {
        "trials": sum(max(0, len(lrs) - 1) for lrs in near.values()),
        "widest_decades": max(widths, default=0.0),
    }


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Least squares y = c + k x, and R^2; intervals: 95 %, percentile bootstrap of the points."""
    table = np.array([np.ones(len(x)), x, y], np.float64).T

    def solve(rows: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(rows[:, :2], rows[:, 2], rcond=None)[0]

    c, k = solve(table)
    rng = np.random.default_rng(0)
    draws = table[rng.integers(0, len(table), (valley.RESAMPLES, len(table)))]
    lines = np.array([solve(rows) for rows in draws if len(set(rows[:, 1])) > 1])
    ends = np.quantile(lines, (0.025, 0.975), axis=0).T
    rest = ((table[:, 2] - c - k * table[:, 1]) ** 2).sum()
    spread = ((table[:, 2] - table[:, 2].mean()) ** 2).sum()
    return {
        "points": len(table),
        "c": float(c),
        "c_interval": ends[0].tolist(),
        "k": float(k),
        "k_interval": ends[1].tolist(),
        "r2": float(1 - rest / spread) if spread else 1.0,
    }


def growth(rows: Sequence[Row], model: str, what: str) -> dict[str, Any]:
    """How the time to target grows with the weights, at one rate, and whether the best rate moves.

    The rate is the one that, of those that trained at every scale, took the least geometric mean.

    Returns:
      lr; fit: time against weights; power: log time against log weights; best: at each scale and
      seed the fastest rate; moves: log10 of that rate against log10 of the weights. None where too
      little trained.
    """
    hits = [r for r in rows if r["outcome"] == "target"]
    scales, seeds = sorted({r["scale"] for r in hits}), sorted({r["seed"] for r in hits})
    found: dict[str, Any] = dict.fromkeys(("lr", "fit", "power", "moves"))
    found["best"] = []
    if len(scales) < 3:
        return found
    by_rate = {lr: [r for r in hits if r["lr"] == lr] for lr in sorted({r["lr"] for r in hits})}
    steady = {
        lr: float(np.mean([math.log(r[what]) for r in there]))
        for lr, there in by_rate.items()
        if {r["scale"] for r in there} == set(scales)
    }
    if steady:
        found["lr"] = min(steady, key=lambda lr: steady[lr])
        there = by_rate[found["lr"]]
        weights = [cost(model, r["scale"])[0] for r in there]
        took = [r[what] for r in there]
        found["fit"] = line(weights, took)
        found["power"] = line([math.log(n) for n in weights], [math.log(t) for t in took])
    for scale in scales:
        for seed in seeds:
            there = [r for r in hits if (r["scale"], r["seed"]) == (scale, seed)]
            if there:
                best = min(there, key=lambda r: r[what])["lr"]
                found["best"].append({"scale": scale, "seed": seed, "lr": best})
    x = [math.log10(cost(model, b["scale"])[0]) for b in found["best"]]
    found["moves"] = line(x, [math.log10(b["lr"]) for b in found["best"]])
    return found


def verdicts(
    grid: Sequence[float], clean: Times, cumulative: Times, grown: Row, runs: int
) -> list[dict[str, str]]:
    """Each claim: what he published, what we saw in either semantics, and whether it holds here.

    Args:
      grid: rates that were tried. runs: trials in each semantics.
      grown: {"ours": growth in device seconds, "operations", "updates", "published"}.
    """
    his, his_runs = his_times()
    all_three = (his, his_runs), (clean, runs), (cumulative, runs)
    table = bands(grid, clean, cumulative)
    three = [{row["rule"]: row[k] for row in table} for k in SEMANTICS]
    said: list[dict[str, str]] = []

    def add(claim: str, texts: Sequence[str], holds: Sequence[bool]) -> None:
        here = "yes" if all(holds) else "in part" if any(holds) else "no"
        said.append({"claim": claim, **dict(zip(SEMANTICS, texts, strict=True)), "holds": here})

    def each(show: Callable[[Times, int, Mapping[str, Any]], str]) -> list[str]:
        return [show(f, n, b) for (f, n), b in zip(all_three, three, strict=True)]

    def count(found: Times) -> int:
        return sum(map(len, found.values()))

    ours = all_three[1:]
    add(
        "most rates fail",
        each(
            lambda f, n, b: (
                f"{1 - count(f) / n:.0%} fail ({count(f)} of {n} train); too low "
                f"{sum(b[r].get('below', 0) for r in RULES)}, too high "
                f"{sum(b[r].get('above', 0) for r in RULES)}"
            )
        ),
        [count(f) < n / 2 for f, n in ours],
    )
    shared = [[overlap(b[rule], three[0][rule]) for rule in RULES] for b in three[1:]]
    add(
        "each rule has a valley",
        [
            f"{sum(b[r]['trained'] > 0 for r in RULES)} of 6 rules, "
            f"{sum(b[r]['trained'] > 0 and b[r]['gaps'] == 0 for r in RULES)} unbroken"
            + (
                f", {sum((x or -1.0) >= 0 for x in shared[i - 1])} overlap the published band"
                if i
                else ""
            )
            for i, b in enumerate(three)
        ],
        [all(b[r]["trained"] and b[r]["gaps"] == 0 for r in RULES) for b in three[1:]],
    )
    most = [max(map(len, at_rates(f).values()), default=0) for f, _ in all_three]
    add("no rate for all", [f"at most {n} of 6 rules" for n in most], [n < 6 for n in most[1:]])

    def spread(found: Times) -> tuple[float, float] | None:
        took = sorted(t for pairs in found.values() for _, t in pairs)
        return (float(np.median(took)) / took[0], took[-1] / took[0]) if took else None

    factors = [spread(f) for f, _ in all_three]
    add(
        "the best is far faster than the median",
        [f"x{a[0]:.1f}, slowest x{a[1]:.1f}" if a else "none trained" for a in factors],
        [a is not None and a[0] >= 2 for a in factors[1:]],
    )
    add(
        "Adam's band is wide, and the widest",
        each(
            lambda _f, _n, b: (
                f"{b['Adam'].get('decades', 0):.2f} decades; next "
                f"{max(b[r].get('decades', 0) for r in RULES if r != 'Adam'):.2f}"
            )
        ),
        [
            all(b["Adam"].get("decades", 0) >= b[r].get("decades", 0) for r in RULES)
            for b in three[1:]
        ],
    )
    said += [*_of_growth(grown), *_of_scatter(his, clean, cumulative)]
    return said


def _of_growth(grown: Row) -> list[dict[str, str]]:
    ours, his = grown["ours"], grown["published"]
    if not (ours["fit"] and ours["moves"]):
        return []

    def moves(found: Row) -> str:
        low, high = found["moves"]["k_interval"]
        kinds = sorted({b["lr"] for b in found["best"]})
        return (
            f"as weights^{found['moves']['k']:.2f} [{low:.2f}, {high:.2f}]; best at "
            + ", ".join(f"{lr:g}" for lr in kinds)
        )

    def fits(found: Row) -> str:
        fit, power = found["fit"], found["power"]
        return (
            f"R2 {fit['r2']:.2f}, as weights^{power['k']:.2f} [{power['k_interval'][0]:.2f}, "
            f"{power['k_interval'][1]:.2f}] at lr={found['lr']:g}"
        )

    low, high = grown["updates"]["moves"]["k_interval"]
    operations = grown["operations"]
    is_linear = operations["fit"]["r2"] >= 0.9
    return [
        {
            "claim": "the best rate moves with size",
            "published": moves(his),
            "clean": f"{moves(grown['updates'])} (updates)",
            "cumulative": "not trained",
            "holds": "yes" if low > 0 or high < 0 else "no",
        },
        {
            "claim": "time grows linearly with size",
            "published": fits(his),
            "clean": f"{fits(ours)} (device seconds); {fits(operations)} (operations)",
            "cumulative": "not trained",
            "holds": "yes" if is_linear else "no",
        },
    ]


def _of_scatter(his: Times, clean: Times, cumulative: Times) -> list[dict[str, str]]:
    three = his, clean, cumulative
    rough, tied = [roughness(f) for f in three], [ties(f) for f in three]
    delays = [
        slow / dict(clean[rule])[lr]
        for rule in RULES
        for lr, slow in cumulative[rule]
        if lr in dict(clean[rule])
    ]
    texts = [
        (f"neighbours differ x{r:.2f}; " if r else "")
        + f"{t['trials']} ties with the fastest, over {t['widest_decades']:.1f} decades"
        for r, t in zip(rough, tied, strict=True)
    ]
    if delays:
        texts[2] += f"; x{np.median(delays):.1f} later than clean (median of {len(delays)})"
    explained = [
        bool(delays) and float(np.median(delays)) >= 2,
        bool(rough[0] and rough[2]) and math.log(rough[2] or 1) >= math.log(rough[0] or 1) / 2,
        tied[2]["trials"] >= tied[0]["trials"] / 2,
    ]
    return [
        {
            "claim": "the cumulative stop rule explains his scatter",
            **dict(zip(SEMANTICS, texts, strict=True)),
            "holds": "yes" if all(explained) else "in part" if any(explained) else "no",
        }
    ]


# How it looks


def _figure(columns: int, rows: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def _name(ax: "Axes", title: str, x: str, y: str, log: str = "xy") -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
        _ticks(ax)


def _ticks(ax: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.10g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _looks() -> Iterable[tuple[str, str, str]]:
    return zip(RULES, charts.COLORS, charts.MARKERS, strict=False)


def draw_valleys(clean: Times, cumulative: Times, caps: tuple[float, float], y: str) -> "Figure":
    """Time to target against rate in both semantics, a line a rule; his points, faint, below.

    caps: of either semantics, drawn where they are finite.
    """
    with plots.style(plots.LIGHT):
        figure, panels = _figure(1, 2, 8.4, 7.2)
        titles = (
            "Clean: mean accuracy of the last 2,000 examples",
            "As published: mean accuracy since the start (faint: his runs)",
        )
        for ax, found, cap, title in zip(panels, (clean, cumulative), caps, titles, strict=True):
            for rule, color, marker in _looks():
                if found[rule]:
                    ax.plot(*zip(*found[rule], strict=True), color=color, marker=marker, label=rule)
            if math.isfinite(cap):
                ax.axhline(cap, color=plots.LIGHT.soft, linewidth=0.8, linestyle=(0, (4, 3)))
            _name(ax, title, "learning rate", y)
            ax.set_xlim(1e-6, 120)
        his, below = his_times()[0], panels[1]
        right = below.twinx() if math.isfinite(caps[1]) else below
        for rule, color, marker in _looks():
            right.plot(
                *zip(*his[rule], strict=True),
                color=color,
                marker=marker,
                linestyle="none",
                alpha=0.3,
            )
        if right is not below:  # both caps at one height
            right.set_yscale("log")
            right.set_ylim(HIS_CAP / 25, HIS_CAP * 1.25)
            below.set_ylim(caps[1] / 25, caps[1] * 1.25)
            right.grid(visible=False)
            right.set_ylabel("his seconds, on a K80")
            _ticks(right)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=6,
        )
    return figure


def draw_extremes(clean: Times) -> "Figure":
    """At each rate the fastest and the slowest rule of those that trained; his below."""
    with plots.style(plots.LIGHT):
        figure, panels = _figure(1, 2, 8.4, 6.4)
        theirs = "Mack 2018: fastest and slowest rule at each rate", "seconds, on a K80"
        ours = "Here: fastest and slowest rule that trained at each rate", "updates to the target"
        for ax, found, (title, y) in zip(
            panels, (clean, his_times()[0]), (ours, theirs), strict=True
        ):
            looks = {rule: (color, marker) for rule, color, marker in _looks()}
            for lr, by_rule in at_rates(found).items():
                fast, slow = (
                    min(by_rule, key=lambda r: by_rule[r]),
                    max(by_rule, key=lambda r: by_rule[r]),
                )
                ax.plot([lr, lr], [by_rule[fast], by_rule[slow]], color=plots.LIGHT.grid, zorder=1)
                for rule, filled in (slow, False), (fast, True):
                    color, marker = looks[rule]
                    ax.plot(
                        [lr],
                        [by_rule[rule]],
                        marker,
                        color=color,
                        markersize=6,
                        markerfacecolor=color if filled else plots.LIGHT.surface,
                    )
            _name(ax, title, "learning rate", y)
            ax.set_xlim(1e-6, 120)
        for rule, color, marker in _looks():
            panels[0].plot([], [], marker, color=color, label=rule)
        panels[0].plot([], [], "o", color=plots.LIGHT.soft, label="fastest")
        panels[0].plot(
            [],
            [],
            "o",
            color=plots.LIGHT.soft,
            markerfacecolor=plots.LIGHT.surface,
            label="slowest, of two or more",
        )
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_curves(rows: Sequence[Row], clean: Times, target: float) -> "Figure":
    """Training accuracy over time of each rule at its best rate: each look, and since the start."""
    with plots.style(plots.LIGHT):
        figure, (left, right) = _figure(2, 1, 9.6, 4.2)
        for rule, color, marker in _looks():
            if not clean[rule]:
                continue
            best = min(clean[rule], key=lambda pair: pair[1])[0]
            row = next((r for r in rows if (r["rule"], r["lr"]) == (rule, best)), None)
            if row is None:
                continue
            at, _, mean = np.array(row["curve"]).T
            look: dict[str, Any] = {"color": color, "marker": marker, "markevery": 0.1}
            left.plot(at, mean, linewidth=0.9, label=f"{rule} {best:.2g}", **look)
            since = np.cumsum(mean * np.diff(at, prepend=0)) / at
            right.plot(at, since, **look)
        for ax, title in (left, "Of each 50 updates"), (right, "Of all updates since the start"):
            ax.axhline(target, color=plots.LIGHT.soft, linewidth=0.8, linestyle=(0, (4, 3)))
            _name(ax, title, "updates", "training accuracy", log="")
            ax.set_ylim(target - 0.12, 1)
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        left.legend(loc="lower right", fontsize=8.5)
        figure.suptitle("Each rule at its best rate", x=0.01, ha="left", fontsize=10)
    return figure


def draw_growth(rows: Sequence[Row], grown: Row, model: str) -> "Figure":
    """What it took to the target against weights: a line a rate, and the fit at one; his too."""
    with plots.style(plots.LIGHT):
        figure, panels = _figure(2, 2, 9.6, 7.8)
        large, his = LARGE["name"], his_sizes()
        kinds = (
            (rows, model, "updates", "updates", "Updates", "updates to the target"),
            (rows, model, "operations", "operations", "Work", "10^9 operations to the target"),
            (rows, model, "seconds", "ours", "Time", "device seconds to the target"),
            (his, large, "seconds", "published", "Mack 2018", "seconds to 96 %, on a K80"),
        )
        for ax, (points, net, what, found, title, y) in zip(panels, kinds, strict=True):
            for lr, color, marker in zip(SIZE_RATES, charts.COLORS, charts.MARKERS, strict=False):
                by_size: dict[int, list[float]] = {}
                for r in points:
                    if r["lr"] == lr and r["outcome"] == "target":
                        by_size.setdefault(cost(net, r["scale"])[0], []).append(r[what])
                means = [(n, float(np.mean(took))) for n, took in sorted(by_size.items())]
                if means:
                    ax.plot(
                        *zip(*means, strict=True),
                        color=color,
                        marker=marker,
                        markersize=3.5,
                        linewidth=0.9,
                        label=f"{lr:g}",
                    )
            _name(ax, title, "weights", y, log="")
            if (fit := grown[found]["fit"]) and what != "updates":
                _draw_fit(ax, fit, grown[found]["lr"])
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1e6:g} M" if v >= 1e6 else f"{v:,.0f}")
        figure.legend(*panels[3].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return figure


def _draw_fit(ax: "Axes", fit: Mapping[str, Any], lr: float) -> None:
    ends = np.array(ax.get_xlim()).clip(0)
    ax.plot(
        ends,
        fit["c"] + fit["k"] * ends,
        color=plots.LIGHT.ink,
        linewidth=1.4,
        linestyle=(0, (5, 2)),
        label="c + k n",
    )
    low, high = fit["k_interval"]
    note = f"at {lr:g}: k = {fit['k']:.3g} [{low:.3g}, {high:.3g}] a weight"
    ax.annotate(note, (0.03, 0.96), xycoords="axes fraction", va="top", fontsize=8.5)


# The command


def train_all(size: Size, workdir: Path, dry_run: bool) -> None:
    """Trains the sweeps, or goes on with them; those that are done say so."""
    words = " ".join(sys.argv[1:])
    options = train.Options(
        "experiments/mack_2018.py", f"python -m experiments.mack_2018 {words}", dry_run
    )
    for study in STUDIES:
        folder = workdir / study
        if study != "published" or dry_run:
            sweep.run(config(size, study), folder, options)
            continue
        began = read(workdir / "clean")
        for rule in RULES:
            there = [r for r in began if r["rule"] == rule]
            chosen = [r["lr"] for r in there if is_in_reach(r, size.target, size.published)]
            if chosen:
                sweep.run(config(size, study, rule, chosen), folder / rule.lower(), options)


def report(name: str, size: Size, workdir: Path) -> None:
    """Figures, verdicts and record of sweeps that are done."""
    clean_rows, grown_rows = read(workdir / "clean"), read(workdir / "growth")
    folders = [workdir / "published" / rule.lower() for rule in RULES]
    published_rows = [row for folder in folders if folder.exists() for row in read(folder)]
    clean, cumulative = times(clean_rows), times(published_rows)
    model = size.model["name"]
    for row in grown_rows:
        row["operations"] = row["updates"] * BATCH * cost(model, row["scale"])[1] / 1e9
    grown = {
        "ours": growth(grown_rows, model, "seconds"),
        "operations": growth(grown_rows, model, "operations"),
        "updates": growth(grown_rows, model, "updates"),
        "published": growth(his_sizes(), LARGE["name"], "seconds"),
    }
    found = verdicts(size.rates, clean, cumulative, grown, len(clean_rows))
    caps = size.clean, size.published
    seconds = times(clean_rows, "seconds"), times(published_rows, "seconds")
    none = math.inf, math.inf
    figures = {
        "valley_updates": draw_valleys(clean, cumulative, caps, "updates to the target"),
        "valley_seconds": draw_valleys(*seconds, none, "device seconds to the target"),
        "extremes": draw_extremes(clean),
        "curves": draw_curves([*published_rows, *clean_rows], clean, size.target),
        "growth": draw_growth(grown_rows, grown, model),
    }
    for stem, figure in figures.items():
        plots.save(figure, workdir / "plots" / stem)
    record = {
        "study": f"mack_2018, {name}",
        "settings": {**dataclasses.asdict(size), "rates": len(size.rates)},
        "verdicts": found,
        "bands": bands(size.rates, clean, cumulative),
        "growth": grown,
        "studies": {
            "clean": _spent(clean_rows),
            "published": _spent(published_rows)
            | {"out_of_reach": len(clean_rows) - len(published_rows)},
            "growth": _spent(grown_rows),
        },
        "same": _same(clean_rows, published_rows),
        "trained": {"clean": _points(clean_rows), "published": _points(published_rows)},
        "device": device(),
        "date": datetime.date.today().isoformat(),
        "lrlab": records.environment(),
    }
    slug = re.sub(r"\W+", "_", record["device"].lower()).strip("_")
    is_small = name == "smoke"
    results = workdir if is_small else ROOT / "experiments" / "results"
    path = results / f"mack_2018_{name}_{slug}.json"
    records.write_text(path, _short(record))
    if name == "desk":
        shutil.copyfile(workdir / "plots" / "valley_updates.png", ROOT / "docs" / "mack_2018.png")
    print(_table(record))
    print(f"record {path}\nfigures {workdir / 'plots'}")


def _spent(rows: Sequence[Row]) -> dict[str, Any]:
    """What a study took. wall_seconds: of training, without compiling and testing."""
    outcomes = [r["outcome"] for r in rows]
    device_seconds = sum(r["seconds"] for r in rows)
    return {
        "trials": len(rows),
        "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
        "updates": sum(r["updates"] for r in rows),
        "device_seconds": device_seconds,
        "wall_seconds": device_seconds / devices.count(),
    }


def _same(clean: Sequence[Row], published: Sequence[Row]) -> dict[str, Any]:
    """How far the two sweeps' accuracies differ in the looks that both took of a trial."""
    curves = {(r["rule"], r["lr"]): r["curve"] for r in clean}
    pairs = [
        (a[2], b[2])
        for r in published
        for a, b in zip(r["curve"], curves[r["rule"], r["lr"]], strict=False)
        if a[0] == b[0]
    ]
    return {"looks": len(pairs), "largest": max((abs(a - b) for a, b in pairs), default=0.0)}


def _points(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """Of each rule [rate, updates, device seconds, accuracy on the validation set]."""
    kept = "lr", "updates", "seconds", "val_accuracy"
    return {
        rule: [
            [row[k] for k in kept]
            for row in rows
            if row["rule"] == rule and row["outcome"] == "target"
        ]
        for rule in RULES
    }


def _short(record: Row) -> str:
    """JSON with six digits a number; innermost lists on a line."""

    def cut(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {k: cut(v) for k, v in value.items()}
        return [cut(v) for v in value] if isinstance(value, list | tuple) else value

    text = json.dumps(cut(record), indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def _table(record: Row) -> str:
    """Bands and verdicts for a terminal."""

    def text(b: Mapping[str, Any]) -> str:
        return f"{b['trained']:>2} {b['low']:.2g} … {b['high']:.2g}" if b["trained"] else " 0"

    lines = [f"{'rates that train':<18}{'published':<24}{'clean':<24}cumulative"]
    for row in record["bands"]:
        cells = [text(row[k]) for k in SEMANTICS]
        lines.append(f"{row['rule']:<18}{cells[0]:<24}{cells[1]:<24}{cells[2]}")
    for study, spent in record["studies"].items():
        lines.append(
            f"{study}: {spent['trials']} trials, {spent['updates']:,} updates, "
            f"{spent['wall_seconds']:.0f} s"
        )
    for v in record["verdicts"]:
        lines.append(f"{v['claim']}: {v['holds'].upper()}")
        lines += [f"  {k:<11}{v[k]}" for k in SEMANTICS]
    return "\n".join(lines)


def main() -> int:
    """Trains, draws, records; returns an exit code as `lrlab.main` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--dry_run", action="store_true", help="shows the plans, trains nothing")
    known = parser.parse_args()
    command._prepare_process()
    command._device_a_core()
    devices.use_cache()
    try:
        train_all(SIZES[known.size], known.workdir, known.dry_run)
    except train.Stopped as e:
        print(f"{e}; the same command goes on", file=sys.stderr)
        return 128 + e.number
    if not known.dry_run:
        report(known.size, SIZES[known.size], known.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
