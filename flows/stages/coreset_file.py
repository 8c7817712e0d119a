"""A coreset from a file: what `latebloom coreset` wrote, as rows of the images that an arm trains on."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path
from latebloom.train.selection.coreset import Coreset

__all__ = ["SelectedExamples", "as_coreset", "check_images", "read_selected"]

_KINDS = {"indices": "iu", "labels": "iu", "weights": "fiu", "source": "U"}  # NumPy's, of each array


@dataclasses.dataclass(frozen=True)
class SelectedExamples:
    """The B selected examples of a file, as `write_coreset` describes them.

    Attributes:
        file: where they come from, for messages.
        indices: int64 (B,), of real images: rows of the training set.
        labels: int64 (B,).
        weights: float32 (B,), finite, at least 0 and not all 0.
        source: str (B,): "real", or the item id of a synthetic image.
        sha256: str (B,): `LabeledImages.sha256` of the selected images; "" in a file that has none.
    """

    file: str
    indices: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    source: np.ndarray
    sha256: np.ndarray


def read_selected(file: str) -> SelectedExamples:
    """The selected examples in a file, path or URL.

    Raises:
        ValueError: there is none, it is no coreset, or it has weights that cannot be trained with.
    """
    path = as_path(file)
    if not path.is_file():
        raise ValueError(f"there is no coreset at {path}; give a coreset-METHOD.npz that `latebloom coreset` wrote")
    content = io.BytesIO(path.read_bytes())
    if not zipfile.is_zipfile(content):
        raise ValueError(f"{path} is not an .npz archive, or it is damaged; give one that `latebloom coreset` wrote")
    content.seek(0)
    try:
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in (*_KINDS, "sha256") if name in archive.files}
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `latebloom coreset`") from error
    if "indices" in arrays:
        arrays.setdefault("sha256", np.full(arrays["indices"].shape, ""))
    for name, kinds in {**_KINDS, "sha256": "U"}.items():
        if name not in arrays:
            raise ValueError(f"{path} has no array {name}; expected {', '.join(_KINDS)}, as `latebloom coreset` writes")
        array = arrays[name]
        if array.ndim != 1 or array.dtype.kind not in kinds or len(array) != len(arrays["indices"]):
            raise ValueError(
                f"{path}: {name} is {array.dtype}{array.shape} beside {arrays['indices'].shape} of indices; expected "
                "one value an example, as `latebloom coreset` writes"
            )
    with np.errstate(over="ignore"):  # refused below
        weights = arrays["weights"].astype(np.float32)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(
            f"{path}: example {bad[0]} has weight {weights[bad[0]]} ({len(bad)} such examples); expected finite ones "
            "of at least 0"
        )
    if not weights.any():
        raise ValueError(
            f"{path} has {len(weights)} examples, none with a weight above 0, so there is nothing to train on"
        )
    indices, labels = (arrays[name].astype(np.int64) for name in ("indices", "labels"))
    return SelectedExamples(str(path), indices, labels, weights, arrays["source"], arrays["sha256"])


def check_images(selected: SelectedExamples, train: LabeledImages) -> None:
    """Refuse examples that are other images here, as where an image was added to a folder before them.

    Raises:
        ValueError: of another data set.
    """
    here = np.array(train.sha256)
    known = np.flatnonzero((selected.source == "real") & (selected.sha256 != ""))
    differ = known[here[selected.indices[known]] != selected.sha256[known]]
    if len(differ):
        raise ValueError(
            f"{selected.file} is of another data set: its example {differ[0]} is another image than image "
            f"{selected.indices[differ[0]]} here ({len(differ)} such examples)"
        )


def as_coreset(
    whose: str,
    selected: SelectedExamples,
    labels: np.ndarray,
    rows: np.ndarray,
    n_real: int,
    items: Mapping[str, int] | None = None,
) -> Coreset:
    """Selected examples as rows of a classifier's training set; of an image that is in it several times, the first.

    Args:
        whose: names it in messages.
        labels: int64, of all images, real ones first.
        rows: int64 (n,), which of them the training set has.
        n_real: how many real images there are.
        items: by item id, the row of a synthetic image; None: they are not made yet, and synthetic examples left out.

    Raises:
        ValueError: examples of another data set, one that is there twice, or synthetic ones that are not in the rows.
    """
    file, is_real = selected.file, selected.source == "real"
    outside = np.flatnonzero(is_real & ((selected.indices < 0) | (selected.indices >= n_real)))
    if len(outside):
        raise ValueError(
            f"{file} is of another data set: its example {outside[0]} is image {selected.indices[outside[0]]}, here "
            f"there are {n_real} training images ({len(outside)} such examples)"
        )
    place = np.full(len(labels), -1)  # of each image, in `rows`
    place[rows[::-1]] = np.arange(len(rows))[::-1]
    found = np.array([(items or {}).get(name, -1) for name in selected.source.tolist()], np.int64)
    found = np.where(is_real, selected.indices, found)
    known = np.flatnonzero(found >= 0)
    differ = known[labels[found[known]] != selected.labels[known]]
    if len(differ):
        one = differ[0]
        raise ValueError(
            f"{file} is of another data set: its example {one}, image {selected.indices[one]}, has label "
            f"{selected.labels[one]} there and {labels[found[one]]} here ({len(differ)} such examples)"
        )
    indices, weights = np.where(found >= 0, place[found], -1), selected.weights
    if items is None:
        indices, weights = indices[is_real], weights[is_real]
    missing = np.count_nonzero(indices < 0)
    if missing:
        raise ValueError(
            f"{missing} of the {len(indices)} examples of {file} are synthetic images that {whose} does not train on; "
            "select from the images of this arm, or name an arm that has them, such as all-5+file"
        )
    again = len(indices) - len(np.unique(indices))
    if again:
        raise ValueError(f"{file} has {again} images a second time; each may be there once, with a larger weight")
    return Coreset(indices, weights)
