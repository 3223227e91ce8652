"""lrlab's side: what `python -m lrlab.main` runs between two looks at a run."""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import stored
from serving import Side, serve

from lrlab import __version__, build, devices, epoch, main
from lrlab.build import Recipe
from lrlab.data import Dataset
from lrlab.train_step import RECORDED, State

ROOT = Path(__file__).resolve().parent.parent.parent


class Loop(Protocol):
    """What `epoch.Training` is to its caller; a benchmark may put another loop in its place."""

    def left(self, first: int) -> int:
        """Updates that one stretch from update `first` of an epoch can do at most."""
        ...

    def run(
        self, state: State, epoch: int, first: int, count: int, lr: float
    ) -> tuple[State, np.ndarray]:
        """Does `count` updates of an epoch from `first` on."""
        ...


class Updates:
    """Goes on training by a number of updates, epoch after epoch."""

    def __init__(self, loop: Loop, state: State, lr: float):
        self.loop, self.state, self.lr = loop, state, lr
        self.epoch = self.first = 0

    def __call__(self, count: int) -> dict[str, Any]:
        """A `serving.Side`; adds the mean loss of the last stretch."""
        recorded = np.zeros((0, len(RECORDED)))
        while count:
            now = min(count, self.loop.left(self.first))
            self.state, recorded = self.loop.run(self.state, self.epoch, self.first, now, self.lr)
            if len(recorded) < now:
                raise RuntimeError(f"diverged in epoch {self.epoch + 1}: lower the rate")
            count, self.first = count - now, self.first + now
            if self.loop.left(self.first) == 0:
                self.epoch, self.first = self.epoch + 1, 0
        loss, weight = (recorded[:, RECORDED.index(k)] for k in ("loss", "weight"))
        return {"loss": float(loss.sum() / weight.sum())}


def recipe_of(task: Mapping[str, Any]) -> tuple[Recipe, Dataset]:
    """A recipe of configs/ with the task's changes, on its data."""
    config = main.load_config(str(ROOT / "configs" / task["recipe"])) | task.get("changes", {})
    if "data" in task:
        config["data"] = {"name": "stored:npz", "path": task["data"]}
    recipe = build.check(config)
    return recipe, recipe.read()


def training(recipe: Recipe, dataset: Dataset, step: Any = None) -> epoch.Training:
    """The compiled training of a run at its first batch size."""
    placement = epoch.place(dataset, recipe.config["placement"])
    size, seed = recipe.regime.sizes[0], recipe.config["seed"]
    return epoch.Training(step or recipe.train_step(size), dataset, size, placement, seed)


def updates(recipe: Recipe, loop: Loop) -> Updates:
    """A fresh run of a recipe by a loop, compiled."""
    made = Updates(loop, recipe.init(), recipe.config["lr"])
    made(2)
    return made


def about(recipe: Recipe) -> dict[str, Any]:
    """Versions and size, for the record."""
    packages = "jax", "jaxlib", "flax", "optax", "numpy"
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"lrlab": __version__, "python": platform.python_version()}
    return {"versions": versions, "parameters": recipe.parameters}


def _sides(task: Mapping[str, Any], recipe: Recipe, dataset: Dataset) -> dict[str, Side]:
    if task["job"] == "train":
        return {"lrlab": updates(recipe, training(recipe, dataset))}
    state, step, size = recipe.init(), recipe.eval_step(), recipe.eval_size()
    placement = epoch.place(dataset, recipe.config["placement"])
    evaluation = epoch.Evaluation(step, dataset, dataset.train, size, placement)

    def evaluate(count: int) -> dict[str, Any]:
        found = [evaluation.run(state) for _ in range(count)]
        return {"loss": found[-1]["loss"]}

    evaluate(1)
    return {"lrlab": evaluate}


def _work(task: Mapping[str, Any]) -> None:
    if task["job"] == "data":
        notes = {k: stored.write(k, Path(p), task["random"]) for k, p in task["paths"].items()}
        serve({}, {"notes": notes})
        return
    devices.use_cache()
    recipe, dataset = recipe_of(task)
    serve(_sides(task, recipe, dataset), about(recipe))


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
