"""A coreset from a file: what `latebloom coreset` or a person wrote, as rows of the images that an arm trains on."""

import csv
import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from latebloom.data.images import LabeledImages
from latebloom.data.sources.found import listed
from latebloom.data.store import as_path
from latebloom.train.selection.coreset import Coreset

__all__ = ["SelectedExamples", "as_coreset", "on_images", "on_variants", "read_selected"]

_KINDS = {"indices": "iu", "labels": "iu", "weights": "fiu", "source": "U"}  # NumPy's, of each array
_LATER = {"sha256": "U", "names": "U"}  # which files of older versions do not have


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
        names: str (B,): of real images, `LabeledImages.names`; "" in a file that has none.

    A table of names has no rows and no labels: they are -1 until `on_images` finds them.
    """

    file: str
    indices: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    source: np.ndarray
    sha256: np.ndarray
    names: np.ndarray


def read_selected(file: str) -> SelectedExamples:
    """The selected examples in a file, path or URL: an .npz that `write_coreset` wrote, or a .csv of names.

    Raises:
        ValueError: there is none, it is no coreset, or it has weights that cannot be trained with.
    """
    path = as_path(file)
    if not path.is_file():
        raise ValueError(f"there is no coreset at {path}; give a coreset-METHOD.npz that `latebloom coreset` wrote")
    if path.suffix.lower() == ".csv":
        return _listed(path, path.read_bytes())
    content = io.BytesIO(path.read_bytes())
    if not zipfile.is_zipfile(content):
        raise ValueError(f"{path} is not an .npz archive, or it is damaged; give one that `latebloom coreset` wrote")
    content.seek(0)
    try:
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in (*_KINDS, *_LATER) if name in archive.files}
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `latebloom coreset`") from error
    if "indices" in arrays:
        for name in _LATER:
            arrays.setdefault(name, np.full(arrays["indices"].shape, ""))
    for name, kinds in {**_KINDS, **_LATER}.items():
        if name not in arrays:
            raise ValueError(f"{path} has no array {name}; expected {', '.join(_KINDS)}, as `latebloom coreset` writes")
        array = arrays[name]
        if array.ndim != 1 or array.dtype.kind not in kinds or len(array) != len(arrays["indices"]):
            raise ValueError(
                f"{path}: {name} is {array.dtype}{array.shape} beside {arrays['indices'].shape} of indices; expected "
                "one value an example, as `latebloom coreset` writes"
            )
    weights = _checked_weights(path, arrays["weights"])
    indices, labels = (arrays[name].astype(np.int64) for name in ("indices", "labels"))
    return SelectedExamples(str(path), indices, labels, weights, arrays["source"], arrays["sha256"], arrays["names"])


def _checked_weights(path: Path, found: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused below
        weights = found.astype(np.float32)
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
    return weights


def _listed(path: Path, content: bytes) -> SelectedExamples:
    """The examples of a table: a column `file` with names of images, and what else the one of `write_coreset` has."""
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); write it as CSV in UTF-8") from error
    if not rows or "file" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no row"
        raise ValueError(f"{path} has {found}; expected a column file with names of images, and weight if they differ")
    weights = []
    for number, row in enumerate(rows):
        if not row["file"]:
            raise ValueError(f"{path}: row {number + 1} has no file; give the name of an image")
        try:
            weights.append(float(row.get("weight", 1)))
        except (TypeError, ValueError):
            raise ValueError(f"{path}: row {number + 1} has weight {row['weight']!r}; expected a number") from None
    unknown = np.full(len(rows), -1)
    kept = _checked_weights(path, np.array(weights))
    source, digests = (np.array([row.get(*of) or of[1] for row in rows]) for of in (("source", "real"), ("sha256", "")))
    return SelectedExamples(str(path), unknown, unknown, kept, source, digests, np.array([row["file"] for row in rows]))


def on_images(selected: SelectedExamples, train: LabeledImages) -> SelectedExamples:
    """The examples with the rows that their images have in `train`, which may stand in another order by now.

    An image is found by its pixels where the file has their digests, and else by its name; names settle which of equal
    images is meant. Examples of which the file has neither stay the rows that they were.

    Raises:
        ValueError: images that are not among these; the message has the first.
    """
    indices, labels = selected.indices.copy(), selected.labels.copy()
    real = np.flatnonzero(selected.source == "real")
    here: dict[str, list[int]] = {}
    for row, digest in enumerate(train.sha256):
        here.setdefault(digest, []).append(row)
    by_name = _rows_by_name({str(selected.names[place]) for place in real}, train.names)
    absent = []
    for place in real.tolist():
        name, digest, row = str(selected.names[place]), str(selected.sha256[place]), int(indices[place])
        if digest:
            rows = here.get(digest, [])
            if row in rows and name in ("", train.names[row]):
                continue
            # Of equal images the one of this name, or else of this label.
            rows = sorted(rows, key=lambda row: (train.names[row] != name, train.labels[row] != labels[place], row))
        elif name:
            rows = by_name.get(name, [])
            if len(rows) > 1:
                found = listed([train.names[row] for row in rows])
                raise ValueError(f"{selected.file}: {name!r} names {len(rows)} images: {found}; give more of the name")
        else:
            continue
        if not rows:
            absent.append(place)
            continue
        indices[place] = rows[0]
        if labels[place] < 0:
            labels[place] = train.labels[rows[0]]
    if absent:
        one = absent[0]
        image = repr(str(selected.names[one])) if selected.names[one] else f"image {indices[one]}"
        raise ValueError(
            f"{selected.file} is of another data set: its example {one}, {image}, is not among the {len(train)} "
            f"training images ({len(absent)} such examples)"
        )
    return dataclasses.replace(selected, indices=indices, labels=labels)


def on_variants(selected: SelectedExamples, digests: Mapping[str, str]) -> SelectedExamples:
    """The synthetic examples by the item ids that their images have now, which move where a data set has grown.

    Examples without digest keep the item id that they have; those that are not there any more have none.

    Args:
        digests: by item id, `digest_pixels` of the synthetic images.
    """
    now = {digest: item for item, digest in digests.items()}
    source = [
        item if item == "real" or digest in ("", digests.get(item)) else now.get(digest, "")
        for item, digest in zip(selected.source.tolist(), selected.sha256.tolist(), strict=True)
    ]
    return dataclasses.replace(selected, source=np.array(source))


def _rows_by_name(wanted: set[str], names: Sequence[str]) -> dict[str, list[int]]:
    """The rows of the images that have each wanted name; where none has it whole, of those that end so after a `/`."""
    whole: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name in wanted:
            whole.setdefault(name, []).append(row)
        end = name.partition("/")[2]
        while end:
            if end in wanted:
                ends.setdefault(end, []).append(row)
            end = end.partition("/")[2]
    return ends | whole


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
