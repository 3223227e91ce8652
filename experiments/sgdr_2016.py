"""Warm restarts: cosines that begin again, against step decay and one cosine, at equal budget.

Claim:  restarts reach what step decay reaches and are ahead of it early; a longer cycle ends better
        than the one before; one cosine over the whole budget beats step decay.
Source: Loshchilov & Hutter 2017, arXiv:1608.03983, 3 and 4.1: WRNs on CIFAR-10, step decay by 0.2
        at 60, 120 and 160 of 200 epochs.
Run:    LRLAB_DATA_DIR=... python -m experiments.sgdr_2016 --size=desk --workdir=runs/sgdr
        (--size=smoke: seconds; --size=paper: a net of theirs, for a GPU)
Makes:  <workdir>/plots; desk and paper also experiments/results/sgdr_2016_<size>_<device>.json,
        desk docs/sgdr_2016.png. The same command goes on with the arms that are not done.

All arms share rule, peak rate, first weights and orders of examples; the rate is the paper's and
was not tuned. A budget ends with a cycle of every arm. Seeds are lanes. "Best so far" is the best
test accuracy of any epoch until then, which flatters all arms, and those most that go up and down;
all else is read at ends that the plan sets.

The size "paper" has never been run. It differs from the paper by having no augmentation and 150
epochs, where cycles of 10, 20, 40, 80 and of 50 both end. Their 3.74 % of error with T_0 = 10,
T_mult = 2 is of WRN-28-20, the median of two runs; their table has 200 epochs.
"""

import dataclasses
import itertools
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import arms
from lrlab import build, plots

ROOT = Path(__file__).parent.parent
STEP, COSINE = "step decay", "one cosine"
DROPS = (0.3, 0.6, 0.8)  # of the budget, where step decay drops
FACTOR = 0.2
EARLY = (1 / 4, 1 / 2)  # of the budget, where "early" is looked at


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains; restarts: (T_0 in epochs, T_mult) of each arm."""

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    lr: float
    epochs: int
    restarts: tuple[tuple[int, int], ...]
    seeds: int


SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 0},
        model={"name": "mlp.MLP", "widths": (32,)},
        batch=32,
        lr=0.05,
        epochs=7,
        restarts=((1, 2), (1, 1)),
        seeds=3,
    ),
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 0},
        model={"name": "cnn.SmallCNN"},
        batch=128,
        lr=0.05,
        epochs=15,
        restarts=((1, 2), (5, 2), (1, 1), (5, 1)),
        seeds=6,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 0},
        model={"name": "resnet.WideResNet", "depth": 28, "width": 10},
        batch=128,
        lr=0.05,
        epochs=150,
        restarts=((10, 2), (50, 2), (50, 1)),
        seeds=3,
    ),
}


def named(t_0: int, t_mult: int) -> str:
    """The name of an arm that restarts."""
    return f"restarts {t_0}, x{t_mult}"


def ends(t_0: int, t_mult: int, epochs: int) -> list[int]:
    """The epochs after which each cycle ends.

    Raises:
      ValueError: the budget would end inside a cycle.
    """
    found, length = [t_0], t_0
    while found[-1] < epochs:
        length *= t_mult
        found.append(found[-1] + length)
    if found[-1] != epochs:
        raise ValueError(f"{epochs} epochs end inside a cycle: cycles end after {found}")
    return found


def schedules(size: Size) -> dict[str, dict[str, Any]]:
    """The phase of each arm."""
    found: dict[str, dict[str, Any]] = {
        STEP: {
            "name": "multi_step",
            "boundaries": tuple({"fraction": part} for part in DROPS),
            "factor": FACTOR,
        },
        COSINE: {"name": "cosine", "start": 1.0, "end": 0.0},
    }
    for t_0, t_mult in size.restarts:
        ends(t_0, t_mult, size.epochs)
        found[named(t_0, t_mult)] = {
            "name": "cosine_restarts",
            "t_0": {"epochs": t_0},
            "t_mult": t_mult,
        }
    return found


def config(size: Size, arm: str) -> dict[str, Any]:
    """The recipe of an arm."""
    return {
        "seed": 0,
        "epochs": size.epochs,
        "data": size.data,
        "model": size.model,
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": {"name": "nesterov", "decay": 0.9},
        "l2": 5e-4,
        "lr": size.lr,
        "schedule": (schedules(size)[arm],),
    }


def best_so_far(run: Mapping[str, Any]) -> np.ndarray:
    """Of each epoch the best test accuracy until then, float64 [seeds, epochs]."""
    return np.maximum.accumulate(np.array(run["accuracy"], np.float64), axis=1)


def rises(run: Mapping[str, Any], at: list[int]) -> list[dict[str, Any]]:
    """What each cycle's end is above the end of the one before; `at`: epochs done at the ends."""
    curves = np.array(run["accuracy"])
    return [arms.gap(curves[:, b - 1], curves[:, a - 1]) for a, b in itertools.pairwise(at)]


def verdicts(runs: Mapping[str, Mapping[str, Any]], size: Size) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many seeds."""
    finals = {name: np.array(run["accuracy"])[:, -1] for name, run in runs.items()}
    best = {name: best_so_far(run) for name, run in runs.items()}
    said: list[dict[str, Any]] = []

    def say(claim: str, seen: str, holds: str, **more: Any) -> None:
        said.append({"claim": claim, "seen": seen, "holds": holds, **more})

    restarts = {named(*cycle): ends(*cycle, size.epochs) for cycle in size.restarts}
    for name in restarts:
        found = arms.gap(finals[name], finals[STEP])
        say(
            f"{name}: reaches step decay's final accuracy, or is less than {arms.MARGIN:.1%} short",
            arms.percent(found),
            arms.reaches(found),
            gap=found,
        )
    for name in restarts:
        for part in EARLY:
            epoch = int(part * size.epochs)
            found = arms.gap(best[name][:, epoch - 1], best[STEP][:, epoch - 1])
            say(
                f"{name}: ahead of step decay at {part:g} of the budget, best so far",
                f"{arms.percent(found)} after epoch {epoch}",
                arms.is_above(found),
                gap=found,
            )
    found = arms.gap(finals[COSINE], finals[STEP])
    say(f"{COSINE}: beats {STEP} at the end", arms.percent(found), arms.is_above(found), gap=found)
    for name, at in restarts.items():
        gaps = rises(runs[name], at)
        each = [arms.is_above(gap) for gap in gaps]
        counts = ", ".join(f"{each.count(word)} {word}" for word in ("yes", "unclear", "no"))
        say(
            f"{name}: each cycle ends better than the one before",
            f"of {len(gaps)}: {counts}; "
            + "; ".join(
                f"to epoch {e}: {arms.percent(g)}" for e, g in zip(at[1:], gaps, strict=True)
            ),
            "no" if "no" in each else "yes" if set(each) == {"yes"} else "unclear",
            gaps=gaps,
        )
    return said


def report(name: str, size: Size, runs: Mapping[str, Mapping[str, Any]], workdir: Path) -> None:
    """Figures, verdicts and record of arms that are trained."""
    found, rows = verdicts(runs, size), arms.summary(runs)
    rates = {
        arm: np.asarray(build.check(config(size, arm), parts=1).rates(), np.float64) for arm in runs
    }
    folder = workdir / "plots"
    figure = arms.draw(runs, "Test accuracy after each epoch", rates)
    figure.set_size_inches(10.8, 4.4)  # bands upon bands make a large file
    plots.save(figure, folder / "sgdr_2016")
    anytime = {arm: {**run, "accuracy": best_so_far(run).tolist()} for arm, run in runs.items()}
    plots.save(arms.draw(anytime, "Best test accuracy so far"), folder / "sgdr_2016_anytime")
    record = {
        "study": f"sgdr_2016, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.seeds,
        "arms": rows,
        "verdicts": found,
    }
    path = arms.save(record, f"sgdr_2016_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        shutil.copyfile(folder / "sgdr_2016.png", ROOT / "docs" / "sgdr_2016.png")
    print(arms.table(rows), arms.text_of(found), sep="\n")
    print(f"record {path}\nfigures {folder}")


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records."""
    runs = {
        arm: arms.trained(arm, config(size, arm), size.seeds, workdir) for arm in schedules(size)
    }
    report(name, size, runs, workdir)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
