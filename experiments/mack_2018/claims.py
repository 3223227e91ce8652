"""From trials to numbers: bands, growth, scatter, and a verdict on every claim of the study."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.mack_2018.plan import RULES, SEMANTICS, TIE, Row, Times, cost, his_times, rates
from lrlab.analysis import valley


def band(pairs: Sequence[tuple[float, float]], grid: Sequence[float]) -> dict[str, Any]:
    """The rates of a rule that trained: how many, from where to where, with how many gaps.

    below, above: rates of the grid that are too low and too high.
    """
    if not pairs:
        return {"trained": 0}
    lrs, took = [lr for lr, _ in pairs], [t for _, t in pairs]
    inside = sum(min(lrs) * 0.99 <= lr <= max(lrs) * 1.01 for lr in grid)
    best = took.index(min(took))
    return {
        "trained": len(pairs),
        "low": min(lrs),
        "high": max(lrs),
        "decades": valley.decades(min(lrs), max(lrs)),
        "gaps": inside - len(pairs),
        "below": sum(lr < min(lrs) * 0.99 for lr in grid),
        "above": sum(lr > max(lrs) * 1.01 for lr in grid),
        "best_lr": lrs[best],
        "best": took[best],
        "median": float(np.median(took)),
    }


def bands(grid: Sequence[float], clean: Times, cumulative: Times) -> list[dict[str, Any]]:
    """Of each rule the rates that train: his, and ours in both semantics."""
    his = his_times()[0]
    return [
        {
            "rule": rule,
            "published": band(his[rule], rates()),
            "clean": band(clean[rule], grid),
            "cumulative": band(cumulative[rule], grid),
        }
        for rule in RULES
    ]


def overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> float | None:
    """Decades that two bands share, negative: how far apart they are; None where one is empty."""
    if not (a["trained"] and b["trained"]):
        return None
    return math.log10(min(a["high"], b["high"]) / max(a["low"], b["low"]))


def at_rates(found: Times) -> dict[float, dict[str, float]]:
    """For each rate, by its first four digits, the rules that trained there and their times."""
    rows: dict[float, dict[str, float]] = {}
    for rule, pairs in found.items():
        for lr, took in pairs:
            rows.setdefault(float(f"{lr:.4g}"), {})[rule] = took
    return dict(sorted(rows.items()))


def roughness(found: Times) -> float | None:
    """By what factor a time differs from the geometric mean of its two neighbours', r.m.s.

    Neighbours are next to each other among the 48 rates; a smooth valley is near 1.
    """
    steps = []
    for pairs in found.values():
        for (a, x), (b, y), (c, z) in zip(pairs, pairs[1:], pairs[2:], strict=False):
            if _place(c) - _place(b) == _place(b) - _place(a) == 1:
                steps.append(math.log10(y) - (math.log10(x) + math.log10(z)) / 2)
    return 10 ** float(np.sqrt(np.mean(np.square(steps)))) if steps else None


def _place(lr: float) -> int:
    """Which of the 48 rates it is."""
    sixths = round(6 * math.log10(lr))
    return sixths - (sixths > 0)


def ties(found: Times) -> dict[str, Any]:
    """Trials that took no longer than TIE times the fastest of their rule: how many beside it."""
    near = {
        rule: [lr for lr, t in pairs if t <= TIE * min(t for _, t in pairs)]
        for rule, pairs in found.items()
    }
    widths = [valley.decades(lrs[0], lrs[-1]) for lrs in near.values() if lrs]
    return {
        "trials": sum(max(0, len(lrs) - 1) for lrs in near.values()),
        "widest_decades": max(widths, default=0.0),
    }


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Least squares y = c + k x, and R^2; intervals: 95 %, percentile bootstrap of the points."""
    table = np.array([np.ones(len(x)), x, y], np.float64).T

    def solve(rows: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(rows[:, :2], rows[:, 2], rcond=None)[0]

    c, k = solve(table)
    rng = np.random.default_rng(0)
    draws = table[rng.integers(0, len(table), (valley.RESAMPLES, len(table)))]
    lines = np.array([solve(rows) for rows in draws if len(set(rows[:, 1])) > 1])
    ends = np.quantile(lines, (0.025, 0.975), axis=0).T
    rest = ((table[:, 2] - c - k * table[:, 1]) ** 2).sum()
    spread = ((table[:, 2] - table[:, 2].mean()) ** 2).sum()
    return {
        "points": len(table),
        "c": float(c),
        "c_interval": ends[0].tolist(),
        "k": float(k),
        "k_interval": ends[1].tolist(),
        "r2": float(1 - rest / spread) if spread else 1.0,
    }


def growth(rows: Sequence[Row], model: str, what: str) -> dict[str, Any]:
    """How the time to target grows with the weights, at one rate, and whether the best rate moves.

    The rate is the one that, of those that trained at every scale, took the least geometric mean.

    Returns:
      lr; fit: time against weights; power: log time against log weights; best: at each scale and
      seed the fastest rate; moves: log10 of that rate against log10 of the weights. None where too
      little trained.
    """
    hits = [r for r in rows if r["outcome"] == "target"]
    scales, seeds = sorted({r["scale"] for r in hits}), sorted({r["seed"] for r in hits})
    found: dict[str, Any] = dict.fromkeys(("lr", "fit", "power", "moves"))
    found["best"] = []
    if len(scales) < 3:
        return found
    by_rate = {lr: [r for r in hits if r["lr"] == lr] for lr in sorted({r["lr"] for r in hits})}
    steady = {
        lr: float(np.mean([math.log(r[what]) for r in there]))
        for lr, there in by_rate.items()
        if {r["scale"] for r in there} == set(scales)
    }
    if steady:
        found["lr"] = min(steady, key=lambda lr: steady[lr])
        there = by_rate[found["lr"]]
        weights = [cost(model, r["scale"])[0] for r in there]
        took = [r[what] for r in there]
        found["fit"] = line(weights, took)
        found["power"] = line([math.log(n) for n in weights], [math.log(t) for t in took])
    for scale in scales:
        for seed in seeds:
            there = [r for r in hits if (r["scale"], r["seed"]) == (scale, seed)]
            if there:
                best = min(there, key=lambda r: r[what])["lr"]
                found["best"].append({"scale": scale, "seed": seed, "lr": best})
    x = [math.log10(cost(model, b["scale"])[0]) for b in found["best"]]
    found["moves"] = line(x, [math.log10(b["lr"]) for b in found["best"]])
    return found


def verdicts(
    grid: Sequence[float], clean: Times, cumulative: Times, grown: Row, runs: int
) -> list[dict[str, str]]:
    """Each claim: what he published, what we saw in either semantics, and whether it holds here.

    Args:
      grid: rates that were tried. runs: trials in each semantics.
      grown: {"ours": growth in device seconds, "operations", "updates", "published"}.
    """
    his, his_runs = his_times()
    all_three = (his, his_runs), (clean, runs), (cumulative, runs)
    table = bands(grid, clean, cumulative)
    three = [{row["rule"]: row[k] for row in table} for k in SEMANTICS]
    said: list[dict[str, str]] = []

    def add(claim: str, texts: Sequence[str], holds: Sequence[bool]) -> None:
        here = "yes" if all(holds) else "in part" if any(holds) else "no"
        said.append({"claim": claim, **dict(zip(SEMANTICS, texts, strict=True)), "holds": here})

    def each(show: Callable[[Times, int, Mapping[str, Any]], str]) -> list[str]:
        return [show(f, n, b) for (f, n), b in zip(all_three, three, strict=True)]

    def count(found: Times) -> int:
        return sum(map(len, found.values()))

    ours = all_three[1:]
    add(
        "most rates fail",
        each(
            lambda f, n, b: (
                f"{1 - count(f) / n:.0%} fail ({count(f)} of {n} train); too low "
                f"{sum(b[r].get('below', 0) for r in RULES)}, too high "
                f"{sum(b[r].get('above', 0) for r in RULES)}"
            )
        ),
        [count(f) < n / 2 for f, n in ours],
    )
    shared = [[overlap(b[rule], three[0][rule]) for rule in RULES] for b in three[1:]]
    add(
        "each rule has a valley",
        [
            f"{sum(b[r]['trained'] > 0 for r in RULES)} of 6 rules, "
            f"{sum(b[r]['trained'] > 0 and b[r]['gaps'] == 0 for r in RULES)} unbroken"
            + (
                f", {sum((x or -1.0) >= 0 for x in shared[i - 1])} overlap the published band"
                if i
                else ""
            )
            for i, b in enumerate(three)
        ],
        [all(b[r]["trained"] and b[r]["gaps"] == 0 for r in RULES) for b in three[1:]],
    )
    most = [max(map(len, at_rates(f).values()), default=0) for f, _ in all_three]
    add("no rate for all", [f"at most {n} of 6 rules" for n in most], [n < 6 for n in most[1:]])

    def spread(found: Times) -> tuple[float, float] | None:
        took = sorted(t for pairs in found.values() for _, t in pairs)
        return (float(np.median(took)) / took[0], took[-1] / took[0]) if took else None

    factors = [spread(f) for f, _ in all_three]
    add(
        "the best is far faster than the median",
        [f"x{a[0]:.1f}, slowest x{a[1]:.1f}" if a else "none trained" for a in factors],
        [a is not None and a[0] >= 2 for a in factors[1:]],
    )
    add(
        "Adam's band is wide, and the widest",
        each(
            lambda _f, _n, b: (
                f"{b['Adam'].get('decades', 0):.2f} decades; next "
                f"{max(b[r].get('decades', 0) for r in RULES if r != 'Adam'):.2f}"
            )
        ),
        [
            all(b["Adam"].get("decades", 0) >= b[r].get("decades", 0) for r in RULES)
            for b in three[1:]
        ],
    )
    said += [*_of_growth(grown), *_of_scatter(his, clean, cumulative)]
    return said


def _of_growth(grown: Row) -> list[dict[str, str]]:
    ours, his = grown["ours"], grown["published"]
    if not (ours["fit"] and ours["moves"]):
        return []

    def moves(found: Row) -> str:
        low, high = found["moves"]["k_interval"]
        kinds = sorted({b["lr"] for b in found["best"]})
        return (
            f"as weights^{found['moves']['k']:.2f} [{low:.2f}, {high:.2f}]; best at "
            + ", ".join(f"{lr:g}" for lr in kinds)
        )

    def fits(found: Row) -> str:
        fit, power = found["fit"], found["power"]
        return (
            f"R2 {fit['r2']:.2f}, as weights^{power['k']:.2f} [{power['k_interval'][0]:.2f}, "
            f"{power['k_interval'][1]:.2f}] at lr={found['lr']:g}"
        )

    low, high = grown["updates"]["moves"]["k_interval"]
    operations = grown["operations"]
    is_linear = operations["fit"]["r2"] >= 0.9
    return [
        {
            "claim": "the best rate moves with size",
            "published": moves(his),
            "clean": f"{moves(grown['updates'])} (updates)",
            "cumulative": "not trained",
            "holds": "yes" if low > 0 or high < 0 else "no",
        },
        {
            "claim": "time grows linearly with size",
            "published": fits(his),
            "clean": f"{fits(ours)} (device seconds); {fits(operations)} (operations)",
            "cumulative": "not trained",
            "holds": "yes" if is_linear else "no",
        },
    ]


def _of_scatter(his: Times, clean: Times, cumulative: Times) -> list[dict[str, str]]:
    three = his, clean, cumulative
    rough, tied = [roughness(f) for f in three], [ties(f) for f in three]
    delays = [
        slow / dict(clean[rule])[lr]
        for rule in RULES
        for lr, slow in cumulative[rule]
        if lr in dict(clean[rule])
    ]
    texts = [
        (f"neighbours differ x{r:.2f}; " if r else "")
        + f"{t['trials']} ties with the fastest, over {t['widest_decades']:.1f} decades"
        for r, t in zip(rough, tied, strict=True)
    ]
    if delays:
        texts[2] += f"; x{np.median(delays):.1f} later than clean (median of {len(delays)})"
    explained = [
        bool(delays) and float(np.median(delays)) >= 2,
        bool(rough[0] and rough[2]) and math.log(rough[2] or 1) >= math.log(rough[0] or 1) / 2,
        tied[2]["trials"] >= tied[0]["trials"] / 2,
    ]
    return [
        {
            "claim": "the cumulative stop rule explains his scatter",
            **dict(zip(SEMANTICS, texts, strict=True)),
            "holds": "yes" if all(explained) else "in part" if any(explained) else "no",
        }
    ]
