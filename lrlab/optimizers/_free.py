"""Rules that find their own rate: what lrlab sets as `learning_rate` only scales or caps it.

Each keeps in its state the rate that it really used, which `effective_rate` reads.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.core import Tracer

from lrlab.optimizers import _rules
from lrlab.optimizers._rules import Number, Rate, within

# (state before, state after, gradient, update, parameters before) -> the rate of this update
Measure = Callable[[Any, Any, Any, Any, Any], jax.Array]


class Measured(NamedTuple):
    """The state of a rule, and the rate of its last update, float32."""

    inner: Any
    rate: jax.Array


def _measured(tx: Any, measure: Measure) -> optax.GradientTransformation:
    """The same rule, which remembers its rate."""
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> Measured:
        return Measured(tx.init(params), jnp.float32(0.0))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new, inner = tx.update(updates, state.inner, params, **extra)
        rate = measure(state.inner, inner, updates, new, params)
        return new, Measured(inner, jnp.asarray(rate, jnp.float32))

    return optax.GradientTransformationExtraArgs(init, update)


def _divide(a: Any, b: Any) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def _betas(name: str, b1: Number, b2: Number, eps: Number, weight_decay: Number) -> None:
    within(name, "b1", b1, 0, 1)
    within(name, "b2", b2, 0, 1)
    within(name, "eps", eps, 0, 1, open_low=True)
    within(name, "weight_decay", weight_decay, 0, math.inf)


def dadapt_adamw(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    first: float = 1e-6,
    weight_decay: Number = 0.0,
    learning_rate: Rate = 1.0,
) -> optax.GradientTransformation:
    """D-Adaptation's AdamW; its usual rate is 1.

    Effective rate: rate * d, where d, at first `first`, is the estimated distance to the solution
    before this update; Adam's bias corrections are left out, as they are in Adam's rate.

    Source:
      Defazio & Mishchenko 2023, arXiv:2301.07733.
    """
    _betas("dadapt_adamw", b1, b2, eps, weight_decay)
    within("dadapt_adamw", "first", first, 0, math.inf, open_low=True)
    tx = optax.contrib.dadapt_adamw(learning_rate, (b1, b2), eps, first, weight_decay)
    return _measured(tx, lambda old, *_: old.estim_lr * learning_rate)


def prodigy(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    first: float = 1e-6,
    coefficient: Number = 1.0,
    weight_decay: Number = 0.0,
    safeguard_warmup: bool = False,
    learning_rate: Rate = 1.0,
) -> optax.GradientTransformation:
    """Prodigy; its usual rate is 1.

    Effective rate: rate * d, as in `dadapt_adamw`.

    Args:
      b1, b2, eps, weight_decay: as in AdamW.
      first: d at the first update.
      coefficient: multiplies the estimate of d.
      safeguard_warmup: keeps a warm-up's small rates out of the estimate.
      learning_rate: set by lrlab.
    Source:
      Mishchenko & Defazio 2023, arXiv:2306.06101.
    """
    _betas("prodigy", b1, b2, eps, weight_decay)
    within("prodigy", "first", first, 0, math.inf, open_low=True)
    tx = optax.contrib.prodigy(
        learning_rate,
        (b1, b2),
        eps=eps,
        estim_lr0=first,
        estim_lr_coef=coefficient,
        weight_decay=weight_decay,
        safeguard_warmup=safeguard_warmup,
    )
    return _measured(tx, lambda old, *_: old.estim_lr * learning_rate)


def dog(
    first: float = 1e-6, eps: Number = 1e-8, learning_rate: Rate = 1.0
) -> optax.GradientTransformation:
    """DoG, distance over gradients; its usual rate is 1. Average its weights before judging it.

    Effective rate: rate * (largest distance from the start) / sqrt(sum of squared gradient norms +
    eps); at first the distance is first * (1 + |params|).

    Source:
      Ivgi et al. 2023, arXiv:2302.12022.
    """
    within("dog", "first", first, 0, math.inf, open_low=True)
    within("dog", "eps", eps, 0, 1, open_low=True)
    tx = optax.contrib.dog(learning_rate, ("heuristic", first), eps)

    def measure(_: Any, new: Any, *rest: Any) -> jax.Array:
        _, state, _ = new  # no decay, the rule, the rate
        return learning_rate * state.max_dist / jnp.sqrt(state.sum_sq_norm_grads + eps)

    return _measured(tx, measure)


def dowg(
    first: float | None = None, eps: Number = 1e-4, learning_rate: Rate = 1.0
) -> optax.GradientTransformation:
    """DoWG, distance over weighted gradients; its usual rate is 1.

    Effective rate: rate * D / (sqrt(sum of D * squared gradient norms) + eps), where D is the
    largest squared distance from the start, at first `first`, or eps.

    Source:
      Khaled et al. 2023, arXiv:2305.16284.
    """
    if first is not None:
        within("dowg", "first", first, 0, math.inf, open_low=True)
    within("dowg", "eps", eps, 0, 1, open_low=True)
    tx = optax.contrib.dowg(learning_rate, first, eps)

    def measure(_: Any, new: Any, *rest: Any) -> jax.Array:
        _, state, _ = new
        root = jnp.sqrt(state.weighted_sq_norm_grads)
        return learning_rate * state.estim_sq_dist / (root + eps)

    return _measured(tx, measure)


def cocob(
    alpha: Number = 100.0, eps: Number = 1e-8, learning_rate: Rate = 1.0
) -> optax.GradientTransformation:
    """COCOB, coin betting for each weight; its usual rate is 1, which scales the gradient.

    It places every weight anew relative to its start, so that decay and multipliers other than 0
    that are applied to its updates are taken back at the next one.
    Effective rate: |update| / |gradient|, norms over all weights: it has no single rate.

    Source:
      Orabona & Tommasi 2017, arXiv:1705.07795, algorithm 2.
    """
    within("cocob", "alpha", alpha, 0, math.inf, open_low=True)
    within("cocob", "eps", eps, 0, 1, open_low=True)
    tx = optax.contrib.cocob(learning_rate, alpha, eps)

    def measure(_: Any, new: Any, gradient: Any, update: Any, params: Any) -> jax.Array:
        return _divide(optax.tree.norm(update), optax.tree.norm(gradient))

    return _measured(tx, measure)


def momo(
    beta: Number = 0.9,
    lower_bound: float = 0.0,
    weight_decay: Number = 0.0,
    adapt_lower_bound: bool = False,
    learning_rate: Rate = 1.0,
) -> optax.GradientTransformation:
    """MoMo, momentum with a model of the loss; its usual rate, a cap, is 1.

    Effective rate: min(rate, the step at which the model reaches the lower bound of the loss).

    Source:
      Schaipp et al. 2023, arXiv:2305.07583.
    """
    within("momo", "beta", beta, 0, 1)
    within("momo", "weight_decay", weight_decay, 0, math.inf)
    tx = optax.contrib.momo(learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound)

    def measure(_: Any, new: Any, gradient: Any, update: Any, params: Any) -> jax.Array:
        return _along(new.exp_avg, update, params, learning_rate * weight_decay)

    return _measured(tx, measure)


def momo_adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    lower_bound: float = 0.0,
    weight_decay: Number = 0.0,
    adapt_lower_bound: bool = False,
    learning_rate: Rate = 1.0,
) -> optax.GradientTransformation:
    """MoMo-Adam; its usual rate, a cap, is 1e-2.

    Effective rate: what stands where Adam has its rate, at most the cap.

    Source:
      Schaipp et al. 2023, arXiv:2305.07583.
    """
    _betas("momo_adam", b1, b2, eps, weight_decay)
    tx = optax.contrib.momo_adam(
        learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound
    )

    def measure(_: Any, new: Any, gradient: Any, update: Any, params: Any) -> jax.Array:
        correct1, correct2 = 1 - b1**new.count, 1 - b2**new.count
        direction = jax.tree.map(
            lambda m, v: m / correct1 / (eps + jnp.sqrt(v / correct2)), new.exp_avg, new.exp_avg_sq
        )
        return _along(direction, update, params, learning_rate * weight_decay)

    return _measured(tx, measure)


def _along(direction: Any, update: Any, params: Any, decay: Any) -> jax.Array:
    """The step length t in update = -t * direction - decay / (1 + decay) * params."""
    step = jax.tree.map(lambda u, p: -u - decay / (1 + decay) * p, update, params)
    return _divide(optax.tree.vdot(step, direction), optax.tree.vdot(direction, direction))


_BASES = {"sgd": _rules.sgd, "adam": _rules.adam, "adagrad": _rules.adagrad}
_BASES |= {"adadelta": _rules.adadelta, "lion": optax.scale_by_lion}


def mechanic(
    base: str = "adam",
    weight_decay: Number = 1e-2,
    eps: Number = 1e-8,
    first: float = 1e-6,
    num_betas: int = 6,
    learning_rate: Rate = 1.0,
    after: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Mechanic, which learns the scale of another rule's steps; its usual rate is 1.

    Effective rate: rate * (sum of the scales), in front of the base rule's direction.

    Args:
      base: the rule whose steps are scaled, with its defaults.
      weight_decay: Mechanic's own, of its model of the loss.
      eps, first, num_betas: guard, first scale and number of averages.
      learning_rate: set by lrlab.
      after: what changes the base rule's steps, decay and multipliers; set by lrlab.
    Raises:
      ValueError: an unknown base.
    Source:
      Cutkosky et al. 2023, arXiv:2306.00144.
    """
    if base not in _BASES:
        raise ValueError(f"mechanic needs base among {', '.join(_BASES)}, got {base!r}")
    within("mechanic", "weight_decay", weight_decay, 0, math.inf)
    within("mechanic", "first", first, 0, math.inf, open_low=True)
    inner = optax.chain(_BASES[base](), after or optax.identity(), optax.scale(-learning_rate))
    tx = optax.contrib.mechanize(inner, weight_decay, eps, first, num_betas)
    return _measured(tx, lambda _, new, *rest: jnp.sum(new.s) * learning_rate)


def schedule_free_sgd(
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
    learning_rate: Rate = 1.0,
    after: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Schedule-Free SGD; its usual rate is 1 to 10, warmed up and then constant.

    The rate in use is also the average's weight, as in the authors' code: Optax's own warm-up,
    `optax.contrib:schedule_free_sgd` with warmup_steps, takes the step one update later. Warm up
    with a phase that is (k + 1) / warmup at update k to reproduce the authors' runs.
    Effective rate: the rate, of z. Evaluate at `eval_params`.

    Args:
      b1: weight of the average in the point where gradients are taken; in (0, 1), constant, since
        evaluation depends on it.
      weight_lr_power: of the largest rate so far, in the average.
      learning_rate: set by lrlab.
      after: what changes the inner rule's steps, decay and multipliers; set by lrlab.
    Source:
      Defazio et al. 2024, arXiv:2405.15682.
    """
    return _schedule_free(
        "schedule_free_sgd", optax.identity(), b1, weight_lr_power, learning_rate, after
    )


def schedule_free_adamw(
    b1: float = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    weight_lr_power: float = 2.0,
    learning_rate: Rate = 1.0,
    after: optax.GradientTransformation | None = None,
    mask: Any = None,
) -> optax.GradientTransformation:
    """Schedule-Free AdamW; its usual rate is 2.5e-3, warmed up and then constant.

    See `schedule_free_sgd`; the authors put Adam's bias correction into the averaging weight too,
    Optax does not. `mask` is the tree of leaves that decay, set by lrlab.
    """
    _betas("schedule_free_adamw", b1, b2, eps, weight_decay)
    direction = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, mask=mask),
    )
    return _schedule_free(
        "schedule_free_adamw", direction, b1, weight_lr_power, learning_rate, after
    )


def _schedule_free(
    name: str, direction: Any, b1: float, power: float, rate: Rate, after: Any
) -> optax.GradientTransformation:
    if isinstance(b1, Tracer):
        raise ValueError(f"{name}: b1 cannot change in a run, the evaluation parameters rest on it")
    within(name, "b1", b1, 0, 1, open_low=True)
    inner = optax.chain(direction, after or optax.identity(), optax.scale(-rate))
    return optax.contrib.schedule_free(inner, rate, b1, power)


def states_of(opt_state: Any, kind: type) -> list[Any]:
    """The states of a kind inside a chain's state, in order."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, kind))
    return [s for s in leaves if isinstance(s, kind)]


def effective_rate(opt_state: Any, rate: jax.typing.ArrayLike) -> jax.Array:
    """The rate of the update that led to `opt_state`: the rule's own where it finds one, float32.

    Args:
      opt_state: after the update; of a chain that `make` made.
      rate: the rate that was given; what every other rule used.
    """
    found = states_of(opt_state, Measured)
    return found[0].rate if found else jnp.asarray(rate, jnp.float32)


def finds_rate(opt_state: Any) -> bool:
    """Whether a state is of a rule that finds a rate of its own."""
    return bool(states_of(opt_state, Measured))
