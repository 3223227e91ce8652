"""States kept at the ends of cycles: they are the run's, they vote in one program, they average."""

import jax
import numpy as np
import pytest
from conftest import tiny
from test_loop import start

from lrlab import build, ensembles, epoch, loop, records
from lrlab.analysis import ensemble
from lrlab.jobs import snapshot
from lrlab.jobs._start import Options
from lrlab.resolve import ConfigError

OPTIONS = Options("test.py", "python -m lrlab.main")
RESTARTS = ({"name": "cosine_restarts", "t_0": {"epochs": 2}},)
NORMED = {"name": "resnet.ResNet", "stage_sizes": (1,), "width": 4}


def config(**changes):
    return tiny(epochs=6, schedule=RESTARTS, **changes)


def test_cycles_end_where_the_rate_falls_and_then_rises():
    def kept(schedule, epochs=12, at="cycles"):
        return build.check(tiny(epochs=epochs, schedule=schedule, checkpoint={"at": at})).kept

    assert kept(RESTARTS, 6) == (2, 4, 6)
    doubling = ({"name": "cosine_restarts", "t_0": {"epochs": 1}, "t_mult": 2},)
    assert kept(doubling, 7) == (1, 3, 7)
    warm = (
        {"name": "linear", "start": 0.1, "end": 1.0, "epochs": 3},
        {"name": "cosine", "start": 1.0, "end": 0.0},
    )
    assert kept(warm) == (12,), "a warm-up is no end of a cycle"
    assert kept(({"name": "constant"},)) == ()
    assert kept(({"name": "constant"},), at=(3, 5)) == (3, 5)
    with pytest.raises(ConfigError, match="the run ends after 12 epochs"):
        kept(RESTARTS, at=(13,))


@pytest.mark.slow
def test_a_snapshot_is_the_state_of_the_run_at_that_epoch(tmp_path):
    snapshot.run(config(), tmp_path / "run", OPTIONS)
    recipe = build.check(snapshot.check(config()))
    steps, members = ensembles.snapshots(recipe, tmp_path / "run")
    assert steps == [18, 36, 54]
    for epochs, member in zip((2, 4, 6), members, strict=True):
        # Cycles do not know what comes after them: the run of so many epochs ends there.
        short = start(tmp_path / str(epochs), {**config(), "epochs": epochs})
        for a, b in zip(*map(jax.tree.leaves, (short.state.params, member["params"])), strict=True):
            np.testing.assert_array_equal(np.asarray(a), b)
    found = records.read_json(tmp_path / "run" / "ensemble.json")
    final = records.read(tmp_path / "run").final
    assert found["snapshots"][-1]["accuracy"] == pytest.approx(final["test_accuracy"])
    assert found["snapshots"][-1]["nll"] == pytest.approx(final["test_loss"], rel=1e-5)
    assert [s["members"] for s in found["together"]] == [1, 2, 3]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Snapshots together" in page
    assert "mean weights of the last 3" in page


@pytest.mark.parametrize(
    "model", [{"name": "mlp.MLP", "widths": (16,)}, pytest.param(NORMED, marks=pytest.mark.slow)]
)
def test_members_in_one_program_are_members_one_by_one(tmp_path, model):
    told = {**config(), "model": model, "checkpoint": {"at": "cycles"}}
    start(tmp_path, told)
    recipe = build.check(told)
    data = recipe.read()
    _, members = ensembles.snapshots(recipe, tmp_path)
    together = ensembles.probabilities(recipe, members, data, "test")
    x = (np.asarray(data.test.x, np.float32) - data.shift) * data.scale
    for member, found in zip(members, together, strict=True):
        (alone,) = ensembles.probabilities(recipe, [member], data, "test")
        np.testing.assert_allclose(found, alone, atol=2e-6)
        plain = jax.nn.softmax(recipe.model.apply(member, x, train=False))
        np.testing.assert_allclose(found, plain, atol=2e-5)


@pytest.mark.slow
def test_a_kill_in_any_cycle_loses_no_snapshot(tmp_path, monkeypatch):
    told = {**config(), "checkpoint": {"minutes": 0}}
    snapshot.run(told, tmp_path / "whole", OPTIONS)
    whole = records.read_json(tmp_path / "whole" / "ensemble.json")

    class KilledError(Exception):
        pass

    real = loop._train
    for cut in (5, 17, 18, 19, 36, 50):

        def killed(run, *more, cut=cut):
            if run.step >= cut:
                raise KilledError
            return real(run, *more)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_train", killed)
            patch.setattr(loop, "STRETCH", 0.0)
            with pytest.raises(KilledError):
                snapshot.run(told, tmp_path / "cut", OPTIONS)
    snapshot.run(told, tmp_path / "cut", OPTIONS)
    assert records.read_json(tmp_path / "cut" / "ensemble.json") == whole


def test_an_ensemble_needs_two_states(tmp_path):
    with pytest.raises(ConfigError, match="keeps 1 state: an ensemble needs two"):
        snapshot.run(tiny(epochs=2), tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(4, 0.3), 500)
    y = rng.integers(0, 4, 500)
    found = ensemble.scores(p, y)
    assert found["accuracy"] == np.mean([np.argmax(row) == c for row, c in zip(p, y, strict=True)])
    assert found["nll"] == pytest.approx(
        -np.mean([np.log(row[c]) for row, c in zip(p, y, strict=True)])
    )
    ece, confidence = 0.0, p.max(1)
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & ((confidence < low + 1 / 15) | (low > 0.93))
        if inside.any():
            right = (p[inside].argmax(1) == y[inside]).mean()
            ece += inside.mean() * abs(confidence[inside].mean() - right)
    assert found["ece"] == pytest.approx(ece, rel=1e-9)
    sure = np.eye(3)[[0, 1, 2]]
    assert ensemble.scores(sure, np.array([0, 1, 2]))["ece"] == 0
    assert ensemble.scores(sure, np.array([1, 2, 0]))["ece"] == 1


def test_votes_are_means_from_the_last_member_back():
    rng = np.random.default_rng(1)
    members, y = rng.dirichlet(np.ones(5), (4, 60)), rng.integers(0, 5, 60)
    for m, row in enumerate(ensemble.growing(members, y), 1):
        assert row == {"members": m, **ensemble.scores(members[-m:].mean(0), y)}
    apart = ensemble.disagreement(members)
    assert apart.shape == (4, 4)
    np.testing.assert_array_equal(apart, apart.T)
    assert apart[0, 1] == np.mean(members[0].argmax(1) != members[1].argmax(1))
    assert np.diag(apart).max() == 0


def test_averaged_weights_have_the_statistics_of_the_training_data(tmp_path):
    told = {**config(), "model": NORMED, "checkpoint": {"at": "cycles"}}
    start(tmp_path, told)
    recipe = build.check(told)
    data = recipe.read()
    _, members = ensembles.snapshots(recipe, tmp_path)
    found = ensembles.average(recipe, members, data)
    trees = found["params"], *(m["params"] for m in members)
    for leaf, *each in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(leaf, np.mean(each, 0), rtol=1e-6, atol=1e-7)
    # Statistics by hand, batch by batch: of old ones of 0, (1 - momentum) of a batch's are left.
    size = recipe.regime.sizes[0]
    order = epoch.order(0, 0, len(data.train))
    sums = []
    for rows in order[: len(order) // size * size].reshape(-1, size):
        x = (np.asarray(data.train.x[rows], np.float32) - data.shift) * data.scale
        zero = jax.tree.map(np.zeros_like, found["batch_stats"])
        variables = {"params": found["params"], "batch_stats": zero}
        _, new = recipe.model.apply(variables, x, train=True, mutable=["batch_stats"])
        sums.append(jax.tree.map(np.asarray, new["batch_stats"]))
    momentum = 0.9
    for leaf, *each in zip(*map(jax.tree.leaves, (found["batch_stats"], *sums)), strict=True):
        np.testing.assert_allclose(leaf, np.mean(each, 0) / (1 - momentum), rtol=2e-3, atol=1e-4)
