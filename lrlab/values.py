"""Single values of a config: reading them from a command line, checking them."""

import ast
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

UNITS = ("updates", "epochs", "examples", "fraction")
LONGEST = 100_000  # characters of one override; a longer one is a file pasted by accident
DEEPEST = 20  # levels of brackets in one override


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
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
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
    config: dict[str, Any], changes: Iterable[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Applies `--config.a.b=text` changes to a nested dict, in place.

    A change of a section's `name` drops the section's other keys unless they are given too: they
    belong to what was named before, and the notes say which were dropped.

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
    for keys, value in parsed:
        if (
            keys[-1] == "name"
            and len(keys) == 2
            and isinstance(section := config.get(keys[0]), dict)
        ):
            old = section.get("name")
            dropped = {k: v for k, v in section.items() if k != "name"}
            if old != value and dropped:
                config[keys[0]] = {}
                listed = ", ".join(f"{k}={v!r}" for k, v in dropped.items())
                notes.append(
                    f"{keys[0]}: {old} became {value}, so the recipe's {listed} went with {old}"
                )
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
