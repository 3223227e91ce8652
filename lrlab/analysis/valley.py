"""What a sweep says: the valley of each setting, its best rate, and how wide the good band is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NEAR = 0.01  # of accuracy: what is as good as the best
RESAMPLES = 2000
MANY = 12  # values of a number: more of them were sampled, and no two trials share one


def bootstrap(scores: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; both ends equal it where there is one score."""
    x = np.asarray(scores, np.float64)
    if len(x) < 2:
        return float(x.mean()), float(x.mean())
    draws = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    low, high = np.quantile(x[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def band(lrs: Sequence[float], good: Sequence[bool], best: int) -> tuple[float, float]:
    """Lowest and highest rate of the unbroken run of good ones around number `best`."""
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(lrs) and good[high + 1]:
        high += 1
    return float(lrs[low]), float(lrs[high])


def decades(low: float, high: float) -> float:
    """Width of a band of rates in powers of ten."""
    return math.log10(high / low)


def settings(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a point without its seed, the best first: mean over seeds, with its interval.

    Args:
      rows: of `trials.jsonl`, flat. keys: of a point.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    kept = [k for k in keys if k != "seed"]
    for row in rows:
        found.setdefault(repr([row[k] for k in kept]), []).append(row)
    entries = []
    for members in found.values():
        scores = [_score(r) for r in members]
        mean = float(np.mean(scores))
        low, high = bootstrap(scores)
        entries.append(
            {
                **{k: members[0][k] for k in kept},
                "seeds": len(members),
                "val_accuracy": mean,
                "low": low,
                "high": high,
                "val_loss": _mean([r.get("val_loss") for r in members]),
                "test_accuracy": _mean([r.get("test_accuracy") for r in members]),
                "updates": _mean([r["updates"] for r in members]),
                "outcomes": _counts(members),
            }
        )
    return sorted(entries, key=lambda e: (-e["val_accuracy"], e["val_loss"] or math.inf))


def _score(row: Mapping[str, Any]) -> float:
    """Validation accuracy; a run that diverged has none, and counts as 0."""
    score = row.get("val_accuracy")
    return 0.0 if score is None or row["outcome"] == "diverged" else float(score)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    names = [r["outcome"] for r in rows]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def lines(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """The keys that tell valleys apart: neither rate nor seed, nor a number that was sampled."""
    found = []
    for key in keys:
        values = {repr(row[key]) for row in rows}
        is_number = all(isinstance(row[key], int | float) for row in rows)
        if key not in ("lr", "seed") and not (is_number and len(values) > MANY):
            found.append(key)
    return found


def valleys(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """For each setting of what is neither rate nor seed: what its rates came to.

    Returns:
      name, trials, outcomes; best: the best rate, its mean validation accuracy and interval over
      seeds; good: the band of rates around it whose mean is within NEAR of it, and its width in
      decades, unless other numbers were sampled along; trains: the lowest and the highest rate at
      which any trial reached the target, and how many did; fastest: the rate that took the fewest
      updates to it.
    """
    split = lines(rows, keys)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = ", ".join(_text(row[k]) for k in split) or "all"
        groups.setdefault(name, []).append(row)
    is_grid = not set(keys) - {"lr", "seed", *split}
    return [_valley(name, members, keys, is_grid) for name, members in groups.items()]


def _valley(
    name: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str], is_grid: bool
) -> dict[str, Any]:
    by_rate = sorted(settings(rows, keys), key=lambda e: e.get("lr", 0.0))
    means = [e["val_accuracy"] for e in by_rate]
    best = int(np.argmax(means))
    lrs = [float(e.get("lr", math.nan)) for e in by_rate]
    found: dict[str, Any] = {"name": name, "trials": len(rows), "outcomes": _counts(rows)}
    found["best"] = {
        k: by_rate[best].get(k) for k in ("lr", "val_accuracy", "low", "high", "seeds")
    }
    if "lr" in keys and len(lrs) > 1 and is_grid:
        low, high = band(lrs, [m >= means[best] - NEAR for m in means], best)
        found["good"] = {"low": low, "high": high, "decades": decades(low, high)}
    hits = [r for r in rows if r["outcome"] == "target"]
    if hits:
        found["trains"] = {"trials": len(hits)}
        if "lr" in keys:
            rates = [r["lr"] for r in hits]
            found["trains"] |= {"low": min(rates), "high": max(rates)}
        first = min(hits, key=lambda r: r["updates"])
        found["fastest"] = {"lr": first.get("lr"), "updates": first["updates"]}
    return found


def scaling(rows: Sequence[Mapping[str, Any]], key: str = "batch.size") -> dict[str, Any] | None:
    """How the best rate goes with the batch: the power p of lr ~ batch^p, by least squares of logs.

    The best rate of a size is the middle of the band that is within NEAR of the best, which moves
    less from seed to seed than the best itself; sizes whose band ends at the rates tried say
    nothing of its middle, and are left out.

    Args:
      rows: of a grid of rates and sizes, perhaps of seeds, and of nothing else.
    Returns:
      power with low and high, its 95 % interval over seeds (None for one seed); sizes: those that
      were fitted; log_size, log_lr: the centre of the fit. None for fewer than three sizes.
    """
    seeds = sorted({row.get("seed", 0) for row in rows})
    whole = _power(rows, key)
    if whole is None:
        return None
    low = high = None
    if len(seeds) > 1:
        each = {seed: [r for r in rows if r.get("seed", 0) == seed] for seed in seeds}
        rng, found = np.random.default_rng(0), []
        for _ in range(200):
            drawn = [row for s in rng.choice(seeds, len(seeds)) for row in each[s]]
            fit = _power(drawn, key)
            found += [fit["power"]] if fit else []
        low, high = map(float, np.quantile(found, [0.025, 0.975])) if found else (None, None)
    return {**whole, "low": low, "high": high, "seeds": len(seeds)}


def _power(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """The fit of `scaling` without its interval."""
    scores: dict[Any, dict[float, list[float]]] = {}
    for row in rows:
        scores.setdefault(row[key], {}).setdefault(row["lr"], []).append(_score(row))
    middles = {}
    for size in sorted(scores):
        lrs = sorted(scores[size])
        means = [float(np.mean(scores[size][lr])) for lr in lrs]
        best = int(np.argmax(means))
        low, high = band(lrs, [m >= means[best] - NEAR for m in means], best)
        if lrs[0] < low and high < lrs[-1]:
            middles[size] = math.sqrt(low * high)
    if len(middles) < 3:
        return None
    x, y = np.log(list(middles)), np.log(list(middles.values()))
    power = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return {
        "power": power,
        "sizes": list(middles),
        "log_size": float(x.mean()),
        "log_lr": float(y.mean()),
    }


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], at_most: int) -> dict[str, Any]:
    """All of it, as the record keeps it; `at_most`: updates if no trial had ended early."""
    return {
        "keys": list(keys),
        "lines": lines(rows, keys),
        "trials": len(rows),
        "outcomes": _counts(rows),
        "updates": int(sum(r["updates"] for r in rows)),
        "at_most": at_most,
        "valleys": valleys(rows, keys),
        "settings": settings(rows, keys)[:20],
        "scaling": scaling(rows) if set(keys) - {"seed"} == {"lr", "batch.size"} else None,
    }
