"""A search as decisions: which points are tried, in which rounds, who goes on at a rung.

All of it is a function of a seed and of what was recorded: nothing here trains or writes, so a
resumed search decides as the one that was not stopped. What Optuna decides is asked for anew, round
by round, with the scores that the record has.

Sources:
  Jamieson & Talwalkar 2016, arXiv:1502.07943: successive halving.
  Li et al. 2018, arXiv:1603.06560: its rungs grow by eta, n / eta of n trials go on.
  Bergstra et al. 2011 (TPE); Hansen 2016, arXiv:1604.00772 (CMA-ES): by Optuna's samplers.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lrlab import points
from lrlab.points import Axis

SUGGESTED = {"tpe": ("optuna",), "cmaes": ("optuna", "cmaes")}  # what each needs
METHODS = (*points.METHODS, "halving", *SUGGESTED)
RUNGS = 4  # of a bracket, the end of a whole trial with them
STARTUP = 10  # random points before TPE has an opinion, or a quarter of all
WORST = -1e30  # below any score; to those who look at ranks, how far below is nothing


@dataclasses.dataclass(frozen=True)
class Round:
    """Trials that train together.

    first: number of the first of them. rungs: (updates, how many go on from there), before the end.
    """

    first: int
    trials: int
    rungs: tuple[tuple[int, int], ...] = ()


def missing(method: str) -> list[str]:
    """Packages that a method needs and that are not installed."""
    return [name for name in SUGGESTED.get(method, ()) if not importlib.util.find_spec(name)]


def plain(trials: int, lanes: int) -> tuple[Round, ...]:
    """Rounds of trials that all train to their end; the last may be smaller."""
    return tuple(Round(i, min(lanes, trials - i)) for i in range(0, trials, lanes))


def ends(total: int, first: float, eta: float) -> tuple[int, ...]:
    """Updates of a trial at each rung: first, first * eta, ..., and total."""
    found, at = [], float(first)
    while round(at) < total:
        found.append(max(1, round(at)))
        at *= eta
    return (*dict.fromkeys(found), total)


def bracket(trials: int, until: Sequence[int], eta: float) -> tuple[tuple[int, int], ...]:
    """(updates, how many go on): trials / eta**i after rung i, at least one."""
    left = [max(1, int(trials * eta**-i + 1e-9)) for i in range(1, len(until))]
    return tuple(zip(until[:-1], left, strict=True))


def cost(
    trials: int, rungs: Sequence[tuple[int, int]], total: int, taken: np.ndarray | Sequence[int]
) -> int:
    """Examples of a round in which nothing diverges.

    taken: examples of one trial after each number of updates, [total + 1].
    """
    spent, done, left = 0, 0, trials
    for updates, kept in (*rungs, (total, 0)):
        spent += left * int(taken[updates] - taken[done])
        done, left = updates, kept
    return spent


def brackets(
    lanes: int, until: Sequence[int], eta: float, taken: np.ndarray | Sequence[int], budget: int
) -> tuple[Round, ...]:
    """Successive halving, over and over with new points, while one more trial can be paid for.

    Args:
      lanes: trials that begin together; the last bracket has as many as are left for it.
      taken: as `cost` has it. budget: examples of all brackets together, at most.
    """
    found: list[Round] = []
    first, left = 0, budget
    while True:
        size = lanes
        while size and cost(size, bracket(size, until, eta), until[-1], taken) > left:
            size -= 1
        if not size:
            return tuple(found)
        found.append(Round(first, size, bracket(size, until, eta)))
        left -= cost(size, found[-1].rungs, until[-1], taken)
        first += size


class Proposer(Protocol):
    """Says what to try next; `ask` and `tell` take turns."""

    def ask(self, count: int) -> list[dict[str, Any]]:
        """Points for a round."""
        ...

    def tell(self, scores: Sequence[float | None]) -> None:
        """What the round came to, the higher the better; None: diverged."""
        ...


class Known:
    """Points that are fixed from the start, whatever is told."""

    def __init__(self, given: Sequence[dict[str, Any]]):
        self._left = list(given)

    def ask(self, count: int) -> list[dict[str, Any]]:
        """The next ones."""
        asked, self._left = self._left[:count], self._left[count:]
        return asked

    def tell(self, scores: Sequence[float | None]) -> None:
        """Nothing."""


class Suggested:
    """Points by one of Optuna's samplers, a whole round at a time.

    TPE takes a point that was asked for and not yet told for a bad one (a "constant liar"), so the
    points of a round lie apart. CMA-ES begins with a random round, after which a generation is a
    round, or the fewest whole rounds that hold four trials.

    What diverged is told as worse than anything. Left out (Optuna's state FAIL), TPE would learn
    nothing of it and ask there again, and a generation of CMA-ES would wait for a trial in its
    place: both look at ranks alone, in which the last place is what a diverged trial deserves.

    The values of a list are asked for by their place in order, which CMA-ES can use too.
    """

    def __init__(self, method: str, axes: Sequence[Axis], seed: int, lanes: int, trials: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if method == "tpe":
            startup = min(STARTUP, -(-trials // 4))
            sampler: Any = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
            )
        else:
            size = lanes * -(-4 // lanes)
            sampler = optuna.samplers.CmaEsSampler(
                seed=seed, popsize=size, warn_independent_sampling=False
            )
        self._study = optuna.create_study(sampler=sampler, direction="maximize")
        self._values = {axis.key: sorted(axis.values) for axis in axes}
        self._wanted: dict[str, Any] = {}
        for axis in axes:
            self._wanted[axis.key] = (
                optuna.distributions.IntDistribution(0, len(axis.values) - 1)
                if axis.values
                else optuna.distributions.FloatDistribution(
                    axis.low, axis.high, log=axis.scale == "log"
                )
            )
        self._open: list[Any] = []

    def ask(self, count: int) -> list[dict[str, Any]]:
        """The next ones."""
        self._open = [self._study.ask(self._wanted) for _ in range(count)]
        return [
            {key: self._values[key][v] if self._values[key] else v for key, v in t.params.items()}
            for t in self._open
        ]

    def tell(self, scores: Sequence[float | None]) -> None:
        """Goes to the study."""
        for trial, score in zip(self._open, scores, strict=True):
            self._study.tell(trial, WORST if score is None else score)
