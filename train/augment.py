"""Weak augmentation of image batches on their device: random crop and horizontal flip."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop_and_flip"]


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Zero-pad each side by `padding`, cut the old size at a random place, and mirror every other image or so.

    Args:
        images: (B, C, H, W), any dtype; each image gets its own offset and its own coin.
        generator: a CPU generator; equal generators give equal results on any device.

    Returns:
        (B, C, H, W), the same dtype and device.
    """
    batch, _, height, width = images.shape
    if padding:
        padded = F.pad(images, (padding,) * 4)  # (B, C, H + 2p, W + 2p)
        top, left = torch.randint(2 * padding + 1, (2, batch), generator=generator).to(images.device)
        rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
        columns = left[:, None] + torch.arange(width, device=images.device)  # (B, W)
        index = torch.arange(batch, device=images.device)[:, None, None]
        # Advanced indices around a slice put (B, H, W) first and the channels last.
        images = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, C, H, W)
    if flip:
        coin = torch.rand(batch, generator=generator).to(images.device) < 0.5
        images = torch.where(coin[:, None, None, None], images.flip(3), images)
    return images
