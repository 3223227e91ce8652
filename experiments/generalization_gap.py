"""Do large batches generalise worse? One task, two batch sizes, four ways to choose the rate.

Claim:  at the rate of a small batch a large one tests worse after equal epochs, in a sharper place;
        a rate that keeps the noise scale lr N / (B (1 - m)) closes the gap.
Source: Keskar et al. 2017, arXiv:1609.04836 (sharp minima); Goyal et al. 2017, arXiv:1706.02677
        (linear scaling); Krizhevsky 2014, arXiv:1404.5997 (square root); Smith & Le 2018,
        arXiv:1710.06451 (noise scale).
Run:    LRLAB_DATA_DIR=... python -m experiments.generalization_gap --size=desk --workdir=runs/gap
        (--size=smoke: seconds)
Makes:  <workdir>/plots; desk also experiments/results/generalization_gap_desk_<device>.json. The
        same command goes on with the ways that are not done.

Every run warms up, holds its rate, and comes down to zero at the end, so that what is measured is
the place that it found and not the noise around it. Sharpness is the largest Hessian eigenvalue of
the mean loss of the first training examples, without dropout; it falls as that loss does, so read
it beside the training accuracy. Nothing is chosen by the test set.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import arms
from lrlab import build, charts, epoch, metrics, plots
from lrlab.analysis import sharpness, valley
from lrlab.data import Dataset
from lrlab.lanes import Lanes
from lrlab.train_step import RECORDED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENTUM = 0.9
EXAMPLES = 1000  # whose mean loss the sharpness is of
STEPS = 20  # Hessian-vector products
WAYS = {  # how the large batch's rate follows its size, and how the momentum
    "fixed rate": ("none", 0.0),
    "square root": ("sqrt", 0.0),
    "linear": ("linear", 0.0),  # equal noise, by the rate alone
    "momentum": ("sqrt", 0.5),  # equal noise, half by the rate and half by 1 / (1 - m)
}
SMALL = "small batch"


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains; lr is the small batch's."""

    data: dict[str, Any]
    model: dict[str, Any]
    small: int
    large: int
    lr: float
    epochs: int
    seeds: int


SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 0},
        model={"name": "mlp.MLP", "widths": (32,)},
        small=8,
        large=128,
        lr=0.01,
        epochs=10,
        seeds=3,
    ),
    # So few of the examples that a net of 13,046 weights can learn them by heart.
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 55_000},
        model={"name": "cnn.SmallCNN", "scale": 2.0},
        small=16,
        large=256,
        lr=0.005,
        epochs=50,
        seeds=6,
    ),
}


def config(size: Size, way: str) -> dict[str, Any]:
    """The recipe of a way, or of SMALL."""
    coupling, share = WAYS.get(way, ("none", 0.0))
    batch = size.small if way == SMALL else size.large
    left = (1 - MOMENTUM) * (batch / size.small) ** -share
    return {
        "seed": 0,
        "epochs": size.epochs,
        "data": size.data,
        "model": size.model,
        "batch": {"name": "fixed", "size": batch, "coupling": coupling, "base": size.small},
        "optimizer": {"name": "momentum", "decay": 1 - left},
        "lr": size.lr,
        "schedule": (
            {"name": "linear", "start": 0.1, "end": 1.0, "fraction": 0.1},
            {"name": "constant", "fraction": 0.6},
            {"name": "cosine", "start": 1.0, "end": 0.0},
        ),
    }


def noise(recipe: build.Recipe) -> float:
    """The noise scale lr N / (B (1 - m)) at the peak of a way's rate."""
    batch, scale = recipe.regime.at(0, ())
    lr, momentum = recipe.config["lr"] * scale, recipe.config["optimizer"]["decay"]
    return lr * recipe.source.sizes[0] / (batch * (1 - momentum))


def sharpness_of(recipe: build.Recipe, dataset: Dataset, params: Any) -> tuple[float, float]:
    """(sharpness of the loss on the first training examples, its error)."""
    x = epoch.standard(jnp.asarray(dataset.train.x[:EXAMPLES]), epoch.constants(dataset))
    y = jnp.asarray(dataset.train.y[:EXAMPLES])

    def loss(params: Any) -> jax.Array:
        logits = recipe.model.apply({"params": params}, x, train=False)
        return metrics.classification(logits, y, jnp.ones(len(y)))[0] / len(y)

    values, errors = sharpness.eigenvalues(loss, params, steps=STEPS)
    return float(values[0]), float(errors[0])


def train(way: str, config: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Trains a way to the end.

    Returns:
      lr, momentum, batch, noise, updates; of each seed train_accuracy, test_accuracy, test_loss,
      sharpness and its error; diverged: seeds.
    """
    recipe, finite = build.check(config, parts=1), np.ones(seeds)
    trained: Lanes | None = None
    for number, (lanes, seen) in enumerate(arms.epochs_of(config, seeds)):
        finite = np.minimum(finite, seen[..., RECORDED.index("finite")].min(0))
        if (number + 1) % 10 == 0:
            print(f"{way}: epoch {number + 1} of {config['epochs']}", flush=True)
        trained = lanes
    assert trained
    batch, scale = recipe.regime.at(0, ())
    dataset, each = recipe.read(), range(seeds)
    ends = {split: trained.evaluate(split, each) for split in ("train", "test")}
    sharp = [sharpness_of(recipe, dataset, trained.params(seed)) for seed in each]
    return {
        "lr": recipe.config["lr"] * scale,
        "momentum": recipe.config["optimizer"]["decay"],
        "batch": batch,
        "noise": noise(recipe),
        "updates": trained.step,
        "train_accuracy": [m["accuracy"] for m in ends["train"]],
        "test_accuracy": [m["accuracy"] for m in ends["test"]],
        "test_loss": [m["loss"] for m in ends["test"]],
        "sharpness": [value for value, _ in sharp],
        "sharpness_error": [error for _, error in sharp],
        "diverged": int((finite == 0).sum()),
    }


def verdicts(runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many seeds."""
    small, fixed = runs[SMALL], runs["fixed rate"]
    said: list[dict[str, Any]] = []

    def add(claim: str, found: Mapping[str, Any], seen: str, holds: str) -> None:
        said.append({"claim": claim, "seen": seen, "holds": holds, **found})

    def overfit(run: Mapping[str, Any]) -> np.ndarray:
        return np.subtract(run["train_accuracy"], run["test_accuracy"])

    worse = arms.gap(small["test_accuracy"], fixed["test_accuracy"])
    text = f"small - large {arms.percent(worse)}"
    add("at a fixed rate the large batch tests worse", worse, text, arms.is_above(worse))
    more = arms.gap(overfit(fixed), overfit(small))
    text = f"train - test, large - small {arms.percent(more)}"
    add("at a fixed rate the large batch overfits more", more, text, arms.is_above(more))
    for way in WAYS:
        factor = arms.gap(_logs(runs[way]), _logs(small))
        low, middle, high = (10 ** factor[k] for k in ("low", "gap", "high"))
        text = f"x{middle:.2f} [{low:.2f}, {high:.2f}] of the small batch's"
        add(f"{way}: the large batch ends sharper", factor, text, arms.is_above(factor))
    for way in [w for w in WAYS if w != "fixed rate"]:
        away = arms.gap(runs[way]["test_accuracy"], small["test_accuracy"])
        text = f"large - small {arms.percent(away)}"
        holds = arms.is_small(away, valley.NEAR)
        add(f"{way}: tests as well as the small batch", away, text, holds)
    return said


def _logs(run: Mapping[str, Any]) -> list[float]:
    """Decades of sharpness; where no curvature is above zero, a very low one."""
    return [math.log10(max(value, 1e-6)) for value in run["sharpness"]]


def draw(runs: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Accuracies and sharpness of each way: every seed, and the mean."""
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(10.4, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        kinds = (
            (left, "test_accuracy", "test", charts.COLORS[0]),
            (left, "train_accuracy", "train", charts.COLORS[1]),
            (right, "sharpness", "sharpness", charts.COLORS[2]),
        )
        for ax, key, label, color in kinds:
            for i, run in enumerate(runs.values()):
                ax.plot([i] * len(run[key]), run[key], "o", color=color, alpha=0.35)
            means = [float(np.mean(run[key])) for run in runs.values()]
            ax.plot(range(len(runs)), means, "_", color=color, markersize=22, label=label)
        limits = [2 / run["lr"] * (1 + run["momentum"]) for run in runs.values()]
        right.plot(limits, "x", color=plots.LIGHT.soft, label="2 (1 + m) / lr, at the peak rate")
        right.set_yscale("log")
        left.yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        for ax, title in (left, "Accuracy at the end"), (right, "Largest Hessian eigenvalue"):
            ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
            ax.set_xticks(range(len(runs)), [*runs])
            ax.set_xlim(-0.5, len(runs) - 0.5)
            ax.legend(loc="best", fontsize=8.5)
    return figure


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """What every way is and came to, for a terminal."""
    head = f"{'way':<13}{'batch':>6}{'rate':>8}{'m':>7}{'noise':>7}{'updates':>9}"
    lines = [head + f"{'train':>9}{'test':>9}{'sd':>7}{'sharpness':>11}"]
    for way, run in runs.items():
        test = run["test_accuracy"]
        lines.append(
            f"{way:<13}{run['batch']:>6}{run['lr']:>8.3g}{run['momentum']:>7.3f}"
            f"{run['noise']:>7.3g}{run['updates']:>9,}{np.mean(run['train_accuracy']):>9.2%}"
            f"{np.mean(test):>9.2%}{100 * np.std(test, ddof=1):>7.2f}"
            f"{np.mean(run['sharpness']):>11.3g}"
        )
    return "\n".join(lines)


def report(name: str, size: Size, runs: Mapping[str, Mapping[str, Any]], workdir: Path) -> None:
    """Figure, verdicts and record of ways that are trained."""
    found = verdicts(runs)
    plots.save(draw(runs), workdir / "plots" / "generalization_gap")
    record = {
        "study": f"generalization_gap, {name}",
        "settings": dataclasses.asdict(size),
        "margin": valley.NEAR,
        "n": size.seeds,
        "ways": {way: {k: v for k, v in run.items() if k != "asked"} for way, run in runs.items()},
        "verdicts": found,
    }
    folder = workdir if name == "smoke" else None
    path = arms.save(record, f"generalization_gap_{name}", folder)
    print(table(runs), arms.text_of(found), sep="\n")
    print(f"record {path}\nfigures {workdir / 'plots'}")


def kept(way: str, size: Size, folder: Path) -> dict[str, Any]:
    """`train`, or what an earlier run of the study kept of it."""
    recipe = config(size, way)
    path = folder / f"{way.replace(' ', '_')}.json"
    asked = {"config": recipe, "seeds": size.seeds, "examples": EXAMPLES, "steps": STEPS}
    return arms.remembered(path, asked, lambda: train(way, recipe, size.seeds))


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records."""
    report(name, size, {way: kept(way, size, workdir) for way in (SMALL, *WAYS)}, workdir)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
