import csv
import hashlib
import math
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.mack_2018 import claims, plan
from lrlab import records
from lrlab.jobs import sweep
from lrlab.models import cnn
from tests.conftest import ROOT


def test_the_rates_are_those_of_his_points():
    with (plan.SOURCE / "time_vs_lr.csv").open() as f:
        his = {round(math.log10(float(r["learning_rate"])), 6) for r in csv.DictReader(f)}
    assert {round(math.log10(lr), 6) for lr in plan.rates()} == his
    assert len(plan.rates()) == 48
    assert 1.0 not in plan.rates()


def test_his_files_are_unchanged():
    source = (plan.SOURCE / "SOURCE").read_text()
    said = dict(re.findall(r"^(\S+\.csv).*?sha256 (\w{64})", source, re.M | re.S))
    assert said.keys() == {"time_vs_lr.csv", "time_vs_size.csv"}
    for name, digest in said.items():
        assert hashlib.sha256((plan.SOURCE / name).read_bytes()).hexdigest() == digest


def test_his_points_give_the_published_bands():
    found, runs = plan.his_times()
    assert (runs, sum(map(len, found.values()))) == (287, 51)
    bands = {row["rule"]: row["published"] for row in claims.bands(plan.rates(), found, found)}
    expected = {
        "Adam": (15, 4.6e-5, 1e-2),
        "Adadelta": (13, 0.316, 46.4),
        "Momentum": (7, 0.0215, 0.215),
        "Adagrad": (6, 0.0215, 0.147),
        "GD": (6, 0.046, 0.316),
        "RMSProp": (4, 3.2e-4, 1.5e-3),
    }
    for rule, (trained, low, high) in expected.items():
        band = bands[rule]
        assert band["trained"] == trained
        np.testing.assert_allclose((band["low"], band["high"]), (low, high), rtol=0.03)
    assert [rule for rule in bands if bands[rule]["gaps"]] == ["RMSProp"]


@pytest.mark.parametrize("scale", [1.0, 1.25, 2.5])
def test_weights_are_those_that_the_nets_have(scale):
    for net in cnn.SmallCNN(10, scale=scale), cnn.MnistCNN(10, scale=scale):
        shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
        weights = sum(math.prod(a.shape) for a in jax.tree.leaves(shapes))
        assert plan.cost(f"cnn.{type(net).__name__}", scale)[0] == weights


def test_operations_are_those_that_were_counted_for_the_nets():
    assert plan.cost("cnn.SmallCNN", 1.0)[1] == pytest.approx(0.553e6, rel=0.001)
    assert 100 * plan.cost("cnn.MnistCNN", 1.0)[1] == pytest.approx(8.2e9, rel=0.01)


def test_no_trial_that_would_pass_is_ruled_out():
    rng = np.random.default_rng(0)
    passed = ruled_out = 0
    for _ in range(400):
        accuracy = np.sort(rng.beta(4, rng.choice([0.05, 0.2, 1.0]), 40))
        accuracy = rng.permutation(accuracy) if rng.random() < 0.3 else accuracy
        updates = 50 * np.arange(1, 41)
        passes = (np.cumsum(accuracy) / np.arange(1, 41) >= 0.9).any()
        began = int(rng.integers(1, 41))
        curve = [[int(u), 0.0, a] for u, a in zip(updates, accuracy, strict=True)][:began]
        in_reach = plan.is_in_reach({"curve": curve, "outcome": "budget"}, 0.9, 2000)
        assert in_reach or not passes
        passed, ruled_out = passed + passes, ruled_out + (not in_reach)
    assert passed > 50
    assert ruled_out > 50


def test_a_trial_is_out_of_reach_from_the_first_wrong_answer_too_many():
    def row(accuracy, outcome="budget"):
        return {"curve": [[100, 1.0, accuracy]], "outcome": outcome}

    assert plan.is_in_reach(row(0.71), 0.97, 1000)  # 29 of 30 updates' worth
    assert not plan.is_in_reach(row(0.69), 0.97, 1000)
    assert not plan.is_in_reach(row(0.71, "diverged"), 0.97, 1000)
    assert plan.is_in_reach(row(0.98, "diverged"), 0.97, 1000)  # it had passed before


def test_roughness_is_one_on_a_slope_and_the_factor_on_a_zigzag():
    lrs = plan.rates()[30:42]  # with the gap at 1, which none of his rates fills
    slope = [(lr, 1000 * 2.0**i) for i, lr in enumerate(lrs)]
    zigzag = [(lr, 1000 * 3.0 ** (i % 2)) for i, lr in enumerate(lrs)]
    assert claims.roughness({"GD": slope}) == pytest.approx(1)
    assert claims.roughness({"GD": zigzag}) == pytest.approx(3)
    assert claims.roughness({"GD": zigzag[::2]}) is None  # no neighbours


def test_ties_are_counted_beside_the_fastest_of_each_rule():
    found = {"GD": [(0.1, 100.0), (1.0, 104.0), (10.0, 106.0)], "Adam": [(0.1, 5.0)], "RMSProp": []}
    assert claims.ties(found) == {"trials": 1, "widest_decades": 1.0}


def test_the_line_is_found_and_its_interval_holds_it():
    rng = np.random.default_rng(3)
    x = np.linspace(1e3, 1e5, 40)
    found = claims.line(x, 2 + 3e-4 * x + rng.normal(0, 1, 40))
    assert found["c_interval"][0] < 2 < found["c_interval"][1]
    assert found["k_interval"][0] < 3e-4 < found["k_interval"][1]
    assert found["r2"] > 0.95
    exact = claims.line(x, 2 + 3e-4 * x)
    np.testing.assert_allclose((exact["c"], exact["k"], exact["r2"]), (2, 3e-4, 1), rtol=1e-6)


def _grown(power, moves):
    """Six rates at four scales: time as weights^power, the best rate as weights^moves."""
    rows = []
    for scale in 1.0, 2.0, 3.0, 4.0:
        weights = plan.cost("cnn.SmallCNN", scale)[0]
        best = 1e-3 * (weights / 3424) ** moves
        for lr in plan.SIZE_RATES:
            took = weights**power * 10 ** abs(math.log10(lr / best))
            row = {"scale": scale, "lr": lr, "seed": 0, "updates": took}
            rows.append(row | {"outcome": "target" if lr > 1e-4 else "budget"})
    return claims.growth(rows, "cnn.SmallCNN", "updates")


def test_growth_finds_the_power_and_whether_the_best_rate_moves():
    still, moved = _grown(1.0, 0.0), _grown(0.5, 0.8)
    assert still["lr"] == 1e-3
    assert still["power"]["k"] == pytest.approx(1)
    assert still["fit"]["r2"] == pytest.approx(1)
    assert still["moves"]["k"] == pytest.approx(0, abs=1e-9)
    assert 0.5 < moved["moves"]["k"] < 1.1
    assert claims.growth([], "cnn.SmallCNN", "updates")["fit"] is None


def _verdicts(clean, cumulative):
    grown = dict.fromkeys(("ours", "operations", "updates", "published"), _grown(1.0, 0.0))
    found = claims.verdicts(plan.rates(), clean, cumulative, grown, 288)
    return {v["claim"]: v["holds"] for v in found}


def test_verdicts_follow_the_trials():
    his = plan.his_times()[0]
    assert _verdicts(his, his) == {
        "most rates fail": "yes",
        "each rule has a valley": "no",  # RMSProp's has a gap
        "no rate for all": "yes",
        "the best is far faster than the median": "yes",
        "Adam's band is wide, and the widest": "yes",
        "the best rate moves with size": "no",
        "time grows linearly with size": "yes",
        "the cumulative stop rule explains his scatter": "in part",  # as rough, but no later
    }
    every = {rule: [(lr, 100.0) for lr in plan.rates()] for rule in plan.RULES}
    found = _verdicts(every, every)
    assert found["most rates fail"] == "no"
    assert found["no rate for all"] == "no"
    assert found["the best is far faster than the median"] == "no"
    none = {rule: [] for rule in plan.RULES}
    assert _verdicts(none, none)["each rule has a valley"] == "no"


@pytest.mark.slow
@pytest.mark.parametrize("size", ["desk", "paper"])
def test_the_plans_are_sound(size, data_dir):
    chosen = plan.SIZES[size]
    grid = sweep.check(plan.config(chosen, "clean"))
    assert (len(grid.trials), len(grid.groups)) == (288, 6)
    assert grid.updates(grid.groups[0].recipe) == chosen.clean
    target = sweep.check(plan.config(chosen, "published", "GD", (0.1,))).sweep.target
    assert (target.accuracy, target.examples, target.every) == (0.97, None, 50)


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(data_dir, tmp_path):
    command = [sys.executable, "-m", "experiments.mack_2018", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "LRLAB_DATA_DIR": str(data_dir)
    }
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("mack_2018_smoke_*.json")
    record = records.read_json(path)
    assert record["studies"]["clean"]["trials"] == 36
    assert record["same"]["largest"] == 0
    assert len(list((tmp_path / "plots").glob("*.png"))) == 5
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already finished") >= 3
    assert records.read_json(path)["trained"] == record["trained"]
