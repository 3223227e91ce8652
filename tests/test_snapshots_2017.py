"""The study of snapshots: its arms, what it counts, what it says of curves that are made up."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import snapshots_2017 as study
from lrlab import build, ensembles, optimizers, records
from lrlab.analysis import ensemble
from lrlab.lanes import Lane, Lanes
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]
ARMS = *study.RESTARTS, study.SHORT, study.WHOLE


def cosine(updates):
    """Float64, written from Loshchilov & Hutter's equation 5."""
    return (1 + np.cos(np.pi * np.arange(updates) / updates)) / 2


def test_the_rates_of_every_arm_are_those_of_the_formula():
    size, per_epoch = dataclasses.replace(SMOKE, epochs=15, members=5), 1437 // SMOKE.batch
    expected = {
        study.SNAPSHOTS: np.tile(cosine(3 * per_epoch), 5),
        study.HIGHER: 2 * np.tile(cosine(3 * per_epoch), 5),
        study.SHORT: cosine(3 * per_epoch),
        study.WHOLE: cosine(15 * per_epoch),
    }
    for arm, exact in expected.items():
        recipe = build.check(study.config(size, arm), parts=1)
        np.testing.assert_allclose(recipe.rates(), size.lr * exact, rtol=2e-6, atol=1e-8)
    with pytest.raises(ValueError, match="4 cycles of whole epochs do not fill 15"):
        study.config(dataclasses.replace(size, members=4), study.SNAPSHOTS)


LONGER = [pytest.param(n, marks=pytest.mark.slow if n == "paper" else ()) for n in study.SIZES]


@pytest.mark.parametrize("name", LONGER)
def test_arms_of_a_size_are_sound_and_alike_but_for_shape_and_length(name, request):
    if name != "smoke":
        request.getfixturevalue("data_dir")  # or it is skipped
    size = study.SIZES[name]
    recipes = {arm: build.check(study.config(size, arm), parts=1) for arm in ARMS}
    assert all(not recipe.warnings for recipe in recipes.values())
    own = "schedule", "epochs", "ema", "lr"
    rest = [{k: v for k, v in r.config.items() if k not in own} for r in recipes.values()]
    assert all(config == rest[0] for config in rest)
    assert recipes[study.WHOLE].config["ema"] == size.ema
    assert recipes[study.SHORT].config["ema"] is recipes[study.SNAPSHOTS].config["ema"] is None
    # The budget: one run that restarts is as long as a whole one and as all short ones together.
    totals = {arm: recipe.total for arm, recipe in recipes.items()}
    assert totals[study.SNAPSHOTS] == totals[study.WHOLE] == size.members * totals[study.SHORT]
    assert size.repetitions >= 3


def test_every_repetition_has_seeds_of_its_own_and_the_first_is_shared():
    size = dataclasses.replace(SMOKE, members=4, repetitions=3)
    for arm in ARMS:
        each = [study.members(size, arm, r) for r in range(3)]
        assert sorted(seed for lanes in each for seed in lanes) == study.seeds(size, arm)
        assert [lanes[0] for lanes in each] == [0, 1, 2]
        assert {len(lanes) for lanes in each} == {1 if arm in study.RESTARTS else 4}


@pytest.mark.slow
def test_scores_are_those_of_the_members_that_are_meant():
    """The last m snapshots, the first m of the others; the average of one run's weights."""
    size = dataclasses.replace(SMOKE, epochs=3)
    for arm in (study.SNAPSHOTS, study.SHORT, study.WHOLE):
        recipe = build.check(study.config(size, arm), parts=1)
        data = recipe.read()
        lanes = Lanes(recipe, data, [Lane(seed, 0.05) for seed in range(3)], 100)
        lanes.advance(44)
        states, _ = lanes.state()
        each = [study._lane(states, i) for i in range(3)]
        found = study.scored(recipe, data, each, arm)
        members = [{"params": s.params, **s.stats} for s in each]
        p = ensembles.probabilities(recipe, members, data, "test")
        two = p[-2:] if arm in study.RESTARTS else p[:2]
        both = {"members": 2, **ensemble.scores(two.mean(0), data.test.y)}
        assert found["together"][1] == pytest.approx(both, rel=1e-5)
        assert found["alone"] == [ensemble.scores(q, data.test.y) for q in p]
        assert found["disagreement"] == ensemble.disagreement(p).tolist()
        if arm in study.RESTARTS:
            mean = jax.tree.map(lambda *a: np.mean(a, 0), *members[-2:])
        elif arm == study.WHOLE:
            mean = {"params": optimizers.eval_params(each[0].opt, each[0].params)}
        else:
            continue
        (q,) = ensembles.probabilities(recipe, [mean], data, "test")
        shown = found["averaged"][1] if arm in study.RESTARTS else found["moving"]
        for key, value in ensemble.scores(q, data.test.y).items():
            assert shown[key] == pytest.approx(value, rel=1e-4, abs=1e-6)


SIZE = dataclasses.replace(SMOKE, epochs=10, members=5, repetitions=5)


def rows(accuracy, seed=0, noise=1e-5):
    """Of each repetition rows of members; the likelihood mirrors the accuracy."""
    curves = np.asarray(accuracy) + np.random.default_rng(seed).normal(0, noise, (5, 5))
    return [
        [
            {"members": m, "accuracy": a, "nll": 1 - a, "ece": 0.01}
            for m, a in enumerate(curve.tolist(), 1)
        ]
        for curve in curves
    ]


TABLE = 0.1 * np.abs(np.subtract.outer(np.arange(5), np.arange(5)))  # a tenth a cycle apart
RISING = 0.85 + 0.05 * (1 - 0.5 ** np.arange(5))


def made_up(**changed):
    """Runs of which one kind's curve is given: snapshots, short, whole, mean; moving as it is."""
    curves = {
        "snapshots": RISING,
        "higher": RISING + 0.01,
        "short": RISING - 0.02,
        "whole": RISING + 0.02,
        "mean": RISING - 0.001,
        "moving": np.full(5, 0.885),
    } | changed
    each = {k: rows(v, i) for i, (k, v) in enumerate(curves.items())}
    parts = zip(*(each[k] for k in curves), strict=True)
    runs = {arm: {"repetitions": []} for arm in ARMS}
    for snapshots, higher, short, whole, mean, moving in parts:
        same = {"disagreement": TABLE.tolist()}
        runs[study.SNAPSHOTS]["repetitions"].append(
            {"together": snapshots, "averaged": mean, **same}
        )
        runs[study.HIGHER]["repetitions"].append({"together": higher, **same})
        runs[study.SHORT]["repetitions"].append({"together": short, **same})
        runs[study.WHOLE]["repetitions"].append({"together": whole, "moving": moving[0], **same})
    return runs


def holds(**changed):
    """What is said of each claim, by a word of it, of accuracy."""
    found = study.verdicts(made_up(**changed), SIZE)
    words = {
        "last": "5 snapshots together beat the last of them: accuracy",
        "one": "5 snapshots together beat one run of the same length: accuracy",
        "higher last": "higher peak: 5 snapshots together beat the last of them: accuracy",
        "higher one": "higher peak: 5 snapshots together beat one run of the same length: accuracy",
        "higher": "those of the usual peak: accuracy",
        "short": "of the same budget: accuracy",
        "whole": "times the budget: accuracy",
        "saturates": "snapshots: members 2 to 3 add more than members 4 to 5: accuracy",
        "mean": "mean weights of the last 5",
        "moving": "the moving average along one run",
        "own": "the moving average beats",
    }
    said = {}
    for key, text in words.items():
        said[key] = next(v["holds"] for v in found if text in v["claim"])
    likely = [v for v in found if v["claim"].endswith("likelihood")]
    twins = [v for v in found if v["claim"].endswith(": accuracy")]
    # Here the likelihood follows the accuracy; the last of the twins has no claim of likelihood.
    assert [v["holds"] for v in likely] == [v["holds"] for v in twins[: len(likely)]]
    return said


def test_verdicts_follow_the_curves():
    as_claimed = dict.fromkeys(("last", "one", "short", "higher", "whole"), "yes")
    usual = holds()
    assert {k: usual[k] for k in as_claimed} == as_claimed
    assert usual["saturates"] == usual["mean"] == "yes"
    assert usual["moving"] == "no"  # 1.2 % short of 0.897
    assert usual["own"] == "yes"
    assert holds(snapshots=RISING[::-1])["last"] == "no"
    assert holds(higher=RISING[::-1])["higher last"] == "no"
    assert holds(higher=RISING - 0.01)["higher"] == "no"
    assert holds(higher=RISING + 0.03, whole=np.full(5, 0.91))["higher one"] == "yes"
    assert holds(short=RISING + 0.01)["short"] == "no"
    assert holds(whole=RISING - 0.01)["whole"] == "no"
    assert holds(whole=np.full(5, 0.95))["one"] == "no"
    assert holds(snapshots=0.85 + 0.01 * np.arange(5) ** 2)["saturates"] == "no"
    assert holds(mean=RISING - 0.01)["mean"] == "no"
    assert holds(moving=np.full(5, 0.9))["moving"] == "yes"
    assert holds(moving=np.full(5, 0.8))["own"] == "no"


def test_noise_makes_a_verdict_unclear():
    runs = made_up()
    for i, repetition in enumerate(runs[study.SHORT]["repetitions"]):
        for row in repetition["together"]:
            row["accuracy"] += 0.05 * (-1) ** i
    found = study.verdicts(runs, SIZE)
    (said,) = [v["holds"] for v in found if "of the same budget: accuracy" in v["claim"]]
    assert said == "unclear"


def test_disagreement_is_the_mean_of_pairs_that_are_as_far_apart():
    runs = made_up()
    np.testing.assert_allclose(study.disagreements(runs)[study.SHORT], [0.2])  # of ten pairs
    runs[study.SNAPSHOTS]["repetitions"][0] |= {"disagreement": (2 * TABLE).tolist()}
    runs[study.SHORT]["repetitions"][0] |= {"disagreement": (2 * TABLE).tolist()}
    found = study.disagreements(runs)
    np.testing.assert_allclose(found[study.SNAPSHOTS], [0.12, 0.24, 0.36, 0.48])
    np.testing.assert_allclose(found[study.SHORT], [0.24])


def test_the_table_names_what_each_kind_costs():
    found = {(r["kind"], r["members"]): r for r in study.summary(made_up(), SIZE)}
    assert found[study.WHOLE, 5]["budget"] == 5
    assert found[study.SNAPSHOTS, 5]["budget"] == found[study.SNAPSHOTS, 1]["budget"] == 1
    assert found[study.SHORT, 5]["budget"] == 1
    assert found[study.SHORT, 1]["budget"] == pytest.approx(0.2)
    assert found[study.ONE, 1]["accuracy"] == found[study.WHOLE, 1]["accuracy"]
    assert found[study.SNAPSHOTS, 3]["accuracy"] == pytest.approx(RISING[2], abs=1e-4)


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.snapshots_2017", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("snapshots_2017_smoke_*.json")
    record = records.read_json(path)
    updates = {arm: row["updates"] for arm, row in record["arms"].items()}
    assert updates == dict(zip(ARMS, (264, 264, 88, 264), strict=True))
    assert min(row["accuracy"] for row in record["rows"]) > 0.9
    # A cycle does not know what comes after it: the first snapshot is the first short run.
    kept = {arm: records.read_json(tmp_path / f"{arm.replace(' ', '_')}.json") for arm in ARMS}
    alike = study.SNAPSHOTS, study.SHORT
    pairs = zip(*(kept[arm]["repetitions"] for arm in alike), strict=True)
    for snapshots, short in pairs:
        for key, value in short["alone"][0].items():
            assert snapshots["alone"][0][key] == pytest.approx(value, rel=1e-4)
        assert snapshots["averaged"][0] == snapshots["together"][0]
    assert (tmp_path / "plots" / "snapshots_2017.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already trained") == 4
    assert records.read_json(path)["rows"] == record["rows"]
