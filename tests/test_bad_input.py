"""Rows B10 to B54 of the list of bad input: each refused with its field, value and what is allowed.

Digits trains 9 updates an epoch at 128, so `tiny` is a run of 18 updates.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from lrlab import build
from lrlab.resolve import ConfigError

WARM = {"name": "linear", "start": 0.0, "end": 1.0}
COSINE = {"name": "cosine", "start": 1.0, "end": 0.0}
HERE = "test_bad_input:"


def shape(name, **keywords):
    """A schedule of one phase."""
    return {"schedule": ({"name": name, **keywords},)}


def steps(*boundaries):
    return shape("multi_step", boundaries=boundaries)


def batch(**keywords):
    return {"batch": {"name": "fixed", "size": 128, **keywords}}


def grows(**keywords):
    return batch(**{"name": "increasing", **keywords})


def plateau(**keywords):
    return batch(name="plateau", **keywords)


def rule(name, **keywords):
    return {"optimizer": {"name": name, **keywords}}


def over(*phases):
    """A value that is scheduled beside the rate."""
    return {"schedule": phases}


def falls_below_zero(steps):
    return lambda t: 1.0 - 2.0 * t / steps


def ends_in_nan(steps):
    return lambda t: jnp.sqrt(1.0 * (steps // 2 - t))


def gives_a_vector(steps):
    return lambda t: jnp.full(3, t / steps)


def asks_for_its_value(steps):
    return lambda t: 1.0 if t < steps // 2 else 0.1


def gives_no_function(steps):
    return 1.0 / steps


def falls_to_zero(steps):
    return lambda t: jnp.maximum(1.0 - 2.0 * t / steps, -1e-8)


def ends_at_one(steps):
    return lambda t: t / (steps - 1)


# (row and input, the change, what the one message must say)
BAD = [
    ("B10 negative rate", {"lr": -0.1}, "lr=-0.1", "(0, "),
    ("B11 rate 0", {"lr": 0.0}, "lr=0.0", "above 0"),
    ("B11 rate NaN", {"lr": float("nan")}, "lr=nan", "finite"),
    ("B11 rate too large", {"lr": 1e20}, "lr=1e+20", "1e+06]"),
    (
        "B13 warm-up longer than the run",
        {"schedule": ({**WARM, "epochs": 3}, COSINE)},
        "27 updates (3 epochs)",
        "18 updates (2 epochs)",
    ),
    (
        "B13 warm-up inside a shape as long as the run",
        shape("warmup_cosine_decay", warmup={"epochs": 2}),
        "schedule[0]",
        "warmup < steps",
        "warmup=18, steps=18",
    ),
    (
        "B14 negative warm-up",
        {"schedule": ({**WARM, "epochs": -1}, COSINE)},
        "schedule[0]",
        "epochs=-1",
        ">= 0",
    ),
    (
        "B14 negative duration of a keyword",
        shape("step", factor=0.5, every={"epochs": -1}),
        "schedule[0].every",
        "epochs=-1",
        ">= 0",
    ),
    (
        "B14 negative cooldown",
        shape("warmup_stable_decay", warmup=2, cooldown=-2),
        "cooldown >= 0, got -2",
    ),
    (
        "B14 warm-up and cooldown longer than the run",
        shape("warmup_stable_decay", warmup=10, cooldown=9),
        "warmup + cooldown <= steps",
        "10 + 9 = 19 > 18",
    ),
    ("B15 boundaries not increasing", steps(9, 4), "boundaries[0]=9 before boundaries[1]=4"),
    ("B15 equal boundaries", steps(4, 4), "boundaries[0]=4 before boundaries[1]=4"),
    ("B15 boundary at the run's end", steps(4, 18), "boundaries[1] <= 17", "got 18", "epochs"),
    ("B15 boundary past the run's end", steps(30), "boundaries[0] <= 17", "got 30"),
    ("B15 negative boundary", steps(-3, 4), "boundaries[0] >= 1, got -3"),
    ("B15 boundary in the first update", steps(0, 4), "boundaries[0] >= 1, got 0"),
    ("B15 boundary between updates", steps(4.5), "whole updates for boundaries[0], got 4.5"),
    ("B15 one number", shape("multi_step", boundaries=4), "boundaries", "4", "tuple"),
    (
        "B15 a table's updates out of order",
        shape("table", values=(1.0, 0.5, 0.1), at=(0, 9, 4)),
        "at[1]=9 before at[2]=4",
    ),
    (
        "B15 a table's update past the run's end",
        shape("table", values=(1.0, 0.5), at=(0, 19)),
        "at[1] <= 18",
        "got 19",
    ),
    (
        "B16 too few values",
        shape("piecewise", boundaries=(4, 9), values=(1.0, 0.1)),
        "one value more than boundaries",
        "2 values for 2 boundaries",
    ),
    (
        "B16 too many values",
        shape("piecewise", boundaries=(4,), values=(1.0, 0.5, 0.1)),
        "3 values for 1 boundaries",
    ),
    (
        "B16 a table of other lengths",
        shape("table", values=(1.0, 0.5), at=(0, 4, 9)),
        "one update a value, got 3 and 2",
    ),
    ("B16 a table of nothing", shape("table", values=()), "at least one value"),
    *(
        (f"B17 {name} by {factor}", shape(name, **more, **{key: factor}), f"{key} in (0, 1), got")
        for name, key, more in (
            ("step", "factor", {"every": 3}),
            ("multi_step", "factor", {"boundaries": (4,)}),
            ("exponential", "decay", {"every": 3}),
        )
        for factor in (0.0, -0.5, 1.0, 1.5)
    ),
    ("B17 rising by natural_exponential", shape("natural_exponential", rate=-1.0), "rate > 0"),
    ("B17 plateau by 1", plateau(factor=1.0), "batch.factor=1.0", "(0, 1)"),
    ("B17 plateau by -0.1", plateau(factor=-0.1), "batch.factor=-0.1", "(0, 1)"),
    ("B17 negative patience", plateau(patience=-1), "batch.patience=-1", "whole number >= 1"),
    ("B17 no patience", plateau(patience=0), "batch.patience=0", "whole number >= 1"),
    ("B17 negative cooldown", plateau(cooldown=-1), "batch.cooldown=-1", ">= 0"),
    ("B17 threshold of text", plateau(threshold="x"), "batch.threshold='x'"),
    (
        "B18 low end at the high one",
        shape("triangular", low=1.0, up=3),
        "low < high",
        "low=1.0, high=1.0",
    ),
    ("B18 cycle of nothing", shape("triangular", low=0.1, up=0), "up >= 1, got 0"),
    ("B18 no way down", shape("triangular2", low=0.1, up=3, down=0), "down >= 1, got 0"),
    ("B18 triangles that grow", shape("exp_range", gamma=1.1, low=0.1, up=3), "gamma in (0, 1]"),
    ("B18 first cycle of nothing", shape("cosine_restarts", t_0=0), "t_0 >= 1, got 0"),
    ("B18 cycles that shrink", shape("cosine_restarts", t_0=5, t_mult=0), "t_mult >= 1, got 0"),
    (
        "B18 cycles of a fraction",
        shape("cosine_restarts", t_0=5, t_mult=1.5),
        "whole t_mult",
        "got 1.5",
    ),
    ("B18 no cycles", shape("cosine_restarts", t_0=5, cycles=0), "cycles >= 1, got 0"),
    (
        "B18 restarts that rise",
        shape("cosine_restarts", t_0=5, end=2.0),
        "end < start",
        "end=2.0, start=1.0",
    ),
    ("B18 fast.ai's names", shape("sgdr", cycle_len=0), "sgdr needs cycle_len >= 1, got 0"),
    ("B18 fast.ai's factor", shape("sgdr", cycle_len=3, cycle_mult=0), "cycle_mult >= 1, got 0"),
    (
        "B18 momentum of 1",
        {**rule("momentum", decay=over({"name": "triangular_momentum", "up": 3, "high": 1.0}))},
        "optimizer.decay.schedule[0]",
        "high in (0, 1), got 1.0",
    ),
    *(
        (
            f"B19 peak at {pct} of the run",
            shape("one_cycle", pct_start=pct),
            f"pct_start in (0, 1), got {pct}",
        )
        for pct in (0.0, 1.0, -0.3, 30)
    ),
    ("B19 start of infinity", shape("one_cycle", div=0), "div > 0, got 0"),
    ("B19 negative start", shape("one_cycle", div=-25), "div > 0, got -25"),
    ("B19 end of infinity", shape("one_cycle", final_div=0), "final_div > 0, got 0"),
    (
        "B19 third phase before the second",
        shape("one_cycle", three_phase=True, pct_final=0.2),
        "pct_start < pct_final",
        "pct_start=0.3, pct_final=0.2",
    ),
    ("B19 rise under one update", shape("one_cycle", pct_start=0.01), "update 0 to 0 of 18"),
    ("B20 power 0", shape("polynomial", start=1.0, end=0.0, power=0), "power > 0, got 0"),
    ("B20 end above the start", shape("rex", start=0.5, end=1.0), "end <= start", "end=1.0"),
    (
        "B20 floor above the start",
        shape("exponential", decay=0.5, every=3, start=0.5, end=1.0),
        "end <= start",
        "end=1.0, start=0.5",
    ),
    ("B20 timescale 0", shape("reciprocal_sqrt", timescale=0), "timescale >= 1, got 0"),
    ("B20 warm-up 0 of noam", shape("noam", warmup=0), "warmup >= 1, got 0"),
    (
        "B21 unknown schedule",
        shape("consine", start=1.0, end=0.0),
        "schedule[0].name='consine'",
        "did you mean 'cosine'",
        "known:",
    ),
    ("B22 unknown rule", rule("adm"), "optimizer.name='adm'", "'adam'", "known:"),
    ("B22 unknown set", {"data": {"name": "digit"}}, "data.name='digit'", "'digits'", "known:"),
    (
        "B23 a keyword of another shape",
        {"schedule": ({**COSINE, "power": 2},)},
        "schedule[0].power=2",
        "cosine does not take it",
        "start",
    ),
    ("B24 no epochs", {"epochs": 0}, "epochs=0", "[1, inf)"),
    ("B24 length not set", {"epochs": None}, "epochs is missing"),
    (
        "B24 a phase in two units",
        {"schedule": ({**WARM, "updates": 3, "epochs": 1}, COSINE)},
        "updates=3 and epochs=1",
        "keep one",
    ),
    ("B25 an epoch under one update", batch(size=2000), "batch.size=2000", "1,257 training"),
    (
        "B25 a phase under one update",
        {"schedule": ({**WARM, "epochs": 0.01}, COSINE)},
        "schedule[0] is 0 updates long",
        "an epoch is 9",
    ),
    ("B27 batch of nothing", batch(size=0), "batch.size=0", ">= 1"),
    ("B27 devices do not divide it", batch(size=127), "batch.size=127", "2 devices", "126 or 128"),
    ("B28 batch larger than the set", batch(size=1258), "batch.size=1258", "1,257 training"),
    (
        "B28 a batch that outgrows the set",
        grows(factor=30, at=1, cap=5000),
        "batch.size=3840",
        "1,257 training",
    ),
    ("B29 epochs that do not rise", grows(factor=2, at=(2, 1)), "at[0]=2 and at[1]=1"),
    (
        "B29 sizes that do not rise",
        {"batch": {"name": "stages", "sizes": (64, 32), "at": (0, 1)}},
        "sizes[0]=64",
    ),
    ("B29 a size that no device count divides", grows(factor=1.5, size=50, at=1), "batch.size=75"),
    (
        "B29 an unknown rule",
        grows(factor=2, at=1, coupling="cubic"),
        "batch.coupling='cubic'",
        "sqrt",
    ),
    ("B29 too many programs", grows(factor=1.02, every=1), "programs to compile", "16"),
    ("B30 linear in units of nothing", batch(coupling="linear", base=0), "batch.base=0", ">= 1"),
    ("B31 no part", batch(micro=0), "batch.micro=0", ">= 1"),
    ("B31 parts that do not divide", batch(micro=3), "micro=3", "126 or 129"),
    (
        "B41 a pattern that matches nothing",
        {"lr_multipliers": (("nothing.*", 2.0), (".*", 1.0))},
        "'nothing.*'",
        "none of 4 leaves",
    ),
    ("B41 everything frozen", {"lr_multipliers": ((".*", 0.0),)}, "freezes all 4 leaves"),
    ("B38 a head of other classes", {"model": {"name": "mlp.MLP", "num_classes": 7}}, "=7", "10"),
    (
        "B42 a pre-trained path that is not there",
        {"start": {"run": "runs/nowhere"}},
        "start.run='runs/nowhere'",
    ),
    (
        "B51 patience without validation",
        {"patience": 3, "data": {"name": "digits", "validation": 0}},
        "no validation examples",
        "patience",
    ),
    (
        "B51 plateau without validation",
        {**plateau(), "data": {"name": "digits", "validation": 0}},
        "no validation examples",
    ),
    ("B53 negative decay", {"weight_decay": -1e-4}, "weight_decay=-0.0001", "[0, inf)"),
    ("B53 decay of a rule", rule("adamw", weight_decay=-0.1), "weight_decay in [0, inf), got -0.1"),
    ("B53 beta of 1", rule("adam", b1=1.0), "b1 in [0, 1), got 1.0"),
    ("B53 negative beta", rule("adam", b2=-0.1), "b2 in [0, 1), got -0.1"),
    ("B53 epsilon of 0", rule("adam", eps=0.0), "eps in (0, 1), got 0"),
    ("B53 clip at 0", {"clip_norm": 0.0}, "clip_norm=0.0", "(0, inf)"),
    (
        "B53 label_smoothing that leaves its range",
        {"label_smoothing": over({**WARM, "end": 1.7})},
        "label_smoothing.schedule reaches 1.60556 at update 17",
        "label_smoothing=1.6",
        "[0, 1]",
    ),
    (
        "B53 clip_norm that falls to 0",
        {"clip_norm": over({**COSINE, "epochs": 1}, {"name": "constant", "value": 0.0})},
        "clip_norm.schedule reaches 0 at update 9",
        "(0, inf)",
    ),
    (
        "B53 momentum that rises to 1 and falls again",
        rule("momentum", decay=over({**WARM, "epochs": 1}, COSINE)),
        "optimizer.decay.schedule reaches 1 at update 9",
        "decay in [0, 1), got 1.0",
    ),
    (
        "B53 a beta that grows too large",
        rule("adam", b1=0.9, b2=over({**WARM, "start": 0.9, "end": 1.1})),
        "optimizer.b2.schedule reaches 1.08889 at update 17",
        "b2 in [0, 1)",
    ),
    (
        "B54 a switch that is scheduled",
        rule("momentum", nesterov=over(COSINE)),
        "nesterov cannot be scheduled",
        "what can: decay, clip_norm, l2, weight_decay",
    ),
    (
        "a shape of one's own below 0",
        shape(HERE + "falls_below_zero"),
        "schedule[0] (test_bad_input:falls_below_zero) is -0.111111",
        "at update 10 of its 18",
        "finite and >= 0",
    ),
    ("a shape of one's own with NaN", shape(HERE + "ends_in_nan"), "is nan at update 10 of its 18"),
    (
        "a shape of one's own with vectors",
        shape(HERE + "gives_a_vector"),
        "shape [3]",
        "one number",
    ),
    ("a shape of one's own with an if", shape(HERE + "asks_for_its_value"), "jnp.where in place"),
    ("no shape", shape(HERE + "gives_no_function"), "gives float, not a schedule"),
    (
        "a value of one's own below 0",
        {"weight_decay": over({"name": HERE + "falls_below_zero"})},
        "weight_decay.schedule[0] (test_bad_input:falls_below_zero)",
    ),
]


@pytest.mark.parametrize(("change", "says"), [(b[1], b[2:]) for b in BAD], ids=[b[0] for b in BAD])
def test_it_is_refused_with_field_value_and_what_is_allowed(change, says):
    with pytest.raises(ConfigError) as refused:
        build.check(tiny(**change))
    assert len(refused.value.problems) == 1, "one slip is one problem"
    for text in says:
        assert text in refused.value.problems[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(
            {"lr": 1e-9, **rule("sgd")}, r"lr=1e-09 .* from 1e-05 to 10", id="B12 tiny rate"
        ),
        pytest.param(
            {"lr": 10.0, **rule("adam")}, r"lr=10.0 .* from 1e-07 to 0.3", id="B12 huge rate"
        ),
        pytest.param(
            {"schedule": ({**COSINE, "updates": 7},)},
            r"ends after 7 updates .* of 18 updates \(2 epochs\), 39% of the run",
            id="B26 ends early",
        ),
        pytest.param(
            {"schedule": (WARM | {"epochs": 1}, {**COSINE, "epochs": 8})},
            r"81 updates \(9 epochs\) of 18 updates \(2 epochs\): its end is never reached",
            id="B26 never decays",
        ),
    ],
)
def test_it_runs_with_a_warning_that_says_what_is_odd(change, says):
    (warning,) = build.check(tiny(**change)).warnings
    assert re.search(says, warning)


ENDLESS = {
    "constant": {},
    "step": {"factor": 0.5, "every": 3},
    "exponential": {"decay": 0.5, "every": 3},
    "natural_exponential": {"rate": 0.1},
    "inverse_time": {"rate": 1.0, "every": 3},
    "reciprocal_sqrt": {"timescale": 3},
    "noam": {"warmup": 3},
    "triangular": {"low": 0.1, "up": 3},
    "triangular2": {"low": 0.1, "up": 3},
    "exp_range": {"gamma": 0.9, "low": 0.1, "up": 3},
    "cosine_restarts": {"t_0": 5},
    "sgdr": {"cycle_len": 5},
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("epochs", [1, 3])
def test_b26_a_shape_without_an_end_of_its_own_is_no_horizon(name, epochs):
    assert build.check(tiny(**shape(name, **ENDLESS[name], epochs=epochs))).warnings == ()


def test_b31_parts_of_a_batch_do_not_change_how_updates_are_counted():
    whole, parts = (build.check(tiny(**batch(micro=micro))) for micro in (1, 4))
    assert (whole.total, whole.per_epoch) == (parts.total, parts.per_epoch) == (18, 9)
    np.testing.assert_array_equal(whole.rates(), parts.rates())


def test_b52_a_plateau_beside_a_schedule_multiplies_it():
    recipe = build.check(
        tiny(**plateau(patience=1, factor=0.5), **shape("step", factor=0.1, every=9))
    )
    assert recipe.regime.at(2, [1.0, 1.0]) == (128, 0.5)
    np.testing.assert_allclose(recipe.rates(), np.repeat([0.1, 0.01], 9), rtol=1e-6)


def test_values_at_the_ends_of_their_ranges_are_accepted():
    recipe = build.check(
        tiny(
            label_smoothing=over({"name": HERE + "ends_at_one"}),
            weight_decay=over(WARM),
            clip_norm=over({**COSINE, "end": 1e-3}),
            **rule("momentum", decay=over({**WARM, "end": 0.999})),
        )
    )
    assert set(recipe.scheduled) == {"label_smoothing", "weight_decay", "clip_norm", "decay"}


def test_a_zero_that_is_rounded_below_zero_is_no_negative_rate():
    recipe = build.check(tiny(**shape(HERE + "falls_to_zero")))
    assert recipe.rates().min() < 0


def test_every_row_has_its_case():
    from test_build import BAD as ELSEWHERE

    rows = {b[0][:3] for b in BAD} | {b[0] for b in ELSEWHERE} | {"B12", "B26", "B52"}
    wanted = [*range(10, 32), 38, 41, 42, *range(51, 55)]
    assert rows >= {f"B{n}" for n in wanted}
