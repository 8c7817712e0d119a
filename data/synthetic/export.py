"""Write a synthetic data set in common formats: image folder, WebDataset, MedMNIST's .npz; each with a card."""

import contextlib
import dataclasses
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latebloom.data.images import LabeledImages, decode, encode_png
from latebloom.data.sources.load import Splits
from latebloom.data.store import atomic_folder, json_text, local_file
from latebloom.data.synthetic.card import Contents, card, summarise
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.data.synthetic.naming import FileNames, class_folders, original_file, stem_of

__all__ = ["EXPORT_FORMATS", "ExportFormat", "export"]

ExportFormat = Literal["imagefolder", "webdataset", "npz"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
_BATCH = 256  # images decoded or read at once
_SHARD_BYTES = 2**30  # usual limit of shards that are streamed from object stores


@dataclasses.dataclass(frozen=True)
class _Image:
    """One image to write.

    Attributes:
        split: train, validation or test.
        name: its item id.
        file: what to call its file, as stem, number where that is taken, and suffix.
        content: its file's: a PNG, or for an image folder the real image's own.
        row: its metadata; all images have the same columns of the same types.
    """

    split: str
    name: str
    file: tuple[str, str, str]
    content: bytes
    row: dict[str, Any]


_Add = Callable[[_Image], None]


def export(
    folder: SyntheticFolder,
    destination: Path,
    kind: ExportFormat,
    *,
    states: Sequence[str] = ("ok",),
    real: Splits | None = None,
    source: str = "",
    shard_images: int = 10_000,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write the images of a finished synthetic data set, their metadata and a card (README.md) into a new folder.

    - imagefolder: `train/CLASS/NAME.png` and `train/metadata.jsonl`, a line an image, for `datasets`, torchvision's
      ImageFolder and timm. A real image keeps its name, and its file byte for byte where any reader gets from it what
      was trained on; a variant of `004.png` is `004-50of100-v0.png`. Characters that a name must not have are written
      as %XX, and one that is taken gets a number (`naming.safe_name`).
    - webdataset: `train-000000.tar`, ... of ITEM.png, ITEM.cls, ITEM.json; equal images are equal tars.
    - npz: `dataset.npz` with MedMNIST's arrays and `train_names`, and `train.jsonl`, line i for image i. All in memory.

    The metadata is every column of the data set, the class's name, and `synthetic`. Readers infer types from the text,
    so each column has one type: of real images, which have no scores, numbers are -1, and the rest false or "". A null
    there would be a type of its own to `datasets`, which then refuses a split of real images alone. Of synthetic images
    a score that was not measured, and the log-SNR of pure noise (minus infinity), are null.

    The folder appears as a whole or not at all; at a URL, README.md is uploaded last. Everything is made on local disk
    first; a remote data set is copied there for that time.

    Args:
        destination: must not exist, or be an empty folder.
        states: images of these are written.
        real: the data set that the references are from; its training images come before the synthetic ones, its
            validation and test images are splits of their own.
        source: the name of that data set on the card.
        shard_images: most images in a tar; a tar is at most about 1 GiB, too.
        on_images: called with the number of images just written.

    Returns:
        Images by split.

    Raises:
        ValueError: no finished data set, damaged parts, no such state, no image in these states, another `real`,
            a destination that is not empty, or images of several sizes for npz.
        OSError: full disk or forbidden folder; nothing is left behind.
    """
    manifest = folder.manifest()
    _check_free(destination)
    _check(folder, manifest, states, real)
    class_names = tuple(manifest["class_names"])
    counts: dict[str, int] = {}
    with atomic_folder(destination, "README.md") as made, contextlib.ExitStack() as copies:
        parts = [copies.enter_context(local_file(folder.path / part["file"])) for part in manifest["parts"]]
        schema = pq.read_schema(parts[0])
        columns = {
            f.name: f.type for f in schema if f.name not in ("image", "label") and not pa.types.is_binary(f.type)
        }
        if kind == "imagefolder":
            writing = _image_folder(made, class_names)
        elif kind == "webdataset":
            writing = _webdataset(made, shard_images)
        else:
            writing = _npz(made, class_names)
        with writing as add:
            for images in _batches(parts, class_names, columns, states, real, kind == "imagefolder"):
                for image in images:
                    add(image)
                    counts[image.split] = counts.get(image.split, 0) + 1
                if on_images:
                    on_images(len(images))
        rows = pa.concat_tables([pq.read_table(part, columns=["label", *columns]) for part in parts])
        chosen = rows.filter(_wanted(rows, states))
        contents = Contents(
            kind=kind,
            source=source or "an unnamed data set",
            class_names=class_names,
            columns={"label": "int64", "class_name": "string", "synthetic": "bool"}
            | {name: {"double": "float64"}.get(str(dtype), str(dtype)) for name, dtype in columns.items()},
            manifest=manifest,
            made=summarise(rows, class_names),
            exported=summarise(chosen, class_names),
            prompts=pc.unique(chosen["prompt"]).to_pylist(),
            real={split: len(data) for split, data in _splits(real)},
        )
        (made / "README.md").write_text(card(contents), "utf-8")
    return counts


def _check_free(destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise ValueError(f"{destination} is a file; export to a new folder")
    if destination.is_dir() and any(destination.iterdir()):
        raise ValueError(f"{destination} is not empty; export to a new folder")


def _check(folder: SyntheticFolder, manifest: dict[str, Any], states: Sequence[str], real: Splits | None) -> None:
    unknown = [state for state in states if state not in manifest["states"]]
    if unknown or not states:
        raise ValueError(
            f"no state is called {unknown[0] if unknown else ''!r}; states: {', '.join(manifest['states'])}"
        )
    if not sum(manifest["states"][state] for state in states):
        there = ", ".join(f"{state} {count:,}" for state, count in manifest["states"].items() if count)
        raise ValueError(f"{folder.path} has no image that is {' or '.join(states)}; it has {there or 'none at all'}")
    if real is not None and manifest["about"].get("data") != real.train.digest:
        raise ValueError(
            f"{real.train.origin} is not the data set that the images in {folder.path} were made from; "
            "give the one that was, or leave the real images out"
        )
    damaged = folder.damaged()
    if damaged:
        raise ValueError(
            f"{folder.path / damaged[0]} is missing or damaged ({len(damaged)} such parts); run the same command again "
            "to make it again"
        )


# ------------------------------------------------------------------------------------------------ images and rows


def _splits(real: Splits | None) -> list[tuple[str, LabeledImages]]:
    """The real images by split, in the order in which they are written."""
    found = [("train", real.train), ("validation", real.validation), ("test", real.test)] if real else []
    return [(split, data) for split, data in found if data is not None]


def _batches(
    parts: Sequence[Path],
    class_names: Sequence[str],
    columns: dict[str, pa.DataType],
    states: Sequence[str],
    real: Splits | None,
    originals: bool,
) -> Iterator[list[_Image]]:
    """The real images, then the synthetic ones in the order of the plan; never more than `_BATCH` at once.

    Args:
        originals: whether the files of real images are wanted, where they can be had.
    """

    def row(label: int, synthetic: bool, values: dict[str, Any]) -> dict[str, Any]:
        head = {"label": label, "class_name": class_names[label], "synthetic": synthetic}
        return head | {name: _filled(values.get(name), kind, synthetic) for name, kind in columns.items()}

    for split, data in _splits(real):
        height, width, _ = data.image_shape
        for start in range(0, len(data), _BATCH):
            images = []
            numbers = np.arange(start, min(start + _BATCH, len(data)))
            for number, pixels in zip(numbers.tolist(), data.pixels(numbers), strict=True):
                name = f"real-{split}-{number:07d}"
                known = {
                    "item_id": name,
                    "source_index": number,
                    "source_name": data.names[number],
                    "source_sha256": data.sha256[number],
                    "width": width,
                    "height": height,
                    "finite": True,
                    "state": "ok",
                }
                own = original_file(data, number, pixels) if originals else None
                content, suffix = own or (encode_png(pixels), ".png")
                file = stem_of(data.names[number]), f"-{number:07d}", suffix
                images.append(_Image(split, name, file, content, row(int(data.labels[number]), False, known)))
            yield images
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(_BATCH, columns=["image", "label", *columns]):
                rows = batch.filter(_wanted(batch, states)).to_pylist()
                yield [
                    _Image(
                        "train",
                        values["item_id"],
                        _file_of_variant(values),
                        values["image"]["bytes"],
                        row(values["label"], True, values),
                    )
                    for values in rows
                ]


def _file_of_variant(values: dict[str, Any]) -> tuple[str, str, str]:
    stem, level = stem_of(values["source_name"]), f"{values['level_steps']}of{values['level_grid']}"
    return f"{stem}-{level}-v{values['variant']}", f"-{values['source_index']:07d}", ".png"


def _wanted(rows: pa.Table | pa.RecordBatch, states: Sequence[str]) -> pa.Array:
    return pc.is_in(rows["state"], pa.array(states, pa.string()))


def _filled(value: Any, kind: pa.DataType, synthetic: bool) -> Any:
    """`value`, or the substitute for a missing one in a column of this type."""
    if value is not None or (synthetic and pa.types.is_floating(kind)):
        return value
    if pa.types.is_boolean(kind):
        return False
    if pa.types.is_floating(kind):
        return -1.0
    return -1 if pa.types.is_integer(kind) else ""


# -------------------------------------------------------------------------------------------------------- formats


@contextlib.contextmanager
def _image_folder(folder: Path, class_names: tuple[str, ...]) -> Iterator[_Add]:
    with contextlib.ExitStack() as opened:
        tables: dict[str, TextIO] = {}
        classes: set[tuple[str, str]] = set()
        folders, names = class_folders(class_names), FileNames()

        def add(image: _Image) -> None:
            split, name = image.split, folders[image.row["label"]]
            if (split, name) not in classes:
                (folder / split / name).mkdir(parents=True)
                classes.add((split, name))
            if split not in tables:
                tables[split] = opened.enter_context((folder / split / "metadata.jsonl").open("w", encoding="utf-8"))
            file = names.take(f"{split}/{name}", *image.file)
            (folder / split / name / file).write_bytes(image.content)
            tables[split].write(_line({"file_name": f"{name}/{file}", **image.row}))

        yield add


class _Shards:
    """The tars of one split, opened one after the other."""

    def __init__(self, folder: Path, split: str, most: int) -> None:
        self.folder, self.split, self.most = folder, split, most
        self.number = self.images = self.bytes = 0
        self.tar: tarfile.TarFile | None = None

    def add(self, name: str, members: dict[str, bytes]) -> None:
        size = sum(map(len, members.values()))
        if self.tar is not None and (self.images == self.most or self.bytes + size > _SHARD_BYTES):
            self.close()
        if self.tar is None:
            file = self.folder / f"{self.split}-{self.number:06d}.tar"
            self.tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by `close`)
            self.number, self.images, self.bytes = self.number + 1, 0, 0
        for suffix, content in members.items():
            member = tarfile.TarInfo(f"{name}.{suffix}")  # owner, mode and time are the same for all
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))
        self.images, self.bytes = self.images + 1, self.bytes + size

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()
            self.tar = None


@contextlib.contextmanager
def _webdataset(folder: Path, shard_images: int) -> Iterator[_Add]:
    with contextlib.ExitStack() as opened:
        splits: dict[str, _Shards] = {}

        def add(image: _Image) -> None:
            if image.split not in splits:
                splits[image.split] = _Shards(folder, image.split, shard_images)
                opened.callback(splits[image.split].close)
            members = {"png": image.content, "cls": str(image.row["label"]).encode(), "json": _line(image.row).encode()}
            splits[image.split].add(image.name, members)

        yield add


@contextlib.contextmanager
def _npz(folder: Path, class_names: Sequence[str]) -> Iterator[_Add]:
    pixels: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}  # MedMNIST's splits
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}

    def add(image: _Image) -> None:
        decoded = decode(image.content, image.name)
        if pixels["train"] and decoded.shape != pixels["train"][0].shape:
            raise ValueError(
                f"an .npz holds images of one (H, W, C), but {image.name} has {decoded.shape} and "
                f"{rows['train'][0]['item_id']} has {pixels['train'][0].shape}; export an imagefolder or webdataset"
            )
        split = "val" if image.split == "validation" else image.split
        pixels[split].append(decoded)
        rows[split].append(image.row)

    yield add
    shape = pixels["train"][0].shape
    arrays: dict[str, np.ndarray] = {"class_names": np.array(class_names)}
    for split, images in pixels.items():
        stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
        arrays[f"{split}_images"] = stacked[..., 0] if shape[2] == 1 else stacked  # MedMNIST's greys are (N, H, W)
        labels = np.array([row["label"] for row in rows[split]], np.min_scalar_type(len(class_names) - 1))
        arrays[f"{split}_labels"] = labels.reshape(-1, 1)
        names = [row["item_id"] if row["synthetic"] else row["source_name"] for row in rows[split]]
        arrays[f"{split}_names"] = np.array(names, np.str_)
        if images:
            (folder / f"{split}.jsonl").write_text("".join(map(_line, rows[split])), "utf-8")
    np.savez_compressed(folder / "dataset.npz", allow_pickle=False, **arrays)


def _line(row: dict[str, Any]) -> str:
    return json_text(row, indent=None) + "\n"
