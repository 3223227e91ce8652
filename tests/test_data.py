"""Splits are fixed, disjoint and complete; what is damaged, absent or hostile is never used."""

import hashlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lrlab.data import DataError, Dataset, Source, Split, tabular, tfds
from lrlab.data._checks import check
from lrlab.data._splits import standard
from lrlab.data.digits import digits

SIDE = (6, 5)  # height and width differ, so that a swap shows
TRAIN, TEST = 90, 30
GOLDEN = "d0319d91abd9839948ac5f2b173ad81700e7a87d4c4617174ba0f99349f5239a"


def pixels(split, i, channels=3, tint=0):
    """The image number i of the tiny sets."""
    seed = [i, channels, tint, *split.encode()]
    return np.random.default_rng(seed).integers(0, 256, (*SIDE, channels), np.uint8)


def prepare(root, splits=("train", "test"), channels=3, tint=0):
    """A set of three classes, prepared by TFDS itself without TensorFlow; returns its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as source
        from PIL import Image

        with source.core.registered.skip_registration():

            class TinyImages(source.core.GeneratorBasedBuilder):
                VERSION = source.core.Version("1.2.3")

                def _info(self):
                    features = {
                        "image": source.features.Image(shape=(*SIDE, channels)),
                        "label": source.features.ClassLabel(names=["ant", "bee", "cat"]),
                        "number": source.features.Scalar(np.int64),
                    }
                    return source.core.DatasetInfo(
                        builder=self,
                        features=source.features.FeaturesDict(features),
                        supervised_keys=("image", "label"),
                    )

                def _split_generators(self, dl_manager):
                    return {s: self._generate_examples(s) for s in splits}

                def _generate_examples(self, split):
                    for i in range(TRAIN if split == "train" else TEST):
                        png = io.BytesIO()
                        image = pixels(split, i, channels, tint)
                        Image.fromarray(image.squeeze()).save(png, "PNG")
                        png.seek(0)
                        yield i, {"image": png, "label": i % 3, "number": i}

        builder = TinyImages(data_dir=root, file_format="array_record")
        two = source.download.DownloadConfig(num_shards=2)
        builder.download_and_prepare(download_config=two)
        return Path(builder.data_path)


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root)
    return root


@pytest.fixture
def tiny(tiny_root, tmp_path):
    """Opens the tiny set with a cache of the test's own."""

    def opened(**changes):
        given = {"validation": 18, "data_dir": tiny_root, "cache_dir": tmp_path / "cache"}
        return tfds.images("tiny_images", **(given | changes))

    return opened


@pytest.fixture
def copy(tiny_root, tmp_path):
    """A copy of the tiny set to damage: (root, folder of the version)."""
    root = tmp_path / "copy"
    shutil.copytree(tiny_root, root)
    return root, root / "tiny_images" / "1.2.3"


def python(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | environment,
    )


def finished(process):
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


OPEN = """
import hashlib, sys
from lrlab.data import tfds
data = tfds.images("tiny_images", validation=18, data_dir=sys.argv[1], cache_dir=sys.argv[2]).read()
parts = [a for s in (data.train, data.validation, data.test) for a in (s.x, s.y)]
print(hashlib.sha256(b"".join(p.tobytes() for p in [*parts, data.shift, data.scale])).hexdigest())
print(sorted(m for m in ("tensorflow_datasets", "tensorflow", "jax", "PIL") if m in sys.modules))
"""


def rows(*arrays):
    """Rows of several arrays as a sorted list of bytes: what is there, without its order."""
    return sorted(a.tobytes() for array in arrays for a in np.ascontiguousarray(array))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_digits_are_scikit_learns_each_in_one_split():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    data = digits().read()
    parts = (data.train, data.validation, data.test)
    ours = [np.column_stack([s.x.reshape(len(s), 64), s.y]).astype(int) for s in parts]
    assert rows(*ours) == rows(np.column_stack([x, y]).astype(int))
    assert tuple(map(len, parts)) == digits().sizes == (1257, 180, 360)
    assert data.train.x.dtype == np.uint8
    assert data.train.y.dtype == np.int32


def test_digits_split_is_the_same_for_good():
    data = digits().read()
    order = np.concatenate([data.train.y, data.validation.y, data.test.y]).astype(np.uint8)
    assert hashlib.sha256(order.tobytes()).hexdigest() == GOLDEN
    assert not np.array_equal(digits(seed=1).read().test.y, data.test.y)


@pytest.mark.parametrize(("validation", "test"), [(180, 360), (0.2, 0.5), (7, 1000)])
def test_every_class_has_its_share_of_every_split(validation, test):
    data = digits(validation, test).read()
    parts = (data.train, data.validation, data.test)
    counts = np.array([np.bincount(s.y, minlength=10) for s in parts])
    shares = counts.sum(0) / 1797 * counts.sum(1, keepdims=True)
    assert np.abs(counts - shares).max() <= 1


def test_digits_standardise_by_the_training_split():
    data = digits().read()
    x = data.train.x.astype(np.float64)
    np.testing.assert_allclose(data.shift, [[[x.mean()]]], rtol=1e-7)
    np.testing.assert_allclose(data.scale, [[[1 / x.std()]]], rtol=1e-7)


def test_digits_load_without_scikit_learn_or_jax():
    code = """
import sys
from lrlab.data.digits import digits
assert digits().read().train.x.shape == (1257, 8, 8, 1)
print([m for m in ("sklearn", "scipy", "jax", "tensorflow_datasets") if m in sys.modules])
"""
    assert finished(python(code)) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"validation": -1}, r"validation=-1 must be a number of examples, 0 to 1,796"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"validation": True}, "validation=True"),
        ({"validation": float("nan")}, "validation=nan"),
        ({"test": -1}, "test=-1"),
        ({"test": "10%"}, "test='10%'"),
        ({"validation": 1000, "test": 797}, "leave no training example"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_a_bad_argument_is_named(given, named):
    with pytest.raises(ValueError, match=named):
        digits(**given)


def test_standard_is_exact_where_floats_are_not():
    x = np.array([10**8, 10**8 + 1], np.int64)  # their squares need 54 bits
    shift, scale = standard(2, [x.sum()], [np.square(x).sum()])
    assert (shift, scale) == (np.float32(1e8), 2.0)
    assert standard(3, [12], [48])[1] == 1.0  # a constant: no division by zero


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_those_that_were_stored_and_tfds_reads(tmp_path, channels):
    folder = prepare(tmp_path, channels=channels)
    data = tfds.images(
        "tiny_images", validation=0.2, data_dir=tmp_path, cache_dir=tmp_path / "cache"
    ).read()
    both = (data.train.x, data.validation.x)
    assert rows(*both) == rows([pixels("train", i, channels) for i in range(TRAIN)])
    assert data.train.x.shape == (72, *SIDE, channels)
    assert data.class_names == ("ant", "bee", "cat")

    import tensorflow_datasets as source

    stored = source.builder_from_directory(folder).as_data_source("test")
    np.testing.assert_array_equal(data.test.x, [stored[i]["image"] for i in range(TEST)])
    np.testing.assert_array_equal(data.test.y, [stored[i]["label"] for i in range(TEST)])


def test_labels_stay_with_their_images(tiny):
    data = tiny().read()
    label = {pixels("train", i).tobytes(): i % 3 for i in range(TRAIN)}
    for split in (data.train, data.validation):
        assert [label[x.tobytes()] for x in split.x] == split.y.tolist()


def test_what_a_source_says_is_what_it_reads(tiny):
    source = tiny()
    data = source.read()
    assert source.sizes == (72, 18, 30) == (len(data.train), len(data.validation), len(data.test))
    assert source.feature_shape == data.feature_shape == (*SIDE, 3)
    assert (source.name, source.num_classes) == ("tiny_images:1.2.3", 3)
    assert source.notes == ()


def test_validation_is_always_the_tail_of_one_order(tiny):
    small, large = tiny(validation=10).read(), tiny(validation=0.5).read()
    np.testing.assert_array_equal(small.validation.x, large.validation.x[-10:])
    np.testing.assert_array_equal(small.train.x[: len(large.train)], large.train.x)
    assert len(large.validation) == TRAIN // 2


def test_examples_are_the_first_of_the_order_and_validation_stays(tiny):
    whole, few = tiny().read(), tiny(examples=20)
    assert few.sizes == (20, 18, 30)
    assert "draw 0, 20 a draw" in few.notes[-1]
    data = few.read()
    for split, ours in ("train", 20), ("validation", 18), ("test", 30):
        for key in "x", "y":
            of_all = getattr(getattr(whole, split), key)[:ours]
            np.testing.assert_array_equal(getattr(getattr(data, split), key), of_all)
    x = whole.train.x[:20].astype(np.float64)
    np.testing.assert_allclose(data.shift, x.mean((0, 1, 2))[None, None], rtol=1e-7)
    np.testing.assert_allclose(data.scale, 1 / x.std((0, 1, 2))[None, None], rtol=1e-7)
    assert not np.array_equal(data.shift, whole.shift)


def test_draws_share_no_example_and_each_is_standardised_by_itself(tiny):
    whole = tiny().read()
    draws = [tiny(examples=20, draw=i).read() for i in range(3)]  # of 72: a fourth is too short
    drawn = np.concatenate([d.train.x for d in draws])
    np.testing.assert_array_equal(drawn, whole.train.x[:60])
    for data in draws:
        np.testing.assert_array_equal(data.validation.x, whole.validation.x)
        x = data.train.x.astype(np.float64)
        np.testing.assert_allclose(data.shift, x.mean((0, 1, 2))[None, None], rtol=1e-7)
    all_of_them = tiny(examples=72).read()
    np.testing.assert_array_equal(all_of_them.train.x, whole.train.x)
    np.testing.assert_array_equal(all_of_them.scale, whole.scale)


def test_images_standardise_each_channel_by_the_training_split(tiny):
    data = tiny().read()
    x = data.train.x.astype(np.float64)
    np.testing.assert_allclose(data.shift, x.mean((0, 1, 2))[None, None], rtol=1e-7)
    np.testing.assert_allclose(data.scale, 1 / x.std((0, 1, 2))[None, None], rtol=1e-7)
    assert data.shift.dtype == data.scale.dtype == np.float32


def test_a_second_open_is_equal_quick_and_without_tfds(tiny, tiny_root, tmp_path):
    first = finished(python(OPEN, tiny_root, tmp_path / "cache"))
    second = finished(python(OPEN, tiny_root, tmp_path / "cache"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert first[1].split("\n")[0] == second[1].split("\n")[0]
    assert "tensorflow_datasets" in first[1].split("\n")[1]
    assert "'tensorflow'" not in first[1]
    assert second[1].split("\n")[1] == "[]"
    assert "decoding" in first[2]
    assert second[2] == ""
    started = time.perf_counter()
    tiny().read()
    assert time.perf_counter() - started < 0.1  # 2 ms on an idle machine


def test_a_killed_decode_leaves_nothing_that_is_taken_for_complete(tiny_root, tmp_path):
    cache = tmp_path / "cache"
    killed = (
        "import os, signal\nfrom lrlab.data import tfds\n"
        "real = tfds._records\n"
        "tfds._BATCH = 8\n"
        "def records(*a):\n"
        "    for i, batch in enumerate(real(*a)):\n"
        "        if i == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield batch\n"
        "tfds._records = records\n"
    )
    assert finished(python(killed + OPEN, tiny_root, cache))[0] == -signal.SIGKILL
    assert [p.suffix for p in cache.iterdir() if p.is_dir()] == [".partial"]
    again = finished(python(OPEN, tiny_root, cache))
    fresh = finished(python(OPEN, tiny_root, tmp_path / "another"))
    assert again[:2] == fresh[:2]
    assert not list(cache.glob(".*.partial"))


def test_processes_that_start_together_decode_once(tiny_root, tmp_path):
    slow = (
        "import os, sys, time\nfrom pathlib import Path\nfrom lrlab.data import tfds\n"
        "ready = Path(sys.argv[3])\n"
        "(ready / str(os.getpid())).touch()\n"
        "while len(list(ready.iterdir())) < 3: time.sleep(0.01)\n"
        "real = tfds._records\n"
        "def records(*a):\n"
        "    time.sleep(0.5)\n"
        "    yield from real(*a)\n"
        "tfds._records = records\n"
    )
    (tmp_path / "ready").mkdir()
    given = slow + OPEN, tiny_root, tmp_path / "cache", tmp_path / "ready"
    started = [python(*given) for _ in range(3)]
    results = [finished(p) for p in started]
    assert [r[0] for r in results] == [0, 0, 0], results
    assert len({r[1].split("\n")[0] for r in results}) == 1
    said = "".join(r[2] for r in results)
    assert said.count("train, once, into") == said.count("test, once, into") == 1
    assert "another process is decoding" in said


def test_a_damaged_cache_is_decoded_again(tiny, tmp_path):
    before = rows(tiny().read().train.x)
    for x in (tmp_path / "cache").glob("*/x.npy"):
        os.truncate(x, x.stat().st_size - 1)
    assert rows(tiny().read().train.x) == before
    for x in (tmp_path / "cache").glob("*/x.npy"):
        x.write_bytes(b"")
    assert rows(tiny().read().train.x) == before


def test_another_preparation_under_the_same_name_is_not_taken_from_the_cache(tiny, tmp_path):
    before = rows(tiny().read().test.x)
    prepare(tmp_path / "other", tint=1)
    assert rows(tiny(data_dir=tmp_path / "other").read().test.x) != before


def test_a_cache_that_cannot_be_written_is_said(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="LRLAB_CACHE_DIR"):
        tiny(cache_dir=tmp_path / "file").read()


def test_a_validation_split_of_the_sets_own_is_used(tmp_path):
    prepare(tmp_path, ("train", "validation", "test"))
    given = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    assert tfds.images("tiny_images", examples=TRAIN, **given).sizes == (TRAIN, TEST, TEST)
    source = tfds.images("tiny_images", **given)
    assert source.sizes == (TRAIN, TEST, TEST)
    assert "the set has for it" in source.notes[0]
    data = source.read()
    assert rows(data.train.x) == rows([pixels("train", i) for i in range(TRAIN)])
    assert rows(data.validation.x) == rows([pixels("validation", i) for i in range(TEST)])


def test_a_set_without_test_split_is_tested_on_its_validation_split(tmp_path):
    prepare(tmp_path, ("train", "validation"))
    source = tfds.images("tiny_images", 9, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert source.sizes == (TRAIN - 9, 9, TEST)
    assert "no test split" in source.notes[0]
    data = source.read()
    assert not set(rows(data.validation.x)) & set(rows(data.test.x, data.train.x))


def test_the_newest_version_is_read_unless_one_is_named(copy, tmp_path):
    root, folder = copy
    shutil.copytree(folder, folder.with_name("1.10.0"))
    edit(folder.with_name("1.10.0") / "dataset_info.json", lambda c: c.update(version="1.10.0"))
    assert tfds.images("tiny_images", 9, data_dir=root).name == "tiny_images:1.10.0"
    assert tfds.images("tiny_images:1.2.3", 9, data_dir=root).name == "tiny_images:1.2.3"


def test_data_is_found_by_the_environment(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_root))
    monkeypatch.delenv("LRLAB_DATA_DIR", raising=False)
    assert tfds.images("tiny_images", 9).sizes == (81, 9, 30)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LRLAB_DATA_DIR", str(tmp_path))
    (tmp_path / "tfds").symlink_to(tiny_root)
    assert tfds.images("tiny_images", 9).sizes == (81, 9, 30)


def test_an_absent_set_is_refused_at_once_with_the_remedy(tiny_root):
    started = time.perf_counter()
    with pytest.raises(DataError) as refused:
        tfds.images("tiny_image", data_dir=tiny_root)
    assert time.perf_counter() - started < 0.5
    for part in (
        str(tiny_root),
        "did you mean 'tiny_images'?",
        'pip install "lrlab[prepare]"',
        f"python -m lrlab.data.tfds --dataset=tiny_image --data_dir={tiny_root}",
        "--manual_dir",
        "LRLAB_DATA_DIR",
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "mnist/../../x", "gs://b/mnist", "a b", "", "mnist:latest", 3, None]
)
def test_a_name_that_is_a_path_is_refused(name, tiny_root):
    with pytest.raises(ValueError, match=r"^dataset="):
        tfds.images(name, data_dir=tiny_root)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"validation": 90}, "validation=90"),
        ({"validation": -1}, "validation=-1"),
        ({"test_split": "train"}, "test_split='train'"),
        ({"test_split": "tset"}, "did you mean 'test'"),
        ({"examples": 0}, "examples=0 must be a whole number, 1 to 72, what validation leaves"),
        ({"examples": 73}, "examples=73 must be a whole number, 1 to 72"),
        ({"examples": 0.5}, "examples=0.5"),
        ({"examples": "20"}, "examples='20'"),
        ({"examples": True}, "examples=True"),
        ({"examples": 73, "validation": 0, "draw": 1}, "draw=1 must be a whole number, 0 to 0: of"),
        ({"examples": 20, "draw": 3}, "draw=3 must be a whole number, 0 to 2: of 20 examples"),
        ({"examples": 20, "draw": -1}, "draw=-1"),
        ({"draw": 1}, "draw=1 must be a whole number, 0 to 0: without examples"),
    ],
)
def test_a_bad_argument_for_images_is_named(tiny, given, named):
    with pytest.raises(ValueError, match=named):
        tiny(**given)


def damage_truncate(folder):
    path = next(folder.glob("*-train*-00001-of-*"))
    os.truncate(path, path.stat().st_size // 2)


def damage_flip(folder):
    path = next(folder.glob("*-train*-00001-of-*"))
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 64)


def damage_missing(folder):
    next(folder.glob("*-train*-00001-of-*")).unlink()


def damage_classes(folder):
    def fewer(content):
        content["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"

    edit(folder / "features.json", fewer)
    (folder / "label.labels.txt").write_text("ant\nbee\n")


def damage_size(folder):
    def turned(content):
        content["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = [5, 6, 3]

    edit(folder / "features.json", turned)


def damage_ragged(folder):
    def unknown(content):
        content["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = [-1, -1, 3]

    edit(folder / "features.json", unknown)


def damage_label(folder):
    def gone(content):
        del content["featuresDict"]["features"]["label"]

    edit(folder / "features.json", gone)


def damage_format(folder):
    edit(folder / "dataset_info.json", lambda c: c.update(fileFormat="tfrecord"))


def damage_empty(folder):
    edit(folder / "dataset_info.json", lambda c: c["splits"][0].update(shardLengths=["0"]))


def damage_json(folder):
    (folder / "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_truncate, r"record 45 of split 'train' .*empty.* Copy .*-00001-of-00002 again"),
        (
            damage_flip,
            r"record \d\d of split 'train' .*at byte 2\d+\. Copy .*-00001-of-00002 again",
        ),
        (damage_missing, r"tiny_images-train.array_record-00001-of-00002 is missing"),
        (damage_classes, r"label 2 of record \d+ is outside \[0, 2\)"),
        (damage_size, r"record 0 of split 'train'.*has size \[6, 5\].*says \[5, 6\]"),
        (damage_ragged, r"one size"),
        (damage_label, r"has features image, number"),
        (damage_format, r"'tfrecord'.*prepare it again"),
        (damage_empty, r"split '\w+' is empty"),
        (damage_json, r"is not a set of TFDS"),
    ],
)
def test_damage_is_named_and_nothing_of_it_is_cached(copy, tmp_path, damage, said):
    root, folder = copy
    damage(folder)
    with pytest.raises(DataError, match=said):
        tfds.images("tiny_images", 9, data_dir=root, cache_dir=tmp_path / "cache").read()
    assert not [p for p in (tmp_path / "cache").glob("*") if p.is_dir()]


def test_a_set_cannot_have_foreign_code_imported(copy, tmp_path, monkeypatch):
    root, folder = copy
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)

    def hostile(content):
        content["featuresDict"]["features"]["number"]["pythonClassName"] = "payload.Scalar"

    edit(folder / "features.json", hostile)
    with pytest.raises(DataError, match=r"payload.Scalar"):
        tfds.images("tiny_images", 9, data_dir=root, cache_dir=tmp_path / "cache").read()
    assert not (tmp_path / "marker").exists()


def test_a_set_cannot_point_outside_its_folder(copy):
    root, folder = copy
    edit(
        folder / "dataset_info.json",
        lambda c: c["splits"][0].update(filepathTemplate="../../{SPLIT}-{SHARD_X_OF_Y}"),
    )
    with pytest.raises(DataError, match="file name"):
        tfds.images("tiny_images", 9, data_dir=root)


def test_the_command_that_prepares_refuses_a_path(tmp_path):
    command = [sys.executable, "-m", "lrlab.data.tfds", "--dataset=../x", f"--data_dir={tmp_path}"]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=60
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("lrlab: --dataset='../x' must be a name of TFDS")
    assert not list(tmp_path.iterdir())


def test_preparing_finds_what_is_prepared_and_asks_for_tensorflow(tiny_root, monkeypatch):
    assert "already prepared" in tfds._prepare("tiny_images", str(tiny_root), None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "lrlab\[prepare\]"'):
        tfds._prepare("mnist", str(tiny_root), None)


def test_preparing_without_network_fails_at_once_and_names_the_files():
    builder = SimpleNamespace(url_infos={"http://127.0.0.1:9/digits.gz": None})
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"no network.*--manual_dir=FOLDER:\n.*digits.gz"):
        tfds._reach(builder)
    assert time.perf_counter() - started < 5  # TFDS tries again for 204 s


def table(folder, n=700, **changes):
    """A small table in the layout of the shared one."""
    rng = np.random.default_rng(0)
    columns = {
        "numeric": rng.integers(-170, 7000, (n, 10)).astype(np.int16),
        "wilderness": rng.integers(1, 5, n).astype(np.uint8),
        "soil": rng.integers(1, 41, n).astype(np.uint8),
        "label": (np.arange(n) % 7 + 1).astype(np.uint8),
    } | changes
    (folder / "covtype").mkdir(parents=True)
    np.savez_compressed(folder / "covtype" / "table.npz", **columns)
    return columns


def test_covertype_is_the_table_one_hot_and_standardised(tmp_path):
    from sklearn.preprocessing import OneHotEncoder

    columns = table(tmp_path)
    source = tabular.covertype(data_dir=tmp_path)
    data = source.read()
    kinds = np.column_stack([columns["wilderness"], columns["soil"]])
    categories = [np.arange(1, 5), np.arange(1, 41)]
    one_hot = OneHotEncoder(categories=categories, sparse_output=False).fit_transform(kinds)
    whole = np.column_stack([columns["numeric"], one_hot, columns["label"] - 1])
    parts = (data.train, data.validation, data.test)
    ours = [np.column_stack([s.x, s.y]).astype(np.float64) for s in parts]
    assert rows(*ours) == rows(whole)
    assert source.sizes == tuple(map(len, parts)) == (455, 70, 175)
    assert source.notes == ("700 of 581,012 rows",)
    x = data.train.x.astype(np.float64)[:, :10]
    np.testing.assert_allclose(data.shift, [*x.mean(0), *np.zeros(44)], rtol=1e-7)
    np.testing.assert_allclose(data.scale, [*(1 / x.std(0)), *np.ones(44)], rtol=1e-7)
    assert data.train.x.dtype == np.float32
    assert np.abs(np.bincount(data.test.y) - 25).max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": np.full(700, 8, np.uint8)}, r"label 7 of record 0 is outside \[0, 7\)"),
        ({"wilderness": np.full(700, 5, np.uint8)}, r"wilderness - 1.* is outside \[0, 4\)"),
        ({"soil": np.zeros(700, np.uint8)}, r"soil - 1: label -1 of record 0"),
        ({"soil": np.ones(699, np.uint8)}, r"columns of \[699, 700\] rows"),
        ({"numeric": np.ones((700, 9), np.int16)}, r"numeric is int16 \[700, 9\]"),
        ({"numeric": np.full((700, 10), 0.5)}, r"whole numbers"),
        (
            {"numeric": np.where(np.eye(700, 10) * np.arange(10) == 3, np.nan, 1.0)},
            r"feature \[3\] of record 3 is nan",
        ),
    ],
)
def test_a_table_that_is_not_covertype_is_refused(tmp_path, changes, said):
    table(tmp_path, **changes)
    with pytest.raises(DataError, match=said):
        tabular.covertype(data_dir=tmp_path).read()


class Payload:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["MARKER"]),)


def test_a_pickle_in_a_table_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    label = np.array([Payload()] * 700, dtype=object)
    table(tmp_path, label=label)
    with pytest.raises(DataError, match="label is object"):
        tabular.covertype(data_dir=tmp_path)
    (tmp_path / "covertype").mkdir()  # scikit-learn's own layout, where a data_dir must not look
    for part in ("samples_py3", "targets_py3"):
        (tmp_path / "covertype" / part).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DataError):
        tabular.covertype(data_dir=tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_table_that_claims_more_than_it_holds_is_refused(tmp_path):
    table(tmp_path)
    path = tmp_path / "covtype" / "table.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    claim = {"descr": "<i8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claim)
    members["label.npy"] = header.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="label is int64"):
        tabular.covertype(data_dir=tmp_path)


def test_covertype_prefers_all_rows_and_says_what_to_do_without_any(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sk"))
    monkeypatch.delenv("LRLAB_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"data.download=True.*LRLAB_DATA_DIR=FOLDER"):
        tabular.covertype()
    assert sum(tabular.covertype(download=True).sizes) == 581_012  # nothing is fetched before read
    monkeypatch.setenv("LRLAB_DATA_DIR", str(tmp_path))
    table(tmp_path)
    assert sum(tabular.covertype().sizes) == 700
    (tmp_path / "sk" / "covertype").mkdir(parents=True)
    for part in ("samples_py3", "targets_py3"):
        (tmp_path / "sk" / "covertype" / part).write_bytes(b"damaged")
    source = tabular.covertype()
    assert sum(source.sizes) == 581_012
    assert source.notes == ()
    with pytest.raises(DataError, match="deleted first"):
        source.read()


def test_covertypes_sources_need_no_scikit_learn(tmp_path):
    table(tmp_path)
    code = """
import sys
from lrlab.data import tabular
tabular.covertype(data_dir=sys.argv[1]).read()
print([m for m in ("sklearn", "jax") if m in sys.modules])
"""
    assert finished(python(code, tmp_path)) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"validation": 0.0}, "validation=0.0"),
        ({"seed": None}, "seed=None"),
        ({"download": 1}, "download=1"),
    ],
)
def test_a_bad_argument_for_covertype_is_named(tmp_path, given, named):
    table(tmp_path)
    with pytest.raises(ValueError, match=named):
        tabular.covertype(data_dir=tmp_path, **given)


def test_everything_can_be_trained_on(tiny, tmp_path):
    table(tmp_path)
    for make in digits, tiny, lambda **given: tabular.covertype(data_dir=tmp_path, **given):
        held, whole = make(validation=10), make(validation=0)
        assert whole.sizes == (held.sizes[0] + 10, 0, held.sizes[2])
        data = whole.read()
        assert len(data.validation) == 0
        assert rows(data.test.x) == rows(held.read().test.x)


def birds(**changes):
    """A user's source of 4, 2 and 2 examples, [3] floats, 2 classes."""
    arrays = {
        "x": np.zeros((8, 3), np.float32),
        "y": np.array([0, 1] * 4, np.int32),
        "scale": np.ones(3),
    } | changes

    def load():
        x, y = arrays["x"], arrays["y"]
        splits = [Split(x[a:b], y[a:b]) for a, b in ((0, 4), (4, 6), (6, 8))]
        return Dataset("birds", *splits, 2, ("a", "b"), np.zeros(3), arrays["scale"])

    return Source("birds", (4, 2, 2), (3,), 2, changes.get("load", load))


def spoilt(at, value):
    x = np.zeros((8, 3), np.float32)
    x[at] = value
    return x


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": np.array([0, 1, 0, 1, 0, 2, 0, 1])}, "split 'validation': label 2 of record 1 is"),
        ({"y": np.array([0, 1, -1, 1, 0, 1, 0, 1])}, r"'train': label -1 of record 2 .* \[0, 2\)"),
        ({"y": np.zeros(8)}, "'train': y is float64, not class indices"),
        ({"y": np.zeros((8, 2), np.int32)}, r"y has shape \[4, 2\]; the Source promised \[4\]"),
        ({"y": np.zeros(7, np.int32)}, r"split 'test': y has shape \[1\]; .* promised \[2\]"),
        ({"x": np.zeros((8, 4))}, r"x has shape \[4, 4\]; the Source promised \[4, 3\]"),
        ({"x": np.full((8, 3), "a")}, "x is <U1, not uint8 or float32"),
        ({"x": spoilt((7, 2), np.nan)}, r"'test': feature \[2\] of record 1 is nan"),
        ({"x": spoilt((1, 0), -np.inf)}, r"'train': feature \[0\] of record 1 is -inf"),
        ({"scale": np.array([1, np.inf, 1])}, "scale is not finite"),
        ({"scale": np.ones(2)}, r"scale of shape \[2\] does not fit a feature of \[3\]"),
        ({"load": lambda: {}["label"]}, "birds cannot be read: KeyError: 'label'"),
        ({"load": lambda: None}, "its loader gives NoneType, not a lrlab.data.Dataset"),
        ({"load": lambda: birds()}, "its loader gives Source, not"),
        ({"load": lambda: digits().load()}, "birds has 10 classes; its Source promised 2"),
    ],
)
def test_a_set_that_is_not_what_its_source_says_is_refused(changes, said):
    assert len(birds().read().train) == 4
    with pytest.raises(DataError, match=said):
        birds(**changes).read()


def test_of_images_only_the_labels_are_looked_at():
    class Untouched(np.ndarray):
        def __array_ufunc__(self, *_, **__):
            raise AssertionError("pixels were read")

    x = np.zeros((8, 3), np.uint8).view(Untouched)
    assert birds(x=x).read().train.x.dtype == np.uint8


def test_a_feature_deep_in_a_large_set_is_found_by_its_record(monkeypatch):
    monkeypatch.setattr("lrlab.data._checks._BYTES", 100)  # 8 rows of 3 floats at once
    for record in 0, 7, 8, 49:
        x = np.zeros((50, 3), np.float32)
        x[record, 1] = np.nan
        with pytest.raises(DataError, match=rf"feature \[1\] of record {record} is nan"):
            check("here", x, np.zeros(50, np.int32), 2)


def test_an_infinite_feature_is_named_with_its_record():
    x = np.zeros((4, 2, 3), np.float32)
    x[2, 1, 0] = np.inf
    with pytest.raises(DataError, match=r"feature \[1, 0\] of record 12 is inf"):
        check("here", x, np.zeros(4, np.int32), 2, first=10)


def test_the_shared_covertype_is_complete(data_dir):
    data = tabular.covertype(data_dir=data_dir).read()
    y = np.concatenate([data.train.y, data.validation.y, data.test.y])
    assert len(y) == 92_962
    whole = np.array([211840, 283301, 35754, 2747, 9493, 17367, 20510])  # of UCI's covtype.info
    np.testing.assert_allclose(np.bincount(y) / len(y), whole / whole.sum(), atol=1e-3)
    assert (data.train.x[:, 10:14].sum(1) == 1).all()
    assert (data.train.x[:, 14:].sum(1) == 1).all()


@pytest.mark.slow
def test_mnist_is_mnist(data_dir, tmp_path):
    source = tfds.images(data_dir=data_dir, cache_dir=tmp_path)
    data = source.read()
    assert source.sizes == (55_000, 5_000, 10_000)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the official test set
    assert np.bincount(data.test.y).tolist() == counts
    whole = sum(int(s.x.sum(dtype=np.int64)) for s in (data.train, data.validation))
    assert round(whole / (60_000 * 784), 4) == 33.3184  # 0.1307 of 255, as everybody uses
    x = data.train.x.astype(np.float64)
    np.testing.assert_allclose(data.shift.item(), x.mean(), rtol=1e-6)
    np.testing.assert_allclose(data.scale.item(), 1 / x.std(), rtol=1e-6)


@pytest.mark.slow
def test_cifar10_is_read_from_sheets_and_says_that_95_images_differ(data_dir, tmp_path):
    from PIL import Image

    source = tfds.images("cifar10", data_dir=data_dir, cache_dir=tmp_path)
    assert source.notes == ("59,905 of 60,000 images exact, 95 decoded from JPEG",)
    data = source.read()
    sheet = np.asarray(Image.open(data_dir / "cifar10" / "test.webp").convert("RGB"))
    for i in (0, 1, 99, 100, 9999):
        row, column = divmod(i, 100)
        tile = sheet[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        np.testing.assert_array_equal(data.test.x[i], tile)
    assert np.bincount(data.test.y).tolist() == [1000] * 10
    assert data.class_names[data.test.y[0]] == "cat"  # as everybody knows
