"""Layers in the formulations that are fast where they run: dropout and convolutions.

On a CPU, XLA's convolution is 3 to 17 times slower inside a compiled loop, and lrlab trains inside
one. So there the convolutions are matrix products over gathered windows, forward and backward. The
barriers keep XLA from fusing a gather or a mask into each of its readers, where it would be
computed again and slowly; they change no number.
"""

import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

__all__ = ()  # no layer is a model that a config may name
Implementation = Literal["auto", "patches", "xla"]
Padding = Literal["SAME", "VALID"]

_barrier = lax.optimization_barrier
_NHWC = ("NHWC", "HWIO", "NHWC")
_TILE_BELOW = 32  # input channels; measured: tiles win below, tie at 32 and lose 4 % at 64


class Dropout(nn.Module):
    """Zeroes each feature with probability `rate` in training and scales up the others.

    The mask is a hash of (key, layer, row, feature), not a generator's next draw: any row can be
    computed anywhere, and on a CPU it costs almost nothing. Flax folds the module's path into the
    key, so layers differ.
    """

    rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("rate", self.rate)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rows: jax.Array | None = None) -> jax.Array:
        """Any `x` of shape [batch, ...]; `rows` as in the contract of `lrlab.models`."""
        if not train or self.rate == 0:
            return x
        keep = keep_mask(self.make_rng("dropout"), x.shape, self.rate, rows)
        return jnp.where(keep, x * (1 / (1 - self.rate)), 0)


def check_rate(field: str, rate: float) -> None:
    """Raises ValueError unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(
            f"{field}={rate!r} must be at least 0 and below 1: it is the share to drop"
        )


def keep_mask(
    key: jax.Array, shape: Sequence[int], rate: float, rows: jax.Array | None = None
) -> jax.Array:
    """Mask of `shape` [batch, ...], True with probability 1 - rate; row i is that of `rows[i]`.

    A row and two words of the key give two hashed words; these and the feature's index are hashed
    again. So neighbouring rows, features, layers and steps share nothing, whatever the widths.

    Source:
      The constants of `_mix` are those of C. Wellons's hash-prospector, lowbias32.
    """
    rows = jnp.arange(shape[0]) if rows is None else rows
    words = jax.random.bits(key, (2,), jnp.uint32)
    first = _mix(_spread(rows.astype(jnp.uint32)) + words[0])
    second = _mix(first ^ words[1])
    along_rows = (shape[0],) + (1,) * (len(shape) - 1)
    features = jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32).reshape(1, *shape[1:])
    hashed = _mix(_spread(features) + first.reshape(along_rows), salt=second.reshape(along_rows))
    return hashed >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _spread(index: jax.Array) -> jax.Array:
    """Sends neighbouring uint32 indices far apart, one to one."""
    return index * jnp.uint32(0x9E3779B9)


def _mix(h: jax.Array, salt: jax.Array | int = 0) -> jax.Array:
    """Hash of uint32 words, one to one for any one `salt`."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D) ^ salt
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


class Conv(nn.Module):
    """Convolution over [batch, height, width, channels], with the parameters of `flax.linen.Conv`.

    implementation: "xla" is XLA's convolution; "patches" gathers the windows of all outputs, which
      takes kernel height times kernel width as much memory, and multiplies matrices; "auto" is
      "patches" on a CPU and "xla" elsewhere.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: initializers.Initializer = initializers.lecun_normal()
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> [batch, new height, new width, features]."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if not uses_patches(self.implementation):
            y = lax.conv_general_dilated(
                x, kernel, self.strides, self.padding, dimension_numbers=_NHWC
            )
        elif self.kernel_size == (1, 1):
            y = x[:, :: self.strides[0], :: self.strides[1]] @ kernel[0, 0]
        else:
            x = _pad(x, self.kernel_size, self.strides, self.padding)
            y = _conv_of_patches(x, kernel, self.strides)
        if self.use_bias:
            y = y + self.param("bias", initializers.zeros, (self.features,)).reshape(1, 1, 1, -1)
        return y


class ConvPool(nn.Module):
    """Convolution, bias, ReLU and 2x2 max pooling over [channels, height, width, batch].

    With the batch innermost, gathers on a CPU copy long runs. The parameters are those of
    `flax.linen.Conv`. An odd last row or column of the convolution is dropped, as pooling does.

    implementation: as in `Conv`; give `batch_minor`, which makes the first layer's input, the same.
    """

    features: int
    kernel_size: tuple[int, int] = (5, 5)
    padding: Padding = "SAME"
    kernel_init: initializers.Initializer = initializers.lecun_normal()
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [features, new height, new width, batch]."""
        shape = (*self.kernel_size, x.shape[0], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", initializers.zeros, (self.features,))
        padded = _pad(x, self.kernel_size, (1, 1), self.padding)
        height, width = _pooled(padded.shape, shape)
        if min(height, width) < 1:
            raise ValueError(
                f"{x.shape[1]}x{x.shape[2]} pixels are too few for a convolution of "
                f"{self.kernel_size} with padding {self.padding!r} and 2x2 pooling: are the images "
                "too small for this model?"
            )
        if uses_patches(self.implementation):
            used = padded[:, : 2 * height + shape[0] - 1, : 2 * width + shape[1] - 1]
            return _conv_pool(used, kernel, bias)
        x = x.transpose(3, 1, 2, 0)
        y = lax.conv_general_dilated(x, kernel, (1, 1), self.padding, dimension_numbers=_NHWC)
        y = nn.max_pool(nn.relu(y + bias.reshape(1, 1, 1, -1)), (2, 2), (2, 2))
        return y.transpose(3, 1, 2, 0)


def check_images(x: jax.Array) -> None:
    """Raises ValueError unless `x` is [batch, height, width, channels]."""
    if x.ndim != 4:
        raise ValueError(
            f"this model needs images [batch, height, width, channels], got {x.shape}: "
            "is the data tabular? then take an mlp"
        )


def uses_patches(implementation: str) -> bool:
    """Whether a convolution is a matrix product here; ValueError for an unknown name."""
    if implementation not in ("auto", "patches", "xla"):
        raise ValueError(f"implementation={implementation!r} must be 'auto', 'patches' or 'xla'")
    if implementation == "auto":
        return jax.default_backend() == "cpu"
    return implementation == "patches"


def batch_minor(x: jax.Array, implementation: Implementation = "auto") -> jax.Array:
    """[batch, height, width, channels] -> [channels, height, width, batch]."""
    if not uses_patches(implementation):
        return x.transpose(3, 1, 2, 0)
    flat = _barrier(_barrier(x.reshape(x.shape[0], -1)).T)  # plain copies beat one odd gather
    return flat.reshape(*x.shape[1:], x.shape[0]).transpose(2, 0, 1, 3)


def _pad(
    x: jax.Array, kernel: Sequence[int], strides: Sequence[int], padding: Padding
) -> jax.Array:
    """Pads axes 1 and 2, height and width, for a convolution that is then "VALID"."""
    around = lax.padtype_to_pads(x.shape[1:3], kernel, strides, padding)
    if any(map(any, around)):
        x = jnp.pad(x, ((0, 0), *around, (0, 0)))
    return x


def _add_blocks(
    shape: tuple[int, ...], blocks: Sequence[tuple[tuple[int, ...], jax.Array]]
) -> jax.Array:
    """Zeros of `shape` plus blocks, which may overlap; each comes with its first index."""
    total = jnp.zeros(shape, blocks[0][1].dtype)
    for start, block in blocks:
        end = [i + n for i, n in zip(start, block.shape, strict=True)]
        total = lax.dynamic_update_slice(total, lax.slice(total, start, end) + block, start)
    return total


def _conv_plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Unpadded convolution of [batch, height, width, channels]."""
    return _conv_forward(x, kernel, strides)[0]


def _conv_forward(x, kernel, strides):
    windows = x
    for axis, k, s in ((2, kernel.shape[1], strides[1]), (1, kernel.shape[0], strides[0])):
        n = (x.shape[axis] - k) // s + 1
        taps = [lax.slice_in_dim(windows, i, i + (n - 1) * s + 1, s, axis) for i in range(k)]
        windows = _barrier(jnp.stack(taps, axis=3))  # columns, then rows: runs get longer
    rows = windows.reshape(-1, math.prod(kernel.shape[:3]))
    y = rows @ kernel.reshape(rows.shape[1], -1)
    return y.reshape(*windows.shape[:3], -1), (rows, kernel, x)


def _conv_backward(strides, saved, dy):
    rows, kernel, x = saved
    batch, height, width, channels = x.shape
    (kh, kw), (sh, sw), (h, w) = kernel.shape[:2], strides, dy.shape[1:3]
    dy = _barrier(dy).reshape(-1, kernel.shape[-1])
    dkernel = (rows.T @ dy).reshape(kernel.shape)
    taps = _barrier(dy @ kernel.reshape(-1, kernel.shape[-1]).T)
    taps = taps.reshape(batch, h, 1, w, 1, kh, kw, channels)
    # With height and width each split into (cell, place in a cell of the stride), a tap is a block.
    blocks = [
        ((0, i // sh, i % sh, j // sw, j % sw, 0), taps[..., i, j, :])
        for i in range(kh)
        for j in range(kw)
    ]
    cells = (-(-height // sh), -(-width // sw))
    dx = _add_blocks((batch, cells[0], sh, cells[1], sw, channels), blocks)
    dx = _barrier(dx.reshape(batch, cells[0] * sh, cells[1] * sw, channels))
    return dx[:, :height, :width], dkernel


_conv_of_patches = jax.custom_vjp(_conv_plain, nondiff_argnums=(2,))
_conv_of_patches.defvjp(_conv_forward, _conv_backward)


@jax.custom_vjp
def _conv_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Unpadded `ConvPool` of an `x` cut to what is used: an even number of outputs each way.

    Few channels make thin matrices. So the four outputs of a pooling window become four row groups
    of one product over their common window, one row and column larger than the kernel: for 5x5 that
    is 1.44 times the arithmetic at several times the speed, and pooling is a maximum of row groups.
    With many channels each output has its own window. `_tile` chooses.
    """
    return _conv_pool_forward(x, kernel, bias)[0]


def _conv_pool_forward(x, kernel, bias):
    columns = _columns(x, kernel.shape)
    y = _weights(kernel, bias) @ columns
    a, b, c, d = _corners(y, x.shape, kernel.shape)
    h = _barrier(jnp.maximum(jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d)), 0))
    shape = (kernel.shape[-1], *_pooled(x.shape, kernel.shape), x.shape[-1])
    return h.reshape(shape), (columns, kernel, bias, y, h, x)


def _conv_pool_backward(saved, dh):
    columns, kernel, bias, y, h, x = saved
    channels, height, width, batch = x.shape
    half = len(dh) // 2  # written in two blocks, as the XLA of JAX 0.10 fuses through a barrier
    dh = _add_blocks(dh.shape, [((0, 0, 0, 0), dh[:half]), ((half, 0, 0, 0), dh[half:])])
    dh = jnp.where(h > 0, _barrier(dh.reshape(h.shape)), 0)
    a, b, c, _ = (corner >= h for corner in _corners(y, x.shape, kernel.shape))
    first = (a, b & ~a, c & ~(a | b), ~(a | b | c))  # one maximum takes the gradient, the first
    corners = [jnp.where(it, dh, 0) for it in first]
    t = _tile(kernel.shape)
    if t == 2:
        dy = jnp.stack(corners)
    else:
        dy = jnp.stack([jnp.stack(corners[:2], axis=3), jnp.stack(corners[2:], axis=3)], axis=2)
    dy = _barrier(dy).reshape(y.shape)

    weights, pull_back = jax.vjp(_weights, kernel, bias)
    dkernel, dbias = pull_back(jnp.einsum("nm,km->nk", dy, columns))
    taps = _barrier(weights[:, :-1].T @ dy)
    kh, kw, down, across = _tap_grid(x.shape, kernel.shape)
    taps = taps.reshape(kh, kw, t, t, channels, down, across, batch)
    taps = taps.transpose(0, 1, 4, 5, 2, 6, 3, 7)
    blocks = [((0, i, 0, j, 0, 0), taps[i, j]) for i in range(kh) for j in range(kw)]
    dx = _add_blocks((channels, height // t, t, width // t, t, batch), blocks)
    return _barrier(dx.reshape(x.shape)), dkernel, dbias


_conv_pool.defvjp(_conv_pool_forward, _conv_pool_backward)


def _tile(kernel: Sequence[int]) -> int:
    """2 if one product computes a whole pooling window, 1 if each output is its own column."""
    odd = kernel[0] % 2 == kernel[1] % 2 == 1
    return 2 if odd and kernel[2] < _TILE_BELOW else 1


def _pooled(x: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
    """Height and width after an unpadded convolution and pooling, from both shapes."""
    return (x[1] - kernel[0] + 1) // 2, (x[2] - kernel[1] + 1) // 2


def _tap_grid(x: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """Taps down and across a window, tiles down and across an image, both in steps of a tile."""
    t = _tile(kernel)
    kh, kw = (kernel[0] + t - 1) // t, (kernel[1] + t - 1) // t
    return kh, kw, x[1] // t - kh + 1, x[2] // t - kw + 1


def _weights(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[(place in the tile, feature), (tap down, tap across, place in the tap, channel) + bias]."""
    t = _tile(kernel.shape)
    kh, kw, channels, features = kernel.shape
    shifted = [
        jnp.pad(kernel, ((i, t - 1 - i), (j, t - 1 - j), (0, 0), (0, 0)))
        for i in range(t)
        for j in range(t)
    ]
    w = jnp.stack(shifted).reshape(t * t, (kh + t - 1) // t, t, (kw + t - 1) // t, t, channels, -1)
    w = w.transpose(0, 6, 1, 3, 2, 4, 5).reshape(t * t * features, -1)
    return jnp.concatenate([w, jnp.tile(bias, t * t)[:, None]], axis=1)


def _columns(x: jax.Array, kernel: Sequence[int]) -> jax.Array:
    """[the rows that `_weights` multiplies, (tile down, tile across, example)]."""
    channels, height, width, batch = x.shape
    t = _tile(kernel)
    kh, kw, h, w = _tap_grid(x.shape, kernel)
    phases = [x[:, i::t, j::t] for i in range(t) for j in range(t)]
    starts = [(i * channels, 0, 0, 0) for i in range(t * t)]
    shape = (t * t * channels, height // t, width // t, batch)
    x = _barrier(_add_blocks(shape, list(zip(starts, phases, strict=True))))
    x = _barrier(jnp.stack([x[:, :, j : j + w] for j in range(kw)]))  # then rows: long runs
    rows = [x[:, :, i : i + h].reshape(-1, h * w * batch) for i in range(kh)]
    return _barrier(jnp.concatenate([*rows, jnp.ones((1, h * w * batch), x.dtype)]))


def _corners(y: jax.Array, x: Sequence[int], kernel: Sequence[int]) -> list[jax.Array]:
    """The four outputs of every pooling window, from left to right, then top to bottom."""
    if _tile(kernel) == 2:
        return list(y.reshape(4, kernel[3], -1))
    height, width = _pooled(x, kernel)
    y = y.reshape(kernel[3], height, 2, width, 2, x[3])
    return [y[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]
