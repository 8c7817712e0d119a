"""A Stable Diffusion folder, checked as a whole before anything is loaded."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from latebloom.data.store import digest_file
from latebloom.synth.generators.diffusers_folder import load_part
from latebloom.synth.generators.folder import Weights, network_weights, parts_of, read_config, read_index
from latebloom.synth.generators.schedule import check_schedule

__all__ = ["Checkpoint"]

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


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder of the text-to-image family: Stable Diffusion 1.x, 2.x, SDXL, LCM, Turbo.

    Attributes:
        configs: of the UNet, VAE, text encoders, tokenizers and scheduler, as they stand in their files.
        weights: of each part that has them.
        sdxl: whether there are two text encoders, pooled text and sizes.
        zeros_for_none: whether "none" is zeros where there is no negative prompt, not the embedding of "" (SDXL).
    """

    folder: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, Weights]
    sdxl: bool
    zeros_for_none: bool

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Read and check everything but the weights themselves.

        Raises:
            ValueError: no such folder, another kind of model, something missing, pickled weights.
        """
        index = read_index(folder)
        if index.get("requires_aesthetics_score"):
            raise ValueError(f"{folder} is the SDXL refiner, which makes no images of its own; give the base model")
        found = {part: name for part, (_, name) in parts_of(folder).items()}
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
            configs[part] = read_config(folder / part / name)
        _check_inputs(folder, configs, sdxl)
        weights = {}
        for part in parts:
            if part.startswith("tokenizer"):
                _vocabulary(folder, part)
            elif part != "scheduler":
                weights[part] = network_weights(folder, part)
        return cls(
            folder,
            configs,
            weights,
            sdxl,
            zeros_for_none=sdxl and index.get("force_zeros_for_empty_prompt", True),
        )

    def contents(self) -> dict[str, Any]:
        """Everything that images depend on, as JSON for a digest; reads every weight file.

        The folder's path and the versions of the libraries are left out.
        """
        tokenizers = [part for part in self.configs if part.startswith("tokenizer")]
        return {
            "weights": {part: [digest_file(file) for file in found.files] for part, found in self.weights.items()},
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
        return load_part(kind, self.folder, part, dtype)


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


def _vocabulary(folder: Path, part: str) -> list[Path]:
    """The files with a tokenizer's words: one in transformers' newer layout, which is preferred, two in the older."""
    for names in (["tokenizer.json"], ["vocab.json", "merges.txt"]):
        files = [folder / part / name for name in names]
        if all(file.is_file() for file in files):
            return files
    raise ValueError(f"{folder} has no {part}/vocab.json and merges.txt; copy or save the whole diffusers folder")
