"""What a network computes below one of its modules: the head's input, for all examples at once."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lrlab import devices, epoch
from lrlab.build import Recipe
from lrlab.data import Dataset, Split
from lrlab.resolve import ConfigError

BATCH = 500  # examples at once


def below(recipe: Recipe, head: str, params: Any, stats: Any, data: Dataset) -> dict[str, Any]:
    """The input of the module `head`, float32 [n, d], of "train", "validation" and "test".

    Computed as in evaluation: without dropout, with BatchNorm's running statistics.

    Raises:
      ConfigError: no module of that name, one that is called more than once, or one whose input is
      not [batch, d].
    """
    shift_and_scale = epoch.constants(data)

    @jax.jit
    def compute(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        x = epoch.standard(x, shift_and_scale)
        return inputs_of(recipe.model, head, {"params": params, **stats}, x)

    def of(split: Split) -> np.ndarray:
        size = min(BATCH, max(1, len(split)))
        parts = [np.zeros((0, width), np.float32)]
        for begin in range(0, len(split), size):
            rows = np.arange(begin, begin + size) % len(split)  # one shape, so one program
            part = np.asarray(compute(params, stats, np.asarray(split.x[rows])))
            parts.append(part[: len(split) - begin])
        return np.concatenate(parts)

    like = jax.ShapeDtypeStruct((1, *data.feature_shape), data.train.x.dtype)
    width = jax.eval_shape(compute, params, stats, like).shape[1]
    params, stats = devices.to_host((params, stats))
    return {name: of(getattr(data, name)) for name in ("train", "validation", "test")}


def check(recipe: Recipe, head: str) -> None:
    """Raises ConfigError where `below` would, without computing anything."""
    x = jax.ShapeDtypeStruct((1, *recipe.source.feature_shape), np.float32)
    variables = {"params": recipe.shapes.params, **recipe.shapes.stats}
    jax.eval_shape(lambda v, x: inputs_of(recipe.model, head, v, x), variables, x)


def inputs_of(model: Any, head: str, variables: Any, x: jax.Array) -> jax.Array:
    """What the module `head` of a model is called with, [batch, d]; raises ConfigError."""
    seen: list[Any] = []
    modules: list[str] = []

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and name:
            modules.append(name)
            if name == head:
                seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.apply(variables, x, train=False)
    if len(seen) != 1 or seen[0].ndim != 2:
        known = ", ".join(dict.fromkeys(modules))
        what = (
            "is no module of the model"
            if not seen
            else f"is called {len(seen)} times"
            if len(seen) > 1
            else f"takes inputs of shape {seen[0].shape[1:]}, and features are vectors"
        )
        raise ConfigError([f"head={head!r} {what}; modules: {known}"])
    return seen[0]
