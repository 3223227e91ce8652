"""A search as one HTML page: what each number was worth, and what the best cost."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lrlab import charts, plots, records
from lrlab.console import count, duration, loss, percent, rate
from lrlab.report import card_list, figures, page, table

MOST_ROWS = 500
CAPTIONS = {
    "budget": "A dot is a trial when it was over. Best so far: of everything that was evaluated, "
    "trials under way among it. What scored far below is left out.",
    "curves": "Validation along each trial's way.",
    "map": "Each trial at its two numbers.",
}


def write_search(folder: Path, planned: int) -> Path:
    """Writes plots/ and report.html of a search of `planned` trials, finished or not."""
    record, summary = records.read(folder), records.read_json(folder / "summary.json")
    rows = sorted(records.read_lines(folder / "trials.jsonl"), key=lambda row: row["trial"])
    progress, sections = records.read_lines(folder / "progress.jsonl"), {}
    if rows and summary:
        sections = {
            "Figures": _figures(folder, rows, progress, summary),
            "Rungs": _rungs(rows, summary),
            "Trials": _trials(rows, summary),
        }
        sections = {title: part for title, part in sections.items() if part}
    done = len(rows) == planned
    lost = done and not summary["best"]
    state = "diverged" if lost else "finished" if done else "unfinished"
    verdict = _verdict(rows, summary, planned)
    text = page(record, state, verdict, _cards(rows, summary), sections)
    records.write_text(folder / "report.html", text)
    return folder / "report.html"


def rungs_words(trials: int, rungs: Sequence[Sequence[int]], total: int) -> str:
    """What successive halving does, in a line: (updates, how many go on) at each rung."""
    parts = []
    for updates, kept in rungs:
        parts.append(f"after {updates:,} updates the best {kept} of {trials} go on")
        trials = kept
    return ", ".join([*parts, f"to {total:,}"])


def _column(summary: Mapping[str, Any]) -> str:
    return f"val_{summary['score']}"


def _verdict(rows: Sequence[Any], summary: Mapping[str, Any], planned: int) -> str:
    if not rows or not summary:
        return "No trial is over yet."
    done = "" if len(rows) == planned else f"{count(len(rows))} of {count(planned)} are over. "
    best = summary["best"]
    if not best:
        return f"{done}No trial was finite at its end so far."
    numbers = ", ".join(f"{k} {_number(v)}" for k, v in best["values"].items())
    text = f"{done}Best validation accuracy <b>{percent(best['val_accuracy'])}</b>"
    text += f", loss {loss(best['val_loss'])}"
    if best.get("test_accuracy") is not None:
        text += f", test accuracy <b>{percent(best['test_accuracy'])}</b>"
    return f"{text}, at {escape(numbers)} (trial {best['trial']}, by {escape(summary['method'])})."


def _cards(rows: Sequence[Any], summary: Mapping[str, Any]) -> str:
    if not rows or not summary:
        return ""
    best, outcomes = summary["best"], summary["outcomes"]
    ended = ", ".join(f"{count(n)} {name}" for name, n in outcomes.items())
    rounds = summary["rounds"]
    cards = [
        ("Trials", count(summary["trials"]), ended),
        ("Rounds", count(rounds), "brackets" if summary["rungs"] else "that train together"),
        (
            "Examples",
            count(summary["examples"]),
            f"{percent(summary['examples'] / summary['budget'])} of the budget",
        ),
        ("Updates", count(summary["updates"]), "of all trials together"),
        ("Time", duration(summary["seconds"]), "training and evaluation"),
    ]
    if best:
        cards.insert(
            0, ("Best validation", percent(best["val_accuracy"]), f"trial {best['trial']}")
        )
        if best.get("test_accuracy") is not None:
            cards.insert(1, ("Its test accuracy", percent(best["test_accuracy"]), ""))
    return card_list(cards)


def _figures(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    progress: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> str:
    score, best = _column(summary), (summary["best"] or {}).get("trial")
    if not any(row["curve"] for row in rows):
        return ""
    keys = list(rows[0]["values"])
    made = {"budget": charts.best_so_far(rows, progress, score)}
    captions = dict(CAPTIONS)
    for key in keys:
        name = f"score_{key.replace('.', '_')}"
        log = key in summary["logarithmic"]
        made[name] = charts.trial_scores(rows, key, score, log, best)
        captions[name] = f"What each trial came to, over {escape(key)}."
    made["curves"] = charts.trial_curves(rows, summary["rungs"], score, best)
    varied = [key for key in keys if len({row["values"][key] for row in rows}) > 1]
    if len(keys) == 2 and len(varied) == 2 and any(r["val_accuracy"] for r in rows):
        flat = [{**row["values"], "val_accuracy": row["val_accuracy"]} for row in rows]
        made["map"] = charts.scatter(flat, keys)
    svgs = {name: plots.save(fig, folder / "plots" / name) for name, fig in made.items()}
    return figures(svgs, {name: captions[name] for name in made})


def _rungs(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """How many trials came to each rung, and what they scored there."""
    if not summary["rungs"]:
        return ""
    column = 1 if summary["score"] == "accuracy" else 2
    cells = []
    for updates in (*(rung[0] for rung in summary["rungs"]), summary["total"]):
        there = [p[column] for row in rows for p in row["curve"] if p[0] == updates]
        if not there:
            continue
        over = [row for row in rows if row["updates"] == updates]
        stopped = sum(row["outcome"] == "stopped" for row in over)
        write = percent if column == 1 else loss
        middle = sorted(there)[len(there) // 2]
        top = (max if column == 1 else min)(there)
        cells.append([count(updates), count(len(there)), count(stopped), write(middle), write(top)])
    head = ("updates", "trials there", "stopped there", "median", "best")
    return table(head, cells, "numbers")


def _trials(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """The best first; what was stopped after what finished, what diverged last."""
    sign = -1 if summary["score"] == "accuracy" else 1
    places = {"finished": 0, "stopped": 1, "diverged": 2}

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        known = row[_column(summary)]
        score = 0 if known is None else sign * known
        return places[row["outcome"]], -row["updates"], score, row["trial"]

    ordered = sorted(rows, key=place)
    keys = list(rows[0]["values"])
    cells = [
        [
            str(row["trial"]),
            str(row["round"] + 1),
            *(_number(row["values"][key]) for key in keys),
            row["outcome"],
            count(row["updates"]),
            percent(row["val_accuracy"]) if row["val_accuracy"] is not None else "",
            loss(row["val_loss"]) if row["val_loss"] is not None else "",
            percent(row["test_accuracy"]) if row.get("test_accuracy") is not None else "",
        ]
        for row in ordered[:MOST_ROWS]
    ]
    head = ("trial", "round", *keys, "outcome", "updates", "val acc", "val loss", "test acc")
    left = len(rows) - len(cells)
    more = f"<p class='soft'>{count(left)} more are in trials.jsonl.</p>" if left else ""
    title = f"<summary>All {count(len(rows))}, the best first</summary>"
    folded = "<details>" if len(cells) > 20 else "<details open>"
    return f"{folded}{title}{table(head, cells, 'numbers', 0)}</details>{more}"


def _number(value: Any) -> str:
    return rate(value) if isinstance(value, int | float) else str(value)
