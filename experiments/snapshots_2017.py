"""Snapshots: M models out of one run that restarts, and what else the same updates could buy.

Claim:  M snapshots together beat the last of them, one run of the same length, and M models that
        share its updates from fresh weights; they fall short of M whole runs; each one more adds
        less; and averaged weights reach them at the price of one model.
Source: Huang et al. 2017, arXiv:1704.00109: snapshots at the ends of cosine cycles, beside one run
        and beside cycles from fresh weights ("SingleCycle") and whole runs. Izmailov et al. 2018,
        arXiv:1803.05407: mean weights of cycle ends.
Run:    LRLAB_DATA_DIR=... python -m experiments.snapshots_2017 --size=desk --workdir=runs/snapshots
        (--size=smoke: seconds; --size=paper: a net of their family, for a GPU)
Makes:  <workdir>/plots; desk and paper also a record experiments/results/snapshots_2017_*.json,
        desk docs/snapshots_2017.png. The same command goes on with the arms that are not done.

The recipe is that of `sgdr_2016`: rule, peak rate, decay of weights; it was not tuned for any arm.
With B epochs of budget, from the same first weights and orders of examples for the first member:

    whole runs   M models of one cosine over B epochs: M times the budget; the first is "one run"
    snapshots    one model, cosines of B / M epochs that restart, kept where each ends
    higher peak  the same at twice the peak rate, which should part them more (at four times, tried
                 first, 4 of 5 nets of "desk" did not leave 10 % accuracy and the fifth ended at 84)
    short runs   M models of one cosine over B / M epochs, together the budget of one run
    mean weights of the last snapshots, BatchNorm's statistics estimated anew; one model to keep
    moving average of the weights along the one run (`ema`), which trains nothing else

m of M: the last m snapshots, as in the paper; the first m models of the other two. A repetition has
its own seeds (M of them), and comparisons are made within a repetition. The test set is looked at
once an arm is trained, and nothing is chosen by it.

The size "paper" has never been run. Theirs has augmentation, and peak rates of 0.1 and 0.2.
"""

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments import arms, sgdr_2016
from lrlab import build, charts, ensembles, optimizers, plots
from lrlab.analysis import ensemble
from lrlab.data import Dataset
from lrlab.ensembles import Variables
from lrlab.lanes import Lane, Lanes
from lrlab.train_step import RECORDED, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
WHOLE, SHORT = "whole runs", "short runs"
RESTARTS = SNAPSHOTS, HIGHER = "snapshots", "higher peak"
PEAK = 2.0  # of HIGHER, as the paper compares 0.1 with 0.2
MEAN, MOVING, ONE = "mean weights", "moving average", "one run"
KEYS = "accuracy", "nll", "ece"
TITLES = {
    "accuracy": "Test accuracy",
    "nll": "Negative log likelihood (nats)",
    "ece": "Expected calibration error",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size trains; members: M, which divides the epochs; ema: decay along the whole runs."""

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    lr: float
    epochs: int
    members: int
    ema: float
    repetitions: int


SIZES = {
    "smoke": Size(
        data={"name": "digits", "validation": 0},
        model={"name": "mlp.MLP", "widths": (32,)},
        batch=32,
        lr=0.05,
        epochs=6,
        members=3,
        ema=0.9,
        repetitions=3,
    ),
    "desk": Size(
        data={"name": "tfds.images", "dataset": "fashion_mnist", "validation": 0},
        model={"name": "cnn.SmallCNN"},
        batch=128,
        lr=0.05,
        epochs=15,
        members=5,
        ema=0.999,
        repetitions=5,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 0},
        model={"name": "resnet.WideResNet", "depth": 28, "width": 4},
        batch=128,
        lr=0.05,
        epochs=200,
        members=5,
        ema=0.999,
        repetitions=3,
    ),
}


def config(size: Size, arm: str) -> dict[str, Any]:
    """The recipe of an arm: that of warm restarts, with its own length and shape.

    Raises:
      ValueError: M does not divide the budget.
    """
    cycle, rest = divmod(size.epochs, size.members)
    if rest:
        raise ValueError(f"{size.members} cycles of whole epochs do not fill {size.epochs}")
    same = {f.name: getattr(size, f.name) for f in dataclasses.fields(size)}
    plan = sgdr_2016.Size(
        **{k: same[k] for k in ("data", "model", "batch", "lr", "epochs")},
        restarts=((cycle, 1),),
        seeds=size.repetitions,
    )
    if arm in RESTARTS:
        lr = size.lr * (PEAK if arm == HIGHER else 1)
        return sgdr_2016.config(plan, sgdr_2016.named(cycle, 1)) | {"lr": lr}
    recipe = sgdr_2016.config(plan, sgdr_2016.COSINE)
    return recipe | ({"epochs": cycle} if arm == SHORT else {"ema": size.ema})


def seeds(size: Size, arm: str) -> list[int]:
    """The seeds of an arm: of repetition r those r, r + R, ..., of which the first is all arms'."""
    return list(range(size.repetitions * (1 if arm in RESTARTS else size.members)))


def members(size: Size, arm: str, repetition: int) -> list[int]:
    """The lanes of a repetition."""
    return seeds(size, arm)[repetition :: size.repetitions]


def train(size: Size, arm: str) -> dict[str, Any]:
    """Trains an arm and scores its members on the test set.

    Returns:
      repetitions: of each what `scored` says, of whole runs with the "moving" average of the first,
      of snapshots with mean weights, "averaged"; updates: of one model; diverged: lanes.
    """
    told = config(size, arm)
    recipe = build.check(told, parts=1)
    each = [Lane(seed, recipe.config["lr"]) for seed in seeds(size, arm)]
    data = recipe.read()
    lanes = Lanes(recipe, data, each, arms.LOOK)
    cycle, kept, finite = size.epochs // size.members, [], np.ones(len(each))
    for epoch in recipe.epochs():
        end = epoch.first + epoch.updates
        while lanes.step < end:
            seen = lanes.advance(min(arms.LOOK, end - lanes.step))
            finite = np.minimum(finite, seen[..., RECORDED.index("finite")].min(0))
        print(f"{arm}: epoch {epoch.number + 1} of {told['epochs']}", flush=True)
        if arm in RESTARTS and (epoch.number + 1) % cycle == 0:
            kept.append(lanes.state()[0])
    kept = kept or [lanes.state()[0]]
    found = []
    for r in range(size.repetitions):
        states = [_lane(state, i) for i in members(size, arm, r) for state in kept]
        found.append(scored(recipe, data, states, arm))
        print(f"{arm}: repetition {r + 1} of {size.repetitions} scored", flush=True)
    return {
        "repetitions": found,
        "updates": lanes.step,
        "diverged": int((finite == 0).sum()),
    }


def _lane(states: State, lane: int) -> State:
    return jax.tree.map(lambda a: a[lane], states)


def scored(
    recipe: build.Recipe, data: Dataset, states: Sequence[State], arm: str
) -> dict[str, Any]:
    """The members of one ensemble on the test set.

    Returns:
      alone: scores of each; together: of the average of the last m snapshots, or the first m of the
      others; disagreement: [members, members].
    """
    labels = data.test.y

    def of(variables: Sequence[Variables]) -> list[dict[str, float]]:
        found = ensembles.probabilities(recipe, variables, data, "test")
        return [ensemble.scores(p, labels) for p in found]

    raw = [{"params": s.params, **s.stats} for s in states]
    each = ensembles.probabilities(recipe, raw, data, "test")
    found: dict[str, Any] = {
        "alone": [ensemble.scores(p, labels) for p in each],
        "together": ensemble.growing(each if arm in RESTARTS else each[::-1], labels),
        "disagreement": ensemble.disagreement(each).tolist(),
    }
    if arm in RESTARTS:
        counts = range(1, len(raw) + 1)
        means = of([ensembles.average(recipe, raw[-m:], data) for m in counts])
        found["averaged"] = [{"members": m, **s} for m, s in zip(counts, means, strict=True)]
    if arm == WHOLE:
        first = states[0]
        mean = {"params": optimizers.eval_params(first.opt, first.params), **first.stats}
        (found["moving"],) = of([ensembles.average(recipe, [mean], data)])
    return found


def curves(runs: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, np.ndarray]:
    """A score of each kind, of m = 1, ..., M members where it has them, [repetitions, M or 1]."""

    def rows(arm: str, what: str) -> np.ndarray:
        return np.array([[s[key] for s in r[what]] for r in runs[arm]["repetitions"]])

    found = {arm: rows(arm, "together") for arm in (WHOLE, *RESTARTS, SHORT)}
    found[MEAN] = rows(SNAPSHOTS, "averaged")
    found[ONE] = found[WHOLE][:, :1]
    found[MOVING] = np.array([[r["moving"][key]] for r in runs[WHOLE]["repetitions"]])
    return found


def disagreements(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Mean disagreement of two snapshots that are 1, ..., M - 1 cycles apart; of any two runs."""
    found = {}
    for arm, run in runs.items():
        tables = np.array([r["disagreement"] for r in run["repetitions"]])
        apart = range(1, tables.shape[-1])
        each = [tables.diagonal(d, 1, 2) for d in apart]
        of_any = np.concatenate(each, 1).mean(keepdims=True)[0]
        found[arm] = np.array([e.mean() for e in each]) if arm in RESTARTS else of_any
    return found


def verdicts(runs: Mapping[str, Mapping[str, Any]], size: Size) -> list[dict[str, Any]]:
    """Each claim, what was seen, whether it holds: yes, no, or unclear with so many repetitions."""
    accuracy, nll = (curves(runs, key) for key in ("accuracy", "nll"))
    said: list[dict[str, Any]] = []
    m, half = size.members, (size.members + 1) // 2

    def say(claim: str, gaps: Mapping[str, Mapping[str, Any]], holds: str) -> None:
        seen = arms.percent(gaps["accuracy"])
        if "nll" in gaps:
            seen += "; NLL {gap:+.4f} [{low:.4f}, {high:.4f}]".format(**gaps["nll"])
        said.append({"claim": claim, "seen": seen, "holds": holds, "gaps": dict(gaps)})

    def gaps(ours: tuple[str, int], theirs: tuple[str, int]) -> dict[str, Any]:
        """Of the first so many members each; (kind, members)."""
        return {
            key: arms.gap(c[ours[0]][:, ours[1] - 1], c[theirs[0]][:, theirs[1] - 1])
            for key, c in (("accuracy", accuracy), ("nll", nll))
        }

    for claim, ours, theirs in (
        (f"{m} snapshots together beat the last of them", SNAPSHOTS, (SNAPSHOTS, 1)),
        (f"{m} snapshots together beat one run of the same length", SNAPSHOTS, (ONE, 1)),
        (f"{m} snapshots together beat {m} short runs, of the same budget", SNAPSHOTS, (SHORT, m)),
        (f"{HIGHER}: {m} snapshots together beat the last of them", HIGHER, (HIGHER, 1)),
        (f"{HIGHER}: {m} snapshots together beat one run of the same length", HIGHER, (ONE, 1)),
        (f"{HIGHER}: {m} snapshots together beat {m} short runs", HIGHER, (SHORT, m)),
        (f"{HIGHER}: {m} snapshots together beat those of the usual peak", HIGHER, (SNAPSHOTS, m)),
    ):
        found = gaps((ours, m), theirs)
        say(f"{claim}: accuracy", found, arms.is_above(found["accuracy"]))
        say(f"{claim}: likelihood", found, _below(found["nll"]))
    found = gaps((SNAPSHOTS, m), (WHOLE, m))
    claim = f"{m} snapshots together fall short of {m} whole runs, {m} times the budget"
    say(f"{claim}: accuracy", found, _below(found["accuracy"]))
    say(f"{claim}: likelihood", found, arms.is_above(found["nll"]))
    for name in *RESTARTS, WHOLE:
        found = {
            key: arms.gap(*_halves(c[name], half))
            for key, c in (("accuracy", accuracy), ("nll", nll))
        }
        claim = f"{name}: members 2 to {half} add more than members {half + 1} to {m}"
        say(f"{claim}: accuracy", found, arms.is_above(found["accuracy"]))
        say(f"{claim}: likelihood", found, _below(found["nll"]))
    reached = f"the accuracy of {m} snapshots together, or are less than {arms.MARGIN:.1%} short"
    for k in sorted({2, half, m}):
        found = gaps((MEAN, k), (SNAPSHOTS, m))
        say(f"mean weights of the last {k} reach {reached}", found, _reaches(found))
    found = gaps((MOVING, 1), (SNAPSHOTS, m))
    say(f"the moving average along one run reaches {reached}", found, _reaches(found))
    found = gaps((MOVING, 1), (ONE, 1))
    say(
        "the moving average beats the last weights of its run: accuracy",
        found,
        arms.is_above(found["accuracy"]),
    )
    return said


def _halves(curve: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """What the members up to `half` add to one, and what the others add to those."""
    return curve[:, half - 1] - curve[:, 0], curve[:, -1] - curve[:, half - 1]


def _below(found: Mapping[str, Any]) -> str:
    """Whether a gap is below zero."""
    return {"yes": "no", "no": "yes", "unclear": "unclear"}[arms.is_above(found)]


def _reaches(found: Mapping[str, Any]) -> str:
    return arms.reaches(found["accuracy"])


def draw(runs: Mapping[str, Mapping[str, Any]], size: Size) -> "Figure":
    """Scores and disagreement against the number of members; bands: the least and the most."""
    from matplotlib.figure import Figure

    m = size.members
    shown = {
        WHOLE: "whole runs together (m x the budget of one)",
        SNAPSHOTS: "last m snapshots together (one budget)",
        HIGHER: f"the same at {PEAK:g} times the peak rate (one budget)",
        SHORT: f"short runs together (m / {m} of one budget)",
        MEAN: "mean weights of the last m snapshots (one model)",
        ONE: "one run (one model, one budget)",
        MOVING: f"moving average along one run, decay {size.ema:g}",
    }
    dashes = dict(
        zip(shown, ("-", "-", "-", "-", (0, (4, 2)), (0, (6, 3)), (0, (1, 1.5))), strict=True)
    )
    colors = dict(zip(shown, charts.COLORS, strict=False))
    marks = dict(zip(shown, charts.MARKERS, strict=False))
    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(10.8, 7.6), layout="constrained")
        axes = figure.subplots(2, 2).ravel()
        x = np.arange(1, m + 1)
        for ax, key in zip(axes, KEYS, strict=False):
            found = curves(runs, key)
            for name, y in found.items():
                look = {"color": colors[name], "linestyle": dashes[name], "label": shown[name]}
                if name in (ONE, MOVING):
                    ax.axhline(y.mean(), **look)
                    continue
                ax.plot(x, y.mean(0), marker=marks[name], **look)
                ax.fill_between(x, y.min(0), y.max(0), color=colors[name], alpha=0.12, linewidth=0)
            ax.set_title(TITLES[key], loc="left", fontsize=10, fontweight="bold")
            ax.set_xlabel("m, members")
            ax.set_xticks(x)
        axes[0].yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        ax = axes[3]
        for name, y in disagreements(runs).items():
            look = {"color": colors[name], "linestyle": dashes[name]}
            if name in RESTARTS:
                ax.plot(x[:-1], y, marker=marks[name], **look)
            else:
                ax.axhline(float(y[0]), **look)
        ax.set_ylim(0, None)
        ax.set_xticks(x[:-1])
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        title = "Examples on which two members disagree"
        ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
        ax.set_xlabel("cycles between two snapshots; lines: any two runs")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def summary(runs: Mapping[str, Mapping[str, Any]], size: Size) -> list[dict[str, Any]]:
    """A row a kind and number of members for the record and the terminal: means and s.d."""
    scores = {key: curves(runs, key) for key in KEYS}
    budget = {
        ONE: lambda m: 1,
        MOVING: lambda m: 1,
        WHOLE: lambda m: m,
        SNAPSHOTS: lambda m: 1,
        HIGHER: lambda m: 1,
        SHORT: lambda m: m / size.members,
        MEAN: lambda m: 1,
    }
    rows = []
    for name in budget:
        for i in range(scores["accuracy"][name].shape[1]):
            row: dict[str, Any] = {"kind": name, "members": i + 1, "budget": budget[name](i + 1)}
            for key in KEYS:
                values = scores[key][name][:, i]
                row |= {key: float(values.mean()), f"{key}_sd": float(values.std(ddof=1))}
            rows.append({**row, "n": size.repetitions})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `summary` for a terminal."""
    lines = [
        f"{'predictions of':<18}{'members':>8}{'budget':>8}{'accuracy':>10}{'s.d.':>7}{'NLL':>9}"
        f"{'s.d.':>9}{'ECE':>9}"
    ]
    lines += [
        f"{r['kind']:<18}{r['members']:>8}{r['budget']:>8.3g}{r['accuracy']:>10.2%}"
        f"{100 * r['accuracy_sd']:>7.2f}{r['nll']:>9.4f}{r['nll_sd']:>9.4f}{r['ece']:>9.4f}"
        for r in rows
    ]
    return "\n".join(lines)


def report(name: str, size: Size, runs: Mapping[str, Mapping[str, Any]], workdir: Path) -> None:
    """Figure, verdicts and record of arms that are trained."""
    found, rows = verdicts(runs, size), summary(runs, size)
    folder = workdir / "plots"
    plots.save(draw(runs, size), folder / "snapshots_2017")
    record = {
        "study": f"snapshots_2017, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.repetitions,
        "rows": rows,
        "disagreement": {arm: y.round(5).tolist() for arm, y in disagreements(runs).items()},
        "arms": {
            arm: {k: run[k] for k in ("updates", "diverged", "seconds")}
            for arm, run in runs.items()
        },
        "verdicts": found,
    }
    path = arms.save(record, f"snapshots_2017_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        png = "snapshots_2017.png"
        shutil.copyfile(folder / png, ROOT / "docs" / png)
    print(table(rows), arms.text_of(found), sep="\n")
    print(f"record {path}\nfigures {folder}")


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records."""
    runs = {}
    for arm in (*RESTARTS, SHORT, WHOLE):
        asked = {"config": config(size, arm), "members": size.members, "seeds": seeds(size, arm)}
        path = workdir / f"{arm.replace(' ', '_')}.json"
        runs[arm] = arms.remembered(path, asked, lambda arm=arm: train(size, arm))
    report(name, size, runs, workdir)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
