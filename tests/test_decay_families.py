import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import arms
from experiments import decay_families as study
from lrlab import build, records
from lrlab.lanes import Lane
from lrlab.resolve import ConfigError
from tests.conftest import ROOT

SMOKE = study.SIZES["smoke"]
T = 1200  # divisible by all that is asked of it, so that no corner lies between updates
LONG = dataclasses.replace(SMOKE, epochs=24)  # 1,257 examples are 50 batches of 25


def plain(name, t, total):
    """The multiplier of a family without warm-up at updates t of so many, in float64."""
    z = t / total
    cosine = (1 + np.cos(np.pi * z)) / 2
    if name == "cosine restarts":
        first = total / 3
        done = np.where(t < first, t / first, (t - first) / (2 * first))
        return (1 + np.cos(np.pi * done)) / 2
    return {
        "constant": np.ones_like(z),
        "step": 0.1 ** np.floor(3 * t / total + 1e-9),
        "multi-step": 0.2
        ** sum((t >= part * total - 1e-9).astype(float) for part in (0.3, 0.6, 0.8)),
        "exponential": 0.01**z,
        "e^-kt": np.exp(-3 * z),
        "inverse time": 1 / (1 + 9 * z),
        "reciprocal root": 1 / np.sqrt(1 + 10 * z),
        "linear": 1 - z,
        "polynomial 2": (1 - z) ** 2,
        "cosine": cosine,
        "1 - sqrt": 1 - np.sqrt(z),
        "REX": (1 - z) / (0.5 + 0.5 * (1 - z)),
        "flat, cosine": np.where(z < 0.75, 1, (1 + np.cos(np.pi * (z - 0.75) / 0.25)) / 2),
        "stable, decay": np.where(z < 0.8, 1, 1 - np.sqrt(np.maximum(z - 0.8, 0) / 0.2)),
    }[name]


def rising(name, t):
    """The multiplier of a family that begins low."""
    z = t / T
    if name == "Noam":
        return np.minimum((t + 1) / (T / 10), np.sqrt((T / 10) / (t + 1)))
    if name == "one cycle":
        up = (1 - np.cos(np.pi * np.minimum(z / 0.3, 1))) / 2
        down = (1 + np.cos(np.pi * np.maximum(z - 0.3, 0) / 0.7)) / 2
        start, end = 1 / 25, 1 / 25e4
        return np.where(z < 0.3, start + (1 - start) * up, end + (1 - end) * down)
    if name == "slanted triangle":
        p = np.where(z < 0.1, z / 0.1, (1 - z) / 0.9)
        return (1 + 31 * p) / 32
    way = 1 - np.abs(1 - (t % (T / 3)) / (T / 6))
    height = {
        "triangles": 1.0,
        "triangles, halved": 0.5 ** np.floor(3 * t / T),
        "triangles, shrinking": 0.1**z,
    }[name]
    return 0.25 + 0.75 * way * height


def expected(name):
    t = np.arange(T)
    if not study.warms_up(name):
        return plain(name, t, T)
    if name.endswith(study.WARMED):
        warm = T // 10
        rest = plain(name.removesuffix(study.WARMED), t[: T - warm], T - warm)
        return np.concatenate([t[:warm] / warm, rest])
    return rising(name, t)


@pytest.mark.parametrize("name", study.NAMES)
def test_the_rates_of_every_schedule_are_those_of_the_formula(name):
    recipe = build.check(study.config(LONG, study.Setting("sgd", name), 0.3), parts=1)
    assert recipe.total == T
    assert not recipe.warnings
    np.testing.assert_allclose(recipe.rates(), 0.3 * expected(name), rtol=2e-5, atol=3e-7)


def test_the_table_of_the_lanes_holds_every_schedule_in_the_order_of_names():
    planned = study.lanes_config(LONG, "sgd")["optimizer"]
    table = study._multipliers(records.canonical(planned["schedules"]), planned["updates"])
    exact = np.stack([expected(name) for name in study.NAMES])
    np.testing.assert_allclose(table, exact, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_a_lane_of_all_schedules_is_the_plain_recipe_of_its_own(rule):
    settings = [study.Setting(rule, name) for name in ("step" + study.WARMED, "one cycle")]
    rates = dict(zip(settings, (0.02, 0.01), strict=True))
    lanes = [
        Lane(seed, rates[s], {"number": float(study.NAMES.index(s.schedule))})
        for s in settings
        for seed in range(2)
    ]
    found = study.train("all", study.lanes_config(SMOKE, rule), lanes, test=True)["lanes"]
    for i, setting in enumerate(settings):
        run = arms.train("one", study.config(SMOKE, setting, rates[setting]), 2)
        own = found[2 * i : 2 * i + 2]
        np.testing.assert_allclose([a["train_loss"] for a in own], run["loss"], rtol=2e-5)
        tested = np.array(run["accuracy"])[:, -1]
        np.testing.assert_allclose([a["test_accuracy"] for a in own], tested, atol=1e-6)
        assert not any(a["diverged"] for a in own)
    assert found[0]["train_loss"] != found[2]["train_loss"]


def test_a_rule_without_its_schedules_is_refused():
    config = study.lanes_config(SMOKE, "sgd")
    config["optimizer"]["schedules"] = (({"name": "no such shape"},),)
    with pytest.raises(ConfigError, match="no such shape"):
        build.check(config, parts=1)


def test_settings_are_families_under_two_rules_and_rules_under_two_families():
    settings = study.settings()
    assert len(set(settings)) == len(settings)
    assert all(s.rate is None for s in settings)
    for rule in study.COMPARED:
        assert {s.schedule for s in settings if s.rule == rule} == set(study.NAMES)
    rest = {(s.rule, s.schedule) for s in settings if s.rule not in study.COMPARED}
    others = "sgd", "nesterov", "adagrad", "adadelta", "rmsprop"
    assert rest == {(rule, name) for rule in others for name in ("constant", "cosine")}
    assert sum(study.warms_up(name) for name in study.NAMES) == len(study.NAMES) - len(study.DECAYS)


LONGER = [pytest.param(n, marks=() if n == "smoke" else pytest.mark.slow) for n in study.SIZES]


@pytest.mark.parametrize("name", LONGER)
def test_the_recipes_of_a_size_are_sound(name, request):
    if name != "smoke":
        request.getfixturevalue("data_dir")  # or it is skipped
    size = study.SIZES[name]
    assert size.seeds >= 3
    totals = set()

    def check(setting, lr):
        recipe = build.check(study.config(size, setting, lr), parts=1)
        totals.add(recipe.total)
        assert recipe.source.sizes[1] >= 180
        assert not recipe.warnings

    for rule in size.lowest:
        for lr in study.grid(size, rule)[:: study.POINTS - 1]:
            check(study.Setting(rule, "cosine"), lr)
    # Of the large net some; `lanes_config` plans all of them for it, below.
    for schedule in study.NAMES[:: 8 if name == "paper" else 1]:
        check(study.Setting("adam", schedule), size.lowest["adam"])
    for setting in study.ARTICLE:
        check(setting, setting.rate)
    for rule in study.COMPARED:  # with a table of all schedules
        totals.add(build.check(study.lanes_config(size, rule), parts=1).total)
    assert len(totals) == 1


def test_grids_span_what_is_said_and_rise_evenly():
    for rule in study.SIZES["desk"].lowest:
        rates = np.array(study.grid(study.SIZES["desk"], rule))
        np.testing.assert_allclose(rates[1:] / rates[:-1], 25**0.25, rtol=1e-3)


def test_a_diverged_run_scores_nothing_and_a_rate_at_the_end_is_marked():
    lanes = [
        {"val_accuracy": [0.2, 0.8], "diverged": False},
        {"val_accuracy": [0.2, 0.9], "diverged": True},
    ]
    assert study.score(lanes) == pytest.approx(0.4)
    inner = study.best_rate([0.1, 0.2, 0.4], [0.5, 0.9, 0.9])
    assert (inner["lr"], inner["edge"]) == (0.2, False)
    assert study.best_rate([0.1, 0.2, 0.4], [0.5, 0.8, 0.9])["edge"]
    assert study.best_rate([0.1, 0.2, 0.4], [0.9, 0.8, 0.1])["edge"]


KEYS = "train_loss", "train_accuracy", "val_loss", "val_accuracy"


def row(accuracy, rule="momentum", schedule="cosine", noise=1e-3, seed=0):
    rng = np.random.default_rng(seed)
    lanes = [
        {
            "test_accuracy": float(accuracy + off),
            "diverged": False,
            **{key: [1.0] for key in KEYS},
        }
        for off in rng.normal(0, noise, 5)
    ]
    return study.summary(study.Setting(rule, schedule), {"lr": 0.1, "edge": False}, lanes)


def test_a_ranking_is_sorted_and_ties_are_what_the_paired_interval_says():
    rows = [row(0.85, seed=1), row(0.90, seed=2), row(0.8998, seed=3), row(0.895, noise=0.02)]
    ranked = study.rank(rows)
    means = [r["accuracy"] for r in ranked]
    assert means == sorted(means, reverse=True)
    assert ranked[0]["tied"]
    assert ranked[0]["behind"]["gap"] == 0
    by_mean = {round(r["accuracy"], 2): r["tied"] for r in ranked}
    assert by_mean[0.85] is False
    assert sum(r["tied"] for r in ranked) == 3  # the noisy one cannot be told apart either
    low, high = ranked[-1]["interval"]
    assert low < 0.85 + 1e-3
    assert high > 0.85 - 1e-3
    assert high - low < 4e-3
    # Paired: what is a little worse on every seed is told apart, noisy as the seeds are.
    noisy = row(0.9, noise=0.02)
    worse = {**noisy, "accuracy": noisy["accuracy"] - 0.002}
    worse["finals"] = [x - 0.002 - 1e-5 * i for i, x in enumerate(noisy["finals"])]
    assert [r["tied"] for r in study.rank([worse, noisy])] == [True, False]


def test_tables_leave_out_what_was_not_tuned():
    rows = [row(0.9, rule, name) for rule in study.COMPARED for name in ("cosine", "step")]
    rows += [row(0.8, "sgd", "cosine")]
    rows[-1] = {**rows[-1], "tuned": True}
    untuned = {**row(0.99, "adam", "cosine"), "tuned": False}
    found = study.tables([*rows, untuned])
    assert [len(found[k]) for k in ("schedules, momentum", "schedules, adam", "rules")] == [2, 2, 3]
    shown = study.show("rules", found["rules"])
    assert len(shown.splitlines()) == 4
    assert "80.0" in shown


ENDS = dict.fromkeys(study.NAMES, 0.0) | {"constant": 1.0, "inverse time": 0.1}


def claims(change=None, warmups=None):
    """What the verdicts say by claim, where all settings are alike but for `change`."""
    change = change or (lambda rule, schedule: 0.0)
    rows = [
        row(0.9 + change(s.rule, s.schedule), s.rule, s.schedule, 1e-4, seed=i)
        for i, s in enumerate(study.settings())
    ]
    found = study.verdicts(rows, warmups or {}, ENDS)
    return {v["claim"].split(",")[0]: v["holds"] for v in found}


def test_verdicts_follow_the_rows():
    decay = "momentum: decay beats a constant rate"
    alike = "momentum: the 13 families that end near zero are within 0.5% of their mean"
    warm = "momentum: warm-up helps where both rates are tuned"
    same = claims()
    assert same[alike] == "yes"
    better = claims(lambda r, s: -0.02 if s.startswith("constant") else 0.0)
    worse = claims(lambda r, s: 0.02 if s.startswith("constant") else 0.0)
    assert (better[decay], worse[decay]) == ("yes", "no")
    assert claims(lambda r, s: -0.03 if s == "step" else 0.0)[alike] == "no"
    # A family that does not end near zero is no part of that claim.
    assert claims(lambda r, s: -0.03 if s == "inverse time" else 0.0)[alike] == "yes"
    helps = claims(lambda r, s: 0.01 if s.endswith(study.WARMED) else 0.0)
    hurts = claims(lambda r, s: -0.01 if s.endswith(study.WARMED) else 0.0)
    assert (helps[warm], hurts[warm]) == ("yes", "no")
    adam = claims(lambda r, s: 0.01 * (r == "adam") - 0.01 * (r == "adagrad"))
    assert (adam["adam: beats momentum"], adam["adagrad: beats momentum"]) == ("yes", "no")


RATES = [0.01, 0.02, 0.04, 0.08, 0.16]


def curves(*means, noise=1e-3, seed=0):
    return np.array(means)[:, None] + np.random.default_rng(seed).normal(0, noise, (5, 5))


def test_what_warm_up_buys_is_read_from_the_curves_both_ways():
    without = curves(0.80, 0.85, 0.88, 0.60, 0.10)
    with_it = curves(0.80, 0.85, 0.88, 0.88, 0.60, seed=1)
    bought = study.warmed(RATES, without, with_it)
    assert bought["highest"] == [0.04, 0.08]
    np.testing.assert_allclose([g["gap"] for g in bought["gap"]], [0, 0, 0, 0.28, 0.5], atol=3e-3)
    assert bought["above"]["gap"] == pytest.approx(0.39, abs=3e-3)
    assert bought["doublings"]["gap"] == pytest.approx(1)
    found = claims(warmups={"momentum": bought, "adam": study.warmed(RATES, with_it, without)})
    above, higher = "above the best rate", "warm-up allows a higher rate"
    assert found[f"momentum: {above}"] == "yes"
    assert found[f"momentum: {higher}"] == "yes"
    assert found[f"adam: {higher}"] == "no"
    assert (
        claims(warmups={"adam": study.warmed(RATES, without, without)})[f"adam: {higher}"] == "no"
    )
    best_is_last = curves(0.5, 0.6, 0.7, 0.8, 0.9)
    last = study.warmed(RATES, best_is_last, best_is_last)
    assert last["above"] is None
    assert claims(warmups={"adam": last})[f"adam: {above}"] == "unclear"


def test_epochs_are_printed_with_the_rate_of_their_last_update():
    one = row(0.9) | {"lr": 0.5}
    for key in KEYS:
        one[key] = [0.75, None]
    text = study.epochs_of(one, np.array([1.0, 0.8, 0.6, 0.4])).splitlines()
    assert text[0].startswith("Epoch [1/2] train loss 0.7500, train accuracy 0.7500, val loss 0.75")
    assert "lr 0.4 " in text[0]
    assert "val loss none" in text[1]
    assert "lr 0.2 " in text[1]


@pytest.mark.slow
def test_the_smoke_study_runs_and_runs_again(tmp_path):
    command = [sys.executable, "-m", "experiments.decay_families", "--size=smoke"]
    command += [f"--workdir={tmp_path}"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "already trained" not in first.stdout
    (path,) = tmp_path.glob("decay_families_smoke_*.json")
    record = records.read_json(path)
    names = [s.name for s in [*study.settings(), *study.ARTICLE]]
    assert {row["setting"] for row in record["arms"]} == set(names)
    assert len(record["arms"]) == len(names)
    assert record["updates"] == 100
    for entry in record["arms"]:
        if entry["tuned"]:
            assert entry["lr"] == entry["rates"][int(np.argmax(entry["scores"]))]
            assert entry["accuracy"] > 0.5
    assert first.stdout.count("Epoch [2/2]") == len(names)
    for figure in "decay_families", "decay_families_warmup":
        assert (tmp_path / "plots" / f"{figure}.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    kept = len([p for p in tmp_path.glob("*.json") if p != path])
    assert again.stdout.count("already trained") == kept > 10
    assert "lanes, epoch" not in again.stdout
    assert records.read_json(path)["arms"] == record["arms"]
