"""What the sources claim of populations, what is measured for each claim, what was seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import arms
from experiments.pbt_2017.plan import (
    EARLIER,
    END,
    FIXED,
    GRID,
    HALVING,
    KEYS,
    LATER,
    LINE,
    LONG,
    PBT,
    RANDOM,
    REPLAY,
    SCRATCH,
    SEARCHED,
    SHORT,
    TPE,
)
from experiments.pbt_2017.runs import course, so_far
from lrlab.analysis import valley

Runs = Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]]  # by data set, of each seed the arms


def scratch(run: Mapping[str, Mapping[str, Any]], arm: str) -> float:
    """Mean test accuracy over the seeds of what was trained from scratch."""
    found = run[PBT]["from_scratch"] if arm in (REPLAY, FIXED) else run["from scratch"]
    return float(np.mean(found[arm]["accuracies"]))


def in_effect(numbers: np.ndarray) -> np.ndarray:
    """log2 of rate / (1 - momentum); numbers: [..., 2]."""
    return np.log2(numbers[..., 0] / (1 - numbers[..., 1]))


def quarter(found: Mapping[str, Any], number: int) -> float:
    """Mean log2 of the winner's rate in effect in a quarter of the run, of 0 to 3."""
    each = np.array_split(in_effect(course(found["lineage"], found["updates"])), 4)
    return float(each[number].mean())


def fixed(found: Mapping[str, Any]) -> float:
    """log2 of the rate in effect of the best fixed numbers."""
    return float(in_effect(np.array([found["fixed"][key] for key in KEYS])))


def lead(run: Mapping[str, Mapping[str, Any]], part: float) -> float:
    """What the population's best so far has over that of random search at a part of the budget."""
    budget = part * run[RANDOM]["examples"]
    return so_far(run[PBT]["curve"], budget) - so_far(run[RANDOM]["curve"], budget)


Measure = Callable[[Mapping[str, Mapping[str, Any]]], float]


def _over(ours: str, theirs: str) -> Measure:
    return lambda run: run[ours]["accuracy"] - run[theirs]["accuracy"]


def _from_scratch(ours: str, theirs: str) -> Measure:
    return lambda run: scratch(run, ours) - scratch(run, theirs)


def _second(ours: str, theirs: str) -> Measure:
    return lambda run: quarter(run[ours], 1) - quarter(run[theirs], 1)


class Claim(NamedTuple):
    """What a source says; what is measured in each seed, how that decides, how it is shown."""

    text: str
    measure: Measure
    holds: Callable[[Mapping[str, Any]], str]
    show: Callable[[Mapping[str, Any]], str] = arms.percent


def doublings(found: Mapping[str, Any]) -> str:
    """A gap of log2 of rates and its interval as text."""
    return "{gap:+.2f} doublings [{low:.2f}, {high:.2f}]".format(**found)


CLAIMS = (
    Claim("PBT beats random search", _over(PBT, RANDOM), arms.is_above),
    Claim("halving beats random search", _over(HALVING, RANDOM), arms.is_above),
    Claim("TPE beats random search", _over(TPE, RANDOM), arms.is_above),
    Claim("random search beats a grid", _over(RANDOM, GRID), arms.is_above),
    Claim(
        "PBT is ahead of random search at half of the examples",
        lambda run: lead(run, 0.5),
        arms.is_above,
    ),
    Claim(
        "the winner's rate in effect falls from the first quarter to the last",
        lambda run: quarter(run[PBT], 3) - quarter(run[PBT], 0),
        arms.is_below,
        doublings,
    ),
    Claim(
        "the schedule from scratch reaches the population's winner, or is less than "
        f"{arms.MARGIN:.1%} short",
        lambda run: scratch(run, REPLAY) - run[PBT]["accuracy"],
        arms.reaches,
    ),
    Claim(
        "the schedule from scratch beats the best fixed numbers",
        _from_scratch(REPLAY, FIXED),
        arms.is_above,
    ),
    Claim(
        "the schedule from scratch beats its end, held", _from_scratch(REPLAY, END), arms.is_above
    ),
    Claim(
        "the schedule from scratch beats the best fixed numbers and a line to zero",
        _from_scratch(REPLAY, LINE),
        arms.is_above,
    ),
    Claim(
        "greed: in the second quarter the winner's rate in effect is below the best fixed one",
        lambda run: quarter(run[PBT], 1) - fixed(run[PBT]),
        arms.is_below,
        doublings,
    ),
    Claim(
        "greed: shorter intervals have a lower rate in the second quarter",
        _second(SHORT, PBT),
        arms.is_below,
        doublings,
    ),
    Claim(
        "greed: longer intervals have a higher rate in the second quarter",
        _second(LONG, PBT),
        arms.is_above,
        doublings,
    ),
    Claim("greed: shorter intervals end worse", _over(SHORT, PBT), arms.is_below),
    Claim("greed: longer intervals end better", _over(LONG, PBT), arms.is_above),
    Claim(
        "greed: the lead over random search is smaller at the end than at half of the examples",
        lambda run: lead(run, 1.0) - lead(run, 0.5),
        arms.is_below,
    ),
    Claim("greed: the same numbers later are better", _from_scratch(LATER, REPLAY), arms.is_above),
    Claim(
        "greed: the same numbers earlier are worse", _from_scratch(EARLIER, REPLAY), arms.is_below
    ),
)


def verdicts(runs: Runs) -> list[dict[str, Any]]:
    """Each claim of each data set, and of the mean over them; yes, no or unclear by 95 % intervals.

    With some fifty of them, two or three intervals may exclude zero by chance.
    """
    found = []
    for claim in CLAIMS:
        each = {data: [claim.measure(run) for run in known] for data, known in runs.items()}
        both = {"mean of the sets": np.mean(list(each.values()), 0)} if len(each) > 1 else {}
        for data, pairs in {**each, **both}.items():
            gap = arms.gap(pairs, np.zeros(len(pairs)))
            found.append(
                {
                    "claim": f"{claim.text}, {data}",
                    "seen": claim.show(gap),
                    "holds": claim.holds(gap),
                    "gap": gap,
                }
            )
    return found


def accuracies(known: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """Test accuracy of every arm in each seed; from scratch the means over further seeds."""
    found = {arm: [run[arm]["accuracy"] for run in known] for arm in SEARCHED}
    found |= {arm: [scratch(run, arm) for run in known] for arm in SCRATCH}
    return {arm: np.array(each) for arm, each in found.items()}


def summary(runs: Runs) -> list[dict[str, Any]]:
    """A row for each data set and arm: test accuracy, validation, budget, the gap to its base."""
    rows = []
    for data, known in runs.items():
        tested = accuracies(known)
        for arm, each in tested.items():
            searched = arm in SEARCHED
            low, high = valley.bootstrap(each.tolist())
            row = {
                "data": data,
                "arm": arm if searched else f"from scratch: {arm}",
                "n": len(each),
                "accuracy": float(each.mean()),
                "sd": float(each.std(ddof=1)),
                "interval": [low, high],
                "finals": each.tolist(),
                "gap": arms.gap(each, tested[RANDOM if searched else FIXED]),
            }
            if searched:
                own = [run[arm] for run in known]
                row |= {
                    "validation": [r["validation"] for r in own],
                    "examples": float(np.mean([r["examples"] for r in own])),
                    "trials": float(np.mean([r["trials"] for r in own])),
                    "seconds": round(float(np.mean([r["seconds"] for r in own])), 1),
                }
            else:
                name = "from_scratch" if arm in (REPLAY, FIXED) else None
                own = [(run[PBT][name] if name else run["from scratch"])[arm] for run in known]
                row |= {"diverged": sum(r["diverged"] for r in own)}
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `summary` for a terminal."""
    width = max(len(row["arm"]) for row in rows)
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines.append(
            f"{data:<{width}}{'examples':>13}{'trials':>8}{'test acc.':>11}{'s.d.':>7}  "
            "less random search; from scratch, less the best fixed"
        )
        for row in (row for row in rows if row["data"] == data):
            spent = f"{row.get('examples', 0):,.0f}" if "examples" in row else ""
            trials = f"{row['trials']:,.1f}" if "trials" in row else ""
            base = row["arm"] in (RANDOM, f"from scratch: {FIXED}")
            lines.append(
                f"{row['arm']:<{width}}{spent:>13}{trials:>8}{row['accuracy']:>11.2%}"
                f"{100 * row['sd']:>7.2f}  {'' if base else arms.percent(row['gap'])}"
            )
    return "\n".join(lines)
