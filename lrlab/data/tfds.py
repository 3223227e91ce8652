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
import fcntl
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

from lrlab.data import DataError, Dataset, Source, Split
from lrlab.data._checks import check
from lrlab.data._splits import count, order, standard
from lrlab.values import near

_NAME = re.compile(r"([a-z]\w*)(?:/(\w[\w.\-]*))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
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
    Raises:
      DataError: the set is not prepared here, or not what it says.
      ValueError: a value makes no sense.
    """
    match = _NAME.fullmatch(dataset) if isinstance(dataset, str) else None
    if match is None:
        raise ValueError(
            f"dataset={dataset!r} must be a name of TFDS, name[/config][:version], "
            "such as 'mnist' or 'mnist:3.0.1'; where the sets are is data_dir"
        )
    stored = _find(dataset, match, data_dir)
    testing, notes = _test_split(stored, test_split)
    own = "validation" if "validation" in stored.sizes and testing != "validation" else None
    total = stored.sizes["train"]
    if own:
        held = stored.sizes[own]
        notes += (f"validation: the {held:,} examples that the set has for it",)
    else:
        held = count("validation", validation, total, 0)
    sizes = (total if own else total - held), held, stored.sizes[testing]
    cache = Path(
        cache_dir or os.environ.get("LRLAB_CACHE_DIR") or "~/.cache/lrlab/data"
    ).expanduser()

    def read() -> Dataset:
        x, y, moments = _cached(stored, "train", cache)
        train = Split(x[: sizes[0]], y[: sizes[0]])
        tail = Split(x[sizes[0] :], y[sizes[0] :])
        sums, squares = moments[: sizes[0]].sum(axis=0)
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


def _find(dataset: str, match: re.Match[str], data_dir: str | os.PathLike[str] | None) -> _Stored:
    name, config, version = match.groups()
    if data_dir is not None:
        roots = [Path(data_dir).expanduser(), Path(data_dir).expanduser() / "tfds"]
    else:
        ours = os.environ.get("LRLAB_DATA_DIR")
        roots = [Path(ours).expanduser() / "tfds", Path(ours).expanduser()] if ours else []
        roots.append(_tfds_home())
    for root in roots:
        if folder := _prepared(root / name, config, version):
            return _stored(folder)
        sheets = root / name
        if (name, config, version) == ("cifar10", None, None) and (sheets / "labels.npz").is_file():
            return _sheets(sheets)
    here = sorted({p.parts[-3] for r in roots for p in r.glob("[a-z]*/*.*.*/dataset_info.json")})
    hint = f" Of the prepared sets, {near(name, here)}." if here else ""
    where = f" --data_dir={data_dir}" if data_dir is not None else ""
    raise DataError(
        f"data set {dataset!r} is not prepared; looked for {name}/ in "
        f"{', '.join(map(str, roots))}.{hint} Prepare it, once (network; MNIST takes 40 s):\n"
        f'  pip install "lrlab[prepare]"\n'
        f"  python -m lrlab.data.tfds --dataset={dataset}{where}\n"
        "Without network: prepare it on another machine, copy the folder, and set LRLAB_DATA_DIR "
        "(or data.data_dir) to it; or add --manual_dir=FOLDER with the original files."
    )


def _tfds_home() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _prepared(base: Path, config: str | None, version: str | None) -> Path | None:
    """The folder of the newest (or the given) version; None where there is none."""
    if config is None:
        if found := _versions(base, version):
            return found[-1]
        configs = [p for p in sorted(base.glob("*/")) if _versions(p, version)]
        if len(configs) > 1:
            names = ", ".join(repr(f"{base.name}/{p.name}") for p in configs)
            raise ValueError(f"dataset={base.name!r} is prepared in several ways, choose: {names}")
        found = _versions(configs[0], version) if configs else []
    else:
        found = _versions(base / config, version)
    return found[-1] if found else None


def _versions(folder: Path, version: str | None) -> list[Path]:
    found = [
        p.parent
        for p in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name) and version in (None, p.parent.name)
    ]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def _stored(folder: Path) -> _Stored:
    """What a prepared folder says of itself; raises DataError if lrlab cannot read it."""
    again = "prepare it again, with `python -m lrlab.data.tfds`"
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        form = info.get("fileFormat", "tfrecord")
        if form != "array_record":
            raise DataError(f"{folder} is in format {form!r}, not 'array_record': {again}")
        content = json.loads((folder / "features.json").read_text("utf-8"))
        _trust(content)
        features = content["featuresDict"]["features"]
        image, label = _keys(info, features)
        shape = tuple(int(d) for d in features[image]["image"]["shape"]["dimensions"])
        dtype = features[image]["image"]["dtype"]
        classes = int(features[label]["classLabel"]["numClasses"])
        sizes = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
        files = {s["name"]: _shards(folder, info["name"], s) for s in info["splits"]}
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


def _trust(value: Any) -> None:
    """Refuses a features.json that would make TFDS import another's module."""
    if isinstance(value, dict):
        name = str(value.get("pythonClassName", "tensorflow_datasets."))
        if not name.startswith("tensorflow_datasets."):
            raise DataError(f"features.json names the class {name!r}, outside TFDS: not imported")
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)):
            _trust(part)


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


def _shards(folder: Path, name: str, split: dict[str, Any]) -> tuple[Path, ...]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    fixed = {"{DATASET}": name, "{SPLIT}": split["name"], "{FILEFORMAT}": "array_record"}
    for key, value in fixed.items():
        template = template.replace(key, value)
    count = len(split["shardLengths"])
    names = [template.replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{count:05d}") for i in range(count)]
    if any("/" in n or "{" in n for n in names):
        raise ValueError(f"file name {names[0]!r}")
    return tuple(folder / n for n in names)


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
        "source": _digest(stored.files[split]),
        "format": _FORMAT,
    }
    key = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / re.sub(r"[^\w.\-]", "-", f"{stored.name}-{split}-{key}")
    if (arrays := _opened(folder, meta)) is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache / f".{folder.name}.lock", f"decoding {stored.name} {split}"):
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


def _digest(files: tuple[Path, ...]) -> str:
    """Changes with the files' names, sizes or ends, where an array_record has its index."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2**17))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()


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
def _alone(path: Path, doing: str) -> Iterator[None]:
    """Holds a lock that dies with its process."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"lrlab: another process is {doing}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    match = _NAME.fullmatch(dataset)
    if match is None:
        raise DataError(f"--dataset={dataset!r} must be a name of TFDS: name[/config][:version]")
    ours = os.environ.get("LRLAB_DATA_DIR")
    root = Path(data_dir or (ours and f"{ours}/tfds") or _tfds_home()).expanduser()
    if folder := _prepared(root / match[1], match[2], match[3]):
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
        with _alone(root / f".{match[1]}.lock", f"preparing {dataset}"):
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
