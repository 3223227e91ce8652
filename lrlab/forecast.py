"""What a run will do, before it does it: rate, batch, momentum and noise scale of every update.

And its twin: the run that injects the same noise with batches that grow instead of a decaying rate.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lrlab import batching, optimizers, resolve
from lrlab.batching import Noise
from lrlab.build import Recipe

CAP = 0.1  # of the training split: the largest batch of a twin (Smith et al. 2018)
# Where a rule keeps its momentum; all others call it b1, or momentum, or have none.
_MOMENTUM = {"momentum": "decay", "nesterov": "decay"}


@dataclasses.dataclass(frozen=True)
class Twin:
    """A run of the same noise: its section `batch`, and what it will do."""

    batch: dict[str, Any]
    noise: Noise


def rule_of(recipe: Recipe) -> str:
    """How the noise goes with the rate: as for "sgd" or, of rules that normalise, for "adam"."""
    return "sgd" if recipe.config["optimizer"]["name"] in optimizers.PLAIN_RULES else "adam"


def noise(recipe: Recipe) -> Noise | None:
    """Every update of the run; None where that depends on what it will see.

    Regimes that read losses or noise decide along the run, and rules that find their rate have a
    noise that no schedule tells.
    """
    if recipe.regime.reads or recipe.is_rate_found:
        return None
    return _noise(recipe, recipe.regime)


def twin(recipe: Recipe) -> Twin | None:
    """The same noise by growing batches; None where nothing would grow.

    So it is where batches grow already, depend on what the run sees or are coupled to another size,
    and where the rate falls by less than the factor 2 between two sizes.
    """
    regime, examples = recipe.regime, recipe.source.sizes[0]
    if regime.reads or len(recipe.sizes) > 1 or recipe.is_rate_found or regime.at(0, ())[1] != 1:
        return None
    size, epochs = regime.sizes[0], recipe.config["epochs"]
    cap = max(size, int(CAP * examples))
    try:
        batch = batching.to_batches(
            recipe.shape, examples, size, epochs, cap=cap, rule=rule_of(recipe)
        )
    except ValueError:
        return None
    if len(batch["sizes"]) == 1:
        return None
    if regime.parts(size) > 1:
        batch["most"] = size // regime.parts(size)
    grown = batching.stages(**{k: v for k, v in batch.items() if k != "name"})
    return Twin(batch, _noise(recipe, grown))


def _noise(recipe: Recipe, regime: batching.Regime) -> Noise:
    config = recipe.config
    return batching.noise_scale(
        recipe.shape,
        regime,
        recipe.source.sizes[0],
        _momentum(recipe),
        epochs=config["epochs"],
        lr=config["lr"],
        rule=rule_of(recipe),
    )


def _momentum(recipe: Recipe) -> Any:
    """A number, or the schedule of it."""
    spec: Mapping[str, Any] = recipe.config["optimizer"]
    takes = resolve.parameters(resolve.find("lrlab.optimizers", spec["name"]))
    for key in (_MOMENTUM.get(spec["name"], "b1"), "momentum"):
        if key in recipe.scheduled:
            return recipe.scheduled[key]
        if key in takes:
            default = takes[key].default
            value = spec.get(key, 0.0 if default is takes[key].empty else default)
            return float(value or 0.0)
    return 0.0
