"""How large the images of a data set are, from the header of the first: what defaults depend on before it is read."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latebloom.data.config import NAMES, DataConfig
from latebloom.data.store import as_path, list_folder

__all__ = ["image_side"]

# Of the data sets with a name; the photos have many sizes, of which these are near the smallest.
_SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32, "svhn": 32, "tiny-imagenet": 64}
_PHOTOS = 256
_DEEPEST = 4


def image_side(config: DataConfig) -> int:
    """The shorter side in pixels that classifiers will see: the image size, or that of the first image.

    Reads one header. 0 where it cannot be known so: what is wrong with a source is said where it is loaded.
    """
    if config.image_size:
        return config.image_size
    if config.source in NAMES:
        return _SIDES.get(config.source, _PHOTOS)
    try:
        return _side(config)
    except Exception:  # a damaged file raises a dozen kinds; loading names it in words
        return 0


def _side(config: DataConfig) -> int:
    path = as_path(config.source)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _npz_side(path)
    if path.is_dir():
        first = next(_pictures(path, 0), None)
        if first is not None:
            return _file_side(first)
    from latebloom.data.sources.found import Files, Problems
    from latebloom.data.sources.load import find  # a table or archive: its reader knows

    images = next(iter(find(config, Problems())[1].values())).images
    return _file_side(images.blobs[0]) if isinstance(images, Files) else min(images.shape[1:3])


def _pictures(folder: Path, depth: int) -> Iterator[Path]:
    """Image files below a folder, those of its folders before its own: a picture beside them may be of a read-me."""
    from latebloom.data.sources.parts import IMAGE_SUFFIXES  # imports NumPy, which data sets with a name do without

    entries = list_folder(folder)
    for path, is_folder in entries:
        if is_folder and not path.name.startswith(".") and depth < _DEEPEST:
            yield from _pictures(path, depth + 1)
    yield from (path for path, is_folder in entries if not is_folder and path.suffix.lower() in IMAGE_SUFFIXES)


def _file_side(blob: bytes | Path) -> int:
    from PIL import Image

    with io.BytesIO(blob) if isinstance(blob, bytes) else blob.open("rb") as file, Image.open(file) as image:
        return min(image.size)


def _npz_side(path: Path) -> int:
    import numpy as np

    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if "image" in name or name.startswith("x")]
        with archive.open(sorted(names, key=lambda name: "train" not in name)[0]) as array:
            version: Any = np.lib.format.read_magic(array)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return min(read(array)[0][1:3])
