import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from experiments import arms
from experiments import smith_2017 as study
from lrlab import batching, build, records
from lrlab.resolve import ConfigError
from lrlab.train_step import RECORDED
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]


def updates(size, arm, examples):
    spec = study.config(size, arm)["batch"]
    regime = batching.stages(**{k: v for k, v in spec.items() if k != "name"})
    return sum(e.updates for e in batching.epochs_of(regime, size.epochs, examples))


def test_the_arms_of_size_paper_take_the_published_updates():
    taken = {n: updates(study.SIZES["paper"], arm, 50_000) for n, arm in study.ARMS.items()}
    assert taken["decay"] == pytest.approx(80_000, rel=0.03)
    assert taken["grow"] == pytest.approx(29_000, rel=0.01)
    assert 6_000 < taken["larger rate"] < 6_500
    assert 2_000 < taken["momentum"] < 2_500
    published = {n: k for n, (k, _) in study.PUBLISHED.items() if k}
    assert published.keys() == study.ARMS.keys() - {"hybrid"}


def test_the_caps_of_all_sizes_are_a_tenth_of_the_examples_or_less():
    for size, examples in (SMOKE, 1437), (study.SIZES["desk"], 60_000), (study.SIZES["paper"], 5e4):
        for arm in study.ARMS.values():
            sizes = study.config(size, arm)["batch"]["sizes"]
            assert max(sizes) <= size.cap <= examples / 9.75
        assert len(size.boundaries) == 3
        assert size.seeds >= 3


def test_every_arm_has_the_same_noise_scale_and_it_falls_by_five():
    plans = {name: study.plan(SMOKE, arm) for name, arm in study.ARMS.items()}
    noise = np.array([plan["noise"] for plan in plans.values()])
    np.testing.assert_allclose(noise, noise[:1].repeat(5, 0), rtol=1e-5)
    falls = noise[0, :-1] / noise[0, 1:]
    np.testing.assert_allclose(falls, [1, 1, 5, 1, 1, 5, 1, 5, 1], rtol=1e-5)
    assert [plan["updates"] for plan in plans.values()] == sorted(
        (plan["updates"] for plan in plans.values()), reverse=True
    )
    assert study.verdicts({"decay": {}}, plans, ())[0]["holds"] == "yes"
    wrong = plans | {"grow": study.plan(dataclasses.replace(SMOKE, lr=0.005), study.ARMS["grow"])}
    assert study.verdicts({"decay": {}}, wrong, ())[0]["holds"] == "no"


@pytest.mark.parametrize(
    ("arm", "regime", "schedule"),
    [
        ("decay", {"name": "fixed"}, None),
        ("hybrid", {"name": "hybrid", "factor": 5, "at": SMOKE.boundaries}, "constant"),
        (
            "grow",
            {"name": "increasing", "factor": 5, "at": SMOKE.boundaries, "cap": 100},
            "constant",
        ),
    ],
)
def test_the_first_three_arms_are_the_regimes_of_lrlab(arm, regime, schedule):
    size = dataclasses.replace(SMOKE, cap=100)  # the last size that a growth by 5 comes to
    ours = study.plan(size, study.ARMS[arm])
    config = study.config(size, study.ARMS[arm]) | {"batch": {"size": size.batch, **regime}}
    config |= {"schedule": ({"name": schedule},)} if schedule else {}
    recipe = build.check(config, parts=1)
    epochs = recipe.epochs()
    theirs = batching.noise_scale(
        recipe.shape, recipe.regime, 1437, 0.9, epochs=size.epochs, lr=config["lr"]
    )
    assert ours["sizes"] == [e.size for e in epochs]
    np.testing.assert_allclose(ours["lr"], theirs.lr[[e.first for e in epochs]], rtol=1e-5)
    assert ours["updates"] == theirs.updates


def test_what_is_trained_is_what_was_planned():
    size = dataclasses.replace(SMOKE, batch=20, epochs=4, boundaries=(1, 2, 3), seeds=2)
    arm = study.ARMS["grow"]
    plan, taken = study.plan(size, arm), 0
    for epoch, (lanes, seen) in enumerate(arms.epochs_of(study.config(size, arm), size.seeds)):
        columns = dict(zip(RECORDED, np.moveaxis(seen, -1, 0), strict=False))
        np.testing.assert_allclose(columns["lr"], plan["lr"][epoch], rtol=1e-5)
        assert (columns["weight"] == plan["sizes"][epoch]).all()
        taken += len(seen)
        assert lanes.step == taken
    assert taken == plan["updates"]


def test_an_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.9, 0.01, 6), rng.normal(0.89, 0.01, 6)
    exact = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = arms.gap(ours, theirs)
    np.testing.assert_allclose((found["low"], found["high"]), (exact.low, exact.high), rtol=1e-9)
    np.testing.assert_allclose(found["gap"], np.mean(ours - theirs))


@pytest.mark.parametrize(
    ("low", "high", "small", "above"),
    [
        (-0.004, 0.004, "yes", "unclear"),
        (0.001, 0.004, "yes", "yes"),
        (-0.02, 0.02, "unclear", "unclear"),
        (0.006, 0.02, "no", "yes"),
        (-0.02, -0.006, "no", "no"),
        (-0.02, 0.004, "unclear", "unclear"),
    ],
)
def test_a_gap_is_small_or_not_only_where_its_interval_says_so(low, high, small, above):
    found = {"gap": (low + high) / 2, "low": low, "high": high}
    assert (arms.is_small(found), arms.is_above(found)) == (small, above)


BOUNDARIES = (3, 6, 8)


def run(change=0.0, at=(0, 10), updates=100, noise=1e-4, seed=0):
    """Five seeds, whose curves rise by half a percent an epoch, changed in some epochs."""
    rng = np.random.default_rng(seed)
    curves = 0.85 + 0.005 * np.arange(10) + rng.normal(0, noise, (5, 10))
    curves[:, slice(*at)] += change
    ends = updates * np.arange(1, 11)
    return {"accuracy": curves.tolist(), "updates": ends.tolist(), "loss": [[1.0]] * 5}


def holds(**runs):
    plans = {"decay": {"noise": [1.0]}}
    found = study.verdicts({"decay": run(), **runs}, plans, BOUNDARIES)
    return [v["holds"] for v in found[1:]]  # at equal epochs, then at equal updates


def test_verdicts_follow_the_curves():
    assert holds(grow=run(updates=30, seed=1)) == ["yes", "yes"]
    assert holds(grow=run(0.003, updates=30, seed=1)) == ["yes", "yes"]  # within the margin
    assert holds(grow=run(-0.02, updates=30, seed=1)) == ["no", "yes"]
    assert holds(grow=run(-0.09, updates=30, seed=1)) == ["no", "no"]
    assert holds(grow=run(updates=100, noise=2e-5)) == ["yes", "unclear"]  # it saves nothing
    assert holds(grow=run(noise=0.05, updates=30, seed=1))[0] == "unclear"


def test_only_what_follows_a_boundary_counts_and_one_stretch_is_enough():
    assert holds(grow=run(-0.1, at=(0, 3), seed=1))[0] == "yes"
    assert holds(grow=run(-0.1, at=(6, 8), seed=1))[0] == "no"
    ours, theirs = (np.array(r["accuracy"]) for r in (run(-0.1, at=(7, 8)), run()))
    first, second, third = study.stretches(ours, theirs, BOUNDARIES)
    assert (first["gap"], third["gap"]) == (0, 0)
    assert second["epochs"] == [6, 8]
    assert second["gap"] == pytest.approx(-0.05)
    assert second["largest"]["gap"] == pytest.approx(-0.1)


def test_accuracy_at_an_update_lies_between_the_ends_of_two_epochs():
    one = {"accuracy": [[0.5, 0.7], [0.6, 0.6]], "updates": [10, 20]}
    np.testing.assert_allclose(arms.at_update(one, 15), [0.6, 0.6])
    np.testing.assert_allclose(arms.at_update(one, 20), [0.7, 0.6])


def test_what_is_remembered_is_not_made_again_nor_mistaken(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"found": 3}

    for _ in range(2):
        found = arms.remembered(tmp_path / "a.json", {"lr": (0.1,)}, make)
        assert found["found"] == 3
    assert made == [1]
    with pytest.raises(ConfigError, match="other settings"):
        arms.remembered(tmp_path / "a.json", {"lr": (0.2,)}, make)


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.smith_2017", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("smith_2017_smoke_*.json")
    record = records.read_json(path)
    assert [row["arm"] for row in record["arms"]] == [*study.ARMS]
    decay, hybrid, grow, larger, _ = record["arms"]
    # One and the same run until the first boundary; all learn.
    assert decay["curve"][:3] == hybrid["curve"][:3] == grow["curve"][:3] != larger["curve"][:3]
    assert min(row["accuracy"] for row in record["arms"]) > 0.9
    assert record["verdicts"][0]["holds"] == "yes"
    assert (tmp_path / "plots" / "smith_2017.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already trained") == 5
    assert records.read_json(path)["arms"] == record["arms"]
