"""Operations on batches of uint8 images, with a magnitude for each image; results equal torchvision.transforms.v2."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CODES", "OPERATIONS", "apply_operations", "check_images", "mixed"]

_SPATIAL = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = (
    "Identity",
    *_SPATIAL,  # together: one gather moves them all
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Cutout",
    "GaussianBlur",
)
CODES = {name: code for code, name in enumerate(OPERATIONS)}
_CACHED = 2**17  # values


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` are uint8 (B, 1 or 3, H, W)."""
    if images.dtype != torch.uint8:
        raise ValueError(
            f"images are {images.dtype}, strong augmentation takes uint8; augment before scaling to floats"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are {tuple(images.shape)}, expected (B, C, H, W) with 1 or 3 channels; convert them")


def apply_operations(
    images: Tensor,
    codes: Tensor,
    magnitudes: Tensor,
    centers: Tensor | None = None,
    *,
    bilinear: bool = False,
    kernel: int = 5,
) -> Tensor:
    """Apply to each image the one operation of its code.

    An image's result does not depend on the others. Magnitudes mean what they mean in torchvision's AutoAugment:
    shears in pixels per pixel; translations in whole pixels, rounded towards zero; Rotate in degrees counter-clockwise;
    Brightness, Color, Contrast and Sharpness as factor - 1 >= -1; Posterize in bits that are kept; Solarize as a share
    of 255, from which on pixels are inverted. Cutout's is the side of its square in whole pixels; GaussianBlur's is
    sigma > 0. The others have none. Pixels from outside the image are 0.

    On the CPU the result equals torchvision's in every grey level, with these exceptions, where sums are rounded in
    another order: Color, Contrast, Sharpness, GaussianBlur and bilinear moves may differ by 1, and ShearX, ShearY and
    Rotate may take the other of two pixels that are equally near.

    Args:
        images: uint8 (B, C, H, W), C = 1 or 3, any device. Color is the identity for C = 1.
        codes: int64 (B,) places in `OPERATIONS`, on the CPU.
        magnitudes: float32 (B,), on the CPU.
        centers: float32 (B, 2) in [0, 1), where Cutout's square has its centre, from the top and from the left.
        bilinear: interpolation of ShearX, ..., Rotate; else the nearest pixel.
        kernel: GaussianBlur's odd width in pixels.

    Returns:
        uint8 (B, C, H, W), contiguous, never the memory of `images`.

    Raises:
        ValueError: images of another type or shape.
    """
    check_images(images)
    if not len(images):
        return images.clone()
    # Sorted by operation, each operation has its images in one piece.
    order = torch.argsort(codes, stable=True)
    counts = torch.bincount(codes, minlength=len(OPERATIONS)).tolist()
    sizes = [counts[0], sum(counts[1 : 1 + len(_SPATIAL)]), *counts[1 + len(_SPATIAL) :]]  # spatial ones are one piece
    there = order.to(images.device, non_blocking=True)  # without waiting for the device
    pieces = images.contiguous().index_select(0, there).split(sizes)
    choices = [values[order].split(sizes) for values in (codes, magnitudes)]
    middles = [None] * len(sizes) if centers is None else centers[order].split(sizes)
    # Blocks whose intermediate results stay in the processor's cache.
    block = max(1, _CACHED // images[0].numel()) if images.device.type == "cpu" else len(images)
    results = [pieces[0]]
    names = ("Moved", *OPERATIONS[1 + len(_SPATIAL) :])
    for name, piece, code, strength, middle in zip(
        names, pieces[1:], *(c[1:] for c in choices), middles[1:], strict=True
    ):
        for start in range(0, len(piece), block):
            part = slice(start, start + block)
            if name == "Moved":
                results.append(_moved(piece[part], code[part], strength[part], bilinear))
            elif name == "Cutout":
                assert middle is not None
                results.append(_cut_out(piece[part], strength[part], middle[part]))
            elif name == "GaussianBlur":
                results.append(_blurred(piece[part], strength[part], kernel))
            else:
                results.append(_COLOURS[name](piece[part], strength[part]))
    together = torch.cat(results)
    if len(images) in counts:  # one operation for all: the order has not changed
        return together
    return together.index_select(0, torch.argsort(there))


def mixed(images: Tensor, partners: Tensor, mix: Tensor) -> Tensor:
    """Mixup of uint8 images (B, C, H, W) with their partners: `mix` (B,) of the image, rounded."""
    share = mix.to(images.device, torch.float32, non_blocking=True)[:, None, None, None]  # (B, 1, 1, 1)
    return (images * share + partners * (1 - share)).round_().to(torch.uint8)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """One float32 number for each image, (B, 1, 1, 1), on its device."""
    return values.to(torch.float32).to(like.device, non_blocking=True)[:, None, None, None]


def _matrices(codes: Tensor, magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel comes from, as torchvision has it: float32 (B, 2, 3) on pixel places from the image's middle."""
    strength = magnitudes.double()
    theta = torch.zeros(len(codes), 2, 3, dtype=torch.float64)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    for name in _SPATIAL:
        chosen = codes == CODES[name]
        value = strength[chosen]
        if name == "ShearX":  # about the upper left corner
            theta[chosen, 0, 1], theta[chosen, 0, 2] = value, value * (height / 2)
        elif name == "ShearY":
            theta[chosen, 1, 0], theta[chosen, 1, 2] = value, value * (width / 2)
        elif name == "TranslateX":
            theta[chosen, 0, 2] = -value.trunc()
        elif name == "TranslateY":
            theta[chosen, 1, 2] = -value.trunc()
        else:
            angle = value * (math.pi / 180)
            theta[chosen, 0, 0] = theta[chosen, 1, 1] = angle.cos()
            theta[chosen, 0, 1], theta[chosen, 1, 0] = -angle.sin(), angle.sin()
    return theta.float()


def _moved(images: Tensor, codes: Tensor, magnitudes: Tensor, bilinear: bool) -> Tensor:
    count, channels, height, width = images.shape
    if not count:
        return images
    half = torch.tensor([[[0.5 * width], [0.5 * height]]])
    theta = _matrices(codes, magnitudes, height, width) / half
    theta = theta.to(images.device, non_blocking=True)[..., None, None]  # (B, 2, 3, 1, 1)
    x = torch.linspace((1 - width) * 0.5, (width - 1) * 0.5, width, device=images.device)  # (W,)
    y = torch.linspace((1 - height) * 0.5, (height - 1) * 0.5, height, device=images.device)[:, None]  # (H, 1)
    # Products and sums in torchvision's order, so that a place halfway between two pixels falls to the same one. Not a
    # matrix product, whose order may depend on the size of the batch.
    grid_x = theta[:, 0, 0] * x + theta[:, 0, 1] * y + theta[:, 0, 2]  # (B, H, W) in -1..1
    grid_y = theta[:, 1, 0] * x + theta[:, 1, 1] * y + theta[:, 1, 2]
    if bilinear:
        grid = torch.stack((grid_x, grid_y), -1)
        return F.grid_sample(images.float(), grid, align_corners=False).round_().to(torch.uint8)
    column = ((grid_x + 1) * (0.5 * width) - 0.5).round_()  # (B, H, W)
    row = ((grid_y + 1) * (0.5 * height) - 0.5).round_()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # A float32 counts exactly up to 2**24 pixels, more than any image here has.
    index = row.mul_(width).add_(column).mul_(inside).long().view(count, 1, -1)  # (B, 1, HW)
    found = images.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(images)
    return found.mul_(inside[:, None].to(torch.uint8))


def _blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """factor * image + (1 - factor) * other, cut off to a grey level."""
    factor = factors.double()
    own, rest = _each(factor, images), _each(1 - factor, images)
    return (images * own).addcmul_(others.expand_as(images), rest).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma in whole grey levels, float32 (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, 1)
    result: Tensor = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
    return result


def _brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    return (images * _each(1 + magnitudes.double(), images)).clamp_(0, 255).to(torch.uint8)


def _color(images: Tensor, magnitudes: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blended(images, _grey(images), 1 + magnitudes.double())


def _contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    # Whole numbers: the sum is exact in any order.
    total = _grey(images).sum((1, 2, 3), keepdim=True, dtype=torch.float64).float()  # (B, 1, 1, 1)
    return _blended(images, total / (images.shape[2] * images.shape[3]), 1 + magnitudes.double())


def _sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    whole = images.to(torch.int16)
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]  # (B, C, H - 2, W)
    inner = whole[:, :, 1:-1, 1:-1]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner  # weights 1 at the sides, 5 in the middle
    smooth = around.float().div_(13).round_()  # never halfway: 13 is odd
    sharp = inner.float().addcmul_(smooth - inner, _each(-magnitudes.double(), images))
    results = images.clone()
    results[:, :, 1:-1, 1:-1] = sharp.clamp_(0, 255).to(torch.uint8)
    return results


def _posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    bits = magnitudes.long()
    masks = (255 << (8 - bits)) & 255
    return images & masks.to(torch.uint8).to(images.device, non_blocking=True)[:, None, None, None]


def _solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    threshold = (magnitudes.double() * 255).float().ceil()  # >= a number is >= the next whole one
    bright = images >= threshold.to(torch.uint8).to(images.device, non_blocking=True)[:, None, None, None]
    return images ^ (bright.to(torch.uint8) * 255)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    least, most = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()  # (B, C, 1, 1)
    flat = least == most
    scale = ((most - least) * (1 / 255)).masked_fill_(flat, 1)
    return (images - least.masked_fill_(flat, 0)).div_(scale).clamp_(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Histogram equalisation of each channel as PIL and torchvision do it, by one table of 256 for each plane."""
    planes = images.shape[0] * images.shape[1]
    pixels = images.shape[2] * images.shape[3]
    offsets = 256 * torch.arange(planes, device=images.device)[:, None]
    index = images.reshape(planes, pixels).long().add_(offsets)  # (P, HW) places in the tables of all planes
    # Not bincount, which waits for the device.
    counts = torch.zeros(256 * planes, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, index.view(-1), torch.ones_like(index).view(-1)).view(planes, 256)
    below = counts.cumsum(1)
    brightest = counts.gather(1, below.argmax(1, keepdim=True))  # pixels at the plane's highest level
    step = (pixels - brightest).div_(255, rounding_mode="floor")  # (P, 1)
    levels = (below[:, :-1] + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table = F.pad(levels, (1, 0))  # (P, 256)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table).to(torch.uint8)
    return table.view(-1).index_select(0, index.view(-1)).view(images.shape)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return ~images


def _cut_out(images: Tensor, lengths: Tensor, centers: Tensor) -> Tensor:
    """Cutout (arXiv 1708.04552): 0 in a square around a random pixel, which the image's border may cut."""
    size = torch.tensor(images.shape[2:])
    length = lengths.long()[:, None]  # (B, 1)
    start = (centers * size).long().clamp(max=size - 1) - length // 2  # (B, 2)
    stop = start + length
    if images.device.type != "cpu":
        return _masked(images, start, stop)
    # Only the square is written, and in place: `apply_operations` gathered the images.
    for image, low, high in zip(images.numpy(), start.clamp(min=0).tolist(), stop.tolist(), strict=True):
        image[:, low[0] : high[0], low[1] : high[1]] = 0
    return images


def _masked(images: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Images with 0 in the rows and columns from `start` to before `stop`, int64 (B, 2) on the CPU."""
    inside = []
    for axis, size in enumerate(images.shape[2:]):
        place = torch.arange(size)
        own = (place >= start[:, axis, None]) & (place < stop[:, axis, None])
        inside.append(own.to(images.device, non_blocking=True))  # (B, H), (B, W)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (B, 1, H, W)
    return images * (~hole).to(torch.uint8)


def _blurred(images: Tensor, sigmas: Tensor, size: int) -> Tensor:
    """Gaussian blur, reflected at the border: along rows, then along columns."""
    reach = (size - 1) / (2 * math.sqrt(2))
    taps = torch.softmax(-((torch.linspace(-reach, reach, size) / sigmas[:, None]) ** 2), 1)  # (B, size)
    weights = taps.to(images.device, non_blocking=True)[:, :, None, None, None]  # (B, size, 1, 1, 1)
    padded = F.pad(images.float(), (size // 2,) * 4, mode="reflect")
    height, width = images.shape[2:]
    rows = padded[:, :, :height] * weights[:, 0]  # (B, C, H, W + size - 1)
    for i in range(1, size):
        rows += padded[:, :, i : i + height] * weights[:, i]
    blurred = rows[..., :width] * weights[:, 0]  # (B, C, H, W)
    for i in range(1, size):
        blurred += rows[..., i : i + width] * weights[:, i]
    return blurred.round_().clamp_(0, 255).to(torch.uint8)


_COLOURS = {
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
}
