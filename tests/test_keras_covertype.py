import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from experiments import keras_covertype as study
from lrlab import build, records
from lrlab.main import load_config

ARMS = tuple(study.arms(study.SIZES["desk"]))


def run(arm, seed, end=0.3, epochs=10, size=256, grown=(), pace=1000.0, rate=6e-4):
    """A made-up run: loss falls along a line to `end`; epochs in `grown` have five times the batch,
    and go twice as fast."""
    sizes = np.array([size * (5 if e in grown else 1) for e in range(epochs)])
    examples = 25600.0
    paces = np.where(sizes > size, 2 * pace, pace)
    return study.Run(
        arm=arm,
        seed=seed,
        updates=np.cumsum(examples / sizes),
        seconds=np.cumsum(examples / paces),
        loss=np.linspace(1.0, end, epochs),
        accuracy=np.linspace(0.5, 1 - end, epochs),
        size=sizes.astype(float),
        lr=np.full(epochs, rate),
        wall=float((examples / paces).sum()) + 5,
        test_accuracy=0.9,
    )


def runs(**ends):
    """Every arm over five seeds, which differ by as much in all arms; ends: last losses."""
    found = []
    for arm in ARMS:
        kinds = {
            "growth": {"grown": range(5, 10)},
            "growth_sqrt": {"grown": range(5, 10)},
            "large_x5": {"size": 1280, "pace": 2000.0},
            "large_x25": {"size": 6400, "pace": 2500.0},
        }
        for seed in range(5):
            end = ends.get(arm, 0.3) + 0.05 * seed
            found.append(run(arm, seed, end, **kinds.get(arm, {})))
    return found


def holds(found):
    return {v["claim"]: v["holds"] for v in study.verdicts(found)}


def by_claim(found):
    return {v["claim"]: v for v in study.verdicts(found)}


def test_arms_are_compared_seed_by_seed():
    # Seeds differ by far more than arms: only pairs can tell.
    found = by_claim(runs(growth=0.29))["slightly better validation loss"]
    assert found["mean"] == pytest.approx(-0.01)
    assert (found["low"], found["high"]) == pytest.approx((-0.01, -0.01))
    assert (found["holds"], found["seeds_below"], found["seeds"]) == ("yes", 5, 5)
    shuffled = runs(growth=0.29)[::-1]
    assert by_claim(shuffled)["slightly better validation loss"]["mean"] == pytest.approx(-0.01)


def test_a_seed_without_its_partner_is_left_out():
    found = [r for r in runs(growth=0.29) if (r.arm, r.seed) != ("baseline", 3)]
    assert by_claim(found)["slightly better validation loss"]["seeds"] == 4


def test_the_time_is_that_of_the_epochs_that_were_faster():
    found = by_claim(runs())
    assert found["half the time"]["mean"] == pytest.approx(0.75)  # half of the epochs twice as fast
    assert found["half the time"]["holds"] == "no"
    assert found["fewer updates"]["mean"] == pytest.approx((5 + 5 / 5) / 10)
    assert found["a larger batch uses the hardware better"]["mean"] == pytest.approx(0.5)
    all_grown = [run(r.arm, r.seed, grown=range(10)) if r.arm == "growth" else r for r in runs()]
    assert holds(all_grown)["half the time"] == "yes"
    # Five seconds of compiling a run are part of the wall, and not of training.
    wall = by_claim(runs())["half the time, all included"]["mean"]
    assert wall == pytest.approx((0.75 * 256 + 5) / (256 + 5))


@pytest.mark.parametrize(
    ("arm", "claim"),
    [
        ("baseline", "slightly better validation loss"),
        ("baseline", "slightly better at its best"),
        ("large_x5", "better than large from the start"),
        ("large_x25", "better than very large from the start"),
        ("constant", "the plateau rule on the batch helps"),
        ("growth_sqrt", "the rate should stay where the batch grows"),
    ],
)
def test_a_claim_follows_the_loss_of_the_arm_that_it_speaks_of(arm, claim):
    assert holds(runs(**{arm: 0.4}))[claim] == "yes"
    assert holds(runs(**{arm: 0.2}))[claim] == "no"
    assert holds(runs())[claim] == "open"  # equal in every seed


def test_the_rule_on_the_rate_is_judged_by_the_baseline_and_not_by_growth():
    claim = "the plateau rule on the rate helps"
    assert holds(runs(baseline=0.2))[claim] == "yes"
    assert holds(runs(growth=0.2))[claim] == "open"


def test_a_stopped_baseline_is_read_where_growth_ended():
    found = by_claim(runs())
    # Growth has 600 of 1,000 updates and 75 % of the seconds, and the loss falls along a line.
    for name, share in ("updates", 0.6), ("seconds", 0.75):
        claim = found[f"better than as many {name} of the baseline"]
        stopped = [1 + (10 * share - 1) / 9 * (0.3 + 0.05 * s - 1) for s in range(5)]
        expected = np.mean([0.3 + 0.05 * s - stop for s, stop in enumerate(stopped)])
        assert claim["mean"] == pytest.approx(expected)
        assert claim["holds"] == "yes"
    assert holds(runs(growth=0.9))["better than as many updates of the baseline"] == "no"


def test_seeds_that_disagree_and_losses_that_are_not_finite_leave_a_verdict_open():
    mixed = study.verdict("c", "w", [-0.1, 0.1, -0.1, 0.1, 0.05], 0.0)
    assert (mixed["holds"], mixed["seeds_below"]) == ("open", 2)
    assert mixed["low"] < mixed["mean"] < mixed["high"]
    assert study.verdict("c", "w", [-0.1, float("nan"), -0.1], 0.0)["holds"] == "open"


def test_turns_are_where_batch_or_rate_changes():
    grown = run("growth", 0, grown=range(5, 10))
    assert grown.turns() == [[1, 256, 6e-4], [6, 1280, 6e-4]]
    assert run("constant", 0).turns() == [[1, 256, 6e-4]]
    assert (grown.pace(256), grown.pace(1280)) == pytest.approx((1000, 2000))
    assert np.isnan(grown.pace(6400))
    slower = run("baseline", 0)
    slower.lr[7:] /= 5
    assert [epoch for epoch, *_ in slower.turns()] == [1, 8]


def test_the_record_of_the_largest_study_is_small_and_holds_every_run():
    rng = np.random.default_rng(0)
    size = study.SIZES["paper"]
    found = [run(arm, seed, epochs=60) for arm in ARMS for seed in range(size.seeds)]
    for r in found:
        r.loss[:], r.accuracy[:] = rng.random(60), rng.random(60)
        r.lr[:] = rng.random(60).repeat(3)[:60]  # a plateau every three epochs, at most
    record = {
        "arms": study.summary(found),
        "verdicts": study.verdicts(found),
        "runs": [study.shown(r) for r in found],
    }
    text = study.compact(record)
    assert len(text) < 60_000 - 3_000  # settings, data and versions come on top
    assert len(found) == len(ARMS) * size.seeds == 30


@pytest.mark.parametrize("name", study.SIZES)
def test_the_arms_of_a_size_are_sound_and_growth_reaches_the_first_large_batch(name):
    size = study.SIZES[name]
    config = load_config(str(ROOT / size.config))
    config["data"] = {"name": "digits"}
    config["model"] = {"name": "mlp.MLP", "widths": (8,)}
    if name != "smoke":  # digits have too few rows for these batches
        size = study.dataclasses.replace(size, batch=16)
    for arm, batch in study.arms(size).items():
        sizes = build.check({**config, "batch": batch}).regime.sizes
        assert sizes == ((16, 80) if arm.startswith("growth") else (batch["size"],))


def test_the_growth_arm_is_the_recipe():
    recipe = load_config(str(ROOT / "configs" / "covertype_growth.py"))
    arm = study.arms(study.SIZES["desk"])["growth"]
    defaults = {"threshold": 1e-4}
    assert arm == {**defaults, **recipe["batch"]}
    assert recipe["epochs"] == study.SIZES["paper"].epochs
    assert [phase["name"] for phase in recipe["schedule"]] == ["constant"]


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.keras_covertype", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("keras_covertype_smoke_*.json")
    record = records.read_json(path)
    assert [(a["arm"], a["n"]) for a in record["arms"]] == [(arm, 2) for arm in ARMS]
    assert sum(record["data"]["sizes"]) == 1797
    assert (tmp_path / "plots" / "arms.png").stat().st_size > 1000
    for seed in 0, 1:
        grown, steady = (
            next(r for r in record["runs"] if (r["arm"], r["seed"]) == (arm, seed))
            for arm in ("growth", "baseline")
        )
        assert grown["turns"][1][1] == 80
        turn = grown["turns"][1][0] - 1
        assert grown["loss"][:turn] == steady["loss"][:turn]  # one run until the first plateau
        assert grown["loss"][turn] != steady["loss"][turn]
        assert grown["updates"] < steady["updates"]
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert records.read_json(path)["runs"] == record["runs"]  # nothing was trained again
