"""The first image of a data set, with as little read as its layout allows."""

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources import arrays, parquet, shards, tables
from latebloom.data.sources.found import Files, Problems
from latebloom.data.sources.load import find
from latebloom.data.sources.parts import ALL, IMAGE_SUFFIXES, assign, joined, sharded
from latebloom.data.sources.shards import TARS
from latebloom.data.sources.tables import TABLES
from latebloom.data.store import as_path, list_folder

__all__ = ["first_side"]

_DEEPEST = 4


def first_side(config: DataConfig) -> int:
    """The shorter side in pixels of the first training image, or of all where they are arrays.

    Raises:
        Exception: any of a dozen kinds, where the source cannot be read.
    """
    path = as_path(config.source)
    entries = [entry for entry, _ in list_folder(path)] if path.is_dir() else [path]
    npz = [entry for entry in entries if entry.suffix.lower() == ".npz"]
    if len(npz) == 1 == len(entries):
        return arrays.first_side(npz[0], config)
    picture = next(_pictures(path, 0), None) if path.is_dir() else None
    first = picture or _first_of_rows(path, config)
    if first is not None:
        return _file_side(first)
    # Other layouts, such as `save_to_disk`'s: read whole.
    images = next(iter(find(config, Problems())[1].values())).images
    return _file_side(images.blobs[0]) if isinstance(images, Files) else min(images.shape[1:3])


def _first_of_rows(path: Path, config: DataConfig) -> bytes | Path | None:
    """The first image of parquet, of shards or of a table; None: it is none of these, or this is not known so.

    The rest of the file is read once, by its reader.
    """
    folder = path if path.is_dir() else path.parent
    if file := _first_file(path, (".parquet",), config):
        return parquet.first_image(file, folder, config)
    if file := _first_file(path, TARS, config):
        return shards.first_image(file, config)
    if file := _first_file(path, TABLES, config):
        return tables.first_image(file, folder, config)
    return None


def _first_file(path: Path, suffixes: tuple[str, ...], config: DataConfig) -> Path | None:
    """The first file to train on of those that end so; None: there are none."""
    if not path.is_dir():
        return path if path.name.lower().endswith(suffixes) else None
    files = sharded(path, suffixes)
    if not files:
        return None
    part = ALL if config.train == ALL else assign(list(files), config, str(path), Problems())["train"]
    return next(iter(joined(files) if part == ALL else files[part]))


def _pictures(folder: Path, depth: int) -> Iterator[Path]:
    """Image files below a folder, those of its folders before its own: a picture beside them may be of a read-me."""
    entries = list_folder(folder)
    for path, is_folder in entries:
        if is_folder and not path.name.startswith(".") and depth < _DEEPEST:
            yield from _pictures(path, depth + 1)
    yield from (path for path, is_folder in entries if not is_folder and path.suffix.lower() in IMAGE_SUFFIXES)


def _file_side(blob: bytes | Path) -> int:
    with io.BytesIO(blob) if isinstance(blob, bytes) else blob.open("rb") as file, Image.open(file) as image:
        return min(image.size)
