"""Residual networks for small images: pre-activation ones (PreAct-ResNet18, WRN-28-10) and He et al.'s.

All begin with a 3x3 convolution without pooling, halve the map at each stage after the first, average the last map
over its positions (so any side from 8 px works) and end in one linear layer, `head`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PreActResNet", "PreActResNet18", "ResNet", "WideResNet28"]


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
        result: Tensor = self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut
        return result


class PreActResNet(nn.Module):
    """A pre-activation residual network (He et al., arXiv 1603.05027) of basic blocks.

    Convolutions start from Kaiming normal in fan-out mode, as in the training code that paper 2505.21574 follows
    (App. F.1) and in that of arXiv 1605.07146.

    Args:
        stem: channels of the first convolution.
        widths: channels of each stage.
        blocks: blocks a stage.
    """

    def __init__(self, num_classes: int, channels: int, stem: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        channels_in = stem
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(_PreActBlock(channels_in, width, 2 if stage > 0 and block == 0 else 1))
                channels_in = width
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels_in)
        self.head = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))  # (B, widths[-1], h, w)
        out: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class PreActResNet18(PreActResNet):
    """PreAct-ResNet18 with a 3x3 stem, the papers' CIFAR model: four stages of two blocks, 11.2 M weights."""

    def __init__(self, num_classes: int, channels: int, width: int = 64) -> None:
        super().__init__(num_classes, channels, width, [width * 2**stage for stage in range(4)], 2)


class WideResNet28(PreActResNet):
    """WRN-28-10 (Zagoruyko and Komodakis, arXiv 1605.07146): three stages of four blocks, 36.5 M weights.

    Without dropout, as its authors train it with crop and flip. `width` is that of the stem; the stages have 10, 20
    and 40 times as many channels.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 16) -> None:
        super().__init__(num_classes, channels, width, [10 * width * 2**stage for stage in range(3)], 4)


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - channels_in
        self.shortcut: nn.Module | None = None
        if projection and (stride != 1 or self.added):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            return F.relu(out + self.shortcut(x))
        if self.stride != 1 or self.added:
            # Option A: every second pixel, and zeros for the new channels, half of them on either side.
            front = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.added - front))
        return F.relu(out + x)


class ResNet(nn.Module):
    """He et al.'s residual network for small images (arXiv 1512.03385, Section 4.2).

    ResNet20 and ResNet32 have three stages of 16, 32 and 64 channels with 3 and 5 blocks each and shortcuts without
    weights (option A): 0.27 M and 0.46 M weights. ResNet18 has four stages of 64 to 512 channels with two blocks each
    and projections (option B): the ImageNet network with a 3x3 stem and without its pooling, 11.2 M weights.
    Convolutions start from Kaiming normal (fan-in).

    Args:
        widths: channels of each stage; the first is also that of the stem.
        blocks: blocks a stage.
        projection: shortcuts that change the shape are 1x1 convolutions with BatchNorm (option B), not option A.
    """

    def __init__(
        self, num_classes: int, channels: int, widths: Sequence[int], blocks: int, projection: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        channels_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(_Block(channels_in, width, 2 if stage > 0 and block == 0 else 1, projection))
                channels_in = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))  # (B, widths[-1], h, w)
        out: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out
