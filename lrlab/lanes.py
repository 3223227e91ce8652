"""Many runs of one recipe as the lanes of one program.

A lane has its own seed, rate and other floats; model, data, batches and the form of the chain are
shared, so one program trains all lanes and nothing recompiles. `pmap` spreads lanes over the
devices, which know nothing of each other.

Two engines compute the same. On a CPU a device walks its lanes one after another inside every
update: their weights stay in cache, what depends on the batch alone (the windows that a convolution
gathers) is computed once for all of them, and a lane that is over costs nothing. On an accelerator
the lanes are one more axis (`vmap`).
"""

import bisect
import copy
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrlab import batching, devices, epoch, metrics
from lrlab.batching import Epoch
from lrlab.build import Recipe
from lrlab.data import Dataset
from lrlab.train_step import RECORDED, make_eval_step, make_train_step

Engine = Literal["auto", "loop", "vmap"]
_barrier = lax.optimization_barrier
TRANSFER = 2**19  # bytes: what takes as long on the way as it takes to begin, on a CPU


@dataclasses.dataclass(frozen=True)
class Lane:
    """What a lane has of its own.

    values: floats of the chain and the label smoothing, by the names that `make_train_step` takes.
    """

    seed: int
    lr: float
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Watch(Protocol):
    """A rule that stops a lane inside the program, from its losses alone."""

    @property
    def size(self) -> int:
        """Of what it remembers of a lane: float32 numbers, which begin as zeros."""
        ...

    def __call__(self, memory: jax.Array, update: jax.Array, loss: jax.Array) -> Any:
        """(memory [size], updates done before, mean loss) -> (memory, whether to stop)."""
        ...


class Lanes:
    """Lanes in training; `advance` them, `evaluate` some, `keep` those that shall go on.

    Attributes:
      lanes: what was asked for. active: numbers of those that train, ascending.
      step: updates that an active lane has done, if it was not stopped.
      lane_updates: updates computed so far, all lanes together.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        lanes: Sequence[Lane],
        length: int,
        watch: Watch | None = None,
        engine: Engine = "auto",
    ):
        """`length`: updates that one call of `advance` can do at most."""
        self.recipe, self.lanes, self.length, self.watch = recipe, tuple(lanes), length, watch
        self.engine = engine if engine != "auto" else "loop" if devices.is_cpu() else "vmap"
        self.active = list(range(len(lanes)))
        self.step = self.lane_updates = 0
        self._epochs = recipe.epochs()
        self._scales: dict[int, float] = {}  # of lanes that follow a plan of their own
        self.names = tuple(sorted({name for lane in lanes for name in lane.values}))
        self._dataset, self._train = dataset, dataset.train
        self._seeds = sorted({lane.seed for lane in lanes})
        self._constants = epoch.constants(dataset)
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._data: dict[str, Any] = {}
        self._programs: dict[Any, Any] = {}
        fresh = recipe.fresh(np.array(self._seeds))
        self._place = self._spread(self.active)
        which = np.array([self._seeds.index(lane.seed) for lane in lanes])
        self._state = devices.deal(fresh, which[np.maximum(self._place, 0)])
        memory = np.zeros((*self._place.shape, 1 + (watch.size if watch else 0)), np.float32)
        self._memory = devices.shard(memory)  # [stopped, what the rule remembers]

    def _spread(self, lanes: Sequence[int]) -> np.ndarray:
        """Which lane is where, int [devices, slots], -1 where none is: dealt like cards."""
        count = devices.count()
        slots = -(-len(lanes) // count)
        place = np.full((count, slots), -1)
        for i, lane in enumerate(lanes):
            place[i % count, i // count] = lane
        return place

    @property
    def size(self) -> int:
        """Examples of the next update."""
        return self._at(self.step).size

    def advance(self, count: int) -> np.ndarray:
        """Does `count` more updates of every active lane.

        Returns:
          float32 [count, lanes, RECORDED and scheduled values]; NaN for lanes that are not active.
          An update whose "finite" is 0 changed nothing, and its lane is stopped for good.
        """
        found = []
        while count:
            part = min(count, self._alike() - self.step)
            found.append(self._advance(part))
            count -= part
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _advance(self, count: int) -> np.ndarray:
        """Updates of one batch size and one factor of the rate."""
        arguments = self._arguments(count)
        self._state, self._memory, out = self._program("train", arguments)(*arguments)
        self.step += count
        self.lane_updates += count * len(self.active)
        return self._by_lane(np.asarray(out)[:, :count].swapaxes(0, 1), self.active)

    def _at(self, step: int) -> Epoch:
        """The epoch that an update belongs to; beyond the last, one more like it."""
        epochs = self._epochs
        number = bisect.bisect_right(epochs, step, key=lambda e: e.first) - 1
        last = epochs[number]
        more = (step - last.first) // last.updates  # 0 within the run
        first = last.first + more * last.updates
        return dataclasses.replace(last, number=last.number + more, first=first)

    @property
    def left(self) -> int:
        """Updates left in the epoch that goes on; a whole epoch's at its end."""
        epoch = self._at(self.step)
        return epoch.first + epoch.updates - self.step

    def follow(self, epochs: Sequence[Epoch], scales: Mapping[int, float]) -> None:
        """Goes on by another plan from the epoch that begins now.

        Args:
          epochs: equal to the plan so far in what is done. scales: of the rate, by active lane;
            they hold until the next call.
        """
        self._epochs, self._scales = tuple(epochs), dict(scales)

    def split(self, lanes: Sequence[int]) -> "Lanes":
        """These lanes as lanes of their own; the rest stays here. Programs are shared."""
        other = copy.copy(self)
        other._orders, other._scales = dict(self._orders), dict(self._scales)
        other.active, other.lane_updates = sorted(lanes), 0
        slots = self._place.shape[1]
        if self.engine == "vmap":
            slots = 1 << (max(1, -(-len(lanes) // devices.count())) - 1).bit_length()
        other._move(self._spread(other.active), slots)
        self.keep([i for i in self.active if i not in set(lanes)])
        return other

    def tune(self, lanes: Sequence[Lane]) -> None:
        """Goes on with these numbers; a lane keeps its seed, and all keep the names of theirs."""
        assert [lane.seed for lane in lanes] == [lane.seed for lane in self.lanes]
        assert all(set(lane.values) == set(self.names) for lane in lanes)
        self.lanes = tuple(lanes)

    def copy(self, donors: Mapping[int, int]) -> None:
        """Active lanes become what others are now, all at once: weights, update rule, memory.

        Numbers are for `tune`. One program does any such copies, between devices too.

        Args:
          donors: lane -> the lane that it becomes. No chain of them may come back to its begin.
        """
        left = {lane: donor for lane, donor in donors.items() if lane != donor}
        where = np.zeros((len(self.lanes), 2), np.int32)  # device and slot of each lane
        where[self._place[self._place >= 0]] = np.argwhere(self._place >= 0)
        ordered: list[tuple[int, int]] = []
        while left:  # first those that no other lane is to become
            needed = set(left.values())
            free = [lane for lane in left if lane not in needed]
            assert free, f"lanes would exchange their states: {left}"
            ordered += [(left.pop(lane), lane) for lane in free]
        rounds = -(-len(self.lanes) // self._at_once)
        moves = np.full((rounds, self._at_once, 4), -1, np.int32)
        moves.reshape(-1, 2, 2)[: len(ordered)] = where[np.reshape(ordered, (-1, 2)).astype(int)]
        arguments = self._state, self._memory, moves
        self._state, self._memory = self._program("copy", arguments)(*arguments)
        jax.block_until_ready(self._memory)

    @functools.cached_property
    def _at_once(self) -> int:
        """Lanes that one transfer between devices carries: some small ones, or one large one."""
        taken = sum(a.nbytes for a in jax.tree.leaves((self._state, self._memory)))
        return max(1, min(len(self.lanes), TRANSFER * self._place.size // taken))

    def _alike(self) -> int:
        """The first update that differs from the next one in batch size or factor."""
        here = self._at(self.step)
        for later in self._epochs[here.number + 1 :]:
            if (later.size, later.scale) != (here.size, here.scale):
                return later.first
        return self.step + self.length

    def _arguments(self, count: int) -> tuple:
        rows, ticks = self._rows(self.step, count)
        return (
            self._on_device("train"),
            rows,
            self._state,
            self._memory,
            self._constants,
            *self._settings(self.active),
            devices.replicate((np.array([self.step, count], np.int32), ticks)),
        )

    def stopped(self) -> np.ndarray:
        """Whether the watch stopped each lane, bool [lanes]; False for those not kept."""
        flags = self._by_lane(np.asarray(self._memory)[None, ..., :1], self.active)
        return flags[0, :, 0] > 0

    def evaluate(self, split: str, lanes: Sequence[int]) -> list[dict[str, float]]:
        """{"loss", "accuracy"} on "train", "validation" or "test" of some active lanes."""
        examples = getattr(self._dataset, split)
        size = min(len(examples), 100 if devices.is_cpu() else 1024)
        batches = -(-len(examples) // size)
        rows = np.arange(batches * size, dtype=np.int32) % len(examples)
        arguments = (
            self._on_device(split),
            devices.replicate(rows.reshape(1, batches, size)),
            self._state,
            self._constants,
            *self._settings(lanes),
            devices.replicate(np.int32(len(examples))),
        )
        program = self._program(f"evaluate {split}", arguments)
        sums = self._by_lane(np.asarray(program(*arguments))[None], lanes)[0]
        means = []
        for lane in lanes:
            mean = metrics.Mean()
            mean.add(sums[lane][None])
            means.append(mean.means())
        return means

    def keep(self, lanes: Sequence[int]) -> None:
        """Goes on with these lanes only; the others' states are given up.

        The loop skips what is over, so states move only where devices would idle; the lanes of
        `vmap` are packed by powers of two, so programs are few.
        """
        self.active = sorted(lanes)
        if not self.active:
            return
        slots = self._place.shape[1]
        fair = -(-len(self.active) // devices.count())
        is_here = np.isin(self._place, self.active)
        if self.engine == "loop":
            if is_here.sum(1).max() > fair:
                self._move(self._spread(self.active), slots)
        elif 2 * fair <= slots:
            self._move(self._spread(self.active), 1 << (fair - 1).bit_length())

    def _move(self, place: np.ndarray, slots: int) -> None:
        """Lays the states out anew, `slots` a device."""
        place = np.pad(place, ((0, 0), (0, slots - place.shape[1])), constant_values=-1)
        was = {lane: i for i, lane in enumerate(self._place.ravel()) if lane >= 0}
        index = np.array([[was.get(lane, 0) for lane in row] for row in place])
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (self._state, self._memory))
        self._state, self._memory = devices.deal(flat, index)
        self._place = place

    def state(self) -> Any:
        """What a checkpoint keeps, in NumPy: arrays [lanes, ...], zeros for those given up."""
        here = np.isin(self._place, self.active)

        def by_lane(a: np.ndarray) -> np.ndarray:
            kept = np.zeros((len(self.lanes), *a.shape[2:]), a.dtype)
            kept[self._place[here]] = a[here]
            return kept

        return jax.tree.map(by_lane, devices.to_host((self._state, self._memory)))

    def shapes(self) -> Any:
        """Empty arrays like those of `state`."""
        host = devices.on_host((self._state, self._memory))
        return jax.tree.map(lambda a: np.empty((len(self.lanes), *a.shape[2:]), a.dtype), host)

    def restore(self, kept: Any, step: int, active: Sequence[int]) -> None:
        """Goes back to what `state` gave after `step` updates; devices may be others."""
        index = np.maximum(self._place, 0)
        like = self._state, self._memory
        dealt = jax.tree.map(lambda a: np.asarray(a)[index], kept)
        self._state, self._memory = devices.from_host(dealt, like, spread=True)
        self.step = step
        self.keep(active)

    def digest(self, lane: int) -> str:
        """SHA-256 of an active lane's state: what `loop.Run.digest` says of the single run."""
        device, slot = np.argwhere(self._place == lane)[0]
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(self._state):
            (host,) = jax.tree.leaves(devices.to_host(leaf[device, slot]))
            found.update(np.ascontiguousarray(host).tobytes())
        return found.hexdigest()

    def params(self, lane: int) -> Any:
        """An active lane's parameters, in NumPy."""
        device, slot = np.argwhere(self._place == lane)[0]
        return jax.tree.map(lambda a: np.asarray(a[device, slot]), self._state.params)

    def memory(self) -> dict[str, int]:
        """Bytes on a device of what the training program takes ("arguments") and works in."""
        analysis = self._program("train", self._arguments(1)).memory_analysis()
        names = {"arguments": "argument_size_in_bytes", "work": "temp_size_in_bytes"}
        return {name: getattr(analysis, field, 0) for name, field in names.items()}

    def _by_lane(self, out: np.ndarray, lanes: Sequence[int]) -> np.ndarray:
        """[updates, devices, slots, columns] -> [updates, all lanes, columns], NaN elsewhere."""
        found = np.full((len(out), len(self.lanes), out.shape[-1]), np.nan, np.float32)
        here = np.isin(self._place, lanes)
        found[:, self._place[here]] = out[:, here]
        return found

    def _on_device(self, split: str) -> Any:
        if split not in self._data:
            examples = getattr(self._dataset, split)
            arrays = np.asarray(examples.x), np.asarray(examples.y)
            self._data[split] = devices.replicate(arrays)
        return self._data[split]

    def _rows(self, first: int, count: int) -> tuple[jax.Array, np.ndarray]:
        """Examples of the next updates, int32 [seeds, length, size], as the single runs take.

        And where their schedules stand, int32 [length].
        """
        size, base = self.size, self._epochs[0].updates
        rows = np.zeros((len(self._seeds), self.length, size), np.int32)
        ticks = np.zeros(self.length, np.int32)
        at = 0
        while at < count:
            epoch = self._at(first + at)
            inside = first + at - epoch.first
            part = min(count - at, epoch.updates - inside)
            for s, seed in enumerate(self._seeds):
                order = self._order(seed, epoch.number)[inside * size : (inside + part) * size]
                rows[s, at : at + part] = order.reshape(part, size)
            ticks[at : at + part] = batching.ticks(epoch.number, inside, part, epoch.updates, base)
            at += part
        return devices.replicate(rows), ticks

    def _order(self, seed: int, number: int) -> np.ndarray:
        if (seed, number) not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[1] >= number - 1}
            self._orders[seed, number] = epoch.order(seed, number, len(self._train))
        return self._orders[seed, number]

    def _settings(self, lanes: Sequence[int]) -> tuple[Any, Any]:
        """Each slot's numbers, and the slots to walk: those of these lanes, seed by seed."""
        blank, planned = self.lanes[0], self._at(self.step).scale
        chosen = [[self.lanes[i] if i >= 0 else blank for i in row] for row in self._place]
        scales = [[self._scales.get(i, planned) for i in row] for row in self._place]
        rates = [
            [lane.lr * scale for lane, scale in zip(*both, strict=True)]
            for both in zip(chosen, scales, strict=True)
        ]
        numbers = {
            "seed": np.array([[lane.seed for lane in row] for row in chosen], np.uint32),
            "which": np.array([[self._seeds.index(a.seed) for a in row] for row in chosen], int),
            "lr": np.array(rates, np.float32),
            "live": np.isin(self._place, lanes),
            **{
                name: np.array([[lane.values[name] for lane in row] for row in chosen], np.float32)
                for name in self.names
            },
        }
        slots = self._place.shape[1]
        walk = np.zeros((devices.count(), slots), np.int32)
        starts = np.zeros((devices.count(), len(self._seeds) + 1), np.int32)
        for d, live in enumerate(numbers["live"]):
            there = np.flatnonzero(live)
            seeds = numbers["which"][d][there]
            walk[d, : len(there)] = there[np.argsort(seeds, kind="stable")]
            starts[d, 1:] = np.cumsum(np.bincount(seeds, minlength=len(self._seeds)))
        numbers["which"] = numbers["which"].astype(np.int32)
        return devices.shard(numbers), devices.shard({"walk": walk, "starts": starts})

    def _program(self, kind: str, arguments: tuple) -> Any:
        slots = self._place.shape[1], self.size if kind == "train" else 0
        if (kind, slots) not in self._programs:
            if kind == "train":
                fn, sharded, donate = self._train_chunk, (2, 3, 5, 6), (2, 3)
            elif kind == "copy":
                fn, sharded, donate = self._copy_rows, (0, 1), (0, 1)
            else:
                fn, sharded, donate = self._evaluate_split, (2, 4, 5), ()
            made = devices.parallel(fn, sharded, donate, spread=True)
            self._programs[kind, slots] = made.lower(*arguments).compile()
        return self._programs[kind, slots]

    def _step(self, values: Mapping[str, jax.Array]) -> Any:
        """The train step of one lane, whose values may be traced."""
        recipe = self.recipe
        held = {name: lambda _, v=values[name]: v for name in self.names}
        return make_train_step(
            recipe.model,
            recipe.make_tx,
            recipe.shape,
            None,
            recipe.parts(self.size, 1),
            recipe.config["nonfinite"]["policy"] == "skip",
            {**recipe.scheduled, **held},
            recipe.is_rate_found,
            recipe.measures_noise,
            recipe.frozen,
            recipe.augment,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """What is recorded of every update of a lane."""
        recipe = self.recipe
        scheduled = dict.fromkeys((*recipe.scheduled, *self.names))
        return (*RECORDED, *scheduled, *recipe.columns[len(recipe.scheduled) :])

    def _train_chunk(self, data, rows, states, memory, constants, numbers, walks, clock):
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), 2))(numbers["seed"])
        place, (clock, ticks) = jnp.arange(rows.shape[-1]), clock
        out = jnp.zeros((self.length, len(numbers["lr"]), len(self.columns)))

        def lane(number, key, live, state, memory, batch, t, tick):
            """One update of one lane; `number` holds its scalars."""
            live = live & (state.step == t) & (memory[0] == 0)
            state, recorded = self._step(number)(state, batch, key, number["lr"], live, tick)
            if self.watch:
                mean = recorded[RECORDED.index("loss")] / recorded[RECORDED.index("weight")]
                after, stop = self.watch(memory[1:], t, mean)
                after = jnp.concatenate([jnp.float32(stop)[None], after])
                memory = jnp.where(live, after, memory)
            return state, memory, recorded

        def batch_of(at):
            x = epoch.standard(data[0][at], constants)
            return {"x": x, "y": data[1][at], "rows": place}

        def in_a_loop(i, carry):
            def of_seed(s, carry):
                batch = _barrier(batch_of(rows[s, i]))

                def one(j, carry):
                    states, memory, out = carry
                    r = walks["walk"][j]
                    state, mine = _barrier(jax.tree.map(lambda a: a[r], (states, memory)))
                    number = jax.tree.map(lambda a: a[r], numbers)
                    state, mine, recorded = lane(
                        number, keys[r], number["live"], state, mine, batch, clock[0] + i, ticks[i]
                    )
                    new = _barrier((state, mine))  # else XLA copies all lanes' states, twice
                    put = jax.tree.map(lambda a, b: a.at[r].set(b), (states, memory), new)
                    return *put, out.at[i, r].set(recorded)

                starts = walks["starts"]
                return lax.fori_loop(starts[s], starts[s + 1], one, carry)

            return lax.fori_loop(0, rows.shape[0], of_seed, carry)

        def as_an_axis(i, carry):
            states, memory, out = carry
            shared = rows.shape[0] == 1
            if shared:
                batch = batch_of(rows[0, i])
            else:
                batch = jax.vmap(batch_of)(rows[numbers["which"], i])
            axes = (0, 0, 0, 0, 0, None if shared else 0, None, None)
            each: Any = jax.vmap(lane, axes)
            states, memory, recorded = each(
                numbers, keys, numbers["live"], states, memory, batch, clock[0] + i, ticks[i]
            )
            return states, memory, out.at[i].set(recorded)

        body = in_a_loop if self.engine == "loop" else as_an_axis
        return lax.fori_loop(0, clock[1], body, (states, memory, out))

    def _evaluate_split(self, data, rows, states, constants, numbers, walks, valid):
        step = make_eval_step(self.recipe.model)
        size = rows.shape[-1]

        def body(sums, batch):
            i, at = batch
            weight = (i * size + jnp.arange(size) < valid).astype(jnp.float32)
            x = epoch.standard(data[0][at], constants)
            batch = _barrier({"x": x, "y": data[1][at], "weight": weight})
            if self.engine == "vmap":
                return sums + jax.vmap(step, (0, None))(states, batch), None

            def one(j, sums):
                r = walks["walk"][j]
                state = _barrier(jax.tree.map(lambda a: a[r], states))
                return sums.at[r].add(step(state, batch))

            return lax.fori_loop(0, walks["starts"][-1], one, sums), None

        zero = jnp.zeros((len(numbers["lr"]), 3))
        return lax.scan(body, zero, (jnp.arange(rows.shape[1]), rows[0]))[0]

    def _copy_rows(self, states, memory, moves):
        """Copies slots, [rounds, at once] of them; a move is (device, slot) from, then to, or -1.

        A round is one transfer between devices, which costs more than what it carries.
        """
        leaves, tree = jax.tree.flatten(devices.as_words((states, memory)))
        sizes = sorted({leaf.dtype.itemsize for leaf in leaves})  # in bytes; one box for each
        together = [[j for j, a in enumerate(leaves) if a.dtype.itemsize == n] for n in sizes]
        here = lax.axis_index(devices.AXIS)

        def flat(leaves, slot):
            """A slot's leaves as bits, those of a size as one row."""
            rows = [_bits(leaf[slot]).ravel() for leaf in leaves]
            return [jnp.concatenate([rows[j] for j in which]) for which in together]

        def for_each(chosen, body, begun):
            """A loop over those moves of a round that concern this device."""
            at = jnp.flatnonzero(chosen, size=len(chosen), fill_value=0)
            return lax.fori_loop(0, chosen.sum(), lambda k, carry: body(at[k], carry), begun)

        def transfer(i, leaves):
            begin, slot, end, other = moves[i].T

            def pack(m, boxes):
                rows = flat(leaves, slot[m])
                return [box.at[m].set(row) for box, row in zip(boxes, rows, strict=True)]

            def unpack(m, leaves):
                found = list(leaves)
                for which, box in zip(together, boxes, strict=True):
                    ends = np.cumsum([leaves[j][0].size for j in which])[:-1]
                    for j, part in zip(which, jnp.split(box[begin[m], m], ends), strict=True):
                        row = _bits(part, leaves[j].dtype).reshape(leaves[j].shape[1:])
                        found[j] = leaves[j].at[other[m]].set(row)
                return found

            boxes = [jnp.zeros((len(begin), *row.shape), row.dtype) for row in flat(leaves, 0)]
            boxes = for_each(begin == here, pack, boxes)
            boxes = [lax.all_gather(box, devices.AXIS) for box in boxes]
            return for_each(end == here, unpack, leaves)

        rounds = (moves[:, 0, 0] >= 0).sum()
        words = jax.tree.unflatten(tree, lax.fori_loop(0, rounds, transfer, leaves))
        return devices.from_words(words, (states, memory))


def _bits(a: jax.Array, kind: Any = None) -> jax.Array:
    """The bits of numbers as integers without sign, or back as numbers of a kind."""
    if bool in (a.dtype, kind):
        return a.astype(kind or jnp.uint8)
    return lax.bitcast_convert_type(a, kind or f"uint{8 * a.dtype.itemsize}")
