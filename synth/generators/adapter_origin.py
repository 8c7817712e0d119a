"""What a safetensors file of weights is, and which model it was made for: for refusals that say more than "wrong"."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["base_of_width", "made_for", "read_header"]

_Shapes = Mapping[str, Sequence[int]]
# Where trainers write the base model.
_METADATA = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
_ADAPTER = re.compile(r"lora|lokr|hada|dora|\.diff")
# Marks of a base in the names of an adapter's layers, the first that is found.
_BASES = (
    ("Flux", r"double_blocks|single_blocks|single_transformer_blocks"),
    ("Stable Diffusion 3", r"joint_blocks|transformer[._]transformer_blocks.*add_q_proj"),
    ("SDXL", r"lora_te2_|text_encoder_2|add_embedding|label_emb|(input|output)_blocks_\d"),
)
_TEXT_LAYER = r"attn2[._](processor\.)?to_k.*(lora_down|\.down\.|lora_A|hada_w1_b)"
# Other files of weights, and a mark in the names of each.
_OTHERS = (
    ("a whole checkpoint", r"model\.diffusion_model\."),
    ("a ControlNet", r"control_model\.|controlnet_|input_hint_block"),
    ("a VAE", r"(first_stage_model\.)?(encoder|decoder)\.(down|up|mid|conv_in)"),
    ("a text encoder", r"(text_model\.)?(encoder\.)?(layers|block)\.\d|.*token_embedding"),
    ("a whole network", r"(down_blocks|conv_in|transformer_blocks|double_blocks|joint_blocks)\b"),
)


def read_header(file: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shape of each tensor of a safetensors file, and its metadata.

    Raises:
        ValueError: it is none, or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
            return shapes, tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"{file} is damaged or no safetensors file ({reason}); download it again") from error


def made_for(shapes: _Shapes, metadata: Mapping[str, str]) -> str:
    """What a file is and, of a LoRA, which model it was made for: as its metadata say, else as its layers show."""
    what = _what(shapes)
    base = next((text for key in _METADATA if (text := metadata.get(key, "").strip())), "")
    base = " ".join(base.split())[:60] or (_base(shapes) if what == "a LoRA" else "")
    return f"{what} for {base}" if base else what


def base_of_width(width: int) -> str:
    """The model whose prompts have this width, in words."""
    return _WIDTHS.get(width, f"a model with prompts of width {width}")


def _what(shapes: _Shapes) -> str:
    keys = list(shapes)
    if len(keys) <= 2 and not any(map(_ADAPTER.search, keys)):
        return "a textual inversion"
    for what, mark in _OTHERS[:2]:
        if any(re.match(mark, key) for key in keys):
            return what
    if any(map(_ADAPTER.search, keys)):
        return "a LoRA"
    return next((what for what, mark in _OTHERS if any(re.match(mark, key) for key in keys)), "another kind of file")


def _base(shapes: _Shapes) -> str:
    for base, mark in _BASES:
        if any(re.search(mark, key) for key in shapes):
            return base
    # The input of the UNet's cross-attention is the prompt.
    widths = (shape[1] for key, shape in shapes.items() if re.search(_TEXT_LAYER, key) and len(shape) > 1)
    return next(map(base_of_width, widths), "")
