"""Don't decay the learning rate, increase the batch size: the same curves in fewer updates.

Claim:  arms of equal noise scale g = lr N / (B (1 - m)) have the same accuracy at equal epochs, and
        not at equal updates; a larger first rate and momentum cut updates further, at some cost.
Source: Smith, Kindermans, Ying & Le 2018, arXiv:1711.00489, section 5: WRN-16-4 on CIFAR-10.
Run:    LRLAB_DATA_DIR=... python -m experiments.smith_2017 --size=desk --workdir=runs/smith
        (--size=smoke: seconds; --size=paper: their net, for a GPU)
Makes:  <workdir>/plots; desk and paper also experiments/results/smith_2017_<size>_<device>.json,
        desk docs/smith_2017.png. The same command goes on with the arms that are not done.

One schedule falls by FACTOR at three boundaries in every arm. The batch grows there and the rate
with it, which undoes the fall, `growths` times and up to the cap; beyond, the rate falls. That is
what the regimes "fixed", "hybrid" and "increasing" do, but for the last growth, which goes up to
the cap itself, as in the paper. Seeds are lanes, and all arms share their first weights and their
orders of examples. The test set is looked at after each epoch, and nothing is chosen by it.

The size "paper" has never been run. It differs from the paper by having no augmentation, which
costs some points of accuracy in all arms alike; batches are taken in parts of 128, each with its
own normalisation, which is their "ghost" batch normalisation.
"""

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import arms
from lrlab import batching, build, charts, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
FACTOR = 5  # of the noise scale at each boundary
MOMENTUM = 0.9
PUBLISHED = {  # updates and final accuracy
    "decay": (80_000, 0.943),
    "hybrid": (None, None),
    "grow": (29_000, 0.944),
    "larger rate": (6_500, 0.945),
    "momentum": (2_500, 0.933),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """growths: boundaries at which the batch grows. rate: the first, in units of the size's."""

    growths: int
    rate: float = 1.0
    momentum: float = MOMENTUM


ARMS = {
    "decay": Arm(0),
    "hybrid": Arm(1),
    "grow": Arm(3),
    "larger rate": Arm(3, rate=5.0),
    "momentum": Arm(3, rate=5.0, momentum=0.98),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    batch, lr: the first ones of the plain arms. cap: no batch is larger. boundaries: epochs at
    which the noise falls. more: other fields of the config. most: examples taken at once.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    cap: int
    lr: float
    epochs: int
    boundaries: tuple[int, ...]
    seeds: int
    nesterov: bool = False
    l2: float = 0.0
    most: int | None = None


SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 0},
        model={"name": "mlp.MLP", "widths": (32,)},
        batch=4,
        cap=143,
        lr=0.004,
        epochs=10,
        boundaries=(3, 6, 8),
        seeds=3,
    ),
    # Without normalisation the net does not stand a rate above .05 with momentum .98. So it is the
    # small batch that makes noise enough for a decay to show.
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 0},
        model={"name": "cnn.SmallCNN"},
        batch=32,
        cap=6000,
        lr=0.01,
        epochs=30,
        boundaries=(9, 18, 24),
        seeds=6,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 0},
        model={"name": "resnet.WideResNet", "depth": 16, "width": 4},
        batch=128,
        cap=5120,
        lr=0.1,
        epochs=200,
        boundaries=(60, 120, 160),
        seeds=3,
        nesterov=True,
        l2=5e-4,
        most=128,
    ),
}


def config(size: Size, arm: Arm) -> dict[str, Any]:
    """The recipe of an arm."""
    first = round(size.batch * arm.rate * (1 - MOMENTUM) / (1 - arm.momentum))
    grown = [min(first * FACTOR**k, size.cap) for k in range(arm.growths + 1)]
    sizes = tuple(dict.fromkeys(grown))  # at the cap, the rate falls instead
    return {
        "seed": 0,
        "epochs": size.epochs,
        "data": size.data,
        "model": size.model,
        "batch": {
            "name": "stages",
            "sizes": sizes,
            "at": (0, *size.boundaries)[: len(sizes)],
            "coupling": "linear",
            "most": size.most,
        },
        "optimizer": {"name": "momentum", "decay": arm.momentum, "nesterov": size.nesterov},
        "l2": size.l2,
        "lr": size.lr * arm.rate,
        "schedule": (
            {
                "name": "multi_step",
                "boundaries": tuple({"epochs": epoch} for epoch in size.boundaries),
                "factor": 1 / FACTOR,
            },
        ),
    }


def plan(size: Size, arm: Arm) -> dict[str, Any]:
    """Of an arm the updates, and at each epoch's begin examples, batch, rate and noise scale."""
    recipe = build.check(config(size, arm), parts=1)
    run = batching.noise_scale(
        recipe.shape,
        recipe.regime,
        recipe.source.sizes[0],
        arm.momentum,
        epochs=size.epochs,
        lr=recipe.config["lr"],
    )
    first = [epoch.first for epoch in recipe.epochs()]
    return {
        "updates": run.updates,
        "sizes": run.size[first].tolist(),
        "lr": run.lr[first].tolist(),
        "examples": run.examples[first].tolist(),
        "noise": run.g[first].tolist(),
    }


def stretches(
    ours: np.ndarray, theirs: np.ndarray, boundaries: Sequence[int]
) -> list[dict[str, Any]]:
    """Gaps of two curves [seeds, epochs] from each boundary to the next, of their means there.

    largest: the largest gap of a single epoch there, as `gap` says it.
    """
    found = []
    for begin, end in zip(boundaries, [*boundaries[1:], ours.shape[1]], strict=True):
        a, b = ours[:, begin:end], theirs[:, begin:end]
        each = [arms.gap(x, y) for x, y in zip(a.T, b.T, strict=True)]
        found.append(
            {
                "epochs": [begin, end],
                **arms.gap(a.mean(1), b.mean(1)),
                "largest": max(each, key=lambda g: abs(g["gap"])),
            }
        )
    return found


def verdicts(
    runs: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
    boundaries: Sequence[int],
) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many seeds."""
    noise = np.array([plan["noise"] for plan in plans.values()])
    off = float(np.abs(noise / noise[0] - 1).max())
    said: list[dict[str, Any]] = [
        {
            "claim": "all arms have the same noise scale at every epoch",
            "seen": f"they differ by {off:.1g} of it",
            "holds": "yes" if off < 1e-3 else "no",
        }
    ]
    base = runs["decay"]
    for name, run in runs.items():
        if name == "decay":
            continue
        found = stretches(np.array(run["accuracy"]), np.array(base["accuracy"]), boundaries)
        each = {arms.is_small(stretch) for stretch in found}
        largest = max((s["largest"] for s in found), key=lambda g: abs(g["gap"]))
        seen = "; ".join(f"from epoch {s['epochs'][0]}: {arms.percent(s)}" for s in found)
        said.append(
            {
                "claim": f"{name}: the curve is that of decay at equal epochs",
                "seen": f"{seen}; largest of an epoch {arms.percent(largest)}",
                "holds": "no" if "no" in each else "yes" if each == {"yes"} else "unclear",
                "stretches": found,
            }
        )
    for name, run in runs.items():
        if name == "decay":
            continue
        end = run["updates"][-1]
        ahead = arms.gap(arms.at_update(run, end), arms.at_update(base, end))
        said.append(
            {
                "claim": f"{name}: ahead of decay at equal updates",
                "seen": f"{arms.percent(ahead)} when it ends, after {end:,} of decay's "
                f"{base['updates'][-1]:,}",
                "holds": arms.is_above(ahead),
                "ahead": ahead,
            }
        )
    return said


def _panel(ax: "Axes", title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def draw(
    runs: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
    boundaries: Sequence[int],
) -> "Figure":
    """Accuracy against epochs and against updates, and the noise scale against examples.

    Bands: the least and the most of the seeds.
    """
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(12.6, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        looks = zip(charts.COLORS, charts.MARKERS, strict=True)
        for i, ((name, run), (color, marker)) in enumerate(zip(runs.items(), looks, strict=False)):
            curves = np.array(run["accuracy"])
            look: dict[str, Any] = {"color": color, "marker": marker, "markevery": (i, len(runs))}
            epochs = np.arange(1, curves.shape[1] + 1)
            for ax, x in (left, epochs), (middle, run["updates"]):
                ax.plot(x, curves.mean(0), label=name, **look)
                ax.fill_between(x, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0)
            width = 1 + 1.6 * (len(runs) - i)  # they may lie on one another
            seen, noise = plans[name]["examples"], plans[name]["noise"]
            right.step(seen, noise, where="post", color=color, linewidth=width)
        for boundary in boundaries:
            left.axvline(boundary, color=plots.LIGHT.soft, linewidth=0.8, linestyle=(0, (4, 3)))
        finals = np.array([run["accuracy"] for run in runs.values()])
        low = np.quantile(finals[:, :, len(finals[0, 0]) // 5 :], 0.02)
        for ax in left, middle:
            ax.set_ylim(low - 0.01, finals.max() + 0.005)
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        middle.set_xscale("log")
        right.set_yscale("log")
        right.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:,.0f} k")
        right.locator_params(axis="x", nbins=5)
        _panel(left, "At equal epochs", "epochs", "test accuracy")
        _panel(middle, "At equal updates", "updates", "test accuracy")
        _panel(right, "Noise scale, as planned", "examples seen", "lr N / (B (1 - m))")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def table(
    runs: Mapping[str, Mapping[str, Any]], plans: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row an arm: its plan, what it reached, and what was published."""
    most = plans["decay"]["updates"]
    rows = []
    for name, plan in plans.items():
        published, accuracy = PUBLISHED[name]
        row: dict[str, Any] = {
            "arm": name,
            "batches": list(dict.fromkeys(plan["sizes"])),
            "lr": [plan["lr"][0], plan["lr"][-1]],
            "updates": plan["updates"],
            "share": plan["updates"] / most,
            "published_updates": published,
            "published_share": published and published / 80_000,
            "published_accuracy": accuracy,
        }
        if name in runs:
            run, finals = runs[name], np.array(runs[name]["accuracy"])[:, -1]
            row |= {
                "accuracy": float(finals.mean()),
                "sd": float(finals.std(ddof=1)),
                "finals": finals.tolist(),
                "curve": np.mean(run["accuracy"], 0).round(5).tolist(),
                "loss": np.mean(run["loss"], 0).round(5).tolist(),
                "diverged": run["diverged"],
                "seconds": round(run["seconds"], 1),
            }
        rows.append(row)
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal."""
    lines = [f"{'arm':<13}{'batches':<22}{'updates':>8} {'share':>6}  {'published':<20}accuracy"]
    for row in rows:
        batches = " ".join(map(str, row["batches"]))
        published = ""
        if row["published_updates"]:
            published = f"{row['published_updates']:,} {row['published_share']:.1%}"
            published += f" {row['published_accuracy']:.1%}"
        reached = f"{row['accuracy']:.2%} ± {100 * row['sd']:.2f}" if "accuracy" in row else ""
        lines.append(
            f"{row['arm']:<13}{batches:<22}{row['updates']:>8,} {row['share']:>6.1%}  "
            f"{published:<20}{reached}"
        )
    return "\n".join(lines)


def report(
    name: str,
    size: Size,
    runs: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
    workdir: Path,
) -> None:
    """Figure, verdicts and record of arms that are trained."""
    found, rows = verdicts(runs, plans, size.boundaries), table(runs, plans)
    plots.save(draw(runs, plans, size.boundaries), workdir / "plots" / "smith_2017")
    record = {
        "study": f"smith_2017, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.seeds,
        "arms": rows,
        "verdicts": found,
    }
    path = arms.save(record, f"smith_2017_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        shutil.copyfile(workdir / "plots" / "smith_2017.png", ROOT / "docs" / "smith_2017.png")
    print(show(rows), arms.text_of(found), sep="\n")
    print(f"record {path}\nfigures {workdir / 'plots'}")


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records."""
    plans = {arm: plan(size, told) for arm, told in ARMS.items()}
    print(show(table({}, plans)))
    runs = {
        arm: arms.trained(arm, config(size, told), size.seeds, workdir)
        for arm, told in ARMS.items()
    }
    report(name, size, runs, plans, workdir)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
