"""The job "finetune": phases, each with its trainable groups, rates and schedule; each is a run.

<folder>/1_head/             a run, as the job "train" writes it; the next begins where it ended
<folder>/1_head_range_test/  what its rate comes from, where a phase asks for a range test
<folder>/1_features.npz      what the frozen network makes of the data, where a phase precomputes,
<folder>/1_head.npz          and the head that it begins with
<folder>/summary.json        phases: rates, epochs, accuracies
<folder>/report.html         all of it on a page

    config.start = dict(run="runs/pretrained", fresh=("Dense_1/.*",))
    config.finetune = dict(phases=dict(name="eight_steps"))
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrlab import build, console, fields, optimizers, records, resolve, values
from lrlab import features as network
from lrlab.data import features
from lrlab.jobs import _start, range_test, train
from lrlab.report.finetune import write_finetune
from lrlab.resolve import ConfigError

__all__ = ["run"]
FIELDS = {"phases": None, "groups": None, "head": None}
OWN = {  # fields of a phase that are not fields of a run
    "name": None,
    "train": None,
    "factor": 1.0,
    "precompute": False,
    "range_test": False,
    "begin": "final",
    "optimizer_state": "clear",
}
RANGE = {"low": 1e-5, "high": 10.0, "updates": 200, "seeds": 3}  # of a phase's range test


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase, checked; what it changes of the config is in `changes`.

    rules: lr_multipliers. begin: which state of the phase before it begins from.
    """

    number: int
    name: str
    rules: tuple[tuple[str, float], ...]
    precompute: bool
    test: dict[str, Any] | None
    begin: str
    keeps_optimizer: bool
    changes: dict[str, Any]

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{self.number}_{re.sub(r'[^a-z0-9]+', '_', self.name.lower()).strip('_')}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All phases; config: the job's, filled. recipe: of the whole network, all of it training."""

    config: dict[str, Any]
    recipe: build.Recipe
    head: str
    groups: tuple[str, ...]
    phases: tuple[Phase, ...]

    def base(self) -> dict[str, Any]:
        """The config of a run, before a phase changes it."""
        return {k: v for k, v in self.config.items() if k not in ("job", "finetune")}


def check(config: Mapping[str, Any]) -> Plan:
    """Expands and checks all phases; raises ConfigError with every problem."""
    full = fields.fill(config)
    spec = full["finetune"]
    if not isinstance(spec, Mapping) or spec.get("phases") is None:
        raise ConfigError(
            [f"finetune={spec!r} must be a section: dict(phases=dict(name='eight_steps'))"]
        )
    problems = [
        f"unknown field finetune.{k}; {values.near(k, FIELDS)}" for k in spec if k not in FIELDS
    ]
    base = {k: v for k, v in full.items() if k not in ("job", "finetune")}
    recipe = build.check(base)
    modules = recipe.modules
    groups = spec.get("groups") or tuple(f"{re.escape(m)}/.*" for m in modules)
    if not isinstance(groups, tuple) or not all(isinstance(g, str) for g in groups):
        raise ConfigError([f"finetune.groups={groups!r} must be patterns, from input to head"])
    head = spec.get("head") or modules[-1]
    told = spec["phases"]
    if isinstance(told, Mapping):
        told = resolve.resolve("lrlab.thawing", told, "finetune.phases", {"groups": groups})
    if not isinstance(told, tuple | list) or not told:
        problems.append(f"finetune.phases={told!r} must be a tuple of phases, or dict(name=...)")
        told = ()
    phases = []
    for i, phase in enumerate(told):
        try:
            phases.append(_phase(i, phase, groups, base))
        except ConfigError as e:
            problems += [f"finetune.phases[{i}]: {p}" for p in e.problems]
    if phases and phases[0].changes.get("lr") == "last" and phases[0].test is None:
        problems.append("finetune.phases[0]: lr='last' needs a phase before it")
    if problems:
        raise ConfigError(problems)
    plan = Plan(full, recipe, head, tuple(groups), tuple(phases))
    for phase in plan.phases:
        try:
            _check_phase(plan, phase)
        except ConfigError as e:
            raise ConfigError(
                f"finetune.phases[{phase.number - 1}]: {p}" for p in e.problems
            ) from e
    return plan


def _phase(i: int, told: Any, groups: Sequence[str], base: Mapping[str, Any]) -> Phase:
    if not isinstance(told, Mapping):
        raise ConfigError([f"{told!r} must be a section, such as dict(train=1, epochs=2)"])
    known = {*OWN, *fields.DEFAULTS, *fields.REQUIRED} - {"job", "finetune", "sweep", "start"}
    own, problems = {**OWN, **{k: v for k, v in told.items() if k in OWN}}, []
    for key in told:
        if key not in known:
            problems.append(f"unknown field {key}={told[key]!r}; {values.near(key, known)}")
    problems += values.choice("begin", own["begin"], ("final", "best"))
    problems += values.choice("optimizer_state", own["optimizer_state"], ("clear", "keep"))
    problems += values.number("factor", own["factor"], 0, open_low=True)
    changes = {k: v for k, v in told.items() if k not in OWN}
    train_, count = own["train"], len(groups)
    rules: tuple[tuple[str, float], ...] = tuple(changes.get("lr_multipliers", ()))
    if train_ is not None and rules:
        problems.append("train and lr_multipliers both say what trains: keep one")
    elif isinstance(train_, tuple) and all(isinstance(p, str) for p in train_) and train_:
        rules = (*((p, 1.0) for p in train_), (".*", 0.0))
    elif isinstance(train_, int) and not isinstance(train_, bool) and 1 <= train_ <= count:
        if not problems:
            rules = _rules(groups, train_, float(own["factor"]))
    elif train_ is not None:
        problems.append(f"train={train_!r} must be how many of the {count} groups, or patterns")
    if problems:
        raise ConfigError(problems)
    test = own["range_test"]
    return Phase(
        number=i + 1,
        name=str(own["name"] or f"phase {i + 1}"),
        rules=rules,
        precompute=bool(own["precompute"]),
        test={**RANGE, **test} if isinstance(test, Mapping) else dict(RANGE) if test else None,
        begin=own["begin"],
        keeps_optimizer=own["optimizer_state"] == "keep",
        changes={k: v for k, v in changes.items() if k != "lr_multipliers"},
    )


def _rules(groups: Sequence[str], last: int, factor: float) -> tuple[tuple[str, float], ...]:
    """Multipliers of the last groups, each `factor` below the next; the others are frozen."""
    count = len(groups)
    found = [(g, factor ** (i + 1 - count)) for i, g in enumerate(groups) if i >= count - last]
    return tuple(found) if last == count else (*found, (".*", 0.0))


def _check_phase(plan: Plan, phase: Phase) -> None:
    """What can be checked before the phases ahead of it have trained."""
    if phase.precompute:
        frozen = (
            optimizers.multipliers(phase.rules, plan.recipe.shapes.params) if phase.rules else {}
        )
        held = {
            p for p, m in zip(optimizers.paths(frozen), jax.tree.leaves(frozen), strict=True) if m
        }
        if not held or not all(p.startswith(f"{plan.head}/") for p in held):
            raise ConfigError(
                [
                    f"precompute trains the head {plan.head!r} alone, as train=1 does; set head or "
                    "train"
                ]
            )
        if phase.number == 1 and plan.config["start"] is None:
            raise ConfigError(["precompute needs a network that was trained: set config.start"])
        network.check(plan.recipe, plan.head)
    changes = dict(phase.changes)
    if changes.get("lr") in ("last", None):
        changes.pop("lr", None)
    build.check({**plan.base(), **changes, "lr_multipliers": phase.rules, "start": None})


def run(config: Mapping[str, Any], workdir: Path | None, options: _start.Options) -> None:
    """Trains all phases, or goes on, or says that it is done.

    Raises:
      ConfigError, DataError, LockedError, DivergedError, Stopped: see `main` for their exit codes.
    """
    plan = check(config)
    folder = workdir or _start.default_folder(plan.config, options.source)
    _start.same_config(folder, plan.config)
    console.say(_banner(plan, folder, options))
    if options.dry_run:
        console.say("dry run: nothing was trained or written")
        return
    with records.locked(folder) as writer:
        _start.claim(folder, plan.config, plan.recipe, options)
        if (folder / "summary.json").exists() and (folder / "report.html").exists():
            console.say(f"already finished\n{_ending(folder)}")
            return
        writer.event("start")
        rows: list[dict[str, Any]] = []
        before = plan.config["start"]
        for phase in plan.phases:
            row, before = _perform(plan, phase, before, rows, folder, options)
            rows.append(row)
        records.write_json(folder / "summary.json", {"head": plan.head, "phases": rows})
        write_finetune(folder)
        writer.event("end")
    console.say(_ending(folder))


def _perform(
    plan: Plan,
    phase: Phase,
    before: dict[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    options: _start.Options,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains a phase; returns its row and what the next one begins from."""
    console.say(f"\nphase {phase.number} of {len(plan.phases)}: {phase.name}")
    start = before and {**before, "optimizer": phase.keeps_optimizer}
    if start and before and rows and before.keys() == {"run"}:  # where the phase before ended
        start["which"] = phase.begin
    config = {**plan.base(), **phase.changes, "lr_multipliers": phase.rules, "start": start}
    config.pop("lr") if phase.changes.get("lr") == "last" else None
    if phase.precompute:
        config = _on_features(plan, config, folder / f"{phase.number}_features.npz")
    lr, suggested = _rate(plan, phase, config, rows, folder, options)
    home = folder / phase.stem
    train.run({**config, "lr": lr}, home, options)
    record = records.read(home)
    assert record.final is not None
    best = records.best(record.rows) or {}
    row = {
        "phase": phase.number,
        "name": phase.name,
        "folder": home.name,
        "range_test": f"{phase.stem}_range_test" if phase.test else None,
        "suggested": suggested,
        "lr": lr,
        "lr_from": "range test"
        if suggested is not None
        else "phase before"
        if phase.changes.get("lr") == "last"
        else "config",
        "rules": phase.rules,
        "trained_weights": _trained(plan, phase),
        "epochs": record.final["epoch"],
        "updates": record.final["step"],
        "seconds": record.final["seconds"],
        "val_accuracy": best.get("val_accuracy"),
        "val_loss": best.get("val_loss"),
        "test_accuracy": record.final["test_accuracy"],
        "test_loss": record.final["test_loss"],
    }
    if phase.precompute:  # the network is what it was, with this head
        kept = {k: v for k, v in (before or {}).items() if k != "optimizer"}
        return row, {**kept, "head": (plan.head, str(home), "Dense_0")}
    return row, {"run": str(home)}


def _on_features(plan: Plan, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The config of a head that is trained alone, on what lies below it, which is computed once."""
    if not file.exists():
        recipe = build.check({**config, "lr": config.get("lr", 1.0)})
        data, state = recipe.read(), recipe.init()
        found = network.below(recipe, plan.head, state.params, state.stats, data)
        head = {f"params/Dense_0/{k}": np.asarray(a) for k, a in state.params[plan.head].items()}
        np.savez(_head_of(file), allow_pickle=False, **head)
        features.save(file, data, found)
        console.say(f"features  {found['train'].shape[1]:,} of each example, kept in {file.name}")
    changed = {
        "data": {"name": "features.precomputed", "file": str(file)},
        "model": {"name": "mlp.MLP", "widths": ()},
        "lr_multipliers": (),
        "start": {"file": str(_head_of(file))},
        "augment": (),
    }
    return {
        k: v
        for k, v in {**config, **changed}.items()
        if k in fields.DEFAULTS or k in fields.REQUIRED
    }


def _head_of(file: Path) -> Path:
    """What the head begins as, beside the features that it sees."""
    return file.with_name(file.name.replace("_features", "_head"))


def _rate(
    plan: Plan,
    phase: Phase,
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    options: _start.Options,
) -> tuple[float, float | None]:
    """The peak rate of a phase, and what its range test suggested."""
    told = phase.changes.get("lr")
    otherwise = rows[-1]["lr"] if told == "last" and rows else told or plan.config["lr"]
    if phase.test is None:
        return float(otherwise), None
    home = folder / f"{phase.stem}_range_test"
    if not (home / "range_test.json").exists():
        changes = {
            "lr": 1.0,
            "job": {"name": "range_test"},
            "range_test": phase.test,
            "patience": None,
            "schedule": ({"name": "constant"},),
        }
        range_test.run({**config, **changes}, home, options)
    found = records.read_json(home / "range_test.json").get("lr")
    if found is None:
        console.say(f"no rate is suggested; {otherwise:g} is taken")
        return float(otherwise), None
    return float(found), float(found)


def _trained(plan: Plan, phase: Phase) -> int:
    rules = phase.rules or ((".*", 1.0),)
    return sum(n for _, m, _, n in optimizers.groups(rules, plan.recipe.shapes.params) if m)


def _banner(plan: Plan, folder: Path, options: _start.Options) -> str:
    recipe = plan.recipe
    sizes = recipe.source.sizes
    items = [
        (
            "data",
            f"{recipe.source.name}: {sizes[0]:,} train, {sizes[1]:,} validation, {sizes[2]:,} test",
        ),
        ("model", f"{recipe.config['model']['name']}, {recipe.parameters:,} parameters"),
        ("start", recipe.start.words() if recipe.start else "fresh weights"),
        ("groups", f"{len(plan.groups)}, head {plan.head}"),
        *(
            (
                f"phase {p.number}",
                f"{p.name}: {_trained(plan, p):,} weights, "
                f"{p.changes.get('epochs', plan.config['epochs'])} epochs"
                + (", on features" if p.precompute else "")
                + (", rate by a range test" if p.test else ""),
            )
            for p in plan.phases
        ),
        ("folder", str(folder)),
    ]
    return console.banner(f"lrlab finetune {options.source}", items, [])


def _ending(folder: Path) -> str:
    rows = records.read_json(folder / "summary.json")["phases"]
    lines = [
        f"  {r['phase']} {r['name']:<20} lr {console.rate(r['lr']):<10} {r['epochs']:>3} epochs, "
        f"test accuracy {console.percent(r['test_accuracy'])}"
        for r in rows
    ]
    return "\n".join([*lines, f"report {folder / 'report.html'}"])


def finetune(config: Mapping[str, Any], workdir: str | Path) -> list[dict[str, Any]]:
    """Takes a trained model to another task, phase by phase; the same call goes on where it ended.

        rows = lrlab.finetune(dict(
            data=dict(name="digits"), model=dict(name="mine:Net"), optimizer=dict(name="adam"),
            epochs=3, lr=1e-3, start=dict(run="runs/mnist", fresh=("head/.*",)),
            finetune=dict(phases=dict(name="gradual")),
        ), "runs/mine")

    Args:
      config: as the command line's; the model may be anybody's Flax module, named "module:class".
      workdir: of the phases' runs and the report.
    Returns:
      A row a phase: rates, epochs, accuracies, folder.
    Raises:
      ConfigError, DataError: nothing was trained.
    """
    full = {**config, "job": {"name": "finetune"}}
    run(full, Path(workdir), _start.Options("a config in Python", "lrlab.finetune(...)"))
    return records.read_json(Path(workdir) / "summary.json")["phases"]
