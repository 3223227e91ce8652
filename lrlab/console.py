"""What a run says in the terminal: banner, progress, ending; and how numbers are written.

Numbers are written here once, for the terminal and for the report. Nothing here may stop a run: a
closed or redirected stdout, or one that knows ASCII only, costs text, never training.
"""

import contextlib
import itertools
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

BANNER_LINES = 15
MOST_PHASES = 5  # of a schedule that a curve lists, a line each
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = ".,:-=+*#"


def count(n: float | None) -> str:
    """A whole number with thousands separators."""
    return f"{n:,.0f}" if _finite(n) else _odd(n)


def rate(x: float | None) -> str:
    """A learning rate, up to four significant digits: 0.08123, 1e-5."""
    if not _finite(x):
        return _odd(x)
    digits, _, exponent = f"{x:.4g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def loss(x: float | None) -> str:
    """A loss, four decimals; scientific where these would hide it."""
    if not _finite(x):
        return _odd(x)
    if x and not 1e-3 <= abs(x) < 1e4:
        digits, _, exponent = f"{x:.3e}".partition("e")
        return f"{digits}e{int(exponent)}"
    return f"{x:.4f}"


def percent(x: float | None) -> str:
    """A share as a percentage: 0.9632 is 96.32 %."""
    return f"{100 * x:.2f} %" if _finite(x) else _odd(x)


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: 25 ms, 3.2 s, 1 min 23 s, 2 h 05 min, 3 d 04 h."""
    if not _finite(seconds):
        return _odd(seconds)
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def _finite(x: float | None) -> TypeGuard[float]:
    return x is not None and math.isfinite(x)


def _odd(x: Any) -> str:
    """What stands for a number that is missing or not finite."""
    return "-" if x is None else str(float(x))


def say(text: str) -> None:
    """Prints a line in the characters that stdout has; one that cannot be written is let be."""
    out = sys.stdout
    with contextlib.suppress(OSError, ValueError):  # full, or its reader gone; closed
        if out is not None:
            out.write(text.encode(_encoding(), "replace").decode(_encoding()) + "\n")
            out.flush()


def is_terminal() -> bool:
    """Whether stdout is a terminal that can redraw a line."""
    try:
        return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _encoding() -> str:
    """Of stdout; of the real one while rich stands in front of it, whose encoding is None."""
    own, real = (getattr(out, "encoding", None) for out in (sys.stdout, sys.__stdout__))
    return own or real or "utf-8"


def _blocks() -> str:
    """Eight characters of growing height that stdout can write."""
    try:
        BLOCKS.encode(_encoding())
    except (UnicodeEncodeError, LookupError):
        return ASCII_BLOCKS
    return BLOCKS


def _columns(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """At most `width` means of neighbours; a mean is over the finite ones, NaN if there is none."""
    values = np.asarray(values, np.float64)
    if len(values) <= width:
        return np.where(np.isfinite(values), values, np.nan)
    edges = np.arange(width) * len(values) // width
    finite = np.isfinite(values)
    total = np.add.reduceat(np.where(finite, values, 0.0), edges)
    number = np.add.reduceat(finite.astype(np.int64), edges)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _bars(columns: np.ndarray, height: int, low: float, high: float) -> list[str]:
    """Bars as text, from the top line down; the lowest value still has an eighth of a line."""
    blocks = _blocks()
    span = high - low
    share = (columns - low) / span if span > 0 else np.where(np.isnan(columns), np.nan, 0.5)
    eighths = 1 + np.round(np.clip(share, 0, 1) * (8 * height - 1))
    lines = []
    for line in range(height - 1, -1, -1):
        filled = np.nan_to_num(eighths - 8 * line, nan=0.0).clip(0, 8).astype(int)
        lines.append("".join((" " + blocks)[n] for n in filled))
    return lines


def sparkline(values: Sequence[float] | np.ndarray, width: int = 60, height: int = 1) -> str:
    """Values as bars between their least and their largest; half high where all are equal.

    More than `width` values are averaged in groups; a group without a finite value is blank.
    """
    columns = _columns(values, width)
    if not np.isfinite(columns).any():
        return "\n".join([" " * len(columns)] * height)
    return "\n".join(_bars(columns, height, float(np.nanmin(columns)), float(np.nanmax(columns))))


Span = tuple[str, int, int]  # a phase: name, first update, updates


def curve(
    values: Sequence[float] | np.ndarray,
    phases: Sequence[Span] = (),
    per_epoch: int | None = None,
    width: int = 66,
    height: int = 4,
) -> list[str]:
    """A quantity over a run as a small plot with its key values, and its phases if it has several.

    Args:
      values: one number an update, such as the learning rate; the vertical axis starts at zero.
      phases: one after another; their beginnings are marked under the plot by their numbers.
      per_epoch: updates an epoch, to say in epochs too where phases begin and end.
      width: of the longest line, axis labels included.
      height: lines of the plot. Below are where phases begin; the first, the largest and the last
        value; and every phase.
    """
    values = np.asarray(values, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    if not np.isfinite(values).any():
        return ["no finite value"]
    high, low = float(np.nanmax(values)), min(0.0, float(np.nanmin(values)))
    labels = [""] * height
    labels[-1] = rate(low)
    if high > low:
        labels[0] = rate(high)
    margin = max(map(len, labels))
    room = max(1, width - margin - 2)
    columns = _columns(values, room)
    columns = np.repeat(columns, room // len(columns))  # few updates: wider bars
    axis = "┤" if _blocks() == BLOCKS else "|"
    bars = _bars(columns, height, low, high if high > low else low + 1.0)
    lines = [f"{label:>{margin}} {axis}{bar}" for label, bar in zip(labels, bars, strict=True)]
    shown = [(name, a, min(a + n, len(values))) for name, a, n in phases if a < len(values)]
    below = [_key_values(values)]
    if len(shown) > 1:
        starts = [first * len(columns) // len(values) for _, first, _ in shown]
        below = [_ruler(starts, len(columns)), *below, *_phases(shown, values, per_epoch)]
    return [
        *(line.rstrip() for line in lines),
        *(_cut(f"{'':{margin}}  {line}", width) for line in below),
    ]


def _ruler(starts: Sequence[int], width: int) -> str:
    """A line on which the number of every phase, from 1, stands where it begins."""
    line = "─" if _blocks() == BLOCKS else "-"
    out, end = "", 0
    for number, start in enumerate(starts, 1):
        if start > end or number == 1:  # else there is no room behind the one before
            out += line * (start - len(out)) + str(number)
            end = len(out)
    return out[:width] + line * (width - len(out))


def _phases(
    phases: Sequence[tuple[str, int, int]], values: np.ndarray, per_epoch: int | None
) -> list[str]:
    """A line a phase, given as (name, first update, the one after its last)."""
    lines = []
    for number, (name, first, end) in enumerate(phases, 1):
        span = f"updates {count(first + 1)}-{count(end)}"
        if per_epoch:
            span += f", epochs {first / per_epoch:.4g}-{end / per_epoch:.4g}"
        lines.append(f"{number} {name}: {_course(values[first:end])}, {span}")
    if len(lines) <= MOST_PHASES:
        return lines
    more = len(lines) - MOST_PHASES + 1
    return [*lines[: MOST_PHASES - 1], f"and {more} more phases"]


def _course(values: np.ndarray) -> str:
    """The first value, the least and the largest in their order, the last: 0 to 0.1 to 0.01."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "no finite value"
    turns = sorted({0, int(values.argmin()), int(values.argmax()), len(values) - 1})
    return " to ".join(text for text, _ in itertools.groupby(rate(values[i]) for i in turns))


def _key_values(values: np.ndarray) -> str:
    peak = int(np.nanargmax(values))
    if np.all(values == values[0]):
        return f"constant {rate(values[0])}"
    at = f"update {count(peak + 1)} of {count(len(values))}"
    where = "" if peak in (0, len(values) - 1) else f" at {at}"
    return f"first {rate(values[0])}, peak {rate(values[peak])}{where}, last {rate(values[-1])}"


def _cut(text: str, width: int) -> str:
    """One line of at most `width` characters; three dots say that text is missing."""
    text = " ".join(text.splitlines())
    return text if len(text) <= width else text[: max(0, width - 3)].rstrip() + "..."[:width]


def banner(
    title: str,
    items: Sequence[tuple[str, str]],
    lines: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """The start of a run in at most BANNER_LINES lines.

    Args:
      title: the first line.
      items: (label, value) pairs; a long value goes on in the next line while lines are left.
      lines: of a plot, such as `curve` returns; under the last item.
      width: of the terminal; asked of the terminal where None.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    lines = list(lines)[: BANNER_LINES - 1]
    spare = BANNER_LINES - 1 - len(lines) - len(items)
    if spare < 0:  # values matter more than the plot
        lines = lines[: max(0, len(lines) + spare)]
        items = items[: BANNER_LINES - 1 - len(lines)]
        spare = 0
    margin = 2 + max((len(label) for label, _ in items), default=0) + 2
    room = max(10, width - margin)
    out = [_cut(title, width)]
    for label, value in items:
        wrapped = textwrap.wrap(value, room, break_on_hyphens=False) or [""]
        more = min(len(wrapped) - 1, spare)
        spare -= more
        kept = [*wrapped[:more], _cut(" ".join(wrapped[more:]), room)]
        out.append(f"  {label:<{margin - 2}}{kept[0]}")
        out += [" " * margin + part for part in kept[1:]]
    out += [" " * margin + line for line in lines]
    return "\n".join(line[:width].rstrip() for line in out)


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """A finished epoch in one line; parts that the run does not measure are left out."""
    parts = [
        f"{label} {write(row[key])}"
        for label, key, write in (
            ("train loss", "train_loss", loss),
            ("train acc", "train_accuracy", percent),
            ("val loss", "val_loss", loss),
            ("val acc", "val_accuracy", percent),
            ("lr", "lr", rate),
        )
        if row.get(key) is not None
    ]
    return f"Epoch [{row['epoch']}/{epochs}] {', '.join(parts)}"


def event_line(row: Mapping[str, Any]) -> str:
    """What happened to a run, from a row of metrics.jsonl that has an event."""
    where = f"update {count(row.get('step'))} (epoch {row.get('epoch', '?')})"
    what = f"not finite at lr {rate(row.get('lr'))}"
    if row["event"] == "rollback":
        back = f"back to update {count(row.get('to'))}, lr scaled by {rate(row.get('lr_scale'))}"
        return f"{where} is {what}: {back}"
    if row["event"] == "skip":
        return f"{where} is {what}: skipped"
    return f"{row['event']}: {where}, {what}"


class Progress:
    """The progress of a run: a live bar on a terminal, a plain line an epoch elsewhere.

    with Progress(epochs, epochs_done) as bar:
        bar.update(epoch, 0.5, loss=0.3, accuracy=0.9, lr=0.1, examples_per_second=1e4)
        bar.epoch(row)
    """

    def __init__(self, total_epochs: int, start_epoch: int = 0):
        """Takes how many epochs the run has, and how many were done before this start."""
        self._total, self._done = total_epochs, float(start_epoch)
        self._numbers: tuple[float | None, ...] = ()  # loss, accuracy, rate, examples a second
        self._marks: list[tuple[float, float]] = []  # (time, epochs done) at start and first update
        self._moved = 0.0  # when `_done` was set
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._moved = time.monotonic()
        self._marks = [(self._moved, self._done)]
        if is_terminal():
            self._start_bar()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.stop()

    def update(
        self,
        epoch: int,
        fraction: float,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        lr: float | None = None,
        examples_per_second: float | None = None,
    ) -> None:
        """Says that `fraction` of epoch number `epoch`, counted from 1, is done."""
        self._move(epoch - 1 + fraction, loss, accuracy, lr, examples_per_second)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Prints a finished epoch: a row of metrics.jsonl."""
        keys = ("train_loss", "train_accuracy", "lr", "examples_per_second")
        self._move(row["epoch"], *(row.get(key) for key in keys))
        self._print(epoch_line(row, self._total))

    def event(self, row: Mapping[str, Any]) -> None:
        """Prints what happened: a row of metrics.jsonl that has an event."""
        self._print(event_line(row))

    def _print(self, line: str) -> None:
        if self._bar is None:
            say(line)
            return
        with contextlib.suppress(OSError, ValueError):
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _move(self, done: float, *numbers: float | None) -> None:
        self._done, self._numbers, self._moved = done, numbers, time.monotonic()
        if len(self._marks) == 1:
            self._marks.append((self._moved, done))
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.update(self._task, completed=done, description=self._where())

    def _where(self) -> str:
        return f"Epoch {min(self._total, int(self._done) + 1)}/{self._total}"

    def seconds_left(self) -> float | None:
        """An estimate at the pace since the first update, so that compiling does not count."""
        for when, done in reversed(self._marks):
            if self._done > done:
                pace = (self._moved - when) / (self._done - done)
                since = time.monotonic() - self._moved
                return max(0.0, pace * (self._total - self._done) - since)
        return None

    def _facts(self, room: int) -> str:
        """What is known now, as much as `room` characters hold."""
        if not self._numbers:
            return _cut(f"first update after {duration(time.monotonic() - self._moved)}", room)
        words = (("loss ", loss, ""), ("acc ", percent, ""), ("lr ", rate, ""), ("", count, "/s"))
        parts = [
            f"{label}{write(number)}{unit}"
            for (label, write, unit), number in zip(words, self._numbers, strict=True)
            if number is not None
        ]
        left = self.seconds_left()
        if self._done >= self._total:
            end = [f"in {duration(self._moved - self._marks[0][0])}"]
        else:
            end = [] if left is None else [f"ETA {duration(left)}"]
        while parts and len("  ".join(parts + end)) > room:
            parts.pop()
        return _cut("  ".join(parts + end), room)

    def _start_bar(self) -> None:
        from rich import progress  # only a terminal pays for the import

        draw = self._draw

        class Line(progress.ProgressColumn):
            def render(self, task: progress.Task) -> Any:
                return draw(task, bar.console.width)

        # A thread draws it, on the cores that train: four times a second is enough.
        bar = progress.Progress(Line(), refresh_per_second=4)
        with contextlib.suppress(OSError, ValueError):
            bar.start()
            self._task = bar.add_task(self._where(), total=self._total)
            bar.update(self._task, completed=self._done)
            self._bar = bar

    def _draw(self, task: Any, width: int) -> Any:
        """One line of rich text: where the run is, a bar, the facts that fit."""
        from rich.text import Text

        width -= 1  # a full last column makes some terminals wrap
        size = max(8, min(40, width - len(task.description) - 68))
        halves = round(2 * size * (task.percentage / 100))
        full, half, rest = ("━", "╸", "─") if _blocks() == BLOCKS else ("#", "+", "-")
        done = full * (halves // 2) + half * (halves % 2)
        facts = self._facts(max(0, width - len(task.description) - size - 3))
        return Text.assemble(
            (task.description, "bold"),
            " ",
            (done, "green" if task.finished else "cyan"),
            (rest * (size - len(done)), "bright_black"),
            "  ",
            facts,
            no_wrap=True,
        )


def ending(final: Mapping[str, Any], folder: Any, report: Any) -> str:
    """The end of a run: the final row of metrics.jsonl, where the run is, where its report is."""
    updates = "" if final.get("step") is None else f", {count(final['step'])} updates"
    time_taken = "" if final.get("seconds") is None else f" in {duration(final['seconds'])}"
    lines = [f"Done: {count(final.get('epoch'))} epochs{updates}{time_taken}"]
    for label, epoch, prefix, name in (
        ("best", final.get("best_epoch"), "best_val", "val"),
        ("test", None, "test", "test"),
    ):
        numbers = [
            f"{name} {word} {write(final[key])}"
            for word, key, write in (
                ("loss", f"{prefix}_loss", loss),
                ("acc", f"{prefix}_accuracy", percent),
            )
            if final.get(key) is not None
        ]
        if numbers:
            where = [] if epoch is None else [f"epoch {epoch}"]
            lines.append(f"  {label:<8}{', '.join(where + numbers)}")
    return "\n".join([*lines, f"  {'run':<8}{folder}", f"  {'report':<8}{report}"])
