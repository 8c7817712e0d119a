"""The layers of a LoRA file of any kind, and what each adds to a weight.

Names are those of Kohya's trainer, LyCORIS and peft. The loaders of diffusers and peft read no LoHa, LoKr and Tucker
form, drop the magnitudes of a DoRA in Kohya's names or of a text encoder, and lose layers of some text encoders.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Layers", "add_layers", "layers_of", "places_of"]

Layers = dict[str, dict[str, Tensor]]  # layer as the file names it -> tensors by their role
_ROLES = re.compile(
    r"(.+?)\.(alpha|dora_scale|lora_magnitude_vector|lora_(?:up|down|mid|A|B)(?=\.weight)|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|diff(?:_b)?|[wb]_norm)(?:\.weight)?"
)
_OTHER_NAMES = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}
# What the layers of a part are called by before their own names.
_PREFIXES = {
    "unet": ("lora_unet_", "lycoris_", "unet."),
    "transformer": ("lora_transformer_", "lora_unet_", "lycoris_", "transformer.", "diffusion_model."),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder."),
    "text_encoder_2": ("lora_te2_", "text_encoder_2."),
    "text_encoder_3": ("lora_te3_", "text_encoder_3."),
}
_SGM = ("input_blocks", "middle_block", "output_blocks")


def layers_of(tensors: Mapping[str, Tensor]) -> Layers | None:
    """The tensors of a file by layer and role, in Kohya's words; None: some have names that are not known here."""
    layers: Layers = {}
    for key, tensor in tensors.items():
        found = _ROLES.fullmatch(key)
        if not found:
            return None
        layers.setdefault(found[1], {})[_OTHER_NAMES.get(found[2], found[2])] = tensor
    return layers


def places_of(layers: Iterable[str], pipeline: Any, unet_config: Any) -> dict[str, nn.Module | None]:
    """The module of each layer in a diffusers pipeline; None: it is of a part that the pipeline has not loaded.

    Layers without a place are left out.

    Args:
        unet_config: of the UNet, loaded or not; numbers of blocks in Stability's own names follow from it.
    """
    names = list(layers)
    if any(block in name for name in names for block in _SGM):
        ours = dict(zip(names, _from_sgm(names, pipeline, unet_config), strict=True))
    else:
        ours = dict(zip(names, names, strict=True))
    tables = {
        part: {_flat(name): module for name, module in network.named_modules() if name}
        for part, network in pipeline.components.items()
        if part in _PREFIXES and isinstance(network, nn.Module)
    }
    places: dict[str, nn.Module | None] = {}
    for name, own in ours.items():
        for part, prefixes in _PREFIXES.items():
            prefix = next((prefix for prefix in prefixes if own.startswith(prefix)), None)
            if prefix is None or part not in pipeline.components:
                continue
            if part not in tables:
                places[name] = None
            elif (module := tables[part].get(_flat(own.removeprefix(prefix)))) is not None:
                places[name] = module
    return places


def _flat(name: str) -> str:
    """A module's name as Kohya flattens it; transformers has text encoders with and without "text_model"."""
    return name.replace(".", "_").removeprefix("text_model_")


def _from_sgm(names: list[str], pipeline: Any, unet_config: Any) -> list[str]:
    """Kohya's names of SDXL's UNet, which number its blocks as Stability does, by diffusers' own conversion."""
    marked: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        marked |= {f"{name}.lora_{half}.weight": torch.tensor([float(number)]) for half in ("down", "up")}
    converted, _ = pipeline.lora_state_dict(marked, unet_config=unet_config)
    found = list(names)
    for key, mark in converted.items():
        if key.startswith("unet."):
            own = re.sub(r"[._](lora|lora_linear_layer)\.(down|up)\.weight$", "", key).replace(".processor", "")
            found[int(mark)] = re.sub(r"\bto_out$", "to_out.0", own)
    return found


@torch.no_grad()
def add_layers(layers: Layers, places: Mapping[str, nn.Module | None], scale: float) -> None:
    """Add `scale` times each layer to the weight at its place: w + scale d.

    A DoRA (arXiv 2402.09353, Eq. 5), of whichever kind its d is, gives the sum its own magnitudes m instead:
    m (w + scale d) / |w + scale d|, as peft has it.

    Raises:
        ValueError: a layer of another shape than its place.
    """
    for name, roles in layers.items():
        module: Any = places[name]
        if module is None:
            continue
        for role in ("diff_b", "b_norm"):
            if role in roles:
                _add(name, module.bias, roles[role].float(), scale)
        change = _change(roles)
        if change is not None:
            _add(name, module.weight, change, scale)
        if "dora_scale" in roles:
            weight, magnitude = module.weight.float(), roles["dora_scale"].float()
            axis = 0 if magnitude.shape[0] == len(weight) else 1
            norm = weight.norm(dim=[d for d in range(weight.ndim) if d != axis], keepdim=True)
            module.weight.copy_(weight * magnitude.reshape(norm.shape) / norm)


def _add(name: str, weight: Tensor | None, change: Tensor, scale: float) -> None:
    if weight is None or change.numel() != weight.numel() or len(change) != len(weight):
        there = "none" if weight is None else tuple(weight.shape)
        raise ValueError(f"{tuple(change.shape)} for a weight of {there} in {name}")
    weight.copy_(weight.float() + scale * change.reshape(weight.shape))


def _change(roles: Mapping[str, Tensor]) -> Tensor | None:
    """What a layer adds to a weight, float32 (out, in), (out, in times places of the kernel) or as the weight.

    Formulas of LyCORIS (arXiv 2309.14859, section 3): LoHa multiplies two products element by element, LoKr takes
    the Kronecker product of two matrices, of which each may be a product.
    """
    t = {role: tensor.float() for role, tensor in roles.items()}
    if "lora_down" in t:
        rank, change = len(t["lora_down"]), _product(t["lora_up"], t["lora_down"], t.get("lora_mid"))
    elif "hada_w1_b" in t:
        rank, change = len(t["hada_w1_b"]), _half(t, "hada_w1", "hada_t1") * _half(t, "hada_w2", "hada_t2")
    elif "lokr_w1" in t or "lokr_w1_a" in t:
        # Two whole matrices have no rank, and no scale but their own.
        rank = next((len(t[role]) for role in ("lokr_w2_b", "lokr_w1_b") if role in t), 0)
        change = torch.kron(_half(t, "lokr_w1"), _half(t, "lokr_w2", "lokr_t2"))
    else:
        return t.get("diff", t.get("w_norm"))
    return change * (float(t["alpha"]) / rank) if rank and "alpha" in t else change


def _half(t: Mapping[str, Tensor], name: str, core: str = "") -> Tensor:
    """One matrix of a LoHa or LoKr, (out, in times places of the kernel): whole or as a product."""
    if name in t:
        return t[name].flatten(1)
    up = t[f"{name}_a"]
    return _product(up.T if core in t else up, t[f"{name}_b"], t.get(core)).flatten(1)


def _product(up: Tensor, down: Tensor, core: Tensor | None) -> Tensor:
    """up (out, r) times down (r, in, ...); with the core (r, r, ...) of a Tucker form between, (out, in, ...)."""
    if core is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("n m ..., o n, m i -> o i ...", core, up.flatten(1), down.flatten(1))
