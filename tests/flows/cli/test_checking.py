"""latebloom check: what it prints, and what it ends with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.stages.inputs import check_data

RunCommand = Callable[..., Any]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "big dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(50):
                Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return tmp_path / "pets"


def test_a_good_data_set_is_counted_and_ends_with_0(run_command: RunCommand, pets: Path) -> None:
    outcome = run_command("check", pets)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "2 classes  train  test",
        "images       100   100",
        "big dog       50    50",
        "cat           50    50",
        "",
        "sizes      9x9",
        "pixels     L 200",
        "become     9x9, grey",
        "",
        "Nothing keeps this from being trained on. Next:",
        f"  latebloom select {pets}",
    ]


def test_errors_are_grouped_and_end_with_1(run_command: RunCommand, pets: Path) -> None:
    for number in range(12):
        Image.new("I;16", (9, 9)).save(pets / f"train/cat/deep {number:02}.png")
    outcome = run_command("check", pets)
    assert outcome.code == 1
    assert "12 errors" in outcome.out
    assert "  more than 8 bits: 12" in outcome.out
    assert "train/cat/deep 00.png has pixel mode I;16" in outcome.out
    assert "the same: train/cat/deep 01.png" in outcome.out
    assert "and 2 more; --json lists all" in outcome.out
    *_, words, command = outcome.out.splitlines()
    assert words == "With these settings, check again:"
    assert command == f"  latebloom check {pets} --set data.depth=type"
    assert run_command("check", pets, "--set", "data.depth=type").code == 0


def test_warnings_alone_end_with_0(run_command: RunCommand, pets: Path) -> None:
    shutil.copy(pets / "train/cat/00.png", pets / "test/cat/again.png")
    outcome = run_command("check", pets)
    assert outcome.code == 0
    assert "1 warning\n" in outcome.out
    assert "test/cat/again.png (test) is the same picture as train/cat/00.png (train)" in " ".join(outcome.out.split())


def test_json_has_every_problem(run_command: RunCommand, pets: Path) -> None:
    for number in range(12):
        (pets / f"train/cat/bad {number:02}.png").write_text("hello")
    outcome = run_command("check", pets, "--json")
    found = json.loads(outcome.out)
    assert (outcome.code, found["errors"], found["warnings"]) == (1, 12, 0)
    assert [problem["where"] for problem in found["problems"]] == [
        f"{pets}/train/cat/bad {number:02}.png" for number in range(12)
    ]
    assert {problem["kind"] for problem in found["problems"]} == {"not readable"}
    assert found["splits"]["test"] == {"images": 100, "classes": {"big dog": 50, "cat": 50}}
    assert found["sizes"] == {"min": [9, 9], "median": [9, 9], "max": [9, 9], "distinct": 1}
    assert found["next"] == f"latebloom check {pets}"


def test_several_sizes_come_with_the_image_size(run_command: RunCommand, pets: Path) -> None:
    for number in range(250):
        Image.effect_noise((70, 50), 60).save(pets / f"train/cat/large {number}.png")
    outcome = run_command("check", pets)
    assert outcome.code == 1
    assert outcome.out.endswith(f"With these settings, check again:\n  latebloom check {pets} --image-size 32\n")


def test_many_classes_are_a_range(run_command: RunCommand, pets: Path) -> None:
    for number in range(20):
        for split in ("train", "test"):
            (pets / split / f"class {number}").mkdir()
            pixels = np.full((9, 9), number + 30 * (split == "test"), np.uint8)
            Image.fromarray(pixels).save(pets / split / f"class {number}" / "0.png")
    lines = run_command("check", pets).out.splitlines()
    assert lines[:4] == [
        "22 classes      train  test",
        "images            120   120",
        "smallest class      1     1",
        "largest class      50    50",
    ]


def test_a_generator_is_compared_with_the_classes(run_command: RunCommand, pets: Path, generator: Path) -> None:
    outcome = run_command("check", pets, "--generator", generator)
    assert outcome.code == 1
    assert "  generator: 1" in outcome.out
    assert "class 'big dog' of the data is none of the generator's 10 classes" in " ".join(outcome.out.split())
    outcome = run_command("check", "digits", "--generator", generator)
    assert outcome.code == 0, outcome.out
    assert f"generator  {generator}, pixel, works at 8 pixels\n" in outcome.out
    assert "classes    by label: 0 is 0, 1 is 1, 2 is 2 and 7 more\n" in outcome.out
    assert "of weights" in outcome.out
    assert outcome.out.endswith(f"  latebloom run digits --generator {generator}\n")


def test_nothing_is_written(
    run_command: RunCommand, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_command("check", pets).code == 0
    assert list((tmp_path / "here").iterdir()) == []


def test_a_generator_that_is_not_there_is_named_beside_the_other_problems(
    run_command: RunCommand, pets: Path, tmp_path: Path
) -> None:
    (pets / "train/cat/bad.png").write_text("hello")
    found = json.loads(run_command("check", pets, "--generator", tmp_path / "nowhere", "--json").out)
    assert [problem["kind"] for problem in found["problems"]] == ["generator", "not readable"]


def test_a_source_that_cannot_be_read_has_no_next_command(run_command: RunCommand, tmp_path: Path) -> None:
    outcome = run_command("check", tmp_path / "nowhere")
    assert outcome.code == 1
    assert "is neither a data set's name nor a path that exists" in " ".join(outcome.out.split())
    assert outcome.out.endswith("Nothing else was looked at.\n")


def test_other_commands_warn_once_of_a_picture_in_two_splits(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(pets / "train/cat/00.png", pets / "test/cat/again.png")
    config = CompareConfig(data=DataConfig(source=str(pets)))
    for _ in range(2):
        check_data(config, "select")
    assert capsys.readouterr().err == (
        f"warning: an image is in two splits; `latebloom check {pets}` lists them. test/cat/again.png (test) is the "
        "same picture as train/cat/00.png (train); remove one, or errors on test are too good\n"
    )


def test_a_source_to_give_is_named_as_it_is_typed(run_command: RunCommand, pets: Path) -> None:
    outcome = run_command("check", pets.parent)
    assert outcome.code == 1
    assert f"give {pets} as the source" in " ".join(outcome.out.split())
