"""Data sets in arrays: .npz files, as MedMNIST's or with keys such as x_train and y_train."""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Found, Problems, Split, listed
from latebloom.data.sources.parts import ALL, assign, leave_out, role_of
from latebloom.data.sources.rows import coded
from latebloom.data.sources.uniform import check_pixels
from latebloom.data.store import local_file

__all__ = ["first_side", "read_npz"]

_IMAGES = ("images", "image", "x", "data", "imgs", "img")
_LABELS = ("labels", "label", "y", "targets", "target")
_NAMES = ("class_names", "classes", "label_names")


def read_npz(path: Path, config: DataConfig, problems: Problems) -> Found:
    """Read an .npz file.

    Images are uint8 (N, H, W) or (N, H, W, 3); labels integers or texts, (N,) or (N, 1). The keys of a part are its
    name and one of images, x, data and of labels, y, targets: train_images, x_test, val_labels. Without parts they are
    images and labels, or what `config.image` and `config.label` name. `class_names` where it is there.

    Raises:
        ValueError: not an archive, or an array is missing or does not fit; the message names it.
    """
    with local_file(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not an .npz archive, or it is damaged; write it with numpy.savez")
        with np.load(file, allow_pickle=False) as archive:
            parts = _parts(archive.files, config, path)
            chosen = assign(list(parts), config, str(path), problems)
            arrays: dict[str, tuple[str, np.ndarray, str, np.ndarray]] = {}
            for role, part in chosen.items():
                image, label = parts[part]
                if not (image and label):
                    raise ValueError(
                        f"{path} has no array of the {'labels' if image else 'images'} that belong to "
                        f"{image or label}; it has {listed(archive.files, most=12)}; add or name it{leave_out(role)}"
                    )
                labels = _flat_labels(_array(archive, path, label), f"{path} {label}")
                if role == "validation" and not len(labels):
                    continue  # as `latebloom export` writes it where there is none
                arrays[role] = image, _array(archive, path, image), f"{path} {part}".removesuffix(f" {ALL}"), labels
            given = next((_array(archive, path, name) for name in _NAMES if name in archive.files), None)
    for image, images, _, labels in arrays.values():
        check_pixels(images, f"{path} {image}")
        if len(images) != len(labels):
            raise ValueError(f"{path} has {len(images)} {image} but {len(labels)} labels; give one label an image")
    if given is not None and (given.ndim != 1 or given.dtype.kind != "U"):
        raise ValueError(f"{path} class_names is {given.dtype}{given.shape}; expected a 1-D array of strings")
    names = () if given is None else tuple(given.tolist())
    class_names, codes, kept = coded(
        {role: (origin, labels.tolist()) for role, (_, _, origin, labels) in arrays.items()},
        {role: [f"{image}[{row}]" for row in range(len(images))] for role, (image, images, _, _) in arrays.items()},
        names,
        problems,
    )
    splits = {}
    for role, (image, images, origin, _) in arrays.items():
        rows = np.flatnonzero(kept[role])
        pixels = (images if images.ndim == 4 else images[..., None])[rows]
        splits[role] = Split(pixels, codes[role], origin, [f"{image}[{row}]" for row in rows], chosen[role])
    return class_names, splits


def first_side(path: Path, config: DataConfig) -> int:
    """The shorter side in pixels of the training images, from the header of their array.

    Raises:
        ValueError: there is none, or which it is cannot be guessed.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        parts = _parts([name.removesuffix(".npy") for name in archive.namelist()], config, path)
        image, _ = parts[assign(list(parts), config, str(path), Problems())["train"]]
        with archive.open(f"{image}.npy") as array:
            version: Any = np.lib.format.read_magic(array)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return min(read(array)[0][1:3])


def _parts(keys: list[str], config: DataConfig, path: Path) -> dict[str, tuple[str, str]]:
    """By part, the keys of its images and its labels; a part that lacks one has "" for it."""
    kinds: dict[str, tuple[str, ...]] = {
        "image": (config.image,) if config.image else _IMAGES,
        "label": (config.label,) if config.label else _LABELS,
    }
    asked = {config.train, config.test, config.validation} - {""}
    parts: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        words = re.split(r"[_\-./ ]", key)
        part = next((word for word in words if word in asked or role_of(word)), ALL)
        rest = "_".join(word for word in words if word != part)
        for kind, names in kinds.items():
            if key in names or rest.lower() in names:
                parts.setdefault(part, {}).setdefault(kind, []).append(key)
    if not any("image" in kind for kind in parts.values()):
        raise ValueError(
            f"{path} has no array of images; it has {listed(keys, most=12)}; call them train_images, train_labels, "
            "test_images and test_labels, or name them: --set data.image=KEY --set data.label=KEY"
        )
    for part, found in parts.items():
        for kind, several in found.items():
            if len(several) > 1:
                raise ValueError(
                    f"{path} has {len(several)} arrays that may be the {kind}s: {listed(several)}; name the right one: "
                    f"--set data.{kind}={several[0].removeprefix(part + '_')}"
                )
    return {part: (found.get("image", [""])[0], found.get("label", [""])[0]) for part, found in parts.items()}


def _array(archive: Any, path: Path, key: str) -> np.ndarray:
    try:
        return np.asarray(archive[key])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} {key} cannot be read ({error}); arrays must be plain numbers or strings, whole and without pickles"
        ) from error


def _flat_labels(labels: np.ndarray, name: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuUb":
        raise ValueError(
            f"{name} is {labels.dtype}{labels.shape}; expected integers or texts (N,) or (N, 1), a class an image"
        )
    return labels.astype(str) if labels.dtype.kind == "b" else labels
