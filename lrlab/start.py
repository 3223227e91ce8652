"""What weights begin as: those of a run of ours, or of somebody's file; and what begins anew.

    config.start = dict(run="runs/mnist", which="best", fresh=("Dense_1/.*",))
    config.start = dict(file="resnet18.safetensors", names="torchvision", fresh=("fc/.*",))

Shapes must be equal, name by name. A new head is asked for by `fresh`; nothing else may be missing.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import checkpoint, pretrained, records
from lrlab.resolve import ConfigError
from lrlab.values import choice, near

FIELDS = {
    "run": "folder of a run",
    "which": "'final' or 'best' state of that run",
    "file": "a .safetensors file",
    "names": "how that file names its weights",
    "fresh": "patterns of paths that begin anew",
    "head": "(module, folder of a run, its module): a head trained alone",
    "optimizer": "whether the update rule's memory is taken over",
}
SHOWN = 10  # names in a message
# Where all leaves train, the chain is not wrapped; elsewhere its state lies one level down.
_WRAPPED = re.compile(r"^inner_states/train/(inner_state/)?")


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights to begin with.

    loaded: values by path, "params/Dense_0/kernel". fresh: paths that begin anew. unused: names in
    the source that nothing took. opt: what the update rule remembers, by path. origin: in words.
    """

    loaded: Mapping[str, np.ndarray]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    origin: str
    opt: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def arrays(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """All of it as a tree, to hand to a program."""
        return self.loaded, self.opt

    @staticmethod
    def given(arrays: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """What `train_step.initializer` takes, from `arrays`, which may be traced."""
        loaded, opt = arrays
        return (
            lambda variables: _filled(variables, loaded),
            lambda fresh: _filled(fresh, opt, lambda name: _WRAPPED.sub("", name)),
        )

    def words(self) -> str:
        """For a banner."""
        fresh = f", {len(self.fresh)} begin anew ({_some(self.fresh)})" if self.fresh else ""
        unused = f", {len(self.unused)} of its arrays unused" if self.unused else ""
        return f"{self.origin}: {len(self.loaded)} arrays{fresh}{unused}"


def _filled(tree: Any, loaded: Mapping[str, np.ndarray], rename: Any = str) -> Any:
    """The tree with its leaves exchanged for those loaded of the same path and shape."""
    leaves = checkpoint.named(tree)
    found = []
    for name, leaf in leaves.items():
        value = loaded.get(rename(name))
        if value is not None and value.shape == leaf.shape:
            leaf = value.astype(leaf.dtype)
        found.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def read(spec: Any, params: Any, stats: Any) -> Start:
    """Reads what `config.start` names.

    Args:
      params, stats: shapes of the model's collections.
    Raises:
      ConfigError: a source that is not there or does not fit, with names and shapes.
    """
    _check(spec)
    wanted = {"params": params, **(stats or {})}
    shapes = {name: tuple(leaf.shape) for name, leaf in checkpoint.named(wanted).items()}
    fresh = _fresh(spec.get("fresh", ()), shapes)
    found_there = _run(spec) if "run" in spec else _file(spec, wanted)
    source, origin, fresh = found_there.arrays, found_there.origin, fresh | {*found_there.missing}
    opt = {k.partition("/")[2]: v for k, v in source.items() if k.startswith("opt/")}
    found = {k: v for k, v in source.items() if not k.startswith("opt/") and k != "step"}
    # In a saved state the collections beside the parameters are one level down.
    found = {k.removeprefix("stats/"): v for k, v in found.items()}
    head = _head(spec["head"]) if "head" in spec else {}
    found, fresh = found | head, fresh - head.keys()
    problems, loaded = [], {}
    for name, shape in shapes.items():
        if name in fresh:
            continue
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name].shape != shape:
            problems.append(f"{name} is {list(found[name].shape)} there, {list(shape)} here")
        else:
            loaded[name] = found[name]
    if problems:
        heads = sorted({n.split("/")[1] for n in shapes})
        raise ConfigError(
            [
                f"start: {origin} does not fit config.model: {_some(problems)}. It has "
                f"{_some(sorted(found))}. Another model, or, for a new head, name it in "
                f"start.fresh=('<module>/.*',); modules: {', '.join(heads[:SHOWN])}"
            ]
        )
    unused = (*sorted(found.keys() - loaded.keys()), *found_there.unused)
    kept = {_WRAPPED.sub("", k): v for k, v in opt.items()} if spec.get("optimizer") else {}
    return Start(loaded, tuple(sorted(fresh)), unused, origin, kept)


def _check(spec: Any) -> None:
    if not isinstance(spec, Mapping):
        raise ConfigError([f"start={spec!r} must be a section, such as dict(run='runs/mnist')"])
    problems = [f"unknown field start.{k}; {near(k, FIELDS)}" for k in spec if k not in FIELDS]
    if ("run" in spec) == ("file" in spec):
        problems.append("start needs either run=FOLDER (a run of lrlab) or file=FILE.safetensors")
    problems += choice("start.which", spec.get("which", "final"), ("final", "best"))
    for key in ("run", "file"):
        if key in spec and not (isinstance(spec[key], str) and spec[key]):
            problems.append(f"start.{key}={spec[key]!r} must be a path")
    patterns = spec.get("fresh", ())
    if not isinstance(patterns, tuple) or not all(isinstance(p, str) for p in patterns):
        problems.append(f"start.fresh={patterns!r} must be a tuple of patterns, ('Dense_1/.*',)")
    if not isinstance(spec.get("optimizer", False), bool):
        problems.append(f"start.optimizer={spec['optimizer']!r} must be True or False")
    if problems:
        raise ConfigError(problems)


def _fresh(patterns: Sequence[str], shapes: Iterable[str]) -> set[str]:
    """Paths that begin anew; ConfigError for a pattern that hits none, or all."""
    paths, found, problems = list(shapes), set(), []
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as e:
            problems.append(f"start.fresh: {pattern!r} is no regular expression: {e}")
            continue
        hits = [p for p in paths if expression.fullmatch(p.partition("/")[2])]
        if not hits:
            names = [p.partition("/")[2] for p in paths]
            problems.append(f"start.fresh: {pattern!r} matches none of {_some(names)}")
        found |= set(hits)
    if not problems and len(found) == len(paths):
        problems.append(f"start.fresh matches all {len(paths)} arrays: leave start out instead")
    if problems:
        raise ConfigError(problems)
    return found


@dataclasses.dataclass(frozen=True)
class _Found:
    """Arrays by path, and where they are from. missing: paths that may begin anew."""

    arrays: dict[str, np.ndarray]
    origin: str
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def _run(spec: Mapping[str, Any]) -> _Found:
    """A run's arrays."""
    folder, step = Path(spec["run"]), None
    if not (folder / "config.json").is_file():
        raise ConfigError([f"start.run={spec['run']!r} is no folder of a run"])
    if spec.get("which", "final") == "best":
        final = records.read(folder).final
        step = final.get("best_step") if final else None
        if step is None:
            raise ConfigError(
                [
                    f"start.which='best': {folder} "
                    + ("had no validation examples" if final else "is not finished")
                    + "; which='final' takes its last checkpoint"
                ]
            )
    try:
        step, arrays = checkpoint.read(folder / "checkpoints", step)
    except ValueError as e:
        raise ConfigError([f"start.run: {e}"]) from e
    return _Found(arrays, f"{folder} at update {step:,}")


def _head(told: Any) -> dict[str, np.ndarray]:
    """The parameters of a head that a run of its own trained."""
    if not (isinstance(told, tuple) and len(told) == 3 and all(isinstance(t, str) for t in told)):
        raise ConfigError([f"start.head={told!r} must be (module, folder of a run, its module)"])
    module, folder, theirs = told
    arrays = _run({"run": folder}).arrays
    found = {
        f"params/{module}/{name.removeprefix(f'params/{theirs}/')}": a
        for name, a in arrays.items()
        if name.startswith(f"params/{theirs}/")
    }
    if not found:
        modules = sorted({n.split("/")[1] for n in arrays if n.startswith("params/")})
        raise ConfigError([f"start.head: {folder} has no module {theirs!r}, but {modules}"])
    return found


def _file(spec: Mapping[str, Any], wanted: Any) -> _Found:
    """A file's arrays by path: a .safetensors file, or an .npz of ours, whose names are paths."""
    path = Path(spec["file"])
    if path.suffix != ".npz":
        head = (*pretrained.HEADS, *spec.get("fresh", ()))
        made, matched = pretrained.load(path, wanted, spec.get("names", "torchvision"), head)
        leaves = checkpoint.named(made)
        arrays = {leaf: np.asarray(leaves[leaf]) for leaf in matched.matched.values()}
        return _Found(arrays, str(path), matched.missing, matched.unexpected)
    try:
        with np.load(path) as stored:
            return _Found({name: stored[name] for name in stored.files}, str(path))
    except (OSError, ValueError) as e:
        raise ConfigError([f"start.file={spec['file']!r} cannot be read: {e}"]) from e


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
