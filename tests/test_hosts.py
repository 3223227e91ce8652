"""One run on several hosts, which are processes here: the same run, whatever happens to one."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from lrlab import devices, records
from lrlab.resolve import ConfigError

WORKER = Path(__file__).parent / "hosts_worker.py"
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.seed, c.epochs, c.lr = 3, 4, 0.05
    c.data = ConfigDict(dict(name="digits"))
    c.model = ConfigDict(dict(name="mlp.MLP", widths=(32,), dropout=0.2))
    c.batch = ConfigDict(dict(name="fixed", size=64))
    c.optimizer = ConfigDict(dict(name="momentum", decay=0.9))
    c.schedule = (dict(name="cosine", start=1.0, end=0.1),)
    return c
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(each=1):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={each}",
        "PJRT_NPROC": "16",
    }


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(CONFIG)
    return file


class Hosts:
    """`count` processes that train one run; they end with the block."""

    def __init__(self, config, folder, count, *more, each=1, change=None):
        port, name = free_port(), folder.name
        self.logs = [folder.parent / f"{name}.{i}.log" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            words = [sys.executable, "-m", "lrlab.main", f"--config={config}"]
            words += [f"--workdir={folder}", *more]
            if count > 1:
                words += [f"--coordinator=127.0.0.1:{port}", f"--process_count={count}"]
                words += [f"--process_index={i}"]
            words += (change or {}).get(i, [])
            with log.open("w") as out:
                one = subprocess.Popen(
                    words, stdout=out, stderr=subprocess.STDOUT, env=environment(each), cwd=ROOT
                )
            self.processes.append(one)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def codes(self, seconds=180):
        end = time.monotonic() + seconds
        return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]

    def said(self, i=0):
        return self.logs[i].read_text()


def train(config, folder, count, *more, each=1):
    with Hosts(config, folder, count, *more, each=each) as hosts:
        assert hosts.codes() == [0] * count, "\n".join(map(hosts.said, range(count)))
    return records.read(folder)


def same_run(one, other, updates=None):
    """The rates are equal, and the losses to a relative 1e-5; returns the largest difference."""
    rates, losses = (
        np.array([r.schedule[key][:updates] for r in (one, other)], np.float64)
        for key in ("lr", "loss")
    )
    np.testing.assert_array_equal(rates[0], rates[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    return float(np.abs(losses[1] / losses[0] - 1).max())


def test_what_hosts_tell_each_other_arrives_to_the_bit(tmp_path):
    port, files = free_port(), [tmp_path / f"{i}.json" for i in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, WORKER, str(port), str(i), file],
            env=environment(),
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        for i, file in enumerate(files)
    ]
    for process in running:
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, errors.decode()
    said = [json.loads(f.read_text()) for f in files]
    assert [s.pop("first") for s in said] == [True, False]
    assert [s.pop("mine") for s in said] == [[0, 1], [1, 2]]
    assert [s.pop("failed 0") for s in said] == [
        "own error",
        "host 0 of 2 could not go on; it says why",
    ]
    assert [s.pop("failed 1") for s in said] == [
        "host 1 of 2 could not go on; it says why",
        "own error",
    ]
    assert said[0] == said[1]
    weights = np.array([-0.0, np.nan, 1e-40, np.inf], np.float32)
    assert said[0] == {
        "hosts": 2,
        "devices": 2,
        "largest": 0.2,
        "told": 1 / 3,
        "led": 5.5,
        "shared": {"w": weights.tobytes().hex(), "step": np.int32(7).tobytes().hex()},
        "position": {"epoch": 3, "note": "ü" * 5},
        "nothing": True,
        "same": [],
        "other": [1],
    }


def test_a_single_process_agrees_with_itself():
    assert devices.hosts() == 1
    assert devices.is_first()
    assert devices.mine() == slice(0, devices.count())
    assert devices.largest(0.3) == devices.told(0.3) == devices.led(lambda: 0.3) == 0.3
    assert devices.differs({"w": np.ones(3)}) == []
    with pytest.raises(KeyError), devices.together():
        raise KeyError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("10.0.0.1:1234", None, 0), ["--process_count missing: give all three"]),
        ((None, 2, None), ["--coordinator, --process_index missing"]),
        (("10.0.0.1", 2, 0), ["--coordinator=10.0.0.1 must be host:port"]),
        (("a:99999", 2, 2), ["a:99999 must be host:port", "--process_index=2 must be 0 to 1"]),
        (("a:1", 0, 0), ["--process_count=0 must be at least 1"]),
    ],
)
def test_hosts_that_are_named_wrongly_are_told_so(given, told):
    with pytest.raises(ConfigError) as e:
        devices.join(*given)
    assert len(e.value.problems) == len(told)
    for problem, text in zip(e.value.problems, told, strict=True):
        assert text in problem


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_several_hosts_train_the_run_of_one(config, tmp_path, placement):
    how = f"--config.placement={placement}"
    one = train(config, tmp_path / "one", 1, how)
    assert len(one.schedule["lr"]) > 70
    for count, each in ((2, 1), (4, 1), (2, 2)):
        several = train(config, tmp_path / f"{count}x{each}", count, how, each=each)
        worst = same_run(one, several)
        print(f"{placement}: {count} hosts of {each}: losses within {worst:.1e} of one's")
        for row, other in zip([*one.rows, one.final], [*several.rows, several.final], strict=True):
            assert {k for k in row if k != "seconds"} == {k for k in other if k != "seconds"}
            for key in set(row) - {"seconds", "examples_per_second", "state_sha256", "event"}:
                assert other[key] == pytest.approx(row[key], rel=1e-4), key
        assert several.environment["hosts"] == count
        assert len(several.environment["devices"]) == count * each
    both = train(config, tmp_path / "1x2", 1, how, each=2)
    two = records.read(tmp_path / "2x1")
    assert two.final["state_sha256"] == both.final["state_sha256"]  # as many devices: to the bit


HARDER = {  # what has more to agree on than weights
    "batch statistics": [
        "--config.model={'name': 'resnet.ResNet', 'stage_sizes': (1,), 'width': 8}",
        "--config.epochs=1",
    ],
    "batches that grow": [
        "--config.batch={'name': 'increasing', 'size': 32, 'factor': 2, 'at': (1, 2)}",
    ],
    "the noise scale": [
        "--config.batch={'name': 'noise', 'size': 32, 'factor': 2, 'cap': 128}",
    ],
    "an average, states kept": ["--config.ema=0.9", "--config.checkpoint.at=(1, 3)"],
    "roll-backs": [
        "--config.lr=1e6",
        "--config.nonfinite={'policy': 'rollback', 'factor': 1e-7, 'most': 3}",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARDER)
def test_two_hosts_do_what_two_devices_do(config, tmp_path, name):
    both = train(config, tmp_path / "both", 1, *HARDER[name], each=2)
    two = train(config, tmp_path / "two", 2, *HARDER[name])
    same_run(both, two)
    assert len(both.rows) == len(two.rows) > 0
    for file in ("metrics.jsonl", "schedule.csv"):
        lines = [(tmp_path / who / file).read_text().count("\n") for who in ("both", "two")]
        assert lines[0] == lines[1]
    if name == "roll-backs":
        assert [r["event"] for r in two.happened] == [r["event"] for r in both.happened] != []
    kept = [sorted(p.name for p in (tmp_path / w).glob("snapshots/*")) for w in ("both", "two")]
    assert kept[0] == kept[1]
    assert bool(kept[0]) == ("kept" in name)


LONG = "--config.epochs=4000"


def until(hosts, folder, updates, seconds=120):
    """Waits until the record shows so many updates."""
    end, file = time.monotonic() + seconds, folder / "schedule.csv"
    while time.monotonic() < end:
        if file.exists() and file.read_bytes().count(b"\n") > updates:
            return
        assert all(p.poll() is None for p in hosts.processes), hosts.said()
        time.sleep(0.02)
    raise AssertionError(hosts.said())


@pytest.mark.slow
def test_sigterm_on_any_host_saves_the_same_update_on_all(config, tmp_path):
    """Fault F07, on 2 to 4 hosts in turn: the run goes on on another number of them each time."""
    folder, seed = tmp_path / "run", int(os.environ.get("LRLAB_SEED", "7"))
    print("seed", seed)
    rng, times = random.Random(seed), int(os.environ.get("LRLAB_STOPS", "6"))
    stopped = [0]
    for turn in range(times):
        count = 4 if turn % 3 == 2 else 2
        with Hosts(config, folder, count, LONG) as hosts:
            until(hosts, folder, stopped[-1] + rng.randrange(1, 150))
            victim, number = rng.randrange(count), rng.choice([signal.SIGTERM, signal.SIGINT])
            hosts.processes[victim].send_signal(number)
            assert hosts.codes(60) == [128 + number] * count, "\n".join(
                map(hosts.said, range(count))
            )
            told = [
                re.findall(r"stopped by \w+ at update ([\d,]+), saved", hosts.said(i))
                for i in range(count)
            ]
            assert len({tuple(t) for t in told}) == 1, told
            at = int(told[0][0].replace(",", ""))
        manifests = sorted(int(p.stem) for p in (folder / "checkpoints").glob("*.manifest"))
        assert manifests[-1] == at > stopped[-1]
        print(f"stop {turn + 1}: {count} hosts, signal to host {victim}: all at update {at}")
        stopped.append(at)
    assert len(records.read(folder).schedule["lr"]) == stopped[-1]


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4])
def test_a_run_stopped_on_two_hosts_goes_on_on_another_number(config, tmp_path, after):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    how = ["--config.epochs=30"]
    with Hosts(config, folder, 2, *how) as hosts:
        until(hosts, folder, 60)
        hosts.processes[1].send_signal(signal.SIGTERM)
        assert hosts.codes(60) == [143, 143]
    at = len(records.read(folder).schedule["lr"])
    resumed = train(config, folder, after, *how)
    reference = train(config, whole, 2, *how)
    worst = same_run(reference, resumed, at + 50)
    print(f"stopped at {at}, went on on {after}: losses within {worst:.1e} after 50 updates")
    assert at < 500
    assert resumed.schedule["update"].tolist() == list(range(len(reference.schedule["lr"])))
    np.testing.assert_array_equal(resumed.schedule["lr"], reference.schedule["lr"])
    moved = [e for e in resumed.events if e["event"] == "resume"][-1]["warning"]
    assert "2 x cpu on 2 hosts" in moved


@pytest.mark.slow
def test_a_host_that_is_killed_ends_the_others_and_nothing_is_lost(config, tmp_path):
    folder, how = tmp_path / "run", ["--config.epochs=40", "--config.checkpoint.minutes=0.001"]
    with Hosts(config, folder, 2, *how) as hosts:
        until(hosts, folder, 100)
        hosts.processes[1].kill()
        codes = hosts.codes(150)
        assert codes[0] != 0
        assert codes[1] == -signal.SIGKILL
    resumed = train(config, folder, 2, *how)
    whole = train(config, tmp_path / "whole", 2, *how)
    assert records.digest([*resumed.rows, resumed.final]) == records.digest(
        [*whole.rows, whole.final]
    )
    assert resumed.events[-2]["event"] == "resume"
    assert resumed.events[-2]["step"] > 0


@pytest.mark.slow
def test_what_ends_one_host_before_training_ends_all(config, tmp_path):
    folder = tmp_path / "run"
    with records.locked(folder), Hosts(config, folder, 2) as hosts:
        assert hosts.codes(60) == [75, 5], hosts.said()
        assert "another process trains" in hosts.said(0)
        assert "host 0 of 2 could not go on" in hosts.said(1)
    with contextlib.suppress(FileNotFoundError):
        (folder / "lock").unlink()
    broken = {1: ["--config.data.name=tfds:mnist"]}  # which is not on that host
    with Hosts(config, folder, 2, change=broken) as hosts:
        assert all(hosts.codes(120))


def test_many_runs_are_not_for_several_hosts(config, tmp_path, capsys):
    from lrlab.main import main

    words = ["main", f"--config={ROOT / 'configs/sweep_digits.py'}", "--distributed"]
    assert main(words) == 2
    assert "--launch" in capsys.readouterr().err
