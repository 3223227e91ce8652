"""Composition: phases one after another, each with its own clock."""

from collections.abc import Sequence
from typing import Any

import optax

from lrlab.schedules import _checks


def join(shapes: Sequence[optax.Schedule], lengths: Sequence[Any]) -> optax.Schedule:
    """Runs shapes one after another; the last one goes on (at its end value) past its length.

    Args:
      shapes: as `optax.join_schedules` takes them; each counts updates from its own start.
      lengths: updates of each phase; boundaries are derived from them.
    Raises:
      ValueError: no phase, another number of lengths, a phase under one update. (Optax itself
        accepts unordered boundaries and a wrong number of them.)
    """
    if not shapes or len(shapes) != len(lengths):
        raise ValueError(f"join needs one length a shape, got {len(shapes)} and {len(lengths)}")
    boundaries, total = [], 0
    for i, length in enumerate(lengths):
        if not _checks.traced(length) and length < 1:
            raise ValueError(f"phase {i} is {length} updates long, under one update")
        total = total + length
        boundaries.append(total)
    return optax.join_schedules(list(shapes), boundaries[:-1]) if len(shapes) > 1 else shapes[0]
