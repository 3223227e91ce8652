"""Residual networks: ResNet and WideResNet."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
from jax.nn.initializers import variance_scaling

from lrlab.models import layers

_he_normal = variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, arXiv:1502.01852, eq. 14


class ResNet(nn.Module):
    """ResNet-18 by default, with ReLU after each addition.

    Weights with 10 classes and small images: 11,173,962. With 1,000 classes and large ones:
    11,689,512 for stages (2, 2, 2, 2); 25,557,032 for (3, 4, 6, 3) with bottlenecks, ResNet-50.

    stage_sizes: blocks in each stage; a stage has half the resolution and twice the channels of the
      one before.
    width: channels of the first stage.
    bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, the last with four times the channels. The
      stride is in the 3x3 one.
    small_images: begins with one 3x3 convolution; otherwise 7x7 with stride 2 and 3x3 max pooling.
    axis_name: mapped axis over which BatchNorm averages, or None.
    implementation: as in `layers.Conv`.

    Source:
      He, Zhang, Ren & Sun 2015, arXiv:1512.03385.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = False
    small_images: bool = True
    axis_name: str | None = None
    implementation: layers.Implementation = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stage_sizes or any(size < 1 for size in self.stage_sizes):
            raise ValueError(
                f"stage_sizes={self.stage_sizes!r} must be one or more, at least 1 each"
            )
        if self.width < 1:
            raise ValueError(f"width={self.width!r} must be at least 1")
        layers.uses_patches(self.implementation)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        del rows  # no dropout
        layers.check_images(x)
        conv, norm = _conv(self.implementation), _norm(train, self.axis_name)
        if self.small_images:
            x = nn.relu(norm()(conv(self.width)(x)))
        else:
            x = nn.relu(norm()(conv(self.width, (7, 7), (2, 2))(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                stride = 2 if stage > 0 and block == 0 else 1
                x = self._block(x, self.width * 2**stage, stride, conv, norm)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

    def _block(
        self, x: jax.Array, width: int, stride: int, conv: Callable, norm: Callable
    ) -> jax.Array:
        strides = (stride, stride)
        if self.bottleneck:
            y = nn.relu(norm()(conv(width, (1, 1))(x)))
            y = nn.relu(norm()(conv(width, (3, 3), strides)(y)))
            y = norm()(conv(4 * width, (1, 1))(y))
        else:
            y = nn.relu(norm()(conv(width, (3, 3), strides)(x)))
            y = norm()(conv(width)(y))
        if x.shape != y.shape:
            x = norm()(conv(y.shape[-1], (1, 1), strides)(x))
        return nn.relu(x + y)


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: pre-activation blocks of two 3x3 convolutions in three stages.

    2,748,890 weights at depth 16 and width 4 with 32x32x3 images and 10 classes.

    depth: 6 n + 4, with n blocks in a stage.
    width: multiplies the 16, 32 and 64 channels of the stages.
    dropout: share dropped between a block's convolutions in training.
    axis_name: mapped axis over which BatchNorm averages, or None.
    implementation: as in `layers.Conv`.

    Source:
      Zagoruyko & Komodakis 2016, arXiv:1605.07146.
    """

    num_classes: int
    depth: int = 16
    width: int = 4
    dropout: float = 0.0
    axis_name: str | None = None
    implementation: layers.Implementation = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth={self.depth!r} must be 6 n + 4: 10, 16, 22, 28, 34, 40, ...")
        if self.width < 1:
            raise ValueError(f"width={self.width!r} must be at least 1: it multiplies channels")
        layers.check_rate("dropout", self.dropout)
        layers.uses_patches(self.implementation)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        layers.check_images(x)
        conv, norm = _conv(self.implementation), _norm(train, self.axis_name)
        x = conv(16)(x)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                width = 16 * self.width * 2**stage
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(x))
                if block == 0 and (width != x.shape[-1] or stride != 1):
                    x = conv(width, (1, 1), (stride, stride))(y)
                y = nn.relu(norm()(conv(width, (3, 3), (stride, stride))(y)))
                y = layers.Dropout(self.dropout)(y, train, rows)
                x = x + conv(width)(y)
        x = nn.relu(norm()(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def _conv(implementation: layers.Implementation) -> Callable[..., layers.Conv]:
    return functools.partial(
        layers.Conv, use_bias=False, kernel_init=_he_normal, implementation=implementation
    )


def _norm(train: bool, axis_name: str | None) -> Callable[..., nn.BatchNorm]:
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=axis_name
    )
