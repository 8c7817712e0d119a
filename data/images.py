"""`LabeledImages`: images, labels and class names, which all parts of Latebloom pass."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latebloom.data.decoding import cut, decode, encode_png
from latebloom.data.depth import DEFAULT, BadImage, BadImages, Decoding
from latebloom.data.store import digest_bytes

__all__ = ["EncodedImages", "LabeledImages", "concat", "cut", "decode", "digest_pixels", "encode_png"]


def digest_pixels(pixels: np.ndarray) -> str:
    """SHA-256 of an image, uint8 (H, W, C): of its shape and pixels, whatever file they came from."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Image files that are decoded when they are needed, all to one (H, W, C).

    Indexing with an integer array gives uint8 (n, H, W, C); where some cannot be decoded, `BadImages` names all of
    these. `decoding` has the rules, such as the size they are cut to.
    """

    blobs: Sequence[bytes | Path]
    names: Sequence[str]
    shape: tuple[int, int, int]
    decoding: Decoding = DEFAULT

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape), np.uint8)
        bad: dict[str, BadImage] = {}
        for place, row in enumerate(rows):
            try:
                out[place] = self._decoded(row)
            except BadImage as error:
                bad[self.names[row]] = error
        if bad:
            raise BadImages({name: str(error) for name, error in bad.items()}) from next(iter(bad.values()))
        return out

    def _decoded(self, row: int) -> np.ndarray:
        pixels = decode(self.blobs[row], self.names[row], channels=self.shape[2], decoding=self.decoding)
        if pixels.shape != self.shape:
            height, width, _ = pixels.shape
            raise BadImage(
                "several sizes",
                f"{self.names[row]} is {width}x{height} while the first image is {self.shape[1]}x{self.shape[0]}; "
                "give an image size (--image-size) to resize and centre-crop all of them",
            )
        return pixels


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images with their labels and class names.

    Attributes:
        images: uint8 (N, H, W, C), C 1 or 3; or `EncodedImages`, decoded when needed.
        labels: int64 (N,), each in 0..num_classes-1.
        class_names: one name a class; the index is the label.
        origin: where they came from, for messages and reports.
        names: of each image the name that its owner knows it by, such as `train/big cat/004.png`; `load` gives each
            one of its own. Where none are given, `[0]`, `[1]`, ...

    Raises:
        ValueError: shapes, dtypes or labels that do not fit together; the message names the first bad row.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        labels, images = self.labels, self.images
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8:
                raise ValueError(
                    f"{self.origin}: images have dtype {images.dtype}, expected uint8 (0..255); scale and convert them"
                )
            if images.ndim != 4 or images.shape[3] not in (1, 3):
                raise ValueError(
                    f"{self.origin}: images have shape {images.shape}, expected (N, H, W, 1 or 3); reshape them"
                )
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{self.origin}: labels are {labels.dtype}{labels.shape}, expected a 1-D array of integers; convert "
                "them"
            )
        if len(labels) != len(images):
            raise ValueError(f"{self.origin}: {len(images)} images but {len(labels)} labels; give one label an image")
        if len(labels) == 0:
            raise ValueError(f"{self.origin}: no images at all; give at least one")
        bad = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if len(bad):
            raise ValueError(
                f"{self.origin}: image {bad[0]} has label {labels[bad[0]]}, outside 0..{len(self.class_names) - 1} "
                f"({len(bad)} such images); correct the labels or name all classes"
            )
        names = self.names or tuple(f"[{row}]" for row in range(len(labels)))
        if len(names) != len(labels):
            raise ValueError(f"{self.origin}: {len(labels)} images but {len(names)} names; give one name an image")
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[-3:]
        return int(height), int(width), int(channels)

    def pixels(self, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, H, W, C) of `rows` (all by default), decoded where needed."""
        if rows is None:
            return self.images if isinstance(self.images, np.ndarray) else self.images[np.arange(len(self))]
        return self.images[np.asarray(rows)]

    @property
    def crop(self) -> int:
        """The side of the square that images are cut to when they are decoded; 0: they stay as they are."""
        return self.decoding.size

    @property
    def decoding(self) -> Decoding:
        """The rules by which the images are decoded; the default ones where they are decoded already."""
        return self.images.decoding if isinstance(self.images, EncodedImages) else DEFAULT

    def whole(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images of `rows` as they are stored, uncut: uint8 (H, W, C), each of its own size."""
        if isinstance(self.images, EncodedImages):
            images, channels = self.images, self.image_shape[2]
            rules = dataclasses.replace(images.decoding, size=0)
            return [decode(images.blobs[row], images.names[row], channels=channels, decoding=rules) for row in rows]
        return list(self.images[np.asarray(rows)])

    def subset(self, rows: np.ndarray, origin: str = "") -> "LabeledImages":
        """The images of `rows`, in that order, with the same class names."""
        rows = np.asarray(rows)
        images: np.ndarray | EncodedImages
        if isinstance(self.images, EncodedImages):
            images = dataclasses.replace(
                self.images,
                blobs=[self.images.blobs[row] for row in rows],
                names=[self.images.names[row] for row in rows],
            )
        else:
            images = self.images[rows]
        names = tuple(self.names[row] for row in rows)
        return LabeledImages(images, self.labels[rows], self.class_names, origin or self.origin, names)

    def class_counts(self) -> np.ndarray:
        """int64 (num_classes,): images per class."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @functools.cached_property
    def sha256(self) -> tuple[str, ...]:
        """Per image, `digest_pixels` of it as a classifier gets it: the same picture has the same digest in any file.

        So neither its name, its row nor its label is in it, nor metadata of its file. Another `crop`, other channels
        or another rule of `decoding` that changes its pixels change it.

        Raises:
            BadImages: some cannot be decoded; it names all of them.
        """
        digests: list[str] = []
        bad: dict[str, str] = {}
        first: BadImages | None = None
        for start in range(0, len(self), 1024):
            try:
                digests += map(digest_pixels, self.pixels(np.arange(start, min(start + 1024, len(self)))))
            except BadImages as error:
                bad |= error.found
                first = first or error
        if first:
            raise BadImages(bad) from first.__cause__
        return tuple(digests)

    def unreadable(self) -> dict[int, str]:
        """Why images cannot be decoded any more, by row. It decodes every image."""
        bad: dict[int, str] = {}
        for row in range(len(self)):
            try:
                self.pixels(np.array([row]))
            except BadImages as error:
                bad[row] = str(error)
        return bad

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over all images in order, their labels and the class names."""
        head = "\n".join((*self.class_names, "")).encode()
        return digest_bytes(head + "".join(self.sha256).encode() + self.labels.tobytes())


def concat(first: LabeledImages, second: LabeledImages) -> LabeledImages:
    """`first` followed by `second`.

    Raises:
        ValueError: the class names or image shapes differ.
    """
    if first.class_names != second.class_names:
        raise ValueError(
            f"{second.origin} has classes {second.class_names}, {first.origin} has {first.class_names}; give both the "
            "same"
        )
    if first.image_shape != second.image_shape:
        raise ValueError(
            f"{second.origin} has images of (H, W, C) {second.image_shape}, {first.origin} has {first.image_shape}; "
            "resize one of them"
        )
    images: np.ndarray | EncodedImages
    # Each half was already checked at its own size, so a crop to that size changes neither.
    size = first.crop or second.crop
    rules, others = (dataclasses.replace(half.decoding, size=size) for half in (first, second))
    if isinstance(first.images, EncodedImages) and isinstance(second.images, EncodedImages) and rules == others:
        images = EncodedImages(
            [*first.images.blobs, *second.images.blobs],
            [*first.images.names, *second.images.names],
            first.image_shape,
            rules,
        )
    else:
        images = np.concatenate([first.pixels(), second.pixels()])
    labels = np.concatenate([first.labels, second.labels])
    names = first.names + second.names
    return LabeledImages(images, labels, first.class_names, f"{first.origin} + {second.origin}", names)
