"""The job "snapshot": a run whose states at the ends of cycles predict together.

It trains as the job "train" does, keeps the state wherever a cycle of the schedule ends (or at
`checkpoint.at`), and then says what the last 1, 2, ... of them make of the test set.

<folder>/snapshots/     the states, kept for good
<folder>/ensemble.json  scores of each, of their averaged probabilities, of their averaged weights;
                        with `ema`, of the moving average of the weights at the end of the run

    config.schedule = (dict(name="cosine_restarts", t_0=dict(epochs=8)),)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrlab import build, console, ensembles, fields, records, report
from lrlab.analysis import ensemble
from lrlab.build import Recipe
from lrlab.jobs import _start, train
from lrlab.resolve import ConfigError

__all__ = ["run"]


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """The filled config, which keeps at least two states; raises ConfigError."""
    full = fields.fill(config)
    if isinstance(full["checkpoint"], dict) and full["checkpoint"].get("at") == ():
        full["checkpoint"]["at"] = "cycles"
    recipe = build.check(full)
    if recipe.source.target_shape:
        raise ConfigError(
            [
                f"job.name='snapshot' is for one class an example; {recipe.source.name} has one "
                "for each of its positions"
            ]
        )
    if len(recipe.kept) < 2:
        raise ConfigError(
            [
                f"checkpoint.at={full['checkpoint']['at']!r} keeps {len(recipe.kept)} state: an "
                "ensemble needs two. Let the schedule restart, such as dict(name='cosine_restarts',"
                " t_0=dict(epochs=8)), or name epochs in checkpoint.at"
            ]
        )
    return full


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Trains, or goes on, and compares the snapshots.

    Raises:
      ConfigError, DataError, LockedError, DivergedError, Stopped: see `main` for their exit codes.
    """
    full = check(config)
    folder = workdir or _start.default_folder(full, options.source)
    train.run(full, folder, options)
    if options.dry_run:
        return
    if not (folder / "ensemble.json").exists():
        found = compare(build.check(full), folder)
        records.write_json(folder / "ensemble.json", found)
        report.write(folder)
    console.say(_shown(records.read_json(folder / "ensemble.json")))


def compare(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Scores on the test set of a finished run's snapshots, alone, together and averaged."""
    data = recipe.read()
    steps, members = ensembles.snapshots(recipe, folder)
    labels = data.test.y
    each = ensembles.probabilities(recipe, members, data, "test")

    def mean(members: Sequence[ensembles.Variables]) -> dict[str, float]:
        """Scores of mean weights."""
        variables = ensembles.average(recipe, members, data)
        (found,) = ensembles.probabilities(recipe, [variables], data, "test")
        return ensemble.scores(found, labels)

    decay, moving = recipe.config["ema"], None
    if decay is not None:
        moving = {"decay": decay, **mean([ensembles.moving_average(recipe, folder)])}
    return {
        "epochs": list(recipe.kept),
        "steps": steps,
        "examples": len(labels),
        "snapshots": [ensemble.scores(p, labels) for p in each],
        "together": ensemble.growing(each, labels),
        "averaged": [{"members": m, **mean(members[-m:])} for m in range(2, len(members) + 1)],
        "moving": moving,
        "disagreement": ensemble.disagreement(each).tolist(),
    }


def _shown(found: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'predictions of':<40}{'accuracy':>9}{'NLL':>9}{'ECE':>9}"]

    def row(name: str, s: Mapping[str, float]) -> str:
        accuracy = console.percent(s["accuracy"])
        return f"{name:<40}{accuracy:>9}{s['nll']:>9.4f}{s['ece']:>9.4f}"

    for epoch, s in zip(found["epochs"], found["snapshots"], strict=True):
        lines.append(row(f"the state after epoch {epoch}", s))
    for s in found["together"][1:]:
        lines.append(row(f"the last {s['members']} together", s))
    for s in found["averaged"]:
        lines.append(row(f"mean weights of the last {s['members']}", s))
    if moving := found["moving"]:
        lines.append(row(f"moving average, decay {moving['decay']:g}, at the end", moving))
    pairs = [x for i, r in enumerate(found["disagreement"]) for x in r[:i]]
    lines.append(f"two snapshots disagree on {sum(pairs) / len(pairs):.2%} of the examples")
    return "\n".join(lines)
