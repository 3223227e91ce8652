"""Super-convergence: one cycle to a very large rate, in a tenth of the updates.

Claim:  a net with batch normalisation that goes through one triangle up to a very large rate
        reaches in a tenth of the updates what piecewise-constant decay reaches in all of them, and
        is ahead of the same decay in a tenth.
Source: Smith & Topin 2017, arXiv:1708.07120: ResNet-56 on CIFAR-10, 92.4 % after 10,000 updates of
        one cycle from 0.1 to 3 and back, 91.2 % after 80,000 of decay from 0.35.
Run:    LRLAB_DATA_DIR=... python -m experiments.super_convergence --size=desk --workdir=runs/super
        (--size=smoke: seconds; --size=paper: their net, for a GPU; --size=rates: see below)
Makes:  <workdir>/plots; desk and paper also a record super_convergence_<size>_<device>.json in
        experiments/results, desk docs/super_convergence.png. The same command goes on with the
        arms that are not done.

Arms: "steps" falls to a tenth after 5/8 and 7/8 of the updates, as in the paper, over the full
budget and over the short one. "one cycle to h" is the paper's triangle from h / 30 to h and back.
Two more take the cycle of the verdict a step further: "tail" spends a tenth of the updates below
the cycle, on a line to a hundredth of its lowest rate, as the paper's third version (1cycle);
"momentum" falls from 0.95 to 0.85 while the rate rises, and back (Smith 2018, arXiv:1803.09820).
Seeds are lanes, and all arms share first weights. The test set is looked at after each epoch.

Rates: --size=rates tries six, a factor of about 3 apart, for each schedule at its own budget, and
`SIZES` has those with the best accuracy on 5,000 examples held out of training. So steps and cycle
are tuned alike, and the verdict is about one cycle, chosen without the test set; the others are
shown.

At the desk the net is `NormedCNN`, a normalised sibling of `cnn.SmallCNN`: the smallest
`resnet.ResNet` takes ten times as long an update on two cores, and ten times fewer updates would be
no budget to shorten. The size "paper" has never been run; it has no augmentation, and a cycle takes
an eighth of the updates, as published.
"""

import dataclasses
import functools
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from experiments import arms
from lrlab import build, plots
from lrlab.models import layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
FALLS = 5 / 8, 7 / 8  # of the updates; the rate falls to a tenth at each
RISE = 30  # highest rate / lowest of a cycle
TAIL = 0.1  # share of the updates that comes after the cycle in the arm with a tail
FALL = 100  # from a cycle's lowest rate to a tail's end
MOMENTUM = 0.9
CYCLED = 0.85, 0.95
FULL, SHORT = "steps", "steps, short"
PUBLISHED = {FULL: (80_000, 0.912), "one cycle to 3": (10_000, 0.924)}
GRID = {
    FULL: (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    SHORT: (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "cycle": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
}
HELD_OUT = 5000  # examples


class NormedCNN(nn.Module):
    """`cnn.SmallCNN` with batch normalisation after each pooling and before the last ReLU.

    3,484 weights on 28x28x1 with 10 classes.

    widths: channels of the unpadded 5x5 convolutions, each followed by ReLU and 2x2 pooling.
    dense: width of the dense layer.
    """

    num_classes: int
    widths: tuple[int, ...] = (4, 8)
    dense: int = 18

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """Contract: `lrlab.models`."""
        del rows  # no dropout
        layers.check_images(x)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = layers.batch_minor(x)
        for width in self.widths:
            x = norm(axis=0)(layers.ConvPool(width, padding="VALID")(x))
        x = x.transpose(3, 1, 2, 0).reshape(x.shape[-1], -1)
        x = nn.relu(norm()(nn.Dense(self.dense)(x)))
        return nn.Dense(self.num_classes)(x)


@dataclasses.dataclass(frozen=True)
class Arm:
    """high: the highest rate. epochs: of the whole run. cycles: or falls in steps."""

    high: float
    epochs: int
    cycles: bool = True
    tail: float = 0.0
    cycled: bool = False


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    per_epoch: updates. epochs: of the full budget. short: of the others. steps, steps_short: first
    rates of decay at each budget. highs: of cycles. high: that of the verdict.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    per_epoch: int
    epochs: int
    short: int
    steps: float
    steps_short: float
    highs: tuple[float, ...]
    high: float
    seeds: int
    l2: float = 0.0

    @property
    def cycle(self) -> str:
        """The arm of the verdict."""
        return f"one cycle to {self.high:g}"

    @property
    def arms(self) -> dict[str, Arm]:
        """By name."""
        return {
            FULL: Arm(self.steps, self.epochs, cycles=False),
            SHORT: Arm(self.steps_short, self.short, cycles=False),
            **{f"one cycle to {high:g}": Arm(high, self.short) for high in self.highs},
            f"{self.cycle}, tail": Arm(self.high, self.short, tail=TAIL),
            f"{self.cycle}, momentum": Arm(self.high, self.short, cycled=True),
        }


_MODULE = "experiments.super_convergence"
SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 0},
        model={"name": f"{_MODULE}:NormedCNN", "widths": (4,)},
        batch=32,
        per_epoch=44,
        epochs=20,
        short=2,
        steps=0.1,
        steps_short=0.1,
        highs=(0.3, 1.0),
        high=0.3,
        seeds=3,
    ),
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 0},
        model={"name": f"{_MODULE}:NormedCNN"},
        batch=100,
        per_epoch=600,
        epochs=40,
        short=4,
        steps=0.03,  # this, the next and `high`: of the record of --size=rates
        steps_short=0.03,
        highs=(0.1, 0.3, 1.0, 3.0, 10.0),
        high=0.3,
        seeds=4,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 0},
        model={"name": "resnet.ResNet", "stage_sizes": (9, 9, 9), "width": 16},
        batch=1000,
        per_epoch=50,
        epochs=1600,
        short=200,
        steps=0.35,
        steps_short=0.35,
        highs=(1.0, 2.0, 3.0, 4.0),
        high=3.0,
        seeds=3,
        l2=1e-4,
    ),
}


def phases(arm: Arm, updates: int) -> tuple[dict[str, Any], ...]:
    """An arm's schedule, relative to its highest rate."""
    if not arm.cycles:
        at = tuple(round(updates * fall) for fall in FALLS)
        return ({"name": "multi_step", "boundaries": at, "factor": 0.1},)
    way, low = round(updates * (1 - arm.tail) / 2), 1 / RISE
    up = {"name": "linear", "start": low, "end": 1.0, "updates": way}
    down = {"name": "linear", "start": 1.0, "end": low}
    if not arm.tail:
        return up, down
    return up, {**down, "updates": way}, {"name": "linear", "start": low, "end": low / FALL}


def config(size: Size, arm: Arm) -> dict[str, Any]:
    """The recipe of an arm."""
    updates = arm.epochs * size.per_epoch
    decay: Any = MOMENTUM
    if arm.cycled:
        low, high = CYCLED
        spec = {"name": "triangular_momentum", "up": updates // 2, "low": low, "high": high}
        decay = {"schedule": (spec,)}
    return {
        "seed": 0,
        "epochs": arm.epochs,
        "data": size.data,
        "model": size.model,
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": {"name": "momentum", "decay": decay},
        "l2": size.l2,
        "lr": arm.high,
        "schedule": phases(arm, updates),
    }


def plan(size: Size, arm: Arm) -> np.ndarray:
    """The rate of every update of an arm, float32 [updates]."""
    return np.asarray(build.check(config(size, arm), parts=1).rates())


def sweep_all(size: Size, workdir: Path) -> str:
    """Sweeps every schedule and records what was found; the text to print."""
    found = {}
    for kind, lrs in GRID.items():
        epochs = size.epochs if kind == FULL else size.short
        held = dataclasses.replace(
            size,
            data={**size.data, "validation": HELD_OUT},
            per_epoch=size.per_epoch - HELD_OUT // size.batch,
        )
        asked = config(held, Arm(1.0, epochs, cycles=kind == "cycle"))
        seeds = 1 if kind == FULL else 2
        run = arms.remembered(
            workdir / f"rates_{kind.replace(', ', '_')}.json",
            {"config": asked, "lrs": lrs, "seeds": seeds},
            lambda asked=asked, lrs=lrs, seeds=seeds: arms.sweep(asked, lrs, seeds),
        )
        best = run["best"]
        found[kind] = {"n": seeds, **{k: run[k] for k in ("lrs", "accuracy", "best")}}
        pairs = zip(run["lrs"], run["accuracy"], strict=True)
        seen = "  ".join(f"{lr:g}: {accuracy:.2%}" for lr, accuracy in pairs)
        print(f"{kind:<13} best {best:<6g}{seen}", flush=True)
    record = {"study": "super_convergence, rates", "held_out": HELD_OUT, "schedules": found}
    return f"record {arms.save(record, 'super_convergence_rates', None)}"


def verdicts(runs: Mapping[str, arms.Run], cycle: str) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many seeds.

    Args:
      cycle: the arm whose cycle it is about; with a tail and with momentum, too.
    """
    said = []

    def judge(claim: str, ours: str, theirs: str, rule: Any) -> None:
        ends = {name: runs[name]["updates"][-1] for name in (ours, theirs)}
        found = arms.gap(*(arms.at_update(runs[name], end) for name, end in ends.items()))
        seen = f"{arms.percent(found)}, {ends[ours]:,} against {ends[theirs]:,} updates"
        said.append({"claim": claim, "seen": seen, "holds": rule(found), "found": found})

    for name in cycle, f"{cycle}, tail", f"{cycle}, momentum":
        share = runs[name]["updates"][-1] / runs[FULL]["updates"][-1]
        what = f"reaches the full budget's piecewise decay in {share:.3g} of its updates"
        judge(f"{name}: {what}", name, FULL, arms.reaches)
        judge(f"{name}: ahead of piecewise decay at equal updates", name, SHORT, arms.is_above)
    for more in "tail", "momentum":
        judge(f"the {more}: ahead of the cycle alone", f"{cycle}, {more}", cycle, arms.is_above)
    return said


def draw(runs: Mapping[str, arms.Run], plans: Mapping[str, np.ndarray], size: Size) -> "Figure":
    """Accuracy against updates, and the rates of the short budget."""
    figure = arms.draw(runs, rates=plans)
    left, right = figure.axes
    left.set_xscale("log")
    ends = [size.per_epoch, *(k * size.short * size.per_epoch for k in (0.5, 1)),
            size.epochs * size.per_epoch]  # fmt: skip
    left.set_xticks(ends, [f"{round(end):,}" for end in ends])
    left.minorticks_off()
    right.set_yscale("log")
    right.set_xlim(0, 1.04 * size.short * size.per_epoch)
    right.set_title("Learning rate, in the short budget", loc="left", fontsize=10,
                    fontweight="bold")  # fmt: skip
    return figure


def study(name: str, size: Size, workdir: Path) -> str:
    """Trains, draws, records; the text to print."""
    if name == "rates":
        return sweep_all(size, workdir)
    plans = {told: plan(size, arm) for told, arm in size.arms.items()}
    runs = {
        told: arms.trained(told, config(size, arm), size.seeds, workdir)
        for told, arm in size.arms.items()
    }
    plots.save(draw(runs, plans, size), workdir / "plots" / "super_convergence")
    found, rows = verdicts(runs, size.cycle), arms.summary(runs)
    record = {
        "study": f"super_convergence, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.seeds,
        "published": {arm: {"updates": n, "accuracy": a} for arm, (n, a) in PUBLISHED.items()},
        "arms": rows,
        "verdicts": found,
    }
    path = arms.save(record, f"super_convergence_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        made = workdir / "plots" / "super_convergence.png"
        shutil.copyfile(made, ROOT / "docs" / made.name)
    published = {arm: f"{a:.1%} after {n:,}" for arm, (n, a) in PUBLISHED.items()}
    tail = f"record {path}\nfigures {workdir / 'plots'}"
    return "\n".join([arms.table(rows, published), arms.text_of(found), tail])


if __name__ == "__main__":
    sizes = {**SIZES, "rates": SIZES["desk"]}
    sys.exit(arms.command_line(__doc__, sizes, study))
