import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from lrlab import records


def test_rates_read_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    lr = np.exp(rng.uniform(-40, 40, 500)).astype(np.float32)
    loss = np.concatenate([lr[:-2], np.float32([np.nan, np.inf])])
    writer = records.Writer(tmp_path)
    writer.cut(0, 0)
    writer.updates(0, 1, 64, lr[:123], loss[:123])
    writer.updates(123, 2, 64, lr[123:], loss[123:])
    found = records.read(tmp_path).schedule
    np.testing.assert_array_equal(found["lr"], lr)
    np.testing.assert_array_equal(found["loss"], loss)
    np.testing.assert_array_equal(found["update"], np.arange(500))
    assert found["lr"].dtype == np.float32


def test_a_long_table_is_read_in_little_more_memory_than_it_takes(tmp_path):
    n = 100_000
    writer = records.Writer(tmp_path)
    writer.cut(0, 0)
    lr = np.random.default_rng(0).random(n).astype(np.float32)
    writer.updates(0, 1, 64, lr, lr)
    tracemalloc.start()
    found = records.read(tmp_path).schedule
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found["loss"], lr)
    assert peak < 100 * n, "as strings it would be 600 bytes an update"


def test_what_is_not_finite_is_null_in_every_file(tmp_path):
    nan, inf = float("nan"), float("inf")
    writer = records.Writer(tmp_path)
    writer.cut(0, 0)
    written = writer.row({"epoch": 1, "train_loss": nan, "best": {"val_loss": np.float32(inf)}})
    assert written == {"epoch": 1, "train_loss": None, "best": {"val_loss": None}}
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"epoch": 2, "train_loss": NaN}\n')  # of an lrlab that wrote it so
    writer.cut(2, 0)
    writer.event("stop", seconds=nan)
    records.write_json(tmp_path / "config.json", {"config": {"end": (inf, 1.0)}})
    refuse = lambda c: pytest.fail(f"{c} is not JSON")  # noqa: E731
    for name in "metrics.jsonl", "events.jsonl":
        for line in (tmp_path / name).read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    assert [r["train_loss"] for r in records.read(tmp_path).rows] == [None, None]
    assert records.digest([{"x": nan}]) == records.digest([{"x": None}])


def test_the_best_row_is_the_highest_accuracy_then_the_lowest_loss_and_never_nan():
    rows = [
        {"epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0},
        {"epoch": 2, "val_accuracy": 0.9, "val_loss": float("nan")},
        {"epoch": 3, "val_accuracy": 0.9, "val_loss": None},
        {"epoch": 4, "val_accuracy": 0.5, "val_loss": 0.9},
        {"epoch": 5, "val_accuracy": 0.5, "val_loss": 0.9},
    ]
    assert records.best(rows) is rows[3]
    assert records.best(rows[1:3]) is None


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    records.write_text(tmp_path / "a.json", "old")

    def full(path, text, **_):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        records.write_text(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_whoever_holds_the_lock_removes_what_killed_writes_left(tmp_path):
    for name in ".config.json.123", ".metrics.jsonl.4", ".schedule.csv.5":
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".notes.txt.1").touch()
    with records.locked(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".git", ".notes.txt.1", "lock"]


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_of_lrlabs_own_repository_or_of_the_current_folder(tmp_path, monkeypatch):
    foreign, other = tmp_path / "foreign", tmp_path / "other"
    package = foreign / "venv" / "site-packages" / "lrlab"
    package.mkdir(parents=True)
    other.mkdir()
    for file in package / "records.py", foreign / "thesis.tex":
        file.write_text("")
    git(foreign, "init")
    git(foreign, "add", "thesis.tex")
    git(foreign, "commit", "-m", "a thesis")
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(other)
    assert records._commit() == {}  # the thesis holds site-packages, and is not lrlab
    monkeypatch.chdir(foreign)
    found = records._commit()
    assert (found["git_of"], found["git_dirty"]) == ("current directory", False)
    git(foreign, "add", "venv")
    git(foreign, "commit", "-m", "lrlab too")
    monkeypatch.chdir(other)
    assert records._commit()["git_of"] == "lrlab"
    (package / "records.py").write_text("# changed")
    assert records._commit()["git_dirty"]


def test_cutting_keeps_the_first_rows_and_updates_and_heals_torn_lines(tmp_path):
    writer = records.Writer(tmp_path)
    writer.cut(0, 0)
    for i in range(5):
        writer.row({"epoch": i, "step": i})
    writer.updates(0, 1, 8, np.ones(10, np.float32), np.ones(10, np.float32))
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"epoch": 5, "st')
    with (tmp_path / "schedule.csv").open("a") as f:
        f.write("10,1,0.")
    record = records.read(tmp_path)  # a reader is not disturbed
    assert len(record.rows) == 5
    assert len(record.schedule["lr"]) == 10
    writer = records.Writer(tmp_path)
    writer.cut(3, 7)
    writer.row({"epoch": 9, "step": 9})
    writer.updates(7, 1, 8, np.ones(1, np.float32), np.ones(1, np.float32))
    record = records.read(tmp_path)
    assert [r["epoch"] for r in record.rows] == [0, 1, 2, 9]
    assert record.schedule["update"].tolist() == list(range(8))
    assert writer.rows == 4


def test_a_row_broken_in_the_middle_is_an_error_that_names_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2"):
        records.read(tmp_path)


def test_equal_configs_have_one_hash_and_others_another():
    a = {"lr": 0.1, "schedule": ({"name": "cosine", "start": 1.0},), "seed": np.int64(3)}
    b = {"seed": 3, "schedule": [{"start": 1.0, "name": "cosine"}], "lr": 0.1}
    assert (
        records.config_hash(a)
        == records.config_hash(b)
        == records.config_hash(json.loads(records.canonical(a)))
    )
    assert records.config_hash(a) != records.config_hash({**a, "lr": 0.2})


def test_the_digest_ignores_what_is_timed_and_nothing_else():
    row = {"epoch": 1, "val_loss": 0.5, "seconds": 1.0, "examples_per_second": 10}
    assert records.digest([row]) == records.digest(
        [{**row, "seconds": 2.0, "examples_per_second": None}]
    )
    assert records.digest([row]) != records.digest([{**row, "val_loss": np.nextafter(0.5, 1)}])


RACER = """
import sys, time, pathlib
from lrlab import records
folder, gun = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
print("ready", flush=True)
while not gun.exists():
    pass
try:
    with records.locked(folder):
        print("won", flush=True)
        sys.stdin.read()
except records.LockedError as e:
    print(e, flush=True)
"""


def test_of_many_starts_on_one_folder_exactly_one_writes(tmp_path):
    for race in range(3):
        folder, gun = tmp_path / f"run{race}", tmp_path / f"gun{race}"
        command = [sys.executable, "-c", RACER, str(folder), str(gun)]
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        racers = [subprocess.Popen(command, **pipe) for _ in range(8)]
        assert [r.stdout.readline() for r in racers] == ["ready\n"] * 8
        gun.touch()
        said = [r.stdout.readline().strip() for r in racers]
        for r in racers:
            r.communicate()
        assert said.count("won") == 1
        assert all("another process trains in" in s for s in said if s != "won")
        with records.locked(folder):  # free again once its holder has ended
            pass


def test_the_lock_says_who_holds_it(tmp_path):
    with (
        records.locked(tmp_path),
        pytest.raises(records.LockedError, match=r"host .*, process \d+, since 20"),
        records.locked(tmp_path),
    ):
        pass


def test_the_environment_holds_versions_and_no_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-1234")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    found = records.environment()
    assert {"python", "jax", "optax", "flax", "lrlab", "platform"} <= found.keys()
    assert found["xla_flags"].endswith("=2")
    assert "canary" not in json.dumps(found)


def test_a_table_torn_at_any_byte_reads_and_heals(tmp_path):
    writer = records.Writer(tmp_path)
    writer.cut(0, 0)
    lr = np.float32([0.1, 1e-7, 3.0])
    writer.updates(0, 1, 8, lr, lr)
    whole = (tmp_path / "schedule.csv").read_bytes()
    for end in range(len(whole) + 1):
        (tmp_path / "schedule.csv").write_bytes(whole[:end])
        complete = max(0, whole[:end].count(b"\n") - 1)
        assert len(records.read(tmp_path).schedule["lr"]) == complete
        again = records.Writer(tmp_path)
        again.cut(0, 3)
        again.updates(complete, 1, 8, lr[complete:], lr[complete:])
        assert (tmp_path / "schedule.csv").read_bytes() == whole


def test_a_torn_event_is_healed_by_the_next(tmp_path):
    writer = records.Writer(tmp_path)
    writer.event("start", step=0)
    with (tmp_path / "events.jsonl").open("a") as f:
        f.write('{"event": "sta')
    writer.event("resume", step=3)
    assert [e["event"] for e in records.read(tmp_path).events] == ["start", "resume"]
