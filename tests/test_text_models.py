"""The transformer of text: against NumPy in float64, and what its two models share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrlab import build, epoch, metrics
from lrlab.data import Dataset, Source, Split
from lrlab.jobs import snapshot
from lrlab.lanes import Lane, Lanes
from lrlab.models import text
from lrlab.resolve import ConfigError

SHAPE = {"vocabulary": 11, "width": 8, "depth": 2, "heads": 2, "positions": 6}
RNG = np.random.default_rng(0)


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def encoded(params, ids):
    """The encoder for one text, float64 [length, width], from the papers' formulas."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = p["Embedding"]["tokens"]["embedding"][ids]
    x = x + p["Embedding"]["places"]["embedding"][: len(ids)]
    for i in range(SHAPE["depth"]):
        b = p[f"Block_{i}"]
        a, y = b["MultiHeadDotProductAttention_0"], norm(x, b["LayerNorm_0"])
        q, k, v = (
            np.einsum("ld,dhe->hle", y, a[n]["kernel"]) + a[n]["bias"][:, None]
            for n in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones((len(ids),) * 2, bool), 1)] = -np.inf
        w = np.exp(scores - scores.max(-1, keepdims=True))
        w /= w.sum(-1, keepdims=True)
        x = x + np.einsum("hle,hed->ld", w @ v, a["out"]["kernel"]) + a["out"]["bias"]
        h = norm(x, b["LayerNorm_1"]) @ b["Dense_0"]["kernel"] + b["Dense_0"]["bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ b["Dense_1"]["kernel"] + b["Dense_1"]["bias"]
    return norm(x, p["Norm"]), p


def made(model, ids):
    """Parameters with nothing at its default, so that a bias forgotten shows."""
    params = jax.jit(model.init)(jax.random.key(1), jnp.float32(ids))["params"]
    return jax.tree.map(lambda a: a + RNG.normal(0, 0.1, a.shape).astype(np.float32), params)


def applied(model, params, ids):
    """Logits in evaluation."""
    return np.asarray(jax.jit(model.apply)({"params": params}, jnp.float32(ids)))


def test_the_language_model_is_the_formula_in_float64():
    ids = RNG.integers(0, 11, (3, 6))
    model = text.LanguageModel(num_classes=11, **SHAPE)
    params = made(model, ids)
    logits = applied(model, params, ids)
    assert logits.shape == (3, 6, 11)
    for row, got in zip(ids, logits, strict=True):
        x, p = encoded(params, row)
        exact = x @ p["Embedding"]["tokens"]["embedding"].T
        np.testing.assert_allclose(got, exact, atol=2e-5)


def test_the_classifier_is_the_formula_in_float64():
    ids = np.array([[3, 4, 5, 2, 0, 0], [9, 2, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    model = text.Classifier(num_classes=3, hidden=5, **SHAPE)
    params = made(model, ids)
    logits = applied(model, params, ids)
    for row, got in zip(ids, logits, strict=True):
        x, p = encoded(params, row[row != 0])
        x = np.concatenate([x[-1], x.max(0), x.mean(0)])
        x = np.maximum(x @ p["Hidden"]["kernel"] + p["Hidden"]["bias"], 0)
        np.testing.assert_allclose(got, x @ p["Head"]["kernel"] + p["Head"]["bias"], atol=2e-5)


def test_a_position_sees_those_before_it_alone():
    model = text.LanguageModel(num_classes=11, **SHAPE)
    ids = RNG.integers(0, 11, (1, 6))
    params = made(model, ids)
    other = ids.copy()
    other[0, 3] = (other[0, 3] + 1) % 11
    a, b = (applied(model, params, i) for i in (ids, other))
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert (a[:, 3:] != b[:, 3:]).any(-1).all()


def test_both_models_have_the_same_layers():
    ids = np.ones((1, 6))
    models = text.LanguageModel(11, **SHAPE), text.Classifier(3, **SHAPE)
    ours, theirs = (
        jax.tree.map(
            np.shape, jax.eval_shape(m.init, jax.random.key(0), jnp.float32(ids))["params"]
        )
        for m in models
    )
    assert {k: theirs[k] for k in ours} == ours
    assert set(theirs) - set(ours) == {"Hidden", "Head"}


def test_positions_count_as_their_mean():
    logits = RNG.normal(size=(4, 5, 7)).astype(np.float32)
    labels, weight = RNG.integers(0, 7, (4, 5)), np.float32([1, 1, 0, 1])
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    nll = -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])
    right = (logits.argmax(-1) == labels).mean(1)
    got = metrics.classification(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weight))
    exact = [(nll.mean(1) * weight).sum(), (right * weight).sum(), 3]
    np.testing.assert_allclose(got, exact, rtol=1e-6)


def counted(n=64, length=6, validation=16):
    """Texts that count: each token is the one before it plus 3, modulo 11."""
    ids = (np.random.default_rng(5).integers(0, 11, (n, 1)) + 3 * np.arange(length + 1)) % 11

    def split(part):
        return Split(ids[part, :-1].astype(np.int32), ids[part, 1:].astype(np.int32))

    parts = (
        split(slice(2 * validation, None)),
        split(slice(validation)),
        split(slice(validation, 2 * validation)),
    )
    one = np.ones(1, np.float32)
    data = Dataset("counted", *parts, 11, tuple(map(str, range(11))), 0 * one, one)
    sizes = tuple(map(len, parts))
    return Source("counted", sizes, (length,), 11, lambda: data, (), (length,), 11)


@pytest.fixture
def recipe(monkeypatch):
    """A language model of texts that count, by config."""
    source = counted()
    monkeypatch.setattr(
        build,
        "_made",
        lambda f, s, k, g=None, m=build._made: source if s == "data" else m(f, s, k, g),
    )

    def of(parts=None, **changes):
        config = {
            "epochs": 3,
            "data": {"name": "digits"},
            "model": {"name": "text.LanguageModel", "width": 8, "depth": 1, "heads": 2,
                      "positions": 6, "dropout": 0.2},
            "batch": {"name": "fixed", "size": 8},
            "optimizer": {"name": "adam"},
            "lr": 0.01,
        }  # fmt: skip
        return build.check(config | changes, parts)

    return of


def trained(recipe):
    """The state after an epoch, and what was recorded."""
    training = epoch.Training(
        recipe.train_step(8), recipe.read(), 8, "resident", recipe.config["seed"]
    )
    state, out = training.run(recipe.init(), 0, 0, 4, recipe.config["lr"])
    return state, out


@pytest.mark.slow
def test_a_lane_of_language_models_is_the_single_run(recipe):
    made = recipe(1)
    lanes = Lanes(made, made.read(), [Lane(0, 0.003), Lane(0, 0.01)], 4)
    seen = lanes.advance(4)
    _, out = trained(recipe())  # on two devices
    np.testing.assert_allclose(seen[:, 1, 3], out[:, 3], rtol=1e-5)
    for split in ("validation", "test"):
        assert {"loss", "accuracy"} == set(lanes.evaluate(split, [0, 1])[0])


@pytest.mark.slow
def test_a_language_model_learns_to_count(recipe):
    made = recipe(lr=0.05)
    data, lanes = made.read(), Lanes(made, made.read(), [Lane(0, 0.05), Lane(1, 0.05)], 4)
    for _ in range(40):
        lanes.advance(4)
    assert data.target_shape == (6,)
    for found in lanes.evaluate("test", [0, 1]):
        assert found["accuracy"] > 0.8  # a guess is right one time in 11
        assert found["loss"] < np.log(11) / 4


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"vocabulary": 12}, r"model.vocabulary=12: counted has 11 pieces of text"),
        ({"positions": 4}, r"features of \[6\].*up to positions=4"),
        ({"width": 9}, r"width=9 is not divisible by heads=2"),
        ({"dropout": 1.0}, r"dropout=1.0"),
        ({"depth": 0}, r"depth=0 must be at least 1"),
        ({"name": "text.Classifier"}, r"outputs of shape \(11,\)"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(recipe, model, said):
    given = {"name": "text.LanguageModel", "width": 8, "depth": 1, "heads": 2, "positions": 6}
    with pytest.raises(ConfigError, match=said):
        recipe(model=given | model)


def test_language_models_do_not_vote(recipe):
    recipe()  # is sound
    config = {
        "epochs": 4, "data": {"name": "digits"}, "batch": {"name": "fixed", "size": 8},
        "model": {"name": "text.LanguageModel", "width": 8, "depth": 1, "heads": 2, "positions": 6},
        "optimizer": {"name": "adam"}, "lr": 0.01,
        "schedule": ({"name": "cosine_restarts", "t_0": {"epochs": 2}},),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="one class an example; counted"):
        snapshot.check(config)


def test_a_language_model_needs_a_language_task():
    config = {
        "epochs": 1, "data": {"name": "digits"}, "model": {"name": "text.LanguageModel"},
        "optimizer": {"name": "adam"}, "lr": 0.1,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="vocabulary"):
        build.check(config)
