"""Tasks of a sweep: how it is cut, who trains what, what kills and clocks leave of it."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_sweep import config
from test_sweep import run as run_whole

from lrlab import main, records
from lrlab.jobs import _tasks, sweep
from lrlab.jobs._start import Options
from lrlab.resolve import ConfigError

START = {"event": "start", "trials": 0, "checkpoint": 0}


@pytest.mark.parametrize("sizes", [(7,), (1, 1, 1), (9, 2, 5), (12, 12, 1)])
@pytest.mark.parametrize("wanted", [1, 3, 4, 8, 100])
def test_the_largest_part_is_as_small_as_it_can_be(sizes, wanted):
    parts = _tasks.cut(sizes, wanted)
    assert sum(parts) == min(max(wanted, len(sizes)), sum(sizes))
    assert all(1 <= n <= size for n, size in zip(parts, sizes, strict=True))
    every = itertools.product(*(range(1, size + 1) for size in sizes))
    best = min(
        max(-(-size // n) for n, size in zip(other, sizes, strict=True))
        for other in every
        if sum(other) == sum(parts)
    )
    assert max(-(-size // n) for n, size in zip(parts, sizes, strict=True)) == best


def test_each_trial_is_in_one_task_and_a_task_is_of_one_group(tmp_path):
    planned = sweep.check(config())
    groups = [(g.name, [t.number for t in g.trials], 18) for g in planned.groups]
    tasks = _tasks.write(tmp_path, _tasks.plan(planned.keys, groups, 5))
    assert sorted(i for t in tasks for i in t.trials) == list(range(16))
    assert len(tasks) == 5
    for task in tasks:
        part = planned.part(task.trials)
        assert [g.name for g in part.groups] == [task.group]
        assert part.groups[0].recipe is planned.groups[task.group != "momentum"].recipe
    again = _tasks.write(tmp_path, _tasks.plan(planned.keys, groups, 9))
    assert again == tasks, "what is written stays"


def cut(folder, wanted, **changes):
    """A sweep of test_sweep cut into tasks, as --launch does before it starts anything."""
    from lrlab.launch import _sweeps

    wants = launch_wants(tasks=wanted)
    return _sweeps.prepare(config(**changes), folder, wants)


def launch_wants(**changes):
    from lrlab.launch import Wanted

    values = {
        **dict.fromkeys(("task", "workers", "tasks", "processes")),
        **{"where": "local", "source": "test.py", "flags": (), "command": "python -m lrlab.main"},
        **{"retries": 3, "retry_failed": False, "slurm": (), "dry_run": False, "env": os.environ},
    }
    return Wanted(**(values | changes))


def go_on(folder, **changes):
    sweep.run(config(**changes), folder, Options("test.py", "python -m lrlab.main"))


def test_the_plain_command_trains_tasks_one_after_another_and_the_rows_are_the_same(
    tmp_path, capsys
):
    few = {"axes": ({"key": "lr", "values": (0.01, 0.1, 1.0, 10.0)},)}
    whole, folder = run_whole(tmp_path / "whole", **few), tmp_path / "cut"
    cut(folder, 2, **few)
    go_on(folder, **few)
    rows = records.trials(folder)
    for row in (*rows, *whole):
        row.pop("seconds")
    assert rows == whole
    assert [r["trial"] for r in records.read_lines(folder / "trials.jsonl")] == [0, 1, 2, 3]
    for name in "summary.json", "trials.csv":
        mine, theirs = ((f / name).read_text() for f in (folder, tmp_path / "whole"))
        assert len(mine.splitlines()) == len(theirs.splitlines())
    page = (folder / "report.html").read_text()
    assert "<h2>Tasks</h2>" in page
    assert "finished" in page
    capsys.readouterr()
    go_on(folder, **few)
    assert "already finished" in capsys.readouterr().out
    # A trial that somebody deleted is trained again, and no other.
    file = folder / "tasks" / "1" / "trials.jsonl"
    gone, *kept = file.read_text().splitlines()
    file.write_text("".join(f"{line}\n" for line in kept))
    go_on(folder, **few)
    assert file.read_text().splitlines()[:-1] == kept
    anew = json.loads(file.read_text().splitlines()[-1])
    assert anew | {"seconds": 0} == json.loads(gone) | {"seconds": 0}
    assert [len(_started(t.folder)) for t in _tasks.read(folder)] == [1, 2]


def _started(folder):
    return [e for e in records.read_lines(folder / "events.jsonl") if e["event"] == "start"]


def test_a_sweep_that_one_process_began_is_not_cut_and_another_grid_is_refused(tmp_path):
    axes = ({"key": "lr", "values": (0.1, 0.2)},)
    run_whole(tmp_path / "whole", axes=axes)
    with pytest.raises(ConfigError, match="goes on without --launch"):
        cut(tmp_path / "whole", 2, axes=axes)
    assert not (tmp_path / "whole" / "tasks.json").exists()
    cut(tmp_path / "cut", 2, axes=axes)
    with pytest.raises(ConfigError, match=r"sweep.axes.*another --workdir|another config"):
        cut(tmp_path / "cut", 2, axes=({"key": "lr", "values": (0.1, 0.2, 0.3)},))


def test_a_task_alone_says_what_is_wrong_with_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    axes = '--config.sweep.axes=({"key": "lr", "values": (0.1, 0.2)},)'
    command = ["lrlab", "--config=configs/sweep_digits.py", axes, f"--workdir={tmp_path}/s"]
    assert main.main([*command, "--task=3"]) == 2
    assert "no sweep with tasks" in capsys.readouterr().err
    assert main.main(["lrlab", "--config=configs/digits.py", "--task=3"]) == 2
    assert "for the tasks of a sweep" in capsys.readouterr().err


def test_a_sweep_is_not_deleted_while_somebody_trains_a_task(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(_tasks, "MOMENT", 0.1)
    cut(tmp_path, 2, axes=({"key": "lr", "values": (0.1, 0.2)},))
    command = ["lrlab", "--config=configs/digits.py", f"--workdir={tmp_path}", "--overwrite"]
    with records.locked(tmp_path / "tasks" / "1"):
        assert main.main(command) == 75
    assert "another process trains" in capsys.readouterr().err
    assert (tmp_path / "tasks.json").exists()


@pytest.mark.parametrize(
    ("events", "is_held", "expected"),
    [
        ([], False, (0, 0)),
        ([START], True, (0, 0)),
        ([START], False, (1, 1)),
        ([START, START], False, (2, 2)),
        ([START, START], True, (1, 1)),
        ([START, {"event": "stop"}], False, (0, 0)),
        ([START, {"event": "failed", "why": "x"}] * 3, False, (3, 3)),
        ([START, {**START, "checkpoint": 2}], False, (2, 1)),
        ([START, START, {**START, "trials": 2}, {"event": "end"}], False, (2, 0)),
        ([START, {"event": "failed", "why": "x"}, {"event": "retry"}, START], True, (1, 0)),
    ],
)
def test_ends_that_were_none_are_counted_whatever_the_clocks_say(events, is_held, expected):
    rng = random.Random(0)
    for _ in range(20):  # an hour forth and back, and a change to summer time
        hours = [rng.randrange(24) for _ in events]
        timed = [
            {**e, "time": f"2026-03-29T{h:02d}:59:59+0{rng.randrange(3)}:00"}
            for e, h in zip(events, hours, strict=True)
        ]
        assert _tasks.tally(timed, is_held)[:2] == expected


HOLDER = """
import sys, time
from pathlib import Path
from lrlab import records
with records.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_lives_is_told_by_the_lock_and_never_by_its_text(tmp_path):
    task = _tasks.Task(0, tmp_path / "0", "all", (0,), 1)
    assert task.holder() is None
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(task.folder)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout
    child.stdout.readline()
    assert f"process {child.pid}" in (task.holder() or "")
    # Its clock may have jumped: what the text says of times, or no text at all, frees nothing.
    for text in "host a, process 1, since 1970-01-01", "", "host a, process 1, since 2999-01-01":
        (task.folder / "lock").write_text(text)
        assert task.holder()
        with pytest.raises(records.LockedError):
            records.locked(task.folder).__enter__()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert task.holder() is None, "the text is there, and nobody"
    with task.held():
        pass


LOOKER = """
import sys
from pathlib import Path
from lrlab.jobs._tasks import Task
task = Task(0, Path(sys.argv[1]), "all", (0,), 1)
print("looks", flush=True)
while True:
    task.holder()
"""


def test_looking_at_a_task_never_keeps_it_from_being_trained(tmp_path):
    task = _tasks.Task(0, tmp_path / "0", "all", (0,), 1)
    with task.held():
        pass
    child = subprocess.Popen(
        [sys.executable, "-c", LOOKER, str(task.folder)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout
    child.stdout.readline()
    for _ in range(200):
        with task.held():
            pass
    child.kill()
    child.wait()
    child.stdout.close()


WRITER = """
import random, sys
from pathlib import Path
from lrlab.jobs._sweep_record import Book
from lrlab.jobs._tasks import Task
folder, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random()
trials = tuple(range(number * count, (number + 1) * count))
with Task(number, folder, "all", trials, 1).held():
    book = Book(folder / "trials.jsonl")
    left = [i for i in trials if i not in book.done]
    while left:
        some = left[: rng.randint(1, 20)]
        book.write([{"trial": i, "shown": {}, "point": {}, "curve": [[i] * 50]} for i in some])
        left = left[len(some) :]
"""


@pytest.mark.slow
def test_sixteen_writers_lose_no_row_of_8000_though_killed_and_torn(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    rng, rows, kills, tears, reads = random.Random(seed), 500, 0, 0, 0
    print("seed", seed)

    def start(i):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "tasks" / str(i)), str(i), "500"]
        return subprocess.Popen(command, cwd=ROOT)

    left = {i: start(i) for i in range(16)}
    while left:
        time.sleep(0.02)
        reads += 1
        assert len(records.trials(tmp_path)) <= 16 * rows
        i = rng.choice(list(left))
        if kills < 60 and rng.random() < 0.5:
            left[i].kill()
            left[i].wait()
            kills += 1
            file = tmp_path / "tasks" / str(i) / "trials.jsonl"
            if file.exists() and (text := file.read_bytes()) and rng.random() < 0.5:
                end = text[:-1].rfind(b"\n") + 1
                file.write_bytes(text[: rng.randrange(end, len(text))])  # as a lost page leaves it
                tears += 1
            left[i] = start(i)
        left = {i: p for i, p in left.items() if p.poll() is None}
    lines = [
        json.loads(line)["trial"]
        for i in range(16)
        for line in (tmp_path / "tasks" / str(i) / "trials.jsonl").read_text().splitlines()
    ]
    assert sorted(lines) == list(range(16 * rows))
    assert len(records.trials(tmp_path)) == 16 * rows
    print(f"{kills} kills, {tears} torn lines, {reads} reads meanwhile: 8,000 of 8,000 rows")
