"""From the name of a generator in a config to the generator."""

from pathlib import Path
from typing import Any

import torch

from latebloom.synth.config import DiffuseMixConfig, GenerateConfig, Kind, SampleConfig
from latebloom.synth.generators.diffusemix import DiffuseMixGenerator
from latebloom.synth.generators.diffusers_folder import quiet
from latebloom.synth.generators.find import generator_folder, generator_name, kind_of
from latebloom.synth.generators.folder import read_config
from latebloom.synth.generators.latent import USUAL_GUIDANCE, LatentDenoiser
from latebloom.synth.generators.pipeline import PipelineGenerator
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.generators.transformer import TransformerDenoiser
from latebloom.synth.sampling.denoiser import Generator
from latebloom.synth.sampling.loop import LoopGenerator

__all__ = ["dtype_of", "load_generator"]

# The kinds that use a setting.
_TAKES: dict[str, tuple[Kind, ...]] = {
    "loras": ("latent", "transformer", "pipeline"),
    "textual_inversions": ("latent",),
    "classes": ("pixel", "transformer"),
    "compile": ("pixel", "latent", "transformer", "pipeline"),
    "fuse_qkv": ("latent", "transformer", "pipeline"),
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_generator(
    config: GenerateConfig,
    sample: SampleConfig = SampleConfig(),
    diffusemix: DiffuseMixConfig = DiffuseMixConfig(),
    negative_prompt: str = "",
    device: torch.device | None = None,
) -> Generator:
    """Load the generator that a config names.

    Args:
        device: None is the CPU.

    Raises:
        ValueError: no such generator, one of an unknown kind, or settings that do not fit it.
    """
    device = device or torch.device("cpu")
    folder = generator_folder(config)
    kind = kind_of(config)
    for name, takes in _TAKES.items():
        if getattr(config, name) and kind not in takes:
            raise ValueError(f"a {kind} generator takes no {name}; leave generate.{name} at its default")
    if negative_prompt:
        _check_negative_prompt(kind, folder, sample.guidance_scale)
    with quiet():
        generator = _load(kind, folder, config, sample, diffusemix, negative_prompt, device)
    generator.name = generator_name(config, folder)
    return generator


def _check_negative_prompt(kind: Kind, folder: Path, guidance_scale: float) -> None:
    """Raise ValueError where a negative prompt would do nothing, as far as that shows before the model is read."""
    why = {"pixel": "it goes by classes", "diffusemix": "it edits by diffusemix.prompts"}.get(kind)
    off = guidance_scale == 1 or (kind == "pipeline" and guidance_scale < 1)
    if why is None and off and not _embeds_guidance(folder):  # where it does, the model says so
        why = f"guidance is off (sample.guidance_scale {guidance_scale:g})"
    if why:
        raise ValueError(f"a {kind} generator cannot use a negative prompt: {why}; leave prompts.negative empty")


def _embeds_guidance(folder: Path) -> bool:
    """Whether the network takes the guidance scale as an input (LCM, Flux): a scale of 1 is not off there."""
    files = [folder / part / "config.json" for part in ("unet", "transformer")]
    configs = [read_config(file) for file in files if file.is_file()]
    return any(config.get("guidance_embeds") or config.get("time_cond_proj_dim") for config in configs)


def _load(
    kind: Kind,
    folder: Path,
    config: GenerateConfig,
    sample: SampleConfig,
    diffusemix: DiffuseMixConfig,
    negative_prompt: str,
    device: torch.device,
) -> Generator:
    dtype = dtype_of(config.dtype, device)
    if kind == "pixel":
        return LoopGenerator(PixelDenoiser.load(folder, device, dtype, config.compile, config.classes), sample)
    if kind == "diffusemix":
        return DiffuseMixGenerator.load(
            folder, device, dtype=dtype, config=diffusemix, grid=sample.grid, deterministic=sample.deterministic
        )
    options: dict[str, Any] = {
        "dtype": dtype,
        "negative_prompt": negative_prompt,
        "loras": config.loras,
        "fuse_qkv": config.fuse_qkv,
        "compile": config.compile,
    }
    if kind == "pipeline":
        return PipelineGenerator.load(
            folder,
            device,
            grid=sample.grid,
            steps=sample.steps or sample.grid,
            match=sample.match,
            guidance_scale=sample.guidance_scale,
            deterministic=sample.deterministic,
            **options,
        )
    if kind == "transformer":
        return LoopGenerator(TransformerDenoiser.load(folder, device, classes=config.classes, **options), sample)
    denoiser = LatentDenoiser.load(
        folder,
        device,
        textual_inversions=config.textual_inversions,
        embedded_guidance=USUAL_GUIDANCE if sample.guidance_scale == 1 else sample.guidance_scale,
        **options,
    )
    return LoopGenerator(denoiser, sample)


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a config's `generate.dtype` means on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return _DTYPES[name]
