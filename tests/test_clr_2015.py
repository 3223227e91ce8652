import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import arms
from experiments import clr_2015 as study
from lrlab import build, records
from tests.conftest import ROOT

SMOKE, DESK, PAPER = (study.SIZES[name] for name in ("smoke", "desk", "paper"))
# Every length and rate of the desk's plans, on data that need no download.
LIKE_DESK = dataclasses.replace(
    SMOKE, batch=1437 // 102, per_epoch=102, epochs=140, short=50, ranged=84, rates=DESK.rates
)


def clr(n, stepsize, base, top, height=None):
    """The published rule (B. Kenstler's form of it), float64 [n]; height: of (t, cycle)."""
    t = np.arange(n, dtype=np.float64)
    cycle = np.floor(1 + t / (2 * stepsize))
    x = np.abs(t / stepsize - 2 * cycle + 1)
    return base + (top - base) * np.maximum(0, 1 - x) * (height(t, cycle) if height else 1)


def wanted(size, arm):
    """The rates of an arm, written down without lrlab's schedules."""
    rule, kind = study.ARMS[arm]
    epochs = {"fixed": size.epochs, "exp_range": size.ranged}.get(kind, size.short)
    n, rates = epochs * size.per_epoch, size.rates[rule]
    base, top = rates.low, rates.high
    if kind == "fixed":
        return np.full(n, rates.fixed)
    if kind == "decay alone":
        return np.interp(np.arange(n), [0, round(0.16 * n)], [top, base])
    if kind == "exp_range":
        step = round(n / 20)
        return clr(n, step, base, top, lambda t, _: 0.99994 ** (42_000 * t / n))
    if kind == "triangular2":
        return clr(n, round(n / 12), base, top, lambda _, cycle: 0.5 ** (cycle - 1))
    if kind == "triangular":
        return clr(n, round(n / 12), base, top)
    first, second, third = (round(n * share) for share in (0.08, 0.04, 0.02))
    parts = (8 * first, 6 * second, n - 8 * first - 6 * second)
    if kind == "steps":
        return np.repeat([0.6 * top, 0.06 * top, 0.006 * top], parts)
    pieces = zip(parts, (first, second, third), (1, 0.1, 0.01), strict=True)
    return np.concatenate([clr(m, s, 0.2 * f * top, f * top) for m, s, f in pieces])


@pytest.mark.parametrize("size", [SMOKE, LIKE_DESK], ids=["smoke", "desk"])
@pytest.mark.parametrize("arm", study.ARMS)
def test_every_update_has_the_rate_of_the_formula(size, arm):
    planned, exact = study.plan(size, arm), wanted(size, arm)
    assert planned.shape == exact.shape
    np.testing.assert_allclose(planned, exact, rtol=2e-5)


def test_the_rates_of_size_paper_are_those_that_were_published(data_dir):
    plans = {arm: study.plan(PAPER, arm) for arm in study.ARMS if "," not in arm}
    lengths = {arm: len(plan) for arm, plan in plans.items()}
    published = {arm: n for arm, (n, _) in study.PUBLISHED.items() if "," not in arm}
    assert {arm: lengths[arm] for arm in published} == published
    for update, rate in {
        **{0: 0.001, 2_000: 0.005, 4_000: 0.001, 15_999: 0.001},
        **{16_000: 1e-4, 17_000: 5e-4, 18_000: 1e-4},
        **{22_000: 1e-5, 22_500: 5e-5, 24_500: 5e-5, 24_999: 1e-5},
    }.items():
        np.testing.assert_allclose(plans["pieces"][update], rate, rtol=0.01)
    np.testing.assert_allclose(plans["decay alone"][[0, 2_000, 4_000]], [0.005, 0.003, 0.001])
    assert (plans["fixed"] == np.float32(0.001)).all()
    for rule in study.RULES:
        assert study.PUBLISHED[f"{rule}, fixed"][0] == 70_000
        assert study.PUBLISHED[f"{rule}, triangular"][0] == 25_000


@pytest.mark.slow
def test_configs_of_all_sizes_are_sound(data_dir):
    for size in study.SIZES.values():
        assert size.epochs * 25 == size.short * 70  # the arms with cycles are that much shorter
        assert size.ranged == round(size.epochs * 42 / 70)
        assert size.seeds >= 3
        for arm in study.ARMS:
            recipe = build.check(study.config(size, arm), parts=1)
            assert recipe.per_epoch == size.per_epoch
            assert recipe.total == size.length(arm) * size.per_epoch
            assert recipe.warnings == ()


def test_cycles_are_around_the_fixed_rate_and_end_low():
    for size in SMOKE, DESK:
        for rates in size.rates.values():
            assert rates.low == pytest.approx(rates.high / 4)
            assert rates.fixed == pytest.approx((rates.low * rates.high) ** 0.5)
    for arm in study.CYCLIC:
        plan = study.plan(LIKE_DESK, arm)
        assert plan[-1] < 1.05 * plan.min()
        assert plan.max() <= np.float32(LIKE_DESK.rates["momentum"].high)


def test_the_rates_of_the_desk_are_the_best_of_the_recorded_sweep():
    found = sorted(arms.RESULTS.glob("clr_2015_rates_*.json"))
    if not found:
        pytest.skip("the sweep of --size=rates has no record yet")
    for path in found:
        record = records.read_json(path)
        assert record["rules"].keys() == DESK.rates.keys()
        for rule, seen in record["rules"].items():
            assert tuple(seen["lrs"]) == study.GRID[rule]
            best = seen["lrs"][int(np.argmax(seen["accuracy"]))]
            assert best == seen["best"] == DESK.rates[rule].fixed
            assert best not in (seen["lrs"][0], seen["lrs"][-1])  # the grid goes on on both sides


def run(final, at_short=None, updates=100, noise=1e-4, seed=0, low=0.5):
    """Four seeds whose curves rise from `low` in ten steps, through `at_short` after 40 %."""
    curve = np.linspace(low, final, 10)
    if at_short is not None:
        curve = np.interp(np.arange(10), [0, 3, 9], [low, at_short, final])
    curves = curve + np.random.default_rng(seed).normal(0, noise, (4, 10))
    ends = updates * np.arange(1, 11)
    return {"accuracy": curves.tolist(), "updates": ends.tolist(), "loss": [[1.0]] * 4}


def runs_with(**changes):
    """Arms of which the fixed ones have 0.90 after 1,000 updates and 0.85 after 400."""
    found = {}
    for i, (arm, (_, kind)) in enumerate(study.ARMS.items()):
        is_fixed = kind == "fixed"
        found[arm] = run(0.9, 0.85, seed=i) if is_fixed else run(0.88, updates=40, seed=i)
    return found | changes


def holds(claim, **changes):
    """What is said of the one claim that begins and ends as this one."""
    begin, _, end = claim.partition("...")
    said = [
        v["holds"]
        for v in study.verdicts(runs_with(**changes))
        if v["claim"].startswith(begin) and v["claim"].endswith(end)
    ]
    (one,) = said
    return one


REACHES = "triangular: reaches the fixed rate's accuracy ..."
FIXED = "triangular: ahead of the fixed rate at ..."
DECAY = "triangular: ahead of decay alone at ..."


@pytest.mark.parametrize(
    ("final", "noise", "said"),
    [
        (0.92, 1e-4, ("yes", "yes", "yes")),  # above is no failure to reach
        (0.897, 1e-4, ("yes", "yes", "yes")),  # within the margin
        (0.89, 1e-4, ("no", "yes", "yes")),
        (0.87, 1e-4, ("no", "yes", "no")),
        (0.84, 1e-4, ("no", "no", "no")),
        (0.89, 0.2, ("unclear", "unclear", "unclear")),
    ],
)
def test_verdicts_follow_the_curves(final, noise, said):
    changed = {"triangular": run(final, updates=40, noise=noise, seed=99)}
    assert tuple(holds(claim, **changed) for claim in (REACHES, FIXED, DECAY)) == said


def test_each_rule_is_judged_by_its_own_fixed_rate():
    changed = {"adam, fixed": run(0.8, 0.7, seed=7), "fixed": run(0.99, 0.98, seed=8)}
    assert holds("adam, triangular: reaches...", **changed) == "yes"
    assert holds("adam, triangular: ahead...", **changed) == "yes"
    assert holds("rmsprop, triangular: reaches...", **changed) == "no"
    assert holds("pieces: ahead of the fixed...", **changed) == "no"


def test_pieces_are_compared_with_what_is_left_without_cycles():
    for final, said in (0.9, "no"), (0.86, "yes"):
        changed = {"steps": run(final, updates=40, seed=50)}
        assert holds("pieces: ahead of their mean...", **changed) == said


def test_a_longer_arm_is_read_where_the_shorter_one_ends():
    # exp_range has 600 updates; after 400 it is far below decay alone's end.
    late = np.interp(np.arange(10), [0, 6, 9], [0.3, 0.6, 0.95])
    changed = {
        "exp_range": {
            **run(0.95, updates=60),
            "accuracy": (late + np.zeros((4, 1)) + [[0], [1e-4], [2e-4], [0]]).tolist(),
        }
    }
    assert holds("exp_range: ahead of decay alone...", **changed) == "no"
    assert holds("exp_range: reaches...", **changed) == "yes"


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.clr_2015", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("clr_2015_smoke_*.json")
    record = records.read_json(path)
    rows = {row["arm"]: row for row in record["arms"]}
    assert list(rows) == list(study.ARMS)
    assert {row["updates"] for row in rows.values()} == {445, 712, 1246}
    assert min(row["accuracy"] for row in rows.values()) > 0.9
    assert rows["fixed"]["published_accuracy"] == 0.814
    # In its first epoch a cycle's rates are others than its own held mean.
    assert rows["pieces"]["curve"][0] != rows["steps"]["curve"][0]
    assert len(record["verdicts"]) == 26
    for name in "clr_2015", "clr_2015_rules":
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already trained") == len(study.ARMS)
    assert "epoch 1" not in again.stdout
    assert records.read_json(path)["arms"] == record["arms"]
