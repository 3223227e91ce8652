"""Single values of a config: reading them from a command line, checking them."""

import ast
import contextlib
import difflib
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

UNITS = ("updates", "epochs", "examples", "fraction")
LONGEST = 100_000  # characters of one override; a longer one is a file pasted by accident
DEEPEST = 20  # levels of brackets in one override
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_WORDS |= {text: float(text) for text in ("nan", "inf", "-inf", "infinity", "-infinity")}


def near(name: str, known: Iterable[str], most: int = 3) -> str:
    """Text "did you mean ...? known: ..." for a name that is not among `known`."""
    known = sorted({str(k) for k in known})
    folded = {k.lower().replace("_", "").replace("-", ""): k for k in known}
    key = name.lower().replace("_", "").replace("-", "")
    close = [folded[k] for k in difflib.get_close_matches(key, folded, n=most, cutoff=0.5)]
    close += [k for k in difflib.get_close_matches(name, known, n=most) if k not in close]
    hint = f"did you mean {' or '.join(map(repr, close[:most]))}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def parse(text: str) -> Any:
    """A value as typed after `--config.key=`: a Python literal where it is one, else the text.

    Raises:
      ValueError: longer than LONGEST characters or nested deeper than DEEPEST.
    """
    if len(text) > LONGEST:
        raise ValueError(f"is {len(text):,} characters long, at most {LONGEST:,} are read")
    depth = most = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        most = max(most, depth)
    if most > DEEPEST:
        raise ValueError(f"is nested {most} deep, at most {DEEPEST} levels are read")
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.strip()[:1] in ("(", "[", "{"):
            raise ValueError(
                "opens a bracket but is no Python literal: names need quotes, such as "
                '\'({"name": "cosine", "epochs": 9},)\''
            ) from None
        return text


def number(
    field: str, value: Any, low: float, high: float = math.inf, open_low: bool = False
) -> list[str]:
    """Problems of a finite number that must lie in [low, high], or (low, high] where open_low."""
    if isinstance(value, str):
        return [f"{field}={value!r} must be a number, got text: is it quoted?"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"{field}={value!r} must be a number, got {type(value).__name__}"]
    if is_huge(value):
        return [f"{field} is too large: it does not fit into 64 bits"]
    if not math.isfinite(value):
        return [f"{field}={value!r} must be finite"]
    if value < low or value > high or (open_low and value == low):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
        return [f"{field}={value!r} must lie in {interval}"]
    return []


def whole(field: str, value: Any, low: int, high: float = math.inf) -> list[str]:
    """Problems of a whole number in [low, high]; 1e3 is one, 1.5 is not."""
    if problems := number(field, value, -math.inf):
        return [p.replace("a number", "a whole number") for p in problems]
    if value != int(value):
        return [f"{field}={value!r} must be a whole number"]
    return number(field, value, low, high)


def is_huge(value: Any) -> bool:
    """Whether a whole number has no place in 64 bits; Python may even refuse to print it."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63


_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "None",
}
_SEQUENCES = (tuple, list, Sequence, Iterable)


def fit(value: Any, wanted: Any) -> Any:
    """A value as an annotation wants it: 1e3 as 1000 for int, 1 as 1.0 for float.

    What cannot be judged passes as it is: annotations other than of plain types and sequences of
    them, and values that are not plain, such as traced ones.

    Raises:
      TypeError: it does not fit; the message is what follows "must be ".
    """
    kinds = _kinds(wanted)
    if not kinds or type(value) not in (*_NAMES, tuple, dict) or type(value) in kinds:
        return value
    for kind in kinds if isinstance(value, tuple) else ():
        with contextlib.suppress(TypeError, ValueError):  # an item of another type, or too many
            return _fit_items(value, kind)
    if type(value) is int and float in kinds and abs(value) <= 2**53:
        return float(value)
    if type(value) is float and int in kinds and value.is_integer():
        return int(value)
    got = {str: "text", types.NoneType: "None"}.get(type(value), type(value).__name__)
    shown = [k for k in kinds if not (float in kinds and k in (bool, int))]  # those are numbers too
    raise TypeError(f"{' or '.join(map(_said, shown))}, got {got}")


def _kinds(wanted: Any) -> list[Any]:
    """The members of an annotation that a config can write; none if one is not plain."""
    is_union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    kinds = []
    for kind in typing.get_args(wanted) if is_union else (wanted,):
        origin = typing.get_origin(kind) or kind
        room = (getattr(origin, "__module__", None) or "").partition(".")[0]
        if origin in (*_NAMES, *_SEQUENCES):
            kinds.append(kind)
        # No value of a config is an array, a function or complex, so these say nothing of it.
        elif room not in ("jax", "jaxlib", "numpy") and origin not in (Callable, complex):
            return []
    return kinds


def _items(kind: Any) -> list[Any]:
    """What an annotation wants of a tuple's items: one for all, or one for each."""
    return [a for a in typing.get_args(kind) if a is not ...] or [Any]


def _fit_items(value: Sequence[Any], kind: Any) -> tuple[Any, ...]:
    """A tuple as an annotation wants it; TypeError or ValueError (its length) where it does not."""
    if kind in _NAMES:
        raise TypeError
    items = _items(kind)
    items = items * len(value) if len(items) == 1 else items
    return tuple(fit(v, wanted) for v, wanted in zip(value, items, strict=True))


def _said(kind: Any) -> str:
    """A type in words."""
    if kind in _NAMES:
        return _NAMES[kind]
    return "a tuple" + "".join(f", each item {_said(item)}" for item in _kinds(_items(kind)[0]))


def choice(field: str, value: Any, allowed: Iterable[str]) -> list[str]:
    """Problems of a word that must be one of `allowed`."""
    allowed = list(allowed)
    return (
        []
        if value in allowed
        else [f"{field}={value!r} is not allowed; {near(str(value), allowed)}"]
    )


def is_duration(value: Any) -> bool:
    """Whether a value is a duration such as dict(epochs=5)."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in UNITS


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; tuples and lists stay values."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def override(
    config: dict[str, Any],
    changes: Iterable[tuple[str, str]],
    needs: Callable[[str, Any], Collection[str] | None],
) -> tuple[list[str], list[str]]:
    """Applies `--config.a.b=text` changes to a nested dict, in place.

    A change of a section's `name` drops the section's other keys, which belong to what was named
    before, and the notes say which. Kept is what the newly named cannot do without: a batch's size.

    Args:
      needs: (section, name) -> keywords without a default of what is named; None if nothing is.

    Returns:
      (problems, notes): messages for errors, and for what the user should know.
    """
    problems: list[str] = []
    notes: list[str] = []
    seen: dict[str, str] = {}
    parsed: list[tuple[list[str], Any]] = []
    for path, text in changes:
        if path in seen and seen[path] != text:
            notes.append(f"{path} is given twice, {seen[path]!r} and {text!r}: the last one counts")
        seen[path] = text
        try:
            parsed.append((path.split("."), parse(text)))
        except ValueError as e:
            problems.append(f"{path}: the value {e}")
    for keys, value in {tuple(keys): value for keys, value in parsed}.items():
        section = config.get(keys[0])
        if keys[1:] == ("name",) and isinstance(section, dict) and "name" in section:
            old, kept = section["name"], needs(keys[0], value)
            dropped = [] if kept is None else [k for k in section if k not in (*kept, "name")]
            if dropped and old != value:
                listed = ", ".join(f"{k}={section.pop(k)!r}" for k in dropped)
                notes.append(f"{keys[0]}: {old} became {value}, and {listed} went with {old}")
    for keys, value in parsed:
        at: Any = config
        for depth, key in enumerate(keys[:-1]):
            if not isinstance(at.get(key), dict):
                if key in at and at[key] is not None:
                    where = ".".join(keys[: depth + 1])
                    problems.append(
                        f"{'.'.join(keys)}: {where} is {at[key]!r}, not a section; set it whole"
                    )
                    break
                at[key] = {}
            at = at[key]
        else:
            at[keys[-1]] = value
    return problems, notes
