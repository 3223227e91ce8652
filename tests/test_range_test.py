import ast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny

import lrlab
from lrlab import build, loop, records
from lrlab.analysis import suggest
from lrlab.checkpoint import Checkpoints
from lrlab.jobs import range_test
from lrlab.jobs._start import Options
from lrlab.resolve import ConfigError


def config(**changes):
    section = {"low": 1e-4, "high": 100.0, "updates": 60, "seeds": 2, **changes}
    return tiny(job={"name": "range_test"}, range_test=section)


def test_the_job_writes_the_curves_the_readings_and_the_figures(tmp_path, capsys):
    range_test.run(config(), tmp_path, Options("test.py", "python -m lrlab.main"))
    found = records.read_json(tmp_path / "range_test.json")
    table = np.genfromtxt(tmp_path / "range_test.csv", delimiter=",", names=True)
    assert table["lr"][0] == pytest.approx(1e-4)
    assert table["lr"][-1] == pytest.approx(100)
    steps = np.diff(np.log(table["lr"]))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    again = suggest.suggest(table["lr"], [table["loss_0"], table["loss_1"]])
    assert found["outcome"] == again.outcome == "ok"
    assert found["lr"] == pytest.approx(again.lr, rel=1e-3)
    assert f"suggested lr {found['lr']:.3g}" in capsys.readouterr().out
    for name in "range_test.png", "range_test.svg", "ramp.png":
        assert (tmp_path / "plots" / name).stat().st_size > 1000


def test_a_range_test_leaves_a_run_as_it_was(tmp_path):
    recipe = build.check(tiny())
    dataset = recipe.read()
    with records.locked(tmp_path) as writer, Checkpoints(tmp_path / "c") as saves:
        run = loop.Run(recipe, dataset, writer, saves)
        run.resume()
        fit = loop.fit(run)
        while run.position.epoch < 1:
            next(fit)
        before = run.digest(), dict(vars(run.position))
        assert list(range_test.measure(range_test.check(config()), dataset))
        assert (run.digest(), dict(vars(run.position))) == before


def measured(**changes):
    plan = range_test.check(config(**changes))
    return list(range_test.measure(plan, plan.recipe.read()))


@pytest.mark.parametrize(("key", "high"), [("weight_decay", 1.0), ("optimizer.decay", 0.99)])
def test_other_numbers_than_the_rate_can_be_swept(key, high):
    (swept,) = measured(key=key, low=0.0, high=high, scale="linear")
    assert swept.losses.shape == (2, 60)
    assert np.isfinite(swept.losses[:, :10]).all()
    (fixed,) = measured(key=key, low=0.0, high=1e-9, scale="linear")
    difference = np.abs(np.nan_to_num(swept.losses) - fixed.losses)
    assert difference.max() > 0.01, "the value had no effect"


def test_the_held_out_loss_is_that_of_the_states_along_the_ramp():
    (held,) = measured(loss="validation", seeds=1, updates=30, high=0.1)
    plan = range_test.check(config(seeds=1, updates=30, high=0.1))
    dataset = plan.recipe.read()
    lanes = range_test._lanes(range_test._ramped(plan.recipe, plan), plan, dataset, 30)
    for i in range(30):
        lanes.advance(1)
        assert held.losses[0, i] == lanes.evaluate("validation", [0])[0]["loss"]
    np.testing.assert_array_equal(held.values, plan.values)


def test_an_average_of_weights_is_not_what_a_ramp_looks_at():
    section = config(loss="validation")["range_test"]
    with_ema = range_test.check(tiny(range_test=section, ema=0.999))
    (ours,) = range_test.measure(with_ema, with_ema.recipe.read())
    (plain,) = measured(loss="validation")
    np.testing.assert_array_equal(ours.losses, plain.losses)
    with pytest.raises(ConfigError, match=r"ema=2"):
        range_test.check(tiny(range_test=section, ema=2.0))


def test_the_held_out_loss_ends_where_training_diverged():
    (held,) = measured(loss="validation", updates=401, low=1e-3, high=1e5, seeds=2)
    assert len(held.values) == held.losses.shape[1] == 134  # every third update
    assert held.values[-1] == pytest.approx(1e5)
    assert np.isfinite(held.losses[:, 0]).all()
    assert np.isnan(held.losses[:, -1]).all()


def test_a_group_is_ramped_while_the_others_stay_frozen():
    first, second = measured(groups=True, high=10.0)
    assert (first.group, second.group) == ("Dense_0/.*", "Dense_1/.*")
    rules = (("Dense_0/.*", 1.0), ("Dense_1/.*", 0.0))
    (alone,) = list(
        range_test.measure(
            plan := range_test.check(config(high=10.0) | {"lr_multipliers": rules}),
            plan.recipe.read(),
        )
    )
    np.testing.assert_array_equal(first.losses, alone.losses)
    assert np.abs(np.nan_to_num(first.losses - second.losses)).max() > 0.01


def test_the_groups_rates_are_flags_that_a_run_takes(tmp_path, capsys):
    kept = config(groups=("Dense_0/.*",), updates=200, high=100.0)
    range_test.run(kept, tmp_path, Options("test.py", "python -m lrlab.main"))
    out = capsys.readouterr().out
    (flags,) = [line for line in out.splitlines() if line.startswith("as flags: ")]
    lr, rules = flags.removeprefix("as flags: --config.lr=").split(" --config.lr_multipliers=")
    given = ast.literal_eval(rules.strip("'"))
    assert given == (("Dense_0/.*", 1.0), (".*", 1.0))
    build.check(tiny(lr=float(lr), lr_multipliers=given))
    table = (tmp_path / "range_test.csv").read_text().splitlines()
    assert table[0] == "group,point,lr,loss_0,loss_1,smooth"
    assert table[1].startswith('"Dense_0/.*",0,')


@pytest.mark.slow
def test_a_batch_sizes_loss_is_that_of_plain_training_with_it():
    (swept,) = measured(key="batch.size", low=16, high=130, updates=40)
    np.testing.assert_array_equal(swept.values, [16, 32, 64, 128])
    assert swept.found.outcome == "ok"
    size = {"name": "fixed", "size": 32}
    plan = range_test.check(config(key="weight_decay", low=1e-12, high=2e-12, updates=40))
    recipe = build.check(tiny(batch=size, schedule=({"name": "constant"},), lr=0.1), parts=1)
    lanes = range_test._lanes(recipe, plan, recipe.read(), 40)
    losses = range_test._train_losses(lanes, 40)
    np.testing.assert_allclose(swept.losses[:, 1], losses[:, -8:].mean(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"low": 1.0, "high": 0.1}, "must be below"),
        ({"low": 0.0}, "no logarithm"),
        ({"updates": 10}, "[20, inf)"),
        ({"seeds": 0}, "[1, inf)"),
        ({"key": "b7"}, "no number of the chain"),
        ({"scale": "lgo"}, "did you mean 'log'"),
        ({"lows": 1}, "did you mean 'low'"),
        ({"loss": "test"}, "range_test.loss='test' is not allowed"),
        ({"groups": ("Dense_7/.*",)}, "range_test.groups"),
        ({"groups": ("Dense_(",)}, "no regular expression"),
        ({"groups": 3}, "must be True, or patterns"),
        ({"groups": True, "key": "weight_decay"}, "groups are of the rate"),
        ({"key": "batch.size", "low": 0.5}, "range_test.low=0.5 must be a whole number"),
        ({"key": "batch.size", "low": 8, "high": 4096}, "more than digits"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(changes, says):
    with pytest.raises(ConfigError) as caught:
        range_test.check(config(**changes))
    assert says in str(caught.value)


def quadratic(largest):
    rng = np.random.default_rng(0)
    h = jnp.asarray(np.geomspace(0.1, 1, 5) * largest, jnp.float32)
    centres = jnp.asarray(0.1 * rng.normal(size=(32, 5)), jnp.float32)

    def loss(w, centre):
        return 0.5 * (h * (w - centre) ** 2).sum() + 0.01 * largest

    return loss, jnp.ones(5), centres


@pytest.mark.parametrize("largest", [0.3, 40.0])
def test_the_range_test_of_a_users_loss_finds_its_edge_and_changes_nothing(largest):
    loss, params, batches = quadratic(largest)
    kept = np.array(params)
    found = lrlab.range_test(loss, params, batches, low=1e-4 / largest, high=1e3 / largest)
    np.testing.assert_array_equal(params, kept)
    assert found.suggestion.outcome == "ok"
    assert 0.5 <= found.suggestion.edge / (2 / largest) <= 2
    assert np.isnan(found.losses[:, -1]).all(), "it went on after it had diverged"


def test_the_ramp_of_a_users_loss_is_plain_training_at_those_rates():
    loss, params, batches = quadratic(1.0)
    one = jax.tree.map(lambda a: a[:1], batches)  # one batch: the order does not matter
    found = lrlab.range_test(
        loss, params, one, optax.adam, low=1e-3, high=1e-1, updates=30, seeds=1
    )
    opt, expected = optax.adam(1.0).init(params), []
    for rate in found.rates:
        value, grads = jax.value_and_grad(loss)(params, one[0])
        steps, opt = optax.adam(rate).update(grads, opt, params)
        params = optax.apply_updates(params, steps)
        expected.append(value)
    np.testing.assert_allclose(found.losses[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "bad", [{"low": 0.0}, {"low": 2.0, "high": 1.0}, {"updates": 5}, {"seeds": 0}]
)
def test_a_users_ramp_that_makes_no_sense_is_refused(bad):
    loss, params, batches = quadratic(1.0)
    with pytest.raises(ValueError, match=next(iter(bad))):
        lrlab.range_test(loss, params, batches, **bad)
