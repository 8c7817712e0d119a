"""Image files to uint8 pixels, and pixels to files."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from latebloom.data.depth import DEFAULT, BadImage, Decoding, check_finite, refuse_deep, to_8_bits

__all__ = ["Header", "cut", "decode", "encode_png", "header", "read", "values_of"]

# Pillow's modes of 8 bits a channel, and those of more. No other becomes grey or RGB.
_GREY_MODES = ("1", "L")
_COLOUR_MODES = ("RGB", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "RGBX", "HSV", "LAB")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_BACKGROUNDS = {"white": 255, "grey": 128, "black": 0}
# What undoes the orientation that a camera has written into the EXIF block, as ImageOps.exif_transpose has it.
_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 0x0112, 258, 339  # tags of EXIF and TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The byte order that reads the other of two bytes; N is that of this machine.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file is, before it is decoded.

    Attributes:
        width, height: as the image stands when its EXIF orientation is applied.
        grey: it has no colour, so that one channel holds it.
        mode: Pillow's mode, and `;16` where colour has more than 8 bits.
        deep: it has more than 8 bits a channel.
    """

    width: int
    height: int
    grey: bool
    mode: str
    deep: bool


def decode(blob: bytes | Path, name: str, *, channels: int = 0, decoding: Decoding = DEFAULT) -> np.ndarray:
    """Decode one image file to uint8 (H, W, C) with C 1 or 3.

    The EXIF orientation is applied. CMYK becomes RGB by Pillow's formula, without colour profiles.

    Args:
        blob: the file's bytes, or its path.
        name: for errors.
        channels: 1 or 3 to convert to; 0 keeps grey as 1 and makes all else 3, grey with transparency too.
        decoding: the rules.

    Raises:
        BadImage: not a readable image, or one that the rules refuse.
    """
    return read(blob, name, channels=channels, decoding=decoding)[1]


def read(
    blob: bytes | Path, name: str, *, channels: int = 0, decoding: Decoding = DEFAULT
) -> tuple[Header, np.ndarray]:
    """As `decode`, with what the file is.

    Raises:
        BadImage: as `decode`.
    """
    with _opened(blob, name) as opened:
        turned_already = opened.format == "TIFF"  # by Pillow, as it loads them
        found = _header(opened, name, decoding, orientation=1)
        if found.deep:
            image = _deep_image(blob, opened, name, found, decoding)
        else:
            opened.load()
            image = _laid(opened, decoding.background)
        orientation = 1 if turned_already else _orientation(opened)
    grey = channels == 1 or (channels == 0 and image.mode in _GREY_MODES)
    if image.mode != (mode := "L" if grey else "RGB"):
        image = image.convert(mode)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        found = _turned(found, orientation)
    pixels = np.asarray(_cut(image, decoding.size) if decoding.size else image)
    return found, pixels[:, :, None] if pixels.ndim == 2 else pixels


def header(blob: bytes | Path, name: str, *, decoding: Decoding = DEFAULT) -> Header:
    """What an image file is, by its header; its pixels are not decoded.

    Raises:
        BadImage: not there, not an image, or one that the rules refuse.
    """
    with _opened(blob, name) as opened:
        orientation = 1 if opened.format == "TIFF" else _orientation(opened, late=True)
        return _header(opened, name, decoding, orientation)


def values_of(blob: bytes | Path, name: str, *, decoding: Decoding) -> tuple[float, float] | None:
    """The least and the greatest value of a file with more than 8 bits; None for one of 8 bits.

    Raises:
        BadImage: as `decode`.
    """
    with _opened(blob, name) as opened:
        found = _header(opened, name, decoding, orientation=1)
        if not found.deep:
            return None
        values, _ = _deep_values(blob, opened, name, found)
        check_finite(values, name)
        return float(values.min()), float(values.max())


def cut(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, C) as `decode` would cut it to `size`; 0: the same."""
    if not size:
        return pixels
    grey = pixels.shape[2] == 1
    done = np.asarray(_cut(Image.fromarray(pixels[:, :, 0] if grey else pixels), size))
    return done[:, :, None] if grey else done


def _cut(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, C), C 1 or 3, as PNG, which is lossless; the same pixels give the same bytes."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(blob: bytes | Path, name: str) -> Iterator[Any]:
    """The opened file. What Pillow raises, here or in the body, becomes a `BadImage`."""
    kind = "not readable"
    try:
        with Image.open(io.BytesIO(blob) if isinstance(blob, bytes) else blob) as opened:
            kind = "truncated or damaged"
            yield opened
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        empty = not (len(blob) if isinstance(blob, bytes) else blob.stat().st_size)
        why = "the file is empty" if empty else "its content is of no known image format"
        raise _unreadable(kind, name, why) from error
    except Image.DecompressionBombError as error:
        raise _bomb(name, "") from error
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        raise _unreadable(kind, name, error) from error


def _unreadable(kind: str, name: str, why: object) -> BadImage:
    return BadImage(kind, f"{name} cannot be read as an image ({why}); repair or remove it")


def _bomb(name: str, size: str) -> BadImage:
    most = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
    return BadImage("too many pixels", f"{name}{size} has more than {most} million pixels; make it smaller")


def _header(opened: Image.Image, name: str, rules: Decoding, orientation: int) -> Header:
    mode, (width, height) = opened.mode, opened.size
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise _bomb(name, f" is {width}x{height} and")
    # Colour of 16 bits has the mode RGB, of which Pillow reads the higher byte only.
    wide = mode not in _DEEP_MODES and (_bits(opened) > 8 if opened.format == "TIFF" else ";16" in _layout(opened))
    if mode not in _GREY_MODES + _COLOUR_MODES + _DEEP_MODES:
        raise BadImage("pixel mode", f"{name} has pixel mode {mode}; expected grey or RGB, so convert it first")
    deep = wide or mode in _DEEP_MODES
    found = _turned(Header(width, height, mode in _GREY_MODES + _DEEP_MODES, mode + ";16" * wide, deep), orientation)
    if deep and rules.depth == "refuse":
        refuse_deep(f"{name} has pixel mode {found.mode}")
    # A camera's JPEG with further pictures in it (MPO) is its first one, the photograph.
    if rules.animated == "refuse" and opened.format != "MPO" and getattr(opened, "is_animated", False):
        raise BadImage(
            "several frames",
            f"{name} has {getattr(opened, 'n_frames', 'several')} frames or pages; set data.animated=first to take the "
            "first, or remove it",
        )
    return found


def _turned(found: Header, orientation: int) -> Header:
    if orientation in (5, 6, 7, 8):
        return dataclasses.replace(found, width=found.height, height=found.width)
    return found


def _layout(opened: Any) -> str:
    """How the pixels lie in the file, in Pillow's words, such as RGB;16B; "": unknown."""
    tile = getattr(opened, "tile", None)
    args = tile[0].args if tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _orientation(opened: Any, late: bool = False) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read.

    Args:
        late: the file is not decoded yet, so a PNG's block behind the pixels has to be looked for.
    """
    info = opened.info
    with contextlib.suppress(Exception):  # a dozen kinds, for a damaged block; as viewers do, it is then not applied
        if late and opened.format == "PNG" and "exif" not in info and (block := _late_exif(opened.fp)):
            info["exif"] = b"Exif\0\0" + block
        if "exif" in info:
            return int(opened.getexif().get(_ORIENTATION, 1))
    return 1


def _late_exif(file: BinaryIO) -> bytes:
    """A PNG's eXIf chunk, wherever it stands; only the heads of the chunks are read. The position is kept."""
    before = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)
        return b""
    finally:
        file.seek(before)


def _laid(image: Image.Image, background: str) -> Image.Image:
    """The image without transparency."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*[_BACKGROUNDS[background]] * 3, 255)), image)
    return image


def _deep_image(blob: bytes | Path, opened: Any, name: str, found: Header, rules: Decoding) -> Image.Image:
    """An image of more than 8 bits, made grey or RGB by the rules."""
    values, alpha = _deep_values(blob, opened, name, found)
    image = Image.fromarray(to_8_bits(values, name, rules))
    transparent = opened.info.get("transparency")  # the one value or colour that is not shown
    if transparent is not None:
        shown = (values != np.asarray(transparent)).reshape(*values.shape[:2], -1).any(axis=2)
        alpha = np.where(shown, 255, 0).astype(np.uint8)
    if alpha is None:
        return image
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return _laid(image, rules.background).convert("L" if found.grey else "RGB")


def _deep_values(blob: bytes | Path, opened: Any, name: str, found: Header) -> tuple[np.ndarray, np.ndarray | None]:
    """The values as they are stored, (H, W) or (H, W, 3), and uint8 alpha (H, W), if it has one."""
    if found.grey:
        bits, signed = _bits(opened), getattr(opened, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,))[0] == 2
        opened.load()
        values = np.asarray(opened)
        if found.mode == "I":  # Pillow's 32 bits with a sign, whatever the file has
            kinds = {(16, False): np.uint16, (16, True): np.int16, (32, False): np.uint32}
            values = values.astype(kinds.get((bits, signed), np.int32))
        return values, None
    layout = _layout(opened)
    base, _, order = layout.partition(";16")
    if base not in ("RGB", "RGBA") or order not in _OTHER_BYTE:
        raise BadImage(
            "more than 8 bits",
            f"{name} has {_bits(opened)} bits a channel in the layout {layout}, which cannot be read in full; convert "
            "it to RGB or grey",
        )
    opened.load()
    high = np.asarray(opened).astype(np.uint16)
    # Pillow keeps one byte of two. Read again with the bytes in the other order, it keeps the other one.
    with Image.open(io.BytesIO(blob) if isinstance(blob, bytes) else blob) as again:
        swapped: Any = again
        other = f"{base};16{_OTHER_BYTE[order]}"
        swapped.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
            for tile in swapped.tile
        ]
        swapped.load()
        low = np.asarray(swapped)
    return high[:, :, :3] * 256 + low[:, :, :3], high[:, :, 3].astype(np.uint8) if base == "RGBA" else None


def _bits(opened: Any) -> int:
    """Bits a channel of an image of more than 8."""
    return int(max(getattr(opened, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))))
