"""Checkpoints: the only file that imports Orbax, when the first one is saved or restored.

<folder>/<step>/           what Orbax wrote: `state` (arrays) and `position` (JSON)
<folder>/<step>.manifest   SHA-256 of each of its files, shape of each of its arrays

A step is what its manifest says, and the manifest is written last and at once. What no manifest
names was never finished and is removed; a step that no longer fits its own is set aside as
<step>.corrupt, and the one before is used. A step that is saved anew is written beside the old one,
as <step>-new/, until its manifest takes over: a full disk or a kill in between loses nothing.
"""

import contextlib
import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import records

_FOLDER = r"\d+(-new)?(\.orbax-checkpoint-tmp.*)?"  # of a step, finished or not


class Checkpoints:
    """The checkpoints of one run; use as a context manager."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder.absolute(), keep
        self.warnings: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    @functools.cached_property
    def _orbax(self) -> Any:
        """Orbax, which takes a while to import, with something that saves and restores."""
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(
            logging.CRITICAL
        )  # Orbax narrates; errors are raised too
        # Of a run on several hosts the first one saves alone: all hold the same.
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        return ocp.args, ocp.Checkpointer(handler, multiprocessing_options=alone)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if "_orbax" in vars(self):
            self._orbax[1].close()

    def _manifest(self, step: int) -> Path:
        return self.folder / f"{step}.manifest"

    def _read(self, step: int) -> dict[str, Any]:
        """What a step's manifest says; of one that cannot be read, nothing."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self._manifest(step).read_text())
        return {}

    def _place(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / self._read(step).get("folder", str(step))

    def _sweep(self) -> None:
        """Removes what a killed save or delete left behind."""
        for step in [s for s in self.steps() if not self._place(s).is_dir()]:
            self._manifest(step).unlink()
        places = {self._place(step) for step in self.steps()}
        for path in self.folder.iterdir():
            if path not in places and re.fullmatch(_FOLDER, path.name):
                shutil.rmtree(path)
            elif re.fullmatch(r"\.\d+\.manifest\.\d+", path.name):
                path.unlink()

    def steps(self) -> list[int]:
        """Finished steps, oldest first."""
        return steps(self.folder)

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step, or None."""
        try:
            wanted = json.loads(self._manifest(step).read_text())["sha256"]
            found = _hashes(self._place(step))
        except (OSError, ValueError, KeyError) as e:
            return f"unreadable: {e}"
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                state = (
                    "missing"
                    if name not in found
                    else "unknown"
                    if name not in wanted
                    else "changed"
                )
                return f"{name} is {state}"
        return None

    def save(
        self, step: int, state: Any, position: Mapping[str, Any], best: int | None = None
    ) -> None:
        """Saves `state` (NumPy leaves) and `position` (JSON); keeps the last ones and step `best`.

        A step that exists already is replaced, and later ones end with it: after a roll-back a run
        goes over old ground. What is there already, times aside, is left as it is.

        Raises:
          OSError: it could not be written; every step that was there is still there.
        """
        arrays = jax.tree.map(np.asarray, state)  # Orbax takes arrays of no dimension, not scalars
        content = _digest(arrays, position)
        if self._read(step).get("content") != content:
            self._write(step, arrays, position, content)
        kept = {*[s for s in self.steps() if s <= step][-self.keep :], best}
        for old in [s for s in self.steps() if s > step or s not in kept]:
            self._delete(old)

    def _write(self, step: int, arrays: Any, position: Mapping[str, Any], content: str) -> None:
        """Writes a step beside what there is of it, and puts it in its place."""
        old = self._place(step)
        place = self.folder / (f"{step}-new" if old == self.folder / str(step) else str(step))
        place = place if old.exists() else old
        try:
            args, saver = self._orbax
            items = {"state": args.StandardSave(arrays), "position": args.JsonSave(dict(position))}
            saver.save(place, args=args.Composite(**items))
            manifest = {"folder": place.name, "sha256": _hashes(place), "arrays": _shapes(arrays)}
            records.write_text(self._manifest(step), json.dumps({**manifest, "content": content}))
        except Exception as e:  # a full disk is an OSError or, in TensorStore, a ValueError
            for left in place, *self.folder.glob(f"{place.name}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            reason = re.split(r"\n| \[tensorstore_spec", str(e).strip())[0]
            raise OSError(f"checkpoint {step} was not written in {self.folder}: {reason}") from e
        if old != place:
            shutil.rmtree(old, ignore_errors=True)

    def _delete(self, step: int) -> None:
        place = self._place(step)
        self._manifest(step).unlink(missing_ok=True)  # first: a step half deleted is no step
        shutil.rmtree(place, ignore_errors=True)

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint (or `step`) as (state, position), or None if there is none.

        Args:
          state: a tree of the shapes and dtypes to expect.
        Raises:
          ValueError: it holds another tree: another model or optimizer saved it.
        """
        for candidate in reversed(self.steps() if step is None else [step]):
            if damage := self._damage(candidate):
                self._set_aside(candidate, damage)
                continue
            self._compare(candidate, _shapes(state))
            args, saver = self._orbax
            wanted = jax.tree.map(np.asarray, state)
            items = {"state": args.StandardRestore(wanted), "position": args.JsonRestore()}
            restored = saver.restore(self._place(candidate), args=args.Composite(**items))
            return restored["state"], restored["position"]
        return None

    def position(self) -> dict[str, Any] | None:
        """The position of the newest whole checkpoint alone, or None if there is none."""
        for step in reversed(self.steps()):
            if self._damage(step) is None:
                args, saver = self._orbax
                wanted = args.Composite(position=args.JsonRestore())
                return saver.restore(self._place(step), args=wanted)["position"]
        return None

    def _compare(self, step: int, wanted: Mapping[str, str]) -> None:
        """Refuses a step of another tree: Orbax would cut or pad its arrays to fit."""
        found = self._read(step)["arrays"]
        differences = [
            f"{path}: {found.get(path, 'absent')} saved, {wanted.get(path, 'absent')} wanted"
            for path in sorted(found.keys() | wanted.keys())
            if found.get(path) != wanted.get(path)
        ]
        if differences:
            more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
            raise ValueError(
                f"checkpoint {step} in {self.folder.name} is of another model or optimizer: "
                + "; ".join(differences[:10])
                + more
            )

    def _set_aside(self, step: int, damage: str) -> None:
        aside, place = self.folder / f"{step}.corrupt", self._place(step)
        shutil.rmtree(aside, ignore_errors=True)
        if place.exists():
            place.rename(aside)
        self._manifest(step).unlink(missing_ok=True)
        self.warnings.append(f"checkpoint {step} is damaged ({damage}); set aside as {aside.name}")


def read(folder: Path, step: int | None = None) -> tuple[int, dict[str, np.ndarray]]:
    """(step, arrays by path) of somebody's checkpoint, "params/Dense_0/kernel"; changes nothing.

    Args:
      folder: a run's checkpoints. step: or the newest one.
    Raises:
      ValueError: there is none, it is another step, or it is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of checkpoints")
    other = object.__new__(Checkpoints)  # without tidying up: a run may be at work there
    other.folder = folder.absolute()
    known = steps(folder)
    if not known or step not in (None, *known):
        there = ", ".join(map(str, known)) or "none"
        raise ValueError(f"{folder} has no checkpoint {step if step else ''}: there is {there}")
    step = known[-1] if step is None else step
    if damage := other._damage(step):
        raise ValueError(f"checkpoint {step} in {folder} is damaged: {damage}")
    with other:
        args, saver = other._orbax
        wanted = args.Composite(state=args.StandardRestore())
        found = saver.restore(other._place(step), args=wanted)["state"]
    return step, {name: np.asarray(a) for name, a in named(found).items()}


def steps(folder: Path) -> list[int]:
    """Finished steps of somebody's checkpoints, oldest first."""
    return sorted(int(p.stem) for p in folder.glob("*.manifest") if p.stem.isdigit())


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, as "params/Dense_0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_part, path)): leaf for path, leaf in leaves}


def _part(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))


def _hashes(place: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    files = sorted(p for p in place.rglob("*") if p.is_file())
    return {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _shapes(tree: Any) -> dict[str, str]:
    """Path of each array -> its dtype and shape."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{a.dtype}{list(a.shape)}" for path, a in leaves}


def _digest(arrays: Any, position: Mapping[str, Any]) -> str:
    """SHA-256 of what a step holds, times aside."""
    found = hashlib.sha256(records.digest([position]).encode())
    found.update(records.canonical(_shapes(arrays)).encode())
    for leaf in jax.tree.leaves(arrays):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
