"""A diffusers folder as one safetensors file in the original (LDM) layout, as model sites have it.

The names are those of diffusers' scripts/convert_diffusers_to_original_*.py, for networks of any depth.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["ldm_tensors", "original_flux", "original_sd3", "save_network_alone", "save_sd3_file", "save_single_file"]

State = Mapping[str, Tensor]

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}


_SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "transformer_blocks.": "joint_blocks.",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_SINGLE = {
    "single_transformer_blocks.": "single_blocks.",
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
_FLUX_DOUBLE = {
    "transformer_blocks.": "double_blocks.",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}


def save_network_alone(folder: Path, file: Path, *, prefix: str = "model.diffusion_model.") -> Path:
    """The UNet or transformer of a folder as one file: of Stable Diffusion and SD3 in the original layout.

    Args:
        prefix: of all names.
    """
    (weights,) = [*folder.glob("unet/*.safetensors"), *folder.glob("transformer/*.safetensors")]
    config = json.loads((weights.parent / "config.json").read_text())
    state: State = load_file(weights)
    if config["_class_name"] == "UNet2DConditionModel":
        state = _unet(state, config)
    elif config["_class_name"] == "SD3Transformer2DModel":
        state = original_sd3(state)
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in state.items()}, file)
    return file


def save_sd3_file(folder: Path, file: Path) -> Path:
    """A folder of Stable Diffusion 3, with T5 or without, as one file: CLIP-L's projection is left out of it."""
    parts = {path.parent.name: load_file(path) for path in folder.glob("*/*.safetensors")}
    config = json.loads((folder / "vae" / "config.json").read_text())
    found = {f"model.diffusion_model.{name}": t for name, t in original_sd3(parts["transformer"]).items()}
    found |= {f"first_stage_model.{name}": t for name, t in _vae(parts["vae"], config).items()}
    for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
        found |= {f"text_encoders.{name}.transformer.{key}": t for key, t in parts.get(part, {}).items()}
    found.pop("text_encoders.clip_l.transformer.text_projection.weight")
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, file)
    return file


def original_sd3(state: State) -> dict[str, Tensor]:
    """SD3's transformer, without norms of queries and keys, under the names of its authors."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    found = {}
    for name, tensor in state.items():
        if name.startswith("norm_out.") or name.startswith(f"transformer_blocks.{last}.norm1_context."):
            tensor = _swapped(tensor)
        if match := re.fullmatch(r"(.+)\.attn\.(to_q|add_q_proj)\.(weight|bias)", name):
            three = torch.cat([state[name.replace("_q", f"_{one}")] for one in "qkv"])
            block = "x_block" if match[2] == "to_q" else "context_block"
            found[f"{_begun(match[1], _SD3)}.{block}.attn.qkv.{match[3]}"] = three
        elif not re.search(r"attn\.(to_|add_)[kv]", name):
            found[_begun(name, _SD3)] = tensor
    return found


def original_flux(state: State) -> dict[str, Tensor]:
    """Flux's transformer under the names of its authors; diffusers reads it at the width of 3072 alone."""
    found = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.+)\.attn\.(to_q|add_q_proj)\.(weight|bias)", name)
        single = name.startswith("single_")
        if match and single:
            four = [state[name.replace("_q", f"_{one}")] for one in "qkv"] + [state[f"{match[1]}.proj_mlp.{match[3]}"]]
            found[f"{_begun(match[1], _FLUX_SINGLE)}.linear1.{match[3]}"] = torch.cat(four)
        elif match:
            three = torch.cat([state[name.replace("_q", f"_{one}")] for one in "qkv"])
            block = "img" if match[2] == "to_q" else "txt"
            found[f"{_begun(match[1], _FLUX_DOUBLE)}.{block}_attn.qkv.{match[3]}"] = three
        elif single and "proj_mlp" not in name and not re.search(r"attn\.to_[kv]", name):
            found[_begun(name, _FLUX_SINGLE)] = tensor
        elif name.startswith("transformer_") and not re.search(r"attn\.(to_|add_)[kv]", name):
            found[_begun(name, _FLUX_DOUBLE)] = tensor
        elif not single and not name.startswith("transformer_"):
            new = name.replace("proj_out", "final_layer.linear")
            found[_begun(new, _FLUX)] = _swapped(tensor) if name.startswith("norm_out.") else tensor
    return found


def _begun(name: str, names: Mapping[str, str]) -> str:
    """A name of which whole parts, and what comes before a number, are renamed."""
    for old, new in names.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(old)}(?=\.|$|\d)", new, name)
    return name


def _swapped(tensor: Tensor) -> Tensor:
    """Shift and scale, which diffusers has the other way round."""
    return torch.cat(tensor.chunk(2)[::-1])


def save_single_file(folder: Path, file: Path, *, open_clip: bool = False) -> Path:
    """A folder of Stable Diffusion 1.x, of 2.x (`open_clip`) or of SDXL as one file."""
    parts = {path.parent.name: load_file(path) for path in folder.glob("*/*.safetensors")}
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in parts}
    tensors = ldm_tensors(parts, configs, open_clip=open_clip)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def ldm_tensors(parts: Mapping[str, State], configs: Mapping[str, Any], *, open_clip: bool) -> dict[str, Tensor]:
    """The networks of a model under their names in one file.

    Args:
        parts: the tensors of unet, vae, text_encoder and, of SDXL, text_encoder_2.
        open_clip: whether a single text encoder is OpenCLIP's (2.x).
    """
    sdxl = "text_encoder_2" in parts
    found = {f"model.diffusion_model.{name}": t for name, t in _unet(parts["unet"], configs["unet"]).items()}
    found |= {f"first_stage_model.{name}": t for name, t in _vae(parts["vae"], configs["vae"]).items()}
    text = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in parts["text_encoder"].items()}
    if sdxl:
        found |= {f"conditioner.embedders.0.transformer.{name}": t for name, t in text.items()}
        found |= {f"conditioner.embedders.1.model.{name}": t for name, t in _open(parts["text_encoder_2"]).items()}
    elif open_clip:
        found |= {f"cond_stage_model.model.{name}": t for name, t in _open(text).items()}
    else:
        found |= {f"cond_stage_model.transformer.{name}": t for name, t in text.items()}
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def _unet(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    layers = config["layers_per_block"]
    attends = {block: "Attn" in kind for block, kind in enumerate(config["up_block_types"])}
    found = {}
    for name, tensor in state.items():
        place, _, rest = name.partition("blocks.")
        if place in ("down_", "up_"):
            block, kind, layer, rest = rest.split(".", 3)
            number = int(block) * (layers + 1) + int(layer)
            blocks = "output_blocks." if place == "up_" else "input_blocks."
            if kind == "resnets":
                new = f"{number + (place == 'down_')}.0.{_renamed(rest, _RESNET)}"
            elif kind == "attentions":
                new = f"{number + (place == 'down_')}.1.{rest}"
            elif kind == "downsamplers":
                new = f"{(int(block) + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
            else:
                new = f"{int(block) * (layers + 1) + layers}.{1 + attends[int(block)]}.{rest}"
            found[blocks + new] = tensor
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
            resnet = match[1] == "resnets"
            rest = _renamed(match[3], _RESNET) if resnet else match[3]
            found[f"middle_block.{2 * int(match[2]) if resnet else 1}.{rest}"] = tensor
        else:
            part, _, kind = name.rpartition(".")
            found[f"{_UNET[part]}.{kind}"] = tensor
    return found


def _vae(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    last = len(config["up_block_types"]) - 1
    found = {}
    for name, tensor in state.items():
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attentions" in new:
            new = _renamed(new.replace("mid_block.attentions.0", "mid.attn_1"), _VAE_ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor  # a convolution there
        found[new] = tensor
    return found


def _open(state: State) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        plain = name.removeprefix("text_model.")
        if plain == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", plain):
            three = [state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(three)
        elif not re.search(r"self_attn\.[kv]_proj", plain):
            found[_renamed(plain, _OPEN_CLIP)] = tensor
    return found
