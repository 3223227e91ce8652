"""What a frozen part of a network makes of a data set, computed once and kept in a file."""

from pathlib import Path

import numpy as np

from lrlab.data import DataError, Dataset, Source, Split

SPLITS = "train", "validation", "test"


def save(path: Path, data: Dataset, features: dict[str, np.ndarray]) -> None:
    """Writes the features, float32 [n, d], of each split beside its labels."""
    arrays = {f"{split}_x": features[split] for split in SPLITS}
    arrays |= {f"{split}_y": getattr(data, split).y for split in SPLITS}
    names = np.array([data.name, *data.class_names])
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}")
    with half.open("wb") as f:
        np.savez(f, allow_pickle=False, names=names, classes=data.num_classes, **arrays)
    half.replace(path)


def precomputed(file: str) -> Source:
    """Features that the job "finetune" computed of a frozen network, float32 [d].

    Args:
      file: what `save` wrote. Nothing is standardised: the head sees what it would see above the
        network.
    Raises:
      DataError: the file is not there, or none of ours.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"data.file={file!r} is not there: the job 'finetune' makes it")
    try:
        with np.load(path) as stored:
            names, classes = [str(n) for n in stored["names"]], int(stored["classes"])
            shapes = {split: stored[f"{split}_x"].shape for split in SPLITS}
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"data.file={file!r} holds no features of ours: {e}") from e

    def read() -> Dataset:
        with np.load(path) as stored:
            train, validation, test = (Split(stored[f"{s}_x"], stored[f"{s}_y"]) for s in SPLITS)
        zero = np.zeros(1, np.float32)
        return Dataset(
            names[0],
            train,
            validation,
            test,
            classes,
            tuple(names[1:]),
            shift=zero,
            scale=zero + np.float32(1),
        )

    sizes = shapes["train"][0], shapes["validation"][0], shapes["test"][0]
    shape = tuple(shapes["train"][1:])
    return Source(names[0], sizes, shape, classes, read, notes=("precomputed features",))
