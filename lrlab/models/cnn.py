"""Small convolutional networks: that of the 500-run learning-rate study, and its small sibling."""

import flax.linen as nn
import jax

from lrlab.models import layers


class MnistCNN(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels, each pooled, a dense layer of 1024, dropout.

    3,274,634 weights on 28x28x1 with 10 classes at scale 1.

    scale: multiplies the channels of both convolutions.
    dense, scale_dense: width of the dense layer, and whether `scale` multiplies it too. The study's
      program leaves it alone; the article's text says that it scales.
    dropout: share of the dense layer dropped in training.
    implementation: as in `layers.Conv`.

    Source:
      D. Mack 2018, "How to pick the best learning rate for your machine learning project".
    """

    num_classes: int
    scale: float = 1.0
    dense: int = 1024
    scale_dense: bool = False
    dropout: float = 0.4
    implementation: layers.Implementation = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.scale, self.dense, self.dropout, self.implementation)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        widths = (_scaled(32, self.scale), _scaled(64, self.scale))
        x = _conv_blocks(x, widths, "SAME", self.implementation)
        dense = _scaled(self.dense, self.scale) if self.scale_dense else self.dense
        x = nn.relu(nn.Dense(dense)(x))
        x = layers.Dropout(self.dropout)(x, train, rows)
        return nn.Dense(self.num_classes)(x)


class SmallCNN(nn.Module):
    """Two unpadded 5x5 convolutions of 4 and 8 channels, each pooled, and a dense layer of 18.

    3,424 weights on 28x28x1 with 10 classes at scale 1: a study's sibling of `MnistCNN` for CPUs.
    Images need at least 16x16 pixels.

    scale: multiplies the three widths.
    dropout: share of the dense layer dropped in training.
    implementation: as in `layers.Conv`.
    """

    num_classes: int
    scale: float = 1.0
    dropout: float = 0.0
    implementation: layers.Implementation = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.scale, 18, self.dropout, self.implementation)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        widths = (_scaled(4, self.scale), _scaled(8, self.scale))
        x = _conv_blocks(x, widths, "VALID", self.implementation)
        x = nn.relu(nn.Dense(_scaled(18, self.scale))(x))
        x = layers.Dropout(self.dropout)(x, train, rows)
        return nn.Dense(self.num_classes)(x)


def _check(scale: float, dense: int, dropout: float, implementation: str) -> None:
    if scale <= 0:
        raise ValueError(f"scale={scale!r} must be above 0: it multiplies widths")
    if dense < 1:
        raise ValueError(f"dense={dense!r} must be at least 1: it is a width")
    layers.check_rate("dropout", dropout)
    layers.uses_patches(implementation)


def _scaled(width: int, scale: float) -> int:
    return max(1, round(width * scale))


def _conv_blocks(
    x: jax.Array,
    widths: tuple[int, ...],
    padding: layers.Padding,
    implementation: layers.Implementation,
) -> jax.Array:
    """[batch, height, width, channels] -> [batch, features]."""
    layers.check_images(x)
    x = layers.batch_minor(x, implementation)
    for i, width in enumerate(widths):
        x = layers.ConvPool(
            width, padding=padding, implementation=implementation, name=f"Conv_{i}"
        )(x)
    return x.transpose(3, 1, 2, 0).reshape(x.shape[-1], -1)
