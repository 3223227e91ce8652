"""Rules against Optax, torch and Keras on random draws: parameters, gradients, rates, settings.

torch and Keras run in LRLAB_PARITY_PYTHON, an interpreter that has them, in float64. With
LRLAB_WRITE_PARITY=1 the largest differences go to experiments/results/parity_rules.json.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import ROOT

from lrlab import optimizers

DRAWS, UPDATES, WEIGHTS = 50, 25, 6
RECORD = ROOT / "experiments" / "results" / "parity_rules.json"
pytestmark = pytest.mark.slow


def uniform(low, high):
    return lambda rng: rng.uniform(low, high)


def log(low, high):
    return lambda rng: 10.0 ** rng.uniform(np.log10(low), np.log10(high))


MEANS = {"b1": uniform(0.5, 0.99), "b2": uniform(0.9, 0.999)}
# rule -> (spec, what is drawn, rates); the dialect is the library's
RULES = {
    "sgd": ({"name": "sgd"}, {}, (1e-3, 0.3)),
    "momentum": ({"name": "momentum"}, {"decay": uniform(0, 0.99)}, (1e-3, 0.1)),
    "nesterov": ({"name": "nesterov"}, {"decay": uniform(0, 0.99)}, (1e-3, 0.1)),
    "adagrad": (
        {"name": "adagrad", "initial_accumulator_value": 0.25},
        {"eps": log(1e-10, 1e-2)},
        (1e-3, 0.3),
    ),
    "adadelta": (
        {"name": "adadelta"},
        {"rho": uniform(0.5, 0.99), "eps": log(1e-8, 1e-2)},
        (0.1, 10),
    ),
    "rmsprop": (
        {"name": "rmsprop", "momentum": 0.5},
        {"decay": uniform(0.5, 0.99), "eps": log(1e-8, 1e-2), "momentum": uniform(0.1, 0.95)},
        (1e-4, 0.03),
    ),
    "rmsprop, centred": (
        {"name": "rmsprop", "centered": True},
        {"decay": uniform(0.5, 0.99), "eps": log(1e-4, 1e-2)},
        (1e-4, 0.03),
    ),
    "adam": ({"name": "adam"}, {**MEANS, "eps": log(1e-8, 1e-1)}, (1e-4, 0.03)),
    "adamw": (
        {"name": "adamw"},
        {**MEANS, "eps": log(1e-8, 1e-1), "weight_decay": log(1e-4, 1)},
        (1e-4, 0.03),
    ),
}
# Only torch has it; its first gradient enters the buffer whole.
DAMPED = (
    {"name": "momentum", "dampening": 0.5},
    {"decay": uniform(0, 0.99), "dampening": uniform(0.1, 0.9)},
    (1e-3, 0.1),
)
OPTAX = {  # rule -> its counterpart, made with the keywords drawn and a schedule of rates
    "sgd": lambda rate: optax.sgd(rate),
    "momentum": lambda rate, decay: optax.sgd(rate, decay),
    "nesterov": lambda rate, decay: optax.sgd(rate, decay, nesterov=True),
    "adagrad": optax.adagrad,
    "adadelta": optax.adadelta,
    "rmsprop": optax.rmsprop,
    "rmsprop, centred": lambda rate, **k: optax.rmsprop(rate, centered=True, **k),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "dadapt_adamw": lambda rate, b1, b2: optax.contrib.dadapt_adamw(rate, (b1, b2)),
    "prodigy": lambda rate, b1, b2: optax.contrib.prodigy(rate, (b1, b2)),
    "dog": lambda rate: optax.contrib.dog(rate),
    "dowg": lambda rate: optax.contrib.dowg(rate),
    "cocob": optax.contrib.cocob,
    "momo": optax.contrib.momo,
    "momo_adam": optax.contrib.momo_adam,
    "mechanic": lambda rate: optax.contrib.mechanize(optax.adam(rate)),
}
FREE = {
    "dadapt_adamw": ({"name": "dadapt_adamw"}, MEANS, (0.3, 3)),
    "prodigy": ({"name": "prodigy"}, MEANS, (0.3, 3)),
    "dog": ({"name": "dog"}, {}, (0.3, 3)),
    "dowg": ({"name": "dowg"}, {}, (0.3, 3)),
    "cocob": ({"name": "cocob"}, {"alpha": uniform(10, 200)}, (0.3, 3)),
    "momo": ({"name": "momo"}, {"beta": uniform(0.1, 0.95)}, (0.01, 1)),
    "momo_adam": ({"name": "momo_adam"}, MEANS, (1e-3, 0.1)),
    "mechanic": ({"name": "mechanic"}, {}, (0.3, 3)),
}
TOLERANCE = 1e-6  # of a draw's largest weight, in float32
EXACT = 1e-9  # in float64, where only the formulas are compared


def draw(rule, entry):
    """Reproducible draws; every number is one of float32, so that both sides start alike."""
    _, keywords, (low, high) = entry
    rng = np.random.default_rng([len(rule), *map(ord, rule)])
    draws = []
    for _ in range(DRAWS):
        scale = 10.0 ** rng.uniform(-2, 1)
        numbers = {
            "params": rng.normal(size=WEIGHTS),
            "gradients": scale * rng.normal(size=(UPDATES, WEIGHTS)),
            # a rate that changes at every update shows where it multiplies
            "rates": log(low, high)(rng) * rng.uniform(0.1, 1, UPDATES),
            "losses": rng.uniform(0, 3, UPDATES),
        }
        numbers = {k: np.float32(v).astype(float).tolist() for k, v in numbers.items()}
        drawn = {k: float(np.float32(f(rng))) for k, f in keywords.items()}
        draws.append({**numbers, "keywords": drawn})
    return draws


def walk(tx_at, draws, dtype):
    """Parameters after every update, [draws, updates, weights]; every draw in one program."""
    columns = {
        k: jnp.asarray([d[k] for d in draws], dtype)
        for k in ("params", "gradients", "rates", "losses")
    }
    names = draws[0]["keywords"]
    keywords = {k: jnp.asarray([d["keywords"][k] for d in draws], dtype) for k in names}

    def one(column, keywords):
        state = tx_at(column["rates"], None, keywords).init(column["params"])

        def update(carry, t):
            params, state = carry
            tx = optax.with_extra_args_support(tx_at(column["rates"], t, keywords))
            gradient, loss = column["gradients"][t], column["losses"][t]
            updates, state = tx.update(gradient, state, params, value=loss)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(update, (column["params"], state), jnp.arange(UPDATES))[1]

    return np.asarray(jax.jit(jax.vmap(one))(columns, keywords))


def ours(spec):
    """lrlab's chain, built in every update with its floats traced."""
    make_tx = optimizers.make(spec)

    def tx_at(rates, t, keywords):
        return make_tx(1.0) if t is None else make_tx(rates[t], keywords)

    return tx_at


def distance(mine, theirs):
    """The largest difference of a draw, of its largest weight; the worst draw's."""
    mine, theirs = np.asarray(mine, float), np.asarray(theirs, float)
    assert mine.shape == theirs.shape == (DRAWS, UPDATES, WEIGHTS)
    off = np.abs(mine - theirs).max(axis=(1, 2)) / np.abs(theirs).max(axis=(1, 2))
    assert np.isfinite(off).all()
    return float(off.max())


def compare(rule, library, spec, draws, theirs, versions, singly=None):
    """Both precisions against `theirs`, and a row of the record.

    `theirs` is in float64; `singly`, if there is one, in float32, where rounding is theirs too.
    """
    mine = walk(ours(spec), draws, jnp.float32)
    single = distance(mine, theirs if singly is None else singly)
    with jax.enable_x64(True):
        double = distance(walk(ours(spec), draws, jnp.float64), theirs)
    if os.environ.get("LRLAB_WRITE_PARITY") == "1":
        row = {"what": rule, "library": library, "largest": single, "draws": len(draws)}
        row |= {"tolerance": TOLERANCE, "largest_float64": double, "updates": UPDATES}
        write(row | {"versions": {"jax": jax.__version__, "optax": optax.__version__} | versions})
    assert single <= TOLERANCE
    assert double <= EXACT


def write(row):
    """Adds a row to the record, or replaces that of the same rule and library."""
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
    rows = [r for r in rows if (r["what"], r["library"]) != (row["what"], row["library"])]
    rows = sorted([*rows, row], key=lambda r: (r["library"], r["what"]))
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")


@pytest.mark.parametrize("rule", OPTAX)
def test_a_rule_is_optax_s(rule):
    spec, keywords, rates = (RULES | FREE)[rule]
    draws = draw(rule, (spec, keywords, rates))

    def tx_at(rates, t, keywords):
        # Optax counts updates itself: another path than ours, which rebuilds the rule
        return OPTAX[rule](lambda count: rates[count], **fixed(spec), **keywords)

    singly = walk(tx_at, draws, jnp.float32)
    with jax.enable_x64(True):
        theirs = walk(tx_at, draws, jnp.float64)
    compare(rule, "optax", spec, draws, theirs, {}, singly)


def fixed(spec):
    """What cannot be drawn with the rest, since a state is made before any value is known."""
    return {k: v for k, v in spec.items() if k == "initial_accumulator_value"}


def peer(library, rule, draws, spec=None):
    """Traces and versions from the other interpreter, or a visible skip."""
    python = os.environ.get("LRLAB_PARITY_PYTHON")
    if not python:
        pytest.skip("LRLAB_PARITY_PYTHON names no interpreter with torch and Keras")
    script = ROOT / "tests" / "parity_rules_reference.py"
    kept = fixed(spec) if spec else {}
    draws = [{**d, "keywords": kept | d["keywords"]} for d in draws]
    request = json.dumps({"library": library, "rule": rule, "draws": draws})
    done = subprocess.run(
        [python, str(script)], input=request, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    return answer["traces"], answer["versions"]


@pytest.mark.parametrize("library", ["torch", "keras"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_in_a_library_s_dialect_is_that_library_s(rule, library):
    spec, keywords, rates = RULES[rule]
    if rule != "sgd":
        spec = {**spec, "dialect": library}
    draws = draw(rule, (spec, keywords, rates))
    theirs, versions = peer(library, rule, draws, spec)
    compare(rule, library, spec, draws, theirs, versions)


def test_damped_momentum_is_torch_s():
    spec = DAMPED[0]
    draws = draw("momentum, dampened", DAMPED)
    theirs, versions = peer("torch", "momentum", draws)
    compare("momentum, dampened", "torch", {**spec, "dialect": "torch"}, draws, theirs, versions)


def test_l2_in_the_chain_is_torch_s_weight_decay():
    drawn = {"decay": uniform(0, 0.99), "weight_decay": log(1e-4, 0.3)}
    draws = draw("momentum, L2", ({}, drawn, (1e-3, 0.1)))
    theirs, versions = peer("torch", "momentum", draws)
    for one in draws:  # the same number by our name
        one["keywords"]["l2"] = one["keywords"].pop("weight_decay")
    compare("momentum, L2", "torch", {"name": "momentum"}, draws, theirs, versions)


def test_decay_in_the_chain_is_keras_s():
    drawn = {"decay": uniform(0, 0.99), "weight_decay": log(1e-4, 0.3)}
    draws = draw("momentum, decay", ({}, drawn, (1e-3, 0.1)))
    theirs, versions = peer("keras", "momentum", draws)
    spec = {"name": "momentum", "dialect": "keras"}
    compare("momentum, decoupled decay", "keras", spec, draws, theirs, versions)


def test_the_interpreter_of_the_peers_is_not_ours():
    if python := os.environ.get("LRLAB_PARITY_PYTHON"):
        assert python != sys.executable
