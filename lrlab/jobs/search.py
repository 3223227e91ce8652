"""The job "search": numbers that the lanes of one program can hold, each tried from scratch.

A trial is a run of the config with a point's numbers, at the config's seed: the run that `train`
makes of it. Trials of a round train together; how points are chosen is the method's:

grid, random, sobol, halton  all points at once.
halving  successive halving: of the trials that begin, the best 1/eta go on at each rung, from where
         they are; again with new points, while the budget pays for another trial.
tpe, cmaes  Optuna's samplers, asked for a round at a time (`pip install 'lrlab[search]'`).

<folder>/trials.jsonl    a row a trial that is over: numbers, outcome, what it took, its curve
<folder>/progress.jsonl  a row wherever trials were evaluated: examples so far, the best so far
<folder>/summary.json    the best of those that finished, the budget
<folder>/study.db        all trials as a study of Optuna's: optuna-dashboard sqlite:///study.db
<folder>/checkpoints/    the round that trains

The section `search` of a config, with its defaults in DEFAULTS:
axes: as a sweep has them, of numbers that the chain holds; a grid's ranges may leave `points` out.
method: see above. trials: the budget, as many whole trials' worth of examples.
lanes: that train together; all, for what Optuna suggests an eighth of the trials (at least 4), for
  halving as many as leave one at the last rung.
eta, first: of halving; first is the first rung, a duration, by default 1/eta^3 of a trial.
looks: evaluations of a trial, its end among them. score: "accuracy" or "loss", in validation.
seed: of the points; the run's by default.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrlab import console, fields, records
from lrlab.checkpoint import Checkpoints
from lrlab.data import Dataset
from lrlab.jobs import _held, _start
from lrlab.jobs._search import Plan, check
from lrlab.jobs._search_record import Row, banner, conclude, ending, point, ranked
from lrlab.lanes import Lane, Lanes
from lrlab.loop import DivergedError
from lrlab.resolve import ConfigError
from lrlab.searches import Round
from lrlab.train_step import RECORDED

__all__ = ["run"]
STRETCH = 2.0  # seconds between two looks at signals
FIRST = 10  # updates until the first of them
_FINITE = RECORDED.index("finite")


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Tries all points, or goes on, or says that it is done.

    Raises:
      ConfigError, DataError, DivergedError, LockedError, Stopped: see `main` for their exit codes.
    """
    plan, full = check(config), fields.fill(config)
    folder = workdir or _start.default_folder(full, options.source)
    _start.same_config(folder, full)
    console.say(banner(plan, folder, options))
    if options.dry_run:
        console.say("dry run: nothing was trained or written")
        return
    with records.locked(folder) as writer:
        _start.claim(folder, full, plan.recipe, options)
        with _start.signals() as came, Checkpoints(folder / "checkpoints") as saves:
            trainer = _Trainer(plan, folder, came, saves)
            ended = any(e["event"] == "end" for e in records.read(folder).events)
            if trainer.is_over and ended:
                console.say("already finished")
            else:
                done = len(trainer.rows)
                writer.event("resume" if done else "start", trials=done)
                try:
                    trainer.perform()
                except BaseException as e:
                    writer.event("stop", trials=len(trainer.rows), why=type(e).__name__)
                    conclude(folder, plan, trainer.rows, trainer.progress)
                    raise
                conclude(folder, plan, trainer.rows, trainer.progress)
                writer.event("end", trials=len(trainer.rows))
    if not any(row["outcome"] == "finished" for row in trainer.rows):
        raise DivergedError(f"none of {plan.trials} trials is finite at its end")
    console.say(ending(folder))


class _Trainer:
    """Trains one round after another, and keeps the record.

    rows: of trials that are over. progress: of evaluations. round: number of the one that trains.
    """

    def __init__(self, plan: Plan, folder: Path, came: list[int], saves: Checkpoints):
        self.plan, self.folder, self.came, self.saves = plan, folder, came, saves
        self.rows, self.progress = (
            records.read_lines(self._file(name)) for name in ("trials", "progress")
        )
        over = [sum(row["round"] == g for row in self.rows) for g in range(len(plan.rounds))]
        self.round = sum(n == r.trials for n, r in zip(over, plan.rounds, strict=True))
        at = saves.position() or {}
        is_here = at.get("round") == self.round and all(
            at[name] <= len(getattr(self, name)) for name in ("rows", "progress")
        )
        self._at = at if is_here else None
        self._cut()
        self._spent = sum(row["examples"] for row in self.rows if row["round"] < self.round)
        self._spent_updates = sum(r["updates"] for r in self.rows if r["round"] < self.round)
        self._stretch, self._said, self._saved = FIRST, time.monotonic(), time.monotonic()
        self._before = self.progress[-1]["seconds"] if self.progress else 0.0
        self._began = time.monotonic()
        self._base: Lanes | None = None
        self._fresh: Any = None
        self._data: Dataset | None = None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _cut(self) -> None:
        """Cuts what was written after the checkpoint, or since the round that trains began."""
        if self._at:
            self.rows = self.rows[: self._at["rows"]]
            self.progress = self.progress[: self._at["progress"]]
        else:
            self.rows = [row for row in self.rows if row["round"] < self.round]
            self.progress = [row for row in self.progress if row["round"] < self.round]
        for name, rows in (("trials", self.rows), ("progress", self.progress)):
            records.write_text(self._file(name), "".join(map(records.line, rows)))

    @property
    def is_over(self) -> bool:
        """Whether every round has all its rows."""
        return self.round == len(self.plan.rounds)

    def perform(self) -> None:
        """Trains what is not done yet; what is done is told to the method again."""
        proposer, known = self.plan.proposer(), {row["trial"]: row for row in self.rows}
        for number, one in enumerate(self.plan.rounds):
            asked = proposer.ask(one.trials)
            numbers = range(one.first, one.first + one.trials)
            self._compare(asked, [known.get(i) for i in numbers])
            if number == self.round:
                self._train(one, asked)
                self.round += 1
                known |= {row["trial"]: row for row in self.rows}
            proposer.tell([self._score(known[i]) for i in numbers])

    def _compare(self, asked: Sequence[Row], known: Sequence[Row | None]) -> None:
        """Refuses to go on where the method asks for other points than are recorded."""
        for wanted, row in zip(asked, known, strict=True):
            if row and row["values"] != wanted:
                raise ConfigError(
                    [
                        f"trial {row['trial']} was trained at {row['values']}, and "
                        f"search.method={self.plan.spec['method']!r} asks for {wanted} now: "
                        "another version of Optuna or NumPy? Go on with that one, or begin anew"
                    ]
                )

    def _score(self, row: Row) -> float | None:
        """The higher the better; None: diverged."""
        if row["outcome"] == "diverged":
            return None
        by_loss = self.plan.spec["score"] == "loss"
        return -row["val_loss"] if by_loss else row["val_accuracy"]

    def _lanes(self, asked: Sequence[Row]) -> Lanes:
        """A round's lanes before their first update; their programs are those of the others."""
        plan = self.plan
        seed = int(plan.recipe.config["seed"])
        blank = [*asked, *[asked[0]] * (plan.lanes - len(asked))]
        given: list[Lane] = [_held.lane(plan.recipe, seed, own) for own in blank]
        if self._base is None:
            self._data = plan.recipe.read()
            spans = [np.diff([0, *(at for at, _ in plan.marks(r))]).max() for r in plan.rounds]
            self._base = Lanes(plan.recipe, self._data, given, int(max(spans)))
            _held.check_memory(self._base, "search.lanes", "lanes")
            self._fresh = self._base.state()
        lanes = copy.copy(self._base)
        lanes.tune(given)
        lanes.restore(self._fresh, 0, list(range(len(asked))))
        return lanes

    def _train(self, one: Round, asked: Sequence[Row]) -> None:
        """Trains a round from where it is to its end."""
        lanes, plan = self._lanes(asked), self.plan
        state = _Round(one, asked, [[] for _ in asked])
        if self._at:
            self._resume(lanes, state)
        marks = plan.marks(one)
        while state.mark < len(marks) and lanes.active:
            until, kept = marks[state.mark]
            self._advance(lanes, state, until)
            self._look(lanes, state, kept, state.mark + 1 == len(marks))
            state.mark += 1
            self._say(lanes, state, marks)
            over = state.mark == len(marks) or not lanes.active
            due = time.monotonic() - self._saved >= 60 * self._minutes
            if not over and (due or self.came):
                self._save(lanes, state)
            if self.came and not (over and self.round + 1 == len(plan.rounds)):
                raise _start.Stopped(self.came[0], lanes.step)
        self._spent += int(plan.taken[state.done].sum())
        self._spent_updates += int(state.done.sum())

    @property
    def _minutes(self) -> float:
        return self.plan.recipe.config["checkpoint"]["minutes"]

    def _resume(self, lanes: Lanes, state: "_Round") -> None:
        """Goes back to the checkpoint of this round, or begins it anew where that is damaged."""
        self._at = None
        found = self.saves.restore({"lanes": lanes.shapes()})
        _held.say_warnings(self.saves.warnings)
        self._at = found[1] if found and found[1]["round"] == self.round else None
        self._cut()  # what came after; an older one may have been taken
        if not found or not self._at:
            return
        self._at = None
        tree, at = found
        lanes.restore(tree["lanes"], at["step"], at["active"])
        state.mark, state.curves = at["mark"], at["curves"]
        state.lost = {int(i): n for i, n in at["lost"].items()}
        state.done = np.array(at["done"])
        console.say(f"resuming round {self.round + 1} at update {lanes.step:,}")

    def _save(self, lanes: Lanes, state: "_Round") -> None:
        """Saves where the round stands, also between two evaluations."""
        at = {
            "round": self.round,
            "step": lanes.step,
            "active": lanes.active,
            "rows": len(self.rows),
            "progress": len(self.progress),
            "mark": state.mark,
            "curves": state.curves,
            "lost": {str(i): n for i, n in state.lost.items()},
            "done": state.done.tolist(),
        }
        step = (self.saves.steps() or [0])[-1] + 1
        self.saves.save(step, {"lanes": lanes.state()}, at)
        self._saved = time.monotonic()

    def _advance(self, lanes: Lanes, state: "_Round", until: int) -> None:
        """Trains to the next evaluation, and stops where a signal came."""
        skips = self.plan.recipe.config["nonfinite"]["policy"] == "skip"
        while lanes.step < until:
            began, before = time.monotonic(), lanes.step
            count = min(self._stretch, until - before)
            bad = lanes.advance(count)[..., _FINITE] == 0
            for i in (i for i in lanes.active if i not in state.lost):
                if skips and bad[-1, i] and lanes.step == until:
                    state.lost[i] = until  # who skips is over when its last update was no update
                elif not skips and bad[:, i].any():
                    state.lost[i] = before + int(bad[:, i].argmax())
            self._stretch = max(1, int(count * STRETCH / (time.monotonic() - began)))
            due = time.monotonic() - self._saved >= 60 * self._minutes
            if lanes.step < until and (due or self.came):
                self._save(lanes, state)
                if self.came:
                    raise _start.Stopped(self.came[0], lanes.step)

    def _look(self, lanes: Lanes, state: "_Round", kept: int | None, is_last: bool) -> None:
        """Evaluates those that are left, decides who goes on, and writes the rows."""
        left = [i for i in lanes.active if i not in state.lost]
        for i, held in zip(left, lanes.evaluate("validation", left) if left else (), strict=True):
            if np.isfinite(held["loss"]):
                state.curves[i].append([lanes.step, held["accuracy"], held["loss"]])
            else:
                state.lost[i] = lanes.step
        gone = [i for i in lanes.active if i in state.lost]
        left = [i for i in left if i not in state.lost]
        state.done[left], state.done[gone] = lanes.step, [state.lost[i] for i in gone]
        ranked = self._ranked([state.curves[i][-1] for i in left])
        ranked = [left[i] for i in ranked]
        self._note(state, ranked, is_last)
        going = [] if is_last else sorted(ranked if kept is None else ranked[:kept])
        outcome = "finished" if is_last else "stopped"
        over = {i: outcome for i in left if i not in going} | dict.fromkeys(gone, "diverged")
        tested = self._tested(lanes, [i for i in over if over[i] == "finished"])
        rows = [self._row(state, i, over[i]) | tested.get(i, {}) for i in sorted(over)]
        self._append("trials", self.rows, rows)
        lanes.keep(going)

    def _ranked(self, found: Sequence[Sequence[Any]]) -> list[int]:
        """Of points of curves, the best first."""
        return ranked(found, self.plan.spec["score"])

    def _tested(self, lanes: Lanes, finished: Sequence[int]) -> dict[int, Row]:
        """What the test set says of trials at their end."""
        if not finished or not self.plan.recipe.source.sizes[2]:
            return {}
        held = lanes.evaluate("test", sorted(finished))
        return {
            i: {f"test_{k}": h[k] for k in ("accuracy", "loss")}
            for i, h in zip(sorted(finished), held, strict=True)
        }

    def _row(self, state: "_Round", i: int, outcome: str) -> Row:
        curve, done = state.curves[i], int(state.done[i])
        last = curve[-1] if outcome != "diverged" else (done, None, None)
        return {
            "trial": state.one.first + i,
            "round": self.round,
            "values": state.asked[i],
            "outcome": outcome,
            "updates": done,
            "examples": int(self.plan.taken[done]),
            "val_accuracy": last[1],
            "val_loss": last[2],
            "curve": curve,
        }

    def _note(self, state: "_Round", ranked: Sequence[int], is_last: bool) -> None:
        """A row of progress: the best of all that was evaluated so far, and of what finished."""
        last = self.progress[-1] if self.progress else {}
        best = {k: last.get(k) for k in ("val_accuracy", "val_loss", "trial", "values")}
        finished = last.get("finished")
        if ranked:
            _, accuracy, loss = state.curves[ranked[0]][-1]
            known = [] if best["trial"] is None else [(0, best["val_accuracy"], best["val_loss"])]
            if self._ranked([*known, (0, accuracy, loss)])[0] == len(known):
                best = {
                    "val_accuracy": accuracy,
                    "val_loss": loss,
                    "trial": state.one.first + ranked[0],
                    "values": state.asked[ranked[0]],
                }
            if is_last:
                ends = [state.curves[ranked[0]][-1]]
                ends += [[0, finished["val_accuracy"], finished["val_loss"]]] if finished else []
                _, accuracy, loss = ends[self._ranked(ends)[0]]
                finished = {"val_accuracy": accuracy, "val_loss": loss}
        seconds = self._before + time.monotonic() - self._began
        row = {
            "examples": self._spent + int(self.plan.taken[state.done].sum()),
            "updates": self._spent_updates + int(state.done.sum()),
            **best,
            "finished": finished,
            "round": self.round,
            "seconds": round(seconds, 3),
        }
        self._append("progress", self.progress, [row])

    def _append(self, name: str, known: list[Row], rows: Sequence[Row]) -> None:
        known += rows
        with self._file(name).open("a", encoding="utf-8") as f:
            f.write("".join(map(records.line, rows)))

    def _say(self, lanes: Lanes, state: "_Round", marks: Sequence[Any]) -> None:
        """A line of progress, every few seconds."""
        over = state.mark == len(marks) and self.round + 1 == len(self.plan.rounds)
        if not over and time.monotonic() - self._said < 2:
            return
        self._said, best = time.monotonic(), self.progress[-1]
        told = "none is finite"
        if best["trial"] is not None:
            told = f"best so far {console.percent(best['val_accuracy'])}, loss "
            told += console.loss(best["val_loss"]) + f" ({point(best['values'])})"
        rounds = len(self.plan.rounds)
        console.say(
            f"[{len(self.rows):,}/{self.plan.trials:,}] round {self.round + 1} of {rounds}, update "
            f"{lanes.step:,} of {self.plan.total:,}, {len(lanes.active)} lanes: {told}"
        )


class _Round:
    """What is known of a round that trains.

    mark: number of the next evaluation. curves: of each trial. lost: updates done by those that
    diverged. done: updates by each trial when last looked at.
    """

    def __init__(self, one: Round, asked: Sequence[Row], curves: list[list[Any]]):
        self.one, self.asked, self.curves = one, asked, curves
        self.mark = 0
        self.lost: dict[int, int] = {}
        self.done = np.zeros(one.trials, int)
