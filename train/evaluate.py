"""Logits once, in eval mode; every metric is one line on them.

Light to import: the metrics need no torch.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from latebloom.data.images import LabeledImages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latebloom.data.batches import Pixels

__all__ = [
    "error_rate",
    "eval_mode",
    "features_of",
    "forward_pass",
    "logits_of",
    "logits_of_rows",
    "losses_of",
    "softmax",
]


@contextlib.contextmanager
def eval_mode(model: "nn.Module") -> Iterator[None]:
    """Within the block the model is in eval mode; afterwards each of its modules has the mode it had before.

    In train mode, BatchNorm would make what an image gives depend on the others of its batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(model: "nn.Module", data: LabeledImages, batch_size: int = 512) -> np.ndarray:
    """Logits float32 (N, K) of all images in their order, without augmentation, computed on the model's device.

    In eval mode, so that a row does not depend on its batch.
    """
    from latebloom.data.batches import Pixels

    pixels = Pixels(data, next(model.parameters()).device)
    return logits_of_rows(model, pixels, np.arange(len(data)), batch_size)


def features_of(model: "nn.Module", data: LabeledImages, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (N, K) as `logits_of` gives them, and features float32 (N, D): the input of the last layer.

    The last layer is the last linear layer or convolution of the model (SqueezeNet ends in a convolution, whose input
    is averaged over its positions).

    Raises:
        ValueError: the model has neither.
    """
    from latebloom.data.batches import Pixels

    pixels = Pixels(data, next(model.parameters()).device)
    return forward_pass(model, pixels, np.arange(len(data)), batch_size)


def forward_pass(
    model: "nn.Module", pixels: "Pixels", rows: np.ndarray, batch_size: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (n, K) and features float32 (n, D) of the rows int64 (n,) of `pixels`, as `features_of`."""
    import torch
    from torch import nn

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no linear layer and no convolution; features are the input of one, so choose "
            "another model"
        )
    features: list[Tensor] = []

    def keep(_: "nn.Module", inputs: "tuple[Tensor]") -> None:
        (x,) = inputs  # (B, D) or (B, D, h, w)
        x = x.mean((2, 3)) if x.ndim == 4 else x
        # A copy: the input may be a view (a ViT's class token) that would hold a whole batch's activations.
        features.append(x.to("cpu", torch.float32, copy=True))

    hook = layers[-1].register_forward_pre_hook(keep)
    try:
        logits = logits_of_rows(model, pixels, rows, batch_size)
    finally:
        hook.remove()
    return logits, torch.cat(features).numpy()


def logits_of_rows(model: "nn.Module", pixels: "Pixels", rows: np.ndarray, batch_size: int = 512) -> np.ndarray:
    """Logits float32 (n, K) of the rows int64 (n,) of `pixels`, at least one, as `logits_of`."""
    import torch

    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with eval_mode(model), torch.inference_mode():
        batches = [model(images.float().div_(255)).cpu() for images in pixels.batches(groups)]
    return torch.cat(batches).float().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 (N, K) of logits (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponent = np.exp(shifted)
    result: np.ndarray = exponent / exponent.sum(1, keepdims=True)
    return result


def losses_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy float64 (N,) of each row of logits (N, K) with its label (N,)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: np.ndarray = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return result


def error_rate(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fraction 0..1 of rows whose largest logit is not at the label."""
    return float(np.mean(logits.argmax(1) != labels))
