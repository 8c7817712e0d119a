"""The interfaces: `Generator`, what every generator does, and `Denoiser`, a diffusion model for our own loop."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from latebloom.synth.config import Sampler
from latebloom.synth.sampling.levels import Level

__all__ = ["Denoiser", "Generator", "Made", "PredictionType", "Wanted", "to_pixels", "to_x0"]

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Images to make in one call, all of one work size; n rows.

    Attributes:
        labels: int64 (n,), the generator's own where it has `labels_of` the classes, else those of the data.
        prompts: n texts; a class-conditional model uses the label and ignores them.
        levels: int64 (n,), R of the grid, 1..S.
        seeds: n numbers, 0 <= seed < 2**63; an image's seed decides all of its noise.
    """

    labels: np.ndarray
    prompts: Sequence[str]
    levels: np.ndarray
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Wanted":
        """Some of the rows, in that order."""
        return Wanted(
            self.labels[rows],
            [self.prompts[row] for row in rows],
            self.levels[rows],
            [self.seeds[row] for row in rows],
        )


@dataclasses.dataclass(frozen=True)
class Made:
    """What a generator made of n wanted images.

    Attributes:
        images: uint8 (n, h, w, c) at the work size; values that were not finite are 0.
        finite: bool (n,), whether all values of an image were finite; False also where the generator knows that it
            failed.
        denoised: bool (n,), whether what its decoder was given was finite; None: that is not known. Where it was, and
            the image is not, the decoder is to blame.
    """

    images: np.ndarray
    finite: np.ndarray
    denoised: np.ndarray | None = None


class Generator(Protocol):
    """Anything that turns references into variants of them.

    Pixels cross this interface as uint8 at the work size; synth/sizes.py brings references there and results back.

    Attributes:
        name: for people.
        digest: SHA-256 of weights and settings: with the same `SampleConfig`, equal digests make equal images.
        licence: of the weights, as their card says; empty where the card says nothing.
        device: where it works.
        trained_on: SHA-256 of the images it was trained on, as `LabeledImages.sha256`; empty where they are not known.
        trained_on_words: the same in words, for reports; may be empty.
        size: the side in pixels that it was trained at; 0 where that is not known.
        multiple: both sides of an input image are multiples of this.
        largest: neither side is longer than this; 0: the network takes any length.
        channels: 1 or 3, of inputs and outputs.
        calls_a_step: network evaluations of one image in one step; 2 with guidance, 3 for InstructPix2Pix.
        sampler: name of the sampler, kept with every image.
        guidance_scale: likewise.
    """

    name: str
    digest: str
    licence: str
    device: torch.device
    trained_on: frozenset[str]
    trained_on_words: str
    size: int
    multiple: int
    largest: int
    channels: int
    calls_a_step: int
    sampler: str
    guidance_scale: float

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise ValueError where it cannot make images of these classes."""
        ...

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...] | None:
        """By label of these classes, the label that the network is given for it; None where it goes by the prompt.

        An image that was made is used again where this, or the prompt, is what it was: so it must decide what is made
        of a class, and only that.
        """
        ...

    def level(self, steps: int) -> Level:
        """What level `steps` of the configured grid is here; ValueError where it does not exist.

        A model that knows no noise level starts from pure noise at all of them.
        """
        ...

    def prepare(self, prompts: Sequence[str]) -> None:
        """Run the text encoders, once for each prompt, and free them; called with all distinct prompts before `make`.

        May be called again, also with other prompts.
        """
        ...

    def encode(self, images: np.ndarray) -> Tensor:
        """Images uint8 (n, h, w, c) at a work size to what `make` takes, (n, ...) on any device; once a reference."""
        ...

    def make(self, references: Tensor, wanted: Wanted) -> Made:
        """One variant of each reference.

        No image depends on the others of the call, except for rounding; not even so where `sample.deterministic` is
        set.

        Args:
            references: (n, ...), rows of what `encode` gave for images of one work size.
            wanted: n rows.
        """
        ...

    def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
        """Measured seconds of one network evaluation of one image in a batch like this one, after a warm-up."""
        ...


class Denoiser(Protocol):
    """A diffusion model as the denoising loop (sample.py) sees it; loop.py makes a `Generator` of it.

    Attributes:
        name, digest, licence, device, trained_on, trained_on_words, size, multiple, largest, channels: as of
            `Generator`.
        alphas_cumprod: float64 (T,), its training schedule.
        prediction_type: what `predict` returns.
        clip: x0 is clipped to -clip..clip at each step (pixels: 1); 0: it is not (latents).
        ends_at_first: samplers whose last step leads to alphas_cumprod[0], as the checkpoint's scheduler would have it,
            and not to the clean image.
        unconditional: whether `predict` understands a condition of -1 as "none", which guidance needs.
        embedded_guidance: the scale that a model distilled with guidance is given as an input; 0 for all others.
        timestep_scaling: of a consistency model's boundary condition (arXiv 2310.04378, App.); 0 for all others.
    """

    name: str
    digest: str
    licence: str
    device: torch.device
    trained_on: frozenset[str]
    trained_on_words: str
    size: int
    multiple: int
    largest: int
    channels: int
    alphas_cumprod: np.ndarray
    prediction_type: PredictionType
    clip: float
    ends_at_first: frozenset[Sampler]
    unconditional: bool
    embedded_guidance: float
    timestep_scaling: float

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise ValueError where it cannot make images of these classes."""
        ...

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...] | None:
        """As `Generator.labels_of`."""
        ...

    def prepare(self, prompts: Sequence[str]) -> None:
        """As `Generator.prepare`."""
        ...

    def conditions(self, labels: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """int64 (n,) on `device`: what `predict` takes for these labels and prompts; never negative."""
        ...

    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, c) to x0, float32 (n, c', h', w') on `device`."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x0 to pixels, float32 (n, c, h, w), -1 black to 1 white; not finite where x0 or the decoding is not."""
        ...

    def predict(self, x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The network at noisy x (n, c', h', w'), training timesteps int64 (n,), conditions int64 (n,).

        A condition of -1 is "none". Returns float32 (n, c', h', w').
        """
        ...


def to_x0(kind: PredictionType, output: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The clean image that a network predicts at x = signal x0 + noise eps."""
    if kind == "epsilon":
        return (x - noise * output) / signal
    if kind == "v_prediction":  # v = signal eps - noise x0 (arXiv 2202.00512, App. D)
        return signal * x - noise * output
    return output


def to_pixels(x: Tensor) -> Made:
    """float (n, c, h, w), -1 black to 1 white, to rounded uint8 images (n, h, w, c); what is not finite becomes 0."""
    finite = torch.isfinite(x).flatten(1).all(1)
    pixels = ((x.float().nan_to_num(-1, -1, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Made(pixels.permute(0, 2, 3, 1).cpu().numpy(), finite.cpu().numpy())
