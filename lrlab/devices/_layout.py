"""How programs and arrays lie on the devices.

A program runs on every device with `pmap`. State, data and rates go in whole (`in_axes=None`,
laid out once on all devices, so no call copies them); what differs by device goes in with a leading
device axis. State comes out whole too (`out_axes=None`): a checkpoint sees an ordinary pytree.

Of a run on several hosts each one lays out what its own devices hold: pmap takes the hosts' parts
for the whole, and gives each host its part back.
"""

import contextlib
import ctypes
import gc
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import flatten_util, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrlab.resolve import ConfigError

AXIS = "devices"


def use_cache(folder: Path | None = None) -> None:
    """Keeps compiled programs between processes, small and quick ones too.

    folder: by default $JAX_COMPILATION_CACHE_DIR (JAX's own), $LRLAB_CACHE_DIR/jax,
    ~/.cache/lrlab/jax.
    """
    if not (folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        home = os.environ.get("LRLAB_CACHE_DIR") or Path.home() / ".cache" / "lrlab"
        folder = Path(home) / "jax"
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_memory() -> None:
    """Lets malloc keep what an update frees for the next one; call it before the first array.

    glibc may give memory back to the kernel after every update, in some processes and not in
    others; a large model on a CPU then spends a part of its time in page faults. The price is that
    the process stays as large as it once was. Where there is no glibc this does nothing.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)  # never give back the end of the heap
        mallopt(mmap_max, 0)  # nor take large arrays from elsewhere, which are always given back
        mallopt(arena_max, 1)  # threads have arenas of their own, which would heed neither


def make_room(most: int | None = None) -> None:
    """Gives up compiled programs that nobody holds, before the kernel refuses to map another one.

    JAX keeps what it ever compiled; a run's programs map some 200 areas, and some 300 runs in one
    process are as many as Linux lets it have, by default. Programs of the caller's own are compiled
    again when they are called next.

    Args:
      most: areas from which room is made; by default half of what the kernel allows.
    """
    with contextlib.suppress(OSError, ValueError):  # where there is no Linux
        if most is None:
            most = int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
        if Path("/proc/self/maps").read_bytes().count(b"\n") > most:
            gc.collect()
            jax.clear_caches()


def count() -> int:
    """Devices, those of other hosts too.

    Raises:
      ConfigError: JAX finds none of the platform that was asked for.
    """
    try:
        return jax.device_count()
    except (RuntimeError, AssertionError) as e:  # JAX asserts that the platform asked for is there
        asked, said = os.environ.get("JAX_PLATFORMS", ""), str(e) or "it is not on this machine"
        raise ConfigError(
            [
                f"JAX finds no device for JAX_PLATFORMS={asked!r} ({said.splitlines()[0]}); "
                "unset it, or set JAX_PLATFORMS=cpu, or install lrlab[cuda12], lrlab[cuda13] or "
                "lrlab[tpu] on a machine that has one"
            ]
        ) from e


def describe() -> dict[str, Any]:
    """What a record says about the devices."""
    devices = _all()
    found = {"devices": [str(d) for d in devices], "device_kind": devices[0].device_kind}
    return {**found, "hosts": jax.process_count()} if jax.process_count() > 1 else found


def _all() -> list[Any]:
    """Devices as pmap orders them: host by host."""
    return [d for i in range(jax.process_count()) for d in jax.local_devices(process_index=i)]


def mine() -> slice:
    """Which of all devices are this host's."""
    here = jax.local_device_count()
    return slice(jax.process_index() * here, (jax.process_index() + 1) * here)


def bytes_free() -> int:
    """Bytes that data may take on a device: half of an accelerator, a quarter of a host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // 4 // jax.local_device_count()


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def replicate(tree: Any) -> Any:
    """Lays a pytree of host arrays out whole on every device."""
    return jax.device_put(tree, _sharding())


def shard(tree: Any) -> Any:
    """Lays arrays with a leading device axis out, one slice a device."""
    return jax.device_put(tree, _sharding(AXIS))


def to_host(tree: Any) -> Any:
    """A copy in NumPy, of state that is whole on every device; random keys as their words."""
    return jax.tree.map(lambda a: np.array(_words(a)), tree)


def on_host(shapes: Any) -> Any:
    """Empty arrays of the shapes that `to_host` gives."""
    words = jax.eval_shape(lambda t: jax.tree.map(_words, t), shapes)
    return jax.tree.map(lambda a: np.empty(a.shape, a.dtype), words)


def from_host(tree: Any, like: Any, spread: bool = False) -> Any:
    """The inverse of `to_host`, with keys where `like` has them.

    The state is whole on every device; with `spread` its leading axis is that of the devices.
    """
    laid_out = shard if spread else replicate
    return laid_out(from_words(tree, like))


def as_words(tree: Any) -> Any:
    """The tree with random keys as their words, which every operation takes."""
    return jax.tree.map(_words, tree)


def from_words(tree: Any, like: Any) -> Any:
    """The inverse of `as_words`, with keys where `like` has them."""

    def back(a: Any, b: Any) -> Any:
        return jax.random.wrap_key_data(a, impl=jax.random.key_impl(b)) if _is_key(b) else a

    return jax.tree.map(back, tree, like)


def deal(tree: Any, index: np.ndarray) -> Any:
    """Rows of arrays, laid out over the devices: `index` int [devices, ...] of their first axis."""

    def take(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[index], tree)

    return jax.jit(take, out_shardings=_sharding(AXIS))(tree)


def form(tree: Any) -> Any:
    """Shapes, types and places of arrays, to compile for when they themselves may be gone."""
    if jax.process_count() > 1:  # pmap compiles for arrays only; these take no memory yet
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


def is_cpu() -> bool:
    """Whether programs run on this machine's processor."""
    return jax.default_backend() == "cpu"


def _is_key(a: Any) -> bool:
    return jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)


def _words(a: Any) -> Any:
    return jax.random.key_data(a) if _is_key(a) else a


def parallel(
    fn: Callable, sharded: Sequence[int], donate: Sequence[int] = (), spread: bool = False
) -> Callable:
    """Runs `fn` on all devices; arguments at `sharded` positions have a leading device axis.

    Without `spread`, `fn` averages over AXIS itself: what it returns must be equal on all devices,
    and comes out once. With it, devices know nothing of each other, and what they return comes out
    with a leading device axis.
    """
    axes = tuple(0 if i in sharded else None for i in range(len(inspect.signature(fn).parameters)))
    return jax.pmap(
        fn,
        axis_name=AXIS,
        in_axes=axes,
        out_axes=0 if spread else None,
        donate_argnums=tuple(donate),
    )


def combine(means: Any, sums: Any, axis: str) -> tuple[Any, Any]:
    """Means of the first tree and sums of the second one over an axis of devices.

    On CPUs every collective waits for all of the processes, however little it carries: one of all
    arrays takes a fraction of the time of one of each. Accelerators' compilers see to that.
    """
    count = lax.axis_size(axis)
    if count == 1:
        return means, sums
    whole, back = flatten_util.ravel_pytree((means, sums))
    if not is_cpu() or whole.dtype != jax.numpy.float32:
        return lax.pmean(means, axis), lax.psum(sums, axis)
    means, sums = back(lax.psum(whole, axis))
    return jax.tree.map(lambda a: a / count, means), sums


def compile_for(program: Callable, arguments: Sequence[Any], sharded: Sequence[int]) -> Any:
    """The program of `parallel`, compiled for these arguments; it is called as they are.

    Args:
      sharded: as `parallel` was told.
    """
    compiled = program.lower(*arguments).compile()
    return compiled if jax.process_count() == 1 else _Global(compiled, sharded)


class _Global:
    """A compiled program of several hosts, called with what this host has of its arguments.

    pmap's own call does the same; what it compiles ahead of time takes the whole arrays.
    """

    def __init__(self, compiled: Any, sharded: Sequence[int]):
        self._compiled, self._sharded = compiled, sharded
        self._mesh = Mesh(np.array(_all()), (AXIS,))
        self.memory_analysis, self.cost_analysis = compiled.memory_analysis, compiled.cost_analysis

    def __call__(self, *arguments: Any) -> Any:
        whole = tuple(
            multihost_utils.host_local_array_to_global_array(
                argument, self._mesh, PartitionSpec(AXIS) if i in self._sharded else PartitionSpec()
            )
            for i, argument in enumerate(arguments)
        )
        out = self._compiled(*whole)
        return multihost_utils.global_array_to_host_local_array(out, self._mesh, PartitionSpec())
