"""From the curve of a range test to a rate: six readings, and how far they agree.

A curve is a loss for each of rates that rise. Each reading returns a rate, or None where the curve
has none; nothing is made up. fastai's and others' readings are as their programs compute them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

DIVERGED = 4.0  # times the best smoothed loss
LEAST = 20  # points of a curve that can be read
RISE = 0.25  # of what the loss fell: so much of it back is the edge of divergence
SURE = 3.5  # standard deviations of a curve's noise: a rise that is more is no chance
FLAT = 0.05  # of the first loss: what a curve must fall for there to be a slope
# How many times below the edge a whole run trains best, by `experiments/range_test.py`: plain
# gradient steps near it, adaptive rules, whose steps do not shrink with the gradient, far below.
# They were chosen on those problems: how they do on others is not measured.
PLAIN, ADAPTIVE = 4.0, 15.0
NEAR = 0.1  # of what the loss fell: within so much of the best, a batch size is as good


def smooth(losses: npt.ArrayLike, beta: float = 0.98) -> np.ndarray:
    """Exponential moving average without its bias towards 0: the mean of a constant is itself."""
    values = np.asarray(losses, np.float64)
    out, mean = np.empty(len(values)), 0.0
    for i, loss in enumerate(values):
        mean = beta * mean + (1 - beta) * loss
        out[i] = mean / (1 - beta ** (i + 1))
    return out


def level(losses: npt.ArrayLike, beta: float = 0.9) -> np.ndarray:
    """A curve without its noise and without lag: the mean of smoothing from the left and the right.

    An average from the left alone is late by 1 / (1 - beta) updates, on a ramp a factor of the
    rate. The last updates of a divergence are cut to twice the first loss: they would colour what
    came before them.
    """
    x = np.asarray(losses, np.float64)
    start = np.median(x[: max(1, len(x) // 20)])
    x = np.minimum(x, start + abs(start))
    return (smooth(x, beta) + smooth(x[::-1], beta)[::-1]) / 2


def noise(curves: np.ndarray, levels: np.ndarray, beta: float = 0.9) -> float:
    """Standard deviation of the mean of the levels, from what batches differ by; [seeds][updates].

    From the median of what the losses are away from their levels, as a divergence is no noise. A
    level has a share of 1 - beta in the loss of its own update, and less of those around.
    """
    away = np.abs(curves - levels)
    away = away[np.isfinite(away)]
    median = float(np.median(away)) if len(away) else 0.0
    own = 1 - beta
    left = own**2 * (1 + beta**2 / (1 - beta**2) / 2)  # of the variance, in a level
    return 1.4826 * median * math.sqrt(left / (1 - 2 * own + left) / len(curves))


def steepest(lrs: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate at which the loss falls fastest for its logarithm."""
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    return float(lrs[np.argmin(slopes)]) if len(slopes) and slopes.min() < 0 else None


def minimum(lrs: np.ndarray, losses: np.ndarray) -> float | None:
    """A tenth of the rate of the lowest loss."""
    return float(lrs[np.argmin(losses)]) / 10


def valley(lrs: np.ndarray, losses: np.ndarray) -> float | None:
    """Two thirds down the longest valley, as fastai 2 reads it.

    The valley's start is its end less its length, whether or not it is a point of the descent.
    """
    n = len(losses)
    lengths = np.ones(n, int)
    for i in range(1, n):
        lower = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + lower.max() if len(lower) else 1
    end = int(np.argmax(lengths))
    length = int(lengths[end])
    if length < 2:
        return None
    start, third = end - length, length / 3
    index = start + int(third) + int(third / 2)
    return float(lrs[max(index, 0)])


def slide(
    lrs: np.ndarray, losses: np.ndarray, window: int = 15, threshold: float = 0.005
) -> float | None:
    """Slides from the right until the slopes at a window's ends agree, as fastai 2 does."""
    if len(losses) <= window:
        return None
    slopes = np.gradient(losses)
    right = -1
    left, found = right - window, None
    while left >= -len(losses) and abs(slopes[right] - slopes[left]) > threshold:
        found = float(lrs[left])
        right, left = right - 1, left - 1
    return found


def lowest(lrs: np.ndarray, losses: np.ndarray, noise: float = 0.0) -> float | None:
    """The rate of the lowest loss itself; the highest of those that are as low but for noise.

    Noise counts only where it hides the fall, as in a network that is trained already.
    """
    if SURE * noise <= RISE * _fall(losses):
        return float(lrs[np.argmin(losses)])
    return float(lrs[np.flatnonzero(losses <= losses.min() + SURE / 2 * noise)[-1]])


def _fall(losses: np.ndarray) -> float:
    start = float(np.mean(losses[: max(1, len(losses) // 20)]))
    return max(start - float(losses.min()), 0.0)


def edge(
    lrs: np.ndarray, losses: np.ndarray, stopped_at: float | None, noise: float = 0.0
) -> float | None:
    """The rate at which training breaks: there the loss is back by RISE of what it had fallen.

    None where it never breaks; where it stopped before it rose so far, the rate at which it did.
    A rise within SURE times the noise does not count.
    """
    best = int(np.argmin(losses))
    limit = losses[best] + max(RISE * _fall(losses), SURE * noise)
    risen = np.flatnonzero(losses[best:] > limit)
    return float(lrs[best + risen[0]]) if len(risen) else stopped_at


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What a range test says.

    outcome: "ok", "flat", "all diverged" or "too short"; advice: what to change, if anything.
    lr: the edge / PLAIN or / ADAPTIVE, at most `lowest`; of `knee` the batch size. None unless ok.
    low, high: that over seeds; None with one seed.
    consensus: the middle, in log, of the readings people use. spread: highest / lowest of them.
    readings: of the mean curve, by name; `edge` among them is a quarter of the edge.
    edge: the rate at which training breaks, None where it did not.
    """

    outcome: str
    advice: str = ""
    lr: float | None = None
    low: float | None = None
    high: float | None = None
    consensus: float | None = None
    spread: float | None = None
    readings: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    edge: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        return dataclasses.asdict(self)


def suggest(lrs: npt.ArrayLike, curves: npt.ArrayLike, below: float = PLAIN) -> Suggestion:
    """Reads the curves of a range test, one a seed.

    Args:
      lrs: rates, rising. curves: mean losses [seeds][updates]; NaN from where a lane had stopped.
      below: PLAIN or ADAPTIVE, by the update rule.
    """
    rates, raw = np.asarray(lrs, np.float64), np.asarray(curves, np.float64)
    if len(rates) < LEAST:
        return Suggestion(
            "too short", f"{len(rates)} updates; a curve needs {LEAST}: raise updates"
        )
    end = min(map(ending, raw))
    if end < LEAST // 2:
        return Suggestion(
            "all diverged",
            f"training diverged after {end} updates, at {rates[end]:.3g}: "
            "lower the first rate by 10 or 100",
            edge=float(rates[end]),
        )
    levels = np.array([level(curve[:end]) for curve in raw])
    mean, chance = levels.mean(0), noise(raw[:, :end], levels)
    readings, at = read(rates, mean, chance)
    if mean[0] - mean.min() < FLAT * abs(mean[0]):
        return Suggestion(
            "flat",
            f"the loss fell by {mean[0] - mean.min():.3g} from {mean[0]:.3g}, not by {FLAT:.0%}: "
            "raise the last rate or updates; a model that is trained already stays flat",
            edge=at,
        )
    alone = chance * math.sqrt(len(raw))
    own = [choose(*read(rates, level(curve[: ending(curve)]), alone), below) for curve in raw]
    there = sorted(r for r in readings.values() if r)
    return Suggestion(
        "ok",
        lr=choose(readings, at, below),
        low=min(own) if len(own) > 1 else None,
        high=max(own) if len(own) > 1 else None,
        consensus=math.exp(float(np.median(np.log(there)))),
        spread=there[-1] / there[0],
        readings=readings,
        edge=at,
    )


def knee(sizes: npt.ArrayLike, losses: npt.ArrayLike, start: float) -> Suggestion:
    """The smallest batch size that is as good, update for update, as the best: NEAR its loss.

    Args:
      sizes: rising. losses: [seeds][sizes], after equally many updates from the same start; NaN
      where a seed diverged. start: the loss there.
    """
    x, raw = np.asarray(sizes, np.float64), np.asarray(losses, np.float64)
    if len(x) < 3:
        return Suggestion("too short", f"{len(x)} batch sizes; 3 are needed: raise high")
    if np.isnan(raw).any(0).all():
        return Suggestion("all diverged", "every batch size diverged: lower lr by 10 or 100")
    mean = raw.mean(0)
    fell = start - np.nanmin(mean)
    if fell < FLAT * abs(start):
        return Suggestion(
            "flat",
            f"the loss fell by {fell:.3g} from {start:.3g}, not by {FLAT:.0%}: raise updates or lr",
        )

    def smallest(curve: np.ndarray) -> float:
        return float(x[np.flatnonzero(curve <= np.nanmin(curve) + NEAR * fell)[0]])

    own = [smallest(curve) for curve in raw if np.isfinite(curve).any()]
    found = smallest(mean)
    return Suggestion(
        "ok",
        "the largest is the best: larger ones may be better still" if found == x[-1] else "",
        lr=found,
        low=min(own) if len(own) > 1 else None,
        high=max(own) if len(own) > 1 else None,
    )


def ending(curve: np.ndarray) -> int:
    """Updates before a lane stopped."""
    bad = np.flatnonzero(~np.isfinite(curve))
    return int(bad[0]) if len(bad) else len(curve)


def choose(readings: Mapping[str, float | None], broke: float | None, below: float) -> float:
    """What to train with: so far below the edge, and no more than `lowest`.

    Where the ramp never broke, the edge is taken to be at PLAIN times `lowest`, at least.
    """
    best = readings["lowest"]
    assert best is not None
    return min(best, (broke or PLAIN * best) / below)


def read(
    lrs: np.ndarray, losses: np.ndarray, noise: float = 0.0
) -> tuple[dict[str, float | None], float | None]:
    """Every reading of a curve, and the edge; `losses` may end before the rates do, by divergence.

    The first tenth is left out: there, noise is all that falls. noise: standard deviation of
    `losses`, by chance.
    """
    stopped_at = float(lrs[len(losses)]) if len(losses) < len(lrs) else None
    broke = edge(lrs[: len(losses)], losses, stopped_at, noise)
    skip = len(losses) // 10
    x, y = lrs[skip : len(losses)], losses[skip:]
    found = {
        "steepest": steepest(x, y),
        "valley": valley(x, y),
        "minimum": minimum(x, y),
        "slide": slide(x, y),
        "lowest": lowest(x, y, noise),
        "edge": None if broke is None else broke / 4,
    }
    return found, broke
