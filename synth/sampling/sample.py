"""The denoising loop: ragged batches, classifier-free guidance, six samplers."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from latebloom.synth.config import SampleConfig
from latebloom.synth.sampling.calls import in_calls
from latebloom.synth.sampling.denoiser import Denoiser, to_x0
from latebloom.synth.sampling.levels import NoiseGrid
from latebloom.synth.sampling.steps import step_done

__all__ = ["check_grid", "check_guidance", "check_level", "denoise"]


def denoise(
    denoiser: Denoiser,
    references: Tensor,
    conditions: Tensor,
    levels: np.ndarray,
    seeds: Sequence[int],
    config: SampleConfig,
) -> Tensor:
    """Noise each reference to its own level and denoise it, all in one batch.

    Each image has its own trajectory down the grid. All trajectories end together: an image joins the batch when the
    number of calls left is that of its level. Images of different levels share every call, each at its own timestep.
    Each image has its own random stream on the CPU, so its noise depends on no other image, no order and no device.

    Args:
        references: x0, float32 (B, c, h, w), from `denoiser.encode`.
        conditions: int64 (B,), from `denoiser.conditions`.
        levels: int64 (B,), R of each image, 1..grid.
        seeds: one an image, 0 <= seed < 2**63.

    Returns:
        x0, float32 (B, c, h, w). Not finite where the network's output was not.

    Raises:
        ValueError: a level that the grid does not have or the model cannot start from, or guidance on a model without
            an unconditional branch.
    """
    check_grid(denoiser, config)
    check_guidance(denoiser, config)
    grid = NoiseGrid.of(denoiser.alphas_cumprod, config.grid, config.match)
    paths = {}
    for level in np.unique(levels).tolist():
        check_level(denoiser, grid, level)
        paths[level] = grid.path(level, config.solver_steps(level))
    steps = np.array([len(paths[int(level)]) for level in levels])
    # Longest trajectory first: the images that have joined are then always the first rows.
    order = np.argsort(-steps, kind="stable")
    levels, steps = levels[order], steps[order]
    # (B, steps): column n holds the grid index at which n more steps follow
    trajectory = np.zeros((len(order), steps[0]), np.int64)
    for row, level in enumerate(levels.tolist()):
        trajectory[row, : steps[row]] = paths[level][::-1]
    final = float(denoiser.alphas_cumprod[0]) if config.sampler in denoiser.ends_at_first else 1.0
    # Philox, because torch's CPU generator keeps only the low 32 bits of a seed: 100,000 images would share noise.
    streams = [np.random.Generator(np.random.Philox(int(seeds[i]))) for i in order]
    to_rows = torch.from_numpy(order).to(references.device)
    conditions = conditions[to_rows.to(conditions.device)]
    x = _start(references[to_rows], levels, grid, streams)
    previous_x0 = torch.zeros_like(x)

    def clean(noisy: Tensor, timesteps: Tensor, now: np.ndarray) -> Tensor:
        x0 = _predict_x0(denoiser, noisy, timesteps, now, conditions[: len(noisy)], config)
        step_done(len(noisy))
        return x0

    for left in range(steps[0] - 1, -1, -1):
        active = int((steps > left).sum())
        here = _Step.of(grid, trajectory, left, active, steps, final, x.device)
        x0 = clean(x[:active], here.timesteps, here.now)
        if config.sampler == "lcm":
            x[:active] = _lcm(x[:active], x0, here, streams[:active], denoiser.timestep_scaling)
        elif left == 0 and final == 1:
            x = x0
        elif config.sampler == "ddpm":
            x[:active] = _ddpm(x[:active], x0, here, streams[:active])
        elif config.sampler in ("ddim", "euler"):
            x[:active] = _ddim(x[:active], x0, here)
        elif config.sampler == "heun":
            x[:active] = _heun(x[:active], x0, here, clean)
        else:
            x[:active] = _dpm_2m(x[:active], x0, previous_x0[:active], here)
            previous_x0[:active] = x0
    result = torch.empty_like(x)
    result[to_rows.to(x.device)] = x
    return result


def check_grid(denoiser: Denoiser, config: SampleConfig) -> None:
    """Raise ValueError where the grid has more steps than the model has timesteps."""
    if config.grid > len(denoiser.alphas_cumprod):
        raise ValueError(
            f"a grid of {config.grid} steps is finer than the {len(denoiser.alphas_cumprod)} timesteps "
            f"of generator {denoiser.name}; set sample.grid to {len(denoiser.alphas_cumprod)} or less"
        )


def check_guidance(denoiser: Denoiser, config: SampleConfig) -> None:
    """Raise ValueError where guidance is asked for and the model has no unconditional branch."""
    if config.guidance_scale != 1 and not denoiser.unconditional:
        raise ValueError(
            f"generator {denoiser.name} has no unconditional branch, which guidance needs: set the guidance scale to 1"
        )


def check_level(denoiser: Denoiser, grid: NoiseGrid, level: int) -> None:
    """Raise ValueError where the grid has no such level, or the model cannot start from it."""
    grid.check(level)
    if denoiser.prediction_type == "epsilon" and grid.alphas_cumprod[level - 1] == 0:
        raise ValueError(
            f"level {level} of {grid.size} is pure noise without signal (zero terminal SNR), of which generator "
            f"{denoiser.name} predicts the noise, and so no image; take a level below {grid.size}"
        )


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of the A active images: abar at the step, after it and one step earlier.

    Coefficients are computed in float64, one for each image, and become float32 (A, 1, 1, 1) on the device. So no
    image's arithmetic depends on another's.
    """

    timesteps: Tensor  # int64 (A,)
    following: Tensor  # int64 (A,), the timesteps of the next step; in the last one, these again
    now: np.ndarray  # float64 (A,)
    after: np.ndarray  # (A,); 1 after the last step, or what the denoiser's `ends_at_first` says
    before: np.ndarray  # (A,); NaN for images that enter here
    last: bool

    @classmethod
    def of(
        cls,
        grid: NoiseGrid,
        trajectory: np.ndarray,
        left: int,
        active: int,
        steps: np.ndarray,
        final: float,
        device: torch.device,
    ) -> "_Step":
        here, there = trajectory[:active, left], trajectory[:active, max(0, left - 1)]
        after = grid.alphas_cumprod[there] if left else np.full(active, final)
        before = np.full(active, np.nan)
        older = int((steps > left + 1).sum())
        if older:
            before[:older] = grid.alphas_cumprod[trajectory[:older, left + 1]]
        if not left:  # first order in the last step of a few, as diffusers has it (lower_order_final)
            before[steps < 15] = np.nan
        timesteps, following = (torch.from_numpy(grid.timesteps[places]).to(device) for places in (here, there))
        return cls(timesteps, following, grid.alphas_cumprod[here], after, before, left == 0)

    def column(self, values: np.ndarray) -> Tensor:
        return _column(values, self.timesteps.device)


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]


def _normal(streams: Sequence[np.random.Generator], like: Tensor) -> Tensor:
    """Standard normal noise (B, c, h, w), row b from stream b."""
    rows = [stream.standard_normal(like.shape[1:], np.float32) for stream in streams]
    return torch.from_numpy(np.stack(rows)).to(like.device)


def _start(references: Tensor, levels: np.ndarray, grid: NoiseGrid, streams: Sequence[np.random.Generator]) -> Tensor:
    """q(x_t | x_0) at each image's own level (Ho et al., arXiv 2006.11239, Eq. 4); pure noise at R = S."""
    alpha = np.where(levels == grid.size, 0.0, grid.alphas_cumprod[levels - 1])
    signal = torch.from_numpy(np.sqrt(alpha)).float()[:, None, None, None].to(references.device)
    noise = torch.from_numpy(np.sqrt(1 - alpha)).float()[:, None, None, None].to(references.device)
    return signal * references + noise * _normal(streams, references)


def _predict_x0(
    denoiser: Denoiser, x: Tensor, timesteps: Tensor, now: np.ndarray, conditions: Tensor, config: SampleConfig
) -> Tensor:
    """The clean images that the network sees in x (A, c, h, w) at abar `now` (A,)."""
    scale = config.guidance_scale

    def guided(x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        both = denoiser.predict(
            torch.cat([x, x]),
            torch.cat([timesteps, timesteps]),
            torch.cat([conditions, torch.full_like(conditions, -1)]),
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)  # arXiv 2207.12598, Eq. 6, in w + 1

    predict = denoiser.predict if scale == 1 else guided
    output = in_calls(predict, x, timesteps, conditions, size=config.deterministic)
    signal, noise = _column(np.sqrt(now), x.device), _column(np.sqrt(1 - now), x.device)
    x0 = to_x0(denoiser.prediction_type, output, x, signal, noise)
    if not denoiser.clip:
        return x0
    # An infinite output must not become a saturated pixel, which would count as finite.
    return x0.clamp(-denoiser.clip, denoiser.clip).masked_fill(x0.isinf(), torch.nan)


def _ddpm(x: Tensor, x0: Tensor, here: _Step, streams: Sequence[np.random.Generator]) -> Tensor:
    """Ancestral step with the posterior's variance (arXiv 2006.11239, Eq. 7), betas of the respaced grid."""
    now, after = here.now, here.after
    beta = 1 - now / after
    mean = (
        here.column(np.sqrt(after) * beta / (1 - now)) * x0
        + here.column(np.sqrt(1 - beta) * (1 - after) / (1 - now)) * x
    )
    return mean + here.column(np.sqrt(beta * (1 - after) / (1 - now))) * _normal(streams, x)


def _ddim(x: Tensor, x0: Tensor, here: _Step) -> Tensor:
    """DDIM with eta = 0 (arXiv 2010.02502, Eq. 12), which is Euler's method. The noise is that of the clipped x0.

    Euler steps y = x / sqrt(abar) by the noise over signal sigma (arXiv 2206.00364, Eq. 3): y' = y + (sigma' - sigma)
    (y - x0) / sigma = x0 + sigma' eps, since (y - x0) / sigma is eps. Times sqrt(abar') this is Eq. 12.
    """
    noise = (x - here.column(np.sqrt(here.now)) * x0) / here.column(np.sqrt(1 - here.now))
    return here.column(np.sqrt(here.after)) * x0 + here.column(np.sqrt(1 - here.after)) * noise


def _heun(x: Tensor, x0: Tensor, here: _Step, clean: Callable[[Tensor, Tensor, np.ndarray], Tensor]) -> Tensor:
    """Heun's method (arXiv 2206.00364, Alg. 1): Euler's step, and half of what the slope at its end differs.

    In y = x / sqrt(abar) the slopes are eps and eps2 = eps + (x0 - x02) / sigma', so the correction
    (sigma' - sigma) (eps2 - eps) / 2 is (sigma / sigma' - 1) (x02 - x0) / 2. To abar 1, where sigma' is 0, the step
    stays Euler's, and from pure noise too: a cosine schedule ends at sigma 20,000, zero terminal SNR at infinity, and
    sigma / sigma' would drown the image (Stable Diffusion ends at 15, Karras et al. start at 80).
    """
    end = _ddim(x, x0, here)
    if here.last:
        return end
    second = clean(end, here.following, here.after)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt((1 - here.now) * here.after / (here.now * (1 - here.after)))
        half = np.sqrt(here.after) * (ratio - 1) / 2
    half[(here.now < 1e-4) | (here.after == 1)] = 0
    return end + here.column(half) * (second - x0)


def _dpm_2m(x: Tensor, x0: Tensor, previous_x0: Tensor, here: _Step) -> Tensor:
    """DPM-Solver++(2M), data prediction (arXiv 2211.01095, Alg. 2); first order for images that enter here."""
    with np.errstate(divide="ignore", invalid="ignore"):  # zero terminal SNR gives -inf, only where an image enters
        before, now, after = (0.5 * np.log(a / (1 - a)) for a in (here.before, here.now, here.after))
        half_step_back = (after - now) / (2 * (now - before))  # 1 / (2 r)
    # NaN: there is no earlier step. inf: two timesteps with one abar, or abar 1 next. All of these take first order.
    second_order = np.nan_to_num(half_step_back, posinf=0)
    direction = x0 + here.column(second_order) * (x0 - previous_x0)
    decay = here.column(np.sqrt((1 - here.after) / (1 - here.now)))
    return decay * x - here.column(np.sqrt(here.after) * np.expm1(now - after)) * direction


def _lcm(x: Tensor, x0: Tensor, here: _Step, streams: Sequence[np.random.Generator], scaling: float) -> Tensor:
    """Multistep consistency sampling (arXiv 2310.04378, Alg. 3): to x0, then fresh noise for the next step.

    A consistency model's x0 is c_skip x + c_out x0 (Eq. 8 there), with its scaled timestep and sigma_data = 0.5.
    """
    if scaling:
        scaled = here.timesteps.double().cpu().numpy() * scaling
        x0 = here.column(0.25 / (scaled**2 + 0.25)) * x + here.column(scaled / np.sqrt(scaled**2 + 0.25)) * x0
    if here.last:
        return x0
    return here.column(np.sqrt(here.after)) * x0 + here.column(np.sqrt(1 - here.after)) * _normal(streams, x)
