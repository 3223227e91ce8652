"""What a run says in the terminal."""

import io
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lrlab import console

ROW = {
    "epoch": 3,
    "step": 66,
    "lr": 0.081234,
    "train_loss": 0.12344,
    "train_accuracy": 0.96321,
    "val_loss": 0.0987,
    "val_accuracy": 0.971,
    "examples_per_second": 12345,
}


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (console.rate, 0.0812345, "0.08123"),
        (console.rate, 1e-5, "1e-5"),
        (console.rate, 0.0, "0"),
        (console.rate, 3, "3"),
        (console.rate, float("nan"), "nan"),
        (console.rate, None, "-"),
        (console.loss, 0.12345, "0.1235"),
        (console.loss, 0.0, "0.0000"),
        (console.loss, 1.234e-5, "1.234e-5"),
        (console.loss, float("inf"), "inf"),
        (console.percent, 0.96321, "96.32 %"),
        (console.count, 3274634, "3,274,634"),
        (console.duration, 0.025, "25 ms"),
        (console.duration, 9.96, "10 s"),
        (console.duration, 59.6, "1 min 00 s"),
        (console.duration, 83, "1 min 23 s"),
        (console.duration, 3599.7, "1 h 00 min"),
        (console.duration, 7500, "2 h 05 min"),
        (console.duration, 86390, "1 d 00 h"),
    ],
)
def test_numbers_are_written_as_people_read_them(write, value, text):
    assert write(value) == text


def test_sparkline_of_eight_steps_is_the_eight_blocks():
    assert console.sparkline(range(8)) == "▁▂▃▄▅▆▇█"


def test_sparkline_matches_hand_computed_values():
    # Shares 0, 0.25, 1, 0 of the range, times 7, rounded, plus one: blocks 1, 3, 8, 1.
    assert console.sparkline([0, 1, 4, 0]) == "▁▃█▁"
    # Groups of two: means 1, 3, 5 are shares 0, 1/2, 1: blocks 1, 1 + round(3.5) = 5, 8.
    assert console.sparkline([0, 2, 3, 3, 4, 6], width=3) == "▁▅█"
    # Two lines of eighths: share 1/2 is 1 + round(7.5) = 9 eighths, one of them in the upper line.
    assert console.sparkline([0, 0.5, 1], height=2) == " ▁█\n▁██"


def test_sparkline_takes_constants_zeros_and_gaps():
    assert len(set(console.sparkline([0.1] * 5))) == 1
    assert len(set(console.sparkline([0, 0]))) == 1
    assert console.sparkline([0, float("nan"), 7]) == "▁ █"
    assert console.sparkline([float("inf"), float("nan")]) == "  "
    assert console.sparkline([]) == ""


def test_sparkline_is_ascii_where_stdout_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert console.sparkline(range(8)) == ".,:-=+*#"
    assert all(line.isascii() for line in console.curve(range(8)))


def test_curve_names_first_peak_and_last():
    warm = np.linspace(0.01, 0.1, 100)
    fall = 0.05 * (1 + np.cos(np.pi * np.arange(1, 1101) / 1100))
    lines = console.curve(np.concatenate([warm, fall]), width=60, height=4)
    assert len(lines) == 5
    assert lines[0].startswith("0.1 ┤")
    assert lines[3].startswith("  0 ┤")
    assert lines[4].strip() == "first 0.01, peak 0.1 at update 100 of 1,200, last 0"
    assert max(map(len, lines)) <= 60
    assert lines[0].index("█") < 60 * 0.2  # the peak is where it belongs


@pytest.mark.parametrize(
    "values", [[0.1] * 3, [0.0] * 3, [0.0], [1, np.nan, 2], [-1, 1], range(999)]
)
@pytest.mark.parametrize("height", [1, 3, 5])
def test_curve_draws_whatever_comes(values, height):
    lines = console.curve(values, width=40, height=height)
    assert len(lines) == height + 1
    assert max(map(len, lines)) <= 40


def test_curve_says_that_a_rate_is_constant():
    assert console.curve([0.1] * 3)[-1].strip() == "constant 0.1"
    assert console.curve([np.nan]) == ["no finite value"]


def test_curve_marks_where_phases_begin_and_lists_them():
    rates = np.concatenate([np.linspace(0.02, 0.1, 30), np.full(30, 0.1), np.linspace(0.1, 0, 60)])
    phases = [("linear", 0, 30), ("constant", 30, 30), ("decay:rex", 60, 600)]
    plot = console.curve(rates, phases, per_epoch=15, width=65, height=4)
    assert plot[4] == "     1──────────────2──────────────3─────────────────────────────"
    assert [line.strip() for line in plot[6:]] == [
        "1 linear: 0.02 to 0.1, updates 1-30, epochs 0-2",
        "2 constant: 0.1, updates 31-60, epochs 2-4",
        "3 decay:rex: 0.1 to 0, updates 61-120, epochs 4-8",
    ]
    assert plot[:4] == console.curve(rates, width=65)[:4]
    bare = console.curve(rates, phases)
    assert bare[-1].strip() == "3 decay:rex: 0.1 to 0, updates 61-120"
    one = [("cosine", 0, 120)]
    assert console.curve(rates, one, 15) == console.curve(rates), "one phase has no joins"


def test_a_phase_that_turns_says_its_extremes_in_their_order():
    rates = np.array([0, 1, 0.5, 0.1, 0.7, 0.7, 0.7, np.nan, np.nan])
    plot = console.curve(rates, [("a", 0, 5), ("b", 5, 2), ("c", 7, 2)])
    says = [re.search(r": (.*), updates", line)[1] for line in plot[-3:]]
    assert says == ["0 to 1 to 0.7", "0.7", "no finite value"]


@pytest.mark.parametrize("width", [20, 66])
@pytest.mark.parametrize("number", [2, 5, 6, 40, 120])
def test_many_phases_keep_to_the_plots_lines_and_columns(number, width):
    phases = [(f"phase{i}", 3 * i, 3) for i in range(number)]
    plot = console.curve(np.ones(3 * number), phases, 1, width=width)
    assert max(map(len, plot)) <= width
    assert len(plot) == 4 + 2 + min(number, console.MOST_PHASES)
    assert not re.search(r"\d{4}", plot[4]), "numbers stand apart"
    more = f"and {number - console.MOST_PHASES + 1} more phases"
    assert (plot[-1].strip()[:10] == more[:10]) == (number > console.MOST_PHASES)


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("items", [0, 3, 9, 30])
def test_banner_keeps_to_its_lines_and_columns(items, width):
    pairs = [(f"label{i}", "word " * 60) for i in range(items)]
    curve = console.curve(np.linspace(0, 1, 50), width=60)
    lines = console.banner("lrlab train configs/digits.py " * 9, pairs, curve, width).splitlines()
    assert len(lines) <= console.BANNER_LINES == 15
    assert max(map(len, lines)) <= width


def test_banner_aligns_values_and_shows_everything_that_fits():
    curve = console.curve([0.1, 0.2])
    lines = console.banner("title", [("data", "digits"), ("batch", "64")], curve, 80).splitlines()
    assert lines[:3] == ["title", "  data   digits", "  batch  64"]
    assert [line.strip() for line in lines[3:]] == [line.strip() for line in curve]


def test_a_long_value_goes_on_below_its_beginning():
    lines = console.banner("t", [("data", "one two three four five six")], (), 24).splitlines()
    assert lines == ["t", "  data  one two three", "        four five six"]


def test_epoch_line_is_the_promised_text():
    assert console.epoch_line(ROW, 10) == (
        "Epoch [3/10] train loss 0.1234, train acc 96.32 %, "
        "val loss 0.0987, val acc 97.10 %, lr 0.08123"
    )


def test_progress_without_a_terminal_is_a_line_an_epoch(capsys):
    with console.Progress(10, 2) as bar:
        bar.update(3, 0.5, loss=0.3, accuracy=0.9, lr=0.1, examples_per_second=1e4)
        bar.event({"event": "skip", "step": 50, "epoch": 3, "lr": 0.08})
        bar.epoch(ROW)
    assert capsys.readouterr().out.splitlines() == [
        "update 50 (epoch 3) is not finite at lr 0.08: skipped",
        console.epoch_line(ROW, 10),
    ]


def test_time_left_does_not_count_what_compiling_took(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    bar = console.Progress(10, 2)
    with bar:
        assert bar.seconds_left() is None
        clock[0] = 60.0  # a minute of compiling and half an epoch
        bar.update(3, 0.5)
        assert bar.seconds_left() == pytest.approx(60 / 0.5 * 7.5)
        clock[0] = 64.0  # half an epoch in 4 s
        bar.update(3, 1.0)
        assert bar.seconds_left() == pytest.approx(8 * 7)
        clock[0] = 65.0
        assert bar.seconds_left() == pytest.approx(8 * 7 - 1)


def test_ending_says_best_final_time_and_where():
    final = {
        "event": "final",
        "epoch": 25,
        "step": 1250,
        "test_loss": 0.1034,
        "test_accuracy": 0.9778,
        "best_epoch": 21,
        "best_step": 1050,
        "best_val_loss": 0.0812,
        "best_val_accuracy": 0.9821,
        "seconds": 83.2,
    }
    assert console.ending(final, "runs/d", "runs/d/report.html").splitlines() == [
        "Done: 25 epochs, 1,250 updates in 1 min 23 s",
        "  best    epoch 21, val loss 0.0812, val acc 98.21 %",
        "  test    test loss 0.1034, test acc 97.78 %",
        "  run     runs/d",
        "  report  runs/d/report.html",
    ]


PROGRAM = """
import sys
from lrlab import console
with console.Progress(40) as bar:
    for epoch in range(1, 41):
        bar.update(epoch, 0.5, loss=0.3, accuracy=0.9, lr=0.1, examples_per_second=12345.6)
        bar.epoch({"epoch": epoch, "train_loss": 0.5, "train_accuracy": 0.9, "lr": 0.1})
console.say("caf\\u00e9")
assert ("rich" in sys.modules) == (len(sys.argv) > 1), "rich is for terminals only"
"""


def run(shell: str, *, terminal: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell command in which $PY is the program above."""
    program = f"{sys.executable} -c '{PROGRAM.replace(chr(39), chr(34))}' {terminal}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    full = shell.replace("$PY", program)
    return subprocess.run(["bash", "-c", full], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    "shell", ["$PY >&-", "$PY > /dev/full", "$PY | true; exit ${PIPESTATUS[0]}", "$PY | cat"]
)
def test_a_stdout_that_is_gone_stops_nothing(shell):
    done = run(shell)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_stdout_cannot_write_is_replaced():
    done = run("$PY", PYTHONIOENCODING="ascii")
    assert done.stdout.splitlines()[-1] == "caf?"
    assert len(done.stdout.splitlines()) == 41


def test_on_a_terminal_there_is_a_bar_with_the_epochs_above():
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "terminal"], stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, text.decode()
    shown = text.decode()
    assert "Epoch [40/40] train loss 0.5000, train acc 90.00 %, lr 0.1" in shown
    for fact in "loss 0.5000", "acc 90.00 %", "lr 0.1", "━":
        assert fact in shown
    assert shown.rstrip().endswith("café")
