"""Weights that somebody trained in PyTorch: a .safetensors file -> a model's variables.

The file is the user's; nothing is fetched. Names are torchvision's, which timm's ResNets share;
timm's VGG has other layers and is not read. A file is judged by its names and shapes before a
weight is read, and as a whole: ResNet-18 would find all that it wants in a ResNet-34, and refuses.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util  # with JAX comes ml_dtypes, from which NumPy knows bfloat16

from lrlab.resolve import ConfigError

SHOWN = 10  # names in a message
HEADS = ("fc/.*", "classifier_6/.*")  # of a ResNet, of a VGG
_TORCHVISION = (  # its modules -> those of lrlab.models.imagenet; others keep their names
    (r"(layer\d+)\.(\d+)\.downsample\.(\d)", r"\1_\2/downsample_\3"),
    (r"(layer\d+)\.(\d+)\.(\w+)", r"\1_\2/\3"),
    (r"(features|classifier)\.(\d+)", r"\1_\2"),
)
_LEAVES = {  # the end of a name -> where its leaf can be
    "weight": ("params/{}/kernel", "params/{}/scale"),
    "bias": ("params/{}/bias",),
    "running_mean": ("batch_stats/{}/mean",),
    "running_var": ("batch_stats/{}/var",),
}
_COUNTER = "num_batches_tracked"  # only of use to a BatchNorm without momentum
_DTYPES = ("F64", "F32", "F16", "BF16")
_FOREIGN = {  # how other files begin
    b"PK": "a zip, as torch.save writes it",
    b"\x80": "a pickle, as torch.save wrote it",
    b"\x89HDF": "HDF5, as Keras writes it",
}


class PretrainedError(ConfigError):
    """A file that cannot be read, or that is not of this model."""


@dataclasses.dataclass(frozen=True)
class Matched:
    """What became of a file's tensors and of a model's leaves.

    matched: name in the file -> path of the leaf that took it, "params/conv1/kernel".
    missing: paths in the head that keep what they had.
    unexpected: names in the file's head that no leaf took.
    mismatched: those of `unexpected` that have a leaf of another shape -> both shapes, in words.
    ignored: names that hold no weight (BatchNorm's counters), or that `names` drops.
    """

    matched: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, str]
    ignored: tuple[str, ...]


def load(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    names: str | Mapping[str, str | None] | Sequence[tuple[str, str | None]] = "torchvision",
    head: Sequence[str] = HEADS,
) -> tuple[dict[str, Any], Matched]:
    r"""A model's variables with the weights of a file, and what went where.

    Kernels are transposed: [out, in, height, width] -> [height, width, in, out] and [out, in] ->
    [in, out]. Rows of a dense layer that reads flattened images stay in torch's order, channel by
    channel, so the model must flatten that way, as `lrlab.models.imagenet.VGG16` does.

    Args:
      path: a .safetensors file; float16, bfloat16 and float64 become the leaf's dtype.
      variables: "params" and "batch_stats", of arrays or shapes; their leaves are not read.
      names: "torchvision", or rules (regular expression for a whole name in the file, replacement)
        that turn the file's names into torchvision's, {r"module\.(.*)": r"\1"}, or into Flax's
        modules with torch's endings, "Conv_0.weight"; the first that matches wins, and None drops
        a tensor.
      head: regular expressions for whole paths, "fc/.*": these leaves may be missing or of another
        shape, then their module keeps what it has. A head that fits is taken.
    Returns:
      Variables in the order given, NumPy arrays where the file had them.
    Raises:
      PretrainedError: no such file, no safetensors, other names, another architecture, a tensor of
        integers, of float8 or of numbers that are not finite.
    """
    path = Path(path)
    leaves: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    is_head = _matcher("head", head)
    with _opened(path) as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        shapes = {name: _arranged(tuple(t.get_shape())) for name, t in tensors.items()}
        places = _places(path, shapes, names, leaves)
        matched = _match(path, shapes, places, leaves, is_head)
        for name, leaf in matched.matched.items():
            if (dtype := tensors[name].get_dtype()) not in _DTYPES:
                raise PretrainedError(
                    [
                        f"{path}: {name} is of {dtype}, and weights can be of {_listed(_DTYPES)}: "
                        "was the net quantised?"
                    ]
                )
            leaves[leaf] = _array(path, name, file.get_tensor(name), leaves[leaf].dtype)
    return {**variables, **traverse_util.unflatten_dict(leaves, sep="/")}, matched


def _arranged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape as Flax has it: the two channels last, input first."""
    return (*shape[2:], *shape[1::-1]) if len(shape) > 1 else shape


def _array(path: Path, name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """A tensor as a leaf: transposed, cast, in rows."""
    if tensor.ndim > 1:
        tensor = np.moveaxis(tensor, (1, 0), (-2, -1))
    with np.errstate(over="ignore"):
        array = np.asarray(tensor, dtype, order="C")
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise PretrainedError([f"{path}: {name} has numbers that are not finite in {dtype}"])
    return array


def _places(
    path: Path,
    tensors: Mapping[str, Any],
    names: str | Mapping[str, str | None] | Sequence[tuple[str, str | None]],
    leaves: Mapping[str, Any],
) -> dict[str, str | None]:
    """Name in the file -> the path it stands for, whether there is such a leaf or not, or None."""
    if isinstance(names, str) and names != "torchvision":
        raise PretrainedError(
            [f"names={names!r} must be 'torchvision' or rules, {{r'module\\.(.*)': r'\\1'}}"]
        )
    try:
        rules = {} if isinstance(names, str) else dict(names)
    except (TypeError, ValueError) as e:
        raise PretrainedError([f"names={names!r} must be pairs (pattern, replacement): {e}"]) from e
    used: set[str] = set()
    places: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    for name in tensors:
        renamed = _renamed(name, rules, used)
        places[name] = None if renamed is None else _place(renamed, leaves)
        if (place := places[name]) is not None:
            if place in taken:
                raise PretrainedError([f"{path}: {taken[place]} and {name} both become {place}"])
            taken[place] = name
    if idle := [rule for rule in rules if rule not in used]:
        raise PretrainedError(
            [f"names: {idle[0]!r} applies to none of {path}'s {_count(tensors, 'tensor')}"]
        )
    return places


def _renamed(name: str, rules: Mapping[str, str | None], used: set[str]) -> str | None:
    """A name as the first rule that matches makes it; adds that rule to `used`."""
    for pattern, replacement in rules.items():
        try:
            if found := re.fullmatch(pattern, name):
                used.add(pattern)
                return None if replacement is None else found.expand(replacement)
        except (re.error, IndexError, TypeError) as e:
            raise PretrainedError([f"names: {pattern!r} -> {replacement!r}: {e}"]) from e
    return name


def _place(name: str, leaves: Mapping[str, Any]) -> str | None:
    """The path that a name of torchvision's stands for; None if it holds no weight."""
    module, _, kind = name.rpartition(".")
    if kind == _COUNTER:
        return None
    for pattern, replacement in _TORCHVISION:
        if found := re.fullmatch(pattern, module):
            module = found.expand(replacement)
            break
    module = module.replace(".", "/")
    options = [place.format(module) for place in _LEAVES.get(kind, ())] or [name]
    return next((place for place in options if place in leaves), options[0])


def _match(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, str | None],
    leaves: Mapping[str, Any],
    is_head: Callable[[str], bool],
) -> Matched:
    """Who fits whom; PretrainedError where anything but the head does not."""
    found = {name: place for name, place in places.items() if place is not None}
    differ = {
        name: f"{name} {list(shapes[name])}, model {place} {list(leaves[place].shape)}"
        for name, place in found.items()
        if place in leaves and shapes[name] != tuple(leaves[place].shape)
    }
    unknown = [name for name, place in found.items() if place not in leaves]
    taken = set(found.values())
    absent = [place for place in leaves if place not in taken]
    # A module of the head is taken whole or not at all: a bias of one class fits any head of one.
    misfits = {*absent, *(found[name] for name in differ)}
    fresh = {_module(place) for place in misfits if is_head(place)}
    left = [name for name, place in found.items() if is_head(place) and _module(place) in fresh]
    left += [name for name in unknown if is_head(found[name]) and name not in left]

    problems = {
        "missing in the file": [place for place in absent if not is_head(place)],
        "not in the model": [name for name in unknown if name not in left],
        "of another shape": [words for name, words in differ.items() if name not in left],
    }
    matched = {n: p for n, p in found.items() if not {n} & {*left, *unknown, *differ}}
    if any(problems.values()) or not matched:
        said = [f"{len(some)} {what}: {_listed(some)}" for what, some in problems.items() if some]
        raise PretrainedError(
            [
                f"{path} does not fit the model, {len(matched)} of {_count(leaves, 'leaf')} found. "
                + "".join(f"{s}. " for s in said)
                + f"Likely cause: {_cause(found, leaves)}"
            ]
        )
    return Matched(
        matched=matched,
        missing=tuple(place for place in leaves if is_head(place) and _module(place) in fresh),
        unexpected=tuple(left),
        mismatched={name: differ[name] for name in left if name in differ},
        ignored=tuple(name for name, place in places.items() if place is None),
    )


def _module(place: str) -> str:
    """The module of a path, "fc" of "params/fc/kernel"; it may have several collections."""
    return place.partition("/")[2].rpartition("/")[0]


def _cause(found: Mapping[str, str], leaves: Mapping[str, Any]) -> str:
    """Why a file may not fit; `found`: name in it -> the path it stands for."""
    names, known = list(found), len(leaves.keys() & found.values())
    if not names:
        return "the file has no weights"
    if any(name.startswith("pre_logits.") for name in names):
        return "timm's VGG, whose dense layers are convolutions; take torchvision's file"
    prefix = _common(names)
    bare = {_place(name.removeprefix(prefix), leaves) for name in names}
    if prefix and len(leaves.keys() & bare) > known:
        rule = {re.escape(prefix) + "(.*)": r"\1"}
        return f"all names begin with {prefix!r}; take it off with names={rule}"
    if 2 * known < len(names):
        return "another architecture, or other names than torchvision's, which `names` can turn"
    return (
        "another architecture, a larger or a smaller one of the family; or a part that is meant to "
        "begin anew, to be named in `head` (of a config: start.fresh)"
    )


def _common(names: Sequence[str]) -> str:
    """Modules that all names begin with, each with its dot: "module."."""
    prefix = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
    return prefix


def _matcher(field: str, patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path, less its collection, is matched by one of the patterns."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    try:
        found = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as e:
        raise PretrainedError([f"{field}={patterns!r} must be regular expressions: {e}"]) from e
    return lambda place: any(p.fullmatch(place.partition("/")[2]) for p in found)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open; what it is instead as a PretrainedError."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as e:
        raise PretrainedError(
            [f"{path}: reading it needs a package: pip install safetensors"]
        ) from e
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.safetensors"))
        raise PretrainedError(
            [f"{path} is a folder; of its files, {_listed(inside)} could be meant"]
        )
    if not path.is_file():
        raise PretrainedError(
            [f"{path}: there is no such file; lrlab fetches none, it must be put there"]
        )
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as e:
        raise PretrainedError([f"{path} cannot be read: {e}; {_kind(path)}"]) from e


def _kind(path: Path) -> str:
    """What a file that is no whole .safetensors file may be."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(9)
        for sign, what in _FOREIGN.items():
            if start.startswith(sign) and start[8:] != b"{":
                return (
                    f"it looks like {what}. In PyTorch, safetensors.torch.save_file("
                    "torch.load(path, weights_only=True), 'weights.safetensors') makes one of a "
                    "state dict"
                )
    size = path.stat().st_size if path.is_file() else 0
    return f"it is damaged or cut short at {size:,} bytes, or no .safetensors file: copy it again"


def _count(things: Any, what: str) -> str:
    plural = {"leaf": "leaves"}.get(what, what + "s")
    return f"{len(things):,} {what if len(things) == 1 else plural}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
