import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, tiny
from test_loop import start as start_run

from lrlab import build, main, records
from lrlab.jobs import sweep
from lrlab.jobs._start import Options
from lrlab.resolve import ConfigError

AXES = (
    {"key": "optimizer", "values": ({"name": "momentum"}, {"name": "adam"})},
    {"key": "lr", "low": 1e-3, "high": 1.0, "points": 4},
    {"key": "seed", "values": (0, 1)},
)


def config(axes=AXES, **changes):
    section = {"axes": axes, **changes.pop("sweep", {})}
    return tiny(job={"name": "sweep"}, sweep=section, **changes)


def run(folder, **changes):
    sweep.run(config(**changes), folder, Options("test.py", "python -m lrlab.main"))
    return records.trials(folder)


def test_numbers_of_the_chain_are_lanes_and_all_else_makes_groups():
    axes = (
        {"key": "optimizer", "values": ({"name": "momentum"}, {"name": "adam"})},
        {"key": "weight_decay", "values": (0.0, 0.1)},
        {"key": "batch.size", "values": (64, 128)},
        {"key": "lr", "values": (0.1, 0.2, 0.3)},
    )
    plan = sweep.check(config(axes))
    assert len(plan.trials) == 24
    assert [len(g.trials) for g in plan.groups] == [6] * 4
    assert {g.keys for g in plan.groups} == {("weight_decay", "lr")}
    sizes = {(g.recipe.config["optimizer"]["name"], g.recipe.regime.sizes[0]) for g in plan.groups}
    assert sizes == {("momentum", 64), ("momentum", 128), ("adam", 64), ("adam", 128)}


def test_a_rules_own_keyword_is_a_lane_value_of_the_rule():
    axes = ({"key": "optimizer.b1", "values": (0.5, 0.9)}, {"key": "lr", "values": (0.01, 0.02)})
    plan = sweep.check(config(axes, optimizer={"name": "adam"}))
    (group,) = plan.groups
    assert [group.lane(t).values for t in group.trials] == [{"b1": b} for b in (0.5, 0.5, 0.9, 0.9)]


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (({"key": "lr", "values": (0.1, -0.1)},), "lr=-0.1 must lie in (0"),
        (({"key": "optimizer.b3", "values": (0.1, 0.2)},), "b3"),
        (({"key": "optimizer.decay", "values": (0.9, 1.5)},), "1.5"),
        (({"key": "model.widths", "values": ((4,), (0,))},), "0"),
        (({"key": "optimizer", "values": ({"name": "sgd"}, {"name": "adm"})},), "'adam'"),
    ],
)
def test_one_bad_point_refuses_the_sweep_and_is_named(axes, says):
    with pytest.raises(ConfigError) as caught:
        sweep.check(config(axes))
    assert says in str(caught.value)
    assert "trial 1 (" in str(caught.value) or "trial 0 (" in str(caught.value)


def test_a_sweep_trains_every_trial_once_and_shows_the_valley(tmp_path):
    rows = run(tmp_path)
    assert [r["trial"] for r in rows] == list(range(16))
    assert {r["outcome"] for r in rows} == {"budget"}
    assert all(r["updates"] == 18 and 0 <= r["val_accuracy"] <= 1 for r in rows)
    summary = records.read_json(tmp_path / "summary.json")
    by_rate = {}
    for r in rows:
        if r["optimizer"] == "adam":
            by_rate.setdefault(r["lr"], []).append(r["val_accuracy"])
    best = max(by_rate, key=lambda lr: np.mean(by_rate[lr]))
    adam = next(v for v in summary["valleys"] if v["name"] == "adam")
    assert adam["best"]["lr"] == best
    assert adam["best"]["val_accuracy"] == pytest.approx(np.mean(by_rate[best]))
    for name in "trials.csv", "trials.tex", "trials.parquet", "report.html", "plots/valley.png":
        assert (tmp_path / name).stat().st_size > 0, name
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [r["val_loss"] for r in table] == [r["val_loss"] for r in rows]
    page = (tmp_path / "report.html").read_text()
    assert "finished" in page
    assert "momentum" in page
    assert "https:" not in page
    assert "http:" not in page.replace("http://www.w3.org", ""), "a report needs nothing else"


def test_a_finished_sweep_says_so_and_another_is_refused(tmp_path, capsys):
    axes = ({"key": "lr", "values": (0.1, 0.2)},)
    run(tmp_path, axes=axes)
    before = (tmp_path / "trials.jsonl").read_bytes()
    run(tmp_path, axes=axes)
    assert "already finished" in capsys.readouterr().out
    assert (tmp_path / "trials.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="another config"):
        run(tmp_path, axes=({"key": "lr", "values": (0.1, 0.3)},))


def test_a_run_of_before_a_field_was_there_goes_on(tmp_path, capsys):
    axes = ({"key": "lr", "values": (0.1, 0.2)},)
    run(tmp_path, axes=axes)
    stored = records.read_json(tmp_path / "config.json")
    assert stored["config"].pop("noise_scale") is False
    records.write_json(tmp_path / "config.json", stored)
    run(tmp_path, axes=axes)
    assert "already finished" in capsys.readouterr().out


def test_targets_and_divergence_end_trials_and_are_recorded(tmp_path, capsys):
    axes = ({"key": "lr", "values": (0.05, 1e5)},)  # rate * decay far above 2: weights blow up
    changes = {"epochs": 20, "optimizer": {"name": "momentum"}, "weight_decay": 0.01}
    section = {"target": {"accuracy": 0.9, "examples": 512}, "look": 10}
    hit, lost = run(tmp_path, axes=axes, sweep=section, **changes)
    assert hit["outcome"] == "target"
    assert 4 < hit["updates"] < 180
    assert lost["outcome"] == "diverged"
    assert lost["last_lr"] == pytest.approx(1e5, rel=0.1)
    summary = records.read_json(tmp_path / "summary.json")
    done = hit["updates"] + lost["updates"]
    assert (summary["updates"], summary["at_most"]) == (done, 2 * 180)
    assert f"{done:,} updates; trials that ended early saved {1 - done / 360:.0%}" in (
        capsys.readouterr().out
    )


def trials_of(folder):
    rows = records.read_lines(folder / "trials.jsonl")
    for row in rows:
        row.pop("seconds")
    return sorted(rows, key=lambda r: r["trial"])


SEEING = {
    "plateau": {"factor": 0.3, "patience": 1, "threshold": 0.2, "size": 64},
    "plateau_growth": {"factor": 2, "patience": 1, "threshold": 0.2, "cap": 256, "size": 64},
    "noise": {"cap": 256, "share": 0.5, "size": 32},
}


@pytest.mark.parametrize(
    "name", ["plateau", *(pytest.param(n, marks=pytest.mark.slow) for n in list(SEEING)[1:])]
)
def test_lanes_whose_regime_looks_at_them_part_and_are_the_single_runs(tmp_path, name, capsys):
    axes = ({"key": "lr", "values": (0.003, 0.02, 0.1)}, {"key": "seed", "values": (0, 1)})
    changes = {"epochs": 6, "batch": {"name": name, **SEEING[name]}, "sweep": {"look": 17}}
    rows = {r["trial"]: r for r in run(tmp_path / "sweep", axes=axes, **changes)}
    assert sorted(rows) == list(range(6))
    assert "saved" not in capsys.readouterr().out, "none ended early"
    base = tiny(**{k: v for k, v in changes.items() if k != "sweep"})
    courses = set()
    for row in rows.values():
        folder = tmp_path / str(row["trial"])
        start_run(folder, {**base, "lr": row["lr"], "seed": row["seed"]})
        single = records.read(folder).rows
        courses.add(tuple((r["batch_size"], round(r["lr"] / row["lr"], 3)) for r in single))
        if name == "noise":  # measured between two devices there, and within one here
            continue
        assert row["updates"] == single[-1]["step"]
        assert row["examples"] == single[-1]["examples"]
        assert row["val_loss"] == pytest.approx(single[-1]["val_loss"], rel=2e-3)
        assert row["last_lr"] == pytest.approx(single[-1]["lr"], rel=1e-5)
    assert len(courses) > 1, "all lanes came to the same batches and rates"
    if name != "plateau":
        assert len({r["updates"] for r in rows.values()}) > 1, "no lane parted"


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_lanes_that_parted_are_resumed_whatever_waits(tmp_path, monkeypatch):
    axes = ({"key": "lr", "values": (0.003, 0.02, 0.1)}, {"key": "seed", "values": (0, 1)})
    changes = {
        "epochs": 6,
        "batch": {"name": "plateau_growth", **SEEING["plateau_growth"]},
        "sweep": {"look": 17},
        "checkpoint": {"minutes": 0},
    }
    run(tmp_path / "whole", axes=axes, **changes)
    whole = trials_of(tmp_path / "whole")
    save, waiting, left = sweep._Conductor.save, [], [0]

    def killed(conductor):
        save(conductor)
        left[0] -= 1
        if left[0] < 0:
            waiting.append(len(conductor.waves) - 1)
            raise KilledError

    for allowed in (2, 3, 2, 1):
        left[0] = allowed
        with monkeypatch.context() as patch:
            patch.setattr(sweep._Conductor, "save", killed)
            with pytest.raises(KilledError):
                run(tmp_path / "cut", axes=axes, **changes)
    run(tmp_path / "cut", axes=axes, **changes)
    assert trials_of(tmp_path / "cut") == whole
    assert max(waiting) > 0, "nothing waited when it was killed"


CHANGES = (
    "--config=configs/sweep_digits.py",
    "--config.checkpoint.minutes=0",
    "--config.sweep.look=20",
    "--config.epochs=20",
    '--config.sweep.axes=({"key": "optimizer", "values": ({"name": "momentum"}, {"name": "adam"})},'
    ' {"key": "lr", "low": 1e-4, "high": 1e3, "points": 48})',
)


def start(folder):
    command = [sys.executable, "-m", "lrlab.main", *CHANGES, f"--workdir={folder}"]
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PJRT_NPROC")}
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def finish(process, folder):
    assert process.wait(300) == 0, (folder.parent / f"{folder.name}.log").read_text()
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["trial"] for line in lines) == list(range(96)), "lost or twice"
    return trials_of(folder)


@pytest.mark.slow
def test_a_sweep_of_96_killed_ten_times_loses_no_trial_and_trains_none_twice(tmp_path):
    whole = finish(start(tmp_path / "whole"), tmp_path / "whole")
    seed = random.SystemRandom().randrange(10**6)
    rng, seen, took = random.Random(seed), [], 60.0
    print("seed", seed)
    folders = (tmp_path / f"killed {i}" for i in itertools.count())
    folder = next(folders)
    while len(seen) < 10:
        began, fresh = time.monotonic(), not folder.exists()
        process = start(folder)
        try:
            process.wait(rng.uniform(0.3, 0.9) * took)
            assert finish(process, folder) == whole
            # It ended first: another begins. Programs come from the cache by now, so moments are
            # drawn from what a whole run takes now, not from what the first one took.
            took = time.monotonic() - began if fresh else took
            folder = next(folders)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            seen.append(len(records.read_lines(folder / "trials.jsonl")))
    assert finish(start(folder), folder) == whole
    print(f"{len(seen)} kills, trials done at each: {seen}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed", *SEEING])
def test_a_sweeps_rows_are_those_of_the_single_runs(tmp_path, name):
    folder = tmp_path / "sweep"
    batch = f"--config.batch={ ({'name': name, **SEEING.get(name, {'size': 64})}) }"
    changes = "--config.sweep.axes=({'key': 'lr', 'values': (0.01, 0.03, 0.06)},)", batch
    code = main.main(["lrlab", "--config=configs/sweep_digits.py", *changes, f"--workdir={folder}"])
    assert code == 0
    for row in records.trials(folder):
        single = [
            "--config=configs/sweep_digits.py",
            "--config.job.name=train",
            "--config.sweep=None",
            batch,
            f"--config.lr={row['lr']}",
            f"--workdir={tmp_path / str(row['trial'])}",
        ]
        env = {**os.environ, "XLA_FLAGS": ""}
        subprocess.run([sys.executable, "-m", "lrlab.main", *single], cwd=ROOT, env=env, check=True)
        record = records.read(tmp_path / str(row["trial"]))
        final = record.final
        assert (row["updates"], row["examples"]) == (final["step"], record.rows[-1]["examples"])
        assert final["test_loss"] == pytest.approx(row["test_loss"], rel=1e-5)
        assert final["test_accuracy"] == pytest.approx(row["test_accuracy"], rel=1e-5)


ON_ONE_DEVICE = """
import sys, tempfile
from pathlib import Path
from lrlab import build, loop, main, records
from lrlab.checkpoint import Checkpoints
from lrlab.lanes import Lane, Lanes
config = main.load_config("configs/digits.py") | {"epochs": 2}
recipe = build.check(config)
data = recipe.read()
rates = 0.05, 0.1, 0.2
lanes = Lanes(recipe, data, [Lane(0, lr) for lr in rates], recipe.total)
lanes.advance(recipe.total)
for i, lr in enumerate(rates):
    folder = Path(sys.argv[1]) / str(i)
    with records.locked(folder) as writer, Checkpoints(folder / "c") as saves:
        run = loop.Run(build.check(config | {"lr": lr}), data, writer, saves)
        run.resume()
        for _ in loop.fit(run):
            pass
    assert run.digest() == lanes.digest(i), lr
"""


@pytest.mark.slow
def test_a_lane_on_one_device_is_the_single_run_bit_for_bit(tmp_path):
    env = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", ON_ONE_DEVICE, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=env, check=True)


def test_the_recipes_lanes_need_not_divide_by_devices():
    recipe = build.check(tiny(batch={"name": "fixed", "size": 125}), parts=1)
    assert recipe.regime.sizes == (125,)
