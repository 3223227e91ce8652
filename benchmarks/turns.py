"""Turns that are whole programs: whether the machine was free for them, how results are told."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import measure


def others() -> float:
    """Cores that others take before a turn begins."""
    time.sleep(1)  # the side before has ended
    busy, began = measure._busy(), time.perf_counter()
    time.sleep(1)
    return round((measure._busy() - busy) / (time.perf_counter() - began), 2)


def are_clean(turns: Sequence[Mapping[str, Any]]) -> bool:
    """Whether others let them work."""
    return statistics.median(turn["others"] for turn in turns) <= measure.OTHERS


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, to four digits."""
    found = statistics.median(values), min(values), max(values)
    return {k: float(f"{v:.4g}") for k, v in zip(("median", "min", "max"), found, strict=True)}


def text(found: Mapping[str, float]) -> str:
    """A spread for the table."""
    return f"{found['median']:g} ({found['min']:g} .. {found['max']:g})"
