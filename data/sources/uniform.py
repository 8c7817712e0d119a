"""Checks what a reader found, and makes all images of a data set one (H, W, C)."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from latebloom.data.config import MIN_SIDE
from latebloom.data.images import COLOUR_MODES, GREY_MODES, EncodedImages, LabeledImages
from latebloom.data.sources.found import Files, Split, listed

__all__ = ["check_classes", "check_pixels", "uniform"]


def check_pixels(images: np.ndarray, name: str) -> None:
    if images.dtype.kind == "f":
        bad = np.flatnonzero(np.isnan(images).any(axis=tuple(range(1, images.ndim))))
        if len(bad):
            raise ValueError(f"{name}: image {bad[0]} has NaN pixels ({len(bad)} such images); expected uint8, 0..255")
    if images.dtype != np.uint8:
        raise ValueError(f"{name} is {images.dtype}; expected uint8, so scale it to 0..255 and round it first")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(f"{name} has shape {images.shape}; expected (N, H, W) or (N, H, W, 3), channels last")


def uniform(found: dict[str, Split], size: int) -> Mapping[str, np.ndarray | EncodedImages]:
    """The splits' images, all of one (H, W, C).

    Raises:
        ValueError: images under 8 pixels, of several sizes although `size` is 0, unreadable or not 8-bit, by name.
    """
    arrays = {name: split.images for name, split in found.items() if isinstance(split.images, np.ndarray)}
    files = {name: split.images for name, split in found.items() if isinstance(split.images, Files)}
    if files:
        return _uniform_files(files, size)
    first = arrays["train"].shape[1:]
    for name, array in arrays.items():
        height, width, _ = array.shape[1:]
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"{found[name].origin} has images of {width}x{height}, smaller than {MIN_SIDE} pixels")
        if array.shape[1:] != first:
            raise ValueError(
                f"{found[name].origin} has images of (H, W, C) {array.shape[1:]}, {found['train'].origin} of {first}; "
                "make them alike"
            )
    if not size:
        return arrays
    # PPM is a header and the raw pixels, so arrays are resized by the very code that resizes files.
    height, width, channels = first
    head = b"P%d %d %d 255\n" % (5 if channels == 1 else 6, width, height)
    return {
        name: EncodedImages(
            [head + pixels.tobytes() for pixels in array],
            [f"{found[name].origin} image {row}" for row in range(len(array))],
            (size, size, channels),
            size,
        )
        for name, array in arrays.items()
    }


def _uniform_files(splits: dict[str, Files], size: int) -> dict[str, EncodedImages]:
    first, first_size, all_grey = "", (0, 0), True
    for files in splits.values():
        for blob, name in zip(files.blobs, files.names, strict=True):
            (width, height), grey = _header(blob, name)
            all_grey = all_grey and grey
            if min(width, height) < MIN_SIDE:
                raise ValueError(f"{name} is {width}x{height}, smaller than {MIN_SIDE} pixels; remove it")
            if not first:
                first, first_size = name, (width, height)
            if not size and (width, height) != first_size:
                raise ValueError(
                    f"{name} is {width}x{height} while {first} is {first_size[0]}x{first_size[1]}; give an image size "
                    "(--image-size) to resize and centre-crop all of them"
                )
    width, height = (size, size) if size else first_size
    shape = (height, width, 1 if all_grey else 3)
    return {name: EncodedImages(files.blobs, files.names, shape, size) for name, files in splits.items()}


def _header(blob: bytes | Path, name: str) -> tuple[tuple[int, int], bool]:
    """(width, height) and whether it is grey, of an image file whose pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(blob) if isinstance(blob, bytes) else blob) as image:
            mode, size = image.mode, image.size
    except Exception as error:  # PIL raises a dozen kinds for a damaged file
        raise ValueError(f"{name} cannot be read as an image ({error}); repair or remove it") from error
    if mode not in GREY_MODES + COLOUR_MODES:
        raise ValueError(
            f"{name} has pixel mode {mode}, which does not fit 8 bits; convert it to 8-bit grey or RGB first"
        )
    return size, mode in GREY_MODES


def check_classes(train: LabeledImages) -> None:
    names, counts = train.class_names, train.class_counts()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise ValueError(f"{train.origin}: class names must be unique and not empty, got {listed(twice) or names}")
    if len(names) < 2:
        raise ValueError(f"{train.origin} has the single class {listed(names)}; a classifier needs at least 2")
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{train.origin} has no image of {len(empty)} of {len(names)} classes ({listed(empty)}); add images or "
            "remove the class"
        )
