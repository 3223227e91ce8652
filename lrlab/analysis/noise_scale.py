"""The gradient noise scale, from gradients of a batch and of its parts; no extra pass.

B_simple = tr(S) / |G|^2, where G is the true gradient and S the covariance of an example's. A batch
far below it wastes updates, far above it examples: it is near the critical batch size.
Source: McCandlish et al. 2018, arXiv:1812.06162, section 2.2 and appendix A.1.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000


def pair(
    part_square: npt.ArrayLike, square: npt.ArrayLike, part: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased estimates (tr(S), |G|^2) of every update.

    Args:
      part_square: mean squared norm of the parts' gradients. square: that of the whole batch's.
      part, size: examples of a part and of the batch.
    Raises:
      ValueError: a part that is the whole batch: two sizes are needed.
    """
    if not 1 <= part < size:
        raise ValueError(f"parts of {part} of a batch of {size}: two sizes are needed")
    small, big = np.asarray(part_square, np.float64), np.asarray(square, np.float64)
    noise = (small - big) / (1 / part - 1 / size)
    return noise, (size * big - part * small) / (size - part)


def add(sums: npt.ArrayLike, *pair: np.ndarray) -> np.ndarray:
    """Sums [..., 2] with the estimates of more updates, each [n, ...], added in order.

    So it does not matter how a run is cut; sum() would add pairwise, by chunk.
    """
    rows = np.concatenate([np.asarray(sums, np.float64)[None], np.stack(pair, -1)])
    return np.cumsum(rows, 0)[-1]


def ratio(noise: float, square: float) -> float:
    """B_simple from sums of both estimates; infinite where noise is all that there is."""
    return noise / square if square > 0 else math.inf


def interval(
    noise: Sequence[float] | np.ndarray, square: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of B_simple over updates that stand for one place."""
    a, b = np.asarray(noise, np.float64), np.asarray(square, np.float64)
    draws = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    found = [
        ratio(float(x), float(y)) for x, y in zip(a[draws].sum(1), b[draws].sum(1), strict=True)
    ]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
