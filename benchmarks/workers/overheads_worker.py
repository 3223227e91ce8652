"""Sides of lrlab with and without one thing each: dropout, records, pmap, the loop, the checks.

What takes a thing away is written here, small, and must train to the same weights, or the worker
refuses: a comparison with something else would say nothing.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lrlab_worker import Updates, about, recipe_of, training, updates
from serving import Side, serve

from lrlab import devices, epoch, loop, metrics, records, train_step
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.data import Dataset
from lrlab.tensorboard import Events
from lrlab.train_step import RECORDED, State

Update = Callable[..., tuple[State, jax.Array]]


def dropout(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """The recipe with its model's dropout, and without."""
    recipe, dataset = recipe_of(task)
    dry, _ = recipe_of({**task, "changes": {**task["changes"], "model": task["dry"]}})
    return recipe, {
        "with dropout": updates(recipe, training(recipe, dataset)),
        "without": updates(dry, training(dry, dataset)),
    }


def pmap(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """The loop of lrlab on one device, and the same loop in a plain jit."""
    recipe, dataset = recipe_of(task)
    ours = updates(recipe, training(recipe, dataset))
    plain = updates(recipe, Jitted(recipe, dataset))
    _same(recipe, ours, plain)
    return recipe, {"pmap": ours, "jit": plain}


def guard(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """The loop of lrlab, and the same update called from Python."""
    recipe, dataset = recipe_of(task)
    ours = updates(recipe, training(recipe, dataset))
    called = updates(recipe, Called(recipe, dataset))
    _same(recipe, ours, called)
    return recipe, {"in the loop": ours, "called from Python": called}


def checks(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """An update that is checked for what is not finite, and one that is not."""
    recipe, dataset = recipe_of(task)
    ours = updates(recipe, training(recipe, dataset))
    bold = updates(recipe, training(recipe, dataset, unchecked(recipe)))
    _same(recipe, ours, bold)
    return recipe, {"checked": ours, "unchecked": bold}


def logging(task: Mapping[str, Any]) -> tuple[Recipe, dict[str, Side]]:
    """A whole run by `loop.fit` with all its records, and its updates and evaluations alone."""
    recipe, dataset = recipe_of(task)
    made = training(recipe, dataset)
    size, step = recipe.eval_size(), recipe.eval_step()
    placement = epoch.place(dataset, recipe.config["placement"])
    evaluation = epoch.Evaluation(step, dataset, dataset.validation, size, placement)
    epochs, lr = recipe.config["epochs"], recipe.config["lr"]
    digests = set()

    def bare(_: int) -> dict[str, Any]:
        state = recipe.init()
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(epochs):
            state = made.run(state, number, 0, made.updates, lr)[0]
            evaluation.run(state)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        digests.add(_digest(state))
        return {"wall": wall, "cpu": cpu}

    def fit(_: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name, records.locked(Path(name)) as writer:
            keep = recipe.config["checkpoint"]["keep"]
            with Checkpoints(Path(name) / "checkpoints", keep) as saves:
                run = Clocked(recipe, dataset, writer, saves)
                run.resume()
                run.training(recipe.regime.sizes[0])
                run.evaluate("validation")
                events = Events(Path(name), 0)
                wall, cpu = time.perf_counter(), time.process_time()
                for item in loop.fit(run):
                    if isinstance(item, loop.Row):
                        events.row(item.row)
                events.close()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                digests.add(_digest(run.state))
        if len(digests) > 1:
            raise RuntimeError("the recorded run and the bare one came to different weights")
        return {
            "wall": wall,
            "cpu": cpu,
            "saving": {"wall": run.wall, "cpu": run.cpu, "n": run.count},
        }

    return recipe, {"recorded": fit, "bare": bare}


class Clocked(loop.Run):
    """A run that times its saves."""

    wall, cpu, count = 0.0, 0.0, 0

    def save(self) -> None:
        """Saves as ever."""
        wall, cpu = time.perf_counter(), time.process_time()
        super().save()
        self.wall, self.cpu = (
            self.wall + time.perf_counter() - wall,
            self.cpu + time.process_time() - cpu,
        )
        self.count += 1


def _digest(state: State) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


def _same(recipe: Recipe, ours: Updates, theirs: Updates) -> None:
    """Refuses sides that part, by the hundredth of their way from the first weights."""
    start, way, apart = jax.tree.leaves(recipe.init().params), 0.0, 0.0
    ours(20)
    theirs(20)
    for first, a, b in zip(
        start,
        jax.tree.leaves(ours.state.params),
        jax.tree.leaves(theirs.state.params),
        strict=True,
    ):
        way += float(np.sum((np.asarray(a, np.float64) - first) ** 2))
        apart += float(np.sum((np.asarray(a, np.float64) - b) ** 2))
    print(f"apart by {(apart / way) ** 0.5 if way else np.nan:.1e} of the way", file=sys.stderr)
    if not apart < 1e-4 * way:
        raise RuntimeError("the two sides do not train to the same weights")


class Resident:
    """The data and the order of an epoch on the only device, for loops that are not lrlab's."""

    def __init__(self, recipe: Recipe, dataset: Dataset):
        assert devices.count() == 1, "a loop without pmap has one device"
        self.size, self.seed = recipe.regime.sizes[0], recipe.config["seed"]
        self.updates, self._epoch = len(dataset.train) // self.size, -1
        self.examples = len(dataset.train)
        self.data = jax.device_put((np.asarray(dataset.train.x), np.asarray(dataset.train.y)))
        rank = 1 + len(dataset.feature_shape)
        pair = np.float32(dataset.shift), np.float32(dataset.scale)
        self.constants = jax.device_put(
            tuple(a.reshape((1,) * (rank - a.ndim) + a.shape) for a in pair)
        )
        self._order: Any = None

    def order(self, number: int) -> jax.Array:
        """int32 [updates, size]."""
        if number != self._epoch:
            rows = epoch.order(self.seed, number, self.examples)[: self.updates * self.size]
            self._epoch = number
            self._order = jax.device_put(rows.reshape(self.updates, self.size).astype(np.int32))
        return self._order

    def left(self, first: int) -> int:
        """As `epoch.Training.left`."""
        return self.updates - first


def update_of(recipe: Recipe) -> Update:
    """(data, rows of it, constants, state, seed, lr) -> (state, recorded), on one device."""
    config = recipe.config
    step = train_step.make_train_step(
        recipe.model,
        recipe.make_tx,
        recipe.shape,
        None,
        recipe.regime.micro,
        config["nonfinite"]["policy"] == "skip",
    )

    def update(data, rows, constants, state, seed, lr):
        key = jax.random.fold_in(jax.random.key(seed), 2)
        x = (data[0][rows].astype(jnp.float32) - constants[0]) * constants[1]
        return step(state, {"x": x, "y": data[1][rows], "rows": jnp.arange(len(rows))}, key, lr)

    return update


class Jitted(Resident):
    """The loop of `epoch.Training` in a plain jit."""

    def __init__(self, recipe: Recipe, dataset: Dataset):
        super().__init__(recipe, dataset)
        update = update_of(recipe)

        def stretch(data, order, constants, state, seed, lr, first, count):
            def body(carry: Any) -> Any:
                i, state, out, _ = carry
                before = state.step
                state, recorded = update(data, order[first + i], constants, state, seed, lr)
                return i + 1, state, out.at[i].set(recorded), state.step > before

            def more(carry: Any) -> jax.Array:
                return (carry[0] < count) & carry[3]

            out = jnp.zeros((self.updates, len(RECORDED)))
            done, state, out, _ = jax.lax.while_loop(more, body, (jnp.int32(0), state, out, True))
            return state, out, done

        self._program = jax.jit(stretch, donate_argnums=(3,))

    def run(
        self, state: State, epoch: int, first: int, count: int, lr: float
    ) -> tuple[State, np.ndarray]:
        """As `epoch.Training.run`."""
        scalars = np.uint32(self.seed), np.float32(lr), np.int32(first), np.int32(count)
        state, out, done = self._program(
            self.data, self.order(epoch), self.constants, state, *scalars
        )
        return state, np.asarray(out)[: int(done)]


class Called(Resident):
    """A Python loop over the jitted update, which gathers its batch on the device."""

    def __init__(self, recipe: Recipe, dataset: Dataset):
        super().__init__(recipe, dataset)
        self._update = jax.jit(update_of(recipe), donate_argnums=(3,))

    def run(
        self, state: State, epoch: int, first: int, count: int, lr: float
    ) -> tuple[State, np.ndarray]:
        """As `epoch.Training.run`."""
        order, out = np.asarray(self.order(epoch)), []
        scalars = np.uint32(self.seed), np.float32(lr)
        for rows in order[first : first + count]:
            state, recorded = self._update(self.data, rows, self.constants, state, *scalars)
            out.append(recorded)
        return state, np.asarray(jax.device_get(out))


def unchecked(recipe: Recipe) -> Any:
    """`train_step` of whole batches without the norm of the update and without the choice."""
    by_row = train_step.wants_rows(recipe.model)
    assert recipe.regime.micro == 1

    def loss_fn(params, stats, batch, key):
        rows = {"rows": batch["rows"]} if by_row else {}
        key = key if by_row else jax.random.fold_in(key, batch["rows"][0])
        variables, mutable = {"params": params, **stats}, list(stats)
        logits, stats = recipe.model.apply(
            variables, batch["x"], train=True, rngs={"dropout": key}, mutable=mutable, **rows
        )
        sums = metrics.classification(logits, batch["y"], jnp.ones(len(logits)))
        return sums[0] / sums[2], (sums, stats)

    def step(state, batch, key, lr):
        key = jax.random.fold_in(key, state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (sums, stats)), grads = grad_fn(state.params, state.stats, batch, key)
        grads, stats = jax.lax.pmean((grads, stats), devices.AXIS)
        sums = jax.lax.psum(sums, devices.AXIS)
        rate = jnp.float32(lr) * recipe.shape(state.step)
        changes, opt = recipe.make_tx(rate).update(grads, state.opt, state.params)
        new = State(state.step + 1, optax.apply_updates(state.params, changes), stats, opt)
        return new, jnp.stack([rate, optax.tree.norm(grads), jnp.float32(1), *sums])

    return step


PREPARE = {f.__name__: f for f in (dropout, pmap, guard, checks, logging)}


def _work(task: Mapping[str, Any]) -> None:
    devices.use_cache()
    recipe, sides = PREPARE[task["job"]](task)
    serve(sides, about(recipe))


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
