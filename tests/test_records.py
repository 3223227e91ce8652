import json
import subprocess
import sys

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
