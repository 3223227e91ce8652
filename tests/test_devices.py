from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lrlab import devices

MAPS = Path("/proc/self/maps")


def areas():
    return MAPS.read_bytes().count(b"\n")


def compiled(i):
    """A program like no other."""

    def fn(whole, shared):
        return jnp.sin(whole * i) + jnp.cumsum(whole) * (i + 1) + shared.sum() * 0

    program = devices.parallel(fn, sharded=(1,))
    return program.lower(*arguments(i)).compile()


def arguments(i):
    return np.ones(64 + i, np.float32), np.ones((devices.count(), 2), np.float32)


@pytest.mark.skipif(not MAPS.exists(), reason="areas of memory are counted on Linux")
def test_programs_that_nobody_holds_make_room_and_those_held_still_run():
    held = compiled(0)
    before = areas()
    for i in range(1, 13):
        compiled(i)
    grown = areas()
    assert grown > before + 20  # JAX keeps them all
    devices.make_room(most=grown + 100)
    assert areas() > before + 20  # there is room enough
    devices.make_room(most=grown - 1)
    assert areas() < before + (grown - before) / 2
    np.testing.assert_allclose(held(*arguments(0)), np.arange(1, 65), rtol=1e-6)
