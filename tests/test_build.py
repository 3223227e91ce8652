import ast
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, tiny

from lrlab import build, fields, values
from lrlab.resolve import ConfigError

MLP = {"name": "mlp.MLP", "widths": (16,)}
COSINE = {"name": "cosine", "start": 1.0, "end": 0.0}
WARM = {"name": "linear", "start": 0.0, "end": 1.0}

# faults.md's id, the change, and what the message must say; digits trains 9 updates an epoch at
# 128.
BAD = [
    ("B01", {"optim": {"lrr": 1}}, ["unknown field optim", "'optimizer'"]),
    ("B01", {"schedul": 1}, ["unknown field schedul", "'schedule'"]),
    ("B02", {"batch_size": 64}, ["batch_size=64", "batch.size"]),
    ("B02", {"learning_rate": 0.1}, ["learning_rate", "called lr"]),
    ("B02", {"dropout": 0.1}, ["belongs under model.dropout"]),
    ("B03", {"Lr-Multipliers": ()}, ["'lr_multipliers'"]),
    ("B04", {"lr": "abc"}, ["lr='abc'", "number", "text"]),
    ("B04", {"epochs": 1.5}, ["epochs=1.5", "whole number"]),
    ("B04", {"epochs": True}, ["epochs=True", "whole number"]),
    ("B04", {"schedule": "cosine"}, ["schedule='cosine'", "tuple of phases"]),
    ("B04", {"model": "mlp.MLP"}, ["model='mlp.MLP'", "section"]),
    (
        "B09",
        {"schedule": ({**WARM, "updates": 3, "epochs": 1}, COSINE)},
        ["schedule[0]", "updates=3 and epochs=1"],
    ),
    ("B10", {"lr": -0.1}, ["lr=-0.1", "above 0"]),
    ("B11", {"lr": 0}, ["lr=0", "above 0"]),
    ("B11", {"lr": float("nan")}, ["lr=nan", "finite"]),
    ("B11", {"lr": float("inf")}, ["lr=inf", "finite"]),
    ("B11", {"lr": 1e20}, ["lr=1e+20", "1e+06"]),
    (
        "B13",
        {"schedule": ({**WARM, "epochs": 3}, COSINE)},
        ["27 updates (3 epochs)", "18 updates (2 epochs)"],
    ),
    (
        "B13",
        {"schedule": ({**WARM, "epochs": 2}, COSINE)},
        ["18 updates (2 epochs)", "never begin"],
    ),
    ("B14", {"schedule": ({**WARM, "updates": -1}, COSINE)}, ["schedule[0]", "updates=-1"]),
    ("B14", {"schedule": ({**WARM, "updates": 0}, COSINE)}, ["schedule[0] is 0 updates long"]),
    (
        "B17",
        {"schedule": ({"name": "step", "factor": 1.5, "every": 3},)},
        ["factor in (0, 1), got 1.5"],
    ),
    (
        "B17",
        {"schedule": ({"name": "step", "factor": 0.1, "every": {"epochs": 0}},)},
        ["every >= 1"],
    ),
    ("B20", {"schedule": ({**COSINE, "name": "polynomial", "power": 0},)}, ["power > 0, got 0"]),
    ("B20", {"schedule": ({**COSINE, "end": -0.1},)}, ["end >= 0, got -0.1"]),
    (
        "B21",
        {"schedule": ({**COSINE, "name": "consine"},)},
        ["'consine'", "did you mean 'cosine'", "known:"],
    ),
    ("B22", {"optimizer": {"name": "adm"}}, ["'adm'", "'adam'", "known:"]),
    ("B22", {"model": {"name": "mlp.MLPP"}}, ["'mlp.MLPP'", "'mlp.MLP'"]),
    ("B22", {"model": {"name": "nowhere.at.all:Model"}}, ["cannot import 'nowhere.at.all'"]),
    ("B22", {"data": {"name": "digit"}}, ["'digit'", "'digits'"]),
    ("B22", {"batch": {"name": "fixd", "size": 8}}, ["'fixd'", "'fixed'"]),
    (
        "B23",
        {"schedule": ({**COSINE, "power": 2},)},
        ["schedule[0].power=2", "cosine does not take it"],
    ),
    (
        "B23",
        {"optimizer": {"name": "sgd", "decay": 0.9}},
        ["optimizer.decay=0.9", "sgd does not take it"],
    ),
    ("B23", {"model": {**MLP, "widht": 3}}, ["model.widht=3", "'widths'"]),
    ("B24", {"epochs": 0}, ["epochs=0", "[1, inf)"]),
    ("B24", {"epochs": -3}, ["epochs=-3"]),
    ("B24", {"epochs": None}, ["epochs is missing"]),
    ("B24", {"total_steps": 100}, ["total_steps", "epochs"]),
    ("B25", {"batch": {"name": "fixed", "size": 5000}}, ["batch.size=5000", "training examples"]),
    ("B27", {"batch": {"name": "fixed", "size": 0}}, ["batch.size=0", ">= 1"]),
    (
        "B27",
        {"batch": {"name": "fixed", "size": 127}},
        ["batch.size=127", "2 devices", "126 or 128"],
    ),
    ("B27", {"batch": {"name": "fixed", "size": 128, "micro": 3}}, ["micro=3", "126 or 129"]),
    ("B31", {"batch": {"name": "fixed", "size": 128, "micro": 0}}, ["batch.micro=0", ">= 1"]),
    ("B32", {"seed": -1}, ["seed=-1", "[0, 4.29497e+09]"]),
    ("B32", {"seed": 2**32}, ["seed=4294967296"]),
    ("B32", {"seed": 0.5}, ["seed=0.5", "whole number"]),
    ("B38", {"model": {**MLP, "num_classes": 7}}, ["num_classes=7", "10 classes"]),
    (
        "B41",
        {"lr_multipliers": (("nothing.*", 2.0), (".*", 1.0))},
        ["'nothing.*' applies to none of 4 leaves"],
    ),
    ("B41", {"lr_multipliers": (("Dense_0/.*", 2.0),)}, ["matches no rule", "Dense_1/bias"]),
    ("B53", {"optimizer": {"name": "adam", "b1": 1.0}}, ["b1 in [0, 1), got 1.0"]),
    ("B53", {"optimizer": {"name": "adam", "eps": 0}}, ["eps in (0, 1), got 0"]),
    ("B53", {"weight_decay": -1e-4}, ["weight_decay=-0.0001", "[0, inf)"]),
    ("B53", {"clip_norm": 0}, ["clip_norm=0", "(0, inf)"]),
    (
        "B54",
        {"optimizer": {"name": "momentum", "nesterov": {"schedule": (COSINE,)}}},
        ["nesterov cannot be scheduled", "decay"],
    ),
    (
        "B54",
        {"optimizer": {"name": "adam", "b1": {"schedule": (WARM, COSINE)}}},
        ["optimizer.b1.schedule[0] has no length"],
    ),
    ("B41", {"lr_multipliers": ((".*", 0.0),)}, ["freezes all 4 leaves"]),
    (
        "B41",
        {"no_decay": (".*/scales",), "weight_decay": 0.1},
        ["'.*/scales' matches none of 4 leaves"],
    ),
    ("-", {"label_smoothing": 1.5}, ["label_smoothing=1.5", "[0, 1]"]),
    ("-", {"nonfinite": {"policy": "ignore"}}, ["nonfinite.policy='ignore'", "stop"]),
    ("-", {"checkpoint": {"keep": 0}}, ["checkpoint.keep=0"]),
    ("-", {"placement": "gpu"}, ["placement='gpu'", "resident"]),
    ("-", {"schedule": ()}, ["schedule=()", "tuple of phases"]),
    ("-", {"schedule": (WARM, COSINE)}, ["schedule[0] has no length"]),
]


@pytest.mark.parametrize(
    ("row", "change", "says"), BAD, ids=[f"{i}-{b[0]}" for i, b in enumerate(BAD)]
)
def test_a_bad_config_is_refused_with_what_is_wrong(row, change, says):
    with pytest.raises(ConfigError) as e:
        build.check(tiny(**change))
    for text in says:
        assert text in str(e.value)
    assert len(e.value.problems) == 1, "one slip is one problem"


def test_every_problem_is_told_in_one_pass():
    with pytest.raises(ConfigError) as e:
        build.check(
            tiny(
                epochs=0,
                lr=-1,
                optimizer={"name": "adm"},
                model={"name": "mlp.MLP", "widht": 1},
                batch={"name": "fixed", "size": 0},
                schedule=({"name": "consine"}, {"name": "step", "factor": 2, "every": 1}),
                colour="red",
            )
        )
    wanted = (
        "epochs",
        "lr",
        "optimizer.name",
        "model.widht",
        "batch.size",
        "consine",
        "factor",
        "colour",
    )
    for word in wanted:
        assert sum(word in p for p in e.value.problems) >= 1, word
    assert len(e.value.problems) <= len(wanted) + 1


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("1", 1),
        ("1e3", 1000.0),
        ("1_000", 1000),
        ("3e-4", 3e-4),
        ("None", None),
        ("true", True),
        ("adam", "adam"),
    ],
)
def test_an_override_is_read_as_what_it_looks_like(change, value):
    assert values.parse(change) == value


def test_whole_floats_and_ints_pass_where_they_lose_nothing():
    recipe = build.check(tiny(epochs=2.0, lr=1, seed=3.0))
    assert recipe.total == 18


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"lr": 1e-9, "optimizer": {"name": "sgd"}},
            "lr=1e-09 is unusual for sgd: rates from 1e-05 to 10",
        ),
        ({"lr": 10.0, "optimizer": {"name": "adam"}}, "lr=10.0 is unusual for adam"),
        (
            {"schedule": ({**COSINE, "updates": 7},)},
            "ends after 7 updates (0.777778 epochs) of 18 updates (2 epochs), 39%",
        ),
        (
            {"schedule": ({**COSINE, "epochs": 9},)},
            "longer than the run, 81 updates (9 epochs) of 18 updates (2 epochs)",
        ),
    ],
)
def test_a_suspicious_config_runs_with_a_warning(change, says):
    (warning,) = build.check(tiny(**change)).warnings
    assert says in warning


def test_durations_in_every_unit_mean_the_same_updates():
    lengths = []
    for unit, n in (("updates", 9), ("epochs", 1), ("examples", 9 * 128), ("fraction", 0.5)):
        recipe = build.check(tiny(schedule=({**WARM, unit: n}, COSINE)))
        lengths.append([(p.first, p.length) for p in recipe.phases])
    assert lengths == [[(0, 9), (9, 9)]] * 4


def test_the_planned_rates_are_phases_times_the_peak():
    recipe = build.check(tiny(lr=0.5, schedule=({**WARM, "updates": 2}, COSINE)))
    t = np.arange(18)
    exact = 0.5 * np.where(t < 2, t / 2, (1 + np.cos(np.pi * (t - 2) / 16)) / 2)
    np.testing.assert_allclose(recipe.rates(), exact, atol=1e-7)


def test_a_model_that_cannot_take_the_data_is_refused_before_data_is_read():
    with pytest.raises(ConfigError, match="model cannot take digits's features of 8x8x1"):
        build.check(
            tiny(model={"name": "flax.linen:Conv", "features": 10, "kernel_size": (3, 3, 3, 3)})
        )


def test_changing_a_name_drops_what_belonged_to_the_old_one_and_says_so():
    config = {"optimizer": {"name": "momentum", "decay": 0.9, "nesterov": True}, "lr": 0.1}
    problems, notes = values.override(
        config, [("optimizer.name", "adam"), ("optimizer.b1", "0.8"), ("lr", "1e-3")]
    )
    assert (problems, config) == ([], {"optimizer": {"name": "adam", "b1": 0.8}, "lr": 1e-3})
    assert "decay=0.9, nesterov=True went with momentum" in notes[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("lr", "(" * 1000), "1000 deep"),
        (("lr", "9" * 200_000), "200,000 characters"),
        (("schedule", "({'name': cosine},)"), "names need quotes"),
        (("lr.peak", "0.1"), "lr is 0.1, not a section"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(change, says):
    problems, _ = values.override({"lr": 0.1}, [change])
    assert says in problems[0]


def test_a_second_override_of_a_field_is_told():
    config = {"lr": 0.1}
    _, notes = values.override(config, [("lr", "1"), ("lr", "2")])
    assert config["lr"] == 2
    assert "'1' and '2'" in notes[0]


def test_names_of_a_stored_run_resolve_only_inside_trusted_packages():
    from lrlab import resolve

    assert resolve.find("lrlab.models", "optax:sgd", trusted=False)
    with pytest.raises(ConfigError, match="not imported"):
        resolve.find("lrlab.models", "os:system", trusted=False)


def test_refusing_takes_two_seconds_at_most(tmp_path):
    command = [sys.executable, "-m", "lrlab.main", "--config=configs/digits.py", "--config.lr=-1"]
    times = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        times.append(time.monotonic() - began)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert min(times) < 4, times  # 2 s on a quiet machine; twice that where tests share two cores


@pytest.mark.slow
def test_random_slips_never_crash_and_are_never_ignored():
    """faults.md B59, by sampling: a mutated config is refused, or every key of it was used."""
    rng = np.random.default_rng(20261121)
    junk = [-1, 0, 0.5, 1e30, float("nan"), "x", None, (), {}, True, ["a"], {"name": 3}]
    source = (ROOT / "configs" / "digits.py").read_text()
    assert ast.parse(source)
    refused = 0
    for _ in range(300):
        config = tiny()
        key = str(rng.choice([*config, *fields.DEFAULTS, "l r", "LR", "schedule_"]))
        value = junk[rng.integers(len(junk))]
        if isinstance(config.get(key), dict) and rng.random() < 0.5:
            inner = str(rng.choice([*config[key], "siz", "Name"]))
            config[key] = {**config[key], inner: value}
        else:
            config[key] = value
        try:
            recipe = build.check(config)
            assert set(recipe.config) <= {*fields.DEFAULTS, *fields.REQUIRED}
        except ConfigError:
            refused += 1
    assert 150 < refused < 300
