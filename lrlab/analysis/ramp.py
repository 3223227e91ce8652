"""The range test of anything that has a loss, for people with their own training loop."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrlab.analysis import suggest

BETA = 0.9  # of the smoothing by which a divergence is seen
FEW, VERY_FEW = 10, 2  # updates: after FEW such a mean is of its full length


@dataclasses.dataclass(frozen=True)
class Blowup:
    """Stops a lane once its smoothed loss is `factor` times its best: a watch of `lanes.Lanes`.

    The best is that of mean + noise, so that what batches differ by, which is most of the loss of a
    network that is trained already, is no divergence. While the mean is of few batches it takes
    factor^2, and of very few, nothing; the best is counted anew after them.
    """

    factor: float = suggest.DIVERGED
    size: int = 3

    def __call__(self, memory: jax.Array, update: jax.Array, loss: jax.Array) -> Any:
        """(memory, updates done before, loss) -> (memory, whether to stop).

        memory: the means of the loss and of its square before their bias is taken out, and the best
        of mean + noise; zeros at first.
        """
        means = BETA * memory[:2] + (1 - BETA) * jnp.stack([loss, loss**2])
        smooth, square = means / (1 - BETA ** (update + 1).astype(jnp.float32))
        # A mean that forgets by BETA has (1 - BETA) / (1 + BETA) of the variance of one loss.
        spread = jnp.sqrt(jnp.maximum(square - smooth**2, 0) * (1 - BETA) / (1 + BETA))
        level = smooth + 2 * spread
        is_first = (update == 0) | (update == VERY_FEW) | (update == FEW)
        best = jnp.where(is_first, level, jnp.minimum(memory[2], level))
        limit = jnp.where(update < FEW, self.factor**2, self.factor)
        limit = jnp.where(update <= VERY_FEW, jnp.inf, limit)
        return jnp.stack([*means, best]), smooth > limit * best


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """rates: [updates], rising. losses: [seeds, updates], NaN from where a seed had stopped."""

    rates: np.ndarray
    losses: np.ndarray
    suggestion: suggest.Suggestion


def exponential(low: float, high: float, updates: int) -> np.ndarray:
    """Rates from `low` to `high`, both included, by equal factors; float32 [updates]."""
    return (low * (high / low) ** np.linspace(0.0, 1.0, updates)).astype(np.float32)


def range_test(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Any,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    low: float = 1e-6,
    high: float = 10.0,
    updates: int = 400,
    seeds: int = 3,
    seed: int = 0,
    below: float | None = None,
) -> RangeTest:
    """Raises the rate update by update, from the same parameters, and reads the losses.

    One compiled program; nothing that is passed in changes.

    Args:
      loss_fn: (params, batch) -> mean loss. params: where it begins.
      batches: a tree of arrays [batches, ...]; each seed goes through them in orders of its own.
      optimizer: rate -> transformation, such as `optax.adam`; the rate is traced.
      low, high, updates: of the ramp, which is exponential.
      below: how many times below the edge the suggestion is; None takes `suggest.PLAIN` for
        optax.sgd and `suggest.ADAPTIVE` for all else.
    Raises:
      ValueError: not 0 < low < high, too few updates, no seed, or no batch.
    """
    if not 0 < low < high:
        raise ValueError(f"low={low!r} and high={high!r} must satisfy 0 < low < high")
    if updates < suggest.LEAST or seeds < 1:
        raise ValueError(f"updates={updates} must be at least {suggest.LEAST}, seeds={seeds} 1")
    sizes = {len(a) for a in jax.tree.leaves(batches)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"batches must be arrays of one length >= 1, got lengths {sorted(sizes)}")
    (count,) = sizes
    rates, watch = exponential(low, high, updates), Blowup()
    order = np.stack([_order(seed + i, updates, count) for i in range(seeds)])

    def one(order: jax.Array, rates: jax.Array, params: Any, batches: Any) -> jax.Array:
        def body(carry: Any) -> Any:
            t, params, opt, memory, out, _ = carry
            batch = jax.tree.map(lambda a: a[order[t]], batches)
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            steps, opt = optimizer(rates[t]).update(grads, opt, params)
            memory, stop = watch(memory, t, loss)
            out = out.at[t].set(loss)
            going = ~stop & jnp.isfinite(loss)
            return t + 1, optax.apply_updates(params, steps), opt, memory, out, going

        def more(carry: Any) -> jax.Array:
            return (carry[0] < updates) & carry[-1]

        begin = params, optimizer(rates[0]).init(params), jnp.zeros(watch.size)
        out = jnp.full(updates, jnp.nan)
        return jax.lax.while_loop(more, body, (jnp.int32(0), *begin, out, jnp.bool(True)))[-2]

    every = jax.jit(jax.vmap(one, (0, None, None, None)))
    losses = np.array(every(order, rates, params, batches))
    losses[~np.isfinite(losses)] = np.nan
    if below is None:
        below = suggest.PLAIN if optimizer is optax.sgd else suggest.ADAPTIVE
    return RangeTest(rates, losses, suggest.suggest(rates, losses, below))


def _order(seed: int, updates: int, count: int) -> np.ndarray:
    """Which batch each update takes: pass after pass, each in an order of its own."""
    rng = np.random.default_rng(seed)
    passes = -(-updates // count)
    return np.concatenate([rng.permutation(count) for _ in range(passes)])[:updates]
