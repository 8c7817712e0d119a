"""A Stable Diffusion folder, checked as a whole before anything is loaded."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import torch

from latebloom.data.store import digest_file, read_json
from latebloom.synth.generators.diffusers_folder import load_part
from latebloom.synth.sampling.denoiser import PredictionType

__all__ = ["Checkpoint", "check_schedule"]

# What a folder must hold: the class that `model_index.json` names for a part, and the part's config.
_PARTS = {
    "unet": ("UNet2DConditionModel", "config.json"),
    "vae": ("AutoencoderKL", "config.json"),
    "text_encoder": ("CLIPTextModel", "config.json"),
    "tokenizer": ("CLIPTokenizer", "tokenizer_config.json"),
    "scheduler": ("", "scheduler_config.json"),  # any: only its betas and prediction type are read
}
_SDXL_PARTS = _PARTS | {
    "text_encoder_2": ("CLIPTextModelWithProjection", "config.json"),
    "tokenizer_2": ("CLIPTokenizer", "tokenizer_config.json"),
}
# Other parts that a folder may hold; they are not used. Any further part (a ControlNet, a prior) is refused.
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
# UNet settings that mean an input besides latents, timestep and prompt.
_OTHER_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
# File names of each part's weights.
_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder of the text-to-image family: Stable Diffusion 1.x, 2.x, SDXL, LCM, Turbo.

    Attributes:
        configs: of the UNet, VAE, text encoders, tokenizers and scheduler, as they stand in their files.
        weights: safetensors files of each part that has weights, all its shards.
        variants: of each part that has weights, "fp16" where only such files are there, else None.
        sdxl: whether there are two text encoders, pooled text and sizes.
        zeros_for_none: whether "none" is zeros where there is no negative prompt, not the embedding of "" (SDXL).
    """

    folder: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, list[Path]]
    variants: dict[str, str | None]
    sdxl: bool
    zeros_for_none: bool

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Read and check everything but the weights themselves.

        Raises:
            ValueError: no such folder, another kind of model, something missing, pickled weights.
        """
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} has no model_index.json; give a folder as diffusers' save_pretrained writes it")
        index = read_json(folder / "model_index.json")
        if index.get("requires_aesthetics_score"):
            raise ValueError(f"{folder} is the SDXL refiner, which makes no images of its own; give the base model")
        found = {part: value[1] for part, value in index.items() if isinstance(value, list) and value[1]}
        sdxl = "text_encoder_2" in found
        parts = _SDXL_PARTS if sdxl else _PARTS
        for part, (kind, _) in parts.items():
            if part not in found or found[part].removesuffix("Fast") != (kind or found[part]):
                raise ValueError(
                    f"{folder} is a {index.get('_class_name')} with {found.get(part, 'nothing')} for its {part}, "
                    f"expected {kind or 'one'}, as Stable Diffusion 1.x, 2.x and SDXL have; set generate.kind to "
                    "pipeline"
                )
        if extra := sorted(found.keys() - parts.keys() - _UNUSED):
            raise ValueError(f"{folder} needs its {', '.join(extra)}, too; give a plain text-to-image model")
        configs = {}
        for part, (_, name) in parts.items():
            if not (folder / part / name).is_file():
                raise ValueError(f"{folder} has no {part}/{name}; copy or save the whole diffusers folder")
            configs[part] = read_json(folder / part / name)
        _check_inputs(folder, configs, sdxl)
        located = {part: _weights(folder, part) for part in parts if part in _STEMS}
        for part in parts:
            if part.startswith("tokenizer"):
                _vocabulary(folder, part)
        return cls(
            folder,
            configs,
            {part: files for part, (files, _) in located.items()},
            {part: variant for part, (_, variant) in located.items()},
            sdxl,
            zeros_for_none=sdxl and index.get("force_zeros_for_empty_prompt", True),
        )

    def contents(self) -> dict[str, Any]:
        """Everything that images depend on, as JSON for a digest; reads every weight file.

        The folder's path and the versions of the libraries are left out.
        """
        tokenizers = [part for part in self.configs if part.startswith("tokenizer")]
        return {
            "weights": {part: [digest_file(file) for file in files] for part, files in self.weights.items()},
            "configs": {
                part: {key: v for key, v in config.items() if key[0] != "_" and key != "transformers_version"}
                for part, config in self.configs.items()
                if part not in tokenizers
            },
            "words": {part: [digest_file(file) for file in _vocabulary(self.folder, part)] for part in tokenizers},
            "padding": {
                part: [self.configs[part].get(key) for key in ("pad_token", "model_max_length")] for part in tokenizers
            },
            "zeros_for_none": self.zeros_for_none,
        }

    def load(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        """As `load_part`."""
        return load_part(kind, self.folder, part, dtype, self.variants[part])


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


def _check_inputs(folder: Path, configs: dict[str, dict[str, Any]], sdxl: bool) -> None:
    """Raise ValueError where the UNet takes more than latents, a timestep and a prompt, or predicts something else."""
    unet = configs["unet"]
    latent = configs["vae"].get("latent_channels", 4)
    channels = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels != (latent, latent):
        raise ValueError(
            f"{folder} has a UNet from {channels[0]} to {channels[1]} channels, expected {latent}, those of its "
            "latents; it may be for inpainting, editing or upscaling: give a plain text-to-image model"
        )
    others = [name for name in _OTHER_INPUTS if unet.get(name) is not None]
    if unet.get("addition_embed_type") != ("text_time" if sdxl else None):
        others.append("addition_embed_type")
    if others:
        raise ValueError(
            f"{folder} has a UNet that takes more than a prompt ({', '.join(others)}); give a plain text-to-image model"
        )
    check_schedule(folder, configs["scheduler"])


def _weights(folder: Path, part: str) -> tuple[list[Path], str | None]:
    """The safetensors files of a part and their variant; full precision is preferred to fp16."""
    for variant, mark in ((None, ""), ("fp16", ".fp16")):
        index = folder / part / f"{_STEMS[part]}.safetensors.index{mark}.json"
        names = [f"{_STEMS[part]}{mark}.safetensors"]
        if index.is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
        files = [folder / part / name for name in names]
        if all(file.is_file() for file in files):
            return files, variant
    raise ValueError(
        f"{folder} has no {part}/{_STEMS[part]}.safetensors or not all its shards; pickled weights (.bin) are refused: "
        "convert them with diffusers' save_pretrained"
    )


def _vocabulary(folder: Path, part: str) -> list[Path]:
    """The files with a tokenizer's words: one in transformers' newer layout, which is preferred, two in the older."""
    for names in (["tokenizer.json"], ["vocab.json", "merges.txt"]):
        files = [folder / part / name for name in names]
        if all(file.is_file() for file in files):
            return files
    raise ValueError(f"{folder} has no {part}/vocab.json and merges.txt; copy or save the whole diffusers folder")
