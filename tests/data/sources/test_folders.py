import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import numbered
from latebloom.data.sources.load import Splits, load

CIFAR10 = Path(__file__).parents[4] / "shared" / "cifar10"


def picture(value: int = 0, mode: str = "L", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("1", "L", "P", "I;16", "F") else (value,) * len(mode)).save(buffer, kind)
    return buffer.getvalue()


def put(folder: Path, tree: dict[str, bytes]) -> Path:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tree() -> dict[str, bytes]:
    """Two classes; cat's pictures are 1 and 2 in train, 3 in test; dog's 4, and 5 and 6."""
    names = [
        "train/cat/a.png",
        "train/cat/b.png",
        "test/cat/a.png",
        "train/dog/a.png",
        "test/dog/a.png",
        "test/dog/b.png",
    ]
    return {name: picture(value) for value, name in enumerate(names, 1)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def read(folder: Path, **settings: Any) -> Splits:
    return load(DataConfig(source=str(folder), **settings))


def refused(folder: Path, words: str, **settings: Any) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=words) as caught:
        read(folder, **settings)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


# Image folders


def test_an_image_folder_is_sorted_by_class_and_file(tmp_path: Path) -> None:
    splits = read(put(tmp_path, tree()))
    assert splits.train.class_names == splits.test.class_names == ("cat", "dog")
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert splits.train.labels.tolist() == [0, 0, 1]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3, 5, 6]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert splits.train.image_shape == (8, 8, 1)
    assert splits.train.origin == str(tmp_path / "train")
    assert splits.generator is None


def test_hidden_files_notes_and_tables_are_passed_over(tmp_path: Path) -> None:
    junk = ["train/.DS_Store", "train/cat/.DS_Store", "test/dog/Thumbs.db", "train/.git/x.png", "labels.csv"]
    notes = ["train/metadata.jsonl", "train/cat/README.txt", "test/cat/a.JSON"]
    splits = read(put(tmp_path, tree() | dict.fromkeys(junk + notes, b"?")))
    assert (len(splits.train), len(splits.test)) == (3, 3)


def test_every_kind_of_image_is_read(tmp_path: Path) -> None:
    kinds = {"a.PNG": "PNG", "b.jpg": "JPEG", "c.jpeg": "JPEG", "d.bmp": "BMP", "e.tif": "TIFF", "f.tiff": "TIFF"}
    more = {f"train/cat/{name}": picture(7, kind=kind) for name, kind in kinds.items()}
    more["train/cat/g.webp"] = picture(7, "RGB", kind="WEBP")
    splits = read(put(tmp_path, tree() | more))
    assert splits.train.class_counts().tolist() == [9, 1]
    assert splits.train.pixels().shape == (10, 8, 8, 3)


def test_one_image_in_colour_makes_all_of_them_colour(tmp_path: Path) -> None:
    for number, (mode, channels) in enumerate([("1", 1), ("L", 1), ("RGB", 3), ("RGBA", 3), ("LA", 3), ("P", 3)]):
        splits = read(put(tmp_path / str(number), tree() | {"test/dog/b.png": picture(1, mode)}))
        assert splits.train.image_shape == splits.test.image_shape == (8, 8, channels)
        assert splits.train.pixels().shape[3] == splits.test.pixels().shape[3] == channels


def test_a_grey_image_with_a_transparent_shade_stays_grey(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 9).save(buffer, "PNG", transparency=9)
    splits = read(put(tmp_path, tree() | {"test/dog/b.png": buffer.getvalue()}))
    assert splits.test.image_shape == (8, 8, 1)
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3, 5, 255]  # transparent: white


def test_images_need_not_be_square(tmp_path: Path) -> None:
    splits = read(put(tmp_path, {name: picture(size=(12, 9)) for name in tree()}))
    assert splits.train.image_shape == (9, 12, 1)
    assert splits.train.pixels().shape == (3, 9, 12, 1)


def test_image_size_makes_all_sizes_one(tmp_path: Path) -> None:
    more = {"train/cat/b.png": picture(2, size=(30, 9)), "test/dog/a.png": picture(5, size=(100, 200))}
    splits = read(put(tmp_path, tree() | more), image_size=12)
    assert splits.train.image_shape == (12, 12, 1)
    assert splits.train.pixels()[:, 11, 11, 0].tolist() == [1, 2, 4]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3, 5, 6]


def test_only_headers_are_read_up_front(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(whole, "PNG")
    splits = read(put(tmp_path, tree() | {"train/cat/b.png": whole.getvalue()[:-40]}))
    with pytest.raises(ValueError, match=r"train/cat/b\.png cannot be read as an image"):
        splits.train.pixels()


def test_a_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    splits = read(put(tmp_path, tree() | {"train/bee/a.png": picture()}))
    assert splits.test.class_names == ("bee", "cat", "dog")
    assert splits.test.class_counts().tolist() == [0, 1, 2]


def test_what_does_not_fit_an_image_folder_is_named(tmp_path: Path) -> None:
    for number, (more, words) in enumerate(
        [
            (
                {"test/fox/a.png": picture()},
                r"test/fox is a class that .*train does not have; its classes are cat, dog",
            ),
            ({"test/fox/README.txt": b""}, r"test/fox holds no images; add some or remove the folder"),
            ({"train/cat/kitten/a.png": picture()}, r"train/cat/kitten is a folder inside a class folder"),
            ({"train/loose.png": picture()}, r"train/loose\.png is in no class; expected .*/train/<class>/<image>"),
            ({"train/cat/c.gif": b"GIF89a"}, r"train/cat/c\.gif cannot be read as an image"),
            ({"train/cat/c.npy": b""}, r"train/cat/c\.npy is not one of \.png, .*convert it to PNG"),
            ({"train/cat/c.png": b""}, r"train/cat/c\.png cannot be read as an image"),
            ({"test/dog/b.png": b"<html>404</html>"}, r"test/dog/b\.png cannot be read as an image .*repair or remove"),
            ({"train/dog/c.png": picture(0, "I;16")}, r"dog/c\.png has pixel mode I;16, more than 8 bits"),
            ({"train/dog/c.tif": picture(0, "F", kind="TIFF")}, r"dog/c\.tif has pixel mode F"),
            ({"train/dog/c.png": picture(size=(8, 7))}, r"dog/c\.png is 8x7, smaller than 8 pixels"),
            ({"train/dog/c.png": picture(size=(9, 8))}, r"dog/c\.png is 9x8 while .*cat/a\.png is 8x8; .*--image-size"),
            ({"test/cat/a.png": picture(size=(8, 9))}, r"test/cat/a\.png is 8x9 while .*train/cat/a\.png is 8x8"),
        ]
    ):
        refused(put(tmp_path / str(number), tree() | more), words)


def test_tiny_images_are_refused_although_they_would_be_enlarged(tmp_path: Path) -> None:
    refused(put(tmp_path, tree() | {"train/dog/c.png": picture(size=(2, 200))}), "c.png is 2x200", image_size=32)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    put(tmp_path, tree())
    (tmp_path / "train/cat/c.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path, r"train/cat/c\.png cannot be read as an image")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    refused(put(tmp_path, {"train/cat/a.png": picture(), "test/cat/a.png": picture()}), "single class cat; .* least 2")


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {name: content for name, content in tree().items() if name.startswith("train")})
    (tmp_path / "test").mkdir()
    refused(tmp_path, r"test is empty; expected .*test/<class>/<image>")


def test_a_test_part_alone_is_no_data_set(tmp_path: Path) -> None:
    put(tmp_path, {name: content for name, content in tree().items() if name.startswith("test")})
    refused(tmp_path, r"has the parts test, and none of them is called train; .*--set data\.train=test")


# Parquet


Rows = list[tuple[bytes | None, int | None]]


def shard(
    path: Path,
    rows: Rows,
    *,
    names: list[str] | None = None,
    image: str = "image",
    label: str = "label",
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
) -> None:
    """A file as the datasets library writes it."""
    images = pa.array(
        [{"bytes": blob, "path": "x.png"} for blob, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = change(pa.table({image: images, label: pa.array([number for _, number in rows], pa.int64())}))
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def shards(folder: Path, train: Rows | None = None, **settings: Any) -> Path:
    """Train has the pictures 1 (label 1) and 2 (label 0), test has 3 (label 1)."""
    shard(folder / "train.parquet", train or [(picture(1), 1), (picture(2), 0)], **settings)
    shard(folder / "test.parquet", [(picture(3), 1)], **settings)
    return folder


def test_parquet_files_are_read(tmp_path: Path) -> None:
    for number, (settings, names) in enumerate(
        [
            ({"names": ["cat", "dog"]}, ("cat", "dog")),
            ({}, ("0", "1")),
            ({"image": "img", "label": "labels"}, ("0", "1")),
            ({"image": "img", "label": "fine", "names": ["cat", "dog"]}, ("cat", "dog")),
        ]
    ):
        splits = read(shards(tmp_path / str(number), **settings))
        assert splits.train.class_names == splits.test.class_names == names
        assert splits.train.pixels()[:, 0, 0, 0].tolist() == [1, 2]
        assert splits.train.labels.tolist() == [1, 0]
        assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3]
        assert splits.test.labels.tolist() == [1]


def test_shards_in_a_data_folder_are_joined_in_order(tmp_path: Path) -> None:
    for number, rows in ((1, [(picture(3), 0)]), (0, [(picture(1), 0), (picture(2), 1)])):
        shard(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", rows)
    shard(tmp_path / "data" / "test-00000-of-00001.parquet", [(picture(4), 0)])
    shard(tmp_path / "data" / "validation-00000-of-00001.parquet", [(picture(5), 0)])
    splits = read(tmp_path)
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert splits.train.labels.tolist() == [0, 1, 0]
    assert len(splits.test) == 1


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_plain_binary_image_column_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    def plain(table: pa.Table) -> pa.Table:
        blobs = [row["bytes"] for row in table["image"].to_pylist()]
        return pa.table({"image": pa.array(blobs, kind), "label": table["label"].cast(pa.uint8())})

    assert read(shards(tmp_path, change=plain)).train.pixels()[:, 0, 0, 0].tolist() == [1, 2]


def with_column(name: str, values: Callable[[int], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.append_column(name, pa.array(values(len(table))))


def test_other_columns_do_not_matter_beside_image_and_label(tmp_path: Path) -> None:
    for name, values in (("id", range), ("mask", lambda n: [b""] * n), ("note", lambda n: [None] * n)):
        splits = read(shards(tmp_path / name, change=with_column(name, lambda n, v=values: list(v(n)))))
        assert splits.train.labels.tolist() == [1, 0]


def test_what_does_not_fit_parquet_is_named(tmp_path: Path) -> None:
    for number, (settings, words) in enumerate(
        [
            (
                {"train": [(picture(), 0), (None, 1)]},
                r"row 1 of .*train\.parquet has no image but the path x\.png, .* no such file",
            ),
            (
                {"train": [(picture(), None), (picture(), 1)]},
                r"row 0 of .*train\.parquet has no label; give it one or drop",
            ),
            ({"train": [(picture(), 0), (b"?", 1)]}, r"row 1 of .*train\.parquet cannot be read as an image"),
            ({"train": [(picture(), 0), (picture(size=(9, 9)), 1)]}, r"row 1 of .* is 9x9 while row 0 of .* is 8x8"),
            (
                {"train": [(picture(), 0), (picture(), -1)]},
                r"row 1 of .* has label -1, but the classes .* are 0, 1; correct",
            ),
            (
                {"train": [(picture(), 0), (picture(), 2)], "names": ["a", "b"]},
                r"row 1 of .* has label 2, but the classes .* are a, b",
            ),
            (
                {"train": [(picture(), 0), (picture(), 2**40)]},
                r"label 1099511627776 but only 3 images; number the classes",
            ),
            (
                {"train": [(picture(), 0), (picture(), 2)]},
                r"has no image of 1 of 3 classes \(1\); add images or remove",
            ),
            ({"names": ["cat", "cat"]}, "class names must be unique and not empty, got cat"),
            ({"names": ["cat", ""]}, "class names must be unique and not empty"),
            (
                {"change": lambda table: table.drop(["image"])},
                r"no column that looks like the image; it has label \(int64\); .*--set data\.image=COLUMN",
            ),
            ({"change": lambda table: table.drop(["label"])}, "no column that looks like the label; it has image"),
            (
                {"label": "fine", "change": with_column("coarse", lambda n: [0] * n)},
                r"has 2 columns that may be the label: fine, coarse; .*--set data\.label=fine ",
            ),
            (
                {"image": "a", "change": with_column("b", lambda n: [b""] * n)},
                "has 2 columns that may be the image: a, b; .*--set data.image=a",
            ),
        ]
    ):
        refused(shards(tmp_path / str(number), **settings), words)


def test_parts_that_name_their_classes_differently_are_refused(tmp_path: Path) -> None:
    shards(tmp_path, names=["cat", "dog"])
    shard(tmp_path / "test.parquet", [(picture(), 1)], names=["dog", "cat"])
    refused(tmp_path, r"test\.parquet names its classes dog, cat, but .*train\.parquet cat, dog; write all")
    shard(tmp_path / "test.parquet", [(picture(), 1)])
    refused(tmp_path, r"test\.parquet names its classes not at all, but .*train\.parquet cat, dog")


def test_what_is_not_parquet_is_named(tmp_path: Path) -> None:
    for content in [b"", b"PAR1 and no more", b"version https://git-lfs.github.com/spec/v1\n"]:
        shards(tmp_path)
        (tmp_path / "train.parquet").write_bytes(content)
        refused(tmp_path, r"train\.parquet cannot be read as parquet")


def test_a_parquet_file_cut_short_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    whole = (tmp_path / "test.parquet").read_bytes()
    (tmp_path / "test.parquet").write_bytes(whole[:-20])
    refused(tmp_path, r"test\.parquet cannot be read as parquet")


def test_metadata_that_is_not_json_is_named(tmp_path: Path) -> None:
    refused(
        shards(tmp_path, change=lambda table: table.replace_schema_metadata({"huggingface": "{"})),
        r"train\.parquet cannot be read as parquet",
    )


def test_a_part_without_rows_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    shard(tmp_path / "test.parquet", [])
    refused(tmp_path, f"{tmp_path} test: no images at all")


def test_numbered_counts_from_zero_to_the_largest_label() -> None:
    assert numbered("x", [np.array([0, 2]), np.array([1])]) == ("0", "1", "2")


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10 as parquet in ../shared/cifar10")
def test_cifar10_is_read() -> None:
    splits = read(CIFAR10, train_limit=20, test_limit=10)
    assert splits.train.class_names[:4] == ("airplane", "automobile", "bird", "cat")
    assert splits.train.class_counts().tolist() == [2] * 10
    assert splits.test.class_counts().tolist() == [1] * 10
    assert splits.train.pixels().shape == (20, 32, 32, 3)
    assert splits.train.pixels().std() > 40  # pictures, not blanks
