"""What became of lanes: a pure function of what was recorded of their updates.

Outcomes: "target", its training accuracy was reached; "diverged", an update was not finite; "dead"
and "stuck", a rule gave it up; "budget", it trained to the end.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrlab.points import Target

OUTCOMES = ("target", "budget", "dead", "stuck", "diverged")
LR, FINITE, LOSS, CORRECT, WEIGHT = range(5)  # columns that `see` takes


class Trials:
    """Follows the lanes of a wave, look by look.

    The rules that give a lane up are approximations, with thresholds that were chosen on the small
    CNN (0 of 288 runs lost wrongly there), so no sweep uses them unasked:
    dead: two looks running, accuracy below 1.5 times chance and a loss above that of guessing.
    stuck: five looks running, accuracy below 1.5 times chance, and a loss not .005 below the first.

    Attributes:
      outcome: of each lane, "" while it trains. updates: that it has done until then.
      curve: mean training loss and accuracy of each look, float64 [looks, lanes, 2].
    """

    def __init__(
        self,
        lanes: int,
        classes: int,
        size: int | np.ndarray,
        total: int,
        look: int,
        target: Target | None = None,
        rules: Sequence[str] = (),
    ):
        """`size`: examples of an update, or of each, int [total]."""
        self.look = look
        self.target, self.rules = target, tuple(rules)
        self._chance, self._guess = 1.5 / classes, math.log(classes) + 0.0175
        self.outcome = np.full(lanes, "", dtype="<U8")
        self.updates = np.zeros(lanes, int)
        self.curve = np.full((-(-total // look), lanes, 2), np.nan)
        self.at_end = np.full((lanes, 2), np.nan)  # rate and loss of the last update
        self.plan(size, total)
        self._window = int(self._windows.max(initial=1))
        self._tail = np.zeros((self._window, lanes, 2))  # correct and weight of the last updates
        self._sums = np.zeros((lanes, 2))  # since the start

    def plan(self, size: int | np.ndarray, total: int) -> None:
        """Takes other sizes from here on; no batch is smaller than those at first."""
        self.total, self.sizes = total, np.broadcast_to(size, total)
        wanted = self.target.examples if self.target and self.target.examples is not None else 1
        # Updates that hold so many examples, by the size of the last of them.
        self._windows = np.maximum(1, np.round(wanted / self.sizes)).astype(int)

    def see(self, first: int, seen: np.ndarray, active: Sequence[int]) -> list[int]:
        """Takes one look: updates `first` on, float [updates, lanes, (LR, ..., WEIGHT)].

        Returns:
          The lanes that are over, in order.
        """
        seen = np.asarray(seen, np.float64)
        number, over = first // self.look, []
        hits = self._hits(first, seen)
        for lane in sorted(active):
            rows = seen[:, lane]
            bad = np.flatnonzero(rows[:, FINITE] == 0)
            good = rows[: bad[0]] if len(bad) else rows
            weight = good[:, WEIGHT].sum()
            if weight:
                self.curve[number, lane] = good[:, (LOSS, CORRECT)].sum(0) / weight
            hit = hits[lane]
            if hit is not None and not (len(bad) and bad[0] <= hit):
                self._end(lane, "target", first + hit + 1, rows[hit])
            elif len(bad):
                self._end(lane, "diverged", first + int(bad[0]), rows[bad[0]])
            elif rule := self._given_up(number, lane):
                self._end(lane, rule, first + len(seen), rows[-1])
            elif first + len(seen) >= self.total:
                self._end(lane, "budget", first + len(seen), rows[-1])
            else:
                continue
            over.append(lane)
        return over

    def _end(self, lane: int, outcome: str, updates: int, row: np.ndarray) -> None:
        self.outcome[lane], self.updates[lane] = outcome, updates
        self.at_end[lane] = row[LR], row[LOSS] / max(row[WEIGHT], 1)

    def _hits(self, first: int, seen: np.ndarray) -> list[int | None]:
        """For each lane the first update of the look that reaches the target."""
        windows = self._windows[first : first + len(seen)]
        pairs = np.nan_to_num(seen[..., (CORRECT, WEIGHT)])
        sums = self._sums + np.cumsum(pairs, 0)
        recent = np.concatenate([self._tail, pairs])
        self._sums, self._tail = sums[-1], recent[-self._window :]
        if self.target is None:
            return [None] * seen.shape[1]
        if self.target.examples is not None:
            added = np.cumsum(np.concatenate([np.zeros_like(recent[:1]), recent]), 0)
            ends = self._window + 1 + np.arange(len(seen))
            sums = added[ends] - added[ends - windows]
        done = first + 1 + np.arange(len(seen))
        full = 1 if self.target.examples is None else windows
        looked = (done % self.target.every == 0) & (done >= full)
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = (sums[..., 0] / sums[..., 1] >= self.target.accuracy) & looked[:, None]
        return [int(np.argmax(column)) if column.any() else None for column in reached.T]

    def _given_up(self, number: int, lane: int) -> str:
        """The rule that gives a lane up after look `number`, or ""."""
        loss, accuracy = self.curve[: number + 1, lane].T
        low = accuracy < self._chance
        is_dead = number >= 1 and low[-2:].all() and (loss[-2:] >= self._guess).all()
        is_stuck = number >= 4 and low[-5:].all() and loss[-1] > loss[0] - 0.005
        if "dead" in self.rules and is_dead:
            return "dead"
        if "stuck" in self.rules and is_stuck:
            return "stuck"
        return ""

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        return {
            "outcome": np.array([OUTCOMES.index(o) if o else -1 for o in self.outcome]),
            "updates": self.updates.copy(),
            "curve": self.curve.copy(),
            "at_end": self.at_end.copy(),
            "tail": self._tail.copy(),
            "sums": self._sums.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        kept = {k: np.array(v) for k, v in state.items()}
        self.outcome = np.array([OUTCOMES[o] if o >= 0 else "" for o in kept["outcome"]], "<U8")
        self.updates, self.curve, self.at_end = kept["updates"], kept["curve"], kept["at_end"]
        self._tail, self._sums = kept["tail"], kept["sums"]

    def row(self, lane: int) -> dict[str, Any]:
        """What the record says of a lane that is over."""
        looks = -(-int(self.updates[lane]) // self.look)
        points = [
            [min((i + 1) * self.look, int(self.updates[lane])), *map(_short, pair)]
            for i, pair in enumerate(self.curve[:looks, lane])
            if np.isfinite(pair).all()
        ]
        last = points[-1] if points else [0, None, None]
        return {
            "outcome": str(self.outcome[lane]),
            "updates": int(self.updates[lane]),
            "examples": int(self.sizes[: self.updates[lane]].sum()),
            "last_lr": _short(self.at_end[lane, 0]),
            "last_loss": _short(self.at_end[lane, 1]),
            "train_loss": last[1],
            "train_accuracy": last[2],
            "curve": points,
        }


def _short(x: float) -> float | None:
    """Six digits, or None where there is no number."""
    return float(f"{x:.6g}") if math.isfinite(x) else None
