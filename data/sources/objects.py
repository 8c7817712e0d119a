"""Data sets that are objects in Python: of torch, torchvision, or Hugging Face's datasets. None of them is imported."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latebloom.data.depth import Decoding
from latebloom.data.images import LabeledImages
from latebloom.data.sources.found import Files, Problems, Split, listed
from latebloom.data.sources.parts import is_image
from latebloom.data.sources.rows import coded, raw_image
from latebloom.data.sources.uniform import common_shape, eight_bits, headers, uniform

__all__ = ["images_from"]

_TWICE = 8  # images that are read a second time: a random transform makes others of them


def images_from(
    dataset: Any,
    *,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    image_size: int = 0,
) -> LabeledImages:
    """The images, labels and class names of a data set that is an object.

    - torchvision's ImageFolder: its files are read as they are, without its transform, and are called by their paths.
    - `datasets.Dataset`: the Image column and the label (a ClassLabel, or whole numbers or texts in `label`).
    - any other with a length and items (image, label): Pillow's images; uint8 or float arrays (H, W) or (H, W, C);
      tensors (H, W) or (C, H, W). Floats are from 0 to 1.
    - a `torch.utils.data.Subset` of one of them.

    Args:
        dataset: read once from the first item to the last.
        class_names: where the data set has none (`classes`, or a ClassLabel); else "0".."K-1", or the sorted texts.
        names: of each image the name its owner knows it by; else the path, or `CIFAR10[17]`.
        image_size: as `DataConfig.image_size`: needed where images have several sizes.

    Raises:
        ValueError: items that are no such pairs, images that a transform has normalised or draws at random, several
            image or label columns, or anything that `load` refuses in images.
    """
    rows, dataset = _unwrapped(dataset)
    origin = type(dataset).__name__
    if isinstance(dataset, dict):
        raise ValueError(f"got a {origin} of {listed(list(dataset))}; give one of them, such as dataset['train']")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(f"got a {origin}, which has no length or no items by number; gather a stream in a list first")
    rows = np.arange(len(dataset)) if rows is None else rows
    problems = Problems()
    if _is_folder(dataset):
        images, labels, own, classes = _folder(dataset, rows)
    elif hasattr(dataset, "features") and hasattr(dataset, "cast_column"):
        images, labels, own, classes = _hugging_face(dataset, rows)
    else:
        images, labels, own, classes = _items(dataset, rows)
    called = tuple(names) if names is not None else _called(own, origin, rows)
    if len(called) != len(rows):
        raise ValueError(f"{origin} has {len(rows)} images but {len(called)} names; give one name an image")
    if len(set(called)) < len(called):
        twice = sorted({name for name in called if called.count(name) > 1})
        raise ValueError(f"{origin}: names must differ, got {listed(twice)} more than once")
    all_names, codes, _ = coded({"train": (origin, labels)}, {"train": called}, tuple(class_names or classes), problems)
    _refuse(problems)
    rules = Decoding(size=image_size)
    found = eight_bits({"train": Split(images, codes["train"], origin, called)}, rules, problems)
    shape = common_shape(found, headers(found, rules, problems), rules, problems)
    _refuse(problems)
    return LabeledImages(uniform(found, shape, rules)["train"], codes["train"], all_names, origin, called)


def _refuse(problems: Problems) -> None:
    errors = problems.errors()
    if errors:
        raise ValueError(errors[0].message + (f" ({len(errors) - 1} more)" if len(errors) > 1 else ""))


def _unwrapped(dataset: Any) -> tuple[np.ndarray | None, Any]:
    """The rows of the data set that torch's Subsets stand for, int64 (n,), and that data set; None: all of them."""
    rows = None
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        inner = np.asarray(dataset.indices, np.int64)
        rows = inner if rows is None else inner[rows]
        dataset = dataset.dataset
    return rows, dataset


Read = tuple[np.ndarray | Files, list[int | str], list[str], tuple[str, ...]]  # images, labels, own names, classes


def _called(own: list[str], origin: str, rows: np.ndarray) -> tuple[str, ...]:
    if all(own) and len(set(own)) == len(own):
        return tuple(own)
    return tuple(f"{origin}[{row}]" for row in rows)


def _is_folder(dataset: Any) -> bool:
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not samples or not hasattr(dataset, "classes"):
        return False
    return all(isinstance(sample, tuple) and len(sample) == 2 and is_image(str(sample[0])) for sample in samples)


def _folder(dataset: Any, rows: np.ndarray) -> Read:
    samples = [dataset.samples[row] for row in rows]
    files = [Path(file) for file, _ in samples]
    root = Path(dataset.root) if hasattr(dataset, "root") else None
    own = [(f.relative_to(root) if root and f.is_relative_to(root) else f).as_posix() for f in files]
    return Files(files, [str(f) for f in files]), [int(label) for _, label in samples], own, tuple(dataset.classes)


def _hugging_face(dataset: Any, rows: np.ndarray) -> Read:
    features = dict(dataset.features)
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = _one("image", [name for name, kind in kinds.items() if kind == "Image"], kinds)
    coded_labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    label = _one("label", coded_labels or [name for name in kinds if name == "label"], kinds)
    # The encoded files, whatever transform or format is set.
    plain = dataset.with_format(None).cast_column(image, type(features[image])(decode=False))
    plain = plain.select_columns([image, label]).select(rows)
    blobs: list[bytes | Path] = []
    labels, own, where = [], [], []
    for row, item in zip(rows, plain, strict=True):
        cell, where_row = item[image] or {}, f"row {row}"
        if cell.get("bytes") is None and not cell.get("path"):
            raise ValueError(f"{where_row} has no {image}; filter such rows out")
        if item[label] is None:
            raise ValueError(f"{where_row} has no {label}; filter such rows out")
        blobs.append(cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]))
        labels.append(item[label] if isinstance(item[label], str) else int(item[label]))
        own.append(str(cell.get("path") or ""))
        where.append(where_row)
    return Files(blobs, where), labels, own, tuple(getattr(features[label], "names", ()))


def _one(what: str, names: list[str], kinds: dict[str, str]) -> str:
    if len(names) == 1:
        return names[0]
    columns = listed([f"{name} ({kind})" for name, kind in kinds.items()], most=12)
    raise ValueError(
        f"the data set has {len(names)} columns that may be the {what}, of {columns}; leave two of them with "
        "dataset.select_columns([image, label]), and call the label `label` or make it a ClassLabel"
    )


def _items(dataset: Any, rows: np.ndarray) -> Read:
    pictures: list[np.ndarray | bytes] = []
    labels: list[int | str] = []
    for row in rows:
        item = dataset[int(row)]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(f"item {row} is a {type(item).__name__}; expected a pair (image, label)")
        pictures.append(_picture(item[0], row))
        labels.append(_label(item[1], row))
    for row, picture in zip(rows[:_TWICE], pictures, strict=False):
        again = _picture(dataset[int(row)][0], row)
        if not np.array_equal(_comparable(again), _comparable(picture)):
            raise ValueError(
                f"item {row} is another image each time it is read, so a random transform is set; give the data set "
                "without it"
            )
    classes = tuple(str(name) for name in getattr(dataset, "classes", None) or ())
    own = [""] * len(rows)
    arrays = [picture for picture in pictures if isinstance(picture, np.ndarray)]
    if len(arrays) == len(pictures) and len({array.shape for array in arrays}) == 1:
        return np.stack(arrays), labels, own, classes
    blobs = [picture if isinstance(picture, bytes) else raw_image(picture) for picture in pictures]
    return Files(blobs, [f"item {row}" for row in rows]), labels, own, classes


def _comparable(picture: np.ndarray | bytes) -> np.ndarray:
    return np.frombuffer(picture, np.uint8) if isinstance(picture, bytes) else picture


def _picture(image: Any, row: int) -> np.ndarray | bytes:
    """uint8 (H, W, C); or a file, of Pillow's images that are neither grey nor RGB of 8 bits."""
    if isinstance(image, Image.Image):
        if image.mode in ("L", "RGB"):
            pixels = np.asarray(image)
            return pixels[:, :, None] if pixels.ndim == 2 else pixels
        buffer = io.BytesIO()
        image.save(buffer, "TIFF" if image.mode in ("F", "CMYK", "YCbCr", "LAB") else "PNG")
        return buffer.getvalue()
    tensor = hasattr(image, "detach")
    pixels = image.detach().cpu().numpy() if tensor else np.asarray(image)
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.ndim == 3 and shape[0] in (1, 3) and (tensor or shape[2] not in (1, 3)):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(
            f"the image of item {row} is a {type(image).__name__} of shape {shape}; expected Pillow's, an array (H, W) "
            "or (H, W, C), or a tensor (C, H, W), C 1 or 3"
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind != "f":
        raise ValueError(f"the image of item {row} is {pixels.dtype}; expected uint8, or floats from 0 to 1")
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"the image of item {row} has values from {low:.3g} to {high:.3g}; expected 0 to 1, so a transform has "
            "normalised or scaled it; give the data set without that transform"
        )
    return np.ascontiguousarray(np.round(pixels * 255).astype(np.uint8))


def _label(label: Any, row: int) -> int | str:
    if isinstance(label, str):
        return label
    value = np.asarray(label.detach().cpu() if hasattr(label, "detach") else label)
    if value.ndim or value.dtype.kind not in "iub":
        raise ValueError(
            f"the label of item {row} is {value.dtype}{value.shape}; expected a whole number or a text, one an image"
        )
    return int(value)
