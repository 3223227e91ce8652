"""Weights from files: against NumPy nets that read torch's names and layouts, and torchvision.

torchvision runs in an interpreter of its own, named by LRLAB_PARITY_PYTHON (see test_parity.py),
with torchvision==0.28.0 and safetensors in it as well.
"""

import ast
import functools
import json
import math
import os
import re
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from numpy.lib.stride_tricks import sliding_window_view

from lrlab import pretrained
from lrlab.models import imagenet
from lrlab.pretrained import PretrainedError
from lrlab.resolve import ConfigError

SMALL = imagenet.ResNet18(7, width=4)


def batchnorm_state(rng, name, n):
    return {
        f"{name}.weight": rng.uniform(0.5, 1.5, n),
        f"{name}.bias": rng.normal(0, 0.2, n),
        f"{name}.running_mean": rng.normal(0, 0.2, n),
        f"{name}.running_var": rng.uniform(0.5, 2, n),
        f"{name}.num_batches_tracked": np.array(7),
    }


def kernel(rng, *shape):
    """[out, in, ...], keeping variances."""
    return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)


def resnet_state(sizes=(2, 2, 2, 2), width=4, classes=7, bottleneck=False, seed=0):
    rng = np.random.default_rng(seed)
    state = {"conv1.weight": kernel(rng, width, 3, 7, 7), **batchnorm_state(rng, "bn1", width)}
    channels = width
    for stage, blocks in enumerate(sizes):
        for block in range(blocks):
            at, w = f"layer{stage + 1}.{block}", width * 2**stage
            convs = ((w, 1), (w, 3), (4 * w, 1)) if bottleneck else ((w, 3), (w, 3))
            fan = channels
            for i, (out, k) in enumerate(convs, 1):
                state[f"{at}.conv{i}.weight"] = kernel(rng, out, fan, k, k)
                state |= batchnorm_state(rng, f"{at}.bn{i}", out)
                fan = out
            if block == 0 and (stage > 0 or fan != channels):
                state[f"{at}.downsample.0.weight"] = kernel(rng, fan, channels, 1, 1)
                state |= batchnorm_state(rng, f"{at}.downsample.1", fan)
            channels = fan
    state |= {"fc.weight": kernel(rng, classes, channels), "fc.bias": rng.normal(0, 1, classes)}
    return {k: v if v.dtype == int else v.astype(np.float32) for k, v in state.items()}


VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of convolutions in `features`
VGG_POOLS = (4, 9, 16, 23, 30)


def vgg_state(width=2, dense=6, classes=5, seed=0):
    rng, state, fan = np.random.default_rng(seed), {}, 3
    times = (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)
    for place, out in zip(VGG_PLACES, (width * t for t in times), strict=True):
        state[f"features.{place}.weight"] = kernel(rng, out, fan, 3, 3)
        state[f"features.{place}.bias"] = rng.normal(0, 0.2, out)
        fan = out
    for place, (i, o) in {0: (49 * fan, dense), 3: (dense, dense), 6: (dense, classes)}.items():
        state[f"classifier.{place}.weight"] = kernel(rng, o, i)
        state[f"classifier.{place}.bias"] = rng.normal(0, 0.2, o)
    return {k: v.astype(np.float32) for k, v in state.items()}


def windows(x, k, stride, pad, fill):
    """[batch, channels, height, width] -> [batch, channels, new height, new width, k, k]."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    return sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]


def conv(x, weight, stride=1):
    k = weight.shape[-1]
    taps = windows(x, k, stride, k // 2, 0.0)
    return np.einsum("bchwij,ocij->bohw", taps, weight.astype(float), optimize=True)


def batchnorm(state, name, x):
    weight, bias, mean, var = (
        state[f"{name}.{part}"].astype(float).reshape(-1, 1, 1)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def numpy_resnet(state, x):
    """Logits in float64 of [batch, 3, height, width]."""
    x = np.maximum(batchnorm(state, "bn1", conv(x, state["conv1.weight"], 2)), 0)
    x = windows(x, 3, 2, 1, -np.inf).max((-2, -1))
    for at in dict.fromkeys(".".join(k.split(".")[:2]) for k in state if k.startswith("layer")):
        first = not at.startswith("layer1") and at.endswith(".0")
        convs = [i for i in (1, 2, 3) if f"{at}.conv{i}.weight" in state]
        y = x
        for i in convs:
            strided = first and i == (2 if len(convs) == 3 else 1)
            y = conv(y, state[f"{at}.conv{i}.weight"], 2 if strided else 1)
            y = batchnorm(state, f"{at}.bn{i}", y)
            y = np.maximum(y, 0) if i < convs[-1] else y
        if f"{at}.downsample.0.weight" in state:
            x = conv(x, state[f"{at}.downsample.0.weight"], 2 if first else 1)
            x = batchnorm(state, f"{at}.downsample.1", x)
        x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ state["fc.weight"].T.astype(float) + state["fc.bias"]


def numpy_vgg(state, x):
    """Logits in float64 of [batch, 3, height, width]."""
    for place in range(31):
        if place in VGG_PLACES:
            x = conv(x, state[f"features.{place}.weight"])
            x = np.maximum(x + state[f"features.{place}.bias"].reshape(-1, 1, 1), 0)
        elif place in VGG_POOLS:
            x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
            x = windows(x, 2, 2, 0, 0).max((-2, -1))
    rows, columns = (
        [slice(math.floor(i * n / 7), math.ceil((i + 1) * n / 7)) for i in range(7)]
        for n in x.shape[2:]
    )
    x = np.stack([np.stack([x[:, :, r, c].mean((2, 3)) for c in columns], -1) for r in rows], -2)
    x = x.reshape(len(x), -1)
    for place in (0, 3, 6):
        x = x @ state[f"classifier.{place}.weight"].T.astype(float)
        x = x + state[f"classifier.{place}.bias"]
        x = np.maximum(x, 0) if place < 6 else x
    return x


def shapes_of(model, size=64):
    x = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)


def variables_of(model, seed=3):
    """Anything but what a file has."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(0, 1, a.shape).astype(a.dtype), shapes_of(model))


def logits(model, variables, x, **kw):
    """Ours, of torch's [batch, 3, height, width]."""
    apply = jax.jit(functools.partial(model.apply, **kw))
    return apply(variables, jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32))


def images(height, width, n=2, seed=9):
    return np.random.default_rng(seed).normal(0, 1, (n, 3, height, width)).astype(np.float32)


def close(ours, theirs, rtol=1e-4):
    """Equal to `rtol` of the largest."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max())


@pytest.fixture
def saved(tmp_path):
    """A state dict -> a file that safetensors wrote."""
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

    def write(state, name="weights.safetensors"):
        numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (imagenet.ResNet18(1000), 11_689_512),
        (imagenet.ResNet(1000, (3, 4, 6, 3)), 21_797_672),
        (imagenet.ResNet50(1000), 25_557_032),
        (imagenet.VGG16(1000), 138_357_544),
        (imagenet.ResNet18(10, small_images=True), 11_173_962),
    ],
)
def test_models_have_as_many_weights_as_torchvision_says(model, count):
    assert sum(a.size for a in jax.tree.leaves(shapes_of(model)["params"])) == count


@pytest.mark.parametrize(
    ("model", "state", "reference", "size"),
    [
        (SMALL, resnet_state(), numpy_resnet, (64, 64)),
        (SMALL, resnet_state(), numpy_resnet, (45, 70)),  # odd: every padding counts
        (
            imagenet.ResNet50(7, stage_sizes=(2, 1, 2), width=4),
            resnet_state((2, 1, 2), bottleneck=True),
            numpy_resnet,
            (50, 37),
        ),
        (imagenet.VGG16(5, width=2, dense=6), vgg_state(), numpy_vgg, (64, 100)),
        (imagenet.VGG16(5, width=2, dense=6), vgg_state(), numpy_vgg, (224, 224)),  # 7x7 as it is
    ],
)
def test_logits_are_those_of_a_plain_net_with_the_file_s_weights(
    model, state, reference, size, saved
):
    x = images(*size)
    loaded, matched = pretrained.load(saved(state), variables_of(model))
    assert (matched.missing, matched.unexpected, matched.mismatched) == ((), (), {})
    theirs = reference(state, x.astype(float))
    for implementation in "patches", "xla":
        close(logits(model.clone(implementation=implementation), loaded, x), theirs)
    other = reference(state, images(*size, seed=1))
    assert np.abs(theirs - other).max() > 1e-2 * np.abs(theirs).max()  # x matters


def test_every_tensor_lands_in_its_leaf(saved):
    state, variables = resnet_state(), variables_of(SMALL)
    loaded, matched = pretrained.load(saved(state), variables)
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    assert sorted(matched.ignored) == sorted(counters)
    assert set(matched.matched) == set(state) - set(counters)
    assert len(set(matched.matched.values())) == len(jax.tree.leaves(variables))
    params, stats = loaded["params"], loaded["batch_stats"]
    there = "layer2.0.downsample"
    for ours, theirs in (
        (params["conv1"]["kernel"].transpose(3, 2, 0, 1), state["conv1.weight"]),
        (params["layer1_1"]["conv2"]["kernel"].transpose(3, 2, 0, 1), "layer1.1.conv2.weight"),
        (
            params["layer2_0"]["downsample_0"]["kernel"][0, 0].T,
            state[f"{there}.0.weight"][..., 0, 0],
        ),
        (params["layer2_0"]["downsample_1"]["scale"], f"{there}.1.weight"),
        (params["layer4_1"]["bn2"]["bias"], "layer4.1.bn2.bias"),
        (stats["layer2_0"]["downsample_1"]["var"], f"{there}.1.running_var"),
        (stats["bn1"]["mean"], "bn1.running_mean"),
        (params["fc"]["kernel"].T, "fc.weight"),
    ):
        np.testing.assert_array_equal(ours, state[theirs] if isinstance(theirs, str) else theirs)


def test_layers_keep_their_order_and_shapes_will_do(saved):
    shapes = shapes_of(SMALL)
    mixed = {name: {**dict(reversed(shapes[name].items()))} for name in ("params", "batch_stats")}
    loaded, _ = pretrained.load(saved(resnet_state()), mixed)
    for name in mixed:
        assert [*loaded[name]] == [*mixed[name]]  # rates by depth may go by it
    assert {a.dtype for a in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_a_model_without_statistics_keeps_its_empty_collection(saved):
    model = imagenet.VGG16(5, width=2, dense=6)
    variables = {**variables_of(model), "batch_stats": {}}
    loaded, _ = pretrained.load(saved(vgg_state()), variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)


@pytest.mark.parametrize(
    ("model", "state", "head"),
    [
        (imagenet.ResNet18(3, width=4), resnet_state(), "fc"),
        (imagenet.VGG16(3, width=2, dense=6), vgg_state(), "classifier_6"),
    ],
)
def test_a_head_of_other_classes_begins_anew_and_is_listed(model, state, head, saved):
    variables = variables_of(model)
    loaded, matched = pretrained.load(saved(state), variables)
    assert set(matched.missing) == {f"params/{head}/kernel", f"params/{head}/bias"}
    name = head.replace("_", ".")
    assert set(matched.unexpected) == set(matched.mismatched) == {f"{name}.weight", f"{name}.bias"}
    for part in "kernel", "bias":
        assert loaded["params"][head][part] is variables["params"][head][part]
    assert len(matched.matched) == len(jax.tree.leaves(variables)) - 2


def test_a_head_is_taken_whole_or_not_at_all(saved):
    state, variables = resnet_state(), variables_of(SMALL)
    state["fc.weight"] = state["fc.weight"][:, 1:]  # its bias would fit
    loaded, matched = pretrained.load(saved(state), variables)
    assert matched.unexpected == ("fc.bias", "fc.weight")
    assert loaded["params"]["fc"]["bias"] is variables["params"]["fc"]["bias"]


def test_a_file_without_a_head_will_do_and_a_model_without_one(saved):
    state, variables = resnet_state(), variables_of(SMALL)
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    _, matched = pretrained.load(saved(headless), variables)
    assert (matched.missing, matched.unexpected) == (("params/fc/bias", "params/fc/kernel"), ())
    params = {k: v for k, v in variables["params"].items() if k != "fc"}
    _, matched = pretrained.load(saved(state), {**variables, "params": params})
    assert (matched.missing, matched.unexpected) == ((), ("fc.bias", "fc.weight"))


def test_a_part_named_as_head_may_be_of_another_shape(saved):
    model, state = imagenet.ResNet18(7, width=4, small_images=True), resnet_state()
    path, variables = saved(state), variables_of(model)
    with pytest.raises(PretrainedError, match=r"1 of another shape: conv1.weight \[7, 7, 3, 4\]"):
        pretrained.load(path, variables)
    loaded, matched = pretrained.load(path, variables, head=("conv1/.*",))
    assert matched.missing == ("params/conv1/kernel",)
    assert logits(model, loaded, images(32, 32)).shape == (2, 7)


def raw(path, tensors):
    """A .safetensors file by hand: any dtype's name with any bytes."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (len(data), end)}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_half_and_double_precision_become_float32(tmp_path, saved):
    state, shapes = resnet_state(), shapes_of(SMALL)

    def bfloat16(a):  # truncated: the upper half of a float32
        return (a.view(np.uint32) >> 16).astype(np.uint16)

    def widened(a):
        return (bfloat16(a).astype(np.uint32) << 16).view(np.float32)

    weights = {k: v for k, v in state.items() if v.dtype == np.float32}
    for dtype, narrow, exact in (
        ("F16", lambda a: a.astype(np.float16), lambda a: a.astype(np.float16).astype(np.float32)),
        ("BF16", bfloat16, widened),
        ("F64", lambda a: a.astype(np.float64), lambda a: a),
    ):
        path = raw(tmp_path / dtype, {k: (dtype, narrow(v)) for k, v in weights.items()})
        loaded, _ = pretrained.load(path, shapes)
        wanted, _ = pretrained.load(saved({k: exact(v) for k, v in weights.items()}), shapes)
        assert {a.dtype for a in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
        jax.tree.map(np.testing.assert_array_equal, loaded, wanted)


def test_rules_turn_other_names_into_torchvision_s_or_ours(saved):
    state, shapes = resnet_state(), shapes_of(SMALL)
    wanted, _ = pretrained.load(saved(state), shapes)
    wrapped = {f"module.{k}": v for k, v in state.items()} | {"optimizer.steps": np.array(3)}
    path = saved(wrapped)
    rules = {r"module\.(.*)": r"\1", r"optimizer\..*": None}
    for names in rules, tuple(rules.items()):
        loaded, matched = pretrained.load(path, shapes, names)
        jax.tree.map(np.testing.assert_array_equal, loaded, wanted)
        assert "optimizer.steps" in matched.ignored
        assert matched.matched["module.conv1.weight"] == "params/conv1/kernel"
    net = {"params": {"Dense_0": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}}
    linear = {"out.weight": np.arange(6.0).reshape(3, 2), "out.bias": np.ones(3)}
    loaded, _ = pretrained.load(saved(linear), net, {r"out\.(.*)": r"Dense_0.\1"})
    np.testing.assert_array_equal(loaded["params"]["Dense_0"]["kernel"], [[0, 2, 4], [1, 3, 5]])


def without(state, *parts):
    return {k: v for k, v in state.items() if not any(part in k for part in parts)}


def renamed(state, old, new):
    return {k.replace(old, new): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            without(resnet_state(), "layer3.1.conv2"),
            r"1 missing in the file: params/layer3_1/conv2/kernel\. .*in `head`",
        ),
        (without(resnet_state(), "bn1.running_var"), "9 missing in the file: batch_stats/bn1/var"),
        (
            resnet_state() | {"layer1.0.se.weight": np.ones((4, 4))},
            r"1 not in the model: layer1.0.se.weight\. .*another architecture",
        ),
        # A ResNet-34 holds all that a ResNet-18 wants.
        (
            resnet_state((3, 4, 6, 3)),
            r"102 of 102 leaves found\. 80 not in the model: .* and 70 more",
        ),
        (
            resnet_state(bottleneck=True),
            r"of another shape: .*layer1.0.conv1.weight \[1, 1, 4, 4\]",
        ),
        (resnet_state(width=8), r"0 of 102 leaves .*100 of another shape: .* and 90 more"),
        (vgg_state(), "0 of 102 leaves .*another architecture, or other names"),
        (renamed(resnet_state(), "conv", "cnv"), "17 missing in the file.*17 not in the model"),
        ({"conv1.num_batches_tracked": np.array(1)}, "the file has no weights"),
    ],
)
def test_what_does_not_fit_is_named_with_a_cause(state, message, saved):
    with pytest.raises(PretrainedError, match=f"weights.safetensors does not fit.*{message}"):
        pretrained.load(saved(state), shapes_of(SMALL))


def test_a_prefix_of_all_names_is_found_and_the_advice_works(saved):
    state, shapes = resnet_state(), shapes_of(SMALL)
    path = saved({f"backbone.net.{k}": v for k, v in state.items()})
    with pytest.raises(PretrainedError, match=r"begin with 'backbone\.net\.'; take it off") as e:
        pretrained.load(path, shapes)
    advice = ast.literal_eval(str(e.value).partition("names=")[2])
    loaded, _ = pretrained.load(path, shapes, advice)
    wanted, _ = pretrained.load(saved(state), shapes)
    jax.tree.map(np.testing.assert_array_equal, loaded, wanted)


def test_timm_s_vgg_is_recognised(saved):
    state = renamed(vgg_state(), "classifier.0", "pre_logits.fc1")
    with pytest.raises(PretrainedError, match="Likely cause: timm's VGG"):
        pretrained.load(saved(state), shapes_of(imagenet.VGG16(5, width=2, dense=6)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"names": "timn"}, "names='timn' must be 'torchvision' or rules"),
        ({"names": {"(": "x"}}, r"names: '\(' -> 'x'"),
        ({"names": {r"(.*)": r"\2"}}, "invalid group reference"),
        ({"names": {r"modul\.(.*)": r"\1"}}, "applies to none of .* 122 tensors"),
        ({"names": {r".*weight": "conv1.weight"}}, "both become params/conv1/kernel"),
        ({"names": (("a", "b", "c"),)}, "must be pairs"),
        ({"head": ("fc/(",)}, "head=.*regular expressions"),
        ({"head": ()}, "2 of another shape: fc.bias"),
    ],
)
def test_bad_arguments_are_errors_of_a_config(keywords, message, saved):
    with pytest.raises(ConfigError, match=message):
        pretrained.load(saved(resnet_state(classes=9)), shapes_of(SMALL), **keywords)


def test_damaged_and_foreign_files_are_named_for_what_they_are(tmp_path, saved):
    path = saved(resnet_state())
    whole, shapes = path.read_bytes(), shapes_of(SMALL)
    cases = {
        b"": "damaged or cut short at 0 bytes",
        whole[:5]: "damaged or cut short",
        whole[:3000]: "damaged or cut short at 3,000 bytes",
        whole[:-1]: f"damaged or cut short at {len(whole) - 1:,} bytes",
        whole + b"0": "damaged",
        whole[:20] + b"\xff" + whole[21:]: "damaged",
        b"PK\x03\x04" + bytes(100): "looks like a zip, as torch.save writes it.*save_file",
        b"\x80\x02ccollections\n" + bytes(100): "a pickle",
        b"\x89HDF\r\n\x1a\n" + bytes(100): "HDF5, as Keras",
        b"<!DOCTYPE html>" + bytes(100): "damaged or cut short",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(
            PretrainedError, match=f"weights.safetensors cannot be read: .*{message}"
        ):
            pretrained.load(path, shapes)
    with pytest.raises(PretrainedError, match="no such file; lrlab fetches none"):
        pretrained.load(tmp_path / "resnet18", shapes)
    with pytest.raises(PretrainedError, match=r"is a folder; of its files, weights\.safetensors"):
        pretrained.load(tmp_path, shapes)


def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, saved):
    state, shapes = resnet_state(), shapes_of(SMALL)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(PretrainedError, match=r"layer1.0.conv1.weight has numbers .* not finite"):
        pretrained.load(saved(state), shapes)
    huge = resnet_state() | {"bn1.bias": np.full(4, 1e300)}
    with pytest.raises(
        PretrainedError, match=r"bn1\.bias has numbers that are not finite in float32"
    ):
        pretrained.load(saved(huge), shapes)
    for dtype in "I8", "F8_E4M3":
        tensors = {
            k: ("F32" if v.dtype == np.float32 else "I64", v) for k, v in resnet_state().items()
        }
        tensors["bn1.bias"] = (dtype, np.ones(4, np.int8))
        with pytest.raises(PretrainedError, match=f"bn1.bias is of {dtype}, .*quantised"):
            pretrained.load(raw(tmp_path / dtype, tensors), shapes)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(PretrainedError, match="pip install safetensors"):
        pretrained.load(tmp_path / "resnet18.safetensors", {"params": {}})


def test_batchnorm_s_averages_move_by_a_tenth(saved):
    state, x = resnet_state(), images(40, 40)
    loaded, _ = pretrained.load(saved(state), shapes_of(SMALL))
    _, new = logits(SMALL, loaded, x, train=True, mutable=["batch_stats"])
    y = conv(x.astype(float), state["conv1.weight"], 2)
    for part, batch in ("mean", y.mean((0, 2, 3))), ("var", y.var((0, 2, 3))):
        old = state[f"bn1.running_{part}"]
        close(new["batch_stats"]["bn1"][part], 0.9 * old + 0.1 * batch, rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        imagenet.ResNet50(7, stage_sizes=(1, 1), width=4),
        imagenet.VGG16(5, width=2, dense=6, dropout=0.0),
    ],
)
def test_no_convolution_of_xla_is_in_a_gradient_on_a_cpu(model):
    variables, x = variables_of(model), jnp.zeros((2, 32, 32, 3))

    def program(model):
        def loss(params):
            found = {**variables, "params": params}
            return model.apply(found, x, train=True, mutable=["batch_stats"])[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))

    assert "conv_general_dilated" not in program(model)
    assert "conv_general_dilated" in program(model.clone(implementation="xla"))


def test_dropout_of_vgg_is_of_rows_and_only_in_training():
    model = imagenet.VGG16(5, width=2, dense=32)
    variables, x, order = variables_of(model), images(32, 32, n=4), np.array([2, 0, 3, 1])

    @jax.jit
    def run(x, rows):
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(variables, x, train=True, rows=rows, rngs=rngs)

    x, rows = x.transpose(0, 2, 3, 1), np.arange(4)
    whole = run(x, rows)
    close(run(x[order], rows[order]), whole[order], 1e-5)
    for other in run(x, rows + 4), jax.jit(model.apply)(variables, x):
        assert np.abs(other - whole).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: imagenet.ResNet18(10, stage_sizes=()), "stage_sizes"),
        (lambda: imagenet.ResNet50(10, width=0), "width=0"),
        (lambda: imagenet.VGG16(10, dense=0), "dense=0"),
        (lambda: imagenet.VGG16(10, dropout=1.0), "dropout=1.0"),
        (lambda: imagenet.VGG16(10, implementation="fast"), "implementation='fast'"),
        (lambda: shapes_of(imagenet.VGG16(10), 31), "31x31 pixels are too few"),
        (lambda: imagenet.ResNet18(10).init(jax.random.key(0), jnp.zeros((1, 54))), "tabular"),
    ],
)
def test_bad_fields_and_images_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TORCHVISION = {
    "resnet18": (imagenet.ResNet18(1000), {"size": 64, "images": 4, "seed": 1}),
    "resnet50": (imagenet.ResNet50(1000), {"size": 75, "images": 4, "seed": 2}),
    "vgg16": (imagenet.VGG16(1000), {"size": 64, "images": 2, "seed": 3}),
}


@pytest.fixture(scope="module")
def torchvision(tmp_path_factory):
    """name -> (file, what torchvision's net computes, number of weights), from one start."""
    python = os.environ.get("LRLAB_PARITY_PYTHON")
    if not python:
        pytest.skip("LRLAB_PARITY_PYTHON names no interpreter with torch and torchvision")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    folder = tmp_path_factory.mktemp("torchvision")
    job = {"folder": str(folder), "nets": {name: args for name, (_, args) in TORCHVISION.items()}}
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    script = ROOT / "tests" / "pretrained_reference.py"
    done = subprocess.run(
        [python, str(script)], input=json.dumps(job), capture_output=True, text=True, env=clean
    )
    if absent := re.search(r"No module named '(torchvision|safetensors|PIL)'", done.stderr):
        pytest.skip(f"LRLAB_PARITY_PYTHON has no {absent[1]}")
    assert done.returncode == 0, done.stderr
    count = json.loads(done.stdout)["weights"]
    yield {
        name: (folder / f"{name}.safetensors", dict(np.load(folder / f"{name}.npz")), count[name])
        for name in TORCHVISION
    }
    for path in folder.iterdir():  # 700 MB, and pytest keeps folders
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_logits_are_torchvision_s(name, torchvision):
    model, _ = TORCHVISION[name]
    path, theirs, count = torchvision[name]
    loaded, matched = pretrained.load(path, shapes_of(model))
    assert (matched.missing, matched.unexpected) == ((), ())
    assert count == sum(a.size for a in jax.tree.leaves(loaded["params"]))
    close(logits(model, loaded, theirs["x"]), theirs["logits"])
    assert np.abs(theirs["logits"][0] - theirs["logits"][1]).max() > 1e-2 * theirs["logits"].max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_mode_is_torchvision_s(name, torchvision):
    model, args = TORCHVISION[name]
    path, theirs, _ = torchvision[name]
    loaded, _ = pretrained.load(path, shapes_of(model))
    ours, new = logits(model, loaded, theirs["x"], train=True, mutable=["batch_stats"])
    close(ours, theirs["train_logits"], 1e-3)  # it divides by variances of few values
    old, new = loaded["batch_stats"]["bn1"], new["batch_stats"]["bn1"]
    close(new["mean"], theirs["bn1_mean"])
    n = args["images"] * math.ceil(args["size"] / 2) ** 2  # torch averages n / (n - 1) times it
    close(old["var"] * 0.9 + (new["var"] - old["var"] * 0.9) * n / (n - 1), theirs["bn1_var"])
