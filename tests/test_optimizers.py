import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lrlab import optimizers
from lrlab.resolve import ConfigError

GRADIENTS = np.float32([1.0, 0.5, -0.25, 2.0])
# semantics.md, section 8: theta_0 = 1, these gradients; read from running the libraries named.
TRACES = {
    "torch momentum": ({"name": "momentum"}, 0.1, [0.9, 0.76, 0.659, 0.3681]),
    "torch Nesterov": ({"name": "nesterov"}, 0.1, [0.81, 0.634, 0.5681, 0.10629]),
    "TF1 momentum .5": ({"name": "momentum", "decay": 0.5}, 0.1, [0.9, 0.8, 0.775, 0.5625]),
    "gradient descent": ({"name": "sgd"}, 0.1, [0.9, 0.85, 0.875, 0.675]),
    "Optax and Keras Adagrad": (
        {"name": "adagrad"},
        0.1,
        [0.9046537, 0.8616206, 0.8826557, 0.7966889],
    ),
    "torch Adadelta": ({"name": "adadelta"}, 1.0, [0.9968377, 0.9947526, 0.9959056, 0.9915790]),
    "TF1 Adadelta": (
        {"name": "adadelta", "rho": 0.95, "eps": 1e-8},
        1.0,
        [0.9995528, 0.9992641, 0.9994209, 0.9988072],
    ),
    "Optax RMSProp": ({"name": "rmsprop"}, 0.01, [0.9683772, 0.9536330, 0.9611794, 0.9328604]),
    "torch RMSProp": (
        {"name": "rmsprop", "decay": 0.99, "eps_in_sqrt": False},
        0.01,
        [0.9, 0.8550987, 0.8771092, 0.7900472],
    ),
    "TF1 RMSProp": (
        {"name": "rmsprop", "eps": 1e-10, "initial_scale": 1.0},
        0.01,
        [0.99, 0.9848012, 0.9875310, 0.9689203],
    ),
    "torch Adam": ({"name": "adam"}, 0.001, [0.9990000, 0.9980679, 0.9975042, 0.9967705]),
    "Adam, eps .1": (
        {"name": "adam", "eps": 0.1},
        0.01,
        [0.9909091, 0.9826342, 0.9777381, 0.9709868],
    ),
    "Optax's own Adam": (
        {"name": "optax:adam"},
        0.001,
        [0.9990000, 0.9980679, 0.9975042, 0.9967705],
    ),
    "Optax's trace": ({"name": "optax:trace", "decay": 0.9}, 0.1, [0.9, 0.76, 0.659, 0.3681]),
}


def walk(make_tx, rates, params=None):
    """Parameters after each update by GRADIENTS."""
    params = {"w": jnp.float32(1.0)} if params is None else params
    state, out = make_tx(rates[0]).init(params), []

    @jax.jit
    def update(params, state, g, rate):
        gradient = jax.tree.map(lambda p: jnp.full_like(p, g), params)
        updates, state = make_tx(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for g, rate in zip(GRADIENTS, rates, strict=True):
        params, state = update(params, state, g, jnp.float32(rate))
        out.append(params)
    return out


@pytest.mark.parametrize("name", TRACES)
def test_a_rule_steps_as_the_library_that_it_names(name):
    spec, rate, expected = TRACES[name]
    ours = [float(p["w"]) for p in walk(optimizers.make(spec), [rate] * 4)]
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_l2_enters_the_rule_and_weight_decay_does_not():
    w, m, v, l2 = 1.0, 0.0, 1.0, 0.1
    coupled, decoupled = [], []
    buffer = 0.0
    for g in GRADIENTS.astype(float):  # torch's SGD: L2 in the gradient, before the buffer
        m = 0.9 * m + g + l2 * w
        w -= 0.1 * m
        coupled.append(w)
        buffer = 0.9 * buffer + g
        v -= 0.1 * (buffer + l2 * v)
        decoupled.append(v)
    spec = {"name": "momentum"}
    ours = [float(p["w"]) for p in walk(optimizers.make(spec, l2=l2), [0.1] * 4)]
    np.testing.assert_allclose(ours, coupled, atol=2e-6)
    ours = [float(p["w"]) for p in walk(optimizers.make(spec, weight_decay=l2), [0.1] * 4)]
    np.testing.assert_allclose(ours, decoupled, atol=2e-6)


@pytest.mark.parametrize("ours", [{"name": "adamw", "weight_decay": 0.3}, {"name": "optax:adam"}])
def test_decay_after_adam_is_adamw(ours):
    given = {} if "weight_decay" in ours else {"weight_decay": 0.3}
    mine = walk(optimizers.make(ours, **given), [0.1] * 4)
    theirs = walk(lambda rate: optax.adamw(rate, weight_decay=0.3), [0.1] * 4)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


@pytest.mark.parametrize("spec", [{"name": "adam"}, {"name": "optax:adam"}, {"name": "sgd"}])
def test_multipliers_scale_updates_after_the_rule(spec):
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    rules = (".*/bias", 2.0), (".*", 1.0)
    tree = optimizers.multipliers(rules, params)
    assert tree == {"a": {"kernel": 1.0, "bias": 2.0}}
    plain = walk(optimizers.make(spec), [0.1] * 4, params)
    scaled = walk(optimizers.make(spec, tree), [0.1] * 4, params)
    for p, s in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(p["a"]["kernel"], s["a"]["kernel"])
        # both rules depend on gradients alone, and these are given: the path is twice as long
        np.testing.assert_allclose(1 - s["a"]["bias"], 2 * (1 - p["a"]["bias"]), rtol=1e-5)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ((("(", 1.0),), "no regular expression"),
        (((".*/scale", 2.0), (".*", 1.0)), "'.*/scale' applies to none of 2 leaves"),
        (((".*", 1.0), (".*/bias", 2.0)), "all 1 it matches went to earlier rules"),
        (((".*/bias", 2.0),), r"matches no rule for \['a/kernel'\]"),
    ],
)
def test_multipliers_that_miss_are_refused(rules, says):
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    with pytest.raises(ConfigError, match=says):
        optimizers.multipliers(rules, params)


def test_clipping_bounds_the_global_norm():
    params = {"a": jnp.ones(4)}
    first = walk(optimizers.make({"name": "sgd"}, clip_norm=0.5), [1.0] * 4, params)[0]
    np.testing.assert_allclose(np.linalg.norm(1 - np.asarray(first["a"])), 0.5, rtol=1e-6)


# Semantics of section 8 that need a dialect, and the rules that the table above cannot write.
DIALECTS = {
    "torch Adagrad": (
        {"name": "adagrad", "dialect": "torch"},
        0.1,
        [0.9, 0.8552786, 0.8771004, 0.7903282],
    ),
    "Keras Adagrad": (
        {"name": "adagrad", "dialect": "keras"},
        0.1,
        [0.9046537, 0.8616206, 0.8826557, 0.7966889],
    ),
    "TF1 Adagrad": (
        {"name": "adagrad", "dialect": "tf1"},
        0.1,
        [0.9046537, 0.8616206, 0.8826557, 0.7966889],
    ),
    "torch Adadelta": (
        {"name": "adadelta", "dialect": "torch"},
        1.0,
        [0.9968377, 0.9947526, 0.9959056, 0.9915790],
    ),
    "Keras Adadelta": (
        {"name": "adadelta", "dialect": "keras"},
        1.0,
        [0.9985858, 0.9976729, 0.9981689, 0.9962280],
    ),
    "TF1 Adadelta": (
        {"name": "adadelta", "dialect": "tf1"},
        1.0,
        [0.9995528, 0.9992641, 0.9994209, 0.9988072],
    ),
    "torch RMSProp": (
        {"name": "rmsprop", "dialect": "torch"},
        0.01,
        [0.9, 0.8550987, 0.8771092, 0.7900472],
    ),
    "Keras RMSProp": (
        {"name": "rmsprop", "dialect": "keras"},
        0.01,
        [0.9683772, 0.9536330, 0.9611794, 0.9328604],
    ),
    "TF1 RMSProp": (
        {"name": "rmsprop", "dialect": "tf1"},
        0.01,
        [0.99, 0.9848012, 0.9875310, 0.9689203],
    ),
    "Keras Adam, eps 1e-8": (
        {"name": "adam", "dialect": "keras", "eps": 1e-8},
        0.001,
        [0.9990000, 0.9980679, 0.9975042, 0.9967705],
    ),
    "Keras Adam, eps .1": (
        {"name": "adam", "dialect": "keras", "eps": 0.1},
        0.01,
        [0.9975975, 0.9951633, 0.9936653, 0.9905728],
    ),
    "TF1 Adam, eps .1": (
        {"name": "adam", "dialect": "tf1", "eps": 0.1},
        0.01,
        [0.9975975, 0.9951633, 0.9936653, 0.9905728],
    ),
    "torch Adam, eps .1": (
        {"name": "adam", "dialect": "torch", "eps": 0.1},
        0.01,
        [0.9909091, 0.9826342, 0.9777381, 0.9709868],
    ),
    "torch dampening .5": (
        {"name": "momentum", "dampening": 0.5, "dialect": "torch"},
        0.1,
        [0.9, 0.785, 0.694, 0.5121],
    ),
    "Keras momentum": (
        {"name": "momentum", "dialect": "keras"},
        0.1,
        [0.9, 0.76, 0.659, 0.3681],
    ),
    "Keras Nesterov": (
        {"name": "nesterov", "dialect": "keras"},
        0.1,
        [0.81, 0.634, 0.5681, 0.10629],
    ),
}
# The same section, "where the LR multiplies": the rate falls tenfold at the third update.
PLACEMENTS = {
    "torch SGD": ({"name": "momentum", "dialect": "torch"}, 0.1, [0.9, 0.76, 0.7499, 0.72081]),
    "Optax SGD": ({"name": "optax:sgd", "momentum": 0.9}, 0.1, [0.9, 0.76, 0.7499, 0.72081]),
    "TF1 SGD": ({"name": "momentum", "dialect": "tf1"}, 0.1, [0.9, 0.76, 0.7499, 0.72081]),
    "Keras SGD": ({"name": "momentum", "dialect": "keras"}, 0.1, [0.9, 0.76, 0.6365, 0.50535]),
    "torch RMSProp": (
        {"name": "rmsprop", "momentum": 0.9, "dialect": "torch", "decay": 0.9},
        0.1,
        [0.6837722, 0.2517253, 0.2203874, 0.1638643],
    ),
    "Optax RMSProp": (
        {"name": "rmsprop", "momentum": 0.9},
        0.1,
        [0.6837722, 0.2517253, -0.1295706, -0.5010559],
    ),
    "Optax's own RMSProp": (
        {"name": "optax:rmsprop", "momentum": 0.9},
        0.1,
        [0.6837722, 0.2517253, -0.1295706, -0.5010559],
    ),
    "Keras RMSProp": (
        {"name": "rmsprop", "momentum": 0.9, "dialect": "keras"},
        0.1,
        [0.6837722, 0.2517253, -0.1295706, -0.5010559],
    ),
}


def scalars(trace):
    return [float(p["w"]) for p in trace]


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_steps_as_the_library_that_it_names(name):
    spec, rate, expected = DIALECTS[name]
    ours = scalars(walk(optimizers.make(spec), [rate] * 4))
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_rate_multiplies_where_the_dialect_has_it(name):
    spec, rate, expected = PLACEMENTS[name]
    ours = scalars(walk(optimizers.make(spec), [rate, rate, rate / 10, rate / 10]))
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_torch_decays_adamw_a_hundred_times_more_than_optax():
    mine = scalars(walk(optimizers.make({"name": "adamw", "dialect": "torch"}), [0.1] * 4))
    theirs = scalars(walk(lambda rate: optax.adamw(rate, weight_decay=0.01), [0.1] * 4))
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "adagrad", "dialect": "jax"}, "no dialect 'jax'; it speaks 'optax', 'keras'"),
        ({"name": "adamw", "dialect": "tf1"}, "adamw has no dialect 'tf1'"),
        ({"name": "adam", "nesterov": True, "dialect": "torch"}, "another NAdam"),
        ({"name": "nesterov", "dampening": 0.5}, "dampening"),
        ({"name": "momentum", "nesterov": True, "dampening": 0.5}, "nesterov wants dampening=0"),
        ({"name": "momentum", "decay": 1.0}, r"decay in \[0, 1\), got 1.0"),
        ({"name": "adam", "eps": 0.0}, r"eps in \(0, 1\), got 0.0"),
        ({"name": "adadelta", "learning_rate": None}, "does not take it"),
        ({"name": "optax:adadelta", "learning_rate": None}, "lrlab sets this itself"),
        ({"name": "mechanic", "base": "lbfgs"}, "base among sgd, adam"),
    ],
)
def test_settings_that_cannot_be_are_refused(spec, says):
    with pytest.raises(ConfigError, match=says):
        optimizers.make(spec)(1.0)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "adadelta"},
        {"name": "optax:adadelta"},
        {"name": "optax:scale_by_adadelta"},
        *({"name": "adadelta", "dialect": d} for d in ("optax", "torch", "keras", "tf1")),
    ],
)
def test_adadelta_goes_downhill_however_it_is_spelled(spec):
    assert scalars(walk(optimizers.make(spec), [1.0] * 4))[0] < 1


# Rules by name: settings that a name needs, and its rate where 0.01 hardly moves or is too much.
SETTINGS = {
    "optax:adaptive_grad_clip": {"clipping": 0.1},
    "optax:add_noise": {"eta": 0.001, "gamma": 0.5, "key": 0},
    "optax:clip": {"max_delta": 1.0},
    "optax:clip_by_block_rms": {"threshold": 1.0},
    "optax:clip_by_global_norm": {"max_norm": 1.0},
    "optax:ema": {"decay": 0.9},
    "optax:lbfgs": {"linesearch": None},
    "optax:noisy_sgd": {"key": 0},
    "optax:scale": {"step_size": 1.0},
    "optax:scale_by_rprop": {"learning_rate": 0.1},
    "optax:trace": {"decay": 0.9},
}
RATES = {
    "optax:scale_by_distance_over_gradients": 1.0,
    "optax.contrib:dadapt_adamw": 1.0,
    "optax.contrib:dog": 1.0,
    "optax.contrib:prodigy": 1.0,
}
REFUSED = {  # what of Optax is no rule of a plain update
    *("optax:" + name for name in ("apply_if_finite", "chain", "conditionally_mask", "flatten")),
    *("optax:" + name for name in ("conditionally_transform", "freeze", "inject_hyperparams")),
    *("optax:" + name for name in ("inject_stateful_hyperparams", "keep_params_nonnegative")),
    *("optax:" + name for name in ("lookahead", "masked", "measure_with_ema", "monitor", "rprop")),
    *("optax:" + name for name in ("multi_transform", "named_chain", "partition", "snapshot")),
    *("optax:" + name for name in ("scale_by_backtracking_linesearch", "scale_by_schedule")),
    *("optax:" + name for name in ("scale_by_zoom_linesearch", "selective_transform", "stateless")),
    *("optax:" + name for name in ("set_to_zero", "stateless_with_tree_map")),
    "optax:with_extra_args_support",
    *("optax.contrib:" + name for name in ("differentially_private_aggregate", "dpsgd", "sam")),
    *("optax.contrib:" + name for name in ("mechanize", "reduce_on_plateau", "scale_by_cocob")),
    *("optax.contrib:" + name for name in ("scale_by_muon", "schedule_free", "sophia")),
    "optax.contrib:split_real_and_imaginary",
}


def transformations():
    """Every public function of Optax that returns a gradient transformation, as a config has it."""
    names = []
    for module in optax, optax.contrib:
        for name, value in sorted(vars(module).items()):
            if name[0] != "_" and inspect.isfunction(value):
                returns = str(inspect.signature(value).return_annotation)
                if "GradientTransformation" in returns or name in ("dog", "dowg", "monitor"):
                    names.append(f"{module.__name__}:{name}")
    return names


def bowl(params):
    """A quadratic loss."""
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def descend(make_tx, rate, params, num_steps=20):
    """Losses of `bowl` before every update and after the last, with params and state."""
    state = make_tx(1.0).init(params)

    @jax.jit
    def update(params, state, rate):
        loss, grads = jax.value_and_grad(bowl)(params)
        updates, state = make_tx(rate).update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(num_steps):
        params, state, loss = update(params, state, jnp.float32(rate))
        losses.append(float(loss))
    return [*losses, float(bowl(params))], params, state


@pytest.fixture
def promotion():
    """JAX as a user has it, ranks promoted."""
    with jax.numpy_rank_promotion("allow"):
        yield


def small():
    return {
        "kernel": jnp.float32([[1.0, -2.0, 0.5], [0.3, 0.4, -1.0]]),
        "bias": jnp.float32([1.0, 2.0, 3.0]),
    }


@pytest.mark.filterwarnings("ignore:.optimistic_adam. is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("promotion")  # Optax's DoG broadcasts from rank 1
@pytest.mark.parametrize("name", transformations())
def test_every_rule_of_optax_descends_or_says_why_not(name):
    spec = {"name": name, **SETTINGS.get(name, {})}
    if name in REFUSED:
        with pytest.raises(ConfigError, match=re.escape(name)):
            optimizers.make(spec)
        return
    make_tx = optimizers.make(spec)
    # lrlab's states are made before a rate is known: none may depend on it
    for a, b in zip(*(jax.tree.leaves(make_tx(r).init(small())) for r in (1.0, 0.1)), strict=True):
        assert bool(jnp.all(a == b))
    losses, _, _ = descend(make_tx, RATES.get(name, 0.01), small())
    assert losses[-1] < losses[0]
    assert max(losses) <= losses[0] * 1.01  # noise apart, never uphill on the way


@pytest.mark.parametrize("name", ["optax:cosine_decay_schedule", "optax:l2_loss", "math:sqrt"])
def test_what_is_no_rule_is_refused(name):
    with pytest.raises(ConfigError, match="optimizer"):
        optimizers.make({"name": name})


FREE = {
    "dadapt_adamw": 1.0,
    "prodigy": 1.0,
    "dog": 1.0,
    "dowg": 1.0,
    "cocob": 1.0,
    "momo": 1.0,
    "momo_adam": 0.1,
    "mechanic": 1.0,
    "schedule_free_sgd": 0.1,
    "schedule_free_adamw": 0.1,
}


@pytest.mark.parametrize("name", FREE)
def test_a_rate_free_rule_descends_at_its_usual_rate_and_freezes(name):
    make_tx = optimizers.make({"name": name})
    losses, params, state = descend(make_tx, FREE[name], small(), 300)
    assert float(bowl(optimizers.eval_params(state, params))) < 0.9 * losses[0]
    frozen = optimizers.make({"name": name}, {"kernel": 1.0, "bias": 0.0})
    _, params, state = descend(frozen, FREE[name], small())
    for tree in params, optimizers.eval_params(state, params):
        np.testing.assert_array_equal(tree["bias"], small()["bias"])
    assert all(leaf.shape != (3,) for leaf in jax.tree.leaves(state))


def test_the_effective_rate_is_what_stands_before_the_gradient():
    """DoG, DoWG and MoMo without momentum step along the gradient: the ratio of norms is it."""
    for spec in {"name": "dog"}, {"name": "dowg"}, {"name": "momo", "beta": 0.0}:
        make_tx, params = optimizers.make(spec), small()
        state, rate = make_tx(1.0).init(params), jnp.float32(0.7)
        for _ in range(5):
            loss, grads = jax.value_and_grad(bowl)(params)
            updates, state = make_tx(rate).update(grads, state, params, value=loss)
            params = optax.apply_updates(params, updates)
            ratio = optax.tree.norm(updates) / optax.tree.norm(grads)
            found = optimizers.effective_rate(state, rate)
            np.testing.assert_allclose(found, ratio, rtol=1e-5)


def test_adam_with_the_effective_rate_steps_as_prodigy_and_momo_adam():
    """Prodigy weighs gradients by d, which cancels while d is constant: first updates are Adam."""
    for spec, rate in ({"name": "prodigy", "first": 0.01}, 1.0), ({"name": "momo_adam"}, 0.3):
        make_tx, params = optimizers.make(spec), small()
        loss, grads = jax.value_and_grad(bowl)(params)
        updates, state = make_tx(rate).update(grads, make_tx(1.0).init(params), params, value=loss)
        found = float(optimizers.effective_rate(state, rate))
        assert 0 < found <= rate * (1 + 1e-6)
        adam = optax.adam(found)
        expected, _ = adam.update(grads, adam.init(params), params)
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_the_effective_rate_of_other_rules_is_the_rate():
    make_tx = optimizers.make({"name": "adam"})
    _, _, state = descend(make_tx, 0.01, small(), 1)
    assert float(optimizers.effective_rate(state, 0.25)) == 0.25


def schedule_free(rates, gradients, b1=0.9):
    """Defazio et al.'s SGD in float64: z, x and y after each update."""
    z = x = 1.0
    total = largest = 0.0
    out = []
    for rate, g in zip(rates, gradients, strict=True):
        largest = max(largest, rate)
        total += largest**2
        weight = largest**2 / total
        z = z - rate * g
        x = (1 - weight) * x + weight * z
        out.append((z, x, (1 - b1) * z + b1 * x))
    return out


def test_schedule_free_is_the_authors_with_our_warm_up_and_lags_with_optax_s():
    rates, params = [0.25, 0.5, 0.75, 1.0], {"w": jnp.float32(1.0)}  # (k + 1) / 4
    make_tx = optimizers.make({"name": "schedule_free_sgd"})
    lagging = optimizers.make({"name": "optax.contrib:schedule_free_sgd", "warmup_steps": 4})
    state, late, late_params = make_tx(1.0).init(params), lagging(1.0).init(params), params
    g, zs = {"w": jnp.float32(1.0)}, []
    for rate, (z, x, y) in zip(rates, schedule_free(rates, [1.0] * 4), strict=True):
        updates, state = make_tx(rate).update(g, state, params)
        params = optax.apply_updates(params, updates)
        found = optimizers.eval_params(state, params)["w"]
        np.testing.assert_allclose([params["w"], found], [y, x], atol=1e-6)
        zs.append(z)
        updates, late = lagging(1.0).update(g, late, late_params)
        late_params = optax.apply_updates(late_params, updates)
    assert zs == [0.75, 0.25, -0.5, -1.5]
    inner = [s for s in jax.tree.leaves(late, is_leaf=is_schedule_free) if is_schedule_free(s)]
    np.testing.assert_allclose(inner[0].z["w"], -0.5, atol=1e-6)  # one update late: 1, .75, .25


def is_schedule_free(state):
    return isinstance(state, optax.contrib.ScheduleFreeState)


def test_multipliers_reach_the_inner_steps_of_schedule_free():
    tree = {"kernel": 1.0, "bias": 0.5}
    make_tx = optimizers.make({"name": "schedule_free_sgd"}, tree)
    _, params, state = descend(make_tx, 0.1, small(), 7)
    half = optimizers.make({"name": "schedule_free_sgd"})

    def z(params, num):  # the same recursion with half the gradient
        return descend(half, 0.1, params, num)

    kernel_only, kernel_state = z({"kernel": small()["kernel"]}, 7)[1:]
    np.testing.assert_allclose(params["kernel"], kernel_only["kernel"], rtol=1e-6)
    x = optimizers.eval_params(state, params)["kernel"]
    expected = optimizers.eval_params(kernel_state, kernel_only)["kernel"]
    np.testing.assert_allclose(x, expected, rtol=1e-5)
    x = optimizers.eval_params(state, params)["bias"]
    assert 0 < float(jnp.max(jnp.abs(x / small()["bias"]))) < 1  # on the way, not thrown off it


@pytest.mark.parametrize(
    ("spec", "has", "has_not"),
    [
        ({"name": "adam"}, ("b1", "b2", "eps", "l2"), ("nesterov", "dialect")),
        ({"name": "adamw"}, ("weight_decay",), ("mask",)),
        ({"name": "momentum"}, ("decay", "clip_norm", "weight_decay"), ("learning_rate",)),
        ({"name": "rmsprop"}, ("decay", "eps"), ("momentum",)),  # a buffer cannot come and go
        ({"name": "rmsprop", "momentum": 0.9}, ("momentum",), ("centered",)),
        ({"name": "schedule_free_sgd"}, ("clip_norm",), ("b1",)),
        ({"name": "optax:lion"}, ("b1", "b2", "weight_decay"), ("mu_dtype", "mask")),
        ({"name": "optax:trace", "decay": 0.9}, ("decay",), ("nesterov",)),
        ({"name": "prodigy"}, ("b1", "b2", "weight_decay"), ("first", "safeguard_warmup")),
        # the state is made before any update: what only it reads cannot change
        ({"name": "adagrad"}, ("eps",), ("initial_accumulator_value",)),
        ({"name": "optax:rmsprop"}, ("decay",), ("initial_scale",)),
        ({"name": "optax.contrib:schedule_free_adamw"}, ("b2",), ("b1",)),
    ],
)
def test_only_floats_that_trace_can_be_scheduled(spec, has, has_not):
    found = optimizers.schedulable(spec)
    assert set(has) <= set(found)
    assert not set(has_not) & set(found)
    with pytest.raises(ConfigError, match=f"{has_not[0]} cannot be scheduled.*{has[0]}"):
        optimizers.make(spec)(0.1, {has_not[0]: 0.5})


SCHEDULED = {
    "decay": ({"name": "momentum"}, {}, [0.0, 0.5, 0.9, 0.95]),
    "b1": ({"name": "adam"}, {}, [0.95, 0.9, 0.85, 0.9]),
    "eps": ({"name": "adam", "dialect": "keras"}, {}, [1e-1, 1e-2, 1e-3, 1e-4]),
    "weight_decay": ({"name": "momentum"}, {}, [0.0, 0.1, 0.2, 0.3]),
    "l2": ({"name": "momentum"}, {"l2": 0.1}, [0.0, 0.1, 0.2, 0.3]),
    "clip_norm": ({"name": "momentum"}, {}, [1e3, 1.0, 0.1, 0.5]),
    "momentum": ({"name": "optax:rmsprop", "momentum": 0.9}, {}, [0.9, 0.8, 0.7, 0.6]),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_scheduled_float_is_the_rule_rebuilt_at_every_update(name):
    spec, given, values = SCHEDULED[name]
    make_tx = optimizers.make(spec, **given)
    params = theirs = {"w": jnp.float32([1.0, -2.0])}
    state, other = make_tx(1.0).init(params), None
    traces = []

    @jax.jit
    def update(params, state, g, value):
        traces.append(name)
        tx = make_tx(jnp.float32(0.1), {name: value})
        updates, state = tx.update(jax.tree.map(lambda p: g * p, params), state, params)
        return optax.apply_updates(params, updates), state

    for g, value in zip(GRADIENTS, values, strict=True):
        params, state = update(params, state, g, jnp.float32(value))
        if name in ("weight_decay", "l2", "clip_norm"):
            tx = optimizers.make(spec, **{name: value})(0.1)
        else:
            tx = optimizers.make({**spec, name: value})(0.1)
        other = tx.init(theirs) if other is None else other
        updates, other = tx.update(jax.tree.map(lambda p, g=g: g * p, theirs), other, theirs)
        theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(params["w"], theirs["w"], rtol=1e-6)
    assert len(traces) == 1  # a new value compiles nothing


def test_a_multiplier_before_adam_does_nothing_and_ours_does():
    """tensorflow/addons#969: Adam divides the scale of a gradient away again."""
    params = {"w": jnp.float32(1.0)}
    before = optax.chain(optax.scale(2.0), optax.scale_by_adam(), optax.scale(-0.1))
    plain, doubled = (
        walk(optimizers.make({"name": "adam"}, m), [0.1] * 4) for m in (None, {"w": 2.0})
    )
    state, other = before.init(params), params
    for g, p, d in zip(GRADIENTS, plain, doubled, strict=True):
        updates, state = before.update({"w": g}, state, other)
        other = optax.apply_updates(other, updates)
        np.testing.assert_allclose(other["w"], p["w"], rtol=1e-5)
        np.testing.assert_allclose(1 - d["w"], 2 * (1 - p["w"]), rtol=1e-5)


@pytest.mark.parametrize("spec", [{"name": "adamw"}, {"name": "optax:lion"}, {"name": "momentum"}])
def test_frozen_leaves_keep_their_bits_and_no_state(spec):
    tree = {"kernel": 1.0, "bias": 0.0}
    mask = optimizers.decay_mask(small(), ())
    make_tx = optimizers.make(spec, tree, clip_norm=1.0, weight_decay=0.1, mask=mask)
    _, params, state = descend(make_tx, 0.01, small())
    np.testing.assert_array_equal(params["bias"], small()["bias"])
    assert not np.array_equal(params["kernel"], small()["kernel"])
    assert all(leaf.shape != (3,) for leaf in jax.tree.leaves(state))
    alone = optimizers.make(spec, clip_norm=1.0, weight_decay=0.1)
    _, expected, _ = descend(alone, 0.01, {"kernel": small()["kernel"]})
    np.testing.assert_allclose(params["kernel"], expected["kernel"], rtol=1e-6)


@pytest.mark.parametrize("spec", [{"name": n} for n in ("adamw", "optax:lamb", "optax:adadelta")])
def test_a_decay_mask_holds_for_the_rule_s_own_decay_and_the_chain_s(spec):
    params = {"Dense_0": small()}
    mask = optimizers.decay_mask(params)
    assert mask == {"Dense_0": {"kernel": True, "bias": False}}
    spec = {**spec, "weight_decay": 0.5}
    masked = optimizers.make(spec, l2=0.3, weight_decay=0.2, mask=mask)
    free = optimizers.make({**spec, "weight_decay": 0.0})
    zero = jax.tree.map(jnp.zeros_like, params)
    for make_tx, moves in (masked, True), (free, False):
        tx = make_tx(0.1)
        updates, _ = tx.update(zero, tx.init(params), params)
        assert bool(jnp.any(updates["Dense_0"]["kernel"] != 0)) == moves
        assert not jnp.any(updates["Dense_0"]["bias"])


def test_a_rule_that_decays_everything_refuses_a_mask():
    with pytest.raises(ConfigError, match="prodigy decays every leaf and takes no mask"):
        optimizers.make({"name": "prodigy", "weight_decay": 0.1}, mask={"w": True})
    optimizers.make({"name": "prodigy"}, weight_decay=0.1, mask={"w": True})(1.0)


LAYERS = {
    "Embed_0": {"embedding": np.ones((5, 4))},
    "Dense_0": {"kernel": np.ones((4, 3)), "bias": np.ones(3)},
    "LayerNorm_0": {"scale": np.ones(3), "bias": np.ones(3)},
    "Dense_1": {"kernel": np.ones((3, 2)), "bias": np.ones(2)},
}


def test_depth_divides_the_rate_by_2_6_a_group():
    order = ("Embed_0", ("Dense_0", "LayerNorm_0"), "Dense_1")
    rules = optimizers.by_depth(LAYERS, order=order)
    tree = optimizers.multipliers(rules, LAYERS)
    np.testing.assert_allclose(tree["Embed_0"]["embedding"], 1 / 2.6**2)
    np.testing.assert_allclose(list(tree["Dense_0"].values()), 1 / 2.6)
    np.testing.assert_allclose(list(tree["LayerNorm_0"].values()), 1 / 2.6)
    assert list(tree["Dense_1"].values()) == [1.0, 1.0]
    assert [(g[1:]) for g in optimizers.groups(rules, LAYERS)] == [
        (pytest.approx(1 / 2.6**2), 1, 20),
        (pytest.approx(1 / 2.6), 4, 21),
        (1.0, 2, 8),
    ]
    assert len(optimizers.by_depth(LAYERS)) == 4  # the mapping's own order


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (("Embed_0", "Dense_0"), r"leaves out \['LayerNorm_0', 'Dense_1'\]"),
        ((*LAYERS, "Dense_9"), r"order has \['Dense_9'\]"),
        ((*LAYERS, "Dense_1"), r"order has \['Dense_1'\] twice"),
    ],
)
def test_an_order_that_misses_layers_is_refused(order, says):
    with pytest.raises(ConfigError, match=says):
        optimizers.by_depth(LAYERS, order=order)


def test_freezing_everything_or_decaying_nothing_is_refused():
    with pytest.raises(ConfigError, match="freezes all 7 leaves"):
        optimizers.multipliers(((".*", 0.0),), LAYERS)
    with pytest.raises(ConfigError, match="leaves none of 7 leaves to decay"):
        optimizers.decay_mask(LAYERS, (".*",))
    with pytest.raises(ConfigError, match="beta' matches none of 7 leaves"):
        optimizers.decay_mask(LAYERS, (".*/beta",))
    kept = optimizers.decay_mask(LAYERS)
    assert sum(jax.tree.leaves(kept)) == 3  # two kernels and the embedding


def test_groups_count_what_each_pattern_wins():
    rules = ((".*/bias", 2.0), ("Embed_0/.*", 0.0), (".*", 1.0))
    assert optimizers.groups(rules, LAYERS) == [
        (".*/bias", 2.0, 3, 8),
        ("Embed_0/.*", 0.0, 1, 20),
        (".*", 1.0, 3, 21),
    ]
    assert optimizers.groups((), LAYERS) == [(".*", 1.0, 7, 49)]
