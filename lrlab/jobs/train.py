"""The job "train": one run, from a config to a trained model, its record and its report."""

import contextlib
import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import build, console, devices, epoch, loop, optimizers, records, report, values
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.resolve import ConfigError
from lrlab.tensorboard import Events
from lrlab.train_step import RECORDED

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says beside the config.

    source: the config's file, as typed. command: the whole command, for records and for resuming.
    """

    source: str
    command: str
    dry_run: bool = False


class Stopped(Exception):  # noqa: N818 - no error: a run was asked to stop, and did
    """A signal ended the run after a good save."""

    def __init__(self, number: int, step: int):
        self.number, self.step = number, step
        super().__init__(f"stopped by {signal.Signals(number).name} at update {step}, saved")


def run(config: Mapping[str, Any], workdir: Path | None, options: Options) -> None:
    """Trains, or goes on, or says that it is done.

    Raises:
      ConfigError, DataError, LockedError, DivergedError, Stopped: see `main` for their exit codes.
    """
    recipe = build.check(config)
    folder = workdir or default_folder(recipe.config, options.source)
    old = _same_config(folder, recipe.config)
    if (found := records.read(folder)).final and not options.dry_run:
        page = folder / "report.html"
        if not page.exists():  # a kill came between the last row and the report
            report.write(folder)
        console.say(f"already finished: {folder}\n" + console.ending(found.final, folder, page))
        return
    console.say(_banner(recipe, folder, options))
    for warning in recipe.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.dry_run:
        _dry_run(recipe)
        return
    _room_for(recipe, folder)
    with records.locked(folder) as writer:
        if not old:
            _write_start(recipe, folder, options)
        _train(recipe, folder, writer)


def default_folder(config: Mapping[str, Any], source: str) -> Path:
    """runs/<config's name>-<hash of the resolved config>."""
    return Path("runs") / f"{Path(source).stem}-{records.config_hash(config)}"


def _same_config(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder holds a run of this config; False if it holds none.

    Raises:
      ConfigError: it holds a run of another config (the message has the difference), or other
      files.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"--workdir={folder} is a file; a run needs a folder"])
    stored = records.read_json(folder / "config.json").get("config")
    if stored is None:
        others = [p.name for p in folder.iterdir() if p.name != "lock"] if folder.exists() else []
        if others:
            raise ConfigError(
                [
                    f"--workdir={folder} holds files but no run ({', '.join(sorted(others)[:5])}); "
                    "choose another"
                ]
            )
        return False
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


def _room_for(recipe: Recipe, folder: Path) -> None:
    """Refuses to begin a run whose checkpoints cannot fit on the disk."""
    state = sum(a.dtype.itemsize * a.size for a in jax.tree.leaves(recipe.shapes))
    need = state * (recipe.config["checkpoint"]["keep"] + 3)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise ConfigError(
            [
                f"checkpoints need {need / 1e6:,.0f} MB and {there} has {free / 1e6:,.0f} MB free; "
                "lower checkpoint.keep"
            ]
        )


def _write_start(recipe: Recipe, folder: Path, options: Options) -> None:
    source = recipe.source
    about = {
        **records.environment(),
        **devices.describe(),
        "model": {"name": recipe.config["model"]["name"], "parameters": recipe.parameters},
        "data": {"name": source.name, "sizes": source.sizes, "notes": source.notes},
    }
    records.write_json(folder / "environment.json", about)
    stored = {
        "config": recipe.config,
        "hash": records.config_hash(recipe.config),
        "source": options.source,
        "command": options.command,
        "lrlab": about["lrlab"],
    }
    records.write_json(folder / "config.json", stored)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills with the signals that came; a third Ctrl-C ends the process at once."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        if came.count(signal.SIGINT) >= 3:
            raise KeyboardInterrupt

    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(n, note) for n in numbers]
    try:
        yield came
    finally:
        for n, handler in zip(numbers, before, strict=True):
            signal.signal(n, handler)


def _train(recipe: Recipe, folder: Path, writer: records.Writer) -> None:
    dataset = recipe.read()
    keep = recipe.config["checkpoint"]["keep"]
    with Checkpoints(folder / "checkpoints", keep) as saves, _signals() as came:
        run = loop.Run(recipe, dataset, writer, saves)
        resumed = run.resume()
        for warning in saves.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if resumed:
            console.say(f"resuming at update {run.step:,} of {recipe.total:,}")
        writer.event("resume" if resumed else "start", step=run.step)
        try:
            _observe(run, folder, came)
        except BaseException as e:
            writer.event("stop", step=run.step, why=type(e).__name__)
            if isinstance(e, Stopped | loop.DivergedError):
                report.write(folder)
            raise
        final = _finish(run)
        writer.event("end", step=run.step)
    console.say(console.ending(final, folder, report.write(folder)))


def _observe(run: loop.Run, folder: Path, came: list[int]) -> None:
    """Trains to the end, showing what happens; ends it when a signal came."""
    epochs, events = run.recipe.config["epochs"], Events(folder, run.step)
    accuracy = RECORDED.index("correct"), RECORDED.index("weight")
    with contextlib.closing(events), console.Progress(epochs, run.position.epoch) as bar:
        for item in loop.fit(run):
            if isinstance(item, loop.Row):
                events.row(item.row)
                bar.event(item.row) if "event" in item.row else bar.epoch(item.row)
            else:
                last = item.recorded[-1]
                bar.update(
                    item.epoch + 1,
                    item.done,
                    loss=float(last[RECORDED.index("loss")] / last[accuracy[1]]),
                    accuracy=float(last[accuracy[0]] / last[accuracy[1]]),
                    lr=float(last[RECORDED.index("lr")]),
                    examples_per_second=item.examples_per_second,
                )
            if came:
                run.save()
                raise Stopped(came[0], run.step)


def _finish(run: loop.Run) -> dict[str, Any]:
    """Tests the final state and writes the last row."""
    best = run.position.best or {}
    final = {
        "event": "final",
        "epoch": run.position.epoch,
        "step": run.step,
        **run.evaluate("test"),
        **{f"best_{k}": best.get(k) for k in ("epoch", "step", "val_loss", "val_accuracy")},
        "state_sha256": run.digest(),
        "seconds": round(run.seconds(), 3),
    }
    run.writer.row(final)
    return final


def _banner(recipe: Recipe, folder: Path, options: Options) -> str:
    config, source = recipe.config, recipe.source
    rates = np.asarray(recipe.rates())
    train, validation, test = source.sizes
    left = train - recipe.per_epoch * recipe.regime.sizes[0]
    spare = f", {left:,} sit out, others each time" if left else ""
    micro = f" in {recipe.regime.micro} parts" if recipe.regime.micro > 1 else ""
    found = devices.describe()
    notes = "".join(f"; {n}" for n in source.notes)
    rule = ", ".join(f"{k}={v}" for k, v in config["optimizer"].items() if k != "name")
    items = [
        (
            "data",
            f"{source.name}: {train:,} train, {validation:,} validation, {test:,} test{notes}",
        ),
        ("model", f"{config['model']['name']}, {recipe.parameters:,} parameters"),
        ("devices", f"{devices.count()} x {found['device_kind']}"),
        ("batch", f"{config['batch']['name']}, {recipe.regime.sizes[0]:,} examples{micro}"),
        (
            "epoch",
            f"{recipe.per_epoch:,} updates{spare}; {config['epochs']:,} epochs, "
            f"{recipe.total:,} updates",
        ),
        (
            "optimizer",
            f"{config['optimizer']['name']}{f' ({rule})' * bool(rule)}, peak rate {config['lr']:g}",
        ),
        *([("layers", "; ".join(_group(*g) for g in recipe.groups))] if recipe.groups else []),
        ("folder", str(folder)),
    ]
    return console.banner(f"lrlab train {options.source}", items, console.curve(rates))


def _group(pattern: str, multiplier: float, leaves: int, weights: int) -> str:
    rate = f"rate x {multiplier:.4g}" if multiplier else "frozen"
    return f"{pattern} {rate} ({leaves} leaves, {weights:,} weights)"


def _dry_run(recipe: Recipe) -> None:
    """Compiles the step for the data's shapes and says what it takes; trains nothing."""
    size, began = recipe.regime.sizes[0], time.monotonic()
    data = recipe.read()
    placement = epoch.place(data, recipe.config["placement"])
    columns = len(RECORDED) + len(recipe.columns)
    seed = recipe.config["seed"]
    training = epoch.Training(recipe.train_step(), data, size, placement, seed, columns)
    compiled = training.compile(recipe.init())
    seconds, memory = time.monotonic() - began, compiled.memory_analysis()
    flops = (compiled.cost_analysis() or {}).get("flops", 0)
    shape = "x".join(map(str, recipe.source.feature_shape))
    console.say(f"batch     float32 [{size}, {shape}], {placement}")
    for path, leaf in zip(
        optimizers.paths(recipe.shapes.params), jax.tree.leaves(recipe.shapes.params), strict=True
    ):
        console.say(f"  {path:<40} {leaf.dtype} {list(leaf.shape)}")
    if memory is not None:
        parts = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        console.say(
            f"memory    {parts[0] / 1e6:,.1f} MB of data and state, "
            f"{parts[1] / 1e6:,.1f} MB to work in, a device"
        )
    console.say(
        f"compiled  one update in a loop, {flops / 1e6:,.1f} MFLOP as XLA counts, "
        f"ready after {seconds:.1f} s"
    )
    console.say("dry run: nothing was trained or written")
