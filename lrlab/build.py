"""From a config to objects: what a config means is decided here, and in what `check` calls.

`check` builds everything that needs no data, collects every problem of the config in one pass, and
reads no data. It takes a ConfigDict or a dict; what it returns, a `Recipe`, has plain values only.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrlab import batching, devices, fields, optimizers, planning, resolve, start
from lrlab.augment import Chain, compose
from lrlab.data import DataError, Dataset, Source
from lrlab.optimizers import MakeTx
from lrlab.resolve import ConfigError, Problems
from lrlab.start import Start
from lrlab.train_step import (
    PART_NORM,
    Model,
    State,
    initializer,
    make_eval_step,
    make_train_step,
)

Scheduled = Mapping[str, optax.Schedule]
ROOMS = {  # a section of a config -> where its name resolves
    "data": "lrlab.data",
    "model": "lrlab.models",
    "batch": "lrlab.batching",
    "optimizer": "lrlab.optimizers",
    "job": "lrlab.jobs",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A config whose every part was built; only data and compilation are left.

    config: plain values, defaults filled in. per_epoch: updates an epoch at the first batch size.
    total: updates of the run. shapes: the State as shapes.
    scheduled: values beside the rate that change with the update, in the order they are recorded.
    groups: (pattern, multiplier of the rate, leaves, weights), of lr_multipliers.
    frozen: a tree of booleans like the parameters, or None where all train.
    start: what the weights begin as, or None for fresh ones. augment: of training batches.
    """

    config: dict[str, Any]
    source: Source
    model: Model
    make_tx: MakeTx
    shape: optax.Schedule
    phases: tuple[planning.Phase, ...]
    regime: batching.Regime
    per_epoch: int
    total: int
    shapes: State
    scheduled: Scheduled
    groups: tuple[tuple[str, float, int, int], ...]
    warnings: tuple[str, ...]
    frozen: Any = None
    start: Start | None = None
    augment: Chain | None = None

    @property
    def parameters(self) -> int:
        """Trainable weights."""
        return sum(math.prod(p.shape) for p in jax.tree.leaves(self.shapes.params))

    @property
    def modules(self) -> tuple[str, ...]:
        """The model's modules that have parameters, in the order of their definition."""
        return tuple(_in_order(self.model, self.source))

    @property
    def is_rate_found(self) -> bool:
        """Whether the update rule finds a rate of its own, which is recorded beside ours."""
        return optimizers.finds_rate(self.shapes.opt)

    @property
    def measures_noise(self) -> bool:
        """Whether the gradients of parts of a batch are recorded, for the noise scale."""
        return bool(self.config["noise_scale"]) or self.regime.reads == "noise"

    @property
    def columns(self) -> tuple[str, ...]:
        """What is recorded of every update beside RECORDED."""
        more = {PART_NORM: self.measures_noise, "effective_lr": self.is_rate_found}
        return (*self.scheduled, *(name for name, is_there in more.items() if is_there))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that the run comes to, rising: all, where what is seen decides."""
        return _reached(self.regime, self.config["epochs"])

    def parts(self, size: int, found: int | None = None) -> int:
        """In how many parts a device takes its share of a batch; `found`: devices, if not all."""
        parts, found = self.regime.parts(size), found or devices.count()
        return 2 if self.measures_noise and parts * found == 1 else parts

    @property
    def kept(self) -> tuple[int, ...]:
        """Epochs at whose ends the state is kept for good; of "cycles" those where a fall ends."""
        at, epochs = self.config["checkpoint"]["at"], self.config["epochs"]
        if at != "cycles":
            return tuple(at)
        rates = np.asarray(self.rates()).reshape(epochs, -1)
        falls = rates[:, -1] < rates[:, 0]
        rises = np.append(rates[1:, 0] > rates[:-1, -1], True)
        return tuple(int(e) + 1 for e in np.flatnonzero(falls & rises))

    def epochs(self, seen: Sequence[Any] = ()) -> tuple[batching.Epoch, ...]:
        """Every epoch's place and batches; `seen`: what the regime reads, of the first epochs."""
        return batching.epochs_of(self.regime, self.config["epochs"], self.source.sizes[0], seen)

    def fresh(self, seeds: np.ndarray) -> State:
        """The states of seeds, uint32 [n], before their first update, one after another."""
        make = initializer(self.model, self.make_tx, self.source.feature_shape)
        arrays = self.start.arrays if self.start else ()  # arguments: no program holds weights

        def each(seeds: jax.Array, arrays: Any) -> State:
            given = self.start.given(arrays) if self.start else ()
            return jax.lax.map(lambda seed: make(seed, *given), seeds)

        return jax.jit(each)(np.asarray(seeds, np.uint32), arrays)

    def init(self) -> State:
        """The state before the first update, on the devices."""
        states = self.fresh(np.array([self.config["seed"]]))
        return devices.replicate(jax.jit(lambda t: jax.tree.map(lambda a: a[0], t))(states))

    def train_step(self, size: int) -> Any:
        """The train step of a batch size, averaged over the devices."""
        skip = self.config["nonfinite"]["policy"] == "skip"
        return make_train_step(
            self.model,
            self.make_tx,
            self.shape,
            devices.AXIS,
            self.parts(size),
            skip,
            self.scheduled,
            self.is_rate_found,
            self.measures_noise,
            self.frozen,
            self.augment,
        )

    def eval_step(self) -> Any:
        """The evaluation step."""
        return make_eval_step(self.model)

    def eval_size(self) -> int:
        """Examples of an evaluation batch: what a CPU's cache holds, or what fills a chip."""
        default = (
            100 * devices.count() if jax.default_backend() == "cpu" else 2048 * devices.count()
        )
        return self.config["eval_size"] or default

    def read(self) -> Dataset:
        """The data; raises DataError."""
        return self.source.read()

    def rates(self) -> jax.Array:
        """The planned rate of every update, float32 [total], before any regime."""
        shape = jax.vmap(self.shape)
        return jax.jit(lambda t: jnp.float32(self.config["lr"]) * shape(t))(jnp.arange(self.total))


def check(config: Mapping[str, Any], parts: int | None = None) -> Recipe:
    """Builds a recipe.

    Args:
      parts: devices that share a batch; by default all.
    Raises:
      ConfigError: every problem that the config has.
      DataError: the data set is not there, and all else is well.
    """
    full, problems = fields.fill(config), Problems()
    if unstorable := fields.unstorable(full):
        raise ConfigError(unstorable)
    problems.found += fields.problems(full)
    sections = "data", "batch", "model", "optimizer"
    whole = all(isinstance(full.get(key), dict) for key in sections)
    if problems.attempt(devices.count) is None or not whole:
        raise ConfigError(problems.found)
    absent: DataError | None = None
    source: Source | None = None
    try:
        source = problems.attempt(lambda: _made(full, "data", Source))
    except DataError as e:
        absent = e
    regime = problems.attempt(lambda: _regime(full, source))
    model = problems.attempt(lambda: _model(full["model"], source))
    per_epoch = (
        problems.attempt(lambda: _per_epoch(source, regime, full, parts or devices.count()))
        if source and regime
        else None
    )
    total = problems.attempt(lambda: _total(full, per_epoch)) if per_epoch else None
    clock = planning.Clock(total, per_epoch, regime.sizes[0] if regime else None)
    scheduled = problems.attempt(lambda: planning.scheduled(full, clock))
    make_tx = problems.attempt(lambda: _optimizer(full, scheduled or {}))
    planned = None
    if full["schedule"] is not None:
        planned = problems.attempt(lambda: planning.plan(full["schedule"], clock))
    if make_tx and scheduled:
        probe = {k: float(np.asarray(v(0))) for k, v in scheduled.items() if k != "label_smoothing"}
        problems.attempt(lambda: make_tx(1.0, probe))
    shapes: Any = None
    groups: Any = ()
    frozen: Any = None
    if source and model is not None and make_tx:
        shapes = problems.attempt(lambda: _shapes(model, make_tx, source))
    layered = [k for k in ("lr_multipliers", "no_decay") if full[k]]
    sound = not any(fields.is_bad(full, k) for k in layered)
    if source and shapes is not None and layered and sound:
        params = shapes.params
        found = problems.attempt(lambda: _layers(full, scheduled or {}, model, source, params))
        if found:
            groups, make_tx, frozen = found
            shapes = _state(model, make_tx, source)
    augment = problems.attempt(lambda: _augment(full, source))
    begun = None
    if shapes is not None and full["start"] is not None:
        begun = problems.attempt(lambda: start.read(full["start"], shapes.params, shapes.stats))
    if problems.found:
        raise ConfigError(dict.fromkeys(problems.found))
    if absent:
        raise absent
    assert source is not None
    assert regime is not None
    assert model is not None
    assert make_tx is not None
    assert shapes is not None
    assert planned is not None
    assert scheduled is not None
    assert per_epoch
    assert total
    warnings = fields.unusual(full) + _decays_twice(full)
    last, at = full["epochs"], full["checkpoint"]["at"]
    if at != "cycles" and any(e > last for e in at):
        raise ConfigError([f"checkpoint.at={at!r}: the run ends after {last} epochs"])
    for key in sections:
        fixed = {k: v for k, v in full[key].items() if not fields.is_schedule(v)}
        full[key] |= resolve.fitted(ROOMS[key], fixed)
    return Recipe(
        config=full,
        source=source,
        model=model,
        make_tx=make_tx,
        shape=planned.shape,
        phases=planned.phases,
        regime=regime,
        per_epoch=per_epoch,
        total=total,
        shapes=shapes,
        scheduled=scheduled,
        groups=groups,
        warnings=(*warnings, *planned.warnings),
        frozen=frozen,
        start=begun,
        augment=augment,
    )


def _made(full: Mapping[str, Any], section: str, kind: type, given: Any = None) -> Any:
    """What a section names, made; ConfigError where that is no `kind`."""
    made = resolve.resolve(ROOMS[section], full[section], section, given)
    if not isinstance(made, kind):
        name, got = full[section]["name"], type(made).__name__
        raise ConfigError([f"{section}.name={name!r} gives {got}, not a {kind.__name__}"])
    return made


def _model(spec: Mapping[str, Any], source: Source | None) -> Any:
    """The model, told how many classes and pieces of text there are if it wants to know."""
    target = resolve.find("lrlab.models", spec.get("name"), "model.name")
    wanted, given = resolve.parameters(target), {}
    known = (source.num_classes, source.vocabulary) if source else (2, 2)
    told = {"num_classes": (known[0], "classes"), "vocabulary": (known[1], "pieces of text")}
    for key, (value, what) in told.items():
        if key not in wanted or value is None:
            continue
        if key not in spec:
            given[key] = value
        elif source and spec[key] != value:
            raise ConfigError([f"model.{key}={spec[key]!r}: {source.name} has {value} {what}"])
    model = _made({"model": spec}, "model", nn.Module, given)
    takes = inspect.signature(type(model).__call__).parameters.values()
    if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in takes):
        raise ConfigError(
            [
                f"model.name={spec['name']!r}: its __call__ takes no `train`; lrlab calls a model "
                "as model(x, train=True) in updates and with train=False otherwise"
            ]
        )
    return model


def _augment(full: Mapping[str, Any], source: Source | None) -> Chain | None:
    """The augmentations, which fit the data's features; None for none."""
    told = full["augment"]
    if told is None:
        return None  # `fields` says what is wrong with it
    if not isinstance(told, tuple) or not all(isinstance(a, Mapping) for a in told):
        raise ConfigError(
            [f"augment={told!r} must be a tuple of sections, such as (dict(name='crop', pad=4),)"]
        )
    if not told:
        return None
    found, problems = [], []
    for i, spec in enumerate(told):
        try:
            found.append(resolve.resolve("lrlab.augment", spec, f"augment[{i}]"))
        except ConfigError as e:
            problems += e.problems
    if problems:
        raise ConfigError(problems)
    try:
        chain = compose(found)
        if source:
            x = jax.ShapeDtypeStruct((2, *source.feature_shape), jnp.float32)
            y, key = (
                jax.ShapeDtypeStruct((2,), jnp.int32),
                jax.eval_shape(lambda: jax.random.key(0)),
            )
            jax.eval_shape(chain, key, x, y, y)
    except ValueError as e:
        raise ConfigError([str(e)]) from e
    return chain


def _decays_twice(full: Mapping[str, Any]) -> list[str]:
    """A warning where the chain and the rule itself both decay weights."""
    spec, ours = full["optimizer"], full["weight_decay"]
    rule = resolve.find("lrlab.optimizers", spec["name"])
    if fields.is_schedule(ours) or not ours or not optimizers.decays(rule, spec):
        return []  # a schedule goes to the rule's own
    return [
        f"weight_decay={ours} is applied on top of the decay that {spec['name']} has of its own, "
        "optimizer.weight_decay: keep one"
    ]


def _layers(
    full: Mapping[str, Any], scheduled: Scheduled, model: Any, source: Source, params: Any
) -> Any:
    """(groups, make_tx, frozen leaves) where layers differ in rate or decay.

    Raises:
      ConfigError: a pattern that misses, or a name that is no rule of layers.
    """
    rules = full["lr_multipliers"]
    if isinstance(rules, Mapping):
        given = {"params": _in_order(model, source)}
        rules = resolve.resolve("lrlab.optimizers._layers", rules, "lr_multipliers", given)
    mask = optimizers.decay_mask(params, full["no_decay"]) if full["no_decay"] else None
    multiply = optimizers.multipliers(rules, params) if rules else None
    groups = tuple(optimizers.groups(rules, params)) if rules else ()
    frozen = jax.tree.map(lambda m: m == 0, multiply) if rules else None
    frozen = frozen if any(jax.tree.leaves(frozen)) else None
    return groups, _optimizer(full, scheduled, multiply, mask), frozen


def _in_order(model: Any, source: Source) -> dict[str, Any]:
    """The model's layers in the order of their definition, which jit's trees forget."""
    layers: dict[str, Any] = {}

    def make() -> None:
        x = jnp.zeros((1, *source.feature_shape))
        layers.update(model.init({"params": jax.random.key(0)}, x, train=False)["params"])

    jax.eval_shape(make)
    return dict.fromkeys(layers)


def _optimizer(
    full: Mapping[str, Any], scheduled: Scheduled, multiply: Any = None, mask: Any = None
) -> MakeTx:
    """The chain; a scheduled keyword has its first value where there is no update yet."""
    spec = dict(full["optimizer"])
    if "name" not in spec:
        raise ConfigError(["optimizer.name is missing, such as 'momentum' or 'adam'"])
    takes = resolve.parameters(resolve.find(ROOMS["optimizer"], spec["name"], "optimizer.name"))
    for key in [k for k, v in spec.items() if fields.is_schedule(v)]:
        default = takes[key].default if key in takes else None
        if key in scheduled and not isinstance(default, bool | str):
            spec[key] = float(np.asarray(scheduled[key](0)))
        else:  # what is no number cannot be scheduled: it is `make_tx` that says so
            del spec[key]
    sound = {
        key: float(full[key])
        for key in ("clip_norm", "ema", "l2", "weight_decay")
        if not fields.is_schedule(full[key]) and not fields.is_bad(full, key)
    }
    make_tx = optimizers.make(spec, multiply, mask=mask, **sound)
    make_tx(1.0)  # the rule checks its keywords now, not at the first update
    return make_tx


def _regime(full: Mapping[str, Any], source: Source | None) -> batching.Regime:
    """The regime, told how many examples there are if it wants to know."""
    spec, given = full["batch"], {}
    if isinstance(spec.get("name"), str):
        target = resolve.find(ROOMS["batch"], spec["name"], "batch.name")
        if "examples" in resolve.parameters(target) and "examples" not in spec:
            given["examples"] = source.sizes[0] if source else None
    return _made(full, "batch", batching.Regime, given)


def _reached(regime: batching.Regime, epochs: Any) -> tuple[int, ...]:
    """The sizes that a run comes to: all, where losses decide."""
    if regime.reads or not isinstance(epochs, int):
        return regime.sizes
    return tuple(sorted({regime.at(epoch, ())[0] for epoch in range(min(epochs, 100_000))}))


def _per_epoch(source: Source, regime: batching.Regime, full: Mapping[str, Any], found: int) -> int:
    """Updates of an epoch at the first size; problems of every size that the run comes to."""
    problems, examples = [], source.sizes[0]
    for size in _reached(regime, full["epochs"]):
        if size > examples:
            problems.append(
                f"batch.size={size} is more than {source.name}'s {examples:,} training examples"
            )
        divisor = found * regime.parts(size)
        if (full["noise_scale"] or regime.reads == "noise") and divisor == 1:
            divisor = 2
        if size % divisor:
            parts = f" x {divisor // found} micro-batches" if divisor > found else ""
            near = batching.nearest(size, divisor)
            problems.append(f"batch.size={size} is not divisible by {found} devices{parts}; {near}")
    reader = "the batch regime reads their loss" if regime.reads_losses else ""
    reader = reader or ("patience looks at their accuracy" if full["patience"] else "")
    for name, size in zip(("training", "validation", "test"), source.sizes, strict=True):
        if size < 1 and (name != "validation" or reader):
            why = reader if name == "validation" else "none to use"
            problems.append(
                f"{source.name} has no {name} examples: {why}; set data.{name} or another split"
            )
    if problems:
        raise ConfigError(problems)
    return batching.updates_per_epoch(examples, regime.sizes[0])


def _total(full: Mapping[str, Any], per_epoch: int) -> int | None:
    """Updates of the run; None where `epochs` is none."""
    if fields.is_bad(full, "epochs"):
        return None
    total, most = full["epochs"] * per_epoch, 2**31 - 1
    if total > most:
        raise ConfigError(
            [f"epochs={full['epochs']} are {total:,} updates; the clock counts to {most:,}"]
        )
    return total


def _state(model: Any, make_tx: MakeTx, source: Source) -> State:
    """The state as shapes."""
    make = initializer(model, make_tx, source.feature_shape)
    return jax.eval_shape(make, jax.ShapeDtypeStruct((), jnp.uint32))


def _shapes(model: Any, make_tx: MakeTx, source: Source) -> State:
    """The state as shapes; tracing the model finds inputs and updates that it cannot take."""
    x = jax.ShapeDtypeStruct((2, *source.feature_shape), jnp.float32)
    y = jax.ShapeDtypeStruct((2, *source.target_shape), jnp.int32)
    rows = jax.ShapeDtypeStruct((2,), jnp.int32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    step = make_train_step(model, make_tx, lambda _: jnp.float32(1), devices.AXIS)
    traced = jax.make_jaxpr(step, axis_env=[(devices.AXIS, 1)], return_shape=True)
    at = f"model cannot take {source.name}'s features of {'x'.join(map(str, source.feature_shape))}"
    try:
        variables = jax.eval_shape(
            lambda: model.init({"params": jax.random.key(0)}, jnp.zeros(x.shape), train=False)
        )
        if not jax.tree.leaves(variables.get("params")):
            raise ConfigError(["model has no parameters, so there is nothing to train"])
        shapes = _state(model, make_tx, source)
        apply = functools.partial(model.apply, train=False)
        logits = jax.eval_shape(apply, {"params": shapes.params, **shapes.stats}, x)
        if getattr(logits, "shape", None) != (2, *source.target_shape, source.num_classes):
            kind = type(logits).__name__
            what = f"shape {logits.shape[1:]}" if hasattr(logits, "shape") else f"type {kind}"
            raise ConfigError(
                [
                    f"model gives outputs of {what}, but {source.name} has "
                    f"{source.num_classes} classes"
                ]
            )
        at = (
            "model cannot be trained: train=True, with the random key 'dropout', and collections "
            f"that are there with train=False ({', '.join(shapes.stats) or 'none'})"
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        _, (after, _) = traced(shapes, {"x": x, "y": y, "rows": rows}, key, number)
    except ConfigError:
        raise
    except Exception as e:  # it may be the user's own code
        raise ConfigError([f"{at}: {resolve.cause(e)}"]) from e
    if _form(after) != _form(shapes):
        raise ConfigError(["model cannot be trained: an update changes the form of its state"])
    return shapes


def _form(tree: Any) -> Any:
    """Structure, shapes and types."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(a.shape, a.dtype) for a in leaves]
