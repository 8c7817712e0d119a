"""A synthetic data set as a torch `Dataset`, to stand beside a real one in a training loop that is not ours."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from latebloom.data.states import STATES
from latebloom.data.store import as_path
from latebloom.data.synthetic.folder import SyntheticFolder

__all__ = ["SyntheticImages"]


class SyntheticImages(Dataset[tuple[Any, Any]]):
    """The images of a synthetic data set that may be trained on: item i is (picture, label), as of torchvision's sets.

    All PNG files are held in memory, encoded, and decoded when they are asked for; with more of them than memory,
    `latebloom export --format webdataset` writes shards to stream.

    Args:
        path: the folder with manifest.json, or the run folder around it; path or URL.
        transform: of the picture, a PIL image; None: the picture itself.
        target_transform: of the label, an int.
        states: images of these are taken.
        classes: the class names of the real data set in the order of its labels, such as `ImageFolder.classes`; labels
            are numbers in it. None: the order that the data set was made in.
        mode: L or RGB: pictures are converted to it, as torchvision's ImageFolder does to RGB; empty: as they are.

    Attributes:
        classes: the class names; the index is the label.
        targets: the labels, list of int.
        rows: the rows of the data set that were taken, without the image column: of item i, row i has its reference,
            level, seed, scores (a pyarrow table).

    Raises:
        ValueError: no finished data set, damaged parts, no such state, no image in these states, a class that `classes`
            does not have.
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        *,
        states: Sequence[str] = ("ok",),
        classes: Sequence[str] | None = None,
        mode: Literal["", "L", "RGB"] = "",
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        place = as_path(str(path))
        folder = SyntheticFolder(place / "synthetic" if (place / "synthetic").is_dir() else place)
        unknown = [state for state in states if state not in STATES]
        if unknown:
            raise ValueError(f"no state is called {unknown[0]!r}; states: {', '.join(STATES)}")
        table = folder.rows()
        chosen = table.filter(pc.is_in(table["state"], pa.array(states, pa.string())))
        if not chosen.num_rows:
            raise ValueError(f"{folder.path} has no image that is {' or '.join(states)}, of {table.num_rows} images")
        made: list[str] = folder.manifest()["class_names"]
        self.classes = list(made if classes is None else classes)
        missing = [name for name in made if name not in self.classes]
        if missing:
            raise ValueError(
                f"{folder.path} has the class {missing[0]!r}, which is not among {self.classes}; give the class names "
                "of the data set that it was made from"
            )
        numbers = np.array([self.classes.index(name) for name in made])
        self.targets: list[int] = numbers[chosen["label"].to_numpy()].tolist()
        self.rows = chosen.drop_columns(["image"])
        self.transform, self.target_transform, self.mode = transform, target_transform, mode
        self._blobs = pc.struct_field(chosen["image"], "bytes")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        with Image.open(io.BytesIO(self._blobs[row].as_py())) as opened:
            picture = opened.convert(self.mode) if self.mode else opened.copy()
        label = self.targets[row]
        return (
            self.transform(picture) if self.transform else picture,
            self.target_transform(label) if self.target_transform else label,
        )
