"""What a schedule costs inside a compiled loop, and what it adds to compiling it; on one core.

    taskset -c 0 python benchmarks/schedule_speed.py

Each figure is with the schedule less without it, in one process, by turns; medians. The goals: a
joined schedule of five phases under 1 us a value and under 50 ms of compiling; all shapes of the
gallery built and evaluated in under 5 s. Recorded in experiments/results/schedule_speed.json.
"""

import datetime
import json
import os
import statistics
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import optax

from lrlab import schedules

RECORD = Path(__file__).parent.parent / "experiments" / "results" / "schedule_speed.json"
VALUES, TURNS = 200_000, 15


def five_phases() -> optax.Schedule:
    lengths = [20_000, 50_000, 50_000, 30_000, 50_000]
    shapes = [
        schedules.warmup_linear(lengths[0]),
        schedules.constant(),
        schedules.cosine(1.0, 0.5, lengths[2]),
        schedules.exponential(0.5, 10_000, start=0.5),
        schedules.one_minus_sqrt(0.1, 0.0, lengths[4]),
    ]
    return schedules.join(shapes, lengths)


def program(shape):
    """A loop that uses each value in turn, as training does; nothing of it can be vectorized."""

    def body(carry, t):
        return carry * 0.999 + shape(t), None

    return lambda first: jax.lax.scan(body, first, jnp.arange(VALUES, dtype=jnp.int32))[0]


def compiling(shape) -> float:
    jax.clear_caches()
    begin = time.perf_counter()
    jax.jit(program(shape)).lower(jnp.float32(0)).compile()
    return time.perf_counter() - begin


def running(compiled) -> float:
    begin = time.perf_counter()
    compiled(jnp.float32(0)).block_until_ready()
    return time.perf_counter() - begin


def compare(shape) -> dict[str, float]:
    """Nanoseconds a value and milliseconds of compiling, above the same loop that adds t."""

    def bare(t):
        return t.astype(jnp.float32)

    with_it, without = (jax.jit(program(s)) for s in (shape, bare))
    for compiled in with_it, without:
        running(compiled)
    runs = [(running(with_it), running(without)) for _ in range(TURNS)]
    compiles = [(compiling(shape), compiling(bare)) for _ in range(TURNS)]
    return {
        "ns_a_value": statistics.median(a - b for a, b in runs) / VALUES * 1e9,
        "ns_whole_loop": statistics.median(a for a, _ in runs) / VALUES * 1e9,
        "compile_ms": statistics.median(a - b for a, b in compiles) * 1e3,
    }


def main() -> None:
    found = {
        "five phases joined": compare(five_phases()),
        "cosine": compare(schedules.cosine(1.0, 0.0, VALUES)),
        "cosine_restarts, t_mult 2": compare(schedules.cosine_restarts(1000, 2)),
        "one_cycle": compare(schedules.one_cycle(VALUES)),
        "exponential": compare(schedules.exponential(0.5, 10_000)),
    }
    for name, row in found.items():
        print(
            f"{name}: {row['ns_a_value']:.1f} ns a value ({row['ns_whole_loop']:.1f} with the "
            f"loop), {row['compile_ms']:+.1f} ms to compile"
        )
    record = {
        "what": "above the same loop without a schedule, medians",
        "values": VALUES,
        "turns": TURNS,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": found,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
