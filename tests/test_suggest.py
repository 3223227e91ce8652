import numpy as np
import pytest

from lrlab.analysis import suggest

# semantics.md 6: what fastai 2.8 and pytorch-lr-finder gave for this curve.
LOSS = np.array(
    [
        *(2.30, 2.31, 2.29, 2.28, 2.25, 2.20, 2.12, 2.00, 1.85, 1.70),
        *(1.58, 1.50, 1.45, 1.43, 1.44, 1.50, 1.65, 1.95, 2.60, 4.0),
    ]
)
LRS = np.logspace(-5, 0, 20)


@pytest.mark.parametrize(
    ("reading", "golden"),
    [
        (suggest.valley, 3.79269e-4),
        (suggest.steepest, 1.274275e-3),
        (suggest.minimum, 2.63665e-3),
        (suggest.slide, 1e-5),
        (suggest.lowest, 2.63665e-2),
    ],
)
def test_a_reading_is_the_librarys_on_its_golden_curve(reading, golden):
    assert reading(LRS, LOSS) == pytest.approx(golden, rel=1e-5)


def test_readings_that_a_curve_has_not_are_none_and_nothing_fails():
    up, few = np.linspace(1, 2, 30), np.linspace(2, 1, 10)
    lrs = np.logspace(-5, 0, 30)
    assert suggest.valley(lrs, up) is None
    assert suggest.steepest(lrs, up) is None
    assert suggest.slide(lrs[:10], few) is None
    assert suggest.edge(lrs, up[::-1], None) is None


def test_smoothing_leaves_a_constant_alone_and_is_late_only_from_one_side():
    np.testing.assert_allclose(suggest.smooth(np.full(50, 3.0)), 3.0, rtol=1e-12)
    np.testing.assert_allclose(suggest.level(np.full(50, 3.0)), 3.0, rtol=1e-12)
    step = np.r_[np.ones(50), np.zeros(50)]
    assert abs(np.argmin(np.abs(suggest.level(step) - 0.5)) - 50) <= 1
    assert np.argmin(np.abs(suggest.smooth(step, 0.9) - 0.5)) >= 55


def ramp(loss_and_step, lrs, seed):
    """The losses of a ramp of plain SGD that stops where lrlab's watch would."""
    out, best, mean = np.full(len(lrs), np.nan), np.inf, 0.0
    rng = np.random.default_rng(seed)
    w = None
    for t, lr in enumerate(lrs):
        loss, w = loss_and_step(w, lr, rng)
        if not np.isfinite(loss):
            break
        out[t] = loss
        mean = 0.9 * mean + 0.1 * loss
        smooth = mean / (1 - 0.9 ** (t + 1))
        best = min(best, smooth)
        if smooth > suggest.DIVERGED * best:
            break
    return out


def quadratic(problem):
    """(loss_and_step, 2 / largest curvature); each batch has a centre of its own."""
    rng = np.random.default_rng(problem)
    d = int(rng.integers(2, 30))
    largest = 10 ** rng.uniform(-2, 3)
    h = np.geomspace(10 ** -rng.uniform(0, 3), 1, d) * largest

    def step(w, lr, rng):
        w = rng.normal(size=d) if w is None else w
        away = w - 0.1 * rng.normal(size=d)
        return 0.5 * (h * away**2).sum() + 0.01 * largest, w - lr * h * away

    return step, 2 / largest


def logistic(problem):
    """Logistic regression with strong L2, whose curvature is known: that of the decay, mostly."""
    rng = np.random.default_rng(problem)
    d, n = int(rng.integers(2, 20)), 512
    x = rng.normal(size=(n, d)) * rng.uniform(0.5, 3, d)
    y = (x @ rng.normal(size=d) + rng.logistic(size=n) > 0).astype(float)
    decay = 0.25 * np.linalg.eigvalsh(x.T @ x / n)[-1] * 10 ** rng.uniform(0.7, 1.5)
    w = np.zeros(d)
    for _ in range(200):  # Newton: the curvature at the minimum
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x.T * (p * (1 - p))) @ x / n + decay * np.eye(d)
        w = w - np.linalg.solve(hessian, x.T @ (p - y) / n + decay * w)
    largest = np.linalg.eigvalsh(hessian)[-1]

    def step(w, lr, rng):
        w = rng.normal(size=d) if w is None else w
        rows = rng.integers(0, n, 64)
        z = x[rows] @ w
        p = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        loss = np.mean(np.logaddexp(0, z) - y[rows] * z) + 0.5 * decay * (w @ w)
        return loss, w - lr * (x[rows].T @ (p - y[rows]) / 64 + decay * w)

    return step, 2 / largest


@pytest.mark.parametrize("kind", [quadratic, logistic])
def test_the_edge_is_within_a_factor_of_two_of_the_known_one(kind):
    ratios = []
    with np.errstate(over="ignore"):
        for problem in range(20):
            step, wanted = kind(problem)
            lrs = np.geomspace(1e-4 * wanted, 1e3 * wanted, 300)
            for seed in range(10):
                found = suggest.suggest(lrs, [ramp(step, lrs, seed)])
                ratios.append(np.nan if found.edge is None else found.edge / wanted)
    share = np.mean([0.5 <= r <= 2 for r in ratios])
    assert share >= 0.95, f"{share:.1%}, ratios {np.nanquantile(ratios, [0, 0.05, 0.5, 0.95, 1])}"


def test_no_rate_is_made_up_where_there_is_none():
    lrs = np.geomspace(1e-6, 1, 100)
    flat = suggest.suggest(lrs, [np.full(100, 2.3)])
    early = np.full(100, np.nan)
    early[:4] = [2, 3, 9, 50]
    lost = suggest.suggest(lrs, [early])
    short = suggest.suggest(lrs[:10], [LOSS[:10]])
    for found, outcome in (flat, "flat"), (lost, "all diverged"), (short, "too short"):
        assert found.outcome == outcome
        assert found.lr is None
        assert found.readings == {}
        assert found.advice


@pytest.mark.parametrize("below", [suggest.PLAIN, suggest.ADAPTIVE])
def test_the_suggestion_is_so_far_below_the_edge_and_at_most_lowest(below):
    curve = np.interp(np.linspace(0, 19, 200), np.arange(20), LOSS)
    lrs = np.geomspace(1e-5, 1, 200)
    found = suggest.suggest(lrs, [curve, curve * 1.01], below)
    assert found.outcome == "ok"
    assert found.lr == min(found.readings["lowest"], found.edge / below)
    assert found.low <= found.lr <= found.high * 1.0001
    there = [r for r in found.readings.values() if r]
    assert found.spread == max(there) / min(there)


def test_the_knee_is_the_smallest_batch_size_that_is_as_good():
    sizes = 2.0 ** np.arange(4, 10)
    losses = 1 + 40 / (40 + sizes) - 0.05  # falls with the size, ever less
    found = suggest.knee(sizes, [losses, losses + 0.001], start=2.5)
    fell = 2.5 - (losses + 0.0005).min()
    expected = sizes[losses <= losses.min() + 0.1 * fell][0]
    assert (found.outcome, found.lr, found.advice) == ("ok", expected, "")
    assert sizes[0] < expected < sizes[-1]
    assert (found.low, found.high) == (expected, expected)


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        ([1.0, 0.5], "too short"),
        ([np.nan, np.nan, np.nan], "all diverged"),
        ([2.0, 1.99, 1.98], "flat"),
    ],
)
def test_no_batch_size_is_made_up(losses, outcome):
    found = suggest.knee(16 * 2 ** np.arange(len(losses)), [losses], start=2.0)
    assert (found.outcome, found.lr) == (outcome, None)
    assert found.advice


def test_a_knee_at_the_end_says_so():
    found = suggest.knee([16, 32, 64], [[2.0, 1.5, 0.5]], start=2.3)
    assert found.lr == 64
    assert "larger" in found.advice


def noisy(rng, fall, breaks_at, seeds=3, updates=200):
    """Losses of a network that is trained already: a small fall, a wide floor, then divergence."""
    rates = np.geomspace(1e-5, 10, updates)
    fell = fall * (1 - np.exp(-np.cumsum(np.minimum(rates, breaks_at)) / 0.06))
    rise = 0.25 * np.log(np.maximum(rates / breaks_at, 1)) ** 1.5
    return rates, 1.9 - fell + rise + rng.normal(0, 0.3, (seeds, updates))


def test_what_batches_differ_by_is_no_edge():
    rng = np.random.default_rng(0)
    found = [suggest.suggest(*noisy(rng, 0.2, 0.05)) for _ in range(100)]
    said = np.array([s.lr for s in found if s.outcome == "ok"])
    assert len(said) > 80
    quiet = suggest.suggest(*noisy(np.random.default_rng(0), 0.2, 0.05, seeds=3000)).lr
    assert quiet is not None
    assert np.mean((said > quiet / 2) & (said < quiet * 2)) > 0.95
    # Without regard for noise, some are off by a factor of 10.
    off = [
        suggest.choose(*suggest.read(rates, np.mean([suggest.level(c) for c in curves], 0)), 4.0)
        for rates, curves in (noisy(rng, 0.2, 0.05) for _ in range(100))
    ]
    assert np.mean(np.array(off) < quiet / 2) > 0.1


def test_noise_is_the_standard_deviation_of_the_mean_level():
    rng = np.random.default_rng(1)
    levels, told = [], []
    for _ in range(200):
        curves = rng.normal(3, 0.4, (4, 120))
        each = np.array([suggest.level(c) for c in curves])
        levels.append(each.mean(0)[60])
        told.append(suggest.noise(curves, each))
    np.testing.assert_allclose(np.mean(told), np.std(levels), rtol=0.15)


def test_a_curve_whose_fall_stands_out_is_read_as_if_it_had_no_noise():
    rng = np.random.default_rng(2)
    rates, curves = noisy(rng, 1.5, 0.05)
    curves += np.geomspace(1, 1e-3, 200)  # from 2.9 down
    levels = np.mean([suggest.level(c) for c in curves], 0)
    told = suggest.noise(curves, np.array([suggest.level(c) for c in curves]))
    assert told > 0
    assert suggest.read(rates, levels, told) == suggest.read(rates, levels)
