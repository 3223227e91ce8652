"""Folders that are made once and kept, by whichever process comes first."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lrlab.data._checks import DataError


def home(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where data is kept: `cache_dir`, `$LRLAB_CACHE_DIR` or `~/.cache/lrlab/data`."""
    told = cache_dir or os.environ.get("LRLAB_CACHE_DIR") or "~/.cache/lrlab/data"
    return Path(told).expanduser()


def kept(
    cache: Path, stem: str, meta: Mapping[str, Any], make: Callable[[Path], None], doing: str
) -> Path:
    """A folder that `make` fills, once for each `meta`; it is complete as soon as it has its name.

    Args:
      meta: all that its content depends on, as JSON. doing: what is said while it is made.
    Raises:
      DataError: the cache cannot be written, or `make` raises it.
    """
    text = json.dumps(meta, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = cache / re.sub(r"[^\w.\-]", "-", f"{stem}-{key}")
    if _is_complete(folder, text):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with alone(cache / f".{folder.name}.lock", doing):
            if not _is_complete(folder, text):
                _make(folder, text, make, doing)
    except OSError as e:
        raise DataError(
            f"cannot write to {cache} ({e}): set LRLAB_CACHE_DIR or data.cache_dir to a folder of "
            "yours with space"
        ) from e
    return folder


def _is_complete(folder: Path, text: str) -> bool:
    try:
        return (folder / "meta.json").read_text("utf-8") == text
    except OSError:
        return False


def _make(folder: Path, text: str, make: Callable[[Path], None], doing: str) -> None:
    """Fills the folder under another name and renames it; needs the lock."""
    for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed
        shutil.rmtree(left)
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    print(f"lrlab: {doing}, once, into {folder.parent}", end="", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        make(partial)
        (partial / "meta.json").write_text(text, "utf-8")
        partial.rename(folder)
        print(f": {time.monotonic() - began:.1f} s", end="", file=sys.stderr)
    finally:
        print(file=sys.stderr, flush=True)
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Holds a lock that dies with its process."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"lrlab: another process is {doing}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
