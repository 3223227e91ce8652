import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from lrlab import build, epoch, optimizers
from lrlab.lanes import Lane, Lanes
from lrlab.models.layers import Dropout
from lrlab.train_step import RECORDED, make_train_step

LOSS, FINITE = RECORDED.index("loss"), RECORDED.index("finite")
ENGINES = "loop", "vmap"


class Net(nn.Module):
    """BatchNorm and dropout: what makes lanes differ if they leak."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False, rows=None):
        x = nn.Dense(8, use_bias=False)(
            x.reshape(len(x), -1)
        )  # a bias here has no gradient but noise
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = Dropout(0.2)(nn.relu(x), train, rows)
        return nn.Dense(self.num_classes)(x)


@pytest.fixture(scope="module")
def digits():
    return build.check(tiny()).read()


def recipe_of(**changes):
    return build.check(tiny(model={"name": "test_lanes:Net"}, **changes), parts=1)


def alone(recipe, dataset, lane, updates):
    """The same run, update by update in Python, on one device."""
    held = {k: lambda _, v=v: jnp.float32(v) for k, v in lane.values.items()}
    step = jax.jit(
        make_train_step(
            recipe.model,
            recipe.make_tx,
            recipe.shape,
            scheduled={**recipe.scheduled, **held},
            effective=recipe.is_rate_found,
        )
    )
    state = jax.tree.map(lambda a: a[0], recipe.fresh(np.array([lane.seed])))
    key = jax.random.fold_in(jax.random.key(lane.seed), 2)
    size, seen = recipe.regime.sizes[0], []
    standard = (dataset.train.x - np.float32(dataset.shift)) * np.float32(dataset.scale)
    for t in range(updates):
        number, inside = divmod(t, len(dataset.train) // size)
        rows = epoch.order(lane.seed, number, len(dataset.train))[inside * size :][:size]
        batch = {"x": standard[rows], "y": dataset.train.y[rows], "rows": np.arange(size)}
        state, recorded = step(state, batch, key, np.float32(lane.lr))
        seen.append(recorded)
    return state, np.array(seen)


def train(lanes, updates, length=7):
    out = []
    while lanes.step < updates:
        out.append(lanes.advance(min(length, updates - lanes.step)))
    return np.concatenate(out)


QUICK = "adam", "momentum"  # the others take a minute together


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "rule",
    [r if r in QUICK else pytest.param(r, marks=pytest.mark.slow) for r in optimizers.__all__],
)
def test_a_lane_is_the_single_run_for_every_rule_with_batchnorm_and_dropout(digits, rule, engine):
    recipe = recipe_of(optimizer={"name": rule})
    given = [Lane(0, 0.02), Lane(3, 0.002), Lane(0, 0.01)]
    lanes = Lanes(recipe, digits, given, 7, engine=engine)
    seen = train(lanes, 12)
    for i, lane in enumerate(given):
        state, recorded = alone(recipe, digits, lane, 12)
        close = np.full(len(lanes.columns), 2e-4)
        close[RECORDED.index("correct")] = 2  # examples on the border between two classes
        gap = np.abs(seen[:, i] - recorded)
        assert (gap <= close + 2e-3 * np.abs(recorded)).all(), gap.max(0)
        np.testing.assert_allclose(
            seen[:, i, LOSS], recorded[:, LOSS], rtol=2e-4, err_msg=f"lane {i}"
        )
        for ours, theirs in zip(
            jax.tree.leaves(seen_by(digits, lanes.params(i))),
            jax.tree.leaves(seen_by(digits, state.params)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, atol=5e-4)


def seen_by(dataset, params):
    """The parameters without the weights of pixels that (nearly) never change.

    Their gradients are rounding, which Adam and its like make as large as any other's.
    """
    x = (dataset.train.x - np.float32(dataset.shift)) * np.float32(dataset.scale)
    changes = x.reshape(len(x), -1).std(0) > 0.05
    assert 40 < changes.sum() < 64
    first = {"kernel": np.asarray(params["Dense_0"]["kernel"])[changes]}
    return {**params, "Dense_0": first}


@pytest.mark.parametrize("engine", ENGINES)
def test_lanes_may_differ_in_any_float_of_the_chain(digits, engine):
    recipe = recipe_of(optimizer={"name": "adam"})
    given = [
        Lane(0, 0.01, {"b1": 0.9, "eps": 1e-8, "weight_decay": 0.0, "label_smoothing": 0.0}),
        Lane(1, 0.01, {"b1": 0.5, "eps": 1e-2, "weight_decay": 0.1, "label_smoothing": 0.3}),
    ]
    lanes = Lanes(recipe, digits, given, 7, engine=engine)
    seen = train(lanes, 12)
    for i, lane in enumerate(given):
        _, recorded = alone(recipe, digits, lane, 12)
        np.testing.assert_allclose(seen[:, i, LOSS], recorded[:, LOSS], rtol=5e-4)
    assert abs(seen[-1, 0, LOSS] - seen[-1, 1, LOSS]) > 0.1 * seen[-1, 0, LOSS]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lane_that_diverges_is_frozen_and_poisons_no_other(digits, engine):
    recipe = recipe_of(optimizer={"name": "sgd"})
    calm = [Lane(0, 0.1), Lane(1, 0.05)]
    wild = [Lane(0, 1e18), *calm, Lane(1, 1e30)]
    seen = train(Lanes(recipe, digits, calm, 7, engine=engine), 12)
    lanes = Lanes(recipe, digits, wild, 7, engine=engine)
    beside = train(lanes, 12)
    np.testing.assert_allclose(beside[:, 1:3], seen, rtol=1e-5, atol=1e-6)
    for i in 0, 3:
        first = int(np.argmax(beside[:, i, FINITE] == 0))
        assert (beside[first:, i, FINITE] == 0).all(), "a frozen lane went on"
        assert all(np.isfinite(p).all() for p in jax.tree.leaves(lanes.params(i)))
    assert (beside[:, 1:3, FINITE] == 1).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_giving_lanes_up_moves_and_changes_none_of_the_others(digits, engine):
    recipe = recipe_of(optimizer={"name": "momentum"})
    given = [Lane(i % 3, 0.01 * (i + 1)) for i in range(9)]
    whole = train(Lanes(recipe, digits, given, 7, engine=engine), 21)
    lanes = Lanes(recipe, digits, given, 7, engine=engine)
    first = train(lanes, 7)
    lanes.keep([1, 3, 8])
    second = train(lanes, 14)
    lanes.keep([8])
    third = train(lanes, 21)
    np.testing.assert_allclose(first, whole[:7], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[:, [1, 3, 8]], whole[7:14, [1, 3, 8]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(third[:, 8], whole[14:, 8], rtol=1e-4, atol=1e-5)
    assert np.isnan(second[:, 0]).all(), "a lane that was given up recorded something"
    assert lanes.lane_updates == 7 * (9 + 3 + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_lanes_go_on_from_what_was_kept_bit_for_bit(digits, engine):
    recipe = recipe_of(optimizer={"name": "adam"})
    given = [Lane(i % 2, 0.01 * (i + 1)) for i in range(5)]
    lanes = Lanes(recipe, digits, given, 7, engine=engine)
    train(lanes, 7)
    lanes.keep([0, 2, 4])
    kept, active = lanes.state(), lanes.active
    rest = train(lanes, 14)
    again = Lanes(recipe, digits, given, 7, engine=engine)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), again.shapes())
    assert jax.tree.map(lambda a: (a.shape, a.dtype), kept) == shapes
    again.restore(kept, 7, active)
    np.testing.assert_array_equal(train(again, 14), rest)
    assert [again.digest(i) for i in active] == [lanes.digest(i) for i in active]


def test_both_engines_evaluate_the_same(digits):
    recipe, given = recipe_of(), [Lane(i, 0.05) for i in range(3)]
    found = []
    for engine in ENGINES:
        lanes = Lanes(recipe, digits, given, 7, engine=engine)
        train(lanes, 14)
        found.append(lanes.evaluate("test", [0, 2]))
    for ours, theirs in zip(*found, strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_nothing_compiles_when_rates_change_or_lanes_end(digits):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    recipe = recipe_of()
    lanes = Lanes(recipe, digits, [Lane(0, 0.01 * (i + 1)) for i in range(6)], 7, engine="loop")
    train(lanes, 7)
    lanes.keep([0, 2, 4])  # one device is without work: a move compiles once
    train(lanes, 14)
    before = len(compiled)
    lanes.keep([0, 2])
    train(lanes, 21)
    lanes.keep([2])
    train(lanes, 28)
    assert len(compiled) == before


def test_a_watch_stops_a_lane_inside_the_program(digits):
    class Third:
        size = 1

        def __call__(self, memory, update, loss):
            return memory + 1, memory[0] + 1 >= 3

    recipe = recipe_of()
    lanes = Lanes(recipe, digits, [Lane(0, 0.1), Lane(1, 0.1)], 9, watch=Third())
    seen = lanes.advance(9)
    np.testing.assert_array_equal(seen[:, 0, FINITE], [1] * 3 + [0] * 6)
    assert lanes.stopped().all()
