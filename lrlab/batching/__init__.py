"""Batch-size regimes, and the one clock: all durations become optimizer updates here.

A regime is a pure function (epoch, what was seen so far) -> (batch size, factor of the rate), so a
resumed run replays it from its own record. Batches grow at the beginning of an epoch. A schedule
goes on by epochs all the while: its clock is updates at the first batch size (`ticks`).
"""

from lrlab.batching._clock import nearest as nearest
from lrlab.batching._clock import ticks as ticks
from lrlab.batching._clock import to_updates as to_updates
from lrlab.batching._clock import updates_per_epoch as updates_per_epoch
from lrlab.batching._equivalence import Noise as Noise
from lrlab.batching._equivalence import noise_scale as noise_scale
from lrlab.batching._equivalence import to_batches as to_batches
from lrlab.batching._plateaus import plateau, plateau_growth
from lrlab.batching._regimes import Epoch as Epoch
from lrlab.batching._regimes import Regime as Regime
from lrlab.batching._regimes import epochs_of as epochs_of
from lrlab.batching._regimes import fixed, geometric, hybrid, increasing, noise, ramp, stages

__all__ = [  # what a config may name
    "fixed",
    "geometric",
    "hybrid",
    "increasing",
    "noise",
    "plateau",
    "plateau_growth",
    "ramp",
    "stages",
]
