import numpy as np
import pytest

from lrlab import points
from lrlab.resolve import ConfigError

LR = {"key": "lr", "low": 1e-3, "high": 1.0, "points": 4}


def test_a_grid_is_the_product_in_order_and_its_ends_are_exact():
    sweep = points.read({"axes": ({"key": "seed", "values": (0, 1)}, LR)})
    found = sweep.expand()
    assert [p["seed"] for p in found] == [0] * 4 + [1] * 4
    np.testing.assert_allclose([p["lr"] for p in found[:4]], [1e-3, 1e-2, 1e-1, 1], rtol=1e-12)
    assert found[0]["lr"] == 1e-3
    assert found[3]["lr"] == 1.0


@pytest.mark.parametrize("method", ["random", "sobol", "halton"])
def test_a_sample_stays_in_its_ranges_and_begins_like_a_larger_one(method):
    axes = (
        {"key": "lr", "low": 1e-4, "high": 10.0},
        {"key": "batch.size", "low": 16, "high": 64, "scale": "linear", "whole": True},
        {"key": "optimizer", "values": ({"name": "sgd"}, {"name": "adam"})},
    )
    few, many = (
        points.read({"axes": axes, "method": method, "points": n}).expand() for n in (10, 100)
    )
    assert many[:10] == few
    assert len(many) == 100
    assert all(1e-4 <= p["lr"] <= 10 and 16 <= p["batch.size"] <= 64 for p in many)
    assert {type(p["batch.size"]) for p in many} == {int}
    assert {p["optimizer"]["name"] for p in many} == {"sgd", "adam"}
    logs = np.log10([p["lr"] for p in many])
    assert abs(logs.mean() + 1.5) < 0.5, "log-uniform has its middle between the ends"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"axes": ()}, "must be a tuple of axes"),
        ({"axes": ({"key": "lr", "values": ()},)}, "at least one value"),
        ({"axes": ({"key": "lr", "values": (0.1, 0.1)},)}, "0.1 twice"),
        ({"axes": ({"key": "lr", "values": (0.1, "a")},)}, "mix a number and str"),
        ({"axes": ({"key": "lr", "low": 0.0, "high": 1.0, "points": 3},)}, "no logarithm"),
        ({"axes": ({"key": "lr", "low": 1.0, "high": 1.0, "points": 3},)}, "must be below"),
        ({"axes": ({"key": "lr", "low": 0.1, "high": 1.0, "points": 0},)}, "[1, inf)"),
        ({"axes": ({"key": "lrr", "low": 0.1, "high": 1.0, "points": 2},)}, "did you mean 'lr'"),
        ({"axes": ({**LR, "pionts": 3},)}, "did you mean 'points'"),
        ({"axes": (LR, LR)}, "name 'lr' twice"),
        ({"axes": ({**LR, "points": 20_000},)}, "20,000 points, more than sweep.limit=10,000"),
        ({"axes": ({"key": "seed", "values": (0,)},), "method": "gird"}, "did you mean 'grid'"),
        ({"axes": (LR,), "points": 5}, "for a sample"),
        ({"axes": ({"key": "lr", "low": 0.1, "high": 1.0},), "method": "sobol"}, "how many points"),
        ({"axes": (LR,), "target": {"accuracy": 0.9, "exmaples": 9}}, "did you mean 'examples'"),
        ({"axes": (LR,), "target": {"accuracy": 97}}, "must lie in (0, 1]"),
        ({"axes": (LR,), "stop": ("ded",)}, "did you mean 'dead'"),
        ({"axes": (LR,), "lok": 5}, "did you mean 'look'"),
    ],
)
def test_a_sweep_with_a_mistake_is_refused_with_what_is_wrong(spec, says):
    with pytest.raises(ConfigError) as caught:
        points.read(spec)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert says in caught.value.problems[0]


def test_assigning_a_point_leaves_the_config_as_it_was():
    config = {"lr": 0.1, "optimizer": {"name": "adam", "b1": 0.9}}
    changed = points.assign(config, {"lr": 0.2, "optimizer.b1": 0.5, "seed": 3})
    assert changed == {"lr": 0.2, "optimizer": {"name": "adam", "b1": 0.5}, "seed": 3}
    assert config == {"lr": 0.1, "optimizer": {"name": "adam", "b1": 0.9}}
