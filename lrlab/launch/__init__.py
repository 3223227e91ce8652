"""Many processes: a sweep's tasks on this machine or as an array job of Slurm; a run as a job.

--launch=local  a driver starts `--task=i` processes, each on its own cores or its own GPU
--launch=slurm  writes <folder>/launch/job.sh and submits it
--task=i        what both start: trains one task of the sweep, and concludes it if it was the last
--status        how the tasks stand, also from another machine

Who trains which task is told by locks alone, so any number of drivers and jobs may share a folder.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lrlab.resolve import ConfigError

DRIVER = "LRLAB_DRIVER"  # process id of the driver, in the environment of its workers
LOCAL_TASKS, SLURM_TASKS = 4, 8  # by default: for each worker; in all


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the command line says of processes.

    where: local, slurm, or None in one process. flags: of the config and its changes, for the
    processes to be started. env: that they shall have.
    """

    where: str | None
    task: int | None
    source: str
    flags: tuple[str, ...]
    command: str
    workers: int | None
    tasks: int | None
    processes: int | None
    retries: int
    retry_failed: bool
    slurm: tuple[str, ...]
    dry_run: bool
    env: Mapping[str, str]


def define(values: flags.FlagValues) -> None:
    """Adds the flags."""
    from lrlab.jobs._tasks import RETRIES

    own: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_enum("launch", None, ["local", "slurm"], "in many processes", **own)
    flags.DEFINE_integer("workers", None, "processes at once", lower_bound=1, **own)
    flags.DEFINE_integer("tasks", None, "parts of the sweep", lower_bound=1, **own)
    flags.DEFINE_integer("processes", None, "of one run", lower_bound=1, **own)
    flags.DEFINE_integer("retries", RETRIES, "of a task in a row", lower_bound=0, **own)
    flags.DEFINE_boolean("retry_failed", False, "tries failed tasks again", **own)
    flags.DEFINE_multi_string("slurm", [], "an option of sbatch", **own)
    flags.DEFINE_integer("task", None, "trains this task alone", lower_bound=0, **own)
    flags.DEFINE_boolean("status", False, "how the tasks stand", **own)


def read(
    parsed: flags.FlagValues, changes: Sequence[tuple[str, str]], command: str
) -> Wanted | None:
    """What the flags ask for, or None for a run in this process; call it before JAX is imported.

    Raises:
      ConfigError: flags that do not go together.
    """
    where = parsed.launch
    needs = {
        "workers": where == "local",
        "tasks": where is not None,
        "retry_failed": where is not None,
        "processes": where == "slurm",
        "slurm": where == "slurm",
    }
    problems = [
        f"--{name} says how --launch{'=' + ('local' if name == 'workers' else 'slurm')} starts "
        "processes, and there is none"
        for name, is_there in needs.items()
        if getattr(parsed, name) and not is_there
    ]
    if where and parsed.task is not None:
        problems.append("--task trains one task in this process, --launch starts others: choose")
    if where and getattr(parsed, "distributed", False):
        problems.append(
            "--distributed is for the processes of one run; --launch=slurm --processes=n starts "
            "them, and says it to them"
        )
    if problems:
        raise ConfigError(problems)
    if not where and parsed.task is None:
        return None
    env = dict(os.environ)
    if where:  # this process trains nothing, and must not take the memory of an accelerator
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif DRIVER in env:
        _follow(int(env[DRIVER]))
    words = [f"--config={parsed.config}", *(f"--config.{key}={text}" for key, text in changes)]
    return Wanted(
        where,
        parsed.task,
        parsed.config,
        tuple(words),
        command,
        parsed.workers,
        parsed.tasks,
        parsed.processes,
        parsed.retries,
        parsed.retry_failed,
        tuple(parsed.slurm),
        parsed.dry_run,
        env,
    )


def _follow(driver: int) -> None:
    """Has the kernel send SIGTERM to this process when its driver dies, as Linux can."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() != driver:  # it died before
        sys.exit(128 + signal.SIGTERM)


def run(
    config: Mapping[str, Any],
    workdir: Path | None,
    wanted: Wanted,
    check: Callable[[Mapping[str, Any]], Any],
) -> int:
    """Does what was asked for; returns the exit code. check: the job's own, of its config.

    Raises:
      ConfigError, DataError, LockedError, Stopped: as jobs do.
    """
    from lrlab.launch import _local, _slurm, _sweeps

    job = config["job"]["name"] if isinstance(config["job"], dict) else "train"
    if job == "sweep":
        if wanted.processes:
            raise ConfigError(["--processes is for one run; a sweep has --tasks=n"])
        if wanted.task is not None:
            return _sweeps.work(config, workdir, wanted)
        start = _local.run if wanted.where == "local" else _slurm.run_sweep
        return start(config, workdir, wanted)
    if wanted.where != "slurm":
        flag = "--task" if wanted.where is None else "--launch=local"
        raise ConfigError([f"{flag} is for the tasks of a sweep, and job.name is {job!r}"])
    if wanted.tasks or wanted.retry_failed:
        raise ConfigError([f"--tasks and --retry_failed are for a sweep; job.name is {job!r}"])
    return _slurm.run_job(config, workdir, wanted, job, check)
