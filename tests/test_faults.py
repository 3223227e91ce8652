"""faults.md, tried with child processes: kills, signals, locks, damaged checkpoints.

Each test prints the seed that replays it.
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, tiny

from lrlab import records
from lrlab.checkpoint import Checkpoints
from lrlab.jobs import _start, train
from lrlab.resolve import ConfigError

README = (ROOT / "README.md").read_text()

README_SCHEDULES = re.findall(r"^\| ([^|]+) \| `('\(\{.*)` \|$", README, re.MULTILINE)
EPOCHS = "--config.epochs=25"
SMALL = (
    "--config=configs/digits.py",
    EPOCHS,
    "--config.checkpoint.minutes=0",  # saves after every stretch and epoch
    "--config.model.widths=(32,)",
)


def start(folder, *more, python=("-m", "lrlab.main"), **env):
    """A child that trains in `folder`; `more` changes SMALL."""
    changed = {m.partition("=")[0] for m in more}
    small = [s for s in SMALL if s.partition("=")[0] not in changed]
    command = [sys.executable, *python, *small, f"--workdir={folder}", *more]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": "", **env}, **pipe)


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def digest(folder):
    """Of the final state and every row and update of a run, times aside."""
    record = records.read(folder)
    assert record.final, "unfinished"
    rows = records.read_lines(folder / "metrics.jsonl")
    updates = record.schedule["update"].tolist()
    assert updates == list(range(record.final["step"])), "an update is missing or twice"
    return records.digest(rows), (folder / "schedule.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(folder / "warm"))  # compiles
    began = time.monotonic()
    code, _, err = finish(start(folder / "run"))
    assert code == 0, err
    return digest(folder / "run"), time.monotonic() - began


def kill_until_done(folder, rng, seconds, most):
    """Kills a run at random moments, at most so often, and lets it end; returns the kills."""
    kills = 0
    while True:
        process = start(folder)
        if kills < most:
            try:
                process.wait(rng.uniform(0.3, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
        code, _, err = finish(process)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, err


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_run(tmp_path, undisturbed):
    reference, seconds = undisturbed
    seed = int(os.environ.get("LRLAB_SEED", 1))
    rng, kills, runs = random.Random(seed), 0, 0
    while kills < 10:
        folder = tmp_path / str(runs)
        kills += kill_until_done(folder, rng, seconds, most=5)
        assert digest(folder) == reference, f"seed {seed}, run {runs}"
        leftovers = [p.name for p in (folder / "checkpoints").iterdir() if "tmp" in p.name]
        assert leftovers == []
        runs += 1
    print(f"seed {seed}: {kills} kills, {runs} runs resumed to the end, {runs} digests equal")


SIGNALLED = """
import os, sys
from lrlab import loop, main
fit, number, at = loop.fit, int(sys.argv.pop(1)), int(sys.argv.pop(1))

def signalled(run):
    for item in fit(run):
        if isinstance(item, loop.Stretch) and run.step >= at:
            os.kill(os.getpid(), number)
        yield item

loop.fit = signalled
main.cli()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, undisturbed, number, code):
    reference, _ = undisturbed
    script = ("-c", SIGNALLED, str(int(number)), "100")
    returned, out, err = finish(start(tmp_path / "run", python=script))
    assert returned == code, err
    assert "Traceback" not in err
    assert "resume with: python -m lrlab.main --config=configs/digits.py" in err
    assert len(err.strip().splitlines()) <= 5
    saved = max(int(p.stem) for p in (tmp_path / "run" / "checkpoints").glob("*.manifest"))
    assert saved >= 100
    assert f"at update {saved}, saved" in err
    assert len(records.read(tmp_path / "run").schedule["lr"]) == saved, "no step lost"
    code, out, err = finish(start(tmp_path / "run"))
    assert code == 0, err
    assert f"resuming at update {saved:,}" in out
    assert digest(tmp_path / "run") == reference


SLOW_COMPILER = """
import ctypes
from lrlab import epoch, main
compile = epoch.Training.compile

def slow(self, state):
    if self._compiled is None:
        ctypes.CDLL(None).sleep(60)  # as XLA does, it keeps the signals of its thread waiting
    return compile(self, state)

epoch.Training.compile = slow
main.cli()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_it_compiles_ends_it_at_once(tmp_path, number, code):
    began = tmp_path / "run" / "events.jsonl"
    process = start(tmp_path / "run", python=("-c", SLOW_COMPILER))
    while not began.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    sent = time.monotonic()
    process.send_signal(number)
    returned, _, err = finish(process)
    assert time.monotonic() - sent < 20  # and not the 60 that compiling lasts
    assert returned == code, err
    assert "at update 0, with nothing to save yet" in err
    assert "resume with:" in err
    assert [e["event"] for e in records.read(tmp_path / "run").events] == ["start", "stop"]


def test_a_hangup_that_was_ignored_before_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with _start.signals() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_writer_is_told_who_holds_the_run(tmp_path):
    with records.locked(tmp_path / "run"):
        code, _, err = finish(start(tmp_path / "run"))
    assert code == 75
    assert "another process trains in" in err
    assert f"process {os.getpid()}" in err


def test_a_finished_run_says_so_and_another_config_is_refused(tmp_path, undisturbed):
    code, _, err = finish(start(tmp_path / "run", "--config.epochs=2"))
    assert code == 0, err
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    code, out, _ = finish(start(tmp_path / "run", "--config.epochs=2"))
    assert code == 0
    assert "already finished" in out
    code, _, err = finish(start(tmp_path / "run", "--config.epochs=3", "--config.lr=0.05"))
    assert code == 2
    assert "epochs: 2 there, 3 now" in err
    assert "lr: 0.1 there, 0.05 now" in err
    assert "--overwrite" in err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    code, _, err = finish(start(tmp_path / "run", "--config.epochs=3", "--overwrite"))
    assert code == 0, err
    assert len(records.read(tmp_path / "run").rows) == 3


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for more in ((), ("--overwrite",)):
        code, _, err = finish(start(tmp_path, *more))
        assert code == 2
        assert "no run" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_newest_checkpoint_falls_back_and_ends_the_same(tmp_path, undisturbed):
    reference, _ = undisturbed
    process = start(tmp_path / "run")
    manifests = lambda: list((tmp_path / "run").glob("checkpoints/*.manifest"))  # noqa: E731
    while len(manifests()) < 2:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    steps = sorted(int(p.stem) for p in manifests() if (p.parent / p.stem).is_dir())
    newest = tmp_path / "run" / "checkpoints" / str(steps[-1])
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-7])
    code, _, err = finish(start(tmp_path / "run"))
    assert code == 0, err
    assert f"checkpoint {steps[-1]} is damaged" in err
    assert victim.name in err
    assert digest(tmp_path / "run") == reference


def test_a_diverged_run_exits_3_and_names_epoch_update_and_rate(tmp_path):
    code, _, err = finish(
        start(tmp_path / "run", "--config.lr=100000", "--config.optimizer.name=sgd")
    )
    assert code == 3, err
    assert "diverged: loss or gradient is not finite in update" in err
    assert "epoch" in err
    assert "rate" in err
    assert "Traceback" not in err
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "diverged"


def test_a_workdir_that_cannot_be_is_an_error_without_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = finish(start(tmp_path / "file" / "run"))
    assert code in (2, 5)
    assert "Traceback" not in err


def test_a_disk_that_is_full_ends_the_run_and_loses_nothing(tmp_path, undisturbed):
    """faults.md F15, on a disk of 180 kB: room for two checkpoints, not for three."""
    reference, _ = undisturbed
    mount = ["mount", "-t", "tmpfs", "-o", "size=180k", "none", str(tmp_path)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be made by root only, and where mounting is allowed")
    try:
        code, _, err = finish(start(tmp_path / "run"))
        assert code == 5, err
        assert "could not go on" in err
        assert "No space left on device" in err
        with Checkpoints(tmp_path / "run" / "checkpoints") as saves:
            assert saves.steps()
            assert all(saves._damage(step) is None for step in saves.steps())
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path)], check=True)
        code, out, err = finish(start(tmp_path / "run"))
        assert code == 0, err
        assert "resuming at update" in out
        assert digest(tmp_path / "run") == reference
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_that_may_not_be_written_is_an_error_without_traceback(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o555)
    if os.getuid() == 0:  # whom no mode holds back
        subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=False, capture_output=True)
        made = ["mount", "-o", "remount,bind,ro", str(tmp_path)]
        if subprocess.run(made, capture_output=True, check=False).returncode:
            pytest.skip("root writes everywhere, and may not mount here")
    try:
        code, _, err = finish(start(tmp_path / "run"))
    finally:
        if os.getuid() == 0:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert code == 5
    assert "could not go on" in err
    assert "Traceback" not in err
    assert [*(tmp_path / "run").iterdir()] == []


class Killed(BaseException):
    """Passes whatever would clean up, as a kill does."""


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
@pytest.mark.parametrize("is_written", [False, True])
def test_killed_in_its_first_writes_a_run_begins_anew(tmp_path, monkeypatch, name, is_written):
    options = train.Options("configs/tiny.py", "python -m lrlab.main")
    with monkeypatch.context() as patch:
        replace = Path.replace

        def killed(path, target):
            if Path(target).name == name:
                if is_written:
                    replace(path, target)
                patch.setattr(Path, "unlink", lambda *_, **__: None)  # no hand is left to tidy up
                raise Killed
            return replace(path, target)

        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            train.run(tiny(epochs=1), tmp_path / "run", options)
    left = {p.name.rstrip("0123456789") for p in (tmp_path / "run").iterdir()}
    assert left >= {"lock", name if is_written else f".{name}."}
    train.run(tiny(epochs=1), tmp_path / "run", options)
    record = records.read(tmp_path / "run")
    assert record.final["step"] == 9
    assert record.environment["model"]["name"] == "mlp.MLP"
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("axis", [None, "devices"])
def test_going_on_on_other_devices_is_told_and_recorded(tmp_path, monkeypatch, capsys, axis):
    options = train.Options("configs/tiny.py", "python -m lrlab.main")
    model = {"name": "resnet.ResNet", "stage_sizes": (1,), "width": 4, "axis_name": axis}
    config = tiny(epochs=1, model=model, batch={"name": "fixed", "size": 512})

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "_finish", killed)
        with pytest.raises(Killed):
            train.run(config, tmp_path, options)
    events = tmp_path / "events.jsonl"
    assert '"devices": 2' in events.read_text()
    events.write_text(events.read_text().replace('"devices": 2', '"devices": 4'))
    assert "warning" not in capsys.readouterr().err
    train.run(config, tmp_path, options)
    said = capsys.readouterr().err
    assert "warning: this run was on 4 x cpu and goes on on 2 x cpu" in said
    assert ("with model.axis_name=devices it is not" in said) == (axis is None)
    resumed = records.read(tmp_path).events[2]
    assert (resumed["event"], resumed["devices"]) == ("resume", 2)
    assert resumed["warning"] in said


def test_a_run_that_another_process_began_meanwhile_is_left_alone(tmp_path, monkeypatch):
    options = train.Options("configs/tiny.py", "python -m lrlab.main")
    other = tiny(epochs=1, lr=0.5)
    monkeypatch.setattr(train.report, "write", lambda folder: folder / "report.html")
    room_for = train._room_for

    def meanwhile(recipe, folder):
        monkeypatch.setattr(train, "_room_for", room_for)
        train.run(other, folder, options)

    monkeypatch.setattr(train, "_room_for", meanwhile)
    with pytest.raises(ConfigError, match=r"lr: 0.5 there, 0.1 now"):
        train.run(tiny(epochs=1), tmp_path / "run", options)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(train, "_room_for", meanwhile)
    train.run(other, tmp_path / "run", options)  # or was ended meanwhile
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), README_SCHEDULES, ids=[n for n, _ in README_SCHEDULES])
def test_every_schedule_of_the_readme_resumes_exactly_when_killed_in_any_phase(
    tmp_path, name, line
):
    more = shlex.split(f"--config.schedule={line}")
    code, _, err = finish(start(tmp_path / "whole", *more))
    assert code == 0, err
    folder, cuts = tmp_path / "cut", []
    table = folder / "schedule.csv"
    for target in (60, 200, 330, 440):  # of 475 updates: warm-up, plateau or rise, descent, end
        process = start(folder, *more)
        while process.poll() is None:
            if table.exists() and table.read_bytes().count(b"\n") > target:
                process.kill()
            time.sleep(0.003)
        code, _, err = finish(process)
        assert code == -signal.SIGKILL, err
        cuts.append(len(records.read(folder).schedule["lr"]))
    code, _, err = finish(start(folder, *more))
    assert code == 0, err
    assert digest(folder) == digest(tmp_path / "whole"), cuts
    print(f"{name}: killed after {cuts} of 475 updates, digest and rates equal")


# Every regime, on 1,078 examples of digits; those that look at the run see plateaus and noise soon.
REGIMES = {
    "increasing": {"factor": 2, "at": (1, 3), "cap": 128, "size": 64},
    "hybrid": {"factor": 2, "at": (2, 4), "size": 64},
    "geometric": {"factor": 2, "every": 2, "cap": 256, "size": 64},
    "ramp": {"end": 192, "epochs": 4, "steps": 2, "coupling": "sqrt", "size": 64},
    "stages": {"sizes": (64, 160), "at": (0, 3), "coupling": "linear"},
    "plateau": {"factor": 0.5, "patience": 1, "threshold": 0.5, "size": 64},
    "plateau_growth": {"factor": 2, "patience": 1, "threshold": 0.5, "cap": 128, "size": 64},
    "noise": {"cap": 256, "share": 2.0, "size": 16},
}
DIES = """
import os, signal, sys
from lrlab import loop, main
loop.STRETCH, train = 0.0, loop._train  # an update a stretch, and a save after each
def dying(run, *more):
    if run.step >= int(os.environ["DIES_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return train(run, *more)
loop._train = dying
sys.exit(main.main(["lrlab", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", REGIMES)
def test_a_run_killed_in_every_phase_of_its_regime_resumes_exactly(tmp_path, name):
    more = (f"--config.batch={ ({'name': name, **REGIMES[name]}) }", "--config.epochs=6")
    more += ("--config.schedule=({'name': 'constant'},)",)
    code, _, err = finish(start(tmp_path / "whole", *more))
    assert code == 0, err
    rows = records.read(tmp_path / "whole").rows
    phases = [(r["batch_size"], r["lr"]) for r in rows]
    begins = [0, *(r["step"] for r in rows)]
    turns = [i for i in range(6) if i == 0 or phases[i] != phases[i - 1]]
    assert len(turns) >= 2, "it never grew"
    # At the first update of each phase, within its first epoch and before its last update.
    inside = [begins[i] + (begins[i + 1] - begins[i]) // 2 for i in turns]
    ends = [begins[i] - 1 for i in turns[1:]] + [begins[-1] - 1]
    cuts = sorted({*(begins[i] for i in turns), *inside, *ends} - {0})
    folder = tmp_path / "cut"
    for cut in cuts:
        process = start(folder, *more, python=("-c", DIES), DIES_AT=str(cut))
        code, _, err = finish(process)
        assert code == -signal.SIGKILL, err
    code, _, err = finish(start(folder, *more))
    assert code == 0, err
    assert digest(folder) == digest(tmp_path / "whole"), cuts
    print(f"{name}: {len(turns)} phases {[phases[i] for i in turns]}, killed at {cuts}: equal")


def test_the_readme_shows_the_schedules_that_are_tried():
    assert len(README_SCHEDULES) == 6


def test_overwrite_deletes_only_a_run_and_only_for_one_that_can_begin(tmp_path):
    code, _, err = finish(start(tmp_path / "run", "--config.epochs=2"))
    assert code == 0, err
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    for more in (("--config.lr=-1",), ("--dry_run",)):
        finish(start(tmp_path / "run", "--config.epochs=2", "--overwrite", *more))
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    code, _, err = finish(start(tmp_path / "other", "--overwrite"))
    assert code == 2
    assert "holds no run" in err
    (tmp_path / "run" / "report.html").unlink()
    code, out, _ = finish(start(tmp_path / "run", "--config.epochs=2"))
    assert code == 0
    assert "already finished" in out
    assert (tmp_path / "run" / "report.html").exists(), (
        "the report of a killed end is written later"
    )
