"""WebDataset shards: what is read of them, and what is wrong with their samples."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Found, Problems
from latebloom.data.sources.load import find, load


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def tar(file: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(file, mode) as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file


def samples(start: int, number: int, folder: str = "") -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for key in range(start, start + number):
        members |= {f"{folder}{key:04}.png": png(key), f"{folder}{key:04}.cls": str(key % 2).encode()}
    return members


def found(source: Path, **settings: Any) -> tuple[Found, Problems]:
    problems = Problems()
    return find(DataConfig(source=str(source), **settings), problems), problems


def test_shards_are_read_in_order_and_called_by_their_keys(tmp_path: Path) -> None:
    tar(tmp_path / "train-000001.tar", samples(10, 2, "b/"))
    tar(tmp_path / "train-000000.tar", samples(0, 3, "./"))
    tar(tmp_path / "val-000000.tar", samples(20, 2))
    tar(tmp_path / "test.tar.gz", samples(30, 2), "w:gz")
    splits = load(DataConfig(source=str(tmp_path)))
    assert splits.train.names == ("0000.png", "0001.png", "0002.png", "b/0010.png", "b/0011.png")
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11]
    assert splits.train.labels.tolist() == [0, 1, 0, 0, 1]
    assert splits.validation is not None
    assert (len(splits.validation), len(splits.test)) == (2, 2)


def test_a_sample_that_does_not_fit_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    members = samples(0, 2) | {
        "2.png": png(2),
        "3.cls": b"1",
        "notes": b"?",
        ".hidden": b"?",
        "4.png": png(4),
        "4.json": b"{",
    }
    (_, splits), problems = found(tar(tmp_path / "train.tar", members))
    assert list(splits["train"].names) == ["0000.png", "0001.png"]
    assert [(one.kind, one.where.split(" of ")[0]) for one in problems.found] == [
        ("no label", "sample 2"),
        ("no image", "sample 3"),
        ("no label", "sample 4"),
    ]
    assert problems.found[0].message.endswith("train.tar has png and no label in a .cls or .json; add or drop it")


def test_the_name_of_a_member_is_never_a_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = {f"../../{name}": content for name, content in samples(0, 2).items()} | samples(2, 2, "/etc/")
    (_, splits), problems = found(tar(tmp_path / "in" / "train.tar", members))
    assert problems.found == []
    assert list(splits["train"].names) == [f"train.tar[{row}]" for row in range(4)]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["in", "train.tar"]


def test_links_in_an_archive_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as opened:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
        info = tarfile.TarInfo("0.cls")
        info.size = 1
        opened.addfile(info, io.BytesIO(b"1"))
    _, problems = found(tmp_path / "train.tar")
    assert [one.kind for one in problems.found] == ["no image"]


def json_samples(**values: Any) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for key in range(4):
        content = {name: value[key % 2] for name, value in values.items()}
        members |= {f"{key}.jpg": png(key), f"{key}.json": json.dumps(content).encode()}
    return members


def test_the_label_is_a_key_of_the_json(tmp_path: Path) -> None:
    file = tar(tmp_path / "train.tar", json_samples(caption=["x", "y"], label=["dog", "cat"], id=[1, 2]))
    assert found(file)[0][0] == ("cat", "dog")
    file = tar(tmp_path / "train.tar", json_samples(width=[8, 8], breed=[3, 0], colour=["red", "blue"]))
    with pytest.raises(
        ValueError, match=r"the \.json of .*train\.tar has 2 columns that may be the label: breed, colour"
    ):
        found(file)
    assert found(file, label="colour")[0][0] == ("blue", "red")
    with pytest.raises(ValueError, match=r"has no column size, which data\.label names; it has width, breed, colour"):
        found(file, label="size")


def test_an_archive_of_class_folders_is_to_be_unpacked(tmp_path: Path) -> None:
    file = tar(tmp_path / "all.tar", {f"{kind}/{key}.png": png(key) for kind in ("cat", "dog") for key in range(2)})
    with pytest.raises(
        ValueError, match=r"all\.tar has 4 images and no label .*; if its folders are the classes, unpack"
    ):
        found(file)


def test_of_several_images_of_a_sample_one_is_named(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for key in range(2):
        members |= {
            f"{key}.jpg": png(key),
            f"{key}.png": png(9 + key),
            f"{key}.seg.png": png(99),
            f"{key}.cls": b"%d" % key,
        }
    file = tar(tmp_path / "train.tar", members)
    with pytest.raises(ValueError, match=r"2 columns that may be the image: jpg, png; .*--set data\.image=jpg"):
        found(file)
    assert list(found(file, image="png")[0][1]["train"].names) == ["0.png", "1.png"]


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    whole = tar(tmp_path / "train.tar", samples(0, 4)).read_bytes()
    for content in (b"", b"hello" * 200, whole[:1000]):
        (tmp_path / "train.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.tar cannot be read as tar"):
            found(tmp_path / "train.tar")


def test_shards_may_be_at_a_url(tmp_path: Path) -> None:
    storage = fsspec.filesystem("memory")
    tar(tmp_path / "train-0.tar", samples(0, 4))
    tar(tmp_path / "test-0.tar", samples(4, 2))
    storage.put(str(tmp_path), "/shards", recursive=True)
    try:
        assert len(load(DataConfig(source="memory://shards")).train) == 4
    finally:
        storage.rm("/shards", recursive=True)
