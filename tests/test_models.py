import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from lrlab.models import cnn, layers, mlp, resnet

SHIPPED = {
    "MnistCNN": (cnn.MnistCNN(10, scale=0.25, dense=32), (12, 12, 1)),
    "SmallCNN": (cnn.SmallCNN(10, dropout=0.1), (28, 28, 1)),
    "MLP": (mlp.MLP(10, widths=(8, 8), dropout=0.1), (6,)),
    "Tabular": (mlp.Tabular(7), (54,)),
    "ResNet": (resnet.ResNet(10, stage_sizes=(1, 1), width=8), (8, 8, 3)),
    "bottleneck": (
        resnet.ResNet(10, stage_sizes=(1,), width=8, bottleneck=True, small_images=False),
        (16, 16, 3),
    ),
    "WideResNet": (resnet.WideResNet(10, depth=10, width=1, dropout=0.1), (8, 8, 3)),
}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def random_params(model, x, seed=0):
    """Like initial ones, but no bias is zero and no scale one."""
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)
    flat, tree = jax.tree.flatten(dict(shapes))
    filled = [
        normal(seed + i, *a.shape) / np.sqrt(max(1, a.size / a.shape[-1]))
        for i, a in enumerate(flat)
    ]
    variables = jax.tree.unflatten(tree, filled)
    return variables.pop("params"), jax.tree.map(jnp.square, variables)


def same(ours, theirs, rtol=1e-5):
    """Equal leaf by leaf, to `rtol` of each leaf's largest element."""
    ours, tree = jax.tree.flatten(ours)
    theirs, other = jax.tree.flatten(theirs)
    assert tree == other
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(np.abs(b).max()) + 1e-30)


def weights(model, *shape):
    x = jnp.zeros((1, *shape))
    return sum(
        a.size for a in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
    )


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (cnn.MnistCNN(10), (28, 28, 1), 3_274_634),
        (cnn.SmallCNN(10), (28, 28, 1), 3_424),
        (cnn.SmallCNN(10, scale=2), (28, 28, 1), 13_046),
        (cnn.SmallCNN(10, scale=3), (28, 28, 1), 28_876),
        (mlp.MLP(10, widths=()), (28, 28, 1), 7_850),
        (mlp.Tabular(7), (54,), 492_167),
        (resnet.WideResNet(10), (32, 32, 3), 2_748_890),
        (resnet.WideResNet(10, depth=28, width=10), (32, 32, 3), 36_479_194),
        (resnet.ResNet(10), (32, 32, 3), 11_173_962),
        (resnet.ResNet(1000, small_images=False), (224, 224, 3), 11_689_512),
        (
            resnet.ResNet(1000, (3, 4, 6, 3), bottleneck=True, small_images=False),
            (224, 224, 3),
            25_557_032,
        ),
    ],
)
def test_models_have_the_published_number_of_weights(model, shape, count):
    assert weights(model, *shape) == count


def test_the_study_program_scales_convolutions_and_the_article_the_dense_layer_too():
    program = weights(cnn.MnistCNN(10, scale=2), 28, 28, 1)
    article = weights(cnn.MnistCNN(10, scale=2, scale_dense=True), 28, 28, 1)
    rest = 25 * 64 + 64 + 25 * 64 * 128 + 128
    assert program == rest + (49 * 128 + 1) * 1024 + 1025 * 10
    assert article == rest + (49 * 128 + 1) * 2048 + 2049 * 10


@pytest.mark.parametrize("implementation", ["patches", "xla"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "use_bias"),
    [
        ((8, 8), (3, 3), (1, 1), True),
        ((9, 7), (3, 3), (2, 2), False),
        ((8, 8), (3, 3), (2, 2), True),
        ((11, 13), (5, 4), (2, 1), True),
        ((16, 15), (7, 7), (2, 2), False),
        ((9, 8), (2, 3), (3, 2), True),
        ((9, 8), (1, 1), (2, 2), True),
        ((5, 5), (1, 1), (1, 1), False),
        ((6, 5), (1, 3), (1, 1), True),
    ],
)
def test_conv_is_flax_conv(implementation, padding, size, kernel, strides, use_bias):
    x, kw = normal(1, 3, *size, 4), {"strides": strides, "padding": padding, "use_bias": use_bias}
    ours = layers.Conv(6, kernel, implementation=implementation, **kw)
    theirs = nn.Conv(6, kernel, **kw)
    params, shapes = random_params_of_layer(theirs, x)
    assert shapes == jax.eval_shape(ours.init, jax.random.key(0), x)["params"]

    @functools.partial(jax.jit, static_argnums=0)
    def run(layer, params, x):
        y, pull_back = jax.vjp(lambda p, x: layer.apply({"params": p}, x), params, x)
        return y, pull_back(normal(2, *y.shape))

    same(run(ours, params, x), run(theirs, params, x))


def random_params_of_layer(layer, x):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = {name: normal(i, *a.shape) for i, (name, a) in enumerate(sorted(shapes.items()))}
    return params, shapes


def plain_conv_pool(params, x, padding):
    """ConvPool with XLA's convolution, [batch, height, width, channels] both ways."""
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, params["kernel"], (1, 1), padding, dimension_numbers=dims)
    return nn.max_pool(nn.relu(y + params["bias"].reshape(1, 1, 1, -1)), (2, 2), (2, 2))


@pytest.mark.parametrize("implementation", ["patches", "xla"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "channels", "kernel"),
    [
        ((12, 12), 1, (5, 5)),
        ((14, 14), 4, (5, 5)),
        ((13, 10), 3, (5, 5)),  # one is odd after a convolution without padding, and with it
        ((9, 11), 2, (3, 3)),
        ((8, 9), 5, (3, 5)),
        ((9, 8), 3, (4, 4)),
        ((8, 7), 3, (1, 2)),
        ((10, 10), 32, (5, 5)),  # many channels: each output has its own window
        ((9, 11), 33, (3, 3)),
    ],
)
def test_conv_pool_is_convolution_relu_and_pooling(implementation, padding, size, channels, kernel):
    x = normal(1, 6, *size, channels)
    layer = layers.ConvPool(7, kernel, padding=padding, implementation=implementation)
    params, _ = random_params_of_layer(nn.Conv(7, kernel), x)

    def ours(params, x):
        y = layer.apply({"params": params}, layers.batch_minor(x, implementation))
        return y.transpose(3, 1, 2, 0)

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, params, x):
        y, pull_back = jax.vjp(f, params, x)
        return y, pull_back(normal(2, *y.shape))

    theirs = functools.partial(plain_conv_pool, padding=padding)
    same(run(ours, params, x), run(theirs, params, x))


def test_pooling_gives_the_gradient_to_the_first_of_equal_maxima():
    x, params = jnp.ones((2, 6, 6, 1)), {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)}
    layer = layers.ConvPool(2, (3, 3), padding="VALID", implementation="patches")

    def ours(x):
        return layer.apply({"params": params}, layers.batch_minor(x, "patches")).sum()

    theirs = jax.grad(lambda x: plain_conv_pool(params, x, "VALID").sum())(x)
    np.testing.assert_array_equal(jax.grad(ours)(x), theirs)


class PlainCNN(nn.Module):
    """A convolutional net as anybody writes it in Flax."""

    widths: tuple[int, int, int]
    padding: str

    @nn.compact
    def __call__(self, x, train=False):
        for width in self.widths[:2]:
            x = nn.max_pool(
                nn.relu(nn.Conv(width, (5, 5), padding=self.padding)(x)), (2, 2), (2, 2)
            )
        x = nn.relu(nn.Dense(self.widths[2])(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


@pytest.mark.parametrize("implementation", ["patches", "xla"])
@pytest.mark.parametrize(
    ("model", "plain", "shape"),
    [
        (cnn.SmallCNN(10), PlainCNN((4, 8, 18), "VALID"), (28, 28, 1)),
        (cnn.SmallCNN(10), PlainCNN((4, 8, 18), "VALID"), (32, 32, 3)),
        (cnn.SmallCNN(10), PlainCNN((4, 8, 18), "VALID"), (16, 16, 1)),
        (cnn.SmallCNN(10, scale=8), PlainCNN((32, 64, 144), "VALID"), (19, 18, 2)),
        (cnn.MnistCNN(10, scale=0.25, dense=40), PlainCNN((8, 16, 40), "SAME"), (8, 8, 1)),
        (cnn.MnistCNN(10, scale=0.25, dense=40), PlainCNN((8, 16, 40), "SAME"), (14, 13, 3)),
        (cnn.MnistCNN(10, dense=40), PlainCNN((32, 64, 40), "SAME"), (14, 14, 1)),
    ],
)
def test_cnns_are_plain_flax_nets_with_the_same_parameters(model, plain, shape, implementation):
    x, y = normal(5, 6, *shape), np.arange(6)
    params, _ = random_params(plain, x)
    ours = model.clone(implementation=implementation, dropout=0.0)
    made = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, params)

    def run(model):
        def loss(params):
            logits = model.apply({"params": params}, x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    same(run(ours), run(plain), rtol=2e-5)


def test_hessian_vector_products_go_through_the_patches():
    x, y = normal(5, 6, 16, 16, 1), np.arange(6)
    params, _ = random_params(cnn.SmallCNN(10), x)
    direction, _ = random_params(cnn.SmallCNN(10), x, seed=100)

    def product(implementation):
        def loss(params):
            logits = cnn.SmallCNN(10, implementation=implementation).apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.jit(lambda: jax.jvp(jax.grad(loss), (params,), (direction,))[1])()

    same(product("patches"), product("xla"), rtol=1e-4)


@pytest.mark.parametrize("name", ["ResNet", "bottleneck", "WideResNet"])
def test_residual_nets_give_the_same_with_both_convolutions(name):
    model, shape = SHIPPED[name]
    model = model.clone(dropout=0.0) if name == "WideResNet" else model
    x, y = normal(5, 6, *shape), np.arange(6)
    params, stats = random_params(model, x)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation):
        ours = model.clone(implementation=implementation)

        def loss(params):
            logits, new = ours.apply(
                {"params": params, **stats}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        evaluated = ours.apply({"params": params, **stats}, x)
        return jax.value_and_grad(loss, has_aux=True)(params), evaluated

    same(run("patches"), run("xla"), rtol=1e-4)  # BatchNorm divides by small variances


def test_batchnorm_over_two_devices_is_batchnorm_over_the_whole_batch():
    x = normal(5, 8, 8, 8, 3)
    model = resnet.ResNet(10, stage_sizes=(1,), width=8)
    params, stats = random_params(model, x)

    def run(model, x):
        return model.apply({"params": params, **stats}, x, train=True, mutable=["batch_stats"])

    logits, new = jax.jit(functools.partial(run, model))(x)
    split = jax.pmap(functools.partial(run, model.clone(axis_name="d")), axis_name="d")
    parts, news = split(x.reshape(2, 4, *x.shape[1:]))
    same(parts.reshape(8, 10), logits)
    same(jax.tree.map(lambda a: a[1], news), new)
    alone, _ = jax.pmap(functools.partial(run, model), axis_name="d")(x.reshape(2, 4, *x.shape[1:]))
    assert np.abs(alone.reshape(8, 10) - logits).max() > 0.01  # the comparison can fail


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cnn.SmallCNN(10, dropout=0.2, implementation="patches"), (16, 16, 1)),
        (cnn.MnistCNN(10, dense=16, implementation="patches"), (8, 8, 2)),
        pytest.param(
            resnet.WideResNet(10, depth=10, width=1, implementation="patches"),
            (8, 8, 3),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_vmap_over_parameters_is_one_by_one(model, shape):
    x, y, lanes = normal(5, 6, *shape), np.arange(6), 3
    every = [random_params(model, x, seed=50 * lane) for lane in range(lanes)]
    params, stats = jax.tree.map(lambda *a: jnp.stack(a), *every)

    def step(params, stats):
        def loss(params):
            logits, new = model.apply(
                {"params": params, **stats},
                x,
                train=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=list(stats),
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    lanes_at_once = jax.jit(jax.vmap(step))(params, stats)
    one = jax.jit(step)
    one_by_one = jax.tree.map(lambda *a: jnp.stack(a), *(one(*lane) for lane in every))
    same(lanes_at_once, one_by_one, rtol=1e-4)


def train_step(model, shape, batch=4):
    """A train step and arguments for it, inside a loop as lrlab runs it."""
    x, y = jnp.zeros((batch, *shape)), jnp.zeros(batch, jnp.int32)
    params, stats = random_params(model, x)

    def run(params, stats, key, x, y):
        def step(t, carry):
            params, stats = carry

            def loss(params):
                logits, new = model.apply(
                    {"params": params, **stats},
                    x,
                    train=True,
                    rows=jnp.arange(batch),
                    rngs={"dropout": jax.random.fold_in(key, t)},
                    mutable=list(stats),
                )
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

            (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), stats

        return lax.fori_loop(0, 3, step, (params, stats))

    return run, (params, stats, jax.random.key(0), x, y)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_convolution_of_xla_is_in_a_cpu_train_step(name):
    run, args = train_step(*SHIPPED[name])
    assert "conv_general_dilated" not in str(jax.make_jaxpr(run)(*args))


def test_the_search_for_convolutions_finds_one():
    model, shape = SHIPPED["SmallCNN"]
    run, args = train_step(model.clone(implementation="xla"), shape)
    assert "conv_general_dilated" in str(jax.make_jaxpr(run)(*args))


def test_the_gradient_for_the_images_is_not_computed():
    x = normal(1, 4, 12, 12, 1)
    layer = layers.ConvPool(4, padding="VALID", implementation="patches")
    params = layer.init(jax.random.key(0), layers.batch_minor(x, "patches"))

    def products(argnums):
        def loss(params, x):
            return layer.apply(params, layers.batch_minor(x, "patches")).sum()

        text = jax.jit(jax.grad(loss, argnums)).lower(params, x).compile().as_text()
        return text.count(" dot(")

    assert (products(0), products((0, 1))) == (2, 3)


@pytest.mark.parametrize("name", SHIPPED)
def test_logits_are_float32_and_evaluation_needs_no_key(name):
    model, shape = SHIPPED[name]
    x = normal(0, 3, *shape)
    params, stats = random_params(model, x)
    variables, apply = {"params": params, **stats}, jax.jit(model.apply)
    logits = apply(variables, x)
    assert logits.shape == (3, model.num_classes)
    assert logits.dtype == jnp.float32
    same(logits[1:2], apply(variables, x[1:2]))  # an example is evaluated by itself


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Dropout(1.0), "rate=1.0 must be at least 0 and below 1"),
        (lambda: layers.Dropout(-0.1), "rate=-0.1"),
        (lambda: cnn.MnistCNN(10, scale=0), "scale=0"),
        (lambda: cnn.MnistCNN(10, dense=0), "dense=0"),
        (lambda: cnn.SmallCNN(10, implementation="fast"), "implementation='fast'.*'patches'"),
        (lambda: mlp.MLP(10, widths=(8, 0)), "widths"),
        (lambda: mlp.MLP(10, widths=(8, 8), dropout=(0.1,)), "each of the 2 widths, got 1"),
        (lambda: mlp.MLP(10, widths=(8, 8), dropout=(0.1, 2.0)), "dropout=2.0"),
        (lambda: resnet.WideResNet(10, depth=18), "depth=18 must be 6 n"),
        (lambda: resnet.WideResNet(10, width=0), "width=0"),
        (lambda: resnet.ResNet(10, stage_sizes=()), "stage_sizes"),
    ],
)
def test_a_bad_field_is_named_when_the_model_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (cnn.SmallCNN(10), (8, 8, 1), "too small"),
        (cnn.SmallCNN(10), (54,), "tabular"),
        (resnet.ResNet(10), (54,), "tabular"),
        (resnet.WideResNet(10), (54,), "tabular"),
        (cnn.MnistCNN(10), (3, 3, 1), "too small"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros((1, *shape)))


@pytest.mark.parametrize("name", ["MnistCNN", "SmallCNN", "MLP", "Tabular"])
def test_dropout_depends_on_the_row_in_the_whole_batch_only(name):
    model, shape = SHIPPED[name]
    x = normal(1, 8, *shape)
    params, _ = random_params(model, x)

    @jax.jit
    def logits(x, rows, key):
        return model.apply({"params": params}, x, train=True, rows=rows, rngs={"dropout": key})

    key, rows = jax.random.key(3), jnp.arange(8)
    whole = logits(x, rows, key)
    same(logits(x, None, key), whole, rtol=0)
    for parts in (2, 4):
        pieces = [
            logits(a, r, key)
            for a, r in zip(jnp.split(x, parts), jnp.split(rows, parts), strict=True)
        ]
        same(jnp.concatenate(pieces), whole)
    shuffled = np.random.default_rng(0).permutation(8)
    same(logits(x[shuffled], rows[shuffled], key), whole[shuffled])
    assert np.abs(logits(x, rows + 8, key) - whole).max() > 1e-3
    assert np.abs(logits(x, rows, jax.random.key(4)) - whole).max() > 1e-3


def test_dropout_of_nothing_needs_no_key_and_keeps_the_mean_otherwise():
    x = jnp.ones((400, 300))
    same(layers.Dropout(0.0).apply({}, x, True), x, rtol=0)
    same(layers.Dropout(0.5).apply({}, x, False), x, rtol=0)
    for rate in (0.1, 0.25, 0.9, 0.999):
        y = layers.Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
        np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
        error = 1 / (1 - rate) * np.sqrt(rate * (1 - rate) / x.size)
        assert abs(float(y.mean()) - 1) < 4 * error


SEEDS, ROWS, FEATURES = 200, 64, 96


def hash_mask(key, rate):
    return layers.keep_mask(key, (ROWS, FEATURES), rate)


def bernoulli_mask(key, rate):
    return jax.random.bernoulli(key, 1 - rate, (ROWS, FEATURES))


def weak_mask(key, rate):
    """Position times a constant plus the key's number: even by halves, but a lattice."""
    position = jnp.arange(ROWS * FEATURES, dtype=jnp.uint32).reshape(ROWS, FEATURES)
    word = jax.random.key_data(key)[-1].astype(jnp.uint32)
    return (position + word) * jnp.uint32(0x9E3779B9) >= jnp.uint32(rate * 2**32)


def quality(mask, rate):
    """Sizes of a mask's standard scores over consecutive keys, about N(0, 1) if it is random."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    keep = np.asarray(jax.jit(jax.vmap(functools.partial(mask, rate=rate)))(keys))
    layer = np.asarray(jax.jit(jax.vmap(lambda key: mask(jax.random.fold_in(key, 1), rate)))(keys))
    unit = (keep - (1 - rate)) / np.sqrt(rate * (1 - rate))  # mean 0, variance 1
    other = (layer - (1 - rate)) / np.sqrt(rate * (1 - rate))

    def score(sample, *axes):
        n = np.prod([sample.shape[axis] for axis in axes or range(sample.ndim)])
        return sample.sum(axes or None) / np.sqrt(n)

    scores = {
        "overall": score(unit),
        "each row": score(unit, 0, 2),
        "each column": score(unit, 0, 1),
        "each seed": score(unit, 1, 2),
        "layers": score(unit * other),
        "layers, shifted": score(unit[:, 1:] * other[:, :-1]),
        "corners of rectangles": [
            score(unit[:, :-a, :-b] * unit[:, a:, :-b] * unit[:, :-a, b:] * unit[:, a:, b:])
            for a, b in itertools.product((1, 2, 8), (1, 3, 16))
        ],
    }
    for lag in (1, 2, 3, 4, 7, 8, 16, 32):
        scores[f"seeds {lag} apart"] = score(unit[lag:] * unit[:-lag])
        scores[f"rows {lag} apart"] = score(unit[:, lag:] * unit[:, :-lag])
        scores[f"columns {lag} apart"] = score(unit[:, :, lag:] * unit[:, :, :-lag])
        scores[f"diagonal {lag}"] = score(unit[:, lag:, lag:] * unit[:, :-lag, :-lag])
        scores[f"seed and column {lag}"] = score(unit[1:, :, lag:] * unit[:-1, :, :-lag])
        scores[f"seed and row {lag}"] = score(unit[1:, lag:] * unit[:-1, :-lag])
    for name, n in {
        "row": FEATURES,
        "column": ROWS,
    }.items():  # are counts as wide as binomial ones?
        sums = unit.sum(2 if name == "row" else 1).ravel() / np.sqrt(n)
        kurtosis = 3 + (1 / (rate * (1 - rate)) - 6) / n
        scores[f"spread of {name}s"] = ((sums**2).mean() - 1) / np.sqrt((kurtosis - 1) / sums.size)
    weight = 2 ** np.arange(8)
    ones = np.array([bin(code).count("1") for code in range(256)])
    chances = (1 - rate) ** ones * rate ** (8 - ones)
    for name, axis in {"across": 2, "down": 1, "in time": 0}.items():  # patterns of 8, chi-square
        stretch = np.moveaxis(keep, axis, -1)
        codes = stretch[..., : stretch.shape[-1] // 8 * 8].reshape(-1, 8) @ weight
        counts = np.bincount(codes, minlength=256)
        chi2 = ((counts - len(codes) * chances) ** 2 / (len(codes) * chances)).sum()
        scores[f"patterns {name}"] = (chi2 - 255) / np.sqrt(2 * 255)
    return {name: float(np.abs(score).max()) for name, score in scores.items()}


@pytest.mark.parametrize("rate", [0.25, 0.5])
@pytest.mark.parametrize("mask", [hash_mask, bernoulli_mask])
def test_a_dropout_mask_cannot_be_told_from_a_random_one(mask, rate):
    scores = quality(mask, rate)  # about 360 scores: the largest exceeds 5 once in 5,000 runs
    assert {name: score for name, score in scores.items() if score > 5} == {}


def test_the_quality_test_finds_a_weak_mask():
    scores = quality(weak_mask, 0.5)
    found = {name for name, score in scores.items() if score > 5}
    assert {"rows 1 apart", "columns 1 apart", "seed and column 1", "patterns across"} <= found
    assert scores["overall"] < 5  # the share alone would not have shown it


def test_rows_of_dropout_are_unique_and_widths_and_layers_differ():
    key = jax.random.key(0)
    keep = np.asarray(layers.keep_mask(key, (20_000, 128), 0.5))
    assert len(np.unique(np.packbits(keep, axis=1), axis=0)) == len(keep)
    wide, narrow = (np.asarray(layers.keep_mask(key, (64, n), 0.5)) for n in (96, 64))
    np.testing.assert_array_equal(wide[:, :64], narrow)  # of (key, row, feature), not of the width
    flat = narrow.ravel()[: 64 * 60].reshape(64, 60)  # and no row continues in the next one
    assert abs((flat == wide[:, :60]).mean() - 0.5) < 4 * 0.5 / np.sqrt(flat[1:].size) + 1 / 64
    image = layers.keep_mask(key, (64, 4, 8, 3), 0.5)
    np.testing.assert_array_equal(np.asarray(image).reshape(64, 96), wide)

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.Dropout(0.5)(x, True), layers.Dropout(0.5)(x, True)

    first, second = Two().apply({}, jnp.ones((64, 96)), rngs={"dropout": key})
    assert abs(float((first == second).mean()) - 0.5) < 4 * 0.5 / np.sqrt(first.size)
