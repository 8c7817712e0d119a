"""The classifiers by name: our own for small images (here, resnets.py, vit.py), torchvision's and timm's.

All take float (B, C, H, W) in [0, 1] and give logits (B, num_classes). torchvision's and timm's models are built as
they are published, with their stem, as in paper 2505.21574 (App. F.1). At 32 px their maps are small: VGG19 ends on
1x1, which it repeats to 7x7 for its linear layers; ResNets and DenseNets have 8x8 after their stem and end on 1x1;
ConvNeXt and Swin begin with 8x8 patches and end on 1x1. torchvision's dropout (VGG19 0.5) and stochastic depth
(ConvNeXt-T 0.1, Swin-T 0.2) keep their published rates; timm's are set to 0.
"""

import contextlib
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latebloom.data.seeds import torch_stream
from latebloom.data.store import as_path, local_file, not_installed
from latebloom.train.evaluate import eval_mode
from latebloom.train.models.names import no_such_classifier
from latebloom.train.models.resnets import PreActResNet18, ResNet, WideResNet28
from latebloom.train.models.vit import ViT

__all__ = ["SmallCNN", "build"]

MIN_SIDE = 8


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
        out: Tensor = self.head(x.flatten(1))
        return out


class _GreyToColour(nn.Module):
    """A three-channel model as a model of one-channel images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x.expand(-1, 3, -1, -1))
        return out


class _Normalised(nn.Module):
    """A model of (x - mean) / std as a model of x in [0, 1].

    Mean and std are buffers, so a checkpoint holds what its weights were trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model((x - self.mean) / self.std)
        return out


def _resnet(blocks: int) -> Callable[[int, tuple[int, int, int], int], nn.Module]:
    return lambda k, shape, width: ResNet(k, shape[2], [(width or 16) * 2**s for s in range(3)], blocks)


# name -> (classes, (H, W, C), width or 0) -> model
_OWN: dict[str, Callable[[int, tuple[int, int, int], int], nn.Module]] = {
    "small-cnn": lambda k, shape, width: SmallCNN(k, shape[2], width or 8),
    "preact-resnet18": lambda k, shape, width: PreActResNet18(k, shape[2], width or 64),
    "resnet18": lambda k, shape, width: ResNet(k, shape[2], [(width or 64) * 2**s for s in range(4)], 2, True),
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "wrn-28-10": lambda k, shape, width: WideResNet28(k, shape[2], width or 16),
    "vit-s4": lambda k, shape, width: ViT(k, shape[2], shape[:2], width or 768),
}


def build(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    width: int = 0,
    weights: str = "",
) -> nn.Module:
    """Make a classifier, on the CPU: with fresh weights drawn from `seed`, or with those of a file.

    The output layer is always for `num_classes`. From a file for another number of classes all layers but that one are
    loaded; any other difference is an error. Weights of torchvision and timm were trained on normalised images, so a
    model with such weights first subtracts the mean and divides by the standard deviation: ImageNet's for torchvision,
    timm's own for each name. A three-channel model gets a one-channel image as three equal channels; a fresh timm model
    is made for one channel.

    Args:
        name: `small-cnn`, `preact-resnet18`, `resnet18` (3x3 stem), `resnet20`, `resnet32`, `wrn-28-10`, `vit-s4`,
            `torchvision:<name>` or `timm:<name>`. A name alone that is none of ours is torchvision's, else timm's.
        image_shape: (H, W, C) of the images it will see.
        width: channels of the first layer, for our own; 0 takes the published one.
        weights: path or URL of a state dict: .safetensors, or .pth as torchvision publishes them; of a .pth only the
            tensors are read and no pickled code is run. Empty: fresh weights.

    Raises:
        ValueError: unknown name, an image it cannot take, timm missing, a model that does not give plain logits, or
            weights that cannot be read or do not fit.
    """
    height, image_width, _ = image_shape
    if min(height, image_width) < MIN_SIDE:
        raise ValueError(
            f"images are {image_width}x{height}, classifiers need {MIN_SIDE} px a side; set image_size to that or more"
        )
    name = _whole_name(name)
    library, colon, rest = name.partition(":")
    with torch_stream(seed, "model", name):
        if name in _OWN:
            model = _OWN[name](num_classes, image_shape, width)
            if weights:
                _load_weights(model, name, weights)
        elif colon and library in ("torchvision", "timm"):
            if width:
                raise ValueError(f"width has no meaning for {name}; leave it at 0")
            make = _torchvision if library == "torchvision" else _timm
            model = make(rest, num_classes, image_shape, weights)
        else:
            raise no_such_classifier(name)
    _check_forward(model, name, image_shape, num_classes)
    return model


def _whole_name(name: str) -> str:
    """A name as `build` knows it: one that is not ours and that torchvision has, or timm alone, with its library."""
    if name in _OWN or ":" in name:
        return name
    if name in _torchvision_names():
        return f"torchvision:{name}"
    with contextlib.suppress(ImportError):
        import timm

        if timm.is_model(name):
            return f"timm:{name}"
    return name


def _torchvision_names() -> list[str]:
    import torchvision.models

    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision(name: str, num_classes: int, image_shape: tuple[int, int, int], weights: str) -> nn.Module:
    import torchvision.models

    known = _torchvision_names()
    if name not in known:
        raise no_such_classifier(f"torchvision:{name}")
    if name in ("googlenet", "inception_v3"):
        raise ValueError(f"torchvision:{name} trains with auxiliary outputs, which Latebloom does not; choose another")
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if weights:
        _load_weights(model, f"torchvision:{name}", weights)
        model = _Normalised(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return _GreyToColour(model) if image_shape[2] == 1 else model


def _timm(name: str, num_classes: int, image_shape: tuple[int, int, int], weights: str) -> nn.Module:
    try:
        import timm
        from timm.layers.drop import DropPath
    except ImportError as error:
        raise ValueError(not_installed(f"timm:{name}", "timm", "timm")) from error
    if not timm.is_model(name):
        raise no_such_classifier(f"timm:{name}")
    height, width, channels = image_shape
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": 3 if weights else channels}
    try:
        published = timm.get_pretrained_cfg(name)
        if published is not None and published.fixed_input_size:
            options["img_size"] = (height, width)  # a transformer's positions are for one size
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"timm:{name} cannot be made for images of {width}x{height}: {_line(error)}") from error
    for module in model.modules():  # some of timm's models have stochastic depth by default
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    if not weights:
        return model
    if published is None:
        raise ValueError(
            f"timm has no mean and standard deviation for images of timm:{name}, which its weights need; train it "
            "without weights"
        )
    _load_weights(model, f"timm:{name}", weights)
    model = _Normalised(model, published.mean, published.std)
    return _GreyToColour(model) if channels == 1 else model


def _load_weights(model: nn.Module, name: str, weights: str) -> None:
    """Load a state dict. Its output layer may be for another number of classes: then the model's own stays."""
    state, own = _read_weights(weights), model.state_dict()
    # The last linear layer, or convolution (SqueezeNet), as in `evaluate.features_of`.
    head = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    given, wanted = state.get(f"{head}.weight"), own[f"{head}.weight"]
    if given is not None and len(given) != len(wanted) and given.shape[1:] == wanted.shape[1:]:
        state |= {key: own[key] for key in (f"{head}.weight", f"{head}.bias") if key in own}
    # Files older than torch 0.4.1 lack BatchNorm's counter, which only a cumulative average uses.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [f"missing {_few(missing)}"] * bool(missing) + [f"unknown {_few(unknown)}"] * bool(unknown)
    faults += [_few(wrong)] * bool(wrong)
    if faults:
        raise ValueError(
            f"{weights} does not fit {name}: {'; '.join(faults)}; give weights of this model, or another model"
        )
    model.load_state_dict(state, strict=False)


def _read_weights(weights: str) -> dict[str, Tensor]:
    path = as_path(weights)
    if not path.is_file():
        raise ValueError(f"there is no file at {weights}; give an existing .safetensors or .pth file as weights")
    with local_file(path) as local:
        if path.suffix == ".safetensors":
            try:
                return safetensors.torch.load_file(local)
            except safetensors.SafetensorError as error:
                raise ValueError(
                    f"{weights} cannot be read as safetensors ({_line(error)}); download or save it again"
                ) from error
        if path.suffix not in (".pth", ".pt", ".bin"):
            raise ValueError(
                f"{weights} is {path.suffix or 'without a suffix'}, expected .safetensors or .pth; convert it"
            )
        try:
            with warnings.catch_warnings():  # torch's, about pickle protocols: the file can be read nevertheless
                warnings.simplefilter("ignore", UserWarning)
                state = torch.load(local, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{weights} is damaged, or holds more than tensors, which could run code when read; "
                "save model.state_dict() alone, or use safetensors"
            ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{weights} holds a {type(state).__name__}, expected a dict of tensors; save model.state_dict() alone"
        )
    others = [str(key) for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others or not state:
        what = f"with {_few(others)} that are no tensors" if others else "without entries"
        raise ValueError(f"{weights} holds a dict {what}, expected a dict of tensors; save model.state_dict() alone")
    return dict(state)


def _few(items: Sequence[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_forward(model: nn.Module, name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise ValueError if the model cannot take such images: now, and not after an hour of training."""
    height, width, channels = image_shape
    try:
        with eval_mode(model), torch.inference_mode():
            logits = model(torch.zeros(1, channels, height, width))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{name} cannot take images of {width}x{height} ({_line(error)}); choose another model, or resize the "
            "images with image_size"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        got = f"logits {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"{name} gives {got} for one image, expected logits (1, {num_classes}); choose a classifier")
