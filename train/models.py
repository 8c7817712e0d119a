"""The classifiers: a small CNN and PreAct-ResNet18 here, every other one from torchvision.

All take float (B, C, H, W) in [0, 1] and give logits (B, num_classes).
"""

import difflib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.seeds import torch_stream

__all__ = ["PreActResNet18", "SmallCNN", "build"]

MIN_SIDE = 8
_OWN = ("small-cnn", "preact-resnet18")


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with BatchNorm, ReLU and 2x2 max pooling, then a linear layer on a 2x2 map.

    For images of 8 to about 32 px; 1,922 weights at width 8, one channel and ten classes.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)  # (B, w, H/2, W/2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # (B, 2w, H/4, W/4)
        x = F.adaptive_avg_pool2d(x, 2)  # (B, 2w, 2, 2); changes nothing at 8 px
        return self.head(x.flatten(1))


class _PreActBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        # As in the reference (He et al., arXiv 1603.05027): a projection sees the pre-activated input.
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + shortcut


class PreActResNet18(nn.Module):
    """PreAct-ResNet18 with a 3x3 stem (He et al., arXiv 1603.05027), the papers' CIFAR model.

    Adaptive pooling in place of `avg_pool2d(4)`, so any side from 8 px works. Convolutions start from Kaiming
    normal in fan-out mode, as in the training code that paper 2505.21574 follows (App. F.1). 11.2 M weights.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        channels_in = width
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_PreActBlock(channels_in, width * 2**stage, stride))
                channels_in = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels_in)
        self.head = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))  # (B, 8w, H/8, W/8)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _GreyToColour(nn.Module):
    """A three-channel model that is given one-channel images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.expand(-1, 3, -1, -1))


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], seed: int, width: int = 0) -> nn.Module:
    """Make a classifier with fresh weights drawn from `seed`, on the CPU.

    Args:
        name: `small-cnn`, `preact-resnet18` or `torchvision:<name>` (no pretrained weights).
        image_shape: (H, W, C) of the images it will see.
        width: channels of the first layer, for our own two; 0 takes 8 and 64.

    Raises:
        ValueError: unknown name, an image too small for it, or a torchvision model that does not give plain logits.
    """
    height, image_width, channels = image_shape
    if min(height, image_width) < MIN_SIDE:
        raise ValueError(f"images of {image_width}x{height} are too small: classifiers here need {MIN_SIDE} px a side")
    with torch_stream(seed, "model", name):
        if name == "small-cnn":
            model: nn.Module = SmallCNN(num_classes, channels, width or 8)
        elif name == "preact-resnet18":
            model = PreActResNet18(num_classes, channels, width or 64)
        elif name.startswith("torchvision:"):
            if width:
                raise ValueError(f"width has no meaning for {name}; leave it at 0")
            model = _torchvision(name.removeprefix("torchvision:"), num_classes, channels)
        else:
            near = difflib.get_close_matches(name, _OWN, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no classifier is called {name!r}; use {', '.join(_OWN)} or torchvision:<name>{hint}")
    _check_forward(model, name, image_shape, num_classes)
    return model


def _torchvision(name: str, num_classes: int, channels: int) -> nn.Module:
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or ", ".join(known[:8]) + ", ..."
        raise ValueError(f"torchvision has no classifier called {name!r}; near to it: {near}")
    if name in ("googlenet", "inception_v3"):
        raise ValueError(f"torchvision:{name} trains with auxiliary outputs, which Slowlane does not; choose another")
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return _GreyToColour(model) if channels == 1 else model


def _check_forward(model: nn.Module, name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """One image through it, so that a size it cannot take is said now and not after an hour."""
    height, width, channels = image_shape
    model.eval()
    try:
        with torch.inference_mode():
            shape = model(torch.zeros(1, channels, height, width)).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} cannot take images of {width}x{height}: {error}") from error
    finally:
        model.train()
    assert shape == (1, num_classes), f"{name} gives {tuple(shape)}, not logits"
