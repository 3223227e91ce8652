import math

import numpy as np
import optax
import pytest

from lrlab import batching

# semantics.md 5: a constant loss; the observations after which the rate is lower.
TABLE = {
    ("torch", 0, 0): [1, 2, 3],
    ("torch", 1, 0): [2, 4, 6],
    ("torch", 2, 0): [3, 6, 9],
    ("torch", 3, 0): [4, 8],
    ("torch", 2, 2): [3, 8, 13],
    ("keras", 0, 0): [1, 2, 3],
    ("keras", 1, 0): [1, 2, 3],
    ("keras", 2, 0): [2, 4, 6],
    ("keras", 3, 0): [3, 6, 9],
    ("keras", 2, 2): [2, 5, 8],
    ("fastai", 2, 0): [2, 4, 6],
    ("optax", 1, 0): [1, 2, 3],
    ("optax", 2, 0): [2, 4, 6],
    ("optax", 3, 0): [3, 6, 9],
    ("optax", 2, 2): [2, 6, 10],
    ("lrlab", 2, 0): [2, 4, 6],
    ("lrlab", 2, 2): [2, 6, 10],
}


def reductions(losses, **settings):
    """Observations (from 0) after which the scale is lower than before."""
    regime = batching.plateau(size=8, factor=0.5, **settings)
    scales = [regime.at(epoch, losses)[1] for epoch in range(len(losses) + 1)]
    return [i for i in range(len(losses)) if scales[i + 1] < scales[i]]


@pytest.mark.parametrize("case", TABLE)
def test_a_plateau_reduces_when_the_library_named_does(case):
    dialect, patience, cooldown = case
    expected = TABLE[case]
    found = reductions([1.0] * 14, dialect=dialect, patience=patience, cooldown=cooldown)
    assert found[: len(expected)] == expected


def test_torch_one_less_is_optax_and_keras():
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = list(np.abs(rng.normal(size=40)))
        p = int(rng.integers(1, 5))
        found = [
            reductions(losses, dialect=d, patience=p - (d == "torch"))
            for d in ("torch", "optax", "keras")
        ]
        assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_our_plateau_is_optaxs_on_random_losses():
    rng = np.random.default_rng(1)
    for _ in range(20):
        losses = np.abs(rng.normal(size=30)).astype(np.float32)
        patience, cooldown = int(rng.integers(1, 5)), int(rng.integers(0, 4))
        tx = optax.contrib.reduce_on_plateau(
            factor=0.5, patience=patience, cooldown=cooldown, rtol=1e-4
        )
        state, scales = tx.init({"w": np.float32(0)}), [1.0]
        for loss in losses:
            _, state = tx.update({"w": np.float32(1)}, state, value=loss)
            scales.append(float(state.scale))
        regime = batching.plateau(size=8, factor=0.5, patience=patience, cooldown=cooldown)
        ours = [regime.at(e, [float(x) for x in losses])[1] for e in range(len(losses) + 1)]
        assert ours == scales


def test_nan_is_passed_over_by_ours_and_counts_in_the_others():
    losses = [1.0, math.nan, math.nan, math.nan, 0.5]
    assert reductions(losses, patience=3) == []
    for dialect, patience in (("torch", 2), ("keras", 3), ("optax", 3)):
        assert reductions(losses, dialect=dialect, patience=patience) == [3]


def test_small_and_negative_losses_improve_by_our_relative_threshold():
    falling = [1e-5 * 0.9**i for i in range(12)]
    assert reductions(falling, patience=2) == []
    assert reductions(falling, patience=2, dialect="keras", threshold_mode="abs") == [
        2,
        4,
        6,
        8,
        10,
    ]
    rising = [-1.0, -0.99995, -0.99993]  # worse each time, yet torch's threshold calls it better
    assert reductions(rising, patience=2) == [2]
    assert reductions(rising, patience=1, dialect="torch") == []


def test_the_floor_holds_and_a_resumed_run_replays_the_same():
    regime = batching.plateau(size=8, factor=0.1, patience=1, min_scale=0.05)
    losses = [1.0] * 5
    assert [regime.at(e, losses[:e])[1] for e in range(6)] == [1.0, 1.0, 0.1, 0.05, 0.05, 0.05]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"factor": 1.0}, r"batch.factor=1.0 must lie in \(0, 1\)"),
        ({"factor": 0.0}, "batch.factor=0.0"),
        ({"patience": -1}, "batch.patience=-1 must be a whole number >= 1"),
        ({"patience": 0, "dialect": "optax"}, "batch.patience=0 must be a whole number >= 1"),
        ({"cooldown": -1}, "batch.cooldown=-1"),
        ({"threshold_mode": "relative"}, "batch.threshold_mode='relative'"),
        ({"dialect": "pytorch"}, "did you mean 'torch'"),
        ({"min_scale": 1.0}, "batch.min_scale=1.0"),
    ],
)
def test_a_plateau_that_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        batching.plateau(size=8, **change)


@pytest.mark.parametrize(
    ("duration", "updates"),
    [
        ({"updates": 7}, 7),
        ({"epochs": 2}, 22),
        ({"examples": 640}, 5),
        ({"fraction": 0.1}, 33),
        (9, 9),
    ],
)
def test_a_duration_is_so_many_updates(duration, updates):
    assert batching.to_updates(duration, total=330, per_epoch=11, size=128) == updates


@pytest.mark.parametrize(
    "duration", [{}, {"epochs": 1, "updates": 2}, {"weeks": 1}, {"epochs": -1}, {"epochs": "x"}]
)
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(ValueError, match=r"duration has exactly one|must be a number"):
        batching.to_updates(duration, total=330, per_epoch=11, size=128)
