"""Several states of one model together: their predictions in one program, their average."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrlab import checkpoint, devices, epoch, optimizers
from lrlab.build import Recipe
from lrlab.data import Dataset
from lrlab.train_step import State

Variables = Any  # {"params": ..., and other collections}


def snapshots(recipe: Recipe, folder: Path) -> tuple[list[int], list[Variables]]:
    """The states that a run kept for good (`checkpoint.at`): updates of each, and its variables.

    Those are the weights that trained, of Schedule-Free its x; `moving_average` has the others.

    Raises:
      ValueError: there is none, or one is damaged.
    """
    steps = checkpoint.steps(folder / "snapshots")
    states = [_state(recipe, folder / "snapshots", step) for step in steps]
    return steps, [_variables(s, optimizers.rule_params(s.opt, s.params)) for s in states]


def moving_average(recipe: Recipe, folder: Path) -> Variables:
    """The moving average of the weights (`config.ema`) at the newest state of a run.

    Collections beside the parameters are that state's own: `average` estimates them anew.

    Raises:
      ValueError: there is no checkpoint, or it is damaged.
    """
    state = _state(recipe, folder / "checkpoints", None)
    return _variables(state, optimizers.eval_params(state.opt, state.params))


def _state(recipe: Recipe, folder: Path, step: int | None) -> State:
    """A kept state; by default the newest."""
    _, arrays = checkpoint.read(folder, step)
    names = checkpoint.named(recipe.shapes)
    leaves = [_as_was(arrays[name], leaf) for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(recipe.shapes), leaves)


def _variables(state: State, params: Any) -> Variables:
    return jax.tree.map(np.asarray, {"params": params, **state.stats})


def _as_was(array: np.ndarray, leaf: Any) -> Any:
    """A leaf as the state holds it: random keys are kept as their words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return array


def probabilities(
    recipe: Recipe, members: Sequence[Variables], dataset: Dataset, split: str
) -> np.ndarray:
    """What each member predicts for a split, float32 [members, n, classes]; one program for all."""
    examples = getattr(dataset, split)
    stacked = jax.tree.map(lambda *a: np.stack(a), *members)
    size = min(len(examples), 100 if devices.is_cpu() else 1024)
    batches = -(-len(examples) // size)
    rows = (np.arange(batches * size) % len(examples)).reshape(batches, size)
    shift_and_scale = epoch.constants(dataset)

    def forward(variables: Variables, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(recipe.model.apply(variables, x, train=False))

    @jax.jit
    def run(stacked: Variables, x: jax.Array) -> jax.Array:
        def of_batch(rows: jax.Array) -> jax.Array:
            return jax.vmap(forward, (0, None))(stacked, epoch.standard(x[rows], shift_and_scale))

        return jax.lax.map(of_batch, jnp.asarray(rows))

    found = np.asarray(run(stacked, np.asarray(examples.x)))  # [batches, members, size, classes]
    return found.swapaxes(0, 1).reshape(len(members), -1, found.shape[-1])[:, : len(examples)]


def average(recipe: Recipe, members: Sequence[Variables], dataset: Dataset) -> Variables:
    """The members' mean weights, with BatchNorm's statistics estimated anew on training data.

    Source:
      Izmailov et al. 2018, arXiv:1803.05407 (SWA).
    """
    params = jax.tree.map(
        lambda *a: np.mean(a, 0, np.float64).astype(a[0].dtype), *(m["params"] for m in members)
    )
    rest = {k: v for k, v in members[-1].items() if k != "params"}
    if "batch_stats" not in rest:
        return {"params": params, **rest}
    return {"params": params, **rest, "batch_stats": _statistics(recipe, params, rest, dataset)}


def _statistics(recipe: Recipe, params: Any, rest: Any, dataset: Dataset) -> Any:
    """Means over one epoch's batches of what BatchNorm sees of each.

    A layer's new statistics are m * old + (1 - m) * batch's, whatever its momentum m: with all old
    ones 0 they are a = (1 - m) b, with all 1 they are c = m + (1 - m) b, so b = a / (1 - c + a).
    """
    size = recipe.regime.sizes[0]
    order = epoch.order(recipe.config["seed"], 0, len(dataset.train))
    rows = order[: len(order) // size * size].reshape(-1, size)
    shift_and_scale, old = epoch.constants(dataset), rest["batch_stats"]
    key = jax.random.key(recipe.config["seed"])
    names = list(rest)

    def after(value: float, x: jax.Array, i: jax.Array) -> Any:
        before = jax.tree.map(lambda a: jnp.full(np.shape(a), value), old)
        variables = {"params": params, **rest, "batch_stats": before}
        rngs = {"dropout": jax.random.fold_in(key, i)}
        _, new = recipe.model.apply(variables, x, train=True, rngs=rngs, mutable=names)
        return new["batch_stats"]

    @jax.jit
    def run(data: jax.Array) -> Any:
        def add(i: jax.Array, sums: Any) -> Any:
            x = epoch.standard(data[jnp.asarray(rows)[i]], shift_and_scale)
            zero, one = after(0.0, x, i), after(1.0, x, i)
            return jax.tree.map(lambda s, a, c: s + a / (1 - c + a), sums, zero, one)

        begin = jax.tree.map(lambda a: jnp.zeros(np.shape(a)), old)
        return jax.tree.map(lambda s: s / len(rows), jax.lax.fori_loop(0, len(rows), add, begin))

    return jax.tree.map(np.asarray, run(np.asarray(dataset.train.x)))
