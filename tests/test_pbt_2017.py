"""The study of populations: its arms and budgets, what it trains, what it says of made-up runs."""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.pbt_2017 import claims, figures, plan, runs
from experiments.pbt_2017.plan import FIXED, GRID, HALVING, LONG, PBT, RANDOM, REPLAY, SHORT, TPE
from lrlab import build, records
from lrlab.jobs import _population, _search, pbt
from lrlab.lanes import Lane, Lanes
from tests.conftest import ROOT, tiny

SMOKE = plan.SIZES["smoke"]
SIZES = [pytest.param(n, marks=() if n == "smoke" else pytest.mark.slow) for n in plan.SIZES]


@pytest.mark.parametrize("name", SIZES)
def test_every_arm_of_a_size_is_sound_and_spends_the_same_examples(name, request):
    if name != "smoke":
        request.getfixturevalue("data_dir")  # or it is skipped
    size = plan.SIZES[name]
    if name == "paper":
        size = dataclasses.replace(size, sets=SMOKE.sets, model=SMOKE.model)  # no CIFAR here
    assert size.rates * len(size.momenta) == size.members
    for data in size.sets:
        spent, firsts = {}, {}
        for arm, generations in plan.populations(size).items():
            found = _population.check(plan.config(size, data, arm, 1))
            assert (len(found.ends), found.ends[-1]) == (generations, found.recipe.total)
            trial = sum(e.updates * e.size for e in found.recipe.epochs())
            spent[arm], firsts[arm] = size.members * trial, found.first
        for arm in plan.SEARCHES:
            found = _search.check(plan.config(size, data, arm, 1))
            spent[arm] = found.cost
            if arm == HALVING:
                assert found.trials > 2 * size.members
                assert 0 <= spent[PBT] - found.cost < trial
                spent[arm] = spent[PBT]
            elif arm == RANDOM:  # begins where the populations begin
                firsts[arm] = found.points
            elif arm == TPE:
                assert [r.trials for r in found.rounds] == [size.search[TPE]["lanes"]] * (
                    size.members // size.search[TPE]["lanes"]
                )
        assert set(spent.values()) == {spent[PBT]}
        assert all(first == firsts[PBT] for first in firsts.values())


def test_no_two_seeds_of_the_study_share_a_run_s_seed_and_the_job_compares_with_ours():
    size = dataclasses.replace(SMOKE, seeds=4)
    used = []
    for seed in range(size.seeds):
        found = _population.check(plan.config(size, "digits", PBT, seed))
        scores = {"val_accuracy": [0.5] * size.members, "val_loss": [1.0] * size.members}
        rows = {name: [scores] for name in ("population", "fixed")}
        own = set(pbt._arm(found, "population", rows).seeds)
        again = pbt._arm(found, "best fixed", rows).seeds
        assert list(again) == plan.seeds(size, seed)
        used += [*own, *again]
    assert len(used) == len(set(used)) == 4 * (1 + size.again)


LINEAGE = {"first": [0, 30, 50, 90], "lr": [0.4, 0.1, 0.2, 0.05],
           "optimizer.decay": [0.0, 0.5, 0.9, 0.9]}  # fmt: skip


def test_courses_are_what_the_lineage_says():
    numbers = runs.course(LINEAGE, 120)
    exact = [(0.4, 0.0)] * 30 + [(0.1, 0.5)] * 20 + [(0.2, 0.9)] * 40 + [(0.05, 0.9)] * 30
    np.testing.assert_array_equal(numbers, exact)
    np.testing.assert_array_equal(runs.warped(numbers, 1.0), numbers)
    # What came at the share s of the run comes at s^(1/2) of it, or at s^2.
    for power in 2.0, 0.5:
        moved = runs.warped(numbers, power)
        starts = [120 * (first / 120) ** (1 / power) for first in LINEAGE["first"]]
        ends = [*starts[1:], 120.0]
        for t, seen in enumerate(moved):
            (at,) = [i for i in range(4) if math.ceil(starts[i] - 1e-6) <= t < ends[i] - 1e-6]
            assert tuple(seen) == (LINEAGE["lr"][at], LINEAGE["optimizer.decay"][at]), t
    falling = runs.line({"lr": 0.3, "optimizer.decay": 0.8}, 120)
    # In steps of two updates of 120, each at what the line is in its middle.
    np.testing.assert_allclose(falling[::2, 0], 0.3 * (1 - (2 * np.arange(60) + 1) / 120))
    np.testing.assert_array_equal(falling[::2], falling[1::2])
    assert set(falling[:, 1]) == {0.8}
    assert (runs.line({"lr": 1.0, "optimizer.decay": 0.0}, 61)[:, 0] >= 0).all()
    found = runs.courses(
        {"lineage": LINEAGE, "updates": 120, "fixed": {"lr": 0.3, "optimizer.decay": 0.8}}
    )
    assert tuple(found) == plan.COURSES
    assert (found[plan.END] == (0.05, 0.9)).all()
    assert all(each.shape == (120, 2) for each in found.values())


def test_the_best_so_far_never_falls_and_is_nothing_before_the_first_look():
    curve = runs.rising([(100, 0.5), (200, 0.4), (300, 0.7)])
    assert curve == [[100, 0.5], [200, 0.5], [300, 0.7]]
    assert math.isnan(runs.so_far(curve, 99))
    assert [runs.so_far(curve, x) for x in (100, 250, 300 * (1 - 1e-12), 1e9)] == [
        0.5, 0.5, 0.7, 0.7,
    ]  # fmt: skip


def test_what_the_jobs_wrote_is_read(tmp_path):
    (tmp_path / "search").mkdir()
    values = {"lr": 0.1, "optimizer.decay": 0.5}
    best = {"trial": 1, "values": values, "val_accuracy": 0.7, "test_accuracy": 0.66}
    records.write_json(tmp_path / "search" / "summary.json", {"best": best, "examples": 300})
    for name, rows in {
        "progress": [{"examples": 100, "val_accuracy": None}]
        + [{"examples": x, "val_accuracy": y} for x, y in ((200, 0.6), (300, 0.7))],
        "trials": [{"trial": i} for i in range(3)],
    }.items():
        text = "".join(map(records.line, rows))
        (tmp_path / "search" / f"{name}.jsonl").write_text(text)
    assert runs.of_search(tmp_path / "search") == {
        "accuracy": 0.66, "validation": 0.7, "values": values, "examples": 300, "trials": 3,
        "curve": [[200, 0.6], [300, 0.7]],
    }  # fmt: skip

    (tmp_path / "pbt").mkdir()

    def row(arm, first, accuracy, lrs=(), **rest):
        return {"arm": arm, "first": first, "examples": 10 * (first + 5), "diverged": [],
                "values": {"lr": lrs, "optimizer.decay": [0.1 * lr for lr in lrs]},
                "val_accuracy": accuracy, **rest}  # fmt: skip

    rows = [
        row("population", 0, [0.3, 0.4], [1.0, 2.0]),
        row("population", 5, [0.35, None], [3.0, 4.0], test_accuracy=[0.31, None]),
        row("fixed", 5, [0.2, 0.1], [1.0, 2.0], test_accuracy=[0.2, 0.1]),
        row("replay", 5, [0.2, 0.1], test_accuracy=[0.25, None], diverged=[1]),
        row("best fixed", 5, [0.2, 0.1], test_accuracy=[0.2, 0.1]),
    ]
    (tmp_path / "pbt" / "generations.jsonl").write_text("".join(map(records.line, rows)))
    told = {
        "members": 2, "path": [1, 0], "updates": 10, "examples": 200, "copies": 1, "read_back": {},
        "best": {"values": {"lr": 3.0}, "val_accuracy": 0.35, "test_accuracy": 0.31},
        "comparison": [
            {"arm": "population", "values": {}, "test_accuracy": 0.31},
            {"arm": "fixed", "values": values, "test_accuracy": 0.2},
        ],
    }  # fmt: skip
    records.write_json(tmp_path / "pbt" / "summary.json", told)
    found = runs.of_population(tmp_path / "pbt")
    assert found["curve"] == [[100, 0.4], [200, 0.4]]
    assert found["lineage"] == {
        "first": [0, 5], "lr": [2.0, 3.0], "optimizer.decay": pytest.approx([0.2, 0.3])
    }  # fmt: skip
    assert found["from_scratch"] == {
        REPLAY: {"accuracies": [0.25], "diverged": 1},
        FIXED: {"accuracies": [0.2, 0.1], "diverged": 0},
    }
    assert (found["fixed"], found["fixed_accuracy"]) == (values, 0.2)
    assert (found["examples"], found["accuracy"]) == (200, 0.31)


@pytest.mark.slow
def test_runs_follow_their_courses():
    """Against plain recipes: a table of rates that falls, and a momentum that changes once."""
    config = tiny(schedule=({"name": "constant"},))
    total = build.check(config, parts=1).total
    falling = runs.line({"lr": 0.2, "optimizer.decay": 0.5}, total)
    changing = np.full((total, 2), (0.05, 0.9))
    changing[total // 2 :, 1] = 0.3
    found = runs.train(config | {"job": {"name": "pbt"}, "pbt": {}},
                       {"falling": falling, "changing": changing}, [3, 4])  # fmt: skip

    def table(values):
        return ({"name": "table", "at": tuple(range(total)), "values": tuple(values.tolist()),
                 "interpolate": False},)  # fmt: skip

    plain = {
        "falling": {"lr": 0.2, "schedule": table(falling[:, 0] / 0.2),
                    "optimizer": {"name": "momentum", "decay": 0.5}},
        "changing": {"lr": 0.05, "optimizer": {
            "name": "momentum", "decay": {"schedule": table(changing[:, 1])}}},
    }  # fmt: skip
    for name, changed in plain.items():
        recipe = build.check(config | changed, parts=1)
        lanes = Lanes(recipe, recipe.read(), [Lane(s, recipe.config["lr"]) for s in (3, 4)], total)
        lanes.advance(total)
        exact = [m["accuracy"] for m in lanes.evaluate("test", range(2))]
        assert found[name] == {"accuracies": pytest.approx(exact, abs=0.003), "diverged": 0}
    broken = runs.train(config, {"too high": np.full((total, 2), (1e30, 0.9))}, [3])
    assert broken["too high"] == {"accuracies": [], "diverged": 1}


SETS, SEEDS = ("one", "two"), 5


def made_up():
    """Runs in which all that the sources claim is so, each seed with its own luck."""
    lucks = np.random.default_rng(0).normal(0, 0.01, (len(SETS), SEEDS))
    tested = {RANDOM: 0.80, GRID: 0.79, HALVING: 0.81, TPE: 0.815, PBT: 0.83, SHORT: 0.82,
              LONG: 0.84}  # fmt: skip
    half = {PBT: 0.79}
    rates = {PBT: (0.08, 0.01, 0.005, 0.002), SHORT: (0.04, 0.005, 0.004, 0.002),
             LONG: (0.08, 0.03, 0.02, 0.001)}  # fmt: skip
    fresh = {REPLAY: 0.829, FIXED: 0.80, plan.LATER: 0.84, plan.EARLIER: 0.82, plan.END: 0.78,
             plan.LINE: 0.825}  # fmt: skip

    def run(luck):
        found = {
            arm: {
                "accuracy": a + luck,
                "validation": a + luck,
                "examples": 1000,
                "trials": 4,
                "seconds": 1.0,
                "curve": [[500, half.get(arm, 0.75) + luck], [1000, a + luck]],
            }
            for arm, a in tested.items()
        }
        for arm, own in rates.items():
            found[arm]["lineage"] = {
                "first": [0, 25, 50, 75], "lr": [r * (1 + luck) / 2 for r in own],
                "optimizer.decay": [0.5] * 4,
            }  # fmt: skip
            found[arm]["updates"] = 100
        again = {
            k: {"accuracies": [a + luck - 0.001, a + luck + 0.001], "diverged": 0}
            for k, a in fresh.items()
        }
        found[PBT]["fixed"] = {"lr": 0.002, "optimizer.decay": 0.9}
        found[PBT]["from_scratch"] = {k: again[k] for k in (REPLAY, FIXED)}
        return {**found, "from scratch": {k: again[k] for k in plan.COURSES}}

    return {data: [run(luck) for luck in own] for data, own in zip(SETS, lucks, strict=True)}


def said(made):
    """What is said of each claim: that of each set, and of their mean."""
    found = {}
    for v in claims.verdicts(made):
        about, _, data = v["claim"].rpartition(", ")
        found.setdefault(about, {})[data] = v["holds"]
    return found


def changed(arm, key, values):
    """Made-up runs in which an arm's number is another, by seed, in all sets."""
    made = made_up()
    for known in made.values():
        for run, value in zip(known, values, strict=True):
            run[arm][key] = value
    return made


def test_verdicts_follow_the_runs():
    usual = said(made_up())
    assert len(usual) == len(claims.CLAIMS) == 18
    assert {holds for each in usual.values() for holds in each.values()} == {"yes"}
    assert set(usual["PBT beats random search"]) == {*SETS, "mean of the sets"}

    def turned(arm, key, value):
        found = said(changed(arm, key, [value] * SEEDS))
        return {about for about in found if "no" in found[about].values()}

    assert turned(PBT, "accuracy", 0.5) == {
        "PBT beats random search",
        "greed: shorter intervals end worse",
    }
    assert turned(HALVING, "accuracy", 0.5) == {"halving beats random search"}
    assert turned(TPE, "accuracy", 0.5) == {"TPE beats random search"}
    assert turned(GRID, "accuracy", 0.9) == {"random search beats a grid"}
    assert turned(LONG, "accuracy", 0.5) == {"greed: longer intervals end better"}
    assert turned(PBT, "curve", [[500, 0.5], [1000, 0.99]]) == {
        "PBT is ahead of random search at half of the examples",
        "greed: the lead over random search is smaller at the end than at half of the examples",
    }
    assert turned(PBT, "fixed", {"lr": 1e-4, "optimizer.decay": 0.9}) == {
        "greed: in the second quarter the winner's rate in effect is below the best fixed one"
    }
    rising = {"first": [0, 25, 50, 75], "lr": [1e-4, 1e-3, 1e-2, 1e-1],
              "optimizer.decay": [0.5] * 4}  # fmt: skip
    assert turned(PBT, "lineage", rising) == {
        "the winner's rate in effect falls from the first quarter to the last",
        "greed: shorter intervals have a lower rate in the second quarter",
    }
    made = made_up()
    for known in made.values():
        for run in known:
            run[PBT]["from_scratch"][REPLAY]["accuracies"] = [0.7, 0.7]
    found = said(made)
    assert {about for about in found if set(found[about].values()) == {"no"}} == {
        about for about in found if about.startswith("the schedule from scratch")
    } | {"greed: the same numbers earlier are worse"}


def test_noise_makes_a_verdict_unclear_and_gaps_are_taken_seed_by_seed():
    noisy = said(changed(TPE, "accuracy", [0.9, 0.7, 0.9, 0.7, 0.8]))
    assert set(noisy["TPE beats random search"].values()) == {"unclear"}
    made = made_up()
    for known in made.values():  # far larger luck than any gap, shared by all arms
        for i, run in enumerate(known):
            for arm in plan.SEARCHED:
                run[arm]["accuracy"] += 0.1 * i
    assert set(said(made)["TPE beats random search"].values()) == {"yes"}
    (row,) = [r for r in claims.summary(made) if (r["data"], r["arm"]) == ("one", TPE)]
    assert row["gap"]["gap"] == pytest.approx(0.015)
    assert row["sd"] > 0.1


def test_rates_in_effect_are_those_of_float64():
    found = {"lineage": LINEAGE, "updates": 120, "fixed": {"lr": 0.3, "optimizer.decay": 0.8}}
    each = [0.4] * 30 + [0.2] * 20 + [2.0] * 40 + [0.5] * 30  # rate / (1 - momentum)
    for number in range(4):
        exact = np.mean([math.log2(v) for v in each[30 * number : 30 * number + 30]])
        assert claims.quarter(found, number) == pytest.approx(exact)
    assert claims.fixed(found) == pytest.approx(math.log2(1.5))


def test_the_table_and_the_figure_have_every_arm():
    made = made_up()
    rows = claims.summary(made)
    assert len(rows) == len(SETS) * (len(plan.SEARCHED) + len(plan.SCRATCH))
    bases = [r for r in rows if r["arm"] in (RANDOM, f"from scratch: {FIXED}")]
    assert [r["gap"]["gap"] for r in bases] == [0.0] * 4
    text = claims.table(rows)
    assert text.count("\n") == len(rows) + len(SETS) - 1
    later = next(line for line in text.splitlines() if f": {plan.LATER} " in line)
    assert "+4.00 % [4.00, 4.00]" in later
    figure = figures.draw(made)
    best, rates, gaps = figure.axes[:3]
    assert set(best.get_legend_handles_labels()[1]) == {PBT, *plan.SEARCHES}
    assert set(rates.get_legend_handles_labels()[1]) == {PBT, SHORT, LONG, FIXED}
    shown = [label.get_text() for label in gaps.get_yticklabels()]
    assert set(shown) == {*plan.SEARCHED, *plan.SCRATCH} - {RANDOM, FIXED}
    # An arm that is far below its base is written, and does not take the others' room.
    low, high = gaps.get_xlim()
    broken = figures.draw(changed(GRID, "accuracy", [0.1] * SEEDS)).axes[2]
    assert broken.get_xlim() == pytest.approx((low, high))
    assert [t.get_text().split("%")[0] for t in broken.texts] == [" < -70.0 "]
    at, each = figures.curves(made["one"], PBT)
    assert np.isnan(each[:, at < 500]).all()
    np.testing.assert_allclose(each[:, -1], [r[PBT]["accuracy"] for r in made["one"]])


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.pbt_2017", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("pbt_2017_smoke_*.json")
    record = records.read_json(path)
    rows = {row["arm"]: row for row in record["rows"]}
    spent = {arm: rows[arm]["examples"] for arm in plan.SEARCHED}
    assert all(0 <= spent[PBT] - spent[arm] < spent[PBT] / SMOKE.members for arm in spent)
    # Random search is the population that does not copy: the job's "fixed".
    for seed in range(SMOKE.seeds):
        random, own = (records.read_json(tmp_path / f"{n}_digits_{seed}.json") for n in
                       ("random", "pbt"))  # fmt: skip
        assert random["values"] == own["fixed"]
        assert random["accuracy"] == own["fixed_accuracy"]
        # The winner's course here is the schedule that the job replays.
        config = plan.config(SMOKE, "digits", PBT, seed)
        numbers = {REPLAY: runs.course(own["lineage"], own["updates"])}
        again = runs.train(config, numbers, plan.seeds(SMOKE, seed))[REPLAY]["accuracies"]
        assert again == pytest.approx(own["from_scratch"][REPLAY]["accuracies"], abs=0.006)
    assert (tmp_path / "plots" / "pbt_2017.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "log.txt").read_text().count("already trained") == 8 * SMOKE.seeds
    assert records.read_json(path)["rows"] == record["rows"]
