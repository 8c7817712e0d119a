"""What our loop takes from the scheduler config that a checkpoint comes with."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np

from latebloom.synth.config import Sampler
from latebloom.synth.sampling.denoiser import PredictionType

__all__ = ["Schedule"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A training schedule of betas, whichever sampler the checkpoint names: the model was trained with these.

    Attributes:
        alphas_cumprod: float64 (T,).
        prediction_type: what the network predicts.
        clip: to what x0 of pixels is clipped; 0: to nothing. Of latents it means nothing.
        ends_at_first: see `Denoiser`.
    """

    alphas_cumprod: np.ndarray
    prediction_type: PredictionType
    clip: float
    ends_at_first: frozenset[Sampler]

    @classmethod
    def of(cls, folder: Path, settings: dict[str, Any]) -> "Schedule":
        """The schedule of a scheduler config that passed `check_schedule`.

        Raises:
            ValueError: betas that diffusers does not know.
        """
        from diffusers import CogVideoXDDIMScheduler, DDPMScheduler

        kind: Any = CogVideoXDDIMScheduler if "snr_shift_scale" in settings else DDPMScheduler  # CogView shifts betas
        try:
            scheduler = kind.from_config(settings)
        except NotImplementedError as error:
            raise ValueError(
                f"{folder} has the beta_schedule {settings['beta_schedule']!r}, which diffusers' DDPMScheduler does "
                "not know; give another model"
            ) from error
        config = scheduler.config
        ends: set[Sampler] = set()
        if not settings.get("set_alpha_to_one", True):
            ends.add("ddim")
        if settings.get("final_sigmas_type") == "sigma_min":
            ends |= {"euler", "dpm++2m"}
        return cls(
            scheduler.alphas_cumprod.double().numpy(),
            cast(PredictionType, config["prediction_type"]),
            float(config["clip_sample_range"]) if config["clip_sample"] else 0.0,
            frozenset(ends),
        )
