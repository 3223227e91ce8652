"""The power law between the best rate and the batch, against one that was built in."""

import numpy as np
import pytest

from lrlab.analysis import valley


def rows(power, noise=0.0, seeds=3, sizes=(8, 16, 32, 64, 128)):
    """A grid whose accuracy falls on both sides of rate = 0.01 (size / 8)^power."""
    rng = np.random.default_rng(0)
    lrs = np.geomspace(1e-4, 10, 61)
    found = []
    for size in sizes:
        best = 0.01 * (size / 8) ** power
        for seed in range(seeds):
            away = np.log10(lrs / best) + noise * rng.normal()
            for lr, x in zip(lrs, away, strict=True):
                score = 0.9 - 0.02 * x**2
                found.append({"lr": float(lr), "batch.size": size, "seed": seed,
                              "val_accuracy": score, "val_loss": 1 - score, "updates": 1,
                              "outcome": "budget"})  # fmt: skip
    return found


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_that_was_built_in_is_found(power):
    found = valley.scaling(rows(power))
    assert found["power"] == pytest.approx(power, abs=0.05)
    assert found["sizes"] == [8, 16, 32, 64, 128]
    assert found["low"] <= found["power"] <= found["high"]


def test_seeds_that_differ_widen_the_interval_and_one_seed_has_none():
    wide = valley.scaling(rows(0.5, noise=0.3, seeds=5))
    assert wide["low"] < 0.5 < wide["high"]
    assert wide["high"] - wide["low"] > 0.02
    assert valley.scaling(rows(0.5, seeds=1))["low"] is None


def test_a_band_that_ends_at_the_rates_tried_says_nothing():
    found = valley.scaling(rows(1.0, sizes=(8, 16, 32, 64, 8000, 16000)))
    assert found["sizes"] == [8, 16, 32, 64]
    assert valley.scaling(rows(1.0, sizes=(8, 16))) is None
