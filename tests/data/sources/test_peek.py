"""The size of a data set's images from one header."""

import io
from collections.abc import Callable
from pathlib import Path

import layouts as made
import numpy as np
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources import first
from latebloom.data.sources.peek import image_side


def picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


@pytest.mark.parametrize(
    ("source", "size", "side"),
    [("digits", 0, 8), ("cifar10", 0, 32), ("tiny-imagenet", 0, 64), ("flowers102", 0, 256), ("cifar10", 224, 224)],
)
def test_named_data_sets_and_an_image_size_need_no_reading(source: str, size: int, side: int) -> None:
    assert image_side(DataConfig(source=source, root="/nowhere", image_size=size)) == side


def test_the_first_image_of_a_folder_decides_and_not_a_picture_beside_the_classes(tmp_path: Path) -> None:
    picture(tmp_path / "banner.png", 900, 300)
    picture(tmp_path / "train" / "a" / "1.png", 40, 30)
    picture(tmp_path / "train" / "b" / "0.png", 500, 375)
    assert image_side(DataConfig(source=str(tmp_path))) == 30
    picture(tmp_path / "flat" / "1.png", 300, 301)
    assert image_side(DataConfig(source=str(tmp_path / "flat"))) == 300


@pytest.mark.parametrize("shape", [(5, 28, 30), (5, 28, 30, 3)])
def test_arrays_are_known_by_their_header(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.zeros(5, np.int64)
    np.savez(
        tmp_path / "x.npz", test_images=np.zeros((5, 9, 9), np.uint8), train_images=np.zeros(shape, np.uint8), a=labels
    )
    assert image_side(DataConfig(source=str(tmp_path / "x.npz"))) == 28
    assert image_side(DataConfig(source=str(tmp_path))) == 28
    assert image_side(DataConfig(source=str(tmp_path), train="test", test="none")) == 9


def of_size(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


SIZES = ((40, 30), (9, 9))  # of the first image and the second


def in_parquet(root: Path) -> None:
    made.parquet(root / "train.parquet", image=[{"bytes": of_size(*size), "path": None} for size in SIZES])
    made.parquet(root / "test.parquet")


def in_shards(root: Path) -> None:
    members = {f"{row}.png": of_size(*size) for row, size in enumerate(SIZES)} | {"0.cls": b"0", "1.cls": b"1"}
    made.tar(root, "train-000.tar", dict(sorted(members.items())))
    whole = (root / "train-000.tar").read_bytes()
    (root / "train-000.tar").write_bytes(whole[:3000])  # what comes after the first sample is not read


def in_a_table(root: Path) -> None:
    (root / "pictures").mkdir()
    for row, size in enumerate(SIZES):
        (root / "pictures" / f"{row}.png").write_bytes(of_size(*size))
    (root / "all.csv").write_text("label,path\na,pictures/0.png\nb,pictures/1.png\n")


@pytest.mark.parametrize(
    ("make", "source", "settings"),
    [
        (in_parquet, "", {}),
        (in_parquet, "", {"train": "train"}),
        (in_parquet, "train.parquet", {"image": "image", "label": "label"}),
        (in_shards, "", {}),
        (in_shards, "train-000.tar", {}),
        (in_a_table, "all.csv", {}),
        (in_a_table, "all.csv", {"image": "path"}),
    ],
)
def test_the_rest_of_parquet_shards_and_tables_is_not_read(
    make: Callable[[Path], None],
    source: str,
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first, "find", None)
    make(tmp_path)
    assert image_side(DataConfig(source=str(tmp_path / source), **settings)) == 30


def test_what_cannot_be_known_is_zero_and_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    (tmp_path / "x.npz").write_bytes(b"no archive")
    for source in (tmp_path, tmp_path / "x.npz", tmp_path / "nowhere"):
        assert image_side(DataConfig(source=str(source))) == 0
