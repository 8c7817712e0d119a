"""The vision transformer for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ViT"]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, d) each
        # Written out: torch's fused attention has no second derivative, which AdaHessian needs, and at 65 tokens it
        # is no faster.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, heads, T, T)
        mixed = scores.softmax(-1) @ value  # (B, heads, T, d)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.hidden(self.norm(x))))
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, head_width)
        self.mlp = _MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.mlp(x)
        return out


class ViT(nn.Module):
    """ViT-S/4 of paper 2505.21574 (App. F.1): width 768, depth 8, 8 heads, MLP 2,304, patches of 4x4, no dropout.

    The rest is as in github.com/lucidrains/vit-pytorch, which the paper uses: LayerNorm before and after the patches'
    projection; queries, keys and values without bias; heads of 64 (so 512 in all, not 768); a class token; learnt
    positions, drawn from a standard normal; torch's own initialisation of linear layers. 41.0 M weights at 32 px.

    Args:
        side: (height, width) of the images, multiples of `patch`; the positions are for this size alone.
        width: of a token; heads have a twelfth of it, the MLP three times as much.

    Raises:
        ValueError: sides that patches do not fill, or a width that is no multiple of 12.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        side: tuple[int, int],
        width: int = 768,
        depth: int = 8,
        heads: int = 8,
        patch: int = 4,
    ) -> None:
        super().__init__()
        if side[0] % patch or side[1] % patch:
            raise ValueError(
                f"vit-s4 cuts images into patches of {patch}x{patch}, which do not fill {side[1]}x{side[0]}; "
                f"set image_size to a multiple of {patch}"
            )
        if width % 12:
            raise ValueError(f"the width of vit-s4 is a multiple of 12 (768 in the paper), got {width}")
        self.patch = patch
        self.pixels_norm = nn.LayerNorm(channels * patch**2)
        self.embed = nn.Linear(channels * patch**2, width)
        self.embed_norm = nn.LayerNorm(width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, side[0] // patch * (side[1] // patch) + 1, width))
        self.layers = nn.Sequential(*(_Layer(width, heads, width // 12, 3 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        p = self.patch
        x = x.reshape(batch, channels, height // p, p, width // p, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)  # (B, T, p p C), rows of patches first
        x = self.embed_norm(self.embed(self.pixels_norm(x)))  # (B, T, width)
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.positions  # (B, 1 + T, width)
        out: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return out
