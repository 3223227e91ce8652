"""Population-based training against searches of equal examples; the schedule it finds; its greed.

Claims: a population beats random search at equal examples, and so do halving and TPE; random beats
        a grid. The rate falls along the winner's ancestry; that schedule from scratch is as good,
        and better than the best numbers held. But a population is greedy: it keeps what is best
        after one interval, and so lowers the rate too early.
Source: Jaderberg et al. 2017, arXiv:1711.09846. Random: Bergstra & Bengio 2012, JMLR 13. Halving:
        Jamieson & Talwalkar 2016, arXiv:1502.07943. TPE: Bergstra et al. 2011, NIPS 24. Greed:
        Dalibard & Jaderberg 2021, arXiv:2109.13800; Wu et al. 2018, arXiv:1803.02021.
Run:    LRLAB_DATA_DIR=... python -m experiments.pbt_2017 --size=desk --workdir=runs/pbt_2017
        (--size=smoke: under a minute; --size=paper: a GPU)
Makes:  <workdir>/runs, a folder of the job "search" or "pbt" each with its report, and
        <workdir>/plots; desk and paper also experiments/results/pbt_2017_<size>_<device>.json, desk
        docs/pbt_2017.png. The same command goes on with what is not done.

Rate and momentum are searched, the rate over four decades. The budget is that of as many whole runs
as the population has members, in training examples; halving spends it on more trials, most of them
short. Looks at validation examples are free of charge for all. A seed of the study is that of the
search, and of first weights and orders of the data, which all trials and members share: random
search is the population that does not copy. Comparisons are made seed by seed. Every search hands
over what its validation accuracy chose at the end, and test accuracy is of that alone. Random
search, the grid and populations train all runs at once, TPE and halving in rounds: before the end
their curves also show who has whole runs first.

From scratch, each with further seeds by which nothing was chosen, and means over them:

    the schedule    what the winner's ancestors used, update by update (the job's replay.py)
    later, earlier  the same numbers in the same order; what came at the share s of the run comes at
                    the share s^(1/2), or s^2: if the rate is lowered too early, later is better
    its end, held   the winner's last numbers from the first update on
    best fixed      of as many numbers as the population has members, held, the best: that search
                    took the examples that the population took
    a line to zero  the rate of the best fixed numbers on a line: a schedule without a search

What momentum does to a small rate r is to make it r / (1 - momentum); "the rate in effect" is that.

Greed is also looked for in that rate in the second quarter of the run; in populations whose
intervals are longer or shorter (which also copy less or more often); and in the lead over random
search when half of the examples are spent, beside that at the end.

Differences from the paper: generations instead of members that come and go on their own; members
begin alike but for their numbers; a small net, minutes instead of days; copies draw a number anew
with probability 1/4 and else change it by 1.2 or 0.8, momentum to a neighbour in a list. The size
"paper" has never been run. One rehearsal, of a seed that the study has not, came before "desk";
claims and sizes stayed as they were.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments import arms
from experiments.pbt_2017 import claims, figures
from experiments.pbt_2017.plan import ROOT, SEARCHED, SIZES, Size
from experiments.pbt_2017.runs import perform
from lrlab import plots


def report(name: str, size: Size, runs: claims.Runs, workdir: Path) -> None:
    """Figure, verdicts and record of runs that are done."""
    found, rows = claims.verdicts(runs), claims.summary(runs)
    folder = workdir / "plots"
    plots.save(figures.draw(runs), folder / "pbt_2017")
    kept = (
        "values",
        "lineage",
        "updates",
        "copies",
        "read_back",
        "fixed",
        "fixed_accuracy",
        "from_scratch",
    )
    record = {
        "study": f"pbt_2017, {name}",
        "settings": dataclasses.asdict(size),
        "margin": arms.MARGIN,
        "n": size.seeds,
        "rows": rows,
        "curves": {
            data: {
                arm: {"examples": at.tolist(), "best": _rounded(each)}
                for arm in SEARCHED
                for at, each in [figures.curves(known, arm)]
            }
            for data, known in runs.items()
        },
        "runs": {
            data: {
                arm: [{k: run[arm][k] for k in kept if k in run[arm]} for run in known]
                for arm in SEARCHED
            }
            for data, known in runs.items()
        },
        "verdicts": found,
    }
    path = arms.save(record, f"pbt_2017_{name}", workdir if name == "smoke" else None)
    if name == "desk":
        with Image.open(folder / "pbt_2017.png") as picture:  # a third of the bytes
            small = picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT)
            small.save(ROOT / "docs" / "pbt_2017.png", optimize=True)
    print(claims.table(rows), arms.text_of(found), sep="\n")
    print(f"record {path}\nfigures {folder}")


def _rounded(each: np.ndarray) -> list[list[float | None]]:
    """NaN has no place in a record."""
    return [[None if np.isnan(v) else round(float(v), 5) for v in row] for row in each]


def study(name: str, size: Size, workdir: Path) -> None:
    """Trains, draws, records; what the jobs say goes to <workdir>/log.txt."""
    runs: dict[str, list[dict[str, dict[str, Any]]]] = {data: [] for data in size.sets}
    with (workdir / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        for seed in range(size.seeds):
            for data, known in runs.items():
                known.append(perform(size, data, seed, workdir))
    report(name, size, runs, workdir)


if __name__ == "__main__":
    sys.exit(arms.command_line(__doc__, SIZES, study))
