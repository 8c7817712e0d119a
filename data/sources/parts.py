"""Which part of a data set is which: by the usual names of splits, or as the config names them."""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Found, Problems, listed
from latebloom.data.store import is_remote, list_folder

__all__ = [
    "ALL",
    "IMAGE_SUFFIXES",
    "as_asked",
    "assign",
    "holds_images",
    "is_image",
    "joined",
    "leave_out",
    "part_of",
    "role_of",
    "sharded",
    "visible",
]

ALL = "."  # as `data.train`: all there is, whatever it is called
NONE = "none"  # as `data.test` or `data.validation`: the part is left out

_USUAL = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev"),
}
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".tga", ".jp2", ".jfif", ".avif"),
)
_JUNK = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found")
_SUFFIX = re.compile(r"\.(parquet|arrow|csv|tsv|jsonl|tar|tar\.gz|tgz)$", re.IGNORECASE)
_SHARD = re.compile(r"(^|[-_.])\d+([-_.]of[-_.]\d+)?$")
_PEEK = 50  # entries of a folder that say what it holds: a class may have a million


def role_of(name: str) -> str:
    """train, test or validation, where `name` is a usual name of it; else ""."""
    return next((role for role, names in _USUAL.items() if name.lower() in names), "")


def part_of(name: str) -> str:
    """The part that a file or folder belongs to by its name: `train` of `cats-train-00000-of-00002.parquet`."""
    stem = _SUFFIX.sub("", name)
    words = [word for word in re.split(r"[^A-Za-z]+", stem) if role_of(word)]
    if len({role_of(word) for word in words}) == 1:
        return words[0]
    return _SHARD.sub("", stem)


def assign(found: Sequence[str], config: DataConfig, where: str, problems: Problems) -> dict[str, str]:
    """Which of the parts `found` is train, test and validation; those that are not there are left out.

    Args:
        found: names of the parts.
        config: `train`, `test` and `validation` name parts; what they leave empty is found by its usual names.
        where: the data set, for errors.
        problems: gets a note of each part that is not used.

    Raises:
        ValueError: a part that is named is not there, a part has two roles, or a role cannot be guessed.
    """
    asked = {role: getattr(config, role) for role in _USUAL}
    chosen: dict[str, str] = {}
    for role, name in asked.items():
        if name in ("", NONE):
            continue
        if name not in found:
            raise ValueError(f"{where} has no part {name}, which data.{role} names; its parts are {listed(found)}")
        if name in chosen.values():
            raise ValueError(f"part {name} of {where} is named twice, as data.{role} too; name each part once")
        chosen[role] = name
    left = [name for name in found if name not in chosen.values()]
    for role, name in asked.items():
        names = [name for name in left if role_of(name) == role]
        if name == NONE and role != "train":
            left = [name for name in left if name not in names]
        elif not name and len(names) > 1:
            raise ValueError(
                f"{where} has {len(names)} parts that may be the {role} part: {listed(names)}; name the right one: "
                f"--set data.{role}={names[0]}"
            )
        elif not name and names:
            chosen[role] = names[0]
    left = [name for name in left if name not in chosen.values()]
    if "train" not in chosen:
        free = [name for name in left if not role_of(name)]
        if len(free) != 1:
            raise ValueError(
                f"{where} has the parts {listed(found)}, and none of them is called train; name the part to train on: "
                f"--set data.train={(free or left or list(found))[0]}, or {ALL} for all together"
            )
        chosen["train"] = free[0]
        left.remove(free[0])
    for name in left:
        problems.note(f"{where}: its part {name} is not used")
    return chosen


def as_asked(found: Found, config: DataConfig) -> Found:
    """The parts of a data set whose parts are known, with the roles that the config names for them.

    Raises:
        ValueError: a part that is named is not there, or has two roles.
    """
    class_names, splits = found
    by_name = {split.part or role: split for role, split in splits.items()}
    asked = {role: getattr(config, role) for role in _USUAL if getattr(config, role)}
    kept = {role: split for role, split in splits.items() if role not in asked}
    for role, name in asked.items():
        if name == NONE and role != "train":
            continue
        if name not in by_name:
            raise ValueError(
                f"{config.source} has no part {name}, which data.{role} names; its parts are {listed(list(by_name))}"
            )
        if list(asked.values()).count(name) > 1:
            raise ValueError(f"part {name} of {config.source} is named twice; name each part once")
        kept = {other: split for other, split in kept.items() if split is not by_name[name]}
        kept[role] = by_name[name]
    if "train" not in kept:
        raise ValueError(f"no part of {config.source} is left to train on; name it too: --set data.train=PART")
    return class_names, kept


def leave_out(role: str) -> str:
    """The advice for a part that cannot be read, where the data set can do without it."""
    return "" if role == "train" else f", or leave the part out: --set data.{role}={NONE}"


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """The sub-folders and the files of a folder, sorted, without hidden ones and what systems leave behind."""
    entries = [entry for entry in list_folder(folder) if _shown(entry[0].name)]
    return [path for path, is_folder in entries if is_folder], [path for path, is_folder in entries if not is_folder]


def _shown(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _JUNK


def _peek(folder: Path) -> tuple[list[Path], list[Path]]:
    """As `visible`, of the first entries of the folder alone, in no order."""
    if is_remote(folder):
        return visible(folder)
    with os.scandir(folder) as entries:
        first = list(itertools.islice((entry for entry in entries if _shown(entry.name)), _PEEK))
    return [folder / e.name for e in first if e.is_dir()], [folder / e.name for e in first if not e.is_dir()]


def holds_images(folder: Path, depth: int = 4) -> bool:
    """Whether there are images in a folder, or up to `depth` folders below."""
    folders, files = _peek(folder)
    if any(is_image(file.name) for file in files):
        return True
    return depth > 0 and any(holds_images(inner, depth - 1) for inner in folders)


def sharded(path: Path, suffixes: tuple[str, ...], depth: int = 3) -> dict[str, list[Path]]:
    """The files below a folder that end in `suffixes`, by the part they belong to; empty: there are none.

    The files of the folder itself, by their names; else of its sub-folders called train, test and so on; else of its
    only sub-folder with such files.

    Raises:
        ValueError: several sub-folders have such files, and they are not called like parts.
    """
    folders, files = _peek(path)
    if not folders and not any(file.name.lower().endswith(suffixes) for file in files):
        return {}
    folders, files = visible(path)
    parts: dict[str, list[Path]] = {}
    for file in files:
        if file.name.lower().endswith(suffixes):
            parts.setdefault(part_of(file.name), []).append(file)
    if parts or not depth:
        return parts
    inner = {folder.name: sharded(folder, suffixes, depth - 1) for folder in folders}
    inner = {name: found for name, found in inner.items() if found}
    if any(role_of(part_of(name)) for name in inner):
        for name, found in inner.items():
            parts.setdefault(part_of(name), []).extend(joined(found))
        return parts
    if len(inner) > 1:
        raise ValueError(
            f"{path} has {len(inner)} folders with {suffixes[0]} files, {listed(list(inner))}, each a data set of its "
            f"own; give one of them as the source, such as {path / next(iter(inner))}"
        )
    return next(iter(inner.values()), {})


def joined(parts: dict[str, list[Path]]) -> Iterable[Path]:
    """The files of all parts."""
    return itertools.chain.from_iterable(parts.values())
