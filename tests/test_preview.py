"""lrlab.plot_schedule: what it draws, and that asking for lrlab costs nothing."""

import re
import subprocess
import sys

import numpy as np
import optax
import pytest
from conftest import ROOT, tiny
from PIL import Image

import lrlab
from lrlab import build
from lrlab.resolve import ConfigError

WARM = {"name": "warmup_linear", "start": 0.5, "epochs": 1}
COSINE = {"name": "cosine", "start": 1.0, "end": 0.0}


def drawn(figure):
    """The curve's (updates, rates), the updates of vertical lines, the names beside them."""
    (ax,) = figure.axes
    curve, *lines = ax.get_lines()
    words = [t.get_text() for t in ax.texts if t.get_rotation() == 90]
    return curve.get_xydata().T, [line.get_xdata()[0] for line in lines], words


def test_phases_are_drawn_with_their_joins_and_names():
    figure = lrlab.plot_schedule((WARM, COSINE), 100, 10, lr=0.3)
    (at, rates), joins, names = drawn(figure)
    t = np.arange(100)
    exact = np.where(t < 10, 0.5 + t / 20, (1 + np.cos(np.pi * (t - 10) / 90)) / 2)
    np.testing.assert_array_equal(at, t)
    np.testing.assert_allclose(rates, 0.3 * exact, atol=1e-6)
    assert joins == [10]
    assert names == ["warmup_linear", "cosine"]


def test_a_config_knows_its_length_its_rate_and_its_phases(capsys):
    figure = lrlab.plot_schedule(tiny(lr=0.2, schedule=(WARM, COSINE)), terminal=True)
    (at, rates), joins, _ = drawn(figure)
    assert (len(at), joins) == (18, [9])
    assert max(rates) == pytest.approx(0.2)
    said = capsys.readouterr().out
    assert "first 0.1, peak 0.2 at update 10 of 18" in said
    assert "2 cosine: 0.2 to 0.006031, updates 10-18, epochs 1-2" in said


def test_an_optax_schedule_is_drawn_as_it_is():
    schedule = optax.exponential_decay(0.1, 100, 0.9)
    (at, rates), joins, names = drawn(lrlab.plot_schedule(schedule, 50))
    np.testing.assert_allclose(rates, [schedule(t) for t in at.astype(int)], rtol=1e-6)
    assert (joins, names) == ([], [])
    assert len(lrlab.plot_schedule(optax.constant_schedule(0.1), 5).axes) == 1


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_file_is_what_its_suffix_says(tmp_path, suffix):
    path = tmp_path / "new" / f"curve.{suffix}"
    assert lrlab.plot_schedule((WARM, COSINE), 100, 10, path=str(path)) == path
    if suffix == "png":
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400
            assert len(np.unique(np.asarray(image))) > 10
    else:
        assert {"warmup_linear", "cosine", "epoch 0"} <= set(
            re.findall(">([^<>]+)<", path.read_text())
        )
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_short_phases_have_names_that_do_not_run_into_each_other():
    many = ({"name": "constant", "updates": 3},) * 60
    _, joins, names = drawn(lrlab.plot_schedule((*many, COSINE), 400, 10))
    assert joins == [3 * i for i in range(1, 61)]
    assert 5 < len(names) < 20


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (((COSINE,),), {}, ValueError, "updates=None must be a whole number >= 1"),
        (((COSINE,), 100), {}, ValueError, "per_epoch=None must be"),
        ((optax.constant_schedule(1.0),), {}, ValueError, "updates=None"),
        ((optax.constant_schedule(1.0), 0), {}, ValueError, "updates=0"),
        (((COSINE,), 9, 3), {"path": "a.pdf"}, ValueError, r"a\.pdf' must end in \.png or \.svg"),
        ((({**COSINE, "name": "consine"},), 9, 3), {}, ConfigError, "did you mean 'cosine'"),
        ((tiny(lr=-1),), {}, ConfigError, "lr=-1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, options, error, said):
    with pytest.raises(error, match=said):
        lrlab.plot_schedule(*arguments, **options)


def test_importing_lrlab_imports_nothing_large():
    code = (
        "import sys, lrlab\n"
        "assert not {'jax', 'flax', 'optax', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert lrlab.plot_schedule.__name__ == 'plot_schedule'\n"
        "assert 'jax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'plot_shedule'"):
        lrlab.plot_shedule  # noqa: B018


def test_the_noise_of_a_decay_and_of_its_twin_is_one_curve(tmp_path):
    step = {"name": "step", "factor": 0.5, "every": {"epochs": 5}}
    config = tiny(epochs=20, batch={"name": "fixed", "size": 16}, schedule=(step,))
    rate, size, momentum, g = lrlab.plot_noise(config).axes
    assert [line.get_label() for line in rate.get_lines()] == ["as configured", "batches that grow"]
    n = build.check(config).source.sizes[0]
    fifths = np.repeat([1, 0.5, 0.25, 0.125], 2)
    course = np.array([0, 4.5, 5.5, 9.5, 10.5, 14.5, 15.5, 19.5]) * (n // 16 * 16)  # by epochs
    for k, line in enumerate(g.get_lines()):
        at, values = line.get_xydata().T
        held = values[np.searchsorted(at, course)]
        np.testing.assert_allclose(held, 0.1 * n / 16 / 0.1 * fifths, rtol=1e-6, err_msg=str(k))
    own, grown = (line.get_ydata() for line in size.get_lines())
    assert set(own) == {16}
    assert sorted(set(grown)) == [16, 32, 64], "a tenth of the data is less than 128"
    own, grown = (line.get_ydata() for line in rate.get_lines())
    np.testing.assert_allclose(sorted(set(own)), [0.0125, 0.025, 0.05, 0.1], rtol=1e-6)
    np.testing.assert_allclose(sorted(set(grown)), [0.05, 0.1], rtol=1e-6)
    assert {y for line in momentum.get_lines() for y in line.get_ydata()} == {0.9}


def test_noise_is_drawn_of_what_is_planned(tmp_path):
    assert lrlab.plot_noise(tiny(), path=tmp_path / "noise.png").exists()
    grows = {"name": "increasing", "size": 64, "factor": 2, "at": 1}
    figure = lrlab.plot_noise(tiny(batch=grows, optimizer={"name": "adam"}))
    assert len(figure.axes[0].get_lines()) == 1, "what grows already has no twin"
    assert "lr²" in figure.axes[3].get_title(loc="left")
    with pytest.raises(ValueError, match="decides along the run"):
        lrlab.plot_noise(tiny(batch={"name": "plateau", "size": 64}))
