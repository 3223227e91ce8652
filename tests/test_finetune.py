"""Fine-tuning: phases, their groups and rates; features once; the recipe, resumed anywhere."""

import itertools

import numpy as np
import pytest
from conftest import tiny

import lrlab
from lrlab import build, features, loop, main, records, thawing
from lrlab.checkpoint import read
from lrlab.jobs import finetune, train
from lrlab.jobs._start import Options
from lrlab.resolve import ConfigError

LOW, HIGH = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
DEEP = {"name": "mlp.MLP", "widths": (32, 16), "dropout": 0.1}
GROUPS = ("Dense_0/.*", "Dense_1/.*", "Dense_2/.*")
OPTIONS = Options("test.py", "python -m lrlab.main")


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """A network that learnt the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("low") / "run"
    data = {"name": "digits", "classes": LOW}
    train.run(
        tiny(model=DEEP, data=data, epochs=6, batch={"size": 32, "name": "fixed"}), folder, OPTIONS
    )
    return folder


def config(low, phases, **changes):
    return tiny(
        job={"name": "finetune"},
        model=DEEP,
        data={"name": "digits", "classes": HIGH},
        batch={"name": "fixed", "size": 32},
        start={"run": str(low), "fresh": ("Dense_2/.*",)},
        finetune={"phases": phases},
        **changes,
    )


def weights(folder):
    _, arrays = read(folder / "checkpoints")
    return {k: v for k, v in arrays.items() if k.startswith("params/")}


def test_each_phase_begins_where_the_last_one_ended_and_moves_what_it_trains(tmp_path, low):
    phases = (
        {"name": "head", "train": 1, "epochs": 1},
        {"name": "last two", "train": 2, "epochs": 1, "factor": 4.0, "lr": 0.05},
        {"name": "all", "train": 3, "epochs": 2, "factor": 4.0, "optimizer_state": "keep"},
    )
    finetune.run(config(low, phases), tmp_path, OPTIONS)
    found = [weights(low), *(weights(tmp_path / n) for n in ("1_head", "2_last_two", "3_all"))]
    for k, (before, after) in enumerate(itertools.pairwise(found), 1):
        moved = {name.split("/")[1] for name in before
                 if before[name].shape != after[name].shape
                 or not np.array_equal(before[name], after[name])}  # fmt: skip
        assert moved == {f"Dense_{i}" for i in range(3 - k, 3)}, k
    rows = records.read_json(tmp_path / "summary.json")["phases"]
    assert [r["lr"] for r in rows] == [0.1, 0.05, 0.1]
    assert [r["trained_weights"] for r in rows] == [85, 85 + 528, 85 + 528 + 2080]
    assert rows[1]["rules"] == [["Dense_1/.*", 0.25], ["Dense_2/.*", 1.0], [".*", 0.0]]
    assert [m for _, m in rows[2]["rules"]] == [1 / 16, 1 / 4, 1]
    assert rows[-1]["test_accuracy"] > rows[0]["test_accuracy"] + 0.1
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3 * 3, "loss, accuracy and rate of each phase"
    assert "3 all" in page
    assert "frozen" in page


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [("Dense_2/.*",), ()])
def test_a_head_on_features_is_the_head_on_the_network(tmp_path, low, fresh):
    plain = {**DEEP, "dropout": 0.0}
    found = {}
    for precompute in True, False:
        phases = (
            {"name": "head", "train": 1, "epochs": 3, "precompute": precompute},
            {"name": "still", "train": 1, "epochs": 1, "lr": 1e-30},
        )
        told = {**config(low, phases), "model": plain}
        told["start"] = {"run": str(low), "fresh": fresh}
        folder = tmp_path / str(precompute)
        finetune.run(told, folder, OPTIONS)
        found[precompute] = weights(folder / "2_still"), records.read(folder / "1_head")
    (fast, features_record), (slow, images_record) = found[True], found[False]
    sizes = [r.environment["model"]["parameters"] for r in (features_record, images_record)]
    assert sizes == [85, 85 + 528 + 2080]
    for name in slow:
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-3, atol=1e-4, err_msg=name)
    losses = ([row["val_loss"] for row in r.rows] for r in (features_record, images_record))
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_features_are_what_the_layers_below_compute(low):
    recipe = build.check({**config(low, ()), "job": {"name": "train"}, "finetune": None})
    data, state = recipe.read(), recipe.init()
    found = features.below(recipe, "Dense_2", state.params, state.stats, data)
    w = weights(low)
    x = ((np.asarray(data.train.x, np.float64) - data.shift) * data.scale).reshape(
        len(data.train), -1
    )
    for layer in "Dense_0", "Dense_1":
        x = np.maximum(x @ w[f"params/{layer}/kernel"] + w[f"params/{layer}/bias"], 0)
    np.testing.assert_allclose(found["train"], x, atol=1e-4)
    assert [found[k].shape for k in ("validation", "test")] == [
        (len(data.validation), 16), (len(data.test), 16)
    ]  # fmt: skip


@pytest.mark.slow
def test_the_eight_steps_resumed_in_every_phase_are_those_not_stopped(tmp_path, low, monkeypatch):
    phases = {"name": "eight_steps", "head": 1, "augmented": 2, "cycles": 2}
    told = {**config(low, phases), "checkpoint": {"minutes": 0}}
    finetune.run(told, tmp_path / "whole", OPTIONS)
    stems = "1_head_on_features", "2_head", "3_all"
    whole = [records.read(tmp_path / "whole" / s) for s in stems]
    rows = records.read_json(tmp_path / "whole" / "summary.json")["phases"]
    assert [r["suggested"] is not None for r in rows] == [True, False, True]
    assert rows[1]["lr"] == rows[0]["lr"], "step 4 uses the rate that step 2 found"
    for phase in range(3):
        folder, real, left = tmp_path / str(phase), loop._train, [0]

        class KilledError(Exception):
            pass

        def killed(run, *more, left=left, real=real, error=KilledError, phase=phase, folder=folder):
            left[0] += run.writer.folder.name.startswith(f"{phase + 1}_")
            if left[0] > 1:
                raise error
            return real(run, *more)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_train", killed)
            patch.setattr(loop, "STRETCH", 0.0)
            with pytest.raises(KilledError):
                finetune.run(told, folder, OPTIONS)
        finetune.run(told, folder, OPTIONS)
        for stem, record in zip(stems, whole, strict=True):
            again = records.read(folder / stem)
            assert again.final["state_sha256"] == record.final["state_sha256"], (phase, stem)


def test_plans_of_thawing():
    gradual = thawing.gradual(GROUPS, epochs=1, last=5)
    assert [(p["train"], p["epochs"]) for p in gradual] == [(1, 1), (2, 1), (3, 5)]
    chain = thawing.chain_thaw(GROUPS)
    assert [p["train"] for p in chain] == [("Dense_2/.*",), ("Dense_0/.*",), ("Dense_1/.*",), 3]
    assert [p["train"] for p in thawing.last_layer(GROUPS, 2)] == [1]
    assert [p["train"] for p in thawing.all_at_once(GROUPS)] == [3]
    assert [p["epochs"] for p in thawing.eight_steps(GROUPS)] == [2, 3, 7]
    longer = thawing.eight_steps(GROUPS, head=4, augmented=6, cycle_len=2, patience=None)
    assert [p["epochs"] for p in longer] == [4, 6, 14]
    assert [p["schedule"][0].get("t_0") for p in longer] == [None, {"epochs": 2}, {"epochs": 2}]
    for bad in {"cycle_len": 0}, {"cycle_len": 2}:  # 3 epochs are no whole number of cycles of 2
        with pytest.raises(ValueError, match=f"cycle_len={bad['cycle_len']} must be 1 or more"):
            thawing.eight_steps(GROUPS, **bad)


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        (None, "finetune="),
        ((), "finetune.phases=() must be a tuple of phases"),
        ({"name": "gradul"}, "gradul"),
        (({"train": 4},), "train=4 must be how many of the 3 groups"),
        (({"train": ("Conv.*",)},), "'Conv.*' applies to none of 6 leaves"),
        (({"trian": 1},), "unknown field trian=1; did you mean 'train'"),
        (({"train": 1, "lr_multipliers": ((".*", 1.0),)},), "keep one"),
        (({"train": 2, "precompute": True},), "precompute trains the head 'Dense_2' alone"),
        (({"train": 1, "lr": "last"},), "needs a phase before it"),
        (({"train": 1, "begin": "worst"},), "begin='worst'"),
        (({"train": 1, "epochs": 0},), "epochs=0"),
        (({"train": 1, "lr": -1.0},), "lr=-1.0"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_before_anything_trains(tmp_path, low, phases, says):
    with pytest.raises(ConfigError) as caught:
        finetune.run(config(low, phases), tmp_path / "run", OPTIONS)
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_features_need_a_network_and_a_module(low):
    phases = ({"train": 1, "precompute": True},)
    with pytest.raises(ConfigError, match=r"set config\.start"):
        finetune.check({**config(low, phases), "start": None})
    recipe = build.check({**config(low, ()), "job": {"name": "train"}, "finetune": None})
    with pytest.raises(ConfigError, match="is no module of the model; modules: Dense_0"):
        features.check(recipe, "Dense_7")


def test_a_head_of_other_classes_must_be_asked_for(low):
    told = config(low, ({"train": 1},), seed=0)
    told["start"] = {"run": str(low)}
    told["data"] = {"name": "digits", "classes": (5, 6, 7)}
    with pytest.raises(ConfigError) as caught:
        finetune.check(told)
    assert "params/Dense_2/bias is [5] there, [3] here" in str(caught.value)
    assert "start.fresh" in str(caught.value)


def test_a_config_in_python_is_fine_tuned(tmp_path, low):
    told = config(low, {"name": "last_layer", "epochs": 1})
    rows = lrlab.finetune(told, tmp_path)
    assert [(r["name"], r["epochs"]) for r in rows] == [("head", 1)]
    assert lrlab.finetune(told, tmp_path) == rows, "what is finished is not trained again"


def test_the_recipes_config_runs_from_the_command_line(tmp_path, low, capsys):
    flags = (
        f"--config.start.run={low}",
        "--config.model={'name': 'mlp.MLP', 'widths': (32, 16), 'dropout': 0.1}",
        "--config.finetune.phases={'name': 'last_layer', 'epochs': 1}",
    )
    told = ["lrlab", "--config=configs/finetune_recipe.py", *flags, f"--workdir={tmp_path}/run"]
    assert main.main([*told, "--dry_run"]) == 0
    assert "phase 1" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main.main(told) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out


@pytest.mark.slow
def test_a_safetensors_file_is_a_start_as_the_run_that_it_was_made_from(tmp_path, low):
    numpy = pytest.importorskip("safetensors.numpy")
    there = {
        f"{layer}.{'weight' if leaf == 'kernel' else 'bias'}": np.ascontiguousarray(a.T)
        for _, layer, leaf, a in ((*name.split("/"), a) for name, a in weights(low).items())
    }
    numpy.save_file(there, tmp_path / "low.safetensors")
    phases = {"name": "gradual", "epochs": 1}
    ends = {}
    for name, spec in {
        "run": {"run": str(low), "fresh": ("Dense_2/.*",)},
        "file": {"file": str(tmp_path / "low.safetensors"), "fresh": ("Dense_2/.*",)},
    }.items():
        finetune.run({**config(low, phases), "start": spec}, tmp_path / name, OPTIONS)
        ends[name] = records.read(tmp_path / name / "3_all").final["state_sha256"]
    assert ends["run"] == ends["file"]
    for spec, says in (
        ({"file": str(tmp_path / "none.safetensors")}, "none.safetensors"),
        ({"file": str(tmp_path / "none.npz")}, "cannot be read"),
    ):
        with pytest.raises(ConfigError) as caught:
            finetune.check({**config(low, phases), "start": spec})
        assert says in str(caught.value)
