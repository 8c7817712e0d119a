"""Weak augmentation of image batches on their device: random crop, horizontal flip, and random resized crop."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Draw", "apply_resized_crop", "apply_weak", "draw_resized_crop", "draw_weak"]

Draw = dict[str, Tensor]
"""Random choices for n images: every tensor has first dimension n. Indexed by rows, it is the draw of those rows."""


def draw_weak(n: int, padding: int, flip: bool, generator: torch.Generator) -> Draw:
    """The choices of `apply_weak` for n images, on the CPU; those of an image do not depend on n.

    Returns:
        "top" and "left" int64 (n,) in 0..2 * padding, where there is padding; "flip" bool (n,), where `flip` is set.
    """
    draw: Draw = {}
    uniform = torch.rand(n, 3, generator=generator).double()  # row after row: more images change no earlier ones
    if padding:
        draw["top"], draw["left"] = (uniform[:, :2] * (2 * padding + 1)).long().unbind(1)
    if flip:
        draw["flip"] = uniform[:, 2] < 0.5
    return draw


def apply_weak(images: Tensor, draw: Draw, padding: int) -> Tensor:
    """Crop and mirror images as drawn.

    Args:
        images: (B, C, H, W), any dtype and device.
        draw: of `draw_weak` with the same `padding`, for these B images; any device.

    Returns:
        (B, C, H, W), the same dtype and device; `images` themselves where nothing was drawn.

    Raises:
        ValueError: a draw for another number of images, or of another padding.
    """
    batch, _, height, width = images.shape
    for name, values in draw.items():
        if len(values) != batch:
            raise ValueError(
                f"{batch} images, but a draw of {name} for {len(values)}; index the draw by the batch's rows"
            )
    if bool(padding) != ("top" in draw):
        raise ValueError(f"padding={padding} does not fit a draw of {sorted(draw)}; draw with the same padding")
    if padding:
        padded = F.pad(images, (padding,) * 4)  # (B, C, H + 2p, W + 2p)
        top, left = (draw[name].to(images.device, non_blocking=True) for name in ("top", "left"))
        rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
        columns = left[:, None] + torch.arange(width, device=images.device)  # (B, W)
        index = torch.arange(batch, device=images.device)[:, None, None]
        # Advanced indices around a slice put (B, H, W) first and the channels last.
        images = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, C, H, W)
    if "flip" in draw:
        coin = draw["flip"].to(images.device, non_blocking=True)
        images = torch.where(coin[:, None, None, None], images.flip(3), images)
    return images


def draw_resized_crop(
    n: int,
    height: int,
    width: int,
    generator: torch.Generator,
    least: float,
) -> Draw:
    """Windows of torchvision's RandomResizedCrop for n images of one size, on the CPU; each does not depend on n.

    As there, a window of width / height between 3/4 and 4/3 (uniform in the logarithm) is tried 10 times; if none fits
    into the image, the largest centred one is taken.

    Args:
        least: smallest area of a window as a share of the image's, above 0 to 1; areas are uniform from there to 1.

    Returns:
        "window" int64 (n, 4): top, left, height, width.
    """
    tries, ratio = 10, (3 / 4, 4 / 3)
    uniform = torch.rand(n, 2 * tries + 2, generator=generator).double()
    area = height * width * (least + (1.0 - least) * uniform[:, :tries])
    logs = math.log(ratio[0]), math.log(ratio[1])
    aspect = (logs[0] + (logs[1] - logs[0]) * uniform[:, tries : 2 * tries]).exp()
    wides, highs = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()  # (n, tries)
    fits = (wides > 0) & (wides <= width) & (highs > 0) & (highs <= height)
    first = fits.int().argmax(1, keepdim=True)
    own = width / height
    whole_wide = width if own <= ratio[1] else round(height * ratio[1])
    whole_high = height if own >= ratio[0] else round(width / ratio[0])
    found = fits.any(1)
    wide = torch.where(found, wides.gather(1, first)[:, 0], whole_wide)
    high = torch.where(found, highs.gather(1, first)[:, 0], whole_high)
    place = uniform[:, 2 * tries :].T
    top = torch.where(found, (place[0] * (height - high + 1)).long(), (height - high) // 2)
    left = torch.where(found, (place[1] * (width - wide + 1)).long(), (width - wide) // 2)
    return {"window": torch.stack((top, left, high, wide), 1)}


def apply_resized_crop(images: Tensor, draw: Draw, height: int, width: int) -> Tensor:
    """Cut each image's window and resize it, bilinear without antialiasing (torchvision's antialias=False).

    Args:
        images: uint8 or float32 (B, C, H, W), any device.
        draw: of `draw_resized_crop` for these B images.

    Returns:
        (B, C, height, width), the same dtype and device; uint8 is rounded, so at most 1 from torchvision.

    Raises:
        ValueError: a draw for another number of images.
    """
    if len(draw["window"]) != len(images):
        raise ValueError(
            f"{len(images)} images, but windows for {len(draw['window'])}; index the draw by the batch's rows"
        )
    top, left, high, wide = draw["window"].to(images.device, non_blocking=True).unbind(1)  # (B,)
    results = images.float()
    for axis, start, length, size in ((2, top, high, height), (3, left, wide, width)):
        place = (torch.arange(size, device=images.device) + 0.5) * (length[:, None] / size) - 0.5  # (B, size)
        place = place.clamp_(min=0)
        low = place.long().clamp(max=length[:, None] - 1)
        high_end = (low + 1).clamp(max=length[:, None] - 1)
        share = place - low
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        expanded = list(results.shape)
        expanded[axis] = size
        near, far = ((start[:, None] + end).view(shape).expand(expanded) for end in (low, high_end))
        results = torch.lerp(results.gather(axis, near), results.gather(axis, far), share.view(shape))
    return results.round_().to(images.dtype) if images.dtype == torch.uint8 else results
