"""Data sets in Arrow tables: Hugging Face's parquet files, and the folders of `save_to_disk`."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latebloom.data.config import DataConfig
from latebloom.data.sources.columns import (
    LABEL_NAMES,
    PATH_NAMES,
    PICTURE_NAMES,
    ROW_NAMES,
    UNLIKELY_LABELS,
    choose,
    like,
)
from latebloom.data.sources.found import Found, Problems, listed
from latebloom.data.sources.parts import ALL, assign, joined, leave_out
from latebloom.data.sources.rows import Rows, raw_image, splits_of
from latebloom.data.store import local_file, read_json

__all__ = ["first_image", "read_parquet", "read_saved"]

_AGAIN = "copy or download the folder again"

# pyarrow takes long to import, and most commands read no parquet: the function that needs it imports it.


def read_parquet(path: Path, shards: dict[str, list[Path]], config: DataConfig, problems: Problems) -> Found:
    """Read parquet files.

    The image is a struct with `bytes` or `path`, binary, the path of a file, or nested lists of 0 to 255, (H, W) or
    (H, W, C). The label is an integer, a text or a boolean. Class names are from the Hugging Face metadata, else the
    sorted texts, else "0".."K-1". The encoded images are all held in memory.

    Args:
        path: the data set, which names and paths are relative to; a folder or one file.
        shards: the files of each part.
        config: names parts and columns.
        problems: gets the rows without an image or a label.

    Raises:
        ValueError: a file cannot be read, or parts or columns cannot be guessed; the message names it.
    """
    return _read(path, shards, config, problems, _open_parquet)


def read_saved(path: Path, config: DataConfig, problems: Problems) -> Found:
    """Read a folder that `save_to_disk` of Hugging Face's datasets wrote, of one data set or a dict of them.

    Raises:
        ValueError: as `read_parquet`.
    """
    many = path / "dataset_dict.json"
    folders = {name: path / name for name in read_json(many, _AGAIN)["splits"]} if many.exists() else {"": path}
    shards = {
        name: [folder / file["filename"] for file in read_json(folder / "state.json", _AGAIN)["_data_files"]]
        for name, folder in folders.items()
    }
    return _read(path, shards, config, problems, _open_arrow)


def first_image(file: Path, root: Path, config: DataConfig) -> bytes | Path | None:
    """The image of the first row of a parquet file, and little more read than that; None: it has none.

    Args:
        root: the data set, which paths are relative to.

    Raises:
        ValueError: the columns cannot be guessed.
    """
    import pyarrow
    import pyarrow.parquet

    with file.open("rb") as source, pyarrow.parquet.ParquetFile(source) as opened:  # at a URL too: parts of it
        image = _columns(opened.schema_arrow, file, config)[0]
        batch = next(opened.iter_batches(batch_size=1, row_groups=[0], columns=[image], use_threads=False))
    blob, _ = next(_blobs(pyarrow.chunked_array([batch[image]]), file, root))
    return None if isinstance(blob, str) else blob


Columns = Callable[[Any], list[str]]  # of a schema, the columns to read


def _open_parquet(file: Path, columns: Columns) -> Any:
    import pyarrow.parquet

    with local_file(file) as local, pyarrow.parquet.ParquetFile(local) as opened:
        return opened.read(columns=columns(opened.schema_arrow))


def _open_arrow(file: Path, columns: Columns) -> Any:
    import pyarrow

    with local_file(file) as local, pyarrow.OSFile(str(local)) as source, pyarrow.ipc.open_stream(source) as opened:
        return opened.read_all().select(columns(opened.schema))


def _read(
    path: Path,
    shards: dict[str, list[Path]],
    config: DataConfig,
    problems: Problems,
    read: Callable[[Path, Columns], Any],
) -> Found:
    import pyarrow

    if config.train == ALL:
        shards = {ALL: list(joined(shards))}
    parts: dict[str, Rows] = {}
    class_names: dict[Path, tuple[str, ...]] = {}
    root = path if path.is_dir() else path.parent
    for role, part in assign(list(shards), config, str(path), problems).items():
        parts[role] = rows = Rows(part, f"{path} {part}" if len(shards) > 1 else str(path))
        for file in shards[part]:
            chosen: list[str] = []

            def columns(schema: Any, file: Path = file, chosen: list[str] = chosen) -> list[str]:
                chosen[:] = _columns(schema, file, config)
                return chosen

            try:
                table = read(file, columns)
                features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            except (pyarrow.ArrowException, OSError, json.JSONDecodeError) as error:
                kind = file.suffix.lstrip(".")
                raise ValueError(f"{file} cannot be read as {kind} ({error}); write or download it again") from error
            except ValueError as error:  # its columns
                raise ValueError(f"{error}{leave_out(role)}") from error
            image, label, *named = chosen
            class_names[file] = tuple(_features(features).get(label, {}).get("names", ()))
            own = table[named[0]].to_pylist() if named else [None] * len(table)
            _add(rows, table, image, label, own, file, root, problems)
    first = shards[parts["train"].part][0]
    for file, given in class_names.items():
        if given != class_names[first]:
            raise ValueError(
                f"{file} names its classes {listed(given) or 'not at all'}, but {first} "
                f"{listed(class_names[first]) or 'not at all'}; write all files with the same features"
            )
    return splits_of(parts, class_names[first], problems)


def _features(info: dict[str, Any]) -> dict[str, Any]:
    """Of each column, what Hugging Face's metadata says of it."""
    features = info.get("info", {}).get("features", {})
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _columns(schema: Any, file: Path, config: DataConfig) -> list[str]:
    """The names of the image and the label column, and of a column that has a name for each image, if there is one."""
    from pyarrow import types

    kinds = {field.name: _plain(field.type) for field in schema}
    try:
        features = _features(json.loads((schema.metadata or {}).get(b"huggingface", b"{}")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} cannot be read as parquet ({error}); write or download it again") from error

    def of(kind: str) -> list[str]:
        return [name for name in kinds if features.get(name, {}).get("_type") == kind]

    def is_text(kind: Any) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind))

    texts = [name for name, kind in kinds.items() if is_text(kind)]
    pictures = [name for name, kind in kinds.items() if _is_picture(kind)]
    columns = {name: str(kind) for name, kind in kinds.items()}
    ranks = ([n for n in pictures if n == "image"], of("Image"), like(pictures, PICTURE_NAMES), pictures)
    image = choose("image", config.image, (*ranks, like(texts, PATH_NAMES)), columns, str(file))
    labels = [
        name
        for name, kind in kinds.items()
        if name != image
        and (types.is_integer(kind) or types.is_boolean(kind) or is_text(kind) or types.is_dictionary(kind))
    ]
    likely = [name for name in labels if name.lower() not in UNLIKELY_LABELS]
    ranks = ([n for n in labels if n == "label"], of("ClassLabel"), like(labels, LABEL_NAMES), likely)
    label = choose("label", config.label, ranks, columns, str(file))
    if not (is_text(kinds[image]) or _is_picture(kinds[image])):
        raise ValueError(
            f"{file} has {kinds[image]} in its image column {image}; expected a struct with bytes or path, binary, "
            "the path of a file, or nested lists of 0 to 255"
        )
    if label not in labels:
        raise ValueError(
            f"{file} has {kinds[label]} in its label column {label}; expected an integer, a text or a boolean, one "
            "label an image"
        )
    return [image, label, *[name for name in like(texts, ROW_NAMES) if name not in (image, label)][:1]]


def _plain(kind: Any) -> Any:
    """The type that is stored, of an extension type such as Hugging Face's Array3D."""
    return getattr(kind, "storage_type", kind)


def _is_picture(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return bool(max(kind.get_field_index("bytes"), kind.get_field_index("path")) >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind)) or (_is_list(kind) and _is_list(kind.value_type))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _add(
    rows: Rows,
    table: Any,
    image: str,
    label: str,
    names: Sequence[str | None],
    file: Path,
    root: Path,
    problems: Problems,
) -> None:
    """Add the rows of one file; `names` are those of a column of names."""
    inside = file.relative_to(root).as_posix()
    columns = zip(_blobs(table[image], file, root), _labels(table[label]), names, strict=True)
    for row, ((blob, own), code, name) in enumerate(columns):
        where = f"row {row} of {file}"
        if isinstance(blob, str):
            problems.add("no image", where, f"{where} {blob}")
        elif code is None:
            problems.add("no label", where, f"{where} has no {label}; give it one or drop the row")
        else:
            rows.add(blob, code, where, f"{inside}[{row}]", name or own)


def _labels(column: Any) -> Sequence[int | str | None]:
    from pyarrow import types

    values: list[int | str | bool | None] = column.to_pylist()
    if types.is_boolean(column.type):
        return [None if value is None else str(value) for value in values]
    return values


def _blobs(column: Any, file: Path, root: Path) -> Iterator[tuple[bytes | Path | str, str]]:
    """Of each row the image, or as text what is wrong with it; and the name that the table has for it."""
    from pyarrow import types

    kind = _plain(column.type)
    if _is_list(kind):
        for chunk in column.chunks:
            for cell in getattr(chunk, "storage", chunk):
                yield _pixels(cell), ""
        return
    for cell in column.to_pylist():
        if types.is_struct(kind):
            blob, name = (cell or {}).get("bytes"), (cell or {}).get("path") or ""
        elif types.is_binary(kind) or types.is_large_binary(kind):
            blob, name = cell, ""
        else:
            blob, name = None, cell or ""
        if blob is None and name:
            yield _file(name, file, root), name
        else:
            yield "has no image bytes; embed the image or drop the row" if blob is None else blob, name


def _file(name: str, file: Path, root: Path) -> Path | str:
    folders = dict.fromkeys((file.parent, root))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    return f"has no image but the path {name}, and {' and '.join(map(str, folders))} has no such file; put it there"


def _pixels(cell: Any) -> bytes | str:
    """Nested lists as an encoded image."""
    if not cell.is_valid:
        return "has no image; give it one or drop the row"
    values = cell.values
    shape = [len(values)]
    while _is_list(values.type):
        values = values.flatten()
        shape.append(len(values) // max(math.prod(shape), 1))
    numbers = values.to_numpy(zero_copy_only=False)
    if math.prod(shape) != len(numbers) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        return f"has an image of nested lists {tuple(shape)}; expected (H, W), (H, W, 1) or (H, W, 3), channels last"
    if numbers.dtype.kind not in "iu" or (len(numbers) and (numbers.min() < 0 or numbers.max() > 255)):
        return f"has pixels of {numbers.dtype} from {numbers.min()} to {numbers.max()}; expected whole numbers 0 to 255"
    return raw_image(numbers.astype(np.uint8).reshape(shape))
