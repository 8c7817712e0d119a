"""Tiny checkpoints of model families that diffusers' own pipelines run, saved as diffusers saves them."""

from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import save_tiny_tokenizer
from tiny_texts import clip_encoder, save_t5_tokenizer, t5_encoder
from torch import nn

__all__ = ["autoencoder", "movq", "save_tiny_flux", "save_tiny_if", "save_tiny_kandinsky22", "save_tiny_sd3"]


def save_tiny_sd3(folder: Path, *, t5: bool = False, width: int = 32, seed: int = 0, **scheduler: Any) -> Path:
    """Stable Diffusion 3 in small: 32x32 pixels, 16x16 latents of 4 channels in patches of 2.

    Args:
        t5: with its third text encoder, which some folders leave out.
        width: of its first text encoder; the second has 32.
        scheduler: changes of the scheduler's config; its shift is 3, as the real one's.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_projection_dim=32,
                joint_attention_dim=64,
                pooled_projection_dim=width + 32,
                out_channels=4,
                pos_embed_max_size=16,
            ),
            vae=autoencoder(latent_channels=4, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=clip_encoder(width=width),
            text_encoder_2=clip_encoder(),
            text_encoder_3=t5_encoder(width=64) if t5 else None,
            tokenizer=save_tiny_tokenizer(folder / "tokenizer"),
            tokenizer_2=save_tiny_tokenizer(folder / "tokenizer_2"),
            tokenizer_3=save_t5_tokenizer(folder / "tokenizer_3") if t5 else None,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_flux(folder: Path, *, guidance_embeds: bool = True, seed: int = 0) -> Path:
    """Flux in small: 16x16 pixels, 8x8 latents of 4 channels packed by four, CLIP and T5 of width 32.

    Of T5's tokenizer the folder has both files, spiece.model and tokenizer.json.

    Args:
        guidance_embeds: as Flux dev; without, as schnell.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=guidance_embeds,
            ),
            vae=autoencoder(latent_channels=4, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=clip_encoder(projection=False),
            tokenizer=save_tiny_tokenizer(folder / "tokenizer"),
            text_encoder_2=t5_encoder(),
            tokenizer_2=save_t5_tokenizer(folder / "tokenizer_2"),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_if(folder: Path, *, seed: int = 0) -> Path:
    """DeepFloyd IF's first stage in small: 16x16 pixels, a UNet that gives a variance too, T5 of width 32."""
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = IFPipeline(
            tokenizer=save_t5_tokenizer(folder / "tokenizer"),
            text_encoder=t5_encoder(),
            unet=UNet2DConditionModel(
                sample_size=16,
                out_channels=6,
                in_channels=3,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                cross_attention_dim=32,
                encoder_hid_dim=32,
                attention_head_dim=8,
                norm_num_groups=8,
                addition_embed_type="text",
                addition_embed_type_num_heads=2,
            ),
            scheduler=DDPMScheduler(
                beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
            ),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    save_t5_tokenizer(folder / "tokenizer")  # as it is published, without a tokenizer.json
    return folder


def save_tiny_kandinsky22(folder: Path, *, seed: int = 0) -> Path:
    """Kandinsky 2.2, prior and decoder together, in small: 16x16 pixels, latents of 4 channels."""
    from diffusers import (
        DDPMScheduler,
        KandinskyV22CombinedPipeline,
        PriorTransformer,
        UnCLIPScheduler,
        UNet2DConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(
        hidden_size=32,
        image_size=16,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        patch_size=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = KandinskyV22CombinedPipeline(
            unet=UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=8,
                addition_embed_type="image",
                down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                block_out_channels=(16, 32),
                layers_per_block=1,
                encoder_hid_dim=32,
                encoder_hid_dim_type="image_proj",
                cross_attention_dim=32,
                attention_head_dim=4,
                resnet_time_scale_shift="scale_shift",
                norm_num_groups=8,
            ),
            scheduler=DDPMScheduler(variance_type="learned_range", clip_sample=False),
            movq=movq(),
            prior_prior=PriorTransformer(
                num_attention_heads=2, attention_head_dim=8, embedding_dim=32, num_layers=1, num_embeddings=16
            ),
            prior_image_encoder=CLIPVisionModelWithProjection(vision),
            prior_text_encoder=clip_encoder(),
            prior_tokenizer=save_tiny_tokenizer(folder / "prior_tokenizer"),
            prior_scheduler=UnCLIPScheduler(
                variance_type="fixed_small_log",
                prediction_type="sample",
                num_train_timesteps=1000,
                clip_sample_range=10.0,
            ),
            prior_image_processor=CLIPImageProcessor(size=16, crop_size=16),
        )
    pipeline.save_pretrained(folder)
    return folder


def autoencoder(**changes: Any) -> nn.Module:
    """Two pixels a latent."""
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(**settings | changes)


def movq() -> nn.Module:
    """Kandinsky's autoencoder, two pixels a latent of 4 channels."""
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32, 32),  # its spatial norm is always of 32 groups
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
