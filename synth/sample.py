"""The denoising loop: ragged batches, classifier-free guidance, three samplers."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pydantic
import torch
from pydantic import Field
from torch import Tensor

from synth.denoiser import Denoiser, to_x0
from synth.levels import NoiseGrid

__all__ = ["SampleConfig", "Sampler", "check_guidance", "denoise"]

Sampler = Literal["ddpm", "ddim", "dpm++2m"]


class SampleConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How references are noised and denoised. The defaults are the paper's (2505.21574, section 5)."""

    sampler: Sampler = Field(
        "ddpm", description="ddpm: ancestral, fresh noise at each step; ddim, dpm++2m: deterministic after the start"
    )
    grid: int = Field(100, ge=1, le=1000, description="S: steps of the noise grid that levels count in, 1 to 1000")
    guidance_scale: float = Field(
        3.0, ge=0, le=50, description="Classifier-free guidance, 0 to 50; 1 switches it off and halves the work"
    )

    @property
    def calls_a_step(self) -> int:
        """Network evaluations of one image in one step: guidance makes an unconditional one too."""
        return 1 if self.guidance_scale == 1 else 2


def denoise(
    denoiser: Denoiser,
    references: Tensor,
    labels: np.ndarray,
    levels: np.ndarray,
    seeds: Sequence[int],
    config: SampleConfig,
    on_call: Callable[[int], None] | None = None,
) -> Tensor:
    """Noise each reference to its own level and denoise it, all in one batch.

    The loop walks the grid downwards; an image joins when its level is reached, so images of different levels share
    every call and level R costs exactly R calls. Each image has a random stream of its own on the CPU: batch mates,
    their order and the device have no part in its noise.

    Args:
        references: x0, float32 (B, c, h, w), from `denoiser.encode`.
        labels: int64 (B,).
        levels: int64 (B,), R of each image, 1..grid.
        seeds: one an image, 0 <= seed < 2**63.
        on_call: told the number of images in each call of the network, after it.

    Returns:
        x0, float32 (B, c, h, w). Not finite where the network's output was not.

    Raises:
        ValueError: a level that the grid does not have, or guidance on a model without an unconditional branch.
    """
    grid = NoiseGrid.of(denoiser.alphas_cumprod, config.grid)
    for level in np.unique(levels):
        grid.check(int(level))
    check_guidance(denoiser, config)
    # Deepest first: those that have joined are then always a prefix.
    order = np.argsort(-levels, kind="stable")
    levels = levels[order]
    # Philox, because torch's CPU generator keeps only the low 32 bits of a seed: 100,000 images would share noise.
    streams = [np.random.Generator(np.random.Philox(int(seeds[i]))) for i in order]
    target = torch.from_numpy(labels[order]).to(denoiser.device)
    x = _start(references[torch.from_numpy(order).to(references.device)], levels, grid, streams)
    previous_x0 = torch.zeros_like(x)
    for i in range(int(levels[0]) - 1, -1, -1):
        active = int((levels > i).sum())
        entering = torch.from_numpy(levels[:active] == i + 1).to(x.device)[:, None, None, None]  # (A, 1, 1, 1)
        x0 = _predict_x0(denoiser, x[:active], grid, i, target[:active], config.guidance_scale)
        if config.sampler == "ddpm":
            x[:active] = _ddpm(x[:active], x0, grid, i, streams[:active])
        elif config.sampler == "ddim":
            x[:active] = _ddim(x[:active], x0, grid, i)
        else:
            x[:active] = _dpm_2m(x[:active], x0, previous_x0[:active], entering, grid, i)
            previous_x0[:active] = x0
        if on_call:
            on_call(active)
    result = torch.empty_like(x)
    result[torch.from_numpy(order).to(x.device)] = x
    return result


def check_guidance(denoiser: Denoiser, config: SampleConfig) -> None:
    """Raise ValueError where guidance is asked of a generator that knows no "no label"."""
    if config.guidance_scale != 1 and not denoiser.unconditional:
        raise ValueError(
            f"generator {denoiser.name} was trained without an unconditional branch: set the guidance scale to 1"
        )


def _normal(streams: Sequence[np.random.Generator], like: Tensor) -> Tensor:
    """Standard normal noise (B, c, h, w), row b from stream b."""
    rows = [stream.standard_normal(like.shape[1:], np.float32) for stream in streams]
    return torch.from_numpy(np.stack(rows)).to(like.device)


def _start(references: Tensor, levels: np.ndarray, grid: NoiseGrid, streams: Sequence[np.random.Generator]) -> Tensor:
    """q(x_t | x_0) at each image's own level (Ho et al., arXiv 2006.11239, Eq. 4); pure noise at R = S."""
    alpha = grid.alphas_cumprod[levels - 1]
    signal = torch.from_numpy(np.where(levels == grid.size, 0.0, np.sqrt(alpha))).float()
    noise = torch.from_numpy(np.where(levels == grid.size, 1.0, np.sqrt(1 - alpha))).float()
    scale = (len(levels), 1, 1, 1)
    device = references.device
    return signal.view(scale).to(device) * references + noise.view(scale).to(device) * _normal(streams, references)


def _predict_x0(denoiser: Denoiser, x: Tensor, grid: NoiseGrid, i: int, labels: Tensor, scale: float) -> Tensor:
    timestep = int(grid.timesteps[i])
    if scale == 1:
        output = denoiser.predict(x, timestep, labels)
    else:
        both = denoiser.predict(torch.cat([x, x]), timestep, torch.cat([labels, torch.full_like(labels, -1)]))
        conditional, unconditional = both.chunk(2)
        output = unconditional + scale * (conditional - unconditional)  # arXiv 2207.12598, Eq. 6, in w + 1
    x0 = to_x0(denoiser.prediction_type, output, x, float(grid.alphas_cumprod[i]))
    if not denoiser.clip:
        return x0
    # An infinite output must stay seen as one, not become a saturated pixel.
    return x0.clamp(-1, 1).masked_fill(x0.isinf(), math.nan)


def _ddpm(x: Tensor, x0: Tensor, grid: NoiseGrid, i: int, streams: Sequence[np.random.Generator]) -> Tensor:
    """Ancestral step with the posterior's variance (arXiv 2006.11239, Eq. 7), betas of the respaced grid."""
    if i == 0:
        return x0
    now, after = float(grid.alphas_cumprod[i]), float(grid.alphas_cumprod[i - 1])
    beta = 1 - now / after
    mean = after**0.5 * beta / (1 - now) * x0 + (1 - beta) ** 0.5 * (1 - after) / (1 - now) * x
    return mean + (beta * (1 - after) / (1 - now)) ** 0.5 * _normal(streams, x)


def _ddim(x: Tensor, x0: Tensor, grid: NoiseGrid, i: int) -> Tensor:
    """DDIM with eta = 0 (arXiv 2010.02502, Eq. 12); the noise is that which leads from the clipped x0 to x."""
    if i == 0:
        return x0
    now, after = float(grid.alphas_cumprod[i]), float(grid.alphas_cumprod[i - 1])
    noise = (x - now**0.5 * x0) / (1 - now) ** 0.5
    return after**0.5 * x0 + (1 - after) ** 0.5 * noise


def _dpm_2m(x: Tensor, x0: Tensor, previous_x0: Tensor, entering: Tensor, grid: NoiseGrid, i: int) -> Tensor:
    """DPM-Solver++(2M), data prediction (arXiv 2211.01095, Alg. 2); first order for images that enter here."""
    if i == 0:
        return x0
    now, after = float(grid.alphas_cumprod[i]), float(grid.alphas_cumprod[i - 1])
    h = _half_log_snr(after) - _half_log_snr(now)
    direction = x0
    if i + 1 < grid.size:
        r = (_half_log_snr(now) - _half_log_snr(float(grid.alphas_cumprod[i + 1]))) / h
        direction = torch.where(entering, x0, x0 + (x0 - previous_x0) / (2 * r))
    return ((1 - after) / (1 - now)) ** 0.5 * x - after**0.5 * math.expm1(-h) * direction


def _half_log_snr(alpha_cumprod: float) -> float:
    if alpha_cumprod == 0:  # the last step of a schedule with zero terminal SNR (arXiv 2305.08891)
        return -math.inf
    return 0.5 * math.log(alpha_cumprod / (1 - alpha_cumprod))
