"""--launch=slurm, with a real Slurm that these tests start: nodes die, jobs are put back."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import slurm_cluster
from conftest import ROOT
from slurm_cluster import NODES
from test_launch import AXES, TINY, events, numbers_of, process_of

from lrlab import main, records
from lrlab.jobs import _tasks
from lrlab.launch import _slurm

needs_slurm = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())


@pytest.fixture
def here(monkeypatch, capsys):
    """The command line in this process: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def run(*arguments):
        code = main.main(["lrlab", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], ""), ([4], "4"), ([3, 1, 2, 0, 7, 9, 10], "0-3,7,9-10"), (range(300), "0-299")],
)
def test_an_arrays_elements_are_written_as_slurm_reads_them(numbers, expected):
    assert _slurm.ranges(numbers) == expected


def directives(text):
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"]


def test_a_dry_run_shows_the_array_job_and_needs_no_slurm(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder, more = tmp_path / "a 100% sweep", ("--launch=slurm", "--tasks=5", AXES.format(20))
    own = "--slurm=-p gpu --gres gpu:1 --exclusive", "--slurm=--signal=TERM@300"
    code, out, err = here(*TINY, *more, *own, f"--workdir={folder}", "--dry_run")
    assert code == 0, err
    assert directives(out) == [
        "--array=0-4",
        "--nodes=1",
        "--ntasks=1",
        '--job-name="a 100% sweep"',
        f"--chdir={ROOT}",
        f'--output="{tmp_path}/a 100%% sweep/launch/%A_%a.log"',
        "--open-mode=append",
        "--requeue",
        "--signal=TERM@300",
        "--partition=gpu",
        "--gres=gpu:1",
        "--exclusive",
    ]
    assert "sbatch --parsable" in out
    assert not folder.exists()
    line = re.search(r"^  srun (.*)$", out, re.MULTILINE)
    assert line
    assert f"{TINY[0]} {TINY[1]!r}" in line[1].replace('"', "'")
    assert line[1].endswith(f"'--workdir={folder}' --retries=3 --task=\"$SLURM_ARRAY_TASK_ID\"")
    script = out[out.index("#!/bin/bash") : out.index("dry run:")]
    done = subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False)
    assert done.returncode == 0
    code, _, err = here(*TINY, *more, f"--workdir={folder}")
    assert code == 2
    assert "needs sbatch" in err
    assert "--dry_run shows the script" in err
    assert not folder.exists()


def test_a_dry_run_shows_the_job_of_one_run_in_several_processes(here, tmp_path):
    more = "--launch=slurm", "--processes=4", "--dry_run", f"--workdir={tmp_path}/r"
    code, out, err = here("--config=configs/digits.py", "--config.lr=0.2", *more)
    assert code == 0, err
    assert "--ntasks=4" in directives(out)
    assert not any(d.startswith(("--array", "--nodes")) for d in directives(out))
    command = f"--config=configs/digits.py --config.lr=0.2 --workdir={tmp_path}/r --distributed"
    assert f"  srun --wait=300 {sys.executable} -m lrlab.main {command}\n" in out
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--slurm=--array=0-3",), "--tasks=n says how many"),
        (("--slurm=gpu",), "no option of sbatch"),
        (("--slurm='--comment",), "quotation"),
        (("--slurm=--wrap=ls", "--slurm=--no-requeue"), "2 problems"),
        (('--slurm=--comment=a\\"b',), "quotes"),
    ],
)
def test_options_that_cannot_be_are_told(here, tmp_path, flags, says):
    more = "--launch=slurm", "--dry_run", f"--workdir={tmp_path}/s", AXES.format(4)
    code, _, err = here(*TINY, *more, *flags)
    assert code == 2
    assert says in err.lower()


@pytest.fixture
def slurm():
    """A cluster of two nodes; sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="lrlab-slurm-"))
    try:
        with slurm_cluster.cluster(folder) as running:
            yield running
        assert running.processes() == [], "something was left"
    finally:
        shutil.rmtree(folder)


def launch(slurm, folder, *arguments):
    """Submits from a process as a user would; returns what it said and the job's id."""
    command = [sys.executable, "-m", "lrlab.main", *arguments, f"--workdir={folder}"]
    env = {k: v for k, v in slurm.env.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = re.search(r"as job (\d+)", done.stdout)
    return done.stdout, found[1] if found else ""


def wait_for_jobs(slurm, seconds):
    """Until no job is left; those that were put back begin some seconds later."""
    slurm.until(lambda: not slurm.tell("squeue", "-h").strip(), seconds)


def saved(task):
    return bool(list((task.folder / "checkpoints").glob("*.manifest")))


@needs_slurm
@pytest.mark.slow
def test_an_array_sweep_outlives_a_killed_task_a_requeue_and_a_dead_node(tmp_path, slurm):
    folder = tmp_path / "sweep"
    more = AXES.format(24), "--config.epochs=250"
    said, job = launch(slurm, folder, *TINY, *more, "--launch=slurm", "--tasks=6")
    assert "submitted 6 of 6 tasks" in said
    assert f"scancel {job}" in said
    tasks = _tasks.read(folder)
    slurm.until(lambda: sum(bool(t.holder()) and saved(t) for t in tasks) == 4, 120)
    where = dict(
        line.split()
        for line in slurm.tell("squeue", "-h", "-r", "-t", "R", "-o", "%K %N").splitlines()
    )
    running = [t for t in tasks if t.holder() and saved(t)]
    killed = running[0]
    put_back = next(t for t in running[1:] if where[str(t.number)] == where[str(killed.number)])
    node = next(n for n in NODES if n != where[str(killed.number)])
    cut_off = [t for t in running if where[str(t.number)] == node]
    assert cut_off, where
    victim = process_of(killed)
    assert victim
    os.kill(victim, signal.SIGKILL)
    print(slurm.tell("scontrol", "requeue", f"{job}_{put_back.number}"))
    slurm.kill_node(node)
    slurm.until(lambda: "down" in slurm.tell("sinfo", "-h", "-N", "-n", node, "-o", "%T"), 90)
    print(slurm.tell("sinfo"), slurm.tell("squeue"))
    slurm.start_node(node)
    wait_for_jobs(slurm, 300)
    status = subprocess.run(
        [sys.executable, "-m", "lrlab.main", "--status", f"--workdir={folder}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    print(status)
    assert "[24/24] tasks: 6 over" in status
    assert events(put_back, "stop"), "a job that is put back saves"
    for task in (killed, put_back, *cut_off):
        assert events(task, "wave")[-1]["update"] > 0, "it began anew"
    found = {s.task.number: s.retries for s in _tasks.states(folder)}
    assert {i for i, n in found.items() if n} == {killed.number, *(t.number for t in cut_off)}
    assert (folder / "report.html").exists()
    rows = numbers_of(folder)
    assert [row["trial"] for row in rows] == list(range(24))
    again, job = launch(slurm, folder, *TINY, *more, "--launch=slurm")
    assert "no task waits" in again
    one = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    whole = [sys.executable, "-m", "lrlab.main", *TINY, *more, f"--workdir={tmp_path}/whole"]
    subprocess.run(whole, cwd=ROOT, env=one, check=True, stdout=subprocess.DEVNULL)
    assert rows == numbers_of(tmp_path / "whole")


@needs_slurm
@pytest.mark.slow
def test_out_of_time_a_task_saves_and_goes_on_and_a_cancelled_one_stays_so(tmp_path, slurm):
    folder = tmp_path / "sweep"
    limits = "--slurm=--time=1", "--slurm=--signal=TERM@45"
    more = AXES.format(8), "--config.epochs=100000", "--launch=slurm", "--tasks=2"
    _, job = launch(slurm, folder, *TINY, *more, *limits)
    first, second = _tasks.read(folder)
    slurm.until(lambda: saved(first) and saved(second))
    slurm.tell("scancel", f"{job}_1")
    slurm.until(lambda: events(second, "stop"))
    slurm.until(lambda: events(first, "stop"), 90)
    slurm.until(lambda: len(events(first, "wave")) == 2)
    assert events(first, "wave")[1]["update"] > 0
    assert _tasks.state(first).name == "running"
    assert "_1 " not in slurm.tell("squeue", "-h", "-r", "-o", "%A_%a "), "it was cancelled"
    assert _tasks.state(second).name == "waiting"


def host_of(slurm, number):
    """The process that is host `number` of a run."""
    for pid in slurm.processes():
        environ, command = (Path(f"/proc/{pid}/{name}") for name in ("environ", "cmdline"))
        with contextlib.suppress(OSError):
            is_lrlab = b"lrlab.main" in command.read_bytes() and b"srun" not in command.read_bytes()
            if is_lrlab and f"\0SLURM_PROCID={number}\0".encode() in environ.read_bytes():
                return pid
    raise AssertionError(f"no process {number}")


@needs_slurm
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["put back", "killed"])
def test_a_run_of_two_processes_disturbed_in_the_middle_is_the_undisturbed_run(
    tmp_path, slurm, fault
):
    base = "--config=configs/digits.py", "--config.epochs=40", "--config.checkpoint.minutes=0"
    folder = tmp_path / "run"
    _, job = launch(slurm, folder, *base, "--launch=slurm", "--processes=2", "--slurm=-N 2")
    slurm.until(lambda: len(records.read(folder).rows) >= 3, 120)
    print(slurm.tell("squeue", "-o", "%i %D %N %T"))
    if fault == "killed":
        os.kill(host_of(slurm, 1), signal.SIGKILL)
    else:
        print(slurm.tell("scontrol", "requeue", job))
        slurm.until(lambda: [e for e in records.read(folder).events if e["event"] == "stop"])
    wait_for_jobs(slurm, 300)
    print((folder / "launch" / f"{job}.log").read_text())
    whole = [sys.executable, "-m", "lrlab.main", *base, f"--workdir={tmp_path}/whole"]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run(whole, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    mine, theirs = records.read(folder), records.read(tmp_path / "whole")
    names = [e["event"] for e in mine.events]
    assert names[0] == "start"
    assert "resume" in names
    assert names[-1] == "end"
    assert mine.final
    assert theirs.final
    assert mine.final["step"] == theirs.final["step"]
    assert len(mine.rows) == len(theirs.rows) == 40
    assert mine.schedule["update"].tolist() == list(range(mine.final["step"]))
    assert mine.schedule["lr"].tolist() == theirs.schedule["lr"].tolist()
    for key in "train_loss", "val_loss":
        got, wanted = ([row[key] for row in record.rows] for record in (mine, theirs))
        assert got == pytest.approx(wanted, rel=1e-5)
    assert mine.final["test_loss"] == pytest.approx(theirs.final["test_loss"], rel=1e-5)
