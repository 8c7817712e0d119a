"""Data sets that are folders: one folder a class, or Hugging Face's parquet files.

Nothing is decoded here. A reader lists files or rows with their labels; load.py checks the images.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from latebloom.data.sources.found import Files, Found, Split, listed, numbered
from latebloom.data.store import in_memory, list_folder, local_file

__all__ = ["IMAGE_SUFFIXES", "LAYOUTS", "read_folder"]

LAYOUTS = (
    "a folder with train/<class>/<image> and test/<class>/<image>, a folder with train*.parquet and test*.parquet "
    "(as Hugging Face writes them), the folder of tiny-imagenet, caltech256, svhn or stanford-cars as published, or an "
    ".npz file with train_images, train_labels, test_images and test_labels"
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_JUNK_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".md")  # notes and tables that people keep beside their images
_JUNK_NAMES = ("thumbs.db", "desktop.ini")


def read_folder(path: Path) -> Found:
    """Read an image folder or a folder of parquet files.

    - train/<class>/<image> and test/<class>/<image>: the classes are train's sub-folders, by name. Hidden files,
      notes and tables (.txt, .json, .csv, .md) are skipped. Images at a URL are all fetched and held in memory.
    - train*.parquet and test*.parquet, in `path` or its data/: an image column (a struct with `bytes`, or binary),
      and `label` or the only integer column. Class names from the Hugging Face metadata, else "0".."K-1". The
      encoded images are all held in memory.

    Raises:
        ValueError: neither layout, or a file, row or column that does not fit; the message names it.
    """
    if (path / "train").is_dir() and (path / "test").is_dir():
        return _image_folder(path)
    for folder in (path, path / "data"):
        shards = {split: sorted(folder.glob(f"{split}*.parquet")) for split in ("train", "test")}
        if all(shards.values()):
            return _parquet(path, folder, shards)
    entries = listed([entry.name for entry, _ in list_folder(path)]) or "nothing"
    raise ValueError(f"{path} holds {entries}, but not both a train and a test part; expected {LAYOUTS}")


def _image_folder(path: Path) -> Found:
    found = {split: _class_folders(path / split) for split in ("train", "test")}
    class_names = tuple(found["train"])
    for name in found["test"]:
        if name not in class_names:
            raise ValueError(
                f"{path / 'test' / name} is a class that {path / 'train'} does not have; its classes are "
                f"{listed(class_names)}"
            )
    splits = {}
    for split, classes in found.items():
        files = [file for members in classes.values() for file in members]
        labels = np.repeat([class_names.index(name) for name in classes], [len(m) for m in classes.values()])
        names = [file.relative_to(path).as_posix() for file in files]
        splits[split] = Split(Files(in_memory(files), [str(file) for file in files]), labels, str(path / split), names)
    return class_names, splits


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """The image files in each sub-folder of `folder`, both sorted by name."""
    classes: dict[str, list[Path]] = {}
    for entry, is_folder in _visible(folder):
        if not is_folder:
            raise ValueError(f"{entry} is in no class; expected {folder}/<class>/<image>, so move or remove it")
        classes[entry.name] = files = []
        for file, is_inner_folder in _visible(entry):
            if is_inner_folder:
                raise ValueError(f"{file} is a folder inside a class folder; put its images into {entry} itself")
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(f"{file} is not one of {', '.join(IMAGE_SUFFIXES)}; convert it to PNG or remove it")
            files.append(file)
        if not files:
            raise ValueError(f"{entry} holds no images; add some or remove the folder")
    if not classes:
        raise ValueError(f"{folder} is empty; expected {folder}/<class>/<image>")
    return classes


def _visible(folder: Path) -> list[tuple[Path, bool]]:
    return [
        (entry, is_folder)
        for entry, is_folder in list_folder(folder)
        if not entry.name.startswith(".")
        and entry.name.lower() not in _JUNK_NAMES
        and (entry.suffix.lower() not in _JUNK_SUFFIXES or is_folder)
    ]


def _parquet(path: Path, folder: Path, shards: dict[str, list[Path]]) -> Found:
    splits: dict[str, Split] = {}
    class_names: dict[Path, tuple[str, ...]] = {}
    for split, files in shards.items():
        blobs: list[bytes | Path] = []
        errors: list[str] = []
        names: list[str] = []
        labels = []
        for file in files:
            images, numbers, class_names[file] = _shard(file)
            blobs += images
            errors += [f"row {row} of {file}" for row in range(len(images))]
            names += [f"{file.relative_to(path).as_posix()}[{row}]" for row in range(len(images))]
            labels.append(numbers)
        splits[split] = Split(Files(blobs, errors), np.concatenate(labels), f"{folder} {split}", names)
    first = shards["train"][0]
    for file, given in class_names.items():
        if given != class_names[first]:
            raise ValueError(
                f"{file} names its classes {listed(given) or 'not at all'}, but {first} "
                f"{listed(class_names[first]) or 'not at all'}; write all files with the same features"
            )
    return class_names[first] or numbered(str(folder), [split.labels for split in splits.values()]), splits


def _shard(file: Path) -> tuple[list[bytes], np.ndarray, tuple[str, ...]]:
    """The encoded images, the labels int64, and the class names (none if not in the metadata) of one parquet file."""
    # pyarrow takes long to import, and most commands read no parquet
    import pyarrow.compute
    import pyarrow.parquet

    try:
        with local_file(file) as local, pyarrow.parquet.ParquetFile(local) as opened:
            schema = opened.schema_arrow
            image, label = _columns(schema, file)
            table = opened.read(columns=[image, label])
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (pyarrow.ArrowException, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as parquet ({error}); write or download it again") from error
    images, labels = table[image], table[label]
    if pyarrow.types.is_struct(images.type):
        images = pyarrow.compute.struct_field(images, "bytes")
    for column, what in ((images, f"image bytes in {image}; embed the image"), (labels, f"{label}; give it one")):
        if column.null_count:
            raise ValueError(f"row {column.is_null().index(True)} of {file} has no {what} or drop the row")
    names = info.get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return images.to_pylist(), labels.to_numpy().astype(np.int64), tuple(names)


def _columns(schema: Any, file: Path) -> tuple[str, str]:
    """The names of the image and the label column: by type, and by name where several have the type."""
    from pyarrow import types

    def is_image(kind: Any) -> bool:
        if types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def choose(name: str, candidates: list[str], what: str) -> str:
        if name in candidates:
            return name
        if len(candidates) != 1:
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise ValueError(
                f"{file} has {len(candidates)} {what} columns, none called {name}: {columns}; call the right one {name}"
            )
        return candidates[0]

    images = [field.name for field in schema if is_image(field.type)]
    labels = [field.name for field in schema if types.is_integer(field.type)]
    return choose("image", images, "image (binary, or struct with bytes)"), choose("label", labels, "integer")
