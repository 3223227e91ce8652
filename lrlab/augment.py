"""Augmentation on the device: a pure function of a key and the example's row in the whole batch.

What is drawn for an example depends on nothing else, so 1, 2 and 4 devices, a batch whole or in
micro-batches, and a resumed run all augment alike; mixup alone looks at other examples, those of
the part it is given. It runs inside the compiled loop, on images float32 [batch, height, width,
channels] that are shifted and scaled already: where a fill is 0, that is the training mean.

On their own: `x, targets = compose((crop(4), flip()))(key, x, y, jnp.arange(len(y)))`.
"""

# dm-pix 0.4.5 (2026) and augmax 0.4.1 (2025), Apache-2.0, run on JAX 0.12 with a key an image;
# both lack cutout and mixup, dm-pix wants chex: what is left is too little for a dependency.

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrlab import values

__all__ = ("affine", "crop", "cutout", "flip", "mixup")  # what a config may name
Mode = Literal["reflect", "constant"]

_barrier = lax.optimization_barrier  # as in models.layers: nothing is computed again per reader
_TINY = np.finfo(np.float32).tiny


class Targets(NamedTuple):
    """Labels of a batch, two an example: loss = weight * CE(y) + (1 - weight) * CE(y2).

    y, y2: int32 [batch]. weight: float32 [batch], 1 where nothing was mixed.
    """

    y: jax.Array
    y2: jax.Array
    weight: jax.Array


Change = Callable[[jax.Array, jax.Array, Targets], tuple[jax.Array, Targets]]


@dataclasses.dataclass(frozen=True)
class Augment:
    """One augmentation, and how many random numbers an example of it needs.

    change: (uniform float32 [batch, draws] in [0, 1), images, targets) -> (images, targets).
    mixes: whether it changes targets.
    """

    change: Change
    draws: int
    mixes: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
    """Augmentations one after another; made by `compose`.

    Augmentation i draws for row r from `fold_in(fold_in(key, i), r)`.
    """

    augments: tuple[Augment, ...]

    @property
    def mixes(self) -> bool:
        """Whether targets can have a second label; if not, they are (y, y, ones)."""
        return any(a.mixes for a in self.augments)

    def __call__(
        self, key: jax.Array, x: jax.Array, y: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, Targets]:
        """Augments a batch or a part of one.

        Args:
          key: of the update. x: float32 [batch, height, width, channels]. y: int32 [batch].
          rows: int32 [batch], each example's row in the whole batch over all devices.
        Raises:
          ValueError: when traced, where images are too small for a setting or `x` is no image.
        """
        targets = Targets(y, y, jnp.ones(y.shape, jnp.float32))
        if not self.augments:
            return x, targets
        uniform = _uniform(key, len(self.augments), rows, max(a.draws for a in self.augments))
        for i, augment in enumerate(self.augments):
            x, targets = augment.change(uniform[i, :, : augment.draws], x, targets)
        return _barrier(x), targets


def compose(augments: Iterable[Augment]) -> Chain:
    """A chain of augmentations, each with a key of its own; none leaves a batch as it is.

    Raises:
      ValueError: something else than an Augment, or two that mix.
    """
    augments = tuple(augments)
    for i, augment in enumerate(augments):
        if not isinstance(augment, Augment):
            raise ValueError(
                f"augment[{i}]={augment!r} must be a lrlab.augment.Augment: does the function that "
                "it names return one?"
            )
    if sum(a.mixes for a in augments) > 1:
        raise ValueError("augment: only one may mix examples (mixup): targets hold two labels")
    return Chain(augments)


def crop(pad: int, mode: Mode = "reflect") -> Augment:
    """Moves an image by up to `pad` pixels each way: padded on all sides, cut to its size again.

    Both shifts are uniform in -pad, ..., pad.

    Args:
      pad: pixels, below the image's height and width.
      mode: what comes in over the edge: "reflect" mirrors the image there without repeating the
        edge; "constant" is 0, the training mean (on MNIST a grey that no background has).
    Raises:
      ValueError: pad < 0, an unknown mode; when traced, images not larger than pad.
    Source:
      He et al. 2016, arXiv:1512.03385, 4.2 (4 pixels on CIFAR-10, constant).
    """
    _check(values.whole("augment.pad", pad, 0), "it is a number of pixels, 4 for 32x32 images")
    _check(values.choice("augment.mode", mode, ("reflect", "constant")))
    pad = int(pad)

    def change(uniform: jax.Array, x: jax.Array, targets: Targets) -> tuple[jax.Array, Targets]:
        _fits("pad", pad, x, min(x.shape[1:3]) - 1, "an image cannot move out of its frame")
        if pad == 0:
            return x, targets
        sides = (pad, pad)
        # No barrier: fused into the slices, the padding costs nothing, alone as much as they do.
        padded = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), mode=mode)

        def window(image: jax.Array, first: jax.Array) -> jax.Array:
            return lax.dynamic_slice(image, (first[0], first[1], 0), x.shape[1:])

        return jax.vmap(window)(padded, _whole(uniform, 2 * pad + 1)), targets

    return Augment(change, draws=2)


def flip(horizontal: bool = True) -> Augment:
    """Mirrors an image with probability 1/2: left to right, or top to bottom if not `horizontal`.

    Not for digits and letters, whose mirror images are others or none.

    Raises:
      ValueError: `horizontal` is not True or False.
    """
    if not isinstance(horizontal, bool):
        raise ValueError(
            f"augment.horizontal={horizontal!r} must be True (left to right) or False (top to "
            "bottom): the probability is 1/2 and is no setting"
        )

    def change(uniform: jax.Array, x: jax.Array, targets: Targets) -> tuple[jax.Array, Targets]:
        _images(x)
        x, chosen = _barrier(x), (uniform < 0.5).reshape(-1, 1, 1, 1)
        return jnp.where(chosen, jnp.flip(x, 2 if horizontal else 1), x), targets

    return Augment(change, draws=1)


def cutout(size: int, fill: float = 0.0) -> Augment:
    """Blanks a square whose centre is uniform over the pixels; it may hang over the edge.

    The square's rows are centre - size // 2, ..., + size - 1, and columns likewise.

    Args:
      size: side of the square in pixels, at most the image's height and width; 0 blanks nothing.
      fill: the value put there, in all channels; 0 is the training mean.
    Raises:
      ValueError: size < 0, fill not finite; when traced, images smaller than the square.
    Source:
      DeVries & Taylor 2017, arXiv:1708.04552 (16 on CIFAR-10, 8 on CIFAR-100, mean filled in).
    """
    _check(values.whole("augment.size", size, 0), "it is the square's side in pixels")
    _check(values.number("augment.fill", fill, -math.inf), "0 is the training mean")
    size = int(size)

    def change(uniform: jax.Array, x: jax.Array, targets: Targets) -> tuple[jax.Array, Targets]:
        _fits("size", size, x, min(x.shape[1:3]), "the square would blank whole images")

        def inside(uniform: jax.Array, pixels: int) -> jax.Array:
            first = _whole(uniform, pixels)[:, None] - size // 2
            at = jnp.arange(pixels)[None]
            return (at >= first) & (at < first + size)

        rows = inside(uniform[:, 0], x.shape[1])[:, :, None, None]
        columns = inside(uniform[:, 1], x.shape[2])[:, None, :, None]
        return jnp.where(rows & columns, jnp.asarray(fill, x.dtype), _barrier(x)), targets

    return Augment(change, draws=2)


def affine(
    rotate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0), shift: float = 0.0
) -> Augment:
    """Turns an image about its centre, enlarges it, then moves it; bilinear in one pass.

    Angle, scale and both shifts are uniform. Where the result looks beyond the edge, it sees the
    nearest pixel of the edge.

    Args:
      rotate: largest angle in degrees, either way.
      scale: least and largest factor; above 1 enlarges.
      shift: largest shift, either way, as a fraction of height and of width.
    Raises:
      ValueError: rotate outside [0, 180], shift outside [0, 1], a scale not above 0 or out of
        order.
    """
    _check(values.number("augment.rotate", rotate, 0, 180), "it is the largest angle in degrees")
    pair = isinstance(scale, Sequence) and not isinstance(scale, str) and len(scale) == 2
    if not pair:
        raise ValueError(f"augment.scale={scale!r} must be two numbers, such as (0.9, 1.1)")
    low, high = scale
    problems = [p for s in scale for p in values.number("augment.scale", s, 0, open_low=True)]
    if not problems and low > high:
        problems = [f"augment.scale={scale!r} must have the smaller factor first"]
    _check(problems, "they are the least and the largest factor, 1 leaves the size")
    _check(values.number("augment.shift", shift, 0, 1), "it is a fraction of the side, not pixels")

    def change(uniform: jax.Array, x: jax.Array, targets: Targets) -> tuple[jax.Array, Targets]:
        _images(x)
        height, width = x.shape[1:3]
        either_way = 2 * uniform - 1
        angle = either_way[:, 0] * (rotate * math.pi / 180)
        factor = low + (high - low) * uniform[:, 1]
        cos, sin = (f(angle) / factor for f in (jnp.cos, jnp.sin))
        move = (either_way[:, 2 + i] * (shift * x.shape[1 + i]) for i in (0, 1))
        row, column = _sources(height, width, *_barrier((cos, sin, *move)))
        return jax.vmap(_bilinear)(_barrier(x), row, column), targets

    return Augment(change, draws=4)


def mixup(alpha: float) -> Augment:
    """Mixes each image with the one before it: weight * x + (1 - weight) * x2, labels alike.

    An example's weight is Beta(alpha, alpha), drawn for its row. Its partner is the example before
    it in the part that is given, the last one for the first: no other device is asked. So this one
    depends on how a batch is split: examples at the seams get other partners, weights stay. The
    loss is linear in the labels, so with `metrics.classification(logits, labels, weight)` its sums
    are those of (y, weight) plus those of (y2, 1 - weight).

    Args:
      alpha: 0.1 to 0.4 on ImageNet, 1 on CIFAR-10; 0 mixes nothing.
    Raises:
      ValueError: alpha < 0 or not finite.
    Source:
      Zhang et al. 2018, arXiv:1710.09412, 2. The weight, without rejection: Bailey 1994, Math.
      Comp. 62:779, whose Student's t of 2 * alpha degrees is carried over to the symmetric beta.
    """
    _check(values.number("augment.alpha", alpha, 0), "it is the parameter of Beta(alpha, alpha)")

    def change(uniform: jax.Array, x: jax.Array, targets: Targets) -> tuple[jax.Array, Targets]:
        if alpha == 0:
            return x, targets
        weight = _symmetric_beta(uniform[:, 0], uniform[:, 1], alpha)
        x, w = _barrier(x), weight.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        x = w * x + (1 - w) * jnp.roll(x, 1, 0)
        return x, Targets(targets.y, jnp.roll(targets.y, 1), weight)

    return Augment(change, draws=2, mixes=True)


def _uniform(key: jax.Array, augments: int, rows: jax.Array, draws: int) -> jax.Array:
    """float32 [augments, batch, draws], multiples of 2**-24 in [0, 1)."""

    def words(augment: jax.Array, row: jax.Array) -> jax.Array:
        of_row = jax.random.fold_in(jax.random.fold_in(key, augment), row)
        return jax.random.bits(of_row, (draws,), jnp.uint32)

    each = jax.vmap(jax.vmap(words, (None, 0)), (0, None))
    bits = each(jnp.arange(augments), rows)
    return _barrier((bits >> 8).astype(jnp.float32) * np.float32(2**-24))


def _whole(uniform: jax.Array, count: int) -> jax.Array:
    """Uniform int32 in 0, ..., count - 1; float32 rounds (1 - 2**-24) * count below count."""
    return jnp.floor(uniform * count).astype(jnp.int32)


def _symmetric_beta(first: jax.Array, second: jax.Array, alpha: float) -> jax.Array:
    """Beta(alpha, alpha) from two uniform numbers.

    1/2 + sign(c) / 2 * sqrt(w c^2 / (1 + w c^2)), c = cos(2 pi V), w = U^(-1 / alpha) - 1; both
    sides of the fraction are multiplied by U^(1 / alpha), as w overflows.
    """
    log = jnp.log1p(-first) / alpha  # U = 1 - first is never 0
    c = jnp.cos(2 * math.pi * second)
    part = -jnp.expm1(log) * c * c
    ratio = part / jnp.maximum(jnp.exp(log) + part, _TINY)
    return 0.5 + 0.5 * jnp.sign(c) * jnp.sqrt(ratio)


def _sources(
    height: int, width: int, cos: jax.Array, sin: jax.Array, down: jax.Array, right: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where each pixel of the result comes from: row and column, float32 [batch, height, width]."""
    cos, sin, down, right = (a[:, None, None] for a in (cos, sin, down, right))
    y = jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1) - (height - 1) / 2 - down
    x = jnp.arange(width, dtype=jnp.float32).reshape(1, 1, -1) - (width - 1) / 2 - right
    return cos * y - sin * x + (height - 1) / 2, sin * y + cos * x + (width - 1) / 2


def _bilinear(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """An image at rows and columns between pixels, [height, width]; clamped to the edge."""
    last = image.shape[0] - 1, image.shape[1] - 1
    row, column = jnp.clip(row, 0, last[0]), jnp.clip(column, 0, last[1])
    top, left = row.astype(jnp.int32), column.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, last[0]), jnp.minimum(left + 1, last[1])
    down, along = (row - top)[..., None], (column - left)[..., None]

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return image.at[row, column].get(mode="promise_in_bounds")

    above = (1 - along) * at(top, left) + along * at(top, right)
    below = (1 - along) * at(bottom, left) + along * at(bottom, right)
    return (1 - down) * above + down * below


def _check(problems: Sequence[str], cause: str = "") -> None:
    """Raises ValueError where there are problems of an argument."""
    if problems:
        raise ValueError("; ".join(problems) + (f": {cause}" if cause else ""))


def _images(x: jax.Array) -> None:
    """Raises ValueError unless `x` is [batch, height, width, channels]."""
    if x.ndim != 4:
        raise ValueError(
            f"augment: this one needs images [batch, height, width, channels], got {x.shape}: is "
            "the data tabular? then only mixup applies"
        )


def _fits(field: str, value: Any, x: jax.Array, most: int, cause: str) -> None:
    """Raises ValueError where a number of pixels is too large for the images."""
    _images(x)
    if value > most:
        raise ValueError(
            f"augment.{field}={value!r} must lie in [0, {most}] for images of {x.shape[1]}x"
            f"{x.shape[2]} pixels: {cause}"
        )
