"""Data sets that are a table of paths and labels: CSV, TSV, and the metadata files of Hugging Face's imagefolder."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from latebloom.data.config import DataConfig
from latebloom.data.sources.columns import LABEL_NAMES, PATH_NAMES, UNLIKELY_LABELS, choose, like
from latebloom.data.sources.found import Found, Problems, listed
from latebloom.data.sources.parts import (
    ALL,
    IMAGE_SUFFIXES,
    assign,
    holds_images,
    is_image,
    joined,
    leave_out,
    part_of,
    role_of,
    visible,
)
from latebloom.data.sources.rows import Rows, splits_of
from latebloom.data.store import is_remote

__all__ = ["IMAGE_FOLDERS", "TABLES", "first_image", "read_tables", "tables_in"]

TABLES = (".csv", ".tsv", ".jsonl")
_METADATA = ("metadata.csv", "metadata.jsonl")
_ID_NAMES = ("id", "image_id", "img_id", "id_code", "image_name", "image", "filename", "file", "name")
_ANSWERS = ("sample_submission", "samplesubmission")
_SPLIT_NAMES = ("split", "set", "subset", "partition", "part", "usage")
IMAGE_FOLDERS = ("images", "image", "imgs", "img")


def tables_in(path: Path, config: DataConfig) -> dict[str, list[Path]]:
    """The tables of an image folder by part; empty: there are none, or the classes are folders.

    They lie in the folder itself, or in its sub-folders called train, test and so on.

    Raises:
        ValueError: there are several, and their names do not say which to read.
    """
    folders, files = visible(path)
    parts = [folder for folder in folders if role_of(folder.name) or folder.name == config.train]
    train = next((folder for folder in parts if config.train == folder.name or role_of(folder.name) == "train"), path)
    if not (config.label or config.image) and _has_classes(train):
        return {}
    own = _chosen(path, files)
    if own:
        return own
    inner = {folder.name: list(joined(_chosen(folder, visible(folder)[1]))) for folder in parts}
    return {name: tables for name, tables in inner.items() if tables}


def _has_classes(part: Path) -> bool:
    folders, files = visible(part)
    if any(is_image(file.name) for file in files) or any(folder.name.lower() in IMAGE_FOLDERS for folder in folders):
        return False
    # train_images and test_images beside a table are parts of it.
    return sum(holds_images(folder, 0) and not role_of(part_of(folder.name)) for folder in folders) > 1


def _chosen(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The tables of one folder by part."""
    tables = [file for file in files if file.name.lower().endswith(TABLES)]
    tables = [file for file in tables if file.name.lower() in _METADATA] or tables
    # Kaggle's form for answers stands beside the table of labels.
    tables = [file for file in tables if not file.name.lower().startswith(_ANSWERS)] or tables
    parts: dict[str, list[Path]] = {}
    for file in tables:
        parts.setdefault(part_of(file.name), []).append(file)
    if len(tables) > 1 and not any(map(role_of, parts)):
        raise ValueError(
            f"{folder} has {len(tables)} tables: {listed([file.name for file in tables])}; give the one with the path "
            f"and the label of each image as the source, such as {tables[0]}"
        )
    return parts


def read_tables(path: Path, tables: dict[str, list[Path]], config: DataConfig, problems: Problems) -> Found:
    """Read tables of paths and labels.

    The first line of a CSV (commas, semicolons or tabs) or TSV has the names of the columns; a line of a .jsonl is an
    object. Paths are relative to the table, to the folder `path`, to a folder beside the table that is called like it,
    or to `images`. Class names are the sorted labels. A column `split` says which part a row belongs to; without it
    the first folder of the paths, where that is train or test.

    Args:
        path: the data set, a folder or one table.
        tables: the tables of each part.
        config: names parts and columns.
        problems: gets the lines without an image or a label, and those that cannot be read.

    Raises:
        ValueError: a table cannot be read, or parts or columns cannot be guessed; the message names it.
    """
    root = path if path.is_dir() else path.parent
    if config.train == ALL:
        tables = {ALL: list(joined(tables))}
    if len(tables) == 1:  # which may have all parts in it
        ((name, files),) = tables.items()
        whole = Rows(name, str(path))
        splits: list[str] = []
        for file in files:
            splits += _add(whole, file, root, config, problems)
        if any(splits) and config.train != ALL:
            parts = {
                role: _part(whole, path, part, splits)
                for role, part in assign(list(dict.fromkeys(splits)), config, str(path), problems).items()
            }
        else:
            parts = dict.fromkeys(assign([name], config, str(path), problems), whole)
    else:
        parts = {}
        for role, part in assign(list(tables), config, str(path), problems).items():
            parts[role] = Rows(part, f"{path} {part}")
            for file in tables[part]:
                try:
                    _add(parts[role], file, root, config, problems)
                except ValueError as error:
                    raise ValueError(f"{error}{leave_out(role)}") from error
    _name(parts, root, problems)
    return splits_of(parts, (), problems)


def first_image(file: Path, root: Path, config: DataConfig) -> Path | None:
    """The image file that the first line of a table names; None: it names none.

    Args:
        root: the data set, which paths are relative to.

    Raises:
        ValueError: the table cannot be read, or there is no such file.
    """
    _, line = next(_lines(file, Problems()))
    names = [line[config.image]] if config.image else [text for text in line.values() if is_image(text)]
    names = names or [line[name] for name in like(line, _ID_NAMES)]
    if not names:
        return None
    base, suffix = _base(names[:1], file, root)
    return base / _slashes(names[0] + suffix)


def _part(whole: Rows, path: Path, part: str, splits: Sequence[str]) -> Rows:
    kept = [split == part for split in splits]
    rows = Rows(part, f"{path} {part}", whole.blobs, whole.labels, whole.where, whole.rows, whole.own)
    rows.keep(kept)
    return rows


def _add(rows: Rows, file: Path, root: Path, config: DataConfig, problems: Problems) -> list[str]:
    """Add the rows of one table, and return the part that each says it belongs to ("": it does not say)."""
    lines = list(_lines(file, problems))
    names = list(dict.fromkeys(name for _, line in lines for name in line))
    if not lines:
        raise ValueError(f"{file} has no rows; expected a line for each image, with its path and its label")
    first = lines[0][1]
    columns = dict.fromkeys(names, "")
    paths = [name for name in names if is_image(first.get(name, ""))]
    # Kaggle's ids: file names without the suffix.
    paths = paths or [name for name in like(names, _ID_NAMES) if _place(first.get(name, ""), file, root)]
    image = choose(
        "image",
        config.image,
        ([n for n in names if n == "file_name"], like(paths, PATH_NAMES), paths),
        columns,
        str(file),
    )
    rest = [name for name in names if name != image]
    split = next(
        (n for n in like(rest, _SPLIT_NAMES) if any(role_of(line.get(n, "")) for _, line in lines)),
        next((n for n in rest if config.train and any(line.get(n) == config.train for _, line in lines)), ""),
    )
    likely = [n for n in rest if n != split and n.lower() not in UNLIKELY_LABELS and n not in paths]
    ranks = ([n for n in rest if n == "label"], like(likely, LABEL_NAMES), likely)
    label = choose("label", config.label, ranks, columns, str(file))
    base, suffix = _base([line[image] for _, line in lines if line.get(image)], file, root)
    inside = file.relative_to(root).as_posix()
    splits = []
    for row, (number, line) in enumerate(lines):
        where, name = f"line {number} of {file}", line.get(image, "")
        name = name and name + suffix
        place = base / _slashes(name)
        if not name or not (is_remote(base) or place.is_file()):
            what = f"names the image {name}, and there is no file {place}" if name else f"has no {image}"
            problems.add("no image", where, f"{where} {what}; correct the path or drop the line")
        elif not line.get(label):
            problems.add("no label", where, f"{where} has no {label}; give it one or drop the line")
        elif split and not line.get(split):
            problems.add("no part", where, f"{where} has no {split}; give it one or drop the line")
        else:
            rows.add(place, line[label], where, f"{inside}[{row}]", _slashes(name))
            splits.append(line.get(split, "") if split else "")
    if not split:
        tops = [name.split("/")[0] if "/" in name else "" for name in rows.own[-len(splits) :]] if splits else []
        if tops and all(role_of(top) or top == config.train for top in tops):
            return tops
    return splits


def _slashes(name: str) -> str:
    """A path as it is written on this system, also of a table that was written on Windows."""
    return name.replace("\\", "/") if "/" not in name else name


def _base(names: Sequence[str], file: Path, root: Path) -> tuple[Path, str]:
    """The folder that the paths of a table are relative to, and the suffix that its paths leave out ("": none)."""
    for name in names[:10]:
        if found := _place(name, file, root):
            return found
    raise ValueError(
        f"{file} names the images {listed([str(name) for name in names], most=2) or 'nowhere'}, and there are no such "
        f"files in {file.parent} or a folder in it, with or without a suffix; correct the paths, or name the column: "
        "--set data.image=COLUMN"
    )


def _place(name: str, file: Path, root: Path) -> tuple[Path, str] | None:
    """The folder that `name` is relative to, and the suffix that it leaves out; None: there is no such image."""
    if not name:
        return None
    usual = (file.parent, root, file.parent / file.stem, file.parent / "images", root / "images")
    folders = list(dict.fromkeys(usual))
    for folder in folders:
        if (folder / _slashes(name)).is_file():
            return folder, ""
    if is_remote(root):
        return None
    # As Kaggle has it: ids without a suffix, and images in a folder of any name beside the table, but of no other part.
    part = role_of(part_of(file.name)) or "train"
    roles = {folder: role_of(part_of(folder.name)) for folder in visible(file.parent)[0] if folder not in folders}
    folders += [folder for folder, role in roles.items() if role in ("", part)]
    suffixes = ("", *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
    found = [
        (folder, suffix)
        for folder in folders
        for suffix in suffixes
        if is_image(name + suffix) and (folder / _slashes(name + suffix)).is_file()
    ]
    found = [one for one in found if roles.get(one[0]) == part] or found
    if len(found) > 1:
        both = listed([str(folder / _slashes(name + suffix)) for folder, suffix in found])
        raise ValueError(
            f"{file} names the image {name}, which may be any of {both}; give its folder and its suffix too"
        )
    return found[0] if found else None


def _name(parts: dict[str, Rows], root: Path, problems: Problems) -> None:
    """Call each image by its path in the data set, and leave out those that are listed twice."""
    files = [blob for rows in parts.values() for blob in rows.blobs if isinstance(blob, Path)]
    if not files:  # at a URL: named as the table does
        return
    places = [os.path.normpath(file.absolute()) for file in files]
    top = os.path.normpath(root.absolute())
    if any(not place.startswith(top + os.sep) for place in places):
        top = os.path.commonpath([str(Path(place).parent) for place in places])
    names, seen = iter(places), dict[str, str]()
    for rows in parts.values():
        kept = []
        for number, where in enumerate(rows.where):
            place = next(names)
            rows.own[number] = Path(os.path.relpath(place, top)).as_posix()
            kept.append(place not in seen)
            if place in seen:
                problems.add(
                    "listed twice",
                    where,
                    f"{where} names {place}, which {seen[place]} names already; keep one of the lines",
                )
            seen.setdefault(place, where)
        rows.keep(kept)


def _lines(file: Path, problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table that are not empty: of each its number, from 1, and its texts by column."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from error
    if file.suffix.lower() == ".jsonl":
        for number, one in enumerate(text.split("\n"), 1):
            if one.strip():
                try:
                    values = json.loads(one)
                except json.JSONDecodeError as error:
                    values = error
                if isinstance(values, dict):
                    yield number, {key: _text(value) for key, value in values.items()}
                else:
                    where = f"line {number} of {file}"
                    problems.add("not JSON", where, f"{where} is {one[:60]!r}; expected an object, correct or drop it")
        return
    head = text.split("\n", 1)[0]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [name.strip() for name in next(reader, [])]
    if any(map(is_image, columns)):
        raise ValueError(
            f"{file} begins with an image, {listed(columns)}; add a first line with the names of the columns, such as "
            f"path{delimiter}label"
        )
    for values in reader:
        where = f"line {reader.line_num} of {file}"
        if len(values) == len(columns):
            yield reader.line_num, dict(zip(columns, map(str.strip, values), strict=True))
        elif any(values):
            problems.add(
                "not a row",
                where,
                f"{where} has {len(values)} values, but the first line names {len(columns)} columns; correct it",
            )


def _text(value: object) -> str:
    return "" if value is None else str(value)
