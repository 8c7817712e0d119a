"""Checks the images that a reader found, and makes all of a data set one (H, W, C) of uint8."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from latebloom.data.config import MIN_SIDE
from latebloom.data.decoding import Header, header, values_of
from latebloom.data.depth import BadImage, Decoding, to_8_bits
from latebloom.data.images import EncodedImages
from latebloom.data.sources.found import Files, Problems, Split, listed

__all__ = ["check_classes", "check_names", "check_pixels", "common_shape", "eight_bits", "headers", "scaled", "uniform"]

Headers = Mapping[str, Sequence[Header | None]]  # by split, an entry a file; None: the file cannot be used


def check_pixels(images: np.ndarray, name: str) -> None:
    """Refuse an array that is not of images.

    Raises:
        ValueError: not (N, H, W) or (N, H, W, 1 or 3).
    """
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(f"{name} has shape {images.shape}; expected (N, H, W) or (N, H, W, 3), channels last")


def scaled(found: Mapping[str, Split], rules: Decoding) -> Decoding:
    """The rules with the scale of depth "data": the least and the greatest value of the training part as found.

    So neither a limit nor a hold-out changes a pixel. Files that cannot be read are left out: who decodes them names
    them.

    Raises:
        BadImage: the training images have one value only.
    """
    if rules.depth != "data":
        return rules
    part, ends = found["train"], []
    if isinstance(part.images, Files):
        for blob, name in zip(part.images.blobs, part.images.names, strict=True):
            try:
                values = values_of(blob, name, decoding=rules)
            except BadImage:
                continue
            if values:
                ends.append(values)
    elif part.images.dtype != np.uint8 and (finite := part.images[np.isfinite(part.images)]).size:
        ends.append((float(finite.min()), float(finite.max())))
    if not ends:
        return rules
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low == high:
        raise BadImage(
            "one value",
            f"all pixels of {part.origin} are {low:g}, so data.depth=data has no scale; set data.depth=type",
        )
    return dataclasses.replace(rules, scale=(low, high))


def eight_bits(found: Mapping[str, Split], rules: Decoding, problems: Problems) -> dict[str, Split]:
    """The splits, their arrays made uint8 by the rules; an array that they refuse is added to `problems`."""
    made = {}
    for name, part in found.items():
        images = part.images
        if isinstance(images, np.ndarray):
            try:
                if images.dtype.kind == "f" and rules.depth != "refuse":
                    _check_rows(part, images)
                images = to_8_bits(images, part.origin, rules)
            except BadImage as error:
                problems.add(error.kind, part.origin, str(error))
                images = np.zeros(images.shape, np.uint8)  # its other problems are looked for all the same
        made[name] = dataclasses.replace(part, images=images)
    return made


def _check_rows(part: Split, images: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
    if len(bad):
        raise BadImage(
            "NaN pixels",
            f"{part.origin}: {part.names[bad[0]]} has NaN or infinite pixels ({len(bad)} such images); repair or "
            "remove them",
        )


def headers(found: Mapping[str, Split], rules: Decoding, problems: Problems) -> Headers:
    """What each file is by its header, no pixels decoded; a file that the rules refuse is added to `problems`."""
    read: dict[str, list[Header | None]] = {}
    for split, part in found.items():
        if isinstance(part.images, Files):
            read[split] = []
            for blob, name in zip(part.images.blobs, part.images.names, strict=True):
                try:
                    read[split].append(header(blob, name, decoding=rules))
                except BadImage as error:
                    problems.add(error.kind, name, str(error))
                    read[split].append(None)
    return read


def common_shape(
    found: Mapping[str, Split], read: Headers, rules: Decoding, problems: Problems
) -> tuple[int, int, int]:
    """(H, W, C) that all images have by the rules; sizes that do not fit are added to `problems`."""
    sizes: list[tuple[str, int, int, int]] = []  # name, width, height and how many images
    grey = True
    for split, part in found.items():
        if isinstance(part.images, Files):
            for name, one in zip(part.images.names, read[split], strict=True):
                if one:
                    sizes.append((name, one.width, one.height, 1))
                    grey = grey and one.grey
        else:
            height, width, channels = part.images.shape[1:]
            sizes.append((part.origin, width, height, len(part.images)))
            grey = grey and channels == 1
    for name, width, height, _ in sizes:
        if min(width, height) < MIN_SIDE:
            problems.add("too small", name, f"{name} is {width}x{height}, smaller than {MIN_SIDE} pixels; remove it")
    sizes = [one for one in sizes if min(one[1:3]) >= MIN_SIDE]
    if rules.size or not sizes:
        return rules.size, rules.size, 1 if grey else 3
    first, width, height, _ = sizes[0]
    others = [one for one in sizes if one[1:3] != (width, height)]
    if others:
        other, *size, _ = others[0]
        problems.add(
            "several sizes",
            other,
            f"{other} is {size[0]}x{size[1]} while {first} is {width}x{height}; of {sum(one[3] for one in sizes):,} "
            f"images {sum(one[3] for one in others):,} have another size than the first; give an image size "
            "(--image-size) to resize and centre-crop all of them",
        )
    return height, width, 1 if grey else 3


def uniform(
    found: Mapping[str, Split], shape: tuple[int, int, int], rules: Decoding
) -> Mapping[str, np.ndarray | EncodedImages]:
    """The splits' images, all of `shape` (H, W, C).

    Args:
        found: without problems, arrays uint8.
        shape: as `common_shape` gives it.
    """
    images: dict[str, np.ndarray | EncodedImages] = {}
    for split, part in found.items():
        if isinstance(part.images, Files):
            images[split] = EncodedImages(part.images.blobs, part.images.names, shape, rules)
        elif rules.size or part.images.shape[1:] != shape:
            # PPM is a header and the raw pixels, so arrays are resized by the very code that resizes files.
            height, width, channels = part.images.shape[1:]
            head = b"P%d %d %d 255\n" % (5 if channels == 1 else 6, width, height)
            names = [f"{part.origin} image {row}" for row in range(len(part.images))]
            images[split] = EncodedImages([head + one.tobytes() for one in part.images], names, shape, rules)
        else:
            images[split] = part.images
    return images


def check_names(found: Mapping[str, Split], problems: Problems) -> None:
    """Add to `problems` names that two images have, and those that no table or report can hold."""
    seen: set[str] = set()
    for part in found.values():
        for row, name in enumerate(part.names):
            if name in seen:
                words = f"{part.origin} has two images called {name}; give each a name of its own"
                problems.add("same name", name, words)
            if not name.isascii() and not _is_utf8(name):
                where = part.images.names[row] if isinstance(part.images, Files) else name
                words = (
                    f"{where} has a name that is not UTF-8; rename it (`convmv -f latin1 -t utf8 -r` renames all such)"
                )
                problems.add("name that is not UTF-8", where, words)
            seen.add(name)


def _is_utf8(name: str) -> bool:
    """Whether a name is text: the bytes of a file's name that are none are surrogates in Python."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def check_classes(class_names: Sequence[str], found: Mapping[str, Split], problems: Problems) -> None:
    """Add to `problems` the class names and labels that nothing can be learned from."""
    origin, train = found["train"].origin, found["train"].labels
    twice = sorted({name for name in class_names if class_names.count(name) > 1})
    if twice or "" in class_names:
        words = f"{origin}: class names must be unique and not empty, got {listed(twice) or tuple(class_names)}"
        problems.add("class names", origin, words)
    if len(class_names) < 2:
        words = f"{origin} has the single class {listed(class_names)}; a classifier needs at least 2"
        problems.add("single class", origin, words)
    for part in found.values():
        bad = np.flatnonzero((part.labels < 0) | (part.labels >= len(class_names)))
        if len(bad):
            problems.add(
                "label outside the classes",
                part.names[bad[0]],
                f"{part.origin}: image {bad[0]} has label {part.labels[bad[0]]}, outside 0..{len(class_names) - 1} "
                f"({len(bad)} such images); correct the labels or name all classes",
            )
        if not len(part.labels):
            problems.add("no images", part.origin, f"{part.origin}: no images at all; give at least one")
    there = set(train.tolist())
    empty = [name for label, name in enumerate(class_names) if label not in there]
    if empty and len(train):
        problems.add(
            "class without training images",
            origin,
            f"{origin} has no image of {len(empty)} of {len(class_names)} classes ({listed(empty)}); add images or "
            "remove the class",
        )
