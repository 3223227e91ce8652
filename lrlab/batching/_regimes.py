"""Regimes that follow a plan: fixed batches, and batches that grow at given epochs.

Where a batch grows, the rate may follow it by `coupling`: a factor of the rate, (size / base) to
the power of "none" 0, "linear" 1 (Goyal et al. 2017), "sqrt" 1/2 (Krizhevsky 2014; for Adam,
Malladi et al. 2022) or "seesaw" -1/2 (Adam: a halving of the rate becomes batch x 2, rate / sqrt 2;
Meterez et al. 2025, arXiv:2510.14717). base is the size whose rate is config.lr.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from lrlab.batching._clock import nearest
from lrlab.values import near

COUPLINGS = {"none": 0.0, "linear": 1.0, "sqrt": 0.5, "seesaw": -0.5}
MOST_SIZES = 16  # batch sizes of a run: each is a program to compile
At = Callable[[int, Sequence[float]], tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Regime:
    """How the batch goes through a run.

    at: (epoch from 0, what was seen of each epoch before, None for nothing) -> (examples an update,
      factor of the rate); pure, so a resumed run replays it from its own record.
    sizes: every batch size that can occur, the first one first: one compilation each.
    micro: parts that an update's batch is taken in, one after another, when memory says so.
    most: examples of such a part at most, for regimes that grow.
    reads: what `at` looks at: "losses" of validation, "noise" scales, or "" for neither.
    """

    at: At
    sizes: tuple[int, ...]
    micro: int = 1
    most: int | None = None
    reads: str = ""

    @property
    def reads_losses(self) -> bool:
        """Whether the data needs validation examples."""
        return self.reads == "losses"

    def parts(self, size: int) -> int:
        """In how many parts an update of so many examples is taken: the fewest that fit."""
        if self.most is None:
            return self.micro
        return next(p for p in range(1, size + 1) if size % p == 0 and size // p <= self.most)


@dataclasses.dataclass(frozen=True)
class Epoch:
    """An epoch's plan: updates [first, first + updates) of the run, their batches and factor."""

    number: int
    first: int
    updates: int
    size: int
    scale: float


def epochs_of(
    regime: Regime, epochs: int, examples: int, seen: Sequence[Any] = ()
) -> tuple[Epoch, ...]:
    """All epochs of a run; what a regime reads was `seen` of the first ones.

    Epochs after the next one are as the next one, as if nothing more would be seen.
    """
    found, first = [], 0
    for number in range(epochs):
        size, scale = regime.at(number, seen)
        found.append(Epoch(number, first, examples // size, size, scale))
        first += examples // size
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Coupling:
    """(size / base) to some power, as a factor of the rate."""

    power: float
    base: int

    @classmethod
    def of(cls, name: str, base: int | None, size: int) -> "Coupling":
        """Checked; raises ValueError."""
        if name not in COUPLINGS:
            raise ValueError(
                f"batch.coupling={name!r} is not allowed; {near(str(name), COUPLINGS)}"
            )
        if base is not None:
            whole("base", base, 1)
        return cls(COUPLINGS[name], size if base is None else base)

    def __call__(self, size: int) -> float:
        """The factor at a batch size."""
        return (size / self.base) ** self.power


def whole(name: str, value: Any, low: int) -> None:
    """Raises ValueError unless a field is a whole number >= low."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"batch.{name}={value!r} must be a whole number >= {low}")


def above_one(name: str, value: Any) -> float:
    """A finite factor > 1; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < math.inf:
        raise ValueError(f"batch.{name}={value!r} must be a number > 1: the batch grows by it")
    return float(value)


def limit(cap: int | float | None, examples: int | None, size: int) -> float:
    """A cap in examples, from a number of them or a fraction of the training split."""
    if cap is None:
        return float(examples or math.inf)
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not cap > 0:
        raise ValueError(
            f"batch.cap={cap!r} must be a number of examples, or a fraction of the training split "
            "such as 0.1"
        )
    found = cap * examples if cap <= 1 and examples else math.inf if cap <= 1 else float(cap)
    if found < size:
        raise ValueError(f"batch.cap={cap!r} is {found:g} examples, below batch.size={size}")
    return found


def grown(size: int, factor: float, cap: float, times: int) -> tuple[int, ...]:
    """The sizes that growing `times` times by a factor gives, up to the cap."""
    sizes = [size]
    for k in range(1, times + 1):
        following = round(size * factor**k)
        if following > cap:
            break
        sizes.append(following)
    if len(sizes) > MOST_SIZES:
        raise ValueError(
            f"batch: {len(sizes)} batch sizes are {len(sizes)} programs to compile, more than "
            f"{MOST_SIZES}; raise factor, or lower cap"
        )
    return tuple(sizes)


def fixed(size: int, micro: int = 1, coupling: str = "none", base: int | None = None) -> Regime:
    """The same batch size throughout.

    Args:
      size: examples an update, over all devices.
      micro: parts an update is accumulated from; the result is that of one part, to rounding.
      coupling, base: of the rate to the size, as the head of this module says.
    Raises:
      ValueError: size < 1, micro < 1, or micro does not divide size; an unknown coupling.
    """
    whole("size", size, 1)
    whole("micro", micro, 1)
    if size % micro:
        raise ValueError(
            f"batch.size={size} is not divisible by batch.micro={micro}; {nearest(size, micro)}"
        )
    scale = Coupling.of(coupling, base, size)(size)
    return Regime(at=lambda epoch, seen: (size, scale), sizes=(size,), micro=micro)


def _boundaries(at: Any, every: Any) -> Callable[[int], int]:
    """Epoch -> how many boundaries are past; raises ValueError."""
    if (at is None) == (every is None):
        raise ValueError(
            "batch: give either at=(epochs at which the batch grows) or every=(epochs between two)"
        )
    if every is not None:
        whole("every", every, 1)
        return lambda epoch: epoch // every
    epochs = [at] if isinstance(at, int) else list(at)
    for i, value in enumerate(epochs):
        whole(f"at[{i}]", value, 1)
    for i, (a, b) in enumerate(itertools.pairwise(epochs)):
        if a >= b:
            raise ValueError(f"batch.at must rise: at[{i}]={a} and at[{i + 1}]={b}")
    return lambda epoch: sum(epoch >= value for value in epochs)


def _planned(
    past: Callable[[int], int],
    sizes: tuple[int, ...],
    factor: float,
    coupling: Coupling,
    decays: bool,
    most: int | None,
) -> Regime:
    """Grows at each boundary; at those beyond the last size the rate decays by the factor."""

    def at(epoch: int, seen: Sequence[float]) -> tuple[int, float]:
        steps = past(epoch)
        growths = min(steps, len(sizes) - 1)
        decay = factor ** -(steps - growths) if decays else 1.0
        return sizes[growths], coupling(sizes[growths]) * decay

    if most is not None:
        whole("most", most, 1)
    return Regime(at=at, sizes=sizes, most=most)


def increasing(
    size: int,
    factor: float,
    at: int | Sequence[int] | None = None,
    every: int | None = None,
    cap: int | float | None = None,
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
    examples: int | None = None,
) -> Regime:
    """Multiplies the batch by `factor` at each boundary, where a schedule would divide the rate.

    Args:
      size: examples an update at first.
      at: epochs at whose beginning the batch grows, rising. every: or epochs between growths.
      cap: no batch is larger: examples, or, up to 1, a fraction of the training split. Boundaries
        beyond it divide the rate by `factor`.
      coupling, base: of the rate to the size, as the head of this module says.
      most: examples taken at once; larger batches are accumulated from equal parts.
      examples: of the training split; lrlab knows.
    Raises:
      ValueError: a value out of its range, epochs that do not rise, too many sizes.
    Source:
      Smith, Kindermans, Ying & Le 2018, arXiv:1711.00489, section 3.
    """
    whole("size", size, 1)
    past, f = _boundaries(at, every), above_one("factor", factor)
    times = 64 if every else past(10**9)
    sizes = grown(size, f, limit(cap, examples, size), times)
    return _planned(past, sizes, f, Coupling.of(coupling, base, size), True, most)


def hybrid(
    size: int,
    factor: float,
    at: int | Sequence[int] | None = None,
    every: int | None = None,
    growths: int = 1,
    cap: int | float | None = None,
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
    examples: int | None = None,
) -> Regime:
    """Grows the batch at the first boundaries, and decays the rate at the later ones.

    Args:
      growths: boundaries at which the batch grows. Others: as for `increasing`.
    Raises:
      ValueError: as `increasing`.
    Source:
      Smith, Kindermans, Ying & Le 2018, arXiv:1711.00489, figure 1 ("hybrid").
    """
    whole("size", size, 1)
    whole("growths", growths, 1)
    past, f = _boundaries(at, every), above_one("factor", factor)
    sizes = grown(size, f, limit(cap, examples, size), growths)
    return _planned(past, sizes, f, Coupling.of(coupling, base, size), True, most)


def geometric(
    size: int,
    factor: float,
    every: int,
    cap: int | float | None = None,
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
    examples: int | None = None,
) -> Regime:
    """Multiplies the batch by `factor` every so many epochs; at the cap it stays, and the rate too.

    Args:
      every: epochs between growths. Others: as for `increasing`.
    Raises:
      ValueError: as `increasing`.
    Source:
      Sievert & Shah 2021, "Improving the convergence of SGD through adaptive batch sizes".
    """
    whole("size", size, 1)
    past, f = _boundaries(None, every), above_one("factor", factor)
    sizes = grown(size, f, limit(cap, examples, size), 64)
    return _planned(past, sizes, f, Coupling.of(coupling, base, size), False, most)


def stages(
    sizes: Sequence[int],
    at: Sequence[int],
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
) -> Regime:
    """Batches of given sizes, each from its epoch on: what `to_batches` writes.

    Args:
      sizes: examples an update, rising. at: the epoch of each; the first is 0.
      coupling, base, most: as for `increasing`.
    Raises:
      ValueError: sizes or epochs that do not rise, or not equally many.
    """
    for name, values, low in ("sizes", sizes, 1), ("at", at, 0):
        for i, value in enumerate(values):
            whole(f"{name}[{i}]", value, low)
        for i, (a, b) in enumerate(itertools.pairwise(values)):
            if a >= b:
                raise ValueError(f"batch.{name} must rise: {name}[{i}]={a}, {name}[{i + 1}]={b}")
    if not sizes or len(sizes) != len(at) or at[0] != 0:
        raise ValueError(
            f"batch: {len(sizes)} sizes need as many epochs, the first 0; got at={tuple(at)!r}"
        )
    if len(sizes) > MOST_SIZES:
        raise ValueError(
            f"batch.sizes: {len(sizes)} are more than {MOST_SIZES} programs to compile"
        )
    if most is not None:
        whole("most", most, 1)
    scale, sizes = Coupling.of(coupling, base, sizes[0]), tuple(sizes)

    def now(epoch: int, seen: Sequence[float]) -> tuple[int, float]:
        size = sizes[sum(epoch >= begin for begin in at) - 1]
        return size, scale(size)

    return Regime(at=now, sizes=sizes, most=most)


def ramp(
    size: int,
    end: int,
    epochs: int,
    steps: int = 8,
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
) -> Regime:
    """Grows the batch along a line from `size` to `end`, in so many equal steps.

    Args:
      end: examples an update from epoch `epochs` on. steps: growths; sizes are multiples of `size`
        as near to the line as can be.
      Others: as for `increasing`.
    Raises:
      ValueError: a value out of its range; end no multiple of size.
    """
    whole("size", size, 1)
    whole("end", end, size + 1)
    whole("epochs", epochs, 1)
    whole("steps", steps, 1)
    if end % size:
        raise ValueError(
            f"batch.end={end} is no multiple of batch.size={size}; {nearest(end, size)}"
        )
    steps = min(steps, epochs, end // size - 1)
    line = [1 + (end // size - 1) * k / steps for k in range(steps + 1)]
    sizes = tuple(size * round(x) for x in line)
    if len(sizes) > MOST_SIZES:
        raise ValueError(f"batch.steps={steps} must be below {MOST_SIZES}: each size is compiled")
    scale = Coupling.of(coupling, base, size)

    def at(epoch: int, seen: Sequence[float]) -> tuple[int, float]:
        now = sizes[min(steps, epoch * steps // epochs)]
        return now, scale(now)

    if most is not None:
        whole("most", most, 1)
    return Regime(at=at, sizes=sizes, most=most)


def noise(
    size: int,
    cap: int | float,
    factor: float = 2.0,
    share: float = 1.0,
    coupling: str = "none",
    base: int | None = None,
    most: int | None = None,
    examples: int | None = None,
) -> Regime:
    """The largest batch, of size times powers of `factor`, within a share of the noise scale.

    The noise scale B_simple is measured along the run; the batch never shrinks.

    Args:
      cap, coupling, base, most, examples: as for `increasing`. share: of B_simple.
    Raises:
      ValueError: as `increasing`; share <= 0.
    Source:
      McCandlish et al. 2018, arXiv:1812.06162, section 2.
    """
    whole("size", size, 1)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
        raise ValueError(f"batch.share={share!r} must be a number > 0")
    sizes = grown(size, above_one("factor", factor), limit(cap, examples, size), 64)
    scale = Coupling.of(coupling, base, size)

    def at(epoch: int, seen: Sequence[float]) -> tuple[int, float]:
        most_seen = max((x for x in seen[:epoch] if x is not None), default=0.0)
        now = max((s for s in sizes if s <= share * most_seen), default=size)
        return now, scale(now)

    if most is not None:
        whole("most", most, 1)
    return Regime(at=at, sizes=sizes, most=most, reads="noise")
