import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latebloom.train.models.build import build
from latebloom.train.models.vit import ViT


def images(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


class _Patches(nn.Module):
    """The patches as vit-pytorch takes them, by unfold, in place of timm's convolution."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 4, stride=4)  # (B, C 16, T), channels first
        patches = patches.unflatten(1, (-1, 16)).transpose(1, 2).flatten(1, 2)  # (B, 16 C, T), channels last
        return self.vit.embed_norm(self.vit.embed(self.vit.pixels_norm(patches.transpose(1, 2))))


@pytest.mark.parametrize(("side", "channels"), [((8, 8), 3), ((12, 8), 1)])
def test_it_is_timms_vision_transformer_with_patches_of_vit_pytorch(side: tuple[int, int], channels: int) -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")

    class Narrow(timm.Attention):
        def __init__(self, width: int, num_heads: int, **options: Any) -> None:
            super().__init__(width, num_heads, attn_head_dim=2, **options)

    ours = ViT(5, channels, side, width=24, depth=3, heads=4).eval()  # heads of 2: 8 in all, not 24
    theirs = timm.VisionTransformer(
        img_size=side,
        patch_size=4,
        in_chans=channels,
        num_classes=5,
        embed_dim=24,
        depth=3,
        num_heads=4,
        mlp_ratio=3,
        qkv_bias=False,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
        attn_layer=Narrow,
    ).eval()
    state = {"cls_token": ours.token, "pos_embed": ours.positions}
    for name, weight in ours.named_parameters():
        for old, new in [
            ("layers.", "blocks."),
            ("attention.norm.", "norm1."),
            ("attention.qkv.", "attn.qkv."),
            ("attention.out.", "attn.proj."),
            ("mlp.norm.", "norm2."),
            ("mlp.hidden.", "mlp.fc1."),
            ("mlp.out.", "mlp.fc2."),
        ]:
            name = name.replace(old, new)
        if not name.startswith(("token", "positions", "embed", "pixels")):
            state[name] = weight
    with torch.no_grad():
        for weight in ours.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(weight.numel()))  # no norm is left at 1 and 0
        found = theirs.load_state_dict(state, strict=False)
        assert not found.unexpected_keys
        assert all(name.startswith("patch_embed.") for name in found.missing_keys)
        theirs.patch_embed = _Patches(ours)
        x = images(*side, channels)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_it_has_the_weights_of_vit_pytorch_at_the_papers_sizes() -> None:
    # vit_pytorch.ViT(image_size=32, patch_size=4, num_classes=10, dim=768, depth=8, heads=8, mlp_dim=2304)
    embed = 2 * 48 + (48 * 768 + 768) + 2 * 768 + 768 + 65 * 768
    attention = 2 * 768 + 768 * 3 * 512 + (512 * 768 + 768)
    mlp = 2 * 768 + (768 * 2304 + 2304) + (2304 * 768 + 768)
    total = embed + 8 * (attention + mlp) + 2 * 768 + (768 * 10 + 10)
    with torch.device("meta"):
        model = build("vit-s4", 10, (32, 32, 3), 0)
    assert sum(weight.numel() for weight in model.parameters()) == total == 41_048_938


def test_positions_are_drawn_from_a_standard_normal() -> None:
    model = build("vit-s4", 3, (32, 32, 3), 0, width=96)
    assert float(model.get_parameter("positions").detach().std()) == pytest.approx(1, abs=0.03)


def test_the_place_of_a_patch_matters() -> None:
    model = build("vit-s4", 3, (8, 8, 1), 0, width=24).eval()
    x = images(8, 8, 1)
    with torch.no_grad():
        assert not torch.allclose(model(x), model(x.roll(4, 3)))
        model.get_parameter("positions").zero_()
        torch.testing.assert_close(model(x), model(x.roll(4, 3)))


def test_it_can_be_differentiated_twice() -> None:
    # torch's scaled_dot_product_attention has no second derivative on the CPU, which AdaHessian asks for.
    model = build("vit-s4", 3, (8, 8, 1), 0, width=12)
    weight = model.get_parameter("layers.0.attention.qkv.weight")
    (first,) = torch.autograd.grad(
        F.cross_entropy(model(images(8, 8, 1)), torch.tensor([0, 2])), weight, None, True, True
    )
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert float(second.norm()) > 0


@pytest.mark.parametrize(
    ("shape", "width", "message"),
    [
        ((30, 32, 3), 0, r"^vit-s4 cuts images into patches of 4x4, which do not fill 32x30; set image_size to a mult"),
        ((32, 32, 3), 16, r"^the width of vit-s4 is a multiple of 12 \(768 in the paper\), got 16$"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, int, int], width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("vit-s4", 3, shape, 0, width)
