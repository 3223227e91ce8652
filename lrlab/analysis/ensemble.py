"""How good averaged predictions are: accuracy, likelihood, calibration, and how members differ."""

from typing import Any

import numpy as np

BINS = 15  # of confidence, equally wide (Guo et al. 2017, arXiv:1706.04599)


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"accuracy", "nll", "ece"} of predictions.

    Args:
      probabilities: [n, classes]. labels: int [n].
    Returns:
      nll: mean negative log likelihood, nats. ece: expected calibration error, the mean over
        examples of |confidence - accuracy| of their bin.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    chosen, confidence = p.argmax(1), p.max(1)
    right = chosen == y
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.bincount(bins, confidence - right, BINS)
    return {
        "accuracy": float(right.mean()),
        "nll": float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-30)).mean()),
        "ece": float(np.abs(gap).sum() / len(y)),
    }


def growing(members: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Scores of the average of the last 1, 2, ... members, as {"members": m, "accuracy": ...}.

    Args:
      members: probabilities [members, n, classes], in the order of training.
    """
    p = np.asarray(members, np.float64)[::-1]
    means = np.cumsum(p, 0) / np.arange(1, len(p) + 1)[:, None, None]
    return [{"members": m, **scores(mean, labels)} for m, mean in enumerate(means, 1)]


def disagreement(members: np.ndarray) -> np.ndarray:
    """Share of examples on which two members choose different classes, [members, members]."""
    chosen = np.asarray(members).argmax(-1)
    return (chosen[:, None] != chosen[None]).mean(-1)
