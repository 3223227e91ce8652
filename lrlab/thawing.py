"""Which layers train when: plans of fine-tuning, as lists of phases over groups of layers.

Groups go from the input to the head. A phase is a section of `config.finetune.phases`; `train` says
how many of the last groups it trains, or which by pattern.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Phase = Mapping[str, Any]


def last_layer(groups: Sequence[str], epochs: int = 1, **more: Any) -> tuple[Phase, ...]:
    """The head alone.

    Args:
      groups: patterns of paths, the head's last; lrlab knows. epochs: of a phase. more: other
        fields of each phase.
    """
    return ({"name": "head", "train": 1, "epochs": epochs, **more},)


def all_at_once(groups: Sequence[str], epochs: int = 1, **more: Any) -> tuple[Phase, ...]:
    """Everything from the beginning. Args as for `last_layer`."""
    return ({"name": "all", "train": len(groups), "epochs": epochs, **more},)


def gradual(
    groups: Sequence[str], epochs: int = 1, last: int | None = None, **more: Any
) -> tuple[Phase, ...]:
    """One group more in each phase, from the head down; the last phase trains all.

    Args:
      last: epochs of the last phase, if others. Rest as for `last_layer`.
    Source:
      Howard & Ruder 2018, arXiv:1801.06146, 3.3.
    """
    n = len(groups)
    return tuple(
        {
            "name": "head" if k == 1 else "all" if k == n else f"last {k} groups",
            "train": k,
            "epochs": last if k == n and last is not None else epochs,
            **more,
        }
        for k in range(1, n + 1)
    )


def chain_thaw(groups: Sequence[str], epochs: int = 1, **more: Any) -> tuple[Phase, ...]:
    """The head alone, then every group alone from the input up, then all. Args as `last_layer`.

    Source:
      Felbo et al. 2017, arXiv:1708.00524, 3.3.
    """
    alone = [groups[-1], *groups[:-1]]
    names = ["head", *(f"group {i + 1}" for i in range(len(groups) - 1))]
    each = [
        {"name": name, "train": (pattern,), "epochs": epochs, **more}
        for name, pattern in zip(names, alone, strict=True)
    ]
    return (*each, *all_at_once(groups, epochs, **more))


def eight_steps(
    groups: Sequence[str],
    head: int = 2,
    augmented: int = 3,
    cycles: int = 3,
    factor: float = 3.0,
    patience: int | None = 4,
    augment: Sequence[Any] = (),
    cycle_len: int = 1,
) -> tuple[Phase, ...]:
    """The recipe of fast.ai: head on precomputed features, head, then all at rates by group.

    1 and 3: features of the frozen network once, and its head on them, at the rate of 2, a range
    test; 4: the head with augmentation, a cosine an epoch; 5 to 8: all layers, each group `factor`
    times slower than the next, at the rate of 7, a second range test, in cycles of 1, 2, 4, ...
    epochs until `patience` epochs were no better, and from the best.

    Args:
      head, augmented: epochs of those phases. cycles: of the last phase, each twice as long.
      patience: epochs; None trains all cycles.
      augment: of the phases that see images.
      cycle_len: epochs of the shortest cycles, more than 1 where an epoch is few updates.
    Raises:
      ValueError: cycle_len < 1, or step 4 would end inside a cycle.
    Source:
      "Understanding learning rates", after fast.ai's course of 2018.
    """
    if cycle_len < 1 or augmented % cycle_len:
        raise ValueError(
            f"cycle_len={cycle_len} must be 1 or more and divide augmented={augmented}, which "
            "would end inside a cycle"
        )
    cycle = {"name": "cosine_restarts", "t_0": {"epochs": cycle_len}}
    return (
        {
            "name": "head on features",
            "train": 1,
            "precompute": True,
            "epochs": head,
            "range_test": True,
            "schedule": ({"name": "cosine", "start": 1.0, "end": 0.0},),
        },
        {
            "name": "head",
            "train": 1,
            "epochs": augmented,
            "lr": "last",
            "schedule": (cycle,),
            "augment": tuple(augment),
        },
        {
            "name": "all",
            "train": len(groups),
            "factor": factor,
            "epochs": cycle_len * (2**cycles - 1),
            "range_test": True,
            "schedule": ({**cycle, "t_mult": 2},),
            "patience": patience,
            "augment": tuple(augment),
        },
    )
