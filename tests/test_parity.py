"""Our dialects against the libraries themselves, on random parameters, past the end as well.

PyTorch and Keras run in an interpreter of their own, named by LRLAB_PARITY_PYTHON:
`python3.11 -m venv parity && parity/bin/pip install torch==2.13.0 keras==3.15.1 jax numpy`.
With LRLAB_WRITE_PARITY=1 the largest differences are recorded for docs/parity.md.
"""

import dataclasses
import datetime
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT

from lrlab import schedules

pytestmark = pytest.mark.slow
DRAWS = 200
TOLERANCE = 1e-6  # relative to the value, or to a row's floor where the value is smaller
RECORD = ROOT / "experiments" / "results" / "parity_schedules.json"


@dataclasses.dataclass(frozen=True)
class Draw:
    """One random case: the peer's arguments, or the peer itself (Optax), and ours.

    wrong: updates at which the peer may be wrong, and ours is the peak.
    """

    peer: Any
    ours: optax.Schedule
    updates: int
    wrong: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """A family of ours against a library's: how to draw a case, which value to compare.

    floor, why: values smaller than this part of the peak count as this; for what reason.
    """

    family: str
    library: str
    peer: str
    draw: Callable[[np.random.Generator], Draw]
    value: str = "lr"
    floor: float = 1e-9
    why: str = ""


def ends(rng):
    """Multipliers at the start and the end, one in four ends being 0."""
    return rng.uniform(0.3, 1), float(rng.choice([0.0, *rng.uniform(1e-4, 0.25, 3)]))


def length(rng, low=2, high=160):
    return int(rng.integers(low, high))


def increasing(rng, n, high=120):
    return sorted(int(b) for b in rng.choice(np.arange(1, high), n, replace=False))


def past(n):
    return n + n // 2 + 5


def torch_linear(rng):
    n, a, b = length(rng), rng.uniform(0.01, 1), rng.uniform(0, 1)
    peer = {"start_factor": a, "end_factor": b, "total_iters": n}
    return Draw(peer, schedules.linear(a, b, n), past(n))


def torch_linear_default(rng):
    n = length(rng)
    return Draw({"total_iters": n}, schedules.warmup_linear(n, dialect="torch"), past(n))


def torch_constant(rng):
    n, a = length(rng), rng.uniform(0.01, 1)
    return Draw({"factor": a, "total_iters": n}, schedules.warmup_constant(n, a), past(n))


def torch_step(rng):
    n, a = length(rng, 1, 40), rng.uniform(0.05, 0.95)
    return Draw({"step_size": n, "gamma": a}, schedules.step(a, n), past(4 * n))


def torch_multi_step(rng):
    at, a = increasing(rng, int(rng.integers(1, 6))), rng.uniform(0.05, 0.95)
    ours = schedules.multi_step(at, a, dialect="torch")
    return Draw({"milestones": at, "gamma": a}, ours, past(at[-1]))


def torch_exponential(rng):
    a = rng.uniform(0.8, 0.9999)
    return Draw({"gamma": a}, schedules.exponential(a, 1), 150)


def torch_polynomial(rng):
    n, p = length(rng), float(rng.choice([1.0, 2.0, rng.uniform(0.3, 4)]))
    ours = schedules.polynomial(1.0, 0.0, n, p)
    return Draw({"total_iters": n, "power": p}, ours, past(n))


def torch_cosine(rng):
    n, b = length(rng), ends(rng)[1]
    ours = schedules.cosine(1.0, b, n, dialect="torch")
    return Draw({"T_max": n, "eta_min": b}, ours, 4 * n + 5)


def torch_restarts(rng):
    n, m, b = length(rng, 1, 30), int(rng.integers(1, 5)), ends(rng)[1]
    ours = schedules.cosine_restarts(n, m, end=b, dialect="torch")
    return Draw({"T_0": n, "T_mult": m, "eta_min": b}, ours, 400)


def torch_cyclic(mode, rng):
    low, up, down, gamma = rng.uniform(0.01, 0.9), length(rng, 1, 40), length(rng, 1, 40), 1.0
    if mode == "exp_range":
        gamma = rng.uniform(0.9, 0.9999)
        ours = schedules.exp_range(gamma, low, up, down)
    else:
        ours = getattr(schedules, mode)(low, up, down)
    peer = {"base_lr": low, "max_lr": 1.0, "step_size_up": up, "step_size_down": down}
    return Draw({**peer, "mode": mode, "gamma": gamma, "cycle_momentum": False}, ours, 250)


def torch_cyclic_momentum(rng):
    low, up, down = rng.uniform(0.5, 0.8), length(rng, 1, 40), length(rng, 1, 40)
    peer = {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": up, "step_size_down": down}
    ours = schedules.triangular_momentum(up, down, low, 0.95)
    return Draw({**peer, "base_momentum": low, "max_momentum": 0.95}, ours, 250)


def torch_one_cycle(anneal, three_phase, rng, momentum=False):
    n = length(rng, 12)
    pct = rng.uniform(1.2 / n, 0.48 if three_phase else 0.95)
    div, final = rng.uniform(2, 50), 10 ** rng.uniform(1, 5)
    same = {"pct_start": pct, "three_phase": three_phase}
    peer = {**same, "max_lr": 1.0, "total_steps": n, "div_factor": div, "final_div_factor": final}
    peer["anneal_strategy"] = "cos" if anneal == "cosine" else "linear"
    if momentum:
        low, high = rng.uniform(0.5, 0.8), rng.uniform(0.85, 0.99)
        peer |= {"base_momentum": low, "max_momentum": high}
        ours = schedules.one_cycle_momentum(n, low, high, anneal=anneal, dialect="torch", **same)
    else:
        ours = schedules.one_cycle(
            n, div=div, final_div=final, anneal=anneal, dialect="torch", **same
        )
    return Draw(peer, ours, n + 1)  # it raises at n + 1


def torch_sequential(rng):
    w, n, b = length(rng, 1, 40), length(rng, 2, 100), ends(rng)[1]
    parts = [
        {"kind": "LinearLR", "args": {"total_iters": w}},
        {"kind": "CosineAnnealingLR", "args": {"T_max": n, "eta_min": b}},
    ]
    ours = schedules.warmup_cosine_decay(w + n, w, end=b, dialect="torch")
    return Draw({"parts": parts, "milestones": [w]}, ours, w + 3 * n)


def keras_piecewise(rng):
    at = increasing(rng, int(rng.integers(1, 6)))
    values = rng.uniform(0.01, 1, len(at) + 1).tolist()
    ours = schedules.piecewise(at, values, dialect="keras")
    return Draw({"boundaries": at, "values": values}, ours, past(at[-1]))


def keras_polynomial(cycle, rng):
    n, (a, b), p = length(rng), ends(rng), float(rng.choice([1.0, 2.0, rng.uniform(0.3, 4)]))
    peer = {"initial_learning_rate": a, "end_learning_rate": b, "decay_steps": n, "power": p}
    ours = schedules.polynomial(a, b, n, p, cycle)
    return Draw({**peer, "cycle": cycle}, ours, 3 * n + 5 if cycle else past(n))


def keras_inverse_time(staircase, rng):
    n, rate = length(rng, 1, 40), rng.uniform(0.01, 3)
    peer = {"initial_learning_rate": 1.0, "decay_steps": n, "decay_rate": rate}
    ours = schedules.inverse_time(rate, n, staircase=staircase)
    return Draw({**peer, "staircase": staircase}, ours, 150)


def keras_exponential(staircase, rng):
    n, rate = length(rng, 1, 40), rng.uniform(0.5, 0.99)
    peer = {"initial_learning_rate": 1.0, "decay_steps": n, "decay_rate": rate}
    ours = schedules.exponential(rate, n, staircase=staircase)
    return Draw({**peer, "staircase": staircase}, ours, 150)


def keras_cosine(rng):
    n, (a, b) = length(rng), ends(rng)
    peer = {"initial_learning_rate": a, "decay_steps": n, "alpha": b / a}
    return Draw(peer, schedules.cosine(a, b, n, dialect="keras"), past(n))


def keras_warmup(rng):
    n, w, a, b = length(rng), length(rng, 1, 60), rng.uniform(0, 0.5), ends(rng)[1]
    peer = {"initial_learning_rate": a, "decay_steps": n, "alpha": b}
    peer |= {"warmup_target": 1.0, "warmup_steps": w}
    ours = schedules.warmup_cosine_decay(n, w, a, b, dialect="keras")
    return Draw(peer, ours, past(n + w))


def keras_restarts(fractional, rng):
    n, b, decay = length(rng, 1, 30), ends(rng)[1], rng.uniform(0.5, 1)
    mult = float(rng.uniform(1.05, 3)) if fractional else float(rng.integers(1, 5))
    peer = {"initial_learning_rate": 1.0, "first_decay_steps": n, "t_mul": mult}
    ours = schedules.cosine_restarts(n, mult, end=b, decay=decay, dialect="keras")
    starts = (
        () if fractional else tuple(n * sum(int(mult) ** i for i in range(k)) for k in range(9))
    )
    return Draw({**peer, "m_mul": decay, "alpha": b}, ours, 300, tuple(starts))


def optax_linear(rng):
    n, (a, b) = length(rng), ends(rng)
    return Draw(optax.linear_schedule(a, b, n), schedules.linear(a, b, n), past(n))


def optax_polynomial(rng):
    # Powers under 1 are left out: compiled, Optax's 1 - t / n may leave a last bit at t = n, and
    # its root is no longer small (power 1/3, float64: 5e-6 above the end).
    n, (a, b), p = length(rng), ends(rng), float(rng.choice([1.0, 2.0, rng.uniform(1, 4)]))
    ours = schedules.polynomial(a, b, n, p)
    return Draw(optax.polynomial_schedule(a, b, p, n), ours, past(n))


def optax_cosine(rng):
    n, (a, b) = length(rng), ends(rng)
    ours = schedules.cosine(a, b, n, dialect="optax")
    return Draw(optax.cosine_decay_schedule(a, n, b / a), ours, past(n))


def optax_exponential(staircase, rng):
    n, rate, b = length(rng, 1, 40), rng.uniform(0.5, 0.99), rng.uniform(0, 0.1)
    peer = optax.exponential_decay(1.0, n, rate, staircase=staircase, end_value=b)
    return Draw(peer, schedules.exponential(rate, n, end=b, staircase=staircase), 150)


def optax_piecewise(rng):
    at = increasing(rng, int(rng.integers(1, 6)))
    scales = rng.uniform(0.1, 1.5, len(at))
    values = np.cumprod([0.9, *scales]).tolist()
    peer = optax.piecewise_constant_schedule(0.9, dict(zip(at, scales.tolist(), strict=True)))
    return Draw(peer, schedules.piecewise(at, values, dialect="optax"), past(at[-1]))


def optax_one_cycle(anneal, rng):
    n, pct, last = length(rng, 12), rng.uniform(0.1, 0.5), rng.uniform(0.6, 0.9)
    div, final = rng.uniform(2, 50), 10 ** rng.uniform(1, 5)
    if anneal == "cosine":
        peer = optax.cosine_onecycle_schedule(n, 1.0, pct, div, final)
        ours = schedules.one_cycle(n, pct, div, final, dialect="optax")
    else:
        peer = optax.linear_onecycle_schedule(n, 1.0, pct, last, div, final)
        ours = schedules.one_cycle(
            n, pct, div, final, "linear", three_phase=True, pct_final=last, dialect="optax"
        )
    return Draw(peer, ours, past(n))


def optax_warmup(rng):
    w, n, a, b = length(rng, 1, 40), length(rng), rng.uniform(0, 0.5), ends(rng)[1]
    peer = optax.warmup_cosine_decay_schedule(a, 1.0, w, w + n, b)
    ours = schedules.warmup_cosine_decay(w + n, w, a, b, dialect="optax")
    return Draw(peer, ours, past(w + n))


def optax_restarts(rng):
    n, m, b, decay = length(rng, 1, 20), int(rng.integers(1, 4)), ends(rng)[1], rng.uniform(0.5, 1)
    cycles = int(rng.integers(1, 5))
    each = [
        {
            "init_value": 0.0,
            "peak_value": b + (1 - b) * decay**k,
            "warmup_steps": 0,
            "decay_steps": n * m**k,
            "end_value": b,
        }
        for k in range(cycles)
    ]
    ours = schedules.cosine_restarts(n, m, end=b, decay=decay, cycles=cycles, dialect="optax")
    return Draw(optax.sgdr_schedule(each), ours, past(sum(n * m**k for k in range(cycles))))


p = functools.partial
CROSSES = "past its end the line goes through zero"
ROWS = (
    Row("linear", "torch", "LinearLR", torch_linear),
    Row("warmup_linear", "torch", "LinearLR", torch_linear_default),
    Row("warmup_constant", "torch", "ConstantLR", torch_constant),
    Row("step", "torch", "StepLR", torch_step),
    Row("multi_step", "torch", "MultiStepLR", torch_multi_step),
    Row("exponential", "torch", "ExponentialLR", torch_exponential),
    Row("polynomial", "torch", "PolynomialLR", torch_polynomial),
    Row("cosine", "torch", "CosineAnnealingLR", torch_cosine),
    Row("cosine_restarts", "torch", "CosineAnnealingWarmRestarts", torch_restarts),
    Row("triangular", "torch", "CyclicLR", p(torch_cyclic, "triangular")),
    Row("triangular2", "torch", "CyclicLR", p(torch_cyclic, "triangular2")),
    Row("exp_range", "torch", "CyclicLR", p(torch_cyclic, "exp_range")),
    Row("triangular_momentum", "torch", "CyclicLR", torch_cyclic_momentum, "momentum"),
    Row("one_cycle, cosine", "torch", "OneCycleLR", p(torch_one_cycle, "cosine", False)),
    Row(
        "one_cycle, linear",
        "torch",
        "OneCycleLR",
        p(torch_one_cycle, "linear", False),
        floor=1e-2,
        why=CROSSES,
    ),
    Row("one_cycle, cosine, 3 phases", "torch", "OneCycleLR", p(torch_one_cycle, "cosine", True)),
    Row(
        "one_cycle, linear, 3 phases",
        "torch",
        "OneCycleLR",
        p(torch_one_cycle, "linear", True),
        floor=1e-2,
        why=CROSSES,
    ),
    Row(
        "one_cycle_momentum",
        "torch",
        "OneCycleLR",
        p(torch_one_cycle, "cosine", False, momentum=True),
        "momentum",
    ),
    Row(
        "one_cycle_momentum, 3 phases",
        "torch",
        "OneCycleLR",
        p(torch_one_cycle, "linear", True, momentum=True),
        "momentum",
    ),
    Row("warmup_cosine_decay", "torch", "SequentialLR", torch_sequential),
    Row("piecewise", "keras", "PiecewiseConstantDecay", keras_piecewise),
    Row("polynomial", "keras", "PolynomialDecay", p(keras_polynomial, False)),
    Row("polynomial, cycle", "keras", "PolynomialDecay", p(keras_polynomial, True)),
    Row("inverse_time", "keras", "InverseTimeDecay", p(keras_inverse_time, False)),
    Row("inverse_time, staircase", "keras", "InverseTimeDecay", p(keras_inverse_time, True)),
    Row("exponential", "keras", "ExponentialDecay", p(keras_exponential, False)),
    Row("exponential, staircase", "keras", "ExponentialDecay", p(keras_exponential, True)),
    Row("cosine", "keras", "CosineDecay", keras_cosine),
    Row("warmup_cosine_decay", "keras", "CosineDecay", keras_warmup),
    Row("cosine_restarts", "keras", "CosineDecayRestarts", p(keras_restarts, False)),
    Row("cosine_restarts, fractional", "keras", "CosineDecayRestarts", p(keras_restarts, True)),
    Row("linear", "optax", "linear_schedule", optax_linear),
    Row("polynomial", "optax", "polynomial_schedule", optax_polynomial),
    Row("cosine", "optax", "cosine_decay_schedule", optax_cosine),
    Row("exponential", "optax", "exponential_decay", p(optax_exponential, False)),
    Row("exponential, staircase", "optax", "exponential_decay", p(optax_exponential, True)),
    Row("piecewise", "optax", "piecewise_constant_schedule", optax_piecewise),
    Row("one_cycle, cosine", "optax", "cosine_onecycle_schedule", p(optax_one_cycle, "cosine")),
    Row(
        "one_cycle, linear, 3 phases",
        "optax",
        "linear_onecycle_schedule",
        p(optax_one_cycle, "linear"),
    ),
    Row("warmup_cosine_decay", "optax", "warmup_cosine_decay_schedule", optax_warmup),
    Row("cosine_restarts", "optax", "sgdr_schedule", optax_restarts),
)


def drawn(i):
    """The draws of row i: the same at every run."""
    rng = np.random.default_rng([2026, i])
    return [ROWS[i].draw(rng) for _ in range(DRAWS)]


@pytest.fixture(scope="module")
def peers():
    """Every value of PyTorch and Keras, from one start of their interpreter."""
    python = os.environ.get("LRLAB_PARITY_PYTHON")
    if not python:
        pytest.skip("LRLAB_PARITY_PYTHON names no interpreter with torch and keras")
    jobs, places = {"torch": [], "keras": []}, {}
    for i, row in enumerate(ROWS):
        if row.library in jobs:
            places[i] = len(jobs[row.library])
            jobs[row.library] += [
                {"kind": row.peer, "args": d.peer, "updates": d.updates} for d in drawn(i)
            ]
    script = ROOT / "tests" / "parity_reference.py"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [python, str(script)], input=json.dumps(jobs), capture_output=True, text=True, env=clean
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    values = {
        i: [r[ROWS[i].value] for r in result[ROWS[i].library][first : first + DRAWS]]
        for i, first in places.items()
    }
    return values, result["versions"]


@pytest.fixture(scope="module")
def found():
    """Rows, also those out of tolerance; written at the end when asked."""
    rows, versions = [], {"jax": jax.__version__, "optax": optax.__version__}
    yield rows, versions
    if os.environ.get("LRLAB_WRITE_PARITY") == "1":
        record = {
            "what": "schedules",
            "measure": "largest |ours - theirs| / |theirs| over all updates of all draws",
            "date": datetime.date.today().isoformat(),
            "python": sys.version.split()[0],
            "versions": versions,
            "rows": rows,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


def optax_values(draw, updates):
    """Optax in float64, so that the difference is our rounding and not its own."""
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(draw.peer)(np.arange(updates)))


def name(i):
    row = ROWS[i]
    return f"{row.library}-{row.peer}-{row.family}".replace(" ", "_").replace(",", "")


@pytest.mark.parametrize("i", range(len(ROWS)), ids=name)
def test_our_dialect_is_the_library_to_the_update(i, found, request):
    row, draws, (rows, versions) = ROWS[i], drawn(i), found
    longest = max(d.updates for d in draws)  # of one shape, so that nothing compiles twice
    if row.library == "optax":
        theirs = [optax_values(d, longest) for d in draws]
    else:
        values, more = request.getfixturevalue("peers")
        theirs = values[i]
        versions.update(more)
    largest, updates, missed, worst = 0.0, 0, 0, None
    for draw, expected in zip(draws, theirs, strict=True):
        expected = np.asarray(expected, np.float64)[: draw.updates]
        ours = np.asarray(draw.ours(np.arange(longest)), np.float64)[: draw.updates]
        relative = np.abs(ours - expected) / np.maximum(np.abs(expected), row.floor)
        theirs_wrong = [t for t in draw.wrong if t < draw.updates and relative[t] > TOLERANCE]
        assert all(ours[t] > ours[t - 1] for t in theirs_wrong), draw.peer
        missed, relative[theirs_wrong] = missed + len(theirs_wrong), 0
        updates += draw.updates
        if relative.max() > largest:
            largest, worst = float(relative.max()), (draw.peer, int(relative.argmax()))
    rows.append(
        {
            "ours": row.family,
            "library": row.library,
            "theirs": row.peer,
            "draws": len(draws),
            "values": updates,
            "largest": largest,
            "tolerance": TOLERANCE,
            "floor": row.floor,
            "why": f"{missed} restarts that they miss by a logarithm" if missed else row.why,
        }
    )
    assert largest <= TOLERANCE, worst  # after it is recorded: the page counts it
