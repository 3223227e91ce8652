"""Cyclical learning rates: the accuracy of a fixed rate, in 25/70 of the updates?

Claim:  cycles between two rates reach what a fixed rate reaches, in 25/70 of its updates; a rate
        that only falls does not; adaptive rules gain too, some of them.
Source: Smith 2015, arXiv:1506.01186, section 4.1: a small CNN of Caffe's on CIFAR-10.
Run:    LRLAB_DATA_DIR=... python -m experiments.clr_2015 --size=desk --workdir=runs/clr
        (--size=smoke: seconds; --size=paper: CIFAR-10, for a GPU; --size=rates: see below)
Makes:  <workdir>/plots; desk and paper also experiments/results/clr_2015_<size>_<device>.json,
        desk docs/clr_2015.png. The same command goes on with the arms that are not done.

All arms share model, data, batch size, first weights and orders of examples; seeds are lanes. The
test set is looked at after each epoch, and nothing is chosen by it.

Rates: a rule's fixed rate is the best of a grid of six, a factor of about 3 apart, by accuracy on
5,000 examples held out of training, after the fixed arm's whole budget, one seed (mean of the last
three epochs). --size=rates makes that sweep, and its record; `SIZES` has what it found. The cycles
get nothing more to choose: they go from half the fixed rate to twice it, so base = max / 4 and the
fixed rate is their geometric mean. That is harder on them than the paper, which took max from a
range test and kept a fixed rate that others had chosen.

Cycles are scaled with the budget, and the short arms end where a cycle does. Two things differ from
the paper: its stepsize of 2,000 would end in mid-cycle after 25,000 updates, here a cycle is a
sixth of them (a tenth of exp_range's, which runs for 42/70); and "steps" is an arm of ours, the
mean rates of the three hand-picked pieces, held: what is left of the pieces without their cycles.

The size "paper" has never been run. Its net lacks one convolution of Caffe's, its pixels are
standardised, which Caffe's were not, and its rates are published for momentum alone.
"""

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import arms
from lrlab import build, charts, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
GAMMA = 0.99994**42_000  # of exp_range: what is left of the height at its end
DECAY = 4_000 / 25_000  # share of its updates in which "decay alone" falls
PIECES = (2_000, 4), (1_000, 3), (500, 3)  # (stepsize, cycles) of 25,000; each a tenth as high
PIECE_LOW = 0.2  # of a piece's highest rate
CYCLES = 6  # of the short arms; exp_range has more, as it is longer
RANGED_CYCLES = 10
FIXED, DECAYS, STEPS = "fixed", "decay alone", "steps"
RULES = "nesterov", "adam", "rmsprop", "adagrad", "adadelta"
CYCLIC = "pieces", "triangular", "triangular2", "exp_range"
ARMS = {  # name -> (rule, schedule)
    **{name: ("momentum", name) for name in (FIXED, DECAYS, STEPS, *CYCLIC)},
    **{f"{rule}, {name}": (rule, name) for rule in RULES for name in (FIXED, "triangular")},
}
PUBLISHED = {  # updates and accuracy
    FIXED: (70_000, 0.814),
    DECAYS: (25_000, 0.785),
    "pieces": (25_000, 0.814),
    "exp_range": (42_000, 0.822),
    "nesterov, fixed": (70_000, 0.821),
    "nesterov, triangular": (25_000, 0.813),
    "adam, fixed": (70_000, 0.814),
    "adam, triangular": (25_000, 0.798),
    "rmsprop, fixed": (70_000, 0.752),
    "rmsprop, triangular": (25_000, 0.728),
    "adagrad, fixed": (70_000, 0.746),
    "adagrad, triangular": (25_000, 0.760),
    "adadelta, fixed": (70_000, 0.673),
    "adadelta, triangular": (25_000, 0.673),
}
_DECADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
GRID = {  # of --size=rates
    "momentum": _DECADES,
    "nesterov": _DECADES,
    "adam": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
    "rmsprop": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
    "adagrad": _DECADES,
    "adadelta": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}
HELD_OUT = 5000  # examples
LAST = 3  # epochs whose validation accuracy is averaged


@dataclasses.dataclass(frozen=True)
class Rates:
    """A rule's fixed rate, and the bounds of its cycles."""

    fixed: float
    low: float
    high: float


def around(fixed: float) -> Rates:
    """Bounds with the fixed rate as their geometric mean, one four times the other."""
    return Rates(fixed, fixed / 2, 2 * fixed)


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    per_epoch: updates. epochs: of the fixed arms. short: epochs of the others, but for `ranged`,
    those of exp_range.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    per_epoch: int
    epochs: int
    short: int
    ranged: int
    rates: Mapping[str, Rates]
    seeds: int
    l2: float = 0.0

    def length(self, arm: str) -> int:
        """Epochs of an arm."""
        lengths = {FIXED: self.epochs, "exp_range": self.ranged}
        return lengths.get(ARMS[arm][1], self.short)


SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 0},
        model={"name": "mlp.MLP", "widths": (32,)},
        batch=16,
        per_epoch=89,
        epochs=14,
        short=5,
        ranged=8,
        rates={  # by eye
            "momentum": around(0.03),
            "nesterov": around(0.03),
            "adam": around(0.003),
            "rmsprop": around(0.003),
            "adagrad": around(0.1),
            "adadelta": around(3.0),
        },
        seeds=3,
    ),
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 0},
        model={"name": "cnn.SmallCNN"},
        batch=100,
        per_epoch=600,
        epochs=14,
        short=5,
        ranged=8,
        rates={  # of the record of --size=rates
            "momentum": around(0.01),
            "nesterov": around(0.01),
            "adam": around(0.003),
            "rmsprop": around(0.003),
            "adagrad": around(0.1),
            "adadelta": around(1.0),
        },
        seeds=4,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 0},
        model={"name": "cnn.MnistCNN", "dense": 64, "dropout": 0.0},
        batch=100,
        per_epoch=500,
        epochs=140,
        short=50,
        ranged=84,
        rates={
            "momentum": Rates(0.001, 0.001, 0.005),
            "nesterov": Rates(0.001, 0.001, 0.005),
            "adam": around(0.001),
            "rmsprop": around(0.0003),
            "adagrad": around(0.01),
            "adadelta": around(1.0),
        },
        seeds=3,
        l2=0.004,
    ),
}


def phases(size: Size, arm: str) -> tuple[float, tuple[dict[str, Any], ...]]:
    """An arm's highest rate, and its schedule relative to that."""
    rule, kind = ARMS[arm]
    rates, updates = size.rates[rule], size.length(arm) * size.per_epoch
    low = rates.low / rates.high
    ups = [round(updates * stepsize / 25_000) for stepsize, _ in PIECES]
    lengths = [2 * up * cycles for up, (_, cycles) in zip(ups, PIECES, strict=True)]
    if kind == FIXED:
        return rates.fixed, ({"name": "constant"},)
    if kind == DECAYS:
        fall = {"name": "linear", "start": 1.0, "end": low, "updates": round(updates * DECAY)}
        return rates.high, (fall, {"name": "constant", "value": low})
    if kind == STEPS:
        at = lengths[0], lengths[0] + lengths[1]
        spec = {"name": "multi_step", "boundaries": at, "factor": 0.1}
        return rates.high * (1 + PIECE_LOW) / 2, (spec,)
    if kind == "pieces":
        specs = []
        for i, (up, length) in enumerate(zip(ups, lengths, strict=True)):
            top = 0.1**i
            spec = {"name": "triangular", "low": PIECE_LOW * top, "high": top, "up": up}
            specs.append(spec | ({"updates": length} if i < len(ups) - 1 else {}))
        return rates.high, tuple(specs)
    cycles = RANGED_CYCLES if kind == "exp_range" else CYCLES
    spec = {"name": kind, "low": low, "up": round(updates / (2 * cycles))}
    return rates.high, (spec | ({"gamma": GAMMA ** (1 / updates)} if kind == "exp_range" else {}),)


def config(size: Size, arm: str) -> dict[str, Any]:
    """The recipe of an arm."""
    lr, schedule = phases(size, arm)
    return {
        "seed": 0,
        "epochs": size.length(arm),
        "data": size.data,
        "model": size.model,
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": {"name": ARMS[arm][0]},
        "l2": size.l2,
        "lr": lr,
        "schedule": schedule,
    }


def plan(size: Size, arm: str) -> np.ndarray:
    """The rate of every update of an arm, float32 [updates]."""
    return np.asarray(build.check(config(size, arm), parts=1).rates())


def sweep_all(size: Size, workdir: Path) -> str:
    """Sweeps every rule and records what was found; the text to print."""
    found = {}
    for rule, lrs in GRID.items():
        data, optimizer = {**size.data, "validation": HELD_OUT}, {"name": rule}
        asked = {**config(size, FIXED), "data": data, "optimizer": optimizer, "lr": 1.0}
        path = workdir / f"rates_{rule}.json"
        run = arms.remembered(
            path,
            {"config": asked, "lrs": lrs},
            lambda asked=asked, lrs=lrs: arms.sweep(asked, lrs, last=LAST),
        )
        best = run["best"]
        found[rule] = {"lrs": run["lrs"], "accuracy": run["accuracy"], "best": best}
        pairs = zip(run["lrs"], run["accuracy"], strict=True)
        seen = "  ".join(f"{lr:g}: {accuracy:.2%}" for lr, accuracy in pairs)
        print(f"{rule:<10} best {best:<7g}{seen}", flush=True)
    record = {
        "study": "clr_2015, rates",
        "epochs": size.epochs,
        "held_out": HELD_OUT,
        "n": 1,
        "rules": found,
    }
    return f"record {arms.save(record, 'clr_2015_rates', None)}"


def _reaches(name: str, run: arms.Run, base: arms.Run, what: str) -> dict[str, Any]:
    """The claim that a run's last accuracy is that of a longer one."""
    end, last = run["updates"][-1], base["updates"][-1]
    found = arms.gap(arms.at_update(run, end), arms.at_update(base, last))
    return {
        "claim": f"{name}: reaches {what}'s accuracy in {end / last:.0%} of its updates",
        "seen": f"{arms.percent(found)}, {end:,} against {last:,} updates",
        "holds": arms.reaches(found),
        "found": found,
    }


def _ahead(name: str, run: arms.Run, base: arms.Run, what: str) -> dict[str, Any]:
    """The claim that a run is better at equal updates, where the shorter one ends."""
    end = min(run["updates"][-1], base["updates"][-1])
    found = arms.gap(arms.at_update(run, end), arms.at_update(base, end))
    return {
        "claim": f"{name}: ahead of {what} at equal updates",
        "seen": f"{arms.percent(found)} after {end:,} updates",
        "holds": arms.is_above(found),
        "found": found,
    }


def verdicts(runs: Mapping[str, arms.Run]) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many seeds."""
    fixed = runs[FIXED]
    said = []
    for name in (*CYCLIC, STEPS):
        said.append(_reaches(name, runs[name], fixed, "the fixed rate"))
        said.append(_ahead(name, runs[name], fixed, "the fixed rate"))
        said.append(_ahead(name, runs[name], runs[DECAYS], "decay alone"))
    said.append(_ahead("pieces", runs["pieces"], runs[STEPS], "their mean rates, held,"))
    for rule in RULES:
        ours, theirs = runs[f"{rule}, triangular"], runs[f"{rule}, {FIXED}"]
        said.append(_reaches(f"{rule}, triangular", ours, theirs, "the fixed rate"))
        said.append(_ahead(f"{rule}, triangular", ours, theirs, "the fixed rate"))
    return said


def draw_rules(runs: Mapping[str, arms.Run]) -> "Figure":
    """Of each rule, the fixed rate and its cycles; bands: the least and the most of the seeds."""
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(12.6, 3.4), layout="constrained")
        panels = figure.subplots(1, len(RULES), sharey=True)
        low = 1.0
        for ax, rule in zip(panels, RULES, strict=True):
            looks = zip((FIXED, "triangular"), charts.COLORS, charts.MARKERS, strict=False)
            for kind, color, marker in looks:
                run = runs[f"{rule}, {kind}"]
                curves = np.array(run["accuracy"])
                low = min(low, float(np.sort(curves.min(0))[1]))  # but for the first epoch
                ax.plot(run["updates"], curves.mean(0), color=color, marker=marker, label=kind)
                band = curves.min(0), curves.max(0)
                ax.fill_between(run["updates"], *band, color=color, alpha=0.15, lw=0)
            ax.set_title(rule, loc="left", fontsize=10, fontweight="bold")
            ax.set_xlabel("optimizer updates")
            ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        top = max(np.max(runs[f"{rule}, {kind}"]["accuracy"]) for rule in RULES
                  for kind in (FIXED, "triangular"))  # fmt: skip
        panels[0].set_ylim(max(low, top - 0.2) - 0.005, top + 0.005)
        panels[0].yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        panels[0].set_ylabel("test accuracy")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def rows_of(runs: Mapping[str, arms.Run]) -> list[dict[str, Any]]:
    """A row an arm, with what was published of it."""
    rows = arms.summary(runs)
    for row in rows:
        updates, accuracy = PUBLISHED.get(row["arm"], (None, None))
        row |= {"published_updates": updates, "published_accuracy": accuracy}
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal."""
    published = {name: f"{a:.1%} after {n:,}" for name, (n, a) in PUBLISHED.items()}
    return arms.table(rows, published)


def study(name: str, size: Size, workdir: Path) -> str:
    """Trains, draws, records; the text to print."""
    if name == "rates":
        return sweep_all(size, workdir)
    plans = {arm: plan(size, arm) for arm, (rule, _) in ARMS.items() if rule == "momentum"}
    runs = {arm: arms.trained(arm, config(size, arm), size.seeds, workdir) for arm in ARMS}
    figure = arms.draw({arm: runs[arm] for arm in plans}, "Test accuracy, SGD with momentum", plans)
    figure.axes[1].set_yscale("log")
    plots.save(figure, workdir / "plots" / "clr_2015")
    plots.save(draw_rules(runs), workdir / "plots" / "clr_2015_rules")
    found, rows = verdicts(runs), rows_of(runs)
    record = {
        "study": f"clr_2015, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.seeds,
        "arms": rows,
        "verdicts": found,
    }
    path = arms.save(record, f"clr_2015_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        shutil.copyfile(workdir / "plots" / "clr_2015.png", ROOT / "docs" / "clr_2015.png")
    tail = f"record {path}\nfigures {workdir / 'plots'}"
    return "\n".join([show(rows), arms.text_of(found), tail])


if __name__ == "__main__":
    sizes = {**SIZES, "rates": SIZES["desk"]}
    sys.exit(arms.command_line(__doc__, sizes, study))
