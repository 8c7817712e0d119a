import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import Splits, load
from latebloom.data.store import read_json
from latebloom.flows.stages import fit_generator, fitted
from latebloom.flows.stages.fit_generator import FitGeneratorConfig, check_fit, fit_and_save
from latebloom.synth.generators.pixel import PixelDenoiser

Story = SimpleNamespace
TINY: dict[str, Any] = {"steps": 2, "channels": (8,), "batch_size": 4}


def config(**changes: Any) -> FitGeneratorConfig:
    return FitGeneratorConfig(**{"data": {"train_limit": 20}, "split": "train", "generator": TINY, **changes})


def test_a_generator_is_trained_on_the_split_that_was_asked_for(tmp_path: Path) -> None:
    splits = load(DataConfig(train_limit=20))
    assert splits.generator is not None
    for split, data in (("train", splits.train), ("generator", splits.generator)):
        assert fit_and_save(config(split=split), tmp_path / split) == str(tmp_path / split)
        denoiser = PixelDenoiser.load(tmp_path / split, torch.device("cpu"))
        assert denoiser.trained_on == set(data.sha256)
        denoiser.check(tuple("0123456789"))


def test_nothing_but_the_generator_is_left(tmp_path: Path) -> None:
    fit_and_save(config(), tmp_path / "deep" / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mine"]
    assert (tmp_path / "deep" / "mine" / "model_index.json").is_file()
    assert (tmp_path / "deep" / "mine").stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    fit_and_save(config(), tmp_path / "mine")
    assert (tmp_path / "mine" / "model_index.json").is_file()


def test_the_same_generator_is_not_trained_twice(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_and_save(config(), tmp_path / "mine")
    before = story.times(tmp_path)
    monkeypatch.setattr(fit_generator, "fit_generator", None)
    assert fit_and_save(config(), tmp_path / "mine") == str(tmp_path / "mine")
    assert story.times(tmp_path) == before
    assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path / 'mine'} holds this generator already"


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"generator": {**TINY, "steps": 3}}, {"data": {"train_limit": 21}}, {"split": "generator"}],
    ids=["seed", "steps", "images", "split"],
)
def test_another_generator_is_never_written_over(changes: dict[str, Any], tmp_path: Path, story: Story) -> None:
    fit_and_save(config(), tmp_path / "mine")
    before = story.times(tmp_path)
    with pytest.raises(ValueError, match="mine is not empty and holds something else; give another folder"):
        fit_and_save(config(**changes), tmp_path / "mine")
    assert story.times(tmp_path) == before


def test_somebodys_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds something else"):
        fit_and_save(config(), tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is a file; give a folder that is new or empty"):
        fit_and_save(config(), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("moment", ["fit_generator", "save_generator"])
def test_a_fit_that_fails_leaves_nothing(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = getattr(fit_generator, moment)

    def fails(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise OSError("No space left on device")

    monkeypatch.setattr(fit_generator, moment, fails)
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="No space"):
        fit_and_save(config(), tmp_path / "there" / "mine")
    assert list((tmp_path / "there").iterdir()) == []


def test_only_digits_keep_images_for_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load(DataConfig(train_limit=20))
    monkeypatch.setattr(fitted, "load", lambda _: dataclasses.replace(splits, generator=None))
    with pytest.raises(ValueError, match="digits has no images kept apart for a generator; use --split train"):
        check_fit(config(split="generator"), tmp_path / "mine")
    data, there = check_fit(config(), tmp_path / "mine")
    assert data is splits.train
    assert not there


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((8, 10, 1), (8,), "images are 10x8; give an image size to cut them square"),
        ((9, 9, 1), (8, 16), "2 UNet levels need a side that 2 divides, got 9 px"),
    ],
)
def test_images_that_a_unet_cannot_take_are_refused_and_nothing_is_written(
    shape: tuple[int, int, int], channels: tuple[int, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = LabeledImages(np.zeros((4, *shape), np.uint8), np.array([0, 1, 0, 1]), ("a", "b"), "odd")
    monkeypatch.setattr(fitted, "load", lambda _: Splits(odd, odd, None))
    with pytest.raises(ValueError, match=words):
        fit_and_save(config(generator={**TINY, "channels": channels}), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_the_same_settings_give_the_same_generator_anywhere(tmp_path: Path) -> None:
    digests = []
    for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        fit_and_save(config(**changes), tmp_path / name)
        digests.append(PixelDenoiser.load(tmp_path / name, torch.device("cpu")).digest)
    assert digests[0] == digests[1] != digests[2]
    assert read_json(tmp_path / "a" / "latebloom.json")["seed"] == 0


# ------------------------------------------------------------------------------------------------- going on

LONG: dict[str, Any] = {**TINY, "steps": 40}


def killed(out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = RuntimeError) -> None:
    """Fit with a checkpoint every ten steps, and end it after the second."""
    for name in ("CHECKPOINT_SECONDS", "CHECKPOINT_TIMES", "SAMPLE_SECONDS"):
        monkeypatch.setattr(fit_generator, name, 0)
    real = fit_generator._Unfinished.write_samples

    def write(unfinished: Any, step: int, png: bytes) -> None:
        real(unfinished, step, png)
        if step == 20:
            raise error

    monkeypatch.setattr(fit_generator._Unfinished, "write_samples", write)
    with pytest.raises(error):
        fit_and_save(config(generator=LONG), out)
    monkeypatch.undo()


def test_a_killed_fit_goes_on_and_ends_as_one_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], story: Story
) -> None:
    fit_and_save(config(generator=LONG), tmp_path / "whole")
    killed(tmp_path / "mine", monkeypatch)
    partial = tmp_path / "mine.partial"
    names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
    assert names[0] == "checkpoint.safetensors"
    assert names[-1] == "samples/step-000020.png"
    capsys.readouterr()
    fit_and_save(config(generator=LONG), tmp_path / "mine")
    assert "fit generator: goes on at step 20 of 40" in capsys.readouterr().err
    assert not partial.exists()
    assert story.contents(tmp_path / "mine") == story.contents(tmp_path / "whole")


def test_ctrl_c_says_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(tmp_path / "mine", monkeypatch, KeyboardInterrupt)
    lines = capsys.readouterr().err
    assert "fit generator: stopped after step 20; the same command goes on from step 20" in lines.splitlines()[-1]
    assert "its checkpoint and samples are in" in lines


def test_a_checkpoint_of_another_fit_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path / "mine", monkeypatch)
    before = (tmp_path / "mine.partial" / "checkpoint.safetensors").read_bytes()
    for changes in ({"seed": 1}, {"generator": {**LONG, "steps": 41}}, {"data": {"train_limit": 21}}):
        with pytest.raises(ValueError, match=r"mine\.partial holds an unfinished fit with other settings, images or"):
            check_fit(config(**{"generator": LONG, **changes}), tmp_path / "mine")
    assert (tmp_path / "mine.partial" / "checkpoint.safetensors").read_bytes() == before
    (tmp_path / "mine.partial" / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is a damaged checkpoint .*; delete it to fit from the start"):
        check_fit(config(generator=LONG), tmp_path / "mine")


def test_what_a_person_put_beside_the_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path / "mine", monkeypatch)
    (tmp_path / "mine.partial" / "notes.txt").write_text("mine")
    fit_and_save(config(generator=LONG), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine.partial").iterdir()] == ["notes.txt"]


def test_progress_has_loss_and_rate_and_the_end_names_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_and_save(config(generator=LONG), tmp_path / "mine")
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"fit generator  loss \d\.\d{4}  [\d,]+ images/s  40/40 steps  100%", lines[-2])
    assert lines[-1].endswith("samples.png shows what it makes")
    assert (tmp_path / "mine" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_command_with_nothing_to_fit_says_so_and_starts_no_flow(
    tmp_path: Path, fake_flows: Any, run_command: Callable[..., Any]
) -> None:
    small = config(generator={"steps": 2, "channels": (8,), "batch_size": 4})
    fit_and_save(small, tmp_path / "mine")
    words = ["--set", "data.train_limit=20", "--split", "train", "--steps", "2", "--channels", "8", "--batch-size", "4"]
    outcome = run_command("fit-generator", "digits", tmp_path / "mine", *words)
    assert (outcome.code, outcome.out.strip()) == (0, str(tmp_path / "mine"))
    assert f"{tmp_path / 'mine'} holds this generator already" in outcome.err
