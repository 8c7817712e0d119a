"""What exported files are called: as their owner calls them, where that is safe on every file system."""

import hashlib
import io
import re
import unicodedata
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from latebloom.data.images import EncodedImages, LabeledImages
from latebloom.data.names import base_name
from latebloom.data.sources.parts import IMAGE_SUFFIXES

__all__ = ["FileNames", "class_folders", "original_file", "safe_name", "stem_of"]

# File systems take 255 bytes. The rest is for what is added: a level, a number, a suffix.
_MOST_BYTES = 180
# Devices on Windows, whatever follows a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=\.|\Z)", re.IGNORECASE)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|\ud800-\udfff]|^\.|^_(?=_)|[. ]\Z')
_EXIF_ORIENTATION = 0x0112


def safe_name(name: str, also: str = "") -> str:
    """The name, with %XX for what a file system forbids and for what hides a file or a folder from readers.

    A name of more than 180 bytes loses its end to a digest of it all.

    Args:
        also: characters that are written as %XX, too.
    """
    escaped = _UNSAFE.sub(_escaped, re.sub(f"[{re.escape(also)}]", _escaped, name) if also else name)
    escaped = _DEVICES.sub(lambda found: f"%{ord(found[0][0]):02X}{found[0][1:]}", escaped) if escaped else "%"
    content = escaped.encode()
    if len(content) <= _MOST_BYTES:
        return escaped
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{content[: _MOST_BYTES - 9].decode('utf-8', 'ignore').rstrip('. ')}~{digest}"


def _escaped(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def class_folders(class_names: tuple[str, ...]) -> list[str]:
    """The folder of each class. Some file systems have one folder for `Cat` and `cat`: the second gets a number."""
    folders = FileNames()
    # A % too: from its folder's name the name of a class can be had again.
    return [folders.take("", safe_name(name, "%"), f"-{label}", "") for label, name in enumerate(class_names)]


def stem_of(name: str) -> str:
    """The safe file name of an image without its suffix: `004` of `train/big cat/004.png`."""
    last = base_name(name)
    path = PurePosixPath(last)
    return safe_name(path.stem if path.suffix.lower() in IMAGE_SUFFIXES else last)


def original_file(data: LabeledImages, row: int, pixels: np.ndarray) -> tuple[bytes, str] | None:
    """The file of an image and its suffix, where any reader gets from it the pixels that were trained on; else None.

    Args:
        pixels: uint8 (H, W, C), of that image.
    """
    if not isinstance(data.images, EncodedImages) or data.crop:
        return None
    blob = data.images.blobs[row]
    content = blob.read_bytes() if isinstance(blob, Path) else blob
    with Image.open(io.BytesIO(content)) as image:
        plain = image.mode in ("L", "RGB") and "transparency" not in image.info and getattr(image, "n_frames", 1) == 1
        if not plain or image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            return None  # readers differ in what they make of it
        kind = image.format or ""
        found = np.asarray(image)
    if not np.array_equal(found.reshape(*found.shape[:2], -1), pixels):
        return None
    suffix = PurePosixPath(data.names[row]).suffix
    usual = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
    suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else usual.get(kind, "")
    return (content, suffix) if suffix else None


class FileNames:
    """The names that are taken in each folder; those that differ in case alone are one, as on macOS and Windows."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, str]] = set()

    def take(self, folder: str, stem: str, number: str, suffix: str) -> str:
        """A name that is free in the folder: stem and suffix, with the number between them where that is taken."""
        name, more = f"{stem}{suffix}", 1
        while (key := (folder, unicodedata.normalize("NFC", name).casefold())) in self._taken:
            name = f"{stem}{number}{'' if more == 1 else f'-{more}'}{suffix}"
            more += 1
        self._taken.add(key)
        return name
