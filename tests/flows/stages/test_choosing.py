"""Without a generator a command that makes images says at once which there are and what each would cost here."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latebloom.data.images import LabeledImages
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.machine import Machine, free_ram, machine
from latebloom.flows.stages import choosing, inputs
from latebloom.flows.stages.choosing import check_generator_chosen, choices
from latebloom.flows.stages.inputs import GENERATING, check_data
from latebloom.flows.stages.loaders import images_of

Tiny = Callable[..., CompareConfig]
HERE = Machine("a device", 10 << 30, 2, 1e12)


def images(side: int, n: int = 10) -> LabeledImages:
    return LabeledImages(np.zeros((n, side, side, 3), np.uint8), np.arange(n) % 2, ("cat", "dog"), "pets")


def said(monkeypatch: pytest.MonkeyPatch, here: Machine = HERE, side: int = 32, **settings: Any) -> str:
    monkeypatch.setattr(choosing, "machine", lambda _: here)
    return choices(CompareConfig(**settings), images(side, 1000))


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (("original", "ours-5"), "about 2,000 images, 4 variants of about half of the 1,000 training images"),
        (("original", "ours-2", "ours-3"), "about 1,000 images, 2 variants of about half of the 1,000"),
        (("original", "all-2"), "about 1,000 images, 1 variants of all 1,000 training images"),
    ],
)
def test_the_images_are_those_of_the_arms(arms: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words in said(monkeypatch, arms=arms)


def test_costs_follow_from_operations_and_memory_from_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, arms=("original", "ours-2"))  # level 50: 4 of 8 calls, 13 of 25 with guidance twice
    # (4 x 0.80 + 2.8) TFLOP at 1 TFLOP/s; (1.29 + 0.23) G values of two bytes.
    assert "2.8 GiB of memory, 1.7 h for 1,000 images, 50 min for 500" in text
    # (2 x 13 x 6.76 + 11.7) TFLOP
    assert "8.0 GiB of memory, 2 days for 1,000 images" in text
    small = said(monkeypatch, Machine("a device", 4 << 30, 2, 1e12), arms=("original", "ours-2"))
    assert "8.0 GiB, MORE than the 4.0 free, of memory" in small
    assert "MORE" not in text
    assert "MORE" not in said(monkeypatch, Machine("a device", 0, 2, 1e12), arms=("original", "ours-2"))


@pytest.mark.parametrize(
    ("side", "command"),
    [
        (8, "my-generator --channels 16,32 "),
        (28, "my-generator --size 32 --channels 64,128,128 "),
        (64, "my-generator --channels 64,128,256,256 "),
        (224, "my-generator --size 64 --channels 64,128,256,256 "),
    ],
)
def test_the_fit_that_is_proposed_suits_the_images(side: int, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command in said(monkeypatch, side=side)


def test_it_is_said_before_anything_is_trained_or_loaded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny({"generate.generator": ""})
    monkeypatch.setattr(inputs, "kind_of", None)
    for kind in GENERATING:
        with pytest.raises(UsageError, match=r"^no generator is named\. This would make about "):
            check_data(config, kind)
    check_data(tiny({"generate.generator": "", "arms": ("original", "upsample-2")}))


def test_the_other_commands_need_none(tiny: Tiny) -> None:
    config = tiny({"generate.generator": ""})
    for kind in ("select", "retrain", "report"):
        check_data(config, kind)


def test_that_of_digits_for_other_classes_is_refused_with_the_same_choices(tiny: Tiny) -> None:
    config = tiny({"generate.generator": "digits"})
    with pytest.raises(UsageError, match=r"^generator digits makes digits, and the classes are others\. This would"):
        check_generator_chosen(config, images(8))
    check_generator_chosen(config, images_of(config).train)


def test_a_source_of_ones_own_starts_without_one_and_the_command_says_so_with_exit_code_two(
    run_command: Callable[..., Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (6, 8, 8), np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(6) % 2 for split in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays, **labels)
    outcome = run_command("compare", tmp_path / "own.npz", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.count("\n  ") > 5
    assert f"latebloom fit-generator {tmp_path / 'own.npz'} my-generator --channels 16,32" in outcome.err
    assert not (tmp_path / "run").exists()


def test_the_machine_is_known_without_torch() -> None:
    assert 0 < free_ram() < 1 << 50
    code = (
        "import sys; from latebloom.flows.stages.choosing import machine; "
        "print(machine('cpu')); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert machine("cpu").flops > 1e8
