"""The study's figures, beside the published points."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.mack_2018.claims import at_rates
from experiments.mack_2018.plan import (
    HIS_CAP,
    LARGE,
    RULES,
    SIZE_RATES,
    Row,
    Times,
    cost,
    his_sizes,
    his_times,
)
from lrlab import charts, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def draw_curves(
    rows: Sequence[Row], clean: Times, target: float, held_out: Mapping[str, Any]
) -> "Figure":
    """Accuracy of each rule at its best rate: validation, training at each look, since the start.

    held_out: of each rule [(updates, validation accuracy)].
    """
    with plots.style(plots.LIGHT):
        figure, (first, left, right) = _figure(3, 1, 12.6, 4.2)
        for rule, color, marker in _looks():
            if not clean[rule]:
                continue
            best = min(clean[rule], key=lambda pair: pair[1])[0]
            row = next((r for r in rows if (r["rule"], r["lr"]) == (rule, best)), None)
            if row is None:
                continue
            at, _, mean = np.array(row["curve"]).T
            look: dict[str, Any] = {"color": color, "marker": marker, "markevery": 0.1}
            first.plot(*zip(*held_out[rule], strict=True), linewidth=0.9, **look)
            left.plot(at, mean, linewidth=0.9, label=f"{rule} {best:.2g}", **look)
            since = np.cumsum(mean * np.diff(at, prepend=0)) / at
            right.plot(at, since, **look)
        titles = (
            "Validation, every 50 updates",
            "Training, of each 50 updates",
            "Training, of all since the start",
        )
        for ax, title in zip((first, left, right), titles, strict=True):
            ax.axhline(target, color=plots.LIGHT.soft, linewidth=0.8, linestyle=(0, (4, 3)))
            _name(ax, title, "updates", "accuracy" if ax is first else "", log="")
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
    ax.set_title(note, loc="right", fontsize=8.5)
