"""The interface every generator has, and how a name becomes one."""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Denoiser", "PredictionType", "generator_folder", "load_denoiser", "to_x0"]

PredictionType = Literal["epsilon", "v_prediction", "sample"]
_SHIPPED = Path(__file__).parent / "generators"


class Denoiser(Protocol):
    """A class-conditional diffusion model as the denoising loop sees it.

    Attributes:
        name: for people.
        digest: SHA-256 of its weights and settings; part of every image's provenance.
        device: where `predict` works.
        alphas_cumprod: float64 (T,), its training schedule.
        prediction_type: what `predict` returns.
        clip: whether x0 lives in [-1, 1] (pixels) or not (latents).
        trained_on: SHA-256 of the images it was trained on, as `LabeledImages.sha256`; empty where it does not say.
        trained_on_words: the same for people; may be empty.
        unconditional: whether `predict` understands a label of -1 as "no label", which guidance needs.
    """

    name: str
    digest: str
    device: torch.device
    alphas_cumprod: np.ndarray
    prediction_type: PredictionType
    clip: bool
    unconditional: bool
    trained_on: frozenset[str]
    trained_on_words: str

    def check(self, image_shape: tuple[int, int, int], class_names: tuple[str, ...]) -> None:
        """Raise ValueError where it cannot make images (H, W, C) of these classes."""
        ...

    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, C) to x0, float32 (B, c, h, w) on `device`; pixels 0..255 become -1..1."""
        ...

    def decode(self, x0: Tensor, image_shape: tuple[int, int, int]) -> np.ndarray:
        """x0 back to uint8 (B, H, W, C). Values that are not finite become 0."""
        ...

    def predict(self, x: Tensor, timestep: int, labels: Tensor) -> Tensor:
        """The network at noisy x (B, c, h, w), one training timestep, labels int64 (B,): float32 (B, c, h, w)."""
        ...


def to_x0(kind: PredictionType, output: Tensor, x: Tensor, alpha_cumprod: float) -> Tensor:
    """The clean image a network's output stands for, at x = sqrt(abar) x0 + sqrt(1 - abar) eps."""
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if kind == "epsilon":
        return (x - noise * output) / signal
    if kind == "v_prediction":  # v = sqrt(abar) eps - sqrt(1 - abar) x0 (arXiv 2202.00512, App. D)
        return signal * x - noise * output
    return output


def generator_folder(name_or_path: str) -> Path:
    """The folder of a generator given as the name of a shipped one or as a path.

    Raises:
        ValueError: neither; the message lists the shipped ones.
    """
    for folder in (_SHIPPED / name_or_path, Path(name_or_path).expanduser()):
        if (folder / "model_index.json").is_file():
            return folder
    shipped = ", ".join(sorted(p.name for p in _SHIPPED.iterdir())) if _SHIPPED.is_dir() else "none"
    raise ValueError(
        f"no generator at {name_or_path!r}: expected a diffusers folder (with model_index.json) or one of those "
        f"shipped ({shipped}); `slowlane fit-generator` makes one from your images"
    )


def load_denoiser(name_or_path: str, device: torch.device) -> Denoiser:
    """Load a generator by the name of a shipped one or the path of a diffusers folder.

    Raises:
        ValueError: there is none, or it is of a kind that is not understood; the message says what was found.
    """
    from synth.pixel import PixelDenoiser

    return PixelDenoiser.load(generator_folder(name_or_path), device)
