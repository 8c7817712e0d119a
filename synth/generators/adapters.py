"""What is added to a text-to-image checkpoint: LoRAs and textual inversions, read by diffusers' own loaders."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latebloom.data.store import as_path, kept_file

__all__ = ["Lora", "TextualInversion", "find_lora", "find_textual_inversion", "fuse_loras", "merge_loras"]

Lora = tuple[Path, float]  # safetensors file, scale
TextualInversion = tuple[Path, str]  # safetensors file, the word it stands for
_LORA_PARTS = ("unet", "text_encoder", "text_encoder_2")
# The first of a layer's two matrices, in peft's names and in the older ones that diffusers still takes.
_LORA_LAYER = re.compile(r"lora_(embedding_)?A\b|lora(_linear_layer)?\.down\b")


def find_lora(text: str) -> Lora:
    """The file and scale that "path" or "path@scale" names; a folder means the one safetensors file in it.

    A file at a URL is copied to a local one, which is kept.

    Raises:
        ValueError: no such file, a pickle, or a scale that is not finite.
    """
    path, _, scale = text.rpartition("@")
    try:
        number = float(scale)
    except ValueError:  # no scale; the path itself may hold an @
        path, number = text, 1.0
    if not math.isfinite(number):
        raise ValueError(f"LoRA {text} has a scale that is not finite, expected a number; write it as path@0.8")
    return _file(path, "pytorch_lora_weights.safetensors"), number


def find_textual_inversion(path: str, width: int) -> TextualInversion:
    """The file of an embedding and its word: the tensor's name, or the file's name if Automatic1111 wrote it.

    Args:
        path: safetensors file, or a folder with one; path or URL, as in `find_lora`.
        width: of the text encoder.

    Raises:
        ValueError: no such file, a pickle, several embeddings or another width.
    """
    from safetensors import safe_open

    file = _file(path, "learned_embeds.safetensors")
    with safe_open(file, "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    if [shape[-1] for shape in shapes.values()] != [width]:
        raise ValueError(
            f"{file} holds {shapes}, expected one tensor of width {width}; give a textual inversion for this model"
        )
    (name,) = shapes
    return file, file.stem if name == "emb_params" else name


def merge_loras(pipeline: Any, loras: Sequence[Lora], unet_config: Any) -> None:
    """Add each LoRA to the weights of those parts that a diffusers pipeline has; sampling is then as fast as without.

    Raises:
        ValueError: a file that is no LoRA, or does not fit the model, wholly or in part.
    """
    # Kohya's files for SDXL number the UNet's blocks differently: diffusers needs its config to convert them.
    hint = {"unet_config": unet_config} if "text_encoder_2" in pipeline.components else {}
    for file, scale in loras:
        state, alphas, metadata = pipeline.lora_state_dict(
            str(file), use_safetensors=True, local_files_only=True, return_lora_metadata=True, **hint
        )
        if not all("lora" in key and key.startswith(_LORA_PARTS) for key in state):
            raise ValueError(f"{file} is no LoRA for Stable Diffusion's UNet and text encoders; check which file it is")
        if unknown := sorted({key.split(".")[0] for key in state} - pipeline.components.keys()):
            raise ValueError(
                f"LoRA {file} does not fit this model (it is for a {unknown[0]}, too); give one trained on its kind"
            )
        parts = [part for part in _LORA_PARTS if getattr(pipeline, part, None) is not None]
        parts = [part for part in parts if any(key.startswith(f"{part}.") for key in state)]
        try:
            # peft draws weights, before it fills them, from torch's global stream, which must not change.
            with torch.random.fork_rng(devices=[]):
                for part in parts:
                    if part == "unet":
                        pipeline.load_lora_into_unet(state, alphas, pipeline.unet, metadata=metadata)
                    else:
                        encoder = getattr(pipeline, part)
                        pipeline.load_lora_into_text_encoder(state, alphas, encoder, part, metadata=metadata)
                    _check_all_placed([key for key in state if key.startswith(f"{part}.")], [getattr(pipeline, part)])
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"LoRA {file} does not fit this model ({reason}); give one trained on its kind") from error
        if parts:
            pipeline.fuse_lora(parts, lora_scale=scale)
            pipeline.unload_lora_weights()


def fuse_loras(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Add LoRA weights to those of a diffusers pipeline, one file after the other.

    Raises:
        ValueError: the pipeline takes none, or a file does not fit it, wholly or in part.
    """
    for file, scale in loras:
        if not hasattr(pipeline, "load_lora_weights"):
            raise ValueError(f"{type(pipeline).__name__} takes no LoRA; leave generate.loras empty")
        hint = {"unet_config": pipeline.unet.config} if {"unet", "text_encoder_2"} <= pipeline.components.keys() else {}
        try:
            with torch.random.fork_rng(devices=[]):  # as in `merge_loras`
                pipeline.load_lora_weights(str(file), use_safetensors=True, local_files_only=True)
            state = pipeline.lora_state_dict(str(file), use_safetensors=True, local_files_only=True, **hint)
            state = state[0] if isinstance(state, tuple) else state  # some pipelines return alphas, too
            _check_all_placed(state, [part for part in pipeline.components.values() if isinstance(part, nn.Module)])
            pipeline.fuse_lora(lora_scale=scale)
        except (ValueError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"LoRA {file} does not fit {type(pipeline).__name__} ({reason}); give one trained on its kind"
            ) from error
        pipeline.unload_lora_weights()


def _check_all_placed(keys: Iterable[str], networks: Sequence[nn.Module]) -> None:
    """Raise ValueError where `networks` got fewer layers than the LoRA has: diffusers skips those that do not fit.

    Layers are counted, not compared by name: each network and each format has its own names.
    """
    given = sum(bool(_LORA_LAYER.search(key)) for key in keys)
    placed = sum(bool(_LORA_LAYER.search(name)) for network in networks for name, _ in network.named_parameters())
    if placed < given:
        raise ValueError(f"the model has no place for {given - placed} of its {given} layers")


def _file(text: str, usual: str) -> Path:
    """The local safetensors file that a path names: the file itself, or the one in the folder."""
    path = as_path(text)
    if path.is_file() and path.suffix == ".safetensors":
        return kept_file(path)
    if (path / usual).is_file():
        return kept_file(path / usual)
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(
            f"{path} is neither a safetensors file nor a folder with just one (it has {len(files)}); name the file "
            "itself; pickles (.bin, .ckpt, .pt) are refused"
        )
    return kept_file(files[0])
