"""The job "train": one run, from a config to a trained model, its record and its report."""

import atexit
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import build, console, devices, epoch, forecast, loop, optimizers, records, report
from lrlab.batching import Noise
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.jobs._start import Options, Stopped, claim, default_folder, same_config, signals
from lrlab.resolve import ConfigError
from lrlab.tensorboard import Events
from lrlab.train_step import RECORDED

__all__ = ["run"]


def run(config: Mapping[str, Any], workdir: Path | None, options: Options) -> None:
    """Trains, or goes on, or says that it is done.

    Raises:
      ConfigError, DataError, LockedError, DivergedError, HostError, Stopped: see `main` for their
      exit codes.
    """
    recipe = build.check(config)
    folder = workdir or default_folder(recipe.config, options.source)
    if devices.led(lambda: _begin(recipe, folder, options)):
        return
    if options.dry_run:
        _dry_run(recipe)
        return
    with _writer(folder) as writer:
        # Looked at once more, as the folder is.
        if not devices.led(lambda: _claimed(recipe, folder, options)):
            _train(recipe, folder, writer)


def _begin(recipe: Recipe, folder: Path, options: Options) -> bool:
    """Looks at the folder, and says what will be done; whether nothing is left to do."""
    same_config(folder, recipe.config)
    if not options.dry_run and _is_finished(folder):
        return True
    console.say(_banner(recipe, folder, options))
    for warning in recipe.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not options.dry_run:
        _room_for(recipe, folder)
    return False


def _claimed(recipe: Recipe, folder: Path, options: Options) -> bool:
    """Makes the folder this run's; whether another process finished it in between."""
    claim(folder, recipe.config, recipe, options)
    return _is_finished(folder)


@contextlib.contextmanager
def _writer(folder: Path) -> Iterator[records.Writer]:
    """The folder's writer, under its lock; on other hosts than the first one a witness."""
    with contextlib.ExitStack() as stack:
        with devices.together():
            first = devices.is_first()
            writer = stack.enter_context(records.locked(folder)) if first else None
        yield writer or records.Witness(folder)


def _is_finished(folder: Path) -> bool:
    """Whether the folder's run is over; if so, says what came of it."""
    final = records.read(folder).final
    if final:
        page = folder / "report.html"
        if not page.exists():  # a kill came between the last row and the report
            report.write(folder)
        console.say(f"already finished: {folder}\n" + console.ending(final, folder, page))
    return final is not None


def _room_for(recipe: Recipe, folder: Path) -> None:
    """Refuses to begin a run whose checkpoints cannot fit on the disk."""
    state = sum(a.dtype.itemsize * a.size for a in jax.tree.leaves(recipe.shapes))
    need = state * (recipe.config["checkpoint"]["keep"] + 3)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise ConfigError(
            [
                f"checkpoints need {need / 1e6:,.2f} MB and {there} has {free / 1e6:,.2f} MB free; "
                "lower checkpoint.keep"
            ]
        )


def _train(recipe: Recipe, folder: Path, writer: records.Writer) -> None:
    with devices.together():
        dataset = recipe.read()
    with _saves(recipe, folder) as saves, signals() as came:
        run = loop.Run(recipe, dataset, writer, saves)
        resumed = run.resume()
        moved = _moved(recipe, folder) if saves else {}
        for warning in [*(saves.warnings if saves else ()), *moved.values()]:
            print(f"warning: {warning}", file=sys.stderr)
        if resumed:
            console.say(f"resuming at update {run.step:,} of {recipe.total:,}")
        writer.event("resume" if resumed else "start", step=run.step, **_devices(), **moved)
        try:
            with contextlib.closing(Events(folder if saves else None, run.step)) as events:
                _observe(run, events, came)
                final = _finish(run, came)
                events.row(final)
        except BaseException as e:
            with contextlib.suppress(OSError):  # on a full disk `e` says more
                writer.event("stop", step=run.step, why=type(e).__name__)
            if isinstance(e, Stopped | loop.DivergedError) and run.step and saves:
                report.write(folder)
            if not isinstance(e, Stopped):
                run.wait()
            raise
        writer.event("end", step=run.step)
    with devices.together():  # all are there until the first one has written its report
        if saves:
            console.say(console.ending(final, folder, report.write(folder)))


def _saves(recipe: Recipe, folder: Path) -> Any:
    """A context of the run's checkpoints; of None on other hosts than the first one."""
    if not devices.is_first():
        return contextlib.nullcontext()
    return Checkpoints(folder / "checkpoints", recipe.config["checkpoint"]["keep"])


def _devices() -> dict[str, Any]:
    """What an event says about the devices."""
    hosts = {"hosts": devices.hosts()} if devices.hosts() > 1 else {}
    return {"devices": devices.count(), "device_kind": devices.describe()["device_kind"], **hosts}


def _moved(recipe: Recipe, folder: Path) -> dict[str, str]:
    """{"warning": ...} where the run goes on on other devices than it was on last."""
    starts = [e for e in records.read_lines(folder / "events.jsonl") if "devices" in e]
    now = _devices()
    before = {key: starts[-1].get(key) for key in ("hosts", *now)} if starts else {}
    if not starts or {"hosts": None, **now} == before:
        return {}
    was, is_now = (
        f"{e['devices']} x {e['device_kind']}"
        + (f" on {e['hosts']} hosts" if e.get("hosts") else "")
        for e in (before, now)
    )
    text = f"this run was on {was} and goes on on {is_now}: numbers are the same to rounding only"
    if recipe.shapes.stats and not recipe.config["model"].get("axis_name"):
        text += (
            "; and its BatchNorm, which normalises over each device's part of a batch, is another "
            "on another number of devices (with model.axis_name=devices it is not)"
        )
    return {"warning": text}


def _observe(run: loop.Run, events: Events, came: list[int]) -> None:
    """Trains to the end, showing what happens; ends it when a signal came."""
    epochs = run.recipe.config["epochs"]
    accuracy = RECORDED.index("correct"), RECORDED.index("weight")
    with console.Progress(epochs, run.position.epoch) as bar:
        for item in loop.fit(run):
            if isinstance(item, loop.Row):
                events.row(item.row)
                bar.event(item.row) if "event" in item.row else bar.epoch(item.row)
            elif isinstance(item, loop.Stretch):
                last = item.recorded[-1]
                bar.update(
                    item.epoch + 1,
                    item.done,
                    loss=float(last[RECORDED.index("loss")] / last[accuracy[1]]),
                    accuracy=float(last[accuracy[0]] / last[accuracy[1]]),
                    lr=float(last[RECORDED.index("lr")]),
                    examples_per_second=item.examples_per_second,
                )
            _stop_if(came, run, item)


def _stop_if(came: list[int], run: loop.Run, item: Any) -> None:
    """Saves and leaves if a signal came: to any host, after a stretch that all have done."""
    several = devices.hosts() > 1
    if several and not isinstance(item, loop.Stretch):
        return
    number = int(devices.largest(came[0] if came else 0))
    if not number:
        return
    if run.is_unsaved:
        run.save()
    # XLA cannot be told to stop compiling, so nobody waits; but hosts leave together.
    if several:
        run.wait()
    elif isinstance(item, loop.Waiting) or run.is_compiling:
        atexit.register(_leave, 128 + number)
    raise Stopped(number, run.step)


def _leave(code: int) -> None:
    """Ends the process with its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _finish(run: loop.Run, came: list[int]) -> dict[str, Any]:
    """Tests the final state and writes the last row."""
    for item in loop.patiently(lambda: run.evaluation("test")):
        _stop_if(came, run, item)
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
    return run.write(final).row


def _banner(recipe: Recipe, folder: Path, options: Options) -> str:
    config, source = recipe.config, recipe.source
    rates = np.asarray(recipe.rates())
    train, validation, test = source.sizes
    left = train - recipe.per_epoch * recipe.regime.sizes[0]
    spare = f", {left:,} sit out, others each time" if left else ""
    parts = recipe.parts(recipe.regime.sizes[0])
    micro = f" in {parts} parts" if parts > 1 else ""
    sizes = " to ".join(f"{s:,}" for s in recipe.sizes[:: max(1, len(recipe.sizes) - 1)])
    is_planned = not recipe.regime.reads
    updates = sum(e.updates for e in recipe.epochs()) if is_planned else recipe.total
    fewer = f", {1 - updates / recipe.total:.0%} fewer updates" if updates < recipe.total else ""
    found = devices.describe()
    notes = "".join(f"; {n}" for n in source.notes)
    rule = ", ".join(f"{k}={v}" for k, v in config["optimizer"].items() if k != "name")
    items = [
        (
            "data",
            f"{source.name}: {train:,} train, {validation:,} validation, {test:,} test{notes}",
        ),
        ("model", f"{config['model']['name']}, {recipe.parameters:,} parameters"),
        (
            "devices",
            f"{devices.count()} x {found['device_kind']}"
            + (f" on {devices.hosts()} hosts" if devices.hosts() > 1 else ""),
        ),
        ("batch", f"{config['batch']['name']}, {sizes} examples{micro}{fewer}"),
        (
            "epoch",
            f"{recipe.per_epoch:,} updates{spare}; {config['epochs']:,} epochs, "
            f"{updates:,} updates",
        ),
        (
            "optimizer",
            f"{config['optimizer']['name']}{f' ({rule})' * bool(rule)}, peak rate {config['lr']:g}",
        ),
        *([("start", recipe.start.words())] if recipe.start else []),
        *([("layers", "; ".join(_group(*g) for g in recipe.groups))] if recipe.groups else []),
        ("folder", str(folder)),
    ]
    plot = console.curve(rates, [p.span for p in recipe.phases], recipe.per_epoch, height=3)
    return console.banner(f"lrlab train {options.source}", items, plot)


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
    training = epoch.Training(recipe.train_step(size), data, size, placement, seed, columns)
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
    for line in _noise_lines(recipe):
        console.say(line)
    console.say("dry run: nothing was trained or written")


def _noise_lines(recipe: Recipe) -> list[str]:
    """The noise scale along the run, and a run of the same noise in fewer updates."""
    planned, twin = forecast.noise(recipe), forecast.twin(recipe)
    if planned is None:
        return []
    power = "^2" if forecast.rule_of(recipe) == "adam" else ""
    lines = [
        f"noise     lr{power} N / (B (1 - m)): {planned.g[0]:.3g} at first, {planned.g.max():.3g} "
        f"at most, {planned.g[-1]:.3g} at last",
        f"          {_extent(planned)}",
    ]
    one_size = recipe.total
    if planned.updates < one_size:
        lines.append(
            f"          with {recipe.regime.sizes[0]:,} examples throughout: {one_size:,} updates; "
            f"growing saves {1 - planned.updates / one_size:.0%}"
        )
    if twin:
        spec = ", ".join(f"{k!r}: {v!r}" for k, v in twin.batch.items())
        lines += [
            "the same noise from batches that grow, up to a tenth of the training examples:",
            f"          {_extent(twin.noise)}, {1 - twin.noise.updates / planned.updates:.0%} "
            "fewer updates",
            f'          --config.batch="{{{spec}}}"',
        ]
    return lines


def _extent(planned: Noise) -> str:
    low, high = int(planned.size.min()), int(planned.size.max())
    sizes = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{planned.updates:,} updates of {sizes}, {planned.size.sum():,} examples"
