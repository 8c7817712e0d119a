"""What an unfinished or finished pixel generator makes of pure noise, as one picture with a row a class."""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from latebloom.data.seeds import child_seed
from latebloom.synth.config import SampleConfig
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.denoiser import Wanted
from latebloom.synth.sampling.loop import LoopGenerator

__all__ = ["sample_sheet"]

_CLASSES, _COLUMNS, _STEPS = 10, 8, 20
_LEAST_SIDE, _GAP, _LABEL = 32, 2, 90


def sample_sheet(unet: nn.Module, alphas_cumprod: np.ndarray, class_names: tuple[str, ...], seed: int) -> bytes:
    """A PNG of 8 images of each of the first ten classes, from the same noise whenever it is drawn.

    Args:
        unet: a `UNet2DModel` with a label for each class, of v-prediction, on its device.
        alphas_cumprod: float64 (T,), of its schedule.
    """
    names = class_names[:_CLASSES]
    denoiser = PixelDenoiser(
        unet, alphas_cumprod, "v_prediction", num_classes=len(class_names), name="samples", digest=""
    )
    generator = LoopGenerator(denoiser, SampleConfig(sampler="dpm++2m", grid=_STEPS, guidance_scale=1.0))
    labels = np.repeat(np.arange(len(names)), _COLUMNS)
    seeds = [child_seed(seed, "samples", number) for number in range(len(labels))]
    wanted = Wanted(labels, [""] * len(labels), np.full(len(labels), _STEPS), seeds)
    side, channels = denoiser.size, denoiser.channels
    nothing: Tensor = torch.zeros(len(labels), channels, side, side, device=denoiser.device)
    made = generator.make(nothing, wanted).images  # uint8 (n, h, w, c)
    return _sheet(made.reshape(len(names), _COLUMNS, side, side, channels), names)


def _sheet(images: np.ndarray, names: tuple[str, ...]) -> bytes:
    rows, columns, side, _, channels = images.shape
    large = -(-_LEAST_SIDE // side) * side
    cell = large + _GAP
    sheet = Image.new("RGB", (_LABEL + columns * cell, rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        draw.text((_GAP, row * cell + large // 2 - 5), name[:14], fill="black")
        for column in range(columns):
            pixels = images[row, column]
            tile = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            tile = tile.resize((large, large), Image.Resampling.NEAREST)
            sheet.paste(tile.convert("RGB"), (_LABEL + column * cell, row * cell))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
