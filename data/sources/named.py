"""Well-known data sets by name, as they are published: read by torchvision, or from their usual folders.

torchvision reads what it can download, SVHN included. Its readers for two other folders do not fit: Caltech256 keeps no
file names and assumes consecutive numbers; StanfordCars needs a folder of one fixed name, with the test labels beside
the devkit. Both read local folders only.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latebloom.data.config import FOLDERS, NAMED, TORCHVISION
from latebloom.data.sources.folders import LAYOUTS
from latebloom.data.sources.found import Files, Found, Split, listed
from latebloom.data.sources.parts import IMAGE_SUFFIXES
from latebloom.data.store import in_memory, list_folder, local_file

__all__ = ["FOLDERS", "NAMED", "read_named", "read_published"]


# The folders where each may be in the root, and advice for where it is in none.
_PLACES: dict[str, tuple[tuple[str, ...], str]] = {
    "tiny-imagenet": (
        ("tiny-imagenet-200", "tiny-imagenet"),
        "unpack cs231n.stanford.edu/tiny-imagenet-200.zip so that {place} has train, val and words.txt",
    ),
    "caltech256": (
        ("256_ObjectCategories", "caltech256/256_ObjectCategories"),
        "unpack 256_ObjectCategories.tar of data.caltech.edu/records/nyy15-4j048 so that {place} has 001.ak47 to "
        "257.clutter",
    ),
    "svhn": (
        ("svhn",),
        "put train_32x32.mat and test_32x32.mat of ufldl.stanford.edu/housenumbers into {place}",
    ),
    "stanford-cars": (
        ("stanford_cars", "stanford-cars"),
        "its publisher has taken it down; from a copy, put cars_train, cars_test, and devkit with cars_meta.mat and "
        "cars_train_annos.mat into {place}, and cars_test_annos_withlabels.mat into that or its devkit",
    ),
}
_CALTECH_CLASS = re.compile(r"\d{3}\..+")
_CALTECH_IMAGE = re.compile(r"\d{3}_(\d{4})\.jpe?g", re.IGNORECASE)
_CALTECH_TRAIN = 60


def read_named(name: str, root: Path) -> Found:
    """Read the data set `name`, one of `NAMED`, from the local folder `root`; some are downloaded where missing.

    Raises:
        ValueError: not there and not to be downloaded, or not whole; the message says what to put where.
    """
    if name in TORCHVISION:
        return _torchvision(name, root)
    places, advice = _PLACES[name]
    for place in (*places, "."):
        if (root / place).is_dir() and _recognised(root / place) == name:
            return _READERS[name](root / place, name)
    cause = ""
    if name == "svhn":
        try:
            _download_svhn(root / places[0])
            return _svhn(root / places[0], name)
        except Exception as error:  # a URLError, a full disk, torchvision's RuntimeError
            cause = f" and could not be downloaded ({error})"
    raise ValueError(
        f"{name} is not in {root}{cause}; {advice.format(place=root / places[0])}, or give the path of that folder as "
        "the source"
    )


def read_published(path: Path) -> Found | None:
    """Read the folder of one of `FOLDERS`, recognised by its content; None: it is none of them.

    - tiny-imagenet: the 200 classes of train/<wnid>/images, and val, whose labels are in val/val_annotations.txt, as
      the test part (the labels of its own test part are not public). Class names from words.txt. val may be sorted
      into val/<wnid> or val/<wnid>/images instead.
    - caltech256: all 257 classes as published, so with clutter. Of each class the images numbered 1 to 60 are the
      training part and all others the test part, as in the code of "Data-Efficient Augmentation for Training Neural
      Networks" (arXiv 2210.08363).
    - svhn: the cropped digits of train_32x32.mat and test_32x32.mat, without "extra"; class k is the digit k.
    - stanford-cars: cars_train and cars_test with the annotations of devkit; the boxes are not used.

    Raises:
        ValueError: a file of the layout is missing or does not fit; the message names it.
    """
    name = _recognised(path)
    return _READERS[name](path, str(path)) if name else None


def _recognised(path: Path) -> str:
    """Which of `FOLDERS` has this folder; "": none."""
    entries = {entry.name: is_folder for entry, is_folder in list_folder(path)}
    if entries.get("train"):
        named = entries.keys() & {"words.txt", "wnids.txt"} or (path / "val" / "val_annotations.txt").is_file()
        return "tiny-imagenet" if entries.get("val") and named else ""
    first = next((name for name, is_folder in entries.items() if is_folder and _CALTECH_CLASS.fullmatch(name)), "")
    if entries.get("256_ObjectCategories"):
        return "caltech256"
    if first and any(_CALTECH_IMAGE.fullmatch(file.name) for file, _ in list_folder(path / first)):
        return "caltech256"  # other data sets number their classes so, but not their images
    if entries.keys() & {"train_32x32.mat", "test_32x32.mat"}:
        return "svhn"
    if entries.get("devkit") and entries.get("cars_train"):
        return "stanford-cars"
    return ""


def _torchvision(name: str, root: Path) -> Found:
    from torchvision import datasets

    known: dict[str, tuple[Any, str, dict[str, bool | str]]] = {
        "cifar10": (datasets.CIFAR10, "cifar-10-batches-py", {"train": True, "test": False}),
        "cifar100": (datasets.CIFAR100, "cifar-100-python", {"train": True, "test": False}),
        "flowers102": (datasets.Flowers102, "flowers-102", {"train": "train", "validation": "val", "test": "test"}),
        "fgvc-aircraft": (datasets.FGVCAircraft, "fgvc-aircraft-2013b", {"train": "trainval", "test": "test"}),
    }
    make, folder, parts = known[name]
    splits: dict[str, Split] = {}
    for split, part in parts.items():
        try:
            try:
                made = make(root, part, download=False)
            except (RuntimeError, OSError):  # not there, or not all of it
                made = make(root, part, download=True)
        except Exception as error:  # a URLError, a damaged archive, a full disk, torchvision's RuntimeError
            raise ValueError(
                f"{name} is not in {root} and could not be downloaded ({error}); put it there as torchvision lays it "
                f"out, in {root / folder}, or give the path of your own copy instead: {LAYOUTS}"
            ) from error
        origin = f"{name} {split}"
        if name.startswith("cifar"):
            names = [f"{split}[{row}]" for row in range(len(made.data))]
            splits[split] = Split(made.data, np.asarray(made.targets), origin, names, split)
        else:  # torchvision has no public list of these files
            paths = [Path(file) for file in made._image_files]
            names = [file.relative_to(root).as_posix() for file in paths]
            files = Files(paths, [str(file) for file in paths])
            splits[split] = Split(files, np.asarray(made._labels), origin, names, str(part))
    return tuple(made.classes), splits


def _tiny_imagenet(path: Path, origin: str) -> Found:
    train = {entry.name: _images(entry) for entry in _folders(path / "train")}
    wnids = list(train)
    annotations = path / "val" / "val_annotations.txt"
    if annotations.is_file():
        files, labels = [], []
        for number, line in enumerate(annotations.read_text().splitlines(), 1):
            fields = line.split("\t")
            if len(fields) < 2 or fields[1] not in train:
                raise ValueError(
                    f"line {number} of {annotations} is {line[:60]!r}; expected the name of an image, a tab, and one "
                    f"of the classes {listed(wnids)}"
                )
            files.append(path / "val" / "images" / fields[0])
            labels.append(wnids.index(fields[1]))
    else:
        test = {entry.name: _images(entry) for entry in _folders(path / "val")}
        strange = [name for name in test if name not in train]
        if strange or not test:
            raise ValueError(
                f"{path / 'val'} has neither val_annotations.txt nor folders called like the classes of "
                f"{path / 'train'}{f', but {listed(strange)}' if strange else ''}; unpack the archive again"
            )
        files = [file for members in test.values() for file in members]
        labels = [wnids.index(name) for name, members in test.items() for _ in members]
    labelled = np.repeat(range(len(train)), _sizes(train))
    return _words(path / "words.txt", wnids), {
        "train": _files([f for m in train.values() for f in m], labelled, path, origin, "train"),
        "test": dataclasses.replace(_files(files, np.array(labels, int), path, origin, "test"), part="val"),
    }


def _words(file: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes: the first word of each, or all its words where two classes share the first one."""
    if not file.is_file():
        return tuple(wnids)
    pairs = (line.split("\t", 1) for line in file.read_text().splitlines() if "\t" in line)
    words = {wnid: names.strip() for wnid, names in pairs}
    long = [words.get(wnid, wnid) for wnid in wnids]
    short = [names.split(",")[0] for names in long]
    names = [s if short.count(s) == 1 else whole for s, whole in zip(short, long, strict=True)]
    return tuple(n if names.count(n) == 1 else f"{n} ({wnid})" for n, wnid in zip(names, wnids, strict=True))


def _images(folder: Path) -> list[Path]:
    """The image files of a class, in its images/ if it has one; notes and box lists are skipped."""
    entries = list_folder(folder)
    if any(entry.name == "images" and is_folder for entry, is_folder in entries):
        entries = list_folder(folder / "images")
    files = [entry for entry, is_folder in entries if not is_folder and entry.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(f"{folder} holds no images; unpack the archive again, or remove the folder")
    return files


def _caltech256(path: Path, origin: str) -> Found:
    if (path / "256_ObjectCategories").is_dir():
        path = path / "256_ObjectCategories"
    folders = [folder for folder in _folders(path) if _CALTECH_CLASS.fullmatch(folder.name)]
    parts: dict[str, tuple[list[Path], list[int]]] = {"train": ([], []), "test": ([], [])}
    for label, folder in enumerate(folders):
        for file in _images(folder):  # 056.dog has a folder, and 198.spider a file, that are no images
            match = _CALTECH_IMAGE.fullmatch(file.name)
            if not match:
                raise ValueError(
                    f"{file} is not called NNN_NNNN.jpg, whose number separates training from test images; rename or "
                    "remove it"
                )
            files, labels = parts["train" if int(match[1]) <= _CALTECH_TRAIN else "test"]
            files.append(file)
            labels.append(label)
    return tuple(folder.name.split(".", 1)[1] for folder in folders), {
        split: _files(files, np.array(labels, int), path, origin, split) for split, (files, labels) in parts.items()
    }


def _download_svhn(folder: Path) -> None:
    from torchvision import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        datasets.SVHN(str(folder), split, download=True)


def _svhn(path: Path, origin: str) -> Found:
    from torchvision import datasets

    splits = {}
    for split in ("train", "test"):
        file = path / f"{split}_32x32.mat"
        if not file.is_file():
            raise ValueError(f"{file} is missing; put it there, as it was published")
        with local_file(file) as local:
            try:
                found = datasets.SVHN(local.parent, split)
            except RuntimeError as error:  # another MD5
                raise ValueError(f"{file} is damaged, or is not the published file; get it again") from error
        pixels = np.ascontiguousarray(found.data.transpose(0, 2, 3, 1))  # (N, 3, 32, 32) to (N, 32, 32, 3)
        names = [f"{file.name}[{row}]" for row in range(len(pixels))]
        splits[split] = Split(pixels, found.labels, f"{origin} {split}", names)
    return tuple("0123456789"), splits


def _stanford_cars(path: Path, origin: str) -> Found:
    devkit = path / "devkit"
    test = path / "cars_test_annos_withlabels.mat"  # it was published apart from the devkit, later
    annotations = {
        "train": devkit / "cars_train_annos.mat",
        "test": test if test.is_file() else devkit / test.name,
    }
    (names,) = _mat(devkit / "cars_meta.mat", "class_names")
    class_names = tuple(str(np.ravel(name)[0]) for name in names.ravel())
    splits = {}
    for split, file in annotations.items():
        (records,) = _mat(file, "annotations")
        if not records.dtype.names or not {"fname", "class"} <= set(records.dtype.names):
            raise ValueError(f"{file} has no fname or class in its annotations; expected those of the published devkit")
        images = [str(np.ravel(name)[0]) for name in records["fname"].ravel()]
        labels = np.array([int(np.ravel(label)[0]) for label in records["class"].ravel()], int) - 1  # theirs from 1
        splits[split] = _files([path / f"cars_{split}" / name for name in images], labels, path, origin, split)
    return class_names, splits


def _mat(file: Path, *keys: str) -> list[np.ndarray]:
    """The arrays `keys` of a MATLAB file."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    if not file.is_file():
        raise ValueError(f"{file} is missing; put it there, as it was published")
    try:
        with local_file(file) as local:
            content = loadmat(str(local), variable_names=keys)
    except Exception as error:  # scipy raises a dozen kinds for a damaged file
        raise ValueError(f"{file} cannot be read as a MATLAB file ({error}); get it again") from error
    for key in keys:
        if key not in content:
            raise ValueError(f"{file} has no {key}; is it the published file?")
    return [content[key] for key in keys]


def _folders(path: Path) -> list[Path]:
    return [entry for entry, is_folder in list_folder(path) if is_folder and not entry.name.startswith(".")]


def _sizes(classes: dict[str, list[Path]]) -> list[int]:
    return [len(members) for members in classes.values()]


def _files(files: Sequence[Path], labels: np.ndarray, path: Path, origin: str, split: str) -> Split:
    """A split of the files in the folder `path`."""
    names = [file.relative_to(path).as_posix() for file in files]
    return Split(Files(in_memory(files), [str(file) for file in files]), labels, f"{origin} {split}", names)


_READERS: dict[str, Callable[[Path, str], Found]] = {
    "tiny-imagenet": _tiny_imagenet,
    "caltech256": _caltech256,
    "svhn": _svhn,
    "stanford-cars": _stanford_cars,
}
