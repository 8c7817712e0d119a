"""A command knows that nothing is left to do, while no file has changed; where one has, the stages are asked."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import receipt as receipts
from latebloom.flows.run.receipt import Receipt


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("train/cat/0.png", "train/dog/0.png", "test/cat/0.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path / "images"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run/stages").mkdir(parents=True)
    (tmp_path / "run/stages/select.json").write_text("{}")
    (tmp_path / "run/weights.safetensors").write_bytes(b"0123")
    return tmp_path / "run"


@pytest.fixture
def config(images: Path) -> CompareConfig:
    return CompareConfig(data={"source": str(images)})


def written(run: Path, config: CompareConfig) -> None:
    Receipt(run, config).write(["compare", "select"])


def holds(run: Path, config: CompareConfig, kind: str = "compare") -> bool:
    return Receipt(run, config).holds(kind)


def test_a_receipt_holds_for_the_commands_it_is_of(run: Path, config: CompareConfig) -> None:
    assert not holds(run, config)
    written(run, config)
    assert holds(run, config)
    assert holds(run, config, "select")
    assert not holds(run, config, "retrain")
    (run / ".done/compare.json").write_text("{")
    assert not holds(run, config)


Change = Callable[[Path, Path], Any]
CHANGES: dict[str, Change] = {
    "an image": lambda images, _: (images / "train/cat/0.png").write_bytes(b"another"),
    "a new image": lambda images, _: (images / "train/cat/1.png").write_bytes(b"another"),
    "an image less": lambda images, _: (images / "train/cat/0.png").unlink(),
    "an image moved": lambda images, _: (images / "train/cat/0.png").rename(images / "train/dog/1.png"),
    "weights": lambda _, run: (run / "weights.safetensors").write_bytes(b"0124"),
    "weights gone": lambda _, run: (run / "weights.safetensors").unlink(),
    "a record": lambda _, run: (run / "stages/select.json").write_text("{ }"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_it_does_not_hold_once_anything_has_changed(what: str, run: Path, images: Path, config: CompareConfig) -> None:
    written(run, config)
    CHANGES[what](images, run)
    assert not holds(run, config)


def test_nor_for_other_settings(run: Path, config: CompareConfig) -> None:
    written(run, config)
    assert not holds(run, config.model_copy(update={"seeds": 2}))


def test_nor_for_other_code(run: Path, config: CompareConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/__init__.py").write_text("")
    monkeypatch.setattr(receipts.latebloom, "__file__", str(tmp_path / "code/__init__.py"))
    written(run, config)
    assert holds(run, config)
    (tmp_path / "code/stage.py").write_text("VERSION = 2")
    assert not holds(run, config)


def test_records_that_are_written_again_as_they_were_change_nothing(run: Path, config: CompareConfig) -> None:
    written(run, config)
    (run / "stages/select.json").unlink()
    (run / "stages/select.json").write_text("{}")
    (run / ".lock").write_text("latebloom select")
    assert holds(run, config)


def test_a_file_that_changes_in_the_tick_in_which_it_was_looked_at_is_known_by_its_content(
    run: Path, images: Path, config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As git's index does: size and times alone would be equal."""
    image = images / "train/cat/0.png"
    now = time.time_ns()
    real = Path.stat

    def coarse(path: Path, **more: Any) -> Any:
        found = real(path, **more)
        if path != image:
            return found
        return os.stat_result(
            (*found[:7], now // 10**9, now // 10**9, now // 10**9),
            {"st_mtime_ns": now, "st_ctime_ns": now, "st_atime_ns": now},
        )

    monkeypatch.setattr(Path, "stat", coarse)
    written(run, config)
    assert holds(run, config)
    image.write_bytes(image.read_bytes()[::-1])  # as long as before
    assert not holds(run, config)


def test_what_changes_while_the_command_works_is_not_what_was_read(
    run: Path, images: Path, config: CompareConfig
) -> None:
    receipt = Receipt(run, config)
    (images / "train/cat/0.png").write_bytes(b"another")
    receipt.write(["compare"])
    assert not holds(run, config)


def test_images_that_failed_are_tried_each_time(run: Path, config: CompareConfig) -> None:
    (run / "synthetic").mkdir()
    (run / "synthetic/failures.json").write_text("{}")
    written(run, config)
    assert not holds(run, config)


def test_what_is_at_a_url_is_asked_each_time(run: Path) -> None:
    config = CompareConfig(data={"source": "memory://images"})
    written(run, config)
    assert not holds(run, config)


def test_a_run_folder_among_the_images_is_none_of_them(images: Path, run: Path, config: CompareConfig) -> None:
    shutil.move(run, images / "run")
    written(images / "run", config)
    assert holds(images / "run", config)


def test_links_to_a_folder_above_end(images: Path, run: Path, config: CompareConfig) -> None:
    (images / "train/again").symlink_to(images)
    written(run, config)
    assert holds(run, config)


def test_a_setting_with_a_scale_names_its_file(tmp_path: Path, run: Path, config: CompareConfig) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"0123")
    generate = config.generate.model_copy(update={"loras": (f"{lora}@0.8",)})
    config = config.model_copy(update={"generate": generate})
    written(run, config)
    assert holds(run, config)
    lora.write_bytes(b"3210")
    assert not holds(run, config)


def test_a_long_text_is_no_path(run: Path, config: CompareConfig) -> None:
    prompts = config.prompts.model_copy(update={"negative": "blurred, " * 100})
    config = config.model_copy(update={"prompts": prompts})
    written(run, config)
    assert holds(run, config)
