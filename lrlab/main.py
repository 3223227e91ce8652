"""Runs the job that a config describes; the same command goes on with a run that was stopped.

  python -m lrlab.main --config=configs/digits.py --workdir=runs/d --config.lr=0.2

  --config=FILE          a Python file with get_config() -> ml_collections.ConfigDict
  --config.KEY=VALUE     changes the config: --config.lr=0.1 --config.optimizer.name=adam
                         --config.schedule='({"name": "cosine", "start": 1.0, "end": 0.0},)'
  --workdir=FOLDER       the run's folder; default runs/<config>-<hash of the resolved config>
  --dry_run              shows the plan, shapes, memory and the compiled step; trains nothing
  --overwrite            deletes the run that --workdir holds, and begins anew
  --list                 lists the fields of a config, and the names they can take
  --help, --version

Exit codes: 0 done; 2 usage or config; 3 diverged; 4 data; 5 runtime, checkpoint or resource;
75 another process writes this run; 130 Ctrl-C, 143 SIGTERM, both after a good save.
"""

import difflib
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lrlab import __version__
from lrlab.resolve import ConfigError
from lrlab.values import near

USAGE, DIVERGED, DATA, RUNTIME, LOCKED = 2, 3, 4, 5, 75
ROOMS = {
    "data.name": "lrlab.data",
    "model.name": "lrlab.models",
    "batch.name": "lrlab.batching",
    "optimizer.name": "lrlab.optimizers",
    "schedule[].name": "lrlab.schedules",
    "job.name": "lrlab.jobs",
}


def _flags() -> flags.FlagValues:
    """The flags of lrlab alone; those that libraries define are not ours to show."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "a Python file with get_config()", flag_values=values)
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "shows the plan, trains nothing", flag_values=values)
    flags.DEFINE_boolean(
        "overwrite", False, "deletes the run that --workdir holds", flag_values=values
    )
    flags.DEFINE_boolean("list", False, "lists fields and names", flag_values=values)
    flags.DEFINE_boolean("help", False, "shows this help", short_name="h", flag_values=values)
    flags.DEFINE_boolean("version", False, "shows the version", flag_values=values)
    return values


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[tuple[str, str]]]:
    """Flags, and the config's overrides as (path, text)."""
    parsed = _flags()
    ours, changes, problems, rest = [argv[0]], [], [], list(argv[1:])
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
            hint = difflib.get_close_matches(name, list(parsed), cutoff=0.5)
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
    if problems:
        raise ConfigError(problems)
    return parsed, changes


def load_config(file: str) -> dict[str, Any]:
    """What get_config() of a Python file returns, as plain values.

    Raises:
      ConfigError: no such file, a fault in it (with its line), no get_config.
    """
    path = Path(file)
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; {near(file, there)}" if there else f"; there is no folder {path.parent}"
        raise ConfigError([f"--config={file} is no file{hint}"])
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    home = str(path.resolve().parent.parent)
    sys.path.insert(0, home)  # a variant imports its recipe: `from configs import mnist`
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError([f"--config={file} has no get_config(); it returns a ConfigDict"])
        config = module.get_config()
    except ConfigError:
        raise
    except SyntaxError as e:
        raise ConfigError([f"--config={file}: {e.filename}:{e.lineno}:{e.offset}: {e.msg}"]) from e
    except Exception as e:  # a config is a program of the user's, and may fail in any way
        at = e.__traceback__
        line = 0
        while at is not None:
            if at.tb_frame.f_code.co_filename == str(path):
                line = at.tb_lineno
            at = at.tb_next
        raise ConfigError([f"--config={file}: line {line}: {type(e).__name__}: {e}"]) from e
    finally:
        sys.path.remove(home)
    from lrlab.fields import plain

    return plain(config)


def _list() -> str:
    """Fields and names, from the code itself."""
    from lrlab import fields, resolve

    lines = ["fields of a config (defaults; all others must be given):"]
    for key in sorted({*fields.DEFAULTS, *fields.REQUIRED}):
        lines.append(f"  {key:<16} {fields.DEFAULTS.get(key, '(required)')}")
    lines.append("names:")
    for field, room in ROOMS.items():
        names = resolve.names(room)
        lines.append(f"  {field:<16} {', '.join(names)}")
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
        if not parsed.config:
            raise ConfigError(["--config=FILE is missing, such as --config=configs/digits.py"])
        return _run(parsed, changes, argv)
    except ConfigError as e:
        many = len(e.problems)
        print(f"{many} problem{'s' if many > 1 else ''}:", *e.problems, sep="\n- ", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted; what was saved is kept", file=sys.stderr)
        return 130


def _run(parsed: flags.FlagValues, changes: list[tuple[str, str]], argv: Sequence[str]) -> int:
    from lrlab import values

    config = load_config(parsed.config)
    problems, notes = values.override(config, changes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if problems:
        raise ConfigError(problems)

    from lrlab import build, devices, resolve
    from lrlab.data import DataError
    from lrlab.jobs.train import Options, Stopped
    from lrlab.loop import DivergedError
    from lrlab.records import LockedError

    job = config.get("job") or {"name": "train"}
    name = job.get("name", "train") if isinstance(job, dict) else "train"
    run = resolve.find("lrlab.jobs", name if ":" in str(name) else f"{name}.run", "job.name")
    kept = [word for word in argv[1:] if word.lstrip("-") not in ("overwrite", "overwrite=true")]
    command = shlex.join(["python", "-m", "lrlab.main", *kept])  # what resumes must not delete
    workdir = Path(parsed.workdir) if parsed.workdir else None
    devices.use_cache()
    try:
        if parsed.overwrite:
            build.check(config)  # a run is not deleted for one that cannot begin
            _delete(workdir, parsed.dry_run)
        run(config, workdir, Options(parsed.config, command, parsed.dry_run))
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
    except OSError as e:
        print(
            f"could not go on: {e}. The run goes on from its last checkpoint: {command}",
            file=sys.stderr,
        )
        return RUNTIME
    return 0


def _delete(workdir: Path | None, dry_run: bool) -> None:
    """Deletes a run, and nothing that is none."""
    from lrlab import records

    if workdir is None:
        raise ConfigError(["--overwrite needs --workdir: which run is to be deleted?"])
    if not workdir.exists() or dry_run:
        return
    stored = records.read_json(workdir / "config.json")
    if not {"config", "hash", "lrlab"} <= stored.keys():
        raise ConfigError([f"--overwrite: {workdir} holds no run of lrlab, so it is not deleted"])
    with records.locked(workdir):
        for path in workdir.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def cli() -> None:
    """The console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
