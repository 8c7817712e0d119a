"""Tiny checkpoints of real model families, as diffusers saves them: a tenth of a second to build, 1 MB on disk."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = [
    "save_tiny_lcm",
    "save_tiny_lora",
    "save_tiny_sd",
    "save_tiny_sdxl",
    "save_tiny_textual_inversion",
    "save_tiny_tokenizer",
]

# Words that the tokenizer has a token for; all others are spelt out, a token a letter.
_WORDS = ("a", "photo", "of", "top", "middle", "bottom", "the", "digit")
_MAX_TOKENS = 16  # CLIP's own limit is 77


def save_tiny_sd(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0, **scheduler: Any) -> Path:
    """Stable Diffusion 1.x in small: 16x16 pixels, 8x8 latents of 4 channels, one CLIP text encoder of width 32.

    Args:
        scheduler: changes of the scheduler's config, such as rescale_betas_zero_snr.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = save_tiny_tokenizer(folder / "tokenizer")
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(cross_attention_dim=32),
            scheduler=DDIMScheduler(**_SCHEDULE | {"prediction_type": prediction_type} | scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_lcm(folder: Path, *, seed: int = 0) -> Path:
    """A latent consistency model in small: as `save_tiny_sd`, its UNet takes the guidance scale as an embedding."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = save_tiny_tokenizer(folder / "tokenizer")
        pipeline = LatentConsistencyModelPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(cross_attention_dim=32, time_cond_proj_dim=32),
            scheduler=LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_sdxl(folder: Path, *, force_upcast: bool = True, width: int = 32, seed: int = 0) -> Path:
    """SDXL in small: two text encoders, of which the second, of width 32, also pools, and six size numbers.

    Args:
        width: of the first text encoder.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = save_tiny_tokenizer(folder / "tokenizer")
        tokenizer_2 = save_tiny_tokenizer(folder / "tokenizer_2", pad_token="!")
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(force_upcast=force_upcast),
            text_encoder=_text_encoder(tokenizer, width=width),
            text_encoder_2=_text_encoder(tokenizer_2, pooled=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=_unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                cross_attention_dim=width + 32,
            ),
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_lora(folder: Path, base: Path, *, seed: int = 1) -> Path:
    """A LoRA of rank 2 on the attention of the UNet and of every text encoder of `base`, in diffusers' layout."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    layers = {}
    kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    generator = torch.Generator().manual_seed(seed)
    for part, kind in kinds.items():
        if (base / part).is_dir():
            model = kind.from_pretrained(base, subfolder=part)
            layers[f"{part}_lora_layers"] = _lora_layers(model, generator)
    StableDiffusionXLPipeline.save_lora_weights(folder, **layers)
    return folder / "pytorch_lora_weights.safetensors"


def save_tiny_textual_inversion(file: Path, token: str = "<blob>", *, vectors: int = 1, seed: int = 2) -> Path:
    """An embedding of width 32 for a new token, in diffusers' layout."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({token: torch.randn(vectors, 32, generator=torch.Generator().manual_seed(seed))}, file)
    return file


def save_tiny_tokenizer(folder: Path, *, pad_token: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer of at most 16 tokens that knows letters and a few words."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    merges = []
    for word in _WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            if (pair := f"{pieces[0]} {pieces[1]}") not in merges:
                merges.append(pair)
            pieces[:2] = [pieces[0] + pieces[1]]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = {"model_max_length": _MAX_TOKENS, "pad_token": pad_token, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


# As Stable Diffusion 1.x and 2.x have it.
_SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _unet(**changes: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**settings | changes)


def _vae(**changes: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "sample_size": 16,
        "force_upcast": False,
    }
    return AutoencoderKL(**settings | changes)


def _text_encoder(tokenizer: Any, *, pooled: bool = False, width: int = 32) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        projection_dim=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=_MAX_TOKENS,
        initializer_factor=4.0,  # with 1, all prompts would look alike
    )
    return (CLIPTextModelWithProjection if pooled else CLIPTextModel)(config)


def _lora_layers(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    layers = {}
    for name, module in model.named_modules():
        if name.endswith(("to_q", "to_v", "to_out.0", "q_proj", "v_proj", "out_proj")):
            assert isinstance(module, nn.Linear)
            layers[f"{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator) / 4
            layers[f"{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator) / 4
    return layers
