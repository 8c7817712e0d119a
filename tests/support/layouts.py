"""Makers of data sets in every layout, for tests/data/sources/test_layouts.py: a few pictures of 8x8 each."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FIVE = ("a", "b", "c", "d", "e")


def png(value: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value % 256).save(buffer, kind)
    return buffer.getvalue()


def put(root: Path, *names: str) -> None:
    """Pictures, each of another grey."""
    for value, name in enumerate(names):
        kind = {".jpg": "JPEG", ".gif": "GIF", ".ppm": "PPM"}.get(Path(name).suffix.lower(), "PNG")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value, kind))


def classes(part: str, number: int = 2) -> list[str]:
    """Names of pictures of a cat and of a dog class."""
    return [f"{part}/{name}/{letter}.png".lstrip("/") for name in ("cat", "dog") for letter in FIVE[:number]]


def parquet(file: Path, label: Any = (0, 1), image: Any = None, **more: Any) -> None:
    """Two rows; with `names` as the datasets library writes a ClassLabel."""
    names = more.pop("names", {})
    images = [{"bytes": png(value + len(file.parts)), "path": None} for value in range(2)] if image is None else image
    table = pa.table({"image": images, **({"label": list(label)} if label is not None else {}), **more})
    if names:
        features = {"image": {"_type": "Image"}} | {k: {"_type": "ClassLabel", "names": v} for k, v in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def both(root: Path, train: str, test: str, **settings: Any) -> None:
    for name in (train, test):
        parquet(root / name, **settings)


def two_labels(root: Path) -> None:
    names = {"fine_label": ["apple", "bee"], "coarse_label": ["fruit", "insect"]}
    both(root, "train.parquet", "test.parquet", label=None, fine_label=[0, 1], coarse_label=[1, 0], names=names)


def arrow(root: Path) -> None:
    """As `save_to_disk` writes it."""
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for split in ("train", "test"):
        table = pa.table({"image": [{"bytes": png(v), "path": None} for v in range(2)], "label": [0, 1]})
        (root / split).mkdir()
        (root / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
        file = str(root / split / "data-00000-of-00001.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def csv(header: str, names: list[str], *columns: Callable[[str], str], between: str = ",") -> str:
    """A line for each picture: its path and what the columns make of it."""
    return "\n".join([header, *(between.join([name, *(column(name) for column in columns)]) for name in names)]) + "\n"


def species(name: str) -> str:
    return "cat" if name.rpartition("/")[2][0] in "ab" else "dog"


def jsonl(names: list[str]) -> str:
    return "".join(json.dumps({"file_name": name, "label": species(name)}) + "\n" for name in names)


LOOSE = ["a.png", "b.png", "c.png", "d.png"]
PICTURES = [f"images/{name}.png" for name in ("a1", "a2", "a3", "a4", "a5", "d1", "d2", "d3", "d4", "d5")]


def metadata_of_parts(root: Path) -> None:
    for part in ("train", "test"):
        put(root / part, *LOOSE)
        (root / part / "metadata.jsonl").write_text(jsonl(LOOSE))


def metadata_of_all(root: Path) -> None:
    put(root, *LOOSE, *PICTURES)
    (root / "metadata.csv").write_text(csv("file_name,label", LOOSE + PICTURES, species))


def labels(header: str = "path,label", suffix: str = "csv", **settings: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root, *PICTURES)
        (root / f"labels.{suffix}").write_text(csv(header, PICTURES, species, **settings))

    return make


def splits_in_a_column(root: Path) -> None:
    put(root, *PICTURES)
    part = {"1": "train", "2": "train", "3": "train", "4": "dev", "5": "test"}
    (root / "labels.csv").write_text(csv("path,label,split", PICTURES, species, lambda name: part[name[-5]]))


def kaggle(root: Path) -> None:
    put(root / "train", *LOOSE)
    put(root / "test", *LOOSE)
    (root / "train.csv").write_text(csv("filename,label", LOOSE, species))
    (root / "test.csv").write_text(csv("filename", LOOSE))


def kaggle_ids(root: Path) -> None:
    """Ids without a suffix, images in a folder called like no other, pictures of the same names to be predicted."""
    names = [f"{kind}{number}" for kind in "ab" for number in range(5)]
    put(root, *(f"train_images/{name}.jpg" for name in names), "test_images/a0.jpg")
    (root / "train.csv").write_text(csv("image_id,breed", names, lambda name: {"a": "cat", "b": "dog"}[name[0]]))
    (root / "sample_submission.csv").write_text("image_id,breed\na0,cat\n")


def two_columns(root: Path) -> None:
    put(root, *PICTURES)
    (root / "labels.csv").write_text(
        csv("path,breed,colour", PICTURES, species, lambda name: "red" if "1" in name else "blue")
    )


def npz(**keys: int | list[Any]) -> Callable[[Path], None]:
    """Arrays: of a number so many images, of a list the labels."""

    def make(root: Path) -> None:
        arrays = {
            key: np.arange(value * 64, dtype=np.uint32).astype(np.uint8).reshape(-1, 8, 8)
            if isinstance(value, int)
            else np.array(value)
            for key, value in keys.items()
        }
        np.savez(root / "set.npz", **arrays)  # type: ignore[arg-type]

    return make


def channels_first(root: Path) -> None:
    np.savez(root / "set.npz", images=np.zeros((4, 3, 8, 8), np.uint8), labels=np.array([0, 1, 0, 1]))


def tar(root: Path, name: str, members: dict[str, bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, "w") as opened:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))


def webdataset(ending: str, label: Callable[[int], str]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for part, start in (("train", 0), ("test", 4)):
            members = {}
            for key in range(start, start + 4):
                members |= {f"{key:04}.png": png(key), f"{key:04}.{ending}": label(key).encode()}
            tar(root, f"{part}-000000.tar", members)

    return make


def names_of_all_kinds(root: Path) -> None:
    put(root, *classes("train"), *classes("test"))
    put(root, "train/cat/Ein schönes Bild.PNG", "train/dog/犬 1.JPG", "train/dog/c.gif", "train/dog/d.ppm")
    put(root, "train/.trash/x.png", "train/cat/.hidden.png")
    (root / "train/cat/Thumbs.db").write_bytes(b"?")
    (root / "train/cat/link.png").symlink_to(root / "train/dog/a.png")


def tiny_imagenet(root: Path) -> None:
    put(root, *(f"train/{wnid}/images/{wnid}_{k}.JPEG" for wnid in ("n01", "n02") for k in range(2)))
    put(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\n")


def pictures(*parts: str, number: int = 2) -> Callable[[Path], None]:
    return lambda root: put(root, *(name for part in parts for name in classes(part, number)))


def unlabelled(root: Path) -> None:
    put(root, *PICTURES)
    (root / "annotations").mkdir()
    (root / "annotations" / "list.txt").write_text("a1 1\n")
