"""A sweep and its tasks, as drivers and workers see them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrlab import console, fields
from lrlab.jobs import _start, _tasks, sweep
from lrlab.jobs._sweep_plan import Plan
from lrlab.jobs._tasks import State, Task
from lrlab.launch import LOCAL_TASKS, SLURM_TASKS, Wanted
from lrlab.resolve import ConfigError


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep cut into tasks. config: the whole one, as it is recorded."""

    config: dict[str, Any]
    plan: Plan
    folder: Path
    tasks: tuple[Task, ...]

    def states(self, retries: int) -> list[State]:
        """How its tasks stand now."""
        return [_tasks.state(task, retries) for task in self.tasks]


def prepare(config: Mapping[str, Any], workdir: Path | None, wanted: Wanted) -> Sweep:
    """Checks a sweep and cuts it into tasks; says what will be trained.

    Raises:
      ConfigError: something is wrong with the config, or the folder holds something else.
    """
    plan, full = sweep.check(config), fields.fill(config)
    folder = workdir or _start.default_folder(full, wanted.source)
    _start.same_config(folder, full)
    default = LOCAL_TASKS * (wanted.workers or 1) if wanted.where == "local" else SLURM_TASKS
    groups = [(g.name, [t.number for t in g.trials], plan.updates(g.recipe)) for g in plan.groups]
    planned = _tasks.plan(plan.keys, groups, wanted.tasks or default)
    options = _start.Options(wanted.source, wanted.command)
    tasks = _tasks.read(folder)
    if not tasks and not wanted.dry_run:
        with _tasks.alone(folder):
            _start.keep_config(folder, full, options)
            tasks = _tasks.write(folder, planned)
    many = len(tasks) or len(planned["tasks"])
    how = f"{wanted.workers} at once, here" if wanted.where == "local" else "an array of Slurm"
    console.say(sweep.banner(plan, folder, options, ("tasks", f"{many}, {how}")))
    if tasks and wanted.tasks not in (None, many):
        console.say(f"note: it was cut into {many} tasks when it began; --tasks changes nothing")
    if not tasks:
        tasks = [
            Task(i, folder, t["group"], tuple(t["trials"]), t["updates"])
            for i, t in enumerate(planned["tasks"])
        ]
    if wanted.retry_failed and not wanted.dry_run:
        again = _tasks.forgive(_tasks.states(folder, wanted.retries))
        console.say(f"failed tasks that are tried again: {', '.join(map(str, again)) or 'none'}")
    return Sweep(full, plan, folder, tuple(tasks))


def work(config: Mapping[str, Any], workdir: Path | None, wanted: Wanted) -> int:
    """Trains one task in this process, and concludes the sweep if it was the last one.

    Raises:
      ConfigError: there is no such task, or it failed too often.
      LockedError, Stopped, DataError: as a job does.
    """
    plan, full = sweep.check(config), fields.fill(config)
    folder = workdir or _start.default_folder(full, wanted.source)
    tasks = _tasks.read(folder) if _start.same_config(folder, full) else []
    number = wanted.task or 0
    if number >= len(tasks):
        there = f"tasks 0 to {len(tasks) - 1}" if tasks else "no sweep with tasks: --launch cuts it"
        raise ConfigError([f"--task={number}: {folder} holds {there}"])
    state = _tasks.state(tasks[number], wanted.retries)
    if state.name == "failed":
        raise ConfigError([given_up(state)])
    with _start.signals() as came:
        if not (folder / "environment.json").exists():
            with _tasks.alone(folder):
                options = _start.Options(wanted.source, wanted.command)
                _start.claim(folder, full, plan.groups[0].recipe, options)
        sweep.run_task(plan, tasks[number], came)
    if all(task.is_over for task in tasks):
        _tasks.conclude(folder, wanted.retries)
    return 0


def given_up(state: State) -> str:
    """What a user reads of a task that failed."""
    return (
        f"task {state.task.number} ended {state.failures} times without getting further "
        f"(last: {state.why}; see {state.task.folder}); --retry_failed with --launch tries it again"
    )
