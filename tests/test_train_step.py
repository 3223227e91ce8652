import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny

from lrlab import build, optimizers
from lrlab.train_step import RECORDED, State, make_eval_step, make_train_step

N, CLASSES = 24, 4


class Net(nn.Module):
    """A user's own model: BatchNorm, Flax's own dropout, no rows."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.num_classes)(x)


class Plain(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(x)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    return {
        "x": x,
        "y": rng.integers(0, CLASSES, N).astype(np.int32),
        "rows": np.arange(N, dtype=np.int32),
    }


def fresh(model, make_tx):
    variables = dict(model.init({"params": jax.random.key(0)}, jnp.zeros((1, 6))))
    params = variables.pop("params")
    return State(jnp.int32(0), params, variables, make_tx(1.0).init(params))


def test_an_update_is_the_gradient_step_written_by_hand():
    make_tx = optimizers.make({"name": "sgd"})
    state, data = fresh(Plain(), make_tx), batch()
    step = jax.jit(make_train_step(Plain(), make_tx, lambda t: jnp.float32(0.5)))
    new, recorded = step(state, data, jax.random.key(0), 0.2)
    w, b = (np.asarray(state.params["Dense_0"][k], np.float64) for k in ("kernel", "bias"))
    logits = data["x"] @ w + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(N), data["y"]])
    d = p.copy()
    d[np.arange(N), data["y"]] -= 1
    dw, db = data["x"].T @ d / N, d.mean(0)
    np.testing.assert_allclose(new.params["Dense_0"]["kernel"], w - 0.1 * dw, atol=1e-6)
    np.testing.assert_allclose(new.params["Dense_0"]["bias"], b - 0.1 * db, atol=1e-6)
    expected = {
        "lr": 0.1,
        "grad_norm": np.sqrt((dw**2).sum() + (db**2).sum()),
        "finite": 1,
        "loss": loss.sum(),
        "correct": (p.argmax(1) == data["y"]).sum(),
        "weight": N,
    }
    np.testing.assert_allclose(recorded, [expected[k] for k in RECORDED], rtol=1e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize("micro", [2, 3, 8])
def test_micro_batches_add_up_to_the_batch(micro):
    from lrlab.models.mlp import MLP

    model = MLP(num_classes=CLASSES, widths=(16,), dropout=0.5)
    make_tx = optimizers.make({"name": "sgd"})
    state, data, key = fresh(model, make_tx), batch(), jax.random.key(1)
    whole = jax.jit(make_train_step(model, make_tx, lambda t: 1.0))(state, data, key, 0.3)
    parts = jax.jit(make_train_step(model, make_tx, lambda t: 1.0, micro=micro))(
        state, data, key, 0.3
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_devices_agree_with_one_program_on_the_whole_batch():
    from lrlab.models.mlp import MLP

    model = MLP(num_classes=CLASSES, widths=(16,), dropout=0.5)
    make_tx = optimizers.make({"name": "adam"})
    state, data, key = fresh(model, make_tx), batch(), jax.random.key(1)
    whole = jax.jit(make_train_step(model, make_tx, lambda t: 1.0))
    split = jax.pmap(
        make_train_step(model, make_tx, lambda t: 1.0, axis="d"),
        axis_name="d",
        in_axes=(None, 0, None, None),
        out_axes=None,
    )
    dealt = jax.tree.map(lambda a: a.reshape(2, N // 2, *a.shape[1:]), data)
    one, two = state, state
    for _ in range(5):
        one, a = whole(one, data, key, 0.01)
        two, b = split(two, dealt, key, jnp.float32(0.01))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_batchnorm_statistics_are_averaged_over_devices():
    make_tx = optimizers.make({"name": "sgd"})
    state, data, key = fresh(Net(), make_tx), batch(), jax.random.key(1)
    split = jax.pmap(
        make_train_step(Net(), make_tx, lambda t: 1.0, axis="d"),
        axis_name="d",
        in_axes=(None, 0, None, None),
        out_axes=None,
    )
    dealt = jax.tree.map(lambda a: a.reshape(2, N // 2, *a.shape[1:]), data)
    new, _ = split(state, dealt, key, jnp.float32(0.0))
    dense = state.params["Dense_0"]
    halves = [h @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]) for h in dealt["x"]]
    found = new.stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(
        found["mean"], 0.1 * np.mean([h.mean(0) for h in halves], 0), atol=1e-6
    )
    np.testing.assert_allclose(
        found["var"], 0.9 + 0.1 * np.mean([h.var(0) for h in halves], 0), atol=1e-6
    )


def test_randomness_is_a_function_of_seed_and_update():
    make_tx = optimizers.make({"name": "sgd"})
    state, data = fresh(Net(), make_tx), batch()
    step = jax.jit(make_train_step(Net(), make_tx, lambda t: 1.0))
    loss = lambda s, k: float(step(s, data, jax.random.key(k), 0.0)[1][3])  # noqa: E731
    later = state.replace(step=jnp.int32(5))
    assert loss(state, 0) == loss(state, 0)
    assert len({loss(state, 0), loss(state, 1), loss(later, 0)}) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["data", "params", "rate"])
def test_an_update_that_is_not_finite_changes_nothing(bad, where):
    make_tx = optimizers.make({"name": "adam"})
    state, data, lr = fresh(Net(), make_tx), batch(), 0.1
    if where == "data":
        data["x"][3, 2] = bad
    elif where == "params":
        state.params["Dense_0"]["kernel"] = state.params["Dense_0"]["kernel"].at[0, 0].set(bad)
    else:
        lr = bad
    for skip in (False, True):
        step = jax.jit(make_train_step(Net(), make_tx, lambda t: 1.0, skip=skip))
        new, recorded = step(state, data, jax.random.key(0), jnp.float32(lr))
        assert recorded[RECORDED.index("finite")] == 0
        assert int(new.step) == int(skip)
        for a, b in zip(
            jax.tree.leaves(new.replace(step=0)),
            jax.tree.leaves(state.replace(step=0)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_evaluation_is_deterministic_and_weighs_examples():
    make_tx = optimizers.make({"name": "sgd"})
    state, data = fresh(Net(), make_tx), batch()
    weight = np.float32([1, 0] * (N // 2))
    sums = make_eval_step(Net())(state, {**data, "weight": weight})
    logits = Net().apply({"params": state.params, **state.stats}, data["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])
    hits = np.asarray(logits).argmax(1) == data["y"]
    np.testing.assert_allclose(sums, [losses[::2].sum(), hits[::2].sum(), N / 2], rtol=1e-6)


def test_a_fresh_state_is_a_function_of_the_seed():
    recipes = [build.check(tiny(seed=s)) for s in (0, 0, 1)]
    a, b, c = [np.asarray(r.init().params["Dense_0"]["kernel"]) for r in recipes]
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01
    assert dataclasses.is_dataclass(recipes[0])
