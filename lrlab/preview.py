"""A schedule, or the noise of a run, as a picture, before anything trains."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lrlab import build, charts, console, forecast, planning, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_schedule(
    schedule: Any,
    updates: int | None = None,
    per_epoch: int | None = None,
    *,
    lr: float = 1.0,
    path: str | os.PathLike[str] | None = None,
    terminal: bool = False,
) -> "Path | Figure":
    """Draws the rate of every update, with lines where phases begin.

        lrlab.plot_schedule(optax.cosine_decay_schedule(0.1, 1000), 1000, path="cosine.svg")
        lrlab.plot_schedule(config.schedule, 12_000, 400, lr=config.lr, terminal=True)
        lrlab.plot_schedule(config)

    Args:
      schedule: an Optax schedule; a tuple of phases, as in a config; or a config, which knows
        its own length and rate.
      updates: of the run; a schedule or phases need it.
      per_epoch: updates an epoch, for an axis of epochs; phases need it.
      lr: the peak rate, which a schedule or phases are multiplied by.
      path: a file to write, .png or .svg.
      terminal: print the curve, too.
    Returns:
      The path, where one is given, else the matplotlib figure.
    Raises:
      ConfigError: a config or phases that a run would refuse.
      ValueError: no length, or a path that ends in something else.
    """
    spans: Sequence[console.Span] = ()
    if hasattr(schedule, "keys"):
        recipe = build.check(schedule)
        rates, per_epoch = np.asarray(recipe.rates()), recipe.per_epoch
        spans = [p.span for p in recipe.phases]
    else:
        if not callable(schedule):
            clock = planning.Clock(_whole("updates", updates), _whole("per_epoch", per_epoch), 1)
            planned = planning.plan(schedule, clock)
            schedule, spans = planned.shape, [p.span for p in planned.phases]
        at = jnp.arange(_whole("updates", updates))
        rates = np.asarray(lr * jax.jit(jax.vmap(schedule))(at))
    if terminal:
        console.say("\n".join(console.curve(rates, spans, per_epoch)))
    figure = plots.schedule(rates, spans, per_epoch)
    if path is None:
        return figure
    plots.write(figure, Path(path))
    return Path(path)


def plot_noise(config: Any, *, path: str | os.PathLike[str] | None = None) -> "Path | Figure":
    """Draws rate, batch size, momentum and noise scale against examples.

    Beside a decaying rate there is its twin, which keeps the noise and lets the batch grow.

    Args:
      config: of a run whose batches are planned.
      path: a file to write, .png or .svg.
    Returns:
      The path, where one is given, else the matplotlib figure.
    Raises:
      ConfigError: a config that a run would refuse.
      ValueError: noise that depends on what the run sees; a path that ends in something else.
    """
    recipe = build.check(config)
    planned, twin = forecast.noise(recipe), forecast.twin(recipe)
    if planned is None:
        raise ValueError(
            f"batch.name={recipe.config['batch']['name']!r} or "
            f"optimizer.name={recipe.config['optimizer']['name']!r} decides along the run: "
            "there is no noise to draw before it"
        )
    runs = {"as configured": planned}
    if twin:
        runs["batches that grow"] = twin.noise
    name = "lr² N / (B (1 - b1))" if forecast.rule_of(recipe) == "adam" else "lr N / (B (1 - m))"
    figure = charts.noise(runs, name)
    if path is None:
        return figure
    plots.write(figure, Path(path))
    return Path(path)


def _whole(name: str, value: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number >= 1; this schedule needs it")
    return value
