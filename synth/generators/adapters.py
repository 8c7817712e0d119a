"""What is added to a text-to-image checkpoint: LoRAs of all kinds, and textual inversions."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latebloom.data.store import as_path, kept_file
from latebloom.synth.generators.adapter_layers import add_layers, layers_of, places_of
from latebloom.synth.generators.adapter_origin import base_of_width, made_for, read_header

__all__ = [
    "Lora",
    "TextualInversion",
    "add_textual_inversion",
    "find_lora",
    "find_textual_inversion",
    "merge_loras",
]

Lora = tuple[Path, float]  # safetensors file, scale
TextualInversion = tuple[Path, str]  # safetensors file, the word it stands for
# The first of a layer's two matrices, in peft's names and in the older ones that diffusers still takes.
_LORA_LAYER = re.compile(r"lora_(embedding_)?A\b|lora(_linear_layer)?\.down\b")
_LORA_PARTS = ("unet", "text_encoder", "text_encoder_2")
# An embedding for SDXL has a tensor for each text encoder.
_SDXL_INVERSION = {"clip_l": "", "clip_g": "_2"}


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


def find_textual_inversion(path: str, widths: Sequence[int]) -> TextualInversion:
    """The file of an embedding and its word: the tensor's name, or the file's name if the tensor has none of its own.

    Args:
        path: safetensors file, or a folder with one; path or URL, as in `find_lora`.
        widths: of the text encoders, one or SDXL's two.

    Raises:
        ValueError: no such file, a pickle, several embeddings or another width.
    """
    file = _file(path, "learned_embeds.safetensors")
    shapes, metadata = read_header(file)
    what, names = made_for(shapes, metadata), list(_SDXL_INVERSION) if len(widths) > 1 else list(shapes)
    fits = shapes.keys() == set(names) and [shapes[name][-1] for name in names] == list(widths)
    if not fits or what != "a textual inversion":
        if what == "a textual inversion":
            what += " for SDXL" if "clip_g" in shapes else f" for {base_of_width(next(iter(shapes.values()))[-1])}"
        wanted = "SDXL" if len(widths) > 1 else base_of_width(widths[0])
        raise ValueError(f"{file} is {what}, expected a textual inversion for {wanted}; give one of that kind")
    return file, file.stem if names[0] in ("emb_params", *_SDXL_INVERSION) else names[0]


def add_textual_inversion(pipeline: Any, inversion: TextualInversion) -> None:
    """Add the word of an embedding to the tokenizers and text encoders of a diffusers pipeline."""
    from safetensors.torch import load_file

    file, word = inversion
    # transformers draws rows for new words, before diffusers fills them, from torch's global stream, which must not
    # change.
    with torch.random.fork_rng(devices=[]):
        for name, tensor in load_file(file).items():
            suffix = _SDXL_INVERSION.get(name, "")
            encoder, tokenizer = getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}")
            pipeline.load_textual_inversion({word: tensor}, word, text_encoder=encoder, tokenizer=tokenizer)


def merge_loras(pipeline: Any, loras: Sequence[Lora], unet_config: Any = None) -> None:
    """Add LoRAs to the weights of those parts that a diffusers pipeline has loaded, one file after the other.

    A file adds its scale times its change to each weight: LoRA, LoCon, LoHa, LoKr, DoRA. What `adapter_layers` does not
    know, such as names of other trainers and peft's own settings, is left to diffusers and peft.

    Args:
        unet_config: of the UNet, where the pipeline has it not loaded.

    Raises:
        ValueError: the pipeline takes none; a file that is no LoRA, or does not fit the model, wholly or in part.
    """
    for file, scale in loras:
        if not hasattr(pipeline, "load_lora_weights"):
            raise ValueError(f"{type(pipeline).__name__} takes no LoRA; leave generate.loras empty")
        if unet_config is None and pipeline.components.get("unet") is not None:
            unet_config = pipeline.unet.config
        shapes, metadata = read_header(file)
        try:
            if not made_for(shapes, {}).startswith("a LoRA"):
                raise ValueError("it holds no layers of one")
            _merge(pipeline, file, scale, unet_config, metadata)
        except (ValueError, KeyError, RuntimeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())
            reason = reason if len(reason) <= 90 else f"{reason[:87]}..."
            raise ValueError(
                f"LoRA {file} does not fit this model ({reason}): the file is {made_for(shapes, metadata)}, this "
                f"model is {_model(pipeline, unet_config)}; give a LoRA for this one"
            ) from error


def _model(pipeline: Any, unet_config: Any) -> str:
    """What a pipeline's model is, in the words of `adapter_origin`."""
    if "unet" in pipeline.components and unet_config is not None:
        return "SDXL" if "text_encoder_2" in pipeline.components else base_of_width(unet_config["cross_attention_dim"])
    return re.sub(r"(Img2Img)?Pipeline$", "", type(pipeline).__name__)


def _merge(pipeline: Any, file: Path, scale: float, unet_config: Any, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import load_file

    layers = None if "lora_adapter_metadata" in metadata else layers_of(load_file(file))  # peft's alphas are in there
    if layers is not None:
        places = places_of(layers, pipeline, unet_config)
        absent = layers.keys() - places.keys()
        if not absent:
            if scale:  # at 0 a DoRA would still change magnitudes
                add_layers(layers, places, scale)
            return
        # Names of the authors of Flux and others, which diffusers knows for plain LoRAs.
        plain = all(roles.keys() <= {"lora_down", "lora_up", "alpha"} for roles in layers.values())
        if "unet" in pipeline.components or not plain:
            raise ValueError(f"the model has no place for {len(absent)} of its {len(layers)} layers")
    _merge_by_library(pipeline, file, scale, unet_config)


def _merge_by_library(pipeline: Any, file: Path, scale: float, unet_config: Any) -> None:
    """Load, fuse and unload by diffusers and peft."""
    how: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    # peft draws weights, before it fills them, from torch's global stream, which must not change.
    with torch.random.fork_rng(devices=[]):
        if hasattr(pipeline, "load_lora_into_unet"):
            parts = _load_into_parts(pipeline, file, unet_config, how)
            if not parts:
                return
            pipeline.fuse_lora(parts, lora_scale=scale)
        else:
            pipeline.load_lora_weights(str(file), **how)
            state = pipeline.lora_state_dict(str(file), **how)
            state = state[0] if isinstance(state, tuple) else state  # some pipelines return alphas, too
            _check_all_placed(state, [part for part in pipeline.components.values() if isinstance(part, nn.Module)])
            pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def _load_into_parts(pipeline: Any, file: Path, unet_config: Any, how: dict[str, Any]) -> list[str]:
    """Load a LoRA of Stable Diffusion into the UNet and text encoders that are there; which of them it changes."""
    # Files for SDXL in Stability's names number the UNet's blocks differently: diffusers needs its config for them.
    hint = {"unet_config": unet_config} if "text_encoder_2" in pipeline.components else {}
    state, alphas, metadata = pipeline.lora_state_dict(str(file), return_lora_metadata=True, **how, **hint)
    if unknown := sorted({key.split(".")[0] for key in state} - pipeline.components.keys()):
        raise ValueError(f"it is for a {unknown[0]}, too")
    parts = [part for part in _LORA_PARTS if getattr(pipeline, part, None) is not None]
    parts = [part for part in parts if any(key.startswith(f"{part}.") for key in state)]
    for part in parts:
        network = getattr(pipeline, part)
        if part != "unet" and any(key.startswith(part) and "magnitude" in key for key in state):
            raise ValueError("diffusers reads no DoRA of text encoders")
        if part == "unet":
            pipeline.load_lora_into_unet(state, alphas, network, metadata=metadata)
        else:
            pipeline.load_lora_into_text_encoder(state, alphas, network, part, metadata=metadata)
        _check_all_placed([key for key in state if key.startswith(f"{part}.")], [network])
    return parts


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
