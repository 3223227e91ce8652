"""The README's commands, as a user types them."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lrlab import main, records

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


@pytest.fixture
def here(monkeypatch, capsys):
    """The command line in this process: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        code = main.main(["lrlab", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


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


GROWS = "{'name': 'increasing', 'size': 64, 'factor': 2, 'every': 1, 'cap': 256, 'most': 128}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch",
    ["{'name': 'fixed', 'size': 64}", GROWS],
    ids=["fixed", "growing, in parts"],
)
def test_one_two_and_four_devices_give_the_same_numbers(tmp_path, batch):
    rows, params = [], []
    for n in (1, 2, 4):
        flags = f"--xla_force_host_platform_device_count={n}"
        folder = tmp_path / str(n)
        done = lrlab(
            "--config=configs/digits.py",
            "--config.epochs=4",
            f"--config.batch={batch}",
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
def test_the_readmes_other_command_lines_are_sound(here, line):
    code, out, err = here(*shlex.split(line), "--dry_run")
    assert code == 0, err
    assert "warning" not in err
    assert "dry run: nothing was trained or written" in out


def test_a_dry_run_writes_nothing_and_shows_the_step(tmp_path):
    done = lrlab("--config=configs/digits.py", "--dry_run", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    for word in ("Dense_0/kernel", "float32 [64, 8x8x1]", "MFLOP", "MB"):
        assert word in done.stdout


def test_a_dry_run_tells_the_noise_and_a_run_of_the_same_noise_that_can_be_typed(here):
    steps = "--config.schedule=({'name': 'step', 'factor': 0.5, 'every': {'epochs': 10}},)"
    fixed = "--config=configs/digits.py", steps, "--config.batch.size=16"
    code, out, err = here(*fixed, "--dry_run")
    assert code == 0, err
    own, grown = re.findall(r"^ +([\d,]+) updates of 16.*, ([\d,]+) examples", out, re.MULTILINE)
    own, grown = ([int(x.replace(",", "")) for x in found] for found in (own, grown))
    assert grown[0] < own[0]
    assert grown[1] == pytest.approx(own[1], rel=0.02)
    (typed,) = re.findall(r'^ +(--config.batch=".*")$', out, re.MULTILINE)
    code, out, err = here(*fixed[:2], *shlex.split(typed), "--dry_run")
    assert code == 0, err
    saved = re.search(rf"{own[0]:,} updates; growing saves (\d+)%", out)
    assert saved, out
    assert int(saved[1]) == round(100 - 100 * grown[0] / own[0])


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
        (("--config=README.md",), "README.md is no Python file"),
        (("--config=" + "a" * 5000,), "File name too long"),
        (("--config=configs/digits.py", "--workdir="), "--workdir is empty"),
        (("--config=configs/digits.py", "--workdir=~nobody-of-this-name/run"), "--workdir=~nobody"),
        (("--config=configs/digits.py", "--workdir=runs/\udcff"), "is no UTF-8"),
        (("--config=configs/digits.py", "--config.lr=nan"), "lr=nan must be finite"),
        (("--config=configs/digits.py", "--config.seed=" + "9" * 400), "seed is too large"),
        (("--config=configs/digits.py", "--config.optimizer.nesterov=no"), "must be True or False"),
        (("--config=configs/digits.py", "--config.job.foo=1"), "unknown field job.foo"),
    ],
)
def test_a_slip_on_the_command_line_is_told_and_exits_2(here, arguments, says):
    code, _, err = here(*arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_an_unknown_job_and_the_configs_other_problems_are_told_together(here):
    wrong = "--config.job.name=trian", "--config.seed=-1"
    code, _, err = here("--config=configs/digits.py", *wrong)
    assert code == 2
    assert "did you mean 'train'" in err
    assert "seed=-1" in err


RETURNS = "from ml_collections import ConfigDict, config_dict\ndef get_config():\n    return "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", "bad.py:1:16: "),
        ("x = 1\n", "has no get_config()"),
        ("def get_config():\n    return undefined\n", "NameError: name 'undefined' is not defined"),
        ("def get_config():\n    return undefined\n", "(bad.py, line 2)"),
        ("def get_config(x): ...\n", "missing 1 required positional argument"),
        ("import sys\nsys.exit('no')\n", "SystemExit: no (bad.py, line 2)"),
        (RETURNS + "None", "get_config() returns NoneType"),
        (RETURNS + "[1]", "get_config() returns list"),
        (RETURNS + "ConfigDict({'lr': config_dict.required_placeholder(float)})", "required"),
    ],
)
def test_a_broken_config_file_is_one_line_with_its_place(here, tmp_path, text, says):
    (tmp_path / "bad.py").write_text(text)
    code, _, err = here(f"--config={tmp_path}/bad.py")
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 2


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
    for word in ("Dataset", "Source", "DataError", "decay.cosine", "train.run"):
        assert word not in done.stdout


def test_a_reader_that_has_seen_enough_of_the_list_ends_it_silently():
    command = f"{sys.executable} -m lrlab.main --list | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("f", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main.main(["lrlab", *SHORT, f"--workdir={folder}"]) == 0
    return folder


SHORT = f"--config={ROOT}/configs/digits.py", "--config.epochs=2"


def spoilt(finished, folder, how):
    """A copy of the run in which something is broken."""
    shutil.copytree(finished, folder)
    if how == "config":
        (folder / "config.json").write_text('{"config": ')
    elif how == "row":
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    else:  # the checkpoint of another model
        for path in (folder / "checkpoints").glob("*.manifest"):
            path.write_text(path.read_text().replace("[64, 256]", "[64, 255]"))
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        (folder / "metrics.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("config", "JSON"),
        ("row", "metrics.jsonl line 2 is not JSON: '{broken'"),
        ("checkpoint", "is of another model or optimizer"),
    ],
)
def test_a_broken_run_exits_5_with_one_line_and_keeps_the_traceback(
    here, finished, tmp_path, how, says
):
    folder = spoilt(finished, tmp_path / "run", how)
    code, _, err = here(*SHORT, f"--workdir={folder}")
    assert code == 5, err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert str(folder / "traceback.txt") in err
    assert "Traceback (most recent call last)" in (folder / "traceback.txt").read_text()


def test_what_nobody_foresaw_exits_5_with_its_traceback_where_there_is_no_run(
    here, tmp_path, monkeypatch
):
    monkeypatch.setattr("lrlab.build.check", lambda config: {}["unforeseen"])
    code, _, err = here(*SHORT, f"--workdir={tmp_path}/run")
    assert code == 5
    assert "Traceback (most recent call last)" in err
    assert "could not go on: KeyError: 'unforeseen'" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_home(here, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(ROOT / "configs" / "digits.py", tmp_path)
    code, out, err = here("--config=~/digits.py", "--config.epochs=2", "--workdir=~/run")
    assert code == 0, err
    assert f"already finished: {tmp_path}/run" in out


def test_a_config_without_a_batch_takes_its_size_from_the_command_line(here, tmp_path):
    text = (ROOT / "configs" / "digits.py").read_text()
    kept = [line for line in text.splitlines() if "c.batch =" not in line]
    (tmp_path / "bare.py").write_text("\n".join(kept))
    for change, says in (
        ("--config.batch.size=32", "fixed, 32 examples"),
        ("--config.batch.name=plateau", "plateau, 128 examples"),
    ):
        code, out, err = here(f"--config={tmp_path}/bare.py", change, "--dry_run")
        assert (code, err) == (0, "")
        assert says in out


def test_without_a_gpu_asking_for_one_says_what_is_there():
    done = lrlab("--config=configs/digits.py", JAX_PLATFORMS="cuda")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "JAX_PLATFORMS" in done.stderr
