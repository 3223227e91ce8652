"""Two CPU devices, strict JAX, caches of the tests' own."""

import gc
import os
import signal
import tempfile
from pathlib import Path

# Before JAX is imported. More forced devices than cores can wait for each other for ever on JAX
# 0.10 and 0.11 unless the pool is larger.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["PJRT_NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault(
    "LRLAB_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"lrlab-tests-{os.getuid()}")
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Programs that one test compiled serve the others, and the processes that they start."""
    from lrlab import devices

    devices.use_cache()


@pytest.fixture(scope="module", autouse=True)
def programs_given_up():
    """Each module's programs are given up: the kernel maps 65,530 areas into a process, no more."""
    yield
    gc.collect()
    jax.clear_caches()


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """What runs under nohup, or in a shell's background, would hand on that it ignores some."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def data_dir() -> Path:
    """The real data sets, or a visible skip."""
    folder = os.environ.get("LRLAB_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LRLAB_DATA_DIR names no folder: tests on real data are left out")
    return Path(folder).absolute()


def tiny(**changes):
    """A config that trains in a blink: a small MLP on digits."""
    config = {
        "seed": 0,
        "epochs": 2,
        "data": {"name": "digits"},
        "model": {"name": "mlp.MLP", "widths": (16,), "dropout": 0.1},
        "batch": {"name": "fixed", "size": 128},
        "optimizer": {"name": "momentum", "decay": 0.9},
        "lr": 0.1,
        "schedule": ({"name": "cosine", "start": 1.0, "end": 0.0},),
    }
    return config | changes
