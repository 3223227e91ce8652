"""Text as pieces: questions and reviews with a class each, or running text to be continued.

Texts are cut into pieces of words by SentencePiece, case folded. Which pieces there are is learnt
from the training text of one set, by default WikiText-2's, so that a network that learnt from one
set can go on with another. Token 0 is padding, 1 unknown, 2 the end of a text.

`task="classify"`: x are the pieces of one text, cut or padded to `length`, y is its class.
`task="language"`: all texts follow each other in windows of `length` pieces; y are the pieces that
come next. Windows are examples like any other: they are shuffled, and no state runs through them.
"""

import dataclasses
import hashlib
import io
import json
import lzma
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrlab.data import DataError, Dataset, Source, Split, _cache, _prepared
from lrlab.data._splits import check_seed, count, order
from lrlab.values import near

PADDING, UNKNOWN, END = 0, 1, 2
TASKS = ("classify", "language")
_SPLITS = ("train", "validation", "test")
_WHOLE = 1 << 26  # bytes of a file that is hashed whole: 60 ms; of larger ones size and end
_FORMAT = 1  # of the cache; another number is another cache
_Texts = tuple[list[str], Sequence[int]]  # texts, and the class of each
_Folder = str | os.PathLike[str] | None


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """Texts on disk.

    files: all that `read` reads. read: "train", "test", and "validation" if the set has it -> texts
    and their classes, which are 0 where there are none. is_running: texts follow each other.
    reads: what else decides what is read.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], Mapping[str, _Texts]]
    class_names: tuple[str, ...] = ()
    is_running: bool = False
    reads: str = ""

    def digest(self) -> str:
        """Changes with what the files hold, and with how their classes are called."""
        whole = all(f.stat().st_size <= _WHOLE for f in self.files)
        found = hashlib.sha256()
        for file in self.files if whole else ():
            found.update(file.read_bytes())
        told = found.hexdigest() if whole else _prepared.digest(self.files)
        return f"{told} {' '.join(self.class_names)} {self.reads}"


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Texts of a split as pieces: those of text i are ids[starts[i] : starts[i + 1]], END last."""

    ids: np.ndarray
    starts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: np.ndarray) -> "_Cut":
        """Some of the texts."""
        parts = [self.ids[self.starts[r] : self.starts[r + 1]] for r in rows]
        starts = np.cumsum([0, *map(len, parts)])
        return _Cut(np.concatenate([self.ids[:0], *parts]), starts, self.labels[rows])


_TREC = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}


def trec6(
    task: str = "classify",
    length: int = 32,
    validation: int | float = 0.1,
    examples: int | None = None,
    vocabulary: int = 4000,
    pieces_of: str = "wikitext2",
    seed: int = 0,
    data_dir: _Folder = None,
    cache_dir: _Folder = None,
) -> Source:
    """5,952 English questions of 6 kinds: `trec6/train.txt` and `test.txt`.

    Args:
      task: "classify" or "language". length: pieces of an example.
      validation: texts of the training split, or a share of them, always the same ones; may be 0.
      examples: so many training texts, the first of the split's order; None for all.
      vocabulary: pieces. pieces_of: the set from whose training text they are learnt.
      seed: chooses the validation texts and the order; the run's own seed does not.
      data_dir: the folder that holds the sets' folders; else `$LRLAB_DATA_DIR`.
      cache_dir: where what was learnt and cut is kept; else `$LRLAB_CACHE_DIR`, `~/.cache/lrlab`.
    Raises:
      DataError: a set is not there, or not what it says. ValueError: a value makes no sense.
    Source:
      Li & Roth 2002.
    """
    given = _Given(task, length, validation, examples, vocabulary, pieces_of, seed, cache_dir)
    return _source(_trec6(data_dir), given, data_dir)


def sst2(
    task: str = "classify",
    length: int = 48,
    validation: int | float = 0.05,
    examples: int | None = None,
    vocabulary: int = 4000,
    pieces_of: str = "wikitext2",
    seed: int = 0,
    data_dir: _Folder = None,
    cache_dir: _Folder = None,
) -> Source:
    """Phrases of film reviews, bad or good: `sst2/train.tsv` and, to test on, `dev.tsv` (or .xz).

    The labels of GLUE's own test file are secret. Args and errors as for `trec6`.

    Source:
      Socher et al. 2013; Wang et al. 2019, arXiv:1804.07461 (GLUE).
    """
    given = _Given(task, length, validation, examples, vocabulary, pieces_of, seed, cache_dir)
    return _source(_sst2(data_dir), given, data_dir)


def wikitext2(
    length: int = 64,
    vocabulary: int = 4000,
    pieces_of: str = "wikitext2",
    examples: int | None = None,
    data_dir: _Folder = None,
    cache_dir: _Folder = None,
) -> Source:
    """Wikipedia's good articles, 2.1 million words: `wikitext2/{train,valid,test}.txt` (or .xz).

    A language task. examples: so many training windows. Rest and errors as for `trec6`.

    Source:
      Merity et al. 2016, arXiv:1609.07843.
    """
    given = _Given("language", length, 0, examples, vocabulary, pieces_of, 0, cache_dir)
    return _source(_wikitext2(data_dir), given, data_dir)


def tfds(
    dataset: str = "imdb_reviews",
    text: str | None = None,
    label: str | None = None,
    test_split: str = "test",
    task: str = "classify",
    length: int = 128,
    validation: int | float = 0.1,
    examples: int | None = None,
    vocabulary: int = 4000,
    pieces_of: str | None = None,
    seed: int = 0,
    data_dir: _Folder = None,
    cache_dir: _Folder = None,
) -> Source:
    """Texts that TensorFlow Datasets prepared: imdb_reviews, ag_news_subset, glue/sst2, any such.

    Read without TensorFlow. Preparing a set is as `lrlab.data.tfds` says.

    Args:
      dataset: name[/config][:version] of TFDS.
      text, label: the features to read; by default all texts of an example, one after another, and
        its only class label.
      test_split: the split to test on; a split "validation" is used as such if there is one.
      pieces_of: None is this set itself. Rest and errors as for `trec6`; `data_dir` as in `images`.
    """
    corpus = _tfds(dataset, text, label, test_split, data_dir)
    given = _Given(
        task, length, validation, examples, vocabulary, pieces_of or "itself", seed, cache_dir
    )
    return _source(corpus, given, None if pieces_of else data_dir)


@dataclasses.dataclass(frozen=True)
class _Given:
    """Arguments of a data function, checked."""

    task: str
    length: int
    validation: int | float
    examples: int | None
    vocabulary: int
    pieces_of: str
    seed: int
    cache_dir: _Folder

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} must be one of {TASKS}")
        for name, least in (("length", 2), ("vocabulary", 150), ("examples", 1)):
            value = getattr(self, name)
            if value is None and name == "examples":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number, {least} or more")
        if self.vocabulary > 2**15:
            raise ValueError(f"vocabulary={self.vocabulary} must be at most {2**15:,}")
        if self.pieces_of not in (*_CORPORA, "itself"):
            raise ValueError(f"pieces_of={self.pieces_of!r}: {near(str(self.pieces_of), _CORPORA)}")
        check_seed(self.seed)


def _source(corpus: _Corpus, given: _Given, data_dir: _Folder) -> Source:
    """The Source of a corpus, whose texts are cut into pieces now if they never were."""
    is_own = given.pieces_of in (corpus.name, "itself")
    teacher = corpus if is_own else _CORPORA[given.pieces_of](data_dir)
    cache = _cache.home(given.cache_dir)
    model = _model(teacher, given.vocabulary, cache)
    splits = _held_out(corpus, _cut(corpus, model, cache), given)
    is_language = given.task == "language"
    make = _windows if is_language else _padded
    sizes = [_count(splits[k], given) if is_language else len(splits[k]) for k in _SPLITS]
    classes = given.vocabulary if is_language else len(corpus.class_names)
    if sizes[0] < 1 or sizes[2] < 1:
        raise ValueError(
            f"length={given.length}: {corpus.name} has {sizes[0]} training and {sizes[2]} test "
            "windows of that length"
        )

    def read() -> Dataset:
        train, validation, test = (make(splits[k], given) for k in _SPLITS)
        names = tuple(_pieces(model)) if is_language else corpus.class_names
        one = np.ones(1, np.float32)
        return Dataset(corpus.name, train, validation, test, classes, names, 0 * one, one)

    return Source(
        corpus.name,
        (sizes[0], sizes[1], sizes[2]),
        (given.length,),
        classes,
        read,
        (f"{given.vocabulary:,} pieces of words, learnt from {teacher.name}",),
        (given.length,) if is_language else (),
        given.vocabulary,
    )


def _held_out(corpus: _Corpus, cuts: Mapping[str, _Cut], given: _Given) -> dict[str, _Cut]:
    """All three splits: validation texts taken from the training texts where the set has none."""
    train, total = cuts["train"], len(cuts["train"])
    rows = np.arange(total) if corpus.is_running else order(total, given.seed)
    own = cuts.get("validation")
    held = 0 if own else count("validation", given.validation, total, 0)
    rows, tail = rows[: total - held], rows[total - held :]
    if given.examples is not None and given.examples > len(rows):
        raise ValueError(
            f"examples={given.examples!r}: {corpus.name} has {len(rows):,} texts to train on"
        )
    return {
        "train": train.of(np.sort(rows[: given.examples])),
        "validation": own or train.of(np.sort(tail)),
        "test": cuts["test"],
    }


def _padded(cut: _Cut, given: _Given) -> Split:
    """Texts [n, length]: cut off where they are longer, padded on the right where shorter."""
    x = np.full((len(cut), given.length), PADDING, np.int32)
    for row, begin in enumerate(cut.starts[:-1]):
        ids = cut.ids[begin : min(cut.starts[row + 1], begin + given.length)]
        x[row, : len(ids)] = ids
    return Split(x, np.asarray(cut.labels, np.int32))


def _count(cut: _Cut, given: _Given) -> int:
    """Windows of a split; each needs a piece after it."""
    return max(0, len(cut.ids) - 1) // given.length


def _windows(cut: _Cut, given: _Given) -> Split:
    """All texts, one after another, in windows [n, length], and the pieces one later."""
    n, ids = _count(cut, given), np.asarray(cut.ids, np.int32)
    end = n * given.length
    shape = n, given.length
    return Split(ids[:end].reshape(shape), ids[1 : end + 1].reshape(shape))


def _model(teacher: _Corpus, vocabulary: int, cache: Path) -> Path:
    """SentencePiece's model of a corpus' training text, learnt if it never was."""
    library = _library()
    meta = {
        "of": teacher.name,
        "source": teacher.digest(),
        "vocabulary": vocabulary,
        "library": library.__version__,
        "format": _FORMAT,
    }

    def make(folder: Path) -> None:
        texts, _ = teacher.read()["train"]
        written = io.BytesIO()
        try:
            library.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type="bpe",
                vocab_size=vocabulary,
                normalization_rule_name="nmt_nfkc_cf",
                pad_id=PADDING,
                unk_id=UNKNOWN,
                eos_id=END,
                bos_id=-1,
                unk_piece="<oov>",
                user_defined_symbols=["<unk>"],  # as WikiText writes words that it left out
                required_chars="".join(map(chr, range(33, 127))),  # it has no question mark
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as e:  # too little text for so many pieces, most of all
            raise DataError(
                f"vocabulary={vocabulary}: SentencePiece cannot learn so many pieces from "
                f"{teacher.name}: {e}"
            ) from e
        (folder / "pieces.model").write_bytes(written.getvalue())

    doing = f"learning {vocabulary:,} pieces of words from {teacher.name}"
    folder = _cache.kept(cache, f"pieces-{teacher.name}-{vocabulary}", meta, make, doing)
    return folder / "pieces.model"


def _cut(corpus: _Corpus, model: Path, cache: Path) -> dict[str, _Cut]:
    """A corpus' splits as pieces, cut if they never were."""
    meta = {"of": corpus.name, "source": corpus.digest(), "model": model.parent.name}

    def make(folder: Path) -> None:
        processor = _library().SentencePieceProcessor(model_file=str(model))
        for split, (texts, labels) in corpus.read().items():
            found = processor.encode(texts, add_eos=True)
            np.save(folder / f"{split}_ids.npy", np.concatenate([*map(np.int16, found)]))
            np.save(folder / f"{split}_starts.npy", np.cumsum([0, *map(len, found)]))
            np.save(folder / f"{split}_labels.npy", np.array(labels, np.int32))

    doing = f"cutting {corpus.name} into pieces of words"
    folder = _cache.kept(cache, f"text-{corpus.name}", meta, make, doing)
    parts = "ids", "starts", "labels"
    return {
        split: _Cut(*(np.load(folder / f"{split}_{p}.npy", mmap_mode="r") for p in parts))
        for split in _SPLITS
        if (folder / f"{split}_ids.npy").exists()
    }


def _pieces(model: Path) -> list[str]:
    """The pieces, by their ids."""
    processor = _library().SentencePieceProcessor(model_file=str(model))
    return processor.id_to_piece(list(range(processor.get_piece_size())))


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise DataError('text needs SentencePiece: pip install "lrlab[text]"') from None
    return sentencepiece


def _trec6(data_dir: _Folder) -> _Corpus:
    train, test = _files("trec6", ("train.txt", "test.txt"), data_dir)

    def read() -> Mapping[str, _Texts]:
        return {"train": _questions(train), "test": _questions(test)}

    return _Corpus("trec6", (train, test), read, tuple(_TREC.values()))


def _questions(path: Path) -> _Texts:
    """Lines "KIND:detail question"."""
    texts, labels, kinds = [], [], list(_TREC)
    for number, line in enumerate(_lines(path, "latin-1"), 1):
        kind, _, rest = line.partition(":")
        _, _, question = rest.partition(" ")
        if kind not in _TREC or not question.strip():
            raise DataError(
                f"{path}, line {number}: {line[:60]!r} is no 'KIND:detail question' with KIND one "
                f"of {', '.join(kinds)}"
            )
        texts.append(question.strip())
        labels.append(kinds.index(kind))
    return texts, labels


def _sst2(data_dir: _Folder) -> _Corpus:
    train, test = _files("sst2", ("train.tsv", "dev.tsv"), data_dir)

    def read() -> Mapping[str, _Texts]:
        return {"train": _phrases(train), "test": _phrases(test)}

    return _Corpus("sst2", (train, test), read, ("negative", "positive"))


def _phrases(path: Path) -> _Texts:
    """Lines "phrase<tab>0 or 1", after a line of names."""
    texts, labels = [], []
    for number, line in enumerate(_lines(path, "utf-8"), 1):
        phrase, tab, label = line.rpartition("\t")
        if number == 1 and label == "label":
            continue
        if not tab or label not in ("0", "1"):
            raise DataError(f"{path}, line {number}: {line[:60]!r} is no 'phrase<tab>0' or '...1'")
        texts.append(phrase.strip())
        labels.append(int(label))
    return texts, labels


def _wikitext2(data_dir: _Folder) -> _Corpus:
    files = _files("wikitext2", ("train.txt", "valid.txt", "test.txt"), data_dir)

    def read() -> Mapping[str, _Texts]:
        found = {}
        for split, path in zip(_SPLITS, files, strict=True):
            texts = [stripped for line in _lines(path, "utf-8") if (stripped := line.strip())]
            found[split] = texts, [0] * len(texts)
        return found

    return _Corpus("wikitext2", files, read, is_running=True)


def _tfds(
    dataset: str, text: str | None, label: str | None, test_split: str, data_dir: _Folder
) -> _Corpus:
    folder = _prepared.folder(dataset, data_dir)
    again = "prepare it again, with `python -m lrlab.data.tfds`"
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        content = json.loads((folder / "features.json").read_text("utf-8"))
        _prepared.trust(content)
        features = content["featuresDict"]["features"]
        files = {s["name"]: _prepared.shards(folder, info["name"], s) for s in info["splits"]}
        if info.get("fileFormat") != "array_record":
            raise ValueError(f"format {info.get('fileFormat', 'tfrecord')!r}, not 'array_record'")
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{folder} is not a set that lrlab can read ({e!r}): {again}") from e
    texts = [k for k, f in features.items() if "text" in f]
    classes = [k for k, f in features.items() if "classLabel" in f]
    for name, told, known in (("text", text, texts), ("label", label, classes)):
        if told is not None and told not in known:
            raise ValueError(f"{name}={told!r}: {dataset} has no such feature; {near(told, known)}")
    if not texts or (label is None and len(classes) != 1):
        raise DataError(
            f"{dataset} needs texts and one class label, has features {', '.join(features)} "
            f"(texts: {', '.join(texts) or 'none'}; class labels: {', '.join(classes) or 'none'}); "
            "set data.label"
        )
    if test_split not in files or "train" not in files or test_split == "train":
        raise ValueError(
            f"test_split={test_split!r}: {dataset} has the splits {', '.join(files)}; 'train' is "
            "for training"
        )
    wanted, chosen = [text] if text else texts, label or classes[0]
    splits = {"train": "train", "test": test_split}
    if "validation" in files and test_split != "validation":
        splits["validation"] = "validation"
    names = (folder / f"{chosen}.labels.txt").read_text("utf-8").split("\n")
    count_ = int(features[chosen]["classLabel"]["numClasses"])

    def read() -> Mapping[str, _Texts]:
        return {ours: _examples(folder, theirs, wanted, chosen) for ours, theirs in splits.items()}

    return _Corpus(
        f"{info['name']}:{info['version']}",
        tuple(f for split in splits.values() for f in files[split]),
        read,
        tuple(names[:count_]),
        reads=f"{wanted} {chosen} {splits}",
    )


def _examples(folder: Path, split: str, texts: Sequence[str], label: str) -> _Texts:
    """All examples of a split."""
    with warnings.catch_warnings():  # what its dependencies deprecate is not the user's matter
        warnings.simplefilter("ignore")
        import tensorflow_datasets as source

        builder: Any = source.builder_from_directory(folder)
        records = builder.as_data_source(split)
    found, labels = [], []
    for row in range(len(records)):
        try:
            record = records[row]
            found.append(" ".join(record[key].decode("utf-8") for key in texts))
            labels.append(int(record[label]))
        except Exception as e:  # array_record and protobuf raise anything
            reason = str(e).partition("\n")[0][:300]
            raise DataError(
                f"{folder}: record {row:,} of split {split!r} cannot be read: {reason}; copy the "
                "folder again, or delete it and prepare the set again"
            ) from e
    return found, labels


def _lines(path: Path, encoding: str) -> list[str]:
    """Lines of a file, which may be packed by xz."""
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode(encoding)
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read ({e}): copy it again") from e
    return text.removesuffix("\n").split("\n")


def _files(name: str, wanted: Sequence[str], data_dir: _Folder) -> tuple[Path, ...]:
    """Where the files of a set are, packed or not."""
    root = os.environ.get("LRLAB_DATA_DIR") if data_dir is None else data_dir
    if root is None:
        raise DataError(
            f"{name} is looked for in LRLAB_DATA_DIR/{name}, and LRLAB_DATA_DIR is not set; or set "
            "data.data_dir"
        )
    found, folder = [], Path(root).expanduser() / name
    for file in wanted:
        there = [p for p in (folder / file, folder / f"{file}.xz") if p.is_file()]
        if not there:
            raise DataError(f"{name} is not here: {folder} has no {file} (or {file}.xz)")
        found.append(there[0])
    return tuple(found)


_CORPORA = {"trec6": _trec6, "sst2": _sst2, "wikitext2": _wikitext2}
