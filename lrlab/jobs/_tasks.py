"""The tasks of a sweep: parts that processes train beside each other, on one machine or on many.

A task is trials of one group, so one program. It writes in a folder of its own, where one process
at a time may write: no file ever has two writers, so all that a shared file system must have is
flock. Nothing here looks at a clock to tell who is alive: the kernel, or the file server, frees the
lock of a process that ended.

<folder>/tasks.json              which trials each task has; once written it stays
<folder>/tasks/<i>/lock          held by the process that trains the task
<folder>/tasks/<i>/trials.jsonl  its trials that are over
<folder>/tasks/<i>/events.jsonl  each start with what was there, each wave, and how it ended
<folder>/tasks/<i>/checkpoints/, traceback.txt

Once all tasks are over their trials stand together in <folder>/trials.jsonl. Without JAX.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrlab import records
from lrlab.jobs import _sweep_record
from lrlab.records import LockedError, Writer
from lrlab.resolve import ConfigError

RETRIES = 3  # of a task that gets no further
MOMENT, LONG = 5.0, 120.0  # seconds to wait for the lock of a task; of the sweep


@dataclasses.dataclass(frozen=True)
class Task:
    """A part of a sweep. group: what sets its trials apart. updates: that each takes at most."""

    number: int
    folder: Path
    group: str
    trials: tuple[int, ...]
    updates: int

    def rows(self) -> list[dict[str, Any]]:
        """Its trials that are over."""
        return records.read_lines(self.folder / "trials.jsonl")

    @property
    def is_over(self) -> bool:
        """Whether every trial has its row."""
        return {row["trial"] for row in self.rows()} >= set(self.trials)

    def holder(self) -> str | None:
        """Who trains it now (host, process, since when), or None."""
        try:
            with (self.folder / "lock").open() as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return f.read().strip() or "just started"
        except FileNotFoundError:
            pass
        return None

    def held(self) -> contextlib.AbstractContextManager[Writer]:
        """Holds its lock. A `holder` that looks has it for a moment, so this tries a little longer.

        Raises:
          LockedError: another process trains it.
        """
        return _held(self.folder, MOMENT)


@dataclasses.dataclass(frozen=True)
class State:
    """How a task stands. name: waiting, running, over or failed. holder: who trains it.

    retries: starts after an end that was none. failures: ends in a row that were none and got no
    further. why: of the last one.
    """

    task: Task
    name: str
    done: int
    holder: str
    retries: int
    failures: int
    why: str


@contextlib.contextmanager
def _held(folder: Path, patience: float) -> Iterator[Writer]:
    """Holds a folder's lock, and waits for it for some seconds."""
    with contextlib.ExitStack() as stack:
        until = time.monotonic() + patience
        while True:
            try:
                writer = stack.enter_context(records.locked(folder))
                break
            except LockedError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield writer


def alone(folder: Path) -> contextlib.AbstractContextManager[Writer]:
    """Holds a sweep's own lock, to plan or to conclude: moments, so another's is waited for."""
    return _held(folder, LONG)


def cut(sizes: Sequence[int], wanted: int) -> list[int]:
    """Parts of each group, at least one, so that the largest part is as small as can be."""
    parts = [1] * len(sizes)
    for _ in range(min(wanted, sum(sizes)) - len(sizes)):
        i = max(range(len(sizes)), key=lambda i: sizes[i] / parts[i])
        parts[i] += 1
    return parts


def plan(
    keys: Sequence[str], groups: Sequence[tuple[str, Sequence[int], int]], wanted: int
) -> dict[str, Any]:
    """What tasks.json holds.

    Args:
      keys: what varies. groups: name, trials, and updates that each takes at most. wanted: tasks,
        of which there are more where there are more groups, and fewer where there are fewer trials.
    """
    tasks = []
    for (name, trials, updates), parts in zip(
        groups, cut([len(t) for _, t, _ in groups], wanted), strict=True
    ):
        bounds = [len(trials) * i // parts for i in range(parts + 1)]
        for low, high in itertools.pairwise(bounds):
            tasks.append({"group": name, "trials": list(trials[low:high]), "updates": updates})
    return {"keys": list(keys), "tasks": tasks}


def write(folder: Path, planned: Mapping[str, Any]) -> list[Task]:
    """The tasks of a sweep: those that are there, else as planned. Call it under its lock.

    Raises:
      ConfigError: one process began the sweep, without tasks.
    """
    if tasks := read(folder):
        return tasks
    begun = records.read_lines(folder / "trials.jsonl")
    if begun or list((folder / "checkpoints").glob("*.manifest")):
        raise ConfigError(
            [
                f"--workdir={folder} holds a sweep that one process began, with {len(begun)} "
                "trials over; it goes on without --launch, or choose another --workdir"
            ]
        )
    records.write_json(folder / "tasks.json", planned)
    return read(folder)


def read(folder: Path) -> list[Task]:
    """The tasks of a sweep; none where one process trains it."""
    stored = records.read_json(folder / "tasks.json").get("tasks", [])
    return [
        Task(i, folder / "tasks" / str(i), t["group"], tuple(t["trials"]), t["updates"])
        for i, t in enumerate(stored)
    ]


def state(task: Task, retries: int = RETRIES) -> State:
    """How a task stands now; it fails for good after so many retries that got no further."""
    while True:  # until nobody came or went while it was read
        holder = task.holder()
        done = len({row["trial"] for row in task.rows()} & set(task.trials))
        events = records.read_lines(task.folder / "events.jsonl")
        if task.holder() == holder:
            break
    again, failures, why = tally(events, holder is not None)
    over = done == len(task.trials)
    name = "running" if holder else "over" if over else "waiting"
    if name == "waiting" and failures > retries:
        name = "failed"
    return State(task, name, done, holder or "", again, failures, why)


def tally(events: Iterable[Mapping[str, Any]], is_held: bool) -> tuple[int, int, str]:
    """(ends that were none, those in a row that got no further, why the last one came)."""
    total, row, why, place, is_open = 0, 0, "", None, False

    def ended(reason: str) -> tuple[int, int, str, bool]:
        return total + 1, row + 1, reason, False

    killed = "its process was killed"
    for event in events:
        if event["event"] == "start":
            if is_open:
                total, row, why, is_open = ended(killed)
            here = event["trials"], event["checkpoint"]
            row = row if here == place else 0
            place, is_open = here, True
        elif event["event"] == "failed":
            total, row, why, is_open = ended(event["why"])
        elif event["event"] in ("stop", "end"):
            is_open = False
        elif event["event"] == "retry":
            row = 0
    if is_open and not is_held:
        total, row, why, is_open = ended(killed)
    return total, row, why


def states(folder: Path, retries: int = RETRIES) -> list[State]:
    """How every task of a sweep stands."""
    return [state(task, retries) for task in read(folder)]


def forgive(found: Iterable[State]) -> list[int]:
    """Lets the failed ones be tried again; returns their numbers."""
    failed = [s.task for s in found if s.name == "failed"]
    for task in failed:
        with task.held() as writer:
            writer.event("retry")
    return [task.number for task in failed]


@contextlib.contextmanager
def idle(folder: Path) -> Iterator[None]:
    """Holds all tasks of a sweep, so that nobody trains.

    Raises:
      LockedError: somebody does.
    """
    with contextlib.ExitStack() as stack:
        for task in read(folder):
            if task.folder.exists():
                stack.enter_context(task.held())
        yield


def conclude(folder: Path, retries: int = RETRIES) -> None:
    """Writes what the trials that are over say, and puts them together once all are.

    Any process may, at any time, and again.
    """
    with alone(folder):
        found = states(folder, retries)
        if all(s.done == len(s.task.trials) for s in found):
            rows = {row["trial"]: row for s in found for row in s.task.rows()}
            text = "".join(records.line(rows[i]) for i in sorted(rows))
            merged = folder / "trials.jsonl"
            is_same = merged.exists() and merged.read_text(encoding="utf-8") == text
            if is_same and (folder / "report.html").exists() and _said(folder) == len(rows):
                return
            records.write_text(merged, text)
        keys = records.read_json(folder / "tasks.json")["keys"]
        most = {i: s.task.updates for s in found for i in s.task.trials}
        _sweep_record.conclude(folder, keys, most, [_row(s) for s in found])


def _said(folder: Path) -> int:
    """Trials that the summary and the report know."""
    return records.read_json(folder / "summary.json").get("trials", 0)


def _row(s: State) -> dict[str, Any]:
    """A task's row in the report."""
    return {
        "task": s.task.number,
        "group": s.task.group,
        "trials": f"{s.done} of {len(s.task.trials)}",
        "state": s.name,
        "retries": s.retries,
        "last fault": s.why,
    }
