import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from lrlab import augment, metrics, resolve
from lrlab.augment import affine, compose, crop, cutout, flip, mixup

KEY = jax.random.key(7)
LARGEST = np.float32(1 - 2**-24)  # of the numbers that are drawn


def images(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def labels(count, classes=10):
    return np.arange(count, dtype=np.int32) % classes


@functools.partial(jax.jit, static_argnums=0)
def run(chain, key, x, y, rows):
    return chain(key, x, y, rows)


def augmented(augments, x, rows=None, key=KEY):
    """(images, targets) of a chain, as NumPy."""
    rows = np.arange(len(x)) if rows is None else rows
    found = run(compose(augments), key, x, labels(len(x)), np.asarray(rows, np.int32))
    return jax.tree.map(np.asarray, found)


def drawn(place, rows, count, key=KEY):
    """The numbers that the augmentation at `place` of a chain draws, one row at a time."""
    found = []
    for row in rows:
        bits = jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, place), row), (count,))
        found.append(np.asarray(bits).astype(np.uint64) // 256 / 2.0**24)
    return np.array(found)


def forced(made, uniform, x):
    """Images changed as if these numbers had been drawn, float [batch, draws]."""
    y = jnp.asarray(labels(len(x)))
    targets = augment.Targets(y, y, jnp.ones(len(x)))
    return jax.jit(made.change)(jnp.asarray(uniform, jnp.float32), x, targets)


def cropped(x, uniform, pad, mode):
    out = np.empty_like(x)
    for image, numbers, to in zip(x, uniform, out, strict=True):
        down, right = (int(np.floor(u * (2 * pad + 1))) for u in numbers)
        wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode)
        to[:] = wide[down : down + x.shape[1], right : right + x.shape[2]]
    return out


def blanked(x, uniform, size, fill):
    out = x.copy()
    for image, numbers in zip(out, uniform, strict=True):
        first = [int(u * n) - size // 2 for u, n in zip(numbers, x.shape[1:3], strict=True)]
        for i, j in itertools.product(range(size), range(size)):
            if 0 <= first[0] + i < x.shape[1] and 0 <= first[1] + j < x.shape[2]:
                image[first[0] + i, first[1] + j] = fill
    return out


def mapped(x, uniform, rotate, scale, shift):
    """By SciPy, in float64: rotate about the centre, enlarge, then move."""
    out = np.empty_like(x)
    size = np.array(x.shape[1:3])
    centre = (size - 1) / 2
    for image, numbers, to in zip(x, uniform, out, strict=True):
        angle = np.deg2rad((2 * numbers[0] - 1) * rotate)
        factor = scale[0] + (scale[1] - scale[0]) * numbers[1]
        move = (2 * numbers[2:] - 1) * shift * size
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        back = np.linalg.inv(factor * turn)  # from a pixel of the result to where it comes from
        offset = centre - back @ (centre + move)
        for c in range(x.shape[3]):
            channel = image[..., c].astype(np.float64)
            to[..., c] = scipy.ndimage.affine_transform(
                channel, back, offset, order=1, mode="nearest"
            )
    return out


SHAPES = [(28, 28, 1), (9, 12, 3), (5, 4, 2)]


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("pad", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_a_window_of_the_padded_image(shape, pad, mode):
    x, rows = images(1, 40, *shape), np.arange(40)
    found, targets = augmented([crop(pad, mode)], x)
    np.testing.assert_array_equal(found, cropped(x, drawn(0, rows, 2), pad, mode))
    for ours, given in zip(targets, (labels(40), labels(40), np.ones(40)), strict=True):
        np.testing.assert_array_equal(ours, given)


@pytest.mark.parametrize("pad", [4, 7, 8, 27])
def test_crop_can_move_by_any_number_of_pixels_below_the_side(pad):
    x = images(2, 30, 28, 30, 1)
    found, _ = augmented([crop(pad)], x)
    np.testing.assert_array_equal(found, cropped(x, drawn(0, range(30), 2), pad, "reflect"))


@pytest.mark.parametrize("horizontal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_flip_mirrors_those_below_one_half(shape, horizontal):
    x = images(3, 40, *shape)
    found, _ = augmented([flip(horizontal)], x)
    mirrored = x[:, :, ::-1] if horizontal else x[:, ::-1]
    chosen = drawn(0, range(40), 1)[:, 0] < 0.5
    assert 5 < chosen.sum() < 35
    np.testing.assert_array_equal(found, np.where(chosen[:, None, None, None], mirrored, x))


@pytest.mark.parametrize(("size", "fill"), [(1, 0.0), (3, 0.0), (4, -0.42)])
@pytest.mark.parametrize("shape", SHAPES)
def test_cutout_blanks_a_square_around_its_centre(shape, size, fill):
    x = images(4, 40, *shape)
    found, _ = augmented([cutout(size, fill)], x)
    np.testing.assert_array_equal(found, blanked(x, drawn(0, range(40), 2), size, np.float32(fill)))


@pytest.mark.parametrize(
    ("rotate", "scale", "shift"),
    [(15, (0.9, 1.1), 0.1), (180, (1.0, 1.0), 0.0), (0, (0.5, 2.0), 0.0), (0, (1, 1), 1)],
)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 6, 1)])
def test_affine_is_scipy_s(shape, rotate, scale, shift):
    x = images(5, 24, *shape)
    found, _ = augmented([affine(rotate, scale, shift)], x)
    expected = mapped(x, drawn(0, range(24), 4), rotate, scale, shift)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # of pixels of about 1
    if min(shape[:2]) > 1:
        assert np.abs(found - x).max() > 0.1


@pytest.mark.parametrize(("number", "turns"), [(0.0, 1), (0.5, 0), (LARGEST, -1)])
def test_affine_by_a_quarter_turn_moves_whole_pixels(number, turns):
    x = images(6, 2, 8, 8, 2)
    uniform = np.tile([number, 0.5, 0.5, 0.5], (2, 1))
    found, _ = forced(affine(90), uniform, x)
    np.testing.assert_allclose(found, np.rot90(x, turns, axes=(1, 2)), atol=1e-5)


def test_mixup_adds_the_example_before_in_the_share_that_its_weight_leaves():
    x = images(7, 9, 6, 5, 2)
    found, targets = augmented([mixup(0.7)], x)
    u, v = drawn(0, range(9), 2).T
    c = np.cos(2 * np.pi * v)
    w = (1 - u) ** (-1 / 0.7) - 1  # in float64
    weight = 0.5 + np.sign(c) / 2 * np.sqrt(w * c**2 / (1 + w * c**2))
    np.testing.assert_allclose(targets.weight, weight, atol=1e-6)
    assert weight.std() > 0.1
    before = [8, *range(8)]
    for i, j in enumerate(before):
        mixed = weight[i] * x[i] + (1 - weight[i]) * x[j]
        np.testing.assert_allclose(found[i], mixed, atol=1e-5)
    np.testing.assert_array_equal(targets.y, labels(9))
    np.testing.assert_array_equal(targets.y2, labels(9)[before])


def test_mixup_mixes_features_too():
    x = images(8, 6, 54)
    found, targets = augmented([mixup(1.0)], x)
    w = targets.weight[:, None].astype(np.float64)
    np.testing.assert_allclose(found, w * x + (1 - w) * np.roll(x, 1, 0), atol=1e-6)


def test_the_loss_of_two_labels_is_that_of_the_mixed_distribution():
    x = images(9, 8, 4, 4, 1)
    _, (y, y2, weight) = augmented([mixup(1.0)], x)
    logits = images(10, 8, 10)
    sums = metrics.classification(logits, y, weight) + metrics.classification(
        logits, y2, 1 - weight
    )
    soft = np.zeros((8, 10))
    soft[np.arange(8), y] += weight
    soft[np.arange(8), y2] += 1 - weight.astype(np.float64)
    logits = logits.astype(np.float64)
    p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(sums[0], -(soft * p).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums[1], soft[np.arange(8), logits.argmax(1)].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums[2], 8, rtol=1e-6)


CHAIN = (crop(2), affine(10, (0.9, 1.1), 0.1), flip(), cutout(3), mixup(0.4))


def test_a_chain_is_its_augmentations_one_after_another_each_with_its_key():
    x, rows = images(11, 20, 8, 9, 3), np.arange(20)
    found, targets = augmented((crop(2), flip(), cutout(3), flip(False), mixup(0.4)), x)
    expected = cropped(x, drawn(0, rows, 2), 2, "reflect")
    chosen = (drawn(place, rows, 1) < 0.5 for place in (1, 3))
    expected = np.where(next(chosen)[..., None, None], expected[:, :, ::-1], expected)
    expected = blanked(expected, drawn(2, rows, 2), 3, 0)
    expected = np.where(next(chosen)[..., None, None], expected[:, ::-1], expected)
    w = targets.weight[:, None, None, None]
    np.testing.assert_allclose(found, w * expected + (1 - w) * np.roll(expected, 1, 0), atol=1e-6)


def test_an_empty_chain_changes_nothing():
    x = images(12, 4, 3, 3, 1)
    found, targets = augmented((), x)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(targets.weight, np.ones(4))
    assert not compose(()).mixes


@pytest.mark.parametrize(
    "made",
    [crop(0), crop(0, "constant"), cutout(0), affine(), affine(0, (1, 1), 0), mixup(0)],
)
def test_settings_of_nothing_change_nothing(made):
    x = images(13, 30, 7, 6, 2)
    found, targets = augmented((made,), x)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(targets.weight, np.ones(30))
    np.testing.assert_array_equal(targets.y2, labels(30))


@pytest.mark.parametrize("made", CHAIN, ids=("crop", "affine", "flip", "cutout", "mixup"))
def test_extreme_draws_stay_inside(made):
    x = images(14, 16, 8, 8, 1)
    uniform = np.array(list(itertools.product([0, LARGEST], repeat=4)))[:, : made.draws]
    found, targets = forced(made, uniform, x)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= np.abs(x).max() + 1e-5
    assert (targets.weight >= 0).all()
    assert (targets.weight <= 1).all()


@pytest.mark.parametrize("count", [1, 2, 3, 9, 17, 28, 32, 55, 224, 4097, 2**20 + 1])
def test_the_largest_draw_rounds_below_the_count(count):
    ends = augment._whole(jnp.array([0.0, LARGEST]), count)
    np.testing.assert_array_equal(ends, [0, count - 1])


# What differs between a batch and its parts


def parts_of(chain, x, y, sizes):
    """(images, targets) of parts of a batch, each alone, together again."""
    edges = np.cumsum([0, *sizes])
    assert edges[-1] == len(x)
    rows = np.arange(len(x), dtype=np.int32)
    found = [
        run(chain, KEY, x[a:b], y[a:b], rows[a:b]) for a, b in itertools.pairwise(edges.tolist())
    ]
    return jax.tree.map(lambda *a: np.concatenate(a), *found)


@pytest.mark.parametrize("sizes", [(12, 12), (1, 16, 7)])
def test_parts_of_a_batch_are_augmented_like_the_whole(sizes):
    x, y = images(15, 24, 8, 8, 3), labels(24)
    exact = compose((crop(2), flip(), cutout(3)))
    whole, parts = run(exact, KEY, x, y, np.arange(24)), parts_of(exact, x, y, sizes)
    assert not np.array_equal(whole[0], x)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    rounded = compose((affine(10, (0.9, 1.1), 0.1),))  # another fusion may round otherwise
    whole, parts = run(rounded, KEY, x, y, np.arange(24)), parts_of(rounded, x, y, sizes)
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-5)


@pytest.mark.parametrize("sizes", [(12, 12), (1, 16, 7)])
def test_mixup_keeps_its_weights_in_parts_and_changes_partners_at_the_seams_only(sizes):
    x, y, chain = images(16, 24, 6, 6, 1), np.arange(24, dtype=np.int32), compose((mixup(0.5),))
    (whole, one), (parts, two) = run(chain, KEY, x, y, y), parts_of(chain, x, y, sizes)
    np.testing.assert_array_equal(one.weight, two.weight)
    seams = np.cumsum([0, *sizes])[:-1]
    np.testing.assert_array_equal(np.flatnonzero(one.y2 != two.y2), seams)
    ends = seams + np.array(sizes) - 1
    np.testing.assert_array_equal(two.y2[seams], ends)
    rest = np.setdiff1d(np.arange(24), seams)
    np.testing.assert_allclose(whole[rest], parts[rest], atol=1e-6)


def test_devices_augment_their_share_like_one_device_the_whole():
    x, y, rows = images(17, 24, 8, 8, 3), labels(24), np.arange(24, dtype=np.int32)
    chain = compose((crop(2), flip(), cutout(3)))
    dealt = [a.reshape(2, 12, *a.shape[1:]) for a in (x, y, rows)]
    found = jax.pmap(chain, in_axes=(None, 0, 0, 0))(KEY, *dealt)
    whole = run(chain, KEY, x, y, rows)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, np.reshape(b, np.shape(a)))


def test_lanes_and_loops_augment_like_single_calls():
    x, y, rows = images(18, 10, 8, 8, 1), labels(10), np.arange(10, dtype=np.int32)
    chain = compose(CHAIN)
    keys = jax.random.split(KEY, 3)
    alone = [run(chain, key, x, y, rows) for key in keys]
    lanes = jax.jit(jax.vmap(lambda key: chain(key, x, y, rows)))(keys)
    _, loop = jax.jit(lambda: jax.lax.scan(lambda c, key: (c, chain(key, x, y, rows)), 0, keys))()
    stacked = jax.tree.map(lambda *a: np.stack(a), *alone)
    for several in lanes, loop:
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.allclose(stacked[0][0], stacked[0][1])  # another key, another augmentation


# Distributions, of 20,000 rows of one key


MANY = 20_000


@functools.cache
def many(made, height, width, place=0):
    """What `made` does to an image that numbers its pixels from 1."""
    numbered = np.arange(1, height * width + 1, dtype=np.float32).reshape(1, height, width, 1)
    x = np.broadcast_to(numbered, (MANY, height, width, 1))
    chain = (*(flip(),) * place, made)
    return augmented(chain, x)[0][..., 0]


def likely(counts, probabilities):
    """Whether counts are those of a distribution, by chi-squared at 1 in 10,000."""
    expected = np.asarray(probabilities) * counts.sum()
    return scipy.stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-4


def test_crop_shifts_are_uniform_over_the_square():
    height, width, pad = 7, 9, 2
    middle = many(crop(pad, "constant"), height, width)[:, 3, 4] - 1
    down, right = middle // width - 3, middle % width - 4
    counts = np.zeros((5, 5))
    np.add.at(counts, (down.astype(int) + pad, right.astype(int) + pad), 1)
    assert counts.sum() == MANY
    assert likely(counts, np.full((5, 5), 1 / 25))


def test_flips_of_a_chain_are_fair_and_independent():
    x = np.broadcast_to(np.arange(1.0, 5.0, dtype=np.float32).reshape(1, 2, 2, 1), (MANY, 2, 2, 1))
    corner = augmented((flip(), flip(False)), x)[0][:, 0, 0, 0]
    assert likely(np.bincount(corner.astype(int))[1:], np.full(4, 1 / 4))
    neighbours = corner.reshape(-1, 2)
    pairs = np.zeros((4, 4))
    np.add.at(pairs, tuple(neighbours.astype(int).T - 1), 1)
    assert likely(pairs, np.full((4, 4), 1 / 16))


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_blanks_the_area_that_uniform_centres_give(size):
    height, width = 7, 9
    holes = many(cutout(size), height, width) == 0
    along = []
    for pixels in (height, width):
        first = np.arange(pixels) - size // 2  # every centre
        covered = [np.isin(np.arange(pixels), np.arange(f, f + size)) for f in first]
        along.append(np.array(covered, float))
    area = np.outer(along[0].sum(1), along[1].sum(1)).ravel()  # of each of the centres
    error = area.std() / np.sqrt(MANY)
    assert abs(holes.sum((1, 2)).mean() - area.mean()) <= 4 * error + 1e-9
    each = np.outer(along[0].mean(0), along[1].mean(0))  # how often a pixel is blank
    errors = np.sqrt(each * (1 - each) / MANY)
    assert (np.abs(holes.mean(0) - each) <= 5 * errors).all()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1, 2, 50])
def test_weights_of_mixup_follow_the_beta_distribution(alpha):
    _, targets = augmented([mixup(alpha)], np.zeros((MANY, 1), np.float32))
    points = np.linspace(0.001, 0.999, 999)  # nearer the ends float32 rounds to them
    found = np.searchsorted(np.sort(targets.weight), points, side="right") / MANY
    distance = np.abs(found - scipy.stats.beta(alpha, alpha).cdf(points)).max()
    assert distance < 2.2 / np.sqrt(MANY)  # Kolmogorov: 1 in 8,000


def test_rows_and_updates_draw_anew_and_the_same_row_the_same():
    x, y = np.repeat(images(19, 1, 9, 9, 1), 50, 0), labels(50)
    chain = compose((crop(4), flip(), cutout(3)))
    one, _ = run(chain, KEY, x, y, np.arange(50))
    assert len(np.unique(np.asarray(one).reshape(50, -1), axis=0)) > 40
    again, _ = run(chain, KEY, x, y, np.full(50, 3))
    np.testing.assert_array_equal(again, np.broadcast_to(one[3], one.shape))
    other, _ = run(chain, jax.random.fold_in(KEY, 1), x, y, np.arange(50))
    assert (np.asarray(one) != np.asarray(other)).any((1, 2, 3)).sum() > 40


# What is refused


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: crop(-1), "pad=-1"),
        (lambda: crop(1.5), "pad=1.5"),
        (lambda: crop(True), "pad=True"),
        (lambda: crop("4"), "pad='4'"),
        (lambda: crop(4, "mirror"), "mode='mirror'"),
        (lambda: flip(0.5), "horizontal=0.5"),
        (lambda: cutout(-2), "size=-2"),
        (lambda: cutout(0.5), "size=0.5"),
        (lambda: cutout(8, float("nan")), "fill=nan"),
        (lambda: affine(-10), "rotate=-10"),
        (lambda: affine(200), "rotate=200"),
        (lambda: affine(scale=0.9), "scale=0.9"),
        (lambda: affine(scale=(0.9, 1.0, 1.1)), "scale=(0.9, 1.0, 1.1)"),
        (lambda: affine(scale=(0, 1)), "scale=0"),
        (lambda: affine(scale=(1.1, 0.9)), "scale=(1.1, 0.9)"),
        (lambda: affine(shift=2), "shift=2"),
        (lambda: mixup(-0.1), "alpha=-0.1"),
        (lambda: mixup(float("inf")), "alpha=inf"),
    ],
)
def test_arguments_out_of_range_are_refused_when_built(make, field):
    with pytest.raises(ValueError) as e:
        make()
    said = str(e.value)
    assert f"augment.{field} " in said
    assert len(said) > len(f"augment.{field} ") + 10


@pytest.mark.parametrize(
    ("made", "shape", "said"),
    [
        (crop(8), (8, 9, 1), "augment.pad=8 must lie in [0, 7] for images of 8x9 pixels"),
        (cutout(10), (12, 9, 1), "augment.size=10 must lie in [0, 9] for images of 12x9 pixels"),
        (flip(), (54,), "needs images"),
        (crop(1), (54,), "needs images"),
        (cutout(1), (54,), "needs images"),
        (affine(5), (54,), "needs images"),
    ],
)
def test_data_that_does_not_fit_is_refused_when_traced(made, shape, said):
    x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    y = jax.ShapeDtypeStruct((4,), jnp.int32)
    with pytest.raises(ValueError) as e:
        jax.eval_shape(compose((made,)), KEY, x, y, y)
    assert said in str(e.value)


def test_a_chain_refuses_what_it_cannot_represent():
    with pytest.raises(ValueError, match="two labels"):
        compose((mixup(0.2), flip(), mixup(0.2)))
    with pytest.raises(ValueError, match=r"augment\[1\]=.* must be a lrlab.augment.Augment"):
        compose((flip(), crop))
    assert compose((flip(), mixup(0.2))).mixes


def test_a_config_names_augmentations():
    assert set(resolve.names("lrlab.augment")) == {"affine", "crop", "cutout", "flip", "mixup"}
    specs = (
        {"name": "crop", "pad": 4},
        {"name": "flip"},
        {"name": "cutout", "size": 8.0},
        {"name": "affine", "rotate": 10, "scale": (0.9, 1.1)},
        {"name": "mixup", "alpha": 0.2},
    )
    made = [resolve.resolve("lrlab.augment", spec, f"augment[{i}]") for i, spec in enumerate(specs)]
    assert compose(made).mixes
    with pytest.raises(resolve.ConfigError, match=r"augment\[0\] \(crop\): augment.pad=-4 must"):
        resolve.resolve("lrlab.augment", {"name": "crop", "pad": -4}, "augment[0]")
