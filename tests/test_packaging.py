"""What is installed is what was tried, and the repository holds nothing of one machine."""

import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = (ROOT / "constraints.txt").read_text().split("\n")[:-1]


def name(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_pip_and_uv_are_held_to_the_same_versions():
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == PINS


def test_every_dependency_is_pinned_and_no_index_is_named():
    wanted = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
    assert {name(r) for r in wanted} <= {name(p) for p in PINS}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; [\w ._'<>=!]+)?", p) for p in PINS)


def tracked():
    try:
        done = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / f for f in done.stdout.splitlines() if (ROOT / f).is_file()]


def test_no_tracked_file_is_large_or_a_lock_file():
    for path in tracked():
        assert path.stat().st_size <= 400_000, path
        assert path.suffix != ".lock", path


def test_importing_lrlab_and_asking_for_help_is_light():
    code = (
        "import sys; import lrlab, lrlab.main;"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets', 'sklearn', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "sys.exit(lrlab.main.main(['lrlab', '--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--config.KEY=VALUE" in done.stdout
