"""The 500-run valley: D. Mack's study of learning rates on MNIST (2018), trained again as lanes.

Claims: most rates fail; each rule has a valley; no rate suits all; and more (`claims.verdicts`).
Source: "How to pick the best learning rate for your machine learning project"; his points are in
        third_party/mack_2018, his program's settings in `plan`: RULES, `rates`, `config`.
Run:    LRLAB_DATA_DIR=... python -m experiments.mack_2018 --size=desk --workdir=runs/mack
        (--size=smoke: seconds; --size=paper: his net, for a GPU; --dry_run: the plans only)
Makes:  <workdir>/plots; desk and paper also experiments/results/mack_2018_<size>_<device>.json,
        desk docs/mack_2018.png. The same command goes on where it was stopped.

Two semantics of "trained to 97 %". clean: the mean training accuracy of the last 2,000 examples.
published: that of all examples since the start, looked at every 50 updates; a late riser carries
its early errors along, so the cap must be higher. No stop rule is used. But what the clean sweep
saw can rule a trial out of the published one exactly, since both train it alike: a trial with more
wrong answers than 3 % of all that the cap allows can never pass.
"""

import argparse
import dataclasses
import datetime
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.mack_2018 import claims, figures
from experiments.mack_2018.plan import (
    BATCH,
    LARGE,
    LOOK,
    ROOT,
    RULES,
    SEMANTICS,
    SIZES,
    STUDIES,
    Row,
    Size,
    config,
    cost,
    his_sizes,
    is_in_reach,
    read,
    times,
)
from experiments.recipes import device
from lrlab import devices, plots, records
from lrlab import main as command
from lrlab.jobs import sweep, train
from lrlab.lanes import Lanes


def train_all(size: Size, workdir: Path, dry_run: bool) -> None:
    """Trains the sweeps, or goes on with them; those that are done say so."""
    words = " ".join(sys.argv[1:])
    options = train.Options(
        "experiments/mack_2018.py", f"python -m experiments.mack_2018 {words}", dry_run
    )
    for study in STUDIES:
        folder = workdir / study
        if study != "published" or dry_run:
            sweep.run(config(size, study), folder, options)
            continue
        began = read(workdir / "clean")
        for rule in RULES:
            there = [r for r in began if r["rule"] == rule]
            chosen = [r["lr"] for r in there if is_in_reach(r, size.target, size.published)]
            if chosen:
                sweep.run(config(size, study, rule, chosen), folder / rule.lower(), options)


def held_out(size: Size, best: Mapping[str, float], workdir: Path) -> dict[str, Any]:
    """Of each rule at its best rate [(updates, validation accuracy)]; trained once, then kept."""
    path = workdir / "validation.json"
    if path.exists():
        return records.read_json(path)
    found: dict[str, Any] = {}
    for rule, lr in best.items():
        (group,) = sweep.check(config(size, "clean", rule, (lr,))).groups
        lanes = Lanes(group.recipe, group.recipe.read(), [group.lane(group.trials[0])], LOOK)
        found[rule] = []
        while lanes.step < size.clean:
            lanes.advance(LOOK)
            (means,) = lanes.evaluate("validation", [0])
            found[rule].append([lanes.step, means["accuracy"]])
    records.write_json(path, found)
    return found


def report(name: str, size: Size, workdir: Path) -> None:
    """Figures, verdicts and record of sweeps that are done."""
    clean_rows, grown_rows = read(workdir / "clean"), read(workdir / "growth")
    folders = [workdir / "published" / rule.lower() for rule in RULES]
    published_rows = [row for folder in folders if folder.exists() for row in read(folder)]
    clean, cumulative = times(clean_rows), times(published_rows)
    model = size.model["name"]
    best = {rule: min(pairs, key=lambda p: p[1])[0] for rule, pairs in clean.items() if pairs}
    for row in grown_rows:
        row["operations"] = row["updates"] * BATCH * cost(model, row["scale"])[1] / 1e9
    grown = {
        "ours": claims.growth(grown_rows, model, "seconds"),
        "operations": claims.growth(grown_rows, model, "operations"),
        "updates": claims.growth(grown_rows, model, "updates"),
        "published": claims.growth(his_sizes(), LARGE["name"], "seconds"),
    }
    found = claims.verdicts(size.rates, clean, cumulative, grown, len(clean_rows))
    caps = size.clean, size.published
    seconds = times(clean_rows, "seconds"), times(published_rows, "seconds")
    none = math.inf, math.inf
    drawn = {
        "valley_updates": figures.draw_valleys(clean, cumulative, caps, "updates to the target"),
        "valley_seconds": figures.draw_valleys(*seconds, none, "device seconds to the target"),
        "extremes": figures.draw_extremes(clean),
        "curves": figures.draw_curves(
            [*published_rows, *clean_rows], clean, size.target, held_out(size, best, workdir)
        ),
        "growth": figures.draw_growth(grown_rows, grown, model),
    }
    for stem, figure in drawn.items():
        plots.save(figure, workdir / "plots" / stem)
    record = {
        "study": f"mack_2018, {name}",
        "settings": {**dataclasses.asdict(size), "rates": len(size.rates)},
        "verdicts": found,
        "bands": claims.bands(size.rates, clean, cumulative),
        "growth": grown,
        "studies": {
            "clean": _spent(clean_rows),
            "published": _spent(published_rows)
            | {"out_of_reach": len(clean_rows) - len(published_rows)},
            "growth": _spent(grown_rows),
        },
        "same": _same(clean_rows, published_rows),
        "trained": {"clean": _points(clean_rows), "published": _points(published_rows)},
        "device": device(),
        "date": datetime.date.today().isoformat(),
        "lrlab": records.environment(),
    }
    slug = re.sub(r"\W+", "_", record["device"].lower()).strip("_")
    is_small = name == "smoke"
    results = workdir if is_small else ROOT / "experiments" / "results"
    path = results / f"mack_2018_{name}_{slug}.json"
    records.write_text(path, _short(record))
    if name == "desk":
        shutil.copyfile(workdir / "plots" / "valley_updates.png", ROOT / "docs" / "mack_2018.png")
    print(_table(record))
    print(f"record {path}\nfigures {workdir / 'plots'}")


def _spent(rows: Sequence[Row]) -> dict[str, Any]:
    """What a study took. wall_seconds: of training, without compiling and testing."""
    outcomes = [r["outcome"] for r in rows]
    device_seconds = sum(r["seconds"] for r in rows)
    return {
        "trials": len(rows),
        "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
        "updates": sum(r["updates"] for r in rows),
        "device_seconds": device_seconds,
        "wall_seconds": device_seconds / devices.count(),
    }


def _same(clean: Sequence[Row], published: Sequence[Row]) -> dict[str, Any]:
    """How far the two sweeps' accuracies differ in the looks that both took of a trial."""
    curves = {(r["rule"], r["lr"]): r["curve"] for r in clean}
    pairs = [
        (a[2], b[2])
        for r in published
        for a, b in zip(r["curve"], curves[r["rule"], r["lr"]], strict=False)
        if a[0] == b[0]
    ]
    return {"looks": len(pairs), "largest": max((abs(a - b) for a, b in pairs), default=0.0)}


def _points(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """Of each rule [rate, updates, device seconds, accuracy on the validation set]."""
    kept = "lr", "updates", "seconds", "val_accuracy"
    return {
        rule: [
            [row[k] for k in kept]
            for row in rows
            if row["rule"] == rule and row["outcome"] == "target"
        ]
        for rule in RULES
    }


def _short(record: Row) -> str:
    """JSON with six digits a number; innermost lists on a line."""

    def cut(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {k: cut(v) for k, v in value.items()}
        return [cut(v) for v in value] if isinstance(value, list | tuple) else value

    text = json.dumps(cut(record), indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def _table(record: Row) -> str:
    """Bands and verdicts for a terminal."""

    def text(b: Mapping[str, Any]) -> str:
        return f"{b['trained']:>2} {b['low']:.2g} … {b['high']:.2g}" if b["trained"] else " 0"

    lines = [f"{'rates that train':<18}{'published':<24}{'clean':<24}cumulative"]
    for row in record["bands"]:
        cells = [text(row[k]) for k in SEMANTICS]
        lines.append(f"{row['rule']:<18}{cells[0]:<24}{cells[1]:<24}{cells[2]}")
    for study, spent in record["studies"].items():
        lines.append(
            f"{study}: {spent['trials']} trials, {spent['updates']:,} updates, "
            f"{spent['wall_seconds']:.0f} s"
        )
    for v in record["verdicts"]:
        lines.append(f"{v['claim']}: {v['holds'].upper()}")
        lines += [f"  {k:<11}{v[k]}" for k in SEMANTICS]
    return "\n".join(lines)


def main() -> int:
    """Trains, draws, records; returns an exit code as `lrlab.main` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--dry_run", action="store_true", help="shows the plans, trains nothing")
    known = parser.parse_args()
    command._prepare_process()
    command._device_a_core()
    devices.use_cache()
    try:
        train_all(SIZES[known.size], known.workdir, known.dry_run)
    except train.Stopped as e:
        print(f"{e}; the same command goes on", file=sys.stderr)
        return 128 + e.number
    if not known.dry_run:
        report(known.size, SIZES[known.size], known.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
