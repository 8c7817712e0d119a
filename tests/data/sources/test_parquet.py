"""Parquet files, and folders of save_to_disk: what is read of them, and what is wrong with their rows."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import picture, read, refused

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Found, Problem, Problems, numbered
from latebloom.data.sources.load import find

CIFAR10 = Path(__file__).parents[4] / "shared" / "cifar10"


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


def found(folder: Path, **settings: Any) -> tuple[Found, Problems]:
    problems = Problems()
    return find(DataConfig(source=str(folder), **settings), problems), problems


def write(file: Path, image: Any, label: Any, **more: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": image, "label": label, **more}), file)


def test_rows_that_do_not_fit_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    images = [picture(1), None, picture(3), picture(4)]
    write(tmp_path / "train.parquet", pa.array(images, pa.binary()), ["cat", "cat", None, "dog"])
    write(tmp_path / "test.parquet", pa.array([picture(5), picture(6)], pa.binary()), ["cow", "dog"])
    (names, splits), problems = found(tmp_path)
    assert names == ("cat", "dog")
    assert list(splits["train"].names) == ["train.parquet[0]", "train.parquet[3]"]
    assert list(splits["test"].names) == ["test.parquet[1]"]
    assert [(one.kind, one.where) for one in problems.found] == [
        ("no image", f"row 1 of {tmp_path / 'train.parquet'}"),
        ("no label", f"row 2 of {tmp_path / 'train.parquet'}"),
        ("label that is no class", f"row 0 of {tmp_path / 'test.parquet'}"),
    ]
    words = r"row 1 of .* has no image bytes; embed the image or drop the row \(2 more: row 2 of .*; `latebloom check "
    refused(tmp_path, words)


def test_nested_lists_are_images_of_any_size(tmp_path: Path) -> None:
    pixels = np.arange(9 * 8 * 3).reshape(9, 8, 3)
    kinds = [pa.list_(pa.list_(pa.list_(pa.int64()))), pa.large_list(pa.list_(pa.list_(pa.uint8(), 3)))]
    for number, kind in enumerate(kinds):
        folder = tmp_path / str(number)
        for part in ("train", "test"):
            write(folder / f"{part}.parquet", pa.array([pixels.tolist(), (pixels[::-1]).tolist()], kind), [0, 1])
        splits = read(folder)
        assert splits.train.pixels()[0].tolist() == pixels.tolist()
        assert splits.train.pixels()[1].tolist() == pixels[::-1].tolist()


def test_nested_lists_that_are_no_images_are_named(tmp_path: Path) -> None:
    good = np.zeros((8, 8), int).tolist()
    ragged = [[0] * 8] * 7 + [[0] * 7]
    cells = [good, ragged, (np.zeros((8, 8), int) + 256).tolist(), None, good]
    write(tmp_path / "train.parquet", pa.array(cells), [0, 1, 1, 1, 1])
    (_, splits), problems = found(tmp_path)
    assert list(splits["train"].names) == ["train.parquet[0]", "train.parquet[4]"]
    assert [one.message.split(" of ")[1].split(" ", 1)[1] for one in problems.found] == [
        "has an image",
        "has pixels",
        "has no image; give it one or drop the row",
    ]
    for cell, words in [
        (np.zeros((3, 8, 8), int), r"an image of nested lists \(3, 8, 8\); expected \(H, W\), .*channels last"),
        (np.zeros((8, 8)), "pixels of float64 from 0.0 to 0.0; expected whole numbers 0 to 255"),
    ]:
        write(tmp_path / "train.parquet", pa.array([cell.tolist()] * 2), [0, 1])
        assert any(re.search(words, one.message) for one in found_all(tmp_path))


def found_all(folder: Path) -> list[Problem]:
    problems = Problems()
    with contextlib.suppress(ValueError):
        find(DataConfig(source=str(folder)), problems)
    return problems.found


def test_labels_may_count_from_one(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [picture(1), picture(2), picture(3)], [3, 1, 2])
    splits = read(tmp_path)
    assert (splits.train.class_names, splits.train.labels.tolist()) == (("1", "2", "3"), [2, 0, 1])
    assert any("labels count from 1" in note for note in splits.notes)


def test_a_part_without_labels_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [picture(value) for value in range(10)], [0, 1] * 5)
    write(tmp_path / "test.parquet", [picture(1), picture(2)], [-1, -1])
    refused(
        tmp_path, r"test: no label is a class; the first is -1, the classes of .* are 0, 1; .*--set data\.test=none"
    )
    assert len(read(tmp_path, test="none").test) == 2
    pq.write_table(pa.table({"image": [picture(1), picture(2)]}), tmp_path / "test.parquet")
    refused(
        tmp_path, r"test\.parquet has no column that looks like the label.*leave the part out: --set data\.test=none"
    )


def test_a_column_that_is_named_is_taken_or_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        more = {"id": [1, 2], "mask": [picture(8), picture(9)], "size": [0.5, 1.5], "kind": ["a", "b"]}
        write(tmp_path / f"{part}.parquet", [picture(1), picture(2)], [1, 0], **more)
    assert read(tmp_path).train.pixels()[:, 0, 0, 0].tolist() == [1, 2]
    assert read(tmp_path, image="mask", label="kind").train.pixels()[:, 0, 0, 0].tolist() == [8, 9]
    refused(tmp_path, r"has no column masks, which data\.image names; it has image \(binary\), label", image="masks")
    refused(tmp_path, r"has int64 in its image column id; expected a struct with bytes or path, binary", image="id")
    refused(tmp_path, r"has double in its label column size; expected an integer, a text or a boolean", label="size")


def test_categories_of_pandas_are_texts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [picture(1), picture(2)], pa.array(["dog", "cat"]).dictionary_encode())
    assert read(tmp_path).train.class_names == ("cat", "dog")


def test_rows_are_called_as_they_call_themselves_where_that_is_one_name_each(tmp_path: Path) -> None:
    for paths, names in [
        ((("cat/1.png", "cat/2.png"), ("cat/3.png",)), ("cat/1.png", "cat/2.png", "cat/3.png")),
        ((("1.png", "2.png"), ("1.png",)), ("train/1.png", "train/2.png", "test/1.png")),
        ((("1.png", "1.png"), ("2.png",)), ("train.parquet[0]", "train.parquet[1]", "test.parquet[0]")),
        ((("1.png", None), ("2.png",)), ("train.parquet[0]", "train.parquet[1]", "test.parquet[0]")),
        ((("/tmp/1.png", "../2.png"), ("3.png",)), ("train.parquet[0]", "train.parquet[1]", "test.parquet[0]")),
    ]:
        for part, some in zip(("train", "test"), paths, strict=True):
            images = [{"bytes": picture(number), "path": path} for number, path in enumerate(some)]
            write(tmp_path / f"{part}.parquet", images, [0, 1][: len(some)])
        splits = read(tmp_path)
        assert (*splits.train.names, *splits.test.names) == names


def test_a_column_may_have_the_names(tmp_path: Path) -> None:
    for part in ("train", "test"):
        more = {"__key__": [f"{part}_{row}" for row in range(2)], "json": ["{}", "{}"]}
        pq.write_table(pa.table({"jpg": [picture(1), picture(2)], "cls": [1, 0], **more}), tmp_path / f"{part}.parquet")
    splits = read(tmp_path)
    assert (splits.train.names, splits.train.labels.tolist()) == (("train_0", "train_1"), [1, 0])


def test_files_may_be_shards_of_one_part_whatever_they_are_called(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"part-{number}.parquet", [picture(value) for value in range(10)], [0, 1] * 5)
    splits = read(tmp_path)
    assert (len(splits.train), len(splits.test)) == (16, 4)
    write(tmp_path / "extra.parquet", [picture(1), picture(2)], [0, 1])
    refused(tmp_path, r"has the parts extra, part, and none of them is called train; .*--set data\.train=extra, or \.")
    assert len(read(tmp_path, train=".").train) == 18
    splits = read(tmp_path, train="part", test="extra")
    assert (len(splits.train), len(splits.test)) == (20, 2)


def test_a_part_that_is_not_used_is_noted(tmp_path: Path) -> None:
    shards(tmp_path)
    shard(tmp_path / "unsupervised.parquet", [(picture(), 0)])
    assert read(tmp_path).notes == (f"{tmp_path}: its part unsupervised is not used",)
