"""Many small pictures in few files, which a page loads as they come into view."""

import dataclasses
import io
import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from PIL import Image

from latebloom.data.store import digest_bytes, write_bytes

__all__ = ["ACROSS", "FOLDER", "Sheets", "drop_others", "shown_size", "write_sheets"]

FOLDER = "report"  # beside report.html
ACROSS = 20  # pictures in a row of a file, and rows in it
_EACH = ACROSS * ACROSS
_LONGEST = 64  # side of a picture, pixels
_LOSSLESS = 16  # longest side that is kept as it is; a larger picture is a third of the size as a JPEG
_NAME = re.compile(r"[a-z]+-\d{3,}-[0-9a-f]{8}\.(?:png|jpg)")


@dataclasses.dataclass(frozen=True)
class Sheets:
    """Files of `ACROSS` x `ACROSS` pictures each, in order, all of one size.

    Attributes:
        files: their names in `FOLDER`. Each has a digest of its content, so that a page never shows the pictures of
            another report.
        width, height: of one picture, pixels.
    """

    files: list[str]
    width: int
    height: int


def write_sheets(folder: Path, name: str, count: int, pixels: Callable[[int, int], np.ndarray]) -> Sheets:
    """Write `count` pictures, at most `_LONGEST` pixels long each, into files in `folder`.

    Args:
        name: what the names of the files begin with, letters only.
        pixels: of two numbers, first and end: uint8 (n, H, W, C) of these pictures, C 1 or 3.
    """
    files, size = [], (0, 0)
    for number, start in enumerate(range(0, count, _EACH)):
        images = pixels(start, min(start + _EACH, count))
        assert images.dtype == np.uint8, f"pictures are uint8, got {images.dtype}"
        height, width = images.shape[1:3]
        size = _fitted(width, height)
        sheet = Image.new(
            "L" if images.shape[3] == 1 else "RGB", (ACROSS * size[0], -(-len(images) // ACROSS) * size[1])
        )
        for place, image in enumerate(images):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(picture, (place % ACROSS * size[0], place // ACROSS * size[1]))
        content, ending = _encoded(sheet, max(size) <= _LOSSLESS)
        files.append(f"{name}-{number:03d}-{digest_bytes(content)[:8]}.{ending}")
        write_bytes(folder / files[-1], content)
    return Sheets(files, *size)


def drop_others(folder: Path, keep: Collection[str]) -> None:
    """Delete the files of earlier reports in `folder`."""
    for file in list(folder.iterdir()) if folder.is_dir() else []:
        if _NAME.fullmatch(file.name) and file.name not in keep:
            file.unlink(missing_ok=True)


def shown_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) that fits `longest`: a whole multiple of a small image, a fraction of a large one."""
    factor = longest // max(size) or longest / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _fitted(width: int, height: int) -> tuple[int, int]:
    return (width, height) if max(width, height) <= _LONGEST else shown_size((width, height), _LONGEST)


def _encoded(sheet: Image.Image, lossless: bool) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if lossless:
        sheet.save(buffer, "PNG")
        return buffer.getvalue(), "png"
    # Without subsampling: colours of a picture must not run into the next.
    sheet.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue(), "jpg"
