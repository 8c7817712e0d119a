"""Operations, weights and memory of the generators that docs/choosing-a-generator.md compares. No weights, no network.

The models are built on the meta device from the values of their published config.json files and counted by
torch.utils.flop_counter at one image (a multiplication with its addition is two operations).

`python tests/benchmarks/generator_sizes.py`
"""

import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from latebloom.synth.config import GeneratorConfig
from latebloom.synth.fit import _new_unet

_CROSS = "CrossAttnDownBlock2D"
_SD: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_CROSS, _CROSS, _CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
_SD15 = _SD | {"cross_attention_dim": 768, "attention_head_dim": 8}
_SD_TURBO = _SD | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", _CROSS, _CROSS),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
# Width, width inside, layers, heads.
_VIT_L, _VIT_H, _VIT_G = (768, 3072, 12, 12), (1024, 4096, 23, 16), (1280, 5120, 32, 20)
PUBLISHED = (
    ("SD 1.5", 512, _SD15, (_VIT_L,)),
    ("SD-Turbo", 512, _SD_TURBO, (_VIT_H,)),
    ("SDXL-Turbo", 512, _SDXL, (_VIT_L, _VIT_G)),
    ("SDXL", 1024, _SDXL, (_VIT_L, _VIT_G)),
)
OWN = ((8, 1, (16, 32)), (16, 3, (32, 64)), (32, 3, (64, 128, 128)), (64, 3, (64, 128, 256, 256)))
_BYTES = {"bfloat16": 2, "float32": 4}


class _Alive(TorchDispatchMode):
    """Numbers in the tensors that operations made and that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        self.known.update(id(tensor.untyped_storage()) for tensor in given)  # a view of a weight is no new tensor
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := id(storage := tensor.untyped_storage())) not in self.known:
                numbers = storage.nbytes() // tensor.element_size()
                self.known.add(key)
                self.now += numbers
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key, numbers)
        return made

    def _gone(self, key: int, numbers: int) -> None:
        self.known.discard(key)
        self.now -= numbers


def count(call: Callable[[], Any]) -> tuple[float, float]:
    """Operations of a call, and numbers alive at once in it; attention as a kernel that keeps no scores."""
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            call()
        attention = "torch.nn.functional.scaled_dot_product_attention"
        with mock.patch(attention, lambda query, *_, **__: torch.empty_like(query)), _Alive() as alive:
            call()
    return float(counter.get_total_flops()), float(alive.most)


def numbers(*models: nn.Module) -> int:
    return sum(weight.numel() for model in models for weight in model.parameters())


def published(side: int, unet_config: dict[str, Any], texts: tuple[tuple[int, int, int, int], ...]) -> None:
    unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**_VAE)
    encoders = [
        (CLIPTextModelWithProjection if width == _VIT_G[0] else CLIPTextModel)(
            CLIPTextConfig(
                hidden_size=width, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=heads,
                projection_dim=width,
            )
        )
        for width, inside, layers, heads in texts
    ]  # fmt: skip
    latent, text = torch.empty(1, 4, side // 8, side // 8), torch.empty(1, 77, unet_config["cross_attention_dim"])
    sizes = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    call, held = count(lambda: unet(latent, torch.empty(1), text, added_cond_kwargs=sizes))
    encode, _ = count(lambda: vae.encode(torch.empty(1, 3, side, side)).latent_dist.mean)
    decode, held_by_vae = count(lambda: vae.decode(latent).sample)
    show(call, encode / 4 + decode, numbers(unet, vae, *encoders), max(held, held_by_vae))
    print(
        f"     UNet {numbers(unet):,}, VAE {numbers(vae):,}, text {', '.join(f'{numbers(one):,}' for one in encoders)}"
    )


def show(call: float, coder: float, weights: float, work: float) -> None:
    memory = ", ".join(f"{(weights + work) * size / 2**30:.2f} GiB in {name}" for name, size in _BYTES.items())
    print(
        f"     operations: {call:.3g} a call, {coder:.3g} of the VAE (a quarter of an encoding, one decoding); "
        f"numbers: {weights:.3g} weights, {work:.3g} alive at once; {memory}",
        flush=True,
    )


def main() -> None:
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, one image")
    with torch.device("meta"):
        for side, channels, levels in OWN:
            print(f"own, {side} px, channels {','.join(map(str, levels))}")
            unet = _new_unet(GeneratorConfig(channels=levels), side, channels, 10, 0).eval()
            image = torch.empty(1, channels, side, side)
            label = torch.zeros(1, dtype=torch.long)
            call, held = count(lambda: unet(image, torch.empty(1), class_labels=label))  # noqa: B023 (called at once)
            show(call, 0, numbers(unet), held)
        for name, side, unet_config, texts in PUBLISHED:
            print(f"{name}, {side} px")
            published(side, unet_config, texts)


if __name__ == "__main__":
    main()
