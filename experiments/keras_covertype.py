"""Grow the batch on plateaus, or decay the rate: the Keras article's comparison on Covertype.

Claims: half the time, and a slightly better validation loss; and what that comes from: fewer
        updates, the hardware, or the plateau rule (`verdicts`).
Source: the Keras article on Covertype, after Smith et al. 2018, arXiv:1711.00489; its settings are
        in configs/covertype_growth.py.
Run:    LRLAB_DATA_DIR=... python -m experiments.keras_covertype --size=desk --workdir=runs/keras
        (--size=smoke: the parts, on digits; --size=paper: all 581,012 rows, for a GPU)
Makes:  <workdir>/<arm>/<seed> and <workdir>/plots; desk and paper also
        experiments/results/keras_covertype_<size>_<device>.json. The same command goes on where it
        was stopped.

All arms see as many examples, but for those that no whole batch is left for: a shorter time is a
larger throughput, and nothing else. Runs of one seed share their first weights, and all runs their
split, so arms are compared seed by seed, and no interval covers the choice of the split.
"""

import argparse
import dataclasses
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.recipes import device
from lrlab import charts, plots, records
from lrlab.analysis import valley

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
FACTOR = 5
HALF = 0.55  # of the baseline's time: what rounds to half


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    batch: examples an update at first. patience, threshold: what a plateau is.
    changes: of the config, as the command line takes them.
    """

    config: str
    epochs: int
    seeds: int
    batch: int = 256
    patience: int = 3
    threshold: float = 1e-4  # Keras' default
    changes: tuple[str, ...] = ()


SIZES = {
    "smoke": Size(
        "configs/digits.py",
        epochs=8,
        seeds=2,
        batch=16,
        patience=1,
        threshold=0.05,  # a plateau comes early
        changes=(
            "--config.model={'name': 'mlp.MLP', 'widths': (64,)}",
            "--config.optimizer={'name': 'adam'}",
            "--config.lr=0.001",
            "--config.schedule=({'name': 'constant'},)",
        ),
    ),
    # The rows at hand. Fewer epochs would not do: on 60,426 examples the first plateau comes at
    # about epoch 35, and before it all arms of one batch size are the same run.
    "desk": Size("configs/covertype_growth.py", epochs=60, seeds=5),
    "paper": Size(
        "configs/covertype_growth.py",
        epochs=60,
        seeds=5,
        changes=("--config.data={'name': 'tabular.covertype', 'download': True}",),
    ),
}


def arms(size: Size) -> dict[str, dict[str, Any]]:
    """The section `batch` of each arm."""
    rule = {
        "patience": size.patience,
        "threshold": size.threshold,
        "threshold_mode": "abs",
        "dialect": "keras",
    }
    growth = {"name": "plateau_growth", "factor": FACTOR, "cap": 0.1, **rule}
    decay = {"name": "plateau", "factor": 1 / FACTOR, **rule}
    return {
        "growth": {**growth, "size": size.batch},
        "baseline": {**decay, "size": size.batch},
        "large_x5": {**decay, "size": size.batch * FACTOR},
        "large_x25": {**decay, "size": size.batch * FACTOR**2},
        "constant": {"name": "fixed", "size": size.batch},
        "growth_sqrt": {**growth, "size": size.batch, "coupling": "sqrt"},
    }


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is over. Arrays have an entry an epoch: what its end saw.

    updates, seconds: since the start; seconds of training alone. loss, accuracy: of validation.
    size, lr: of the epoch's last update. wall: seconds with compiling, validation and saves too.
    """

    arm: str
    seed: int
    updates: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    size: np.ndarray
    lr: np.ndarray
    wall: float
    test_accuracy: float

    def turns(self) -> list[list[float]]:
        """[epoch from 1, batch size, rate] where a batch size or a rate begins."""
        now = np.stack([self.size, self.lr], 1)
        begins = [0, *(np.flatnonzero((np.diff(now, axis=0) != 0).any(1)) + 1)]
        return [[int(i) + 1, int(self.size[i]), float(self.lr[i])] for i in begins]

    def pace(self, size: int) -> float:
        """Examples a second at a batch size, the median of its epochs; NaN where it has none."""
        examples = np.diff(self.updates, prepend=0) * self.size
        paces = (examples / np.diff(self.seconds, prepend=0))[self.size == size]
        return float(np.median(paces)) if len(paces) else float("nan")


def read(workdir: Path, arm: str, seed: int) -> Run:
    """A run from its folder."""
    record = records.read(workdir / arm / str(seed))
    assert record.final, f"{record.folder} is not over"

    def column(key: str) -> np.ndarray:
        return np.array([row[key] for row in record.rows], np.float64)

    examples = np.diff(column("examples"), prepend=0)
    return Run(
        arm=arm,
        seed=seed,
        updates=column("step"),
        seconds=np.cumsum(examples / column("examples_per_second")),
        loss=column("val_loss"),
        accuracy=column("val_accuracy"),
        size=column("batch_size"),
        lr=column("lr"),
        wall=record.rows[-1]["seconds"],
        test_accuracy=record.final["test_accuracy"],
    )


def train(size: Size, workdir: Path) -> list[Run]:
    """Trains all runs, or goes on with them; seed by seed, so that a slow hour slows all arms."""
    runs = []
    for seed in range(size.seeds):
        for arm, batch in arms(size).items():
            command = [sys.executable, "-m", "lrlab.main", f"--config={size.config}"]
            command += [f"--workdir={workdir / arm / str(seed)}", f"--config.seed={seed}"]
            command += [f"--config.epochs={size.epochs}", *size.changes, f"--config.batch={batch}"]
            done = subprocess.run(command, stdout=subprocess.DEVNULL)
            if done.returncode:
                print(f"{arm}, seed {seed} ended with {done.returncode}", file=sys.stderr)
                sys.exit(done.returncode)
            runs.append(run := read(workdir, arm, seed))
            print(f"{arm}, seed {seed}: {_ending(run)}", flush=True)
    return runs


def _ending(run: Run) -> str:
    turns = [f"{epoch:.0f}" for epoch, _, _ in run.turns()[1:]]
    return (
        f"{run.updates[-1]:,.0f} updates, {run.seconds[-1]:.1f} s, validation loss "
        f"{run.loss[-1]:.4f}, batch or rate changed at epochs {', '.join(turns) or 'none'}"
    )


def pairs(runs: Sequence[Run], a: str, b: str) -> list[tuple[Run, Run]]:
    """Runs of two arms with the same seed."""
    first, second = ({r.seed: r for r in runs if r.arm == arm} for arm in (a, b))
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def verdict(claim: str, what: str, values: Sequence[float], limit: float) -> dict[str, Any]:
    """Whether numbers, one a seed, have a mean below a limit.

    holds: "yes" where all of the 95 % bootstrap interval of the mean is below the limit, "no" where
    all of it is above, "open" otherwise, and where a number is not finite. With five seeds such an
    interval is too narrow, so the seeds that are below are counted as well.
    """
    low, high = valley.bootstrap(values)
    return {
        "claim": claim,
        "what": what,
        "limit": limit,
        "mean": float(np.mean(values)),
        "low": low,
        "high": high,
        "seeds_below": int((np.asarray(values) < limit).sum()),
        "seeds": len(values),
        "holds": "yes" if high < limit else "no" if low > limit else "open",
    }


def verdicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The article's two claims, and then what they come from."""
    both = pairs(runs, "growth", "baseline")

    def loss(a: str, b: str) -> list[float]:
        return [x.loss[-1] - y.loss[-1] for x, y in pairs(runs, a, b)]

    def ahead(clock: str) -> list[float]:
        """Of growth, over a baseline that ends when growth does."""
        return [
            g.loss[-1] - np.interp(getattr(g, clock)[-1], getattr(b, clock), b.loss)
            for g, b in both
        ]

    def an_example(large: Run, small: Run) -> float:
        return small.pace(int(small.size[0])) / large.pace(int(large.size[0]))

    a_seconds = [g.seconds[-1] / b.seconds[-1] for g, b in both]
    a_wall = [g.wall / b.wall for g, b in both]
    a_updates = [g.updates[-1] / b.updates[-1] for g, b in both]
    a_best = [g.loss.min() - b.loss.min() for g, b in both]
    an_examples = [an_example(*pair) for pair in pairs(runs, "large_x5", "baseline")]
    found = (
        ("half the time", "training seconds, growth / baseline", a_seconds, HALF),
        ("half the time, all included", "wall seconds, growth / baseline", a_wall, HALF),
        (
            "slightly better validation loss",
            "loss at the end, growth - baseline",
            loss("growth", "baseline"),
            0.0,
        ),
        ("slightly better at its best", "lowest loss, growth - baseline", a_best, 0.0),
        ("fewer updates", "updates, growth / baseline", a_updates, 1.0),
        (
            "better than as many updates of the baseline",
            "loss, growth - baseline stopped there",
            ahead("updates"),
            0.0,
        ),
        (
            "better than as many seconds of the baseline",
            "loss, growth - baseline stopped there",
            ahead("seconds"),
            0.0,
        ),
        (
            "a larger batch uses the hardware better",
            "seconds an example, batch x 5 / batch",
            an_examples,
            1.0,
        ),
        (
            "better than large from the start",
            "loss, growth - batch x 5",
            loss("growth", "large_x5"),
            0.0,
        ),
        (
            "better than very large from the start",
            "loss, growth - batch x 25",
            loss("growth", "large_x25"),
            0.0,
        ),
        (
            "the plateau rule on the rate helps",
            "loss, baseline - constant",
            loss("baseline", "constant"),
            0.0,
        ),
        (
            "the plateau rule on the batch helps",
            "loss, growth - constant",
            loss("growth", "constant"),
            0.0,
        ),
        (
            "the rate should stay where the batch grows",
            "loss, growth - growth with rate x sqrt 5",
            loss("growth", "growth_sqrt"),
            0.0,
        ),
    )
    return [verdict(*row) for row in found]


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """An entry an arm: means over its seeds, the loss with s.d. and interval.

    first_turns: epochs, of each seed that had one, at which batch or rate first changed.
    """
    found = []
    for arm in dict.fromkeys(r.arm for r in runs):
        members = [r for r in runs if r.arm == arm]
        ends = [float(r.loss[-1]) for r in members]
        sizes = sorted({int(s) for r in members for s in r.size})
        found.append(
            {
                "arm": arm,
                "n": len(members),
                "updates": float(np.mean([r.updates[-1] for r in members])),
                "seconds": float(np.mean([r.seconds[-1] for r in members])),
                "wall": float(np.mean([r.wall for r in members])),
                "loss": float(np.mean(ends)),
                "loss_sd": float(np.std(ends, ddof=1)) if len(ends) > 1 else None,
                "loss_interval": valley.bootstrap(ends),
                "best_loss": float(np.mean([r.loss.min() for r in members])),
                "accuracy": float(np.mean([r.accuracy[-1] for r in members])),
                "test_accuracy": float(np.mean([r.test_accuracy for r in members])),
                "first_turns": [int(e) for r in members for e, _, _ in r.turns()[1:2]],
                "examples_per_second": {
                    str(size): float(np.nanmedian([r.pace(size) for r in members]))
                    for size in sizes
                },
            }
        )
    return found


def draw(runs: Sequence[Run]) -> "Figure":
    """Validation loss and accuracy against epochs, updates and seconds; bands: all seeds."""
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(12.6, 7.2), layout="constrained")
        axes = figure.subplots(2, 3, sharey="row")
        looks = zip(dict.fromkeys(r.arm for r in runs), charts.COLORS, charts.MARKERS, strict=False)
        for arm, color, marker in looks:
            members = [r for r in runs if r.arm == arm]
            epochs = np.arange(1, len(members[0].loss) + 1)
            updates = np.mean([r.updates for r in members], 0)
            xs = epochs, updates, np.mean([r.seconds for r in members], 0)
            for row, what in zip(axes, ("loss", "accuracy"), strict=True):
                ys = np.array([getattr(r, what) for r in members])
                for ax, x in zip(row, xs, strict=True):
                    label = arm.replace("_", " ")
                    ax.plot(x, ys.mean(0), color=color, marker=marker, markevery=0.1, label=label)
                    ax.fill_between(x, ys.min(0), ys.max(0), color=color, alpha=0.18, linewidth=0)
        for row, what in zip(axes, ("loss", "accuracy"), strict=True):
            row[0].set_ylabel(f"validation {what}")
            row[0].set_ylim(*_window(runs, what))
        for ax, name in zip(axes[1], ("epochs", "updates", "training seconds"), strict=True):
            ax.set_xlabel(name)
        axes[1][0].yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _window(runs: Sequence[Run], what: str) -> tuple[float, float]:
    """From the best of all to where growth and baseline were after a fifth of the run."""
    late = [getattr(r, what)[len(r.loss) // 5 :] for r in runs if r.arm in ("growth", "baseline")]
    seen = np.concatenate([getattr(r, what) for r in runs])
    best, worst = (seen.min(), np.max(late)) if what == "loss" else (seen.max(), np.min(late))
    low, high = sorted((best, worst))
    room = 0.05 * (high - low)
    return low - room, high + room


def table(record: Mapping[str, Any]) -> str:
    """Arms and verdicts for a terminal."""
    head = "updates", "train s", "wall s", "val loss", "s.d.", "lowest", "val acc", "test acc"
    lines = [
        f"{'arm':<12}"
        + "".join(f"{name:>9}" for name in head)
        + "  examples/s at batch; epochs of the first change"
    ]
    for a in record["arms"]:
        spread = "" if a["loss_sd"] is None else f"{a['loss_sd']:.4f}"
        paces = ", ".join(f"{s}: {pace:,.0f}" for s, pace in a["examples_per_second"].items())
        lines.append(
            f"{a['arm']:<12}{a['updates']:>9,.0f}{a['seconds']:>9.1f}{a['wall']:>9.1f}"
            f"{a['loss']:>9.4f}{spread:>9}{a['best_loss']:>9.4f}"
            f"{a['accuracy']:>9.2%}{a['test_accuracy']:>9.2%}  {paces}; "
            f"{', '.join(map(str, a['first_turns'])) or 'none'}"
        )
    for v in record["verdicts"]:
        lines += [
            f"{v['claim']}: {v['holds'].upper()}",
            f"  {v['what']}: {v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}], limit "
            f"{v['limit']:g}, below it {v['seeds_below']} of {v['seeds']} seeds",
        ]
    data = record["data"]
    of = "".join(f" ({note})" for note in data["notes"])
    lines.append(f"{data['name']}: {sum(data['sizes']):,} rows{of}; {record['device']}")
    return "\n".join(lines)


def compact(record: Mapping[str, Any]) -> str:
    """JSON with five digits a number; innermost lists on a line."""

    def cut(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}") if np.isfinite(value) else None
        if isinstance(value, Mapping):
            return {k: cut(v) for k, v in value.items()}
        return [cut(v) for v in value] if isinstance(value, list | tuple) else value

    text = json.dumps(cut(record), indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text) + "\n"


def shown(run: Run) -> dict[str, Any]:
    """A run as the record keeps it."""
    return {
        "arm": run.arm,
        "seed": run.seed,
        "updates": int(run.updates[-1]),
        "seconds": float(run.seconds[-1]),
        "wall": run.wall,
        "test_accuracy": run.test_accuracy,
        "turns": run.turns(),
        "loss": run.loss.round(4).tolist(),
        "accuracy": run.accuracy.round(4).tolist(),
    }


def main() -> None:
    """Trains, draws, prints, records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--workdir", type=Path, required=True)
    known = parser.parse_args()
    size, workdir = SIZES[known.size], known.workdir
    runs = train(size, workdir)
    plots.save(draw(runs), workdir / "plots" / "arms")
    record = {
        "study": f"keras_covertype, {known.size}",
        "settings": {**dataclasses.asdict(size), "arms": arms(size)},
        "data": records.read(workdir / "growth" / "0").environment["data"],
        "verdicts": verdicts(runs),
        "arms": summary(runs),
        "runs": [shown(run) for run in runs],
        "device": device(),
        "date": datetime.date.today().isoformat(),
        "lrlab": records.environment(),
    }
    slug = re.sub(r"\W+", "_", record["device"].lower()).strip("_")
    folder = workdir if known.size == "smoke" else RESULTS
    path = folder / f"keras_covertype_{known.size}_{slug}.json"
    records.write_text(path, compact(record))
    print(table(record))
    print(f"record {path}\nfigure {workdir / 'plots' / 'arms.png'}")


if __name__ == "__main__":
    main()
