"""Averages of the weights along a run, which are evaluated instead of the weights themselves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lrlab.optimizers._free import states_of


class MovingAverage(NamedTuple):
    """The mean of the weights before the last update; `eval_params` adds those after it.

    rate: 1 - decay, float32. mean: like the parameters. count: like them, updates of each leaf,
    int32, as a leaf that a later phase thaws is younger than the others.
    """

    rate: jax.Array
    count: Any
    mean: Any


def moving_average(decay: float) -> optax.GradientTransformation:
    """A link of a chain that averages the weights and changes no update.

    mean_n = sum over i <= n of d^(n - i) w_i / sum over i <= n of d^(n - i), where w_i are the
    weights after update i; those before the first have no part in it.

    An update averages the weights that it finds, not those that it makes: so nothing that trains
    feeds the average too, and a program trains the same bits with and without.

    Args:
      decay: d, in (0, 1): about the last 1 / (1 - d) updates count.
    Source:
      The debiased average of Kingma & Ba 2015, arXiv:1412.6980, 3, of weights as in Polyak &
      Juditsky 1992 and Izmailov et al. 2018, arXiv:1803.05407.
    """

    def init(params: Any) -> MovingAverage:
        count = jax.tree.map(lambda _: jnp.int32(0), params)
        return MovingAverage(jnp.float32(1 - decay), count, jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        rate = jnp.float32(1 - decay)  # not that of a state that another run began
        mean = _with(state._replace(rate=rate), params)
        return updates, MovingAverage(rate, jax.tree.map(lambda n: n + 1, state.count), mean)

    return optax.GradientTransformation(init, update)


def _with(state: MovingAverage, params: Any) -> Any:
    """The mean with these weights, those after `count` updates, as its last."""

    def moved(mean: jax.Array, count: jax.Array, new: jax.Array) -> jax.Array:
        # Those before the first update stand alone until those after it take their place whole.
        debiased = state.rate / -jnp.expm1(jnp.maximum(count, 1) * jnp.log1p(-state.rate))
        share = jnp.where(count > 1, debiased, 1.0)
        return (mean + share * (new - mean)).astype(mean.dtype)

    return _where_trained(moved, state.mean, params, state.count)


def averages_itself(opt_state: Any) -> bool:
    """Whether a state is of a rule whose answer is an average of its own (Schedule-Free's)."""
    return bool(states_of(opt_state, optax.contrib.ScheduleFreeState))


def rule_params(opt_state: Any, params: Any) -> Any:
    """The rule's own answer: Schedule-Free's average x, else `params` themselves."""
    found = states_of(opt_state, optax.contrib.ScheduleFreeState)
    if not found:
        return params
    b1, z = found[0].b1, found[0].z
    return _where_trained(lambda z, y: (y - (1 - b1) * z) / b1, z, params)


def eval_params(opt_state: Any, params: Any) -> Any:
    """The parameters to evaluate: the moving average where the chain keeps one, else the rule's."""
    found = states_of(opt_state, MovingAverage)
    if not found:
        return rule_params(opt_state, params)
    return _with(found[0], params)


def _where_trained(fn: Any, kept: Any, params: Any, *more: Any) -> Any:
    """fn(what the state keeps of a leaf, ..., the leaf); a frozen leaf, which it has not, as is."""

    def of(kept: Any, leaf: Any, *more: Any) -> Any:
        return leaf if _is_frozen(kept) else fn(kept, *more, leaf)

    return jax.tree.map(of, kept, params, *more, is_leaf=_is_frozen)


def _is_frozen(kept: Any) -> bool:
    return isinstance(kept, optax.MaskedNode)
