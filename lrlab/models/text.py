"""A small transformer over pieces of text: a language model, and a classifier with its layers.

Both have the modules `Embedding`, `Block_0`, `Block_1`, ... and `Norm`, of the same shapes, so that
a classifier can begin with what a language model learnt:

    config.start = dict(run="runs/language", fresh=("Hidden/.*", "Head/.*"))

A position sees those before it only, in the classifier too. Token 0 is padding, on the right.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrlab.models import layers

PADDING = 0


class _Embedding(nn.Module):
    """Tokens and positions as vectors; `attend` compares vectors with every token's."""

    vocabulary: int
    width: int
    positions: int

    def setup(self) -> None:
        self.tokens = nn.Embed(self.vocabulary, self.width)
        self.places = nn.Embed(self.positions, self.width)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """int32 [batch, length] -> float32 [batch, length, width]."""
        return self.tokens(ids) + self.places(jnp.arange(ids.shape[1]))[None]

    def attend(self, x: jax.Array) -> jax.Array:
        """[batch, length, width] -> [batch, length, vocabulary]."""
        return self.tokens.attend(x)


class _Block(nn.Module):
    """Attention to what came before, then a hidden layer; each normalised first and added.

    Source:
      Radford et al. 2019 (GPT-2), 2.3.
    """

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rows: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        x = x + layers.Dropout(self.dropout)(y, train, rows)
        y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + layers.Dropout(self.dropout)(nn.Dense(width)(y), train, rows)


class _Text(nn.Module):
    """What both models have."""

    num_classes: int
    vocabulary: int
    width: int = 128
    depth: int = 3
    heads: int = 4
    positions: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary", "width", "depth", "heads", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not divisible by heads={self.heads}")
        layers.check_rate("dropout", self.dropout)

    def encoded(
        self, x: jax.Array, train: bool, rows: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, _Embedding]:
        """(ids, float32 [batch, length, width], the embedding); to call in a compact `__call__`."""
        if x.ndim != 2 or x.shape[1] > self.positions:
            raise ValueError(
                f"features of {list(x.shape[1:])}: this model takes up to positions="
                f"{self.positions} token ids"
            )
        ids = x.astype(jnp.int32)  # data comes as float32, which holds ids exactly
        embedding = _Embedding(self.vocabulary, self.width, self.positions, name="Embedding")
        x = layers.Dropout(self.dropout)(embedding(ids), train, rows)
        for i in range(self.depth):
            x = _Block(self.heads, self.dropout, name=f"Block_{i}")(x, train, rows)
        return ids, nn.LayerNorm(name="Norm")(x), embedding


class LanguageModel(_Text):
    """The next token at each position: logits [batch, length, vocabulary].

    The output's weights are the embedding's (Press & Wolf 2017, arXiv:1608.05859).
    num_classes: the vocabulary, again.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes != self.vocabulary:
            raise ValueError(
                f"num_classes={self.num_classes} is not vocabulary={self.vocabulary}: the data's "
                "task must be 'language'"
            )

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`; x holds token ids [batch, length]."""
        _, x, embedding = self.encoded(x, train, rows)
        return embedding.attend(x)


class Classifier(_Text):
    """Classes of a text from its last position, the maximum and the mean of all, concatenated.

    hidden: units between those and the logits.

    Source:
      Howard & Ruder 2018, arXiv:1801.06146, 3.3 (concat pooling), without their BatchNorm.
    """

    hidden: int = 50

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`; x holds token ids [batch, length], 0 where a text is over."""
        ids, x, _ = self.encoded(x, train, rows)
        is_there = (ids != PADDING)[..., None]
        count = jnp.maximum(is_there.sum(1), 1)
        last = jnp.take_along_axis(x, count[:, None] - 1, axis=1)[:, 0]
        most = jnp.where(is_there, x, jnp.finfo(x.dtype).min).max(1)
        mean = jnp.where(is_there, x, 0).sum(1) / count
        x = layers.Dropout(self.dropout)(jnp.concatenate([last, most, mean], -1), train, rows)
        x = nn.relu(nn.Dense(self.hidden, name="Hidden")(x))
        x = layers.Dropout(self.dropout)(x, train, rows)
        return nn.Dense(self.num_classes, name="Head")(x)
