"""The README's commands, as a user types them."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lrlab import records

README = (ROOT / "README.md").read_text()


def lrlab(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "lrlab.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_readme_opens_with_the_two_commands():
    commands = re.findall(r"^uv run .*$", README, re.MULTILINE)
    assert commands[0].startswith("uv run python -m lrlab.main --config=configs/digits.py")
    assert commands[1].startswith("uv run pytest")


def test_the_main_command_trains_records_and_reports(tmp_path):
    done = lrlab("--config=configs/digits.py", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    record = records.read(tmp_path)
    assert record.final["test_accuracy"] >= 0.97
    lines = re.findall(
        r"^Epoch \[\d+/30\] train loss .*, train acc .* %, val loss .*, val acc .* %, lr .*$",
        done.stdout,
        re.MULTILINE,
    )
    assert len(lines) == len(record.rows) == 30
    banner = done.stdout.split("Epoch [1/")[0].strip().splitlines()
    assert len(banner) <= 15
    assert max(map(len, banner)) <= 80
    for name in (
        "report.html",
        "schedule.csv",
        "environment.json",
        "plots/loss.png",
        "plots/loss.svg",
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    assert list((tmp_path / "tensorboard").iterdir())
    assert not re.search(r'(src|href)="(https?:)?//', (tmp_path / "report.html").read_text())


def test_one_two_and_four_devices_give_the_same_numbers(tmp_path):
    rows, params = [], []
    for n in (1, 2, 4):
        flags = f"--xla_force_host_platform_device_count={n}"
        folder = tmp_path / str(n)
        done = lrlab(
            "--config=configs/digits.py",
            "--config.epochs=4",
            f"--workdir={folder}",
            XLA_FLAGS=flags,
        )
        assert done.returncode == 0, done.stderr
        assert f"{n} x cpu" in done.stdout
        record = records.read(folder)
        rows.append([[r[k] for k in ("train_loss", "val_loss", "lr")] for r in record.rows])
        params.append(record.final["test_loss"])
        np.testing.assert_array_equal(
            record.schedule["lr"], records.read(tmp_path / "1").schedule["lr"]
        )
    np.testing.assert_allclose(rows[1:], [rows[0]] * 2, rtol=1e-5)
    np.testing.assert_allclose(params[1:], params[0], rtol=1e-5)


@pytest.mark.parametrize(
    "line", re.findall(r"^python -m lrlab.main (--config=configs/digits.*)$", README, re.MULTILINE)
)
def test_the_readmes_other_command_lines_are_sound(line):
    import shlex

    done = lrlab(*shlex.split(line), "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was trained or written" in done.stdout


def test_a_dry_run_writes_nothing_and_shows_the_step(tmp_path):
    done = lrlab("--config=configs/digits.py", "--dry_run", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    for word in ("Dense_0/kernel", "float32 [64, 8x8x1]", "MFLOP", "MB"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--config=FILE is missing"),
        (("--config=configs/digit.py",), "configs/digits.py"),
        (("--config=nowhere/x.py",), "there is no folder nowhere"),
        (("configs/digits.py",), "write --config=configs/digits.py"),
        (("--config=configs/digits.py", "--dryrun"), "did you mean --dry_run"),
        (("--config=configs/digits.py", "--lr=0.1"), "--config.lr"),
        (("--config=configs/digits.py", "--config.lr"), "--config.lr has no value"),
        (("--config=configs/digits.py", "--overwrite"), "--overwrite needs --workdir"),
    ],
)
def test_a_slip_on_the_command_line_is_told_and_exits_2(arguments, says):
    done = lrlab(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", "bad.py:1:16: "),
        ("x = 1\n", "has no get_config()"),
        ("def get_config():\n    return undefined\n", "line 2: NameError"),
    ],
)
def test_a_broken_config_file_is_one_line_with_its_place(tmp_path, text, says):
    (tmp_path / "bad.py").write_text(text)
    done = lrlab(f"--config={tmp_path}/bad.py")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2


def test_list_names_what_a_config_can_say():
    done = lrlab("--list")
    assert done.returncode == 0
    for word in (
        "lr_multipliers",
        "cosine",
        "momentum",
        "resnet.WideResNet",
        "tabular.covertype",
        "fixed",
    ):
        assert word in done.stdout
    assert "nearest" not in done.stdout


def test_without_a_gpu_asking_for_one_says_what_is_there():
    done = lrlab("--config=configs/digits.py", JAX_PLATFORMS="cuda")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "JAX_PLATFORMS" in done.stderr
