import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latebloom.synth.config import SampleConfig, Sampler
from latebloom.synth.sampling.denoiser import PredictionType
from latebloom.synth.sampling.levels import NoiseGrid
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.synth.sampling.sample import denoise

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def run(
    fake: Any,
    levels: Sequence[int],
    *,
    sampler: Sampler = "ddpm",
    grid: int = 20,
    steps: int = 0,
    guidance: float = 1.0,
    references: Tensor | None = None,
    labels: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """`denoise` of 1x5x5 references (an odd number of pixels, so that vectorised code has a tail)."""
    n = len(levels)
    if references is None:
        references = torch.linspace(-1, 1, 25 * n).reshape(n, 1, 5, 5)
    return denoise(
        fake,
        references,
        torch.zeros(n, dtype=torch.int64) if labels is None else torch.tensor(list(labels)),
        np.array(levels),
        range(100, 100 + n) if seeds is None else seeds,
        SampleConfig(sampler=sampler, grid=grid, steps=steps, guidance_scale=guidance),
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

    def record(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        for image, label in zip(x, labels.tolist(), strict=True):
            first_seen.setdefault(label, image.clone())
        return x

    levels = [3, 7, 10, 1]
    references = torch.linspace(-1, 1, 100).reshape(4, 1, 5, 5)
    run(fakes.Denoiser(record), levels, grid=10, sampler=sampler, references=references, labels=range(4))
    grid = NoiseGrid.of(fakes.cosine_alphas_cumprod(1000), 10)
    for place, level in enumerate(levels):
        a = grid.alphas_cumprod[level - 1]
        noise = normal(100 + place, 1, 5, 5)
        expected = noise if level == 10 else a**0.5 * references[place] + (1 - a) ** 0.5 * noise
        torch.testing.assert_close(first_seen[place], expected.float(), rtol=0, atol=1e-6)


def test_at_the_last_level_the_reference_is_forgotten(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
        # Two steps: in many, lcm forgets every reference.
        for level, forgotten in ((20, True), (19, False)):
            one, other = (
                run(fake, [level] * 2, sampler=sampler, steps=2, references=torch.full((2, 1, 5, 5), value))
                for value in (1.0, -1.0)
            )
            assert torch.equal(one, other) == forgotten


# What comes out, with the perfect denoiser of a Gaussian prior


@pytest.mark.parametrize(("level", "x0"), [(1, 0.8), (10, -0.6), (16, 0.8), (20, 0.8)])
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


def test_ancestral_sampling_keeps_of_a_reference_what_the_recursion_keeps(fakes: SimpleNamespace) -> None:
    for level in [1, 10, 19]:
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
    out = run(fake, [500] * 16, grid=1000, references=torch.full((16, 1, 32, 32), x0)).double().flatten()
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

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        beliefs.append(x * 0.5 + 0.1)
        return beliefs[-1]

    out = run(fakes.Denoiser(believe), [5, 5], grid=10, sampler=sampler)
    assert torch.equal(out, beliefs[-1])
    assert len(beliefs) == (9 if sampler == "heun" else 5)


# The steps against diffusers


class Network:
    """A small fixed network behind the fake: its raw output goes to our loop and to diffusers alike."""

    kernel = normal(1, 1, 1, 3, 3)

    def __call__(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        here = timesteps[:, None, None, None] / 1000 + labels[:, None, None, None] / 5
        return torch.tanh(F.conv2d(x, self.kernel, padding=1) + here)


def trajectory_of_diffusers(
    monkeypatch: pytest.MonkeyPatch, scheduler: Any, timesteps: list[int], references: Tensor | None, **more: Any
) -> Tensor:
    """What a scheduler of diffusers makes of `Network` along descending timesteps, for labels 0, 1, 2 and `SEEDS`.

    diffusers would draw from torch generators, which keep only 32 bits of a seed; it gets the noise that ours draws.
    """
    from diffusers import DDPMScheduler

    network, labels = Network(), torch.tensor([0, 1, 2])
    streams = [np.random.Generator(np.random.Philox(seed)) for seed in SEEDS]

    def draw(*_: Any, **__: Any) -> Tensor:
        return torch.from_numpy(np.stack([stream.standard_normal((1, 8, 8), np.float32) for stream in streams]))

    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", draw)
    start = torch.tensor([timesteps[0]] * 3)
    noiser = DDPMScheduler()
    noiser.alphas_cumprod = scheduler.alphas_cumprod
    noise = draw()
    x = noise if references is None else noiser.add_noise(references, noise, start)
    for timestep in scheduler.timesteps:
        output = network(x, timestep.expand(3), labels)
        x = scheduler.step(output, timestep, x, **more).prev_sample
    return x


SEEDS = (11, 12, 13)
REFERENCES = normal(3, 3, 1, 8, 8).clamp(-1, 1)
# S, R, denoiser calls from pure noise (0 for S), prediction type
trajectories = pytest.mark.parametrize(
    ("size", "level", "steps", "kind"),
    [
        (100, 50, 0, "epsilon"),
        (100, 100, 4, "epsilon"),
        (10, 10, 0, "v_prediction"),
        (100, 50, 25, "v_prediction"),
        (10, 1, 0, "sample"),
        (100, 100, 0, "sample"),
    ],
)


# diffusers 0.42 hands NumPy a tensor in DPMSolverMultistepScheduler.set_timesteps.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@trajectories
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++2m", "lcm"])
def test_trajectories_are_those_of_diffusers(
    monkeypatch: pytest.MonkeyPatch,
    fakes: SimpleNamespace,
    sampler: Sampler,
    size: int,
    level: int,
    steps: int,
    kind: PredictionType,
) -> None:
    import diffusers

    # diffusers computes 1 - abar in float32, which costs it three digits where abar is near 1: with its own tables
    # ddpm differs by 4.5e-5, the others by 4e-6. So it gets the schedule in float64, by hand.
    settings: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": kind}
    # The grid of `size` of 1000, and the trajectory from the level: `calls` of them, evenly.
    on_grid = np.linspace(0, 999, size).round().astype(int)
    calls = math.ceil(level * (steps or size) / size)
    timesteps = [int(on_grid[round(level * left / calls) - 1]) for left in range(calls, 0, -1)]
    scaling = 0.0
    scheduler: Any
    if sampler == "ddpm":
        scheduler = diffusers.DDPMScheduler(variance_type="fixed_small", clip_sample=True, **settings)
    elif sampler == "lcm":
        scaling = 0.05  # diffusers' own is 10, which leaves nothing of x but at the first timesteps
        scheduler = diffusers.LCMScheduler(clip_sample=True, timestep_scaling=scaling, **settings)
    else:
        # It has no clip_sample; dynamic thresholding with a maximum of 1 is a clip to [-1, 1]. Of first order it is
        # DDIM: DDIMScheduler steps from t to t - T // S, wherever its timesteps are (see the next test).
        scheduler = diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=1 if sampler == "ddim" else 2,
            solver_type="midpoint",
            final_sigmas_type="zero",
            thresholding=True,
            sample_max_value=1.0,
            **settings,
        )
    scheduler.set_timesteps(timesteps=timesteps)
    abar = fakes.cosine_alphas_cumprod(1000)
    scheduler.alphas_cumprod = torch.from_numpy(abar)
    if sampler in ("ddim", "dpm++2m"):
        here = scheduler.alphas_cumprod[scheduler.timesteps]
        scheduler.sigmas = torch.cat([((1 - here) / here).sqrt(), torch.zeros(1)])
    assert scheduler.timesteps.tolist() == timesteps
    theirs = trajectory_of_diffusers(monkeypatch, scheduler, timesteps, None if level == size else REFERENCES)

    fake = fakes.Denoiser(None, prediction_type=kind, clip=True, timestep_scaling=scaling, alphas_cumprod=abar)
    fake.predict = Network()
    ours = run(
        fake,
        [level] * 3,
        sampler=sampler,
        grid=size,
        steps=steps,
        references=REFERENCES,
        labels=[0, 1, 2],
        seeds=SEEDS,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert 0.1 < float(ours.std()) < 1.5  # neither faded nor all clipped


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(
    ("size", "level", "kind"), [(100, 100, "epsilon"), (100, 50, "v_prediction"), (10, 4, "sample")]
)
def test_ddim_is_that_of_diffusers(
    monkeypatch: pytest.MonkeyPatch, fakes: SimpleNamespace, size: int, level: int, kind: PredictionType, to_one: bool
) -> None:
    from diffusers import DDIMScheduler

    # Only where S = T do its steps lead from one of its timesteps to the next. So here the model has `size` of them.
    scheduler = DDIMScheduler(
        num_train_timesteps=size,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=kind,
        clip_sample=True,
        set_alpha_to_one=to_one,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(size)
    abar = fakes.cosine_alphas_cumprod(size)
    scheduler.alphas_cumprod = torch.from_numpy(abar)
    scheduler.final_alpha_cumprod = torch.tensor(1.0 if to_one else abar[0])
    scheduler.timesteps = scheduler.timesteps[size - level :]
    references = None if level == size else REFERENCES
    theirs = trajectory_of_diffusers(monkeypatch, scheduler, [level - 1], references, use_clipped_model_output=True)
    ends = frozenset[Sampler]() if to_one else frozenset[Sampler](["ddim"])
    fake = fakes.Denoiser(None, prediction_type=kind, clip=True, alphas_cumprod=abar, ends_at_first=ends)
    fake.predict = Network()
    ours = run(fake, [level] * 3, sampler="ddim", grid=size, references=REFERENCES, labels=[0, 1, 2], seeds=SEEDS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# diffusers 0.42 hands NumPy a tensor in DPMSolverMultistepScheduler.set_timesteps.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    ("sampler", "end", "level", "kind"),
    [
        ("euler", "zero", 100, "epsilon"),
        ("euler", "zero", 45, "v_prediction"),
        ("euler", "sigma_min", 100, "epsilon"),
        ("heun", "zero", 100, "epsilon"),
        ("heun", "zero", 45, "v_prediction"),
        ("heun", "zero", 5, "sample"),
        ("dpm++2m", "sigma_min", 100, "epsilon"),  # 20 steps, the last of second order
        ("dpm++2m", "sigma_min", 45, "epsilon"),  # 9 steps: of first order where there are fewer than 15
    ],
)
def test_latent_trajectories_are_those_of_diffusers(
    fakes: SimpleNamespace, sampler: Sampler, end: str, level: int, kind: PredictionType
) -> None:
    import diffusers

    # As Stable Diffusion has it. Euler and Heun work on x / sqrt(abar) there, which `scale_model_input` takes back.
    settings: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler: Any
    if sampler == "euler":
        scheduler = diffusers.EulerDiscreteScheduler(prediction_type=kind, final_sigmas_type=end, **settings)
    elif sampler == "heun":
        scheduler = diffusers.HeunDiscreteScheduler(prediction_type=kind, **settings)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=kind, final_sigmas_type=end, **settings)
    abar = scheduler.alphas_cumprod.double().numpy()
    # 20 steps on a grid of 100, from index 99: 99, 94, ..., 4.
    timesteps = np.linspace(0, 999, 100).round().astype(int)[level - 1 :: -5].tolist()
    scheduler.set_timesteps(timesteps=timesteps)
    a = abar[timesteps[0]]
    noise = torch.stack([normal(seed, 1, 8, 8) for seed in SEEDS])
    start = noise if level == 100 else a**0.5 * REFERENCES + (1 - a) ** 0.5 * noise
    scaled = sampler in ("euler", "heun")
    network, labels = Network(), torch.tensor([0, 1, 2])
    x = start.double() / a**0.5 if scaled else start
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, timestep).float(), timestep.expand(3), labels)
        x = scheduler.step(output, timestep, x).prev_sample
    # Euler's last x / sqrt(abar) is decoded as it is there.
    theirs = x.float() * float(abar[0]) ** 0.5 if sampler == "euler" and end == "sigma_min" else x.float()

    ends = frozenset[Sampler]([sampler] if end == "sigma_min" else [])
    fake = fakes.Denoiser(None, prediction_type=kind, alphas_cumprod=abar, ends_at_first=ends)
    fake.predict = network
    sample = SampleConfig(sampler=sampler, steps=20, match="steps", guidance_scale=1)
    ours = denoise(fake, REFERENCES, labels, np.full(3, level), SEEDS, sample)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert float(ours.std()) > 0.1


def test_a_consistency_model_leaves_an_image_without_noise_as_it_is(fakes: SimpleNamespace) -> None:
    # At timestep 0, its boundary condition: c_skip is 1 and c_out 0. Level 1 starts there and makes one call.
    fake = fakes.Denoiser(fakes.constant([0.9]), timestep_scaling=10.0)
    references = torch.linspace(-1, 1, 25).reshape(1, 1, 5, 5)
    out = run(fake, [1], sampler="lcm", references=references)
    a = fake.alphas_cumprod[0]
    noised = a**0.5 * references + (1 - a) ** 0.5 * normal(100, 1, 5, 5)
    torch.testing.assert_close(out, noised.float(), rtol=0, atol=1e-6)
    # Another model has no such condition, and is believed.
    out = run(fakes.Denoiser(fakes.constant([0.9])), [1], sampler="lcm", references=references)
    torch.testing.assert_close(out, torch.full((1, 1, 5, 5), 0.9))


def test_lcm_goes_back_to_the_clean_image_and_noises_it_afresh(fakes: SimpleNamespace) -> None:
    seen: list[Tensor] = []

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        seen.append(x.clone())
        return torch.full_like(x, 0.6 - 0.1 * len(seen))  # 0.5, 0.4, 0.3

    out = run(fakes.Denoiser(believe), [3], grid=10, sampler="lcm")
    assert torch.equal(out, torch.full((1, 1, 5, 5), 0.3))
    abar = fakes.cosine_alphas_cumprod(1000)[[111, 0]]  # after the first call, and the second
    noise = normal(100, 3, 1, 5, 5)
    for step, (a, x0) in enumerate(zip(abar, (0.5, 0.4), strict=True)):
        expected = a**0.5 * x0 + (1 - a) ** 0.5 * noise[step + 1]
        torch.testing.assert_close(seen[step + 1][0], expected.float(), rtol=0, atol=1e-6)


# How often the network is called


def test_level_r_costs_r_evaluations(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        for levels in [[1], [20], [1, 1], [3, 20, 1, 7, 7], [5, 4, 3, 2]]:
            fake = fakes.Denoiser(fakes.gaussian([0.2] * 6, 0.5))
            run(fake, levels, sampler=sampler, labels=range(len(levels)))
            seen = [label for _, labels in fake.calls for label in labels]
            # Heun evaluates both ends of a step, but for the last.
            calls = [2 * level - 1 if sampler == "heun" else level for level in levels]
            assert [seen.count(label) for label in range(len(levels))] == calls
            assert len(fake.calls) == max(calls)


def test_fewer_steps_cost_fewer_evaluations(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        fake = fakes.Denoiser(fakes.gaussian([0.2] * 6, 0.5))
        levels = [50, 100, 1, 29, 96]
        run(fake, levels, grid=100, steps=25, sampler=sampler, labels=range(5))
        seen = [label for _, labels in fake.calls for label in labels]
        # R / 4, rounded up.
        calls = [25, 49, 1, 15, 47] if sampler == "heun" else [13, 25, 1, 8, 24]
        assert [seen.count(label) for label in range(5)] == calls
        config = SampleConfig(sampler=sampler, grid=100, steps=25)
        assert [config.calls(level) for level in levels] == calls


def test_calls_of_a_level() -> None:
    for grid, steps, levels in [
        (100, 0, {1: 1, 29: 29, 57: 57, 100: 100}),  # int(100 * 0.29) would be 28, int(100 * 0.57) 56
        (100, 100, {1: 1, 29: 29, 57: 57, 100: 100}),
        (100, 25, {1: 1, 4: 1, 5: 2, 50: 13, 100: 25}),
        (100, 4, {25: 1, 26: 2, 50: 2, 51: 3, 100: 4}),
        (1000, 1, {1: 1, 1000: 1}),
    ]:
        config = SampleConfig(grid=grid, steps=steps)
        assert {level: config.calls(level) for level in levels} == levels


def test_guidance_costs_two_evaluations_a_step_and_1_switches_it_off() -> None:
    assert [SampleConfig(guidance_scale=scale).calls_a_step for scale in (0, 1, 3)] == [2, 1, 2]


def test_the_network_is_called_at_the_timesteps_of_the_grid(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
        run(fake, [3, 2], grid=10, sampler=sampler)
        # 10 of 1000 steps: 0, 111, 222, ..., 999. Level 3 starts at index 2.
        calls = [([222], [0]), ([111, 111], [0, 0]), ([0, 0], [0, 0])]
        ends = [([111], [0]), ([0, 0], [0, 0])]  # of the first two steps, which Heun evaluates too
        assert fake.calls == ([calls[0], ends[0], calls[1], ends[1], calls[2]] if sampler == "heun" else calls)


def test_images_of_one_call_are_each_at_a_timestep_of_their_own(fakes: SimpleNamespace) -> None:
    for sampler in ("ddpm", "euler", "dpm++2m", "lcm"):
        # 100 of 1000 timesteps: 10 apart for the first half. In 10 steps, level 20 takes 2 (index 19, 9), 12 takes 2
        # (11, 5) and 30 takes 3 (29, 19, 9).
        fake = fakes.Denoiser(fakes.gaussian([0.2] * 4, 0.5))
        run(fake, [20, 12, 30], grid=100, steps=10, sampler=sampler, labels=[0, 1, 2])
        grid = NoiseGrid.of(fake.alphas_cumprod, 100)
        assert fake.calls == [
            ([int(grid.timesteps[29])], [2]),
            (grid.timesteps[[19, 19, 11]].tolist(), [2, 0, 1]),
            (grid.timesteps[[9, 9, 5]].tolist(), [2, 0, 1]),
        ]


def test_a_reference_starts_at_its_level_however_few_the_steps(fakes: SimpleNamespace) -> None:
    seen: list[Tensor] = []

    def record(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    fake = fakes.Denoiser(record)
    references = torch.linspace(-1, 1, 25).reshape(1, 1, 5, 5)
    run(fake, [50], grid=100, steps=4, sampler="ddim", references=references)
    a = NoiseGrid.of(fake.alphas_cumprod, 100).alphas_cumprod[49]
    expected = a**0.5 * references + (1 - a) ** 0.5 * normal(100, 1, 5, 5)
    torch.testing.assert_close(seen[0], expected.float(), rtol=0, atol=1e-6)
    assert len(seen) == 2


def test_the_grid_is_matched_as_the_config_says(fakes: SimpleNamespace) -> None:
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # Stable Diffusion's
    started = {}
    for match in ("snr", "steps", "strength"):
        fake = fakes.Denoiser(fakes.constant([0.2]), alphas_cumprod=abar)
        config = SampleConfig(sampler="ddim", steps=1, match=match, guidance_scale=1)
        denoise(fake, torch.zeros(1, 1, 2, 2), torch.tensor([0]), np.array([50]), [0], config)
        started[match] = fake.calls[0][0][0]
    assert started == {"snr": 353, "steps": 494, "strength": 499}


# Batches


def test_images_come_back_in_the_order_they_were_given(fakes: SimpleNamespace) -> None:
    # Sorted by depth they are 1, 2, 0: an order that is not its own inverse.
    fake = fakes.Denoiser(fakes.constant([0.1, 0.2, 0.3]))
    out = run(fake, [1, 3, 2], labels=[0, 1, 2])
    assert out[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("sampler", "guidance", "steps"),
    [("ddpm", 3.0, 0), ("ddpm", 1.0, 6), ("ddim", 3.0, 6), ("dpm++2m", 3.0, 6), ("dpm++2m", 1.0, 0), ("lcm", 3.0, 6)],
)
def test_an_image_is_the_same_alone_and_in_any_batch(
    fakes: SimpleNamespace, sampler: Sampler, guidance: float, steps: int
) -> None:
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
            steps=steps,
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


def test_the_seed_alone_separates_two_images_of_one_reference(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5))
        references = torch.full((3, 1, 5, 5), 0.3)
        first, second, again = run(fake, [7] * 3, sampler=sampler, references=references, seeds=(1, 2, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)


def test_neither_the_references_nor_the_global_generator_change(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        references = normal(4, 2, 1, 5, 5)
        before, state = references.clone(), torch.get_rng_state()
        run(fakes.Denoiser(fakes.gaussian([0.2], 0.5)), [20, 3], sampler=sampler, references=references)
        assert torch.equal(references, before)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("sampler", "clip", "bad"),
    [
        ("ddpm", True, math.nan),
        ("ddpm", False, math.inf),
        ("ddim", True, -math.inf),
        ("dpm++2m", True, math.inf),
        ("dpm++2m", False, math.nan),
        ("lcm", True, math.inf),
    ],
)
def test_an_output_that_is_not_finite_spoils_its_own_image_only(
    fakes: SimpleNamespace, sampler: Sampler, clip: bool, bad: float
) -> None:
    good_belief = fakes.gaussian([0.2, 0.2, 0.2, 0.2], 0.5)

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        x0 = good_belief(x, abar, labels)
        # In the noisier steps only, in one pixel of the image of label 1.
        x0[(labels == 1) & (abar.flatten() < 0.5), 0, 2, 2] = bad
        return x0

    levels, labels = [15, 15, 12], [0, 1, 2]
    spoiled = run(fakes.Denoiser(believe, clip=clip), levels, sampler=sampler, labels=labels)
    good = run(fakes.Denoiser(good_belief, clip=clip), levels, sampler=sampler, labels=labels)
    assert not spoiled[1, 0, 2, 2].isfinite()
    assert torch.equal(spoiled[[0, 2]], good[[0, 2]])


# Guidance


def test_guidance_goes_beyond_the_conditional_belief(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        for scale, expected in [
            (1.0, [0.2, 0.4]),  # the conditional belief
            (0.0, [-0.1, -0.1]),  # the unconditional one
            (3.0, [0.8, 1.4]),  # -0.1 + 3 (0.2 + 0.1) and -0.1 + 3 (0.4 + 0.1)
            (0.5, [0.05, 0.15]),
        ]:
            fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]))
            out = run(fake, [4, 9], sampler=sampler, guidance=scale, labels=[0, 1])
            for image, value in zip(out, expected, strict=True):
                torch.testing.assert_close(image, torch.full((1, 5, 5), value), rtol=0, atol=1e-6)


def test_guidance_mixes_outputs_of_any_kind(fakes: SimpleNamespace) -> None:
    for kind in KINDS:
        # Every kind is linear in x0, so mixing outputs is mixing clean images.
        fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]), prediction_type=kind)
        out = run(fake, [4, 9], guidance=3, labels=[0, 1])
        torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([0.8, 1.4]), rtol=0, atol=1e-4)


def test_guidance_asks_with_and_without_labels_in_one_call(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]))
    run(fake, [1, 2], grid=10, guidance=3, labels=[0, 1])
    assert fake.calls == [([111, 111], [1, -1]), ([0, 0, 0, 0], [1, 0, -1, -1])]


def test_without_guidance_the_unconditional_branch_is_left_alone(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2, 0.4, -0.1]), unconditional=False)
    run(fake, [10, 20], guidance=1, labels=[0, 1])
    assert all(label >= 0 for _, labels in fake.calls for label in labels)


def test_guidance_needs_an_unconditional_branch(fakes: SimpleNamespace) -> None:
    for scale in [0.0, 3.0]:
        fake = fakes.Denoiser(fakes.constant([0.2]), unconditional=False)
        with pytest.raises(
            ValueError,
            match=r"^generator fake has no unconditional branch, which guidance needs: set the guidance scale to 1$",
        ):
            run(fake, [10], guidance=scale)
        assert fake.calls == []


# What the network predicts


def test_the_same_belief_in_all_prediction_types_makes_the_same_image(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        for clip in [True, False]:
            belief = fakes.gaussian([0.6], 0.5)
            outs = [
                run(fakes.Denoiser(belief, prediction_type=kind, clip=clip), [10, 14], sampler=sampler)
                for kind in KINDS
            ]
            torch.testing.assert_close(outs[0], outs[2], rtol=0, atol=1e-5)
            torch.testing.assert_close(outs[1], outs[2], rtol=0, atol=1e-5)


@every_sampler
def test_clean_pixels_are_clipped_at_each_step_and_latents_are_not(fakes: SimpleNamespace, sampler: Sampler) -> None:
    believed: list[float] = []

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
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


def test_a_schedule_that_ends_in_pure_noise_can_be_sampled(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        # "Zero terminal SNR" (rescale_betas_zero_snr of diffusers): abar is 0 at the last step, its log-SNR -inf.
        belief = fakes.gaussian([0.2], 0.5)
        zero, tiny = np.array([0.9, 0.6, 0.3, 0.0]), np.array([0.9, 0.6, 0.3, 1e-12])
        exact, near = (
            run(fakes.Denoiser(belief, alphas_cumprod=a), [4, 3], grid=4, sampler=sampler) for a in (zero, tiny)
        )
        assert exact.isfinite().all()
        # At 1e-12 the second-order step still weighs the first by a log-SNR of -28 instead of -inf.
        torch.testing.assert_close(exact, near, rtol=0, atol=0.05)


def test_a_schedule_with_a_plateau_or_no_noise_at_first_can_be_sampled(fakes: SimpleNamespace) -> None:
    for sampler in SAMPLERS:
        for abar in [[0.9, 0.6, 0.6, 0.3], [1.0, 0.9, 0.6, 0.3]]:
            # A step without a change of log-SNR, or one of infinite length, has no second order.
            fake = fakes.Denoiser(fakes.gaussian([0.2], 0.5), alphas_cumprod=np.array(abar))
            out = run(fake, [4, 3], grid=4, sampler=sampler)
            assert out.isfinite().all()
            assert float(out.abs().max()) < 3


# Bad input


def test_levels_that_the_grid_does_not_have_are_refused_before_any_call(fakes: SimpleNamespace) -> None:
    for level in [-3, 0, 21]:
        fake = fakes.Denoiser(fakes.constant([0.2]))
        with pytest.raises(ValueError, match=f"^level {level} of 20 does not exist: levels go from 1 to 20$"):
            run(fake, [10, level])
        assert fake.calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_noise_cannot_be_predicted_where_there_is_nothing_else(fakes: SimpleNamespace, kind: PredictionType) -> None:
    fake = fakes.Denoiser(
        fakes.gaussian([0.2], 0.5), prediction_type=kind, alphas_cumprod=np.array([0.9, 0.6, 0.3, 0.0])
    )
    generator = LoopGenerator(fake, SampleConfig(grid=4, guidance_scale=1))
    assert generator.level(3).calls == 3
    assert run(fake, [3], grid=4).isfinite().all()
    if kind != "epsilon":
        assert run(fake, [4], grid=4).isfinite().all()
        return
    fake.calls.clear()
    for ask in (lambda: generator.level(4), lambda: run(fake, [3, 4], grid=4)):
        with pytest.raises(ValueError, match=r"^level 4 of 4 is pure noise .* generator fake .* take a level below 4$"):
            ask()
    assert fake.calls == []


def test_a_grid_finer_than_the_models_schedule_is_refused(fakes: SimpleNamespace) -> None:
    fake = fakes.Denoiser(fakes.constant([0.2]), alphas_cumprod=np.array([0.9, 0.5, 0.1]))
    with pytest.raises(ValueError, match=r"^a grid of 4 steps is finer than the 3 timesteps of generator fake; set"):
        run(fake, [1], grid=4)


def test_more_steps_than_the_grid_has_are_refused() -> None:
    with pytest.raises(
        pydantic.ValidationError, match=r"21 steps are more than the 20 of the grid; raise sample\.grid"
    ):
        SampleConfig(grid=20, steps=21)
    assert SampleConfig(grid=20, steps=20).calls(20) == 20


def test_the_defaults_are_the_papers() -> None:
    assert SampleConfig() == SampleConfig(sampler="ddpm", grid=100, steps=0, match="snr", guidance_scale=3.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_sampler
def test_the_device_changes_rounding_only(fakes: SimpleNamespace, sampler: Sampler) -> None:
    mu = torch.tensor([0.2, -0.4, 0.0])

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
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
