"""What came of a sweep: tables, summary, report and the words at its end. Without JAX."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrlab import records
from lrlab.analysis import valley
from lrlab.report.sweep import scaling_words, write_sweep


class Book:
    """The file of trials that are over: each trial once, whatever kill came before."""

    def __init__(self, file: Path):
        self.file = file
        rows = records.read_lines(file)
        records.write_text(file, "".join(map(records.line, rows)))  # without a torn tail
        self.done = {row["trial"] for row in rows}

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends the rows of trials that are over; none is written twice."""
        new = [row for row in rows if row["trial"] not in self.done]
        with self.file.open("a", encoding="utf-8") as f:
            f.write("".join(map(records.line, new)))
        self.done |= {row["trial"] for row in new}


def conclude(
    folder: Path,
    keys: Sequence[str],
    most: Mapping[int, int],
    tasks: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes what the trials that are over say: summary.json, tables, figures, the report.

    Args:
      keys: what varies. most: updates that each trial takes at most. tasks: rows for the report.
    """
    rows = records.trials(folder)
    if rows:
        at_most = sum(
            row["updates"] if row["outcome"] == "budget" else most[row["trial"]] for row in rows
        )
        records.write_json(folder / "summary.json", valley.summary(rows, keys, at_most))
        _tables(folder, rows)
    write_sweep(folder, len(most), tasks)


def _tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the trials as trials.csv, .tex and .parquet."""
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    records.write_text(
        folder / "trials.csv", "".join(",".join(line) + "\n" for line in [names, *cells])
    )
    lines = [" & ".join(map(_tex, line)) + " \\\\" for line in [names, *cells]]
    body = [f"\\begin{{tabular}}{{{'l' * len(names)}}}", "\\hline", lines[0], "\\hline"]
    ending = ["\\hline", "\\end{tabular}"]
    records.write_text(folder / "trials.tex", "\n".join([*body, *lines[1:], *ending]) + "\n")
    temporary = folder / ".trials.parquet"
    whole = [{name: row.get(name) for name in names} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), temporary)
    temporary.replace(folder / "trials.parquet")


def _tex(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text.strip('"'))


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return json.dumps(text) if "," in text or '"' in text else text


def ending(folder: Path) -> str:
    """The last lines of a sweep."""
    said = records.read_json(folder / "summary.json")
    outcomes = ", ".join(f"{n:,} {o}" for o, n in sorted(said["outcomes"].items()))
    saved = 1 - said["updates"] / max(1, said.get("at_most", said["updates"]))
    lines = [
        f"{said['trials']:,} trials: {outcomes}",
        f"{said['updates']:,} updates"
        + (f"; trials that ended early saved {saved:.0%}" if saved else ""),
    ]
    for entry in said["valleys"]:
        best, good = entry["best"], entry.get("good")
        rate = f" at lr {best['lr']:.3g}" if best.get("lr") else ""
        span = f"; good from {good['low']:.2g} to {good['high']:.2g}" if good else ""
        lines.append(
            f"  {entry['name']:<24} best validation accuracy {best['val_accuracy']:.2%}{rate}{span}"
        )
    lines = lines[:17]
    if rule := said.get("scaling"):
        lines.append(f"the best rate grows as {scaling_words(rule)}")
    return "\n".join([*lines, f"report {folder / 'report.html'}"])
