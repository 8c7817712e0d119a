"""Tables of paths and labels: what is read of them, and what is wrong with their lines."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Found, Problems
from latebloom.data.sources.load import Splits, find, load

NAMES = [f"{kind}{number}.png" for kind in "ab" for number in range(5)]  # images a0.png to b4.png


def put(folder: Path, *names: str) -> None:
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(folder / name)


def lines(*rows: str, header: str = "path,label") -> str:
    return "\n".join([header, *rows]) + "\n"


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> str:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return str(folder / name)


def read(source: str, **settings: Any) -> Splits:
    return load(DataConfig(source=source, **settings))


def found(source: str, **settings: Any) -> tuple[Found, Problems]:
    problems = Problems()
    return find(DataConfig(source=source, **settings), problems), problems


def test_a_line_that_does_not_fit_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    rows = ["a0.png,a", "gone.png,a", ",a", "a1.png,", "a2.png", '"a3.png",a', "", "a0.png,b", "./a0.png,a", "b0.png,b"]
    (names, splits), problems = found(table(tmp_path, lines(*rows)))
    assert names == ("a", "b")
    assert list(splits["train"].names) == ["a0.png", "a3.png", "b0.png"]
    assert splits["train"].labels.tolist() == [0, 0, 1]
    assert [(one.kind, one.where.split(" of ")[0]) for one in problems.found] == [
        ("not a row", "line 6"),
        ("no image", "line 3"),
        ("no image", "line 4"),
        ("no label", "line 5"),
        ("listed twice", "line 9"),
        ("listed twice", "line 10"),
    ]
    words = [one.message for one in problems.found]
    assert words[0].endswith("labels.csv has 1 values, but the first line names 2 columns; correct it")
    assert words[1].endswith(
        f"names the image gone.png, and there is no file {tmp_path / 'gone.png'}; correct the path or drop the line"
    )
    assert words[4].endswith(f"which line 2 of {tmp_path / 'labels.csv'} names already; keep one of the lines")
    with pytest.raises(ValueError, match=r"line 6 of .*\(5 more: .*; `latebloom check .*labels\.csv` lists all\)"):
        read(str(tmp_path / "labels.csv"))


def test_a_line_of_jsonl_that_is_no_object_is_named(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    rows = [json.dumps({"file_name": "a0.png", "label": 1}), "{", "[1]", json.dumps({"file_name": "a1.png"}), "", ""]
    (names, _), problems = found(table(tmp_path, "\n".join(rows), "metadata.jsonl"))
    assert names == ("1",)
    assert [one.message.split("; ")[0].rpartition(" of ")[0] for one in problems.found[2:]] == ["line 4"]
    assert [one.kind for one in problems.found] == ["not JSON", "not JSON", "no label"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lines("a0.png,a").encode("utf-16"), r"labels\.csv is not UTF-8 .*; save it as UTF-8"),
        (lines(), r"labels\.csv has no rows; expected a line for each image"),
        ("", "has no rows"),
        ("a0.png,a\na1.png,b\n", r"begins with an image, a0\.png, a; add a first line .*such as path,label"),
        (lines("a0,a"), r"has no column that looks like the image; it has path, label; .*--set data\.image=COLUMN"),
        (
            lines("x/a0.png,a"),
            r"names the images x/a0\.png, and there are no such files in .* with or without a suffix; correct",
        ),
        (
            lines("a0.png,9,z", header="path,id,caption"),
            "no column that looks like the label; it has path, id, caption",
        ),
        (lines("a0.png,z", header="path,caption"), r"no column that looks like the label.*--set data\.label=COLUMN"),
        (lines("a0.png,a1.png,a", header="path,file,label"), "2 columns that may be the image: path, file"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_to_do(tmp_path: Path, text: str | bytes, words: str) -> None:
    put(tmp_path, *NAMES)
    with pytest.raises(ValueError, match=words):
        read(table(tmp_path, text))


def test_labels_are_sorted_as_numbers_where_all_are(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    rows = [f"{name},{label}" for name, label in zip(NAMES, ["10", "9", "100"] * 3, strict=False)]
    assert found(table(tmp_path, lines(*rows)))[0][0] == ("9", "10", "100")


def test_paths_may_be_absolute_or_lie_above_the_table(tmp_path: Path) -> None:
    put(tmp_path / "images", *NAMES)
    (tmp_path / "tables").mkdir()
    for start in ("../images", str(tmp_path / "images")):
        rows = [f"{start}/{name},{name[0]}" for name in NAMES]
        splits = read(table(tmp_path / "tables", lines(*rows)))
        assert (splits.train.names[0], len(splits.train), len(splits.test)) == ("a0.png", 8, 2)


def test_a_table_may_come_from_windows(tmp_path: Path) -> None:
    put(tmp_path / "big cats", *NAMES)
    rows = "\r\n".join(["path;label", *(f"big cats\\{name};{name[0]}" for name in NAMES)])
    splits = read(table(tmp_path, b"\xef\xbb\xbf" + rows.encode()))
    assert (splits.train.class_names, splits.train.names[0]) == (("a", "b"), "big cats/a0.png")


def test_images_may_lie_in_a_folder_that_is_called_like_the_table(tmp_path: Path) -> None:
    put(tmp_path / "train", *NAMES[::2])
    put(tmp_path / "val", *NAMES[1::2])
    for part, names in (("train", NAMES[::2]), ("val", NAMES[1::2])):
        table(tmp_path, lines(*(f"{name},{name[0]}" for name in names)), f"{part}.csv")
    splits = read(str(tmp_path), test="val")
    assert (splits.train.names[0], splits.test.names[0]) == ("train/a0.png", "val/a1.png")


def test_the_first_folder_of_the_paths_may_be_the_part(tmp_path: Path) -> None:
    names = [f"{part}/{name}" for part in ("train", "test") for name in NAMES]
    put(tmp_path, *names)
    splits = read(table(tmp_path, lines(*(f"{name},{name.rpartition('/')[2][0]}" for name in names))))
    assert (len(splits.train), len(splits.test), splits.test.names[0]) == (10, 10, "test/a0.png")


def test_the_part_of_a_line_may_have_any_name(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    text = lines(*(f"{name},{name[0]},{'fit' if name[1] in '012' else 'held'}" for name in NAMES), header="path,y,fold")
    splits = read(table(tmp_path, text), train="fit", test="held")
    assert (len(splits.train), len(splits.test)) == (6, 4)
    with pytest.raises(ValueError, match=r"has no part hold, which data\.test names; its parts are fit, held"):
        read(str(tmp_path / "labels.csv"), train="fit", test="hold")


def test_a_line_without_a_part_is_named(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    text = lines(*(f"{name},{name[0]},{'train' if name != 'a0.png' else ''}" for name in NAMES), header="path,y,split")
    _, problems = found(table(tmp_path, text))
    assert [one.message.rpartition("labels.csv")[2] for one in problems.found] == [
        " has no split; give it one or drop the line"
    ]


def test_several_tables_are_not_chosen_from(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    for name in ("one.csv", "two.csv"):
        table(tmp_path, lines(*(f"{name},{name[0]}" for name in NAMES)), name)
    with pytest.raises(ValueError, match=r"has 2 tables: one\.csv, two\.csv; give the one .* such as .*one\.csv"):
        read(str(tmp_path))


def test_class_folders_are_read_although_there_is_a_table_but_where_a_column_is_named(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(5)]
    put(tmp_path, *names)
    table(
        tmp_path,
        lines(*(f"{name},{number % 2}" for number, name in enumerate(names)), header="file_name,odd"),
        "metadata.csv",
    )
    assert read(str(tmp_path)).train.class_names == ("cat", "dog")
    assert read(str(tmp_path), label="odd").train.class_names == ("0", "1")


def test_a_table_may_be_at_a_url(tmp_path: Path) -> None:
    storage = fsspec.filesystem("memory")
    put(tmp_path, *NAMES)
    table(tmp_path, lines(*(f"{name},{name[0]}" for name in NAMES)))
    storage.put(str(tmp_path), "/tables", recursive=True)
    try:
        for source in ("memory://tables", "memory://tables/labels.csv"):
            splits = read(source)
            assert (len(splits.train), len(splits.test), splits.train.names[0]) == (8, 2, "a0.png")
            assert sorted([*splits.train.pixels()[:, 0, 0, 0], *splits.test.pixels()[:, 0, 0, 0]]) == list(range(10))
    finally:
        storage.rm("/tables", recursive=True)


def test_ids_without_a_suffix_name_the_images_of_their_own_part(tmp_path: Path) -> None:
    put(tmp_path, *(f"stage1_train/{number}.JPG" for number in range(5)), "a_test/0.JPG")
    source = table(tmp_path, lines(*(f"{number},a" for number in range(5)), header="id,label"), "train_labels.csv")
    (_, splits), problems = found(source)
    assert list(splits["train"].names) == [f"stage1_train/{number}.JPG" for number in range(5)]
    assert not problems.found


def test_an_id_of_several_images_is_refused_with_all(tmp_path: Path) -> None:
    put(tmp_path, "left/1.png", "right/1.png")
    with pytest.raises(ValueError, match=r"names the image 1, which may be any of .*left/1\.png, .*right/1\.png; give"):
        found(table(tmp_path, lines("1,a", header="id,label")))
