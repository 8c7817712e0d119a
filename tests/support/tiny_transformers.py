"""Tiny checkpoints of the transformers that our own loop drives, saved as diffusers saves them."""

import functools
from pathlib import Path
from typing import Any

import torch
from tiny_pipelines import autoencoder
from tiny_texts import gemma_tokenizer, save_t5_tokenizer, t5_encoder
from torch import nn

__all__ = ["FAMILIES", "save_tiny_transformer"]

_CLASSES = {str(i): f"thing {i}" for i in range(1000)} | {"207": "bottom, lower", "281": "top", "300": "middle"}


def save_tiny_transformer(folder: Path, family: str, *, seed: int = 0) -> Path:
    """A family in small: 8x8 latents of 4 channels, of 16x16 pixels; text encoders of width 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FAMILIES[family](folder)
        for parameter in pipeline.transformer.parameters():
            parameter.data += torch.randn_like(parameter) / 20  # some start at 0, and would hide what they multiply
    pipeline.save_pretrained(folder)
    return folder


def _dit(folder: Path) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    network: dict[str, Any] = {"out_channels": 8, "num_layers": 2}
    pipeline = DiTPipeline(
        DiTTransformer2DModel(**_SMALL | network),
        autoencoder(latent_channels=4),
        DDIMScheduler(clip_sample=False),
    )
    pipeline.register_to_config(id2label=_CLASSES)
    return pipeline


def _pixart(name: str, side: int, folder: Path) -> Any:
    import diffusers

    network: dict[str, Any] = {
        "sample_size": side,
        "out_channels": 8,
        "num_layers": 1,
        "attention_head_dim": 12,
        "cross_attention_dim": 48,
        "caption_channels": 32,
    }
    return getattr(diffusers, f"PixArt{name}Pipeline")(
        tokenizer=save_t5_tokenizer(folder / "tokenizer"),
        text_encoder=t5_encoder(),
        vae=autoencoder(latent_channels=4),
        transformer=diffusers.PixArtTransformer2DModel(**_SMALL | network),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def _sana(folder: Path) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    network: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 32,
        "caption_channels": 32,
        "sample_size": 8,
    }
    coder: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8, 8),
            "layers_per_block": (1, 1),
            "qkv_multiscales": ((), ()),
        }.items()
    }
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=_gemma(),
        vae=AutoencoderDC(latent_channels=4, attention_head_dim=2, scaling_factor=0.5, **coder),
        transformer=SanaTransformer2DModel(**network),
        # As Sana's folders have it.
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    )


def _auraflow(folder: Path) -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    network: dict[str, Any] = {
        "sample_size": 8,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    }
    text = UMT5Config(vocab_size=176, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=2, is_encoder_decoder=False)
    return AuraFlowPipeline(
        tokenizer=save_t5_tokenizer(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel(text),
        vae=autoencoder(latent_channels=4),
        transformer=AuraFlowTransformer2DModel(**network),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def _lumina2(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    network: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (300, 16, 16),
        "cap_feat_dim": 32,
    }
    return Lumina2Pipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=_gemma(),
        vae=autoencoder(latent_channels=4, shift_factor=0.06, scaling_factor=1.5),
        transformer=Lumina2Transformer2DModel(**network),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def _cogview3(folder: Path) -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

    network: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "text_embed_dim": 32,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    }
    return CogView3PlusPipeline(
        tokenizer=save_t5_tokenizer(folder / "tokenizer"),
        text_encoder=t5_encoder(),
        vae=autoencoder(latent_channels=4),
        transformer=CogView3PlusTransformer2DModel(**network),
        scheduler=CogVideoXDDIMScheduler(
            snr_shift_scale=4.0,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            beta_end=0.012,
            clip_sample=False,
        ),
    )


def _hunyuan(folder: Path) -> Any:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return HunyuanDiTPipeline(
        vae=autoencoder(latent_channels=4),
        text_encoder=BertModel(
            BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=37)
        ),
        tokenizer=BertTokenizer(vocab={word: place for place, word in enumerate(words)}),
        transformer=HunyuanDiT2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            hidden_size=32,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
        ),
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear", beta_end=0.03, prediction_type="v_prediction", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(),
        tokenizer_2=save_t5_tokenizer(folder / "tokenizer_2"),
    )


FAMILIES: dict[str, Any] = {
    "dit": _dit,
    # At 128 latents a side, as the model of 1024 pixels, it is told the size of the image.
    "pixart-alpha": functools.partial(_pixart, "Alpha", 128),
    "pixart-sigma": functools.partial(_pixart, "Sigma", 8),
    "sana": _sana,
    "auraflow": _auraflow,
    "lumina2": _lumina2,
    "cogview3": _cogview3,
    "hunyuan": _hunyuan,
}
_SMALL: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "norm_elementwise_affine": False,
}


def _gemma() -> nn.Module:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,  # with 0.02, all prompts would look alike
    )
    return Gemma2Model(config)
