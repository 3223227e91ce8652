import importlib.util

import numpy as np
import pytest

from lrlab import points, searches
from lrlab.points import Axis

AXES = (Axis("lr", (), 1e-3, 1.0), Axis("decay", (0.9, 0.0, 0.5)))


def test_the_rungs_of_hyperbands_table_1():
    """Li et al. 2018, table 1, s = 4: R = 81, eta = 3."""
    until = searches.ends(81, 1, 3)
    assert until == (1, 3, 9, 27, 81)
    assert searches.bracket(81, until, 3) == ((1, 27), (3, 9), (9, 3), (27, 1))
    # Continuing from where they are: 81 x 1 + 27 x 2 + 9 x 6 + 3 x 18 + 1 x 54.
    assert searches.cost(81, searches.bracket(81, until, 3), 81, np.arange(82)) == 297


@pytest.mark.parametrize(("total", "first", "eta"), [(380, 380 / 27, 3), (100, 7, 2.5), (9, 1, 2)])
def test_rungs_grow_by_eta_and_end_with_a_whole_trial(total, first, eta):
    until = searches.ends(total, first, eta)
    wanted = [round(first * eta**i) for i in range(20) if first * eta**i < total - 0.5]
    assert until == (*wanted, total)
    for n in range(1, 60):
        kept = [k for _, k in searches.bracket(n, until, eta)]
        assert kept == [max(1, int(n / eta ** (i + 1) + 1e-9)) for i in range(len(until) - 1)]


def test_what_a_bracket_costs_is_what_its_trials_take_one_by_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 300, rng.integers(2, 60))  # batches may grow
        taken = np.concatenate([[0], np.cumsum(sizes)])
        until = searches.ends(len(sizes), float(rng.uniform(1, len(sizes))), 3)
        n = int(rng.integers(1, 40))
        rungs, stopped, left = searches.bracket(n, until, 3), [], n
        for updates, kept in rungs:
            stopped += [updates] * (left - kept)
            left = kept
        each = [sizes[:updates].sum() for updates in (*stopped, *[len(sizes)] * left)]
        assert len(each) == n
        assert searches.cost(n, rungs, len(sizes), taken) == sum(each)


@pytest.mark.parametrize("budget", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("lanes", [1, 9, 27])
def test_brackets_spend_all_that_pays_for_another_trial(lanes, budget):
    taken = 64 * np.arange(381)
    until = searches.ends(380, 380 / 27, 3)
    found = searches.brackets(lanes, until, 3, taken, budget * 64 * 380)
    spent = sum(searches.cost(r.trials, r.rungs, 380, taken) for r in found)
    assert 0 <= budget * 64 * 380 - spent < 64 * 380, "one more trial could be paid for"
    assert [r.first for r in found] == np.cumsum([0, *(r.trials for r in found[:-1])]).tolist()
    assert all(r.trials <= lanes for r in found)
    assert all(r.trials == lanes for r in found[:-1]) or found[0].trials < lanes


def test_plain_rounds_hold_every_trial_once():
    for trials in range(1, 30):
        for lanes in range(1, trials + 1):
            found = searches.plain(trials, lanes)
            numbers = [r.first + i for r in found for i in range(r.trials)]
            assert numbers == list(range(trials))
            assert {r.trials for r in found[:-1]} <= {lanes}


def score(point):
    return -((np.log10(point["lr"]) + 1.2) ** 2) - (point["decay"] - 0.5) ** 2


def asked(method, rounds, lanes, told=score, seed=0, trials=None):
    made = searches.Suggested(method, AXES, seed, lanes, trials or rounds * lanes)
    history = []
    for _ in range(rounds):
        points = made.ask(lanes)
        made.tell([told(p) for p in points])
        history.append(points)
    return history


@pytest.mark.parametrize("method", list(searches.SUGGESTED))
def test_a_fresh_sampler_that_is_told_the_rows_asks_for_the_same(method):
    pytest.importorskip("optuna")
    before = asked(method, 6, 4)
    again = searches.Suggested(method, AXES, 0, 4, 24)
    for found in before:
        assert again.ask(4) == found
        again.tell([score(p) for p in found])
    assert asked(method, 6, 4, seed=1) != before
    assert asked(method, 6, 4, told=lambda p: p["lr"]) != before, "what is told changes nothing"
    assert {p["decay"] for points in before for p in points} <= set(AXES[1].values)
    assert all(1e-3 <= p["lr"] <= 1.0 for points in before for p in points)


def test_one_lane_of_tpe_is_optunas_own_loop():
    """The second source: a study that optimizes by itself, its objective written as users do."""
    optuna = pytest.importorskip("optuna")
    found, order = [], sorted(AXES[1].values)

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        found.append({"lr": lr, "decay": order[trial.suggest_int("decay", 0, 2)]})
        return score(found[-1])

    how = {"seed": 3, "n_startup_trials": 5, "multivariate": True, "constant_liar": True}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(**how), direction="maximize")
    study.optimize(objective, n_trials=20)
    assert [p for (p,) in asked("tpe", 20, 1, seed=3)] == found


def test_a_round_of_tpe_is_not_one_point():
    pytest.importorskip("optuna")
    for found in asked("tpe", 5, 8):
        rates = [np.log10(p["lr"]) for p in found]
        assert len(set(rates)) == 8
        assert np.ptp(rates) > 0.5, "the round holds one place of the range's three decades"


@pytest.mark.parametrize("method", list(searches.SUGGESTED))
def test_samplers_come_closer_than_chance(method):
    pytest.importorskip("optuna")
    late = [
        [score(p) for p in points]
        for seed in range(5)
        for points in asked(method, 8, 4, seed=seed)[-3:]
    ]
    rng = np.random.default_rng(0)
    chance = [
        score({"lr": 10 ** rng.uniform(-3, 0), "decay": rng.choice(AXES[1].values)})
        for _ in range(2000)
    ]
    assert np.median(late) > np.median(chance) / 2, "scores are losses below zero"


@pytest.mark.parametrize("method", list(searches.SUGGESTED))
def test_what_diverged_is_told_as_the_worst_and_avoided(method):
    """Above 0.1 all diverges, a third of the range; below, nothing tells one rate from another."""
    pytest.importorskip("optuna")

    def told(point):
        return None if point["lr"] > 0.1 else 0.5 + 1e-3 * np.sin(1e3 * point["lr"])

    late = [
        p["lr"] > 0.1 for seed in range(8) for ps in asked(method, 8, 4, told, seed)[3:] for p in ps
    ]
    assert np.mean(late) < 0.2, "chance alone is 0.33"


def test_a_generation_of_cmaes_is_a_whole_number_of_rounds():
    pytest.importorskip("optuna")
    for lanes in (1, 3, 4, 10):
        made = searches.Suggested("cmaes", AXES, 0, lanes, 40)
        size = made._study.sampler._popsize
        assert size % lanes == 0
        assert size >= 4


def test_known_points_come_in_order_whatever_is_told():
    given = points.read(
        {"axes": ({"key": "lr", "low": 0.1, "high": 1.0},), "method": "random", "points": 7}
    )
    found = searches.Known(given.expand())
    taken = []
    for count in (3, 3, 1):
        taken += found.ask(count)
        found.tell([None] * count)
    assert taken == given.expand()


def test_what_is_not_installed_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("optuna", "cmaes") else real(name),
    )
    assert searches.missing("tpe") == ["optuna"]
    assert searches.missing("cmaes") == ["optuna", "cmaes"]
    assert searches.missing("halving") == []
