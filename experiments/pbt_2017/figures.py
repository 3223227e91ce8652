"""The figure of the study: best against budget, rates along the ancestry, all comparisons."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import arms
from experiments.pbt_2017.claims import Runs, accuracies, fixed, in_effect
from experiments.pbt_2017.plan import (
    FIXED,
    LONG,
    PBT,
    POINTS,
    RANDOM,
    SCRATCH,
    SEARCHED,
    SEARCHES,
    SHORT,
)
from experiments.pbt_2017.runs import course, so_far
from lrlab import charts, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 0.05  # of accuracy below its base: such an arm is written at the edge, not drawn


def curves(known: Sequence[Mapping[str, Any]], arm: str) -> tuple[np.ndarray, np.ndarray]:
    """(examples [points], best validation accuracy so far [seeds, points]); NaN before a look."""
    top = max(run[arm]["examples"] for run in known)
    at = top * np.arange(1, POINTS + 1) / POINTS
    return at, np.array([[so_far(run[arm]["curve"], x) for x in at] for run in known])


def draw(runs: Runs) -> "Figure":
    """Of each data set: best so far against examples, the winners' rates, all the comparisons."""
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(14.4, 4.1 * len(runs) + 0.5), layout="constrained")
        panels = figure.subplots(len(runs), 3, squeeze=False, width_ratios=(1, 1, 1.05))
        for i, (data, known) in enumerate(runs.items()):
            is_last = i + 1 == len(runs)
            _best(panels[i, 0], known)
            _rates(panels[i, 1], known)
            _gaps(panels[i, 2], known)
            n = len(known)
            titles = (
                f"{data}: best validation accuracy so far",
                "Rate in effect of the winner's ancestors",
                f"Test accuracy, n = {n}",
            )
            for ax, title in zip(panels[i], titles, strict=True):
                ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
            if is_last:
                panels[i, 0].set_xlabel("training examples of all trials together, millions")
                panels[i, 1].set_xlabel("optimizer updates (thin: each seed; thick: median)")
                panels[i, 2].set_xlabel("difference, % (95 % intervals over seeds)")
                for ax, columns in zip(panels[i], (3, 2, 1), strict=True):
                    ax.legend(
                        loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=columns, fontsize=8.5
                    )
    return figure


def _best(ax: "Axes", known: Sequence[Mapping[str, Any]]) -> None:
    low, high = 1.0, 0.0
    looks = zip((PBT, *SEARCHES), charts.COLORS, charts.MARKERS, strict=False)
    for arm, color, marker in looks:
        at, each = curves(known, arm)
        gaps = [arms.gap(column, np.zeros(len(column))) for column in each.T]
        mean, least, most = (np.array([g[key] for g in gaps]) for key in ("gap", "low", "high"))
        ax.plot(at / 1e6, mean, color=color, marker=marker, markevery=5, label=arm)
        ax.fill_between(at / 1e6, least, most, color=color, alpha=0.12, linewidth=0)
        late = at > 0.2 * at[-1]
        low, high = min(low, np.nanmin(mean[late])), max(high, np.nanmax(mean[late]))
    ax.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")


def _rates(ax: "Axes", known: Sequence[Mapping[str, Any]]) -> None:
    looks = zip((PBT, SHORT, LONG), charts.COLORS, ("-", (0, (2, 1.5)), (0, (6, 2))), strict=False)
    for arm, color, dashes in looks:
        rates = np.array([in_effect(course(r[arm]["lineage"], r[arm]["updates"])) for r in known])
        if arm == PBT:
            for each in rates:
                ax.plot(2.0**each, color=color, linewidth=0.7, alpha=0.5)
        ax.plot(2.0 ** np.median(rates, 0), color=color, linestyle=dashes, linewidth=2.2, label=arm)
    best = [fixed(run[PBT]) for run in known]
    soft = plots.LIGHT.soft
    ax.axhline(2.0 ** np.median(best), color=soft, linestyle="-.", linewidth=1.4, label=FIXED)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")


def _gaps(ax: "Axes", known: Sequence[Mapping[str, Any]]) -> None:
    tested = accuracies(known)
    groups = (
        (RANDOM, [arm for arm in SEARCHED if arm != RANDOM], "searches, less random search"),
        (FIXED, [arm for arm in SCRATCH if arm != FIXED], "from scratch, less the best fixed"),
    )
    names: list[str] = []
    shown: list[float] = []
    for (base, own, text), color, marker in zip(
        groups, charts.COLORS, charts.MARKERS, strict=False
    ):
        gaps = [arms.gap(tested[arm], tested[base]) for arm in own]
        mean, low, high = (100 * np.array([g[k] for g in gaps]) for k in ("gap", "low", "high"))
        at, near = np.arange(len(own)) + len(names), mean > -100 * FAR
        ax.errorbar(
            mean[near],
            at[near],
            xerr=[(mean - low)[near], (high - mean)[near]],
            color=color,
            marker=marker,
            linestyle="none",
            elinewidth=1.6,
            label=text,
        )
        edge = ax.get_yaxis_transform()
        for y, i in zip(at[~near], np.flatnonzero(~near), strict=True):
            told = f" < {mean[i]:.1f} % [{low[i]:.1f}, {high[i]:.1f}]"
            ax.text(0, y, told, transform=edge, color=color, va="center", fontsize=8.5)
        names += own
        shown += [*low[near], *high[near]]
    room = 0.06 * (max(shown) - min(shown)) + 1e-9
    ax.set_xlim(min(*shown, 0) - room, max(*shown, 0) + room)
    ax.axvline(0, color=plots.LIGHT.soft, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
