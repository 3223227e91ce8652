"""One run on several hosts: who they are, and what they agree on.

A host is a process with devices of its own; all of them do the same. What only one can do (records,
checkpoints) the first one does. What only one can know (the time, a signal, a full disk) is agreed
on between two stretches of updates, by collectives on the devices themselves: nothing is left that
could be decided in two ways.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from lrlab.devices._layout import AXIS, parallel
from lrlab.resolve import ConfigError

SILENCE = 30  # seconds without a word from a host until the others give the run up
PATIENCE = 300  # seconds that the first host waits for the others to come


class HostError(RuntimeError):
    """Another host of this run failed; what happened is told there."""


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> int:
    """Makes this process a host of a run; returns its number.

    Without arguments the cluster says who is who (Slurm, Open MPI, a TPU pod, GKE).

    Args:
      coordinator: "host:port" of the first one. count: of hosts. index: of this one.
    Raises:
      ConfigError: no cluster was found, or not all of the hosts came.
    """
    given = coordinator, count, index
    if None in given and given != (None, None, None):
        names = "--coordinator", "--process_count", "--process_index"
        absent = ", ".join(n for n, value in zip(names, given, strict=True) if value is None)
        raise ConfigError([f"{absent} missing: give all three, or none on a cluster"])
    problems = _problems(coordinator, count, index)
    if problems:
        raise ConfigError(problems)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (ValueError, RuntimeError) as e:
        where = f" at {coordinator}" if coordinator else ""
        said = (str(e) or type(e).__name__).splitlines()[0]
        raise ConfigError(
            [
                f"--distributed: the hosts{where} did not find each other ({said}); JAX knows the "
                "hosts of Slurm (srun), Open MPI (mpirun), TPU pods and GKE by itself; elsewhere "
                "give --coordinator=host:port, --process_count and --process_index"
            ]
        ) from e
    sizes = {len(jax.local_devices(process_index=i)) for i in range(jax.process_count())}
    if len(sizes) > 1:
        raise ConfigError([f"hosts have {sorted(sizes)} devices: a run wants equally many of each"])
    return jax.process_index()


def _problems(coordinator: str | None, count: int | None, index: int | None) -> list[str]:
    """What is wrong with hosts that were named."""
    found = []
    if coordinator is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            found.append(f"--coordinator={coordinator} must be host:port, such as 10.0.0.1:1234")
    if count is not None and count < 1:
        found.append(f"--process_count={count} must be at least 1")
    if count is not None and index is not None and not 0 <= index < max(count, 1):
        found.append(f"--process_index={index} must be 0 to {count - 1}: the first host is 0")
    return found


def hosts() -> int:
    """How many train this run together."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this host writes records and checkpoints."""
    return jax.process_index() == 0


@functools.cache
def _merge() -> Callable[..., Any]:
    """Device arrays, whole on each host -> their sum over the hosts' first devices."""

    def merge(x: jax.Array, counts: jax.Array) -> jax.Array:
        return lax.psum(jax.numpy.where(counts > 0, x, 0), AXIS)

    return parallel(merge, sharded=(1,))


def _sum(words: np.ndarray) -> np.ndarray:
    """The sum over hosts of uint32 words."""
    first = np.zeros(jax.local_device_count(), np.int32)
    first[0] = 1
    return np.asarray(_merge()(words, first))


def _everyone(numbers: Sequence[float]) -> np.ndarray:
    """float64 [hosts, numbers] that each of them gave, to the bit."""
    mine = np.frombuffer(np.asarray(numbers, np.float64).tobytes(), np.uint32)
    words = np.zeros((hosts(), len(mine)), np.uint32)
    words[jax.process_index()] = mine
    return np.frombuffer(_sum(words).tobytes(), np.float64).reshape(hosts(), -1)


def largest(number: float) -> float:
    """The largest of the hosts' numbers."""
    return number if hosts() == 1 else float(_everyone([number]).max())


def told(number: float) -> float:
    """The first host's number."""
    return number if hosts() == 1 else float(_everyone([number])[0, 0])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all hosts come through, or none: the error of one is an error of all.

    Raises:
      HostError: another one failed in it.
    """
    if hosts() == 1:
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        worst = np.flatnonzero(_everyone([failed])[:, 0])
    if len(worst):
        raise HostError(f"host {worst[0]} of {hosts()} could not go on; it says why")


def led(work: Callable[[], float | None]) -> float:
    """The number that `work` returns on the first host, which alone does it; None is 0.

    Raises:
      HostError: the first one failed.
    """
    found: float | None = None
    with together():
        if is_first():
            found = work()
    return told(found or 0)


def shared(work: Callable[[], tuple[Any, dict[str, Any]] | None], like: Any) -> Any:
    """What `work` returns on the first host, on all of them: (tree of arrays, JSON) or None.

    Args:
      like: a tree of arrays of the shapes and types to expect.
    """
    if hosts() == 1:
        return work()
    found: tuple[Any, dict[str, Any]] | None = None
    with together():
        if is_first():
            found = work()
    text = json.dumps(found[1]).encode() if found else b""
    if not (length := int(told(len(text)))):
        return None
    leaves, treedef = jax.tree.flatten(found[0] if found else like)
    arrays = [np.asarray(leaf) for leaf in leaves]
    size = length + sum(a.nbytes for a in arrays)
    blob = b"".join([text, *(a.tobytes() for a in arrays)]) if found else b""
    words = np.frombuffer(blob.ljust(-(-size // 4) * 4, b"\0"), np.uint32)
    blob, at, back = _sum(words).tobytes(), length, []
    for a in arrays:
        back.append(np.frombuffer(blob, a.dtype, a.size, at).reshape(a.shape).copy())
        at += a.nbytes
    return jax.tree.unflatten(treedef, back), json.loads(blob[:length])


def differs(tree: Any) -> list[int]:
    """Hosts whose arrays are not, to the bit, those of the first one."""
    if hosts() == 1:
        return []
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    own = float(int.from_bytes(found.digest()[:6], "big"))  # exact in a float64
    everyone = _everyone([own])[:, 0]
    return np.flatnonzero(everyone != everyone[0]).tolist()
