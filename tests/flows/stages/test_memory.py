"""A step that cannot fit is refused before it, with what would."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latebloom.data.images import LabeledImages
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import progress
from latebloom.flows.stages import memory
from latebloom.flows.stages.classifiers import new_classifiers
from latebloom.flows.stages.memory import check_generator_memory, check_step_memory
from latebloom.synth.generators.folder import loaded_bytes
from latebloom.train.memory import StepMemory

Tiny = Callable[..., CompareConfig]
MIB = 1 << 20


def check(config: CompareConfig, free: int, monkeypatch: pytest.MonkeyPatch, side: int = 32, n: int = 300) -> None:
    """With a network that takes 100 MiB and 1 MiB an image."""
    images = LabeledImages(np.zeros((n, side, side, 3), np.uint8), np.arange(n) % 2, ("a", "b"), "x")
    monkeypatch.setattr(memory, "free_ram", lambda: free * MIB)
    monkeypatch.setattr(memory, "step_memory", lambda *_: StepMemory(100 * MIB, MIB))
    check_step_memory(config, images, new_classifiers(config, images, count=1)[0])


def config(**changes: Any) -> CompareConfig:
    settings: dict[str, Any] = {"classifier": {"model": "resnet20"}, "device": "cpu", **changes}
    return CompareConfig(**settings)


@pytest.mark.parametrize(
    ("free", "changes", "words"),
    [
        (400, {}, None),
        (
            250,
            {},
            "batches of 128 takes about 0.2 GiB (0.1 of activations), and this machine has 0.2 GiB free; a smaller",
        ),
        (200, {}, "; give --batch-size 32, or --set train.accumulate=4 for steps of 128 still"),
        (200, {"train": {"accumulate": 4}}, None),
        (110, {}, "; give a smaller --image-size or --model"),
        (400, {"workers": 2, "seeds": 2}, "fewer --workers"),
    ],
)
def test_a_step_is_refused_above_what_is_free_and_warned_of_near_it(
    free: int,
    changes: dict[str, Any],
    words: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress.warn.cache_clear()
    said = ""
    try:
        check(config(**changes), free, monkeypatch)
    except ValueError as error:
        said = str(error)
    said += capsys.readouterr().err
    assert (words in said) if words else said == ""


def test_large_images_in_a_network_for_small_ones_are_sent_to_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=re.escape("give --preset photos-224 (this network is for small images), or")):
        check(config(), 200, monkeypatch, side=224, n=20 * 8)
    check(config(), 0, monkeypatch)  # not known


def test_the_weights_of_a_generator_are_counted_without_loading_it(
    tiny: Tiny, generator: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = loaded_bytes(generator, 1)
    assert 4 * count == pytest.approx(
        (generator / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size, rel=0.4
    )
    progress.warn.cache_clear()
    monkeypatch.setattr(memory, "free_ram", lambda: 5 * count)
    check_generator_memory(tiny())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(memory, "free_ram", lambda: 4 * count)
    check_generator_memory(tiny())
    assert "warning: the weights of " in capsys.readouterr().err
