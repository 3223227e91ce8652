"""Image sets that TensorFlow Datasets prepared, decoded once into arrays that open at once.

A prepared set is read once, without TensorFlow: its pixels go into memory-mapped files in a cache,
and from then on neither a record nor TensorFlow Datasets itself is touched, whose import takes
longer than everything else at start-up. The training split is cached in one fixed shuffled order,
so that any validation split is its tail and nothing is ever copied.

    python -m lrlab.data.tfds --dataset=mnist

prepares a set; this alone needs TensorFlow and a network (or the original files).
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrlab.data import DataError, Dataset, Source, Split, _cache, _prepared
from lrlab.data._checks import check
from lrlab.data._splits import count, order, standard
from lrlab.values import near, whole

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BATCH = 512  # records between two looks at the clock
_ORDER_SEED = 0  # of the training split in the cache
_FORMAT = 1  # of the cache; another number is another cache

_Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """An image set on disk, as far as it is known without reading a record.

    sizes: examples of each split. files: what holds each split.
    batches: a split's name -> batches of (images [b, H, W, C], labels [b]), in stored order.
    """

    name: str
    sizes: Mapping[str, int]
    files: Mapping[str, tuple[Path, ...]]
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    batches: Callable[[str], _Batches]
    notes: tuple[str, ...] = ()


def images(
    dataset: str = "mnist",
    validation: int | float = 5000,
    test_split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    examples: int | None = None,
    draw: int = 0,
) -> Source:
    """Images of one size with one label each: MNIST, Fashion-MNIST, CIFAR-10, any such TFDS set.

    x is uint8 [H, W, C]; `shift` and `scale` standardise each channel.

    Args:
      dataset: name[/config][:version] of TFDS; the newest version that is prepared, if not said.
      validation: examples, 0 too, or a share, of the training split, always the same ones; a set
        with a "validation" split of its own uses that one, whole.
      test_split: the set's name of the test split; where "test" is absent, "validation" is used.
      data_dir: where prepared sets are; else `$LRLAB_DATA_DIR/tfds`, `$LRLAB_DATA_DIR`, and the
        folder that TFDS uses. CIFAR-10 may also be sheets of tiles, `cifar10/*.webp`.
      cache_dir: where decoded sets are kept; else `$LRLAB_CACHE_DIR` or `~/.cache/lrlab/data`.
      examples: of the training split, so many, the first of its fixed order; None is all of them.
        Validation stays what it is without this.
      draw: which of them: 1 takes as many that come next, and so on; no two draws share any.
    Raises:
      DataError: the set is not prepared here, or not what it says.
      ValueError: a value makes no sense.
    """
    _prepared.parsed(dataset)
    stored = _find(dataset, data_dir)
    testing, notes = _test_split(stored, test_split)
    own = "validation" if "validation" in stored.sizes and testing != "validation" else None
    total = stored.sizes["train"]
    if own:
        held = stored.sizes[own]
        notes += (f"validation: the {held:,} examples that the set has for it",)
    else:
        held = count("validation", validation, total, 0)
    kept = _drawn(examples, draw, total if own else total - held)
    if examples is not None:
        notes += (f"training examples: draw {draw}, {examples:,} a draw",)
    sizes = kept.stop - kept.start, held, stored.sizes[testing]
    cache = _cache.home(cache_dir)

    def read() -> Dataset:
        x, y, moments = _cached(stored, "train", cache)
        train = Split(x[kept], y[kept])
        tail = Split(x[total - held :], y[total - held :])
        sums, squares = moments[kept].sum(axis=0)
        height, width, channels = stored.shape
        shift, scale = standard(sizes[0] * height * width, sums, squares)
        return Dataset(
            stored.name,
            train=train,
            validation=Split(*_cached(stored, own, cache)[:2]) if own else tail,
            test=Split(*_cached(stored, testing, cache)[:2]),
            num_classes=len(stored.class_names),
            class_names=stored.class_names,
            shift=shift.reshape(1, 1, channels),
            scale=scale.reshape(1, 1, channels),
        )

    return Source(
        stored.name, sizes, stored.shape, len(stored.class_names), read, stored.notes + notes
    )


def _drawn(examples: int | None, draw: int, total: int) -> slice:
    """The training examples that are meant, of `total` that validation leaves."""
    if examples is not None and whole("examples", examples, 1, total):
        raise ValueError(
            f"examples={examples!r} must be a whole number, 1 to {total:,}, what validation leaves "
            "of the training split; or None, all of them"
        )
    draws = total // int(examples) if examples is not None else 1
    if whole("draw", draw, 0, draws - 1):
        each = "without examples" if examples is None else f"of {examples:,} examples"
        raise ValueError(
            f"draw={draw!r} must be a whole number, 0 to {draws - 1:,}: {each} there is no other"
        )
    each = total if examples is None else int(examples)
    return slice(int(draw) * each, (int(draw) + 1) * each)


def _test_split(stored: _Stored, wanted: str) -> tuple[str, tuple[str, ...]]:
    """The split to test on, and a note if it is not the one that was asked for."""
    known = [k for k in stored.sizes if k != "train"]
    if "train" not in stored.sizes:
        raise DataError(f"{stored.name} has no split 'train', only {', '.join(known) or 'nothing'}")
    if wanted in known:
        return wanted, ()
    if wanted == "test" and "validation" in known:
        return "validation", ("test: the set's validation split, it has no test split",)
    raise ValueError(
        f"test_split={wanted!r} is not for testing in {stored.name}; {near(str(wanted), known)}"
    )


def _find(dataset: str, data_dir: str | os.PathLike[str] | None) -> _Stored:
    name, config, version = _prepared.parsed(dataset).groups()
    for root in _prepared.roots(data_dir):
        if folder := _prepared.newest(root / name, config, version):
            return _stored(folder)
        sheets = root / name
        if (name, config, version) == ("cifar10", None, None) and (sheets / "labels.npz").is_file():
            return _sheets(sheets)
    raise _prepared.absent(dataset, data_dir)


def _stored(folder: Path) -> _Stored:
    """What a prepared folder says of itself; raises DataError if lrlab cannot read it."""
    again = "prepare it again, with `python -m lrlab.data.tfds`"
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        form = info.get("fileFormat", "tfrecord")
        if form != "array_record":
            raise DataError(f"{folder} is in format {form!r}, not 'array_record': {again}")
        content = json.loads((folder / "features.json").read_text("utf-8"))
        _prepared.trust(content)
        features = content["featuresDict"]["features"]
        image, label = _keys(info, features)
        shape = tuple(int(d) for d in features[image]["image"]["shape"]["dimensions"])
        dtype = features[image]["image"]["dtype"]
        classes = int(features[label]["classLabel"]["numClasses"])
        sizes = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
        files = {s["name"]: _prepared.shards(folder, info["name"], s) for s in info["splits"]}
        name = "/".join([info["name"], *filter(None, [info.get("configName")])])
        name = f"{name}:{info['version']}"
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{folder} is not a set of TFDS >= 4.4 ({e!r}): {again}") from e
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in _MODES or dtype != "uint8":
        raise DataError(
            f"{name}: images are {dtype} {['?' if d < 0 else d for d in shape]}; these need uint8, "
            "one size, and 1, 3 or 4 channels: make a resized set first"
        )
    for split, n in sizes.items():
        if n < 1:
            raise DataError(f"{name}: split {split!r} is empty in {folder}: {again}")
        for path in files[split]:
            if not path.is_file():
                raise DataError(f"{name}: {path} is missing: copy it again, or {again}")
    names = tuple(map(str, range(classes)))
    written = folder / f"{label}.labels.txt"
    if written.is_file():
        names = tuple(written.read_text("utf-8").split("\n")[:classes])
        if len(names) != classes:
            raise DataError(f"{written} names {len(names)} classes, features.json has {classes}")

    lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}

    def batches(split: str) -> _Batches:
        shards = list(zip(files[split], itertools.accumulate(lengths[split]), strict=True))
        return _records(folder, name, split, shards, shape, image, label)

    return _Stored(name, sizes, files, shape, names, batches)


def _keys(info: dict[str, Any], features: dict[str, Any]) -> tuple[str, str]:
    """Names of the image and the label: the pair for supervised learning, or the only ones."""
    items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    pair = tuple(item.get("featureKey") for item in items)
    images = [k for k, f in features.items() if "image" in f]
    labels = [k for k, f in features.items() if "classLabel" in f]
    if len(pair) == 2 and pair[0] in images and pair[1] in labels:
        return pair
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise DataError(
        f"{info['name']}: needs one image and one class label, has features {', '.join(features)} "
        f"(images: {', '.join(images) or 'none'}; class labels: {', '.join(labels) or 'none'})"
    )


def _records(
    folder: Path,
    name: str,
    split: str,
    shards: list[tuple[Path, int]],
    shape: tuple[int, ...],
    image: str,
    label: str,
) -> _Batches:
    """Batches of a split; `shards`: each file, and the number of the first record after it."""
    with warnings.catch_warnings():  # what its dependencies deprecate is not the user's matter
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds

        # Pixels are decoded here: TFDS asks after OpenCV and logs at every image, twice the time.
        skip = {image: tfds.decode.SkipDecoding()}
        builder: Any = tfds.builder_from_directory(folder)
        source = builder.as_data_source(split, decoders=skip)
    n = shards[-1][1]
    for start in range(0, n, _BATCH):
        rows = range(start, min(start + _BATCH, n))
        try:
            records = source.__getitems__(list(rows))
        except Exception:  # array_record and protobuf raise anything
            records = (source[row] for row in rows)  # once more, to find out which one it is
        x, y = np.empty((len(rows), *shape), np.uint8), np.empty(len(rows), np.int64)
        records = iter(records)
        for i, row in enumerate(rows):
            try:
                record = next(records)
                # What lies behind the end of a file that was cut off comes as a record of nothing.
                if record.get(image) is None or record.get(label) is None:
                    raise ValueError("it is empty")
                x[i], y[i] = _decoded(record[image], shape), record[label]
            except Exception as e:  # so does Pillow, for bytes that are no image
                reason = str(e).partition("\n")[0][:300]
                raise DataError(
                    f"{name}: record {row:,} of split {split!r} cannot be read: {reason}. "
                    f"Copy {next(p for p, end in shards if row < end)} again, or delete its folder "
                    "and prepare the set again."
                ) from e
        yield x, y


def _decoded(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    height, width, channels = shape
    try:
        opened = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "BMP"))
    except UnidentifiedImageError:
        raise ValueError(f"{len(encoded):,} bytes that are no PNG, JPEG or BMP") from None
    with opened:
        if opened.size != (width, height):  # before pixels exist: a bomb stays small
            found = [*reversed(opened.size)]
            raise ValueError(f"has size {found}, features.json says {[height, width]}")
        mode = _MODES[channels]
        return np.asarray(opened if opened.mode == mode else opened.convert(mode)).reshape(shape)


def _sheets(folder: Path) -> _Stored:
    """CIFAR-10 as WebP sheets of 100 x 100 tiles, for places that have no other copy."""
    tiles, shape = 100, (32, 32, 3)
    sheets = {"train": tuple(folder / f"train_{i}.webp" for i in range(5))}
    sheets["test"] = (folder / "test.webp",)
    try:
        with np.load(folder / "labels.npz", allow_pickle=False) as table:
            labels = {split: table[split].astype(np.int64) for split in sheets}
            names = tuple(map(str, table["names"]))
            copies = sum(len(table[k]) for k in ("jpeg_train", "jpeg_test") if k in table)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise DataError(f"{folder / 'labels.npz'} cannot be read ({e}): copy it again") from e
    sizes = {split: len(y) for split, y in labels.items()}
    for split, paths in sheets.items():
        if sizes[split] != tiles**2 * len(paths):
            raise DataError(f"{folder}: {sizes[split]:,} labels for {len(paths)} sheets ({split})")
        if missing := [p for p in paths if not p.is_file()]:
            raise DataError(f"{missing[0]} is missing: copy the sheets again")

    def batches(split: str) -> _Batches:
        from PIL import Image

        for i, path in enumerate(sheets[split]):
            try:
                with Image.open(path, formats=("WEBP",)) as sheet:
                    if sheet.size != (tiles * shape[1], tiles * shape[0]):
                        raise ValueError(f"has size {sheet.size}")
                    pixels = np.asarray(sheet.convert("RGB"))
            except Exception as e:  # Pillow raises anything for bytes that are no image
                raise DataError(f"{path} is not a sheet of CIFAR-10: {e}; copy it again") from e
            x = pixels.reshape(tiles, shape[0], tiles, *shape[1:]).swapaxes(1, 2)
            y = labels[split][i * tiles**2 : (i + 1) * tiles**2]
            yield from zip(x, y.reshape(tiles, tiles), strict=True)  # a row of tiles each

    total = sum(sizes.values())
    note = f"{total - copies:,} of {total:,} images exact, {copies} decoded from JPEG"
    files = {split: (folder / "labels.npz", *paths) for split, paths in sheets.items()}
    return _Stored("cifar10", sizes, files, shape, names, batches, (note,) if copies else ())


def _cached(stored: _Stored, split: str, cache: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, moments) of a split; moments int64 [n, 2, C]: sum and sum of squares of each image.

    The cache has a folder a split, which is complete as soon as it has its name.
    """
    meta = {
        "dataset": stored.name,
        "split": split,
        "shape": [stored.sizes[split], *stored.shape],
        "class_names": list(stored.class_names),
        "order_seed": _ORDER_SEED if split == "train" else None,
        "source": _prepared.digest(stored.files[split]),
        "format": _FORMAT,
    }
    key = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / re.sub(r"[^\w.\-]", "-", f"{stored.name}-{split}-{key}")
    if (arrays := _opened(folder, meta)) is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _cache.alone(cache / f".{folder.name}.lock", f"decoding {stored.name} {split}"):
                if _opened(folder, meta) is None:
                    _decode(stored, split, folder, meta)
        except OSError as e:
            raise DataError(
                f"cannot write decoded images to {cache} ({e}): set LRLAB_CACHE_DIR or "
                "data.cache_dir to a folder of yours with space"
            ) from e
        arrays = _opened(folder, meta)
        assert arrays is not None, f"{folder} was just written"
    return arrays


def _opened(folder: Path, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The arrays of a complete folder; None if it is absent or damaged."""
    n, *_, channels = meta["shape"]
    wanted = {
        "x": (np.uint8, tuple(meta["shape"])),
        "y": (np.int32, (n,)),
        "moments": (np.int64, (n, 2, channels)),
    }
    try:
        if json.loads((folder / "meta.json").read_text("utf-8")) != meta:
            return None
        x, y, moments = (
            np.load(folder / f"{k}.npy", mmap_mode="r", allow_pickle=False) for k in wanted
        )
    except (OSError, ValueError, EOFError):
        return None
    if [(a.dtype, a.shape) for a in (x, y, moments)] != [*wanted.values()]:
        return None
    return x, y, moments


def _decode(stored: _Stored, split: str, folder: Path, meta: dict[str, Any]) -> None:
    """Writes a split's folder under another name and renames it; needs the lock."""
    for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of a decode that was killed
        shutil.rmtree(left)
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or absent
    n, *_, channels = meta["shape"]
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    place = np.arange(n)
    if split == "train":
        place[order(n, _ORDER_SEED)] = np.arange(n)
    try:
        x, y, moments = (
            np.lib.format.open_memmap(partial / f"{k}.npy", mode="w+", dtype=dtype, shape=shape)
            for k, dtype, shape in (
                ("x", np.uint8, tuple(meta["shape"])),
                ("y", np.int32, (n,)),
                ("moments", np.int64, (n, 2, channels)),
            )
        )
        done = 0
        with _told(f"decoding {stored.name} {split}, once, into {folder.parent}", n) as tell:
            for pixels, labels in stored.batches(split):
                classes = len(stored.class_names)
                check(f"{stored.name}, split {split!r}", pixels, labels, classes, done)
                rows = place[done : done + len(labels)]
                wide = pixels.reshape(len(labels), -1, channels).astype(np.int64)
                x[rows], y[rows] = pixels, labels
                moments[rows, 0], moments[rows, 1] = wide.sum(1), np.square(wide).sum(1)
                done += len(labels)
                tell(done)
        assert done == n, (done, n)
        for array in (x, y, moments):
            array.flush()
        (partial / "meta.json").write_text(json.dumps(meta, indent=1), "utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _told(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """One line on stderr; in a terminal it counts, elsewhere it is written once, before."""
    counts, started = sys.stderr.isatty(), time.monotonic()

    def tell(done: int) -> None:
        if counts:
            line = f"\rlrlab: {doing}: {done:,} of {total:,}"
            print(line, end="", file=sys.stderr, flush=True)

    print(f"lrlab: {doing}: {total:,} images", end="", file=sys.stderr, flush=True)
    try:
        yield tell
        print(f", {time.monotonic() - started:.1f} s", end="", file=sys.stderr)
    finally:
        print(file=sys.stderr, flush=True)


def _prepare(dataset: str, data_dir: str | None, manual_dir: str | None) -> str:
    """Has TFDS download and prepare a set; returns where it is."""
    match = _prepared.NAME.fullmatch(dataset)
    if match is None:
        raise DataError(f"--dataset={dataset!r} must be a name of TFDS: name[/config][:version]")
    ours = os.environ.get("LRLAB_DATA_DIR")
    root = Path(data_dir or (ours and f"{ours}/tfds") or _prepared.home()).expanduser()
    if folder := _prepared.newest(root / match[1], match[2], match[3]):
        return f"{dataset} is already prepared: {folder}"
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            'preparing a set needs TensorFlow, reading it does not: pip install "lrlab[prepare]"'
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            dataset, data_dir=root, try_gcs=False, file_format=tfds.core.FileFormat.ARRAY_RECORD
        )
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        close = near(match[1], known).partition("known: ")[0]
        raise DataError(
            f"TFDS has no set {match[1]!r}; {close}all: tensorflow.org/datasets/catalog"
        ) from None
    if manual_dir is None:
        _reach(builder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _cache.alone(root / f".{match[1]}.lock", f"preparing {dataset}"):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, try_download_gcs=False
                )
            )
    except Exception as e:  # of the disk, the network, a checksum, the set's own code
        raise DataError(
            f"TFDS could not prepare {dataset} in {root}: {type(e).__name__}: {e}\nIs that folder "
            "writable (--data_dir), are the original files whole (--manual_dir)?"
        ) from e
    return f"prepared {dataset}: {builder.data_path}"


def _reach(builder: Any) -> None:
    """Fails at once without network, where TFDS would try again for minutes."""
    import requests

    files = list(builder.url_infos or ())
    for url in files[:1]:
        try:
            requests.head(url, timeout=10, allow_redirects=True)
        except requests.RequestException as e:
            originals = "\n  ".join(files)
            raise DataError(
                f"no network: cannot reach {url} ({type(e).__name__}). Put the original files into "
                f"a folder and add --manual_dir=FOLDER:\n  {originals}"
            ) from e


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lrlab.data.tfds", description="Prepares an image set of TFDS for lrlab."
    )
    parser.add_argument("--dataset", required=True, help="name[/config][:version], such as mnist")
    parser.add_argument("--data_dir", help="else $LRLAB_DATA_DIR/tfds, else the folder of TFDS")
    parser.add_argument("--manual_dir", help="folder with the original files: no network needed")
    given = parser.parse_args()
    try:
        print(_prepare(given.dataset, given.data_dir, given.manual_dir))
    except DataError as e:
        raise SystemExit(f"lrlab: {e}") from e


if __name__ == "__main__":
    _main()
