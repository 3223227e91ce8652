"""The job "sweep": the trials of a grid or a sample, as lanes of as few programs as can be.

A number that the chain or the seed holds (rate, momentum, weight decay, epsilon, seed, ...) varies
by lane; anything else (optimizer, model, batch size, schedule) makes a group, which is compiled on
its own. Groups that the memory cannot hold at once go in waves.

<folder>/trials.jsonl     a row a trial that is over, in the order they ended
<folder>/trials.parquet   the same as a table, with trials.csv and trials.tex
<folder>/summary.json     the valley of every setting, and the best points
<folder>/checkpoints/     the wave that trains, and what was split from it

Where a regime looks at losses or at noise, lanes whose batches come to differ part: they go on as
waves of their own, one after another.
"""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import batching, build, console, devices, fields, optimizers, points, records, resolve
from lrlab.analysis import noise_scale, valley
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.data import Dataset
from lrlab.jobs import _start
from lrlab.lanes import Lane, Lanes
from lrlab.report.sweep import scaling_words, write_sweep
from lrlab.resolve import ConfigError
from lrlab.train_step import PART_NORM, RECORDED
from lrlab.trials import Trials

__all__ = ["run"]
STRETCH = 2.0  # seconds between two looks at the clock and at signals
_SEEN = [RECORDED.index(name) for name in ("lr", "finite", "loss", "correct", "weight")]
_PLAIN = ("seed", "lr", "label_smoothing")  # lane values of every chain


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the sweep: its number, what varies, and its whole config."""

    number: int
    point: dict[str, Any]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that differ in lane values only, and the recipe of the first of them."""

    recipe: Recipe
    trials: tuple[Trial, ...]
    keys: tuple[str, ...]  # the lane values that vary

    @property
    def name(self) -> str:
        """What sets the group apart."""
        rest = [points.label(v) for k, v in self.trials[0].point.items() if k not in self.keys]
        return ", ".join(rest) or "all"

    def lane(self, trial: Trial) -> Lane:
        """A trial's own numbers."""
        full = trial.config
        values = {
            key.removeprefix("optimizer."): float(_at(full, key))
            for key in self.keys
            if key not in ("seed", "lr")
        }
        return Lane(int(full["seed"]), float(full["lr"]), values)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All trials in their groups; `sweep` is the checked section of the config."""

    sweep: points.Sweep
    trials: tuple[Trial, ...]
    groups: tuple[Group, ...]

    def updates(self, recipe: Recipe) -> int:
        """Updates of a trial at most."""
        total = sum(e.updates for e in recipe.epochs())
        return min(total, self.sweep.updates or total)


def sizes_of(epochs: Sequence[batching.Epoch], updates: int | None) -> np.ndarray:
    """Examples of each update of a run, at most the first so many, int [updates]."""
    return np.concatenate([np.full(e.updates, e.size) for e in epochs])[:updates]


def check(config: Mapping[str, Any]) -> Plan:
    """Expands and checks a sweep; reads no data and compiles nothing.

    Raises:
      ConfigError: every problem of the section, and of the first config that has one.
    """
    sweep = points.read(fields.fill(config).get("sweep"))
    base = {k: v for k, v in config.items() if k not in ("sweep", "job")}
    trials = []
    for i, point in enumerate(sweep.expand()):
        trials.append(Trial(i, point, fields.fill(points.assign(base, point))))
    sorted_out: dict[str, tuple[tuple[str, ...], list[Trial]]] = {}
    for trial in trials:
        keys = _lane_keys(trial)
        rest = {k: v for k, v in trial.point.items() if k not in keys}
        name = records.canonical([keys, rest])
        sorted_out.setdefault(name, (keys, []))[1].append(trial)
    groups = []
    for keys, members in sorted_out.values():
        for trial in _extremes(members, keys):
            try:
                recipe = build.check(trial.config, parts=1)
            except ConfigError as e:
                where = ", ".join(f"{k}={points.label(v)}" for k, v in trial.point.items())
                raise ConfigError(f"trial {trial.number} ({where}): {p}" for p in e.problems) from e
        recipe = build.check(members[0].config, parts=1)
        _refuse(recipe)
        groups.append(Group(recipe, tuple(members), keys))
    return Plan(sweep, tuple(trials), tuple(groups))


def _at(config: Mapping[str, Any], key: str) -> Any:
    section, dot, inner = key.partition(".")
    return config[section][inner] if dot else config[section]


def _lane_keys(trial: Trial) -> tuple[str, ...]:
    """The keys of a point that are lane values of its chain."""
    spec = trial.config["optimizer"]
    try:
        schedulable = set(optimizers.schedulable(spec))
        own = resolve.parameters(resolve.find("lrlab.optimizers", spec.get("name")))
    except (ConfigError, AttributeError, TypeError):
        return ()  # the check of the whole config says what is wrong
    found = []
    for key in trial.point:
        section, _, name = key.rpartition(".")
        value = _at(trial.config, key)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        inside = section == "optimizer" and name in schedulable
        outside = not section and name in optimizers.CHAIN and name not in own
        if numeric and (key in _PLAIN or inside or outside):
            found.append(key)
    return tuple(found)


def _extremes(members: Sequence[Trial], keys: Sequence[str]) -> list[Trial]:
    """Trials at the ends of every lane value: if they are sound, so are those between."""
    found = {members[0].number: members[0]}
    for key in keys:
        for choose in min, max:
            trial = choose(members, key=lambda t, k=key: _at(t.config, k))
            found[trial.number] = trial
    return list(found.values())


def _refuse(recipe: Recipe) -> None:
    """What lanes cannot do (yet)."""
    if recipe.config["nonfinite"]["policy"] == "rollback":
        raise ConfigError(
            ["nonfinite.policy='rollback' is for a single run; a sweep takes stop and skip"]
        )
    if recipe.config["patience"] is not None:
        raise ConfigError(["patience ends a single run; in a sweep all trials have all epochs"])
    if getattr(recipe.model, "axis_name", None):
        raise ConfigError(
            ["model.axis_name must be left out in a sweep: each lane is whole on one device"]
        )


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Trains all trials, or goes on, or says that it is done.

    Raises:
      ConfigError, DataError, LockedError, Stopped: see `main` for their exit codes.
    """
    planned, full = check(config), fields.fill(config)
    folder = workdir or _start.default_folder(full, options.source)
    _start.same_config(folder, full)
    console.say(_banner(planned, folder, options))
    if options.dry_run:
        console.say("dry run: nothing was trained or written")
        return
    with records.locked(folder) as writer:
        _start.claim(folder, full, planned.groups[0].recipe, options)
        with _start.signals() as came:
            conductor = _Conductor(planned, folder, came)
            if conductor.is_over and (folder / "report.html").exists():
                console.say("already finished")
            else:
                writer.event("resume" if conductor.done else "start", trials=len(conductor.done))
                try:
                    conductor.perform()
                    writer.event("end", trials=len(conductor.done))
                except BaseException as e:
                    writer.event("stop", trials=len(conductor.done), why=type(e).__name__)
                    raise
                finally:
                    _conclude(folder, planned)
    console.say(_ending(folder))


class _Conductor:
    """Takes the waves one after another, and keeps the record of trials that are over."""

    def __init__(self, planned: Plan, folder: Path, came: list[int]):
        self.plan, self.came = planned, came
        self.file = folder / "trials.jsonl"
        rows = records.read_lines(self.file)
        records.write_text(self.file, "".join(map(records.line, rows)))  # without a torn tail
        self.done = {row["trial"] for row in rows}
        self.saves = Checkpoints(
            folder / "checkpoints", planned.groups[0].recipe.config["checkpoint"]["keep"]
        )
        self.waves: list[_Wave] = []  # the first one trains, the others were split from it
        self._data: tuple[str, Dataset] | None = None
        self._said = time.monotonic()

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
                    while self.waves:
                        self.waves[0].train(self)
                        self.waves.pop(0)

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

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends the rows of trials that are over; none is written twice."""
        new = [row for row in rows if row["trial"] not in self.done]
        with self.file.open("a", encoding="utf-8") as f:
            f.write("".join(map(records.line, new)))
        self.done |= {row["trial"] for row in new}

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
                conductor.write(self._rows(over))
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


def _conclude(folder: Path, planned: Plan) -> None:
    """Writes what the trials that are over say: summary.json, tables, figures, the report."""
    keys = [axis.key for axis in planned.sweep.axes]
    rows = records.trials(folder)
    if rows:
        most = {t.number: planned.updates(g.recipe) for g in planned.groups for t in g.trials}
        at_most = sum(
            row["updates"] if row["outcome"] == "budget" else most[row["trial"]] for row in rows
        )
        records.write_json(folder / "summary.json", valley.summary(rows, keys, at_most))
        _tables(folder, rows)
    write_sweep(folder, len(planned.trials))


def _tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the trials as trials.csv, .tex and .parquet."""
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    records.write_text(
        folder / "trials.csv", "".join(",".join(line) + "\n" for line in [names, *cells])
    )
    lines = [" & ".join(map(_tex, line)) + " \\\\" for line in [names, *cells]]
    body = [f"\\begin{{tabular}}{{{'l' * len(names)}}}", "\\hline", lines[0], "\\hline"]
    ending = ["\\hline", "\\end{tabular}"]
    records.write_text(folder / "trials.tex", "\n".join([*body, *lines[1:], *ending]) + "\n")
    temporary = folder / ".trials.parquet"
    whole = [{name: row.get(name) for name in names} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), temporary)
    temporary.replace(folder / "trials.parquet")


def _tex(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text.strip('"'))


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return json.dumps(text) if "," in text or '"' in text else text


def _span(axis: points.Axis, method: str) -> str:
    """What an axis takes, in a line."""
    values = axis.grid() if method == "grid" else axis.values
    if not values:
        return f"{axis.low:g} … {axis.high:g}, {axis.scale}"
    texts = list(map(points.label, values))
    if len(values) > 8:
        return f"{texts[0]} … {texts[-1]}, {len(values)} values"
    return ", ".join(texts)


def _banner(planned: Plan, folder: Path, options: _start.Options) -> str:
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
        ("devices", f"{devices.count()} x {devices.describe()['device_kind']}"),
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


def _ending(folder: Path) -> str:
    said = records.read_json(folder / "summary.json")
    outcomes = ", ".join(f"{n:,} {o}" for o, n in sorted(said["outcomes"].items()))
    saved = 1 - said["updates"] / max(1, said.get("at_most", said["updates"]))
    lines = [
        f"{said['trials']:,} trials: {outcomes}",
        f"{said['updates']:,} updates"
        + (f"; trials that ended early saved {saved:.0%}" if saved else ""),
    ]
    for entry in said["valleys"]:
        best, good = entry["best"], entry.get("good")
        rate = f" at lr {best['lr']:.3g}" if best.get("lr") else ""
        span = f"; good from {good['low']:.2g} to {good['high']:.2g}" if good else ""
        lines.append(
            f"  {entry['name']:<24} best validation accuracy {best['val_accuracy']:.2%}{rate}{span}"
        )
    lines = lines[:17]
    if rule := said.get("scaling"):
        lines.append(f"the best rate grows as {scaling_words(rule)}")
    return "\n".join([*lines, f"report {folder / 'report.html'}"])
