"""Files of a person's own early model: its outputs on the training images, or the slow images that it found."""

import csv
import dataclasses
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latebloom.data.sources.found import listed
from latebloom.data.store import as_path

__all__ = ["GivenOutputs", "read_indices", "read_outputs"]

_NAME_COLUMNS = ("file", "name", "path", "filename", "image")
_ROW_COLUMNS = ("row", "index", "indices")
_YES = ("1", "yes", "true")


@dataclasses.dataclass(frozen=True)
class GivenOutputs:
    """What a file says of n images.

    Attributes:
        file: for messages.
        logits: float32 or float64 (seeds, n, C); of probabilities their logarithms. None: only losses are known.
        losses: float (seeds, n); None where there are logits.
        once: whether the file has one model's outputs, without an axis of seeds.
        labels: (n,), integers or class names; None: not in the file.
        names: str (n,); None: not in the file.
    """

    file: str
    logits: np.ndarray | None
    losses: np.ndarray | None
    once: bool
    labels: np.ndarray | None
    names: np.ndarray | None


def read_outputs(file: str) -> GivenOutputs:
    """The outputs in an .npz file, path or URL.

    Raises:
        ValueError: there is no such file, or it is something else; the message says what it should have.
    """
    arrays = _npz(file, "logits or probabilities (N, C) and labels (N,), or losses (N,)")
    kinds = [name for name in ("logits", "probabilities", "losses") if name in arrays]
    if len(kinds) != 1 and kinds != ["logits", "losses"]:  # a run of ours has both, of which one follows
        raise ValueError(
            f"{file} has the arrays {listed(list(arrays))}; expected logits or probabilities (N, C) with labels (N,), "
            "or losses (N,)"
        )
    kind = kinds[0]
    values, labels, names = arrays[kind], arrays.get("labels"), arrays.get("names")
    dimensions = 1 if kind == "losses" else 2
    if values.ndim not in (dimensions, dimensions + 1) or values.dtype.kind not in "fiu":
        shape = "(N,) or (seeds, N)" if kind == "losses" else "(N, C) or (seeds, N, C)"
        raise ValueError(f"{file}: {kind} are {values.dtype}{values.shape}, expected numbers {shape}")
    once = values.ndim == dimensions
    values = values[None] if once else values
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).reshape(*values.shape[:2], -1).all((0, 2)))
    if len(bad):
        raise ValueError(f"{file}: {kind} of row {bad[0]} are not finite ({len(bad)} such rows); leave none out")
    if kind == "probabilities":
        values = _logarithms(file, values)
    for name, array in (("labels", labels), ("names", names)):
        if array is not None and array.shape != values.shape[1:2]:
            raise ValueError(
                f"{file}: {name} are {array.shape} beside {kind} of {values.shape[1]} images; give one each"
            )
    if kind != "losses" and labels is None and names is None:
        raise ValueError(f"{file} has {kind} and neither labels nor names, by which their order is checked; add labels")
    if names is not None and names.dtype.kind != "U":
        raise ValueError(f"{file}: names are {names.dtype}, expected text")
    if labels is not None and labels.dtype.kind not in "iuU":
        raise ValueError(f"{file}: labels are {labels.dtype}, expected integers or names of classes")
    logits, losses = (None, values) if kind == "losses" else (values, None)
    return GivenOutputs(file, logits, losses, once, labels, names)


def _logarithms(file: str, probabilities: np.ndarray) -> np.ndarray:
    sums = probabilities.sum(-1)
    bad = np.flatnonzero(((probabilities < 0).any(-1) | (np.abs(sums - 1) > 1e-2)).any(0))
    if len(bad):
        raise ValueError(
            f"{file}: probabilities of row {bad[0]} are not 0 or more with a sum of 1 ({len(bad)} such rows); if they "
            "are logits, call the array logits"
        )
    tiny = np.finfo(probabilities.dtype).tiny
    logarithms: np.ndarray = np.log(np.maximum(probabilities, tiny))
    return logarithms


def read_indices(file: str) -> np.ndarray | list[str]:
    """The images that a file names: row numbers int64 (S,), or names.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    suffix = as_path(file).suffix.lower()
    if suffix == ".npz":
        arrays = _npz(file, "indices (S,)")
        if "indices" not in arrays:
            raise ValueError(f"{file} has the arrays {listed(list(arrays))}; expected indices (S,)")
        return _rows(file, arrays["indices"])
    if suffix == ".npy":
        return _rows(file, np.asarray(_loaded(file)))
    if suffix == ".csv":
        return _of_table(file)
    if suffix == ".txt":
        return _rows_or_names([line.strip() for line in _text(file).splitlines() if line.strip()])
    raise ValueError(f"{file} is no .npz, .npy, .txt or .csv; give one with a row number or a file name for each image")


def _of_table(file: str) -> np.ndarray | list[str]:
    """The column of names or rows of a CSV; where it has a column `slow`, as slow.csv, of the lines that say yes."""
    lines = list(csv.reader(io.StringIO(_text(file))))
    header = [name.strip().lower() for name in lines[0]] if lines else []
    column = next((header.index(name) for name in (*_NAME_COLUMNS, *_ROW_COLUMNS) if name in header), None)
    if column is None:
        if lines and all(len(line) == 1 for line in lines if line):
            return _rows_or_names([line[0].strip() for line in lines if line])
        raise ValueError(
            f"{file} has the columns {listed(header)}; expected {listed(list(_NAME_COLUMNS))} or "
            f"{listed(list(_ROW_COLUMNS))}"
        )
    chosen = header.index("slow") if "slow" in header else None
    rows = [line for line in lines[1:] if line and (chosen is None or line[chosen].strip().lower() in _YES)]
    values = [line[column].strip() for line in rows]
    if header[column] in _NAME_COLUMNS:
        return values
    bad = [value for value in values if not value.isdecimal()]
    if bad:
        raise ValueError(f"{file} has {bad[0]!r} in the column {header[column]}; expected row numbers from 0")
    return np.array([int(value) for value in values], np.int64)


def _rows_or_names(values: Sequence[str]) -> np.ndarray | list[str]:
    if all(value.isdecimal() for value in values):
        return np.array([int(value) for value in values], np.int64)
    return list(values)


def _rows(file: str, rows: np.ndarray) -> np.ndarray:
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"{file} holds {rows.dtype}{rows.shape}, expected row numbers, integers (S,)")
    return rows.astype(np.int64)


def _text(file: str) -> str:
    try:
        return _there(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error}); save it as UTF-8") from error


def _npz(file: str, wanted: str) -> dict[str, np.ndarray]:
    arrays = _loaded(file)
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{file} holds one array; expected an .npz with {wanted}, as numpy.savez writes it")
    return dict(arrays)


def _there(file: str) -> Path:
    path = as_path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {file}; give the path of one, or leave the setting empty")
    return path


def _loaded(file: str) -> Any:
    """An array, or arrays by name."""
    if as_path(file).suffix.lower() in (".pt", ".pth", ".pkl"):
        raise ValueError(
            f"{file} is a pickle by its name, which may run code and is not read; write "
            "numpy.savez('outputs.npz', logits=logits.numpy(), labels=labels.numpy()) and give that"
        )
    content = io.BytesIO(_there(file).read_bytes())
    try:
        found = np.load(content, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); arrays must be plain numbers or text, whole and without pickles, as "
            "numpy.savez writes them"
        ) from error
