"""--launch=slurm: a job's script, written to be read, and submitted with sbatch.

A sweep is an array job: element i trains task i. One run is a job of one process, or of several
that srun starts and that find each other. Preempted, out of time, or on a node that failed, a job
goes back into the queue and goes on from its checkpoints.
"""

import datetime
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lrlab import console, fields, records
from lrlab.jobs import _start, _tasks
from lrlab.launch import Wanted
from lrlab.launch._sweeps import prepare
from lrlab.resolve import ConfigError

GRACE = 90  # seconds before the time limit at which processes are told to save
_SHORT = {
    **{"-A": "--account", "-C": "--constraint", "-G": "--gpus", "-J": "--job-name"},
    **{"-N": "--nodes", "-c": "--cpus-per-task", "-n": "--ntasks", "-p": "--partition"},
    **{"-q": "--qos", "-t": "--time", "-w": "--nodelist", "-x": "--exclude", "-a": "--array"},
}
_REFUSED = {  # options that would break what the script relies on
    "--array": "--tasks=n says how many elements there are",
    "--wrap": "the script says what runs",
    "--no-requeue": "a job that is preempted goes on only from the queue",
}
_WHY = {
    "--requeue": "Preempted, or its node failed: back into the queue, and on in the same log.",
    "--signal": "So long before the time limit srun's processes get SIGTERM: they save and end.",
}

_SCRIPT = """\
#!/bin/bash
# {what}
# Written by: {command}
# It may be changed and submitted again with sbatch: what is over is not trained again.

{options}

# srun gives its processes the cores of the job; since Slurm 22.05 it must be told how many.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

for attempt in $(seq 60); do
  srun {line}
  code=$?
  [ "$code" = 75 ] || break # another process holds it: the one before, which may still be saving
  sleep 10
done

case "$code" in
  0) ;; # over
  1 | 2 | 3) ;; # it cannot begin, its config is wrong, it diverged: again would be the same
  *) scontrol requeue "$SLURM_JOB_ID" ;; # 143: it saved before the time limit; else it died
esac
exit "$code"
"""


def run_sweep(config: Mapping[str, Any], workdir: Path | None, wanted: Wanted) -> int:
    """Submits the tasks of a sweep that wait; returns the exit code.

    Raises:
      ConfigError: see `prepare`; options that cannot be; no sbatch, or what it said.
    """
    own = _asked(wanted)
    cut = prepare(config, workdir, wanted)
    waiting = [s.task.number for s in cut.states(wanted.retries) if s.name == "waiting"]
    if not waiting:
        console.say("no task waits, so nothing is submitted; --status says how they stand")
        return 0
    words = [*_python(wanted, cut.folder), f"--retries={wanted.retries}"]
    line = f'{shlex.join(words)} --task="$SLURM_ARRAY_TASK_ID"'
    options = {"--array": ranges(waiting), "--nodes": "1", "--ntasks": "1"}
    options |= _options(cut.folder, "%A_%a", own)
    what = f"A sweep in {len(cut.tasks)} tasks: element i of the array trains task i."
    text = script(what, wanted.command, options, line)
    return _submit(cut.folder, text, wanted, f"{len(waiting)} of {len(cut.tasks)} tasks")


def run_job(
    config: Mapping[str, Any],
    workdir: Path | None,
    wanted: Wanted,
    job: str,
    check: Callable[[Mapping[str, Any]], Any],
) -> int:
    """Submits one run, of one process or of several; returns the exit code.

    Raises:
      ConfigError: as `run_sweep`; `check`, the job's own, found something.
    """
    own, count = _asked(wanted), wanted.processes or 1
    if count > 1 and job != "train":
        raise ConfigError([f"--processes={count} is for job.name='train'; {job!r} takes one"])
    checked = check(config)
    full = checked if isinstance(checked, dict) else getattr(checked, "config", fields.fill(config))
    folder = workdir or _start.default_folder(full, wanted.source)
    if not _start.same_config(folder, full) and not wanted.dry_run:
        with _tasks.alone(folder):
            options = _start.Options(wanted.source, wanted.command)
            _start.keep_config(folder, full, options)
    words, what = _python(wanted, folder), "One run"
    options = {"--nodes": "1", "--ntasks": "1"}
    if count > 1:  # JAX gives each process under srun one GPU: that of its number on the node
        what = f"One run of {count} processes, where there are GPUs with one each"
        options = {"--ntasks": str(count)}
        # The others notice within a minute that one died, and end; none may wait for ever.
        words = ["--wait=300", *words, "--distributed"]
    options |= _options(folder, "%j", own)
    text = script(f"{what}.", wanted.command, options, shlex.join(words))
    return _submit(folder, text, wanted, f"one run in {count} process{'es' * (count > 1)}")


def script(what: str, command: str, options: Mapping[str, str | None], line: str) -> str:
    """A job's script: what it is, what it asks for, what it does."""
    said = []
    for name, value in options.items():
        said += [f"# {_WHY[name]}"] if name in _WHY else []
        said.append(f"#SBATCH {name}" + ("" if value is None else f"={_quoted(name, value)}"))
    command = command.replace("\n", " ")
    return _SCRIPT.format(what=what, command=command, options="\n".join(said), line=line)


def _options(folder: Path, job: str, own: Mapping[str, str | None]) -> dict[str, str | None]:
    """Options of sbatch: ours, and what the user says instead or beside. job: %A_%a or %j."""
    log = str(folder / "launch").replace("%", "%%") + f"/{job}.log"
    ours = {
        "--job-name": folder.resolve().name,
        "--chdir": str(Path.cwd()),
        "--output": log,
        "--open-mode": "append",
        "--requeue": None,
        "--signal": f"TERM@{GRACE}",
    }
    return {**ours, **own}


def _asked(wanted: Wanted) -> dict[str, str | None]:
    """What --slurm says, by long names.

    Raises:
      ConfigError: no option of sbatch, one that cannot be, or there is no sbatch.
    """
    problems, found = [], {}
    try:
        words = [word for text in wanted.slurm for word in shlex.split(text)]
    except ValueError as e:
        raise ConfigError([f"--slurm={wanted.slurm}: {e}"]) from e
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word[:2] in _SHORT:
            name, equals, value = _SHORT[word[:2]], word[2:], word[2:]
        if not name.startswith("--"):
            problems.append(f"--slurm={word} is no option of sbatch; write --slurm=--partition=gpu")
            continue
        if not equals and words and not words[0].startswith("-"):
            equals, value = "=", words.pop(0)
        if name in _REFUSED:
            problems.append(f"--slurm={name} cannot be: {_REFUSED[name]}")
        found[name] = value if equals else None
    if not wanted.dry_run and shutil.which("sbatch", path=wanted.env.get("PATH")) is None:
        problems.append(
            "--launch=slurm needs sbatch, which is not on this machine; --dry_run shows the script"
        )
    if problems:
        raise ConfigError(problems)
    return found


def _quoted(name: str, value: str) -> str:
    """A value as a line of #SBATCH takes it."""
    if any(c in value for c in '"\\\n'):
        raise ConfigError([f"sbatch takes no quotes or backslashes in {name}={value!r}"])
    return f'"{value}"' if set(value) & set(" #'\t") else value


def _python(wanted: Wanted, folder: Path) -> list[str]:
    """The command line that every process begins with."""
    return [sys.executable, "-m", "lrlab.main", *wanted.flags, f"--workdir={folder}"]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as Slurm writes an array: 0-3,7,9-10."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _submit(folder: Path, text: str, wanted: Wanted, what: str) -> int:
    """Writes the script, hands it to sbatch, and says what can be done then."""
    file = folder / "launch" / "job.sh"
    command = ["sbatch", "--parsable", str(file)]
    if wanted.dry_run:
        console.say(f"{text}\ndry run: nothing was written or submitted; the command would be")
        console.say(f"  {shlex.join(command)}")
        return 0
    with _tasks.alone(folder):
        file.parent.mkdir(exist_ok=True)
        records.write_text(file, text)
        done = subprocess.run(command, env=wanted.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError([f"sbatch refused {file}: {done.stderr.strip()}"])
        job = done.stdout.strip().split(";")[0]  # "id" or "id;cluster"
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        with (file.parent / "jobs.jsonl").open("a", encoding="utf-8") as f:
            f.write(records.line({"job": job, "what": what, "time": now}))
    lines = [
        f"submitted {what} as job {job}",
        f"  look     squeue --jobs={job}; logs are in {file.parent}{os.sep}",
        f"  cancel   scancel {job}; the same command submits what is left",
    ]
    if (folder / "tasks.json").exists():
        lines.insert(
            2, f"  status   python -m lrlab.main --status --workdir={shlex.quote(str(folder))}"
        )
    console.say("\n".join(lines))
    return 0
