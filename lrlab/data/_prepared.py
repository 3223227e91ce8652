"""Folders that TensorFlow Datasets prepared: where they are, and what they say of themselves."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from lrlab.data._checks import DataError
from lrlab.values import near

NAME = re.compile(r"([a-z]\w*)(?:/(\w[\w.\-]*))?(?::(\d+\.\d+\.\d+))?", re.ASCII)


def parsed(dataset: object) -> re.Match[str]:
    """A data set's name in three groups: name, config, version; ValueError if it is none."""
    match = NAME.fullmatch(dataset) if isinstance(dataset, str) else None
    if match is None:
        raise ValueError(
            f"dataset={dataset!r} must be a name of TFDS, name[/config][:version], "
            "such as 'mnist' or 'mnist:3.0.1'; where the sets are is data_dir"
        )
    return match


def home() -> Path:
    """TFDS's own folder."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Where sets are looked for."""
    if data_dir is not None:
        return [Path(data_dir).expanduser(), Path(data_dir).expanduser() / "tfds"]
    ours = os.environ.get("LRLAB_DATA_DIR")
    found = [Path(ours).expanduser() / "tfds", Path(ours).expanduser()] if ours else []
    return [*found, home()]


def folder(dataset: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Where a set is; DataError with the remedy if it is nowhere."""
    name, config, version = parsed(dataset).groups()
    for root in roots(data_dir):
        if found := newest(root / name, config, version):
            return found
    raise absent(dataset, data_dir)


def absent(dataset: str, data_dir: str | os.PathLike[str] | None) -> DataError:
    """What to say of a set that is nowhere."""
    name, places = parsed(dataset)[1], roots(data_dir)
    here = sorted({p.parts[-3] for r in places for p in r.glob("[a-z]*/*.*.*/dataset_info.json")})
    hint = f" Of the prepared sets, {near(name, here)}." if here else ""
    where = f" --data_dir={data_dir}" if data_dir is not None else ""
    return DataError(
        f"data set {dataset!r} is not prepared; looked for {name}/ in "
        f"{', '.join(map(str, places))}.{hint} Prepare it, once (network; MNIST takes 40 s):\n"
        f'  pip install "lrlab[prepare]"\n'
        f"  python -m lrlab.data.tfds --dataset={dataset}{where}\n"
        "Without network: prepare it on another machine, copy the folder, and set LRLAB_DATA_DIR "
        "(or data.data_dir) to it; or add --manual_dir=FOLDER with the original files."
    )


def newest(base: Path, config: str | None, version: str | None) -> Path | None:
    """The folder of the newest (or the given) version; None where there is none."""
    if config is None:
        if found := versions(base, version):
            return found[-1]
        configs = [p for p in sorted(base.glob("*/")) if versions(p, version)]
        if len(configs) > 1:
            names = ", ".join(repr(f"{base.name}/{p.name}") for p in configs)
            raise ValueError(f"dataset={base.name!r} is prepared in several ways, choose: {names}")
        found = versions(configs[0], version) if configs else []
    else:
        found = versions(base / config, version)
    return found[-1] if found else None


def versions(folder: Path, version: str | None) -> list[Path]:
    """Folders of the versions that are prepared, the newest last."""
    found = [
        p.parent
        for p in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name) and version in (None, p.parent.name)
    ]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def trust(value: Any) -> None:
    """Refuses a features.json that would make TFDS import another's module."""
    if isinstance(value, dict):
        name = str(value.get("pythonClassName", "tensorflow_datasets."))
        if not name.startswith("tensorflow_datasets."):
            raise DataError(f"features.json names the class {name!r}, outside TFDS: not imported")
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)):
            trust(part)


def shards(folder: Path, name: str, split: dict[str, Any]) -> tuple[Path, ...]:
    """The files of a split, as dataset_info.json names them."""
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    fixed = {"{DATASET}": name, "{SPLIT}": split["name"], "{FILEFORMAT}": "array_record"}
    for key, value in fixed.items():
        template = template.replace(key, value)
    count = len(split["shardLengths"])
    names = [template.replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{count:05d}") for i in range(count)]
    if any("/" in n or "{" in n for n in names):
        raise ValueError(f"file name {names[0]!r}")
    return tuple(folder / n for n in names)


def digest(files: tuple[Path, ...]) -> str:
    """Changes with the files' names, sizes or ends, where an array_record has its index."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2**17))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()
