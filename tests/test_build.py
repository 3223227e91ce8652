import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, tiny

from lrlab import build, fields, main, records, resolve, values
from lrlab.data import DataError
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
        "B04",
        {"optimizer": {"name": "momentum", "nesterov": "no"}},
        ["optimizer.nesterov='no' must be True or False, got text"],
    ),
    ("B04", {"model": {**MLP, "widths": 256}}, ["model.widths=256", "a tuple, each item a whole"]),
    ("B04", {"model": {**MLP, "widths": ("a",)}}, ["model.widths=('a',)", "each item a whole"]),
    ("B04", {"model": {**MLP, "dropout": True}}, ["model.dropout=True", "number", "got bool"]),
    (
        "B04",
        {"batch": {"name": "plateau", "size": 128, "factor": "x"}},
        ["batch.factor='x' must be a number, got text"],
    ),
    ("B04", {"batch": {"name": "fixed", "size": None}}, ["batch.size=None", "whole", "got None"]),
    ("B04", {"optimizer": {"name": "adam", "b1": "x"}}, ["optimizer.b1='x' must be a number"]),
    ("B04", {"optimizer": {"name": "optax:adam", "b1": "x"}}, ["b1='x' must be a number"]),
    *(
        ("B04", {key: None}, [f"{key}=None: leave it out for its default"])
        for key in fields.DEFAULTS
        if fields.DEFAULTS[key] is not None
    ),
    ("B04", {"seed": 10**400}, ["seed is too large"]),
    ("B04", {"lr": 10**5000}, ["lr is too large"]),
    ("B04", {"model": {**MLP, "widths": (10**400,)}}, ["model.widths[0] is too large"]),
    ("B04", {"model": {**MLP, "dropout": len}}, ["model.dropout=", "no place in a record"]),
    ("B04", {"schedule": ({**COSINE, "end": np.float32},)}, ["schedule[0].end=", "in a record"]),
    ("B01", {"job": {"name": "train", "foo": 1}}, ["unknown field job.foo", "known: name"]),
    ("B04", {"job": 3}, ["job=3 must be a section"]),
    ("B03", {"schedule": ({**COSINE, "epohcs": 3},)}, ["epohcs=3", "did you mean 'epochs'"]),
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
    ("B22", {"model": {"name": ".foo:Bar"}}, ["'.foo:Bar' must be 'module:attribute'"]),
    ("B22", {"model": {"name": "builtins:int"}}, ["'builtins:int' gives int, not a Module"]),
    ("B22", {"data": {"name": "builtins:dict"}}, ["'builtins:dict' gives dict, not a Source"]),
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
    ("B24", {"epochs": 2**40}, ["epochs=1099511627776 are", "counts to 2,147,483,647"]),
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
    ("B41", {"lr_multipliers": (("[", 1.0),)}, ["lr_multipliers[0][0]: '['", "expression"]),
    ("B41", {"no_decay": ("(",)}, ["no_decay: '('", "regular expression"]),
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
        ("inf", float("inf")),
        ("-Infinity", -float("inf")),
    ],
)
def test_an_override_is_read_as_what_it_looks_like(change, value):
    assert values.parse(change) == value


def test_an_override_that_is_no_number_says_so():
    with pytest.raises(ConfigError, match="lr=nan must be finite"):
        build.check(tiny(lr=values.parse("nan")))


WHOLE = {"seed": 1e3, "epochs": 2e0, "eval_size": 1e2, "checkpoint": {"keep": 2.0}}


def test_whole_floats_and_ints_pass_where_they_lose_nothing():
    config = tiny(
        **WHOLE,
        lr=1,
        l2=0,
        batch={"name": "fixed", "size": 128.0},
        model={**MLP, "widths": (16.0,), "dropout": 0},
        optimizer={"name": "momentum", "decay": 0},
    )
    recipe = build.check(config)
    assert recipe.total == 18
    found = values.flat(recipe.config)
    for field in ("seed", "epochs", "eval_size", "checkpoint.keep", "batch.size"):
        assert type(found[field]) is int, field
    for field in ("lr", "l2", "model.dropout", "optimizer.decay"):
        assert type(found[field]) is float, field
    assert found["model.widths"] == (16,)
    assert recipe.eval_size() == 100
    recipe.init()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"lr": 1}, {"lr": 1.0}),
        ({"seed": 3}, {"seed": 3.0}),
        ({"batch": {"name": "fixed", "size": 64}}, {"batch": {"name": "fixed", "size": 64.0}}),
        ({"optimizer": {"name": "adam", "b1": 0}}, {"optimizer": {"name": "adam", "b1": 0.0}}),
        ({"lr_multipliers": ((".*", 1),)}, {"lr_multipliers": [[".*", 1.0]]}),
        ({"lr": np.float64(0.5)}, {"lr": 0.5}),
        ({"model": {**MLP, "widths": np.array([16, 8])}}, {"model": {**MLP, "widths": (16, 8)}}),
    ],
)
def test_two_ways_to_write_a_number_are_one_config(a, b):
    hashes = {records.config_hash(build.check(tiny(**c)).config) for c in (a, b)}
    assert len(hashes) == 1


def test_a_section_without_a_name_has_the_default_one():
    recipe = build.check(tiny(batch={"size": 32}))
    assert recipe.config["batch"] == {"name": "fixed", "size": 32}


def test_a_config_is_refused_for_itself_before_its_data_is_missed(tmp_path):
    data = {"name": "tfds.images", "dataset": "mnist", "data_dir": str(tmp_path)}
    with pytest.raises(DataError):
        build.check(tiny(data=data))
    with pytest.raises(ConfigError) as e:
        build.check(tiny(data=data, lr=-1, optimizer={"name": "adm"}))
    assert len(e.value.problems) == 2


NETS = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Good(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Pair(Good):
    def __call__(self, x, train=False):
        return super().__call__(x), x


class Empty(nn.Module):
    def __call__(self, x, train=False):
        return x.reshape(x.shape[0], -1)[:, :10]


class Noise(Good):
    def __call__(self, x, train=False):
        y = super().__call__(x)
        return y + jax.random.normal(self.make_rng("noise"), y.shape) if train else y


class Late(Good):
    @nn.compact
    def __call__(self, x, train=False):
        if train:
            self.variable("late", "n", lambda: jnp.zeros(())).value += 1
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Fails(Good):
    def __call__(self, x, train=False):
        y = super().__call__(x)
        return y.nonsense if train else y


class Grows(Good):
    @nn.compact
    def __call__(self, x, train=False):
        seen = self.variable("seen", "n", lambda: jnp.zeros(1))
        if train:
            seen.value = jnp.concatenate([seen.value, seen.value])
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Raises(Good):
    def __post_init__(self):
        super().__post_init__()
        {}["width"]
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A user's modules, of which one is sound."""
    (tmp_path / "their_nets.py").write_text(NETS)
    (tmp_path / "their_slip.py").write_text("class Net(:\n")
    (tmp_path / "their_crash.py").write_text("ready = True\n1 / 0\n")
    (tmp_path / "their_exit.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_users_model_is_taken(nets):
    assert build.check(tiny(model={"name": "their_nets:Good"})).parameters == 650


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("their_slip:Net", ["cannot import 'their_slip'", "their_slip.py:1:11: invalid syntax"]),
        ("their_crash:Net", ["cannot import", "ZeroDivisionError", "(their_crash.py, line 2)"]),
        ("their_exit:Net", ["cannot import", "SystemExit: 3 (their_exit.py, line 2)"]),
        ("their_nets:Nett", ["their_nets has no 'Nett'", "known: Empty"]),
        ("their_nets:Pair", ["outputs of type tuple", "10 classes"]),
        ("their_nets:Empty", ["no parameters"]),
        ("their_nets:Noise", ["train=True", "'dropout'", "noise", "(their_nets.py, line "]),
        ("their_nets:Late", ["train=True", "collections", "(none)", '"late"']),
        ("their_nets:Fails", ["train=True", "AttributeError", "nonsense", "(their_nets.py, line "]),
        ("their_nets:Grows", ["an update changes the form of its state"]),
        ("their_nets:NoTrain", ["__call__ takes no `train`"]),
        (
            "their_nets:Raises",
            ["model (their_nets:Raises): KeyError: 'width' (their_nets.py, line"],
        ),
    ],
)
def test_a_users_model_that_cannot_be_trained_is_one_clear_problem(nets, name, says):
    with pytest.raises(ConfigError) as e:
        build.check(tiny(model={"name": name}))
    (problem,) = e.value.problems
    for text in says:
        assert text in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("value", "wanted", "fitted"),
    [
        (1.0, int, 1),
        (1, float, 1.0),
        (1, int | float, 1),
        (1.0, int | float, 1.0),
        (None, float | None, None),
        ((1.0, 2), tuple[int, ...], (1, 2)),
        (("a", 2), tuple[str, float], ("a", 2.0)),
        ((0, 1.0), float | list[int], (0, 1)),
        ("x", object, "x"),  # not plain: it cannot be judged
        (1.5, np.ndarray, 1.5),
    ],
)
def test_a_value_is_made_what_an_annotation_wants_where_nothing_is_lost(value, wanted, fitted):
    found = values.fit(value, wanted)
    assert (repr(found), type(found)) == (repr(fitted), type(fitted))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, int),
        (1, bool),
        (1.5, int),
        (float("nan"), int),
        ("1", float),
        (None, int),
        ((), float),
        ({}, float),
        ("ab", tuple[str, ...]),
        ((1, 2, 3), tuple[int, int]),
        ((1, "a"), list[int] | None),
    ],
)
def test_a_value_of_another_type_does_not_fit(value, wanted):
    with pytest.raises(TypeError):
        values.fit(value, wanted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"lr": 1e-9, "optimizer": {"name": "sgd"}},
            "lr=1e-09 is unusual for sgd: rates from 1e-05 to 10",
        ),
        ({"lr": 10.0, "optimizer": {"name": "adam"}}, "lr=10.0 is unusual for adam"),
        ({"lr": 0.1, "optimizer": {"name": "optax:lion"}}, "rates from 1e-06 to 0.01"),
        ({"lr": 0.01, "optimizer": {"name": "prodigy"}}, "rates from 0.1 to 10"),
        (
            {"lr": 0.01, "weight_decay": 0.1, "optimizer": {"name": "adamw"}},
            "weight_decay=0.1 is applied on top of the decay that adamw has of its own",
        ),
        (
            {"lr": 0.001, "weight_decay": 0.1, "optimizer": {"name": "optax:lion"}},
            "optimizer.weight_decay: keep one",
        ),
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


@pytest.mark.parametrize(
    "optimizer", [{"name": "adamw", "weight_decay": 0.0}, {"name": "adam"}, {"name": "prodigy"}]
)
def test_one_weight_decay_is_nothing_to_warn_of(optimizer):
    lr = 1.0 if optimizer["name"] == "prodigy" else 0.01
    assert build.check(tiny(lr=lr, weight_decay=0.1, optimizer=optimizer)).warnings == ()


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
        build.check(tiny(model={"name": "cnn.SmallCNN"}))


def needs(section, name):
    """As the command line's."""
    return main._needs(section, name)


@pytest.mark.parametrize(
    ("changes", "section", "dropped"),
    [
        (
            [("optimizer.name", "adam"), ("optimizer.b1", "0.8")],
            {"name": "adam", "b1": 0.8},
            "optimizer: momentum became adam, and decay=0.9, nesterov=True went with momentum",
        ),
        (
            [("batch.name", "plateau"), ("batch.patience", "2")],
            {"name": "plateau", "size": 32, "patience": 2},
            "micro=2 went with fixed",
        ),
        ([("batch.name", "fixed")], {"name": "fixed", "size": 32, "micro": 2}, None),
        ([("batch.name", "fxed")], {"name": "fxed", "size": 32, "micro": 2}, None),
        ([("batch", "{'name': 'plateau'}")], {"name": "plateau"}, None),
    ],
)
def test_another_name_drops_what_belonged_to_the_old_one_and_says_so(changes, section, dropped):
    config = {
        "optimizer": {"name": "momentum", "decay": 0.9, "nesterov": True},
        "batch": {"name": "fixed", "size": 32, "micro": 2},
    }
    problems, notes = values.override(config, changes, needs)
    assert problems == []
    assert config[changes[0][0].partition(".")[0]] == section
    assert dropped in notes[0] if dropped else notes == []


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
    problems, _ = values.override({"lr": 0.1}, [change], needs)
    assert says in problems[0]


def test_a_second_override_of_a_field_is_told():
    config = {"lr": 0.1}
    _, notes = values.override(config, [("lr", "1"), ("lr", "2")], needs)
    assert config["lr"] == 2
    assert "'1' and '2'" in notes[0]


def test_names_of_a_stored_run_resolve_only_inside_trusted_packages():
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


JUNK = [-1, 0, 0.5, 1e30, 10**30, float("nan"), "x", None, (), {}, True, ["a"], {"name": 3}, len]


def mutated(rng, config):
    """A config with one slip, in a field, a section's key, or a key of a phase."""
    paths = [(key,) for key in (*config, *fields.DEFAULTS, "l r", "LR", "schedule_")]
    sections = {**fields.DEFAULTS, **config}
    for key, value in sections.items():
        if isinstance(value, dict):
            paths += [(key, inner) for inner in (*value, "siz", "Name")]
    paths += [("schedule", inner) for inner in ("name", "start", "end", "epohcs", "updates")]
    path, junk = paths[rng.integers(len(paths))], JUNK[rng.integers(len(JUNK))]
    if path[0] == "schedule" and len(path) == 2:
        return {**config, "schedule": ({**config["schedule"][0], path[1]: junk},)}
    if len(path) == 2:
        return {**config, path[0]: {**sections[path[0]], path[1]: junk}}
    return {**config, path[0]: junk}


@pytest.mark.slow
def test_random_slips_never_crash_and_are_never_ignored():
    """faults.md B59, by sampling: a mutated config is refused, or all of it was used and begins."""
    rng = np.random.default_rng(20261121)
    refused, tries = 0, 600
    for _ in range(tries):
        config = mutated(rng, tiny())
        try:
            recipe = build.check(config)
        except ConfigError as e:
            told = e.problems
        else:
            assert set(recipe.config) <= {*fields.DEFAULTS, *fields.REQUIRED}
            records.canonical(recipe.config)
            recipe.init()
            continue
        assert told, config
        assert all(told), config
        refused += 1
    assert tries / 2 < refused < tries
