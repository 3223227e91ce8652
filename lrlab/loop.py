"""fit(): a generator over a run, stretch by stretch; records, saves, resumes.

A run computes the same however it is cut: keys and order are functions of (seed, epoch, update),
the position in an epoch is a number, a regime is a function of recorded losses. So what a
checkpoint needs beside the state is the few numbers of `Position`.
"""

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lrlab import devices, epoch, metrics, records
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.data import Dataset
from lrlab.train_step import RECORDED

STRETCH = 1.0  # seconds between two looks of the host at a run: signals, progress, records


class DivergedError(RuntimeError):
    """Loss or gradient is not finite, and the policy is to stop (or its patience is spent)."""


@dataclasses.dataclass
class Position:
    """Where a run stands: JSON beside the state.

    epoch, first: epochs done, and updates done in the one that goes on. examples: seen so far.
    lr_scale, rollbacks: what roll-backs made of the rate, and how many. skipped: updates in a row.
    losses: validation loss of every epoch done. mean: training sums of the epoch that goes on.
    best: the best row so far. lr: the last rate used. rows: rows in metrics.jsonl. seconds: of the
    run; epoch_seconds: of training in the epoch that goes on.
    """

    epoch: int = 0
    first: int = 0
    examples: int = 0
    lr_scale: float = 1.0
    rollbacks: int = 0
    skipped: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    mean: dict[str, Any] = dataclasses.field(default_factory=lambda: metrics.Mean().state())
    best: dict[str, Any] | None = None
    lr: float | None = None
    rows: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Updates that were just done, from update `first` of the run on.

    recorded: float32 [updates, RECORDED and scheduled values]; a last one that is not finite may
      have changed nothing.
    done: fraction of the epoch.
    """

    epoch: int
    first: int
    done: float
    recorded: np.ndarray
    examples_per_second: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A row that was just written to metrics.jsonl."""

    row: dict[str, Any]


class Run:
    """A run in the making; between two items of `fit` it is whole, and may be saved or left."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, writer: records.Writer, saves: Checkpoints
    ):
        self.recipe, self.dataset, self.writer, self.saves = recipe, dataset, writer, saves
        self.placement = epoch.place(dataset, recipe.config["placement"])
        self.state, self.position = recipe.init(), Position()
        self._best_state: tuple[int, Any, dict[str, Any]] | None = None
        self._training: dict[int, epoch.Training] = {}
        self._evaluations: dict[str, epoch.Evaluation] = {}
        self._started = self._saved = time.monotonic()

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state.step)

    def resume(self) -> bool:
        """Goes back to the newest whole checkpoint; False if there is none."""
        found = self.saves.restore(devices.on_host(self.recipe.shapes))
        if found is None:
            self.writer.cut(0, 0, self.recipe.columns)
            return False
        state, position = found
        self.state, self.position = (
            devices.from_host(state, self.state),
            Position(**position),
        )
        self.writer.cut(self.position.rows, self.step, self.recipe.columns)
        self._started = time.monotonic() - self.position.seconds
        return True

    def save(self) -> None:
        """Saves the best state, if that is new, and the last one."""
        at = self.position
        at.rows, at.seconds = self.writer.rows, self.seconds()
        best = at.best["step"] if at.best else None
        if self._best_state and self._best_state[0] < self.step:
            self.saves.save(*self._best_state, best=best)
        self._best_state = None
        self.saves.save(self.step, devices.to_host(self.state), dataclasses.asdict(at), best=best)
        self._saved = time.monotonic()

    def training(self, size: int) -> epoch.Training:
        """The compiled training of a batch size, made when it is first wanted."""
        if size not in self._training:
            step, seed = self.recipe.train_step(), self.recipe.config["seed"]
            columns = len(RECORDED) + len(self.recipe.columns)
            made = epoch.Training(step, self.dataset, size, self.placement, seed, columns)
            made.compile(self.state)
            self._training = {size: made}  # an earlier size is over: regimes do not go back
        return self._training[size]

    def evaluate(self, split: str) -> dict[str, float]:
        """{"<prefix>_loss", "<prefix>_accuracy"} of the split "validation" or "test"."""
        if split not in self._evaluations:
            step, size = self.recipe.eval_step(), self.recipe.eval_size()
            examples = getattr(self.dataset, split)
            self._evaluations[split] = epoch.Evaluation(
                step, self.dataset, examples, size, self.placement
            )
        prefix = "val" if split == "validation" else split
        return {f"{prefix}_{k}": v for k, v in self._evaluations[split].run(self.state).items()}

    def write(self, row: dict[str, Any]) -> Row:
        """Writes a row."""
        self.writer.row(row)
        return Row(row)

    def digest(self) -> str:
        """SHA-256 of the whole state; equal for runs that did the same, to the bit."""
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(devices.to_host(self.state)):
            found.update(np.ascontiguousarray(leaf).tobytes())
        return found.hexdigest()

    def seconds(self) -> float:
        """Since the run began, time between a stop and its resume not counted."""
        return time.monotonic() - self._started

    def is_due(self) -> bool:
        """Whether it is time for a save."""
        return time.monotonic() - self._saved >= 60 * self.recipe.config["checkpoint"]["minutes"]

    def close_epoch(self, size: int) -> Row:
        """Evaluates, writes the epoch's row, and moves on to the next epoch."""
        at, seconds = self.position, self.position.epoch_seconds
        row = {
            "epoch": at.epoch + 1,
            "step": self.step,
            "examples": at.examples,
            "lr": at.lr,
            "batch_size": size,
            **{f"train_{k}": v for k, v in metrics.Mean.of(at.mean).means().items()},
            **self.evaluate("validation"),
            "seconds": round(self.seconds(), 3),
            "examples_per_second": round(at.first * size / seconds) if seconds else None,
        }
        at.losses.append(row["val_loss"])
        at.epoch, at.first, at.mean, at.epoch_seconds = at.epoch + 1, 0, metrics.Mean().state(), 0.0
        written = self.write(row)
        if metrics.best([r for r in (at.best, row) if r]) is row:
            at.best = row
            kept = dataclasses.replace(at, rows=self.writer.rows, seconds=self.seconds())
            self._best_state = self.step, devices.to_host(self.state), dataclasses.asdict(kept)
        return written


def fit(run: Run) -> Iterator[Stretch | Row]:
    """Trains until the last epoch; yields every stretch of updates and every row.

    Between two items the run is whole: the caller may save it and leave.

    Raises:
      DivergedError: as the policy says; the last good state is saved.
    """
    config = run.recipe.config
    if config["nonfinite"]["policy"] == "rollback" and not run.saves.steps():
        run.save()  # something to go back to
    while run.position.epoch < config["epochs"]:
        size, scale = run.recipe.regime.at(run.position.epoch, run.position.losses)
        training, speed = run.training(size), 0.0
        while run.position.first < training.updates:
            stretch, speed = _train(run, training, size, scale, speed)
            yield stretch
            yield from _react(run, stretch)
            if run.is_due() and run.position.first < training.updates:
                run.save()
        yield run.close_epoch(size)
        if run.is_due() or run.position.epoch == config["epochs"]:
            run.save()


def _train(
    run: Run, training: epoch.Training, size: int, scale: float, speed: float
) -> tuple[Stretch, float]:
    """One stretch, of about STRETCH seconds at the `speed` (updates/s) seen so far, recorded."""
    at, first, began = run.position, run.step, time.monotonic()
    count = min(training.left(at.first), max(8, int(speed * STRETCH)))
    lr = run.recipe.config["lr"] * scale * at.lr_scale
    run.state, recorded = training.run(run.state, at.epoch, at.first, count, lr)
    seconds = time.monotonic() - began
    counted = recorded[: run.step - first]  # without one that stopped the run
    finite = counted[counted[:, RECORDED.index("finite")] > 0]
    mean = metrics.Mean.of(at.mean)
    mean.add(finite[:, RECORDED.index("loss") : len(RECORDED)])
    at.mean, at.first, at.examples = (
        mean.state(),
        at.first + len(counted),
        at.examples + len(counted) * size,
    )
    at.epoch_seconds += seconds
    rates, losses = counted[:, RECORDED.index("lr")], counted[:, RECORDED.index("loss")]
    at.lr = float(rates[-1]) if len(rates) else at.lr
    more = counted[:, len(RECORDED) :].T
    run.writer.updates(first, at.epoch + 1, size, rates, losses / np.float32(size), *more)
    done = at.first / training.updates
    return Stretch(at.epoch, first, done, recorded, len(recorded) * size / seconds), count / seconds


def _react(run: Run, stretch: Stretch) -> Iterator[Row]:
    """Answers updates that were not finite, by the config's policy."""
    at, policy = run.position, run.recipe.config["nonfinite"]
    for i, recorded in enumerate(stretch.recorded):
        if recorded[RECORDED.index("finite")]:
            at.skipped = 0
            continue
        update, rate = stretch.first + i, float(recorded[RECORDED.index("lr")])
        where = f"update {update} (epoch {stretch.epoch + 1}) at rate {rate:.6g}"
        row = {"step": update, "epoch": stretch.epoch + 1, "lr": rate}
        spent = max(at.rollbacks, at.skipped) >= policy["most"]
        if policy["policy"] == "stop" or spent:
            run.save()  # before the row: a rerun meets the same update, and writes the row again
            yield run.write({"event": "diverged", **row})
            tried = f", after {at.rollbacks} roll-backs" if at.rollbacks else ""
            tried = f", {at.skipped} updates in a row were skipped before" if at.skipped else tried
            raise DivergedError(f"loss or gradient is not finite in {where}{tried}")
        if policy["policy"] == "skip":
            at.skipped += 1
            yield run.write({"event": "skip", **row})
        else:
            scale, rollbacks = at.lr_scale * policy["factor"], at.rollbacks + 1
            run.resume()
            at = run.position
            at.lr_scale, at.rollbacks = scale, rollbacks
            yield run.write({"event": "rollback", **row, "to": run.step, "lr_scale": scale})
            run.save()
