"""An epoch as one compiled loop over data on the device, resident or streamed in blocks.

Both ways run one program: (a block of data, rows of it) -> updates. Resident, the block is the
whole split, laid out once, and the rows are the epoch's shuffled order; streamed, the block is
gathered on the host in that order, and the rows count up. So both give the same batches, and the
same numbers.

The loop is a scan whose trip count is an argument. One program per batch size then serves any
stretch of an epoch, to the bit: where a run is stopped, resumed, saved or shown does not change
what it computes.
"""

import dataclasses
import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrlab import batching, devices, metrics
from lrlab.data import Dataset, Split
from lrlab.train_step import RECORDED, EvalStep, State, TrainStep

FINITE = RECORDED.index("finite")
BLOCK = 64 << 20  # bytes of a streamed block: big enough to hide a transfer, small enough for two


def place(dataset: Dataset, placement: str = "auto") -> str:
    """Where the data lives, "resident" or "stream": by its size where `placement` is "auto"."""
    if placement != "auto":
        return placement
    splits = dataset.train, dataset.validation, dataset.test
    total = sum(s.x.nbytes + s.y.nbytes for s in splits)
    free = -devices.largest(-devices.bytes_free())  # of the host that has the least
    return "resident" if total <= free else "stream"


@functools.partial(jax.jit, static_argnums=2)
def _shuffled(seed: jax.Array, epoch: jax.Array, examples: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)
    return jax.random.permutation(key, examples)


def order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch, int32 [examples]: a function of seed and epoch alone."""
    return np.asarray(_shuffled(np.uint32(seed), np.int32(epoch), examples))


class Feed:
    """Batches of a split on the devices, block by block.

    length: batches in a block; the only block of resident data holds them all.
    """

    def __init__(
        self, split: Split, batches: int, size: int, placement: str, like: "Feed | None" = None
    ):
        self.split, self.batches, self.size = split, batches, size
        self.streamed = placement == "stream"
        per_batch = size * max(1, split.x[:1].nbytes)
        self.length = min(batches, max(1, BLOCK // per_batch)) if self.streamed else batches
        self._order = np.zeros((batches, size), np.int32)
        self._counting = devices.shard(self._by_device(np.arange(self.length * size)))
        self._resident: Any = like.resident() if like else None
        self._rows: Any = None
        self._pool = ThreadPoolExecutor(1) if self.streamed else None
        self._here: tuple[int, Any] | None = None  # streamed: the block in use, by its number
        self._ahead: tuple[int, Future] | None = None  # and the next one, on its way

    def _by_device(self, rows: np.ndarray) -> np.ndarray:
        """[batches * size] -> [devices, batches, size / devices], each batch dealt in order.

        Of all devices those of this host.
        """
        if self.streamed:  # a device holds its own examples of the block only
            rows = rows[: len(rows) // devices.count()].reshape(1, self.length, -1)
            dealt = np.broadcast_to(rows, (devices.count(), *rows.shape[1:]))
        else:
            dealt = rows.reshape(-1, devices.count(), self.size // devices.count())
            dealt = dealt.transpose(1, 0, 2)
        return np.ascontiguousarray(dealt[devices.mine()], np.int32)

    def follow(self, rows: np.ndarray) -> None:
        """Takes the split in this order from now on: int32 [batches * size]."""
        self._order = rows.reshape(self.batches, self.size)
        self._here = self._ahead = None
        if not self.streamed:
            self._rows = devices.shard(self._by_device(rows))

    def block(self, index: int) -> tuple[Any, Any]:
        """(x, y) on the devices and the rows of them: int32 [devices, length, size / devices]."""
        if self._pool is None:
            return self.resident(), self._rows
        if self._here is None or self._here[0] != index:
            if self._ahead is None or self._ahead[0] != index:
                self._ahead = index, self._pool.submit(self._gather, index)
            self._here, self._ahead = (index, self._ahead[1].result()), None
            if (index + 1) * self.length < self.batches:
                self._ahead = index + 1, self._pool.submit(self._gather, index + 1)
        return self._here[1], self._counting

    def resident(self) -> Any:
        """The whole split on the devices; None where it is streamed."""
        if self._resident is None and not self.streamed:
            arrays = np.asarray(self.split.x), np.asarray(self.split.y)
            self._resident = devices.replicate(arrays)
        return self._resident

    def _gather(self, index: int) -> Any:
        rows = self._order[index * self.length : (index + 1) * self.length]
        short = self.length - len(rows)
        rows = np.pad(rows, ((0, short), (0, 0)))  # a last block keeps the compiled shape
        local = self.size // devices.count()
        dealt = rows.reshape(self.length, devices.count(), local).transpose(1, 0, 2)
        dealt = dealt.reshape(devices.count(), -1)[devices.mine()]  # no host reads another's share
        return devices.shard((self.split.x[dealt], self.split.y[dealt]))

    @property
    def sharded(self) -> tuple[int, ...]:
        """Positions of (data, rows) that have a leading device axis."""
        return (0, 1) if self.streamed else (1,)


class Training:
    """Runs stretches of an epoch at one batch size.

    step: made with axis=devices.AXIS. size: examples an update over all devices, a multiple of
    their number. columns: of what the step records. base: updates an epoch on the schedules'
    clock, if not those of this size. like: one of another size, whose data on the devices this one
    shares.
    """

    def __init__(
        self,
        step: TrainStep,
        dataset: Dataset,
        size: int,
        placement: str,
        seed: int,
        columns: int = len(RECORDED),
        base: int | None = None,
        like: "Training | None" = None,
    ):
        self.updates = batching.updates_per_epoch(len(dataset.train), size)
        self.feed = Feed(dataset.train, self.updates, size, placement, like.feed if like else None)
        self._seed, self._epoch, self._base = seed, -1, base or self.updates
        self._constants = constants(dataset), devices.replicate(np.uint32(seed))
        local, length = size // devices.count(), self.feed.length

        def loop(data, rows, state, constants, lr, numbers, ticks):
            (shift_and_scale, seed), (first, count, skipped, limit) = constants, numbers
            key = jax.random.fold_in(jax.random.key(seed), 2)
            place = jax.lax.axis_index(devices.AXIS) * local + jnp.arange(local)

            def body(carry: Any) -> Any:
                i, state, out, skipped = carry
                at, before = rows[first + i], state.step
                x = standard(data[0][at], shift_and_scale)
                batch = {"x": x, "y": data[1][at], "rows": place}
                state, recorded = step(state, batch, key, lr, tick=ticks[i])
                skipped = jnp.where(recorded[FINITE] > 0, 0, skipped + 1)
                # One too many in a row ends the stretch, and does not count as done.
                done = jnp.where(skipped > limit, before, state.step)
                state = dataclasses.replace(state, step=done)
                return i + 1, state, out.at[i].set(recorded), skipped

            def more(carry: Any) -> jax.Array:
                i, _, _, skipped = carry
                return (i < count) & (skipped <= limit)

            out = jnp.zeros((length, columns))
            begin = jnp.int32(0), state, out, skipped
            done, state, out, _ = jax.lax.while_loop(more, body, begin)
            return state, out, done

        self._program = devices.parallel(loop, sharded=self.feed.sharded, donate=(2,))
        self._compiled: Any = None

    def _arguments(
        self, state: State, epoch: int, first: int, count: int, lr: float, skipped: int, limit: int
    ) -> tuple:
        if epoch != self._epoch:
            self._epoch = epoch
            rows = order(self._seed, epoch, len(self.feed.split))
            self.feed.follow(rows[: self.feed.batches * self.feed.size])
        data, rows = self.feed.block(first // self.feed.length)
        # In NumPy: the call itself brings them to the devices in a tenth of the time.
        numbers = np.array([first % self.feed.length, count, skipped, limit], np.int32)
        ticks = np.zeros(self.feed.length, np.int32)
        ticks[:count] = batching.ticks(epoch, first, count, self.updates, self._base)
        return data, rows, state, self._constants, np.float32(lr), numbers, ticks

    def compile(self, state: State) -> Any:
        """The compiled program, compiled once; its `memory_analysis()` says what it takes."""
        if self._compiled is None:
            arguments = self._arguments(state, 0, 0, 1, 1.0, 0, 0)
            sharded = self.feed.sharded
            self._compiled = devices.compile_for(self._program, arguments, sharded)
        return self._compiled

    def left(self, first: int) -> int:
        """Updates that one stretch from update `first` of an epoch can do at most."""
        return min(self.updates - first, self.feed.length - first % self.feed.length)

    def run(
        self,
        state: State,
        epoch: int,
        first: int,
        count: int,
        lr: float,
        skipped: int = 0,
        limit: int = 0,
    ) -> tuple[State, np.ndarray]:
        """Does updates first, first + 1, ... of an epoch, `count` of them.

        Args:
          skipped: updates before these that were not finite, in a row. limit: how many may be;
            more than one only where the step counts what it skips.

        Returns:
          The new state (the old one is donated) and float32 [updates done, columns]. An update
          that was not finite and is one too many is the last row, and left the state as it was.
        """
        arguments = self._arguments(state, epoch, first, count, lr, skipped, limit)
        state, out, done = self.compile(state)(*arguments)
        return state, np.asarray(out)[: int(done)]


class Evaluation:
    """Means over a whole split, exact over its ragged end."""

    def __init__(self, step: EvalStep, dataset: Dataset, split: Split, size: int, placement: str):
        size = -(-min(size, len(split)) // devices.count()) * devices.count()
        batches = -(-len(split) // size)
        self.feed = Feed(split, batches, size, placement)
        self.feed.follow(np.arange(batches * size, dtype=np.int32) % len(split))
        self._constants = constants(dataset)
        local = size // devices.count()

        def loop(data, rows, state, constants, valid):
            place = jax.lax.axis_index(devices.AXIS) * local + jnp.arange(local)

            def body(sums: jax.Array, batch: Any) -> tuple[jax.Array, None]:
                i, at = batch
                weight = (i * size + place < valid).astype(jnp.float32)
                x, y = standard(data[0][at], constants), data[1][at]
                return sums + step(state, {"x": x, "y": y, "weight": weight}), None

            number = jnp.arange(rows.shape[0])
            sums, _ = jax.lax.scan(body, jnp.zeros(3), (number, rows))
            return jax.lax.psum(sums, devices.AXIS)

        self._program = devices.parallel(loop, sharded=self.feed.sharded)
        self._compiled: Any = None

    def _arguments(self, state: State, block: int) -> tuple:
        data, rows = self.feed.block(block)
        valid = len(self.feed.split) - block * self.feed.length * self.feed.size
        return data, rows, state, self._constants, np.int32(valid)

    def compile(self, state: State) -> Any:
        """The compiled program of a block, compiled once."""
        if self._compiled is None:
            arguments, sharded = self._arguments(state, 0), self.feed.sharded
            self._compiled = devices.compile_for(self._program, arguments, sharded)
        return self._compiled

    def run(self, state: State) -> dict[str, float]:
        """{"loss": mean cross-entropy in nats, "accuracy": fraction correct}."""
        program, mean = self.compile(state), metrics.Mean()
        for block in range(-(-self.feed.batches // self.feed.length)):
            mean.add(np.asarray(program(*self._arguments(state, block)))[None])
        return mean.means()


def constants(dataset: Dataset) -> tuple[jax.Array, jax.Array]:
    """A data set's shift and scale on the devices, with the rank of a batch."""
    rank = 1 + len(dataset.feature_shape)
    pair = np.float32(dataset.shift), np.float32(dataset.scale)
    return devices.replicate(tuple(a.reshape((1,) * (rank - a.ndim) + a.shape) for a in pair))


def standard(x: jax.Array, constants: tuple[jax.Array, jax.Array]) -> jax.Array:
    """What a model sees of `x`: float32 (x - shift) * scale."""
    shift, scale = constants
    return (x.astype(jnp.float32) - shift) * scale
