"""A language model's layers taken to a classifier: which way of fine-tuning keeps what they know?

Claim:  pre-training beats training from scratch; rates that fall by layer, slanted triangles and
        gradual unfreezing each help, and together they are best; the last layer alone is not
        enough; fine-tuning the language model on the target's text helps.
Source: Howard & Ruder 2018, arXiv:1801.06146, tables 6 and 7 (an LSTM pre-trained on 103 million
        words; IMDb, TREC-6, AG News).
Run:    LRLAB_DATA_DIR=... python -m experiments.ulmfit_2018 --size=desk --workdir=runs/ulmfit
        (--size=smoke: seconds)
Makes:  <workdir>/plots; desk and paper also experiments/results/ulmfit_2018_<size>_<device>.json,
        desk docs/ulmfit_2018.png. The same command goes on with what is not done.

Our language model is a transformer of 0.7 million weights that has seen WikiText-2, a fiftieth of
the paper's text, cut into pieces of words. Every way has the same epochs over the labelled texts
and ends where it ends: no epoch is chosen by its accuracy, on test or on validation texts.
Rates are tuned on validation texts, one for constant rates, one for slanted triangles and one for
training from scratch, with all layers at one rate; as in the paper, the other ways share them.
Seeds change the head's first weights, dropout and the order of examples; the language model is one.
The text sets at hand are TREC-6 and SST-2; the size "paper" has never been run.
"""

import dataclasses
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lrlab
from experiments import arms
from lrlab import charts, plots, records, thawing
from lrlab.jobs import _start, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
FACTOR = 2.6  # a layer's rate over that of the one below it (3.2)
FRESH = ("Hidden/.*", "Head/.*")
CONSTANT, SLANTED = "constant", "slanted_triangular"
SCRATCH, FULL, BEST = "from scratch", "full", "freez + discr + stlr"
RULE = {"name": "adam"}


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of fine-tuning: which layers when, with which schedule in each phase.

    plan: a function of `lrlab.thawing`. factor: between the rates of two layers. begins: "target",
    "wikitext2" (the language model was not fine-tuned on the target's text) or "fresh".
    """

    plan: str
    schedule: str = CONSTANT
    factor: float = 1.0
    begins: str = "target"


WAYS = {
    SCRATCH: Way("all_at_once", SLANTED, begins="fresh"),
    FULL: Way("all_at_once"),
    "full + discr": Way("all_at_once", factor=FACTOR),
    "last layer": Way("last_layer"),
    "chain-thaw": Way("chain_thaw"),
    "freez": Way("gradual"),
    "freez + stlr": Way("gradual", SLANTED),
    BEST: Way("gradual", SLANTED, FACTOR),
    "the same, no target text": Way("gradual", SLANTED, FACTOR, "wikitext2"),
}
PUBLISHED = {  # test error, %, of IMDb, TREC-6, AG News
    SCRATCH: (9.93, 13.36, 6.81),
    FULL: (6.87, 6.86, 5.81),
    "full + discr": (5.57, 6.21, 5.62),
    "last layer": (6.49, 16.09, 8.38),
    "chain-thaw": (5.39, 6.71, 5.90),
    "freez": (6.37, 6.86, 5.81),
    "freez + stlr": (5.04, 6.02, 5.35),
    BEST: (5.00, 5.69, 5.38),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A classification set: its data section; language: how its text is read by a language model.

    epochs: over the labelled texts. language_epochs: over its text.
    """

    data: Mapping[str, Any]
    language: Mapping[str, Any]
    epochs: int
    language_epochs: int


@dataclasses.dataclass(frozen=True)
class Size:
    """What a size of the study trains.

    source: data section of the pre-training. rates: tried on validation texts.
    """

    source: Mapping[str, Any]
    model: Mapping[str, Any]
    source_epochs: int
    source_lr: float
    target_lr: float
    targets: Mapping[str, Target]
    rates: tuple[float, ...]
    batch: int
    seeds: int


def _target(name: str, length: int, epochs: int, language_epochs: int, **more: Any) -> Target:
    """more: fields of both data sections; `texts`: how many the language model reads."""
    texts = more.pop("texts", None)
    data = {"name": f"text.{name}", "length": length, **more}
    language = {"name": f"text.{name}", "task": "language", **more, "examples": texts}
    return Target(data, language, epochs, language_epochs)


SIZES = {
    "smoke": Size(
        source={"name": "text.wikitext2", "length": 32, "vocabulary": 500, "examples": 600},
        model={"width": 16, "depth": 1, "heads": 2, "positions": 32},
        source_epochs=1,
        source_lr=3e-3,
        target_lr=1e-3,
        targets={"TREC-6": _target("trec6", 16, 5, 1, vocabulary=500, examples=200, texts=400)},
        rates=(1e-3, 1e-2),
        batch=8,
        seeds=2,
    ),
    "desk": Size(
        source={"name": "text.wikitext2", "length": 64, "vocabulary": 4000},
        model={"width": 96, "depth": 3, "heads": 4, "positions": 64},
        source_epochs=2,
        source_lr=2e-3,
        target_lr=1e-3,
        targets={
            "TREC-6": _target("trec6", 24, 6, 4),
            "SST-2, 2,000 phrases": _target("sst2", 40, 6, 1, examples=2000, texts=20_000),
        },
        rates=(3e-4, 1e-3, 3e-3),
        batch=32,
        seeds=3,
    ),
    "paper": Size(
        source={"name": "text.wikitext2", "length": 128, "vocabulary": 16_000},
        model={"width": 512, "depth": 6, "heads": 8, "positions": 128},
        source_epochs=20,
        source_lr=5e-4,
        target_lr=2e-4,
        targets={
            "TREC-6": _target("trec6", 48, 20, 10, vocabulary=16_000),
            "SST-2": _target("sst2", 64, 10, 5, vocabulary=16_000),
        },
        rates=(1e-4, 3e-4, 1e-3),
        batch=64,
        seeds=5,
    ),
}


def groups(size: Size) -> tuple[str, ...]:
    """Groups of layers, from the embedding to the head."""
    depth = size.model["depth"]
    blocks = [f"Block_{i}/.*" for i in range(depth - 1)]
    return ("Embedding/.*", *blocks, f"(Block_{depth - 1}|Norm)/.*", "(Hidden|Head)/.*")


def language(size: Size, data: Mapping[str, Any], epochs: int, lr: float) -> dict[str, Any]:
    """The recipe of a language model."""
    return {
        "seed": 0,
        "epochs": epochs,
        "data": {**data, "length": size.source["length"]},
        "model": {"name": "text.LanguageModel", **size.model},
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": RULE,
        "clip_norm": 1.0,
        "lr": lr,
        "schedule": ({"name": SLANTED},),
    }


def classifier(size: Size, target: Target, lr: float) -> dict[str, Any]:
    """The recipe of a classifier, but for phases and what it begins with."""
    return {
        "epochs": target.epochs,
        "data": {**target.data},
        "model": {"name": "text.Classifier", **size.model},
        "batch": {"name": "fixed", "size": size.batch},
        "optimizer": RULE,
        "clip_norm": 1.0,
        "lr": lr,
    }


def phases(size: Size, way: Way, epochs: int) -> tuple[dict[str, Any], ...]:
    """The phases of a way, `epochs` in all: one for each step of a plan, the rest for its last.

    Raises:
      ValueError: more steps than epochs.
    """
    plan = getattr(thawing, way.plan)(groups(size))
    if len(plan) > epochs:
        raise ValueError(f"{way.plan} takes {len(plan)} phases, more than {epochs} epochs")
    lengths = [1] * (len(plan) - 1) + [epochs - len(plan) + 1]
    more = {"factor": way.factor, "schedule": ({"name": way.schedule},)}
    return tuple({**p, **more, "epochs": n} for p, n in zip(plan, lengths, strict=True))


def pretrained(size: Size, workdir: Path) -> dict[str, Any]:
    """Trains the language models: folders by "wikitext2" and target, and what each came to."""
    home = workdir / "language_wikitext2"
    config = language(size, size.source, size.source_epochs, size.source_lr)
    found = {"wikitext2": {"folder": str(home), **_trained(config, home)}}
    for name, target in size.targets.items():
        home = workdir / f"language_{target.data['name'].partition('.')[2]}"
        config = language(size, target.language, target.language_epochs, size.target_lr)
        multipliers = [(g, FACTOR ** (i + 1)) for i, g in enumerate(groups(size)[:-1])]
        config["lr_multipliers"] = tuple((g, m / multipliers[-1][1]) for g, m in multipliers)
        config["start"] = {"run": found["wikitext2"]["folder"]}
        found[name] = {"folder": str(home), **_trained(config, home)}
    return found


def _trained(config: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """A run's losses in nats a piece, perplexity, updates and seconds."""
    train.run(config, home, _start.Options("experiments.ulmfit_2018", "ulmfit_2018"))
    final = records.read(home).final
    assert final is not None
    loss = final["test_loss"]
    return {
        "test_loss": loss,
        "perplexity": math.exp(loss),
        "updates": final["step"],
        "seconds": round(final["seconds"], 1),
    }


def begin(models: Mapping[str, Any], name: str, way: Way) -> dict[str, Any] | None:
    """What a classifier of a target begins with."""
    if way.begins == "fresh":
        return None
    return {"run": models[name if way.begins == "target" else way.begins]["folder"], "fresh": FRESH}


def tuned(size: Size, name: str, models: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """The rate of each kind of way, by validation accuracy, all layers alike: one seed."""
    found = {}
    target = size.targets[name]
    for kind, way in (
        (SCRATCH, WAYS[SCRATCH]),
        (CONSTANT, WAYS[FULL]),
        (SLANTED, Way("all_at_once", SLANTED)),
    ):
        config = classifier(size, target, 1.0) | {
            "schedule": ({"name": way.schedule},),
            "start": begin(models, name, way),
        }
        asked = {"config": config, "rates": size.rates}
        path = workdir / f"rates_{records.config_hash(asked)}.json"
        run = arms.remembered(path, asked, lambda c=config: arms.sweep(c, size.rates))
        found[kind] = {k: run[k] for k in ("lrs", "accuracy", "best")}
        pairs = zip(run["lrs"], run["accuracy"], strict=True)
        seen = "  ".join(f"{lr:g}: {accuracy:.2%}" for lr, accuracy in pairs)
        print(f"{name}, {kind}: best {run['best']:g}  {seen}", flush=True)
    return found


def tune_kind(way: Way) -> str:
    """Which of the tuned rates a way takes."""
    return SCRATCH if way.begins == "fresh" else way.schedule


def trained(
    size: Size, name: str, way: str, lr: float, models: Mapping[str, Any], workdir: Path
) -> dict[str, Any]:
    """A way's seeds on a target: {"accuracy": [seeds], "phases": [seeds][phases], ...}."""
    target, accuracy, each = size.targets[name], [], []
    for seed in range(size.seeds):
        plan = {"phases": phases(size, WAYS[way], target.epochs), "groups": groups(size)}
        config = classifier(size, target, lr) | {
            "seed": seed,
            "start": begin(models, name, WAYS[way]),
            "finetune": plan,
        }
        rows = lrlab.finetune(config, workdir / records.config_hash(config))
        accuracy.append(rows[-1]["test_accuracy"])
        each.append([row["test_accuracy"] for row in rows])
    print(f"{name}, {way}: {np.mean(accuracy):.2%}", flush=True)
    return {"accuracy": accuracy, "phases": each}


def verdicts(name: str, found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each claim about a target, what was seen, whether it holds."""
    pairs = (
        ("pre-training beats training from scratch", FULL, SCRATCH),
        ("the whole recipe beats training from scratch", BEST, SCRATCH),
        ("rates that fall by layer help", "full + discr", FULL),
        ("gradual unfreezing helps", "freez", FULL),
        ("slanted triangles help gradual unfreezing", "freez + stlr", "freez"),
        ("rates that fall by layer help on top of both", BEST, "freez + stlr"),
        ("the whole recipe beats full fine-tuning", BEST, FULL),
        ("chain-thaw is behind the whole recipe", BEST, "chain-thaw"),
        ("the last layer alone is not enough", FULL, "last layer"),
        ("reading the target's text first helps", BEST, "the same, no target text"),
    )
    said = []
    for claim, ours, theirs in pairs:
        gap = arms.gap(found[ours]["accuracy"], found[theirs]["accuracy"])
        said.append(
            {
                "claim": f"{name}: {claim}",
                "seen": f"{ours} against {theirs}: {arms.percent(gap)}",
                "holds": arms.is_above(gap),
                "gap": gap,
            }
        )
    return said


def table(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Ways of a target for a terminal, as errors, beside the paper's."""
    lines = [f"{name:<26}{'error':>8}{'s.d.':>7}  published: IMDb, TREC-6, AG News"]
    for way, run in found.items():
        errors = 1 - np.array(run["accuracy"])
        theirs = "  ".join(f"{e:.2f}" for e in PUBLISHED.get(way, ()))
        lines.append(
            f"{way:<26}{errors.mean():>8.2%}{100 * errors.std(ddof=1):>7.2f}  {theirs}".rstrip()
        )
    return "\n".join(lines)


def draw(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> "Figure":
    """Test error of every way, a panel a target: seeds, their mean, and TREC-6 as published."""
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(5.4 * len(results) + 1.2, 4.2), layout="constrained")
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for ax, (name, found) in zip(panels, results.items(), strict=True):
            for row, (_, run) in enumerate(found.items()):
                errors = 1 - np.array(run["accuracy"])
                dots = ax.plot(
                    errors, np.full(len(errors), row), "o", color=charts.COLORS[0], alpha=0.45
                )
                mean = ax.plot(
                    errors.mean(),
                    row,
                    "|",
                    color=charts.COLORS[0],
                    markersize=16,
                    markeredgewidth=2.5,
                )
                dots[0].set_label("a seed" if not row else "")
                mean[0].set_label("mean" if not row else "")
            if name.startswith("TREC"):
                theirs = [(PUBLISHED[w][1] / 100, i) for i, w in enumerate(found) if w in PUBLISHED]
                x, y = zip(*theirs, strict=True)
                ax.plot(x, y, "D", color=charts.COLORS[1], fillstyle="none", label="published")
            ax.set_title(name, loc="left", fontsize=10, fontweight="bold")
            ax.set_xlabel("test error")
            ax.set_xlim(left=0)
            ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
            ax.legend(fontsize=8.5)
        panels[0].set_yticks(range(len(WAYS)), list(WAYS))
        panels[0].invert_yaxis()
    return figure


def report(
    name: str, size: Size, results: Mapping[str, Any], more: Mapping[str, Any], workdir: Path
) -> str:
    """Figure, verdicts and record; the text to print."""
    said = [v for target, found in results.items() for v in verdicts(target, found)]
    folder = workdir / "plots"
    plots.save(draw(results), folder / "ulmfit_2018")
    record = {
        "study": f"ulmfit_2018, {name}",
        "settings": dataclasses.asdict(size),
        "n": size.seeds,
        **more,
        "targets": results,
        "verdicts": said,
    }
    path = arms.save(record, f"ulmfit_2018_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        shutil.copyfile(folder / "ulmfit_2018.png", ROOT / "docs" / "ulmfit_2018.png")
    tables = [table(target, found) for target, found in results.items()]
    return "\n".join([*tables, arms.text_of(said), f"record {path}", f"figures {folder}"])


def study(name: str, size: Size, workdir: Path) -> str:
    """Trains, draws, records."""
    models = pretrained(size, workdir)
    results: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for target in size.targets:
        rates[target] = tuned(size, target, models, workdir)
        results[target] = {
            way: trained(size, target, way, rates[target][tune_kind(kind)]["best"], models, workdir)
            for way, kind in WAYS.items()
        }
    shown = {k: {key: m[key] for key in m if key != "folder"} for k, m in models.items()}
    return report(name, size, results, {"language_models": shown, "rates": rates}, workdir)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
