"""Folders of images as `load` reads or refuses them."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import Splits, load


def picture(value: int = 0, mode: str = "L", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An encoded image of one value."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("1", "L", "P", "I;16", "F") else (value,) * len(mode)).save(buffer, kind)
    return buffer.getvalue()


def read(folder: Path, **settings: Any) -> Splits:
    return load(DataConfig(source=str(folder), **settings))


def refused(folder: Path, words: str, **settings: Any) -> None:
    """It is refused in one line with these words, and nothing in it has changed."""
    before = _contents(folder)
    with pytest.raises(ValueError, match=words) as caught:
        read(folder, **settings)
    assert "\n" not in str(caught.value)
    assert _contents(folder) == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
