"""Update rules by name, and the chain around them.

chain: clip -> L2 -> update rule -> decoupled decay -> layer multipliers -> -rate -> average

A rule is a direction without a rate, which the chain scales at its end, or a complete optimizer
whose `learning_rate` lrlab sets to the rate in use: torch, Optax and TF1 keep the rate outside the
momentum buffer, Keras inside. What a name does not find here Optax has: "optax:scale_by_lion",
"optax:lion", "optax.contrib:muon". The average is of the weights and changes no update.

The chain is built anew inside every traced update, so that any float of it may be traced.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from lrlab import resolve
from lrlab.optimizers._averages import averages_itself, moving_average
from lrlab.optimizers._averages import eval_params as eval_params
from lrlab.optimizers._averages import rule_params as rule_params
from lrlab.optimizers._free import (
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    mechanic,
    momo,
    momo_adam,
    prodigy,
    schedule_free_adamw,
    schedule_free_sgd,
)
from lrlab.optimizers._free import effective_rate as effective_rate
from lrlab.optimizers._free import finds_rate as finds_rate
from lrlab.optimizers._layers import UNDECAYED as UNDECAYED
from lrlab.optimizers._layers import by_depth as by_depth
from lrlab.optimizers._layers import decay_mask as decay_mask
from lrlab.optimizers._layers import groups as groups
from lrlab.optimizers._layers import multipliers as multipliers
from lrlab.optimizers._layers import paths as paths
from lrlab.optimizers._rules import (
    Rate,
    adadelta,
    adagrad,
    adam,
    adamw,
    momentum,
    nesterov,
    rmsprop,
    sgd,
)

__all__ = [  # what a config may name; the rest is for lrlab's own modules
    "adadelta",
    "adagrad",
    "adam",
    "adamw",
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "mechanic",
    "momentum",
    "momo",
    "momo_adam",
    "nesterov",
    "prodigy",
    "rmsprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
]

CHAIN = ("clip_norm", "l2", "weight_decay")  # floats of the chain that may be scheduled
_ROOM = "lrlab.optimizers"
_SET_BY_LRLAB = ("learning_rate", "after", "mask", "weight_decay_mask")
Values = Mapping[str, jax.typing.ArrayLike]


class MakeTx(Protocol):
    """The chain at a rate, and at other values of its floats; all may be traced."""

    def __call__(
        self, rate: Rate, values: Values | None = None, /
    ) -> optax.GradientTransformationExtraArgs:
        """A transformation; update it with `value=loss`, which some rules read."""
        ...


_WRAPS = "it wraps another rule, which a config cannot name"
_NEEDS = {
    **dict.fromkeys(
        ("apply_if_finite", "chain", "conditionally_mask", "conditionally_transform"),
        _WRAPS + "; nonfinite.policy is lrlab's",
    ),
    **dict.fromkeys(
        ("flatten", "inject_hyperparams", "inject_stateful_hyperparams", "named_chain"),
        _WRAPS + "; the floats of lrlab's own chain may be scheduled",
    ),
    **dict.fromkeys(
        ("masked", "multi_transform", "partition", "selective_transform", "freeze"),
        _WRAPS + "; lr_multipliers scales leaves and freezes them (0)",
    ),
    **dict.fromkeys(("split_real_and_imaginary", "with_extra_args_support", "lookahead"), _WRAPS),
    "mechanize": _WRAPS + "; 'mechanic' does",
    "schedule_free": _WRAPS + "; 'schedule_free_sgd' and 'schedule_free_adamw' do",
    "sam": "it takes a second gradient inside an update, and lrlab computes one",
    "sophia": "it needs the loss as a function for its Hessian, and an update has its value",
    "lbfgs": "its line search calls the loss as a function; linesearch=None works without it",
    "scale_by_backtracking_linesearch": "a line search calls the loss as a function",
    "scale_by_zoom_linesearch": "a line search calls the loss as a function",
    "dpsgd": "it needs a gradient for every example, and an update has their mean",
    "differentially_private_aggregate": (
        "it needs a gradient for every example, and an update has their mean"
    ),
    "reduce_on_plateau": "it is a factor of the rate, not a rule: a regime or a schedule does it",
    "rprop": (
        "the rate would only be its first step size and the schedule nothing; "
        "'optax:scale_by_rprop' with learning_rate, its first step size, is scaled by the rate"
    ),
    "keep_params_nonnegative": "it corrects finished updates and is no rule by itself",
    "scale_by_cocob": "its steps have their sign already and would go uphill; 'cocob' is the rule",
    "set_to_zero": "nothing would train",
    "snapshot": "it measures and does not change updates",
    "measure_with_ema": "it measures and does not change updates",
    "monitor": "it measures and does not change updates",
    "scale_by_schedule": "a schedule is config.schedule",
    "stateless": "it takes a function, which a config cannot write",
    "stateless_with_tree_map": "it takes a function, which a config cannot write",
}
PLAIN_RULES = "sgd", "momentum", "nesterov", "optax:sgd", "optax:trace"  # steps are gradients
# The keyword that the rate goes to where it is not `learning_rate`, or nowhere.
_RATE_OF = {"polyak_sgd": "max_learning_rate", "scale_by_rprop": None}


def _rate_keyword(rule: Callable[..., Any]) -> str | None:
    name = getattr(rule, "__name__", "")
    if _is_optax(rule) and name in _RATE_OF:
        return _RATE_OF[name]
    return "learning_rate" if "learning_rate" in resolve.parameters(rule) else None


def _is_optax(rule: Callable[..., Any]) -> bool:
    return (getattr(rule, "__module__", None) or "").partition(".")[0] == "optax"


def _find(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """The rule that a spec names; ConfigError where it cannot work in a plain update."""
    rule = resolve.find(_ROOM, spec["name"], "optimizer.name")
    name = getattr(rule, "__name__", "")
    searches = name != "lbfgs" or spec.get("linesearch", "default") is not None
    if _is_optax(rule) and name in _NEEDS and searches:
        raise resolve.ConfigError([f"optimizer.name={spec['name']!r}: {_NEEDS[name]}"])
    return rule


def decays(rule: Callable[..., Any], spec: Mapping[str, Any]) -> bool:
    """Whether the rule itself decays weights as it is set."""
    p = resolve.parameters(rule).get("weight_decay")
    default = None if p is None or p.default is p.empty else p.default
    own = spec.get("weight_decay", default)
    return bool(own) or (own is None and rule is adamw)  # whose None is its dialect's decay


def make(
    spec: Mapping[str, Any],
    multiply: Any = None,
    clip_norm: float | None = None,
    l2: float = 0.0,
    weight_decay: float = 0.0,
    mask: Any = None,
    ema: float | None = None,
) -> MakeTx:
    """Returns (rate, values) -> the whole chain; the rate and the values may be traced.

    `values` maps names of `schedulable` to what they are in this update.

    Args:
      spec: {"name": ..., keywords}; see `resolve.resolve`.
      multiply: tree of rate multipliers, applied to updates, after the adaptive rule; None is all
        1. A leaf whose multiplier is 0 is frozen: nothing sees its gradient, no state is kept.
      clip_norm: largest global norm of the gradient; None does not clip.
      l2: added to the gradient before the rule, l2 * w (torch's weight_decay of SGD).
      weight_decay: added to the update after the rule, so that a step shrinks w by
        rate * weight_decay * w.
      mask: tree of booleans (`decay_mask`): which leaves l2 and any decay apply to; None is all.
      ema: decay of a moving average of the weights (`moving_average`), kept in the state; None
        keeps none. Steps are the same with and without.
    Raises:
      ConfigError: an unknown rule, keywords that it does not take, a rule that cannot work in a
      plain update (gradient, parameters, value of the loss), an average on top of a rule's own;
      from the chain, a value that cannot be scheduled.
    """
    rule = _find(spec)
    takes, to_rate = resolve.parameters(rule), _rate_keyword(rule)
    masks = [k for k in ("mask", "weight_decay_mask") if k in takes]
    if mask is not None and not masks and "weight_decay" in takes and decays(rule, spec):
        raise resolve.ConfigError(
            [
                f"optimizer.weight_decay: {spec['name']} decays every leaf and takes no mask; "
                "set weight_decay beside optimizer instead, or no mask"
            ]
        )
    frozen = any(map(_is_zero, jax.tree.leaves(multiply)))
    labels, scales = None, multiply
    if frozen:  # where the chain sees a leaf masked, its multiplier is masked too
        labels = jax.tree.map(lambda m: "freeze" if _is_zero(m) else "train", multiply)
        scales = jax.tree.map(lambda m: optax.MaskedNode() if _is_zero(m) else m, multiply)

    def chain(rate: Rate, values: Values) -> optax.GradientTransformationExtraArgs:
        ours = {k: v for k, v in values.items() if k in takes and k not in _SET_BY_LRLAB}
        now = {"clip_norm": clip_norm, "l2": l2, "weight_decay": weight_decay}
        now |= {k: v for k, v in values.items() if k not in ours}
        limit, before, after = now["clip_norm"], now["l2"], now["weight_decay"]
        multiplied = _scale_by(scales) if scales is not None else optax.identity()
        given: dict[str, Any] = {to_rate: rate} if to_rate else {}
        if mask is not None:
            given |= {k: mask for k in masks if k not in spec}
        inside = "after" in takes
        if inside:  # the rule rebuilds parameters from its own steps: change those, not its result
            given["after"] = optax.chain(_decay(after, mask), multiplied)
        # A complete optimizer already ends in -rate; what follows it is scaled to fit.
        late = -rate * after if to_rate and (_traced(after) or after) else after
        return optax.chain(
            optax.identity() if limit is None else optax.clip_by_global_norm(limit),
            _decay(before, mask),
            _call({**spec, **ours}, given),
            optax.identity() if inside else _decay(late, mask),
            optax.identity() if inside else multiplied,
            optax.identity() if to_rate else optax.scale(-rate),
            optax.identity() if ema is None else moving_average(ema),
        )

    known: list[tuple[str, ...]] = []

    def make_tx(
        rate: Rate, values: Values | None = None, /
    ) -> optax.GradientTransformationExtraArgs:
        if values:
            if not known:
                known.append(schedulable(spec))
            _refuse(spec, values, known[0])
        tx = chain(rate, values or {})
        if not frozen:
            return tx
        return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)

    if ":" in str(spec["name"]):
        _try(spec)
    if ema is not None and averages_itself(jax.eval_shape(_bare(spec).init, _TRIAL)):
        raise resolve.ConfigError(
            [
                f"ema={ema}: {spec['name']} averages its weights itself and is evaluated at that "
                "average; leave ema out"
            ]
        )
    return make_tx


def _bare(spec: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """The rule's chain with nothing around it."""
    rule = _find(spec)
    rate = _rate_keyword(rule)
    return optax.with_extra_args_support(_call(spec, {rate: 1.0} if rate else {}))


def _call(spec: Mapping[str, Any], given: Mapping[str, Any]) -> optax.GradientTransformation:
    """The rule itself; ConfigError where what is named is none."""
    rule = resolve.resolve(_ROOM, spec, "optimizer", given)
    if not isinstance(rule, optax.GradientTransformation):
        raise resolve.ConfigError(
            [f"optimizer.name={spec['name']!r} gives {type(rule).__name__}, not an update rule"]
        )
    return rule


def _decay(amount: Any, mask: Any) -> optax.GradientTransformation:
    if mask is None and not _traced(amount) and not amount:
        return optax.identity()
    return optax.add_decayed_weights(amount, mask=mask)


def _traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def _is_zero(value: Any) -> bool:
    return not _traced(value) and value == 0


def _scale_by(multiply: Any) -> optax.GradientTransformation:
    """Multiplies every update by its own constant."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multiply))


_TRIAL = {
    "kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    "bias": jax.ShapeDtypeStruct((3,), jnp.float32),
}


def _trial(tx: optax.GradientTransformation) -> tuple[Any, Any]:
    """The state before and after one traced update of a small model, as shapes."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any) -> tuple[Any, Any]:
        before = tx.init(params)
        updates, after = tx.update(params, before, params, value=jnp.float32(1.0))
        optax.apply_updates(params, updates)
        return before, after

    return jax.eval_shape(step, _TRIAL)


def _try(spec: Mapping[str, Any]) -> None:
    """Traces an update; ConfigError where a rule that somebody else wrote cannot make one."""
    name, tx = spec["name"], _bare(spec)
    try:
        before, after = _trial(tx)
    except Exception as e:  # whatever their code raises, the user named it here
        lines = str(e).strip().splitlines() or [type(e).__name__]
        raise resolve.ConfigError(
            [
                f"optimizer.name={name!r} cannot make a plain update from gradient, parameters "
                f"and the loss's value: {type(e).__name__}: {lines[0]}"
            ]
        ) from e
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise resolve.ConfigError([f"optimizer.name={name!r}: an update changes its state's form"])


def schedulable(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The floats of a rule and its chain that `make_tx(rate, values)` takes, found by tracing.

    A rule's own keyword hides the chain's of the same name (adamw's weight_decay).
    """
    rule = _find(spec)
    found = []
    for name, p in resolve.parameters(rule).items():
        value = spec.get(name, None if p.default is p.empty else p.default)
        by_dialect = value is None and (rule.__module__ or "").startswith(_ROOM)
        numeric = isinstance(value, float) or (type(value) is int and isinstance(p.default, float))
        skip = name in _SET_BY_LRLAB or name == _rate_keyword(rule) or p.kind is p.VAR_KEYWORD
        if not skip and (numeric or by_dialect) and _can_be_traced(spec, name):
            found.append(name)
    return (*found, *(name for name in CHAIN if name not in found))


def _can_be_traced(spec: Mapping[str, Any], name: str) -> bool:
    """Whether updates work with a traced value of a keyword, and the first state without it."""
    _, plain = _trial(_bare(spec))
    value = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        state = jax.eval_shape(lambda v: _trial_arrays(_bare({**spec, name: v})), value)
        first = jax.make_jaxpr(lambda v: _bare({**spec, name: v}).init(_ones()))(value).jaxpr
    except Exception:  # a Python branch on the value, a static argument: not to be traced
        return False
    reached = {id(first.invars[0])}
    for equation in first.eqns:
        if reached & set(map(id, equation.invars)):
            reached |= set(map(id, equation.outvars))
    if reached & set(map(id, first.outvars)):  # states are made before a value is known
        return False
    same = jax.tree.structure(state) == jax.tree.structure(plain)
    return same and all(
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True)
    )


def _ones() -> Any:
    return jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), _TRIAL)


def _trial_arrays(tx: optax.GradientTransformationExtraArgs) -> Any:
    params = _ones()
    updates, state = tx.update(params, tx.init(params), params, value=jnp.float32(1.0))
    optax.apply_updates(params, updates)
    return state


def _refuse(spec: Mapping[str, Any], names: Iterable[str], known: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise resolve.ConfigError(
            f"{name} cannot be scheduled with {spec['name']}; what can: {', '.join(known)}"
            for name in unknown
        )
