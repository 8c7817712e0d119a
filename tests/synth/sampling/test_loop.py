import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from latebloom.synth.config import SampleConfig, Sampler
from latebloom.synth.sampling.denoiser import Wanted
from latebloom.synth.sampling.levels import NoiseGrid
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.synth.sampling.sample import denoise

PLAIN = SampleConfig(grid=10, guidance_scale=1)


def wanted(n: int, level: int = 5) -> Wanted:
    """n images of labels 0, 1, 2, ..."""
    return Wanted(np.arange(n), [f"a {label}" for label in range(n)], np.full(n, level), range(50, 50 + n))


def test_it_says_of_itself_what_its_model_says(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0]))
    fake.trained_on, fake.trained_on_words, fake.size, fake.multiple, fake.channels = frozenset("a"), "here", 64, 8, 3
    generator = LoopGenerator(fake, SampleConfig())
    for name in ("name", "digest", "licence", "device", "trained_on", "trained_on_words", "size", "multiple"):
        assert getattr(generator, name) == getattr(fake, name), name
    assert (generator.channels, generator.calls_a_step) == (3, 2)
    assert (generator.sampler, generator.guidance_scale) == ("ddpm", 3.0)
    assert LoopGenerator(fake, PLAIN).calls_a_step == 1


def test_its_model_checks_classes_and_prepares_prompts(fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0]))
    generator = LoopGenerator(fake, PLAIN)
    generator.prepare(["a cat", "a dog"])
    assert fake.prepared == [["a cat", "a dog"]]

    def refuse(class_names: tuple[str, ...]) -> None:
        raise ValueError(f"not {class_names}")

    monkeypatch.setattr(fake, "check", refuse)
    with pytest.raises(ValueError, match=r"^not \('cat',\)$"):
        generator.check(("cat",))


def test_a_level_is_that_of_the_models_grid_in_the_steps_of_the_config(fakes: SimpleNamespace) -> None:
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # Stable Diffusion's
    fake = fakes.Denoiser(fakes.constant([0.0]), alphas_cumprod=abar)
    level = LoopGenerator(fake, SampleConfig(steps=25)).level(50)
    assert level == NoiseGrid.of(abar, 100, "snr").level(50, 13)
    assert (level.calls, level.timestep) == (13, 353)
    level = LoopGenerator(fake, SampleConfig(match="strength")).level(50)
    assert (level.calls, level.timestep, level.strength) == (50, 499, 0.5)
    with pytest.raises(ValueError, match=r"^level 101 of 100 does not exist"):
        LoopGenerator(fake, SampleConfig()).level(101)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++2m", "lcm"])
def test_what_it_makes_is_what_the_loop_makes_as_pixels(fakes: SimpleNamespace, sampler: Sampler) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2, -0.4, 0.0], 0.5), clip=True)
    config = SampleConfig(sampler=sampler, grid=10, steps=6, guidance_scale=2)
    generator = LoopGenerator(fake, config)
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 1), dtype=np.uint8)
    references = generator.encode(images)
    want = Wanted(np.array([0, 1]), ["", ""], np.array([3, 10]), [11, 12])
    made = generator.make(references, want)
    x0 = denoise(fake, references, torch.tensor([0, 1]), want.levels, want.seeds, config)
    expected = ((x0 + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert made.images.dtype == np.uint8
    np.testing.assert_array_equal(made.images, expected)
    assert made.finite.tolist() == [True, True]


def test_the_network_is_given_the_conditions_of_labels_and_prompts(fakes: SimpleNamespace) -> None:
    class Prompted(fakes.Denoiser):  # type: ignore[misc, name-defined]
        def conditions(self, labels: np.ndarray, prompts: Sequence[str]) -> Tensor:
            return torch.tensor([10 * label + len(prompt) for label, prompt in zip(labels, prompts, strict=True)])

    fake = Prompted(fakes.constant([0.0] * 40))
    generator = LoopGenerator(fake, PLAIN)
    want = Wanted(np.array([1, 2, 3]), ["aaa", "b", "cc"], np.array([1, 1, 1]), [0, 1, 2])
    generator.make(torch.zeros(3, 1, 8, 8), want)
    assert fake.calls == [([0, 0, 0], [13, 21, 32])]
    fake.calls.clear()
    generator.seconds_per_call(torch.zeros(3, 1, 8, 8), want)
    assert all(conditions == [13, 21, 32] for _, conditions in fake.calls)


@pytest.mark.parametrize(("clip", "bad"), [(True, math.nan), (False, math.inf)])
def test_what_was_not_finite_before_decoding_is_reported_even_if_its_pixels_are(
    fakes: SimpleNamespace, clip: bool, bad: float
) -> None:
    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        x0 = torch.full_like(x, 0.2)
        x0[labels == 1, 0, 0, 0] = bad
        return x0

    class Forgiving(fakes.Denoiser):  # type: ignore[misc, name-defined]
        def decode(self, x0: Tensor) -> Tensor:
            return x0.nan_to_num(0, 0, 0)

    for kind in (fakes.Denoiser, Forgiving):
        made = LoopGenerator(kind(believe, clip=clip), PLAIN).make(torch.zeros(3, 1, 8, 8), wanted(3))
        assert made.finite.tolist() == made.denoised.tolist() == [True, False, True]  # type: ignore[union-attr]
        assert made.images[1, 0, 0, 0] == (0 if kind is fakes.Denoiser else 128)
        assert made.images[[0, 2], 0, 0, 0].tolist() == [153, 153]  # 1.2 * 127.5


def test_what_decoding_spoils_is_reported(fakes: SimpleNamespace) -> None:
    class Overflowing(fakes.Denoiser):  # type: ignore[misc, name-defined]
        def decode(self, x0: Tensor) -> Tensor:
            return torch.where(x0 > 0.25, torch.nan, x0)

    fake = Overflowing(fakes.constant([0.2, 0.3, 0.1]))
    made = LoopGenerator(fake, PLAIN).make(torch.zeros(3, 1, 8, 8), wanted(3))
    assert made.finite.tolist() == [True, False, True]
    assert made.denoised is not None
    assert made.denoised.tolist() == [True] * 3  # so the decoder is to blame
    assert (made.images[1] == 0).all()


@pytest.mark.parametrize(("guidance", "evaluations"), [(1.0, 3), (3.0, 6)])
def test_the_time_of_one_evaluation_of_one_image(
    fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, guidance: float, evaluations: int
) -> None:
    clock = 0.0

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        nonlocal clock
        clock += 0.6  # seconds a call
        return x

    monkeypatch.setattr("latebloom.synth.sampling.loop.time", SimpleNamespace(perf_counter=lambda: clock))
    fake = fakes.Denoiser(believe)
    generator = LoopGenerator(fake, SampleConfig(grid=10, guidance_scale=guidance))
    seconds = generator.seconds_per_call(torch.zeros(3, 1, 8, 8), wanted(3))
    assert seconds == pytest.approx(0.6 / evaluations)
    assert len(fake.calls) == 4  # one to warm up, then three at least
    labels = [0, 1, 2] if guidance == 1 else [0, 1, 2, -1, -1, -1]
    # The sixth of ten timesteps: the middle.
    assert all(call == ([555] * evaluations, labels) for call in fake.calls)


def test_timing_a_quick_model_ends_after_twenty_calls(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0] * 4))
    assert 0 < LoopGenerator(fake, PLAIN).seconds_per_call(torch.zeros(2, 1, 8, 8), wanted(2)) < 1
    assert [len(labels) for _, labels in fake.calls] == [2] * 21


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SampleConfig(grid=10, guidance_scale=3),
            "has no unconditional branch, which guidance needs: set the guidance",
        ),
        (SampleConfig(grid=1000, guidance_scale=1), "a grid of 1000 steps is finer than the 20 timesteps of generator"),
    ],
)
def test_a_model_that_cannot_be_sampled_so_is_refused_at_once(
    fakes: SimpleNamespace, config: SampleConfig, message: str
) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0]), unconditional=False, alphas_cumprod=fakes.cosine_alphas_cumprod(20))
    with pytest.raises(ValueError, match=message):
        LoopGenerator(fake, config).check(("a", "b"))
    assert fake.calls == []
