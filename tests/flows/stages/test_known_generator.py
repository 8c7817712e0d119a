"""A run knows its generator without loading it, until a file of it or a setting changes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages import checks, loaders, planning
from latebloom.flows.stages.known_generator import Known, known_generator, remember_generator
from latebloom.flows.stages.loaders import forget_generator, generator_of, images_of

Tiny = Callable[..., CompareConfig]


@pytest.fixture
def config(generator: Path, tiny: Tiny, tmp_path: Path) -> CompareConfig:
    """Of a generator that a test may change."""
    shutil.copytree(generator, tmp_path / "generator")
    return tiny({"generate.generator": str(tmp_path / "generator")})


@pytest.fixture
def folder(tmp_path: Path, config: CompareConfig) -> RunFolder:
    """A run folder that knows the generator."""
    folder = RunFolder(tmp_path / "run")
    forget_generator()
    remember_generator(folder, config, images_of(config).train, Known.of(generator_of(config), images_of(config).train))
    forget_generator()
    return folder


def known(folder: RunFolder, config: CompareConfig) -> Known | None:
    return known_generator(folder, config, images_of(config).train)


def test_it_is_known_by_its_digest(folder: RunFolder, config: CompareConfig, tmp_path: Path) -> None:
    assert known(folder, config) == (generator_of(config).digest, tuple(range(10)))
    assert not known(RunFolder(tmp_path / "another"), config)
    (folder.path / ".done/generator.json").write_text("{")
    assert not known(folder, config)


def test_its_check_does_not_load_it(
    folder: RunFolder, config: CompareConfig, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    def refuse(_: CompareConfig) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(checks, "generator_of", refuse)
    checks.check_inputs(config, "compare", str(folder.path))
    with pytest.raises(AssertionError, match="loaded"):
        checks.check_inputs(config, "compare")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "weights": lambda place: (place / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"other"),
    "a config": lambda place: (place / "scheduler/scheduler_config.json").write_text("{}"),
    "a file more": lambda place: (place / "unet/more.json").write_text("{}"),
    "a file less": lambda place: (place / "scheduler/scheduler_config.json").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_is_noticed(what: str, folder: RunFolder, config: CompareConfig) -> None:
    CHANGES[what](Path(config.generate.generator))
    assert not known(folder, config)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"generate.batch_size": 4}, True),
        ({"train.epochs": 4}, True),
        ({"sample.grid": 20}, False),
        ({"plan.levels": (2, 5)}, False),
        ({"generate.dtype": "bfloat16"}, False),
        ({"sizes.work_size": 16}, False),
        ({"data.image_size": 16}, False),
    ],
)
def test_it_is_known_for_the_settings_it_was_checked_with(
    changes: dict[str, Any], same: bool, folder: RunFolder, config: CompareConfig, tiny: Tiny
) -> None:
    other = tiny({"generate.generator": config.generate.generator, **changes})
    assert bool(known(folder, other)) == same


def test_a_file_that_changes_after_it_was_loaded_is_not_what_was_loaded(config: CompareConfig, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    forget_generator()
    loaded = Known.of(generator_of(config), images_of(config).train)
    (Path(config.generate.generator) / "unet/more.json").write_text("{}")
    remember_generator(folder, config, images_of(config).train, loaded)
    forget_generator()
    assert not known(folder, config)


def test_a_plan_that_is_done_loads_none(finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: CompareConfig) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(planning, "generator_of", refuse)
    planning.plan_images(finished, tiny())


def test_one_in_storage_is_loaded_each_time(config: CompareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = config.generate.model_copy(update={"loras": ("memory://lora.safetensors",)})
    assert loaders.generator_files(config.model_copy(update={"generate": generate})) is None
