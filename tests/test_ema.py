"""The moving average of the weights: its formula, that it changes nothing, that it is kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny
from test_lanes import alone
from test_loop import assert_same, outcome, start

from lrlab import build, ensembles, loop, optimizers, records
from lrlab.analysis import ensemble
from lrlab.jobs import snapshot
from lrlab.jobs._start import Options
from lrlab.lanes import Lane, Lanes
from lrlab.resolve import ConfigError

DECAY = 0.9
NORMED = {"name": "resnet.ResNet", "stage_sizes": (1,), "width": 4}
HEAD = (("Dense_1/.*", 1.0), (".*", 0.0))


def leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def assert_equal(a, b):
    for x, y in leaves(a, b):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def exact(weights, decay=DECAY):
    """The mean of w_1 ... w_n with weights decay^(n - i), float64; weights: [n, ...]."""
    shares = np.float64(decay) ** np.arange(len(weights))[::-1]
    return np.tensordot(shares / shares.sum(), np.asarray(weights, np.float64), 1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("name", ["momentum", "adam", "optax:lion", "cocob"])
def test_the_average_is_that_of_the_formula_and_the_steps_are_the_same(name, decay):
    with_, without = (optimizers.make({"name": name}, ema=d) for d in (decay, None))
    params: Any = {"w": jnp.float32([1.0, -2.0, 0.5])}
    plain = with_(1.0).init(params), without(1.0).init(params)
    states, both, seen = list(plain), [params, params], []
    np.testing.assert_array_equal(optimizers.eval_params(plain[0], params)["w"], params["w"])
    rng = np.random.default_rng(0)
    for _ in range(60):
        g = {"w": jnp.float32(rng.normal(size=3))}
        for i, make_tx in enumerate((with_, without)):
            updates, states[i] = make_tx(0.05).update(g, states[i], both[i])
            both[i] = optax.apply_updates(both[i], updates)
        seen.append(np.asarray(both[0]["w"]))
        found = optimizers.eval_params(states[0], both[0])["w"]
        np.testing.assert_allclose(found, exact(seen, decay), rtol=3e-6, atol=3e-6)
    np.testing.assert_array_equal(both[0]["w"], both[1]["w"])
    assert len(jax.tree.leaves(states[0])) == len(jax.tree.leaves(states[1])) + 3
    np.testing.assert_array_equal(optimizers.rule_params(states[0], both[0])["w"], both[0]["w"])


MODELS = [None, pytest.param(NORMED, marks=pytest.mark.slow)]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_trains_the_same_weights_and_is_evaluated_at_their_average(tmp_path, model):
    changes = {"model": model} if model else {}
    plain = start(tmp_path / "plain", tiny(**changes))
    run = start(tmp_path / "ema", tiny(ema=DECAY, **changes))
    assert_equal(plain.state.params, run.state.params)
    assert_equal(plain.state.stats, run.state.stats)
    assert (plain.digest() == run.digest()) is False  # the average is a part of the state
    recipe = run.recipe
    mean = optimizers.eval_params(run.state.opt, run.state.params)
    x = (recipe.read().validation.x - np.float32(run.dataset.shift)) * run.dataset.scale
    logits = recipe.model.apply({"params": mean, **run.state.stats}, x, train=False)
    accuracy = np.mean(np.argmax(logits, -1) == recipe.read().validation.y)
    rows = records.read(tmp_path / "ema").rows
    assert rows[-1]["val_accuracy"] == pytest.approx(float(accuracy))
    other = records.read(tmp_path / "plain").rows
    assert [r["train_loss"] for r in rows] == [r["train_loss"] for r in other]
    assert rows[-1]["val_loss"] != other[-1]["val_loss"]


def test_a_stopped_run_goes_on_with_its_average(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    told = tiny(ema=DECAY)
    whole = start(tmp_path / "whole", told)
    first = start(tmp_path / "cut", told, stop_after=3)
    assert 0 < first.step < whole.step
    cut = start(tmp_path / "cut", told)
    assert_same(outcome(cut), outcome(whole))
    assert_equal(cut.state.opt, whole.state.opt)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_lane_averages_as_its_single_run_and_trains_as_without(engine):
    """BatchNorm and dropout are in it; updates cross the end of an epoch and of a chunk."""
    changes = {"model": {"name": "test_lanes:Net"}, "optimizer": {"name": "adam"}}
    recipe = build.check(tiny(ema=DECAY, **changes), parts=1)
    without = build.check(tiny(**changes), parts=1)
    data = recipe.read()
    given = [Lane(0, 0.02), Lane(3, 0.002), Lane(0, 0.01)]
    lanes, plain = (Lanes(r, data, given, 7, engine=engine) for r in (recipe, without))
    for several in lanes, plain:
        while several.step < 14:
            several.advance(7)
    states, _ = lanes.state()
    for i, lane in enumerate(given):
        assert_equal(lanes.params(i), plain.params(i))
        mine = jax.tree.map(lambda a, i=i: a[i], states)
        state, _ = alone(recipe, data, lane, 14)
        pairs = (s.opt for s in (mine, state)), (s.params for s in (mine, state))
        for found, expected in leaves(*map(optimizers.eval_params, *pairs)):
            np.testing.assert_allclose(found, expected, atol=5e-4)
    # Lanes are evaluated at the average too: by hand for the first.
    mine = jax.tree.map(lambda a: a[0], states)
    variables = {"params": optimizers.eval_params(mine.opt, mine.params), **mine.stats}
    (p,) = ensembles.probabilities(recipe, [variables], data, "validation")
    accuracy = ensemble.scores(p, data.validation.y)["accuracy"]
    assert lanes.evaluate("validation", [0])[0]["accuracy"] == pytest.approx(accuracy)
    raw = ensembles.probabilities(
        recipe, [{**variables, "params": mine.params}], data, "validation"
    )
    assert np.abs(raw - p).max() > 1e-3


def test_frozen_leaves_are_evaluated_as_they_are_and_no_average_is_kept_of_them():
    recipe = build.check(tiny(ema=DECAY, lr_multipliers=HEAD), parts=1)
    assert recipe.frozen["Dense_0"]["kernel"]
    state, _ = alone(recipe, recipe.read(), Lane(0, 0.1), 5)
    sizes = [a.shape for a in jax.tree.leaves(state.opt)]
    assert sizes.count((16, 10)) == 2  # of the head: the trace and the mean
    assert (64, 16) not in sizes
    assert (784, 16) not in sizes
    found = optimizers.eval_params(state.opt, state.params)
    assert jax.tree.structure(found) == jax.tree.structure(state.params)
    assert_equal(found["Dense_0"], state.params["Dense_0"])
    assert not np.array_equal(found["Dense_1"]["kernel"], state.params["Dense_1"]["kernel"])


def test_an_average_goes_on_in_a_run_that_takes_the_rules_memory_over(tmp_path):
    run = start(tmp_path, tiny(ema=DECAY))
    records.write_json(tmp_path / "config.json", {"config": run.recipe.config})
    spec = {"run": str(tmp_path), "optimizer": True}
    goes_on = build.check(tiny(ema=DECAY, start=spec)).init()
    assert_equal(goes_on.opt, run.state.opt)
    head = build.check(tiny(ema=DECAY, start=spec, lr_multipliers=HEAD)).init()
    mean = optimizers.eval_params(run.state.opt, run.state.params)
    found = optimizers.eval_params(head.opt, head.params)
    assert_equal(found["Dense_1"], mean["Dense_1"])
    assert_equal(found["Dense_0"], run.state.params["Dense_0"])  # frozen: the weights themselves
    # A thawed layer is younger: its average begins with its own first update.
    start(tmp_path / "head", tiny(ema=DECAY, start=spec, lr_multipliers=HEAD))
    records.write_json(tmp_path / "head" / "config.json", {"config": {}})
    spec = {"run": str(tmp_path / "head"), "optimizer": True}
    thawed = build.check(tiny(ema=DECAY, start=spec)).init()
    found = optimizers.eval_params(thawed.opt, thawed.params)
    assert_equal(found["Dense_0"], thawed.params["Dense_0"])
    assert not np.array_equal(found["Dense_1"]["kernel"], thawed.params["Dense_1"]["kernel"])
    # Anew, it begins at the weights that the run begins with.
    anew = build.check(tiny(ema=DECAY, start={"run": str(tmp_path)})).init()
    assert_equal(optimizers.eval_params(anew.opt, anew.params), run.state.params)


@pytest.mark.parametrize("value", [0, 1, 1.0, -0.5, 1.5, "0.9", True, float("nan")])
def test_a_decay_outside_0_to_1_is_refused(value):
    with pytest.raises(ConfigError, match=r"ema=.* must"):
        build.check(tiny(ema=value))


RULES = "schedule_free_sgd", "schedule_free_adamw", "optax.contrib:schedule_free_sgd"


@pytest.mark.parametrize("name", RULES)
def test_an_average_of_an_average_is_refused_beside_every_other_problem(name):
    with pytest.raises(ConfigError, match=r"ema=0.9: .*averages its weights itself") as e:
        build.check(tiny(ema=0.9, optimizer={"name": name}, epochs=0))
    assert any("epochs=0" in problem for problem in e.value.problems)
    build.check(tiny(optimizer={"name": name}))


OPTIONS = Options("test.py", "python -m lrlab.main")
RESTARTS = ({"name": "cosine_restarts", "t_0": {"epochs": 1}},)


@pytest.mark.parametrize("model", MODELS)
def test_snapshots_are_the_weights_that_trained_and_the_average_is_that_of_the_run(tmp_path, model):
    told = tiny(epochs=3, schedule=RESTARTS, checkpoint={"at": (1, 2)}, ema=DECAY)
    told |= {"model": model} if model else {}
    run = start(tmp_path / "run", told)
    recipe, data = build.check(told), run.dataset
    found = snapshot.compare(recipe, tmp_path / "run")
    # Of the last update, which no snapshot is of; statistics of the average, if it has any.
    mean = {"params": optimizers.eval_params(run.state.opt, run.state.params), **run.state.stats}
    mean = ensembles.average(recipe, [jax.tree.map(np.asarray, mean)], data)
    (p,) = ensembles.probabilities(recipe, [mean], data, "test")
    moving = found["moving"]
    for key, value in ensemble.scores(p, data.test.y).items():
        assert moving[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert moving["decay"] == DECAY
    final = run.evaluate("test")
    if not model:  # it is what the run itself is evaluated at
        assert moving["accuracy"] == pytest.approx(final["test_accuracy"])
        assert moving["nll"] == pytest.approx(final["test_loss"], rel=1e-5)
    else:  # and here only the statistics differ
        assert moving["nll"] != pytest.approx(final["test_loss"], rel=1e-3)
    plain = told | {"ema": None}
    start(tmp_path / "plain", plain)
    without = snapshot.compare(build.check(plain), tmp_path / "plain")
    assert without["moving"] is None
    assert without["together"] == found["together"]


@pytest.mark.slow
def test_the_snapshot_job_shows_the_average(tmp_path, capsys):
    told = tiny(epochs=2, schedule=RESTARTS, ema=DECAY)
    snapshot.run(told, tmp_path / "run", OPTIONS)
    assert "moving average, decay 0.9, at the end" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<th scope="row">moving average, decay 0.9</th>' in page
    assert page.count("moving average") >= 2, "in the figure too"
