"""Every shape: our formula in float64, the golden values of other libraries, the clock, the errors.

`CASES` must name every public shape: a new one joins all tables below by joining it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlab import schedules

settings.register_profile("stable", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("stable")


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape with arguments and what it must be.

    formula: the same in float64, from t. args: concrete. vary: an argument and other values of it.
    end: (t, value) to hit exactly. corners: updates where the shape may jump.
    """

    args: dict[str, Any]
    formula: Callable[[np.ndarray], np.ndarray]
    vary: tuple[str, tuple[Any, ...]]
    hits: tuple[tuple[int, float], ...]
    jumps: tuple[int, ...] | None = ()  # None: steps by nature


def over(t, n):
    return np.minimum(t / n, 1)


def cos(a, b, z):
    return b + (a - b) * (1 + np.cos(np.pi * z)) / 2


def line(a, b, z):
    return a + (b - a) * z


def tri(t, up, down):
    u = t % (up + down)
    return np.where(u <= up, u / up, (up + down - u) / down)


def restarts(t, first, mult, decay, end):
    values = []
    for x in t:
        k, length = 0, first
        while x >= length:
            x, length, k = x - length, length * mult, k + 1
        values.append(end + (1 - end) * decay**k * (1 + math.cos(math.pi * x / length)) / 2)
    return np.array(values)


def in_turn(t, *parts):
    """Parts of (first update, function of the updates since)."""
    result = parts[0][1](t)
    for first, f in parts[1:]:
        result = np.where(t >= first, f(np.maximum(t - first, 0)), result)
    return result


CASES = {
    "constant": Case(
        {"value": 0.3}, lambda t: 0.3 + 0 * t, ("value", (0.1, 0.7)), ((0, 0.3), (900, 0.3))
    ),
    "linear": Case(
        {"start": 0.1, "end": 1.0, "steps": 90},
        lambda t: line(0.1, 1, over(t, 90)),
        ("start", (0.0, 0.5)),
        ((0, 0.1), (90, 1.0), (900, 1.0)),
    ),
    "linear_to_zero": Case(
        {"steps": 100}, lambda t: 1 - over(t, 100), ("start", (1.0, 0.5)), ((0, 1), (100, 0))
    ),
    "polynomial": Case(
        {"start": 1.0, "end": 0.2, "steps": 100, "power": 2.0},
        lambda t: 0.2 + 0.8 * (1 - over(t, 100)) ** 2,
        ("power", (0.5, 1.5)),
        ((0, 1), (100, 0.2), (900, 0.2)),
    ),
    "cosine": Case(
        {"start": 1.0, "end": 0.1, "steps": 100},
        lambda t: cos(1, 0.1, over(t, 100)),
        ("steps", (7, 1000)),
        ((0, 1), (100, 0.1), (900, 0.1)),
    ),
    "rex": Case(
        {"start": 1.0, "end": 0.1, "steps": 100},
        lambda t: 0.1 + 0.9 * (1 - over(t, 100)) / (0.5 + 0.5 * (1 - over(t, 100))),
        ("end", (0.0, 0.2)),
        ((0, 1), (100, 0.1), (900, 0.1)),
    ),
    "one_minus_sqrt": Case(
        {"start": 1.0, "end": 0.1, "steps": 100},
        lambda t: 0.1 + 0.9 * (1 - np.sqrt(over(t, 100))),
        ("end", (0.0, 0.2)),
        ((0, 1), (100, 0.1), (900, 0.1)),
    ),
    "step": Case(
        {"factor": 0.1, "every": 60},
        lambda t: 0.1 ** (t // 60),
        ("factor", (0.2, 0.5)),
        ((59, 1), (60, 0.1)),
        None,
    ),
    "multi_step": Case(
        {"boundaries": (30, 80), "factor": 0.1},
        lambda t: 0.1 ** ((t >= 30) * 1.0 + (t >= 80)),
        ("factor", (0.2, 0.5)),
        ((29, 1), (30, 0.1), (80, 0.01)),
        None,
    ),
    "piecewise": Case(
        {"boundaries": (30, 80), "values": (1.0, 0.2, 0.3)},
        lambda t: np.select([t < 30, t < 80], [1.0, 0.2], 0.3),
        ("steps", (90, 100)),
        ((29, 1), (30, 0.2), (79, 0.2), (80, 0.3)),
        None,
    ),
    "exponential": Case(
        {"decay": 0.5, "every": 40, "end": 0.05},
        lambda t: np.maximum(0.05, 0.5 ** (t / 40)),
        ("decay", (0.1, 0.9)),
        ((0, 1), (40, 0.5), (900, 0.05)),
    ),
    "natural_exponential": Case(
        {"rate": 0.02}, lambda t: np.exp(-0.02 * t), ("rate", (0.01, 0.05)), ((0, 1),)
    ),
    "inverse_time": Case(
        {"rate": 0.5, "every": 10}, lambda t: 1 / (1 + 0.05 * t), ("rate", (0.1, 1.0)), ((20, 0.5),)
    ),
    "reciprocal_sqrt": Case(
        {"timescale": 50},
        lambda t: np.sqrt(50 / (50 + t)),
        ("timescale", (10, 100)),
        ((0, 1), (150, 0.5)),
    ),
    "noam": Case(
        {"warmup": 50},
        lambda t: np.minimum((t + 1) / 50, np.sqrt(50 / (t + 1))),
        ("warmup", (10, 100)),
        ((49, 1), (199, 0.5)),
    ),
    "table": Case(
        {"values": (0.1, 1.0, 0.4), "at": (0, 30, 130)},
        lambda t: np.interp(t, (0, 30, 130), (0.1, 1.0, 0.4)),
        ("steps", (150, 200)),
        ((0, 0.1), (30, 1), (130, 0.4), (900, 0.4)),
    ),
    "warmup_linear": Case(
        {"steps": 50}, lambda t: over(t, 50), ("end", (0.5, 1.0)), ((0, 0), (50, 1), (900, 1))
    ),
    "warmup_cosine": Case(
        {"steps": 50, "start": 0.1},
        lambda t: cos(0.1, 1, over(t, 50)),
        ("start", (0.0, 0.2)),
        ((0, 0.1), (50, 1), (900, 1)),
    ),
    "warmup_exponential": Case(
        {"steps": 50, "start": 1e-7},
        lambda t: 1e-7 ** (1 - over(t, 50)),
        ("start", (0.01, 0.2)),
        ((0, 1e-7), (50, 1), (900, 1)),
    ),
    "geometric": Case(
        {"steps": 50, "start": 1.0, "end": 0.01},
        lambda t: 0.01 ** over(t, 50),
        ("end", (0.02, 0.2)),
        ((0, 1), (50, 0.01), (900, 0.01)),
    ),
    "warmup_constant": Case(
        {"steps": 50, "start": 0.1},
        lambda t: np.where(t < 50, 0.1, 1),
        ("start", (0.2, 0.3)),
        ((49, 0.1), (50, 1)),
        None,
    ),
    "warmup_cosine_decay": Case(
        {"steps": 100, "warmup": 20, "end": 0.1},
        lambda t: in_turn(t, (0, lambda t: t / 20), (20, lambda t: cos(1, 0.1, over(t, 80)))),
        ("warmup", (5, 30)),
        ((0, 0), (20, 1), (100, 0.1), (900, 0.1)),
    ),
    "warmup_stable_decay": Case(
        {"steps": 100, "warmup": 10, "cooldown": 20},
        lambda t: in_turn(t, (0, lambda t: over(t, 10)), (80, lambda t: 1 - np.sqrt(over(t, 20)))),
        ("cooldown", (10, 50)),
        ((0, 0), (10, 1), (80, 1), (100, 0), (900, 0)),
    ),
    "flat_then_cosine": Case(
        {"steps": 100},
        lambda t: in_turn(t, (0, lambda t: 1 + 0 * t), (75, lambda t: cos(1, 0, over(t, 25)))),
        ("flat", (0.5, 0.6)),
        ((75, 1), (100, 0), (900, 0)),
    ),
    "triangular": Case(
        {"low": 0.25, "up": 20, "down": 60},
        lambda t: 0.25 + 0.75 * tri(t, 20, 60),
        ("low", (0.1, 0.5)),
        ((0, 0.25), (20, 1), (80, 0.25), (100, 1)),
    ),
    "triangular2": Case(
        {"low": 0.25, "up": 20, "down": 60},
        lambda t: 0.25 + 0.75 * tri(t, 20, 60) / 2.0 ** (t // 80),
        ("up", (10, 50)),
        ((0, 0.25), (20, 1), (80, 0.25), (100, 0.625)),
    ),
    "exp_range": Case(
        {"gamma": 0.99, "low": 0.25, "up": 40},
        lambda t: 0.25 + 0.75 * tri(t, 40, 40) * 0.99**t,
        ("gamma", (0.9, 0.999)),
        ((0, 0.25), (80, 0.25)),
    ),
    "cosine_restarts": Case(
        {"t_0": 10, "t_mult": 2, "end": 0.1, "decay": 0.9},
        lambda t: restarts(t, 10, 2, 0.9, 0.1),
        ("t_mult", (1, 2, 3)),
        ((0, 1), (10, 0.91), (30, 0.1 + 0.9 * 0.9**2)),
        (9, 29, 69, 149),
    ),
    "sgdr": Case(
        {"cycle_len": 50},
        lambda t: restarts(t, 50, 1, 1, 0),
        ("cycle_len", (10, 60)),
        ((0, 1), (50, 1), (5000, 1)),
        (49, 99, 149, 199, 249),
    ),
    "one_cycle": Case(
        {"steps": 100},
        lambda t: np.where(
            t <= 30, cos(0.04, 1, over(t, 30)), cos(1, 4e-6, np.clip((t - 30) / 70, 0, 1))
        ),
        ("pct_start", (0.2, 0.5)),
        ((0, 0.04), (30, 1), (100, 4e-6), (900, 4e-6)),
    ),
    "one_cycle_momentum": Case(
        {"steps": 100},
        lambda t: np.where(
            t <= 30, cos(0.95, 0.85, over(t, 30)), cos(0.85, 0.95, np.clip((t - 30) / 70, 0, 1))
        ),
        ("low", (0.5, 0.8)),
        ((0, 0.95), (30, 0.85), (100, 0.95), (900, 0.95)),
    ),
    "slanted_triangular": Case(
        {"steps": 100},
        lambda t: (1 + 31 * np.where(t < 10, t / 10, (100 - np.minimum(t, 100)) / 90)) / 32,
        ("ratio", (4.0, 64.0)),
        ((0, 1 / 32), (10, 1), (100, 1 / 32), (900, 1 / 32)),
    ),
    "triangular_momentum": Case(
        {"up": 20},
        lambda t: 0.9 - 0.1 * tri(t, 20, 20),
        ("low", (0.7, 0.85)),
        ((0, 0.9), (20, 0.8)),
    ),
}
T = np.arange(250)


def build(name, **changes):
    return getattr(schedules, name)(**CASES[name].args | changes)


def values(shape, t=T):
    return np.asarray(jax.jit(shape)(np.asarray(t)), np.float64)


def test_every_public_shape_has_its_case():
    assert sorted(CASES) == sorted(schedules.__all__)


@pytest.mark.parametrize("name", CASES)
def test_a_shape_is_its_formula(name):
    case, shape = CASES[name], build(name)
    ours = jax.jit(shape)(T)
    assert ours.dtype == jnp.float32
    assert ours.shape == T.shape
    np.testing.assert_allclose(ours, case.formula(T), rtol=1e-6, atol=1e-12)
    grid = jax.jit(shape)(T.reshape(2, 125))
    np.testing.assert_allclose(grid.reshape(-1), ours, rtol=3e-7, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(shape))(T), ours, rtol=3e-7, atol=1e-12)
    scalar = jax.jit(shape)(jnp.int32(7))
    assert scalar.shape == ()
    np.testing.assert_allclose(scalar, ours[7], rtol=3e-7)
    assert float(shape(-5)) == float(shape(0))  # as a later phase of a join, before its turn


@pytest.mark.parametrize("name", CASES)
def test_a_shape_hits_its_corners_and_holds_its_end(name):
    for t, value in CASES[name].hits:
        assert float(build(name)(t)) == pytest.approx(value, rel=1.2e-7, abs=0), t


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.jumps is not None])
def test_a_shape_has_no_jump_where_it_should_have_none(name):
    steps = np.abs(np.diff(values(build(name))))
    steps[[j for j in CASES[name].jumps if j < len(steps)]] = 0
    assert steps.max() < 0.3  # the range test's rise grows by 0.28 at its end


@pytest.mark.parametrize("name", CASES)
def test_a_shapes_number_may_be_traced_and_compiles_once(name):
    (argument, others), traces = CASES[name].vary, []

    @jax.jit
    def traced(value, t):
        traces.append(1)
        return build(name, **{argument: value})(t)

    lanes = [traced(value, T) for value in others]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(lambda value: build(name, **{argument: value})(jnp.asarray(T))))(
        jnp.asarray(others)
    )
    assert together.dtype == jnp.float32
    for lane, row, value in zip(lanes, together, others, strict=True):
        concrete = build(name, **{argument: value})(T)
        # A traced rate of a power is float32: 1e-7 of the exponent, here up to 25.
        np.testing.assert_allclose(lane, concrete, rtol=4e-6, atol=1e-9)
        np.testing.assert_allclose(row, concrete, rtol=4e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_shape_is_float32_even_where_x64_is_on(name):
    with jax.enable_x64(True):
        assert jax.jit(build(name))(np.arange(5)).dtype == jnp.float32
        assert build(name)(3).dtype == jnp.float32


def test_a_five_phase_join_runs_each_on_its_own_clock_and_holds_the_last_value():
    parts = [
        (schedules.warmup_linear(10), 10),
        (schedules.constant(1.0), 5),
        (schedules.cosine(1.0, 0.5, 20), 20),
        (schedules.one_minus_sqrt(0.5, 0.1, 15), 15),
        (schedules.linear(0.1, 0.0, 30), 30),
    ]
    expected = in_turn(
        T,
        (0, lambda t: over(t, 10)),
        (10, lambda t: 1 + 0.0 * t),
        (15, lambda t: cos(1, 0.5, over(t, 20))),
        (35, lambda t: 0.1 + 0.4 * (1 - np.sqrt(over(t, 15)))),
        (50, lambda t: 0.1 * (1 - over(t, 30))),
    )
    ours = values(schedules.join(*zip(*parts, strict=True)))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-12)
    assert np.abs(np.diff(ours))[[9, 14, 34, 49]].max() < 0.11  # no jump at any join


# Golden values: what the libraries themselves gave, run (torch 2.13, optax 0.2.8, Keras 3.15).
ONE_CYCLE = {  # update -> value; ours is optax's without its cancellation (0.000507449 at 99)
    None: {0: 0.04, 1: 0.0426295, 29: 0.997371, 30: 1.0, 50: 0.811746, 99: 0.000507465, 100: 4e-6},
    "optax": {0: 0.04, 1: 0.0426295, 29: 0.997371, 30: 1, 98: 0.00201684, 100: 4e-6, 500: 4e-6},
    "torch": {0: 0.04, 1: 0.0428138, 29: 1, 30: 0.999497, 50: 0.793893, 98: 0.000507465, 99: 4e-6},
    "fastai": {0: 0.04, 1: 0.0437849, 25: 1, 50: 0.750002, 98: 0.00176355, 99: 0.00044858},
}


@pytest.mark.parametrize("dialect", ONE_CYCLE)
def test_one_cycle_has_the_corners_of_its_dialect(dialect):
    shape = schedules.one_cycle(100, dialect=dialect)
    for t, value in ONE_CYCLE[dialect].items():
        assert float(shape(t)) == pytest.approx(value, rel=3e-6), t


def test_three_linear_phases_have_the_corners_of_their_dialect():
    torch = schedules.one_cycle(
        100, pct_start=0.45, anneal="linear", three_phase=True, dialect="torch"
    )
    for t, value in {0: 0.04, 1: 0.0618182, 44: 1, 88: 0.04, 99: 4e-6}.items():
        assert float(torch(t)) == pytest.approx(value, rel=2e-6), t
    optax_like = schedules.one_cycle(
        100, pct_start=0.45, anneal="linear", three_phase=True, pct_final=0.9, dialect="optax"
    )
    for t, value in {1: 0.0613333, 45: 1, 90: 0.04, 99: 0.0040036, 100: 4e-6}.items():
        assert float(optax_like(t)) == pytest.approx(value, rel=6e-6), t


def test_one_cycles_momentum_is_the_inverse_cycle():
    shape = schedules.one_cycle_momentum(100, dialect="torch")
    for t, value in {0: 0.95, 1: 0.9497, 29: 0.85, 50: 0.8706, 99: 0.95}.items():
        assert float(shape(t)) == pytest.approx(value, abs=5e-5), t


def test_one_cycle_does_not_jump_up_after_its_end_except_as_torch():
    ours = schedules.one_cycle(10)
    assert [float(ours(t)) for t in (10, 11, 10**7)] == [float(np.float32(4e-6))] * 3
    torch = schedules.one_cycle(10, dialect="torch")
    assert float(torch(9)) == pytest.approx(4e-6)
    assert float(torch(10)) == pytest.approx(0.0495194, rel=1e-5)
    assert float(torch(11)) == float(torch(10))


@pytest.mark.parametrize(
    ("shape", "golden"),
    [
        (schedules.triangular(0.1, 4), ".1 .325 .55 .775 1 .775 .55 .325 .1 .325"),
        (
            schedules.triangular2(0.1, 4),
            ".1 .325 .55 .775 1 .775 .55 .325 .1 .2125 .325 .4375 .55 .4375 .325 .2125 .1 .15625",
        ),
        (
            schedules.exp_range(0.9, 0.1, 4),
            ".1 .3025 .4645 .59208 .69049 .49858 .33915 .20762 .1 .18717 .25691 .31182 .35419 "
            ".27158",
        ),
        (
            schedules.triangular2(0.1, 2, 6),
            ".1 .55 1 .85 .7 .55 .4 .25 .1 .325 .55 .475 .4 .325 .25 .175 .1 .2125",
        ),
        (schedules.cosine(1, 0, 4), "1 .853553 .5 .146447 0 0 0"),
        (
            schedules.cosine(1, 0, 4, dialect="torch"),
            "1 .853553 .5 .146447 0 .146447 .5 .853553 1 .853553",
        ),
        (
            schedules.cosine_restarts(2, 2),
            "1 .5 1 .853553 .5 .146447 1 .961940 .853553 .691342 .5 .308658 .146447 .0380602 1",
        ),
        (
            schedules.warmup_cosine_decay(4, 2, dialect="keras"),
            "0 .5 1 .853553 .5 .146447 0 0",
        ),
        (schedules.warmup_cosine_decay(6, 2), "0 .5 1 .853553 .5 .146447 0 0"),
        (schedules.multi_step((5,), 0.5), "1 1 1 1 1 .5 .5"),
        (schedules.piecewise((5,), (1, 0.5), dialect="keras"), "1 1 1 1 1 1 .5"),
        (schedules.polynomial(1, 0, 5, 2), "1 .64 .36 .16 .04 0 0"),
        (
            schedules.polynomial(1, 0, 5, 2, cycle=True),
            "1 .64 .36 .16 .04 0 .16 .09 .04 .01 0 .0711111",
        ),
        (schedules.step(0.5, 3), "1 1 1 .5 .5 .5 .25"),
        (
            schedules.warmup_linear(5, dialect="torch"),
            ".333333 .466667 .6 .733333 .866667 1 1",
        ),
        (schedules.slanted_triangular(20, 0.1, 32), ".03125 .515625 1 .946181 .892361"),
    ],
)
def test_a_trace_is_golden(shape, golden):
    expected = np.array([float(x) for x in golden.split()])
    np.testing.assert_allclose(values(shape, np.arange(len(expected))), expected, atol=6e-6)


@pytest.mark.parametrize(("t_0", "t_mult"), [(10, 3), (1000, 3), (10, 10), (1, 2), (7, 1), (3, 5)])
def test_every_restart_to_a_million_updates_and_beyond_is_the_peak(t_0, t_mult):
    """A logarithm finds the wrong cycle at some of them: torch at (10, 3), t = 1210 and 295240."""
    boundaries, t, length = [], 0, t_0
    while t < 2**31 - 1 and len(boundaries) < 200_000:
        boundaries.append(t)
        t, length = t + length, length * t_mult
    shape = schedules.cosine_restarts(t_0, t_mult)
    assert boundaries[-1] >= 10**6
    assert set(values(shape, boundaries)) == {1.0}
    before = np.array(boundaries[2:]) - 1
    assert values(shape, before).max() < 0.9
    traced = jax.jit(lambda a, b: schedules.cosine_restarts(a, b)(jnp.asarray(boundaries)))
    assert set(np.asarray(traced(t_0, t_mult)).tolist()) == {1.0}


@pytest.mark.parametrize("t", [10**7, 2**24 + 1, 2**31 - 4])
def test_neighbouring_updates_stay_apart_where_float32_cannot_count_them(t):
    n = t + 3
    left = np.array([3.0, 2.0, 1.0]) / n  # float32 says 1 - t / n with errors of 6e-8: all of it
    for shape, expected in [
        (schedules.linear_to_zero(n), left),
        (schedules.cosine(1.0, 0.0, n), np.sin(np.pi / 2 * left) ** 2),
        (schedules.one_minus_sqrt(1.0, 0.0, n), left / (1 + np.sqrt(1 - left))),
        (schedules.polynomial(1.0, 0.0, n, 2.0), left**2),
        (schedules.one_cycle(n, final_div=1e30), np.sin(np.pi / 1.4 * left) ** 2),
    ]:
        np.testing.assert_allclose(values(shape, [t, t + 1, t + 2]), expected, rtol=1e-6)
    assert values(schedules.step(0.5, t), [t - 1, t]).tolist() == [1.0, 0.5]
    assert values(schedules.piecewise([t], [1.0, 0.5]), [t - 1, t]).tolist() == [1.0, 0.5]
    assert values(schedules.triangular(0.0, 1), [t - 1, t]).tolist() == [(t - 1) % 2, t % 2]


def test_powers_do_not_drift_over_ten_million_updates():
    t = np.array([1, 70_000, 999_999, 10**7])
    for rate in (1e-6, 3.3e-7):
        shape = schedules.exponential(math.exp(-rate), 1)
        np.testing.assert_allclose(values(shape, t), np.exp(-rate * t), rtol=5e-7)
    shape = schedules.exp_range(0.99994, 0.0, 1)
    np.testing.assert_allclose(values(shape, [70_001]), 0.99994**70_001, rtol=5e-7)


def test_a_schedule_refuses_a_clock_of_floats():
    with pytest.raises(TypeError, match="whole updates, got float32"):
        schedules.cosine(1, 0, 10)(jnp.float32(3))


@given(
    start=st.floats(0.01, 1), end=st.floats(0, 1), n=st.integers(1, 10**7), t=st.integers(0, 10**7)
)
def test_what_goes_from_start_to_end_stays_between_and_arrives(start, end, n, t):
    low, high = np.float32(min(start, end)), np.float32(max(start, end))
    for make in schedules.linear, schedules.cosine:
        shape = make(start, end, n)
        assert float(shape(0)) == np.float32(start)
        assert float(shape(n)) == float(shape(n + 1)) == np.float32(end)
        assert low * (1 - 3e-7) <= float(shape(t)) <= high * (1 + 3e-7)


@given(t_0=st.integers(1, 10**6), t_mult=st.integers(1, 10), k=st.integers(0, 8))
def test_a_restart_is_the_peak_whatever_the_cycle(t_0, t_mult, k):
    boundary = sum(t_0 * t_mult**i for i in range(k))
    if boundary < 2**31 - 1:
        assert float(schedules.cosine_restarts(t_0, t_mult)(boundary)) == 1.0


@given(steps=st.integers(10, 10**7), pct=st.floats(0.15, 0.85))
def test_one_cycle_peaks_at_its_corner(steps, pct):
    shape, peak = schedules.one_cycle(steps, pct), math.floor(pct * steps + 0.5)
    assert [float(shape(t)) for t in (0, peak)] == [np.float32(1 / 25), 1.0]
    assert float(shape(steps)) == pytest.approx(4e-6, rel=2e-7)
    assert float(shape(peak - 1)) <= 1.0 >= float(shape(peak + 1))


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_a_join_of_levels_changes_exactly_at_its_boundaries(lengths):
    shape = schedules.join([schedules.constant(i) for i in range(len(lengths))], lengths)
    t = np.arange(sum(lengths) + 5)
    expected = np.minimum(np.searchsorted(np.cumsum(lengths), t, "right"), len(lengths) - 1)
    np.testing.assert_array_equal(values(shape, t), expected)


def test_optax_joins_and_takes_our_shapes():
    tx = optax.sgd(lambda t: 0.1 * schedules.step(0.5, 2)(t))
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    seen = []
    for _ in range(4):
        update, state = tx.update(jnp.ones(()), state, params)
        seen.append(-float(update))
    np.testing.assert_allclose(seen, [0.1, 0.1, 0.05, 0.05], rtol=1e-6)


def test_a_table_replays_what_it_is_given():
    held = schedules.table([1.0, 0.5, 0.2], steps=9, interpolate=False)
    np.testing.assert_allclose(values(held, range(11)), [1] * 3 + [0.5] * 3 + [0.2] * 5)
    recorded = np.random.default_rng(0).uniform(size=500).astype(np.float32)
    again = schedules.table(recorded.tolist(), at=range(500))
    np.testing.assert_array_equal(values(again, range(500)), recorded)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: s.cosine(1, 0, 0), "steps >= 1, got 0: is its phase under one update"),
        (lambda s: s.cosine(1, 0, 2.5), "whole updates for steps, got 2.5"),
        (lambda s: s.cosine(1, 0, 2**31), "the clock is an int32"),
        (lambda s: s.cosine(1, 0, 9, dialect="jax"), "no dialect 'jax'; it has torch, keras"),
        (lambda s: s.linear(-1, 0, 5), "start >= 0, got -1"),
        (lambda s: s.linear("1", 0, 5), "a number for start, got '1'"),
        (lambda s: s.polynomial(1, 0, 5, 0), "power > 0, got 0"),
        (lambda s: s.step(1.0, 5), r"factor in \(0, 1\), got 1.0"),
        (lambda s: s.step(0.5, 0), "every >= 1"),
        (lambda s: s.exponential(0.0, 5), r"decay in \(0, 1\)"),
        (lambda s: s.exponential(0.5, 5, 0.1, 0.2), "end <= start, got end=0.2"),
        (lambda s: s.constant(float("nan")), "got nan"),
        (lambda s: s.join([s.constant()], [1, 2]), "one length a shape"),
        (lambda s: s.join([s.constant()] * 2, []), "one length a shape, got 2 and 0"),
        (lambda s: s.join([s.constant()] * 2, [3, 0]), "phase 1 is 0 updates"),
        (lambda s: s.multi_step((30, 20)), r"boundaries\[0\]=30 before boundaries\[1\]=20"),
        (lambda s: s.multi_step((20, 20)), r"boundaries\[0\]=20 before boundaries\[1\]=20"),
        (lambda s: s.multi_step((-1,)), r"boundaries\[0\] >= 1, got -1"),
        (lambda s: s.multi_step((20, 50), steps=50), r"boundaries\[1\] <= 49, .* got 50"),
        (lambda s: s.piecewise((5,), (1.0,)), "got 1 values for 1 boundaries"),
        (lambda s: s.triangular(1.0, 5), "low < high, got low=1.0, high=1.0"),
        (lambda s: s.triangular(0.1, 0), "up >= 1"),
        (lambda s: s.exp_range(1.1, 0.1, 4), r"gamma in \(0, 1\], got 1.1"),
        (lambda s: s.cosine_restarts(10, 0.5), "t_mult >= 1, got 0.5"),
        (lambda s: s.cosine_restarts(10, 1.5), "whole t_mult >= 1, got 1.5"),
        (lambda s: s.cosine_restarts(10, cycles=0), "cycles >= 1"),
        (lambda s: s.cosine_restarts(10, end=1.0), "end < start"),
        (lambda s: s.cosine_restarts(10, dialect="optax"), "needs cycles"),
        (lambda s: s.one_cycle(100, pct_start=1.0), r"pct_start in \(0, 1\), got 1.0"),
        (lambda s: s.one_cycle(100, pct_start=0.0), r"pct_start in \(0, 1\), got 0.0"),
        (lambda s: s.one_cycle(100, div=0), "div > 0, got 0"),
        (lambda s: s.one_cycle(1), "phase 0 goes from update 0 to 0 of 1"),
        (lambda s: s.one_cycle(100, 0.6, three_phase=True), r"pct_final in \(0, 1\), got 1.2"),
        (lambda s: s.one_cycle(100, anneal="exp"), "cosine or linear, got 'exp'"),
        (lambda s: s.one_cycle_momentum(100, 0.9, 0.8), "low < high"),
        (lambda s: s.slanted_triangular(5), "cut_frac=0.1 of 5 updates is 0"),
        (lambda s: s.rex(0.1, 1.0, 5), "end <= start, got end=1.0, start=0.1"),
        (lambda s: s.reciprocal_sqrt(0), "timescale >= 1, got 0"),
        (lambda s: s.warmup_exponential(5, 0.0), "start > 0, got 0"),
        (lambda s: s.warmup_cosine_decay(10, 10), "warmup < steps, got warmup=10, steps=10"),
        (lambda s: s.warmup_stable_decay(10, 6, 5), "6 \\+ 5 = 11 > 10"),
        (lambda s: s.warmup_stable_decay(10, -1, 5), "warmup >= 0, got -1"),
        (lambda s: s.warmup_stable_decay(10, 1, 5, shape="sqrt"), "no cooldown 'sqrt'; it has"),
        (lambda s: s.flat_then_cosine(2, 0.9), "cosine part is under one update"),
        (lambda s: s.table([]), "at least one value"),
        (lambda s: s.table([1, 0.5, 0.2], steps=1), "3 values for 1 updates"),
        (lambda s: s.table([1, 0.5], at=[0, 0]), r"at\[0\]=0 before at\[1\]=0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make(schedules)


def test_fractional_restarts_lie_between_updates():
    mult, first = 1.8853379744046839, 7  # its float32 moves the sixth restart by 2e-5
    starts = np.cumsum([0, *(first * mult**k for k in range(8))])
    t = np.arange(300)
    k = np.searchsorted(starts, t, "right") - 1
    expected = cos(1, 0, (t - starts[k]) / (first * mult**k))
    shape = schedules.cosine_restarts(first, mult, dialect="keras")
    np.testing.assert_allclose(values(shape, t), expected, rtol=1e-6, atol=1e-12)
