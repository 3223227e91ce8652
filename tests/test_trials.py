import numpy as np
import pytest

from lrlab.points import Target
from lrlab.trials import Trials

SIZE = 10


def seen(correct, loss=1.0, finite=None, lr=0.1):
    """Records [updates, 1, columns] of one lane."""
    correct = np.asarray(correct, float)
    ones = np.ones_like(correct)
    finite = ones if finite is None else np.asarray(finite, float)
    loss = np.broadcast_to(np.asarray(loss, float), correct.shape)
    return np.stack([lr * ones, finite, loss * SIZE, correct, SIZE * ones], -1)[:, None]


def follow(trials, records):
    for first in range(0, len(records), trials.look):
        if trials.see(first, records[first : first + trials.look], [0]):
            return trials.row(0)
    return None


@pytest.mark.parametrize("look", [1, 4, 50])
@pytest.mark.parametrize("every", [1, 3])
def test_the_target_is_reached_at_the_first_update_whose_window_is_good_enough(look, every):
    rng = np.random.default_rng(look)
    correct = rng.binomial(SIZE, np.linspace(0.2, 1, 100))
    trials = Trials(1, 10, SIZE, 100, look, Target(0.8, 50, every))
    row = follow(trials, seen(correct))
    wanted = next(
        t for t in range(5, 101) if t % every == 0 and correct[t - 5 : t].sum() >= 0.8 * 50
    )
    assert (row["outcome"], row["updates"]) == ("target", wanted)
    assert row["examples"] == wanted * SIZE


def test_the_cumulative_target_counts_from_the_start():
    correct = [0] * 10 + [SIZE] * 90
    trials = Trials(1, 10, SIZE, 100, 20, Target(0.75, None, 1))
    assert follow(trials, seen(correct))["updates"] == 40


def test_a_lane_diverges_at_its_first_update_that_is_not_finite():
    finite = [1] * 13 + [0] * 7
    row = follow(Trials(1, 10, SIZE, 20, 5), seen([5] * 20, loss=7.0, finite=finite, lr=0.3))
    assert (row["outcome"], row["updates"]) == ("diverged", 13)
    assert (row["last_lr"], row["last_loss"]) == (0.3, 7.0)
    assert row["curve"][-1] == [13, 7.0, 0.5]


def test_without_a_target_a_lane_trains_to_its_budget():
    row = follow(Trials(1, 10, SIZE, 18, 5), seen([5] * 18))
    assert (row["outcome"], row["updates"], len(row["curve"])) == ("budget", 18, 4)


@pytest.mark.parametrize(
    ("correct", "loss", "outcome", "updates"),
    [
        ([1] * 40, 2.5, "dead", 10),
        ([1] * 40, 2.3, "stuck", 25),
        ([1] * 40, np.linspace(2.3, 2.2, 40), "budget", 40),  # it falls: slow, not stuck
        ([5] * 40, 2.5, "budget", 40),
    ],
)
def test_hopeless_lanes_are_given_up_only_where_the_rules_say(correct, loss, outcome, updates):
    records = seen(correct, loss=loss)
    row = follow(Trials(1, 10, SIZE, 40, 5, rules=("dead", "stuck")), records)
    assert (row["outcome"], row["updates"]) == (outcome, updates)
    assert follow(Trials(1, 10, SIZE, 40, 5), records)["outcome"] == "budget"


def test_what_was_kept_goes_on_as_if_nothing_had_happened():
    correct = np.random.default_rng(0).binomial(SIZE, np.linspace(0.2, 1, 60))
    whole, cut = (Trials(1, 10, SIZE, 60, 6, Target(0.9, 100)) for _ in range(2))
    row = follow(whole, seen(correct))
    for first in (0, 6):
        cut.see(first, seen(correct)[first : first + 6], [0])
    again = Trials(1, 10, SIZE, 60, 6, Target(0.9, 100))
    again.restore(cut.state())
    for first in range(12, 60, 6):
        if again.see(first, seen(correct)[first : first + 6], [0]):
            break
    assert again.row(0) == row
