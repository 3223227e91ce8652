"""Fine-tuning as one HTML page: what each phase trained, at which rate, and what came of it."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lrlab import records
from lrlab.console import count, duration, percent, rate
from lrlab.report import card_list, figures, page, table

CAPTIONS = {
    "range": "Where the rate of this phase comes from.",
    "loss": "Faint: each update. Circles: an epoch's mean. Squares: validation.",
    "accuracy": "Squares: validation, at the end of each epoch.",
    "lr": "The rate that each update used; layers have their multiplier of it.",
}
FIGURES = "loss", "accuracy", "lr"  # of a phase: as its run drew them


def write_finetune(folder: Path) -> Path:
    """Writes report.html of a finished job."""
    summary, record = records.read_json(folder / "summary.json"), records.read(folder)
    rows = summary["phases"]
    sections = {"Phases": _table(rows)}
    for row in rows:
        sections[f"{row['phase']}. {row['name']}"] = _phase(folder, row)
    text = page(record, "finished", _verdict(rows), _cards(rows), sections)
    records.write_text(folder / "report.html", text)
    return folder / "report.html"


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    last = rows[-1]
    steps = ", ".join(f"{percent(r['test_accuracy'])} after {escape(r['name'])}" for r in rows[:-1])
    return f"Test accuracy <b>{percent(last['test_accuracy'])}</b>" + (
        f"; {steps}." if steps else "."
    )


def _cards(rows: Sequence[Mapping[str, Any]]) -> str:
    best = max(rows, key=lambda r: r["val_accuracy"] or 0.0)
    cards = [
        ("Test accuracy", percent(rows[-1]["test_accuracy"]), "after the last phase"),
        ("Phases", count(len(rows)), f"{count(sum(r['epochs'] for r in rows))} epochs"),
        ("Updates", count(sum(r["updates"] for r in rows)), "of all phases"),
        ("Time", duration(sum(r["seconds"] for r in rows)), "of training"),
    ]
    if best["val_accuracy"] is not None:
        note = f"in phase {best['phase']}, {best['name']}"
        cards.insert(1, ("Best validation", percent(best["val_accuracy"]), note))
    return card_list(cards)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "phase", "trains", "peak rate", "which is from", "epochs", "updates", "best validation",
        "test", "time",
    )  # fmt: skip
    lines = [
        [
            f"{r['phase']} {r['name']}",
            f"{r['trained_weights']:,} weights",
            rate(r["lr"]),
            r["lr_from"],
            r["epochs"],
            count(r["updates"]),
            percent(r["val_accuracy"]),
            percent(r["test_accuracy"]),
            duration(r["seconds"]),
        ]
        for r in rows
    ]
    return table(head, lines)


def _phase(folder: Path, row: Mapping[str, Any]) -> str:
    """The figures of a phase, its groups, and the page of its run."""
    plots = {name: folder / row["folder"] / "plots" / f"{name}.svg" for name in FIGURES}
    if row["range_test"]:
        plots = {"range": folder / row["range_test"] / "plots" / "range_test.svg", **plots}
    svgs = {name: p.read_text(encoding="utf-8") for name, p in plots.items() if p.exists()}
    rules = [[p, "frozen" if m == 0 else f"rate x {m:.4g}"] for p, m in row["rules"]]
    groups = table(("layers", "trained"), rules) if rules else "<p>All layers train alike.</p>"
    link = f'<p class="soft">Its run: {escape(row["folder"])}/report.html</p>'
    # Figures of one page share identifiers unless their names differ.
    named = {f"{row['folder']}_{k}": v for k, v in svgs.items()}
    captions = {f"{row['folder']}_{k}": CAPTIONS[k] for k in svgs}
    return groups + figures(named, captions) + link
