"""How the tasks of a sweep stand, told from its files alone, also while others write them."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrlab import console, records
from lrlab.jobs import _tasks
from lrlab.jobs._tasks import State
from lrlab.records import LockedError
from lrlab.resolve import ConfigError

NAMES = "running", "waiting", "failed", "over"
MOST = 20  # tasks of a kind that are listed


def show(folder: Path, retries: int) -> None:
    """Prints how the tasks stand, and writes the report of what is there.

    Raises:
      ConfigError: the folder holds no sweep with tasks.
    """
    found = _tasks.states(folder, retries)
    if not found:
        what = "a sweep of one process" if (folder / "trials.jsonl").exists() else "no such sweep"
        raise ConfigError(
            [f"--status is for a sweep that --launch cut into tasks; {folder} holds {what}"]
        )
    console.say(text(folder, found))
    try:
        _tasks.conclude(folder, retries)
        console.say(f"report {folder / 'report.html'}")
    except (LockedError, OSError) as e:
        console.say(f"the report was not written: {e}")


def line(folder: Path, found: Sequence[State]) -> str:
    """The whole in a line."""
    counts = Counter(s.name for s in found)
    done, planned = sum(s.done for s in found), sum(len(s.task.trials) for s in found)
    states = ", ".join(f"{counts[name]} {name}" for name in NAMES if counts[name])
    retries = sum(s.retries for s in found)
    again = f"; {retries} retr{'y' if retries == 1 else 'ies'}" if retries else ""
    best = _best(records.trials(folder))
    return f"[{done:,}/{planned:,}] tasks: {states}{again}" + (f"; best {best}" if best else "")


def text(folder: Path, found: Sequence[State]) -> str:
    """The whole, and a line for each task that trains or has a fault."""
    lines = [f"{folder}: {line(folder, found)}"]
    for name in NAMES[:3]:
        members = [s for s in found if s.name == name and (name == "running" or s.why)]
        lines += [f"  {_task(s)}" for s in members[:MOST]]
        if more := len(members) - MOST:
            lines += [f"  and {more} more that are {name}"] if more > 0 else []
    jobs = records.read_lines(folder / "launch" / "jobs.jsonl")
    if jobs and any(s.name != "over" for s in found):
        lines.append(f"Slurm: squeue --jobs={jobs[-1]['job']}")
    return "\n".join(lines)


def _task(s: State) -> str:
    words = [f"task {s.task.number}: {s.name}, {s.done} of {len(s.task.trials)} trials"]
    words += [s.holder] * bool(s.holder)
    if s.retries:
        words.append(f"retry {s.retries} after: {s.why.splitlines()[0][:120]}")
    return ", ".join(words)


def _best(rows: Sequence[dict[str, Any]]) -> str:
    """The trial of the best validation accuracy so far, with what it varies."""
    known = [r for r in rows if r.get("val_accuracy") is not None and r["outcome"] != "diverged"]
    if not known:
        return ""
    best = max(known, key=lambda r: r["val_accuracy"])
    own = list(best)[1 : list(best).index("outcome")]  # what varies stands before the outcome
    point = ", ".join(f"{k}={_short(best[k])}" for k in own)
    return f"{console.percent(best['val_accuracy'])} (trial {best['trial']}: {point})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
