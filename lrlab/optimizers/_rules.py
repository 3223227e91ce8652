"""Update rules: settings of Optax's transforms, in the dialects of other libraries.

A rule is either a direction without a rate, which the chain scales by -rate, or, where it takes
`learning_rate`, complete: lrlab then sets that to the rate in use and nothing scales the result.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

Rate = float | jax.Array
Number = float | jax.Array  # a keyword that a schedule may give a new value at every update


def within(
    name: str, what: str, value: Any, low: float, high: float, open_low: bool = False
) -> None:
    """Raises ValueError where a concrete value is not in [low, high); a traced one passes."""
    if isinstance(value, Tracer):
        return
    number = isinstance(value, int | float | jax.Array) and not isinstance(value, bool)
    if not number or not (low < value < high if open_low else low <= value < high):
        left = "(" if open_low else "["
        raise ValueError(f"{name} needs {what} in {left}{low:g}, {high:g}), got {value!r}")


def _settings(
    name: str, dialect: str, table: Mapping[str, Mapping[str, Any]], **given: Any
) -> dict[str, Any]:
    """The dialect's defaults, and what the caller gave instead."""
    if dialect not in table:
        known = ", ".join(map(repr, table))
        raise ValueError(f"{name} has no dialect {dialect!r}; it speaks {known}")
    return {**table[dialect], **{k: v for k, v in given.items() if v is not None}}


def sgd() -> optax.GradientTransformation:
    """Gradient descent: the update is the gradient."""
    return optax.identity()


def momentum(
    decay: Number = 0.9,
    nesterov: bool = False,
    dampening: Number = 0.0,
    dialect: str = "optax",
    learning_rate: Rate = 1.0,
) -> optax.GradientTransformation:
    """Heavy ball, or Nesterov's form: buffer = decay * buffer + (1 - dampening) * gradient.

    Args:
      decay, nesterov: of the buffer.
      dampening: as in torch, the first gradient enters the buffer undamped.
      dialect: "optax", "torch" and "tf1" multiply the buffer by the rate; "keras" multiplies what
        enters it, so that a change of the rate shows in full only after 1 / (1 - decay) updates.
      learning_rate: set by lrlab.
    Raises:
      ValueError: decay or dampening outside [0, 1), an unknown dialect, Nesterov with dampening.
    """
    within("momentum", "decay", decay, 0, 1)
    within("momentum", "dampening", dampening, 0, 1)
    _settings("momentum", dialect, {name: {} for name in ("optax", "torch", "tf1", "keras")})
    damped = isinstance(dampening, Tracer) or dampening != 0
    if damped and nesterov:
        raise ValueError(f"momentum: nesterov wants dampening=0, got {dampening!r} (torch too)")
    enters = optax.identity()
    if damped:
        enters = optax.scale_by_schedule(lambda t: jnp.where(t == 0, 1.0, 1.0 - dampening))
    rate, buffer = optax.scale(-learning_rate), optax.trace(decay, nesterov)
    order = (rate, buffer) if dialect == "keras" else (buffer, rate)
    return optax.chain(enters, *order)


def nesterov(
    decay: Number = 0.9, dialect: str = "optax", learning_rate: Rate = 1.0
) -> optax.GradientTransformation:
    """Momentum in Nesterov's form; `learning_rate` is set by lrlab."""
    return momentum(decay, nesterov=True, dialect=dialect, learning_rate=learning_rate)


_ADAGRAD = {
    "optax": {"initial_accumulator_value": 0.1, "eps": 1e-7},
    "keras": {"initial_accumulator_value": 0.1, "eps": 1e-7},
    "tf1": {"initial_accumulator_value": 0.1, "eps": 0.0},
    "torch": {"initial_accumulator_value": 0.0, "eps": 1e-10},
}


def adagrad(
    initial_accumulator_value: Number | None = None,
    eps: Number | None = None,
    dialect: str = "optax",
) -> optax.GradientTransformation:
    """Adagrad: gradient / sqrt(sum of squared gradients + eps).

    Args:
      initial_accumulator_value, eps: 0.1 and 1e-7 in "optax" and "keras"; 0.1 and none in "tf1";
        0 and 1e-10 in "torch", where eps is added to the root.
      dialect: whose. torch's `lr_decay` is a schedule: config.schedule's inverse time.
    Raises:
      ValueError: eps < 0, a negative accumulator, an unknown dialect.
    Source:
      Duchi et al. 2011, JMLR 12.
    """
    use = _settings(
        "adagrad", dialect, _ADAGRAD, initial_accumulator_value=initial_accumulator_value, eps=eps
    )
    within("adagrad", "eps", use["eps"], 0, 1, open_low=eps is not None)
    start = use["initial_accumulator_value"]
    within("adagrad", "initial_accumulator_value", start, 0, math.inf)
    if dialect != "torch":
        return optax.scale_by_rss(start, use["eps"])
    inner = optax.scale_by_rss(start, eps=0.0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Optax adds eps under the root only: its sum is kept, and the division written out.
        _, state = inner.update(updates, state, params)
        roots = jax.tree.map(lambda s: jnp.sqrt(s) + use["eps"], state.sum_of_squares)
        return jax.tree.map(jnp.divide, updates, roots), state

    return optax.GradientTransformation(inner.init, update)


_ADADELTA = {
    "optax": {"rho": 0.9, "eps": 1e-6},
    "torch": {"rho": 0.9, "eps": 1e-6},
    "keras": {"rho": 0.95, "eps": 1e-7},
    "tf1": {"rho": 0.95, "eps": 1e-8},
}


def adadelta(
    rho: Number | None = None, eps: Number | None = None, dialect: str = "optax"
) -> optax.GradientTransformation:
    """Adadelta; its usual rate is 1 (Keras and TF1 default to 0.001, which hardly moves).

    Args:
      rho, eps: 0.9 and 1e-6 in "optax" and "torch", 0.95 and 1e-7 in "keras", 0.95 and 1e-8 in
        "tf1"; the formula is the same in all four.
      dialect: whose.
    Raises:
      ValueError: rho outside [0, 1), eps <= 0, an unknown dialect.
    Source:
      Zeiler 2012, arXiv:1212.5701.
    """
    use = _settings("adadelta", dialect, _ADADELTA, rho=rho, eps=eps)
    within("adadelta", "rho", use["rho"], 0, 1)
    within("adadelta", "eps", use["eps"], 0, 1, open_low=True)
    return optax.scale_by_adadelta(**use)


_RMSPROP = {
    "optax": {"decay": 0.9, "eps": 1e-8, "initial_scale": 0.0, "eps_in_sqrt": True},
    "torch": {"decay": 0.99, "eps": 1e-8, "initial_scale": 0.0, "eps_in_sqrt": False},
    "keras": {"decay": 0.9, "eps": 1e-7, "initial_scale": 0.0, "eps_in_sqrt": True},
    "tf1": {"decay": 0.9, "eps": 1e-10, "initial_scale": 1.0, "eps_in_sqrt": True},
}


def rmsprop(
    decay: Number | None = None,
    eps: Number | None = None,
    initial_scale: Number | None = None,
    eps_in_sqrt: bool | None = None,
    momentum: Number | None = None,
    centered: bool = False,
    dialect: str = "optax",
    learning_rate: Rate = 1.0,
) -> optax.GradientTransformation:
    """RMSProp: gradient / sqrt(mean of squared gradients + eps), with momentum or centred.

    Args:
      decay, eps: 0.9 and 1e-8 in "optax"; 0.99 and 1e-8 in "torch"; 0.9 and 1e-7 in "keras"; 0.9
        and 1e-10 in "tf1".
      initial_scale: of the mean: 1 in "tf1", else 0.
      eps_in_sqrt: False in "torch", which adds eps to the root.
      momentum: of a buffer of steps; None keeps none. The rate is inside that buffer, but outside
        in "torch".
      centered: subtracts the squared mean gradient under the root.
      dialect: whose.
      learning_rate: set by lrlab.
    Raises:
      ValueError: decay or momentum outside [0, 1), eps <= 0, an unknown dialect.
    """
    given = {"decay": decay, "eps": eps, "initial_scale": initial_scale, "eps_in_sqrt": eps_in_sqrt}
    use = _settings("rmsprop", dialect, _RMSPROP, **given)
    within("rmsprop", "decay", use["decay"], 0, 1)
    within("rmsprop", "eps", use["eps"], 0, 1, open_low=True)
    direction = (optax.scale_by_stddev if centered else optax.scale_by_rms)(**use)
    rate = optax.scale(-learning_rate)
    if momentum is None:
        return optax.chain(direction, rate)
    within("rmsprop", "momentum", momentum, 0, 1)
    buffer = optax.trace(momentum)
    order = (buffer, rate) if dialect == "torch" else (rate, buffer)
    return optax.chain(direction, *order)


_ADAM = {"optax": {"eps": 1e-8}, "torch": {"eps": 1e-8}, "keras": {"eps": 1e-7}}
_ADAM |= {"tf1": {"eps": 1e-8}}


def adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number | None = None,
    nesterov: bool = False,
    dialect: str = "optax",
) -> optax.GradientTransformation:
    """Adam (NAdam with `nesterov`); its usual rate is 1e-3.

    Args:
      b1, b2: of the means of gradients and of their squares.
      eps: 1e-8; 1e-7 in "keras".
      nesterov: Dozat's form as Optax has it; other libraries' NAdam schedule b1.
      dialect: "optax" and "torch" add eps to the corrected root; "keras" and "tf1" to the
        uncorrected one (epsilon hat), which is eps / sqrt(1 - b2^t) here.
    Raises:
      ValueError: b1 or b2 outside [0, 1), eps <= 0, `nesterov` outside "optax".
    Source:
      Kingma & Ba 2015, arXiv:1412.6980, algorithm 1, and the end of section 2 for epsilon hat.
    """
    use = _settings("adam", dialect, _ADAM, eps=eps)["eps"]
    for name, value in ("b1", b1), ("b2", b2):
        within("adam", name, value, 0, 1)
    within("adam", "eps", use, 0, 1, open_low=True)
    if nesterov and dialect != "optax":
        raise ValueError(
            f"adam: nesterov is Optax's; dialect={dialect!r} has another NAdam, whose b1 changes"
        )
    if dialect in ("optax", "torch"):
        return optax.scale_by_adam(b1, b2, use, nesterov=nesterov)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        hat = use / jnp.sqrt(1 - b2 ** (state.count + 1))
        return optax.scale_by_adam(b1, b2, hat).update(updates, state, params)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)


_ADAMW = {"optax": 1e-4, "torch": 1e-2, "keras": 4e-3}


def adamw(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number | None = None,
    weight_decay: Number | None = None,
    dialect: str = "optax",
    mask: Any = None,
) -> optax.GradientTransformation:
    """Adam with decoupled decay, which the rate multiplies.

    Args:
      b1, b2, eps: see `adam`.
      weight_decay: 1e-4 in "optax", 1e-2 in "torch", 4e-3 in "keras".
      dialect: whose.
      mask: tree of booleans, which leaves decay; set by lrlab.
    Source:
      Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    table = {k: {"weight_decay": v} for k, v in _ADAMW.items()}
    decay = _settings("adamw", dialect, table, weight_decay=weight_decay)["weight_decay"]
    within("adamw", "weight_decay", decay, 0, math.inf)
    return optax.chain(
        adam(b1, b2, eps, dialect=dialect), optax.add_decayed_weights(decay, mask=mask)
    )
