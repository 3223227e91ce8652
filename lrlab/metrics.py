"""Metrics as (sum, weight) pairs: exact over ragged batches, devices, hosts and chunks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

NAMES = ("loss", "accuracy")


def classification(
    logits: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
    smoothing: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Weighted sums over a batch.

    Args:
      logits: float32 [batch, classes], or [batch, positions, classes] where every position of an
        example has a label of its own; the example counts as their mean.
      labels: int32 [batch] or [batch, positions].
      weight: float32 [batch], 0 for padding.
      smoothing: of labels: so much of each goes to all classes alike. Szegedy et al. 2016,
        arXiv:1512.00567, 7.
    Returns:
      float32 [3]: cross-entropy in nats, correct predictions, weight; each summed.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing is not None:
        alike = jax.nn.logsumexp(logits, -1) - logits.mean(-1)  # cross-entropy with all classes
        losses = losses + smoothing * (alike - losses)
    correct = logits.argmax(-1) == labels
    if labels.ndim > 1:
        losses, correct = losses.mean(1), correct.mean(1)
    return jnp.stack([(losses * weight).sum(), (correct * weight).sum(), weight.sum()])


@dataclasses.dataclass
class Mean:
    """A running mean on the host, in float64, added in order: chunks of any size give the same."""

    total: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(NAMES)))
    weight: float = 0.0

    def add(self, sums: np.ndarray) -> None:
        """Adds rows of `classification` sums, [n, 3]."""
        rows = np.concatenate([[[*self.total, self.weight]], np.asarray(sums, np.float64)])
        # cumsum adds from the first to the last; sum() would add pairwise, by chunk.
        *self.total[:], self.weight = np.cumsum(rows, 0)[-1]

    def means(self) -> dict[str, float]:
        """{"loss": ..., "accuracy": ...}; NaN before anything was added."""
        weight = self.weight or float("nan")
        return {name: float(t / weight) for name, t in zip(NAMES, self.total, strict=True)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"total": [float(t) for t in self.total], "weight": float(self.weight)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Mean":
        """The inverse of `state`."""
        return cls(np.array(state["total"], np.float64), float(state["weight"]))
