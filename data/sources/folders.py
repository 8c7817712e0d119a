"""Data sets that are folders: finds out what a folder holds, and reads one folder a class.

Nothing is decoded here. A reader lists files or rows with their labels; uniform.py checks the images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latebloom.data.config import DataConfig
from latebloom.data.sources.arrays import read_npz
from latebloom.data.sources.columns import refuse_columns
from latebloom.data.sources.found import Files, Found, Problems, Split, listed
from latebloom.data.sources.parquet import read_parquet, read_saved
from latebloom.data.sources.parts import (
    ALL,
    IMAGE_SUFFIXES,
    assign,
    holds_images,
    is_image,
    leave_out,
    part_of,
    role_of,
    sharded,
    visible,
)
from latebloom.data.sources.shards import TARS, read_shards
from latebloom.data.sources.tables import IMAGE_FOLDERS, read_tables, tables_in
from latebloom.data.store import in_memory, list_folder

__all__ = ["LAYOUTS", "read_folder"]

LAYOUTS = (
    "a folder with train/<class>/<image> and test/<class>/<image> or with the classes alone, Hugging Face's parquet, a "
    "table of path and label, an .npz with train_images and train_labels, or WebDataset's .tar; docs/layouts.md has all"
)
_JUNK_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log")


def read_folder(path: Path, config: DataConfig, problems: Problems) -> Found:
    """Read a folder, by what lies in it: docs/layouts.md has the layouts.

    Raises:
        ValueError: no layout fits, or a part or column cannot be guessed; the message says what to name.
    """
    folders, files = visible(path)
    names = {file.name for file in files}
    if names & {"dataset_dict.json", "state.json"}:
        return read_saved(path, config, problems)
    pictures = any(holds_images(folder) for folder in folders if role_of(folder.name) == "train")
    shards = {} if pictures else sharded(path, (".parquet",))
    if shards:
        return read_parquet(path, shards, config, problems)
    if holds_images(path):
        tables = tables_in(path, config)
        if tables:
            return read_tables(path, tables, config, problems)
        refuse_columns(config, f"{path} has folders of images and no table")
        return _class_folders(path, folders, files, config, problems)
    shards = sharded(path, TARS)
    if shards:
        return read_shards(path, shards, config, problems)
    alone = [file for file in files if file.suffix.lower() == ".npz"]
    if len(alone) > 1:
        raise ValueError(
            f"{path} has {len(alone)} .npz files: {listed([file.name for file in alone])}; give one that has all parts "
            f"as the source, such as {alone[0]}"
        )
    if alone:
        return read_npz(alone[0], config, problems)
    tables = tables_in(path, config)  # of images that lie elsewhere
    if tables:
        return read_tables(path, tables, config, problems)
    entries = listed([entry.name for entry, _ in list_folder(path)]) or "nothing"
    raise ValueError(f"{path} holds {entries}, and no images, tables or arrays; expected {LAYOUTS}")


def _class_folders(
    path: Path, folders: Sequence[Path], files: Sequence[Path], config: DataConfig, problems: Problems
) -> Found:
    """Read an image folder: the classes are the sub-folders of the training part, by name."""
    names = [folder.name for folder in folders]
    asked = [name for name in (config.train, config.test, config.validation) if "/" in name and (path / name).is_dir()]
    if config.train == ALL or (not asked and not config.train and not any(map(role_of, names))):
        chosen = {"train": ALL}
        flat = [folder.name for folder in folders if holds_images(folder, depth=0)]
        roles = [role_of(part_of(name)) for name in flat]
        if config.train != ALL and len(flat) > 1 and all(roles) and len(set(roles)) == len(flat):
            raise ValueError(
                f"{path} has the folders {listed(flat)}, which are called like parts and hold images without classes; "
                f"expected <part>/<class>/<image>, or a table of path and label beside them. If they are the classes: "
                f"--set data.train={ALL}"
            )
    else:
        outer = {name.split("/")[0] for name in asked}
        chosen = assign([*(name for name in names if name not in outer), *asked], config, str(path), problems)
        for file in files:
            if is_image(file.name):
                problems.note(f"{path}: the image {file.name} is in no part, and not used")
    found = {role: _classes(path, part, role, problems) for role, part in chosen.items()}
    class_names = tuple(found["train"])
    splits = {}
    for role, classes in found.items():
        for name in [name for name in classes if name not in class_names]:
            where = _place(path, chosen[role]) / name
            problems.add(
                "class without training images",
                str(where),
                f"{where} is a class that {_place(path, chosen['train'])} does not have; its classes are "
                f"{listed(class_names)}; rename or remove it",
            )
            del classes[name]
        members = [file for inner in classes.values() for file in inner]
        labels = np.repeat([class_names.index(name) for name in classes], [len(inner) for inner in classes.values()])
        splits[role] = Split(
            Files(in_memory(members), [str(file) for file in members]),
            labels.astype(np.int64),
            str(_place(path, chosen[role])),
            [file.relative_to(path).as_posix() for file in members],
            chosen[role].removesuffix(ALL),
        )
    return class_names, splits


def _place(path: Path, part: str) -> Path:
    return path if part == ALL else path / part


def _classes(path: Path, name: str, role: str, problems: Problems) -> dict[str, list[Path]]:
    """The image files in each sub-folder of the part `name`, both sorted by name."""
    part = _place(path, name)
    folders, files = visible(part)
    loose = [file for file in files if not _is_junk(file)]
    if not folders:
        if not loose:
            raise ValueError(f"{part} is empty; expected {part}/<class>/<image>{leave_out(role)}")
        beside = [f for f in visible(path)[0] if not role_of(f.name) and any(is_image(i.name) for i in visible(f)[1])]
        advice = leave_out(role)
        if beside and name != ALL:
            advice = f"; if {name} is a class, as {listed([f.name for f in beside])}, take all: --set data.train={ALL}"
        raise ValueError(
            f"{part} has no class folders, so its files ({listed([file.name for file in loose])}) have no labels; "
            f"expected {part}/<class>/<image>, or a table of path and label{advice}"
        )
    for file in loose:
        problems.add(
            "in no class", str(file), f"{file} is in no class; expected {part}/<class>/<image>, so move or remove it"
        )
    classes: dict[str, list[Path]] = {}
    nested: list[Path] = []
    for folder in folders:
        inner, files = visible(folder)
        images = [file for file in files if is_image(file.name)]
        if inner and not images:
            nested.append(folder)
        for file in inner if images else ():
            problems.add(
                "folder in a class",
                str(file),
                f"{file} is a folder inside a class folder; put its images into {folder} itself",
            )
        for file in files:
            if not is_image(file.name) and not _is_junk(file):
                problems.add(
                    "not an image",
                    str(file),
                    f"{file} is not one of {', '.join(IMAGE_SUFFIXES)}; convert it to PNG or remove it",
                )
        if images:
            classes[folder.name] = images
        elif not inner:
            problems.add("empty class", str(folder), f"{folder} holds no images; add some or remove the folder")
    if nested and not classes:
        deeper = [entry.name for entry in visible(nested[0])[0]]
        advice = "move the class folders up, or give a table of path and label"
        if len(nested) == 1:
            below = nested[0].relative_to(path).as_posix()
            advice = f"give {nested[0]} as the source" if name == ALL else f"set where it is: --set data.{role}={below}"
        elif name == ALL:
            roles = {role_of(part_of(folder.name)): folder.name for folder in nested}
            parts = {role: roles[role] for role in ("train", "test", "validation") if role in roles}
            parts = parts if "train" in parts else {"train": nested[0].name}
            names = " ".join(f"--set data.{role}={name}" for role, name in parts.items())
            advice = f"if it is a part and not a class, name the parts: {names}; if it is a class, move its images up"
        raise ValueError(
            f"{nested[0]} holds the folders {listed(deeper)} and no images, one folder deeper than the expected "
            f"{part}/<class>/<image>; {advice}"
        )
    for folder in nested:
        problems.add(
            "folder in a class",
            str(folder),
            f"{visible(folder)[0][0]} is a folder inside a class folder; put its images into {folder} itself",
        )
    if len(classes) == 1 and next(iter(classes)).lower() in IMAGE_FOLDERS:
        raise ValueError(
            f"{part} has all images in the one folder {next(iter(classes))}, so they have no labels; expected "
            f"{part}/<class>/<image>, or a table of path and label (.csv, .tsv or .jsonl) beside that folder"
        )
    if not classes:
        raise ValueError(f"{part} has no class folder with images; expected {part}/<class>/<image>")
    return classes


def _is_junk(file: Path) -> bool:
    """Notes and tables that people keep beside their images."""
    return file.suffix.lower() in _JUNK_SUFFIXES
