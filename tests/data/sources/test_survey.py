"""All that is wrong with a data set, at once."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.data.sources.repeated import Pictures, repeated
from latebloom.data.sources.survey import Survey, spread, survey


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """60 training and 100 test images of 9x9 pixels in two classes, all different."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 50)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{number:02}.png")
    return tmp_path / "pets"


def looked_at(source: Path, **settings: object) -> Survey:
    return survey(DataConfig.model_validate({"source": str(source), **settings}))


def test_where_nothing_is_wrong_it_says_what_is_there(pets: Path) -> None:
    found = looked_at(pets)
    assert (found.problems, found.notes) == ([], [])
    assert found.counts == {"train": {"cat": 30, "dog": 30}, "test": {"cat": 50, "dog": 50}}
    assert (found.sizes, found.modes, found.shape, found.image_size) == ({(9, 9): 160}, {"RGB": 160}, (9, 9, 3), 0)
    assert found.splits
    assert found.splits.train.digest == load(DataConfig(source=str(pets))).train.digest


def noise(path: Path, size: tuple[int, int] = (9, 9)) -> None:
    Image.effect_noise(size, 60).convert("RGB").save(path)


def deep(path: Path) -> None:
    Image.new("I;16", (9, 9)).save(path)


def moving(path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), (value, 0, 0)) for value in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut_off(path: Path) -> None:
    noise(path)
    path.write_bytes(path.read_bytes()[:-60])


# What is done to a good data set: the file, what is written there, and the problem that comes of it.
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("train/cat/text.png", lambda path: path.write_text("hello"), "not readable"),
    ("test/dog/empty.png", lambda path: path.write_bytes(b""), "not readable"),
    ("train/dog/cut.png", cut_off, "truncated or damaged"),
    ("train/cat/deep.png", deep, "more than 8 bits"),
    ("test/cat/moving.gif", moving, "several frames"),
    ("train/cat/tiny.png", lambda path: noise(path, (9, 4)), "too small"),
    ("train/dog/large.png", lambda path: noise(path, (90, 60)), "several sizes"),
    ("train/loose.png", noise, "in no class"),
    ("train/cat/film.mp4", lambda path: path.write_bytes(b"film"), "not an image"),
    ("train/eel", lambda path: path.mkdir(), "empty class"),
]


def test_ten_faults_are_listed_in_one_run_by_name(pets: Path) -> None:
    for place, make, _ in FAULTS:
        make(pets / place)
    problems = [problem for problem in looked_at(pets).problems if problem.severity == "error"]
    for place, _, kind in FAULTS:
        (problem,) = [one for one in problems if one.where == str(pets / place) and one.kind == kind]
        assert problem.message.startswith(str(pets / place))
    assert len(problems) == len(FAULTS)


@pytest.mark.parametrize(("place", "make", "kind"), FAULTS, ids=[place for place, *_ in FAULTS])
def test_loading_refuses_in_the_same_words(pets: Path, place: str, make: Callable[[Path], object], kind: str) -> None:
    make(pets / place)
    first = next(problem for problem in looked_at(pets).problems if problem.severity == "error")
    with pytest.raises(ValueError) as refused:
        len(load(DataConfig(source=str(pets))).train.sha256 + load(DataConfig(source=str(pets))).test.sha256)
    assert str(refused.value).startswith(first.message)


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="file names are text here")
def test_a_name_that_is_no_text_is_named_in_letters_that_a_terminal_has(pets: Path) -> None:
    noise(pets / "train/cat" / os.fsdecode(b"caf\xe9.png"))
    (problem,) = [one for one in looked_at(pets).problems if one.severity == "error"]
    assert (problem.kind, problem.where) == ("name that is not UTF-8", f"{pets}/train/cat/caf\\udce9.png")
    with pytest.raises(ValueError, match="has a name that is not UTF-8; rename it"):
        load(DataConfig(source=str(pets)))


def test_settings_resolve_what_they_are_said_to(pets: Path) -> None:
    deep(pets / "train/cat/deep.png")
    moving(pets / "test/cat/moving.gif")
    noise(pets / "train/dog/large.png", (90, 60))
    found = looked_at(pets, depth="type", animated="first", image_size=9)
    assert found.problems == []
    assert found.modes == {"RGB": 161, "P": 1, "I;16": 1}
    assert found.shape == (9, 9, 3)
    assert found.notes == ["1 image in grey become colour, as the others are"]


def test_the_same_picture_in_two_splits_or_with_two_labels_is_a_warning(pets: Path) -> None:
    shutil.copy(pets / "train/cat/05.png", pets / "test/cat/again.png")
    with Image.open(pets / "train/cat/06.png") as image:
        image.save(pets / "train/dog/other.bmp")  # another file of the same pixels
    shutil.copy(pets / "train/dog/07.png", pets / "train/dog/07 copy.png")
    found = looked_at(pets)
    assert [(one.kind, one.where, one.severity) for one in found.problems] == [
        ("picture in two splits", "test/cat/again.png", "warning"),
        ("picture with two labels", "train/dog/other.bmp", "warning"),
    ]
    assert "test/cat/again.png (test) is the same picture as train/cat/05.png (train)" in found.problems[0].message
    assert "train/dog/other.bmp is dog, and the same picture as train/cat/06.png, which is cat" in (
        found.problems[1].message
    )
    assert found.notes[0].startswith("train has 2 copies of its own images")
    assert load(DataConfig(source=str(pets))).train


def test_every_pair_of_splits_is_compared() -> None:
    parts = {
        "train": Pictures(["a", "b"], np.array([0, 1]), ["x", "x"]),
        "validation": Pictures(["c"], np.array([0]), ["x"]),
        "test": Pictures(["d", "e"], np.array([0, 0]), ["x", ""]),  # e cannot be decoded
    }
    problems, notes = repeated(parts, ("cat", "dog"))
    assert [(one.kind[8:], one.where) for one in problems] == [
        ("in two splits", "c"),
        ("in two splits", "d"),
        ("in two splits", "d"),
        ("with two labels", "b"),
        ("with two labels", "c"),
        ("with two labels", "d"),
    ]
    assert [" a (" in one.message for one in problems[:3]] == [True, True, False]
    assert notes == ["train has 1 copy of its own images, such as b of a"]


def test_small_classes_and_splits_are_warned_of(pets: Path) -> None:
    for number in range(1, 30):
        (pets / f"train/cat/{number:02}.png").unlink()
    (pets / "test/dog/01.png").unlink()
    shutil.rmtree(pets / "test/cat")
    assert [(one.kind, one.where) for one in looked_at(pets).problems] == [
        ("class with one image", "cat"),
        ("class not in test", "cat"),
        ("small split", "test"),
    ]


def test_what_is_held_out_is_counted_and_compared(pets: Path) -> None:
    shutil.rmtree(pets / "test")
    shutil.copytree(pets / "train/cat", pets / "train/copy")
    found = looked_at(pets)
    assert found.counts == {
        "train": {"cat": 24, "copy": 24, "dog": 24},
        "test": {"cat": 6, "copy": 6, "dog": 6},
    }
    kinds = Counter(problem.kind for problem in found.problems)
    assert kinds["picture with two labels"] == 30
    assert 1 <= kinds["picture in two splits"] <= 12
    assert "has no test part: 18 images" in found.notes[0]


def test_arrays_are_looked_at_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 65536, (200, 8, 9), dtype=np.uint16)
    arrays = {"train_images": images, "train_labels": np.arange(200) % 2}
    arrays |= {"test_images": images[:150], "test_labels": np.arange(150) % 2}
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    found = looked_at(tmp_path / "set.npz")
    assert [one.kind for one in found.problems if one.severity == "error"] == ["more than 8 bits"] * 2
    assert found.modes == {"uint16": 350}
    for depth in ("refuse", "data"):
        found = looked_at(tmp_path / "set.npz", depth=depth)
        assert Counter(one.kind for one in found.problems)["picture in two splits"] == 150


def test_what_is_no_data_set_is_a_problem_of_its_own(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "nowhere")
    assert [(one.kind, one.severity) for one in found.problems] == [("not a data set", "error")]
    assert (found.counts, found.as_json()["sizes"]) == ({}, None)


def test_an_image_size_is_advised_for_large_images_and_several_sizes(tmp_path: Path) -> None:
    for sizes, advised in [
        ([(40, 30), (90, 60), (50, 50)], 32),  # the median by area is 50x50
        ([(20, 30), (30, 20)], 20),
        ([(640, 480)], 224),
        ([(64, 64)], 0),
        ([(300, 300)], 0),
    ]:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        for place in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / "set" / place).mkdir(parents=True)
            for number, size in enumerate(sizes):
                noise(tmp_path / "set" / place / f"{number}.png", size)
        assert looked_at(tmp_path / "set").image_size == advised


def test_sizes_are_spread_by_area() -> None:
    assert spread({(10, 10): 1, (20, 5): 3, (30, 40): 1}) == {
        "min": (10, 10),
        "median": (20, 5),
        "max": (30, 40),
        "distinct": 3,
    }


def test_it_says_how_far_it_is(pets: Path) -> None:
    seen: list[tuple[int, int]] = []
    survey(DataConfig(source=str(pets)), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (160, 160)
    assert all(total == 160 for _, total in seen)
