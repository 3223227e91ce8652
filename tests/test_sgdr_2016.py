import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import arms
from experiments import sgdr_2016 as study
from lrlab import build, records
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]
PER_EPOCH = 1437 // SMOKE.batch


def cosine(done):
    return (1 + np.cos(np.pi * done)) / 2


def expected(size, arm, per_epoch):
    """The multiplier of every update, float64, written from the paper's equation 5."""
    total = size.epochs * per_epoch
    t = np.arange(total)
    if arm == study.COSINE:
        return cosine(t / total)
    if arm == study.STEP:
        drops = [round(part * total) for part in (0.3, 0.6, 0.8)]
        return 0.2 ** sum((t >= drop).astype(float) for drop in drops)
    t_0, t_mult = (int(word.strip("x,")) for word in arm.split()[1:])
    parts, length = [], t_0
    while sum(map(len, parts)) < total:
        cycle = length * per_epoch
        parts.append(cosine(np.arange(cycle) / cycle))
        length *= t_mult
    return np.concatenate(parts)


def test_the_rates_of_every_arm_are_those_of_the_formula():
    size = dataclasses.replace(SMOKE, epochs=15, restarts=study.SIZES["desk"].restarts)
    assert len(study.schedules(size)) == 6
    for arm in study.schedules(size):
        recipe = build.check(study.config(size, arm), parts=1)
        exact = size.lr * expected(size, arm, PER_EPOCH)
        assert len(exact) == recipe.total == 15 * PER_EPOCH
        np.testing.assert_allclose(recipe.rates(), exact, rtol=2e-6, atol=1e-8)


LONGER = [pytest.param(n, marks=pytest.mark.slow if n == "paper" else ()) for n in study.SIZES]


@pytest.mark.parametrize("name", LONGER)
def test_every_arm_of_a_size_is_sound_and_alike_but_for_its_schedule(name, request):
    if name != "smoke":
        request.getfixturevalue("data_dir")  # or it is skipped
    size = study.SIZES[name]
    recipes = [build.check(study.config(size, arm), parts=1) for arm in study.schedules(size)]
    assert len({recipe.total for recipe in recipes}) == 1
    assert all(not recipe.warnings for recipe in recipes)
    rest = [{k: v for k, v in r.config.items() if k != "schedule"} for r in recipes]
    assert all(config == rest[0] for config in rest)
    assert rest[0]["l2"] == 5e-4
    assert rest[0]["optimizer"]["decay"] == 0.9
    assert size.seeds >= 3


def test_every_budget_ends_with_a_cycle_and_another_is_refused():
    for size in study.SIZES.values():
        for cycle in size.restarts:
            assert study.ends(*cycle, size.epochs)[-1] == size.epochs
    assert study.ends(1, 2, 15) == [1, 3, 7, 15]
    assert study.ends(10, 2, 150) == [10, 30, 70, 150]
    assert study.ends(50, 1, 150) == [50, 100, 150]
    with pytest.raises(ValueError, match="inside a cycle"):
        study.ends(10, 2, 200)


def test_best_so_far_never_falls_and_is_the_best():
    run = {"accuracy": [[0.5, 0.7, 0.6, 0.8], [0.6, 0.5, 0.4, 0.3]]}
    expected = [[0.5, 0.7, 0.7, 0.8], [0.6, 0.6, 0.6, 0.6]]
    np.testing.assert_array_equal(study.best_so_far(run), expected)


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [
        (0.001, 0.004, "yes"),
        (-0.004, 0.001, "yes"),
        (-0.006, 0.02, "unclear"),
        (-0.02, -0.004, "unclear"),
        (-0.02, -0.006, "no"),
    ],
)
def test_step_decay_is_reached_only_where_the_whole_interval_says_so(low, high, holds):
    assert arms.reaches({"gap": (low + high) / 2, "low": low, "high": high}) == holds


SIZE = dataclasses.replace(SMOKE, epochs=7, restarts=((1, 2),))
RESTARTS = study.named(1, 2)


def run(curve, noise=1e-4, seed=0):
    rng = np.random.default_rng(seed)
    return {"accuracy": (np.array(curve) + rng.normal(0, noise, (5, 7))).tolist()}


def holds(**changed):
    """What verdicts say, by the claims' ends, where all arms rise alike but those given."""
    rise = 0.85 + 0.01 * np.arange(7)
    runs = {name: run(rise, seed=i) for i, name in enumerate((study.STEP, study.COSINE, RESTARTS))}
    names = {"step": study.STEP, "cosine": study.COSINE, "restarts": RESTARTS}
    runs |= {names[k]: v for k, v in changed.items()}
    found = study.verdicts(runs, SIZE)
    words = "reaches", "at 0.25 of", "at 0.5 of", "beats", "each cycle"
    assert all(word in v["claim"] for word, v in zip(words, found, strict=True))
    return [v["holds"] for v in found]


def test_verdicts_follow_the_curves():
    rise = 0.85 + 0.01 * np.arange(7)
    early = rise + np.array([0.02, 0.02, 0.02, 0, 0, 0, 0])
    assert holds(restarts=run(early, seed=5)) == ["yes", "yes", "yes", holds()[3], "yes"]
    late = rise - np.array([0.02, 0.02, 0.02, 0, 0, 0, 0])
    assert holds(restarts=run(late, seed=5))[:3] == ["yes", "no", "no"]
    short = rise - np.array([0, 0, 0, 0, 0, 0, 0.02])
    assert holds(restarts=run(short, seed=5))[0] == "no"
    assert holds(cosine=run(rise + 0.01, seed=6))[3] == "yes"
    assert holds(cosine=run(rise - 0.01, seed=6))[3] == "no"
    assert holds(restarts=run(rise, 0.05, seed=7))[0] == "unclear"


def test_only_ends_of_cycles_count_for_the_rise_and_one_fall_is_enough():
    rise = 0.85 + 0.01 * np.arange(7)
    sawtooth = rise.copy()
    sawtooth[[1, 3, 4, 5]] -= 0.2  # just after a restart
    assert holds(restarts=run(sawtooth, seed=5))[4] == "yes"
    fallen = rise.copy()
    fallen[2] = rise[0] - 0.01  # the second cycle's end
    assert holds(restarts=run(fallen, seed=5))[4] == "no"
    gaps = study.rises(run(rise, 0.0), [1, 3, 7])
    np.testing.assert_allclose([g["gap"] for g in gaps], [0.02, 0.04])


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.sgdr_2016", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "already trained" not in first.stdout
    (path,) = tmp_path.glob("sgdr_2016_smoke_*.json")
    record = records.read_json(path)
    assert [row["arm"] for row in record["arms"]] == [*study.schedules(SMOKE)]
    assert {row["updates"] for row in record["arms"]} == {SMOKE.epochs * PER_EPOCH}
    assert min(row["accuracy"] for row in record["arms"]) > 0.9
    # The two that restart are one run until the first restarts of one alone.
    _, _, doubled, fixed = record["arms"]
    assert doubled["curve"][0] == fixed["curve"][0]
    assert doubled["curve"][1:3] != fixed["curve"][1:3]
    for figure in "sgdr_2016", "sgdr_2016_anytime":
        assert (tmp_path / "plots" / f"{figure}.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already trained") == 4
    assert "epoch 1 of" not in again.stdout
    assert records.read_json(path)["arms"] == record["arms"]
