"""Figures of many runs and of range tests, in the style of `plots`."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrlab import plots
from lrlab.plots import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without their yellow, which is faint on white; markers differ too.
COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6b6b6b"
MARKERS = "osD^vPX"
BATCH = "batch.size"
MANY = 24  # columns of a map that can show their numbers
FEW = 15  # points of a curve that can be marked one by one
WORDS = {
    "val_accuracy": "validation accuracy",
    "updates": "updates to the target",
    "seconds": "seconds to the target",
    "lr": "learning rate",
    "batch.size": "batch size (examples)",
}


def _frame(ax: "Axes", theme: Theme, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", pad=10, fontsize=10, fontweight="bold", color=theme.ink)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.tick_params(axis="both", which="both", length=0)
    ax.tick_params(axis="x", length=3)
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False, axis="x")


def _wide(
    theme: Theme, width: float = 7.4, height: float = 4.1, names: Iterable[str] = ()
) -> tuple["Figure", "Axes"]:
    """One panel with room at its right for a legend of these names."""
    from matplotlib.figure import Figure

    right = max(1.66, 0.62 + 0.075 * max(map(len, names), default=0))
    width += right - 1.66
    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes(
        (0.74 / width, 0.5 / height, (width - 0.74 - right) / width, (height - 0.9) / height)
    )


def _legend(ax: "Axes", theme: Theme) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8.5, labelcolor=theme.ink)


def lines(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    title: str,
    y: str,
    log_y: bool = False,
    percent: bool = False,
    x: str = "learning rate",
    log_x: bool = True,
    joined: bool = True,
    theme: Theme = LIGHT,
) -> "Figure":
    """A line for each name over points (x, middle, low, high); a band where low and high differ.

    joined: False leaves the lines out, for points that differ in more than x.
    """
    with plots.style(theme):
        figure, ax = _wide(theme, names=series)
        looks = itertools.cycle(zip(COLORS, MARKERS, strict=True))
        for (name, points), (color, marker) in zip(series.items(), looks, strict=False):
            if not points:
                continue
            at, middle, low, high = np.array(sorted(points)).T
            line = "-" if joined else "none"
            ax.plot(
                at, middle, color=color, marker=marker, linestyle=line, label=name, clip_on=False
            )
            if joined and (low < high).any():
                ax.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
        if log_x:
            ax.set_xscale("log")
        if log_y:
            ax.set_yscale("log")
        if percent:
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        _frame(ax, theme, title, x, y)
        _legend(ax, theme)
    return figure


def heat(
    table: np.ndarray,
    x: Sequence[str],
    y: Sequence[str],
    names: tuple[str, str],
    title: str,
    over: Mapping[str, np.ndarray] | None = None,
    theme: Theme = LIGHT,
) -> "Figure":
    """Accuracy [len(y), len(x)] as a map; the best cell is framed.

    Of many columns the cells are narrow, their numbers left out, and some of them named.

    Args:
      over: lines across the map, by name: the column of each row, a float [len(y)].
    """
    with plots.style(theme):
        every = 1 if len(x) <= MANY else 6
        left = max(1.3, 0.3 + 0.075 * max(map(len, y)))
        width = max(5.0, left + 0.6 + (0.52 if every == 1 else 0.16) * len(x))
        height = max(2.6, 1.4 + 0.34 * len(y))
        from matplotlib.figure import Figure

        room = 0.3 if over else 0.0  # below, for a legend
        height += room
        figure = Figure(figsize=(width, height))
        box = (width - left - 0.2) / width, (height - 1.2 - room) / height
        ax = figure.add_axes((left / width, (0.75 + room) / height, *box))
        ax.pcolormesh(np.ma.masked_invalid(table), cmap="cividis", edgecolor=theme.surface)
        ax.invert_yaxis()
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        for i, j in np.ndindex(*table.shape):
            if every == 1 and np.isfinite(table[i, j]):
                color = "#ffffff" if table[i, j] < middle else "#101010"
                ax.text(
                    j + 0.5,
                    i + 0.5,
                    f"{100 * table[i, j]:.0f}",
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=7,
                )
        row, column = divmod(int(np.nanargmax(table)), len(x))
        from matplotlib.patches import Rectangle

        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2))
        for (name, columns), dashes in zip((over or {}).items(), ("-", (0, (2, 2))), strict=False):
            seen = (columns >= -0.5) & (columns <= len(x) - 0.5)
            rows = np.arange(len(y))[seen] + 0.5
            halo = {"color": theme.surface, "linewidth": 3.4, "alpha": 0.7}
            ax.plot(columns[seen] + 0.5, rows, **halo)
            ax.plot(columns[seen] + 0.5, rows, color="#d55e00", linestyle=dashes, label=name)
        if over:
            ax.legend(
                loc="upper right", bbox_to_anchor=(1.0, -0.62 / (height - 1.2 - room)), ncols=2,
                fontsize=8.5, labelcolor=theme.ink,
            )  # fmt: skip
        at = np.arange(0, len(x), every)
        ax.set_xticks(at + 0.5, labels=list(x)[::every], rotation=60, ha="right", fontsize=7.5)
        ax.set_yticks(np.arange(len(y)) + 0.5, labels=y, fontsize=8)
        ax.grid(visible=False)
        ax.set_title(title, loc="left", pad=8, fontsize=10, fontweight="bold", color=theme.ink)
        ax.set_xlabel(names[0])
        ax.set_ylabel(names[1])
    return figure


def range_test(
    lrs: np.ndarray,
    curves: np.ndarray,
    smooth: np.ndarray,
    suggestion: Mapping[str, Any],
    name: str = "learning rate",
    log: bool = True,
    y: str = "training loss (nats)",
    theme: Theme = LIGHT,
) -> "Figure":
    """Loss against rate: every seed (faint), their smoothed mean, the readings, the suggestion.

    Args:
      lrs: [updates]. curves: [seeds, updates], NaN from where a seed stopped.
      smooth: [updates], NaN from where the first seed stopped.
      suggestion: of `analysis.suggest`, as a dict.
    """
    with plots.style(theme):
        figure, ax = _wide(theme, width=8.2)
        for i, curve in enumerate(curves):
            label = f"each of {len(curves)} seeds" if i == 0 and len(curves) > 1 else None
            ax.plot(lrs, curve, color=theme.train, alpha=0.28, linewidth=0.9, label=label)
        few = len(lrs) <= FEW
        label = "mean" if few else "smoothed mean"
        ax.plot(lrs, smooth, "o-" if few else "-", color=theme.train, linewidth=2, label=label)
        top = np.nanmax(smooth[: max(1, len(smooth) // 2)])
        bottom = np.nanmin(smooth)
        ax.set_ylim(bottom - 0.08 * (top - bottom), top + 0.6 * (top - bottom) + 1e-6)
        found = {k: v for k, v in (suggestion.get("readings") or {}).items() if v}
        for (reading, lr), marker in zip(found.items(), MARKERS, strict=False):
            height = np.interp(lr, lrs, np.nan_to_num(smooth, nan=top))
            ax.plot(
                [lr],
                [height],
                marker,
                color=theme.val,
                markersize=6.5,
                linestyle="none",
                label=f"{reading} {lr:.2g}",
                zorder=4,
            )
        if suggestion.get("low"):
            ax.axvspan(
                suggestion["low"], suggestion["high"], color=theme.lr, alpha=0.15, linewidth=0
            )
        if suggestion.get("lr"):
            ax.axvline(
                suggestion["lr"],
                color=theme.lr,
                linewidth=1.8,
                label=f"suggested {suggestion['lr']:.2g}",
            )
        if suggestion.get("edge"):
            ax.axvline(
                suggestion["edge"],
                color=theme.ink,
                linewidth=0.9,
                linestyle=(0, (1, 2)),
                label=f"breaks at {suggestion['edge']:.2g}",
            )
        if log:
            ax.set_xscale("log")
        if few:
            ax.set_xticks(lrs, [f"{v:g}" for v in lrs])
            ax.minorticks_off()
        _frame(ax, theme, f"Range test: {suggestion['outcome']}", name, y)
        _legend(ax, theme)
    return figure


def ramp(lrs: np.ndarray, name: str = "learning rate", theme: Theme = LIGHT) -> "Figure":
    """The rate of every update of a range test."""
    with plots.style(theme):
        figure, ax = _wide(theme)
        ax.plot(np.arange(len(lrs)), lrs, color=theme.lr)
        if (lrs > 0).all() and lrs.max() > 20 * lrs.min():
            ax.set_yscale("log")
        _frame(ax, theme, "What each update used", "optimizer updates", name)
    return figure


def noise(runs: Mapping[str, Any], g: str, theme: Theme = LIGHT) -> "Figure":
    """Rate, batch size, momentum and noise scale against examples, a line for each run.

    Args:
      runs: of arrays `examples`, `lr`, `size`, `momentum` and `g`, [updates].
      g: the formula of the noise scale.
    """
    what = {
        "lr": "Learning rate",
        "size": "Batch size (examples)",
        "momentum": "Momentum",
        "g": f"Noise scale {g}",
    }
    with plots.style(theme):
        figure, axes = plots.panels(theme, 2, 2)
        for ax, (key, title) in zip(axes, what.items(), strict=True):
            drawn = []
            for (name, run), color, dashes in zip(
                runs.items(), COLORS, ("-", (0, (5, 2))), strict=False
            ):
                values = np.asarray(getattr(run, key), np.float64)
                x, y = plots.decimate(np.asarray(run.examples, np.float64), values)
                ax.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, label=name)
                drawn.append(values[values > 0])
            seen = np.concatenate(drawn)
            if key != "momentum" and len(seen) and seen.max() > 8 * seen.min():
                ax.set_yscale("log")
            elif len(seen):
                ax.set_ylim(0, 1.08 * seen.max())
            _frame(ax, theme, title, "examples", "")
            ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
            ax.locator_params(axis="x", nbins=5)
        if len(runs) > 1:
            axes[0].legend(loc="best", fontsize=8.5, labelcolor=theme.ink)
    return figure


def lineages(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    paths: Sequence[Sequence[int]],
    log: bool = True,
    theme: Theme = LIGHT,
) -> "Figure":
    """What every member of a population used of a number, and whom the last ones came from.

    Args:
      rows: a generation each: "first", "updates", "values", "donors", "diverged".
      paths: for each member that is left, the best first, who had its state in each generation.
    """
    with plots.style(theme):
        figure, ax = _wide(theme, 9.0, 4.6, ["ancestors of the best"])
        edges = [(row["first"], row["updates"]) for row in rows]
        held = [row["values"][key] for row in rows]
        log = log and min(map(min, held)) > 0
        held = _apart(held, log)

        def course(path: Sequence[int]) -> tuple[list[float], list[float]]:
            x = [at for ends in edges for at in ends]
            return x, [held[g][i] for g, i in enumerate(path) for _ in range(2)]

        ended: tuple[list[float], list[float]] = [], []
        lost: tuple[list[float], list[float]] = [], []
        copied: tuple[list[float], list[float]] = [], []
        for g, row in enumerate(rows):
            for i, value in enumerate(held[g]):
                ended[0].extend((*edges[g], np.nan))
                ended[1].extend((value, value, np.nan))
                if i in row["diverged"]:
                    lost[0].append(edges[g][1])
                    lost[1].append(value)
            for i, donor in enumerate(row["donors"] if g + 1 < len(rows) else ()):
                if donor != i:
                    ended[0].extend((edges[g][1], edges[g][1], np.nan))
                    ended[1].extend((held[g][donor], held[g + 1][i], np.nan))
                    copied[0].append(edges[g][1])
                    copied[1].append(held[g + 1][i])
        faint = {"color": theme.soft, "alpha": 0.38, "linewidth": 0.8}
        ax.plot(*ended, label="members that ended", **faint)
        dots = {"linestyle": "none", "marker": ".", "markersize": 3.5, "alpha": 0.6}
        ax.plot(*copied, color=theme.soft, label="a copy begins", **dots)
        if lost[0]:
            ax.plot(*lost, "x", color=theme.val, markersize=5, label="diverged")
        for n, path in enumerate(paths[1:]):
            label = "ancestors of the last" if n == 0 else None
            ax.plot(*course(path), color=theme.train, linewidth=1.1, alpha=0.5, label=label)
        best = paths[0] if paths else []
        if best:
            x, y = course(best)
            ax.plot(x, y, color=theme.val, linewidth=2.4, label="ancestors of the best")
            turns = [g + 1 for g in range(len(best) - 1) if best[g] != best[g + 1]]
            ax.plot(
                [edges[g][0] for g in turns],
                [held[g][best[g]] for g in turns],
                "o",
                color=theme.val,
                markeredgecolor=theme.surface,
                markersize=6,
                label="copied and changed",
            )
        if log:
            ax.set_yscale("log")
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        name = WORDS.get(key, key)
        _frame(ax, theme, "Who copied whom", "optimizer updates", name)
        _legend(ax, theme)
    return figure


def _apart(held: Sequence[Sequence[float]], log: bool) -> list[list[float]]:
    """The numbers; of a few that many members share, each member's a little beside the others'."""
    values = np.array(held, np.float64)
    if len(np.unique(values)) > MANY:
        return values.tolist()
    aside = 0.03 * (np.arange(values.shape[1]) / values.shape[1] - 0.5)
    low, high = values.min(), values.max()
    return (values * (high / low) ** aside if log else values + (high - low) * aside).tolist()


def generations(arms: Mapping[str, Sequence[Mapping[str, Any]]], theme: Theme = LIGHT) -> "Figure":
    """Validation accuracy of a population, and of what it is compared with, by generation.

    Args:
      arms: rows of "population", and of "fixed", "replay" and "best fixed" where they are.
    """
    with plots.style(theme):
        figure, ax = _wide(theme, 9.0, 4.6, ["best fixed numbers again"])
        drawn = []

        def line(rows: Sequence[Mapping[str, Any]], what: Any, **how: Any) -> None:
            x = [row["updates"] for row in rows]
            y = [what(_known(row)) for row in rows]
            drawn.extend(v for v in y if np.isfinite(v))
            ax.plot(x, y, **how)

        known = arms["population"]
        every = [(row["updates"], v) for row in known for v in _known(row)]
        if every:
            x, y = np.array(every).T
            dots = {"s": 7, "color": theme.train, "alpha": 0.3, "linewidth": 0}
            ax.scatter(x, y, label="a member", **dots)
        line(known, _most, color=theme.train, linewidth=2.2, label="best of the population")
        line(known, _median, color=theme.train, linestyle=(0, (4, 2)), label="its median")
        looks = {
            "fixed": ("numbers held, the best", theme.soft, _most, (0, (1, 1.5))),
            "replay": ("the schedule replayed", theme.val, _mean, "-"),
            "best fixed": ("best fixed numbers again", theme.lr, _mean, (0, (5, 1.5))),
        }
        for name, (label, color, what, dashes) in looks.items():
            if arms.get(name):
                line(arms[name], what, color=color, linestyle=dashes, linewidth=1.9, label=label)
        if drawn:
            low, high = np.quantile(drawn, 0.06), max(drawn)
            ax.set_ylim(low - 0.35 * (high - low) - 1e-3, high + 0.12 * (high - low) + 1e-3)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        _frame(ax, theme, "Validation accuracy", "optimizer updates", "")
        _legend(ax, theme)
    return figure


def _known(row: Mapping[str, Any]) -> list[float]:
    return [v for v in row["val_accuracy"] if v is not None]


def _most(values: Sequence[float]) -> float:
    return max(values, default=np.nan)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else np.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def save_sweep(
    folder: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, str]:
    """Writes the figures of a sweep under plots/; returns the SVGs by name.

    valley: validation accuracy against rate, a line for each setting of the other axes.
    time: updates to the target against rate, where there is a target. heat: two axes as a map.
    """
    keys, others = [k for k in summary["keys"] if k != "seed"], summary["lines"]
    is_grid = not set(keys) - {"lr", *others}
    made: dict[str, Any] = {}
    if "lr" in keys and len({r["lr"] for r in rows}) > 1:
        made["valley"] = lines(
            _series(rows, others, "val_accuracy"),
            "Validation accuracy at the end",
            WORDS["val_accuracy"],
            percent=True,
            joined=is_grid,
        )
        hits = [r for r in rows if r["outcome"] == "target"]
        if hits:
            made["time"] = lines(
                _series(hits, others, "updates"),
                "Updates to the target",
                WORDS["updates"],
                log_y=True,
                joined=is_grid,
            )
    if len(keys) == 2:
        made["heat"] = _map(rows, keys, summary) if is_grid else scatter(rows, keys)
    return {name: plots.save(figure, folder / "plots" / name) for name, figure in made.items()}


def _series(
    rows: Sequence[Mapping[str, Any]], others: Sequence[str], score: str
) -> dict[str, list[tuple[float, float, float, float]]]:
    """(rate, mean, least, most) over seeds, for each setting of the other axes."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        name = ", ".join(_text(row[k]) for k in others) or "all trials"
        value = row.get(score)
        worst = 0.0 if score == "val_accuracy" else np.nan
        found.setdefault(name, {}).setdefault(row["lr"], []).append(
            worst if value is None else value
        )
    return {
        name: [(lr, float(np.mean(v)), min(v), max(v)) for lr, v in rates.items()]
        for name, rates in found.items()
    }


def _map(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], summary: Mapping[str, Any]
) -> "Figure":
    """The axis of more values lies along x."""
    values = {k: list(dict.fromkeys(r[k] for r in rows)) for k in keys}
    for k, found in values.items():
        if all(isinstance(v, int | float) for v in found):
            values[k] = sorted(found)
    y, x = sorted(keys, key=lambda k: len(values[k]))
    table = np.full((len(values[y]), len(values[x])), np.nan)
    cells: dict[tuple[int, int], list[float]] = {}
    for r in rows:
        at = values[y].index(r[y]), values[x].index(r[x])
        cells.setdefault(at, []).append(r.get("val_accuracy") or 0.0)
    for at, scores in cells.items():
        table[at] = np.mean(scores)
    texts = [[_text(v) for v in values[k]] for k in (x, y)]
    names = WORDS.get(x, x), WORDS.get(y, y)
    over = {}
    if (x, y) == ("lr", BATCH) and (rule := summary.get("scaling")):
        sizes, rates = np.log(values[y]), np.log(values[x])
        for name, power in ("lr ∝ batch", 1.0), ("lr ∝ √batch", 0.5):
            line = rule["log_lr"] + power * (sizes - rule["log_size"])
            over[name] = np.interp(line, rates, np.arange(len(rates)), left=-1, right=len(rates))
    return heat(table, texts[0], texts[1], names, "Validation accuracy, percent", over)


def scatter(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], theme: Theme = LIGHT
) -> "Figure":
    """Sampled points of two numbers, coloured by validation accuracy; the best is framed."""
    with plots.style(theme):
        figure, ax = _wide(theme)
        x, y = (np.array([row[k] for row in rows], float) for k in keys)
        scores = np.array([row.get("val_accuracy") or 0.0 for row in rows])
        points = ax.scatter(x, y, c=100 * scores, s=46, cmap="cividis", linewidth=0)
        best = int(scores.argmax())
        frame = {"facecolor": "none", "edgecolor": "#d55e00", "linewidth": 2}
        ax.scatter(x[best], y[best], s=110, label=f"best {scores[best]:.1%}", **frame)
        for values, scale in (x, ax.set_xscale), (y, ax.set_yscale):
            if (values > 0).all() and values.max() > 20 * values.min():
                scale("log")
        names = [WORDS.get(k, k) for k in keys]
        _frame(ax, theme, "Validation accuracy, percent", names[0], names[1])
        _legend(ax, theme)
        bar = figure.colorbar(points, cax=ax.inset_axes((1.05, 0.0, 0.03, 0.75)))
        bar.outline.set_visible(False)
        assert bar.solids is not None
        bar.solids.set_rasterized(False)  # an SVG in a page loads no images
        bar.solids.set_edgecolor("face")
    return figure


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trial_scores(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    score: str,
    log: bool,
    best: int | None,
    theme: Theme = LIGHT,
) -> "Figure":
    """Last validation score of every trial of a search over one of its numbers.

    Scores far below the others are drawn at the lower edge, as what diverged is.

    Args:
      rows: of trials.jsonl. score: "val_accuracy" or "val_loss". best: number of that trial.
    """
    with plots.style(theme):
        figure, ax = _wide(theme, names=["stopped at a rung"])
        known = [row for row in rows if row.get(score) is not None]
        values = [row["values"][key] for row in rows]
        few = sorted(set(values)) if len(set(values)) <= min(FEW, len(rows) / 2) else []
        at = {row["trial"]: value for row, value in zip(rows, values, strict=True)}
        if few:  # a place each, its trials beside each other
            aside = [0.36 * (i / len(rows) - 0.5) for i in range(len(rows))]
            at = {t: few.index(v) + a for (t, v), a in zip(at.items(), aside, strict=True)}
        low, high = _worth([row[score] for row in known], score)
        looks = {
            "finished": ("o", theme.train, 0.85, "trained to the end"),
            "stopped": (".", theme.soft, 0.6, "stopped at a rung"),
        }
        for outcome, (marker, color, alpha, label) in reversed(looks.items()):
            mine = [row for row in known if row["outcome"] == outcome]
            inside = [row for row in mine if low <= row[score] <= high]
            dots = {"linestyle": "none", "color": color, "alpha": alpha, "markeredgewidth": 0}
            if mine:
                x, y = [at[row["trial"]] for row in inside], [row[score] for row in inside]
                ax.plot(x, y, marker=marker, markersize=6, label=label, **dots)
        edge = low if score == "val_accuracy" else high
        worst = [r for r in known if not low <= r[score] <= high]
        lost = [row for row in rows if row["outcome"] == "diverged"]
        for found, marker, color, label in (
            (worst, "v" if edge == low else "^", theme.soft, "worse than shown"),
            (lost, "x", theme.val, "diverged"),
        ):
            if found:
                x = [at[row["trial"]] for row in found]
                how = {"linestyle": "none", "clip_on": False, "alpha": 0.75, "markersize": 5}
                ax.plot(x, [edge] * len(x), marker=marker, color=color, label=label, **how)
        for row in known:
            if row["trial"] == best:
                ring = {"facecolor": "none", "edgecolor": theme.val, "linewidth": 2, "zorder": 5}
                ax.scatter(at[best], row[score], s=110, label="the best", **ring)
        if few:
            ax.set_xticks(range(len(few)), [_text(value) for value in few])
            ax.set_xlim(-0.5, len(few) - 0.5)
        elif log:
            ax.set_xscale("log")
        ax.set_ylim(low, high)
        _scored(ax, score)
        name = WORDS.get(key, key)
        _frame(ax, theme, f"{_said(score)} over {name}", name, "")
        _legend(ax, theme)
    return figure


def best_so_far(
    rows: Sequence[Mapping[str, Any]],
    progress: Sequence[Mapping[str, Any]],
    score: str,
    theme: Theme = LIGHT,
) -> "Figure":
    """The best validation score of a search so far against the examples of all its trials.

    Args:
      rows: of trials.jsonl. progress: rows of progress.jsonl. score: "val_accuracy" or "val_loss".
    """
    with plots.style(theme):
        figure, ax = _wide(theme, names=["best that finished"])
        looked: dict[int, list[int]] = {}  # examples at each evaluation, by round
        for row in progress:
            looked.setdefault(row["round"], []).append(row["examples"])
        known = [row for row in rows if row.get(score) is not None]
        for outcome, label, color, size in (
            ("stopped", "stopped at a rung", theme.soft, 9),
            ("finished", "trained to the end", theme.train, 16),
        ):
            mine = [row for row in known if row["outcome"] == outcome]
            if mine:
                x = [looked[row["round"]][len(row["curve"]) - 1] for row in mine]
                y = [row[score] for row in mine]
                ax.scatter(x, y, s=size, color=color, alpha=0.5, linewidth=0, label=label)
        x = [0, *(row["examples"] for row in progress)]
        ended = [(row.get("finished") or {}).get(score) for row in progress]
        y = [np.nan if v is None else v for v in (None, *ended)]
        ax.step(
            x, y, where="post", color=theme.train, linestyle=(0, (4, 2)), label="best that finished"
        )
        found = [np.nan, *(np.nan if r[score] is None else r[score] for r in progress)]
        ax.step(x, found, where="post", color=theme.val, linewidth=2.2, label="best so far")
        early = 0.03 * x[-1]  # what was the best so soon is not what the picture is about
        seen = [v for n, v in zip(x, found, strict=True) if n >= early]
        low, high = _worth([*seen, *y], score, 8.0)
        ax.set_ylim(low, high)
        ax.set_xlim(left=0)
        _scored(ax, score)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        ax.locator_params(axis="x", nbins=6)
        _frame(ax, theme, f"{_said(score)} against budget", "examples, of all trials together", "")
        _legend(ax, theme)
    return figure


def trial_curves(
    rows: Sequence[Mapping[str, Any]],
    rungs: Sequence[Sequence[int]],
    score: str,
    best: int | None,
    theme: Theme = LIGHT,
) -> "Figure":
    """Validation score of every trial of a search along its way; `rungs`: (updates, how many)."""
    with plots.style(theme):
        figure, ax = _wide(theme, names=["trained to the end"])
        column = 1 if score == "val_accuracy" else 2
        looks = {
            "diverged": (theme.val, 0.5, 0.8, "diverged"),
            "stopped": (theme.soft, 0.35, 0.8, "stopped at a rung"),
            "finished": (theme.train, 0.6, 1.2, "trained to the end"),
        }
        for outcome, (color, alpha, width, label) in looks.items():
            mine = [row["curve"] for row in rows if row["outcome"] == outcome and row["curve"]]
            x = [v for curve in mine for v in (*(p[0] for p in curve), np.nan)]
            y = [v for curve in mine for v in (*(p[column] for p in curve), np.nan)]
            if mine:
                how = {"linewidth": width, "marker": ".", "markersize": 3, "label": label}
                ax.plot(x, y, color=color, alpha=alpha, **how)
        for row in rows:
            if row["trial"] == best:
                x, y = [p[0] for p in row["curve"]], [p[column] for p in row["curve"]]
                ax.plot(x, y, color=theme.val, linewidth=2.4, label="the best")
        for updates, _ in rungs:
            line = {"color": theme.soft, "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
            ax.axvline(updates, label="a rung" if updates == rungs[0][0] else None, **line)
        seen = [p[column] for row in rows for p in row["curve"]]
        ax.set_ylim(*_worth(seen, score))
        ax.set_xlim(left=0)
        _scored(ax, score)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        _frame(ax, theme, f"{_said(score)} of every trial", "optimizer updates of the trial", "")
        _legend(ax, theme)
    return figure


def _worth(seen: Sequence[float], score: str, most: float = 2.5) -> tuple[float, float]:
    """Limits of an axis of scores: the better half, and all at most so many times as wide."""
    values = np.array([v for v in seen if v is not None and np.isfinite(v)], np.float64)
    if not len(values):
        return 0.0, 1.0
    sign = 1 if score == "val_accuracy" else -1
    values = sign * values
    top, middle, least = values.max(), np.median(values), values.min()
    low = max(least, top - most * (top - middle) - 0.02 * abs(top))
    room = 0.07 * (top - low) + 1e-4
    found = sorted((sign * (low - room), sign * (top + room)))
    return found[0], found[1]


def _scored(ax: "Axes", score: str) -> None:
    if score == "val_accuracy":
        ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.4g} %" if v < 1.0001 else "")


def _said(score: str) -> str:
    return "Validation accuracy" if score == "val_accuracy" else "Validation loss"
