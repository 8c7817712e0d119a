"""What a reader of a data set found: its splits, not yet checked, and all that is wrong with them."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from latebloom.data.depth import and_others
from latebloom.data.names import listed

__all__ = ["Files", "Found", "Problem", "Problems", "Split", "listed", "numbered"]


@dataclasses.dataclass(frozen=True)
class Files:
    """Encoded images, as bytes or path, and a name of each for errors: its path, or its row and file."""

    blobs: Sequence[bytes | Path]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.blobs)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split as a reader found it, not yet checked.

    Attributes:
        images: uint8 (N, H, W, C), or files.
        labels: integers (N,).
        origin: where the split came from.
        names: of each image the name that its owner knows it by, each once: the path in the data set with forward
            slashes (`train/big cat/004.png`), or the array or file and the row in it (`train_images[17]`).
        part: what the data set calls this part, such as `val`; "" where it has no name of its own.
    """

    images: np.ndarray | Files
    labels: np.ndarray
    origin: str
    names: Sequence[str]
    part: str = ""


Found = tuple[tuple[str, ...], dict[str, Split]]  # class names, and the splits by name: "train", "test", ...


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        kind: the same for all of its kind, such as "not readable": problems are counted by it.
        where: the file, row, class or part.
        message: what came, what was expected, what to do.
        severity: an error keeps the data set from being loaded, a warning does not.
    """

    kind: str
    where: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __post_init__(self) -> None:
        for name in ("where", "message"):  # a file's name may have bytes that no terminal can show
            object.__setattr__(self, name, getattr(self, name).encode("utf-8", "backslashreplace").decode())


class Problems:
    """Collects what is wrong, so that a person is told all of it at once.

    A reader adds what concerns one file, row or class and goes on without it; where it cannot go on, it raises.
    `notes` are no problems: what was assumed, in a sentence each.
    """

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.notes: list[str] = []

    def add(self, kind: str, where: str, message: str, severity: Literal["error", "warning"] = "error") -> None:
        self.found.append(Problem(kind, where, message, severity))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def errors(self) -> list[Problem]:
        """Those that keep the data set from being loaded."""
        return [problem for problem in self.found if problem.severity == "error"]

    def refuse(self, source: str) -> None:
        """Refuse the data set if there is an error.

        Raises:
            ValueError: the first error, what the others concern, and the command that lists them.
        """
        errors = self.errors()
        if errors:
            then = f"; `latebloom check {shlex.quote(source)}` lists all"
            raise ValueError(and_others(errors[0].message, [error.where for error in errors[1:]], then))


def numbered(origin: str, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """ "0".."K-1", the class names of labels without names.

    Raises:
        ValueError: a label not smaller than the number of images, so that some class must be empty.
    """
    images = sum(len(part) for part in labels)
    top = max((int(part.max()) for part in labels if len(part)), default=0)
    if top >= images > 0:  # a wrong label of 2**40 must not become a tuple of that many names
        raise ValueError(f"{origin} has label {top} but only {images} images; number the classes 0..K-1 without gaps")
    return tuple(str(label) for label in range(top + 1))
