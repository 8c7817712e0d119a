"""Data sets that are rows of a table: what a reader of tables gathers, and the splits that it becomes."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from latebloom.data.sources.found import Files, Found, Problems, Split, listed, numbered
from latebloom.data.sources.parts import leave_out
from latebloom.data.store import in_memory

__all__ = ["Rows", "coded", "raw_image", "splits_of"]


@dataclasses.dataclass
class Rows:
    """The rows of one part, in order, each with an image and a label.

    Attributes:
        part: its name.
        origin: where it came from.
        blobs: of each row the encoded image, or its file.
        labels: integers, or the names of classes.
        where: of each row what errors call it, such as `row 3 of a.parquet`.
        rows: of each row the file and its number: `a.parquet[3]`.
        own: of each row the name or path that the table has for it; "": none.
    """

    part: str
    origin: str
    blobs: list[bytes | Path] = dataclasses.field(default_factory=list)
    labels: list[int | str] = dataclasses.field(default_factory=list)
    where: list[str] = dataclasses.field(default_factory=list)
    rows: list[str] = dataclasses.field(default_factory=list)
    own: list[str] = dataclasses.field(default_factory=list)

    def add(self, blob: bytes | Path, label: int | str, where: str, row: str, own: str = "") -> None:
        self.blobs.append(blob)
        self.labels.append(label)
        self.where.append(where)
        self.rows.append(row)
        self.own.append(own)

    def keep(self, kept: Iterable[object]) -> None:
        """Leave out the rows that are not `kept`, a truth value a row."""
        self.blobs = list(itertools.compress(self.blobs, kept))
        self.labels = list(itertools.compress(self.labels, kept))
        self.where = list(itertools.compress(self.where, kept))
        self.rows = list(itertools.compress(self.rows, kept))
        self.own = list(itertools.compress(self.own, kept))


def splits_of(parts: dict[str, Rows], given: tuple[str, ...], problems: Problems) -> Found:
    """The splits of the parts, which are called `train`, `test` and `validation`.

    Labels that are texts are numbered by the sorted texts of the training part. An image is called by its own name
    where each has one that no other of its part has, with the part before it where another part has the same; else by
    its file and row.

    Args:
        parts: as a reader gathered them; rows whose label is no class are taken out of them.
        given: the class names that integer labels count from 0; (): "0".."K-1".
        problems: gets the rows whose label is no class.

    Raises:
        ValueError: no label of a part is a class.
    """
    class_names, codes, kept = coded(
        {role: (rows.origin, rows.labels) for role, rows in parts.items()},
        {role: rows.where for role, rows in parts.items()},
        given,
        problems,
    )
    for role, rows in parts.items():
        rows.keep(kept[role])
    names = _names(parts)
    return class_names, {
        role: Split(
            Files(in_memory_all(rows.blobs), rows.where),
            codes[role],
            rows.origin,
            names[role],
            rows.part,
        )
        for role, rows in parts.items()
    }


def in_memory_all(blobs: list[bytes | Path]) -> Sequence[bytes | Path]:
    """As `in_memory`, of what may be in memory already."""
    files = [blob for blob in blobs if not isinstance(blob, bytes)]
    if len(files) < len(blobs):
        fetched = iter(in_memory(files))
        return [blob if isinstance(blob, bytes) else next(fetched) for blob in blobs]
    return in_memory(files)


def _names(parts: dict[str, Rows]) -> dict[str, list[str]]:
    """What each image is called, by part."""
    if not all(_is_name(name) for rows in parts.values() for name in rows.own):
        return {role: rows.rows for role, rows in parts.items()}
    own = {role: rows.own for role, rows in parts.items()}
    in_parts = {role: [f"{rows.part or role}/{name}" for name in rows.own] for role, rows in parts.items()}
    for names in (own, in_parts):
        if len({name for part in names.values() for name in part}) == sum(map(len, names.values())):
            return names
    return {role: rows.rows for role, rows in parts.items()}


def _is_name(name: str) -> bool:
    """Whether a name that came with a row may be shown, and made a path below some folder."""
    return bool(name) and name.isprintable() and not name.startswith("/") and not {"..", "."} & set(name.split("/"))


def coded(
    labels: Mapping[str, tuple[str, Sequence[int | str]]],
    where: Mapping[str, Sequence[str]],
    given: tuple[str, ...],
    problems: Problems,
) -> tuple[tuple[str, ...], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The class names, and of each part the labels as numbers.

    Args:
        labels: of `train` and the other parts the origin and the labels, integers or texts.
        where: of each of them what errors call it.
        given: the class names that integer labels count from 0; (): "0".."K-1", or "1".."K" where no label is 0.
        problems: gets those that are no class of the training part.

    Returns:
        The class names; by part int64 (n,) the labels that are a class, and bool (N,) which those are.

    Raises:
        ValueError: no label of a part is a class.
    """
    origin, first = labels["train"]
    texts = {label for label in first if isinstance(label, str)}
    if texts and not texts <= set(given):
        whole = all(text.isdecimal() for text in texts)
        names = tuple(sorted(texts, key=lambda text: (int(text), text) if whole else (0, text)))
    elif given:
        names = given
    else:
        numbers = [
            np.array([label for label in part if not isinstance(label, str)], int) for _, part in labels.values()
        ]
        numbers = [part[part >= 0] for part in numbers]  # -1 is no label
        names = numbered(origin, numbers)
        if len(names) > 1 and all(part.all() for part in numbers):  # no label is 0
            names = names[1:]
            problems.note(f"{origin}: its labels count from 1, so class 1 is the first")
    start = 0 if texts or given else int(names[0])
    codes: dict[int | str, int] = {name if texts else start + code: code for code, name in enumerate(names)}
    found, kept = {}, {}
    for role, (other, part) in labels.items():
        kept[role] = np.array([label in codes for label in part], bool)
        if len(part) and not kept[role].any():
            raise ValueError(
                f"{other}: no label is a class; the first is {part[0]!r}, the classes of {origin} are "
                f"{listed(names)}; correct the labels{leave_out(role)}"
            )
        for row in np.flatnonzero(~kept[role]).tolist():
            problems.add(
                "label that is no class",
                where[role][row],
                f"{where[role][row]} has label {part[row]!r}, but the classes of {origin} are {listed(names)}; correct "
                "or remove it",
            )
        found[role] = np.array([codes[label] for label in part if label in codes], np.int64)
    return names, found, kept


def raw_image(pixels: np.ndarray) -> bytes:
    """uint8 (H, W) or (H, W, C), C 1 or 3, as PPM: a header and the raw pixels."""
    height, width = pixels.shape[:2]
    grey = pixels.ndim == 2 or pixels.shape[2] == 1
    return b"P%d %d %d 255\n" % (5 if grey else 6, width, height) + pixels.tobytes()
