"""Texts as pieces, on small sets of the tests' own."""

import lzma
import shutil
import warnings

import numpy as np
import pytest

from lrlab.data import DataError, text

spm = pytest.importorskip("sentencepiece", reason="text needs sentencepiece")
WORDS = ["the", "old", "river", "runs", "past", "quiet", "towns", "where", "people", "fish", "play"]


def sentences(n, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with all three sets, small."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("trec6", "sst2", "wikitext2"):
        (folder / name).mkdir()
    for file, n in (("train", 400), ("valid", 40), ("test", 50)):
        lines = "".join(f" {s} \n \n" for s in sentences(n, n))
        (folder / "wikitext2" / f"{file}.txt.xz").write_bytes(lzma.compress(lines.encode()))
    kinds = list(text._TREC)
    for file, n in (("train", 90), ("test", 20)):
        lines = [f"{kinds[i % 6]}:kind {s} ?" for i, s in enumerate(sentences(n, n))]
        (folder / "trec6" / f"{file}.txt").write_text("\n".join(lines) + "\n", "latin-1")
    for file, n in (("train", 80), ("dev", 30)):
        lines = ["sentence\tlabel", *(f"{s} \t{i % 2}" for i, s in enumerate(sentences(n, n)))]
        (folder / "sst2" / f"{file}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def opened(root, tmp_path):
    """The data functions by name, on the small sets."""
    given = {"vocabulary": 170, "data_dir": root, "cache_dir": tmp_path}
    return lambda name, **more: getattr(text, name)(**(given | more))


def pieces_of(root, tmp_path):
    """The library's own view: a processor with the model that lrlab learnt."""
    (model,) = tmp_path.glob("pieces-*/pieces.model")
    return spm.SentencePieceProcessor(model_file=str(model))


def test_texts_come_back_from_their_pieces(opened, root, tmp_path):
    data = opened("trec6", length=64, validation=0).read()
    processor = pieces_of(root, tmp_path)
    lines = (root / "trec6" / "train.txt").read_text("latin-1").splitlines()
    for row, line in zip(data.train.x, lines, strict=True):
        ids = row[row != text.PADDING].tolist()
        assert ids[-1] == text.END
        assert processor.decode(ids[:-1]) == line.partition(" ")[2]
    wanted = [list(text._TREC).index(line.partition(":")[0]) for line in lines]
    np.testing.assert_array_equal(data.train.y, wanted)


def test_a_text_longer_than_the_length_is_cut_and_a_shorter_one_padded(opened):
    long, short = (opened("trec6", length=n, validation=0).read().train.x for n in (64, 8))
    np.testing.assert_array_equal(short, long[:, :8])
    ends = (long != text.PADDING).sum(1)
    assert all(
        (row[n:] == 0).all() and (row[:n] != 0).all() for row, n in zip(long, ends, strict=True)
    )


def test_windows_are_the_text_and_the_text_one_later(opened, root, tmp_path):
    source = opened("wikitext2", length=16)
    data, processor = source.read(), pieces_of(root, tmp_path)
    for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        packed = (root / "wikitext2" / f"{file}.txt.xz").read_bytes()
        lines = [line.strip() for line in lzma.decompress(packed).decode().splitlines()]
        stream = [i for line in lines if line for i in [*processor.encode(line), text.END]]
        found = getattr(data, split)
        n = (len(stream) - 1) // 16
        assert len(found) == n > 5
        np.testing.assert_array_equal(found.x.ravel(), stream[: 16 * n])
        np.testing.assert_array_equal(found.y.ravel(), stream[1 : 16 * n + 1])
    assert source.target_shape == data.target_shape == (16,)
    assert source.num_classes == source.vocabulary == len(data.class_names) == 170


def test_a_source_says_what_it_reads(opened):
    for name, more in (
        ("trec6", {"validation": 9, "examples": 31}),
        ("sst2", {"validation": 0.1}),
        ("sst2", {"task": "language", "length": 8}),
        ("wikitext2", {"examples": 100}),
    ):
        source = opened(name, **more)
        data = source.read()  # which compares
        assert source.sizes == tuple(map(len, (data.train, data.validation, data.test)))
    assert opened("trec6", validation=9, examples=31).sizes == (31, 9, 20)


def test_validation_stays_the_same_whatever_is_trained_on(opened):
    whole, some = opened("trec6", validation=9).read(), opened("trec6", validation=9, examples=20)
    some = some.read()
    np.testing.assert_array_equal(whole.validation.x, some.validation.x)
    rows = {tuple(r) for r in whole.train.x}
    assert all(tuple(r) in rows for r in some.train.x)
    other = opened("trec6", validation=9, seed=1).read()
    assert not np.array_equal(whole.validation.x, other.validation.x)


def test_another_sets_pieces_do_for_all(opened, tmp_path):
    opened("trec6"), opened("sst2"), opened("wikitext2")
    assert len([*tmp_path.glob("pieces-*/pieces.model")]) == 1
    opened("trec6", pieces_of="trec6")
    assert len([*tmp_path.glob("pieces-*/pieces.model")]) == 2


def test_a_second_open_learns_and_cuts_nothing(opened, tmp_path):
    opened("trec6")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    opened("trec6").read()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("trec6", {"task": "translate"}, "task='translate'"),
        ("trec6", {"length": 1}, "length=1"),
        ("trec6", {"length": True}, "length=True"),
        ("sst2", {"vocabulary": 100}, "vocabulary=100"),
        ("sst2", {"vocabulary": 40_000}, "vocabulary=40000"),
        ("trec6", {"examples": 0}, "examples=0"),
        ("trec6", {"examples": 5_000}, "examples=5000: trec6 has 81"),
        ("trec6", {"validation": 90}, "validation=90"),
        ("trec6", {"pieces_of": "wikitext"}, "pieces_of='wikitext'.*wikitext2"),
        ("trec6", {"seed": -1}, "seed=-1"),
        ("wikitext2", {"length": 10_000}, "length=10000"),
    ],
)
def test_a_bad_argument_is_named(opened, name, given, said):
    with pytest.raises(ValueError, match=said):
        opened(name, **given)


def test_more_pieces_than_a_text_has_are_refused_with_the_reason(opened):
    with pytest.raises(DataError, match=r"vocabulary=20000.*cannot learn so many pieces"):
        opened("trec6", vocabulary=20_000)


@pytest.mark.parametrize(
    ("name", "file", "line", "said"),
    [
        ("trec6", "train.txt", "WHY:not a question", "line 91: 'WHY:not"),
        ("trec6", "test.txt", "no colon", "line 21: 'no colon'"),
        ("sst2", "train.tsv", "a phrase\t2", "line 82: 'a phrase"),
    ],
)
def test_a_damaged_line_is_named(root, tmp_path, name, file, line, said):
    shutil.copytree(root, tmp_path / "copy")
    with (tmp_path / "copy" / name / file).open("a") as out:
        out.write(line + "\n")
    with pytest.raises(DataError, match=said):
        getattr(text, name)(vocabulary=170, data_dir=tmp_path / "copy", cache_dir=tmp_path)


def test_an_absent_set_is_said_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"trec6 is not here.*train.txt"):
        text.trec6(data_dir=tmp_path)
    monkeypatch.delenv("LRLAB_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="LRLAB_DATA_DIR"):
        text.sst2()


def test_a_file_that_is_no_xz_is_named(root, tmp_path):
    shutil.copytree(root / "wikitext2", tmp_path / "wikitext2")
    (tmp_path / "wikitext2" / "train.txt.xz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"train.txt.xz cannot be read"):
        text.wikitext2(vocabulary=170, data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_the_real_sets_have_the_sizes_they_are_known_for(data_dir, tmp_path):
    assert text.trec6(data_dir=data_dir, cache_dir=tmp_path, validation=0).sizes == (5452, 0, 500)
    source = text.sst2(data_dir=data_dir, cache_dir=tmp_path, validation=0)
    assert source.sizes == (67349, 0, 872)
    assert source.read().train.y.mean() == pytest.approx(0.5578, abs=1e-4)  # GLUE's share of good


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set that TFDS itself prepared, without TensorFlow: two texts and a class an example."""
    root = tmp_path_factory.mktemp("prepared")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as source

        with source.core.registered.skip_registration():

            class TinyNews(source.core.GeneratorBasedBuilder):
                VERSION = source.core.Version("1.0.0")

                def _info(self):
                    features = {
                        "title": source.features.Text(),
                        "description": source.features.Text(),
                        "label": source.features.ClassLabel(names=["world", "sports"]),
                    }
                    return source.core.DatasetInfo(
                        builder=self, features=source.features.FeaturesDict(features)
                    )

                def _split_generators(self, dl_manager):
                    return {
                        "train": self._generate_examples(60),
                        "test": self._generate_examples(9),
                    }

                def _generate_examples(self, n):
                    titles, texts = sentences(n, n), sentences(n, n + 1)
                    for i in range(n):
                        yield i, {"title": titles[i], "description": texts[i], "label": i % 2}

        TinyNews(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_texts_that_tfds_prepared_are_read_whole(prepared, tmp_path):
    given = {"length": 60, "validation": 0, "vocabulary": 170, "cache_dir": tmp_path}
    source = text.tfds("tiny_news", data_dir=prepared, **given)
    assert source.sizes == (60, 0, 9)
    data, processor = source.read(), pieces_of(None, tmp_path)
    assert data.class_names == ("world", "sports")
    found = {
        (processor.decode(row[row != text.PADDING].tolist()[:-1]), int(y))
        for row, y in zip(data.train.x, data.train.y, strict=True)
    }
    # TFDS shuffles; what its builder was given is what must come back.
    titles, texts = sentences(60, 60), sentences(60, 61)
    joined = {k: f"{titles[k]} {texts[k]}" for k in range(60)}
    features = [f"{texts[k]} {titles[k]}" for k in range(60)]  # in the order of their names
    wanted = {(joined[k], k % 2) for k in joined}, {(features[k], k % 2) for k in range(60)}
    assert found in wanted
    alone = text.tfds("tiny_news", text="title", data_dir=prepared, **given).read()
    assert (alone.train.x != 0).sum() < (data.train.x != 0).sum()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"dataset": "tiny_new"}, DataError, "'tiny_new' is not prepared.*tiny_news"),
        ({"text": "body"}, ValueError, "text='body'"),
        ({"label": "title"}, ValueError, "label='title'.*no such feature"),
        ({"test_split": "dev"}, ValueError, "test_split='dev'.*train, test"),
        ({"dataset": "../x"}, ValueError, "dataset='../x'"),
    ],
)
def test_a_bad_argument_for_a_set_of_tfds_is_named(prepared, tmp_path, given, error, said):
    told = {"dataset": "tiny_news", "data_dir": prepared, "cache_dir": tmp_path} | given
    with pytest.raises(error, match=f"(?s){said}"):
        text.tfds(**told)
