"""A `Denoiser` driven by our own loop, as a `Generator`."""

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from latebloom.synth.config import SampleConfig
from latebloom.synth.sampling.calls import in_calls, on_one_thread
from latebloom.synth.sampling.denoiser import Denoiser, Made, Wanted, to_pixels
from latebloom.synth.sampling.levels import Level, NoiseGrid
from latebloom.synth.sampling.sample import check_grid, check_guidance, check_level, denoise

__all__ = ["LoopGenerator", "mean_seconds"]


class LoopGenerator:
    """The pixel and latent generators: a model, sampled by `sample.denoise`.

    Raises:
        ValueError: the model cannot be sampled as `config` asks.
    """

    def __init__(self, denoiser: Denoiser, config: SampleConfig) -> None:
        embedded = denoiser.embedded_guidance
        if embedded:  # an input of the network, which then needs no second call
            config = config.model_copy(update={"guidance_scale": 1.0})
        check_grid(denoiser, config)
        self.denoiser = denoiser
        self.config = config
        self.deterministic = config.deterministic
        self.grid = NoiseGrid.of(denoiser.alphas_cumprod, config.grid, config.match)
        self.name = denoiser.name
        self.digest = denoiser.digest
        self.licence = denoiser.licence
        self.device = denoiser.device
        self.trained_on = denoiser.trained_on
        self.trained_on_words = denoiser.trained_on_words
        self.size = denoiser.size
        self.multiple = denoiser.multiple
        self.largest = denoiser.largest
        self.channels = denoiser.channels
        self.calls_a_step = config.calls_a_step
        self.sampler: str = config.sampler
        self.guidance_scale = embedded or config.guidance_scale

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise ValueError where it cannot make images of these classes, or not with this guidance."""
        problems = []
        for check in (
            functools.partial(check_guidance, self.denoiser, self.config),
            functools.partial(self.denoiser.check, class_names),
        ):
            try:
                check()
            except ValueError as error:
                problems.append(str(error))
        if problems:  # a person should meet both at once
            raise ValueError("; and ".join(problems))

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...] | None:
        """The labels that the network is given for these classes; None where it goes by the prompt."""
        return self.denoiser.labels_of(class_names)

    def level(self, steps: int) -> Level:
        """What level `steps` of the grid is on this model's schedule; ValueError where it cannot start from it."""
        check_level(self.denoiser, self.grid, steps)
        return self.grid.level(steps, self.config.calls(steps))

    @on_one_thread
    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed the prompts; called with all distinct ones before any `make`."""
        self.denoiser.prepare(prompts)

    @on_one_thread
    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, c) to x0, float32 (n, c', h', w')."""

        def encode(rows: Tensor) -> Tensor:
            return self.denoiser.encode(rows.numpy())

        return in_calls(encode, torch.from_numpy(np.ascontiguousarray(images)), size=self.deterministic)

    @on_one_thread
    @torch.inference_mode()
    def make(self, references: Tensor, wanted: Wanted) -> Made:
        """One variant of each reference, in one ragged batch."""
        conditions = self.denoiser.conditions(wanted.labels, wanted.prompts)
        x0 = denoise(self.denoiser, references, conditions, wanted.levels, wanted.seeds, self.config)
        finite = torch.isfinite(x0).flatten(1).all(1).cpu().numpy()
        made = to_pixels(in_calls(self.denoiser.decode, x0, size=self.deterministic))
        return Made(made.images, made.finite & finite, finite)

    @on_one_thread
    def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
        """Times the network alone for about a second, after one call to warm up."""
        conditions = self.denoiser.conditions(wanted.labels, wanted.prompts)
        size = self.deterministic * self.calls_a_step
        if self.calls_a_step == 2:
            references = torch.cat([references, references])
            conditions = torch.cat([conditions, torch.full_like(conditions, -1)])
        timesteps = torch.full((len(references),), int(self.grid.timesteps[self.grid.size // 2]), device=self.device)
        network = functools.partial(in_calls, self.denoiser.predict, references, timesteps, conditions, size=size)
        return mean_seconds(network) / len(references)


def mean_seconds(call: Callable[[], Tensor]) -> float:
    """Mean seconds of 3 to 20 calls, in about a second, after one call to warm up."""
    call().cpu()  # .cpu() waits for a GPU
    calls, begin = 0, time.perf_counter()
    while calls < 3 or (time.perf_counter() - begin < 1.0 and calls < 20):
        call().cpu()
        calls += 1
    return (time.perf_counter() - begin) / calls
