"""Arms of a study: recipes whose seeds train as lanes, kept when trained, compared seed by seed.

What every study of this kind needs beside its arms and its claims: `trained` gives an arm's curves
(or those that an earlier run kept), `gap` and the judges after it compare two, `draw` and `table`
show them, `save` writes the record, and `command_line` is the whole program.
"""

import argparse
import datetime
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.recipes import device
from lrlab import build, charts, devices, plots, records
from lrlab import main as command
from lrlab.analysis import valley
from lrlab.data import DataError
from lrlab.jobs._start import Stopped
from lrlab.lanes import Lane, Lanes
from lrlab.resolve import ConfigError
from lrlab.train_step import RECORDED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
LOOK = 100  # updates at once, between two looks at signals
COLLAPSED = 0.1  # of accuracy below the best arm: such an arm may leave the picture
MARGIN = 0.005  # of accuracy: curves that are nearer than this lie on one another
Run = Mapping[str, Any]  # as `train` returns it, with "asked" and "seconds"


def epochs_of(config: Mapping[str, Any], seeds: int) -> Iterator[tuple[Lanes, np.ndarray]]:
    """Trains a recipe's seeds as lanes; after each epoch (lanes, what was recorded in it).

    Recorded: float32 [updates, seeds, columns of `RECORDED`]. A seed that diverges stays where it
    was, and its "finite" is 0 from there on.
    """
    recipe = build.check(config, parts=1)
    each = [Lane(seed, recipe.config["lr"]) for seed in range(seeds)]
    lanes = Lanes(recipe, recipe.read(), each, LOOK)
    for epoch in recipe.epochs():
        parts, end = [], epoch.first + epoch.updates
        while lanes.step < end:
            parts.append(lanes.advance(min(LOOK, end - lanes.step)))
        yield lanes, np.concatenate(parts)


def remembered(
    path: Path, asked: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What was made as asked and is kept in a file; else it is made now, and kept.

    Raises:
      ConfigError: the file holds what was made otherwise.
    """
    text, kept = records.canonical(asked), records.read_json(path)
    if not kept:
        began = time.monotonic()
        kept = {**make(), "asked": text, "seconds": time.monotonic() - began}
        records.write_json(path, kept)
    elif kept["asked"] != text:
        raise ConfigError([f"{path} was made with other settings; choose another --workdir"])
    else:
        print(f"{path.stem}: already trained")
    return kept


def train(name: str, config: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Trains an arm.

    Returns:
      accuracy, loss: test accuracy and mean training loss [seeds][epochs]; updates: done by the end
      of each epoch; diverged: seeds.
    """
    accuracy, loss, updates, finite = [], [], [], np.ones(seeds)
    for lanes, seen in epochs_of(config, seeds):
        rows = dict(zip(RECORDED, np.moveaxis(seen, -1, 0), strict=False))
        accuracy.append([m["accuracy"] for m in lanes.evaluate("test", range(seeds))])
        loss.append(rows["loss"].sum(0) / rows["weight"].sum(0))
        updates.append(lanes.step)
        finite = np.minimum(finite, rows["finite"].min(0))
        print(
            f"{name}: epoch {len(updates)} of {config['epochs']}, {lanes.step:,} updates, test "
            f"accuracy {np.mean(accuracy[-1]):.2%}",
            flush=True,
        )
    return {
        "accuracy": np.transpose(accuracy).tolist(),
        "loss": np.transpose(loss).tolist(),
        "updates": updates,
        "diverged": int((finite == 0).sum()),
    }


def sweep(
    config: Mapping[str, Any], lrs: Sequence[float], seeds: int = 1, last: int = 1
) -> dict[str, Any]:
    """Validation accuracy of each rate, a mean of its seeds and its last epochs.

    Returns:
      lrs, accuracy: [rates]; best: the rate of the highest accuracy.
    """
    recipe = build.check(config, parts=1)
    each = [Lane(seed, lr) for lr in lrs for seed in range(seeds)]
    lanes = Lanes(recipe, recipe.read(), each, LOOK)
    seen = []
    for epoch in recipe.epochs():
        while lanes.step < (end := epoch.first + epoch.updates):
            lanes.advance(min(LOOK, end - lanes.step))
        if epoch.number >= config["epochs"] - last:
            seen.append([m["accuracy"] for m in lanes.evaluate("validation", range(len(each)))])
    accuracy = np.mean(seen, 0).reshape(len(lrs), seeds).mean(1)
    best = list(lrs)[int(np.argmax(accuracy))]
    return {"lrs": list(lrs), "accuracy": accuracy.tolist(), "best": best}


def trained(name: str, config: Mapping[str, Any], seeds: int, folder: Path) -> dict[str, Any]:
    """`train`, or what an earlier run of the study kept of it in <folder>/<name>.json."""
    asked = {"config": config, "seeds": seeds}
    path = folder / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
    return remembered(path, asked, lambda: train(name, config, seeds))


def gap(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The mean of ours - theirs over seeds, pair by pair, with Student's 95 % interval."""
    from scipy.stats import t

    pairs = np.subtract(ours, theirs)
    n, mean = len(pairs), float(np.mean(pairs))
    half = float(t.ppf(0.975, n - 1) * np.std(pairs, ddof=1) / np.sqrt(n))
    return {"gap": mean, "low": mean - half, "high": mean + half}


def is_small(found: Mapping[str, Any], margin: float = MARGIN) -> str:
    """Whether a gap is within the margin: "yes" or "no" where all of its interval says so."""
    if found["low"] >= -margin and found["high"] <= margin:
        return "yes"
    return "no" if found["low"] > margin or found["high"] < -margin else "unclear"


def is_above(found: Mapping[str, Any]) -> str:
    """Whether a gap is above zero: "yes" or "no" where all of its interval says so."""
    return "yes" if found["low"] > 0 else "no" if found["high"] < 0 else "unclear"


def is_below(found: Mapping[str, Any]) -> str:
    """Whether a gap is below zero: "yes" or "no" where all of its interval says so."""
    return "yes" if found["high"] < 0 else "no" if found["low"] > 0 else "unclear"


def reaches(found: Mapping[str, Any], margin: float = MARGIN) -> str:
    """Whether a gap is no more than the margin under zero: "yes" or "no" as its interval says."""
    if found["low"] >= -margin:
        return "yes"
    return "no" if found["high"] < -margin else "unclear"


def at_update(run: Mapping[str, Any], update: float) -> np.ndarray:
    """A run's accuracy at an update, on a line between two epochs' ends; float64 [seeds]."""
    return np.array([np.interp(update, run["updates"], curve) for curve in run["accuracy"]])


def percent(found: Mapping[str, Any]) -> str:
    """A gap and its interval as text."""
    values = (100 * found[k] for k in ("gap", "low", "high"))
    return "{:+.2f} % [{:.2f}, {:.2f}]".format(*values)


def text_of(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts for a terminal."""
    return "\n".join(f"{v['claim']}: {v['holds'].upper()}\n  {v['seen']}" for v in verdicts)


def save(record: Mapping[str, Any], stem: str, folder: Path | None) -> Path:
    """Writes a record with device, date and versions; by default among the committed ones."""
    where = {
        "device": device(),
        "date": datetime.date.today().isoformat(),
        "lrlab": records.environment(),
    }
    slug = re.sub(r"\W+", "_", where["device"].lower()).strip("_")
    path = (folder or RESULTS) / f"{stem}_{slug}.json"
    records.write_json(path, {**record, **where})
    return path


def summary(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A row an arm for the record: updates, final and best test accuracy over its seeds, curves."""
    rows = []
    for name, run in runs.items():
        curves = np.array(run["accuracy"])
        finals = curves[:, -1]
        low, high = valley.bootstrap(finals.tolist())
        rows.append(
            {
                "arm": name,
                "n": len(finals),
                "updates": run["updates"][-1],
                "accuracy": float(finals.mean()),
                "sd": float(finals.std(ddof=1)) if len(finals) > 1 else None,
                "interval": [low, high],
                "best": float(curves.mean(0).max()),
                "finals": finals.tolist(),
                "curve": curves.mean(0).round(5).tolist(),
                "at": run["updates"],
                "loss": np.mean(run["loss"], 0).round(5).tolist(),
                "diverged": run["diverged"],
                "seconds": round(run["seconds"], 1),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], published: Mapping[str, str] | None = None) -> str:
    """Rows of `summary` for a terminal; `published`: what the source says of an arm, as text."""
    width = max(len(row["arm"]) for row in rows)
    lines = [
        f"{'arm':<{width}}{'updates':>9}{'test acc.':>11}{'s.d.':>7}{'95 % interval':>17}"
        f"{'best':>9}{'diverged':>10}" + ("  published" if published else "")
    ]
    for row in rows:
        spread = "" if row["sd"] is None else f"{100 * row['sd']:.2f}"
        low, high = (f"{100 * x:.2f}" for x in row["interval"])
        lines.append(
            f"{row['arm']:<{width}}{row['updates']:>9,}{row['accuracy']:>11.2%}{spread:>7}"
            f"{f'{low} to {high}':>17}{row['best']:>9.2%}{row['diverged']:>10}"
            + (f"  {published.get(row['arm'], '')}" if published else "")
        )
    return "\n".join(lines)


def draw(
    runs: Mapping[str, Run], title: str = "", rates: Mapping[str, np.ndarray] | None = None
) -> "Figure":
    """Test accuracy against updates, a line an arm; bands: the least and the most of the seeds.

    Args:
      rates: of every update [updates], by arm, for a second panel.
    """
    from matplotlib.figure import Figure

    with plots.style(plots.LIGHT):
        figure = Figure(figsize=(12.6 if rates else 8.4, 4.6), layout="constrained")
        axes = figure.subplots(1, 2 if rates else 1, squeeze=False)[0]
        looks = _looks(runs)
        for name, run in runs.items():
            curves, color, marker, dashes = np.array(run["accuracy"]), *looks[name]
            every = max(1, curves.shape[1] // 8)
            axes[0].plot(
                run["updates"], curves.mean(0), color=color, marker=marker, markevery=every,
                linestyle=dashes, label=name,
            )  # fmt: skip
            band = curves.min(0), curves.max(0)
            axes[0].fill_between(run["updates"], *band, color=color, alpha=0.13, linewidth=0)
        ends = {name: float(np.mean(run["accuracy"], 0)[-1]) for name, run in runs.items()}
        sound = [r for name, r in runs.items() if ends[name] > max(ends.values()) - COLLAPSED]
        late = np.array([c[len(c) // 4 :] for r in sound for c in r["accuracy"]], object)
        seen = np.concatenate([np.asarray(c, float) for c in late])
        low = max(float(np.quantile(seen, 0.03)), float(seen.max()) - 0.35)
        axes[0].set_ylim(low - 0.01, float(seen.max()) + 0.01)
        axes[0].yaxis.set_major_formatter(lambda v, _: f"{v:.1%}")
        labels = [("optimizer updates", "test accuracy", title or "Test accuracy")]
        if rates:
            for name, values in rates.items():
                color, _, dashes = looks[name]
                x, y = plots.decimate(np.arange(len(values), dtype=np.float64), values)
                axes[1].plot(x, y, color=color, linestyle=dashes)
            labels.append(("optimizer updates", "", "Learning rate"))
        for ax, (x, y, text) in zip(axes, labels, strict=True):
            ax.set_title(text, loc="left", fontsize=10, fontweight="bold")
            ax.set_xlabel(x)
            ax.set_ylabel(y)
            ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(5, len(runs)), fontsize=8.5)
    return figure


def _looks(names: Sequence[str] | Mapping[str, Any]) -> dict[str, tuple[str, str, Any]]:
    """Colour, marker and dashes of each arm; no two are alike among 28."""
    dashes = "-", (0, (5, 2)), (0, (2, 2)), (0, (5, 2, 1, 2))
    n = len(charts.COLORS)
    return {
        name: (charts.COLORS[i % n], charts.MARKERS[(i + i // n) % n], dashes[i // n % 4])
        for i, name in enumerate(names)
    }


def command_line(
    doc: str | None, sizes: Mapping[str, Any], study: Callable[[str, Any, Path], str | None]
) -> int:
    """The program of a study: --size and --workdir; returns an exit code as `lrlab.main` does.

    Args:
      study: (name of the size, the size, workdir) -> what to print at the end.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sizes, default="desk")
    parser.add_argument("--workdir", type=Path, required=True)
    known = parser.parse_args()
    command._prepare_process()
    command._device_a_core()
    devices.use_cache()
    known.workdir.mkdir(parents=True, exist_ok=True)
    try:
        print(study(known.size, sizes[known.size], known.workdir) or "")
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is not done", file=sys.stderr)
        return 130
    except Stopped as e:  # by a job of the study, which saved first
        print(f"{e}; the same command goes on", file=sys.stderr)
        return 128 + e.number
    except ConfigError as e:
        print(e, file=sys.stderr)
        return command.USAGE
    except DataError as e:
        print(e, file=sys.stderr)
        return command.DATA
    return 0
