import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from lrlab.analysis.sharpness import eigenvalues, sharpness
from lrlab.models import cnn, mlp


def quadratic(values, seed=0):
    """A loss over a tree of parameters whose Hessian has these eigenvalues, and where it is."""
    n = len(values)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    hessian = jnp.asarray(turn @ np.diag(values) @ turn.T, jnp.float32)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(n - 6)}

    def loss(p):
        flat = ravel_pytree(p)[0]
        return flat @ hessian @ flat / 2

    return loss, params


@pytest.mark.parametrize("condition", [1.5, 1e2, 1e4, 1e6])
def test_the_largest_eigenvalue_of_a_quadratic_is_found(condition):
    values = np.geomspace(1 / condition, 1.0, 60) * 37.0
    loss, params = quadratic(values)
    np.testing.assert_allclose(sharpness(loss, params, steps=40), 37.0, rtol=1e-4)


def test_largest_is_by_value_not_by_magnitude():
    values = [-90.0, -50.0, *np.linspace(-1, 1, 30), 5.0, 8.0]
    loss, params = quadratic(values)
    assert sharpness(loss, params) == pytest.approx(8.0, rel=1e-4)
    loss, params = quadratic([-90.0, *np.linspace(-4, -2, 30)])
    assert sharpness(loss, params, steps=31) == pytest.approx(-2.0, rel=1e-3)


def test_several_eigenvalues_fall_and_their_errors_hold():
    values = np.array([*np.linspace(0, 1, 200), 4.0, 9.0, 9.5])
    loss, params = quadratic(values)
    for steps in 4, 8, 16, 40:
        found, errors = eigenvalues(loss, params, count=3, steps=steps)
        away = np.abs(found[:, None] - values).min(1)
        assert (away <= errors + 1e-4).all()
        assert (np.diff(found) < 0).all()
    np.testing.assert_allclose(found, [9.5, 9.0, 4.0], rtol=1e-4)


def test_more_steps_than_the_hessian_has_directions_do_no_harm():
    for values in np.full(9, 3.0), np.repeat([1.0, 5.0], 6), np.linspace(1, 5, 9), np.zeros(9):
        loss, params = quadratic(values)
        found, errors = eigenvalues(loss, params, count=9, steps=60)
        np.testing.assert_allclose(found, np.unique(values.round(9))[::-1], atol=1e-4)
        assert (errors < 1e-3).all()


def loss_of(net, shape):
    """A small net's loss on random data."""
    x = jax.random.normal(jax.random.key(1), (24, *shape))
    y = jnp.arange(24) % 3

    def loss(p):
        logits = net.apply({"params": p}, x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return loss


def trained(net, shape):
    """Its loss, and parameters a few updates from their start."""
    loss = loss_of(net, shape)

    def down(_, p):
        return jax.tree.map(lambda a, g: a - 0.3 * g, p, jax.grad(loss)(p))

    @jax.jit
    def params():
        start = net.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)["params"]
        return jax.lax.fori_loop(0, 10, down, start)

    return loss, params()


def test_a_networks_largest_eigenvalues_are_those_of_its_dense_hessian():
    loss, params = trained(mlp.MLP(3, widths=(8, 6)), (5,))
    flat, unravel = ravel_pytree(params)
    dense = np.asarray(jax.jit(jax.hessian(lambda p: loss(unravel(p))))(flat), np.float64)
    exact = np.linalg.eigvalsh((dense + dense.T) / 2)
    assert exact[0] < -1e-3  # it is no minimum: there is something to confuse them with
    found, _ = eigenvalues(loss, params, count=3, steps=60)
    np.testing.assert_allclose(found, exact[::-1][:3], rtol=1e-3)


@pytest.mark.slow
def test_our_convolutions_have_second_derivatives():
    shape = (16, 16, 1)
    ours, params = trained(cnn.SmallCNN(3, implementation="patches"), shape)
    theirs = loss_of(cnn.SmallCNN(3, implementation="xla"), shape)
    found = sharpness(ours, params, steps=10)
    assert found == pytest.approx(sharpness(theirs, params, steps=10), rel=1e-3)
    assert found > 0.1


def test_what_cannot_be_is_refused():
    loss, params = quadratic(np.ones(9))
    with pytest.raises(ValueError, match="count=3 and steps=2"):
        eigenvalues(loss, params, count=3, steps=2)
    with pytest.raises(ValueError, match="not finite"):
        sharpness(lambda p: loss(p) * jnp.nan, params)
