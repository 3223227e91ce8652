import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import arms
from experiments import super_convergence as study
from lrlab import build, records
from lrlab.models import cnn
from tests.conftest import ROOT

SMOKE, DESK, PAPER = (study.SIZES[name] for name in ("smoke", "desk", "paper"))


def wanted(size, name):
    """The rates of an arm, float64, corner by corner."""
    arm = size.arms[name]
    n, high = arm.epochs * size.per_epoch, arm.high
    t = np.arange(n)
    if not arm.cycles:
        return high * np.where(t < 5 * n / 8, 1, np.where(t < 7 * n / 8, 0.1, 0.01))
    if arm.tail:
        corners = [0, round(0.45 * n), 2 * round(0.45 * n), n]
        return np.interp(t, corners, [high / 30, high, high / 30, high / 3000])
    return np.interp(t, [0, n // 2, n], [high / 30, high, high / 30])


@pytest.mark.parametrize("name", SMOKE.arms)
def test_every_update_has_the_rate_of_the_formula(name):
    planned, exact = study.plan(SMOKE, SMOKE.arms[name]), wanted(SMOKE, name)
    assert planned.shape == exact.shape
    np.testing.assert_allclose(planned, exact, rtol=1e-5)


def test_momentum_falls_while_the_rate_rises():
    name = f"{SMOKE.cycle}, momentum"
    recipe = build.check(study.config(SMOKE, SMOKE.arms[name]), parts=1)
    momentum = np.asarray(jax.vmap(recipe.scheduled["decay"])(jnp.arange(recipe.total)))
    rates = study.plan(SMOKE, SMOKE.arms[name])
    share = (rates / SMOKE.high - 1 / 30) / (1 - 1 / 30)
    np.testing.assert_allclose(momentum, 0.95 - 0.1 * share, atol=1e-5)
    assert (len(rates), float(momentum.min())) == (88, pytest.approx(0.85))
    for other in (name for name in SMOKE.arms if "momentum" not in name):
        optimizer = study.config(SMOKE, SMOKE.arms[other])["optimizer"]
        assert optimizer == {"name": "momentum", "decay": 0.9}


# Its own net takes seconds to trace, arm by arm.
SHALLOW = dataclasses.replace(PAPER, model={**PAPER.model, "stage_sizes": (1, 1, 1)})


def test_the_plans_of_size_paper_are_those_that_were_published(data_dir):
    cycle = study.plan(SHALLOW, PAPER.arms["one cycle to 3"])
    assert PAPER.cycle == "one cycle to 3"
    assert len(cycle) == 10_000
    np.testing.assert_allclose(cycle[[0, 2_500, 5_000, 7_500]], [0.1, 1.55, 3, 1.55], rtol=1e-5)
    steps = study.plan(SHALLOW, PAPER.arms["steps"])
    assert np.flatnonzero(np.diff(steps)).tolist() == [49_999, 69_999]
    np.testing.assert_allclose(steps[[0, 50_000, 79_999]], [0.35, 0.035, 0.0035], rtol=1e-5)
    assert len(steps) == study.PUBLISHED["steps"][0]


@pytest.mark.parametrize("size", [SMOKE, DESK, SHALLOW], ids=["smoke", "desk", "paper"])
def test_configs_of_all_sizes_are_sound(size, data_dir):
    assert size.high in size.highs
    assert size.seeds >= 3
    assert size.epochs == (8 if size is SHALLOW else 10) * size.short
    for name, arm in size.arms.items():
        recipe = build.check(study.config(size, arm), parts=1)
        assert recipe.per_epoch == size.per_epoch
        assert recipe.total == (size.epochs if name == "steps" else size.short) * size.per_epoch
        np.testing.assert_allclose(float(recipe.rates().max()), arm.high, rtol=0.05)


def test_the_net_of_size_paper_is_resnet_56(data_dir):
    recipe = build.check(study.config(PAPER, PAPER.arms["one cycle to 3"]), parts=1)
    kernels = [p for p in jax.tree.leaves(recipe.shapes.params) if p.ndim > 1]
    assert len(kernels) == 56 + 2  # and two projections
    assert recipe.warnings == ()


def test_the_net_is_small_cnn_normalised(data_dir):
    recipe = build.check(study.config(DESK, DESK.arms["steps"]), parts=1)
    plain = build.check({**recipe.config, "model": {"name": "cnn.SmallCNN"}}, parts=1)
    assert recipe.parameters == 3484 == plain.parameters + 2 * (4 + 8 + 18)
    assert isinstance(plain.model, cnn.SmallCNN)


def test_a_batch_is_normalised_in_training_and_by_running_means_otherwise():
    net = study.NormedCNN(10)
    x = jax.random.normal(jax.random.key(0), (64, 28, 28, 1))
    variables = net.init(jax.random.key(1), x, train=False)
    # A positive factor of an input without a mean passes through a normalised net, but not a bias.
    trained, _ = net.apply(variables, x, train=True, mutable=["batch_stats"])
    scaled, _ = net.apply(variables, 3 * x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(trained, scaled, atol=2e-3)
    apart = net.apply(variables, x, train=False), net.apply(variables, 3 * x, train=False)
    assert np.abs(np.subtract(*apart)).max() > 0.1
    with pytest.raises(ValueError, match="images"):
        net.init(jax.random.key(0), jnp.zeros((2, 5)))


def test_the_rates_of_the_desk_are_the_best_of_the_recorded_sweep():
    found = sorted(arms.RESULTS.glob("super_convergence_rates_*.json"))
    if not found:
        pytest.skip("the sweep of --size=rates has no record yet")
    used = {study.FULL: DESK.steps, study.SHORT: DESK.steps_short, "cycle": DESK.high}
    for path in found:
        record = records.read_json(path)
        assert record["schedules"].keys() == used.keys()
        for kind, seen in record["schedules"].items():
            assert tuple(seen["lrs"]) == study.GRID[kind]
            best = seen["lrs"][int(np.argmax(seen["accuracy"]))]
            assert best == seen["best"] == used[kind]
            assert best not in (seen["lrs"][0], seen["lrs"][-1])


def run(final, updates, noise=1e-4, seed=0):
    """Four seeds whose curves rise to `final` in ten steps."""
    curves = np.linspace(0.5, final, 10)
    curves = curves + np.random.default_rng(seed).normal(0, noise, (4, 10))
    ends = updates * np.arange(1, 11)
    return {"accuracy": curves.tolist(), "updates": ends.tolist(), "loss": [[1.0]] * 4}


def holds(cycle, tail=0.9, momentum=0.9, noise=1e-4):
    """What is said of each claim where decay has 0.90 in the full budget and 0.87 in a tenth."""
    runs = {
        "steps": run(0.9, 1000, seed=1),
        "steps, short": run(0.87, 100, seed=2),
        "one cycle to 3": run(cycle, 100, noise, seed=3),
        "one cycle to 3, tail": run(tail, 100, noise, seed=4),
        "one cycle to 3, momentum": run(momentum, 100, noise, seed=5),
    }
    return [v["holds"] for v in study.verdicts(runs, "one cycle to 3")]


@pytest.mark.parametrize(
    ("cycle", "noise", "said"),
    [
        (0.93, 1e-4, ["yes", "yes"]),
        (0.897, 1e-4, ["yes", "yes"]),  # within the margin
        (0.89, 1e-4, ["no", "yes"]),
        (0.86, 1e-4, ["no", "no"]),
        (0.89, 0.2, ["unclear", "unclear"]),
    ],
)
def test_verdicts_follow_the_curves(cycle, noise, said):
    assert holds(cycle, noise=noise)[:2] == said


def test_tail_and_momentum_have_verdicts_of_their_own():
    assert holds(0.88, tail=0.91, momentum=0.86) == [
        *("no", "yes"),  # the cycle
        *("yes", "yes"),  # with a tail
        *("no", "no"),  # with momentum
        *("yes", "no"),  # against the cycle alone
    ]


def test_what_was_seen_names_the_updates_of_both():
    runs = {
        "steps": run(0.9, 1000),
        "steps, short": run(0.87, 100),
        **{f"c{more}": run(0.9, 100) for more in ("", ", tail", ", momentum")},
    }
    first, second, *_ = study.verdicts(runs, "c")
    assert "1,000 against 10,000 updates" in first["seen"]
    assert "in 0.1 of its updates" in first["claim"]
    assert "1,000 against 1,000 updates" in second["seen"]


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.super_convergence", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("super_convergence_smoke_*.json")
    record = records.read_json(path)
    rows = {row["arm"]: row for row in record["arms"]}
    assert list(rows) == list(SMOKE.arms)
    assert [row["updates"] for row in rows.values()] == [880, *[88] * 5]
    assert rows["steps"]["accuracy"] > 0.9
    assert min(row["accuracy"] for row in rows.values()) > 0.5
    assert len(record["verdicts"]) == 8
    assert (tmp_path / "plots" / "super_convergence.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already trained") == len(rows)
    assert "epoch 1" not in again.stdout
    assert records.read_json(path)["arms"] == record["arms"]
