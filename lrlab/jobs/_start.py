"""What every job does with its folder, the command line and signals."""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrlab import __version__, devices, fields, records, values
from lrlab.build import Recipe
from lrlab.resolve import ConfigError


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says beside the config.

    source: the config's file, as typed. command: the whole command, for records and for resuming.
    """

    source: str
    command: str
    dry_run: bool = False


class Stopped(Exception):  # noqa: N818 - no error: a run was asked to stop, and did
    """A signal ended the run, and nothing is lost."""

    def __init__(self, number: int, step: int):
        self.number, self.step = number, step
        saved = "saved" if step else "with nothing to save yet"
        super().__init__(f"stopped by {signal.Signals(number).name} at update {step}, {saved}")


def default_folder(config: Mapping[str, Any], source: str) -> Path:
    """runs/<config's name>-<hash of the resolved config>."""
    return Path("runs") / f"{Path(source).stem}-{records.config_hash(config)}"


def same_config(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run of this config; False if it holds none.

    Raises:
      ConfigError: it holds a run of another config (the message has the difference), or other
      files.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"--workdir={folder} is a file; a run needs a folder"])
    stored = records.read_json(folder / "config.json").get("config")
    if stored is None:
        others = [p.name for p in folder.iterdir()] if folder.exists() else []
        ours = {"lock", "environment.json", *(p.name for p in records.leftovers(folder))}
        others = [name for name in others if name not in ours]
        if others:
            raise ConfigError(
                [
                    f"--workdir={folder} holds files but no run ({', '.join(sorted(others)[:5])}); "
                    "choose another"
                ]
            )
        return False
    stored = fields.fill(stored)  # fields that came later have their defaults there too
    if records.canonical(stored) == records.canonical(config):
        return True
    before, after = values.flat(stored), values.flat(config)
    lines = [
        f"  {key}: {before.get(key, 'absent')!r} there, {after.get(key, 'absent')!r} now"
        for key in sorted(before.keys() | after.keys())
        if records.canonical(before.get(key)) != records.canonical(after.get(key))
    ]
    raise ConfigError(
        [
            f"--workdir={folder} holds a run of another config:\n" + "\n".join(lines) + "\n"
            "  choose another --workdir (or none, for a folder of its own), or --overwrite to "
            "delete that run"
        ]
    )


def keep_config(folder: Path, config: Mapping[str, Any], options: Options) -> None:
    """Writes config.json of a run that begins; call it under the lock.

    Raises:
      ConfigError: as `same_config`; another process may have begun there in between.
    """
    if not same_config(folder, config):
        stored = {
            "config": config,
            "hash": records.config_hash(config),
            "source": options.source,
            "command": options.command,
            "lrlab": __version__,
        }
        records.write_json(folder / "config.json", stored)


def claim(folder: Path, config: Mapping[str, Any], recipe: Recipe, options: Options) -> None:
    """Writes config.json and environment.json of a run that begins; call it under the lock.

    Makes room for the run's programs.

    Raises:
      ConfigError: as `same_config`.
    """
    devices.make_room()
    keep_config(folder, config, options)
    if not (folder / "environment.json").exists():
        source = recipe.source
        about = {
            **records.environment(),
            **devices.describe(),
            "model": {"name": recipe.config["model"]["name"], "parameters": recipe.parameters},
            "data": {"name": source.name, "sizes": source.sizes, "notes": source.notes},
        }
        records.write_json(folder / "environment.json", about)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that fills with the signals that came; a third Ctrl-C ends the process at once.

    A signal that was ignored when the process began stays so: nohup asks for that.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        if came.count(signal.SIGINT) >= 3:
            raise KeyboardInterrupt

    known = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    numbers = [n for n in known if signal.getsignal(n) != signal.SIG_IGN]
    before = [signal.signal(n, note) for n in numbers]
    try:
        yield came
    finally:
        for n, handler in zip(numbers, before, strict=True):
            signal.signal(n, handler)
