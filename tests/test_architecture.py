"""The map in WORKSPACE.md is what the imports do."""

import ast
import re

import pytest
from conftest import ROOT

FLOORS = (
    {"values", "metrics", "records", "tensorboard"},
    {"resolve", "fields"},
    {
        *("data", "models", "schedules", "optimizers", "batching", "checkpoint", "devices"),
        *("points", "analysis", "thawing", "pretrained", "augment"),
    },
    {"train_step", "planning", "trials", "start", "population", "searches"},
    {"epoch", "build"},
    {"loop", "lanes", "forecast", "features", "ensembles"},
    {"jobs", "preview"},
    {"launch"},
    {"main"},
)
ASIDE = {"report", "plots", "charts", "console"}  # records -> what people see
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
FILES = sorted((ROOT / "lrlab").rglob("*.py"))


def room(path):
    return path.relative_to(ROOT / "lrlab").parts[0].removesuffix(".py")


def imports(path):
    """Dotted names that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{a.name}" for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_floors(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("configs", "experiments", "tests", "benchmarks"), name
        if parts[0] != "lrlab" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        there = parts[1]
        if here in ASIDE:
            assert there in ASIDE | {"records"}, f"{here} imports {there}"
        elif there in ASIDE:
            assert FLOOR[here] >= FLOOR["jobs"], f"{here} shows things: {there}"
        else:
            assert FLOOR[there] < FLOOR[here], f"{here} (floor {FLOOR[here]}) imports {there}"


def test_every_module_has_its_place_in_the_map():
    assert {room(p) for p in FILES} - {"__init__"} == set(FLOOR) | ASIDE
    workspace = (ROOT / "WORKSPACE.md").read_text()
    for name in sorted(set(FLOOR) | ASIDE):
        assert re.search(rf"\b{name}(\.py|/)", workspace), f"WORKSPACE.md does not show {name}"


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [
        (r"\bpmap\(|\bjax\.distributed\.|\bprocess_index\(", "devices"),
        (r"^\s*(import|from) orbax", "checkpoint"),
        (r"^\s*(import|from) ml_collections", "build"),
        (r"^\s*(import|from) tensorboardX", "tensorboard"),
    ],
)
def test_what_belongs_in_one_file_is_in_one_file(pattern, owner):
    users = {room(p) for p in FILES if re.search(pattern, p.read_text(), re.MULTILINE)}
    assert users <= {owner}


def test_what_people_see_is_made_without_jax():
    for path in FILES:
        if room(path) in ASIDE:
            assert not {n.split(".")[0] for n in imports(path)} & {
                "jax",
                "flax",
                "optax",
                "orbax",
            }, path
