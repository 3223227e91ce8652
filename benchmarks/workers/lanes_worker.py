"""lrlab's side of sweeps: what the job "sweep" does between two looks, and what lanes cost.

A side's "count" is updates a lane; its answer says how many lane-updates they were.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from lrlab_worker import ROOT, about, recipe_of
from serving import Side, serve

from lrlab import devices, main
from lrlab.build import Recipe
from lrlab.data import Dataset
from lrlab.jobs import sweep
from lrlab.lanes import Lane, Lanes
from lrlab.points import Target
from lrlab.train_step import RECORDED
from lrlab.trials import Trials

# Of RECORDED, in the order that `Trials.see` takes.
SEEN = [RECORDED.index(name) for name in ("lr", "finite", "loss", "correct", "weight")]
COMPILED = "/jax/core/compile/backend_compile_duration"
PRODUCT = 2048  # rows and columns of the matrices whose product is the peak


def grid(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """Every group of a sweep's config, look by look; no trial ever ends."""
    config = main.load_config(str(ROOT / "configs" / task["recipe"]))
    config["data"] = {"name": "stored:npz", "path": task["data"]}
    config["sweep"]["axes"][1]["points"] = task["points"]
    planned = sweep.check(config)
    first, target = planned.groups[0].recipe, planned.sweep.target
    dataset, groups = first.read(), []
    assert target is not None
    for group in planned.groups:
        lanes = Lanes(group.recipe, dataset, [group.lane(t) for t in group.trials], task["length"])
        total = planned.updates(group.recipe)
        results = Trials(len(lanes.lanes), 10, lanes.size, total, task["length"], target)
        groups.append((lanes, results))

    def looks(count: int) -> dict[str, Any]:
        done, best = 0, 0.0
        for lanes, results in groups:
            began = lanes.step
            seen = lanes.advance(count)[..., SEEN]
            results.see(began, seen, lanes.active)
            done += count * len(lanes.active)
            best = max(best, trailing(seen, target))
        return {"lane_updates": done, "accuracy": best}

    looks(1)
    return first, {"lrlab, lanes": looks}


def trailing(seen: np.ndarray, target: Target) -> float:
    """The best lane's training accuracy over the last examples, at the end of a look."""
    updates = round((target.examples or 0) / seen[0, 0, -1])
    sums = seen[-updates:, :, -2:].sum(0)
    return round(float((sums[:, 0] / sums[:, 1]).max()), 4)


def _lanes(recipe: Recipe, dataset: Dataset, count: int, length: int) -> Lanes:
    rates = np.geomspace(1e-4, 1e-2, count)
    return Lanes(recipe, dataset, [Lane(0, float(lr)) for lr in rates], length)


def growth(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """Programs of so many lanes each."""
    recipe, dataset = recipe_of(task)

    def side(number: int) -> Side:
        lanes = _lanes(recipe, dataset, number, task["length"])

        def advance(count: int) -> dict[str, Any]:
            for done in range(0, count, lanes.length):
                lanes.advance(min(lanes.length, count - done))
            return {"lane_updates": count * number, "threads": min(number, devices.count())}

        advance(1)
        return advance

    return recipe, {str(number): side(number) for number in task["lanes"]}


def quarter(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """All lanes of a program, and a quarter of them; what was compiled to shrink is counted."""
    recipe, dataset = recipe_of(task)
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def advance_by(lanes: Lanes, more: Mapping[str, Any]) -> Side:
        def advance(count: int) -> dict[str, Any]:
            lanes.advance(count)
            return {"lane_updates": count * len(lanes.active), **more}

        return advance

    def shrink(lanes: Lanes, kept: Sequence[int]) -> dict[str, Any]:
        """What going on with these lanes takes, one update included."""
        lanes.advance(1)
        before, began = len(compiled), time.perf_counter()
        lanes.keep(kept)
        lanes.advance(1)
        seconds = round(time.perf_counter() - began, 3)
        return {"compiled": len(compiled) - before, "seconds": seconds}

    sides = {}
    for number in task["lanes"]:
        whole, few = (_lanes(recipe, dataset, number, task["length"]) for _ in range(2))
        whole.advance(1)
        sides[f"{number} lanes"] = advance_by(whole, {})
        # As many of every device: they stay where they are. All of one device: half must move, and
        # once more, for lanes are dealt like cards.
        told = {"stay": shrink(few, range(number // 4))}
        moved = _lanes(recipe, dataset, number, task["length"])
        one, again = range(0, number // 2, devices.count()), range(0, number // 2, 4)
        told |= {"move": shrink(moved, one), "move again": shrink(moved, again)}
        sides[f"{number // 4} of {number} lanes"] = advance_by(few, {"shrunk": told})
    return recipe, sides


def peak(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """The fastest of some products of large float32 matrices, with all cores."""
    recipe, _ = recipe_of(task)
    one = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT), np.float32)
    two = jax.numpy.asarray(one)
    dot = jax.jit(jax.numpy.dot)

    def side(multiply: Any) -> Side:
        def products(count: int) -> dict[str, Any]:
            found = []
            for _ in range(count):
                wall, cpu = time.perf_counter(), time.process_time()
                multiply()
                found.append((time.perf_counter() - wall, time.process_time() - cpu))
            wall, cpu = min(found)
            return {"wall": wall, "cpu": cpu, "flops": 2 * PRODUCT**3}

        products(1)
        return products

    return recipe, {
        "matrix product, NumPy": side(lambda: one @ one),
        "matrix product, JAX": side(lambda: dot(two, two).block_until_ready()),
    }


PREPARE = {f.__name__: f for f in (grid, growth, quarter, peak)}


def _work(task: Mapping[str, Any]) -> None:
    devices.use_cache()
    recipe, sides = PREPARE[task["job"]](task)
    serve(sides, {**about(recipe), "devices": devices.count()})


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
