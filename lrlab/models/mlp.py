"""Multilayer perceptrons, for tables and for anything that can be flattened."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from lrlab.models import layers


class MLP(nn.Module):
    """Dense layers of `widths` with ReLU, then the logits; features of any shape are flattened.

    dropout: share of each hidden layer dropped in training, one number or one per layer.
    """

    num_classes: int
    widths: Sequence[int] = (128, 128)
    dropout: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.widths):
            raise ValueError(f"widths={self.widths!r} must be at least 1 each")
        rates = self._rates()
        if len(rates) != len(self.widths):
            raise ValueError(
                f"dropout={self.dropout!r} must be one number or one for each of the "
                f"{len(self.widths)} widths, got {len(rates)}"
            )
        for rate in rates:
            layers.check_rate("dropout", rate)

    def _rates(self) -> tuple[float, ...]:
        if isinstance(self.dropout, (int, float)):
            return (self.dropout,) * len(self.widths)
        return tuple(self.dropout)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        x = x.reshape(x.shape[0], -1)
        for width, rate in zip(self.widths, self._rates(), strict=True):
            x = nn.relu(nn.Dense(width)(x))
            x = layers.Dropout(rate)(x, train, rows)
        return nn.Dense(self.num_classes)(x)


class Tabular(MLP):
    """Seven dense layers with dropout 0.25 after layers 1, 3, 6 and 7.

    492,167 weights on Covertype's 54 features and 7 classes.

    Source:
      The Keras article on Covertype that grows the batch; its text gives widths and dropout.
    """

    widths: Sequence[int] = (512, 256, 256, 128, 256, 256, 512)
    dropout: float | Sequence[float] = (0.25, 0.0, 0.25, 0.0, 0.0, 0.25, 0.25)
