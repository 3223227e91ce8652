"""Figures and the page: what they show of a run, and what they never do."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

from lrlab import plots, records, report

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"&amp;"
PER_EPOCH = 20


def make_run(
    folder, *, planned=5, epochs=5, extra=0, sizes=(64,), final=True, happened=(), name="d"
):
    """A run folder as `train` writes it: `epochs` done, `extra` updates of the next one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, lines, step = [], [",".join(records.COLUMNS)], 0
    for epoch in range(1, epochs + 1 + bool(extra)):
        size = sizes[min(epoch, len(sizes)) - 1]
        number = PER_EPOCH * sizes[0] // size if epoch <= epochs else extra
        for _ in range(number):
            lr, loss = 0.1 * (1 - step / 500), 2 * np.exp(-step / 50 + rng.normal(0, 0.2))
            lines.append(f"{step},{epoch},{lr:.6f},{size},{loss:.5f}")
            step += 1
        if epoch <= epochs:
            rows.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "examples": step * 64,
                    "lr": lr,
                    "batch_size": size,
                    "train_loss": 2 * np.exp(-epoch / 3),
                    "train_accuracy": 1 - 0.8 / epoch,
                    "val_loss": 2 * np.exp(-epoch / 3) + 0.1,
                    "val_accuracy": 0.94 - 0.01 * abs(epoch - 4),
                    "seconds": 1.5 * epoch,
                    "examples_per_second": 12000 + epoch,
                }
            )
    ends = []
    if final:
        best = {f"best_{k}": rows[3][k] for k in ("epoch", "step", "val_loss", "val_accuracy")}
        ends = [
            {
                "event": "final",
                "epoch": epochs,
                "step": step,
                "test_loss": 0.1034,
                "test_accuracy": 0.9778,
                "seconds": 83.2,
                **best,
            }
        ]
    config = {
        "seed": 0,
        "epochs": planned,
        "lr": 0.1,
        "data": {"name": name},
        "schedule": [
            {"end": 1.0, "epochs": 1, "name": "linear", "start": 0.1},
            {"name": name, "start": 1.0, "end": 0.0, "power": 2},
        ],
    }
    command = f"python -m lrlab.main --config=configs/digits.py --config.data.name='{name}'"
    environment = {
        "python": "3.12.1",
        "jax": "0.12.0.1",
        "devices": ["cpu:0", "cpu:1"],
        "device_kind": "cpu",
        "git_commit": "8c1f0e2",
        "git_dirty": True,
        "xla_flags": "--one --two",
        "model": {"name": "mlp.MLP", "parameters": 85002},
        "data": {"name": name, "sizes": [1437, 180, 180], "notes": [name]},
    }
    stored = {
        "config": config,
        "source": name,
        "command": command,
        "hash": "a1b2",
        "lrlab": "0.1.0",
    }
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, *happened, *ends])
    )
    (folder / "schedule.csv").write_text("\n".join(lines) + "\n")
    event = {"event": "start", "time": "2026-11-21T10:00:00+00:00", "step": 0, "why": name}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    return folder


class Page(HTMLParser):
    """Tags, attributes, and the text that people see, of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.words.append(data)


def page_of(folder):
    return Page(report.write(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, with its report."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "digits-a1b2c3d4")
    report.write(folder)
    return folder


def test_the_page_says_what_came_of_the_run(finished):
    page = Page((finished / "report.html").read_text())
    for words in (
        "digits-a1b2c3d4 finished",
        "Best validation accuracy 94.00 % at epoch 4; final test accuracy 97.78 % ; "
        "trained for 1 min 23 s on 2 × cpu.",
        "Parameters 85,002 mlp.MLP",
        "phase shape start end epochs power 1 linear 0.1 1.0 1 2 d 1.0 0.0 2",
        "began at 0.1, was largest, 0.1, in update 1 of 100, and ended at 0.0802",
        "git checkout 8c1f0e2 XLA_FLAGS='--one --two' python -m lrlab.main --config=configs/dig",
        "pip install jax==0.12.0.1",
        "changes that no commit holds",
        "schedule.1.power 2",
        "data.sizes 1437, 180, 180",
    ):
        assert words in page.text


@pytest.mark.parametrize("epochs", [1, report.OPEN_EPOCHS, report.OPEN_EPOCHS + 1])
def test_every_epoch_is_in_the_table_and_a_long_one_is_folded(tmp_path, epochs):
    folder = make_run(tmp_path / "run", epochs=epochs, planned=epochs, final=False)
    html = report.write(folder).read_text()
    table = html[html.index('class="numbers"') :].partition("</table>")[0]
    cells = re.findall(r'<tr[^>]*><th scope="row">(\d+)</th><td>(\d+)</td>', table)
    assert cells == [(str(i), str(PER_EPOCH * i)) for i in range(1, epochs + 1)]
    best = re.findall(r'<tr class="best"><th scope="row">(\d+)<', table)
    assert best == [str(min(epochs, 4))]  # accuracy is highest in epoch 4
    assert ("<details>" in html) == (epochs > report.OPEN_EPOCHS)


def test_the_best_row_is_the_highest_accuracy_then_the_lowest_loss_and_never_nan():
    rows = [
        {"epoch": 1, "val_accuracy": 0.9, "val_loss": 0.0},
        {"epoch": 2, "val_accuracy": 0.9, "val_loss": 0.3},
        {"epoch": 3, "val_accuracy": 0.99, "val_loss": float("nan")},
        {"epoch": 4, "val_accuracy": None, "val_loss": None},
    ]
    assert records.best(rows) is rows[0]
    assert records.best(rows[2:]) is None


def test_a_hostile_name_stays_text(tmp_path):
    happened = [{"event": HOSTILE, "step": 3, "epoch": HOSTILE, "lr": 0.1}]
    folder = make_run(tmp_path / "<b onclick=x>run", name=HOSTILE, happened=happened)
    page = page_of(folder)
    assert not {"script", "img", "b onclick=x"} & set(page.tags)
    assert [a for a in page.attributes if a[1].startswith("on")] == []
    assert page.text.count("alert('x')") >= 8  # config, its phase, source, command, data, events
    assert "<b onclick=x>run" in page.text


def test_the_page_requests_nothing_and_forbids_it(finished):
    html = (finished / "report.html").read_text()
    page = Page(html)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in page.attributes
    links = [v for _, k, v in page.attributes if k in ("href", "src", "xlink:href", "srcset")]
    assert links
    assert all(v.startswith(("#", "data:")) for v in links)
    assert "://" not in html
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert not {"script", "link rel=stylesheet", "iframe", "object"} & set(page.tags)


def test_every_identifier_is_unique_and_every_reference_has_its_target(finished):
    html = (finished / "report.html").read_text()
    page = Page(html)
    names = [v for _, k, v in page.attributes if k == "id"]
    assert len(names) == len(set(names))
    targets = re.findall(r"url\(#([^)]*)\)", html)
    targets += [v[1:] for _, k, v in page.attributes if k == "href" and v[0] == "#"]
    assert targets
    assert set(targets) <= set(names)


def test_figures_in_the_page_take_their_colours_from_the_theme(finished):
    for theme in plots.LIGHT, plots.DARK:
        colors = dataclasses.astuple(theme)
        assert len(set(colors)) == len(colors)
    html = (finished / "report.html").read_text()
    figures = html[html.index("<figure>") : html.rindex("</figure>")]
    used = set(re.findall(r"var\(--(\w+)\)", figures))
    assert {"train", "val", "lr", "ink", "soft", "grid", "surface"} <= used
    assert set(re.findall(r"(?:fill|stroke):\s*(?!var)([\w#]+)", figures)) == {"none"}


@pytest.mark.parametrize(
    ("epochs", "extra", "diverged", "state", "words"),
    [
        (3, 7, None, "unfinished", "Unfinished: epoch 3 of 5 is done. Best validation"),
        (0, 7, None, "unfinished", "Unfinished: no epoch of 5 is done."),
        (0, 0, None, "unfinished", "No epoch is done yet."),
        (2, 7, 47, "diverged", "Diverged in epoch 3 of 5, at update 47 and learning rate 0.0906:"),
        (3, 0, 41, "unfinished", "Unfinished: epoch 3 of 5 is done."),  # it has gone on since
    ],
)
def test_a_run_that_is_not_finished_has_a_report_that_says_so(
    tmp_path, epochs, extra, diverged, state, words
):
    event = {"event": "diverged", "step": diverged, "epoch": 3, "lr": 0.0906}
    happened = [] if diverged is None else [event]
    folder = make_run(tmp_path / "run", epochs=epochs, extra=extra, final=False, happened=happened)
    page = page_of(folder)
    assert f"run {state}" in page.text
    assert words in page.text
    assert "Test accuracy" not in page.text
    names = {p.name for p in (folder / "plots").iterdir()}
    assert names >= {
        f"{n}.{e}" for n in ("loss", "accuracy", "lr", "overview") for e in ("png", "svg")
    }


def test_an_empty_folder_has_a_report_too(tmp_path):
    assert "Unfinished: no epoch of ? is done." in page_of(tmp_path).text


def test_losses_that_are_not_finite_are_drawn_as_gaps(tmp_path):
    happened = [
        {"event": "skip", "step": 25, "epoch": 2, "lr": 0.1},
        {"event": "rollback", "step": 47, "epoch": 3, "lr": 0.1, "to": 40, "lr_scale": 0.5},
    ]
    folder = make_run(tmp_path / "run", happened=happened)
    table = (folder / "schedule.csv").read_text().splitlines()
    table[26] = "25,2,0.1,64,nan"
    table[27] = "26,2,0.1,64,inf"
    (folder / "schedule.csv").write_text("\n".join(table) + "\n")
    text = (folder / "metrics.jsonl").read_text().splitlines()
    row = json.loads(text[1]) | {"train_loss": float("nan"), "val_loss": None, "val_accuracy": None}
    (folder / "metrics.jsonl").write_text("\n".join([text[0], json.dumps(row), *text[2:]]) + "\n")
    page = page_of(folder)
    for words in (
        "25 skip update 25 (epoch 2) is not finite at lr 0.1: skipped",
        "47 rollback update 47 (epoch 3) is not finite at lr 0.1: back to update 40, lr scaled by",
    ):
        assert words in page.text
    svg = (folder / "plots" / "loss.svg").read_text()
    assert "rollback" in svg
    assert "skipped" in svg
    assert "nan" not in svg.lower()


def add_columns(folder, **columns):
    """Adds columns to schedule.csv: what was scheduled beside the rate."""
    head, *lines = (folder / "schedule.csv").read_text().splitlines()
    texts = zip(*columns.values(), strict=True)
    lines = [",".join([line, *map(str, more)]) for line, more in zip(lines, texts, strict=True)]
    head = ",".join([head, *columns])
    (folder / "schedule.csv").write_text("\n".join([head, *lines]) + "\n")


def test_each_value_scheduled_beside_the_rate_has_its_curve(tmp_path, finished):
    folder, n = make_run(tmp_path / "run"), 5 * PER_EPOCH
    columns = {
        "b1": np.linspace(0.95, 0.85, n),
        "weight_decay": np.geomspace(1e-1, 1e-4, n),
        "effective_lr": np.linspace(0, 2, n),
        "label_smoothing": np.full(n, 0.1),
        "../escaped": np.arange(n),
    }
    add_columns(folder, **columns)
    page = page_of(folder)
    made = {p.stem for p in (folder / "plots").iterdir() if p.stem.startswith("scheduled")}
    assert made == {"scheduled_b1", "scheduled_weight_decay", "scheduled_effective_lr"}
    assert not list(tmp_path.rglob("*escaped*"))
    for words in (
        "What each update used for b1.",
        "What each update used for weight_decay.",
        "The rate that the update rule found by itself.",
    ):
        assert words in page.text
    svg = (folder / "plots" / "scheduled_b1.svg").read_text()
    for words in ">b1<", "first 0.95, largest 0.95, last 0.85", "optimizer updates", ">0.9<":
        assert words in svg
    assert ">0<" not in svg.partition("epoch 0")[0].partition("optimizer updates")[2]
    c = plots.curves(records.read(folder))
    for name in c.scheduled:
        np.testing.assert_allclose(c.scheduled[name], columns[name], rtol=1e-6)
    assert "What each update used" not in Page((finished / "report.html").read_text()).text


def test_what_a_batch_size_does_is_drawn_only_where_it_changes(tmp_path, finished):
    report.write(make_run(tmp_path / "grows", sizes=(64, 64, 128, 256)))
    assert not (finished / "plots" / "batch_size.svg").exists()
    for kind in "svg", "png":
        assert (tmp_path / "grows" / "plots" / f"batch_size.{kind}").exists()
    svg = (tmp_path / "grows" / "plots" / "batch_size.svg").read_text()
    for words in "optimizer updates", "epoch 0", "examples an update", ">64<", ">128<", ">256<":
        assert words in svg


def test_equal_runs_give_equal_files_whatever_the_users_style(tmp_path):
    report.write(make_run(tmp_path / "one" / "run"))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        report.write(make_run(tmp_path / "two" / "run"))
        assert matplotlib.rcParams["font.size"] == 30  # and the user keeps it
    files = [p.relative_to(tmp_path / "one") for p in sorted((tmp_path / "one").rglob("*.*"))]
    assert len(files) == 5 + 10 + 1  # what a run writes, five figures twice, the page
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), (
            name
        )


def test_decimation_keeps_extremes_and_ends():
    rng = np.random.default_rng(0)
    y = rng.normal(size=100_003)
    y[[17, 50_000]] = 99, -99
    y[60_000:70_000] = np.nan
    x, kept = plots.decimate(np.arange(len(y)), y)
    assert len(x) <= plots.MOST_POINTS
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(kept, y[x])
    assert {0, 17, 50_000, len(y) - 1} <= set(x.tolist())
    for a in range(0, 50_000, 1000):  # every stretch, against the whole line
        inside = (x >= a) & (x < a + 1000)
        assert kept[inside].max() >= np.quantile(y[a : a + 1000], 0.99)
        assert kept[inside].min() <= np.quantile(y[a : a + 1000], 0.01)
    assert np.isnan(kept[(x > 60_200) & (x < 69_800)]).all()  # a gap stays a gap
    few = plots.decimate(np.arange(5), y[:5])
    np.testing.assert_array_equal(few[1], y[:5])


def test_figures_of_a_long_run_stay_small(tmp_path):
    n = 200_000
    rng = np.random.default_rng(0)
    epochs = np.arange(1.0, 301)
    loss, noise = 2 * np.exp(-epochs / 80), rng.normal(0, 0.3, n)
    c = plots.Curves(
        update=np.arange(float(n)),
        lr=0.1 * (1 + np.cos(np.linspace(0, 60, n))),
        batch_size=np.repeat([64.0, 128.0], n // 2),
        update_loss=2 * np.exp(-np.arange(n) / 5e4 + noise),
        epoch=epochs,
        step=epochs * n / 300,
        train_loss=loss,
        train_accuracy=1 - loss / 3,
        val_loss=loss + 0.1,
        val_accuracy=1 - loss / 3,
        examples_per_second=rng.normal(1e4, 100, 300),
        best=299,
    )
    assert len(plots.save(plots.overview(c), tmp_path / "overview")) < 150_000


@pytest.mark.parametrize(
    ("rates", "log"),
    [
        (np.full(100, 0.1), False),
        (0.05 * (1 + np.cos(np.linspace(0, np.pi, 1000))), False),  # cosine to zero
        (np.linspace(0.1, 0, 1000), False),
        (10.0 ** np.linspace(-6, 0, 100), True),  # a range test
        (np.repeat([0.1, 0.01, 0.001], 100), True),  # steps
        (np.array([]), False),
        (np.full(3, np.nan), False),
    ],
)
def test_a_rate_has_a_log_axis_where_it_spends_time_in_lower_decades(rates, log):
    assert plots.wants_log(rates) == log


def test_a_rate_of_zero_on_a_log_axis_is_at_the_bottom(tmp_path, finished):
    c = plots.curves(records.read(finished))
    rates = np.repeat([0.1, 0.01, 0.001, 0.0], len(c.lr) // 4)
    svg = plots.save(plots.lr(dataclasses.replace(c, lr=rates)), tmp_path / "lr")
    assert "learning rate (log; 0 at the bottom)" in svg
    assert ">0.001<" in svg


def test_axes_have_names_and_units(finished):
    for name, words in {
        "loss": ("loss", "each update", "train mean", "validation", "best: epoch 4"),
        "accuracy": ("accuracy (%)", "train mean", "validation", "best: epoch 4"),
        "lr": ("learning rate", "largest 0.1"),
        "speed": ("examples a second",),
    }.items():
        svg = (finished / "plots" / f"{name}.svg").read_text()
        for word in (*words, "optimizer updates", "epoch 0", ">5<"):
            assert word in svg, f"{name}: {word}"


def test_dark_figures_use_dark_colours(tmp_path, finished):
    c = plots.curves(records.read(finished))
    svg = plots.save(plots.overview(c, plots.DARK), tmp_path / "dark", plots.DARK)
    assert plots.DARK.surface in svg
    assert not [color for color in dataclasses.astuple(plots.LIGHT) if color in svg]


def test_importing_the_report_loads_neither_jax_nor_matplotlib():
    code = (
        "import lrlab.report, sys; print({'jax', 'flax', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"
