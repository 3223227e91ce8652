"""Figures of a run, in one style that prints, and that colour-blind readers can read.

Colours follow Okabe and Ito (2008); dashes and markers differ too, so nobody needs the colours.
Files are a function of the data: no dates, fixed identifiers. Text stays text in SVG.
"""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrlab import records
from lrlab.console import Span, count, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 2000  # of a line: more cannot be seen, and would swell the SVG
FONTS = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"  # what it is laid out with, first
PANEL = (5.4, 3.3)  # inches
MARGINS = (
    0.74,
    0.2,
    0.47,
    0.62,
)  # inches left, right, below, above; equal, so that figures line up


@dataclasses.dataclass(frozen=True)
class Theme:
    """A colour for each role; no two are equal, so a page may exchange them in a finished SVG."""

    surface: str
    ink: str
    soft: str
    grid: str
    train: str
    val: str
    lr: str
    batch: str
    speed: str


LIGHT = Theme(
    surface="#ffffff",
    ink="#1c2530",
    soft="#5b6775",
    grid="#e4e8ed",
    train="#0072b2",
    val="#d55e00",
    lr="#008f68",
    batch="#b0578d",
    speed="#8a6d00",
)
DARK = Theme(
    surface="#171c22",
    ink="#e6ebf0",
    soft="#9aa6b2",
    grid="#2c343d",
    train="#56b4e9",
    val="#f0a030",
    lr="#2fc99b",
    batch="#e39ac6",
    speed="#d9c64a",
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """What the figures of a run show; float64, NaN where nothing finite was measured.

    update, lr, batch_size, update_loss: [updates]; from epoch on: [epochs], accuracies in [0, 1].
    best: index of the best epoch. rollbacks, skips, diverged: updates; the last ended the run.
    scheduled: [updates] of values beside the rate that changed, by name.
    """

    update: np.ndarray
    lr: np.ndarray
    batch_size: np.ndarray
    update_loss: np.ndarray
    epoch: np.ndarray
    step: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    val_loss: np.ndarray
    val_accuracy: np.ndarray
    examples_per_second: np.ndarray
    best: int | None = None
    rollbacks: tuple[int, ...] = ()
    skips: tuple[int, ...] = ()
    diverged: int | None = None
    scheduled: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def curves(record: records.Record) -> Curves:
    """The arrays of a run folder."""
    rows = record.rows

    def column(key: str) -> np.ndarray:
        return _finite([np.nan if row.get(key) is None else row[key] for row in rows])

    def updates(event: str) -> tuple[int, ...]:
        return tuple(row["step"] for row in record.happened if row["event"] == event)

    best = record.final and record.final.get("best_epoch")
    found = next((r for r in rows if r["epoch"] == best), None) if best else records.best(rows)
    ended = updates("diverged")[-1:] if record.final is None else ()
    last = rows[-1]["step"] if rows else 0
    # A name is a keyword of a rule; what else a damaged file may hold becomes no name of a file.
    beside = {k: _finite(v) for k, v in record.schedule.items() if k not in records.COLUMNS}
    changed = {k: v for k, v in beside.items() if k.isidentifier() and len(np.unique(v)) > 1}
    return Curves(
        update=_finite(record.schedule["update"]),
        lr=_finite(record.schedule["lr"]),
        batch_size=_finite(record.schedule["batch_size"]),
        update_loss=_finite(record.schedule["loss"]),
        epoch=column("epoch"),
        step=column("step"),
        train_loss=column("train_loss"),
        train_accuracy=column("train_accuracy"),
        val_loss=column("val_loss"),
        val_accuracy=column("val_accuracy"),
        examples_per_second=column("examples_per_second"),
        best=None if found is None else rows.index(found),
        rollbacks=updates("rollback"),
        skips=updates("skip"),
        diverged=ended[0] if ended and ended[0] >= last else None,  # it may have gone on since
        scheduled=changed,
    )


def _finite(values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def decimate(
    x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a line that look the same: the ends, and extremes in between."""
    n = len(x)
    if n <= most:
        return x, y
    bins = max(1, (most - 2) // 2)
    edges = np.arange(bins + 1) * n // bins
    kept = {0, n - 1}
    for a, b in itertools.pairwise(edges):
        part = y[a:b]
        if np.isfinite(part).any():
            kept |= {int(a + np.nanargmin(part)), int(a + np.nanargmax(part))}
        else:
            kept.add(int(a))  # a gap stays a gap
    index = np.array(sorted(kept))
    return x[index], y[index]


def wants_log(values: np.ndarray) -> bool:
    """Whether a rate is read better on a log axis.

    It is where at least a quarter of the updates have less than a tenth of the largest rate, as
    in a decay by decades or a range test. A cosine to zero keeps the shape that people know.
    """
    values = values[np.isfinite(values)]
    return len(values) > 0 and bool(10 * np.quantile(values, 0.25) < values.max())


@contextlib.contextmanager
def style(theme: Theme) -> Iterator[None]:
    """Matplotlib as it is shipped, whatever the user's matplotlibrc says, and our colours."""
    import matplotlib

    ours: dict[Any, Any] = {
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 9,
        "axes.edgecolor": theme.soft,
        "axes.facecolor": theme.surface,
        "axes.labelcolor": theme.soft,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.grid": True,
        "figure.facecolor": theme.surface,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.handlelength": 2.2,
        "legend.columnspacing": 1.4,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "savefig.facecolor": theme.surface,
        "svg.fonttype": "none",
        "svg.hashsalt": "lrlab",
        "text.color": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in ours.items():
            matplotlib.rcParams[key] = value
        yield


def panels(theme: Theme, rows: int = 1, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """A figure of equal panels, filled row by row."""
    from matplotlib.figure import Figure

    left, right, below, above = MARGINS
    width, height = PANEL[0] * columns, PANEL[1] * rows
    figure = Figure(figsize=(width, height))
    axes = []
    for row in range(rows):
        for column in range(columns):
            x = (PANEL[0] * column + left) / width
            y = (PANEL[1] * (rows - 1 - row) + below) / height
            size = (PANEL[0] - left - right) / width, (PANEL[1] - below - above) / height
            axes.append(figure.add_axes((x, y, *size)))
    return figure, axes


def _frame(ax: "Axes", c: Curves, theme: Theme, title: str, unit: str, note: str = "") -> None:
    """Names, units, the axis of updates below, that of epochs above."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.set_title(title, loc="left", y=1.0, pad=23, fontsize=10, fontweight="bold", color=theme.ink)
    if note:
        ax.annotate(
            note, (1, 1), (0, 24), "axes fraction", "offset points", ha="right", color=theme.soft
        )
    ax.set_ylabel(unit)
    ax.set_xlabel("optimizer updates")
    ax.grid(visible=False, axis="x")
    ax.tick_params(axis="both", which="both", length=0)
    ax.tick_params(axis="x", length=3)
    ax.spines["left"].set_visible(False)
    last = max([1, *c.step[-1:], *(c.update[-1:] + 1)])
    ax.set_xlim(-0.01 * last, 1.01 * last)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
    _marks(ax, c, theme)
    if not len(c.epoch):
        return
    ticks = _epoch_ticks(c, last)
    labels = ["epoch 0", *(count(c.epoch[i]) for i in ticks)]
    above = ax.secondary_xaxis("top")
    above.set_xticks([0, *c.step[ticks]], labels=labels, fontsize=8)
    above.spines["top"].set_visible(False)
    above.tick_params(length=0, pad=6, colors=theme.soft)


def _epoch_ticks(c: Curves, last: float) -> list[int]:
    """Indices of epochs at round numbers, as far as there is room for their labels."""
    round_numbers = (n * 10**k for k in range(12) for n in (1, 2, 5))
    every = next(n for n in round_numbers if c.epoch[-1] / n <= 7)
    ticks, free = [], 0.09 * last  # "epoch 0" is wider than a number
    for i, (epoch, step) in enumerate(zip(c.epoch, c.step, strict=True)):
        if epoch % every == 0 and step >= free:
            ticks.append(i)
            free = step + 0.065 * last
    return ticks


def _marks(ax: "Axes", c: Curves, theme: Theme) -> None:
    """Where the run went wrong."""
    marks = [(at, "rollback") for at in c.rollbacks[:10]]
    marks += [] if c.diverged is None else [(c.diverged, "not finite")]
    for at, word in marks:
        ax.axvline(at, color=theme.ink, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        ax.annotate(
            word,
            (at, 0.02),
            (-2, 0),
            ("data", "axes fraction"),
            "offset points",
            rotation=90,
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=theme.soft,
        )


def _empty(ax: "Axes", theme: Theme) -> None:
    ax.set_yticks([])
    ax.text(0.5, 0.5, "nothing recorded yet", transform=ax.transAxes, ha="center", color=theme.soft)


def _legend(ax: "Axes", theme: Theme) -> None:
    """In one line above the panel, where no data is."""
    from matplotlib.transforms import ScaledTranslation

    assert ax.figure is not None
    up = ScaledTranslation(0, 17 / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        bbox_transform=ax.transAxes + up,
        ncols=3,
        borderaxespad=0,
        fontsize=8.5,
        labelcolor=theme.ink,
    )


def _epochs(
    ax: "Axes",
    c: Curves,
    theme: Theme,
    train: np.ndarray,
    val: np.ndarray,
    floor: float,
    falls: bool,
) -> None:
    """Training, at the middle of its epoch since it is a mean over it; validation, at the end."""
    before = np.concatenate([[0.0], c.step[:-1]])
    middle = (before + c.step) / 2
    every = max(1, len(c.step) // 20)
    for x, y, name, color, dashes, marker in (
        (middle, train, "train mean", theme.train, "-", "o"),
        (c.step, val, "validation", theme.val, (0, (4, 1.5)), "s"),
    ):
        if np.isfinite(y).any():
            x, y = decimate(x, np.maximum(y, floor))
            ax.plot(x, y, color=color, linestyle=dashes, marker=marker, markevery=every, label=name)
    if c.best is None or not np.isfinite(val[c.best]):
        return
    at, right = c.step[c.best], c.step[c.best] > 0.5 * c.step[-1]
    ax.axvline(at, color=theme.soft, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    y = max(val[c.best], floor)
    ax.plot(at, y, "o", markersize=9, fillstyle="none", color=theme.ink, clip_on=False)
    ax.annotate(
        f"best: epoch {c.epoch[c.best]:.0f}",
        (at, 0.98 if falls else 0.02),  # where the curve is not
        (-4 if right else 4, 0),
        ("data", "axes fraction"),
        "offset points",
        ha="right" if right else "left",
        va="top" if falls else "bottom",
        fontsize=8,
        bbox={"facecolor": theme.surface, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )


def _y_axis(ax: "Axes", values: Iterable[np.ndarray], log: bool) -> None:
    """Ticks as people write numbers; on a log axis enough of them to read it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    every = np.concatenate([v[np.isfinite(v)] for v in values])
    in_thousands = not log and 1e5 <= every.max() < 1e6

    def write(y: float, _: int) -> str:
        if in_thousands and y:
            return f"{y / 1000:g}k"
        return count(y) if 1000 <= abs(y) < 1e6 else rate(float(f"{y:.6g}"))

    if log:
        decades = np.log10(every.max() / every[every > 0].min())
        subs = (1, 2, 5) if decades < 2.5 else (1,)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(write))


def _draw_loss(ax: "Axes", c: Curves, theme: Theme) -> None:
    shown = (c.update_loss, c.train_loss, c.val_loss)
    values = np.concatenate([v[np.isfinite(v)] for v in shown])
    means = np.concatenate([v[np.isfinite(v)] for v in shown[1:]])
    means = means if len(means) else values
    log = len(values) > 0 and means.min() >= 0 and means.max() > 8 * np.quantile(means, 0.1)
    log = bool(log and (values > 0).any())
    _frame(ax, c, theme, "Loss", "loss (log)" if log else "loss")
    if not len(values):
        _empty(ax, theme)
        return
    # On a log axis a loss of zero is drawn where the smallest other one is.
    floor = values[values > 0].min() if log else -np.inf
    x, y = decimate(c.update, np.maximum(c.update_loss, floor))
    ax.plot(x, y, color=theme.train, linewidth=0.7, alpha=0.35, label="each update")
    if c.skips:
        at, low = np.array(c.skips[:500], np.float64), ax.get_xaxis_transform()
        ax.plot(at, 0.02 + 0 * at, "|", color=theme.ink, transform=low)
        ax.annotate(
            "skipped", (at[0], 0.05), (0, 1), low, "offset points", fontsize=7.5, ha="center"
        )
    _epochs(ax, c, theme, c.train_loss, c.val_loss, floor, falls=True)
    _y_axis(ax, shown, log)
    _legend(ax, theme)


def _draw_accuracy(ax: "Axes", c: Curves, theme: Theme) -> None:
    train, val = 100 * c.train_accuracy, 100 * c.val_accuracy
    _frame(ax, c, theme, "Accuracy", "accuracy (%)")
    if not np.isfinite([train, val]).any():
        _empty(ax, theme)
        return
    _epochs(ax, c, theme, train, val, -np.inf, falls=False)
    _y_axis(ax, (train, val), log=False)
    _legend(ax, theme)


def _draw_lr(ax: "Axes", c: Curves, theme: Theme) -> None:
    _draw_value(ax, c, theme, c.lr, "Learning rate", from_zero=True)


def _draw_value(
    ax: "Axes", c: Curves, theme: Theme, all_values: np.ndarray, title: str, from_zero: bool
) -> None:
    """A value of every update, on a log axis where it is read better there."""
    values = all_values[np.isfinite(all_values)]
    log = wants_log(all_values)
    unit, note = title.lower(), ""
    if len(values):
        first, last = rate(values[0]), rate(values[-1])
        note = f"first {first}, largest {rate(values.max())}, last {last}"
    if log:
        positive = values[values > 0]
        floor = max(positive.min(), 1e-6 * positive.max())
        unit += " (log; 0 at the bottom)" if (values < floor).any() else " (log)"
    _frame(ax, c, theme, title, unit, note)
    if not len(values):
        _empty(ax, theme)
        return
    x, y = decimate(c.update, np.maximum(all_values, floor) if log else all_values)
    ax.plot(x, y, color=theme.lr, linewidth=1.8)
    _y_axis(ax, (y,), log)
    if from_zero and not log:
        ax.set_ylim(bottom=min(0.0, values.min()), top=1.06 * values.max() or 1.0)


def _draw_joins(ax: "Axes", phases: Sequence[Span], theme: Theme) -> None:
    """A line where each phase begins, and its name, a little aside where phases are short.

    A name for which there is no room near its line is left out; no name hides the curve.
    """
    end, free = ax.get_xlim()[1], 0.0
    for name, first, _ in phases:
        if first >= end:
            return
        if first:
            ax.axvline(first, color=theme.soft, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        at = max(first, free)
        if at - first > 0.03 * end:
            continue
        free = at + 0.03 * end
        ax.annotate(
            name,
            (at, 0.02),
            (3, 0),
            ("data", "axes fraction"),
            "offset points",
            rotation=90,
            va="bottom",
            fontsize=7.5,
            color=theme.ink,
            parse_math=False,
            zorder=1.5,
            bbox={"facecolor": theme.surface, "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )


def _draw_batch_size(ax: "Axes", c: Curves, theme: Theme) -> None:
    sizes = np.unique(c.batch_size[np.isfinite(c.batch_size)])
    note = f"{count(c.batch_size[0])} to {count(c.batch_size[-1])}" if len(sizes) else ""
    _frame(ax, c, theme, "Batch size", "examples an update", note)
    if not len(sizes):
        _empty(ax, theme)
        return
    turns = np.flatnonzero(np.diff(c.batch_size, prepend=np.nan) != 0)
    x, y = decimate(np.append(c.update[turns], c.update[-1] + 1), c.batch_size[[*turns, -1]])
    ax.step(x, y, where="post", color=theme.batch, linewidth=1.8)
    log = sizes[-1] >= 8 * sizes[0]
    _y_axis(ax, (sizes,), log)
    if len(sizes) <= 7 and (log or len(sizes) == 1 or np.diff(sizes).min() * 12 > sizes[-1]):
        ax.set_yticks(sizes)
    if not log:
        ax.set_ylim(0, 1.08 * sizes[-1])


def _draw_speed(ax: "Axes", c: Curves, theme: Theme) -> None:
    speed = c.examples_per_second
    known = np.isfinite(speed)
    note = f"median {count(float(np.median(speed[known])))}" if known.any() else ""
    _frame(ax, c, theme, "Training speed", "examples a second", note)
    if not known.any():
        _empty(ax, theme)
        return
    every = max(1, len(speed) // 20)
    x, y = decimate(c.step, speed)
    ax.plot(x, y, color=theme.speed, marker="o", markevery=every)
    _y_axis(ax, (speed,), log=False)
    ax.set_ylim(0, 1.08 * np.nanmax(speed) or 1.0)


def _one(draw: Any, c: Curves, theme: Theme) -> "Figure":
    with style(theme):
        figure, (ax,) = panels(theme)
        draw(ax, c, theme)
    return figure


def loss(c: Curves, theme: Theme = LIGHT) -> "Figure":
    """Loss of every update (faint), training mean and validation of every epoch, the best epoch."""
    return _one(_draw_loss, c, theme)


def accuracy(c: Curves, theme: Theme = LIGHT) -> "Figure":
    """Training and validation accuracy of every epoch, the best epoch."""
    return _one(_draw_accuracy, c, theme)


def lr(c: Curves, theme: Theme = LIGHT) -> "Figure":
    """The learning rate that each update used."""
    return _one(_draw_lr, c, theme)


def scheduled(c: Curves, name: str, theme: Theme = LIGHT) -> "Figure":
    """The value beside the rate, such as weight_decay, that each update used."""
    with style(theme):
        figure, (ax,) = panels(theme)
        _draw_value(ax, c, theme, c.scheduled[name], name, from_zero=False)
    return figure


def schedule(
    rates: np.ndarray,
    phases: Sequence[Span] = (),
    per_epoch: int | None = None,
    theme: Theme = LIGHT,
) -> "Figure":
    """A planned rate, one number an update, with lines where its phases begin.

    Args:
      rates: [updates].
      phases: (name, first update, updates), one after another.
      per_epoch: updates an epoch, for an axis of epochs above.
    """
    n, none = len(rates), np.array([])
    steps = np.arange(per_epoch, n + 1, per_epoch, dtype=np.float64) if per_epoch else none
    c = Curves(
        update=np.arange(n, dtype=np.float64),
        lr=_finite(rates),
        epoch=np.arange(1.0, len(steps) + 1),
        step=steps,
        **dict.fromkeys(
            (
                "batch_size",
                "update_loss",
                "train_loss",
                "train_accuracy",
                "val_loss",
                "val_accuracy",
                "examples_per_second",
            ),
            none,
        ),
    )
    with style(theme):
        figure, (ax,) = panels(theme)
        _draw_lr(ax, c, theme)
        _draw_joins(ax, phases, theme)
    return figure


def batch_size(c: Curves, theme: Theme = LIGHT) -> "Figure":
    """Examples of each update."""
    return _one(_draw_batch_size, c, theme)


def speed(c: Curves, theme: Theme = LIGHT) -> "Figure":
    """Training examples a second in every epoch."""
    return _one(_draw_speed, c, theme)


def overview(c: Curves, theme: Theme = LIGHT) -> "Figure":
    """Loss, accuracy, rate, and batch size, or training speed where the batch is fixed."""
    with style(theme):
        figure, axes = panels(theme, 2, 2)
        fourth = _draw_batch_size if batch_varies(c) else _draw_speed
        for draw, ax in zip((_draw_loss, _draw_accuracy, _draw_lr, fourth), axes, strict=True):
            draw(ax, c, theme)
    return figure


def ensemble(found: Mapping[str, Any], theme: Theme = LIGHT) -> "Figure":
    """Accuracy and likelihood of a run's snapshots together, against how many they are.

    Args:
      found: "together" and "averaged", rows of members, accuracy and nll; "snapshots", rows alone;
        "moving", the row of the moving average, or None.
    """
    with style(theme):
        figure, axes = panels(theme, 2, 1)
        kinds = (
            ("averaged probabilities", found["together"], theme.train, "o", "-"),
            ("averaged weights", found["averaged"], theme.val, "s", (0, (4, 2))),
        )
        alone, moving = found["snapshots"][::-1], found.get("moving")
        for ax, key, title in (
            (axes[0], "accuracy", "Test accuracy"),
            (axes[1], "nll", "Negative log likelihood (nats)"),
        ):
            for name, rows, color, marker, dashes in kinds:
                x, y = [r["members"] for r in rows], [r[key] for r in rows]
                ax.plot(x, y, color=color, marker=marker, linestyle=dashes, label=name)
            x = range(1, len(alone) + 1)
            look = {"color": theme.soft, "marker": "D", "markersize": 4, "linestyle": "none"}
            ax.plot(x, [r[key] for r in alone], label="each alone", **look)
            if moving:
                ax.axhline(
                    moving[key], color=theme.lr, linestyle=(0, (1, 1.5)), label="moving average"
                )
            ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=theme.ink)
            ax.set_xlabel("snapshots, from the last one back")
            ax.set_xticks(range(1, len(alone) + 1))
            ax.set_xlim(0.8, len(alone) + 0.2)
            ax.tick_params(axis="both", which="both", length=0)
            ax.spines["left"].set_visible(False)
            if key == "accuracy":
                ax.yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        axes[0].legend(
            loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0, ncols=2, fontsize=8.5,
            labelcolor=theme.ink, labelspacing=0.15, borderpad=0.2,
        )  # fmt: skip
    return figure


def batch_varies(c: Curves) -> bool:
    """Whether there is more than one batch size to show."""
    return len(np.unique(c.batch_size)) > 1


def write(figure: "Figure", path: Path, theme: Theme = LIGHT) -> None:
    """Writes a figure as PNG or SVG, as the file's suffix says.

    Raises:
      ValueError: another suffix.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"path={str(path)!r} must end in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with style(theme):
        if path.suffix == ".png":
            figure.savefig(path, dpi=200, metadata={"Software": None})
            return
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    records.write_text(path, svg.getvalue().replace("'DejaVu Sans'", FONTS))


def save(figure: "Figure", stem: Path, theme: Theme = LIGHT) -> str:
    """Writes <stem>.png and <stem>.svg; returns the SVG."""
    for suffix in ".png", ".svg":
        write(figure, stem.with_suffix(suffix), theme)
    return stem.with_suffix(".svg").read_text(encoding="utf-8")


def save_all(record: records.Record) -> dict[str, str]:
    """Writes every figure of a run under plots/; returns the SVGs by name.

    That of a value beside the rate is called "scheduled_" and its name.
    """
    c, folder = curves(record), record.folder / "plots"
    fourth = {"batch_size": batch_size(c)} if batch_varies(c) else {"speed": speed(c)}
    beside = {f"scheduled_{name}": scheduled(c, name) for name in c.scheduled}
    made = {"loss": loss(c), "accuracy": accuracy(c), "lr": lr(c), **beside, **fourth}
    made["overview"] = overview(c)
    return {name: save(figure, folder / name) for name, figure in made.items()}
