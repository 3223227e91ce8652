"""Tables: Forest Covertype."""

import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from lrlab.data import DataError, Dataset, Source, Split
from lrlab.data._checks import check
from lrlab.data._splits import check_seed, split_sizes, standard, stratified

_ROWS, _NUMERIC, _WILDERNESS, _SOIL, _CLASSES = 581_012, 10, 4, 40, 7
_FEATURES = _NUMERIC + _WILDERNESS + _SOIL
_NAMES = (
    "Spruce/Fir",
    "Lodgepole Pine",
    "Ponderosa Pine",
    "Cottonwood/Willow",
    "Aspen",
    "Douglas-fir",
    "Krummholz",
)
_MEMBERS = {"numeric": (_NUMERIC,), "wilderness": (), "soil": (), "label": ()}


@dataclasses.dataclass(frozen=True)
class _Table:
    """A copy of Covertype that is at hand: x float32 [rows, 54], y int32 [rows] when loaded."""

    rows: int
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    notes: tuple[str, ...] = ()


def covertype(
    validation: int | float = 0.1,
    test: int | float = 0.25,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    seed: int = 0,
) -> Source:
    """Forest Covertype: 10 measurements, 4 wilderness areas, 40 soil types; 7 kinds of forest.

    x is float32 [54]; `shift` and `scale` standardise the measurements, the one-hot columns stay
    0 and 1. Looks in `data_dir/covtype/*.npz`; without `data_dir`, in scikit-learn's own folder
    (all rows), then in `$LRLAB_DATA_DIR/covtype/*.npz`.

    Args:
      validation, test: examples, or a share of the rows; every class in its share. validation may
        be 0.
      data_dir: folder that holds `covtype/`.
      download: lets scikit-learn fetch the 581,012 rows (11 MB) when the run starts.
      seed: chooses the split; the run's own seed does not.
    Raises:
      DataError: the set is nowhere, or not what it says.
      ValueError: a value makes no sense.
    Source:
      Blackard & Dean 1999; UCI, copyright Jock A. Blackard and Colorado State University.
    """
    check_seed(seed)
    if not isinstance(download, bool):
        raise ValueError(f"download={download!r} must be True or False")
    table = _find(data_dir, download)
    sizes = split_sizes(table.rows, validation, test)

    def read() -> Dataset:
        x, y = table.load()
        check("covertype, label - 1", x, y, _CLASSES)
        train, *others = stratified(y, sizes, seed)
        shift, scale = np.zeros(_FEATURES, np.float32), np.ones(_FEATURES, np.float32)
        numeric = x[train, :_NUMERIC].astype(np.int64)
        if not np.array_equal(numeric, x[train, :_NUMERIC]):
            raise DataError("covertype: its measurements are whole numbers, these are not")
        sums, squares = numeric.sum(axis=0), np.square(numeric).sum(axis=0)
        shift[:_NUMERIC], scale[:_NUMERIC] = standard(len(train), sums, squares)
        return Dataset(
            "covertype",
            *(Split(x[rows], y[rows]) for rows in (train, *others)),
            num_classes=_CLASSES,
            class_names=_NAMES,
            shift=shift,
            scale=scale,
        )

    return Source("covertype", sizes, (_FEATURES,), _CLASSES, read, table.notes)


def _find(data_dir: str | os.PathLike[str] | None, download: bool) -> _Table:
    """The most complete copy at hand, without reading a row of it."""
    home = Path(os.environ.get("SCIKIT_LEARN_DATA") or "~/scikit_learn_data").expanduser()
    folder = os.environ.get("LRLAB_DATA_DIR") if data_dir is None else data_dir
    looked = []
    if data_dir is None:
        # Its cache is a pickle, so only the user's own folder is trusted, never a data_dir.
        if all((home / "covertype" / f"{part}_py3").is_file() for part in ("samples", "targets")):
            return _Table(_ROWS, lambda: _from_sklearn(download=False))
        looked.append(str(home / "covertype"))
    if folder and not download:
        places = Path(folder).expanduser() / "covtype"
        files = sorted(places.glob("*.npz"))
        if len(files) > 1:
            names = ", ".join(f.name for f in files)
            raise DataError(f"{places} holds {len(files)} tables ({names}): which one? Leave one")
        if files:
            rows = _rows(files[0])
            notes = () if rows == _ROWS else (f"{rows:,} of {_ROWS:,} rows",)
            return _Table(rows, lambda: _from_npz(files[0]), notes)
        looked.append(str(places / "*.npz"))
    if download and data_dir is None:
        return _Table(_ROWS, lambda: _from_sklearn(download=True))
    if download:
        raise ValueError(
            f"download=True puts the set into scikit-learn's own folder ({home}), "
            f"not into data_dir={str(data_dir)!r}: give one of the two"
        )
    raise DataError(
        f"Covertype is not here; looked in {' and '.join(looked)}. Either data.download=True "
        "(11 MB by scikit-learn, once, about a minute; needs network), or put an .npz of "
        f"{', '.join(_MEMBERS)} into FOLDER/covtype and set LRLAB_DATA_DIR=FOLDER."
    )


def _from_sklearn(download: bool) -> tuple[np.ndarray, np.ndarray]:
    import socket

    from sklearn.datasets import fetch_covtype

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # scikit-learn sets none: a silent network would hang for good
    try:
        x, y = fetch_covtype(download_if_missing=download, n_retries=1, return_X_y=True)
    except Exception as e:  # a damaged pickle raises anything
        raise DataError(
            f"scikit-learn could not give Covertype ({type(e).__name__}: {e}). Without network, "
            "put an .npz into FOLDER/covtype and set LRLAB_DATA_DIR=FOLDER; a damaged copy in "
            "scikit-learn's folder `covertype` must be deleted first."
        ) from e
    finally:
        socket.setdefaulttimeout(patience)
    if x.shape != (_ROWS, _FEATURES) or y.shape != (_ROWS,):
        raise DataError(
            f"scikit-learn's Covertype has shapes {x.shape} and {y.shape}, not {_ROWS:,} rows of "
            f"{_FEATURES}: delete its folder `covertype` and fetch again"
        )
    return x.astype(np.float32), (y - 1).astype(np.int32)


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as table:
            columns = {k: table[k] for k in _MEMBERS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} cannot be read ({e}): copy it again") from e
    x = np.zeros((len(columns["label"]), _FEATURES), np.float32)
    x[:, :_NUMERIC] = columns["numeric"]
    rows, start = np.arange(len(x)), _NUMERIC
    for key, kinds in (("wilderness", _WILDERNESS), ("soil", _SOIL)):
        kind = columns[key].astype(np.int64)
        check(f"{path}, {key} - 1", x[:0], kind - 1, kinds)
        x[rows, start + kind - 1] = 1
        start += kinds
    return x, columns["label"].astype(np.int32) - 1


def _rows(path: Path) -> int:
    """Rows that the table's headers promise and its sizes confirm; reads no column."""
    rows = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for key, rest in _MEMBERS.items():
                member = archive.getinfo(f"{key}.npy")
                with archive.open(member) as file:
                    shape, _, dtype = _header(file)
                    size = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
                kinds = "iuf" if rest else "iu"
                if dtype.kind not in kinds or shape[1:] != rest or member.file_size != size:
                    raise ValueError(
                        f"{key} is {dtype} {list(shape)} in {member.file_size:,} bytes"
                    )
                rows.add(shape[0])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as e:
        raise DataError(
            f"{path} is no table of Covertype: {e}; it needs numbers numeric [n, {_NUMERIC}], "
            "wilderness [n], soil [n], label [n]"
        ) from e
    if len(rows) > 1 or not 0 < min(rows) <= _ROWS:
        raise DataError(
            f"{path}: columns of {sorted(rows)} rows; all need the same, 1 to {_ROWS:,}"
        )
    return rows.pop()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"a column in .npy format {version}; np.savez writes (1, 0)")
    return np.lib.format.read_array_header_1_0(file)
