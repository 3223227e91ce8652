"""Runs the job that a config describes; the same command goes on with a run that was stopped.

  python -m lrlab.main --config=configs/digits.py --workdir=runs/d --config.lr=0.2

  --config=FILE          a Python file with get_config() -> ml_collections.ConfigDict
  --config.KEY=VALUE     changes the config: --config.lr=0.1 --config.optimizer.name=adam
                         --config.schedule='({"name": "cosine", "start": 1.0, "end": 0.0},)'
  --workdir=FOLDER       the run's folder; default runs/<config>-<hash of the resolved config>
  --dry_run              shows the plan, shapes, memory and the compiled step; trains nothing
  --overwrite            deletes the run that --workdir holds, and begins anew
  --distributed          trains one run on several hosts, this process being one of them: under
                         srun, mpirun, on TPU pods and GKE; elsewhere with
                         --coordinator=HOST:PORT --process_count=N --process_index=I (from 0)
  --launch=local         trains a sweep in --workers=N processes of this machine, each with its
                         share of the cores, or with a GPU; --tasks=N cuts it into so many parts
  --launch=slurm         submits a sweep as an array job of --tasks=N parts, any other job as it
                         is, with --processes=N over so many nodes; --slurm=OPTION, as often as
                         needed, goes to sbatch: --slurm=--partition=gpu; --dry_run shows the job
  --retries=3            of a part that dies or fails and gets no further; --retry_failed begins
                         to count anew
  --status               how the parts of a sweep stand, and the report of what is there
  --task=N               trains this part of a sweep alone: what --launch starts
  --list                 lists the fields of a config, and the names they can take
  --help, --version

Exit codes: 0 done; 2 usage or config; 3 diverged; 4 data; 5 runtime, checkpoint or resource;
75 another process writes this run; 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM, all after a good save.
"""

import contextlib
import difflib
import importlib.util
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from lrlab import __version__, launch
from lrlab.resolve import ConfigError, cause
from lrlab.values import near

USAGE, DIVERGED, DATA, RUNTIME, LOCKED = 2, 3, 4, 5, 75
LONGEST = 1_000  # characters of a message
_LANES = "sweep", "range_test", "pbt", "search"  # jobs whose lanes spread over devices


def _flags() -> flags.FlagValues:
    """The flags of lrlab alone; those that libraries define are not ours to show."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "a Python file with get_config()", flag_values=values)
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "shows the plan, trains nothing", flag_values=values)
    flags.DEFINE_boolean(
        "overwrite", False, "deletes the run that --workdir holds", flag_values=values
    )
    flags.DEFINE_boolean("distributed", False, "one run, several hosts", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0", flag_values=values)
    flags.DEFINE_integer("process_count", None, "processes of the run", flag_values=values)
    flags.DEFINE_integer("process_index", None, "of this process", flag_values=values)
    launch.define(values)
    flags.DEFINE_boolean("list", False, "lists fields and names", flag_values=values)
    flags.DEFINE_boolean("help", False, "shows this help", short_name="h", flag_values=values)
    flags.DEFINE_boolean("version", False, "shows the version", flag_values=values)
    return values


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[tuple[str, str]]]:
    """Flags, and the config's overrides as (path, text)."""
    parsed = _flags()
    ours, changes, problems, rest = [argv[0]], [], [], list(argv[1:])
    for word in rest:
        try:
            word.encode()
        except UnicodeEncodeError:
            problems.append(f"{word!r} is no UTF-8; rename the file or folder")
    while rest:
        word = rest.pop(0)
        name, equals, text = word.lstrip("-").partition("=")
        if word.startswith("-") and name.startswith("config."):
            if not equals and not (rest and not rest[0].startswith("--")):
                problems.append(f"{word} has no value; write {word}=VALUE")
                continue
            changes.append((name.removeprefix("config."), text if equals else rest.pop(0)))
        elif word.startswith("-") and name not in parsed and name.removeprefix("no") not in parsed:
            # A section or field of a config that lost its prefix is the likeliest slip.
            hint = difflib.get_close_matches(name, list(parsed), cutoff=0.6)
            also = f"; a field of the config is changed by --config.{name}=..." if not hint else ""
            listed = ", ".join(f"--{f}" for f in sorted(parsed))
            meant = f"did you mean --{hint[0]}? " if hint else ""
            problems.append(f"unknown flag {word}; {meant}known: {listed}{also}")
            if not equals and rest and not rest[0].startswith("-"):
                rest.pop(0)
        elif word.startswith("-"):
            ours.append(word)
            if not equals and name in ("config", "workdir") and rest:
                ours[-1] = f"{word}={rest.pop(0)}"
        else:
            problems.append(
                f"{word!r} is no flag; write --config={word}"
                if word.endswith(".py")
                else f"{word!r} is no flag"
            )
    try:
        parsed(ours)
    except flags.Error as e:
        problems.append(str(e))
    if parsed.workdir is not None and not parsed.workdir.strip():
        problems.append("--workdir is empty; name a folder, or leave it out for one under runs/")
    if problems:
        raise ConfigError(problems)
    return parsed, changes


def _path(flag: str, text: str) -> Path:
    """The path that a flag names; ~ is somebody's home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as e:
        raise ConfigError([f"--{flag}={text}: {e}"]) from e


def load_config(file: str) -> dict[str, Any]:
    """What get_config() of a Python file returns, as plain values.

    Raises:
      ConfigError: no such file, a fault in it (with its line), no get_config.
    """
    from lrlab.fields import plain

    path = _path("config", file)
    try:
        is_file = path.is_file()
    except OSError as e:
        raise ConfigError([f"--config cannot be read: {e.strerror}: {file}"]) from e
    if not is_file:
        there = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; {near(file, there)}" if there else f"; there is no folder {path.parent}"
        raise ConfigError([f"--config={file} is no file{hint}"])
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise ConfigError([f"--config={file} is no Python file: its name must end in .py"])
    module = importlib.util.module_from_spec(spec)
    try:
        with _importing(path, module):
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise ConfigError([f"--config={file} has no get_config(); it returns a ConfigDict"])
            config = module.get_config()
            if isinstance(config, Mapping) or hasattr(config, "to_dict"):
                return plain(config)
    except ConfigError:
        raise
    except (
        Exception,
        SystemExit,
    ) as e:  # a config is a program of the user's, and may fail in any way
        raise ConfigError([f"--config={file}: {cause(e)}"]) from e
    got = type(config).__name__
    raise ConfigError([f"--config={file}: get_config() returns {got}, not a ConfigDict"])


@contextlib.contextmanager
def _importing(path: Path, module: ModuleType) -> Iterator[None]:
    """Lets a config be found as a module, and find others, while it is executed."""
    folder = path.resolve().parent
    # A variant imports its recipe: `from configs import mnist`, or `import mnist` beside it. What
    # stands beside a config comes last, since its name may be that of a package.
    last = [p for p in (str(folder), str(Path.cwd())) if p not in sys.path]
    sys.path[:] = [str(folder.parent), *sys.path, *last]
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        yield
    finally:
        del sys.modules[module.__name__]
        for place in (str(folder.parent), *last):
            sys.path.remove(place)


def _list() -> str:
    """Fields and names, from the code itself."""
    from lrlab import build, fields, resolve

    lines = ["fields of a config (defaults; all others must be given):"]
    for key in sorted({*fields.DEFAULTS, *fields.REQUIRED}):
        lines.append(f"  {key:<16} {fields.DEFAULTS.get(key, '(required)')}")
    lines.append("names:")
    for section, room in {**build.ROOMS, "schedule[]": "lrlab.schedules"}.items():
        lines.append(f"  {section + '.name':<16} {', '.join(resolve.names(room))}")
    lines.append(
        "  anything else    module:attribute: optax:scale_by_lion, your_package.models:Net"
    )
    return "\n".join(lines)


def _prepare_process() -> None:
    """Settings that must be there before JAX is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # More such devices than cores wait for each other for ever on JAX 0.10 and 0.11.
        os.environ.setdefault("PJRT_NPROC", "16")


def _device_a_core() -> None:
    """On a CPU, makes every core a device, unless the user says how many there shall be.

    Lanes share nothing, so a core each is their fastest layout; a single run is better off with all
    cores as one device.
    """
    said = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in said:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        os.environ["XLA_FLAGS"] = f"{said} --xla_force_host_platform_device_count={cores}".strip()


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns its exit code."""
    try:
        parsed, changes = _parse(argv)
        if parsed.help or parsed.version:
            print(__doc__ if parsed.help else f"lrlab {__version__}")
            return 0
        _prepare_process()
        if parsed.list:
            print(_list())
            return 0
        if parsed.status:
            return _status(parsed, changes)
        if not parsed.config:
            raise ConfigError(["--config=FILE is missing, such as --config=configs/digits.py"])
        return _run(parsed, changes, argv)
    except ConfigError as e:
        many = len(e.problems)
        told = [p if len(p) <= LONGEST else f"{p[:LONGEST]} ..." for p in e.problems]
        print(f"{many} problem{'s' if many > 1 else ''}:", *told, sep="\n- ", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted; what was saved is kept", file=sys.stderr)
        return 130


def _status(parsed: flags.FlagValues, changes: list[tuple[str, str]]) -> int:
    """How the tasks of a sweep stand; the folder is named, or follows from the config."""
    from lrlab.launch import _status

    if parsed.workdir:
        folder = _path("workdir", parsed.workdir)
    elif parsed.config:
        from lrlab.jobs._start import default_folder

        folder = default_folder(_configured(parsed.config, changes), parsed.config)
    else:
        raise ConfigError(["--status needs --workdir, or the sweep's --config"])
    _status.show(folder, parsed.retries)
    return 0


def _configured(file: str, changes: list[tuple[str, str]]) -> dict[str, Any]:
    """The config of a file with defaults and the command line's changes."""
    from lrlab import fields, values

    config = fields.fill(load_config(file))
    problems, notes = values.override(config, changes, _needs)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if problems:
        raise ConfigError(problems)
    return config


def _needs(section: str, name: Any) -> Sequence[str] | None:
    """Keywords that what `name` names in a section cannot do without; None if it names nothing."""
    from lrlab import build, resolve

    try:
        return resolve.required(resolve.find(build.ROOMS[section], name))
    except (ConfigError, KeyError):
        return None


def _job(config: Mapping[str, Any]) -> Callable[..., None]:
    """The job that a config names; ConfigError with all else that is wrong where there is none."""
    from lrlab import build, resolve

    problems, job = resolve.Problems(), config["job"]
    name = job["name"] if isinstance(job, dict) else "train"  # what else it is, `check` tells
    run = problems.attempt(lambda: resolve.find(build.ROOMS["job"], name, "job.name"))
    if run is None:
        problems.attempt(lambda: build.check(config))
        raise ConfigError(problems.found)
    return run


def _run(parsed: flags.FlagValues, changes: list[tuple[str, str]], argv: Sequence[str]) -> int:
    kept = [word for word in argv[1:] if word.lstrip("-") not in ("overwrite", "overwrite=true")]
    command = shlex.join(["python", "-m", "lrlab.main", *kept])  # what resumes must not delete
    wanted = launch.read(parsed, changes, command)
    config = _configured(parsed.config, changes)
    if isinstance(config["job"], dict) and config["job"].get("name") in _LANES:
        _device_a_core()

    from lrlab import build, devices
    from lrlab.data import DataError
    from lrlab.jobs._start import Options, Stopped
    from lrlab.loop import DivergedError
    from lrlab.records import LockedError

    workdir = _path("workdir", parsed.workdir) if parsed.workdir else None
    try:
        _join(parsed, config)
        devices.use_cache()
        devices.keep_memory()
        run = _job(config)
        check = getattr(sys.modules[run.__module__], "check", build.check)
        if parsed.overwrite:
            check(config)  # a run is not deleted for one that cannot begin
            devices.led(lambda: _delete(workdir, parsed.dry_run))
        if wanted:
            return launch.run(config, workdir, wanted, check)
        run(config, workdir, Options(parsed.config, command, parsed.dry_run))
    except ConfigError:
        raise
    except DivergedError as e:
        print(
            f"diverged: {e}. A lower --config.lr, clip_norm, or a warm-up is the usual cure.",
            file=sys.stderr,
        )
        return DIVERGED
    except DataError as e:
        print(f"data: {e}", file=sys.stderr)
        return DATA
    except LockedError as e:
        print(e, file=sys.stderr)
        return LOCKED
    except Stopped as e:
        print(f"{e}\nresume with: {command}", file=sys.stderr)
        return 128 + e.number
    except (OSError, devices.HostError) as e:
        print(
            f"could not go on: {e}. The run goes on from its last checkpoint: {command}",
            file=sys.stderr,
        )
        return RUNTIME
    except Exception as e:  # the boundary: a user sees what happened, the traceback is kept
        kept_in = _keep(e, config, workdir, parsed.config)
        print(f"could not go on: {cause(e)[:LONGEST]}. Traceback: {kept_in}", file=sys.stderr)
        return RUNTIME
    return 0


def _join(parsed: flags.FlagValues, config: Mapping[str, Any]) -> None:
    """Joins the other hosts, if there shall be any; the first one alone says what happens."""
    from lrlab import devices

    named = parsed.coordinator, parsed.process_count, parsed.process_index
    if not parsed.distributed and named == (None, None, None):
        return
    job = config["job"]["name"] if isinstance(config["job"], dict) else "train"
    if job != "train":
        raise ConfigError(
            [
                f"--distributed trains one run on several hosts, and job.name={job!r} is many: "
                "--launch spreads those of a sweep; other jobs take one host with its devices"
            ]
        )
    if devices.join(*named):
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives


def _keep(e: Exception, config: dict[str, Any], workdir: Path | None, source: str) -> str:
    """Writes a traceback into the run's folder, or prints it where there is none."""
    from lrlab import build, records
    from lrlab.jobs._start import default_folder

    text = "".join(traceback.format_exception(e))
    with contextlib.suppress(Exception):  # whatever went wrong may go wrong here too
        folder = workdir or default_folder(build.check(config).config, source)
        if all((folder / name).exists() for name in ("lock", "config.json")):  # it holds a run
            records.write_text(folder / "traceback.txt", text)
            return str(folder / "traceback.txt")
    print(text, file=sys.stderr)
    return "above"


def _delete(workdir: Path | None, dry_run: bool) -> None:
    """Deletes a run, and nothing that is none."""
    from lrlab import records
    from lrlab.jobs import _tasks

    if workdir is None:
        raise ConfigError(["--overwrite needs --workdir: which run is to be deleted?"])
    if not workdir.exists() or dry_run:
        return
    stored = records.read_json(workdir / "config.json")
    if not {"config", "hash", "lrlab"} <= stored.keys():
        raise ConfigError([f"--overwrite: {workdir} holds no run of lrlab, so it is not deleted"])
    with records.locked(workdir), _tasks.idle(workdir):
        # config.json goes last: what a kill leaves is still a run, which may be deleted.
        last = {"tasks.json": 1, "config.json": 2}
        for path in sorted(workdir.iterdir(), key=lambda p: last.get(p.name, 0)):
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def cli() -> None:
    """The console script."""
    code = 0
    try:
        code = main(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `--list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    cli()
