"""A sweep as one HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lrlab import charts, records
from lrlab.console import count, duration, percent, rate
from lrlab.report import card_list, figures, page, table

MOST_ROWS = 500
CAPTIONS = {
    "valley": "Mean over seeds; the band is the least and the most. A trial that diverged counts "
    "as 0.",
    "time": "Trials that reached the target, by the updates that it took.",
    "heat": "Mean over seeds, in percent; the best is framed.",
}


def write_sweep(folder: Path, planned: int, tasks: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Writes plots/ and report.html of a sweep of `planned` trials, finished or not.

    tasks: rows that say how its parts stand, where it was cut into some.
    """
    record, rows = records.read(folder), records.trials(folder)
    summary = records.read_json(folder / "summary.json")
    svgs = charts.save_sweep(folder, rows, summary) if rows else {}
    sections = {"Figures": figures(svgs, CAPTIONS)} if svgs else {}
    if rows:
        sections |= {
            "Each setting": _valleys(summary["valleys"]),
            "Best points": _settings(summary),
            "Trials": _trials(rows),
        }
    if tasks:
        shown = [[_text(value) for value in task.values()] for task in tasks]
        sections["Tasks"] = table(list(tasks[0]), shown)
    state = "finished" if len(rows) == planned else "unfinished"
    text = page(record, state, _verdict(rows, summary, planned), _cards(rows, summary), sections)
    records.write_text(folder / "report.html", text)
    return folder / "report.html"


def _verdict(rows: Sequence[Any], summary: Mapping[str, Any], planned: int) -> str:
    if not rows:
        return f"No trial of {count(planned)} is over yet."
    best, rule = summary["settings"][0], summary.get("scaling")
    where = ", ".join(f"{k} {_text(best[k])}" for k in summary["keys"] if k in best)
    done = "" if len(rows) == planned else f"{count(len(rows))} of {count(planned)} are over. "
    return (
        f"{done}Best validation accuracy <b>{percent(best['val_accuracy'])}</b> "
        f"at {escape(where)} ({escape(_over(best))})."
        + (f" The best rate grows as {scaling_words(rule)}." if rule else "")
    )


def scaling_words(rule: Mapping[str, Any]) -> str:
    """The power law of `valley.scaling`: batch^0.7, with its interval over seeds."""
    sizes = rule["sizes"]
    span = "" if rule["low"] is None else f" ({rule['low']:.2f} to {rule['high']:.2f} over seeds)"
    return f"batch^{rule['power']:.2f}{span}, fitted from {sizes[0]:,} to {sizes[-1]:,}"


def _over(entry: Mapping[str, Any]) -> str:
    if entry["seeds"] < 2:
        return "one seed"
    return f"mean over {entry['seeds']} seeds, 95 % interval {_interval(entry)}"


def _interval(entry: Mapping[str, Any]) -> str:
    """The 95 % interval of a mean over seeds."""
    if entry.get("seeds", 1) < 2:
        return "one seed"
    return f"{100 * entry['low']:.2f} to {percent(entry['high'])}"


def _cards(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    seconds = sum(r["seconds"] for r in rows)
    saved = 1 - summary["updates"] / max(1, summary["at_most"])
    per = 1000 * seconds / max(summary["updates"], 1)
    outcomes = [(name.capitalize(), count(n), "trials") for name, n in summary["outcomes"].items()]
    return card_list(
        [
            (
                "Trials",
                count(len(rows)),
                f"{count(len(summary['valleys']))} setting{'s' * (len(summary['valleys']) > 1)}",
            ),
            *outcomes,
            ("Updates", count(summary["updates"]), _saving(saved)),
            ("Device time", duration(seconds), f"{per:.3g} ms an update of a trial"),
        ]
    )


def _saving(share: float) -> str:
    return f"{percent(share)} saved by trials that ended" if share else "of all trials together"


def _valleys(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for e in entries:
        best, good, trains = e["best"], e.get("good"), e.get("trains")
        fastest = e.get("fastest")
        ends = ", ".join(f"{n} {o}" for o, n in e["outcomes"].items())
        band = f"{rate(good['low'])} to {rate(good['high'])}" if good else ""
        reached = ""
        if trains:
            span = f", {rate(trains['low'])} to {rate(trains['high'])}" if "low" in trains else ""
            reached = f"{trains['trials']}{span}"
        first = f"{count(fastest['updates'])} at {rate(fastest['lr'])}" if fastest else ""
        rows.append(
            [
                e["name"],
                ends,
                rate(best["lr"]) if best.get("lr") else "",
                percent(best["val_accuracy"]),
                _interval(best),
                band,
                f"{good['decades']:.1f}" if good else "",
                reached,
                first,
            ]
        )
    head = (
        "setting",
        "outcomes",
        "best rate",
        "val acc",
        "95 % interval",
        "rates within 1 % of it",
        "decades",
        "reached the target",
        "fastest, updates",
    )
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that say nothing."""
    told = [i for i in range(len(head)) if {row[i] for row in rows} - {"", "one seed"}]
    return table([head[i] for i in told], [[row[i] for i in told] for row in rows])


def _settings(summary: Mapping[str, Any]) -> str:
    keys = [k for k in summary["keys"] if k != "seed"]
    rows = [
        [
            *(_text(e[k]) for k in keys),
            percent(e["val_accuracy"]),
            _interval(e),
            percent(e["test_accuracy"]),
            count(e["updates"]),
        ]
        for e in summary["settings"]
    ]
    head = *keys, "val acc", "95 % interval", "test acc", "updates"
    return _table(head, rows)


def _trials(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = [[_text(row.get(name)) for name in names] for row in rows[:MOST_ROWS]]
    left = len(rows) - len(shown)
    more = f"<p class='soft'>{count(left)} more are in trials.csv.</p>" if left else ""
    title = f"<summary>All {count(len(rows))} trials</summary>"
    return f"<details>{title}{table(names, shown, 'numbers')}</details>{more}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
