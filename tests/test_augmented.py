"""Augmentation in runs: as configured, alike on any devices, in lanes, and after a stop."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny
from test_loop import assert_same, outcome, start

from lrlab import build, devices, loop, records
from lrlab.lanes import Lane, Lanes
from lrlab.resolve import ConfigError
from lrlab.train_step import AUGMENT, RECORDED, make_train_step

CHAIN = ({"name": "crop", "pad": 1}, {"name": "flip"}, {"name": "cutout", "size": 2})
MIXED = (*CHAIN, {"name": "mixup", "alpha": 0.4})


@pytest.mark.slow
def test_a_model_sees_the_augmented_batch_of_its_update():
    plain = {"name": "mlp.MLP", "widths": (16,)}
    recipe = build.check(tiny(augment=MIXED, model=plain), parts=1)
    seen = []

    class Watching:
        """The model, which notes what it is called with."""

        def __getattr__(self, name):
            return getattr(recipe.model, name)

        def apply(self, variables, x, **more):
            seen.append(x)
            return recipe.model.apply(variables, x, **more)

    told = dataclasses.replace(recipe, model=Watching())
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(24, 8, 8, 1)).astype(np.float32),
        "y": rng.integers(0, 10, 24).astype(np.int32),
        "rows": np.arange(24, dtype=np.int32),
    }
    step = make_train_step(told.model, told.make_tx, told.shape, augment=told.augment)
    with jax.disable_jit():
        key = jax.random.key(3)
        state = jax.tree.map(lambda a: a[0], recipe.fresh(np.array([0])))
        _, recorded = step(state, batch, key, 0.1)
    keyed = jax.random.fold_in(jax.random.fold_in(key, 0), AUGMENT)
    x, targets = recipe.augment(keyed, batch["x"], batch["y"], batch["rows"])
    np.testing.assert_allclose(jax.lax.stop_gradient(seen[0]), x, atol=1e-6)
    assert not np.allclose(x, batch["x"])
    # The loss is that of both labels by their weights.
    logits = recipe.model.apply({"params": state.params}, x, train=True)
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    at, w = np.arange(24), np.asarray(targets.weight, np.float64)
    exact = -(w * logp[at, targets.y] + (1 - w) * logp[at, targets.y2]).sum()
    assert 0 < w.min() < 1
    assert recorded[RECORDED.index("loss")] == pytest.approx(exact, rel=1e-5)
    assert recorded[RECORDED.index("weight")] == pytest.approx(24)


@pytest.mark.parametrize("chain", [CHAIN, MIXED], ids=["crop, flip, cutout", "mixup too"])
def test_an_augmented_run_is_resumed_exactly_and_changes_what_is_learnt(
    tmp_path, monkeypatch, chain
):
    config = tiny(augment=chain)
    whole = outcome(start(tmp_path / "whole", config))
    plain = outcome(start(tmp_path / "plain", tiny()))
    assert whole[0] != plain[0]
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    for after in 4, 11:
        start(tmp_path / str(after), config, stop_after=after)
        assert_same(outcome(start(tmp_path / str(after), config)), whole)


def test_a_batch_in_parts_is_augmented_as_the_whole(tmp_path):
    found = []
    for micro in 1, 4:
        config = tiny(augment=CHAIN, batch={"name": "fixed", "size": 128, "micro": micro})
        start(tmp_path / str(micro), config)
        found.append([row["train_loss"] for row in records.read(tmp_path / str(micro)).rows])
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert devices.count() == 2  # each has its half of the rows


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_an_augmented_lane_is_the_single_run(tmp_path, engine):
    config = tiny(augment=CHAIN)
    recipe = build.check(config, parts=1)
    dataset = recipe.read()
    each = [Lane(seed, lr) for seed, lr in ((0, 0.1), (1, 0.1), (0, 0.02))]
    lanes = Lanes(recipe, dataset, each, recipe.total, engine=engine)
    seen = lanes.advance(recipe.total)
    for i, lane in enumerate(each):
        start(tmp_path / str(i), {**config, "seed": lane.seed, "lr": lane.lr}, dataset=dataset)
        mean = seen[:, i, RECORDED.index("loss")] / seen[:, i, RECORDED.index("weight")]
        single = records.read(tmp_path / str(i)).schedule["loss"]
        np.testing.assert_allclose(mean, single, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("augment", "changes", "says"),
    [
        (({"name": "crp"},), {}, "crop"),
        (({"name": "crop", "pad": 20},), {}, "augment.pad=20 must lie in [0, 7]"),
        (({"name": "crop", "pad": -1},), {}, "pad=-1"),
        (({"name": "mixup", "alpha": -1.0},), {}, "alpha=-1.0"),
        ("crop", {}, "augment='crop' must be a tuple of sections"),
        (({"name": "mixup", "alpha": 1.0},) * 2, {}, "only one may mix"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(augment, changes, says):
    with pytest.raises(ConfigError) as caught:
        build.check(tiny(augment=augment, **changes))
    assert says in str(caught.value)
