"""Which leaf gets what: multipliers of the rate, decay, frozen groups, by the leaf's path."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from lrlab import resolve

__all__ = ["by_depth"]  # what lr_multipliers may name
UNDECAYED = (".*/bias", ".*/scale")  # Flax's names of biases and of the scales of norms


def paths(params: Any) -> list[str]:
    """The path of every leaf, in order: "Dense_0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [
        "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path) for path, _ in leaves
    ]


def _winners(rules: Sequence[tuple[str, float]], params: Any) -> list[int | None]:
    """The index of every leaf's rule, the first whose pattern matches; raises ConfigError."""
    names, problems = paths(params), []
    winner: list[int | None] = [None] * len(names)
    for i, (pattern, _) in enumerate(rules):
        try:
            expression = re.compile(pattern)
        except re.error as e:
            problems.append(f"lr_multipliers[{i}]: {pattern!r} is no regular expression: {e}")
            continue
        hits = [n for n, name in enumerate(names) if expression.fullmatch(name)]
        won = [n for n in hits if winner[n] is None]
        for n in won:
            winner[n] = i
        if not won:
            why = (
                f"all {len(hits)} it matches went to earlier rules"
                if hits
                else f"paths: {names[:8]}"
            )
            problems.append(
                f"lr_multipliers[{i}]: {pattern!r} applies to none of {len(names)} leaves; {why}"
            )
    bare = [n for n, w in zip(names, winner, strict=True) if w is None]
    if rules and bare and not problems:
        problems.append(f"lr_multipliers matches no rule for {bare[:8]}; end with ('.*', 1.0)")
    if names and not problems and all(w is not None and rules[w][1] == 0 for w in winner):
        problems.append(
            f"lr_multipliers freezes all {len(names)} leaves: a multiplier of 0 trains nothing; "
            "end with ('.*', 1.0)"
        )
    if problems:
        raise resolve.ConfigError(problems)
    return winner


def multipliers(rules: Sequence[tuple[str, float]], params: Any) -> Any:
    """A tree of rate multipliers by parameter path: the first rule whose pattern matches wins.

    Args:
      rules: (regular expression for the whole path, multiplier >= 0); 0 freezes.
      params: arrays or shapes.
    Raises:
      ConfigError: a pattern that is no regular expression or wins no leaf, a leaf that none
      matches, nothing left to train.
    """
    values = [1.0 if w is None else float(rules[w][1]) for w in _winners(rules, params)]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def groups(rules: Sequence[tuple[str, float]], params: Any) -> list[tuple[str, float, int, int]]:
    """Every rule as (pattern, multiplier, leaves, weights), to show; raises as `multipliers`."""
    rules = rules or ((".*", 1.0),)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    winner = _winners(rules, params)
    found = []
    for i, (pattern, value) in enumerate(rules):
        won = [size for size, w in zip(sizes, winner, strict=True) if w == i]
        found.append((pattern, float(value), len(won), sum(won)))
    return found


def by_depth(
    params: Any, decay: float = 2.6, order: Sequence[str | Sequence[str]] | None = None
) -> tuple[tuple[str, float], ...]:
    """Rules for `multipliers`: each group of layers learns `decay` times slower than the next.

    Args:
      params: a mapping whose keys are the layers.
      decay: of a group's rate to that of the one before it, eta^(l-1) = eta^l / decay.
      order: the layers from first to last; a tuple of names is one group. None takes the order of
        the mapping, which is that of definition only before jit or a tree map sorts it.
    Raises:
      ConfigError: decay <= 0, a layer that `order` leaves out, names twice or invents.
    Source:
      Howard & Ruder 2018, arXiv:1801.06146, 3.2.
    """
    layers = list(params)
    grouped = [(g,) if isinstance(g, str) else tuple(g) for g in (order or layers)]
    named = [name for group in grouped for name in group]
    problems = []
    if decay <= 0:
        problems.append(f"by_depth needs decay > 0, got {decay!r}")
    if missing := [name for name in layers if name not in named]:
        problems.append(f"by_depth: order leaves out {missing}")
    if unknown := [name for name in named if name not in layers]:
        problems.append(f"by_depth: order has {unknown}, and the layers are {layers}")
    if twice := sorted({name for name in named if named.count(name) > 1}):
        problems.append(f"by_depth: order has {twice} twice")
    if problems:
        raise resolve.ConfigError(problems)
    rules = []
    for i, group in enumerate(grouped):
        pattern = "|".join(map(re.escape, group))
        rules.append((f"({pattern})(/.*)?", float(decay) ** (i + 1 - len(grouped))))
    return tuple(rules)


def decay_mask(params: Any, without: Sequence[str] = UNDECAYED) -> Any:
    """A tree of booleans: False for leaves whose path a pattern of `without` matches.

    Raises:
      ConfigError: a pattern that is no regular expression, matches no leaf (but for the default
        ones, since not every model has norms), or leaves nothing to decay.
    """
    names, problems, expressions = paths(params), [], []
    for i, pattern in enumerate(without):
        try:
            expressions.append(re.compile(pattern))
        except re.error as e:
            problems.append(f"no_decay[{i}]: {pattern!r} is no regular expression: {e}")
            continue
        if pattern not in UNDECAYED and not any(map(expressions[-1].fullmatch, names)):
            problems.append(
                f"no_decay[{i}]: {pattern!r} matches none of {len(names)} leaves; "
                f"paths: {names[:8]}"
            )
    kept = [not any(e.fullmatch(name) for e in expressions) for name in names]
    if not any(kept) and not problems:
        problems.append(f"no_decay={tuple(without)!r} leaves none of {len(names)} leaves to decay")
    if problems:
        raise resolve.ConfigError(problems)
    return jax.tree.unflatten(jax.tree.structure(params), kept)
