"""Tiny adapters of every kind for the tiny checkpoints, and the weights that they make, by hand."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["ADAPTER_KINDS", "Change", "merge_by_hand", "save_tiny_adapter", "weights_of"]

# (weight, scale of the adapter) -> the weight with the adapter
Change = Callable[[Tensor, float], Tensor]
# What an adapter of each kind changes: linear layers, or convolutions too.
ADAPTER_KINDS = (
    "lora",
    "locon",
    "tucker",
    "loha",
    "loha-tucker",
    "lokr",
    "lokr-products",
    "lokr-tucker",
    "dora",
    "full",
)
_RANK, _ALPHA = 2, 3.0
_DIFFUSERS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}
_LINEAR = re.compile(r"(attn\d?\.(to_q|to_k|to_out\.0)|ff\.net\.2|q_proj|out_proj|fc1)$")
_CONVOLUTION = re.compile(r"(conv1|conv_shortcut)$")


def weights_of(base: Path, part: str) -> dict[str, Tensor]:
    """The weights of a part of a tiny checkpoint, by name."""
    (file,) = (base / part).glob("*.safetensors")
    return load_file(file)


def save_tiny_adapter(
    file: Path,
    base: Path,
    kind: str,
    *,
    style: str = "kohya",
    parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2"),
    seed: int = 3,
    metadata: dict[str, str] | None = None,
) -> dict[str, dict[str, Change]]:
    """Save an adapter for some layers of a tiny checkpoint.

    Args:
        kind: one of `ADAPTER_KINDS`.
        style: how layers are called: kohya (as its trainer does for the base), lycoris, diffusers (LoRA, DoRA alone).

    Returns:
        By part and weight, what the adapter makes of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 4

    tensors: dict[str, Tensor] = {}
    changes: dict[str, dict[str, Change]] = {}
    sdxl = (base / "text_encoder_2").is_dir() and (base / "unet").is_dir()
    for part in (part for part in parts if (base / part).is_dir()):
        for key, weight in weights_of(base, part).items():
            name = key.removesuffix(".weight")
            small = weight.ndim == 4 and _CONVOLUTION.search(name) and kind not in ("lora", "dora")
            if name == key or not (_LINEAR.search(name) or small):
                continue
            roles, change = _layer(kind, weight, draw, 1.0 if style == "diffusers" else _ALPHA / _RANK)
            if style == "diffusers":  # which scales by 1 where no alpha is given, and has magnitudes as a vector
                roles = {role: tensor.squeeze() if role == "dora_scale" else tensor for role, tensor in roles.items()}
                roles.pop("alpha")
            for role, tensor in roles.items():
                tensors[_called(part, name, role, style, sdxl)] = tensor.contiguous()
            changes.setdefault(part, {})[key] = change
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata=metadata)
    return changes


def merge_by_hand(base: Path, folder: Path, *adapters: tuple[dict[str, dict[str, Change]], float]) -> Path:
    """Copy a tiny checkpoint with adapters added to its weights, each with its scale, in this order."""
    shutil.copytree(base, folder)
    for changes, scale in adapters:
        for part, some in changes.items():
            (file,) = (folder / part).glob("*.safetensors")
            weights = load_file(file)
            weights |= {key: change(weights[key], scale) for key, change in some.items()}
            save_file(weights, file, metadata={"format": "pt"})
    return folder


def _layer(kind: str, weight: Tensor, draw: Callable[..., Tensor], scale: float) -> tuple[dict[str, Tensor], Change]:
    """The tensors of one layer by role, and what they make of a weight. Sums are written out, not shared with ours."""
    out, into, *kernel = weight.shape
    ones, n = [1] * len(kernel), _RANK
    alpha = {"alpha": torch.tensor(_ALPHA)}

    def added(delta: Tensor) -> Change:
        return lambda w, s: w + s * delta.reshape(w.shape)

    if kind == "full":
        return {"diff": (delta := draw(*weight.shape))}, added(delta)
    if kind in ("lora", "locon", "dora"):
        up, down = draw(out, n, *ones), draw(n, into, *kernel)
        delta = scale * torch.einsum("or,ri->oi", up.reshape(out, n), down.reshape(n, -1)).reshape(weight.shape)
        roles = {"lora_up.weight": up, "lora_down.weight": down} | alpha
        if kind != "dora":
            return roles, added(delta)
        magnitude = weight.norm(dim=1, keepdim=True) * (1.5 + draw(out, 1))
        return roles | {
            "dora_scale": magnitude
        }, lambda w, s: magnitude * (w + s * delta) / torch.linalg.vector_norm(w + s * delta, dim=1, keepdim=True)
    if kind == "tucker":
        if not kernel:
            return _layer("lora", weight, draw, scale)
        up, down, core = draw(out, n, 1, 1), draw(n, into, 1, 1), draw(n, n, *kernel)
        delta = scale * torch.einsum("or,rqkl,qi->oikl", up[:, :, 0, 0], core, down[:, :, 0, 0])
        return {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core} | alpha, added(delta)
    if kind == "loha" or (kind == "loha-tucker" and not kernel):
        a, b, c, d = draw(out, n), draw(n, weight[0].numel()), draw(out, n), draw(n, weight[0].numel())
        roles = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d} | alpha
        return roles, added(scale * torch.einsum("or,ri,oq,qi->oi", a, b, c, d))
    if kind == "loha-tucker":
        a, b, c, d = draw(n, out), draw(n, into), draw(n, out), draw(n, into)
        t, u = draw(n, n, *kernel), draw(n, n, *kernel)
        roles = {"hada_w1_a": a, "hada_w1_b": b, "hada_t1": t, "hada_w2_a": c, "hada_w2_b": d, "hada_t2": u} | alpha
        first, second = (torch.einsum("ro,rqkl,qi->oikl", *three) for three in ((a, t, b), (c, u, d)))
        return roles, added(scale * first * second)
    x, y = 2, 4  # sides of the first matrix
    first, rows, columns = draw(x, y), out // x, into // y
    roles = {"lokr_w1": first} | alpha
    if kind == "lokr":  # of two whole matrices alpha says nothing
        second = draw(rows, columns, *kernel)
        return roles | {"lokr_w2": second}, added(_kron(first, second))
    if kind == "lokr-products" or not kernel:
        a, b, c, d = draw(x, n), draw(n, y), draw(rows, n), draw(n, columns, *kernel)
        second = (c @ d.reshape(n, -1)).reshape(rows, columns, *kernel)
        roles = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d} | alpha
        return roles, added(scale * _kron(a @ b, second))
    c, d, core = draw(n, rows), draw(n, columns), draw(n, n, *kernel)
    second = torch.einsum("ro,rqkl,qi->oikl", c, core, d)
    return roles | {"lokr_w2_a": c, "lokr_w2_b": d, "lokr_t2": core}, added(scale * _kron(first, second))


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """[[first[0, 0] second, first[0, 1] second, ...], ...] over the first two sides."""
    rows = [torch.cat([value * second for value in row], 1) for row in first]
    return torch.cat(rows)


def _called(part: str, name: str, role: str, style: str, sdxl: bool) -> str:
    """How a file calls a tensor of a layer."""
    name = name.removeprefix("text_model.")
    if style == "diffusers":
        role = _DIFFUSERS[role]
        return f"{part}.{name}.{role}"
    text = {"text_encoder": "te1" if sdxl else "te", "text_encoder_2": "te2"}.get(part)
    flat = name.replace(".", "_")
    if text:
        return f"lora_{text}_text_model_{flat}.{role}"
    if sdxl and style == "kohya":
        flat = _as_stability(name).replace(".", "_")
    return f"{'lycoris' if style == 'lycoris' else f'lora_{part}'}_{flat}.{role}"


def _as_stability(name: str) -> str:
    """A layer of an SDXL UNet with one layer a block in the names of Stability's own code."""
    found = re.match(r"(down|mid|up)_block(?:s\.(\d))?\.(resnets|attentions)\.(\d)\.(.*)", name)
    assert found, name
    side, block, kind, layer, rest = found.groups()
    rest = rest.replace("conv1", "in_layers.2").replace("conv_shortcut", "skip_connection")
    place = 1 if kind == "attentions" else 0
    if side == "mid":
        return f"middle_block.{place or 2 * int(layer)}.{rest}"
    number = int(block) * 2 + int(layer) + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{rest}"
