"""Weights that a run begins with, and leaves that none of its updates changes."""

import jax
import numpy as np
import pytest
from conftest import tiny
from test_loop import assert_same, outcome, start

from lrlab import build, loop, records
from lrlab.lanes import Lane, Lanes
from lrlab.resolve import ConfigError

DEEP = {"name": "mlp.MLP", "widths": (32, 16)}
HEAD = (("Dense_2/.*", 1.0), (".*", 0.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run = start(folder, tiny(model=DEEP))
    write_final(folder, run)
    return folder, jax.tree.map(np.asarray, run.state)


def write_final(folder, run):
    records.write_json(folder / "config.json", {"config": run.recipe.config})
    with records.locked(folder) as writer:
        best = run.position.best
        row = {"event": "final", "epoch": 2, "step": run.step, "best_step": best["step"]}
        writer.row(row)


def continuing(folder, **changes):
    spec = {"run": str(folder), **changes.pop("start", {})}
    return tiny(model=DEEP, start=spec, **changes)


def test_a_run_begins_with_the_weights_of_another(trained):
    folder, state = trained
    recipe = build.check(continuing(folder))
    for a, b in zip(*map(jax.tree.leaves, (recipe.init().params, state.params)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)
    assert recipe.start.words().endswith("update 18: 6 arrays")
    lanes = Lanes(recipe, recipe.read(), [Lane(0, 0.1), Lane(1, 0.1)], 5)
    for a, b in zip(*map(jax.tree.leaves, (lanes.params(1), state.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fresh_head_is_that_of_the_seed_and_the_rest_is_taken_over(trained):
    folder, state = trained
    spec = {"fresh": ("Dense_2/.*",)}
    recipe = build.check(continuing(folder, start=spec, seed=3))
    begun, new = recipe.init().params, build.check(tiny(model=DEEP, seed=3)).init().params
    for layer in "Dense_0", "Dense_1":
        np.testing.assert_array_equal(begun[layer]["kernel"], state.params[layer]["kernel"])
    np.testing.assert_array_equal(begun["Dense_2"]["kernel"], new["Dense_2"]["kernel"])
    assert "2 begin anew (params/Dense_2/bias, params/Dense_2/kernel)" in recipe.start.words()


def test_the_rules_memory_is_taken_over_if_asked(trained):
    folder, state = trained
    kept = build.check(continuing(folder, start={"optimizer": True})).init()
    for a, b in zip(*map(jax.tree.leaves, (kept.opt, state.opt)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)
    assert any(np.abs(a).max() > 0 for a in jax.tree.leaves(state.opt))
    cleared = build.check(continuing(folder)).init()
    assert all(np.abs(np.asarray(a)).max() == 0 for a in jax.tree.leaves(cleared.opt))
    # A frozen layer has no memory, and that of the others is found where layers are frozen.
    head = build.check(continuing(folder, start={"optimizer": True}, lr_multipliers=HEAD)).init()
    sizes = {a.size for a in jax.tree.leaves(head.opt)}
    trace = [np.asarray(a) for a in jax.tree.leaves(head.opt) if a.shape == (16, 10)]
    assert 32 * 16 not in sizes
    theirs = [a for a in jax.tree.leaves(state.opt) if a.shape == (16, 10)]
    np.testing.assert_array_equal(trace[0], theirs[0])


@pytest.mark.parametrize(
    ("spec", "changes", "says"),
    [
        ({"run": "nowhere"}, {}, "start.run='nowhere' is no folder of a run"),
        ({"run": 3}, {}, "start.run=3 must be a path"),
        ({}, {}, "either run=FOLDER"),
        ({"run": "x", "file": "y"}, {}, "either run=FOLDER"),
        ({"run": "x", "frehs": ()}, {}, "unknown field start.frehs; did you mean 'fresh'"),
        ({"run": "x", "which": "worst"}, {}, "start.which='worst'"),
        ({"run": "TRAINED", "fresh": ("Dense_9/.*",)}, {}, "'Dense_9/.*' matches none of"),
        ({"run": "TRAINED", "fresh": (".*",)}, {}, "matches all 6 arrays"),
        ({"run": "TRAINED", "fresh": ("(",)}, {}, "is no regular expression"),
        (
            {"run": "TRAINED"},
            {"model": {"name": "mlp.MLP", "widths": (32, 8)}},
            "params/Dense_1/bias is [16] there, [8] here",
        ),
        (
            {"run": "TRAINED"},
            {"model": {"name": "mlp.MLP", "widths": (32, 16, 16)}},
            "params/Dense_3/bias is missing",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused_with_names(trained, spec, changes, says):
    spec = {k: str(trained[0]) if v == "TRAINED" else v for k, v in spec.items()}
    with pytest.raises(ConfigError) as caught:
        build.check(tiny(model=DEEP, start=spec, **{}) | changes)
    assert says in str(caught.value)


def test_a_run_that_began_elsewhere_is_resumed(tmp_path, trained, monkeypatch):
    config = continuing(trained[0], lr_multipliers=HEAD, lr=0.02)
    whole = outcome(start(tmp_path / "whole", config))
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    for after in 4, 11:
        start(tmp_path / str(after), config, stop_after=after)
        assert_same(outcome(start(tmp_path / str(after), config)), whole)


@pytest.mark.parametrize("rule", ["momentum", "adamw", "optax:lion", "prodigy"])
def test_frozen_layers_stay_the_same_to_the_bit_under_every_decay(tmp_path, trained, rule):
    folder, state = trained
    lr = {"momentum": 0.1, "adamw": 0.01, "optax:lion": 1e-3, "prodigy": 1.0}[rule]
    config = continuing(
        folder, optimizer={"name": rule}, lr=lr, weight_decay=0.0 if rule == "adamw" else 0.01,
        l2=0.01, lr_multipliers=HEAD,
    )  # fmt: skip
    run = start(tmp_path, config)
    for layer in "Dense_0", "Dense_1":
        for name in "kernel", "bias":
            a, b = run.state.params[layer][name], state.params[layer][name]
            assert np.asarray(a).tobytes() == b.tobytes(), (layer, name)
    assert np.abs(np.asarray(run.state.params["Dense_2"]["kernel"]) - 0).max() > 0
    assert not np.array_equal(
        run.state.params["Dense_2"]["kernel"], state.params["Dense_2"]["kernel"]
    )


def flops(config):
    """Of one update as XLA counts."""
    recipe = build.check(config, parts=1)
    step = recipe.train_step(recipe.regime.sizes[0])
    n, shape = recipe.regime.sizes[0], recipe.source.feature_shape
    data = {
        "x": jax.ShapeDtypeStruct((n, *shape), np.float32),
        "y": jax.ShapeDtypeStruct((n,), np.int32),
        "rows": jax.ShapeDtypeStruct((n,), np.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    mapped = jax.vmap(step, in_axes=(None, 0, None, None), axis_name="devices")
    batched = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), data)
    rate = jax.ShapeDtypeStruct((), np.float32)
    compiled = jax.jit(mapped).lower(recipe.shapes, batched, key, rate).compile()
    return compiled.cost_analysis()["flops"]


def test_nothing_is_computed_backwards_below_the_lowest_layer_that_trains():
    wide = {"name": "mlp.MLP", "widths": (256, 256, 256)}
    n, weights = 128, [64 * 256, 256 * 256, 256 * 256, 256 * 10]
    whole = flops(tiny(model=wide))
    last = flops(tiny(model=wide, lr_multipliers=(("Dense_3/.*", 1.0), (".*", 0.0))))
    two = flops(tiny(model=wide, lr_multipliers=(("Dense_[23]/.*", 1.0), (".*", 0.0))))
    # Two for a product and a sum; backwards each layer that trains has one product for its weights,
    # and one for its input where a layer below it trains.
    forward = 2 * n * sum(weights)
    assert whole == pytest.approx(forward + 2 * n * (2 * sum(weights) - weights[0]), rel=0.05)
    assert last == pytest.approx(forward + 2 * n * weights[3], rel=0.05)
    assert two == pytest.approx(forward + 2 * n * (2 * weights[3] + weights[2]), rel=0.05)


def test_a_run_ends_when_patience_does(tmp_path):
    config = tiny(epochs=30, lr=0.3, patience=3, schedule=({"name": "constant"},))
    run = start(tmp_path, config)
    rows = records.read(tmp_path).rows
    best = records.best(rows)["epoch"]
    assert len(rows) == best + 3 < 30
    assert run.step == rows[-1]["step"]
    again = start(tmp_path, config)
    assert again.step == run.step, "it goes on after its end"
    with pytest.raises(ConfigError, match="patience looks at their accuracy"):
        build.check(tiny(patience=3, data={"name": "digits", "validation": 0}))
