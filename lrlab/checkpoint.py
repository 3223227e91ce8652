"""Checkpoints: the only file that imports Orbax.

<folder>/<step>/           what Orbax wrote: `state` (arrays) and `position` (JSON)
<folder>/<step>.manifest   SHA-256 of each of its files, shape of each of its arrays

The manifest is written last and at once: a step without one was never finished and is removed; a
step that no longer fits its own is set aside as <step>.corrupt, and the one before is used.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lrlab import records


class Checkpoints:
    """The checkpoints of one run; use as a context manager."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder.absolute(), keep
        self.warnings: list[str] = []
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates at INFO and WARNING
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,  # a save that returned is on disk
            cleanup_tmp_directories=True,
            create=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def _manifest(self, step: int) -> Path:
        return self.folder / f"{step}.manifest"

    def _sweep(self) -> None:
        """Removes what a killed save or delete left behind."""
        for path in self.folder.iterdir():
            stem, is_folder = path.name.removesuffix(".manifest"), path.is_dir()
            if is_folder and (
                "orbax-checkpoint-tmp" in path.name
                or (path.name.isdigit() and not self._manifest(int(path.name)).exists())
            ):
                shutil.rmtree(path)
            elif not is_folder and ".manifest" in path.name and not (self.folder / stem).is_dir():
                path.unlink()

    def steps(self) -> list[int]:
        """Finished steps, oldest first."""
        return sorted(int(p.stem) for p in self.folder.glob("*.manifest"))

    def _hashes(self, step: int) -> dict[str, str]:
        root = self.folder / str(step)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step, or None."""
        try:
            wanted = json.loads(self._manifest(step).read_text())["sha256"]
            found = self._hashes(step)
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

        A step that exists already is replaced: after a roll-back a run goes over old ground.
        """
        for old in [s for s in self.steps() if s >= step]:
            self._delete(old)
        arrays = jax.tree.map(np.asarray, state)  # Orbax takes arrays of no dimension, not scalars
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), position=ocp.args.JsonSave(dict(position))
        )
        saved = self._manager.save(step, args=args, force=True)
        if not saved:
            raise RuntimeError(f"Orbax did not save step {step} in {self.folder}")
        manifest = {"sha256": self._hashes(step), "arrays": _shapes(arrays)}
        records.write_text(self._manifest(step), json.dumps(manifest))
        kept = {*self.steps()[-self.keep :], best}
        for old in [s for s in self.steps() if s not in kept]:
            self._delete(old)

    def _delete(self, step: int) -> None:
        self._manifest(step).unlink(missing_ok=True)  # first: a step half deleted is no step
        self._manager.delete(step)

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
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(np.asarray, state)),
                position=ocp.args.JsonRestore(),
            )
            restored = self._manager.restore(candidate, args=args)
            return restored["state"], restored["position"]
        return None

    def _compare(self, step: int, wanted: Mapping[str, str]) -> None:
        """Refuses a step of another tree: Orbax would cut or pad its arrays to fit."""
        found = json.loads(self._manifest(step).read_text())["arrays"]
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
        aside = self.folder / f"{step}.corrupt"
        shutil.rmtree(aside, ignore_errors=True)
        if (self.folder / str(step)).exists():
            (self.folder / str(step)).rename(aside)
        self._manifest(step).unlink(missing_ok=True)
        self._manager.close()
        self._manager = self._open()  # Orbax remembers the steps it saw
        self.warnings.append(f"checkpoint {step} is damaged ({damage}); set aside as {aside.name}")


def _shapes(tree: Any) -> dict[str, str]:
    """Path of each array -> its dtype and shape."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{a.dtype}{list(a.shape)}" for path, a in leaves}
