"""A population as one HTML page: who copied whom, and the schedule that came of it."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lrlab import charts, plots, records
from lrlab.console import count, duration, percent, rate
from lrlab.report import card_list, figures, page, table

MOST_COPIES = 300
NAMES = {
    "population": "the population's best",
    "fixed": "numbers held to the end, the best",
    "replay": "the schedule that was found, anew",
    "best fixed": "the best held numbers, anew",
}
SCORES = (
    "A dot is a member. The replay and the best held numbers are means over seeds of their own."
)
LINES = (
    "Each line holds from one generation to the next; a dot is a copy with its changed number. "
    "Thick: what the best member's state was trained with, from the first update on."
)


def write_pbt(folder: Path, planned: int) -> Path:
    """Writes plots/ and report.html of a population of `planned` generations, finished or not."""
    record, summary = records.read(folder), records.read_json(folder / "summary.json")
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for row in records.read_lines(folder / "generations.jsonl"):
        arms[row["arm"]].append(row)
    known, sections = arms["population"], {}
    if known and summary:
        sections = {
            "Figures": _figures(folder, arms, summary),
            "At equal budget": _comparison(summary),
            "The schedule that was found": _schedule(known, summary),
            "Members at the end": _members(known[-1], summary),
            "Copies": _copies(folder),
        }
        sections = {title: part for title, part in sections.items() if part}
    done = len(known) == planned
    lost = bool(known) and len(known[-1]["diverged"]) == len(known[-1]["donors"])
    state = "diverged" if lost else "finished" if done else "unfinished"
    verdict = _verdict(known, summary, planned, state)
    text = page(record, state, verdict, _cards(known, summary), sections)
    records.write_text(folder / "report.html", text)
    return folder / "report.html"


def _verdict(
    known: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], planned: int, state: str
) -> str:
    if state == "diverged":
        return f"All members diverged in generation {len(known)}: none is left to copy."
    if not known or not summary:
        return "No generation is over yet."
    done = "" if len(known) == planned else f"{len(known)} of {planned} generations are over. "
    best, others = summary["best"], {e["arm"]: e for e in summary["comparison"]}
    numbers = ", ".join(f"{k} {_number(v)}" for k, v in best["values"].items())
    text = f"{done}Best validation accuracy <b>{percent(best['val_accuracy'])}</b>"
    if best.get("test_accuracy") is not None:
        text += f", test accuracy <b>{percent(best['test_accuracy'])}</b>"
    text += f", now at {escape(numbers)}."
    if (replay := others.get("replay")) and replay["val_accuracy"] is not None:
        text += f" Its schedule from scratch: {_score(replay, 'val_accuracy')}"
        if (fixed := others.get("best fixed")) and fixed["val_accuracy"] is not None:
            text += f"; the best numbers that were held: {_score(fixed, 'val_accuracy')}"
        text += f" (validation, mean over {replay['runs']} seeds)."
    return text


def _cards(known: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    if not known or not summary:
        return ""
    best, back, seconds = summary["best"], summary["read_back"], summary["seconds"]
    share, lost = summary["exploit_share"], summary["diverged"]
    cards = [
        ("Best validation", percent(best["val_accuracy"]), f"member {best['member']}"),
        ("Members", count(summary["members"]), f"{count(summary['generations'])} generations"),
        ("Copies", count(summary["copies"]), f"{count(lost)} of what diverged" * bool(lost)),
        (
            "Read back",
            percent(back["equal"] / back["copies"]) if back["copies"] else "-",
            f"{count(back['equal'])} of {count(back['copies'])} copies used the numbers explored",
        ),
        ("Updates", count(summary["updates"]), "of each member"),
        ("Examples", count(summary["examples"]), "of all members"),
        (
            "Time",
            duration(sum(seconds.values())),
            f"exploit and explore {percent(share)} of it",
        ),
    ]
    if best.get("test_accuracy") is not None:
        cards.insert(1, ("Its test accuracy", percent(best["test_accuracy"]), ""))
    return card_list(cards)


def _figures(
    folder: Path, arms: Mapping[str, Sequence[Mapping[str, Any]]], summary: Mapping[str, Any]
) -> str:
    known, made, captions = arms["population"], {}, {}
    for key in summary["keys"]:
        name = f"lineage_{key.replace('.', '_')}"
        log = key in summary["logarithmic"]
        made[name] = charts.lineages(known, key, summary["paths"], log)
        captions[name] = LINES
    made["scores"] = charts.generations(arms)
    captions["scores"] = SCORES
    svgs = {name: plots.save(fig, folder / "plots" / name) for name, fig in made.items()}
    wide = 'class="plots" style="grid-template-columns: minmax(0, 1fr)"'
    return figures(svgs, captions).replace('class="plots"', wide, 1)


def _comparison(summary: Mapping[str, Any]) -> str:
    entries = summary["comparison"]
    if len(entries) < 2:
        return ""
    rows = [
        [
            NAMES[e["arm"]],
            count(e["runs"]),
            count(e["examples"]),
            _score(e, "val_accuracy"),
            _score(e, "test_accuracy"),
            _score(e, "test_loss"),
            ", ".join(f"{k} {_number(v)}" for k, v in e["values"].items())
            if e["arm"] != "population"
            else "",
        ]
        for e in entries
    ]
    head = ("what", "runs", "examples, all", "val acc", "test acc", "test loss", "numbers")
    text = (
        "<p>The best of a population and the best of as many runs whose numbers stay what they "
        "were at first took equally many examples, and both were chosen by validation. The two "
        "below are means over seeds that nothing was chosen by, with their standard deviation.</p>"
    )
    return text + table(head, rows)


def comparison_line(entry: Mapping[str, Any]) -> str:
    """What an arm came to, for a terminal."""
    runs = f"{entry['runs']} run{'s' * (entry['runs'] > 1)}"
    scores = f"validation {_score(entry, 'val_accuracy')}"
    if entry["test_accuracy"] is not None:
        scores += f", test {_score(entry, 'test_accuracy')}"
    return f"{NAMES[entry['arm']]:<34} {scores} ({runs}, {count(entry['examples'])} examples)"


def _score(entry: Mapping[str, Any], key: str) -> str:
    value, spread = entry.get(key), entry.get(f"{key}_sd")
    if value is None:
        return ""
    if not key.endswith("accuracy"):
        return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
    return percent(value) if spread is None else f"{100 * value:.2f} ± {100 * spread:.2f} %"


def _schedule(known: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """What the best member's ancestors used, a row as long as nothing changed."""
    keys, rows = summary["keys"], []
    for row, i in zip(known, summary["path"], strict=True):
        numbers = [_number(row["values"][key][i]) for key in keys]
        score = percent(row["val_accuracy"][i])
        if rows and rows[-1][3:-1] == numbers and rows[-1][2] == str(i):
            rows[-1][0] = f"{rows[-1][0].split('–')[0]}–{row['generation'] + 1}"
            rows[-1][1] = f"{rows[-1][1].split('–')[0]}–{count(row['updates'])}"
            rows[-1][-1] = score
            continue
        span = f"{count(row['first'] + 1)}–{count(row['updates'])}"
        rows.append([str(row["generation"] + 1), span, str(i), *numbers, score])
    head = ("generation", "updates", "member", *keys, "val acc at its end")
    note = "<p>As a config that trains from scratch: replay.py.</p>"
    return note + table(head, rows, "numbers")


def _members(last: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    rows = []
    for path in summary["paths"]:
        i = path[-1]
        tested = last.get("test_accuracy")
        rows.append(
            [
                str(i),
                *(_number(last["values"][key][i]) for key in summary["keys"]),
                percent(last["val_accuracy"][i]),
                percent(tested[i]) if tested else "",
                f"{last['train_loss'][i]:.4f}",
                str(path[0]),
            ]
        )
    head = ("member", *summary["keys"], "val acc", "test acc", "train loss", "began as")
    title = f"<summary>All {len(rows)}, the best first</summary>"
    few = summary["first_ancestors"]
    note = (
        f"<p>They come from {few} of the {summary['members']} members that the population "
        "began with.</p>"
    )
    return f"{note}<details>{title}{table(head, rows, 'numbers')}</details>"


def _copies(folder: Path) -> str:
    rows = records.read_lines(folder / "lineage.jsonl")
    if not rows:
        return ""

    def changed(row: Mapping[str, Any]) -> str:
        return ", ".join(
            f"{k}: {_number(row['donor'][k])} → {_number(v)} ({row['how'][k]})"
            for k, v in row["after"].items()
        )

    cells = [
        [
            str(row["generation"] + 1),
            count(row["update"]),
            str(row["member"]),
            str(row["from"]),
            row["why"],
            ", ".join(f"{k} {_number(v)}" for k, v in row["before"].items()),
            changed(row),
        ]
        for row in rows[:MOST_COPIES]
    ]
    head = ("after generation", "update", "member", "became", "why", "had", "has")
    left = len(rows) - len(cells)
    more = f"<p class='soft'>{count(left)} more are in lineage.jsonl.</p>" if left else ""
    title = f"<summary>All {count(len(rows))} copies</summary>"
    return f"<details>{title}{table(head, cells)}</details>{more}"


def _number(value: Any) -> str:
    return rate(value) if isinstance(value, int | float) else str(value)
