"""A run is its folder: who may write it, what it holds, reading it back.

config.json       what was asked for, and the command that asked
environment.json  versions, devices, git commit, flags
metrics.jsonl     a row an epoch, rows of what happened (a skip, a rollback), a last row: the test
schedule.csv      a row an update: the rate that was used
events.jsonl      starts, resumes, stops, with wall-clock times
lock              held by the one process that writes

Rows are a function of config and seed, `seconds` and `examples_per_second` aside. Whoever resumes
cuts what was written after its checkpoint, and writes it again. JSON has no word for NaN or an
infinity: in all of these files they are null.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrlab import __version__

COLUMNS = ("update", "epoch", "lr", "batch_size", "loss")
TIMED = ("seconds", "epoch_seconds", "examples_per_second")  # what equal runs may differ in


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


def _json(value: Any, **how: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False, **how)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, tuples as lists; equal configs give equal text."""
    return _json(value, sort_keys=True, separators=(",", ":"))


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a resolved config."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:8]


def _plain(value: Any) -> Any:
    """What JSON can hold; a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no place in a record")


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old text or the new, on a full disk the old."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """What a killed `write_text` left, such as `.config.json.123`."""
    return [p for p in folder.glob(".*") if re.fullmatch(r"\.\w+\.(jsonl?|csv|html)\.\d+", p.name)]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON for people (indented), atomically."""
    write_text(path, _json(value, indent=1, sort_keys=True) + "\n")


def line(row: Mapping[str, Any]) -> str:
    """A row of a JSON-lines file."""
    return _json(row) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as e:
        raise ValueError(f"{path} is not JSON: {e}") from e


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


def best(rows: Iterable[Mapping[str, Any]]) -> Any:
    """The row of the highest validation accuracy; ties by loss, then the earlier one; never NaN."""
    keys = "val_loss", "val_accuracy"
    known = [r for r in rows if all(r.get(k) is not None and math.isfinite(r[k]) for k in keys)]
    return min(known, key=lambda r: (-r["val_accuracy"], r["val_loss"], r["epoch"]), default=None)


def trials(folder: Path) -> list[dict[str, Any]]:
    """The trials of a sweep that are over, by number: a flat row each, without its curve.

    What varies between trials is a number, or the text that names it. Tasks of a sweep have files
    of their own, which are put together at its end.
    """
    files = folder / "trials.jsonl", *folder.glob("tasks/*/trials.jsonl")
    known = {row["trial"]: row for file in files for row in read_lines(file)}
    rows = [known[number] for number in sorted(known)]
    hidden = "trial", "point", "shown", "curve"
    return [
        {
            "trial": row["trial"],
            **row["shown"],
            **{k: v for k, v in row.items() if k not in hidden},
        }
        for row in rows
    ]


def _read_schedule(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        path = Path(os.devnull)
    with path.open("rb") as f:  # one file throughout: who cuts it meanwhile puts another there
        lines = sum(block.count(b"\n") for block in iter(lambda: f.read(1 << 20), b""))
        f.seek(0)
        names = f.readline().decode().rstrip("\n").split(",") if lines else list(COLUMNS)
        whole = {"update", "epoch", "batch_size"}
        kinds = np.dtype([(name, np.int64 if name in whole else np.float32) for name in names])
        table = np.empty(0, kinds)
        if lines > 1:  # a line torn by a kill is no row
            table = np.loadtxt(f, kinds, delimiter=",", max_rows=lines - 1, ndmin=1)
    return {name: table[name] for name in names}


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
        write_text(self._rows, "".join(_json(r) + "\n" for r in kept))
        text = self._schedule.read_text() if self._schedule.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()[1:]
        header = ",".join([*COLUMNS, *columns])
        write_text(self._schedule, "\n".join([header, *lines[:updates]]) + "\n")
        self.rows = len(kept)

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Appends one row to metrics.jsonl; returns it as it will be read back."""
        written = _plain(row)
        with self._rows.open("a", encoding="utf-8") as f:
            f.write(_json(written) + "\n")
        self.rows += 1
        return written

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
        rows = [*read_lines(path), {"event": name, "time": now, **what}]  # without a torn tail
        write_text(path, "".join(_json(row) + "\n" for row in rows))


class Witness(Writer):
    """Stands where a writer would, on a host that leaves writing to the first one."""

    def cut(self, rows: int, updates: int, columns: Iterable[str] = ()) -> None:
        """Counts the rows that are kept."""
        self.rows = rows

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Counts a row; returns it as it will be read back."""
        self.rows += 1
        return _plain(row)

    def updates(self, *_: Any) -> None:
        """Nothing."""

    def event(self, name: str, **what: Any) -> None:
        """Nothing."""


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
        for left in leftovers(folder):
            left.unlink()
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
    """The commit of lrlab's code, or of the current folder's where lrlab is installed; git_of.

    An installed lrlab has no repository, even if its site-packages lie within someone's.
    """
    ours, here = Path(__file__).parent, Path.cwd()
    is_tracked = _git(ours, "ls-files", "--error-unmatch", Path(__file__).name) is not None
    place, name = (ours, "lrlab") if is_tracked else (here, "current directory")
    commit = _git(place, "rev-parse", "HEAD")
    changes = _git(place, "status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    return {"git_of": name, "git_commit": commit, "git_dirty": bool(changes)}


def _git(place: Path, *words: str) -> str | None:
    """What git says there; None if it has nothing to say."""
    command = ["git", *words]
    how = {"capture_output": True, "text": True, "timeout": 5, "check": True}
    try:
        return subprocess.run(command, cwd=place, **how).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
