import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import tiny

from lrlab import build, devices, epoch, loop, records, report
from lrlab.batching import Regime
from lrlab.checkpoint import Checkpoints
from lrlab.train_step import RECORDED


def start(folder, config, stop_after=None, dataset=None):
    """Trains in `folder`, going on if it can; leaves after so many stretches. Returns the run."""
    recipe = build.check(config)
    with records.locked(folder) as writer, Checkpoints(folder / "checkpoints") as saves:
        run = loop.Run(recipe, dataset or recipe.read(), writer, saves)
        run.resume()
        stretches = 0
        for item in loop.fit(run):
            stretches += isinstance(item, loop.Stretch)
            if stop_after is not None and stretches >= stop_after:
                run.save()
                break
    return run


def outcome(run):
    record = records.read(run.writer.folder)
    return run.digest(), records.digest(record.rows + record.happened), record.schedule


def assert_same(a, b):
    assert a[:2] == b[:2]
    for column in records.COLUMNS:
        np.testing.assert_array_equal(a[2][column], b[2][column])


OPTIMIZERS = {
    "optax:noisy_sgd": 0.1,  # keeps a random key in its state
    "sgd": 0.3,
    "momentum": 0.1,
    "adagrad": 0.1,
    "adadelta": 1.0,
    "rmsprop": 0.003,
    "adam": 0.003,
}
PHASES = (
    {"name": "linear", "start": 0.1, "end": 1.0, "updates": 5},
    {"name": "constant", "updates": 3},
    {"name": "cosine", "start": 1.0, "end": 0.1},
)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_run_stopped_anywhere_and_resumed_is_the_run_not_stopped(tmp_path, monkeypatch, rule):
    spec = {"name": rule, "key": 0} if rule == "optax:noisy_sgd" else {"name": rule}
    config = tiny(optimizer=spec, lr=OPTIMIZERS[rule], schedule=PHASES)
    whole = outcome(start(tmp_path / "whole", config))
    monkeypatch.setattr(loop, "STRETCH", 0.0)  # the least: stretches of one update
    for after in (4, 9, 13):  # mid-epoch, the epoch's edge with its row unwritten, the second epoch
        folder = tmp_path / str(after)
        start(folder, config, stop_after=after)
        assert_same(outcome(start(folder, config)), whole)
    assert len(whole[2]["lr"]) == 18


def test_resuming_a_finished_run_does_nothing(tmp_path):
    first = start(tmp_path, tiny())
    again = start(tmp_path, tiny())
    assert again.digest() == first.digest()
    assert_same(outcome(again), outcome(first))


def test_the_recorded_rates_are_the_rates_used_to_the_bit(tmp_path):
    config = tiny(
        optimizer={"name": "sgd"},
        epochs=1,
        schedule=PHASES,
        model={"name": "mlp.MLP", "widths": ()},
    )
    recipe = build.check(config)
    run = start(tmp_path, config)
    found = records.read(tmp_path).schedule
    np.testing.assert_array_equal(found["lr"], np.asarray(recipe.rates()))
    t = np.arange(9)
    exact = 0.1 * np.where(
        t < 5,
        0.1 + 0.9 * t / 5,
        np.where(t < 8, 1.0, 0.1 + 0.9 * (1 + np.cos(np.pi * (t - 8) / 1)) / 2),
    )
    np.testing.assert_allclose(found["lr"], exact, rtol=1e-6)
    np.testing.assert_array_equal(found["update"], t)
    # And used: softmax regression by hand, in float64, with the recorded rates.
    data = recipe.read()
    x = (np.asarray(data.train.x, np.float64) - data.shift) * data.scale
    x, y = x.reshape(len(x), -1), data.train.y
    fresh = recipe.init().params["Dense_0"]
    w, b = np.asarray(fresh["kernel"], np.float64), np.asarray(fresh["bias"], np.float64)
    for rate, rows in zip(
        found["lr"], epoch.order(0, 0, len(y))[: 9 * 128].reshape(9, 128), strict=True
    ):
        logits = x[rows] @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(128), y[rows]] -= 1
        w, b = w - rate * x[rows].T @ p / 128, b - rate * p.mean(0)
    np.testing.assert_allclose(run.state.params["Dense_0"]["kernel"], w, atol=2e-5)
    np.testing.assert_allclose(run.state.params["Dense_0"]["bias"], b, atol=2e-5)


def test_rows_add_up(tmp_path):
    start(tmp_path, tiny())
    record = records.read(tmp_path)
    rows = record.rows
    assert [(r["epoch"], r["step"], r["examples"], r["batch_size"]) for r in rows] == [
        (1, 9, 9 * 128, 128),
        (2, 18, 18 * 128, 128),
    ]
    for row in rows:
        mine = record.schedule["loss"][record.schedule["epoch"] == row["epoch"]]
        assert row["train_loss"] == pytest.approx(np.mean(mine, dtype=np.float64), rel=1e-6)
        assert row["lr"] == pytest.approx(record.schedule["lr"][row["step"] - 1], rel=1e-7)


def poisoned(config, bad):
    """The config's data with one example that is NaN, and the update that first meets it."""
    data = build.check(config).read()
    x = np.array(data.train.x, np.float32)
    x[bad] = np.nan
    at = int(np.flatnonzero(epoch.order(0, 0, len(x)) == bad)[0]) // config["batch"]["size"]
    return dataclasses.replace(data, train=dataclasses.replace(data.train, x=x)), at


def test_a_loss_that_is_not_finite_stops_the_run_at_the_last_good_state(tmp_path):
    config = tiny()
    data, at = poisoned(config, 3)
    for _ in range(2):  # the rerun meets it again, at once
        with pytest.raises(loop.DivergedError, match=rf"update {at} \(epoch 1\) at rate 0\.\d+"):
            start(tmp_path, config, dataset=data)
        record = records.read(tmp_path)
        assert [r["event"] for r in record.happened] == ["diverged"]
        assert len(record.schedule["lr"]) == at
        assert np.isfinite(record.schedule["loss"]).all()
    with Checkpoints(tmp_path / "checkpoints") as saves:
        assert saves.steps()[-1] == at
        shapes = build.check(config).shapes
        state, _ = saves.restore(jax.tree.map(lambda a: np.empty(a.shape, a.dtype), shapes))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state))


def test_skip_leaves_the_parameters_and_counts_the_update(tmp_path):
    config = tiny(epochs=1, nonfinite={"policy": "skip"})
    data, at = poisoned(config, 3)
    run = start(tmp_path, config, dataset=data)
    record = records.read(tmp_path)
    assert [(r["event"], r["step"]) for r in record.happened] == [("skip", at)]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert run.step == len(record.schedule["lr"]) == run.recipe.total
    assert np.isnan(record.schedule["loss"][at])
    assert np.isfinite(np.delete(record.schedule["loss"], at)).all()
    assert np.isfinite(record.rows[0]["train_loss"])
    np.testing.assert_array_equal(record.schedule["lr"], np.asarray(run.recipe.rates()))


def spoilt(config, updates):
    """The config's data with an example that is NaN in each of these updates of the first epoch."""
    data, size = build.check(config).read(), config["batch"]["size"]
    order = epoch.order(0, 0, len(data.train))
    x = np.array(data.train.x, np.float32)
    x[order[np.array(updates) * size]] = np.nan
    return dataclasses.replace(data, train=dataclasses.replace(data.train, x=x))


@pytest.mark.parametrize("stretch", [0.0, 1.0])
def test_skip_gives_up_at_one_update_too_many_in_a_row_wherever_stretches_end(
    tmp_path, monkeypatch, stretch
):
    monkeypatch.setattr(loop, "STRETCH", stretch)
    config = tiny(nonfinite={"policy": "skip", "most": 2})
    data = spoilt(config, [1, 2, 4, 5, 6, 7])  # two in a row are borne, the third is too many
    digests = []
    for _ in range(2):  # and a rerun stands where the first did
        with pytest.raises(
            loop.DivergedError, match=r"update 6 \(epoch 1\) .*, 2 updates in a row were skipped"
        ):
            start(tmp_path, config, dataset=data)
        record = records.read(tmp_path)
        happened = [(r["event"], r["step"]) for r in record.happened]
        assert happened == [*[("skip", u) for u in (1, 2, 4, 5)], ("diverged", 6)]
        assert record.schedule["update"].tolist() == list(range(6))
        with Checkpoints(tmp_path / "checkpoints") as saves:
            assert saves.steps()[-1] == 6
            state, position = saves.restore(devices.on_host(build.check(config).shapes))
        assert (position["skipped"], position["first"], position["rows"]) == (2, 6, 4)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(state))
        digests.append(records.digest(record.happened))
    assert digests[0] == digests[1]


def test_a_signal_between_a_skip_and_its_row_loses_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    config = tiny(epochs=1, nonfinite={"policy": "skip"})
    data = spoilt(config, [2])
    for after in (3, None):  # leaves at the stretch that skipped
        start(tmp_path, config, stop_after=after, dataset=data)
        happened = [(r["event"], r["step"]) for r in records.read(tmp_path).happened]
        assert happened == [("skip", 2)]


def test_an_epoch_without_a_good_update_has_null_for_its_means(tmp_path):
    config = tiny(epochs=2, nonfinite={"policy": "skip", "most": 99})
    data = spoilt(config, range(9))
    start(tmp_path, config, dataset=data)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    refuse = lambda c: pytest.fail(f"{c} is not JSON")  # noqa: E731
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    first, _ = (r for r in rows if "event" not in r)
    assert first["train_loss"] is None
    assert first["train_accuracy"] is None
    assert np.isfinite(first["val_loss"])
    report.write(tmp_path)  # and a reader copes


def halves(size):
    """A regime whose batch is half as large from the third epoch on."""
    return Regime(at=lambda e, losses: (size // (1 + (e >= 2)), 1.0), sizes=(size, size // 2))


def test_a_rollback_to_an_earlier_epoch_has_that_epochs_batch_size(tmp_path):
    config = tiny(
        epochs=4,
        batch={"name": "test_loop:halves", "size": 128},
        nonfinite={"policy": "rollback", "factor": 0.5, "most": 1},
        checkpoint={"minutes": 1e6},  # nothing is saved but what a roll-back begins with
    )
    data = build.check(tiny()).read()
    x = np.array(data.train.x, np.float32)
    met = [set(epoch.order(0, e, len(x))[:n].tolist()) for e, n in enumerate((1152, 1152, 1216))]
    x[min(met[2] - met[0] - met[1])] = np.nan  # met in the third epoch, and not before
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, x=x))
    with pytest.raises(loop.DivergedError, match="after 1 roll-backs"):
        start(tmp_path, config, dataset=data)
    schedule = records.read(tmp_path).schedule
    assert len(schedule["epoch"]) > 18
    np.testing.assert_array_equal(schedule["epoch"][:19], np.repeat([1, 2, 3], 9)[:19])
    np.testing.assert_array_equal(schedule["batch_size"], np.where(schedule["epoch"] > 2, 64, 128))


def test_rollback_goes_back_with_a_lower_rate_and_gives_up_after_so_many(tmp_path):
    config = tiny(nonfinite={"policy": "rollback", "factor": 0.5, "most": 2})
    data, at = poisoned(config, 3)
    with pytest.raises(loop.DivergedError, match=rf"update {at} .*after 2 roll-backs"):
        start(tmp_path, config, dataset=data)
    record = records.read(tmp_path)
    happened = [(r["event"], r.get("lr_scale")) for r in record.happened]
    assert happened == [("rollback", 0.5), ("rollback", 0.25), ("diverged", None)]
    expected = 0.25 * np.asarray(build.check(config).rates())[:at]
    np.testing.assert_allclose(record.schedule["lr"], expected, rtol=1e-6)


def test_rollback_cures_a_rate_that_is_too_high(tmp_path):
    # Linear regression-like explosion: a huge rate on plain SGD overflows within a few updates.
    config = tiny(
        optimizer={"name": "sgd"},
        lr=1e5,
        model={"name": "mlp.MLP", "widths": (64, 64, 64)},
        schedule=({"name": "constant"},),
        nonfinite={"policy": "rollback", "factor": 1e-3, "most": 3},
    )
    run = start(tmp_path, config)
    record = records.read(tmp_path)
    assert {r["event"] for r in record.happened} == {"rollback"}
    assert run.step == run.recipe.total
    assert record.rows[-1]["val_accuracy"] > 0.3


def test_a_run_compiles_once_and_another_rate_compiles_nothing(tmp_path):
    counted = []
    listen = lambda name, *_, **__: counted.append(name) if "backend_compile" in name else None  # noqa: E731
    recipe = build.check(tiny())
    data = recipe.read()
    with records.locked(tmp_path) as writer, Checkpoints(tmp_path / "c") as saves:
        run = loop.Run(recipe, data, writer, saves)
        training = run.training(128)
        run.state, _ = training.run(run.state, 0, 0, 3, 0.1)
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            for lr, first, count in ((0.1, 3, 1), (0.5, 4, 2), (1e-3, 6, 3)):
                run.state, recorded = training.run(run.state, 0, first, count, lr)
                assert len(recorded) == count
            assert run.training(128) is training
            assert counted == []
            jax.jit(lambda x: x * 3 + 1)(np.float32(2))  # the counter does count
            assert counted
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)


def test_the_pace_is_kept_so_an_epoch_that_fits_is_one_stretch_and_one_bare_call(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "STRETCH", 1e3)
    recipe = build.check(tiny(epochs=4))
    with records.locked(tmp_path) as writer, Checkpoints(tmp_path / "c") as saves:
        run = loop.Run(recipe, recipe.read(), writer, saves)
        run.compile(128)
        # What a call needs beside the data is on the devices already, or goes along in NumPy.
        monkeypatch.setattr(devices, "replicate", lambda tree: pytest.fail("a transfer of its own"))
        counts = [(i.epoch, len(i.recorded)) for i in loop.fit(run) if isinstance(i, loop.Stretch)]
    assert counts == [(0, 1), (0, 8), (1, 9), (2, 9), (3, 9)]


def test_metrics_row_is_json_that_anything_reads(tmp_path):
    start(tmp_path, tiny(epochs=1))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert list(row) == [
        *("epoch", "step", "examples", "lr", "batch_size", "train_loss", "train_accuracy"),
        *("val_loss", "val_accuracy", "seconds", "examples_per_second"),
    ]
    assert RECORDED[0] == "lr"


def columns(folder):
    return records.read(folder).schedule


def test_values_beside_the_rate_follow_their_schedules_and_are_recorded_as_used(tmp_path):
    falling = {"name": "linear", "start": 0.95, "end": 0.85, "updates": 9}
    rising = {"name": "linear", "start": 0.85, "end": 0.95}
    config = tiny(
        optimizer={"name": "momentum", "decay": {"schedule": (falling, rising)}},
        weight_decay={
            "schedule": (
                {"name": "constant", "value": 0.0, "epochs": 1},
                {"name": "constant", "value": 0.01},
            )
        },
        label_smoothing={"schedule": ({"name": "linear", "start": 0.2, "end": 0.0},)},
    )
    run = start(tmp_path / "a", config)
    found, t = columns(tmp_path / "a"), np.arange(18)
    assert list(found) == [*records.COLUMNS, "label_smoothing", "weight_decay", "decay"]
    decay = np.where(t < 9, 0.95 - 0.1 * t / 9, 0.85 + 0.1 * (t - 9) / 9)
    np.testing.assert_allclose(found["decay"], decay, rtol=1e-6)
    np.testing.assert_allclose(found["weight_decay"], np.where(t < 9, 0, 0.01))
    np.testing.assert_allclose(found["label_smoothing"], 0.2 * (1 - t / 18), atol=1e-7)
    still = tiny(optimizer={"name": "momentum", "decay": 0.95})
    assert start(tmp_path / "b", still).digest() != run.digest(), "the schedules were not used"
    held = {"schedule": ({"name": "constant", "value": 0.95},)}
    same = start(tmp_path / "c", tiny(optimizer={"name": "momentum", "decay": held}))
    for a, b in zip(
        jax.tree.leaves(same.state.params),
        jax.tree.leaves(start(tmp_path / "b", still).state.params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_run_with_scheduled_values_resumes_exactly(tmp_path, monkeypatch):
    config = tiny(
        optimizer={
            "name": "adam",
            "b1": {"schedule": ({"name": "linear", "start": 0.95, "end": 0.85},)},
        },
        lr=0.003,
        label_smoothing=0.1,
    )
    whole = outcome(start(tmp_path / "whole", config))
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    start(tmp_path / "cut", config, stop_after=7)
    assert_same(outcome(start(tmp_path / "cut", config)), whole)


def test_label_smoothing_is_the_cross_entropy_with_smoothed_labels():
    import optax

    from lrlab import metrics

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 4)).astype(np.float32), rng.integers(0, 4, 7)
    ours = metrics.classification(logits, labels, np.ones(7, np.float32), 0.3)[0]
    smooth = optax.smooth_labels(np.eye(4, dtype=np.float32)[labels], 0.3)
    np.testing.assert_allclose(ours, optax.softmax_cross_entropy(logits, smooth).sum(), rtol=1e-6)


@pytest.mark.parametrize("rule", ["prodigy", "dadapt_adamw", "dog", "schedule_free_sgd"])
def test_a_rule_that_finds_its_rate_trains_and_records_it(tmp_path, rule):
    config = tiny(epochs=6, optimizer={"name": rule}, lr=1.0, schedule=({"name": "constant"},))
    run = start(tmp_path, config)
    found = columns(tmp_path)
    if rule == "schedule_free_sgd":
        assert "effective_lr" not in found
    else:
        assert np.isfinite(found["effective_lr"]).all()
        assert len(np.unique(found["effective_lr"])) > 5
    losses = run.position.losses
    assert losses == sorted(losses, reverse=True)


def test_layers_by_depth_and_without_decay(tmp_path):
    config = tiny(
        model={"name": "mlp.MLP", "widths": (16, 16)},
        optimizer={"name": "sgd"},
        lr_multipliers={"name": "by_depth", "decay": 2.0},
        no_decay=(".*/bias",),
        weight_decay=0.1,
    )
    recipe = build.check(config)
    assert [g[:3] for g in recipe.groups] == [
        ("(Dense_0)(/.*)?", 0.25, 2),
        ("(Dense_1)(/.*)?", 0.5, 2),
        ("(Dense_2)(/.*)?", 1.0, 2),
    ]
    start(tmp_path, config)


def test_frozen_leaves_stay_as_they_were_to_the_bit(tmp_path):
    config = tiny(optimizer={"name": "adam"}, lr_multipliers=(("Dense_0/.*", 0.0), (".*", 1.0)))
    before = jax.tree.map(np.array, build.check(config).init().params)
    after = start(tmp_path, config).state.params
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(after["Dense_0"][name], before["Dense_0"][name])
        assert np.abs(np.asarray(after["Dense_1"][name]) - before["Dense_1"][name]).max() > 0


def test_a_plateau_lowers_the_rate_and_resumes_exactly(tmp_path, monkeypatch):
    config = tiny(
        epochs=8,
        batch={"name": "plateau", "size": 128, "factor": 0.5, "patience": 1, "threshold": 0.1},
        lr=0.5,
        schedule=({"name": "constant"},),
    )
    run = start(tmp_path / "whole", config)
    whole = outcome(run)
    rates = [r["lr"] for r in records.read(tmp_path / "whole").rows]
    scales = [run.recipe.regime.at(e, run.position.losses)[1] for e in range(8)]
    np.testing.assert_allclose(rates, 0.5 * np.array(scales), rtol=1e-6)
    assert rates[-1] < 0.5
    monkeypatch.setattr(loop, "STRETCH", 0.0)
    start(tmp_path / "cut", config, stop_after=40)
    assert_same(outcome(start(tmp_path / "cut", config)), whole)
