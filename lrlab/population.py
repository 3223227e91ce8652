"""Population-based training as decisions: who copies whom, and what becomes of its numbers.

All of it is a function of scores, values and (seed, generation): nothing here trains or writes, so
a resumed run decides as the run that was not stopped.

exploit: by "truncation" the worst members become one of the best, drawn at random; by "tournament"
  a member becomes the one that it meets by chance, if that one is better. What diverged becomes one
  of the others, and nobody becomes what diverged.
explore: each number of a copy is drawn anew, or multiplied by one of `factors`, or, of a list,
  moved to a neighbour; and clipped to its bounds. (Ray Tune does not clip.)

Source: Jaderberg et al. 2017, arXiv:1711.09846, section 4.1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrlab.points import Axis

Scores = Sequence[float] | np.ndarray
EXPLOITS = ("truncation", "tournament")


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a population goes on.

    fraction: of the members that truncation replaces, and of those that they become one of.
    resample: probability that a copy's number is drawn anew from its axis.
    """

    exploit: str = "truncation"
    fraction: float = 0.2
    factors: tuple[float, ...] = (1.2, 0.8)
    resample: float = 0.25


@dataclasses.dataclass(frozen=True)
class Draws:
    """The chance of a generation: numbers in [0, 1) for every member, whether it needs them or not.

    met: [members], who it meets. anew, value, turn: [members, axes], whether a number is drawn
    anew, to what, and otherwise by which factor it is multiplied.
    """

    met: np.ndarray
    anew: np.ndarray
    value: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(cls, seed: int, generation: int, members: int, axes: int) -> "Draws":
        """Those of a generation."""
        rng = np.random.Generator(np.random.PCG64([seed, generation]))
        return cls(rng.random(members), *(rng.random((members, axes)) for _ in range(3)))


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a population does between two generations.

    donors: whose state each member goes on with, its own number where it keeps its own.
    values: numbers of each member from here on. how: what became of each number of a copy; empty
    for members that keep their own.
    """

    donors: tuple[int, ...]
    values: tuple[dict[str, Any], ...]
    how: tuple[dict[str, str], ...]


def order(scores: Scores, ties: Scores) -> list[int]:
    """Members from the best on, without those whose score is NaN.

    The higher score is better; of equal ones the lower tie, then the lower number.
    """
    alive = [i for i, score in enumerate(scores) if not np.isnan(score)]
    return sorted(alive, key=lambda i: (-scores[i], ties[i], i))


def donors(rules: Rules, ranked: Sequence[int], met: np.ndarray) -> list[int]:
    """Whose state each member goes on with.

    Args:
      ranked: members from the best on; those that diverged are missing. At least one.
      met: in [0, 1), of all members.
    """
    members, found = len(met), list(range(len(met)))
    if rules.exploit == "truncation":
        few = min(int(rules.fraction * members + 1e-9) or 1, len(ranked))
        lost = few - (members - len(ranked))  # of those that did not diverge
        worst, best = ranked[len(ranked) - lost :] if lost > 0 else [], ranked[:few]
        for i in worst:
            found[i] = best[int(met[i] * few)]
    else:
        best = list(ranked)
        place = {i: at for at, i in enumerate(ranked)}
        for i in ranked:
            others = [j for j in sorted(ranked) if j != i]
            rival = others[int(met[i] * len(others))] if others else i
            found[i] = rival if place[rival] < place[i] else i
    for i in set(range(members)) - set(ranked):
        found[i] = best[int(met[i] * len(best))]
    return found


def explored(
    axis: Axis, value: Any, rules: Rules, anew: float, drawn: float, turn: float
) -> tuple[Any, str]:
    """What becomes of a copy's number, and how; the last three arguments lie in [0, 1)."""
    if anew < rules.resample:
        return axis.at(drawn), "drawn anew"
    if axis.values:
        at = axis.values.index(value) + (1 if turn < 0.5 else -1)
        return axis.values[min(max(at, 0), len(axis.values) - 1)], "neighbour"
    factor = rules.factors[int(turn * len(rules.factors))]
    return min(max(value * factor, axis.low), axis.high), f"x {factor:g}"


def turn(
    rules: Rules,
    axes: Sequence[Axis],
    values: Sequence[Mapping[str, Any]],
    ranked: Sequence[int],
    draws: Draws,
) -> Turn:
    """Exploits and explores; `values`: of each member so far, by the keys of the axes."""
    chosen = donors(rules, ranked, draws.met)
    new: list[dict[str, Any]] = []
    how: list[dict[str, str]] = []
    for i, donor in enumerate(chosen):
        if donor == i:
            new.append(dict(values[i]))
            how.append({})
            continue
        found = {
            axis.key: explored(axis, values[donor][axis.key], rules, *chance)
            for axis, *chance in zip(
                axes, draws.anew[i], draws.value[i], draws.turn[i], strict=True
            )
        }
        new.append({key: value for key, (value, _) in found.items()})
        how.append({key: said for key, (_, said) in found.items()})
    return Turn(tuple(chosen), tuple(new), tuple(how))


def ancestry(turns: Sequence[Sequence[int]], member: int) -> list[int]:
    """Which member had a member's state in each generation, the last one its own.

    Args:
      turns: the donors between each two generations.
    """
    path = [member]
    for chosen in reversed(turns):
        path.append(chosen[path[-1]])
    return path[::-1]


def pieces(values: Sequence[float] | np.ndarray) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Where a series changes, from 0, and to what: (at, values) of the schedule `table`."""
    series = np.asarray(values, np.float64)
    at = np.concatenate([[0], 1 + np.flatnonzero(np.diff(series))])
    return tuple(int(i) for i in at), tuple(float(series[i]) for i in at)
