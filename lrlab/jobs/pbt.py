"""The job "pbt": population-based training, the members as lanes of one program.

All members train an interval, are looked at on validation examples, and `population` decides: the
worst become copies of the best, and the copies' numbers change a little. Nobody is ahead: all have
done equally many updates. What the best one's ancestors used from the first update on is a
schedule, which `replay.py` trains from scratch.

<folder>/generations.jsonl  a row a generation: numbers, scores, who copied whom after it
<folder>/lineage.jsonl      a row a copy: numbers before, the donor's, after, and why
<folder>/summary.json       the best member, its ancestors, what the rates read back say
<folder>/replay.py          the schedule that was found, as a config
<folder>/best.npz           weights of the best member: start=dict(file=...) takes them
<folder>/checkpoints/       the whole population

The section `pbt` of a config, with its defaults in DEFAULTS (see `population` for the rules):
search: axes as a sweep has them, of numbers that the chain holds.
interval: updates, or a duration such as dict(epochs=1); by default the run's share of a generation.
seeds: different beginnings and orders of the data; by default every member has its own.
compare: seeds of the runs that follow, 0 for none: the schedule that was found, from scratch; all
  members' first numbers held to the end, which takes the examples that the population took; and
  the best of those again.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from lrlab import batching, build, console, fields, points, population, records
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints, named
from lrlab.data import Dataset
from lrlab.jobs import _found, _held, _start
from lrlab.jobs._found import Row, Rows
from lrlab.jobs._population import ARMS, Arm, Plan, check
from lrlab.lanes import Lanes
from lrlab.loop import DivergedError
from lrlab.report.pbt import comparison_line, write_pbt
from lrlab.train_step import RECORDED

__all__ = ["run"]
STRETCH = 2.0  # seconds between two looks at signals
FIRST = 10  # updates until the first of them
_LR, _FINITE, _LOSS, _CORRECT, _WEIGHT = range(5)
_SEEN = [RECORDED.index(name) for name in ("lr", "finite", "loss", "correct", "weight")]


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Trains the population, or goes on, or says that it is done.

    Raises:
      ConfigError, DataError, DivergedError, LockedError, Stopped: see `main` for their exit codes.
    """
    plan, full = check(config), fields.fill(config)
    folder = workdir or _start.default_folder(full, options.source)
    _start.same_config(folder, full)
    console.say(_banner(plan, folder, options))
    if options.dry_run:
        console.say("dry run: nothing was trained or written")
        return
    with records.locked(folder) as writer:
        _start.claim(folder, full, plan.recipe, options)
        with _start.signals() as came, Checkpoints(folder / "checkpoints") as saves:
            trainer = _Trainer(plan, folder, came, saves)
            if trainer.is_over and (folder / "report.html").exists():
                console.say("already finished")
            else:
                done = sum(map(len, trainer.rows.values()))
                writer.event("resume" if done else "start", generations=done)
                try:
                    trainer.perform()
                    writer.event("end")
                except BaseException as e:
                    writer.event("stop", why=type(e).__name__)
                    raise
                finally:
                    _conclude(folder, plan, trainer.rows)
    console.say(_ending(folder))


class _Trainer:
    """Trains one arm after another, and keeps the record.

    rows: of each arm, a row a generation. generation: of the arm, that trains now.
    numbers: of each member now. recorded: what was seen of the generation's updates.
    """

    def __init__(self, plan: Plan, folder: Path, came: list[int], saves: Checkpoints):
        self.plan, self.folder, self.came, self.saves = plan, folder, came, saves
        self.rows: dict[str, list[Row]] = {name: [] for name in ARMS}
        at = saves.position() or {}
        self._at: Mapping[str, Any] | None = at or None
        if at:
            here = ARMS.index(at["arm"])
            for row in records.read_lines(self._file("generations")):
                arm = ARMS.index(row["arm"])
                if arm < here or (arm == here and row["generation"] < at["generation"]):
                    self.rows[row["arm"]].append(row)
        self._rewrite()
        self.generation = 0
        self.numbers: tuple[dict[str, Any], ...] = ()
        self.recorded = np.zeros(0)
        self._stretch, self._said = FIRST, time.monotonic()
        self._saved = time.monotonic()
        self._kept: int | None = at.get("kept")
        self._data: Dataset | None = None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _rewrite(self) -> None:
        """Cuts what was written after the checkpoint."""
        rows = [row for arm in self.rows.values() for row in arm]
        records.write_text(self._file("generations"), "".join(map(records.line, rows)))
        known = len(self.rows["population"])
        copies = records.read_lines(self._file("lineage"))
        kept = [row for row in copies if row["generation"] < known]
        records.write_text(self._file("lineage"), "".join(map(records.line, kept)))

    @property
    def is_over(self) -> bool:
        """Whether every arm was trained to its end."""
        return all(self._is_done(name) for name in self.plan.arms)

    def _is_done(self, name: str) -> bool:
        last = self.rows["fixed"][-1:] if name == "best fixed" else []
        none_to_train = bool(last) and not _found.ranked(last[0], self.plan.spec["score"])
        return len(self.rows[name]) == len(self.plan.ends) or none_to_train

    def perform(self) -> None:
        """Trains what is not done yet."""
        for name in self.plan.arms:
            if not self._is_done(name):
                self._train(_arm(self.plan, name, self.rows))

    def _train(self, arm: Arm) -> None:
        """Trains an arm from where it is to its end."""
        plan = self.plan
        if self._data is None:
            self._data = plan.recipe.read()
        longest = max(np.diff([0, *plan.ends]))
        self.generation, self.numbers = 0, arm.values
        lanes = Lanes(arm.recipe, self._data, arm.lanes(arm.values), int(longest))
        self._columns = [*_SEEN, *(lanes.columns.index(name) for name in lanes.names)]
        self.recorded = np.zeros((longest, len(arm.seeds), len(self._columns)), np.float32)
        began = time.monotonic()
        _held.check_memory(lanes, "pbt.population", "members")
        self._resume(arm, lanes)
        lanes.copy({})  # its program is compiled, and that of the evaluation
        lanes.evaluate("validation", lanes.active)
        shape = _course(arm.recipe, plan.ends[-1])
        spent = {"compile": round(time.monotonic() - began, 4)}
        while self.generation < len(plan.ends):
            began = time.monotonic()
            self._interval(arm, lanes)
            trained = time.monotonic()
            row = self._look(arm, lanes, shape)
            ranked = _found.ranked(row, plan.spec["score"])
            is_last = self.generation + 1 == len(plan.ends)
            if is_last:
                self._test(arm, lanes, row, ranked)
            looked = time.monotonic()
            next_one = self._turn(arm, ranked, is_last)
            row["donors"] = list(next_one.donors)
            if any(next_one.how):
                lanes.copy(dict(enumerate(next_one.donors)))
                lanes.tune(arm.lanes(next_one.values))
            turned = time.monotonic()
            row["seconds"] = {
                **spent,
                "train": round(trained - began, 4),
                "evaluate": round(looked - trained, 4),
                "exploit": round(turned - looked, 6),
            }
            spent = {}
            self._write(row, next_one)
            if arm.name == "population" and not ranked:
                where = f"generation {self.generation + 1}, before update {lanes.step:,}"
                raise DivergedError(f"all {len(arm.seeds)} members are not finite in {where}")
            self.numbers, self.generation = next_one.values, self.generation + 1
            self._say(arm, row, ranked)
            due = time.monotonic() - self._saved >= 60 * self._config["checkpoint"]["minutes"]
            if is_last or due or self.came:
                self._save(arm, lanes, is_last)
            if self.came and not is_last:
                raise _start.Stopped(self.came[0], lanes.step)

    @property
    def _config(self) -> Mapping[str, Any]:
        return self.plan.recipe.config

    def _resume(self, arm: Arm, lanes: Lanes) -> None:
        """Goes back to the checkpoint, if it is one of this arm."""
        at, self._at = self._at, None
        if at is None or at["arm"] != arm.name:
            return
        found = self.saves.restore({"lanes": lanes.shapes(), "recorded": self.recorded})
        _held.say_warnings(self.saves.warnings)
        if found is None:
            return
        tree, at = found
        self.generation, self.numbers = at["generation"], tuple(at["numbers"])
        self.recorded = np.array(tree["recorded"])
        lanes.restore(tree["lanes"], at["step"], list(range(len(arm.seeds))))
        lanes.tune(arm.lanes(self.numbers))
        console.say(f"resuming the {arm.name} in generation {self.generation + 1}")

    def _save(self, arm: Arm, lanes: Lanes, keep: bool = False) -> None:
        """Saves where the arm stands, also between two generations' ends."""
        step = (self.saves.steps() or [0])[-1] + 1
        if keep and arm.name == "population":
            self._kept = step
        at = {
            "arm": arm.name,
            "generation": self.generation,
            "step": lanes.step,
            "numbers": list(self.numbers),
            "kept": self._kept,
        }
        self.saves.save(step, {"lanes": lanes.state(), "recorded": self.recorded}, at, self._kept)
        self._saved = time.monotonic()

    def _interval(self, arm: Arm, lanes: Lanes) -> None:
        """Trains to the end of the generation, and stops where a signal came."""
        ends = (0, *self.plan.ends)
        first, last = ends[self.generation : self.generation + 2]
        while lanes.step < last:
            inside, count = lanes.step - first, min(self._stretch, last - lanes.step)
            began = time.monotonic()
            seen = lanes.advance(count)[..., self._columns]
            self.recorded[inside : inside + count] = seen
            self._stretch = max(1, int(count * STRETCH / (time.monotonic() - began)))
            if time.monotonic() - self._said > 10:
                self._said = time.monotonic()
                of = f"{self.generation + 1}/{len(self.plan.ends)}"
                console.say(f"{arm.name} [{of}] update {lanes.step:,} of {last:,}")
            if self.came:
                self._save(arm, lanes)
                raise _start.Stopped(self.came[0], lanes.step)

    def _look(self, arm: Arm, lanes: Lanes, shape: np.ndarray) -> Row:
        """What the generation came to. Who did not end with a finite update has diverged."""
        ends = (0, *self.plan.ends)
        first, last = ends[self.generation : self.generation + 2]
        seen = self.recorded[: last - first].astype(np.float64)
        everyone = range(len(arm.seeds))
        held = lanes.evaluate("validation", list(everyone))
        diverged = [
            i for i in everyone if seen[-1, i, _FINITE] == 0 or not np.isfinite(held[i]["loss"])
        ]
        good = np.where(seen[..., _FINITE, None] > 0, seen, 0.0)
        sums = good[..., (_LOSS, _CORRECT, _WEIGHT)].sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums[:, :2] / sums[:, 2:]
        keys = [axis.key for axis in self.plan.axes] if self.numbers[0] else []
        return {
            "arm": arm.name,
            "generation": self.generation,
            "first": first,
            "updates": last,
            "examples": int(sum(e.size * _overlap(e, 0, last) for e in arm.recipe.epochs())),
            "values": {key: [own[key] for own in self.numbers] for key in keys},
            "lr": seen[-1, :, _LR].tolist(),
            "read_back": self._read_back(arm, shape[first:last]),
            "val_accuracy": [None if i in diverged else held[i]["accuracy"] for i in everyone],
            "val_loss": [None if i in diverged else held[i]["loss"] for i in everyone],
            "train_accuracy": means[:, 1].tolist(),
            "train_loss": means[:, 0].tolist(),
            "diverged": diverged,
        }

    def _read_back(self, arm: Arm, shape: np.ndarray) -> list[bool]:
        """Whether every update of a member used the numbers that it was to use."""
        seen, found = self.recorded[: len(shape)], []
        for i, lane in enumerate(arm.lanes(self.numbers)):
            planned = (np.float32(lane.lr) * shape).astype(np.float32)
            same = np.allclose(seen[:, i, _LR], planned, rtol=1e-6, atol=0)
            for j, name in enumerate(sorted(lane.values)):
                value = np.float32(lane.values[name])
                same = same and (seen[:, i, len(_SEEN) + j] == value).all()
            found.append(bool(same))
        return found

    def _turn(self, arm: Arm, ranked: Sequence[int], is_last: bool) -> population.Turn:
        members = len(arm.seeds)
        if arm.name != "population" or is_last or not ranked:
            return population.Turn(
                tuple(range(members)), tuple(map(dict, self.numbers)), ({},) * members
            )
        axes = self.plan.axes
        draws = population.Draws.of(self._config["seed"], self.generation, members, len(axes))
        return population.turn(self.plan.rules, axes, self.numbers, ranked, draws)

    def _test(self, arm: Arm, lanes: Lanes, row: Row, ranked: Sequence[int]) -> None:
        """The last look of an arm, and what is left of it."""
        if arm.recipe.source.sizes[2] and ranked:
            held = lanes.evaluate("test", sorted(ranked))
            found = dict(zip(sorted(ranked), held, strict=True))
            for key in "accuracy", "loss":
                every = [found.get(i, {}).get(key) for i in range(len(arm.seeds))]
                row[f"test_{key}"] = every
        state, _ = lanes.state()
        row["digest"] = _digest(state)
        if arm.name == "population" and ranked:
            best = {"params": state.params, **state.stats}
            _write_arrays(
                self.folder / "best.npz", {k: a[ranked[0]] for k, a in named(best).items()}
            )

    def _write(self, row: Row, next_one: population.Turn) -> None:
        """A generation's row, and one for each of its copies."""
        self.rows[row["arm"]].append(row)
        with self._file("generations").open("a", encoding="utf-8") as f:
            f.write(records.line(row))
        copies = [
            {
                "generation": row["generation"],
                "update": row["updates"],
                "member": i,
                "from": donor,
                "why": "diverged" if i in row["diverged"] else self.plan.rules.exploit,
                "before": self.numbers[i],
                "donor": self.numbers[donor],
                "after": next_one.values[i],
                "how": next_one.how[i],
            }
            for i, donor in enumerate(next_one.donors)
            if donor != i
        ]
        if copies:
            with self._file("lineage").open("a", encoding="utf-8") as f:
                f.write("".join(map(records.line, copies)))

    def _say(self, arm: Arm, row: Row, ranked: Sequence[int]) -> None:
        """A line of progress, every few seconds."""
        count = len(self.plan.ends)
        if self.generation < count and time.monotonic() - self._said < 2:
            return
        self._said = time.monotonic()
        scores = [row["val_accuracy"][i] for i in ranked]
        told = "none is finite"
        if scores:
            median = float(np.median(scores))
            told = f"best {console.percent(max(scores))}, median {console.percent(median)}"
        copies = sum(d != i for i, d in enumerate(row["donors"]))
        rates = [row["lr"][i] for i in ranked]
        span = f", lr {console.rate(min(rates))} to {console.rate(max(rates))}" if rates else ""
        lost = f", {len(row['diverged'])} diverged" if row["diverged"] else ""
        copied = f", {copies} copies" if copies else ""
        console.say(f"{arm.name} [{self.generation}/{count}] {told}{span}{lost}{copied}")


def _overlap(e: batching.Epoch, first: int, last: int) -> int:
    """Updates of an epoch that lie within [first, last)."""
    return max(0, min(last, e.first + e.updates) - max(first, e.first))


def _course(recipe: Recipe, updates: int) -> np.ndarray:
    """What multiplies a member's rate in each update, float32 [updates]."""
    ticks, scales = _found.clock(recipe)
    shape = jax.jit(jax.vmap(recipe.shape))(ticks[:updates])
    return np.asarray(shape, np.float32) * scales[:updates].astype(np.float32)


def _digest(tree: Any) -> str:
    """SHA-256 of arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as f:
        np.savez(f, **cast(Any, arrays))
    temporary.replace(path)


def _arm(plan: Plan, name: str, rows: Rows) -> Arm:
    """What an arm trains; the later ones follow from the rows of those before."""
    first, size = int(plan.recipe.config["seed"]), len(plan.first)
    kinds = int(plan.spec["seeds"] or size)
    if name in ("population", "fixed"):
        seeds = tuple((first + i % kinds) % 2**32 for i in range(size))
        return Arm(name, plan.recipe, seeds, plan.first)
    others = range(first + size, first + size + int(plan.spec["compare"]))  # nothing chose by them
    seeds = tuple(seed % 2**32 for seed in others)
    if name == "replay":
        recipe = build.check(_found.replay(plan, rows["population"]), parts=1)
        return Arm(name, recipe, seeds, ({},) * len(seeds))
    last = rows["fixed"][-1]
    best = _found.ranked(last, plan.spec["score"])[0]
    return Arm(name, plan.recipe, seeds, (plan.first[best],) * len(seeds))


def _conclude(folder: Path, plan: Plan, rows: Rows) -> None:
    """Writes what the rows say: summary.json, the schedule that was found, figures, the report."""
    known = rows["population"]
    if known and _found.ranked(known[-1], plan.spec["score"]):
        records.write_json(folder / "summary.json", _found.summary(plan, rows))
        if len(known) == len(plan.ends):
            records.write_text(folder / "replay.py", _found.replay_file(plan, known, folder))
    write_pbt(folder, len(plan.ends))


def _banner(plan: Plan, folder: Path, options: _start.Options) -> str:
    recipe, spec = plan.recipe, plan.spec
    longest = max(np.diff([0, *plan.ends]))
    how = (
        f"the worst {plan.rules.fraction:.0%} become one of the best {plan.rules.fraction:.0%}"
        if spec["exploit"] == "truncation"
        else "each meets another, and becomes it if that one is better"
    )
    factors = " or ".join(f"{f:g}" for f in plan.rules.factors)
    items = [
        *_held.about(recipe, plan.axes),
        (
            "members",
            f"{len(plan.first)}, {len(plan.ends)} generations of {longest:,} updates, "
            f"{plan.ends[-1]:,} in all",
        ),
        ("exploit", f"{how}, by {spec['score']}"),
        ("explore", f"drawn anew with probability {plan.rules.resample:g}, else x {factors}"),
    ]
    if spec["compare"]:
        items.append(("compare", f"numbers held to the end; the replay, {spec['compare']} seeds"))
    items += _held.warnings(recipe)
    return console.banner(f"lrlab pbt {options.source}", [*items, ("folder", str(folder))])


def _ending(folder: Path) -> str:
    said = records.read_json(folder / "summary.json")
    best, back = said["best"], said["read_back"]
    where = ", ".join(f"{k} {points.label(v)}" for k, v in best["values"].items())
    tested = best.get("test_accuracy")
    lines = [
        f"best of {said['members']}: validation {console.percent(best['val_accuracy'])}"
        + (f", test {console.percent(tested)}" if tested is not None else "")
        + f", now at {where}",
        f"{said['copies']} copies, {back['equal']} of {back['copies']} read back as explored; "
        f"exploit and explore took {said['exploit_share']:.2%} of the time",
    ]
    if len(said["comparison"]) > 1:
        lines += [f"  {comparison_line(entry)}" for entry in said["comparison"]]
    lines.append(f"the schedule that it found: {folder / 'replay.py'}")
    return "\n".join([*lines, f"report {folder / 'report.html'}"])
