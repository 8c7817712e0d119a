"""Noise levels: R of S steps, and what they are on a model's own schedule."""

import dataclasses

import numpy as np

from latebloom.synth.config import Match

__all__ = ["Level", "NoiseGrid", "glide_log_snr"]


@dataclasses.dataclass(frozen=True)
class Level:
    """What level R of S is for one generator. Every image is stored with all of it.

    Attributes:
        steps, grid: R and S.
        calls: denoiser calls, guidance not counted; R unless the sampler was given fewer steps, or makes two in each.
        timestep: where denoising starts, in the model's training timesteps (flow models that a pipeline drives:
            1000 sigma).
        log_snr: log(signal variance / noise variance) there; -inf for pure noise.
        strength: the share of the model's own schedule that lies below the start, 0 to 1, as in diffusers' pipelines.
    """

    steps: int
    grid: int
    calls: int
    timestep: float
    log_snr: float
    strength: float


@dataclasses.dataclass(frozen=True)
class NoiseGrid:
    """`size` training timesteps of a model, ascending, that levels count in.

    Level R of S = `size` means: noise the reference to the R-th of the S timesteps, then denoise it in exactly R
    calls. This is start index R-1 in the only public code for it (Real-Guidance on GLIDE, arXiv 2210.07574).
    R = S starts from pure noise: nothing of the reference but its label is then used.

    Attributes:
        timesteps: int64 (S,), strictly ascending.
        alphas_cumprod: float64 (S,), the signal's share of the variance at each.
        total: T, the training timesteps of the model.
    """

    timesteps: np.ndarray
    alphas_cumprod: np.ndarray
    total: int

    @classmethod
    def of(cls, alphas_cumprod: np.ndarray, size: int, match: Match = "snr") -> "NoiseGrid":
        """The grid of `size` steps over a training schedule float (T,).

        Args:
            match: what makes level R of S the same for every model.
                snr: the noise. Each step is the timestep whose log-SNR is nearest to that of the same step of GLIDE's
                grid: the cosine schedule (arXiv 2102.09672, Eq. 17) of 1,000 timesteps, respaced evenly.
                steps: the place. The model's own timesteps, evenly from the first to the last.
                strength: the share. Step R is the last of the first R / S of the model's own timesteps. There
                diffusers' image-to-image pipelines start at strength R / S (spacing "trailing").

        Raises:
            ValueError: size outside 1..T.
        """
        alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
        total = len(alphas_cumprod)
        if not 1 <= size <= total:
            raise ValueError(
                f"got a grid of {size} steps, expected 1 to {total} (the model's training timesteps); change "
                "sample.grid"
            )
        if match == "steps":
            timesteps = _evenly(total, size)
        elif match == "strength":
            timesteps = np.round(np.arange(1, size + 1) * total / size).astype(np.int64) - 1
        else:
            timesteps = _like_glide(alphas_cumprod, size)
        return cls(timesteps, alphas_cumprod[timesteps], total)

    @property
    def size(self) -> int:
        return len(self.timesteps)

    def path(self, level: int, steps: int) -> np.ndarray:
        """The trajectory from level `level` to the image: the grid index at which each step begins, int64 (steps,).

        With steps = level these are all indices; fewer are spread evenly: round(R (n - j) / n) - 1 for j = 0..n-1.

        Raises:
            ValueError: a level that the grid does not have, or steps outside 1..level.
        """
        self.check(level)
        if not 1 <= steps <= level:
            raise ValueError(f"got {steps} steps, expected 1 to {level} for level {level}; change sample.steps")
        return np.round(level * np.arange(steps, 0, -1) / steps).astype(np.int64) - 1

    def check(self, steps: int) -> None:
        """Raise ValueError where `steps` is no level of this grid."""
        if not 1 <= steps <= self.size:
            raise ValueError(f"level {steps} of {self.size} does not exist: levels go from 1 to {self.size}")

    def level(self, steps: int, calls: int) -> Level:
        """Level `steps` when it is denoised in `calls` calls."""
        self.check(steps)
        start = int(self.timesteps[steps - 1])
        alpha = self.alphas_cumprod[steps - 1]
        log_snr = -np.inf if steps == self.size else float(np.log(alpha / (1 - alpha)))
        return Level(steps, self.size, calls, float(start), log_snr, (start + 1) / self.total)


def _evenly(total: int, size: int) -> np.ndarray:
    """round(i (T - 1) / (S - 1)), as GLIDE respaces."""
    return np.linspace(0, total - 1, size).round().astype(np.int64) if size > 1 else np.array([total - 1])


def glide_log_snr(size: int) -> np.ndarray:
    """log-SNR float64 (S,) of GLIDE's grid of `size` steps, on which levels are defined: 0.01 at step 50 of 100."""
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    alphas_cumprod = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[_evenly(1000, size)]
    return np.asarray(np.log(alphas_cumprod / (1 - alphas_cumprod)))


def _like_glide(alphas_cumprod: np.ndarray, size: int) -> np.ndarray:
    """The timesteps nearest in log-SNR to GLIDE's; where two would be the same timestep, they are moved apart."""
    total = len(alphas_cumprod)
    if size > 1000:
        raise ValueError(
            f"got a grid of {size} steps, expected at most 1000 (GLIDE's) for match snr; change sample.grid or "
            "sample.match"
        )
    with np.errstate(divide="ignore"):  # zero terminal SNR (arXiv 2305.08891)
        log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod))
    # log-SNR falls with the timestep; searchsorted needs rising values.
    right = np.clip(np.searchsorted(-log_snr, -glide_log_snr(size)), 1, total - 1)
    wanted = glide_log_snr(size)
    nearer_left = np.abs(log_snr[right - 1] - wanted) <= np.abs(log_snr[right] - wanted)
    timesteps = right - nearer_left
    timesteps[-1] = total - 1  # level S is pure noise for every model
    step = np.arange(size)
    timesteps = np.maximum.accumulate(timesteps - step) + step  # strictly rising ...
    return np.asarray(np.minimum(timesteps, total - size + step))  # ... and within the schedule
