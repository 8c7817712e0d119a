import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synth.denoiser import PredictionType
from synth.levels import NoiseGrid
from synth.sample import SampleConfig, Sampler, denoise

SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "dpm++2m")
KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def run(
    fake: Any,
    levels: Sequence[int],
    *,
    sampler: Sampler = "ddpm",
    grid: int = 20,
    guidance: float = 1.0,
    references: Tensor | None = None,
    labels: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    **more: Any,
) -> Tensor:
    """`denoise` of 1x5x5 references (an odd number of pixels, so that vectorised code has a tail)."""
    n = len(levels)
    if references is None:
        references = torch.linspace(-1, 1, 25 * n).reshape(n, 1, 5, 5)
    return denoise(
        fake,
        references,
        np.zeros(n, np.int64) if labels is None else np.array(labels),
        np.array(levels),
        range(100, 100 + n) if seeds is None else seeds,
        SampleConfig(sampler=sampler, grid=grid, guidance_scale=guidance),
        **more,
    )


def normal(seed: int, *shape: int) -> Tensor:
    """The first noise that `denoise` draws for an image of this seed and shape."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(shape, np.float32))


def moments(grid: NoiseGrid, level: int, x0: float, mu: float, s: float) -> tuple[float, float]:
    """Mean and variance of what ancestral sampling makes of a reference x0, with the perfect denoiser of N(mu, s^2).

    Each step is linear with Gaussian noise, so they follow by recursion, exactly and on any grid. A step draws from
    q(x_after | x_now, x0_hat), here by Bayes' rule: the prior N(sqrt(b) x0_hat, 1 - b) times the likelihood
    x_now ~ N(sqrt(alpha) x_after, 1 - alpha), with alpha = a / b for abar a now and b after the step.
    """
    a = grid.alphas_cumprod[level - 1]
    mean, variance = (0.0, 1.0) if level == grid.size else (a**0.5 * x0, 1 - a)
    for i in range(level - 1, -1, -1):
        a = grid.alphas_cumprod[i]
        gain = s**2 * a**0.5 / (a * s**2 + 1 - a)  # x0_hat = gain x + offset
        offset = mu - gain * a**0.5 * mu
        if i == 0:
            return gain * mean + offset, gain**2 * variance
        b = grid.alphas_cumprod[i - 1]
        alpha = a / b
        precision = alpha / (1 - alpha) + 1 / (1 - b)
        of_x, of_x0 = alpha**0.5 / (1 - alpha) / precision, b**0.5 / (1 - b) / precision
        mean = of_x * mean + of_x0 * (gain * mean + offset)
        variance = (of_x + of_x0 * gain) ** 2 * variance + 1 / precision
    raise AssertionError


# The start


@every_sampler
def test_a_reference_is_noised_to_its_own_level(fakes: SimpleNamespace, sampler: Sampler) -> None:
    first_seen: dict[int, Tensor] = {}  # label -> x

    def look(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        for image, label in zip(x, labels.tolist(), strict=True):
            first_seen.setdefault(label, image.clone())
        return x

    levels = [3, 7, 10, 1]
    references = torch.linspace(-1, 1, 100).reshape(4, 1, 5, 5)
    run(fakes.Denoiser(look), levels, grid=10, sampler=sampler, references=references, labels=range(4))
    grid = NoiseGrid.of(fakes.cosine_alphas_cumprod(1000), 10)
    for place, level in enumerate(levels):
        a = grid.alphas_cumprod[level - 1]
        noise = normal(100 + place, 1, 5, 5)
        expected = noise if level == 10 else a**0.5 * references[place] + (1 - a) ** 0.5 * noise
        torch.testing.assert_close(first_seen[place], expected.float(), rtol=0, atol=1e-6)


@every_sampler
def test_at_the_last_level_the_reference_is_forgotten(fakes: SimpleNamespace, sampler: Sampler) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
    one = run(fake, [20, 20], sampler=sampler, references=torch.ones(2, 1, 5, 5))
    other = run(fake, [20, 20], sampler=sampler, references=-torch.ones(2, 1, 5, 5))
    assert torch.equal(one, other)
    below = run(fake, [19, 19], sampler=sampler, references=torch.ones(2, 1, 5, 5))
    other_below = run(fake, [19, 19], sampler=sampler, references=-torch.ones(2, 1, 5, 5))
    assert not torch.equal(below, other_below)


# What comes out, with the perfect denoiser of a Gaussian prior


@pytest.mark.parametrize("level", [1, 2, 10, 16, 20])
@pytest.mark.parametrize("x0", [0.8, -0.6])
def test_ancestral_sampling_has_the_moments_of_its_linear_recursion(
    fakes: SimpleNamespace, level: int, x0: float
) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
    references = torch.full((256, 1, 32, 32), x0)
    out = run(fake, [level] * 256, references=references).double().flatten()
    mean, variance = moments(NoiseGrid.of(fake.alphas_cumprod, 20), level, x0, 0.2, 0.5)
    # All 262,144 pixels are independent draws of one normal distribution. Five standard errors: of a mean
    # sd / sqrt(n), of a variance sqrt(2 / n) of itself (1.4 %).
    assert float(out.mean()) == pytest.approx(mean, abs=5 * (variance / len(out)) ** 0.5)
    assert float(out.var()) == pytest.approx(variance, rel=5 * (2 / len(out)) ** 0.5)


@pytest.mark.parametrize("level", [1, 10, 19])
def test_ancestral_sampling_keeps_of_a_reference_what_the_recursion_keeps(fakes: SimpleNamespace, level: int) -> None:
    # With the same seeds the noise cancels: what is left is exact up to float32.
    fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
    grid = NoiseGrid.of(fake.alphas_cumprod, 20)
    bright, dark = (run(fake, [level] * 2, references=torch.full((2, 1, 5, 5), x0)) for x0 in (0.8, -0.6))
    expected = moments(grid, level, 0.8, 0.2, 0.5)[0] - moments(grid, level, -0.6, 0.2, 0.5)[0]
    torch.testing.assert_close(bright - dark, torch.full((2, 1, 5, 5), expected), rtol=0, atol=2e-6)


def test_ancestral_sampling_on_a_fine_grid_draws_from_the_posterior(fakes: SimpleNamespace) -> None:
    # x_t = sqrt(a) x0 + sqrt(1 - a) eps of a fixed x0, then a draw from p(x0' | x_t) under the prior N(mu, s^2), whose
    # mean is mu + K (x_t - sqrt(a) mu) and whose variance s^2 (1 - a) / (a s^2 + 1 - a).
    mu, s, x0 = 0.2, 0.5, 0.8
    fake = fakes.Denoiser(fakes.gaussian([mu], s))
    a = fake.alphas_cumprod[499]
    gain = s**2 * a**0.5 / (a * s**2 + 1 - a)
    mean = mu + gain * a**0.5 * (x0 - mu)
    variance = gain**2 * (1 - a) + s**2 * (1 - a) / (a * s**2 + 1 - a)
    assert (mean, variance) == pytest.approx((0.31765, 0.24039), abs=1e-5)
    # The mean has no error of discretisation (the recursion is linear); the variance has 0.8 % at 1000 steps.
    assert moments(NoiseGrid.of(fake.alphas_cumprod, 1000), 500, x0, mu, s) == pytest.approx((mean, 0.23842), abs=1e-5)
    out = run(fake, [500] * 64, grid=1000, references=torch.full((64, 1, 32, 32), x0)).double().flatten()
    assert float(out.mean()) == pytest.approx(mean, abs=5 * (variance / len(out)) ** 0.5)
    assert float(out.var()) == pytest.approx(variance, rel=0.0083 + 5 * (2 / len(out)) ** 0.5)


@pytest.mark.parametrize(("sampler", "coarse", "fine"), [("ddim", 0.15, 3e-3), ("dpm++2m", 0.22, 1e-4)])
def test_the_deterministic_samplers_follow_the_probability_flow(
    fakes: SimpleNamespace, sampler: Sampler, coarse: float, fine: float
) -> None:
    # For a Gaussian prior the flow keeps the number of standard deviations: (x0' - mu) / s equals
    # (x_t - sqrt(a) mu) / sqrt(a s^2 + 1 - a). First order leaves 1 / S, second order 1 / S^2 of error.
    mu, s = 0.2, 0.5
    fake = fakes.Denoiser(fakes.gaussian([mu], s))
    for size, error in ((20, coarse), (1000, fine)):
        a = NoiseGrid.of(fake.alphas_cumprod, size).alphas_cumprod[size // 2 - 1]
        references = torch.full((2, 1, 8, 8), 0.8)
        x = a**0.5 * references + (1 - a) ** 0.5 * torch.stack([normal(seed, 1, 8, 8) for seed in (0, 1)])
        out = run(fake, [size // 2] * 2, sampler=sampler, grid=size, references=references, seeds=(0, 1))
        assert float((out - mu - s * (x - a**0.5 * mu) / (a * s**2 + 1 - a) ** 0.5).abs().max()) < error


@every_sampler
def test_the_last_step_adds_no_noise(fakes: SimpleNamespace, sampler: Sampler) -> None:
    beliefs: list[Tensor] = []

    def believe(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        beliefs.append(x * 0.5 + 0.1)
        return beliefs[-1]

    out = run(fakes.Denoiser(believe), [5, 5], grid=10, sampler=sampler)
    assert torch.equal(out, beliefs[-1])
    assert len(beliefs) == 5


# The steps against diffusers


class Network:
    """A small fixed network behind the fake: its raw output goes to our loop and to diffusers alike."""

    kernel = normal(1, 1, 1, 3, 3)

    def __call__(self, x: Tensor, timestep: int, labels: Tensor) -> Tensor:
        return torch.tanh(F.conv2d(x, self.kernel, padding=1) + timestep / 1000 + labels[:, None, None, None] / 5)


# diffusers 0.42 hands NumPy a tensor in DPMSolverMultistepScheduler.set_timesteps.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "level"), [(100, 100), (100, 50), (10, 10), (10, 4), (10, 1)])
@every_sampler
def test_trajectories_are_those_of_diffusers(
    monkeypatch: pytest.MonkeyPatch,
    fakes: SimpleNamespace,
    sampler: Sampler,
    size: int,
    level: int,
    kind: PredictionType,
) -> None:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    # diffusers computes 1 - abar in float32, which costs it three digits where abar is near 1: with its own tables
    # ddpm differs by 4.5e-5, the others by 4e-6. So it gets the schedule in float64, by hand. Then, measured: ddpm
    # equal bit by bit, ddim 7e-7, dpm++2m 3.3e-6.
    settings: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": kind}
    total = 1000
    scheduler: Any
    if sampler == "ddpm":
        scheduler = DDPMScheduler(
            variance_type="fixed_small", clip_sample=True, timestep_spacing="linspace", **settings
        )
        scheduler.set_timesteps(size)
    elif sampler == "ddim":
        # DDIMScheduler steps from t to t - T // S, which is not the next of its own linspace timesteps; only where
        # S = T are the two grids one. So here the model itself has `size` training timesteps.
        total = size
        scheduler = DDIMScheduler(
            num_train_timesteps=size, clip_sample=True, set_alpha_to_one=True, timestep_spacing="linspace", **settings
        )
        scheduler.set_timesteps(size)
    else:
        # Its own linspace leaves out timestep 0, so it is given the grid's timesteps. It has no clip_sample; dynamic
        # thresholding with a maximum of 1 is a clip to [-1, 1].
        scheduler = DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
            thresholding=True,
            sample_max_value=1.0,
            **settings,
        )
        scheduler.set_timesteps(timesteps=np.linspace(0, 999, size).round().astype(int)[::-1].tolist())
        scheduler.set_begin_index(size - level)
    abar = fakes.cosine_alphas_cumprod(total)
    scheduler.alphas_cumprod = torch.from_numpy(abar)
    if sampler == "dpm++2m":
        on_grid = scheduler.alphas_cumprod[scheduler.timesteps]
        scheduler.sigmas = torch.cat([((1 - on_grid) / on_grid).sqrt(), torch.zeros(1)])

    network, labels, seeds = Network(), torch.tensor([0, 1, 2]), (11, 12, 13)
    references = normal(3, 3, 1, 8, 8).clamp(-1, 1)
    streams = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(np.stack([stream.standard_normal((1, 8, 8), np.float32) for stream in streams]))

    # diffusers would draw from torch generators, which keep only 32 bits of a seed.
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    noise = draw()
    timesteps = scheduler.timesteps[size - level :]
    assert len(timesteps) == level
    x = noise if level == size else scheduler.add_noise(references, noise, timesteps[:1].expand(3))
    for timestep in timesteps:
        output = network(x, int(timestep), labels)
        more: dict[str, Any] = {"ddim": {"use_clipped_model_output": True}}
        x = scheduler.step(output, timestep, x, **more.get(sampler, {})).prev_sample

    fake = fakes.Denoiser(None, prediction_type=kind, clip=True, alphas_cumprod=abar)
    fake.predict = network
    ours = run(
        fake, [level] * 3, sampler=sampler, grid=size, references=references, labels=labels.tolist(), seeds=seeds
    )
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)
    assert 0.1 < float(ours.std()) < 1  # neither faded nor all clipped


# How often the network is asked


@every_sampler
@pytest.mark.parametrize("levels", [[1], [20], [1, 1], [3, 20, 1, 7, 7], [20, 1], [5, 4, 3, 2]])
def test_level_r_costs_r_evaluations(fakes: SimpleNamespace, sampler: Sampler, levels: list[int]) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2] * 6, 0.5))
    told: list[int] = []
    run(fake, levels, sampler=sampler, labels=range(len(levels)), on_call=told.append)
    seen = [label for _, labels in fake.calls for label in labels]
    assert [seen.count(label) for label in range(len(levels))] == levels
    assert told == [len(labels) for _, labels in fake.calls]
    assert len(told) == max(levels)
    assert sum(told) == sum(levels)


@every_sampler
def test_the_network_is_asked_at_the_timesteps_of_the_grid(fakes: SimpleNamespace, sampler: Sampler) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
    run(fake, [3, 2], grid=10, sampler=sampler)
    # 10 of 1000 steps: 0, 111, 222, ..., 999. Level 3 starts at index 2.
    assert fake.calls == [(222, [0]), (111, [0, 0]), (0, [0, 0])]


# Batches


@every_sampler
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_is_the_same_alone_and_in_any_batch(fakes: SimpleNamespace, sampler: Sampler, guidance: float) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2, -0.4, 0.5, 0.0], 0.5), clip=True)
    rng = np.random.default_rng(0)
    levels = [3, 20, 1, 7, 7, 20, 12, 1, 19]
    labels, seeds = rng.integers(0, 3, 9).tolist(), rng.integers(0, 2**62, 9).tolist()
    references = normal(4, 9, 1, 5, 5).clamp(-1, 1)

    def make(rows: Sequence[int]) -> Tensor:
        return run(
            fake,
            [levels[i] for i in rows],
            sampler=sampler,
            guidance=guidance,
            references=references[list(rows)],
            labels=[labels[i] for i in rows],
            seeds=[seeds[i] for i in rows],
        )

    together = make(range(9))
    alone = torch.cat([make([i]) for i in range(9)])
    assert torch.equal(together, alone)
    for _ in range(5):
        rows = rng.permutation(9)[: rng.integers(2, 10)].tolist()
        assert torch.equal(make(rows), together[rows])


@every_sampler
def test_the_seed_alone_tells_two_images_of_one_reference_apart(fakes: SimpleNamespace, sampler: Sampler) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
    references = torch.full((3, 1, 5, 5), 0.3)
    first, second, again = run(fake, [7] * 3, sampler=sampler, references=references, seeds=(1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@every_sampler
def test_neither_the_references_nor_the_global_generator_change(fakes: SimpleNamespace, sampler: Sampler) -> None:
    references = normal(4, 2, 1, 5, 5)
    before, state = references.clone(), torch.get_rng_state()
    run(fakes.Denoiser(fakes.gaussian([0.2], 0.5)), [20, 3], sampler=sampler, references=references)
    assert torch.equal(references, before)
    assert torch.equal(torch.get_rng_state(), state)


@every_sampler
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_spoils_its_own_image_only(
    fakes: SimpleNamespace, sampler: Sampler, clip: bool, bad: float
) -> None:
    good_belief = fakes.gaussian([0.2, 0.2, 0.2, 0.2], 0.5)

    def believe(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        x0 = good_belief(x, abar, labels)
        if abar < 0.5:  # in the noisier steps only, in one pixel of the image of label 1
            x0[labels == 1, 0, 2, 2] = bad
        return x0

    levels, labels = [15, 15, 12], [0, 1, 2]
    spoiled = run(fakes.Denoiser(believe, clip=clip), levels, sampler=sampler, labels=labels)
    good = run(fakes.Denoiser(good_belief, clip=clip), levels, sampler=sampler, labels=labels)
    assert not spoiled[1, 0, 2, 2].isfinite()
    assert torch.equal(spoiled[[0, 2]], good[[0, 2]])


# Guidance


@every_sampler
@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (1.0, [0.2, 0.4]),  # the conditional belief
        (0.0, [-0.1, -0.1]),  # the unconditional one
        (3.0, [0.8, 1.4]),  # -0.1 + 3 (0.2 + 0.1) and -0.1 + 3 (0.4 + 0.1)
        (0.5, [0.05, 0.15]),
    ],
)
def test_guidance_goes_beyond_the_conditional_belief(
    fakes: SimpleNamespace, sampler: Sampler, scale: float, expected: list[float]
) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]))
    out = run(fake, [4, 9], sampler=sampler, guidance=scale, labels=[0, 1])
    for image, value in zip(out, expected, strict=True):
        torch.testing.assert_close(image, torch.full((1, 5, 5), value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_mixes_outputs_of_any_kind(fakes: SimpleNamespace, kind: PredictionType) -> None:
    # Every kind is linear in x0, so mixing outputs is mixing clean images.
    fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]), prediction_type=kind)
    out = run(fake, [4, 9], guidance=3, labels=[0, 1])
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([0.8, 1.4]), rtol=0, atol=1e-4)


def test_guidance_asks_with_and_without_labels_in_one_call(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]))
    told: list[int] = []
    run(fake, [1, 2], grid=10, guidance=3, labels=[0, 1], on_call=told.append)
    assert fake.calls == [(111, [1, -1]), (0, [1, 0, -1, -1])]
    assert told == [1, 2]  # images, not evaluations


def test_without_guidance_the_unconditional_branch_is_left_alone(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]), unconditional=False)
    run(fake, [10, 20], guidance=1, labels=[0, 1])
    assert all(label >= 0 for _, labels in fake.calls for label in labels)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guidance_needs_an_unconditional_branch(fakes: SimpleNamespace, scale: float) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2]), unconditional=False)
    with pytest.raises(
        ValueError, match="fake was trained without an unconditional branch: set the guidance scale to 1"
    ):
        run(fake, [10], guidance=scale)
    assert fake.calls == []


# What the network predicts


@every_sampler
@pytest.mark.parametrize("clip", [True, False])
def test_the_same_belief_told_in_three_ways_makes_the_same_image(
    fakes: SimpleNamespace, sampler: Sampler, clip: bool
) -> None:
    belief = fakes.gaussian([0.6], 0.5)
    outs = [run(fakes.Denoiser(belief, prediction_type=kind, clip=clip), [10, 14], sampler=sampler) for kind in KINDS]
    torch.testing.assert_close(outs[0], outs[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(outs[1], outs[2], rtol=0, atol=1e-5)


@every_sampler
def test_clean_pixels_are_clipped_at_each_step_and_latents_are_not(fakes: SimpleNamespace, sampler: Sampler) -> None:
    believed: list[float] = []

    def believe(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        believed.append(float(x.mean()))
        return torch.full_like(x, 2.0)

    pixels = run(fakes.Denoiser(believe, clip=True), [10], sampler=sampler)
    seen_when_clipped = believed.copy()
    believed.clear()
    latents = run(fakes.Denoiser(believe, clip=False), [10], sampler=sampler)
    assert torch.equal(pixels, torch.ones(1, 1, 5, 5))
    assert torch.equal(latents, torch.full((1, 1, 5, 5), 2.0))
    assert seen_when_clipped[0] == believed[0]
    assert all(a < b for a, b in zip(seen_when_clipped[1:], believed[1:], strict=True))


@every_sampler
def test_a_schedule_that_ends_in_pure_noise_can_be_walked(fakes: SimpleNamespace, sampler: Sampler) -> None:
    # "Zero terminal SNR" (rescale_betas_zero_snr of diffusers): abar is 0 at the last step, its log-SNR -inf.
    belief = fakes.gaussian([0.2], 0.5)
    zero, tiny = np.array([0.9, 0.6, 0.3, 0.0]), np.array([0.9, 0.6, 0.3, 1e-12])
    exact, near = (run(fakes.Denoiser(belief, alphas_cumprod=a), [4, 3], grid=4, sampler=sampler) for a in (zero, tiny))
    assert exact.isfinite().all()
    # At 1e-12 the second-order step still weighs the first by a log-SNR of -28 instead of -inf.
    torch.testing.assert_close(exact, near, rtol=0, atol=0.05)


# Bad input


@pytest.mark.parametrize("level", [-3, 0, 21])
def test_levels_that_the_grid_does_not_have_are_refused_before_any_call(fakes: SimpleNamespace, level: int) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2]))
    with pytest.raises(ValueError, match=f"^level {level} of 20 does not exist: levels go from 1 to 20$"):
        run(fake, [10, level])
    assert fake.calls == []


def test_a_grid_finer_than_the_models_schedule_is_refused(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2]), alphas_cumprod=np.array([0.9, 0.5, 0.1]))
    with pytest.raises(ValueError, match="a grid has 1 to 3 steps"):
        run(fake, [1], grid=4)


@pytest.mark.parametrize(
    "bad",
    [{"grid": 0}, {"grid": 1001}, {"guidance_scale": -0.1}, {"guidance_scale": 51}, {"sampler": "euler"}, {"steps": 5}],
)
def test_a_config_outside_its_bounds_is_refused_by_the_name_of_the_field(bad: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
        SampleConfig(**bad)


def test_the_defaults_are_the_papers() -> None:
    assert SampleConfig() == SampleConfig(sampler="ddpm", grid=100, guidance_scale=3.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_sampler
def test_the_device_changes_rounding_only(fakes: SimpleNamespace, sampler: Sampler) -> None:
    mu = torch.tensor([0.2, -0.4, 0.0])

    def believe(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        return 0.5 * mu.to(x.device)[labels][:, None, None, None] + 0.5 * x

    references = normal(4, 4, 1, 5, 5)
    outs = []
    for device in ("cpu", "cuda"):
        fake = fakes.Denoiser(believe, clip=True)
        fake.device = torch.device(device)
        here = references.to(device)
        outs.append(run(fake, [3, 20, 7, 20], sampler=sampler, guidance=3, references=here, labels=[0, 1, 1, 0]))
    torch.testing.assert_close(outs[1].cpu(), outs[0], rtol=0, atol=1e-5)


def test_seeds_that_share_their_low_32_bits_give_other_noise(fakes: SimpleNamespace) -> None:
    # torch's own CPU generator would give both the same.
    fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
    two = run(fake, [10, 10], sampler="ddpm", grid=10, references=torch.zeros(2, 1, 8, 8), seeds=(5, 5 + 2**40))
    assert not torch.equal(two[0], two[1])
