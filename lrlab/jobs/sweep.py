"""The job "sweep": the trials of a grid or a sample, as lanes of as few programs as can be.

A number that the chain or the seed holds (rate, momentum, weight decay, epsilon, seed, ...) varies
by lane; anything else (optimizer, model, batch size, schedule) makes a group, which is compiled on
its own. Groups that the memory cannot hold at once go in waves.

<folder>/trials.jsonl     a row a trial that is over, in the order they ended
<folder>/trials.parquet   the same as a table, with trials.csv and trials.tex
<folder>/summary.json     the valley of every setting, and the best points
<folder>/checkpoints/     the wave that trains, and what was split from it
<folder>/tasks/           the same of its parts, where `--launch` cut it into tasks: see `_tasks`

Where a regime looks at losses or at noise, lanes whose batches come to differ part: they go on as
waves of their own, one after another.
"""

import contextlib
import copy
import dataclasses
import math
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import batching, console, devices, fields, points, records, resolve
from lrlab.analysis import noise_scale
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.data import Dataset
from lrlab.jobs import _start, _tasks
from lrlab.jobs._sweep_plan import Group, Plan, Trial, check
from lrlab.jobs._sweep_record import Book, conclude, ending
from lrlab.jobs._tasks import Task
from lrlab.lanes import Lanes
from lrlab.records import LockedError, Writer
from lrlab.resolve import ConfigError
from lrlab.train_step import PART_NORM, RECORDED
from lrlab.trials import Trials

__all__ = ["run"]
STRETCH = 2.0  # seconds between two looks at the clock and at signals
WAIT = 2.0  # seconds between two looks at tasks that others train
_SEEN = [RECORDED.index(name) for name in ("lr", "finite", "loss", "correct", "weight")]


def sizes_of(epochs: Sequence[batching.Epoch], updates: int | None) -> np.ndarray:
    """Examples of each update of a run, at most the first so many, int [updates]."""
    return np.concatenate([np.full(e.updates, e.size) for e in epochs])[:updates]


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Trains all trials, or goes on, or says that it is done.

    A sweep that was cut into tasks is gone on with, one task after another, beside whoever else
    trains some.

    Raises:
      ConfigError, DataError, LockedError, Stopped: see `main` for their exit codes.
    """
    planned, full = check(config), fields.fill(config)
    folder = workdir or _start.default_folder(full, options.source)
    _start.same_config(folder, full)
    console.say(banner(planned, folder, options))
    if options.dry_run:
        console.say("dry run: nothing was trained or written")
        return
    if tasks := _tasks.read(folder):
        if all(task.is_over for task in tasks):
            console.say("already finished")
        with _tasks.alone(folder):
            _start.claim(folder, full, planned.groups[0].recipe, options)
        with _start.signals() as came:
            run_tasks(planned, folder, came)
    else:
        with records.locked(folder) as writer, _start.signals() as came:
            _start.claim(folder, full, planned.groups[0].recipe, options)
            _run_whole(planned, folder, came, writer)
    console.say(ending(folder))


def _run_whole(planned: Plan, folder: Path, came: list[int], writer: Writer) -> None:
    """Trains a sweep that has no tasks."""
    if _tasks.read(folder):  # cut a moment ago
        raise ConfigError(
            [f"{folder} was cut into tasks just now: the same command goes on with it"]
        )
    conductor = _Conductor(planned, folder, came)
    if conductor.is_over and (folder / "report.html").exists():
        console.say("already finished")
        return
    writer.event("resume" if conductor.done else "start", trials=len(conductor.done))
    try:
        conductor.perform()
        writer.event("end", trials=len(conductor.done))
    except BaseException as e:
        writer.event("stop", trials=len(conductor.done), why=type(e).__name__)
        raise
    finally:
        conclude(folder, planned.keys, planned.most)


def run_tasks(planned: Plan, folder: Path, came: list[int]) -> None:
    """Trains all tasks of a sweep that nobody trains, and waits for the others."""
    said = ""
    try:
        while left := [t for t in _tasks.read(folder) if not t.is_over]:
            free = [t for t in left if t.holder() is None]
            for task in free:
                with contextlib.suppress(LockedError):  # another process was quicker
                    run_task(planned, task, came)
            if not free:
                if (text := ", ".join(f"{t.number} ({t.holder()})" for t in left)) != said:
                    console.say(f"waiting for tasks that others train: {text}")
                said = text
                time.sleep(WAIT)
            if came:
                raise _start.Stopped(came[0], 0)
    finally:
        _tasks.conclude(folder)


def run_task(planned: Plan, task: Task, came: list[int]) -> None:
    """Trains one task of a sweep, or goes on with it.

    Raises:
      LockedError: another process trains it.
      Stopped: a signal came, and all was saved.
    """
    with task.held() as writer:
        conductor = _Conductor(planned.part(task.trials), task.folder, came, writer)
        if conductor.is_over:
            return
        began, steps = time.monotonic(), conductor.saves.steps()
        who = {"host": socket.gethostname(), "process": os.getpid()}
        place = {"trials": len(conductor.done), "checkpoint": steps[-1] if steps else 0}
        writer.event("start", **who, **place)

        def ended(name: str, **what: Any) -> None:
            seconds = round(time.monotonic() - began, 3)
            writer.event(name, trials=len(conductor.done), seconds=seconds, **what)

        try:
            conductor.perform()
            ended("end")
        except (_start.Stopped, KeyboardInterrupt) as e:
            ended("stop", why=str(e))
            raise
        except Exception as e:
            text = "".join(traceback.format_exception(e))
            records.write_text(task.folder / "traceback.txt", text)
            ended("failed", why=resolve.cause(e)[:1000])
            raise


class _Conductor:
    """Takes the waves one after another, and keeps the record of trials that are over."""

    def __init__(self, planned: Plan, folder: Path, came: list[int], writer: Writer | None = None):
        self.plan, self.came, self._writer = planned, came, writer
        self.book = Book(folder / "trials.jsonl")
        self.saves = Checkpoints(
            folder / "checkpoints", planned.groups[0].recipe.config["checkpoint"]["keep"]
        )
        self.waves: list[_Wave] = []  # the first one trains, the others were split from it
        self._data: tuple[str, Dataset] | None = None
        self._said = time.monotonic()

    @property
    def done(self) -> set[int]:
        """Trials that are over."""
        return self.book.done

    @property
    def is_over(self) -> bool:
        """Whether every trial has its row."""
        return self.done >= {t.number for t in self.plan.trials}

    def perform(self) -> None:
        """Trains what is not done yet."""
        with self.saves:
            for group in self.plan.groups:
                while left := [t for t in group.trials if t.number not in self.done]:
                    self.waves = self._wave(group, left)
                    self._note(self.waves[0])
                    while self.waves:
                        self.waves[0].train(self)
                        self.waves.pop(0)

    def _note(self, wave: "_Wave") -> None:
        """Where a task begins or goes on."""
        if self._writer:
            trials = [wave.trials[i].number for i in wave.lanes.active]
            self._writer.event("wave", update=wave.lanes.step, lanes=trials)

    def save(self) -> None:
        """Saves all that trains or waits, also between two looks."""
        trees = [wave.tree() for wave in self.waves]
        at = {
            "trials": [t.number for t in self.waves[0].trials],
            "waves": [wave.position() for wave in self.waves],
        }
        self.saves.save((self.saves.steps() or [0])[-1] + 1, {"waves": trees}, at)

    def _read(self, recipe: Recipe) -> Dataset:
        name = records.canonical(recipe.config["data"])
        if self._data is None or self._data[0] != name:  # groups of one set follow each other
            self._data = name, recipe.read()
        return self._data[1]

    def _wave(self, group: Group, left: list[Trial]) -> list["_Wave"]:
        """The wave that was saved, and those split from it, if some is left; else a new one."""
        dataset, at = self._read(group.recipe), self.saves.position() or {}
        saved = [t for t in group.trials if t.number in set(at.get("trials", ()))]
        resumes = not {t.number for t in saved}.isdisjoint(t.number for t in left)
        wave = _Wave.of(group, saved if resumes else left, dataset, self.plan)
        if not resumes or "waves" not in at or [t.number for t in wave.trials] != at["trials"]:
            return [wave]
        waves = [wave, *(wave.split(w["active"]) for w in at["waves"][1:])]
        found = self.saves.restore({"waves": [w.shapes() for w in waves]})
        if found is None:
            return [wave]
        for one, tree, position in zip(waves, found[0]["waves"], at["waves"], strict=True):
            one.restore(tree, position)
        step = waves[0].lanes.step
        console.say(f"resuming at update {step:,} with {len(waves[0].lanes.active)} lanes")
        return [w for w in waves if w.lanes.active]  # of which there are: some trials are left

    def say(self, wave: "_Wave") -> None:
        """A line of progress, every few seconds."""
        if wave.lanes.active and time.monotonic() - self._said < 5:
            return
        self._said = time.monotonic()
        outcomes = wave.results.outcome
        counts = {str(o): int((outcomes == o).sum()) for o in sorted(set(outcomes)) if o}
        ended = "".join(f", {n} {o}" for o, n in counts.items())
        console.say(
            f"[{len(self.done):,}/{len(self.plan.trials):,}] {wave.group.name}: "
            f"update {wave.lanes.step:,} of {wave.results.total:,}, "
            f"{len(wave.lanes.active)} lanes train{ended}"
        )


@dataclasses.dataclass
class _Wave:
    """Trials of a group that train together. seconds: that each took of one device.

    recorded: what was seen since the last look. looked: updates at that look. norms: sums that tell
    the noise scale of each lane's epoch that goes on, float64 [lanes, 2]. seen: what the regime
    reads, of each epoch done, by lane.
    """

    group: Group
    trials: Sequence[Trial]
    most: int | None
    lanes: Lanes
    results: Trials
    seconds: np.ndarray
    recorded: np.ndarray
    norms: np.ndarray
    looked: int = 0
    seen: list[list[float | None]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, group: Group, chosen: Sequence[Trial], dataset: Dataset, planned: Plan) -> "_Wave":
        """As many lanes as the memory holds, measured by compiling their program."""
        recipe, total = group.recipe, planned.updates(group.recipe)
        look = min(planned.sweep.look, total)
        while True:
            try:
                lanes = Lanes(recipe, dataset, [group.lane(t) for t in chosen], look)
                if sum(lanes.memory().values()) <= devices.bytes_free() or len(chosen) == 1:
                    break
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e) or len(chosen) == 1:
                    raise
            chosen = chosen[: -(-len(chosen) // 2)]
            console.say(f"memory: {len(chosen)} lanes at once")
        results = Trials(
            len(chosen),
            recipe.source.num_classes,
            sizes_of(recipe.epochs(), total),
            total,
            look,
            planned.sweep.target,
            planned.sweep.stop,
        )
        return cls(
            group,
            tuple(chosen),
            planned.sweep.updates,
            lanes,
            results,
            seconds=np.zeros(len(chosen)),
            recorded=np.full((look, len(chosen), len(_SEEN)), np.nan, np.float32),
            norms=np.zeros((len(chosen), 2)),
        )

    def train(self, conductor: _Conductor) -> None:
        """Trains to the end, look by look; lanes that part from the others wait their turn."""
        regime, minutes = self.group.recipe.regime, self._config["checkpoint"]["minutes"]
        saved, stretch = time.monotonic(), self.results.look
        while self.lanes.active:
            inside = self.lanes.step - self.looked
            left = min(self.results.look, self.results.total - self.looked) - inside
            in_epoch = self.lanes.left if regime.reads else left
            count = min(stretch, left, in_epoch)
            began = time.monotonic()
            self._advance(inside, count)
            taken = time.monotonic() - began
            stretch = max(1, int(count * STRETCH / taken))
            self.seconds[self.lanes.active] += taken * devices.count() / len(self.lanes.active)
            if count == left:
                part = self.recorded[: inside + count]
                over = self.results.see(self.looked, part, self.lanes.active)
                conductor.book.write(self._rows(over))
                self.lanes.keep([i for i in self.lanes.active if i not in set(over)])
                self.looked = self.lanes.step
                conductor.say(self)
            if regime.reads and count == in_epoch and self.lanes.active:
                conductor.waves += self._turn()
            if conductor.came or time.monotonic() - saved >= 60 * minutes:
                conductor.save()
                saved = time.monotonic()
            if conductor.came:
                raise _start.Stopped(conductor.came[0], self.lanes.step)

    @property
    def _config(self) -> Mapping[str, Any]:
        return self.group.recipe.config

    def _advance(self, inside: int, count: int) -> None:
        """Does more updates, and records them from place `inside` on."""
        recipe, size = self.group.recipe, self.lanes.size
        recorded = self.lanes.advance(count)
        self.recorded[inside : inside + count] = recorded[..., _SEEN]
        if recipe.regime.reads == "noise":
            here = recorded[:, self.lanes.active].astype(np.float64)
            here[here[..., RECORDED.index("finite")] == 0] = 0.0
            small = here[..., self.lanes.columns.index(PART_NORM)] ** 2
            big = here[..., RECORDED.index("grad_norm")] ** 2
            pair = noise_scale.pair(small, big, size // recipe.parts(size, 1), size)
            self.norms[self.lanes.active] = noise_scale.add(self.norms[self.lanes.active], *pair)

    def _turn(self) -> list["_Wave"]:
        """Ends an epoch: the regime looks at each lane, and those of other batches part.

        Returns:
          The waves of those that parted: they wait until this one is over.
        """
        active = self.lanes.active
        row: list[float | None] = [None] * len(self.trials)
        if self.group.recipe.regime.reads == "losses":
            means = self.lanes.evaluate("validation", active)
            found = [m["loss"] for m in means]
        else:
            found = [noise_scale.ratio(*sums) for sums in self.norms[active]]
            self.norms[active] = 0.0
        for i, x in zip(active, found, strict=True):
            row[i] = x if np.isfinite(x) else None
        self.seen.append(row)
        if len(self.seen) == self._config["epochs"]:
            return []
        parted: dict[int, list[int]] = {}
        for i in active:
            parted.setdefault(self._plan(i)[len(self.seen)].size, []).append(i)
        waves = [self.split(lanes) for lanes in list(parted.values())[1:]]
        for wave in (self, *waves):
            wave.follow()
        return waves

    def _plan(self, lane: int) -> Sequence[batching.Epoch]:
        """A lane's epochs, as far as is known."""
        reads = self.group.recipe.regime.reads
        column = [row[lane] for row in self.seen]
        if reads == "losses":
            column = [math.nan if x is None else x for x in column]
        return self.group.recipe.epochs(column)

    def follow(self) -> None:
        """Goes on as the regime says after what was seen; all lanes have batches of one size."""
        number, epochs = len(self.seen), self._plan(self.lanes.active[0])
        scales = {i: self._plan(i)[number].scale for i in self.lanes.active}
        self.lanes.follow(epochs, scales)
        sizes = sizes_of(epochs, self.most)
        self.results.plan(sizes, len(sizes))

    def split(self, lanes: Sequence[int]) -> "_Wave":
        """These lanes as a wave of their own."""
        return dataclasses.replace(
            self,
            lanes=self.lanes.split(lanes),
            results=copy.deepcopy(self.results),
            seconds=self.seconds.copy(),
            recorded=self.recorded.copy(),
            norms=self.norms.copy(),
            seen=list(self.seen),
        )

    def _rows(self, over: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of lanes that are over, tested."""
        sizes = dict(zip(("val", "test"), self.group.recipe.source.sizes[1:], strict=True))
        rows = [
            {
                "trial": self.trials[i].number,
                "point": self.trials[i].point,
                "shown": {k: _shown(v) for k, v in self.trials[i].point.items()},
                **self.results.row(i),
                "seconds": round(float(self.seconds[i]), 4),
            }
            for i in over
        ]
        for prefix in [k for k, size in sizes.items() if size and over]:
            split = "validation" if prefix == "val" else prefix
            for row, means in zip(rows, self.lanes.evaluate(split, over), strict=True):
                row |= {f"{prefix}_{k}": _number(x) for k, x in means.items()}
        return rows

    def _arrays(self) -> dict[str, Any]:
        own = {k: getattr(self, k) for k in ("recorded", "seconds", "norms")}
        return {"results": self.results.state(), **own}

    def tree(self) -> dict[str, Any]:
        """The arrays that a checkpoint keeps."""
        return {**self._arrays(), "lanes": self.lanes.state()}

    def shapes(self) -> dict[str, Any]:
        """Arrays like those of `tree`."""
        return {**self._arrays(), "lanes": self.lanes.shapes()}

    def position(self) -> dict[str, Any]:
        """What is JSON beside the arrays."""
        return {
            "step": self.lanes.step,
            "looked": self.looked,
            "active": self.lanes.active,
            "seen": self.seen,
        }

    def restore(self, tree: Mapping[str, Any], at: Mapping[str, Any]) -> None:
        """Goes back to what was saved."""
        self.results.restore(tree["results"])
        self.lanes.restore(tree["lanes"], at["step"], at["active"])
        self.recorded, self.seconds, self.norms = (
            np.array(tree[k]) for k in ("recorded", "seconds", "norms")
        )
        self.looked, self.seen = at["looked"], at["seen"]
        if self.seen and self.lanes.active and len(self.seen) < self._config["epochs"]:
            self.follow()


def _shown(value: Any) -> Any:
    return value if isinstance(value, int | float) else points.label(value)


def _number(x: float) -> float | None:
    return float(f"{x:.6g}") if np.isfinite(x) else None


def _span(axis: points.Axis, method: str) -> str:
    """What an axis takes, in a line."""
    values = axis.grid() if method == "grid" else axis.values
    if not values:
        return f"{axis.low:g} … {axis.high:g}, {axis.scale}"
    texts = list(map(points.label, values))
    if len(values) > 8:
        return f"{texts[0]} … {texts[-1]}, {len(values)} values"
    return ", ".join(texts)


def banner(
    planned: Plan,
    folder: Path,
    options: _start.Options,
    where: tuple[str, str] | None = None,
) -> str:
    """What will be trained. where: instead of this process's devices."""
    first = planned.groups[0].recipe
    sweep = planned.sweep
    most = max(planned.updates(g.recipe) for g in planned.groups)
    lanes = [len(g.trials) for g in planned.groups]
    train_size, validation, test = first.source.sizes
    items = [
        (
            "data",
            f"{first.source.name}: {train_size:,} train, {validation:,} validation, {test:,} test",
        ),
        ("model", f"{first.config['model']['name']}, {first.parameters:,} parameters"),
        where or ("devices", f"{devices.count()} x {devices.describe()['device_kind']}"),
        *((axis.key, _span(axis, sweep.method)) for axis in sweep.axes),
        (
            "trials",
            f"{len(planned.trials):,} ({sweep.method}) in {len(lanes)} program"
            f"{'s' * (len(lanes) > 1)} of {min(lanes)}"
            f"{f' to {max(lanes)}' * (min(lanes) != max(lanes))} lanes",
        ),
        (
            "budget",
            f"{most:,} updates a trial"
            + (f", or {sweep.target.accuracy:.1%} training accuracy" if sweep.target else ""),
        ),
        ("folder", str(folder)),
    ]
    return console.banner(f"lrlab sweep {options.source}", items, [])
