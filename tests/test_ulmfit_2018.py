import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ulmfit_2018 as study
from lrlab import records
from lrlab.models import text
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]


@pytest.mark.parametrize("name", study.SIZES)
def test_groups_hold_every_parameter_once_from_the_input_to_the_head(name):
    size = study.SIZES[name]
    model = text.Classifier(num_classes=2, vocabulary=300, **size.model)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8)))["params"]
    paths = ["/".join(str(k.key) for k in path) for path, _ in jax.tree.leaves_with_path(params)]
    groups = study.groups(size)
    hits = [[i for i, g in enumerate(groups) if re.fullmatch(g, path)] for path in paths]
    assert all(len(h) == 1 for h in hits)
    assert {h[0] for h in hits} == set(range(size.model["depth"] + 2))
    assert groups[0].startswith("Embedding")
    assert "Head" in groups[-1]
    order = [int(re.findall(r"\d+", g)[0]) for g in groups[1:-1]]
    assert order == list(range(size.model["depth"]))


@pytest.mark.parametrize("way", study.WAYS)
@pytest.mark.parametrize("name", study.SIZES)
def test_every_way_has_the_same_epochs_and_the_papers_phases(name, way):
    size, told = study.SIZES[name], study.WAYS[way]
    for target in size.targets.values():
        phases = study.phases(size, told, target.epochs)
        assert sum(p["epochs"] for p in phases) == target.epochs
        trained = [p["train"] for p in phases]
        n = size.model["depth"] + 2
        if told.plan == "gradual":
            assert trained == list(range(1, n + 1))
        elif told.plan == "chain_thaw":
            assert len(trained) == n + 1
            assert trained[-1] == n
        else:
            assert trained == [1 if told.plan == "last_layer" else n]
        wanted = "slanted_triangular" if "stlr" in way or told.begins != "target" else "constant"
        assert {p["schedule"][0]["name"] for p in phases} == {wanted}
        falls = "discr" in way or told.begins == "wikitext2"
        assert {p["factor"] for p in phases} == {2.6 if falls else 1.0}


def test_a_plan_longer_than_the_epochs_is_refused():
    with pytest.raises(ValueError, match="chain_thaw takes 6 phases, more than 5 epochs"):
        study.phases(study.SIZES["desk"], study.WAYS["chain-thaw"], 5)


def test_only_training_from_scratch_begins_with_fresh_weights():
    models = {"wikitext2": {"folder": "a"}, "TREC-6": {"folder": "b"}}
    begins = {way: study.begin(models, "TREC-6", told) for way, told in study.WAYS.items()}
    runs = {way: begin and begin["run"] for way, begin in begins.items()}
    assert runs.pop(study.SCRATCH) is None
    assert runs.pop("the same, no target text") == "a"
    assert set(runs.values()) == {"b"}


def test_the_published_table_is_the_papers():
    """Relative falls of the error that the paper's text states, 5.3 and table 7."""
    scratch, best = study.PUBLISHED[study.SCRATCH], study.PUBLISHED[study.BEST]
    falls = [1 - b / s for s, b in zip(scratch, best, strict=True)]
    np.testing.assert_allclose(falls, [0.496, 0.574, 0.210], atol=5e-3)


def test_verdicts_follow_the_seeds():
    base = np.array([0.80, 0.81, 0.82])
    found = {way: {"accuracy": (base + 0.01 * i).tolist()} for i, way in enumerate(study.WAYS)}
    holds = {v["claim"]: v["holds"] for v in study.verdicts("T", found)}
    assert holds["T: pre-training beats training from scratch"] == "yes"
    assert holds["T: the last layer alone is not enough"] == "no"  # it stands two places higher
    assert holds["T: reading the target's text first helps"] == "no"
    found["freez"]["accuracy"] = [0.5, 0.99, 0.8]
    holds = {v["claim"]: v["holds"] for v in study.verdicts("T", found)}
    assert holds["T: gradual unfreezing helps"] == "unclear"
    assert len(holds) == 10
    table = study.table("T", found)
    assert re.search(r"^full +18.00% +1.00 ", table, re.M)
    assert "6.87  6.86  5.81" in table


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(data_dir, tmp_path):
    command = [sys.executable, "-m", "experiments.ulmfit_2018", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("ulmfit_2018_smoke_*.json")
    record = records.read_json(path)
    assert set(record["targets"]["TREC-6"]) == set(study.WAYS)
    models = record["language_models"]
    # 500 pieces: guessing alike is a perplexity of 500.
    assert models["wikitext2"]["perplexity"] < 400
    assert (tmp_path / "plots" / "ulmfit_2018.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Epoch [" not in again.stdout
    assert records.read_json(path)["targets"] == record["targets"]
