"""A coreset from a file: what `latebloom coreset` wrote, as rows of the images that an arm trains on."""

import dataclasses
import io
import zipfile
import zlib

import numpy as np

from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path
from latebloom.flows.stages.arm_rows import Pool
from latebloom.train.selection.coreset import Coreset

__all__ = ["Picks", "check_pictures", "given_to", "read_picks"]

_KINDS = {"indices": "iu", "labels": "iu", "weights": "fiu", "source": "U"}  # NumPy's, of each array


@dataclasses.dataclass(frozen=True)
class Picks:
    """The B picks of a file, as `coreset.pick_coreset` describes them.

    Attributes:
        file: where they come from, for messages.
        indices: int64 (B,), of real images: rows of the training set.
        labels: int64 (B,).
        weights: float32 (B,), finite, at least 0 and not all 0.
        source: str (B,): "real", or the item id of a synthetic image.
        sha256: str (B,): `LabeledImages.sha256` of the picked pictures; "" in a file that does not tell.
    """

    file: str
    indices: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    source: np.ndarray
    sha256: np.ndarray


def read_picks(file: str) -> Picks:
    """The picks in a file, path or URL.

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
                "one value a pick, as `latebloom coreset` writes"
            )
    with np.errstate(over="ignore"):  # told below
        weights = arrays["weights"].astype(np.float32)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(
            f"{path}: pick {bad[0]} has weight {weights[bad[0]]} ({len(bad)} such picks); expected finite ones of at "
            "least 0"
        )
    if not weights.any():
        raise ValueError(
            f"{path} has {len(weights)} picks, none with a weight above 0, so there is nothing to train on"
        )
    indices, labels = (arrays[name].astype(np.int64) for name in ("indices", "labels"))
    return Picks(str(path), indices, labels, weights, arrays["source"], arrays["sha256"])


def check_pictures(picks: Picks, train: LabeledImages) -> None:
    """Refuse picks of real images that are other pictures here, as where an image was added to a folder before them.

    Raises:
        ValueError: of another data set.
    """
    here = np.array(train.sha256)
    told = np.flatnonzero((picks.source == "real") & (picks.sha256 != ""))
    differ = told[here[picks.indices[told]] != picks.sha256[told]]
    if len(differ):
        raise ValueError(
            f"{picks.file} is of another data set: its pick {differ[0]} is another picture than image "
            f"{picks.indices[differ[0]]} here ({len(differ)} such picks)"
        )


def given_to(
    whose: str, picks: Picks, labels: np.ndarray, pool: Pool, rows: np.ndarray, *, real_alone: bool = False
) -> Coreset:
    """The picks as rows of a classifier's training set; of an image that is in it several times, the first.

    Args:
        whose: names it in messages.
        labels: int64, of all images of the pool, real and synthetic.
        rows: int64 (n,), which of them the training set has.
        real_alone: leave the synthetic picks out, as where their images are not made yet.

    Raises:
        ValueError: picks of another data set, one that is picked twice, or synthetic ones that are not in the rows.
    """
    is_real = picks.source == "real"
    outside = np.flatnonzero(is_real & ((picks.indices < 0) | (picks.indices >= pool.n_real)))
    if len(outside):
        raise ValueError(
            f"{picks.file} is of another data set: its pick {outside[0]} is image {picks.indices[outside[0]]}, here "
            f"there are {pool.n_real} training images ({len(outside)} such picks)"
        )
    place = np.full(len(labels), -1)  # of each image, in `rows`
    place[rows[::-1]] = np.arange(len(rows))[::-1]
    found = np.array([pool.items.get(name, -1) for name in picks.source.tolist()], np.int64)
    found = np.where(is_real, picks.indices, found)  # rows of the pool
    known = np.flatnonzero(found >= 0)
    differ = known[labels[found[known]] != picks.labels[known]]
    if len(differ):
        pick = differ[0]
        raise ValueError(
            f"{picks.file} is of another data set: its pick {pick}, image {picks.indices[pick]}, has label "
            f"{picks.labels[pick]} there and {labels[found[pick]]} here ({len(differ)} such picks)"
        )
    indices, weights = np.where(found >= 0, place[found], -1), picks.weights
    if real_alone:
        indices, weights = indices[is_real], weights[is_real]
    missing = np.count_nonzero(indices < 0)
    if missing:
        raise ValueError(
            f"{whose} has not {missing} of the {len(indices)} picks of {picks.file}: they are synthetic images that it "
            "does not train on; pick from the images of this arm, or name an arm that has them, such as all-5+file"
        )
    again = len(indices) - len(np.unique(indices))
    if again:
        raise ValueError(f"{picks.file} picks {again} images a second time; each may be there once, weighted instead")
    return Coreset(indices, weights)
