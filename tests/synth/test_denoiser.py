import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synth.denoiser import Denoiser, PredictionType, generator_folder, load_denoiser, to_x0

CPU = torch.device("cpu")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the folder of shipped generators, with `digits` and `toys` in it."""
    folder = tmp_path / "shipped"
    for name in ("toys", "digits"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model_index.json").write_text("{}")
    monkeypatch.setattr("synth.denoiser._SHIPPED", folder)
    return folder


# abar 0.36: signal 0.6, noise 0.8. x0 = 0.5 and eps = -1 make x = 0.3 - 0.8 = -0.5 and v = -0.6 - 0.4 = -1.
@pytest.mark.parametrize(("kind", "output"), [("epsilon", -1.0), ("v_prediction", -1.0), ("sample", 0.5)])
def test_each_kind_of_output_stands_for_the_same_clean_image(kind: PredictionType, output: float) -> None:
    x0 = to_x0(kind, torch.tensor([output]), torch.tensor([-0.5]), 0.36)
    assert x0.item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_outputs_become_the_x0_that_diffusers_makes_of_them(kind: PredictionType) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind, clip_sample=False)
    x, output = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in (0, 494, 900):
        theirs = scheduler.step(output, timestep, x, generator=torch.Generator()).pred_original_sample
        ours = to_x0(kind, output, x, float(scheduler.alphas_cumprod[timestep]))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_fake_of_these_tests_has_all_that_a_generator_has(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0]))
    methods = {name: value for name, value in vars(Denoiser).items() if inspect.isfunction(value) and name[0] != "_"}
    assert set(methods) == {"check", "encode", "decode", "predict"}
    for name in Denoiser.__annotations__:
        assert hasattr(fake, name), name
    for name, method in methods.items():
        assert list(inspect.signature(getattr(type(fake), name)).parameters) == list(
            inspect.signature(method).parameters
        )


def test_a_generator_is_found_by_the_name_of_a_shipped_one(shipped: Path) -> None:
    assert generator_folder("digits") == shipped / "digits"


def test_a_generator_is_found_by_path(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "home" / "mine"
    mine.mkdir(parents=True)
    (mine / "model_index.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    assert generator_folder(str(mine)) == mine
    assert generator_folder("~/mine") == mine
    assert generator_folder("mine").resolve() == mine


def test_a_shipped_name_wins_over_a_folder_of_that_name_here(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert generator_folder("digits") == shipped / "digits"


@pytest.mark.parametrize("name", ["digit", "empty"])
def test_an_unknown_generator_is_told_the_shipped_ones(shipped: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()  # a folder, but not of diffusers
    message = r"^no generator at '.*': expected a diffusers folder .* shipped \(digits, toys\); `slowlane fit-gen"
    with pytest.raises(ValueError, match=message):
        generator_folder(str(tmp_path / name) if name == "empty" else name)
    with pytest.raises(ValueError, match=message):
        load_denoiser(str(tmp_path / name) if name == "empty" else name, CPU)


def test_where_none_is_shipped_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.denoiser._SHIPPED", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"one of those shipped \(none\)"):
        generator_folder("digits")


def test_a_folder_of_diffusers_becomes_a_denoiser(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    denoiser: Any = load_denoiser(str(save_tiny(tmp_path / "rows")), CPU)
    for name in Denoiser.__annotations__:
        assert hasattr(denoiser, name), name
    assert (denoiser.name, denoiser.prediction_type, denoiser.device) == ("rows", "v_prediction", CPU)
    assert (denoiser.clip, denoiser.unconditional, len(denoiser.alphas_cumprod)) == (True, True, 1000)
