"""WebDataset shards: .tar files in which an image and its label have one name with two endings."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from latebloom.data.config import DataConfig
from latebloom.data.sources.columns import LABEL_NAMES, UNLIKELY_LABELS, choose, like
from latebloom.data.sources.found import Found, Problems, listed
from latebloom.data.sources.parts import ALL, assign, is_image, joined, leave_out
from latebloom.data.sources.rows import Rows, splits_of
from latebloom.data.store import local_file

__all__ = ["TARS", "first_image", "read_shards"]

TARS = (".tar", ".tar.gz", ".tgz")
_CLASSES = ("cls", "label", "cls.txt", "label.txt")  # endings of a file whose text is the label


def read_shards(path: Path, shards: dict[str, list[Path]], config: DataConfig, problems: Problems) -> Found:
    """Read WebDataset shards: of each sample an image, and a .cls or a .json with its label.

    A sample is the members of one name up to the first dot. They are read one after the other into memory, encoded;
    nothing is unpacked, so no name of a member is ever a path. `config.label` names the key of the .json, and
    `config.image` the ending of the image where a sample has several.

    Args:
        path: the data set, a folder or one file.
        shards: the files of each part.
        config: names parts, ending and key.
        problems: gets the samples without an image or a label.

    Raises:
        ValueError: a file cannot be read, or parts, endings or keys cannot be guessed; the message names it.
    """
    if config.train == ALL:
        shards = {ALL: list(joined(shards))}
    root = path if path.is_dir() else path.parent
    parts: dict[str, Rows] = {}
    for role, part in assign(list(shards), config, str(path), problems).items():
        parts[role] = rows = Rows(part, f"{path} {part}" if len(shards) > 1 else str(path))
        images = 0
        for file in shards[part]:
            inside = file.relative_to(root).as_posix()
            for row, (key, members) in enumerate(_whole(file)):
                where = f"sample {key} of {file}"
                image = _image(members, config, file)
                label = _label(members, config, file)
                images += bool(image)
                if not image:
                    problems.add("no image", where, f"{where} has {listed(list(members))} and no image; add or drop it")
                elif label in (None, ""):
                    problems.add(
                        "no label",
                        where,
                        f"{where} has {listed(list(members))} and no label in a .cls or .json; add or drop it",
                    )
                else:
                    rows.add(members[image], label, where, f"{inside}[{row}]", f"{key}.{image}")
        if images and not rows.blobs:
            raise ValueError(
                f"{rows.origin} has {images} images and no label in a .cls or .json beside any; if its folders are the "
                f"classes, unpack it and give the folder{leave_out(role)}"
            )
    return splits_of(parts, (), problems)


def first_image(file: Path, config: DataConfig) -> bytes | None:
    """The image of the first sample of a file, and no more of it read; None: it has none.

    Raises:
        ValueError: the file cannot be read, or which of several images it is cannot be guessed.
    """
    with file.open("rb") as stream:  # at a URL too: its beginning
        _, members = next(_samples(file, stream))
    return members.get(_image(members, config, file))


def _whole(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    with local_file(file) as local, local.open("rb") as stream:
        yield from _samples(file, stream)


def _samples(file: Path, stream: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of one file: of each its key, and its contents by ending."""
    current, members = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as opened:
            for member in opened:
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                content = opened.extractfile(member) if member.isfile() else None
                if not content or not stem or not dot:
                    continue
                key = f"{folder}/{stem}".removeprefix("./").lstrip("/")
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                members[ending.lower()] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as tar ({error}); write or download it again") from error
    if members:
        yield current, members


def _image(members: dict[str, bytes], config: DataConfig, file: Path) -> str:
    """The ending of the image of a sample; "": it has none."""
    images = [ending for ending in members if is_image(f".{ending}")]
    if config.image:
        return config.image if config.image in members else ""
    return choose(
        "image", "", ([e for e in images if "." not in e], images, [""]), dict.fromkeys(members, ""), str(file)
    )


def _label(members: dict[str, bytes], config: DataConfig, file: Path) -> int | str | None:
    """The label of a sample; None: it has none."""
    ending = next((ending for ending in _CLASSES if ending in members), "")
    if ending and not config.label:
        return _typed(members[ending].decode("utf-8", "replace").strip())
    if "json" not in members:
        return None
    try:
        values: Any = json.loads(members["json"])
    except ValueError:
        return None
    if not isinstance(values, dict):
        return _typed(str(values))
    simple = {key: "" for key, value in values.items() if isinstance(value, str | int)}
    likely = [key for key in simple if key.lower() not in UNLIKELY_LABELS]
    ranks = ([key for key in simple if key == "label"], like(simple, LABEL_NAMES), likely)
    value = values[choose("label", config.label, ranks, dict.fromkeys(values, ""), f"the .json of {file}")]
    return str(value) if isinstance(value, bool) else value


def _typed(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text
