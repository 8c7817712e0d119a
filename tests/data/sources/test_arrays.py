"""The keys of .npz files; what is wrong with their arrays is in test_load.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import Splits, load


def images(number: int) -> np.ndarray:
    return np.arange(number, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)


def read(folder: Path, arrays: dict[str, Any], **settings: Any) -> Splits:
    np.savez(folder / "set.npz", **{name: np.array(array) for name, array in arrays.items()})
    return load(DataConfig(source=str(folder / "set.npz"), **settings))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train_images", "train_labels"), ("test_images", "test_labels")),
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("X_train", "Y_train"), ("X_test", "Y_test")),
        (("train_x", "train_y"), ("test_x", "test_y")),
        (("training_data", "training_targets"), ("testing_data", "testing_targets")),
        (("images_train", "labels_train"), ("images_test", "labels_test")),
    ],
)
def test_the_keys_say_part_and_kind(tmp_path: Path, train: tuple[str, str], test: tuple[str, str]) -> None:
    splits = read(tmp_path, {train[0]: images(2), train[1]: [0, 1], test[0]: images(3), test[1]: [0, 1, 1]})
    assert (len(splits.train), len(splits.test)) == (2, 3)
    assert splits.test.names == tuple(f"{test[0]}[{row}]" for row in range(3))
    assert splits.notes == ()


def test_labels_may_be_texts_or_booleans_and_class_names_may_have_their_order(tmp_path: Path) -> None:
    pixels = images(10)
    assert read(tmp_path, {"images": pixels, "labels": ["dog", "cat"] * 5}).train.class_names == ("cat", "dog")
    assert read(tmp_path, {"images": pixels, "labels": [True, False] * 5}).train.class_names == ("False", "True")
    arrays = {"images": pixels, "labels": ["dog", "cat"] * 5, "class_names": ["dog", "cat"]}
    splits = read(tmp_path, arrays)
    assert (splits.train.class_names, splits.train.labels[:2].tolist()) == (("dog", "cat"), [0, 1])


def test_a_part_may_be_named_by_its_kind(tmp_path: Path) -> None:
    arrays = {
        f"{part}_{kind}": value
        for part in ("train", "test")
        for kind, value in (("scans", images(2)), ("sick", [0, 1]), ("images", np.zeros((2, 4))))
    }
    splits = read(tmp_path, arrays, image="scans", label="sick")
    assert (splits.train.names[0], splits.test.names[0]) == ("train_scans[0]", "test_scans[0]")


def test_parts_of_other_names_may_be_named(tmp_path: Path) -> None:
    arrays = {"fit_x": images(2), "fit_y": [0, 1], "held_x": images(3), "held_y": [0, 1, 1]}
    splits = read(tmp_path, arrays, train="fit", test="held")
    assert (len(splits.train), len(splits.test)) == (2, 3)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"x": images(2), "images": images(2), "y": [0, 1]},
            r"2 arrays that may be the images: x, images; .*--set data\.image=x",
        ),
        ({"x": images(3), "y": [0, 1]}, "has 3 x but 2 labels; give one label an image"),
        ({"train_x": images(2)}, "no array of the labels that belong to train_x; it has train_x; add or name it"),
        ({"arr_0": images(2), "arr_1": [0, 1]}, r"no array of images; it has arr_0, arr_1; .*--set data\.image=KEY"),
    ],
)
def test_keys_that_cannot_be_guessed_are_listed(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, arrays)


def test_a_folder_may_hold_the_one_file(tmp_path: Path) -> None:
    read(tmp_path, {"x": images(10), "y": [0, 1] * 5})
    assert len(load(DataConfig(source=str(tmp_path))).train) == 8
    (tmp_path / "set.npz").rename(tmp_path / "old.npz")
    read(tmp_path, {"x": images(10), "y": [0, 1] * 5})
    with pytest.raises(ValueError, match=r"has 2 \.npz files: old\.npz, set\.npz; give one .* such as .*old\.npz"):
        load(DataConfig(source=str(tmp_path)))
