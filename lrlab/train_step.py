"""The train step: pure, one device, one learning rate; pmap, loops and vmap wrap it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lrlab import devices, metrics, optimizers
from lrlab.optimizers import MakeTx

RECORDED = (
    "lr",
    "grad_norm",
    "finite",
    "loss",
    "correct",
    "weight",
)  # of every update, in this order
PART_NORM = "part_norm"  # root mean square of the norms of the gradients of a batch's parts
AUGMENT = 2**31 - 1  # folded into an update's key, which rows of dropout are folded into too
Batch = Mapping[str, jax.Array]
TrainStep = Callable[..., tuple["State", jax.Array]]  # as `make_train_step` says
Smoothing = jax.typing.ArrayLike | None
EvalStep = Callable[["State", Batch], jax.Array]


class Augmented(Protocol):
    """What `augment.compose` returns."""

    @property
    def mixes(self) -> bool:
        """Whether an example can have two labels."""
        ...

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array, rows: jax.Array) -> Any:
        """(images, (y, y2, weight of y))."""
        ...


class Model(Protocol):
    """A Flax linen module: x float32 [batch, *feature] -> logits float32 [batch, classes].

    `__call__(x, train)`, and `rows` if its dropout wants each example's row in the whole batch.
    """

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Fresh variables."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits, and changed collections if `mutable` names any."""
        ...


@struct.dataclass
class State:
    """Everything an update changes.

    step: int32, updates done, skipped ones too. stats: collections other than params (BatchNorm's).
    """

    step: jax.Array
    params: Any
    stats: Any
    opt: Any


def initializer(
    model: Model, make_tx: MakeTx, feature_shape: tuple[int, ...]
) -> Callable[..., State]:
    """Returns (seed, begin, begin_opt) -> the state before the first update.

    The seed, a uint32, may be traced. begin: the model's fresh collections -> as they begin;
    begin_opt: the rule's fresh state -> as it begins; either may be left out.
    """

    def make(
        seed: jax.typing.ArrayLike,
        begin: Callable[[Any], Any] = dict,
        begin_opt: Callable[[Any], Any] = lambda opt: opt,
    ) -> State:
        key = jax.random.fold_in(jax.random.key(seed), 0)
        fresh = model.init({"params": key}, jnp.zeros((1, *feature_shape)), train=False)
        variables = dict(begin(dict(fresh)))
        params = variables.pop("params")
        return State(jnp.int32(0), params, variables, begin_opt(make_tx(1.0).init(params)))

    return make


def wants_rows(model: Model) -> bool:
    """Whether the model's dropout is a function of the example's row in the whole batch."""
    return "rows" in inspect.signature(type(model).__call__).parameters


def make_train_step(
    model: Model,
    make_tx: MakeTx,
    shape: optax.Schedule,
    axis: str | None = None,
    micro: int = 1,
    skip: bool = False,
    scheduled: Mapping[str, optax.Schedule] | None = None,
    effective: bool = False,
    by_parts: bool = False,
    frozen: Any = None,
    augment: Augmented | None = None,
) -> TrainStep:
    """Returns (state, batch, key, lr) -> (state, float32 [RECORDED and more]).

    The rate is lr * shape(tick). An update whose loss, gradient or step is not finite changes
    nothing but, with `skip`, the step counter; so a state is always finite. Two more arguments may
    follow: `live`, a bool that may be traced, where it is False, the update changes nothing at all;
    `tick`, where schedules stand, if not at the state's step (`batching.ticks`).

    Args:
      model, make_tx: what to train, by which chain.
      shape: multiplier of lr at an update.
      axis: the pmap axis to average over.
      micro: equal parts of a batch whose gradients are accumulated one after another.
      skip: count an update that is not finite as done.
      scheduled: values beside the rate that change with the update, by name: "label_smoothing", and
        what `make_tx` takes. The values used are recorded after RECORDED, in this order.
      effective: record last the rate that the rule itself found (D-Adaptation and its like).
      by_parts: record before it the gradient's norm on a micro-batch or a device's share, the root
        of the mean square: with grad_norm it tells the noise scale (`analysis.noise_scale`).
      frozen: a tree of booleans like the parameters: leaves that no update changes, to the bit. No
        gradient is computed for them, nor for what only they need: the layers below the lowest one
        that trains have no backward pass.
      augment: changes a batch before the model sees it (`augment.Chain`); metrics are of what the
        model saw.
    Where in batch: "x" float32 [batch, *feature], "y" int32 [batch], "rows" int32 [batch], each
      example's row in the whole batch over all devices.
    """
    by_row, scheduled = wants_rows(model), scheduled or {}

    def loss_fn(
        params: Any,
        stats: Any,
        batch: Batch,
        key: jax.Array,
        smoothing: Smoothing,
    ) -> tuple[jax.Array, Any]:
        x, targets = batch["x"], [(batch["y"], jnp.ones(len(batch["y"])))]
        if augment:
            x, found = augment(jax.random.fold_in(key, AUGMENT), x, batch["y"], batch["rows"])
            mixed = [(found.y, found.weight), (found.y2, 1 - found.weight)]
            targets = mixed if augment.mixes else targets
        if by_row:
            rows = {"rows": batch["rows"]}
        else:  # another mask for each device and part
            rows, key = {}, jax.random.fold_in(key, batch["rows"][0])
        if frozen is not None:
            params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)
        variables = {"params": params, **stats}
        logits, stats = model.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=list(stats), **rows
        )
        sums = jnp.zeros(3)
        for y, weight in targets:
            sums = sums + metrics.classification(logits, y, weight, smoothing)
        return sums[0] / sums[2], (sums, stats)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradient(
        state: State, batch: Batch, key: jax.Array, smoothing: Smoothing
    ) -> tuple[Any, jax.Array, Any, jax.Array]:
        """(gradient, metric sums, collections, mean squared norm of the parts' gradients)."""
        if micro == 1:
            (_, (sums, stats)), grads = grad_fn(state.params, state.stats, batch, key, smoothing)
            return grads, sums, stats, _square(grads) if by_parts else jnp.float32(0)

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            grads, sums, stats, square = carry
            (_, (more, stats)), g = grad_fn(state.params, stats, part, key, smoothing)
            square = square + _square(g) if by_parts else square
            return (jax.tree.map(jnp.add, grads, g), sums + more, stats, square), None

        parts = jax.tree.map(lambda a: a.reshape(micro, -1, *a.shape[1:]), dict(batch))
        zero = jax.tree.map(jnp.zeros_like, state.params)
        begin = zero, jnp.zeros(3), state.stats, jnp.float32(0)
        (grads, sums, stats, square), _ = jax.lax.scan(add, begin, parts)
        return jax.tree.map(lambda g: g / micro, grads), sums, stats, square / micro

    def train_step(
        state: State,
        batch: Batch,
        key: jax.Array,
        lr: jax.typing.ArrayLike,
        live: jax.typing.ArrayLike | None = None,
        tick: jax.typing.ArrayLike | None = None,
    ) -> Any:
        tick = state.step if tick is None else tick
        key = jax.random.fold_in(key, state.step)  # of (seed, step): a resumed run is the same run
        values = {name: schedule(tick) for name, schedule in scheduled.items()}
        grads, sums, stats, square = gradient(state, batch, key, values.get("label_smoothing"))
        if axis:
            (grads, stats, square), sums = devices.combine((grads, stats, square), sums, axis)
        rate = jnp.float32(lr) * shape(tick)
        tuned = {k: v for k, v in values.items() if k != "label_smoothing"}
        tx, loss = make_tx(rate, tuned), sums[0] / sums[2]
        updates, opt = tx.update(grads, state.opt, state.params, value=loss)
        norm = optax.tree.norm(grads)
        # The update's norm too: a rate can be too much for float32 where the gradient is not.
        finite = jnp.isfinite(sums[0] + norm + optax.tree.norm(updates))
        finite = finite if live is None else finite & live
        params = optax.apply_updates(state.params, updates)
        if frozen is not None:
            params = jax.tree.map(lambda a, b, f: b if f else a, params, state.params, frozen)
        new = State(state.step + 1, params, stats, opt)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        if skip:
            new = new.replace(step=state.step + (1 if live is None else live))
        more = [*values.values()]
        if by_parts:
            more.append(jnp.sqrt(square))
        if effective:
            more.append(optimizers.effective_rate(opt, rate))
        return new, jnp.stack([rate, norm, finite.astype(jnp.float32), *sums, *more])

    return train_step


def _square(tree: Any) -> jax.Array:
    """Squared norm of a tree."""
    return jnp.square(optax.tree.norm(tree))


def make_eval_step(model: Model) -> EvalStep:
    """Returns (state, batch) -> metric sums, float32 [3]; batch["weight"] is 0 for padding."""

    def eval_step(state: State, batch: Batch) -> jax.Array:
        params = optimizers.eval_params(state.opt, state.params)
        logits = model.apply({"params": params, **state.stats}, batch["x"], train=False)
        return metrics.classification(logits, batch["y"], batch["weight"])

    return eval_step
