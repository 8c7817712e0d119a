"""Recipes for photos: no rows of a paper, but what is usual at ImageNet's size."""

from typing import Any

from latebloom.flows.config.merge import merge
from latebloom.flows.config.presets.rows import Preset, row

__all__ = ["PHOTOS", "PHOTO_SIDE", "RECIPES", "photo_settings"]

PHOTOS = "photos-224"
# From this shorter side in pixels on, a new run starts from the recipe: networks for small images keep too much there.
PHOTO_SIDE = 96
_SIZE = 224

# The defaults of torchvision's references/classification/train.py: 90 epochs, a tenth of the rate after each third,
# 1e-4, random resized crops, and 0.1 for 8 GPUs with 32 images each; here by the linear rule (arXiv 1706.02677) for 64.
# rho is what code for SAM (arXiv 2010.01412) usually takes; its value for ImageNet there was not looked up. The sampler
# is SAMPLING["balanced"]: a quarter of the calls, which at this size are what a run costs. Guidance stays the 3 of
# arXiv 2505.21574: less than the usual 7.5 gives more varied images (arXiv 2212.08420, arXiv 2312.04567).
_TRAINING: dict[str, Any] = {
    "classifier": {"model": "torchvision:resnet18"},
    "train": {
        "epochs": 90,
        "batch_size": 64,
        "lr": 0.025,
        "weight_decay": 1e-4,
        "milestones": [1 / 3, 2 / 3],
        "rho": 0.05,
        "resized_crop": 0.08,
        "flip": True,
    },
    "sample": {"sampler": "dpm++2m", "grid": 100, "steps": 25, "guidance_scale": 3.0},
}
# From ImageNet's weights: a tenth of the rate, few epochs, crops that keep at least a quarter of the image.
_FINETUNING: dict[str, Any] = {"train": {"epochs": 30, "lr": 0.0025, "resized_crop": 0.25}}

RECIPES: dict[str, Preset] = {
    PHOTOS: row(
        "Plain recipe for photos: ResNet18 with ImageNet's stem, fresh, 224 px, random resized crops; what a source of "
        f"images of {PHOTO_SIDE} px or more starts from",
        {"data": {"image_size": _SIZE}},
        _TRAINING,
    ),
    f"{PHOTOS}-finetune": row(
        "The same from ImageNet's weights: name them with --set classifier.weights=FILE, a .pth or .safetensors of "
        "torchvision's ResNet18, or of the network of --model",
        {"data": {"image_size": _SIZE}},
        _TRAINING,
        _FINETUNING,
    ),
}


def photo_settings(side: int) -> dict[str, Any]:
    """What a source of images of this shorter side starts from; smaller ones than the recipe's keep their size."""
    return merge(RECIPES[PHOTOS].settings, {"data": {"image_size": _SIZE if side >= _SIZE else 0}})
