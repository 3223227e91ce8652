import math

import numpy as np
import pytest

from lrlab import population
from lrlab.points import Axis
from lrlab.population import Draws, Rules

AXES = (
    Axis("lr", (), 1e-3, 1.0),
    Axis("optimizer.decay", (0.5, 0.8, 0.9, 0.95)),
    Axis("weight_decay", (), 0.0, 0.1, scale="linear"),
)


def chance(seed, generation, members):
    """Uniform numbers in the order that the population takes them, as plain lists."""
    rng = np.random.Generator(np.random.PCG64([seed, generation]))
    met = rng.random(members).tolist()
    return met, *(rng.random((members, len(AXES))).tolist() for _ in range(3))


def drawn_anew(key, share):
    if key == "optimizer.decay":
        return (0.5, 0.8, 0.9, 0.95)[math.floor(share * 4)]
    if key == "lr":
        return 10 ** (-3 + 3 * share)
    return 0.1 * share


def by_hand(exploit, scores, losses, values, seed, generation, fraction=0.2):
    """One generation read from the paper, member by member."""
    n = len(scores)
    met, anew, value, turned = chance(seed, generation, n)
    alive = [i for i in range(n) if scores[i] == scores[i]]
    better = sorted(alive, key=lambda i: (-scores[i], losses[i], i))
    few = max(1, math.floor(fraction * n + 1e-9))
    out = []
    for i in range(n):
        donor = i
        if exploit == "truncation":
            top = better[:few]
            position = better.index(i) if i in better else n
            # Those that diverged stand at the end of the whole ranking.
            if position >= n - few:
                donor = top[math.floor(met[i] * len(top))]
        elif i not in alive:
            donor = better[math.floor(met[i] * len(better))]
        else:
            others = [j for j in range(n) if j in alive and j != i]
            if others:
                rival = others[math.floor(met[i] * len(others))]
                donor = rival if better.index(rival) < better.index(i) else i
        mine = dict(values[donor])
        if donor != i:
            for k, key in enumerate(("lr", "optimizer.decay", "weight_decay")):
                if anew[i][k] < 0.25:
                    mine[key] = drawn_anew(key, value[i][k])
                elif key == "optimizer.decay":
                    ladder = [0.5, 0.8, 0.9, 0.95]
                    at = ladder.index(mine[key]) + (1 if turned[i][k] < 0.5 else -1)
                    mine[key] = ladder[sorted((0, at, 3))[1]]
                else:
                    low, high = (1e-3, 1.0) if key == "lr" else (0.0, 0.1)
                    factor = 1.2 if turned[i][k] < 0.5 else 0.8
                    mine[key] = sorted((low, mine[key] * factor, high))[1]
        out.append((donor, mine))
    return out


def start(rng, members):
    return [{axis.key: axis.at(float(rng.random())) for axis in AXES} for _ in range(members)]


@pytest.mark.parametrize("exploit", population.EXPLOITS)
def test_forty_generations_are_those_of_a_reading_by_hand(exploit):
    rng, rules = np.random.default_rng(0), Rules(exploit)
    values, how, copies = start(rng, 16), set(), 0
    for generation in range(40):
        scores = np.round(rng.random(16), 1)  # with ties
        scores[rng.random(16) < 0.15] = np.nan
        losses = np.round(rng.random(16), 1)
        if np.isnan(scores).all():
            continue
        wanted = by_hand(exploit, scores.tolist(), losses.tolist(), values, 7, generation)
        ranked = population.order(scores, losses)
        found = population.turn(rules, AXES, values, ranked, Draws.of(7, generation, 16, 3))
        assert list(found.donors) == [donor for donor, _ in wanted]
        for mine, (_, hand) in zip(found.values, wanted, strict=True):
            assert mine == pytest.approx(hand, rel=1e-11)
        values = found.values
        how |= {said for each in found.how for said in each.values()}
        copies += sum(bool(each) for each in found.how)
    assert how == {"drawn anew", "neighbour", "x 1.2", "x 0.8"}
    assert copies > 100


@pytest.mark.parametrize("exploit", population.EXPLOITS)
def test_nobody_becomes_what_diverged_or_what_is_worse(exploit):
    rng = np.random.default_rng(1)
    for case in range(300):
        n = int(rng.integers(2, 20))
        scores = np.round(rng.random(n), 1)
        scores[rng.random(n) < rng.random()] = np.nan
        if np.isnan(scores).all():
            scores[0] = 0.5
        ranked = population.order(scores, np.zeros(n))
        chosen = population.donors(Rules(exploit, 0.5), ranked, rng.random(n))
        for i, donor in enumerate(chosen):
            assert donor in ranked, case
            if i not in ranked:
                assert donor != i
            elif donor != i:
                assert ranked.index(donor) < ranked.index(i)
        if exploit == "truncation":
            assert not {c for i, c in enumerate(chosen) if c != i} & {
                i for i, c in enumerate(chosen) if c != i
            }, "a donor was replaced too"


def test_truncation_replaces_the_worst_fifth_by_one_of_the_best_fifth():
    scores = np.arange(32.0)
    picked = set()
    for generation in range(60):
        draws = Draws.of(0, generation, 32, 1)
        chosen = population.donors(Rules(), population.order(scores, -scores), draws.met)
        assert [i for i, donor in enumerate(chosen) if donor != i] == list(range(6))
        picked |= set(chosen[:6])
    assert picked == set(range(26, 32)), "some of the best were never chosen"


def test_numbers_stay_within_their_bounds_and_lists():
    rng, rules = np.random.default_rng(2), Rules(resample=0.0)
    seen = set()
    for axis in AXES:
        value = axis.at(0.4)
        for _ in range(500):
            value, said = population.explored(axis, value, rules, *rng.random(3))
            seen.add(said)
            if axis.values:
                assert value in axis.values
            else:
                assert axis.low <= value <= axis.high
    assert seen == {"x 1.2", "x 0.8", "neighbour"}
    assert population.explored(AXES[0], 0.9, rules, 0.5, 0.0, 0.1) == (1.0, "x 1.2")
    assert population.explored(AXES[1], 0.95, rules, 0.5, 0.0, 0.1) == (0.95, "neighbour")


def test_a_generation_is_a_function_of_seed_and_generation_alone():
    first, again = Draws.of(3, 5, 8, 2), Draws.of(3, 5, 8, 2)
    np.testing.assert_array_equal(first.met, again.met)
    np.testing.assert_array_equal(first.turn, again.turn)
    for other in Draws.of(4, 5, 8, 2), Draws.of(3, 6, 8, 2):
        assert not np.isclose(first.met, other.met).any()
    drawn = [Draws.of(0, g, 50, 4).anew for g in range(200)]
    assert np.mean(np.array(drawn) < 0.25) == pytest.approx(0.25, abs=0.01)


def test_ancestry_follows_the_copies_back():
    turns = [[0, 1, 0, 3], [0, 0, 2, 3], [2, 1, 2, 1]]
    # 3 was 1 in the last but one generation, 0 before that, and 0 at first.
    assert population.ancestry(turns, 3) == [0, 0, 1, 3]
    assert population.ancestry(turns, 0) == [0, 2, 2, 0]
    assert population.ancestry([], 2) == [2]


def test_pieces_are_where_a_series_changes():
    assert population.pieces([0.1, 0.1, 0.2, 0.2, 0.1]) == ((0, 2, 4), (0.1, 0.2, 0.1))
    assert population.pieces([3.0]) == ((0,), (3.0,))
    rng = np.random.default_rng(3)
    series = rng.integers(0, 3, 200) / 7
    at, values = population.pieces(series)
    again = np.repeat(values, np.diff([*at, 200]))
    np.testing.assert_array_equal(again, series)
