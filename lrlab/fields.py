"""The fields of a config: which there are, their defaults, what each may be.

A field is checked here alone; what several of them make together is for `build` to check.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lrlab import values

POLICIES = ("stop", "skip", "rollback")
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "data": {"name": "digits"},
    "placement": "auto",
    "batch": {"name": "fixed", "size": 128},
    "lr_multipliers": (),
    "no_decay": (),
    "schedule": ({"name": "constant"},),
    "clip_norm": None,
    "l2": 0.0,
    "weight_decay": 0.0,
    "ema": None,
    "label_smoothing": 0.0,
    "eval_size": None,
    "noise_scale": False,
    "nonfinite": {"policy": "stop", "factor": 0.5, "most": 3},
    "checkpoint": {"keep": 2, "minutes": 0.5, "at": ()},
    "augment": (),
    "start": None,
    "patience": None,
    "job": {"name": "train"},
    "sweep": None,
    "pbt": None,
    "search": None,
    "range_test": None,
    "finetune": None,
}
SCHEDULABLE = (
    "clip_norm",
    "l2",
    "label_smoothing",
    "weight_decay",
)  # number, or dict(schedule=...)
REQUIRED = ("epochs", "model", "optimizer", "lr")
# Rates that have trained something, widely; outside, a config is probably a slip (a warning).
USUAL = {
    **dict.fromkeys(("sgd", "momentum", "nesterov", "optax:trace", "optax:sgd"), (1e-5, 10.0)),
    **dict.fromkeys(("adam", "adamw", "rmsprop", "optax:adam", "optax:adamw"), (1e-7, 0.3)),
    **dict.fromkeys(("optax:lion", "optax:scale_by_lion"), (1e-6, 1e-2)),
    # These find their rate, and lr multiplies it.
    **dict.fromkeys(("prodigy", "dadapt_adamw", "dog", "dowg", "cocob", "mechanic"), (0.1, 10.0)),
    "adagrad": (1e-5, 3.0),
    "adadelta": (1e-3, 100.0),
}
_KINDS: dict[str, Any] = {
    **dict.fromkeys(
        ("seed", "epochs", "eval_size", "patience", "nonfinite.most", "checkpoint.keep"), int
    ),
    **dict.fromkeys(("lr", "ema", *SCHEDULABLE, "nonfinite.factor", "checkpoint.minutes"), float),
    "lr_multipliers": tuple[tuple[str, float], ...],
}


def plain(value: Any) -> Any:
    """ConfigDicts as dicts, lists as tuples, NumPy's numbers as Python's, all the way down."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        items = value.items() if isinstance(value, Mapping) else value.to_dict().items()
        return {str(k): plain(v) for k, v in items}
    if isinstance(value, list | tuple):
        return tuple(plain(v) for v in value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if (
        type(value).__name__ == "FieldReference"
    ):  # of ml_collections; to_dict leaves those in tuples
        return plain(value.get())
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def fill(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config with defaults for what it leaves out, and numbers of one type a field.

    Sections without a name are merged with their defaults.
    """
    full = plain(DEFAULTS) | plain(config)
    for key, default in DEFAULTS.items():
        if isinstance(default, dict) and isinstance(full[key], dict) and "name" not in full[key]:
            full[key] = {**default, **full[key]}
    for field, kind in _KINDS.items():
        section, _, key = field.rpartition(".")
        inside = full.get(section) if section else full
        if isinstance(inside, dict) and key in inside:
            with contextlib.suppress(TypeError):  # `problems` says what is wrong with it
                inside[key] = values.fit(inside[key], kind)
    return full


def unstorable(value: Any, field: str = "") -> list[str]:
    """Problems of values that have no place in a record: functions, types, 400 digits."""
    if isinstance(value, dict):
        inside = [(f"{field}.{k}" if field else k, v) for k, v in value.items()]
    elif isinstance(value, tuple):
        inside = [(f"{field}[{i}]", v) for i, v in enumerate(value)]
    elif values.is_huge(value):
        return values.number(field, value, 0)
    elif value is None or isinstance(value, bool | int | float | str):
        return []
    else:
        return [
            f"{field}={value!r} has no place in a record, which holds numbers, text, True, False, "
            f"None, tuples and dicts, no {type(value).__name__}; write the name of what is meant"
        ]
    return [problem for name, v in inside for problem in unstorable(v, name)]


def problems(full: Mapping[str, Any]) -> list[str]:
    """Problems of the fields themselves: unknown, missing, of a wrong type or out of range."""
    found = []
    for key, value in full.items():
        if key not in DEFAULTS and key not in REQUIRED:
            found.append(f"unknown field {key}={value!r}; {_home(key)}")
        elif value is None and DEFAULTS.get(key) is not None:
            found.append(f"{key}=None: leave it out for its default, {DEFAULTS[key]!r}")
    for key in REQUIRED:
        if full.get(key) is None:
            found.append(f"{key} is missing: {_WHY[key]}")
    for key, rules in _RULES.items():
        if full.get(key) is not None and not (key in SCHEDULABLE and is_schedule(full[key])):
            found += rules(full[key])
    for key in ("data", "model", "batch", "optimizer", "job", "nonfinite", "checkpoint"):
        if full.get(key) is not None and not isinstance(full[key], dict):
            found.append(f"{key}={full[key]!r} must be a section, such as {key}=dict(name=...)")
    for key in ("nonfinite", "checkpoint", "job"):
        for name in full[key] if isinstance(full[key], dict) else ():
            if name not in DEFAULTS[key]:
                found.append(f"unknown field {key}.{name}; {values.near(name, DEFAULTS[key])}")
            elif f"{key}.{name}" in _NESTED:
                found += _NESTED[f"{key}.{name}"](full[key][name])
    return found


def _home(key: str) -> str:
    """Where a misplaced field belongs, else the nearest names."""
    homes = {
        "learning_rate": "it is called lr",
        "batch_size": "it belongs under batch.size",
        "size": "it belongs under batch.size",
        "momentum": "it belongs under optimizer, as decay",
        "steps": "a run's length is epochs",
        "total_steps": "a run's length is epochs",
        "warmup": "it is a phase of schedule: dict(name='linear', start=0.1, end=1.0, epochs=1)",
        "dataset": "it belongs under data",
        "name": "every section has its own name",
    }
    if key in homes:
        return homes[key]
    for section in ("model", "optimizer", "data", "batch"):
        if key in _KNOWN_INSIDE[section]:
            return f"it belongs under {section}.{key}"
    return values.near(key, [*DEFAULTS, *REQUIRED])


_KNOWN_INSIDE = {
    "model": ("scale", "dropout", "widths", "depth", "width"),
    "optimizer": ("decay", "nesterov", "b1", "b2", "eps", "rho"),
    "data": ("validation", "test", "data_dir"),
    "batch": ("micro",),
}
_WHY = {
    "epochs": "how long to train, a whole number >= 1",
    "model": "such as dict(name='mlp.MLP')",
    "optimizer": "such as dict(name='momentum', decay=0.9)",
    "lr": "the peak learning rate, such as 0.1; every shape of the schedule is relative to it",
}


def _positive(field: str) -> Callable[[Any], list[str]]:
    return lambda v: values.number(field, v, 0, open_low=True)


def _pairs(value: Any) -> list[str]:
    """Problems of lr_multipliers, as far as they show without a model."""
    if isinstance(value, Mapping) and "name" in value:
        return []
    if not isinstance(value, tuple):
        return [f"lr_multipliers={value!r} must be a tuple of (pattern, multiplier) pairs"]
    problems = []
    for i, pair in enumerate(value):
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            problems.append(f"lr_multipliers[{i}]={pair!r} must be a (pattern, multiplier) pair")
        else:
            problems += _expressions(f"lr_multipliers[{i}][0]", pair[:1])
            problems += values.number(f"lr_multipliers[{i}][1]", pair[1], 0)
    return problems


def _patterns(value: Any) -> list[str]:
    if isinstance(value, tuple) and all(isinstance(v, str) for v in value):
        return _expressions("no_decay", value)
    return [f"no_decay={value!r} must be a tuple of patterns, such as ('.*/bias', '.*/scale')"]


def _expressions(field: str, patterns: Iterable[str]) -> list[str]:
    """Problems of regular expressions."""
    problems = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as e:
            problems.append(f"{field}: {pattern!r} is no regular expression: {e}")
    return problems


def _epochs(field: str, value: Any) -> list[str]:
    """Problems of epochs at whose ends something is kept."""
    if value == "cycles":
        return []
    if not isinstance(value, tuple):
        return [f"{field}={value!r} must be a tuple of epochs, such as (10, 20), or 'cycles'"]
    return [p for i, e in enumerate(value) for p in values.whole(f"{field}[{i}]", e, 1)]


def _lr(value: Any) -> list[str]:
    problems = values.number("lr", value, 0, 1e6, open_low=True)
    return [f"{p}: the peak rate must be above 0 for anything to train" for p in problems]


def _ema(value: Any) -> list[str]:
    problems = values.number("ema", value, -math.inf)
    outside = not problems and not 0 < value < 1
    return [f"ema={value!r} must lie in (0, 1), such as 0.999"] if outside else problems


_RULES: dict[str, Callable[[Any], list[str]]] = {
    "seed": lambda v: values.whole("seed", v, 0, 2**32 - 1),
    "epochs": lambda v: values.whole("epochs", v, 1),
    "lr": _lr,
    "placement": lambda v: values.choice("placement", v, ("auto", "resident", "stream")),
    "clip_norm": _positive("clip_norm"),
    "l2": lambda v: values.number("l2", v, 0),
    "weight_decay": lambda v: values.number("weight_decay", v, 0),
    "ema": _ema,
    "label_smoothing": lambda v: values.number("label_smoothing", v, 0, 1),
    "eval_size": lambda v: values.whole("eval_size", v, 1),
    "patience": lambda v: values.whole("patience", v, 1),
    "lr_multipliers": _pairs,
    "no_decay": _patterns,
}
_NESTED: dict[str, Callable[[Any], list[str]]] = {
    "nonfinite.policy": lambda v: values.choice("nonfinite.policy", v, POLICIES),
    "nonfinite.factor": lambda v: values.number("nonfinite.factor", v, 0, 1, open_low=True),
    "nonfinite.most": lambda v: values.whole("nonfinite.most", v, 0),
    "checkpoint.keep": lambda v: values.whole("checkpoint.keep", v, 1),
    "checkpoint.at": lambda v: _epochs("checkpoint.at", v),
    "checkpoint.minutes": lambda v: values.number("checkpoint.minutes", v, 0),
}


def is_schedule(value: Any) -> bool:
    """Whether a value is dict(schedule=(phases)): it changes with the update."""
    return isinstance(value, Mapping) and value.keys() == {"schedule"}


def is_bad(full: Mapping[str, Any], key: str) -> bool:
    """Whether a field is absent or not what it may be."""
    return full.get(key) is None or bool(_RULES[key](full[key]))


def unusual(full: Mapping[str, Any]) -> list[str]:
    """A warning where the rate is far from what the rule is used with."""
    name = full["optimizer"].get("name")
    if not isinstance(name, str) or name not in USUAL or is_bad(full, "lr"):
        return []
    lr, (low, high) = full["lr"], USUAL[name]
    if low <= lr <= high:
        return []
    return [
        f"lr={lr} is unusual for {name}: rates from {low:g} to {high:g} are what it trains with"
    ]
