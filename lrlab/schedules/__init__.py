"""Shapes: pure Optax schedules with peak 1, and their composition by phases.

A shape maps updates so far (integers, any shape) to a multiplier of `config.lr` (float32, that
shape). `lr` stays outside, so it may be traced and a sweep is one `vmap`; a shape's own numbers may
be traced too. Whatever is concrete is checked when the shape is built. After its end a shape holds
its last value, unless a `dialect` says what another library does.

On their own: `optax.sgd(lambda t: 0.1 * schedules.cosine(1.0, 0.0, 1000)(t))`.
"""

from lrlab.schedules.cooldown import flat_then_cosine, one_minus_sqrt, warmup_stable_decay
from lrlab.schedules.cyclical import (
    cosine_restarts,
    exp_range,
    one_cycle,
    one_cycle_momentum,
    sgdr,
    slanted_triangular,
    triangular,
    triangular2,
    triangular_momentum,
)
from lrlab.schedules.decay import (
    constant,
    cosine,
    exponential,
    inverse_time,
    linear,
    linear_to_zero,
    multi_step,
    natural_exponential,
    noam,
    piecewise,
    polynomial,
    reciprocal_sqrt,
    rex,
    step,
    table,
)
from lrlab.schedules.phases import join as join
from lrlab.schedules.warmup import (
    geometric,
    warmup_constant,
    warmup_cosine,
    warmup_cosine_decay,
    warmup_exponential,
    warmup_linear,
)

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "exp_range",
    "exponential",
    "flat_then_cosine",
    "geometric",
    "inverse_time",
    "linear",
    "linear_to_zero",
    "multi_step",
    "natural_exponential",
    "noam",
    "one_cycle",
    "one_cycle_momentum",
    "one_minus_sqrt",
    "piecewise",
    "polynomial",
    "reciprocal_sqrt",
    "rex",
    "sgdr",
    "slanted_triangular",
    "step",
    "table",
    "triangular",
    "triangular2",
    "triangular_momentum",
    "warmup_constant",
    "warmup_cosine",
    "warmup_cosine_decay",
    "warmup_exponential",
    "warmup_linear",
    "warmup_stable_decay",
]  # what a config may name
