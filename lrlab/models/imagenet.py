"""ResNet-18, ResNet-50 and VGG-16 as torchvision has them, for weights that were trained there.

Layers have torchvision's names: "layer1.0.conv1" is `layer1_0/conv1`, "features.0" `features_0`.
What a layer computes is torchvision's to rounding, padding included: `resnet.ResNet` pads a strided
convolution on one side, as "SAME" does, where torch pads on both. In training alone BatchNorm's
averages differ: torch averages the variance times n / (n - 1), n values of a channel in a batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal, variance_scaling

from lrlab.models import layers

_he_normal = variance_scaling(2.0, "fan_out", "normal")  # torchvision's choice for convolutions


class ResNet(nn.Module):
    """A residual network of basic blocks or of bottlenecks with the stride in the 3x3 (v1.5).

    stage_sizes: blocks in each stage; (3, 4, 6, 3) without bottlenecks is ResNet-34.
    width: channels of the first stage; each further stage has twice as many.
    bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, the last with four times the channels.
    small_images: begins with one 3x3 convolution of stride 1, and no pooling. All but `conv1` fits
      the weights of large images.
    axis_name: mapped axis over which BatchNorm averages, or None.
    implementation: as in `layers.Conv`.

    Source:
      He, Zhang, Ren & Sun 2015, arXiv:1512.03385; torchvision 0.28, models.resnet.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = False
    small_images: bool = False
    axis_name: str | None = None
    implementation: layers.Implementation = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stage_sizes or any(size < 1 for size in self.stage_sizes):
            raise ValueError(
                f"stage_sizes={self.stage_sizes!r} must be one or more, at least 1 each"
            )
        _check_width("width", self.width)
        layers.uses_patches(self.implementation)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        del rows  # no dropout
        layers.check_images(x)
        kernel, stride = (3, 1) if self.small_images else (7, 2)
        x = _conv(x, "conv1", self.width, kernel, self.implementation, stride)
        x = nn.relu(_norm(x, "bn1", train, self.axis_name))
        if not self.small_images:
            around: Any = ((1, 1), (1, 1))  # of -inf; Flax's annotation knows words only
            x = nn.max_pool(x, (3, 3), (2, 2), around)
        block = functools.partial(
            _Block,
            bottleneck=self.bottleneck,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(self.width * 2**stage, stride, name=f"layer{stage + 1}_{i}")(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class ResNet18(ResNet):
    """ResNet-18, 11,689,512 weights with 1,000 classes."""

    stage_sizes: Sequence[int] = (2, 2, 2, 2)


class ResNet50(ResNet):
    """ResNet-50 v1.5, 25,557,032 weights with 1,000 classes."""

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    bottleneck: bool = True


class VGG16(nn.Module):
    """VGG-16 without BatchNorm, 138,357,544 weights with 1,000 classes; images from 32x32 pixels.

    Features are averaged to 7x7, whatever the image's size, and flattened channel by channel, as
    torch does. On a CPU, "patches" of 224x224 images take 115 MB for each image and layer of 64
    channels; "xla" takes less memory. timm's VGG, whose dense layers are convolutions under other
    names, is another net.

    width: channels of the first of the five stages; the others have 2, 4, 8 and 8 times as many.
    dense: width of the two dense layers.
    dropout: share of each dense layer dropped in training.
    implementation: as in `layers.Conv`.

    Source:
      Simonyan & Zisserman 2014, arXiv:1409.1556, configuration D; torchvision 0.28, models.vgg.
    """

    num_classes: int
    width: int = 64
    dense: int = 4096
    dropout: float = 0.5
    implementation: layers.Implementation = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_width("width", self.width)
        _check_width("dense", self.dense)
        layers.check_rate("dropout", self.dropout)
        layers.uses_patches(self.implementation)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        layers.check_images(x)
        if min(x.shape[1:3]) < 32:
            raise ValueError(
                f"{x.shape[1]}x{x.shape[2]} pixels are too few for VGG16, which halves them five "
                "times: 32x32 is the least"
            )
        place = 0  # in torchvision's list, which counts activations and pooling too
        for times, depth in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(depth):
                name, features = f"features_{place}", self.width * times
                x = nn.relu(_conv(x, name, features, 3, self.implementation, use_bias=True))
                place += 2
            x = nn.max_pool(x, (2, 2), (2, 2))
            place += 1
        x = _averaged(x, 7).reshape(x.shape[0], -1)
        for name in "classifier_0", "classifier_3":
            x = nn.relu(nn.Dense(self.dense, kernel_init=normal(0.01), name=name)(x))
            x = layers.Dropout(self.dropout)(x, train, rows)
        return nn.Dense(self.num_classes, kernel_init=normal(0.01), name="classifier_6")(x)


class _Block(nn.Module):
    """The sum of its input and of two or three convolutions of it; stride in a 3x3 one."""

    width: int
    stride: int
    bottleneck: bool
    axis_name: str | None
    implementation: layers.Implementation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] -> the same with its own height, width, channels."""
        w, s = self.width, self.stride
        plan = [(w, 1, 1), (w, 3, s), (4 * w, 1, 1)] if self.bottleneck else [(w, 3, s), (w, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(plan, 1):
            y = _conv(y, f"conv{i}", features, kernel, self.implementation, stride)
            y = _norm(y, f"bn{i}", train, self.axis_name)
            y = nn.relu(y) if i < len(plan) else y
        if x.shape != y.shape:
            x = _conv(x, "downsample_0", y.shape[-1], 1, self.implementation, s)
            x = _norm(x, "downsample_1", train, self.axis_name)
        return nn.relu(x + y)


def _check_width(field: str, width: int) -> None:
    if width < 1:
        raise ValueError(f"{field}={width!r} must be at least 1: it is a width")


def _conv(
    x: jax.Array,
    name: str,
    features: int,
    kernel: int,
    implementation: layers.Implementation,
    stride: int = 1,
    use_bias: bool = False,
) -> jax.Array:
    """A convolution with half its kernel of zeros on each side, in the module that calls it."""
    around = (kernel // 2, kernel // 2)
    return layers.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding="VALID",
        use_bias=use_bias,
        kernel_init=_he_normal,
        implementation=implementation,
        name=name,
    )(jnp.pad(x, ((0, 0), around, around, (0, 0))))


def _norm(x: jax.Array, name: str, train: bool, axis_name: str | None) -> jax.Array:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=axis_name, name=name
    )(x)


def _averaged(x: jax.Array, size: int) -> jax.Array:
    """[batch, height, width, channels] -> [batch, channels, size, size], torch's order to flatten.

    Output i averages inputs floor(i n / size) to ceil((i + 1) n / size), which may overlap or be
    one input many times: torch's AdaptiveAvgPool2d.
    """
    if x.shape[1:3] == (size, size):
        return x.transpose(0, 3, 1, 2)
    down, across = (_shares(n, size) for n in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bcij", down, x, across)


def _shares(n: int, size: int) -> np.ndarray:
    """What each of n inputs is of each output's average, float32 [size, n]."""
    shares = np.zeros((size, n), np.float32)
    for i in range(size):
        first, end = i * n // size, -(-(i + 1) * n // size)
        shares[i, first:end] = 1 / (end - first)
    return shares
