import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from lrlab import build, devices, epoch
from lrlab.data import Dataset, Split


def small_dataset(n=103, features=5):
    rng = np.random.default_rng(0)

    def split(k):
        x = rng.normal(size=(k, features)).astype(np.float32)
        return Split(x, rng.integers(0, 3, k).astype(np.int32))

    return Dataset(
        "small",
        split(n),
        split(37),
        split(11),
        3,
        ("a", "b", "c"),
        np.float32(0.5),
        np.float32(2.0),
    )


def recorder(state, batch, key, lr, tick):
    """A train step that records what it is given: which examples, in which row, when."""
    total = jax.lax.psum((batch["x"].sum(-1) * (1 + batch["rows"])).sum(), devices.AXIS)
    labels = jax.lax.psum(batch["y"].sum().astype(jnp.float32), devices.AXIS)
    new = jax.tree.map(lambda a: a, state).replace(step=state.step + 1)
    return new, jnp.stack([jnp.float32(lr), total, jnp.float32(1), labels, *jnp.zeros(2)])


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_batches_are_the_shuffled_order_dealt_in_rows(monkeypatch, placement):
    data, size, seed = small_dataset(), 10, 3
    monkeypatch.setattr(
        epoch, "BLOCK", 3 * size * 5 * 4
    )  # blocks of three batches: a ragged last one
    recipe = build.check(tiny())
    training = epoch.Training(recorder, data, size, placement, seed)
    state, rows = recipe.init(), []
    for number in (0, 1):
        first = 0
        while first < training.updates:
            count = min(2, training.left(first))
            state, recorded = training.run(state, number, first, count, 0.25)
            rows.append(recorded)
            first += count
    found = np.concatenate(rows)
    assert training.updates == 10
    for number in (0, 1):
        order = epoch.order(seed, number, 103)
        assert sorted(order) == list(range(103))
        for u, batch in enumerate(order[:100].reshape(10, 10)):
            x = (data.train.x[batch].astype(np.float64) - 0.5) * 2
            expected = (x.sum(-1) * np.arange(1, 11)).sum()
            np.testing.assert_allclose(found[10 * number + u, 1], expected, rtol=1e-5, atol=1e-4)
            assert found[10 * number + u, 3] == data.train.y[batch].sum()
    assert not np.array_equal(epoch.order(seed, 0, 103), epoch.order(seed, 1, 103))
    assert not np.array_equal(epoch.order(seed, 0, 103), epoch.order(seed + 1, 0, 103))


def test_a_streamed_block_is_gathered_once_an_epoch_however_many_stretches_it_has(monkeypatch):
    data, size = small_dataset(), 10
    monkeypatch.setattr(epoch, "BLOCK", 3 * size * 5 * 4)  # blocks of three batches
    training = epoch.Training(recorder, data, size, "stream", 0)
    state, gathered, gather = build.check(tiny()).init(), [], training.feed._gather
    training.compile(state)
    monkeypatch.setattr(training.feed, "_gather", lambda i: gathered.append(i) or gather(i))
    for number in (1, 2):
        for first in range(training.updates):  # an update a stretch
            state, _ = training.run(state, number, first, 1, 0.25)
    assert gathered == [0, 1, 2, 3] * 2


def test_the_loop_ends_at_one_update_too_many_in_a_row_that_is_not_finite():
    data, bad = small_dataset(), np.array([0, 1, 1, 0, 1, 1, 1, 0, 0, 0])

    def step(state, batch, key, lr, tick):
        is_finite = 1.0 - jnp.asarray(bad, jnp.float32)[state.step]
        new = state.replace(step=state.step + 1)
        return new, jnp.stack([jnp.float32(lr), 0.0, is_finite, *jnp.zeros(3)])

    for limit, done in (0, 2), (1, 3), (2, 7), (3, 10):
        training = epoch.Training(step, data, 10, "resident", 0)
        state, recorded = training.run(build.check(tiny()).init(), 0, 0, 10, 0.1, 0, limit)
        assert len(recorded) == done
        assert int(state.step) == (done if done == 10 else done - 1), "one too many is not done"
    for first, skipped, done in (2, 1, 5), (5, 1, 2), (6, 2, 1):  # what came before counts
        state = build.check(tiny()).init().replace(step=devices.replicate(np.int32(first)))
        _, recorded = training.run(state, 0, first, 10 - first, 0.1, skipped, 2)
        assert len(recorded) == done


@pytest.mark.parametrize("placement", ["resident", "stream"])
@pytest.mark.parametrize("size", [2, 10, 37, 64])
def test_evaluation_is_the_mean_over_the_split_whatever_the_batch(monkeypatch, placement, size):
    monkeypatch.setattr(epoch, "BLOCK", 2 * size * 5 * 4)
    data = small_dataset()

    def step(state, batch):
        w = batch["weight"]
        return jnp.stack([(batch["x"].sum(-1) * w).sum(), (batch["y"] * w).sum(), w.sum()])

    found = epoch.Evaluation(step, data, data.validation, size, placement).run(
        devices.replicate(np.float32(0))
    )
    x = (data.validation.x.astype(np.float64) - 0.5) * 2
    assert found["loss"] == pytest.approx(x.sum(-1).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(data.validation.y.mean(), rel=1e-6)


def test_data_that_fits_is_resident_and_other_data_is_streamed(monkeypatch):
    data = small_dataset()
    assert epoch.place(data) == "resident"
    monkeypatch.setattr(devices, "bytes_free", lambda: 100)
    assert epoch.place(data) == "stream"
    assert epoch.place(data, "resident") == "resident"
