"""Noise levels: R of S steps, their log-SNR and strength."""

import dataclasses

import numpy as np

__all__ = ["NoiseGrid", "paper_levels"]

# Paper 2505.21574, App. F.1 and Table 4: denoising steps of 100 by k. (k counts the real image.)
_PAPER_LEVELS = {2: (50,), 4: (50, 70, 80), 5: (40, 50, 70, 80)}


@dataclasses.dataclass(frozen=True)
class NoiseGrid:
    """`size` of the model's training timesteps, evenly spaced from the first to the last.

    Level R of S = `size` means: noise the reference to the R-th of the S timesteps, then make exactly R denoiser
    calls. That is the start index R-1 of the only public code for it (Real-Guidance on GLIDE, arXiv 2210.07574).
    R = S starts from pure noise: the reference then gives nothing but its label.

    Attributes:
        timesteps: int64 (S,), ascending; round(i * (T - 1) / (S - 1)) as GLIDE respaces.
        alphas_cumprod: float64 (S,), the signal's share of the variance at each.
    """

    timesteps: np.ndarray
    alphas_cumprod: np.ndarray

    @classmethod
    def of(cls, alphas_cumprod: np.ndarray, size: int) -> "NoiseGrid":
        """The grid of `size` steps over a training schedule float (T,).

        Raises:
            ValueError: size outside 1..T.
        """
        total = len(alphas_cumprod)
        if not 1 <= size <= total:
            raise ValueError(f"a grid has 1 to {total} steps (the model's training timesteps), got {size}")
        timesteps = np.linspace(0, total - 1, size).round().astype(np.int64) if size > 1 else np.array([total - 1])
        return cls(timesteps, np.asarray(alphas_cumprod, np.float64)[timesteps])

    @property
    def size(self) -> int:
        return len(self.timesteps)

    def check(self, steps: int) -> None:
        """Raise ValueError where `steps` is no level of this grid."""
        if not 1 <= steps <= self.size:
            raise ValueError(f"level {steps} of {self.size} does not exist: levels go from 1 to {self.size}")

    def log_snr(self, steps: int) -> float:
        """log(signal variance / noise variance) at the start of level `steps`; -inf for pure noise (R = S)."""
        self.check(steps)
        if steps == self.size:
            return -np.inf
        alpha = self.alphas_cumprod[steps - 1]
        return float(np.log(alpha / (1 - alpha)))

    def strength(self, steps: int) -> float:
        """R / S, the `strength` of diffusers' image-to-image pipelines. A name for people, never computed with."""
        self.check(steps)
        return steps / self.size


def paper_levels(k: int, grid: int) -> tuple[int, ...]:
    """The paper's k - 1 levels on a grid of `grid` steps: (40, 50, 70, 80) of 100 for k = 5, (8, 10, 14, 16) of 20.

    Raises:
        ValueError: the paper names none for this k, or they do not fall on this grid.
    """
    if k not in _PAPER_LEVELS:
        raise ValueError(f"the paper gives levels for k = 2, 4 and 5 only; name {k - 1} levels yourself for k = {k}")
    levels = _PAPER_LEVELS[k]
    if any(level * grid % 100 for level in levels):
        raise ValueError(
            f"levels {levels} of 100 do not fall on a grid of {grid} steps (a multiple of 10 does); "
            "name the levels yourself"
        )
    return tuple(level * grid // 100 for level in levels)
