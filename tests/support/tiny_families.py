"""Tiny checkpoints of further model families that diffusers' own pipelines run, saved as diffusers saves them."""

from pathlib import Path

import tiny_texts
import torch
from tiny_pipelines import autoencoder, movq

__all__ = [
    "save_tiny_chroma",
    "save_tiny_kandinsky3",
    "save_tiny_kolors",
    "save_tiny_qwen_image",
    "save_tiny_sana_sprint",
    "save_tiny_z_image",
]


def save_tiny_kolors(folder: Path, *, seed: int = 0) -> Path:
    """Kolors in small: SDXL's network with ChatGLM of width 32 instead of CLIP."""
    from diffusers import EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = KolorsPipeline(
            vae=autoencoder(latent_channels=4, use_quant_conv=True, use_post_quant_conv=True),
            text_encoder=tiny_texts.chatglm(),
            tokenizer=tiny_texts.save_chatglm_tokenizer(folder / "tokenizer"),
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=2,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                encoder_hid_dim=32,
                encoder_hid_dim_type="text_proj",
                cross_attention_dim=32,
                norm_num_groups=8,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.014, num_train_timesteps=1100
            ),
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_kandinsky3(folder: Path, *, seed: int = 0) -> Path:
    """Kandinsky 3 in small: 16x16 pixels, latents of 4 channels, T5 of width 32."""
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = Kandinsky3Pipeline(
            tokenizer=tiny_texts.save_t5_tokenizer(folder / "tokenizer"),
            text_encoder=tiny_texts.t5_encoder(),
            unet=Kandinsky3UNet(
                in_channels=4,
                time_embedding_dim=4,
                groups=2,
                attention_head_dim=4,
                layers_per_block=2,
                block_out_channels=(16, 32),
                cross_attention_dim=4,
                encoder_hid_dim=32,
            ),
            scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True),
            movq=movq(),
        )
    pipeline.save_pretrained(folder)
    tiny_texts.save_t5_tokenizer(folder / "tokenizer")
    return folder


def save_tiny_chroma(folder: Path, *, seed: int = 0) -> Path:
    """Chroma in small: Flux without CLIP, with guidance of its own; T5 of width 32."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = ChromaPipeline(
            transformer=ChromaTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=[4, 4, 8],
                approximator_hidden_dim=32,
                approximator_layers=1,
                approximator_num_channels=16,
            ),
            vae=autoencoder(latent_channels=4, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=tiny_texts.t5_encoder(),
            tokenizer=tiny_texts.save_t5_tokenizer(folder / "tokenizer"),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    pipeline.save_pretrained(folder)
    tiny_texts.save_t5_tokenizer(folder / "tokenizer")
    return folder


def save_tiny_qwen_image(folder: Path, *, seed: int = 0) -> Path:
    """Qwen-Image in small: its video autoencoder (4 pixels a latent), Qwen2.5-VL of width 16."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 260,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=16,
                out_channels=4,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=3,
                joint_attention_dim=16,
                axes_dims_rope=(8, 4, 4),
            ),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 2, 4],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ),
            text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
            tokenizer=tiny_texts.qwen_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_z_image(folder: Path, *, seed: int = 0) -> Path:
    """Z-Image in small: 16x16 pixels, latents of 16 channels, Qwen3 of width 16."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    text = Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=260,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = ZImagePipeline(
            transformer=ZImageTransformer2DModel(
                in_channels=16,
                dim=32,
                n_layers=1,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                axes_dims=[8, 4, 4],
                axes_lens=[1024, 32, 32],
            ),
            vae=autoencoder(latent_channels=16, shift_factor=0.12, scaling_factor=0.36),
            text_encoder=Qwen3Model(text),
            tokenizer=tiny_texts.qwen_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_sana_sprint(folder: Path, *, seed: int = 0) -> Path:
    """Sana-Sprint in small: 16x16 pixels, a deep autoencoder of 2 pixels a latent, Gemma 2 of width 8."""
    from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
    from transformers import Gemma2Config, Gemma2Model

    text = Gemma2Config(
        head_dim=16,
        hidden_size=8,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=1024,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = SanaSprintPipeline(
            transformer=SanaTransformer2DModel(
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_attention_heads=2,
                attention_head_dim=4,
                num_cross_attention_heads=2,
                cross_attention_head_dim=4,
                cross_attention_dim=8,
                caption_channels=8,
                sample_size=8,
                qk_norm="rms_norm_across_heads",
                guidance_embeds=True,
            ),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=("ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                encoder_qkv_multiscales=((), (5,)),
                decoder_qkv_multiscales=((), (5,)),
                encoder_layers_per_block=(1, 1),
                decoder_layers_per_block=(1, 1),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                decoder_norm_types="rms_norm",
                decoder_act_fns="silu",
                scaling_factor=0.41407,
            ),
            text_encoder=Gemma2Model(text),
            tokenizer=tiny_texts.gemma_tokenizer(),
            scheduler=SCMScheduler(),
        )
    pipeline.save_pretrained(folder)
    return folder
