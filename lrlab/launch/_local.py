"""--launch=local: a driver that keeps processes on this machine busy with the tasks of a sweep.

The driver holds no lock and keeps nothing that matters: who kills it loses nothing, as its workers
save and end (Linux tells them), and the same command goes on. Several drivers share the tasks.
"""

import collections
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrlab import console, records
from lrlab.jobs import _start, _tasks
from lrlab.jobs._sweep_record import ending
from lrlab.jobs._tasks import State, Task
from lrlab.launch import DRIVER, Wanted, _status
from lrlab.launch._sweeps import Sweep, given_up, prepare
from lrlab.resolve import ConfigError

LOOK, SAY, BEAT = 1.0, 5.0, 0.1  # seconds between looks at tasks, lines, looks at workers
USAGE, FAILED, LOCKED = 2, 5, 75  # exit codes
EARLY = 20  # kills of a task's processes before they began, until something else must be wrong
TAIL = 30  # lines of a log or a traceback that are shown


@dataclasses.dataclass
class _Worker:
    """A process that trains a task. events: of the task, when the process began."""

    process: subprocess.Popen
    task: Task
    slot: int
    events: int


class Stopped(_start.Stopped):
    """A signal ended driver and workers, and nothing is lost."""

    def __init__(self, number: int, done: int):
        super().__init__(number, done)
        self.args = (
            f"stopped by {signal.Signals(number).name} with {done} trials over; workers saved",
        )


def run(config: Mapping[str, Any], workdir: Path | None, wanted: Wanted) -> int:
    """Trains a sweep in several processes; returns the exit code.

    Raises:
      ConfigError: see `_sweeps.prepare`.
      Stopped: a signal came.
    """
    workers = wanted.workers or len(gpus(wanted.env)) or len(_cores()) or 1
    wanted = dataclasses.replace(wanted, workers=workers)
    cut = prepare(config, workdir, wanted)
    if wanted.dry_run:
        console.say("dry run: nothing was trained or written")
        return 0
    if all(task.is_over for task in cut.tasks):
        console.say("already finished")
    driver = _Driver(cut, wanted, workers)
    with _start.signals() as came:
        try:
            driver.run(came)
        finally:
            _tasks.conclude(cut.folder, wanted.retries)
    failed = [s for s in cut.states(wanted.retries) if s.name == "failed"]
    for state in failed:
        print(f"{given_up(state)}\n{_last_words(cut.folder, state.task)}", file=sys.stderr)
    if len(failed) < len(cut.tasks):
        console.say(ending(cut.folder))
    return FAILED if failed else 0


class _Driver:
    """Starts workers, starts them again when they die, and says how far all are."""

    def __init__(self, cut: Sweep, wanted: Wanted, workers: int):
        self.cut, self.wanted, self.count = cut, wanted, workers
        self.gpus, self.cores = gpus(wanted.env), _cores()
        self.workers: list[_Worker] = []
        self.over: dict[int, State] = {}  # tasks, which are not looked at again
        self.early = (
            collections.Counter()
        )  # of a task: processes that died before they could say so
        self.later: dict[int, float] = {}  # task -> when it may be tried again
        self._looked = self._said = -SAY
        self._line = ""
        (cut.folder / "launch").mkdir(exist_ok=True)

    def run(self, came: list[int]) -> None:
        """Works until all tasks are over or failed."""
        found: list[State] = []
        while True:
            if came:
                self._end(came[0])
                raise Stopped(came[0], len(records.trials(self.cut.folder)))
            for worker in [w for w in self.workers if w.process.poll() is not None]:
                self.workers.remove(worker)
                self._buried(worker)
                self._looked = -SAY
            if time.monotonic() - self._looked >= LOOK:
                found = self._look()
                if not self.workers and all(s.name in ("over", "failed") for s in found):
                    self._say(found, is_last=True)
                    return
                self._start(found)
                self._looked = time.monotonic()
                self._say(found)
            time.sleep(BEAT)

    def _look(self) -> list[State]:
        found = [
            self.over.get(task.number) or _tasks.state(task, self.wanted.retries)
            for task in self.cut.tasks
        ]
        self.over |= {s.task.number: s for s in found if s.name == "over"}
        return found

    def _start(self, found: Sequence[State]) -> None:
        """Gives free slots a task that nobody trains."""
        ours = {w.task.number for w in self.workers}
        free = sorted(set(range(self.count)) - {w.slot for w in self.workers})
        now = time.monotonic()
        for state in found:
            task = state.task
            may = task.number not in ours and self.later.get(task.number, now) <= now
            if free and may and state.name == "waiting":
                self.workers.append(self._begin(task, free.pop(0)))

    def _begin(self, task: Task, slot: int) -> _Worker:
        """A process for a task, on the cores and the GPU of its slot."""
        folder = self.cut.folder
        command = [sys.executable, "-m", "lrlab.main", *self.wanted.flags, f"--workdir={folder}"]
        command += [f"--task={task.number}", f"--retries={self.wanted.retries}"]
        env = {**self.wanted.env, DRIVER: str(os.getpid())}
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
            part = 0.9 / -(-self.count // len(self.gpus))
            env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{part:.2f}")
        events = len(_events(task))
        file = folder / "launch" / f"task-{task.number}.log"
        with file.open("a") as log, _pinned(share(self.cores, slot, self.count)):
            # Ctrl-C reaches the driver alone, which tells its workers.
            process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        return _Worker(process, task, slot, events)

    def _buried(self, worker: _Worker) -> None:
        """What follows from a worker's end."""
        code, task = worker.process.returncode, worker.task
        if code in (0, LOCKED):
            return
        state = _tasks.state(task, self.wanted.retries)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if state.name == "failed":
            console.say(f"task {task.number} {how}, and is given up")
            return
        if len(_events(task)) == worker.events:
            self.early[task.number] += 1
        # The next try would end the same: a config, or what it cannot even begin without.
        if code == USAGE or self.early[task.number] > (EARLY if code < 0 else 0):
            self._end(signal.SIGTERM)
            raise ConfigError([f"task {task.number} {how}: {_log(self.cut.folder, task)}"])
        self.later[task.number] = time.monotonic() + min(10.0, 0.5 * state.failures)
        console.say(
            f"task {task.number} {how} with {state.done} of {len(task.trials)} trials over; "
            f"it is tried again (retry {max(1, state.retries)})"
        )

    def _end(self, number: int) -> None:
        """Sends workers a signal, and waits until they saved and ended."""
        for worker in self.workers:
            worker.process.send_signal(number)
        for worker in self.workers:
            worker.process.wait()

    def _say(self, found: Sequence[State], is_last: bool = False) -> None:
        """A line for the whole, every few seconds; the last one if it is new."""
        if is_last or time.monotonic() - self._said >= SAY:
            line, before = _status.line(self.cut.folder, found), self._line
            self._said, self._line = time.monotonic(), line
            if not is_last or line != before:
                console.say(line)


def _events(task: Task) -> list[dict[str, Any]]:
    return records.read_lines(task.folder / "events.jsonl")


def _log(folder: Path, task: Task) -> str:
    """The end of what a task's processes said."""
    file = folder / "launch" / f"task-{task.number}.log"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return "\n".join(lines[-TAIL:])


def _last_words(folder: Path, task: Task) -> str:
    """The traceback of a task that failed; what it said last, if it was killed."""
    traceback = task.folder / "traceback.txt"
    if not traceback.exists():
        return _log(folder, task)
    return "\n".join(traceback.read_text(encoding="utf-8").splitlines()[-TAIL:])


def _cores() -> list[int]:
    """Cores that this process may use; none where that cannot be told."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def share(cores: Sequence[int], slot: int, count: int) -> list[int]:
    """A worker's part of the cores; where workers are more, they take turns."""
    if len(cores) < count:
        return [cores[slot % len(cores)]] if cores else []
    return list(cores[len(cores) * slot // count : len(cores) * (slot + 1) // count])


@contextlib.contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Binds this process to some cores for a moment: a child keeps what its parent had."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def gpus(env: Mapping[str, str]) -> list[str]:
    """NVIDIA devices that workers may have, as CUDA_VISIBLE_DEVICES names them."""
    if env.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in env:
        return [name for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name not in ("", "-1")]
    numbers = (re.fullmatch(r"nvidia(\d+)", p.name) for p in Path("/dev").glob("nvidia*"))
    return sorted((found[1] for found in numbers if found), key=int)
