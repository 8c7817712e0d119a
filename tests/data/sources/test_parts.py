"""Which part of a data set is which, by its name or as the config names it."""

from pathlib import Path
from typing import Any

import pytest

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Problems
from latebloom.data.sources.load import load
from latebloom.data.sources.parts import assign, holds_images, part_of, role_of, sharded


def test_the_usual_names_are_known_in_any_case() -> None:
    roles = {
        "train": ("train", "Training", "TRAIN"),
        "test": ("test", "Testing"),
        "validation": ("val", "valid", "Validation", "dev"),
        "": ("trains", "extra", ""),
    }
    assert {role: [role_of(name) for name in names] for role, names in roles.items()} == {
        role: [role] * len(names) for role, names in roles.items()
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("train.parquet", "train"),
        ("Test_0003.tar.gz", "Test"),
        ("cifar10-validation-000001.tar", "validation"),
        ("partial-train", "train"),
        ("0000.parquet", ""),
        ("unsupervised-00000-of-00001.parquet", "unsupervised"),
        ("part-7.parquet", "part"),
        ("train_and_test.csv", "train_and_test"),
        ("cats.v2.csv", "cats.v2"),
        ("cats2.csv", "cats2"),
    ],
)
def test_a_file_belongs_to_the_part_in_its_name(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("found", "settings", "chosen", "notes"),
    [
        (["train", "test"], {}, {"train": "train", "test": "test"}, 0),
        (["Training", "dev"], {}, {"train": "Training", "validation": "dev"}, 0),
        (["train", "val"], {"test": "val"}, {"train": "train", "test": "val"}, 0),
        (["a"], {}, {"train": "a"}, 0),
        (["a", "test"], {}, {"train": "a", "test": "test"}, 0),
        (["train", "extra", "test"], {}, {"train": "train", "test": "test"}, 1),
        (["train", "test", "val"], {"validation": "none"}, {"train": "train", "test": "test"}, 0),
        (["train", "test", "val"], {"test": "none"}, {"train": "train", "validation": "val"}, 0),
        (
            ["a", "b", "c"],
            {"train": "a", "test": "b", "validation": "c"},
            {"train": "a", "test": "b", "validation": "c"},
            0,
        ),
        (["train", "train2"], {"train": "train2"}, {"train": "train2"}, 1),
    ],
)
def test_parts_get_their_roles(found: list[str], settings: dict[str, str], chosen: dict[str, str], notes: int) -> None:
    problems = Problems()
    assert assign(found, DataConfig.model_validate(settings), "DATA", problems) == chosen
    assert len(problems.notes) == notes


@pytest.mark.parametrize(
    ("found", "settings", "words"),
    [
        (
            ["a", "b"],
            {},
            r"DATA has the parts a, b, and none of them is called train; .*--set data\.train=a, or \. for all",
        ),
        (["test"], {}, "has the parts test, and none of them is called train"),
        (["train", "val", "dev"], {}, r"2 parts that may be the validation part: val, dev; .*data\.validation=val"),
        (["train", "Train"], {}, r"2 parts that may be the train part: train, Train; .*data\.train=train"),
        (["train"], {"test": "hold"}, r"has no part hold, which data\.test names; its parts are train"),
        (
            ["train", "val"],
            {"test": "val", "validation": "val"},
            "part val of DATA is named twice, as data.validation too",
        ),
    ],
)
def test_parts_that_cannot_be_guessed_are_listed(found: list[str], settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        assign(found, DataConfig.model_validate(settings), "DATA", Problems())


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def shape(root: Path) -> dict[str, list[str]]:
    found = sharded(root, (".parquet",))
    return {part: [file.relative_to(root).as_posix() for file in files] for part, files in found.items()}


def test_shards_are_found_in_the_folder_or_below_it(tmp_path: Path) -> None:
    for number, (names, parts) in enumerate(
        [
            (["train-1.parquet", "train-0.parquet"], {"train": ["train-0.parquet", "train-1.parquet"]}),
            (["data/train-0.parquet", "README.md"], {"train": ["data/train-0.parquet"]}),
            (["a/train/0.parquet", "a/test/0.parquet"], {"test": ["a/test/0.parquet"], "train": ["a/train/0.parquet"]}),
            (["a/b/c/0.parquet"], {"": ["a/b/c/0.parquet"]}),
            (["a/b/c/d/0.parquet"], {}),
            ([".cache/0.parquet", "x/image.png"], {}),
        ]
    ):
        touch(tmp_path / str(number), *names)
        assert shape(tmp_path / str(number)) == parts


def test_images_are_found_below_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/c/x.JPG", "d/.hidden.png", "d/x.txt")
    assert holds_images(tmp_path)
    assert not holds_images(tmp_path, 2)
    assert not holds_images(tmp_path / "d")


def test_the_parts_of_a_known_data_set_may_be_named_too() -> None:
    assert len(load(DataConfig(test="none")).test) == 40
    assert len(load(DataConfig(test="generator", train_limit=20)).test) == 800
    for settings, words in [
        ({"test": "val"}, r"digits has no part val, which data\.test names; its parts are train, generator, test"),
        ({"test": "train"}, "no part of digits is left to train on"),
        ({"train": "test", "test": "test"}, "part test of digits is named twice"),
        ({"label": "y"}, r"digits is no table, so data\.label names no column; leave it out"),
    ]:
        with pytest.raises(ValueError, match=words):
            load(DataConfig.model_validate(settings))


@pytest.mark.parametrize(("given", "name"), [(2021, "2021"), (True, "true"), (1.5, "1.5"), ("007", "007")])
def test_a_part_or_a_column_may_be_called_like_a_number(given: Any, name: str) -> None:
    config = DataConfig(train=given, label=given)
    assert (config.train, config.label) == (name, name)
