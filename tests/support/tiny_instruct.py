"""A tiny InstructPix2Pix checkpoint, saved as diffusers saves the real one."""

from pathlib import Path

import torch
from tiny_checkpoints import save_tiny_sd

__all__ = ["save_tiny_instruct"]


def save_tiny_instruct(folder: Path, *, seed: int = 0) -> Path:
    """`save_tiny_sd` (two pixels a latent) with a UNet that sees the latents of the reference beside the noise."""
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    base = StableDiffusionPipeline.from_pretrained(save_tiny_sd(folder, seed=seed), safety_checker=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(base.unet.config, in_channels=8)
    StableDiffusionInstructPix2PixPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="linspace"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
