import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import arms
from experiments import finetune_2018 as study
from lrlab import build, optimizers, records, schedules
from lrlab.jobs import finetune
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]
RUN = (study.RECIPE, study.FIXED, study.AUGMENTED, study.HEAD, study.SCRATCH, *study.STEPS.values())


def plan(size, arm, examples, updates=None):
    return study.phases(size, arm, updates or examples // size.batch)


@pytest.mark.parametrize("name", study.SIZES)
def test_the_budget_of_every_arm_is_the_same(name):
    size = study.SIZES[name]
    assert size.epochs == 12 * size.cycle_len
    for arm in RUN:
        found = sum(phase["epochs"] for phase in plan(size, arm, size.examples[0]))
        assert found == size.epochs, arm


def test_each_arm_leaves_out_its_step_and_nothing_else():
    whole = plan(SMOKE, study.RECIPE, 100)
    assert [p["name"] for p in whole] == ["head on features", "head", "all"]
    assert [bool(p.get("range_test")) for p in whole] == [True, False, True]
    assert (whole[1]["augment"], whole[2]["factor"], whole[2]["patience"]) == (
        SMOKE.augment, 3.0, None
    )  # fmt: skip

    def differences(step):
        without = plan(SMOKE, study.STEPS[step], 100)
        assert len(without) == 3
        return {
            (i, key)
            for i, (a, b) in enumerate(zip(whole, without, strict=True))
            for key in a.keys() | b.keys()
            if a.get(key) != b.get(key)
        }

    assert differences("range tests") == {(0, "range_test"), (2, "range_test")}
    assert differences("lower rates for earlier groups") == {(2, "factor")}
    assert differences("restarts") == {(1, "schedule"), (2, "schedule")}
    assert differences("augmentation") == {(1, "augment"), (2, "augment")}
    (alone,) = plan(SMOKE, study.STEPS["the head first"], 100)
    assert {k for k in alone if alone[k] != whole[2][k]} == {"epochs", "schedule"}
    head, everything = plan(SMOKE, study.STEPS["features first"], 100)
    assert everything == whole[2]
    assert head == {**{k: v for k, v in whole[1].items() if k != "lr"},
                    "epochs": 5, "range_test": True}  # fmt: skip


@pytest.mark.parametrize("updates", [6, 31, 125])
def test_without_the_head_first_three_cycles_fill_the_budget_and_none_begins_after(updates):
    size = study.SIZES["desk"]
    (alone,) = plan(size, study.STEPS["the head first"], 100, updates)
    total = size.epochs * updates
    first = alone["schedule"][0]["t_0"]["updates"]
    starts = np.cumsum([0, first, 2 * first, 4 * first])
    assert (starts[:3] < total).all()
    assert 0 <= starts[3] - total < 7
    rates = np.asarray(schedules.cosine_restarts(t_0=first, t_mult=2)(np.arange(total)))
    np.testing.assert_array_equal(np.flatnonzero(np.diff(rates) > 0) + 1, starts[1:3])
    assert rates[-1] < 0.01


def test_seeds_share_no_target_example(data_dir):
    size = study.SIZES["desk"]
    sizes, drawn = [], []
    for seed in range(size.seeds):
        recipe = build.check(
            {
                **study.of_source(size, seed),
                "data": study.of_target(size, 500, seed),
                "batch": {"name": "fixed", "size": 16},
            }
        )
        data = recipe.read()
        sizes.append(recipe.source.sizes)
        drawn.append({x.tobytes() for x in data.train.x})
    assert set(sizes) == {(500, 500, 10_000)}
    assert len(set.union(*drawn)) == 500 * size.seeds


def test_the_smoke_arms_are_sound_and_see_as_many_updates():
    for arm in (study.RECIPE, study.STEPS["features first"]):
        config = study.config(SMOKE, arm, 100, 1, None)
        found = finetune.check(
            {**config, "job": {"name": "finetune"}, "finetune": {
                **config["finetune"],
                "phases": tuple(
                    {k: v for k, v in p.items() if k != "precompute"}
                    for p in config["finetune"]["phases"]
                ),
            }}
        )  # fmt: skip
        assert found.recipe.per_epoch == 100 // SMOKE.batch
        assert found.groups == SMOKE.groups
        assert found.head == SMOKE.head == found.recipe.modules[-1]


def test_the_head_of_every_size_is_its_model_s_last_module():
    paper = study.SIZES["paper"]
    config = {
        **{k: v for k, v in study.config(paper, study.RECIPE, 500, 0, None).items()
           if k not in ("finetune", "start")},
        "data": {"name": "digits"},
    }  # fmt: skip
    recipe = build.check(config, parts=1)
    assert recipe.modules[-1] == paper.head
    rules = [(g, 1.0) for g in paper.groups]
    shares = [n for _, _, _, n in optimizers.groups(rules, recipe.shapes.params)]
    assert sum(shares) == recipe.parameters
    assert min(shares) > 0


def test_range_tests_are_counted_until_each_lane_stopped(tmp_path):
    for phase, losses in ("1_head", ["1.0,2.0", "1.5,"]), ("3_all", ["1.0,1.0", ",1.0", ",1.0"]):
        home = tmp_path / f"{phase}_range_test"
        home.mkdir()
        rows = [f"{i},0.1,{row},1.0" for i, row in enumerate(losses)]
        text = "\n".join(["point,lr,loss_0,loss_1,smooth", *rows])
        (home / "range_test.csv").write_text(text + "\n")
    assert study.tested(tmp_path) == 3 + 4
    assert study.tested(tmp_path / "1_head_range_test") == 0


def run(accuracy, updates=72):
    phase = {"name": "all", "lr": 0.01, "lr_from": "config", "epochs": 12, "updates": updates,
             "test_accuracy": accuracy, "trained_weights": 5}  # fmt: skip
    return {"accuracy": accuracy, "validation": accuracy, "updates": updates, "examples": 1152,
            "range_test_updates": 0, "phases": [phase], "seconds": 2.0}  # fmt: skip


def made(**offsets):
    """Runs of every arm at two sizes over three seeds; offsets: of an arm, by its name, in %."""
    level = [0.70, 0.75, 0.85]
    return {
        (arm, n): [
            run(base + (0.05 if n == 500 else 0) + offsets.get(arm, 0.0) / 100) for base in level
        ]
        for arm in (*RUN, study.BEST)
        for n in (100, 500)
    }


def holds(runs):
    return {(v["theirs"], v["examples"]): v["holds"] for v in study.verdicts(runs)
            if v["ours"] == study.RECIPE}  # fmt: skip


def test_verdicts_follow_pairs_of_seeds():
    alike = holds(made())
    assert set(alike.values()) == {"unclear"}
    assert len(alike) == 3 * (len(study.SIMPLE) + len(study.STEPS))
    # Seeds differ by far more than arms: only pairs can tell.
    better = holds(made(**{study.RECIPE: 1.0}))
    assert set(better.values()) == {"yes"}
    for arm in (*study.SIMPLE, *study.STEPS.values()):
        found = holds(made(**{arm: 1.0}))
        assert {key for key, said in found.items() if said == "no"} == {
            (arm, n) for n in (100, 500, None)
        }


def test_the_mean_of_all_sizes_is_paired_by_seed():
    runs = made()
    for i, change in enumerate((0.02, -0.02, 0.02)):
        runs[study.RECIPE, 100][i] = run(runs[study.RECIPE, 100][i]["accuracy"] + change)
        runs[study.RECIPE, 500][i] = run(runs[study.RECIPE, 500][i]["accuracy"] - change + 0.01)
    found = holds(runs)
    assert found[study.FIXED, 100] == found[study.FIXED, 500] == "unclear"
    assert found[study.FIXED, None] == "yes"
    verdict = next(v for v in study.verdicts(runs) if v["examples"] is None)
    expected = arms.gap([0.005] * 3, [0.0] * 3)
    assert verdict["gap"]["gap"] == pytest.approx(expected["gap"])


def test_the_best_rate_is_chosen_by_validation_alone_and_pays_for_all():
    tries = {
        0.01: {**run(0.9), "validation": 0.5},
        0.1: {**run(0.8), "validation": 0.6, "updates": 70},
    }
    found = study.tuned(tries)
    assert found["accuracy"] == 0.8
    assert (found["updates"], found["seconds"]) == (142, 4.0)


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.finetune_2018", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("finetune_2018_smoke_*.json")
    record = records.read_json(path)
    rows = {row["arm"]: row for row in record["arms"]}
    assert rows.keys() == {*RUN, study.BEST}
    budget = SMOKE.epochs * (100 // SMOKE.batch)
    assert {row["updates"] for arm, row in rows.items() if arm != study.BEST} == {budget}
    assert rows[study.BEST]["updates"] == budget * (1 + len(SMOKE.rates))
    for arm, row in rows.items():
        tests = 0 if arm in (*study.SIMPLE, study.STEPS["range tests"]) else 1
        assert bool(row["range_test_updates"]) == bool(tests), arm
        first = row["phases"][0]
        assert set(first["from"]) == {"range test" if tests else "config"}, arm
        assert (set(first["lrs"]) <= {SMOKE.lr, *SMOKE.rates}) == (not tests)
    assert rows[study.FIXED]["accuracy"] > 0.5
    assert len(set(rows[study.FIXED]["finals"])) == SMOKE.seeds, "seeds are others"
    assert (tmp_path / "plots" / "finetune_2018.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (tmp_path / "log.txt").read_text().count("already trained") == 12 * SMOKE.seeds
    assert records.read_json(path)["arms"] == record["arms"], again.stderr


def test_settings_are_records():
    for size in study.SIZES.values():
        assert records.canonical(dataclasses.asdict(size))
