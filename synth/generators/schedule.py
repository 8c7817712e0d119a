"""What our loop takes from the scheduler config that a checkpoint comes with."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, cast

import numpy as np

from latebloom.synth.config import Sampler
from latebloom.synth.generators.diffusers_folder import check_betas, whole
from latebloom.synth.sampling.denoiser import PredictionType

__all__ = ["Schedule", "check_schedule"]


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
        """The schedule of a folder's scheduler config.

        Raises:
            ValueError: no betas, or some that diffusers does not know or that are not in [0, 1].
        """
        from diffusers import CogVideoXDDIMScheduler, DDPMScheduler

        check_schedule(folder, settings)
        kind: Any = CogVideoXDDIMScheduler if "snr_shift_scale" in settings else DDPMScheduler  # CogView shifts betas
        with whole(folder / "scheduler", "give another model"):
            scheduler = kind.from_config(settings)
            check_betas(scheduler)
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


def check_schedule(folder: Path, scheduler: dict[str, Any]) -> None:
    """Raise ValueError where the config of a folder's scheduler has no betas, or means what our loop does not do."""
    if "beta_schedule" not in scheduler:
        raise ValueError(
            f"{folder} has a {scheduler.get('_class_name')}, expected a schedule of betas; set generate.kind to "
            "pipeline"
        )
    understood = typing.get_args(PredictionType)
    if scheduler.get("prediction_type", "epsilon") not in understood:
        raise ValueError(
            f"{folder} predicts {scheduler['prediction_type']!r}, expected one of {', '.join(understood)}; give "
            "another model"
        )
    if scheduler.get("thresholding"):
        raise ValueError(
            f"{folder} has a scheduler with dynamic thresholding, which our loop does not do; set thresholding to "
            "false in scheduler/scheduler_config.json, to clip images instead"
        )
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"{folder} has continuous timesteps, expected those of a schedule of betas; set generate.kind to pipeline"
        )
