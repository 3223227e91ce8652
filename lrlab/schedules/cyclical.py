"""Shapes that come back: triangles, restarted cosines, one cycle."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrlab.schedules import _checks, _clock
from lrlab.schedules.decay import Number, Updates


def triangular(
    low: Number, up: Updates, down: Updates | None = None, high: Number = 1.0
) -> optax.Schedule:
    """Lines from `low` up to `high` and back, for ever.

    u = t mod (up + down); shape(t) = low + (high - low) * (u / up, or (up + down - u) / down)

    PyTorch's CyclicLR (mode "triangular") agrees.

    Args:
      low, high: multipliers at the corners; Smith advises low = high / 3 or high / 4.
      up, down: updates of each way; `down` is `up` if not given ("stepsize", 2 to 10 epochs).
    Raises:
      ValueError: low >= high, a length < 1, a negative multiplier.
    Source:
      Smith 2017, arXiv:1506.01186, 3.1.
    """
    return _triangles("triangular", low, up, down, high, None)


def triangular2(
    low: Number, up: Updates, down: Updates | None = None, high: Number = 1.0
) -> optax.Schedule:
    """Triangles whose height halves at each cycle.

    shape(t) = low + (triangular(t) - low) / 2 ** floor(t / (up + down))

    Args, Raises, Source: as for `triangular`; PyTorch's CyclicLR agrees.
    """
    return _triangles("triangular2", low, up, down, high, lambda t, cycle: _halved(cycle))


def exp_range(
    gamma: Number, low: Number, up: Updates, down: Updates | None = None, high: Number = 1.0
) -> optax.Schedule:
    """Triangles whose height shrinks by `gamma` at each update.

    shape(t) = low + (triangular(t) - low) * gamma ** t

    PyTorch's CyclicLR agrees. In the paper's text both bounds decline; its code and its figures
    leave `low` where it is.

    Args:
      gamma: in (0, 1], such as 0.99994.
      low, up, down, high: as for `triangular`, which says the source.
    Raises:
      ValueError: gamma outside (0, 1], and as `triangular`.
    """
    rate = _clock.rate_of(_checks.fraction("exp_range", "gamma", gamma, one=True))
    return _triangles("exp_range", low, up, down, high, lambda t, cycle: _clock.power(rate, t))


def _halved(cycle: jax.Array) -> jax.Array:
    return _clock.power(math.log(2), cycle)


def _triangles(name: str, low: Any, up: Any, down: Any, high: Any, height: Any) -> optax.Schedule:
    up = _checks.whole(name, "up", up)
    down = up if down is None else _checks.whole(name, "down", down)
    low = _checks.at_least(name, "low", low, 0)
    high = _checks.at_least(name, "high", high, 0)
    _checks.below(name, "low", low, "high", high)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        u = t % (up + down)
        rise = jnp.minimum(u, up).astype(jnp.float32) / up
        way = jnp.where(u <= up, rise, (up + down - u).astype(jnp.float32) / down)
        if height is not None:
            return low + (high - low) * way * height(t, t // (up + down))
        return jnp.where(way == 1, high, low + (high - low) * way)

    return shape


def cosine_restarts(
    t_0: Updates,
    t_mult: Number = 1,
    start: Number = 1.0,
    end: Number = 0.0,
    decay: Number = 1.0,
    cycles: int | None = None,
    dialect: str | None = None,
) -> optax.Schedule:
    """Half cosines from `start` down to `end`, each restarted at the top (SGDR).

    Cycle k is t_0 * t_mult ** k updates long and shape = end + (start - end) * decay ** k *
    (1 + cos(pi * u / length)) / 2, u = updates since its start. The last update of a cycle is one
    short of `end`, as everywhere.

    Args:
      t_0: updates of the first cycle.
      t_mult: how many times longer each next cycle is, a whole number.
      start, end: multipliers at a cycle's start and (not reached) end.
      decay: factor of the height at each restart, in (0, 1].
      cycles: how many; without it they never stop. After the last one the shape stays at `end`.
      dialect: "keras" (CosineDecayRestarts) takes a fractional t_mult, whose restarts lie between
        updates. "fastai" (0.7, use_clr=None) has start / 100 for the first t_0 / 20 updates.
        "torch" and "optax" (sgdr_schedule, which needs `cycles`) are as ours; torch's
        `step(epoch)` finds the cycle by a logarithm and misses restarts, which we leave to it.
    Raises:
      ValueError: t_0 < 1, t_mult < 1 or not whole, end >= start, decay outside (0, 1], cycles < 1.
    Source:
      Loshchilov & Hutter 2017, arXiv:1608.03983, 3.
    """
    name = "cosine_restarts"
    given = _checks.dialect(name, dialect, ("torch", "keras", "optax", "fastai"))
    if given == "optax" and cycles is None:
        raise ValueError(f"{name} needs cycles in the dialect optax: sgdr_schedule is a list")
    t_0 = _checks.whole(name, "t_0", t_0)
    start = _checks.at_least(name, "start", start, 0)
    end = _checks.at_least(name, "end", end, 0)
    _checks.below(name, "end", end, "start", start)
    rate = _clock.rate_of(_checks.fraction(name, "decay", decay, one=True))
    if cycles is not None:
        cycles = _checks.whole(name, "cycles", cycles)
    fractional = False
    if not _checks.traced(t_mult):
        _checks.at_least(name, "t_mult", t_mult, 1)
        t_mult = float(t_mult)
        fractional = t_mult != int(t_mult)
        if fractional and given != "keras":
            raise ValueError(f"{name} needs a whole t_mult >= 1, got {t_mult:g}")

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        find = _fractional_cycle if fractional else _cycle
        k, done, left = find(t, t_0, t_mult)
        if cycles is not None:
            over = k >= cycles
            done, left = jnp.where(over, 1, done), jnp.where(over, 0, left)
        height = _clock.power(rate, k)
        up, down = _clock.half_cosine(done, left)
        value = (start * down + end * up) * height + end * (1 - height)
        if given == "fastai":
            value = jnp.where(t < (t_0 + 19) // 20, start / 100, value)
        return value

    return shape


def sgdr(
    cycle_len: Updates,
    cycle_mult: Number = 1,
    start: Number = 1.0,
    end: Number = 0.0,
    cycles: int | None = None,
    dialect: str | None = None,
) -> optax.Schedule:
    """`cosine_restarts` by fast.ai's names; in a config, cycle_len={"epochs": 1}.

    n cycles take cycle_len * (cycle_mult ** n - 1) / (cycle_mult - 1) updates.

    Raises:
      ValueError: as `cosine_restarts`.
    """
    _checks.whole("sgdr", "cycle_len", cycle_len)
    _checks.at_least("sgdr", "cycle_mult", cycle_mult, 1)
    return cosine_restarts(cycle_len, cycle_mult, start, end, 1.0, cycles, dialect)


def _cycle(t: jax.Array, t_0: Any, mult: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Number of the cycle, done and left of it, by whole numbers; mult is whole, may be traced."""
    count, rest = t // t_0, t % t_0
    even = count, *_clock.fractions(rest, t_0)
    if not _checks.traced(mult) and mult == 1:
        return even
    firsts, growths, sizes = _growth(mult)  # in lengths of the first cycle
    k = jnp.searchsorted(firsts[1:], count, side="right", method="compare_all")
    since = t - t_0 * firsts[k]
    length = jnp.asarray(t_0, jnp.float32) * sizes[k]
    done = since.astype(jnp.float32) / length
    fits = growths[k] <= _checks.MAX // t_0  # a longer cycle is less than counted to its end
    left = jnp.where(fits, (growths[k] * t_0 - since).astype(jnp.float32) / length, 1 - done)
    if not _checks.traced(mult):
        return k, done, left
    one = mult == 1
    return (
        jnp.where(one, even[0], k),
        jnp.where(one, even[1], done),
        jnp.where(one, even[2], left),
    )


def _growth(mult: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of cycles 0 to 31: start and length in first lengths, saturated, and length as a float."""
    if not _checks.traced(mult):
        whole = int(mult)
        firsts = [min((whole**k - 1) // (whole - 1), _checks.MAX) for k in range(32)]
        growths = [min(whole**k, _checks.MAX) for k in range(32)]
        sizes = [min(float(whole) ** k, 1e38) for k in range(32)]
        return (
            jnp.asarray(np.asarray(firsts, np.int32)),
            jnp.asarray(np.asarray(growths, np.int32)),
            jnp.asarray(np.asarray(sizes, np.float32)),
        )
    mult = jnp.asarray(mult).astype(jnp.int32)
    firsts, growths = [jnp.int32(0)], [jnp.int32(1)]
    for _ in range(31):
        first, growth = firsts[-1], growths[-1]
        firsts.append(jnp.where(first > (_checks.MAX - 1) // mult, _checks.MAX, first * mult + 1))
        growths.append(jnp.where(growth > _checks.MAX // mult, _checks.MAX, growth * mult))
    sizes = mult.astype(jnp.float32) ** jnp.arange(32)
    return jnp.stack(firsts), jnp.stack(growths), sizes


def _fractional_cycle(t: jax.Array, t_0: Any, mult: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `_cycle`, for restarts that lie between updates."""
    if _checks.traced(t_0):
        raise ValueError("cosine_restarts needs a concrete t_0 where t_mult is fractional")
    starts, length = [0.0], float(t_0)
    while starts[-1] <= _checks.MAX:
        starts.append(starts[-1] + length)
        length *= float(mult)
    begin, end = np.asarray(starts[:-1]), np.asarray(starts[1:])
    firsts = np.ceil(begin)
    lasts = np.minimum(np.floor(end), _checks.MAX)  # sums below are of positive parts: no rounding
    firsts_int, lasts_int = (jnp.asarray(x.astype(np.int32)) for x in (firsts, lasts))
    early, late, lengths = (
        jnp.asarray(x.astype(np.float32)) for x in (firsts - begin, end - lasts, end - begin)
    )
    k = jnp.searchsorted(firsts_int[1:], t, side="right", method="scan_unrolled")
    done = ((t - firsts_int[k]).astype(jnp.float32) + early[k]) / lengths[k]
    return k, done, ((lasts_int[k] - t).astype(jnp.float32) + late[k]) / lengths[k]


def one_cycle(
    steps: Updates,
    pct_start: Number | None = None,
    div: Number = 25.0,
    final_div: Number | None = None,
    anneal: str = "cosine",
    three_phase: bool = False,
    pct_final: Number | None = None,
    dialect: str | None = None,
) -> optax.Schedule:
    """Up from 1 / div to 1, and down to 1 / (div * final_div) at t = steps.

    Two phases: up until pct_start * steps, down from there. Three: back at 1 / div at
    pct_final * steps, then down to the end. Corners of ours are at the nearest update.

    Args:
      steps: length of the whole, in updates.
      pct_start: the peak's place as a part of `steps`, 0.3 if not given (fastai: 0.25).
      div, final_div: peak / start and start / end; final_div is 1e4 if not given.
      anneal: "cosine" or "linear".
      three_phase, pct_final: a phase back to the start; it ends at 2 * pct_start if not given.
      dialect: "torch" (OneCycleLR) has its corners at pct_start * steps - 1, 2 * pct_start * steps
        - 2 and steps - 1, also between updates; at t = steps it has jumped up, and there it stays
        (PyTorch raises at the next update). "optax" rounds corners down, and linear_onecycle's
        pct_final is 0.85 if not given. "fastai" (fit_one_cycle) has corners between updates and
        final_div relative to the peak, 1e5 if not given.
    Raises:
      ValueError: pct_start or pct_final outside (0, 1) or out of order, div <= 0, a phase under one
        update, an unknown anneal.
    Source:
      Smith & Topin 2018, arXiv:1708.07120; Smith 2018, arXiv:1803.09820. Three linear phases are
      nearest to the paper.
    """
    name = "one_cycle"
    given = _checks.dialect(name, dialect, ("torch", "optax", "fastai"))
    fall = (1e5 if given == "fastai" else 1e4) if final_div is None else final_div
    fall = _checks.above(name, "final_div", fall, 0)
    start = 1 / _checks.above(name, "div", div, 0)
    end = 1 / fall if given == "fastai" else start / fall
    values = [start, np.float32(1), start, end] if three_phase else [start, np.float32(1), end]
    return _one_cycle(name, steps, pct_start, pct_final, anneal, three_phase, given, values)


def one_cycle_momentum(
    steps: Updates,
    low: Number = 0.85,
    high: Number = 0.95,
    pct_start: Number | None = None,
    anneal: str = "cosine",
    three_phase: bool = False,
    pct_final: Number | None = None,
    dialect: str | None = None,
) -> optax.Schedule:
    """`one_cycle`'s momentum, or b1: from `high` to `low` at the rate's peak, and back.

    Not a multiplier: the values are the momentum itself. A third phase stays at `high`.

    Args:
      low, high: in [0, 1).
      steps, pct_start, anneal, three_phase, pct_final, dialect: as for `one_cycle`.
    Raises:
      ValueError: low >= high, high >= 1, and as `one_cycle`.
    """
    name = "one_cycle_momentum"
    given = _checks.dialect(name, dialect, ("torch", "optax", "fastai"))
    low = _checks.at_least(name, "low", low, 0)
    high = _checks.fraction(name, "high", high)
    _checks.below(name, "low", low, "high", high)
    values = [high, low, high, high] if three_phase else [high, low, high]
    return _one_cycle(name, steps, pct_start, pct_final, anneal, three_phase, given, values)


def _one_cycle(
    name: str,
    steps: Any,
    pct_start: Any,
    pct_final: Any,
    anneal: str,
    three_phase: bool,
    dialect: str | None,
    values: list[Any],
) -> optax.Schedule:
    """Through `values` at the dialect's corners."""
    if anneal not in ("cosine", "linear"):
        raise ValueError(f"{name} needs anneal cosine or linear, got {anneal!r}")
    if pct_final is not None and not three_phase:
        raise ValueError(f"{name} has pct_final={pct_final} only with three_phase=True")
    steps = _checks.whole(name, "steps", steps)
    if pct_start is None:
        pct_start = 0.25 if dialect == "fastai" else 0.3
    parts = [_checks.fraction(name, "pct_start", pct_start)]
    if three_phase:
        if pct_final is None:
            pct_final = 0.85 if dialect == "optax" else 2 * pct_start
        parts.append(_checks.fraction(name, "pct_final", pct_final))
        _checks.below(name, "pct_start", pct_start, "pct_final", pct_final)
    corners = [_corner(part * steps, i, dialect) for i, part in enumerate(parts)]
    corners = [0, *corners, steps - 1 if dialect == "torch" else steps]
    for i, (a, b) in enumerate(itertools.pairwise(corners)):
        if not _checks.traced(a, b) and not a < b:
            raise ValueError(
                f"{name}: phase {i} goes from update {a:g} to {b:g} of {steps}; it needs more "
                "updates, or other pct_start"
            )

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        jump = dialect == "torch"
        t = jnp.minimum(t, steps) if jump else t
        return _clock.through(t, corners, values, anneal == "cosine", jump)

    return shape


def _corner(place: Any, i: int, dialect: str | None) -> Any:
    """Where phase i ends, in updates."""
    if dialect == "torch":
        return place - 1 - i
    if dialect == "fastai":
        return place
    if dialect == "optax":
        return place.astype(jnp.int32) if _checks.traced(place) else int(place)
    return _clock.nearest(place)


def slanted_triangular(
    steps: Updates, cut_frac: Number = 0.1, ratio: Number = 32.0, dialect: str | None = None
) -> optax.Schedule:
    """A short line up from 1 / ratio to 1, a long one back down to 1 / ratio at t = steps.

    cut = floor(steps * cut_frac); p = t / cut, then 1 - (t - cut) / (steps - cut);
    shape(t) = (1 + p * (ratio - 1)) / ratio

    Args:
      steps: length of the whole, in updates.
      cut_frac: the part of `steps` that rises.
      ratio: peak / start.
      dialect: "fastai" (0.7's use_clr=(ratio, 1 / cut_frac)) starts again at t = steps, and divides
        by cut * (1 / cut_frac - 1), as the paper writes it: the same where steps * cut_frac is
        whole, else the end is a little under 1 / ratio.
    Raises:
      ValueError: cut_frac outside (0, 1), a rise under one update, ratio <= 1.
    Source:
      Howard & Ruder 2018, arXiv:1801.06146, eq. 3.
    """
    name = "slanted_triangular"
    given = _checks.dialect(name, dialect, ("fastai",))
    steps = _checks.whole(name, "steps", steps)
    cut_frac = _checks.fraction(name, "cut_frac", cut_frac)
    ratio = _checks.above(name, "ratio", ratio, 1)
    place = steps * cut_frac + 1e-6  # 100 * 0.29 is 28.999...
    cut = place.astype(jnp.int32) if _checks.traced(place) else math.floor(place)
    if not _checks.traced(cut) and not 0 < cut < steps:
        raise ValueError(
            f"{name}: cut_frac={cut_frac} of {steps} updates is {cut}; each side needs one or more"
        )
    low = 1 / ratio
    fall = cut * (1 / cut_frac - 1) if given == "fastai" else steps - cut
    fall = jnp.asarray(fall, jnp.float32) if _checks.traced(fall) else np.float32(fall)

    def shape(t: jax.typing.ArrayLike) -> jax.Array:
        t = _clock.updates(t)
        t = t % steps if given == "fastai" else jnp.minimum(t, steps)
        rise = jnp.minimum(t, cut).astype(jnp.float32) / cut
        down = (cut - t).astype(jnp.float32) / fall + 1
        if given is None:
            down = (steps - t).astype(jnp.float32) / fall
        way = jnp.where(t < cut, rise, down)
        return low * (1 - way) + way

    return shape


def triangular_momentum(
    up: Updates, down: Updates | None = None, low: Number = 0.8, high: Number = 0.9
) -> optax.Schedule:
    """The momentum that goes with `triangular`: `high` where the rate is low, and the reverse.

    Not a multiplier: the values are the momentum itself. PyTorch's cycle_momentum agrees.

    Raises:
      ValueError: as `triangular`; high >= 1.
    """
    high = _checks.fraction("triangular_momentum", "high", high)
    rise = _triangles("triangular_momentum", low, up, down, high, None)
    return lambda t: low + high - rise(t)
