"""Every recipe in configs/ is sound, and takes two updates."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from lrlab import build, devices, epoch
from lrlab.data import Dataset, Source, Split
from lrlab.main import load_config

FILES = sorted(p for p in (ROOT / "configs").glob("*.py"))
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def stand_in(config):
    """Random data of the shape that the recipe's real set has."""
    name = config["data"].get("dataset")
    shape, classes = (SHAPES[name], 10) if name else ((54,), 7)
    rng = np.random.default_rng(0)
    size = config["batch"]["size"]
    if config["data"]["name"].startswith("text."):
        return stand_in_text(config["data"], size, rng)

    def split(n):
        x = (
            rng.integers(0, 256, (n, *shape)).astype(np.uint8)
            if name
            else rng.normal(size=(n, *shape))
        )
        return Split(
            x if name else x.astype(np.float32), rng.integers(0, classes, n).astype(np.int32)
        )

    def read():
        mean, scale = (
            (np.float32(128), np.float32(1 / 64)) if name else (np.float32(0), np.float32(1))
        )
        names = tuple(map(str, range(classes)))
        return Dataset(
            "stand-in", split(40 * size), split(20), split(20), classes, names, mean, scale
        )

    return Source("stand-in", (40 * size, 20, 20), shape, classes, read)


def stand_in_text(spec, size, rng, pieces=50):
    """The same for text: token ids, and a class each or the token one later."""
    length, language = spec["length"], spec["name"] == "text.wikitext2"
    classes = pieces if language else 6

    def split(n):
        ids = rng.integers(1, pieces, (n, length + 1), dtype=np.int32)
        return Split(ids[:, :-1], ids[:, 1:] if language else rng.integers(0, 6, n, dtype=np.int32))

    names, one = tuple(map(str, range(classes))), np.ones(1, np.float32)
    parts = split(40 * size), split(20), split(20)
    data = Dataset("stand-in", *parts, classes, names, 0 * one, one)
    target = (length,) if language else ()
    sizes = (40 * size, 20, 20)
    return Source("stand-in", sizes, (length,), classes, lambda: data, (), target, pieces)


def reduced(config, recipe_name):
    """The recipe, thinner where two updates would take a minute on a CPU."""
    if recipe_name == "cifar10":
        config["model"] = {**config["model"], "width": 1, "depth": 10}
        config["batch"] = {**config["batch"], "size": 8}
    if recipe_name in ("wikitext2", "trec6"):
        config["model"] = {**config["model"], "width": 16, "depth": 1}
    return config


LONGER = "cifar10", "fashion_mnist", "mnist_large", "trec6"  # to compile


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem in LONGER else p for p in FILES],
    ids=lambda p: p.stem,
)
def test_a_recipe_takes_two_updates(path, monkeypatch):
    config = reduced(load_config(str(path)), path.stem) | {
        "start": None
    }  # without its pre-training
    if config["data"]["name"] != "digits":
        source = stand_in(config)
        real = build.resolve.resolve
        monkeypatch.setattr(
            build.resolve,
            "resolve",
            lambda room, spec, *a, **k: (
                source if room == "lrlab.data" else real(room, spec, *a, **k)
            ),
        )
    recipe = build.check({**config, "epochs": 1} if config["data"]["name"] != "digits" else config)
    data = recipe.read()
    size = recipe.regime.sizes[0]
    training = epoch.Training(recipe.train_step(size), data, size, "resident", 0)
    before = recipe.init()
    first = jax.tree.map(np.array, before.params)
    state, recorded = training.run(before, 0, 0, 2, recipe.config["lr"])
    assert recorded.shape[0] == 2
    assert np.isfinite(recorded).all()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), first, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    found = epoch.Evaluation(recipe.eval_step(), data, data.test, 10, "resident").run(state)
    assert np.isfinite(found["loss"])
    assert devices.count() == 2


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_recipe_names_its_source_what_to_expect_and_its_command(path):
    spec = importlib.util.spec_from_file_location("recipe", path)
    source = path.read_text()
    assert spec
    for word in ("Source:", "Expected:", f"--config=configs/{path.name}"):
        assert word in source


def test_the_recipes_data_says_what_to_do_when_it_is_absent(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lrlab.main",
            "--config=configs/mnist.py",
            f"--workdir={tmp_path}/run",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LRLAB_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    for word in ("mnist", "LRLAB_DATA_DIR", "prepare"):
        assert word in done.stderr


def test_a_config_imports_recipes_and_its_neighbours_and_may_hold_a_dataclass(tmp_path):
    (tmp_path / "their_base.py").write_text(
        "from ml_collections import FieldReference\n"
        "from configs import digits\n"
        "def get_config():\n"
        "    c, epochs = digits.get_config(), FieldReference(7)\n"
        "    c.epochs, c.schedule = epochs, (dict(name='cosine', epochs=epochs, start=1, end=0),)\n"
        "    return c\n"
    )
    (tmp_path / "variant.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "import their_base\n"
        "@dataclasses.dataclass\n"
        "class Mine:\n"
        "    seed: int = 3\n"
        "def get_config():\n"
        "    c = their_base.get_config()\n"
        "    c.seed = Mine().seed\n"
        "    return c\n"
    )
    path, modules = [*sys.path], {*sys.modules}
    config = load_config(str(tmp_path / "variant.py"))
    assert (config["seed"], config["epochs"], config["schedule"][0]["epochs"]) == (3, 7, 7)
    assert build.check(config).total == 7 * (1257 // 64)
    assert sys.path == path
    assert "_config_variant" not in {*sys.modules} - modules
