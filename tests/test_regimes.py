import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny
from test_loop import assert_same, outcome, start

from lrlab import batching, build, devices, loop, planning, records
from lrlab.analysis import noise_scale
from lrlab.lanes import Lane, Lanes
from lrlab.resolve import ConfigError
from lrlab.train_step import RECORDED

GROWING = {
    "increasing": {"factor": 2, "at": (1, 2), "cap": 256},
    "hybrid": {"factor": 2, "at": (1, 2)},
    "geometric": {"factor": 2, "every": 1, "cap": 0.25},
    "ramp": {"end": 192, "epochs": 3, "steps": 2, "coupling": "sqrt"},
    "stages": {"sizes": (64, 160), "at": (0, 2), "coupling": "linear"},
    "plateau_growth": {"factor": 2, "patience": 1, "threshold": 0.9, "cap": 256},
    "noise": {"cap": 256, "share": 1.0},
}


def growing(name, **changes):
    """A config of four epochs whose batch grows from 64 examples."""
    spec = {"name": name, **GROWING[name]}
    spec |= {} if name == "stages" else {"size": 64}
    return tiny(epochs=4, batch=spec, **changes)


def plan(regime, epochs, seen=()):
    return [regime.at(e, seen) for e in range(epochs)]


def test_growth_is_where_a_schedule_would_decay_and_decay_is_beyond_the_cap():
    five = batching.increasing(size=128, factor=5, at=(2, 4, 6), cap=0.1, examples=50_000)
    assert (
        plan(five, 8) == [(128, 1.0)] * 2 + [(640, 1.0)] * 2 + [(3200, 1.0)] * 2 + [(3200, 0.2)] * 2
    )
    mixed = batching.hybrid(size=128, factor=5, at=(2, 4, 6), examples=50_000)
    assert plan(mixed, 8) == [
        *[(128, 1.0)] * 2,
        *[(640, 1.0)] * 2,
        *[(640, 0.2)] * 2,
        *[(640, pytest.approx(0.04))] * 2,
    ]
    geo = batching.geometric(size=100, factor=1.5, every=2, cap=230, examples=1000)
    assert plan(geo, 7) == [(100, 1.0)] * 2 + [(150, 1.0)] * 2 + [(225, 1.0)] * 3
    line = batching.ramp(size=32, end=160, epochs=8, steps=4)
    assert [size for size, _ in plan(line, 10)] == [32, 32, 64, 64, 96, 96, 128, 128, 160, 160]


@pytest.mark.parametrize(
    ("coupling", "scale"), [("none", 1), ("linear", 4), ("sqrt", 2), ("seesaw", 0.5)]
)
def test_the_rate_follows_the_batch_by_its_coupling(coupling, scale):
    regime = batching.increasing(size=64, factor=4, at=1, coupling=coupling)
    assert regime.at(0, ()) == (64, 1.0)
    assert regime.at(1, ()) == (256, scale)
    based = batching.fixed(size=256, coupling=coupling, base=64)
    assert based.at(0, ()) == (256, scale)


def article(losses, size, factor, patience, cap):
    """The Keras article's procedure, epoch by epoch as its loop would do it."""
    best, waited, rate, found = np.inf, 0, 1.0, []
    for loss in losses:
        found.append((size, rate))
        best, waited = (loss, 0) if loss < best - 1e-4 else (best, waited + 1)
        if waited == patience:
            waited = 0
            if size * factor <= cap:
                size *= factor
            else:
                rate /= factor
    return found


def test_the_plateau_grows_the_batch_as_the_article_does_then_decays_the_rate():
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = list(np.maximum(0.3, 1 - 0.1 * np.arange(60)) + 0.02 * rng.normal(size=60))
        regime = batching.plateau_growth(
            size=256, factor=5, patience=3, cap=0.1, dialect="keras", threshold_mode="abs",
            examples=435_759,
        )  # fmt: skip
        expected = article(losses, 256, 5, 3, 43_575)
        found = [regime.at(e, losses[:e]) for e in range(60)]
        assert [size for size, _ in found] == [size for size, _ in expected]
        np.testing.assert_allclose([r for _, r in found], [r for _, r in expected], rtol=1e-12)
        assert found[-1] == (32_000, pytest.approx(found[-1][1]))


def test_the_batch_follows_the_noise_scale_and_never_shrinks():
    regime = batching.noise(size=16, cap=200, factor=2, share=0.5, examples=1000)
    seen = [10.0, 70.0, None, 40.0, 1e9, 3.0]
    assert [regime.at(e, seen)[0] for e in range(7)] == [16, 16, 32, 32, 32, 128, 128]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "increasing", "factor": 1.0, "at": 1}, "batch.factor=1.0 must be a number > 1"),
        ({"name": "increasing", "factor": 2, "at": (3, 3)}, "must rise: at[0]=3 and at[1]=3"),
        ({"name": "increasing", "factor": 2, "at": (0,)}, "batch.at[0]=0"),
        ({"name": "increasing", "factor": 2}, "either at="),
        ({"name": "increasing", "factor": 2, "at": 1, "every": 1}, "either at="),
        ({"name": "increasing", "factor": 2, "at": 1, "coupling": "liner"}, "mean 'linear'"),
        ({"name": "fixed", "coupling": "linear", "base": 0}, "batch.base=0"),
        ({"name": "increasing", "factor": 2, "at": 1, "cap": 32}, "below batch.size=64"),
        ({"name": "increasing", "factor": 2, "at": 1, "cap": 0}, "batch.cap=0"),
        ({"name": "increasing", "factor": 1.02, "every": 1}, "programs to compile"),
        ({"name": "increasing", "factor": 1.1, "at": 1}, "batch.size=70 is not divisible by 4"),
        ({"name": "increasing", "factor": 2, "at": 1, "most": 0}, "batch.most=0"),
        ({"name": "ramp", "end": 100, "epochs": 2}, "no multiple of batch.size=64"),
        ({"name": "ramp", "end": 64, "epochs": 2}, "batch.end=64"),
        ({"name": "hybrid", "factor": 2, "at": 1, "growths": 0}, "batch.growths=0"),
        ({"name": "plateau_growth", "factor": 0.5}, "batch.factor=0.5"),
        ({"name": "plateau_growth", "patience": 0}, "batch.patience=0"),
        ({"name": "noise", "cap": 256, "share": 0}, "batch.share=0"),
        ({"name": "increasing", "factor": 30, "at": 1, "cap": 5000}, "more than digits"),
    ],
)
def test_a_regime_that_cannot_be_is_refused(spec, says):
    batch = {"size": 64, **spec}
    with pytest.raises(ConfigError) as caught:
        build.check(tiny(epochs=4, batch=batch), parts=4)
    assert says in str(caught.value)


@pytest.mark.parametrize("sizes", [(64, 32), (), (64, 64)])
def test_stages_must_rise(sizes):
    with pytest.raises(ValueError, match=r"must rise|need as many"):
        batching.stages(sizes, tuple(range(len(sizes))))


def decays(rng, updates):
    """Some schedule that decays, over so many updates."""
    kind = rng.integers(4)
    low = float(rng.uniform(0.001, 0.5))
    if kind == 0:
        spec = {"name": "cosine", "start": 1.0, "end": low}
    elif kind == 1:
        spec = {"name": "linear", "start": 1.0, "end": low}
    elif kind == 2:
        every = int(rng.integers(1, updates // 2))
        spec = {"name": "step", "factor": float(rng.uniform(0.1, 0.7)), "every": every}
    else:
        spec = {"name": "polynomial", "start": 1.0, "end": low, "power": float(rng.uniform(1, 4))}
    return planning.plan((spec,), planning.Clock(updates, max(1, updates // 10), 10)).shape


@pytest.mark.slow
def test_a_decay_and_its_batches_inject_the_same_noise_at_every_update():
    rng, worst, grew = np.random.default_rng(0), 0.0, 0
    for number in range(100):
        n, size, epochs = int(rng.integers(500, 5000)), int(rng.integers(8, 64)), 10
        rule = "adam" if number % 2 else "sgd"
        schedule = decays(rng, epochs * (n // size))
        cap = n // 4 if number % 3 else None
        spec = batching.to_batches(
            schedule, n, size, epochs, rule=rule, cap=cap, factor=float(rng.uniform(1.5, 4))
        )
        regime = batching.stages(**{k: v for k, v in spec.items() if k != "name"})
        momentum = float(rng.choice([0.0, 0.9]))
        given = {"epochs": epochs, "lr": 0.3, "rule": rule}
        one = batching.noise_scale(schedule, batching.fixed(size), n, momentum, **given)
        two = batching.noise_scale(schedule, regime, n, momentum, **given)
        power = 2 if rule == "adam" else 1
        exact = one.lr**power * n / (size * (1 - momentum))
        np.testing.assert_allclose(one.g, exact, rtol=1e-12)
        # Where the same share of the run is done, counted on the schedule's own clock.
        ticks = np.concatenate(
            [
                batching.ticks(e.number, 0, e.updates, e.updates, n // size)
                for e in batching.epochs_of(regime, epochs, n)
            ]
        )
        gap = np.abs(two.g / one.g[ticks] - 1)
        worst, grew = max(worst, float(gap.max())), grew + (two.updates < one.updates)
        assert two.size.max() <= (cap or n)
    assert worst < 1e-6
    assert grew > 50


def test_a_converted_decay_keeps_its_rate_until_the_cap_for_sgd_and_half_of_it_for_adam():
    schedule = planning.plan(
        ({"name": "step", "factor": 0.5, "every": 100},), planning.Clock(1000, 100, 10)
    ).shape
    for rule, power in ("sgd", 1.0), ("adam", 0.5):
        spec = batching.to_batches(schedule, 1000, 10, 10, rule=rule, cap=160)
        assert spec["sizes"] == (10, 20, 40, 80, 160)
        assert spec["at"] == (0, 1, 2, 3, 4)
        regime = batching.stages(**{k: v for k, v in spec.items() if k != "name"})
        run = batching.noise_scale(schedule, regime, 1000, epochs=5, rule=rule)
        expected = (run.size / 10) ** (power - 1)
        np.testing.assert_allclose(run.lr, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["warm-up", "restarts"])
def test_no_rate_of_a_twin_exceeds_the_peak(name):
    phases = {
        "warm-up": (
            {"name": "linear", "start": 0.1, "end": 1.0, "epochs": 4},
            {"name": "cosine", "start": 1.0, "end": 0.01},
        ),
        "restarts": ({"name": "cosine_restarts", "t_0": {"epochs": 4}},),
    }
    n, size, epochs = 1000, 10, 20
    shape = planning.plan(phases[name], planning.Clock(epochs * 100, 100, size)).shape
    spec = batching.to_batches(shape, n, size, epochs)
    # Below half the peak for good: after the middle of the only, or of the last, descent.
    assert spec["at"][:2] == ((0, 13) if name == "warm-up" else (0, 18))
    regime = batching.stages(**{k: v for k, v in spec.items() if k != "name"})
    assert batching.noise_scale(shape, regime, n, epochs=epochs).lr.max() <= 1 + 1e-6


def some(values, quick):
    """Parameters, of which those that are not quick are slow tests."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("name", some(GROWING, ("hybrid",)))
def test_a_run_whose_batch_grows_is_resumed_in_every_phase(tmp_path, monkeypatch, name):
    config = growing(name, lr=0.02)
    whole = outcome(start(tmp_path / "whole", config))
    sizes = whole[2]["batch_size"]
    assert len(set(sizes)) >= 2, "it never grew"
    edges = np.flatnonzero(np.diff(sizes)) + 1
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    for after in {2, *edges.tolist(), *(edges + 2).tolist(), len(sizes) - 1}:
        folder = tmp_path / str(after)
        start(folder, config, stop_after=int(after))
        assert_same(outcome(start(folder, config)), whole)


def test_schedules_keep_their_place_in_epochs_where_the_batch_grows(tmp_path):
    schedule = (
        {"name": "linear", "start": 0.0, "end": 1.0, "epochs": 1},
        {"name": "cosine", "start": 1.0, "end": 0.0},
    )
    config = growing("increasing", schedule=schedule)
    start(tmp_path, config)
    found = records.read(tmp_path).schedule
    planned = np.asarray(build.check(config).rates())  # as if the batch stayed
    first = {e: int(np.flatnonzero(found["epoch"] == e)[0]) for e in range(1, 5)}
    per_epoch = len(planned) // 4
    for e in range(1, 5):
        assert found["lr"][first[e]] == planned[(e - 1) * per_epoch]
    inside = np.flatnonzero(found["epoch"] == 3)
    done = np.arange(len(inside)) * per_epoch // len(inside)
    np.testing.assert_array_equal(found["lr"][inside], planned[2 * per_epoch + done])
    rows = records.read(tmp_path).rows
    assert [r["examples"] for r in rows] == np.cumsum([19 * 64, 9 * 128, 4 * 256, 4 * 256]).tolist()


def test_a_large_batch_in_parts_is_the_whole_batch_to_rounding(tmp_path):
    found = []
    for i, more in enumerate(({}, {"most": 32})):
        config = growing("increasing")
        config["batch"] |= more
        run = start(tmp_path / str(i), config)
        found.append((jax.tree.leaves(run.state.params), records.read(tmp_path / str(i)).rows))
    assert [build.check(config).parts(s) for s in (64, 128, 256)] == [2, 4, 8]
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["increasing", "hybrid", "ramp"])
def test_a_lane_whose_batch_grows_is_the_single_run(tmp_path, name, engine):
    config = growing(name, schedule=({"name": "cosine", "start": 1.0, "end": 0.1},))
    recipe = build.check(config, parts=1)
    dataset = recipe.read()
    each = [Lane(seed, lr) for seed, lr in ((0, 0.1), (1, 0.1), (0, 0.02))]
    lanes = Lanes(recipe, dataset, each, 7, engine=engine)
    updates = sum(e.updates for e in recipe.epochs())
    seen = []
    while lanes.step < updates:
        seen.append(lanes.advance(min(7, updates - lanes.step)))
    seen = np.concatenate(seen)
    for i, lane in enumerate(each):
        folder = tmp_path / str(i)
        start(folder, {**config, "seed": lane.seed, "lr": lane.lr}, dataset=dataset)
        schedule = records.read(folder).schedule
        np.testing.assert_array_equal(seen[:, i, RECORDED.index("lr")], schedule["lr"])
        mean = seen[:, i, RECORDED.index("loss")] / seen[:, i, RECORDED.index("weight")]
        np.testing.assert_allclose(mean, schedule["loss"], rtol=2e-3, atol=1e-4)


def test_the_noise_scale_of_a_known_problem_is_within_its_interval():
    rng, held = np.random.default_rng(0), 0
    for number in range(40):
        d = int(rng.integers(2, 30))
        g = rng.normal(size=d)
        spread = rng.uniform(0.1, 3, size=d)  # S is diagonal
        true = (spread**2).sum() / (g**2).sum()
        part, size, updates = 8, 8 * int(rng.integers(2, 6)), 400
        noisy = g + spread * rng.normal(size=(updates, size, d))
        parts = noisy.reshape(updates, -1, part, d).mean(2)
        small = (parts**2).sum(-1).mean(1)
        big = (noisy.mean(1) ** 2).sum(-1)
        a, b = noise_scale.pair(small, big, part, size)
        low, high = noise_scale.interval(a, b)
        held += low <= true <= high
        assert noise_scale.ratio(a.sum(), b.sum()) == pytest.approx(true, rel=0.5), number
    assert held >= 34


def test_a_run_records_the_noise_scale_of_its_gradients(tmp_path):
    config = tiny(epochs=1, noise_scale=True, model={"name": "mlp.MLP", "widths": ()}, lr=1e-9)
    run = start(tmp_path, config)
    (row,) = records.read(tmp_path).rows
    # By hand: with a rate of nothing, every update sees gradients at the first weights.
    recipe, data = run.recipe, run.dataset
    x = (np.asarray(data.train.x, np.float64) - data.shift) * data.scale
    x = x.reshape(len(x), -1)
    w = np.asarray(recipe.init().params["Dense_0"]["kernel"], np.float64)
    p = np.exp(x @ w - (x @ w).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(x)), data.train.y] -= 1
    each = np.concatenate([np.einsum("ni,nj->nij", x, p).reshape(len(x), -1), p], 1)
    true = each.var(0).sum() / (each.mean(0) ** 2).sum()
    assert row["noise_scale"] == pytest.approx(true, rel=0.35)
    assert devices.count() == 2  # the parts are the devices' shares
    assert "part_norm" in records.read(tmp_path).schedule


def test_two_sizes_are_needed_for_a_noise_scale():
    with pytest.raises(ValueError, match="two sizes"):
        noise_scale.pair([1.0], [1.0], 8, 8)


def test_measuring_the_noise_changes_nothing_that_is_trained(tmp_path):
    plain = start(tmp_path / "a", tiny())
    measured = start(tmp_path / "b", tiny(noise_scale=True))
    assert plain.digest() == measured.digest()


def test_a_recipe_knows_the_sizes_that_it_comes_to():
    recipe = build.check(growing("geometric"))
    assert recipe.sizes == (64, 128, 256)
    short = dataclasses.replace(recipe, config={**recipe.config, "epochs": 2})
    assert short.sizes == (64, 128)
