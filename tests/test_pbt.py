import ast
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny

from lrlab import build, main, population, records
from lrlab.jobs import _found, _start, pbt
from lrlab.jobs._start import Options
from lrlab.lanes import Lane, Lanes
from lrlab.loop import DivergedError
from lrlab.resolve import ConfigError
from lrlab.train_step import RECORDED

SEARCH = (
    {"key": "lr", "low": 1e-3, "high": 1.0},
    {"key": "optimizer.decay", "values": (0.0, 0.5, 0.9)},
)


def config(search=SEARCH, **changes):
    section = {"population": 6, "generations": 5, "search": search, **changes.pop("pbt", {})}
    base = {"epochs": 3, "schedule": ({"name": "constant"},), "model": {"name": "mlp.MLP"}}
    base["model"] = {"name": "mlp.MLP", "widths": (8,), "dropout": 0.1}
    return tiny(job={"name": "pbt"}, pbt=section, **{**base, **changes})


def run(folder, **changes):
    pbt.run(config(**changes), folder, Options("test.py", "python -m lrlab.main"))
    return rows_of(folder)


def rows_of(folder, name="generations"):
    rows = records.read_lines(folder / f"{name}.jsonl")
    for row in rows:
        row.pop("seconds", None)
    return rows


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures, which take longer than all the rest."""
    monkeypatch.setattr(pbt, "write_pbt", lambda folder, _: (folder / "report.html").touch())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pbt") / "whole"
    run(folder, pbt={"compare": 2})
    return folder


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_lanes_become_others_between_devices_bit_for_bit(engine):
    spec = {"name": "optax:noisy_sgd", "key": 0}  # a random key in its state
    recipe = build.check(tiny(optimizer=spec, schedule=({"name": "constant"},)), parts=1)
    given = [Lane(i % 2, 0.01 * (i + 1)) for i in range(7)]
    lanes = Lanes(recipe, recipe.read(), given, 5, engine=engine)
    lanes.advance(5)
    before = lanes.state()
    assert jax.local_device_count() == 2
    donors = {0: 5, 1: 4, 4: 6, 3: 3, 2: 1}  # a chain: 2 becomes 1, as it was before 1 became 4
    lanes.copy(donors)
    source = [donors.get(i, i) for i in range(7)]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(lanes.state()), strict=True):
        np.testing.assert_array_equal(new, old[source])
    lanes.tune([Lane(lane.seed, 0.5) for lane in given])
    np.testing.assert_array_equal(lanes.advance(2)[..., RECORDED.index("lr")], 0.5)


def test_a_copy_that_goes_on_with_the_donors_seed_and_numbers_is_the_donor():
    recipe = build.check(tiny(optimizer={"name": "adam"}), parts=1)
    lanes = Lanes(recipe, recipe.read(), [Lane(0, 0.01), Lane(0, 1e-4), Lane(1, 0.02)], 6)
    lanes.advance(6)
    lanes.copy({1: 0})
    lanes.tune([Lane(0, 0.01), Lane(0, 0.01), Lane(1, 0.02)])
    seen = lanes.advance(6)
    np.testing.assert_array_equal(seen[:, 1], seen[:, 0])
    assert lanes.digest(1) == lanes.digest(0) != lanes.digest(2)


def test_a_population_writes_what_a_reading_of_its_rows_confirms(whole):
    rows = [r for r in rows_of(whole) if r["arm"] == "population"]
    plan = pbt.check(config(pbt={"compare": 2}))
    assert [(r["first"], r["updates"]) for r in rows] == [
        (round(g * 27 / 5), round((g + 1) * 27 / 5)) for g in range(5)
    ]
    copies = rows_of(whole, "lineage")
    for row, after in itertools.pairwise(rows):
        scores = np.array([np.nan if v is None else v for v in row["val_accuracy"]])
        losses = np.array([np.nan if v is None else v for v in row["val_loss"]])
        numbers = [{k: row["values"][k][i] for k in ("lr", "optimizer.decay")} for i in range(6)]
        wanted = population.turn(
            plan.rules,
            plan.axes,
            numbers,
            population.order(scores, losses),
            population.Draws.of(0, row["generation"], 6, 2),
        )
        assert tuple(row["donors"]) == wanted.donors
        changed = [i for i, donor in enumerate(wanted.donors) if donor != i]
        assert changed, "nobody was replaced"
        for i in range(6):
            for key, found in after["values"].items():
                assert found[i] == wanted.values[i][key]
        told = [c for c in copies if c["generation"] == row["generation"]]
        assert [c["member"] for c in told] == changed
        for c in told:
            assert c["from"] == row["donors"][c["member"]]
            assert c["before"] == numbers[c["member"]]
            assert c["donor"] == numbers[c["from"]]
            assert c["after"] == wanted.values[c["member"]]
            assert c["update"] == row["updates"]
    assert rows[-1]["donors"] == list(range(6)), "after the last generation nobody trains on"
    summary = records.read_json(whole / "summary.json")
    assert summary["copies"] == len(copies) == summary["read_back"]["copies"]
    assert summary["read_back"]["equal"] == len(copies)
    order = sorted(range(6), key=lambda i: (-rows[-1]["val_accuracy"][i], rows[-1]["val_loss"][i]))
    assert summary["best"]["member"] == order[0]
    for path in summary["paths"]:
        for g, (a, b) in enumerate(itertools.pairwise(path)):
            assert rows[g]["donors"][b] == a
    assert [path[-1] for path in summary["paths"]] == order


def test_the_rate_after_each_of_600_copies_is_the_explored_one(tmp_path, monkeypatch, undrawn):
    """F41: the numbers that the updates recorded themselves, against lineage.jsonl."""
    used = {}
    advance = Lanes.advance

    def watched(lanes, count):
        first, seen = lanes.step, advance(lanes, count)
        for at, row in enumerate(seen, first):
            used[at] = row[:, [RECORDED.index("lr"), lanes.columns.index("decay")]]
        return seen

    monkeypatch.setattr(Lanes, "advance", watched)
    section = {"population": 24, "generations": 54, "fraction": 0.5}
    run(tmp_path, epochs=6, pbt=section)  # an update a generation
    copies = rows_of(tmp_path, "lineage")
    assert len(copies) == 53 * 12 > 600
    equal = [
        used[c["update"]][c["member"]].tolist()
        == np.float32([c["after"]["lr"], c["after"]["optimizer.decay"]]).tolist()
        for c in copies
    ]
    assert sum(equal) == len(copies)
    changed = [c["after"]["lr"] != c["before"]["lr"] for c in copies]
    assert sum(changed) > 600, "the rates did not change, so nothing was shown"
    back = records.read_json(tmp_path / "summary.json")["read_back"]
    assert back == {"copies": len(copies), "equal": len(copies)}


def test_the_schedule_that_was_found_is_what_the_best_ones_ancestors_used(whole):
    rows = [r for r in rows_of(whole) if r["arm"] == "population"]
    path = records.read_json(whole / "summary.json")["path"]
    recipe = build.check(main.load_config(str(whole / "replay.py")))
    rates, decay = np.asarray(recipe.rates()), jax.vmap(recipe.scheduled["decay"])(np.arange(27))
    assert len(rates) == 27
    for row, i in zip(rows, path, strict=True):
        span = slice(row["first"], row["updates"])
        np.testing.assert_allclose(rates[span], row["values"]["lr"][i], rtol=1e-6)
        np.testing.assert_array_equal(decay[span], np.float32(row["values"]["optimizer.decay"][i]))
    tree = ast.parse((whole / "replay.py").read_text())
    assert "Run: python -m lrlab.main --config=" in (ast.get_docstring(tree) or "")


def test_what_it_is_compared_with_takes_the_same_budget_and_copies_nobody(whole):
    rows = rows_of(whole)
    arms = {name: [r for r in rows if r["arm"] == name] for name in pbt.ARMS}
    assert {len(found) for found in arms.values()} == {5}
    first = arms["population"][0]["values"]
    fixed = arms["fixed"]
    assert all(r["values"] == first for r in fixed), "held numbers changed"
    assert fixed[0]["val_loss"] == arms["population"][0]["val_loss"]
    assert all(r["donors"] == list(range(6)) for r in fixed)
    told = {e["arm"]: e for e in records.read_json(whole / "summary.json")["comparison"]}
    assert told["population"]["examples"] == told["fixed"]["examples"] == 6 * 27 * 128
    assert told["replay"]["examples"] == told["best fixed"]["examples"] == 2 * 27 * 128
    best = _found.ranked(fixed[-1], "accuracy")[0]
    assert arms["best fixed"][0]["values"]["lr"] == [first["lr"][best]] * 2
    assert told["replay"]["val_accuracy"] == pytest.approx(
        np.mean(arms["replay"][-1]["val_accuracy"])
    )
    # The replay as an arm is the run that replay.py trains.
    recipe = build.check(main.load_config(str(whole / "replay.py")), parts=1)
    lanes = Lanes(recipe, recipe.read(), [Lane(6, recipe.config["lr"])], 27)
    seen = lanes.advance(27)
    assert seen[-1, 0, RECORDED.index("lr")] == np.float32(arms["replay"][-1]["lr"][0])
    held = lanes.evaluate("validation", [0])[0]
    assert held["loss"] == pytest.approx(arms["replay"][-1]["val_loss"][0], rel=1e-5)


def test_the_report_shows_lines_scores_and_tables(whole):
    page = (whole / "report.html").read_text()
    for word in ("finished", "Who copied whom", "The schedule that was found", "drawn anew"):
        assert word in page
    assert "https:" not in page
    assert "http:" not in page.replace("http://www.w3.org", ""), "a report needs nothing else"
    for name in "lineage_lr", "lineage_optimizer_decay", "scores":
        assert (whole / "plots" / f"{name}.png").stat().st_size > 10_000
    with np.load(whole / "best.npz") as best:
        shapes = {k: best[k].shape for k in best.files}
    assert shapes["params/Dense_0/kernel"] == (64, 8)
    changes = {"start": {"file": str(whole / "best.npz")}}
    recipe = build.check(tiny(model={"name": "mlp.MLP", "widths": (8,)}, **changes), parts=1)
    held = Lanes(recipe, recipe.read(), [Lane(0, 0.1)], 1).evaluate("validation", [0])[0]
    found = records.read_json(whole / "summary.json")["best"]
    assert held["loss"] == pytest.approx(found["val_loss"], rel=1e-5), "not the best one's weights"


def test_a_finished_population_says_so_and_another_is_refused(whole, capsys):
    before = (whole / "generations.jsonl").read_bytes()
    run(whole, pbt={"compare": 2})
    assert "already finished" in capsys.readouterr().out
    assert (whole / "generations.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="another config"):
        run(whole, pbt={"compare": 3})


def test_what_diverged_is_replaced_and_is_nobodys_donor(tmp_path, undrawn):
    search = ({"key": "lr", "low": 1e-2, "high": 1e6},)
    changes = {"optimizer": {"name": "momentum"}, "weight_decay": 0.1}
    rows = run(tmp_path, search=search, pbt={"population": 8, "generations": 9}, **changes)
    lost = [(r, i) for r in rows for i in r["diverged"]]
    assert lost, "nobody diverged, so nothing was shown"
    assert any(len(r["diverged"]) > 1 for r in rows), "never more than truncation replaces"
    for row in rows[:-1]:
        for i in row["diverged"]:
            assert row["donors"][i] not in row["diverged"]
            assert row["val_accuracy"][i] is None
        for i, donor in enumerate(row["donors"]):
            assert donor == i or donor not in row["diverged"]
    for c in rows_of(tmp_path, "lineage"):
        assert (c["why"] == "diverged") == (c["member"] in rows[c["generation"]]["diverged"])
    # Who was replaced trains: its loss is finite again unless its new rate is too much too.
    again = [
        rows[r["generation"] + 1]["train_loss"][i]
        for r, i in lost
        if r["generation"] < 8 and i not in rows[r["generation"] + 1]["diverged"]
    ]
    assert again
    assert np.isfinite(again).all()


def test_a_population_that_diverges_as_a_whole_ends_clearly(tmp_path):
    search = ({"key": "lr", "low": 1e5, "high": 1e6},)
    changes = {"optimizer": {"name": "sgd"}, "weight_decay": 1e3}
    for _ in range(2):  # a rerun meets the same end
        with pytest.raises(DivergedError, match="all 6 members are not finite in generation 1,"):
            run(tmp_path, search=search, **changes)
    assert len(rows_of(tmp_path)) == 1
    assert "All members diverged" in (tmp_path / "report.html").read_text()


BAD = [
    ({"pbt": {"populaton": 3}}, "unknown field pbt.populaton; did you mean 'population'"),
    ({"pbt": {"population": 1}}, "pbt.population=1 must lie in [2"),
    ({"pbt": {"generations": 0}}, "pbt.generations=0"),
    ({"pbt": {"generations": 28}}, "more than the run's 27 updates"),
    ({"pbt": {"interval": {"epochs": 1}}}, "45, and the run has 27: set epochs=5"),
    ({"pbt": {"interval": {"epoch": 1}}}, "pbt.interval: a duration has exactly one of"),
    ({"pbt": {"interval": 0.2}}, "pbt.interval=0.2 is under one update"),
    ({"pbt": {"exploit": "truncate"}}, "pbt.exploit='truncate' is not allowed; did you mean"),
    ({"pbt": {"fraction": 0.6}}, "pbt.fraction=0.6 must lie in (0, 0.5]"),
    ({"pbt": {"factors": 1.2}}, "pbt.factors=1.2 must be a tuple"),
    ({"pbt": {"factors": (1.2, -1)}}, "pbt.factors[1]=-1"),
    ({"pbt": {"resample": 2}}, "pbt.resample=2"),
    ({"pbt": {"score": "val"}}, "pbt.score='val'"),
    ({"pbt": {"seeds": 0}}, "pbt.seeds=0"),
    ({"pbt": {"compare": -1}}, "pbt.compare=-1"),
    ({"search": None}, "pbt.search=None must be a tuple of axes"),
    ({"search": ({"key": "lr", "low": 1.0, "high": 0.1},)}, "pbt.search[0]: low=1 must be below"),
    ({"search": ({"key": "lr", "low": 0.0, "high": 0.1},)}, "has no logarithm"),
    ({"search": ({"key": "model.dropout", "values": (0.1, 0.2)},)}, "no number that members"),
    ({"search": ({"key": "seed", "values": (0, 1)},)}, "pbt.search[0].key='seed' is no number"),
    ({"search": ({"key": "lr", "values": ("a", "b")},)}, "pbt.search[0].values[0]='a'"),
    ({"search": (SEARCH[0], SEARCH[0])}, "pbt.search name 'lr' twice"),
    (
        {"search": ({"key": "optimizer.decay", "values": (0.5, 1.5)},)},
        "pbt.search, at optimizer.decay=1.5: ",
    ),
    (
        {
            "search": ({"key": "weight_decay", "low": 1e-4, "high": 0.1},),
            "weight_decay": {"schedule": ({"name": "constant"},)},
        },
        "weight_decay has a schedule of its own",
    ),
    ({"batch": {"name": "plateau", "factor": 0.5, "size": 64}}, "batch.name='plateau' looks at"),
    ({"patience": 2}, "patience ends a single run"),
    ({"nonfinite": {"policy": "rollback"}}, "nonfinite.policy='rollback'"),
    ({"data": {"name": "digits", "validation": 0}}, "no validation examples"),
    ({"optimizer": {"name": "momentun"}}, "did you mean 'momentum'"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_bad_section_is_refused_by_its_field(changes, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        pbt.check(config(**changes))


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        pbt.check(config(pbt={"fraction": 0.9, "exploit": "x"}, search=((),), lr=-1.0, patience=0))
    said = str(caught.value)
    for word in ("pbt.fraction", "pbt.exploit", "pbt.search[0]", "lr=-1.0", "patience=0"):
        assert word in said
    with pytest.raises(ConfigError, match="pbt=None must be a section"):
        pbt.check({**config(), "pbt": None})


def test_intervals_in_any_unit():
    for interval, ends in [
        (4, (4, 8, 12, 16, 20)),
        ({"updates": 5}, (5, 10, 15, 20, 25)),
        ({"epochs": 0.5}, (4, 8, 12, 16, 20)),
        (None, (5, 11, 16, 22, 27)),
    ]:
        assert pbt.check(config(pbt={"interval": interval})).ends == ends
    growing = {"name": "increasing", "size": 64, "factor": 2, "every": 1}
    plan = pbt.check(config(epochs=5, batch=growing, pbt={"interval": {"epochs": 1}}))
    assert plan.ends == tuple(e.first + e.updates for e in plan.recipe.epochs())


@pytest.mark.slow
def test_numbers_of_a_schedule_and_growing_batches_are_replayed(tmp_path, undrawn):
    growing = {"name": "increasing", "size": 64, "factor": 2, "every": 2, "coupling": "linear"}
    changes = {"batch": growing, "schedule": ({"name": "cosine", "start": 1.0, "end": 0.1},)}
    run(tmp_path, epochs=5, **changes, pbt={"interval": {"epochs": 1}})
    summary = records.read_json(tmp_path / "summary.json")
    assert summary["read_back"]["equal"] == summary["read_back"]["copies"] > 0
    rows, path = rows_of(tmp_path), summary["path"]
    recipe = build.check(main.load_config(str(tmp_path / "replay.py")), parts=1)
    lanes = Lanes(recipe, recipe.read(), [Lane(0, recipe.config["lr"])], rows[-1]["updates"])
    used = lanes.advance(rows[-1]["updates"])[:, 0, RECORDED.index("lr")]
    for row, i in zip(rows, path, strict=True):
        assert used[row["updates"] - 1] == pytest.approx(row["lr"][i], rel=1e-6)


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("exploit", "compare", "stops"),
    [
        ("truncation", 0, (0, 1)),
        pytest.param("truncation", 2, (1, 2, 3, 5), marks=pytest.mark.slow),
        pytest.param("tournament", 2, (0, 4, 1, 3), marks=pytest.mark.slow),
    ],
)
def test_a_population_stopped_between_and_within_generations_is_the_one_not_stopped(
    tmp_path, monkeypatch, undrawn, exploit, compare, stops
):
    section = {"compare": compare, "exploit": exploit}
    changes = {"pbt": section, "checkpoint": {"minutes": 0}, "optimizer": {"name": "momentum"}}
    whole = run(tmp_path / "whole", **changes)
    monkeypatch.setattr(pbt, "STRETCH", 0.0)  # the least: stretches of one update
    save, interval, left, within = pbt._Trainer._save, pbt._Trainer._interval, [0], []

    def killed(trainer, arm, lanes, keep=False):
        left[0] -= 1
        if left[0] < 0 and len(within) % 2:  # what was written since the last save is ahead of it
            raise KilledError
        save(trainer, arm, lanes, keep)
        if left[0] < 0:
            raise KilledError

    def signalled(trainer, arm, lanes):
        trainer.came.append(signal.SIGTERM)
        try:
            interval(trainer, arm, lanes)
        finally:
            within.append((arm.name, lanes.step))

    for after in stops:
        left[0] = after
        with monkeypatch.context() as patch:
            patch.setattr(pbt._Trainer, "_save", killed)
            with pytest.raises(KilledError):
                run(tmp_path / "cut", **changes)
        for name in "generations", "lineage":
            with (tmp_path / "cut" / f"{name}.jsonl").open("a") as f:
                f.write('{"arm": "popu')  # torn by the kill
        with monkeypatch.context() as patch:
            patch.setattr(pbt, "FIRST", 2)
            patch.setattr(pbt._Trainer, "_interval", signalled)
            with pytest.raises(_start.Stopped):
                run(tmp_path / "cut", **changes)
    assert run(tmp_path / "cut", **changes) == whole
    assert rows_of(tmp_path / "cut", "lineage") == rows_of(tmp_path / "whole", "lineage")
    ends = {0, *(row["updates"] for row in whole)}
    assert {step for _, step in within} - ends, "no signal came within a generation"
    assert len({name for name, _ in within}) > 1 or not compare
    assert whole[4]["digest"]
    for name in "replay.py", "best.npz":
        both = [(tmp_path / f / name).read_bytes() for f in ("whole", "cut")]
        assert both[0].replace(b"/whole/", b"/cut/") == both[1]


ON_DEVICES = """
import json, os, sys
from pathlib import Path
from lrlab import devices
from lrlab.jobs import pbt
from lrlab.jobs._start import Options
devices.use_cache()
pbt.write_pbt = lambda folder, _: None
pbt.run(json.loads(sys.argv[1]), Path(sys.argv[2]), Options("test.py", "python"))
"""


@pytest.mark.slow
def test_one_device_and_two_train_the_same_population(whole, tmp_path):
    env = {**os.environ, "XLA_FLAGS": ""}
    given = json.dumps(config())
    command = [sys.executable, "-c", ON_DEVICES, given, str(tmp_path / "one")]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    found = [records.read_json(f / "environment.json") for f in (tmp_path / "one", whole)]
    assert [len(environment["devices"]) for environment in found] == [1, 2]
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(whole)[:5], strict=True):
        assert one["donors"] == two["donors"]
        assert one["values"] == two["values"]
        for key in "val_loss", "train_loss", "test_loss":
            np.testing.assert_allclose(one.get(key, 0), two.get(key, 0), rtol=1e-5)
        assert one["val_accuracy"] == two["val_accuracy"]


def test_the_recipe_of_a_population_is_sound():
    plan = pbt.check(main.load_config(str(ROOT / "configs" / "pbt_digits.py")))
    assert len(plan.first) == 32
    assert len(plan.ends) == 20
    assert plan.ends[-1] == plan.recipe.total


SLOW = (
    "--config=configs/pbt_digits.py",
    "--config.checkpoint.minutes=0",
    "--config.epochs=24",
    "--config.pbt.generations=24",
    "--config.pbt.compare=2",
)


def start(folder):
    command = [sys.executable, "-m", "lrlab.main", *SLOW, f"--workdir={folder}"]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(folder):
    assert start(folder).wait(600) == 0, (folder.parent / f"{folder.name}.log").read_text()
    rows = rows_of(folder)
    copies = rows_of(folder, "lineage")
    return rows, copies, records.read_json(folder / "summary.json")["digest"]


@pytest.mark.slow
def test_a_population_killed_twenty_times_is_the_one_not_killed(tmp_path):
    """F43: kill -9 at any moment: between generations, inside a save, inside a copy."""
    began = time.monotonic()
    whole = finish(tmp_path / "whole")
    took = time.monotonic() - began
    seed = random.SystemRandom().randrange(10**6)
    rng, seen = random.Random(seed), []
    print("seed", seed)
    folders = (tmp_path / f"killed {i}" for i in itertools.count())
    folder = next(folders)
    while len(seen) < 20:
        process = start(folder)
        try:
            process.wait(rng.uniform(0.3, 0.7) * took)
            assert finish(folder) == whole  # it ended first: another begins
            folder = next(folders)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            seen.append(len(records.read_lines(folder / "generations.jsonl")))
    assert finish(folder) == whole
    print(f"{len(seen)} kills, generations written at each: {seen}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
    whole = finish(tmp_path / "whole")
    process, folder = start(tmp_path / "cut"), tmp_path / "cut"
    while not (folder / "generations.jsonl").exists() or not rows_of(folder):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert "resume with:" in (tmp_path / "cut.log").read_text()
    assert 0 < len(rows_of(folder)) < len(whole[0])
    assert finish(folder) == whole
