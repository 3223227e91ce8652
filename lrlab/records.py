"""A run is its folder: who may write it, what it holds, reading it back.

config.json       what was asked for, and the command that asked
environment.json  versions, devices, git commit, flags
metrics.jsonl     a row an epoch, rows of what happened (a skip, a rollback), a last row: the test
schedule.csv      a row an update: the rate that was used
events.jsonl      starts, resumes, stops, with wall-clock times
lock              held by the one process that writes

Rows are a function of config and seed, `seconds` and `examples_per_second` aside. Whoever resumes
cuts what was written after its checkpoint, and writes it again.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrlab import __version__

COLUMNS = ("update", "epoch", "lr", "batch_size", "loss")
TIMED = ("seconds", "examples_per_second")  # what two equal runs may differ in


class LockedError(RuntimeError):
    """Another process writes this run."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A run folder, read back."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    happened: list[dict[str, Any]]
    final: dict[str, Any] | None
    events: list[dict[str, Any]]
    schedule: dict[str, np.ndarray]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, tuples as lists; equal configs give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a resolved config."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:8]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no place in a record")


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON for people (indented), atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=_plain) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was torn by a kill is not a row."""
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if i < len(lines) - 1:
                raise ValueError(f"{path.name} line {i + 1} is not JSON: {line[:60]!r}") from None
    return rows


def read(folder: str | os.PathLike[str]) -> Record:
    """Reads a run folder, also while it is written; runs no code of its author."""
    folder = Path(folder)
    rows = read_lines(folder / "metrics.jsonl")
    finals = [r for r in rows if r.get("event") == "final"]
    return Record(
        folder=folder,
        config=read_json(folder / "config.json"),
        environment=read_json(folder / "environment.json"),
        rows=[r for r in rows if "event" not in r],
        happened=[r for r in rows if r.get("event") not in (None, "final")],
        final=finals[-1] if finals else None,
        events=read_lines(folder / "events.jsonl"),
        schedule=_read_schedule(folder / "schedule.csv"),
    )


def _read_schedule(path: Path) -> dict[str, np.ndarray]:
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # a line torn by a kill is no row
    lines = lines or [",".join(COLUMNS)]
    names = lines[0].split(",")
    table = np.array([line.split(",") for line in lines[1:]], dtype=object).reshape(-1, len(names))
    whole = {"update", "epoch", "batch_size"}
    kinds = [np.int64 if name in whole else np.float32 for name in names]
    return {name: table[:, i].astype(kinds[i]) for i, name in enumerate(names)}


class Writer:
    """The one writer of a run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = 0  # in metrics.jsonl
        self._rows = folder / "metrics.jsonl"
        self._schedule = folder / "schedule.csv"

    def cut(self, rows: int, updates: int, columns: Iterable[str] = ()) -> None:
        """Keeps the first `rows` rows and `updates` updates, and drops the rest, torn lines too.

        columns: of schedule.csv after COLUMNS: names of values that are scheduled beside the rate.
        """
        kept = read_lines(self._rows)[:rows]
        write_text(self._rows, "".join(json.dumps(r) + "\n" for r in kept))
        text = self._schedule.read_text() if self._schedule.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()[1:]
        header = ",".join([*COLUMNS, *columns])
        write_text(self._schedule, "\n".join([header, *lines[:updates]]) + "\n")
        self.rows = len(kept)

    def row(self, row: Mapping[str, Any]) -> None:
        """Appends one row to metrics.jsonl."""
        with self._rows.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row, default=_plain) + "\n")
        self.rows += 1

    def updates(
        self,
        first: int,
        epoch: int,
        batch_size: int,
        lr: np.ndarray,
        loss: np.ndarray,
        *scheduled: np.ndarray,
    ) -> None:
        """Appends a row an update; float32 values in the fewest digits that read back equal."""
        texts = [a.astype(str) for a in (lr, loss, *scheduled)]
        lines = [
            ",".join([f"{first + i},{epoch},{rate},{batch_size}", *others]) + "\n"
            for i, (rate, *others) in enumerate(zip(*texts, strict=True))
        ]
        with self._schedule.open("a", encoding="utf-8") as f:
            f.writelines(lines)

    def event(self, name: str, **what: Any) -> None:
        """Appends a start, resume, stop or end, with the time, to events.jsonl."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        path = self.folder / "events.jsonl"
        kept = "".join(json.dumps(row) + "\n" for row in read_lines(path))  # without a torn tail
        row = json.dumps({"event": name, "time": now, **what}, default=_plain)
        write_text(path, kept + row + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Writer]:
    """Holds the folder's lock. The kernel frees it when the process ends, however it ends.

    Raises:
      LockedError: another process holds it; the message says who, since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            f.seek(0)
            raise LockedError(
                f"another process trains in {folder} ({f.read().strip() or 'it just started'}): "
                "wait for it, or choose another --workdir"
            ) from e
        f.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        f.write(f"host {socket.gethostname()}, process {os.getpid()}, since {now}")
        f.flush()
        yield Writer(folder)


def digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of rows without what is timed; equal for runs that did the same."""
    kept = [{k: v for k, v in r.items() if k not in TIMED} for r in rows]
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions, platform, git commit; of all variables only those that change results."""
    packages = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections"
    found = {name: importlib.metadata.version(name) for name in packages}
    flags = {k.lower(): os.environ[k] for k in ("XLA_FLAGS", "JAX_PLATFORMS") if k in os.environ}
    return {
        "lrlab": __version__,
        "python": platform.python_version(),
        **found,
        "platform": platform.platform(),
        "cpu_count": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        **_commit(),
        **flags,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _commit() -> dict[str, Any]:
    """The commit that lrlab's code is at, where it runs from a git checkout."""
    root = Path(__file__).parent
    try:
        ask = functools.partial(
            subprocess.run, cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
        commit = ask(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(ask(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_dirty": dirty}
