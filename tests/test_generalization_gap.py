import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from experiments import generalization_gap as study
from lrlab import build, records
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]


def test_two_ways_keep_the_small_batchs_noise_scale_and_two_do_not():
    for size in study.SIZES.values():
        smoke = dataclasses.replace(SMOKE, small=size.small, large=size.large, lr=size.lr)
        found = {
            way: study.noise(build.check(study.config(smoke, way), parts=1))
            for way in (study.SMALL, *study.WAYS)
        }
        factor, base = size.large / size.small, found[study.SMALL]
        assert base == pytest.approx(size.lr * 1437 / size.small / 0.1)
        assert found["linear"] == pytest.approx(base)
        assert found["momentum"] == pytest.approx(base)
        assert found["square root"] == pytest.approx(base / factor**0.5)
        assert found["fixed rate"] == pytest.approx(base / factor)


def test_momentum_and_rate_share_what_the_linear_way_gives_to_the_rate():
    way = study.config(SMOKE, "momentum")
    assert way["batch"]["coupling"] == "sqrt"
    assert 1 - way["optimizer"]["decay"] == pytest.approx(0.1 / 4)


def run(test, train=0.99, sharp=10.0, seed=0):
    """Six seeds about these values."""
    rng = np.random.default_rng(seed)
    off = rng.normal(0, 1e-3, 6)
    return {
        "test_accuracy": (test + off).tolist(),
        "train_accuracy": (train + off).tolist(),
        "sharpness": (sharp * np.exp(10 * off)).tolist(),
    }


def holds(**changed):
    runs = {way: run(0.85, seed=i) for i, way in enumerate((study.SMALL, *study.WAYS))}
    runs |= {name.replace("_", " "): found for name, found in changed.items()}
    return {v["claim"]: v["holds"] for v in study.verdicts(runs)}


def test_verdicts_follow_the_runs():
    worse = "at a fixed rate the large batch tests worse"
    more = "at a fixed rate the large batch overfits more"
    sharper = "fixed rate: the large batch ends sharper"
    as_keskar = holds(fixed_rate=run(0.80, sharp=40.0))
    assert [as_keskar[k] for k in (worse, more, sharper)] == ["yes", "yes", "yes"]
    undone = holds(fixed_rate=run(0.80, train=0.81, sharp=3.0))
    assert [undone[k] for k in (worse, more, sharper)] == ["yes", "no", "no"]
    better = holds(fixed_rate=run(0.90))
    assert [better[k] for k in (worse, more)] == ["no", "no"]
    flat = holds(linear=run(0.80), momentum=run(0.852, sharp=-1.0))
    assert flat["linear: tests as well as the small batch"] == "no"
    assert flat["momentum: tests as well as the small batch"] == "yes"
    assert flat["momentum: the large batch ends sharper"] == "no"
    assert flat["square root: tests as well as the small batch"] == "yes"


def test_the_sharpness_is_that_of_the_mean_loss_of_the_first_training_examples(monkeypatch):
    monkeypatch.setattr(study, "EXAMPLES", 20)
    monkeypatch.setattr(study, "STEPS", 60)
    config = study.config(SMOKE, "linear") | {"model": {"name": "mlp.MLP", "widths": (4,)}}
    recipe = build.check(config, parts=1)
    data, params = recipe.read(), recipe.init().params
    x = (data.train.x[:20].astype(np.float32) - data.shift) * data.scale
    flat, unravel = ravel_pytree(jax.tree.map(np.asarray, params))

    def loss(p):
        logits = recipe.model.apply({"params": unravel(p)}, x, train=False)
        labels = data.train.y[:20]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    exact = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64))[-1]
    found, error = study.sharpness_of(recipe, data, params)
    assert found == pytest.approx(exact, rel=1e-3)
    assert error < 1e-2 * found


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.generalization_gap", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("generalization_gap_smoke_*.json")
    record = records.read_json(path)
    assert record["ways"].keys() == {study.SMALL, *study.WAYS}
    for way in record["ways"].values():
        assert len(way["sharpness"]) == record["n"] == 3
        assert min(way["sharpness"]) > 0
    assert record["verdicts"][0]["holds"] == "yes"  # sixteen times fewer updates at one rate
    assert (tmp_path / "plots" / "generalization_gap.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.stdout.count("already trained") == 5
    assert records.read_json(path)["ways"] == record["ways"]
