"""The eight steps of fine-tuning against simpler ways, and without each step in turn.

Claims: the recipe beats fine-tuning all layers at a fixed rate, the head alone, and training from
        scratch; each of its steps helps.
Source: "Understanding learning rates", after fast.ai's course of 2018; the steps as
        `lrlab.thawing.eight_steps` has them.
Run:    LRLAB_DATA_DIR=... python -m experiments.finetune_2018 --size=desk --workdir=runs/finetune
        (--size=smoke: one half of the digits to the other, two minutes; --size=paper: a GPU)
Makes:  <workdir>/runs, a folder of the job "finetune" each with its report, and <workdir>/plots;
        desk and paper also experiments/results/finetune_2018_<size>_<device>.json, desk
        docs/finetune_2018.png. The same command goes on with what is not done.

A seed is that of the run, of the source network, and of which target examples are drawn: no two
seeds share a target example. Validation is of 500 further examples, the same for all, and chooses
nothing but the rate of "best of the rates". Test accuracy is of the last state.

The budget of every arm is equal in updates of its phases, and so in examples: an arm without a
phase gives its epochs to another. An update of the head on precomputed features counts as any
other, though it costs less. The range tests come on top and are counted beside: updates of each
seed's lane until it stopped. The recipe's early stop is left out, so that budgets stay equal and
end with a cycle. "best of the rates" has the budget once for each rate.

Simple arms have a constant rate and no augmentation, unless their name says so; all of them but the
head alone train all layers alike.

The size "paper" has never been run. It needs torchvision's weights of ResNet-18 on ImageNet, as
<workdir>/resnet18.safetensors; images of 32 x 32 pixels go through its first layers as they are.
"""

import argparse
import contextlib
import csv
import dataclasses
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lrlab
from experiments import arms
from lrlab import charts, devices, plots, records, thawing
from lrlab import main as command
from lrlab.data import DataError
from lrlab.resolve import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RECIPE, FIXED, HEAD, SCRATCH = "the eight steps", "fixed rate", "head only", "from scratch"
AUGMENTED, BEST = "fixed rate, augmented", "fixed rate, augmented, best of the rates"
STEPS = {  # what an arm leaves out: its name
    "range tests": "no range tests",
    "the head first": "no head first",
    "features first": "no features first",
    "lower rates for earlier groups": "one rate for all groups",
    "restarts": "no restarts",
    "augmentation": "no augmentation",
}
SIMPLE = FIXED, AUGMENTED, BEST, HEAD, SCRATCH
FACTOR, CYCLES = 3.0, 3
DIGITS = 1797
ONE_COSINE = {"name": "cosine", "start": 1.0, "end": 0.0}


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    data: of the target. examples: of it, the target sizes. groups: of layers, from the input to the
    head. source: the config of the run that trains the source network; None is a file of weights.
    lr: what people take; rates: others that "best of the rates" tries too. cycle_len: epochs of the
    shortest cycle; a head's phases have two and three times as many.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    groups: tuple[str, ...]
    head: str
    examples: tuple[int, ...]
    batch: int
    augment: tuple[dict[str, Any], ...]
    source: dict[str, Any] | None
    seeds: int
    cycle_len: int
    lr: float = 0.01
    rates: tuple[float, ...] = (0.03, 0.1)

    @property
    def epochs(self) -> int:
        """Of every arm."""
        return self.cycle_len * (2 + 3 + 2**CYCLES - 1)


SIZES = {
    "smoke": Size(
        data={"name": "digits", "classes": (5, 6, 7, 8, 9)},
        model={"name": "mlp.MLP", "widths": (64, 32)},
        groups=("Dense_0/.*", "Dense_1/.*", "Dense_2/.*"),
        head="Dense_2",
        examples=(100,),
        batch=16,
        augment=({"name": "crop", "pad": 1},),
        source={
            "data": {"name": "digits", "classes": (0, 1, 2, 3, 4)},
            "batch": {"name": "fixed", "size": 32},
            "epochs": 5,
        },
        seeds=2,
        cycle_len=1,
        rates=(0.1,),
    ),
    "desk": Size(
        data={"name": "tfds.images", "dataset": "mnist", "validation": 500},
        model={"name": "cnn.SmallCNN"},
        groups=("Conv_.*", "Dense_0/.*", "Dense_1/.*"),
        head="Dense_1",
        examples=(100, 500, 2000),
        batch=16,
        augment=({"name": "crop", "pad": 2},),
        source={
            "data": {"name": "tfds.images", "dataset": "fashion_mnist", "validation": 500},
            "batch": {"name": "fixed", "size": 128},
            "epochs": 10,
        },
        seeds=5,
        cycle_len=4,
    ),
    "paper": Size(
        data={"name": "tfds.images", "dataset": "cifar10", "validation": 500},
        model={"name": "imagenet.ResNet18"},
        groups=("(conv1|bn1|layer[12]_.*)/.*", "layer[34]_.*", "fc/.*"),
        head="fc",
        examples=(500, 2000, 9000),
        batch=64,
        augment=({"name": "crop", "pad": 4}, {"name": "flip"}),
        source=None,
        seeds=5,
        cycle_len=1,
    ),
}


def of_target(size: Size, examples: int, seed: int) -> dict[str, Any]:
    """The section `data`: so many training examples, others for each seed."""
    if size.data["name"] == "digits":  # which have no draws: the test set takes the others
        held = 180
        test = DIGITS - held - 2 * examples  # half of the classes are kept
        return {**size.data, "validation": held, "test": test, "seed": seed}
    return {**size.data, "examples": examples, "draw": seed}


def phases(size: Size, arm: str, updates: int) -> Sequence[Mapping[str, Any]]:
    """The phases of an arm; `updates`: of an epoch."""
    if arm == HEAD:
        return thawing.last_layer(size.groups, size.epochs)
    if arm in (FIXED, SCRATCH):
        return thawing.all_at_once(size.groups, size.epochs)
    if arm == AUGMENTED:
        return thawing.all_at_once(size.groups, size.epochs, augment=size.augment)
    features, head, everything = map(
        dict,
        thawing.eight_steps(
            size.groups,
            head=2 * size.cycle_len,
            augmented=3 * size.cycle_len,
            cycles=CYCLES,
            factor=1.0 if arm == STEPS["lower rates for earlier groups"] else FACTOR,
            patience=None,
            augment=() if arm == STEPS["augmentation"] else size.augment,
            cycle_len=size.cycle_len,
        ),
    )
    if arm == STEPS["range tests"]:
        features["range_test"] = everything["range_test"] = False
    elif arm == STEPS["restarts"]:
        head["schedule"] = everything["schedule"] = (ONE_COSINE,)
    elif arm == STEPS["features first"]:
        both = {"epochs": features["epochs"] + head["epochs"], "range_test": True}
        return {k: v for k, v in {**head, **both}.items() if k != "lr"}, everything
    elif arm == STEPS["the head first"]:  # cycles of as many parts, longer; none begins at the end
        first = -(-size.epochs * updates // (2**CYCLES - 1))
        cycles = {"name": "cosine_restarts", "t_0": {"updates": first}, "t_mult": 2}
        return ({**everything, "epochs": size.epochs, "schedule": (cycles,)},)
    return features, head, everything


def config(
    size: Size,
    arm: str,
    examples: int,
    seed: int,
    start: Mapping[str, Any] | None,
    lr: float | None = None,
) -> dict[str, Any]:
    """What `lrlab.finetune` is asked for; `start`: where the source network is."""
    return {
        "seed": seed,
        "epochs": size.epochs,
        "data": of_target(size, examples, seed),
        "model": size.model,
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": {"name": "momentum", "decay": 0.9},
        "lr": lr or size.lr,
        "start": None if arm == SCRATCH or start is None else dict(start),
        "finetune": {
            "groups": size.groups,
            "head": size.head,
            "phases": tuple(phases(size, arm, examples // size.batch)),
        },
    }


def of_source(size: Size, seed: int) -> dict[str, Any]:
    """The config of the run that trains a seed's source network."""
    assert size.source is not None
    return {
        "seed": seed,
        "model": size.model,
        "optimizer": {"name": "momentum", "decay": 0.9},
        "lr": 0.05,
        "schedule": (ONE_COSINE,),
        **size.source,
    }


def start(size: Size, seed: int, workdir: Path) -> dict[str, Any]:
    """Where weights begin; trains the source network if it has to be."""
    fresh = (f"{size.head}/.*",)
    if size.source is None:
        return {"file": str(workdir / "resnet18.safetensors"), "fresh": fresh}
    from lrlab.jobs import _start, train

    home = workdir / "runs" / "source" / str(seed)
    train.run(
        of_source(size, seed),
        home,
        _start.Options("experiments/finetune_2018.py", command_of(workdir)),
    )
    return {"run": str(home), "fresh": fresh}


def command_of(workdir: Path) -> str:
    """What a record says that made it."""
    return f"python -m experiments.finetune_2018 --workdir={workdir}"


def tested(folder: Path) -> int:
    """Updates of the range tests in a folder of the job, all seeds' lanes until each stopped."""
    total = 0
    for path in folder.glob("*_range_test/range_test.csv"):
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                total += sum(bool(v) for k, v in row.items() if k.startswith("loss_"))
    return total


def outcome(folder: Path, size: Size) -> dict[str, Any]:
    """What came of a run of the job: test accuracy, validation, budget, phases."""
    rows = records.read_json(folder / "summary.json")["phases"]
    last = records.read(folder / rows[-1]["folder"]).rows[-1]
    updates = sum(row["updates"] for row in rows)
    kept = "name", "lr", "lr_from", "epochs", "updates", "test_accuracy", "trained_weights"
    return {
        "accuracy": rows[-1]["test_accuracy"],
        "validation": last["val_accuracy"],
        "updates": updates,
        "examples": updates * size.batch,
        "range_test_updates": tested(folder),
        "phases": [{k: row[k] for k in kept} for row in rows],
    }


def tuned(tries: Mapping[float, Mapping[str, Any]]) -> dict[str, Any]:
    """Of runs at several rates the one of the best validation; its budget is that of all."""
    chosen = max(tries, key=lambda lr: tries[lr]["validation"])
    sums = {k: sum(t[k] for t in tries.values()) for k in ("updates", "examples", "seconds")}
    return {**tries[chosen], **sums}


def trained(size: Size, examples: int, seed: int, workdir: Path) -> dict[str, dict[str, Any]]:
    """What came of every arm, or what an earlier run of the study kept of it."""
    begin = start(size, seed, workdir)

    def run(arm: str, lr: float | None = None) -> dict[str, Any]:
        asked = config(size, arm, examples, seed, begin, lr)
        stem = re.sub(r"\W+", "_", f"{arm} {lr or ''}").strip("_")
        name = f"{stem}-{examples}-{seed}"

        def make() -> dict[str, Any]:
            folder = workdir / "runs" / name
            lrlab.finetune(asked, folder)
            return outcome(folder, size)

        found = arms.remembered(workdir / f"{name}.json", asked, make)
        print(
            f"{name}: {found['accuracy']:.2%} after {found['updates']:,} updates, "
            f"{found['seconds']:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        return found

    found = {arm: run(arm) for arm in (RECIPE, FIXED, AUGMENTED, HEAD, SCRATCH, *STEPS.values())}
    tries = {size.lr: found[AUGMENTED], **{lr: run(AUGMENTED, lr) for lr in size.rates}}
    return {**found, BEST: tuned(tries)}


Runs = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]  # by arm and target size: a run a seed


def finals(runs: Runs, arm: str, examples: int | None = None) -> np.ndarray:
    """Test accuracies of an arm [seeds], at a target size or their mean over all."""
    sizes = [n for a, n in runs if a == arm and examples in (None, n)]
    return np.mean([[run["accuracy"] for run in runs[arm, n]] for n in sizes], axis=0)


def verdicts(runs: Runs) -> list[dict[str, Any]]:
    """Each claim at each target size, and over all of them; yes, no, or unclear with such seeds.

    With some sixty claims, three intervals may exclude zero by chance.
    """
    sizes = sorted({n for _, n in runs})
    found = []

    def say(claim: str, ours: str, theirs: str) -> None:
        for n in [*sizes, None] if len(sizes) > 1 else sizes:
            gap = arms.gap(finals(runs, ours, n), finals(runs, theirs, n))
            found.append(
                {
                    "claim": f"{claim}, {f'{n:,} examples' if n else 'mean of all sizes'}",
                    "ours": ours,
                    "theirs": theirs,
                    "examples": n,
                    "seen": arms.percent(gap),
                    "holds": arms.is_above(gap),
                    "gap": gap,
                }
            )

    for arm in SIMPLE:
        say(f"{RECIPE} beat {arm}", RECIPE, arm)
    for step, without in STEPS.items():
        say(f"the step helps: {step}", RECIPE, without)
    say("the source network helps: fixed rate beats from scratch", FIXED, SCRATCH)
    alone = STEPS["the head first"]
    for arm in (BEST, SCRATCH):
        say(f"asked afterwards: the steps without the head first beat {arm}", alone, arm)
    return found


def summary(runs: Runs) -> list[dict[str, Any]]:
    """A row for each arm and target size: accuracy over seeds, budget, the rates of its phases."""
    rows = []
    for (arm, n), each in runs.items():
        accuracy = finals(runs, arm, n)
        rows.append(
            {
                "arm": arm,
                "examples": n,
                "n": len(each),
                "accuracy": float(accuracy.mean()),
                "sd": float(accuracy.std(ddof=1)),
                "finals": accuracy.tolist(),
                "updates": each[0]["updates"],
                "examples_seen": each[0]["examples"],
                "range_test_updates": float(np.mean([r["range_test_updates"] for r in each])),
                "seconds": round(float(np.mean([r["seconds"] for r in each])), 1),
                "phases": [
                    {
                        "name": phase["name"],
                        "updates": phase["updates"],
                        "lrs": [r["phases"][i]["lr"] for r in each],
                        "from": [r["phases"][i]["lr_from"] for r in each],
                        "accuracies": [r["phases"][i]["test_accuracy"] for r in each],
                    }
                    for i, phase in enumerate(each[0]["phases"])
                ],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `summary` for a terminal."""
    width = max(len(row["arm"]) for row in rows)
    lines = [
        f"{'arm':<{width}}{'examples':>9}{'updates':>9}{'+ tests':>9}{'test acc.':>11}{'s.d.':>7}"
        f"{'seconds':>9}  peak rates of each phase, median"
    ]
    for row in sorted(rows, key=lambda row: row["examples"]):
        rates = ", ".join(f"{np.median(phase['lrs']):.3g}" for phase in row["phases"])
        lines.append(
            f"{row['arm']:<{width}}{row['examples']:>9,}{row['updates']:>9,}"
            f"{row['range_test_updates']:>9,.0f}{row['accuracy']:>11.2%}{100 * row['sd']:>7.2f}"
            f"{row['seconds']:>9.1f}  {rates}"
        )
    return "\n".join(lines)


def draw(runs: Runs, found: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy against target size, bands of all seeds; what each step adds, with intervals."""
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(12.6, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _against_size(left, runs)
        _ablation(right, found)
        for ax, title in (left, "Test accuracy"), (right, "What each step adds"):
            ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure


def _against_size(ax: "Axes", runs: Runs) -> None:
    sizes = sorted({n for _, n in runs})
    looks = zip((RECIPE, *SIMPLE), charts.COLORS, charts.MARKERS, strict=False)
    for arm, color, marker in looks:
        curves = np.array([finals(runs, arm, n) for n in sizes])
        ax.plot(sizes, curves.mean(1), color=color, marker=marker, label=arm)
        ax.fill_between(sizes, curves.min(1), curves.max(1), color=color, alpha=0.13, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set_xlabel("training examples of the target (bands: all seeds)")
    ax.set_ylabel("test accuracy")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8.5)


def _ablation(ax: "Axes", found: Sequence[Mapping[str, Any]]) -> None:
    steps = list(STEPS.values())
    sizes = sorted({v["examples"] for v in found} - {None})
    for i, (n, color, marker) in enumerate(zip(sizes, charts.COLORS, charts.MARKERS, strict=False)):
        gaps = [v["gap"] for v in found if v["examples"] == n and v["theirs"] in steps]
        mean, low, high = (100 * np.array([g[k] for g in gaps]) for k in ("gap", "low", "high"))
        ax.errorbar(
            mean,
            np.arange(len(steps)) + 0.18 * (i - (len(sizes) - 1) / 2),
            xerr=[mean - low, high - mean],
            color=color,
            marker=marker,
            linestyle="none",
            elinewidth=1.6,
            label=f"{n:,} examples",
        )
    ax.axvline(0, color=plots.LIGHT.soft, linewidth=1)
    ax.set_yticks(range(len(steps)), list(STEPS))
    ax.invert_yaxis()
    ax.set_xlabel("test accuracy with it less without it, % (95 % intervals over seeds)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8.5)


def report(name: str, size: Size, runs: Runs, workdir: Path) -> None:
    """Figure, verdicts and record of runs that are done."""
    found, rows = verdicts(runs), summary(runs)
    folder = workdir / "plots"
    plots.save(draw(runs, found), folder / "finetune_2018")
    record = {
        "study": f"finetune_2018, {name}",
        "settings": {**dataclasses.asdict(size), "factor": FACTOR, "cycles": CYCLES},
        "n": size.seeds,
        "arms": rows,
        "verdicts": found,
    }
    path = arms.save(record, f"finetune_2018_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        shutil.copyfile(folder / "finetune_2018.png", ROOT / "docs" / "finetune_2018.png")
    print(table(rows), arms.text_of(found), sep="\n")
    print(f"record {path}\nfigures {folder}")


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records; what the runs say goes to <workdir>/log.txt."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with (workdir / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        for seed in range(size.seeds):
            for examples in size.examples:
                for arm, run in trained(size, examples, seed, workdir).items():
                    runs.setdefault((arm, examples), []).append(run)
    report(name, size, runs, workdir)


def main() -> int:
    """The program; returns an exit code as `lrlab.main` does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--workdir", type=Path, required=True)
    known = parser.parse_args()
    command._prepare_process()  # and one device of all cores: these are single runs, no lanes
    devices.use_cache()
    devices.keep_memory()
    known.workdir.mkdir(parents=True, exist_ok=True)
    from lrlab.jobs._start import Stopped

    try:
        study(known.size, SIZES[known.size], known.workdir)
    except Stopped as e:
        print("stopped; the same command goes on with what is not done", file=sys.stderr)
        return 128 + e.number
    except ConfigError as e:
        print(e, file=sys.stderr)
        return command.USAGE
    except DataError as e:
        print(e, file=sys.stderr)
        return command.DATA
    return 0


if __name__ == "__main__":
    sys.exit(main())
