import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image
from torch import Tensor

from latebloom.data.images import LabeledImages
from latebloom.synth.config import GeneratorConfig, SampleConfig
from latebloom.synth.fit import FitMoment, GeneratorFit, _prepare, draw_samples, fit_generator, save_generator
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.sample import denoise

CPU = torch.device("cpu")
SMALL = GeneratorConfig(steps=80, batch_size=16, channels=(8, 16))


def briefly(data: LabeledImages, seed: int = 0, steps: int = 6, **changes: Any) -> GeneratorFit:
    """A fit of a few steps of a tiny UNet."""
    settings: dict[str, Any] = {"steps": steps, "batch_size": 4, "channels": (8,)}
    return fit_generator(data, GeneratorConfig(**settings | changes), seed, CPU)


def weights(fit: GeneratorFit) -> dict[str, Tensor]:
    return fit.unet.state_dict()


def equal(one: GeneratorFit, other: GeneratorFit) -> bool:
    return all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


@pytest.fixture(scope="module")
def fitted(tiny_images: LabeledImages) -> GeneratorFit:
    """80 steps on 16 images: about two seconds."""
    return fit_generator(tiny_images, SMALL, 0, CPU)


@pytest.fixture(scope="module")
def saved(fitted: GeneratorFit, tiny_images: LabeledImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generators") / "rows"
    save_generator(folder, fitted, tiny_images, SMALL, 0)
    return folder


# Training


def test_the_loss_falls(fitted: GeneratorFit) -> None:
    assert fitted.losses.shape == (80,)
    assert fitted.losses[:10].mean() > 0.7  # v has variance near 1, and the first outputs are near 0
    assert fitted.losses[-10:].mean() < 0.4
    assert not fitted.unet.training


def test_what_was_trained_takes_noise_away_again(saved: Path, tiny_images: LabeledImages) -> None:
    # Level 4 of 10 starts at timestep 333 with noise of 0.51 (and a signal of 0.86).
    denoiser = PixelDenoiser.load(saved, CPU)
    references = denoiser.encode(tiny_images.pixels())
    out = denoise(
        denoiser,
        references,
        denoiser.conditions(tiny_images.labels, [""] * 16),
        np.full(16, 4),
        range(16),
        SampleConfig(sampler="ddim", grid=10, guidance_scale=1),
    )
    assert float((out - references).square().mean().sqrt()) < 0.3


def test_the_same_seed_gives_the_same_weights(tiny_images: LabeledImages) -> None:
    first, again, other = briefly(tiny_images), briefly(tiny_images), briefly(tiny_images, seed=1)
    assert equal(first, again)
    np.testing.assert_array_equal(first.losses, again.losses)
    assert not equal(first, other)


def test_global_generators_neither_matter_nor_move(tiny_images: LabeledImages) -> None:
    first = briefly(tiny_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        assert equal(briefly(tiny_images), first)
        assert torch.equal(torch.get_rng_state(), before)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_progress_is_reported_every_ten_steps_and_at_the_end(tiny_images: LabeledImages) -> None:
    reported: list[tuple[int, float]] = []
    config = GeneratorConfig(steps=23, batch_size=2, channels=(8,))
    fit = fit_generator(tiny_images, config, 0, CPU, on_step=lambda step, loss: reported.append((step, loss)))
    assert reported == [(step, pytest.approx(fit.losses[step - 1])) for step in (10, 20, 23)]


def test_averaging_changes_the_weights_kept_not_the_training(tiny_images: LabeledImages) -> None:
    last, averaged = briefly(tiny_images, ema_decay=0), briefly(tiny_images, ema_decay=0.9)
    np.testing.assert_array_equal(last.losses, averaged.losses)
    assert not equal(last, averaged)


def test_hidden_labels_train_the_no_label_embedding(tiny_images: LabeledImages) -> None:
    def moved(share: float) -> Tensor:
        start = briefly(tiny_images, lr=1e-12, steps=1)  # its initial weights, all but
        end = briefly(tiny_images, lr=2e-3, label_dropout=share, ema_decay=0)
        return (weights(end)["class_embedding.weight"] - weights(start)["class_embedding.weight"]).abs().amax(1)

    shown, hidden = moved(0.0), moved(0.5)
    assert len(shown) == 4
    assert float(shown[:3].min()) > 1e-4
    assert float(shown[3]) < 1e-6  # weight decay alone
    assert float(hidden[3]) > 1e-4


def test_images_become_minus_one_to_one_at_the_size_of_the_model() -> None:
    images = torch.tensor([0, 255, 51, 204], dtype=torch.uint8).reshape(1, 1, 2, 2)
    plain = _prepare(images, 2, False, torch.Generator())
    torch.testing.assert_close(plain, torch.tensor([-1, 1, -0.6, 0.6]).reshape(1, 1, 2, 2))
    larger = _prepare(images, 6, False, torch.Generator())
    assert larger.shape == (1, 1, 6, 6)
    assert float(larger.abs().max()) <= 1
    assert float(larger[0, 0, 0, 0]) < -0.9  # black stays at the upper left


def test_flips_mirror_about_half_of_the_images_left_to_right() -> None:
    images = torch.tensor([0, 255, 51, 204], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(200, 1, 2, 2)
    plain = _prepare(images, 2, False, torch.Generator())
    flipped = _prepare(images, 2, True, torch.Generator().manual_seed(0))
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(flipped[~mirrored], plain[~mirrored])


def test_the_narrowest_model_too_sees_label_and_timestep(tiny_images: LabeledImages) -> None:
    unet: Any = briefly(tiny_images, channels=(8,)).unet
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def output(timestep: int, label: int) -> Tensor:
        with torch.no_grad():
            return unet(x, timestep, class_labels=torch.tensor([label])).sample

    for other in (output(500, 1), output(10, 0)):
        assert float((other - output(500, 0)).abs().max()) > 0.01


@pytest.mark.parametrize(("size", "channels", "side"), [(0, (8, 8), 8), (16, (8,), 16)])
def test_the_model_works_at_the_size_asked_for_in_colour_too(size: int, channels: tuple[int, ...], side: int) -> None:
    rng = np.random.default_rng(0)
    data = LabeledImages(rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), np.arange(4) % 2, ("a", "b"), "here")
    config: Any = briefly(data, steps=1, size=size, channels=channels).unet.config
    assert (config["sample_size"], config["in_channels"], config["num_class_embeds"]) == (side, 3, 3)
    assert config["block_out_channels"] == channels


# The folder


def test_the_folder_is_one_of_diffusers_own(fitted: GeneratorFit, saved: Path) -> None:
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(saved)
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(weight, weights(fitted)[name]), name
    scheduler = pipeline.scheduler.config
    assert (scheduler["prediction_type"], scheduler["beta_schedule"]) == ("v_prediction", "squaredcos_cap_v2")
    assert scheduler["num_train_timesteps"] == 1000


def test_the_folder_is_a_generator(saved: Path, tiny_images: LabeledImages, fitted: GeneratorFit) -> None:
    denoiser = PixelDenoiser.load(saved, CPU)
    denoiser.check(tiny_images.class_names)
    assert (denoiser.size, denoiser.multiple, denoiser.channels) == (8, 2, 1)
    assert denoiser.unconditional
    assert denoiser.prediction_type == "v_prediction"
    assert (denoiser.trained_on, denoiser.trained_on_words) == (frozenset(tiny_images.sha256), "rows of light")
    x = torch.zeros(1, 1, 8, 8)
    with torch.no_grad():
        no_label = fitted.unet(x, 0, class_labels=torch.tensor([3])).sample
    predicted = denoiser.predict(x, torch.tensor([0]), torch.tensor([-1]))
    torch.testing.assert_close(predicted, no_label, rtol=0, atol=1e-5)


def test_saving_again_gives_the_same_digest(
    saved: Path, tmp_path: Path, fitted: GeneratorFit, tiny_images: LabeledImages
) -> None:
    save_generator(tmp_path / "again", fitted, tiny_images, SMALL, 0)
    digest = PixelDenoiser.load(saved, CPU).digest
    assert PixelDenoiser.load(tmp_path / "again", CPU).digest == digest
    save_generator(tmp_path / "again", briefly(tiny_images, channels=(8, 16)), tiny_images, SMALL, 0)
    assert PixelDenoiser.load(tmp_path / "again", CPU).digest != digest  # written over, not beside


def test_the_default_generator_is_small(tiny_images: LabeledImages, tmp_path: Path) -> None:
    digits = dataclasses.replace(tiny_images, class_names=tuple("0123456789"))
    config = GeneratorConfig(steps=1, batch_size=2)
    fit = fit_generator(digits, config, 0, CPU)
    assert sum(weight.numel() for weight in fit.unet.parameters()) == 160_401
    save_generator(tmp_path / "digits", fit, digits, config, 0)
    size = sum(file.stat().st_size for file in (tmp_path / "digits").rglob("*"))
    assert 4 * 160_401 < size < 0.7e6


def test_the_card_says_what_it_was_trained_on_and_how(
    saved: Path, fitted: GeneratorFit, tiny_images: LabeledImages
) -> None:
    text = (saved / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    for said in (
        "rows of light: 16 images of 8x8",
        "(top, middle, bottom)",
        "3 means",
        "steps 80, batch_size 16, channels (8, 16), seed 0",
    ):
        assert said in " ".join(text.split()), said
    card = json.loads((saved / "latebloom.json").read_text())
    assert card["class_names"] == ["top", "middle", "bottom"]
    assert card["trained_on"] == "rows of light"
    assert card["trained_on_sha256"] == sorted(tiny_images.sha256)
    assert GeneratorConfig(**card["config"]) == SMALL
    assert card["seed"] == 0
    assert card["loss"] == pytest.approx(fitted.losses[-100:].mean(), abs=1e-5)


def test_the_card_of_many_classes_names_the_first_twenty(tiny_images: LabeledImages, tmp_path: Path) -> None:
    many = dataclasses.replace(tiny_images, class_names=tuple(f"kind {i}" for i in range(21)))
    save_generator(tmp_path, briefly(many, steps=1), many, GeneratorConfig(steps=1), 0)
    assert "21 classes (kind 0, kind 1, " in " ".join((tmp_path / "README.md").read_text().split())
    assert "kind 19, ...)" in (tmp_path / "README.md").read_text()


# Bad input


def test_images_that_are_not_square_are_refused() -> None:
    data = LabeledImages(np.zeros((2, 8, 6, 1), np.uint8), np.arange(2), ("a", "b"), "wide")
    with pytest.raises(ValueError, match=r"^wide: images are 6x8; give an image size to cut them square$"):
        briefly(data)


def test_a_size_that_cannot_be_halved_often_enough_is_refused(tiny_images: LabeledImages) -> None:
    for size, channels, halvings in [(9, (8, 8), 2), (0, (8, 8, 8, 8, 8), 16), (6, (8, 8, 8), 4)]:
        message = f"^{len(channels)} UNet levels need a side that {halvings} divides, got {size or 8} px; change"
        with pytest.raises(ValueError, match=message):
            briefly(tiny_images, size=size, channels=channels)


def test_a_config_outside_its_bounds_is_refused() -> None:
    for bad, message in [
        ({"channels": (12,)}, r"channels are positive multiples of 8 \(for GroupNorm\), got \(12,\)"),
        ({"channels": (8, 0)}, r"channels are positive multiples of 8 .* got \(8, 0\)"),
    ]:
        with pytest.raises(pydantic.ValidationError, match=message):
            GeneratorConfig(**bad)


@pytest.mark.parametrize(("steps", "noticed", "value"), [(20, 10, float("nan")), (3, 3, float("inf"))])
def test_a_loss_that_is_not_finite_stops_the_training(
    tiny_images: LabeledImages, monkeypatch: pytest.MonkeyPatch, steps: int, noticed: int, value: float
) -> None:
    monkeypatch.setattr(
        "latebloom.synth.fit.F.mse_loss", lambda output, target: (output - target).square().mean() + value
    )
    with pytest.raises(FloatingPointError, match=rf"loss became {value} at step {noticed}; lower lr \(0.002\)"):
        briefly(tiny_images, steps=steps)


# Going on


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [10, 20])
def test_a_fit_that_goes_on_ends_with_the_same_weights_to_the_bit(tiny_images: LabeledImages, at: int) -> None:
    settings: dict[str, Any] = {"steps": 25, "batch_size": 4, "channels": (8,), "flip": True}
    whole = briefly(tiny_images, **settings)
    kept: dict[str, Tensor] = {}

    def stop(moment: FitMoment) -> None:
        if moment.step == at:
            kept.update(moment.tensors())
            with moment.averaged() as unet:  # samples in between change nothing
                draw_samples(unet, tiny_images, 0)
            raise Killed

    config = GeneratorConfig(**settings)
    with pytest.raises(Killed):
        fit_generator(tiny_images, config, 0, CPU, on_moment=stop)
    steps: list[int] = []
    rest = fit_generator(tiny_images, config, 0, CPU, lambda step, _: steps.append(step), start=kept)
    assert steps == [step for step in (10, 20, 25) if step > at]
    assert equal(whole, rest)
    np.testing.assert_array_equal(whole.losses, rest.losses)


def test_drawing_samples_in_between_changes_no_weight(tiny_images: LabeledImages) -> None:
    def draw(moment: FitMoment) -> None:
        with moment.averaged() as unet:
            draw_samples(unet, tiny_images, 0)

    config = GeneratorConfig(steps=12, batch_size=4, channels=(8,))
    assert equal(fit_generator(tiny_images, config, 0, CPU, on_moment=draw), briefly(tiny_images, steps=12))


def test_samples_are_a_row_a_class_and_of_the_same_noise(fitted: GeneratorFit, tiny_images: LabeledImages) -> None:
    png = draw_samples(fitted.unet, tiny_images, 0)
    with Image.open(io.BytesIO(png)) as sheet:
        assert sheet.size == (90 + 8 * 34, 3 * 34)
        pixels = np.asarray(sheet)[:, 90:]
    assert pixels.std() > 5
    assert draw_samples(fitted.unet, tiny_images, 0) == png != draw_samples(fitted.unet, tiny_images, 1)
