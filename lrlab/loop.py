"""fit(): a generator over a run, stretch by stretch; records, saves, resumes.

A run computes the same however it is cut: keys and order are functions of (seed, epoch, update),
the position in an epoch is a number, a regime is a function of recorded losses. So what a
checkpoint needs beside the state is the few numbers of `Position`.
"""

import dataclasses
import functools
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from lrlab import devices, epoch, metrics, records
from lrlab.analysis import noise_scale
from lrlab.batching import Regime
from lrlab.build import Recipe
from lrlab.checkpoint import Checkpoints
from lrlab.data import Dataset
from lrlab.train_step import PART_NORM, RECORDED

STRETCH = 1.0  # seconds between two looks of the host at a run: signals, progress, records
WAIT = 0.1  # seconds between two looks while something is compiled
LR, GRAD_NORM, LOSS, IS_FINITE = map(RECORDED.index, ("lr", "grad_norm", "loss", "finite"))


class DivergedError(RuntimeError):
    """Loss or gradient is not finite, and the policy is to stop (or its patience is spent)."""


@dataclasses.dataclass
class Position:
    """Where a run stands: JSON beside the state.

    epoch, first: epochs done, and updates done in the one that goes on. examples: seen so far.
    lr_scale, rollbacks: what roll-backs made of the rate, and how many. skipped: updates in a row.
    losses, noise: validation loss and noise scale of every epoch done, where there are such.
    parts, mean: sums that tell the noise scale, and training sums, of the epoch that goes on.
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
    noise: list[float | None] = dataclasses.field(default_factory=list)
    parts: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    mean: dict[str, Any] = dataclasses.field(default_factory=lambda: metrics.Mean().state())
    best: dict[str, Any] | None = None
    lr: float | None = None
    rows: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0

    def seen(self, regime: Regime) -> Sequence[Any]:
        """What a regime looks at."""
        return self.noise if regime.reads == "noise" else self.losses


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Updates that were just done, from update `first` of the run on.

    recorded: float32 [updates, RECORDED and scheduled values].
    done: fraction of the epoch. ended: whether the last update was not finite, and one too many:
      it changed nothing, and the run stands before it.
    """

    epoch: int
    first: int
    done: float
    recorded: np.ndarray
    examples_per_second: float
    ended: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """A row that was just written to metrics.jsonl."""

    row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Something is being compiled, and nothing has changed; it may be left like any other item."""


class Run:
    """A run in the making; between two items of `fit` it is whole, and may be saved or left."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, writer: records.Writer, saves: Checkpoints | None
    ):
        """`saves`: None on a host that leaves saving to the first one."""
        self.recipe, self.dataset, self.writer, self.saves = recipe, dataset, writer, saves
        self.placement = epoch.place(dataset, recipe.config["placement"])
        self.policy = recipe.config["nonfinite"]
        self.state, self.position = recipe.init(), Position()
        self._form = devices.form(self.state)
        self._best_state: tuple[int, Any, dict[str, Any]] | None = None
        self._training: dict[int, epoch.Training] = {}
        self._ahead: dict[int, futures.Future[None]] = {}  # sizes that a thread compiles, in order
        self._evaluations: dict[str, epoch.Evaluation] = {}
        self._started = self._saved = time.monotonic()
        self.is_unsaved = False  # whether it knows more than its last checkpoint
        self.pace = 0.0  # examples a second, of the last stretch

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state.step)

    @property
    def validates(self) -> bool:
        """Whether there are validation examples; without, no epoch is the best."""
        return self.recipe.source.sizes[1] > 0

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or none of the last `patience` was better than the best."""
        at, patience = self.position, self.recipe.config["patience"]
        best = at.best["epoch"] if at.best else 0
        is_idle = patience is not None and at.epoch - best >= patience
        return at.epoch >= self.recipe.config["epochs"] or is_idle

    def resume(self) -> bool:
        """Goes back to the newest whole checkpoint; False if there is none."""
        like = devices.on_host(self.recipe.shapes)
        found = devices.shared(lambda: self.saves and self.saves.restore(like), like)
        self._best_state, self.is_unsaved = None, False
        if found is None:
            self.writer.cut(0, 0, self.recipe.columns)
            return False
        state, position = found
        self.state, self.position = devices.from_host(state, self.state), Position(**position)
        self.writer.cut(self.position.rows, self.step, self.recipe.columns)
        self._started = time.monotonic() - self.position.seconds
        return True

    def save(self) -> None:
        """Saves the best state, if that is new, and the last one.

        Raises:
          HostError: the hosts' states are not the same, or saving failed on the first one.
        """
        at, state = self.position, devices.to_host(self.state)
        at.rows, at.seconds = self.writer.rows, self.seconds()
        best = at.best["step"] if at.best else None
        if others := devices.differs(state):
            raise devices.HostError(
                f"update {self.step:,}: the weights on hosts {others} are not those of host 0, "
                "though all do the same: look for a faulty device, or another version of JAX there"
            )
        with devices.together():
            if self.saves and self._best_state and self._best_state[0] < self.step:
                self.saves.save(*self._best_state, best=best)
            if self.saves:
                self.saves.save(self.step, state, dataclasses.asdict(at), best=best)
        self._best_state = None
        self._saved, self.is_unsaved = time.monotonic(), False

    def has_saved(self) -> bool:
        """Whether there is a checkpoint to go back to."""
        return bool(devices.told(len(self.saves.steps()) if self.saves else 0))

    def training(self, size: int) -> epoch.Training:
        """The compiled training of the batch size that the run has come to."""
        self.compile(size)
        for earlier in [s for s in self._training if s < size]:
            del self._training[earlier]  # they are over: regimes do not go back
        return self._training[size]

    def _make(self, size: int) -> epoch.Training:
        like = next(iter(list(self._training.values())), None)
        made = epoch.Training(
            self.recipe.train_step(size),
            self.dataset,
            size,
            self.placement,
            self.recipe.config["seed"],
            len(RECORDED) + len(self.recipe.columns),
            self.recipe.per_epoch,
            like,
        )
        made.compile(self._form)
        return made

    def noise(self, sums: Sequence[float], recorded: np.ndarray, size: int) -> list[float]:
        """Sums (tr(S), |G|^2) with those of more updates added."""
        part = size // (devices.count() * self.recipe.parts(size))
        norms = recorded[:, len(RECORDED) + self.recipe.columns.index(PART_NORM)]
        both = (
            np.square(norms, dtype=np.float64),
            np.square(recorded[:, GRAD_NORM], dtype=np.float64),
        )
        return noise_scale.add(sums, *noise_scale.pair(*both, part, size)).tolist()

    def is_compiled(self, size: int) -> bool:
        """Whether an epoch at this batch size can begin at once."""
        return size in self._training and (not self.validates or "validation" in self._evaluations)

    def compile(self, size: int) -> None:
        """Compiles what an epoch at this batch size needs, if it is not there yet."""
        if size in self._ahead:
            self._ahead[size].result()
        if size not in self._training:
            self._training[size] = self._make(size)
        if self.validates:
            self.evaluation("validation")

    def compile_ahead(self, sizes: Sequence[int]) -> None:
        """Compiles for these batch sizes in a thread, while the ones before them train."""
        if todo := [size for size in sizes if size not in self._ahead]:
            found: dict[int, futures.Future[None]] = {size: futures.Future() for size in todo}
            self._ahead |= found

            def go() -> None:
                for size, future in found.items():
                    try:
                        self._training[size] = self._make(size)
                        future.set_result(None)
                    except BaseException as e:  # told when the run comes to this size
                        future.set_exception(e)

            threading.Thread(target=go, daemon=True).start()

    @property
    def is_compiling(self) -> bool:
        """Whether a thread compiles."""
        return not all(future.done() for future in self._ahead.values())

    def wait(self) -> None:
        """Waits for the thread that compiles: a process that ends under XLA's feet may crash."""
        futures.wait(self._ahead.values())

    def to_come(self) -> list[int]:
        """Batch sizes that the run will come to, as far as is known, the next one first."""
        epochs = range(self.position.epoch, self.recipe.config["epochs"])
        if self.recipe.regime.reads or len(self.recipe.sizes) == 1:
            epochs = epochs[:1]
        seen = self.position.seen(self.recipe.regime)
        return list(dict.fromkeys(self.recipe.regime.at(e, seen)[0] for e in epochs))

    def evaluation(self, split: str) -> epoch.Evaluation:
        """The compiled evaluation of the split "validation" or "test", made when first wanted."""
        if split not in self._evaluations:
            step, size = self.recipe.eval_step(), self.recipe.eval_size()
            examples = getattr(self.dataset, split)
            made = epoch.Evaluation(step, self.dataset, examples, size, self.placement)
            made.compile(self.state)
            self._evaluations[split] = made
        return self._evaluations[split]

    def evaluate(self, split: str) -> dict[str, float]:
        """{"<prefix>_loss", "<prefix>_accuracy"} of the split "validation" or "test"."""
        prefix = "val" if split == "validation" else split
        return {f"{prefix}_{k}": v for k, v in self.evaluation(split).run(self.state).items()}

    def write(self, row: dict[str, Any]) -> Row:
        """Writes a row."""
        self.is_unsaved = True
        return Row(self.writer.row(row))

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
        """Whether it is time for a save, by the first host's clock."""
        since = devices.told(time.monotonic() - self._saved)
        return since >= 60 * self.recipe.config["checkpoint"]["minutes"]

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
            **(self.evaluate("validation") if self.validates else {}),
            "seconds": round(self.seconds(), 3),
            "examples_per_second": round(at.first * size / seconds) if seconds else None,
        }
        if self.recipe.measures_noise:
            found = noise_scale.ratio(*at.parts)
            row["noise_scale"] = found if math.isfinite(found) else None
            at.noise, at.parts = [*at.noise, row["noise_scale"]], [0.0, 0.0]
        at.losses += [row["val_loss"]] if self.validates else []
        at.epoch, at.first, at.mean, at.epoch_seconds = at.epoch + 1, 0, metrics.Mean().state(), 0.0
        written = self.write(row)
        if records.best([r for r in (at.best, written.row) if r]) is written.row:
            at.best = written.row
            kept = dataclasses.replace(at, rows=self.writer.rows, seconds=self.seconds())
            self._best_state = self.step, devices.to_host(self.state), dataclasses.asdict(kept)
        if at.epoch in self.recipe.kept:
            self._keep()
        return written

    def _keep(self) -> None:
        """Keeps the state for good, before anything is saved after it: a rerun keeps it again."""
        with devices.together():
            if not self.saves:
                return
            folder = self.saves.folder.with_name("snapshots")
            with Checkpoints(folder, keep=len(self.recipe.kept)) as snapshots:
                at = {"epoch": self.position.epoch, "step": self.step}
                snapshots.save(self.step, devices.to_host(self.state), at)


def fit(run: Run) -> Iterator[Stretch | Row | Waiting]:
    """Trains until the last epoch; yields every stretch of updates and every row.

    Between two items the run is whole: the caller may save it and leave. A divergence is told by
    the error, not by an item: what is saved is the state before it.

    Raises:
      DivergedError: as the policy says; the last good state is saved.
    """
    if run.policy["policy"] == "rollback" and not run.has_saved():
        run.save()  # something to go back to
    sizes = run.to_come()
    for size in sizes[:1]:
        if not run.is_compiled(size):
            yield from patiently(functools.partial(run.compile, size))
    run.compile_ahead(sizes[1:])
    while not run.is_over:
        size, scale = run.recipe.regime.at(run.position.epoch, run.position.seen(run.recipe.regime))
        if not run.is_compiled(size):
            yield from patiently(functools.partial(run.compile, size))
        training = run.training(size)
        if run.position.first == training.updates:
            yield run.close_epoch(size)
        else:
            stretch, rows = _train(run, training, size, scale)
            yield stretch
            yield from rows
            if stretch.ended:
                yield _go_back(run, stretch)
        if run.is_over or (run.is_due() and run.position.first < training.updates):
            run.save()


def _train(
    run: Run, training: epoch.Training, size: int, scale: float
) -> tuple[Stretch, list[Row]]:
    """One stretch, of about STRETCH seconds at the pace of the last one, and rows of its skips."""
    at, first, began, policy = run.position, run.step, time.monotonic(), run.policy
    count = min(training.left(at.first), max(1, int(run.pace * STRETCH / size)))
    lr = run.recipe.config["lr"] * scale * at.lr_scale
    limit = policy["most"] if policy["policy"] == "skip" else 0
    run.state, recorded = training.run(run.state, at.epoch, at.first, count, lr, at.skipped, limit)
    run.is_unsaved = True
    seconds = time.monotonic() - began
    run.pace = devices.told(len(recorded) * size / seconds)  # all hosts do as many next time
    counted = recorded[: run.step - first]  # without one that was one too many
    rates, losses, is_finite = counted[:, LR], counted[:, LOSS], counted[:, IS_FINITE] > 0
    mean = metrics.Mean.of(at.mean)
    mean.add(counted[is_finite, LOSS : len(RECORDED)])
    if run.recipe.measures_noise:
        at.parts = run.noise(at.parts, counted[is_finite], size)
    at.mean, at.first = mean.state(), at.first + len(counted)
    at.examples += len(counted) * size
    at.epoch_seconds += seconds
    at.lr = float(rates[-1]) if len(rates) else at.lr
    good = np.flatnonzero(is_finite)
    at.skipped = int(len(counted) - 1 - good[-1]) if len(good) else at.skipped + len(counted)
    more = counted[:, len(RECORDED) :].T
    run.writer.updates(first, at.epoch + 1, size, rates, losses / np.float32(size), *more)
    rows = [
        run.write({"event": "skip", **_where(at.epoch, first + int(i), rates[i])})
        for i in np.flatnonzero(~is_finite)
    ]
    ended = len(counted) < len(recorded)
    done = at.first / training.updates
    return Stretch(at.epoch, first, done, recorded, run.pace, ended), rows


def _where(epoch: int, update: int, rate: float) -> dict[str, Any]:
    return {"step": update, "epoch": epoch + 1, "lr": float(rate)}


def _go_back(run: Run, stretch: Stretch) -> Row:
    """Answers an update that was not finite, and one too many: rolls back, or gives up."""
    at, update, rate = run.position, run.step, float(stretch.recorded[-1, LR])
    row = _where(stretch.epoch, update, rate)
    if run.policy["policy"] != "rollback" or at.rollbacks >= run.policy["most"]:
        run.save()  # before the row: a rerun meets the same update, and writes the row again
        run.write({"event": "diverged", **row})
        where = f"update {update} (epoch {stretch.epoch + 1}) at rate {rate:.6g}"
        tried = f", after {at.rollbacks} roll-backs" if at.rollbacks else ""
        tried = f", {at.skipped} updates in a row were skipped before" if at.skipped else tried
        raise DivergedError(f"loss or gradient is not finite in {where}{tried}")
    scale, rollbacks = at.lr_scale * run.policy["factor"], at.rollbacks + 1
    run.resume()
    run.position.lr_scale, run.position.rollbacks = scale, rollbacks
    written = run.write({"event": "rollback", **row, "to": run.step, "lr_scale": scale})
    run.save()
    return written


def patiently(work: Callable[[], Any]) -> Iterator[Waiting]:
    """Does `work` in a thread, and yields while it lasts: XLA's compiler lets no signal through."""
    done: futures.Future[Any] = futures.Future()

    def go() -> None:
        try:
            done.set_result(work())
        except BaseException as e:
            done.set_exception(e)

    threading.Thread(target=go, daemon=True).start()
    while not futures.wait([done], WAIT).done:
        yield Waiting()
    done.result()
