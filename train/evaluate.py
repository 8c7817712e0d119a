"""Logits once, in eval mode; every metric is one line on them."""

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.batches import Pixels
from latebloom.data.images import LabeledImages

__all__ = ["error_rate", "features_of", "logits_of", "look", "losses_of", "softmax"]


def logits_of(model: nn.Module, data: LabeledImages, batch_size: int = 512) -> np.ndarray:
    """Logits float32 (N, K) of all images in their order, without augmentation, on the model's device.

    In eval mode, so that a row does not depend on its batch. The model's mode is put back.
    """
    pixels = Pixels(data, next(model.parameters()).device)
    return _logits(model, pixels, np.arange(len(data)), batch_size)


def features_of(model: nn.Module, data: LabeledImages, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (N, K) as `logits_of` gives them, and features float32 (N, D): what the last layer gets.

    The last layer is the last linear one, or convolution where there is none behind it (SqueezeNet ends in one); a
    convolution's input is averaged over its positions.

    Raises:
        ValueError: the model has neither.
    """
    pixels = Pixels(data, next(model.parameters()).device)
    return look(model, pixels, np.arange(len(data)), batch_size)


def look(model: nn.Module, pixels: Pixels, rows: np.ndarray, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """As `features_of`, of the rows int64 (n,) of images that are at hand."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer and no convolution, so no features to read")
    features: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs  # (B, D) or (B, D, h, w)
        x = x.mean((2, 3)) if x.ndim == 4 else x
        # A copy: the input may be a view (a ViT's class token) that would hold a whole batch's activations.
        features.append(x.to("cpu", torch.float32, copy=True))

    hook = layers[-1].register_forward_pre_hook(keep)
    try:
        logits = _logits(model, pixels, rows, batch_size)
    finally:
        hook.remove()
    return logits, torch.cat(features).numpy()


def _logits(model: nn.Module, pixels: Pixels, rows: np.ndarray, batch_size: int) -> np.ndarray:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            batches = [model(images.float().div_(255)).cpu() for images in pixels.batches(groups)]
    finally:
        model.train(was_training)
    return torch.cat(batches).float().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 (N, K) of logits (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponent = np.exp(shifted)
    return exponent / exponent.sum(1, keepdims=True)


def losses_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy float64 (N,) of each row of logits (N, K) with its label (N,)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def error_rate(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fraction 0..1 of rows whose largest logit is not at the label."""
    return float(np.mean(logits.argmax(1) != labels))
