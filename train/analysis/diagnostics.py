"""What augmentation does to training: variance of minibatch gradients, and the spectrum of the network's Jacobian.

No command uses this yet; the papers' analysis figures will.
"""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from latebloom.data.batches import Pixels
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import numpy_rng
from latebloom.train.evaluate import eval_mode

__all__ = [
    "GradientVariance",
    "Spectrum",
    "SpectrumChange",
    "compare_spectra",
    "gradient_variance",
    "jacobian_spectrum",
    "subspace_angles",
]


@dataclasses.dataclass(frozen=True)
class GradientVariance:
    """Of minibatch gradients g_B around the gradient g over all examples.

    Attributes:
        variance: estimate of E ||g_B - g||^2, unbiased.
        standard_error: of that estimate; NaN for one batch.
        squared_norm: ||g||^2, exact.
    """

    variance: float
    standard_error: float
    squared_norm: float


def gradient_variance(
    model: nn.Module, data: LabeledImages, rows: np.ndarray, batch_size: int, batches: int, seed: int
) -> GradientVariance:
    """E ||g_B - g||^2 of the mean cross-entropy's gradient for all weights (arXiv 2505.21574, Thm 4.3 and Fig. 7).

    In eval mode and without augmentation, so that it depends on the weights and the examples alone. g is computed over
    all examples and not estimated, so the estimate needs no correction. Model, gradients and mode do not change.

    Args:
        rows: int64 (n,), the examples of an epoch; a row may be there several times, as when it is upsampled.
        batch_size: of the minibatches, each drawn without replacement from `rows`, independently of the others.
        batches: how many are drawn, at least 1.
        seed: of the drawing.

    Raises:
        ValueError: a batch is larger than the set, or there is none.
    """
    if not 1 <= batch_size <= len(rows) or batches < 1:
        raise ValueError(
            f"asked for {batches} batches of {batch_size}, expected at least one of 1 to {len(rows)} examples"
        )
    weights = [w for w in model.parameters() if w.requires_grad]
    device = weights[0].device
    pixels = Pixels(data, device)
    labels = torch.from_numpy(data.labels).to(device)

    def summed(chosen: np.ndarray) -> Tensor:
        """Gradient of the summed loss of the rows, float64 (P,); in parts, since all of them need not fit."""
        total = torch.zeros(sum(w.numel() for w in weights), dtype=torch.float64, device=device)
        for start in range(0, len(chosen), 512):
            part = chosen[start : start + 512]
            logits = model(pixels[part].float().div_(255))
            loss = F.cross_entropy(logits, labels[torch.from_numpy(part).to(device)], reduction="sum")
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
            total += torch.cat([g.flatten() for g in gradients])
        return total

    rng = numpy_rng(seed, "gradient variance")
    with eval_mode(model):
        full = summed(rows) / len(rows)
        distances = [
            float((summed(rng.choice(rows, batch_size, replace=False)) / batch_size - full).square().sum())
            for _ in range(batches)
        ]
    error = float(np.std(distances, ddof=1)) / math.sqrt(batches) if batches > 1 else math.nan
    return GradientVariance(math.fsum(distances) / batches, error, float(full.square().sum()))


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values float64 (m,) of a Jacobian with m rows, largest first; left singular vectors float64 (m, m)."""

    values: Tensor
    left: Tensor


def jacobian_spectrum(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    chunk: int = 32,
    memory_bytes: int = 2 << 30,
) -> Spectrum:
    """Singular values and left singular vectors of the logits' Jacobian by the weights (arXiv 2210.08363, App. C).

    By the Gram matrix J J^T in float64, so that J (m, weights) need not fit: beyond `memory_bytes` it is computed again
    for each block of rows. In eval mode; the model does not change.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,): the logit whose gradient is an image's row of J, m = N; None: all logits, m = N * classes,
            with the rows of an image side by side. The paper does not say which output it differentiates.
        chunk: images whose Jacobians are computed at once.
    """
    weights = {name: w.detach() for name, w in model.named_parameters()}
    buffers = dict(model.named_buffers())
    total = sum(w.numel() for w in weights.values())

    def logits(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        result: Tensor = functional_call(model, (weights, buffers), (image[None],))[0]
        return result

    def logit(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return logits(weights, image).gather(0, label[None])[0]

    def jacobian(start: int, stop: int) -> Tensor:
        """Of the images start..stop-1, float32 (rows, P)."""
        parts = []
        for first in range(start, stop, chunk):
            some = slice(first, min(first + chunk, stop))
            batch = images[some].float().div_(255)
            if labels is None:
                each = vmap(jacrev(logits), (None, 0))(weights, batch)  # by name, (b, K, *shape)
                parts.append(torch.cat([j.flatten(2) for j in each.values()], 2).flatten(0, 1))  # (b K, P)
            else:
                each = vmap(grad(logit), (None, 0, 0))(weights, batch, labels[some])
                parts.append(torch.cat([j.flatten(1) for j in each.values()], 1))  # (b, P)
        return torch.cat(parts)

    n = len(images)
    with eval_mode(model), torch.no_grad():
        per_image = 1 if labels is not None else model(images[:1].float().div_(255)).shape[1]
        block = max(1, min(n, memory_bytes // (4 * total * per_image)))
        gram = torch.empty(n * per_image, n * per_image, dtype=torch.float64, device=images.device)
        for start in range(0, n, block):
            own = jacobian(start, min(start + block, n))
            here = slice(start * per_image, start * per_image + len(own))
            gram[here, here] = _products(own, own)
            for later in range(start + block, n, chunk):
                other = jacobian(later, min(later + chunk, n))
                there = slice(later * per_image, later * per_image + len(other))
                gram[here, there] = _products(own, other)
                gram[there, here] = gram[here, there].T
        squares, left = torch.linalg.eigh(gram)  # ascending
    return Spectrum(squares.clamp(min=0).sqrt().flip(0), left.flip(1))


def _products(first: Tensor, second: Tensor) -> Tensor:
    """first @ second.T in float64: in float32, squares would cost the small singular values half of their digits."""
    columns = range(0, first.shape[1], 65_536)  # never all of it as float64
    parts = [first[:, c : c + 65_536].double() @ second[:, c : c + 65_536].double().T for c in columns]
    return torch.stack(parts).sum(0)


def subspace_angles(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles in radians (k,), ascending, between the column spaces of two matrices float64 (m, k).

    From sines below 45 degrees and from cosines above, as Knyazev and Argentati do (SIAM J. Sci. Comput. 23, 2002):
    an arc cosine alone would make 1e-8 of nothing.
    """
    one, two = torch.linalg.qr(first).Q, torch.linalg.qr(second).Q
    overlap = one.T @ two  # (k, k)
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)  # of the smallest angle first
    sines = torch.linalg.svdvals(two - one @ overlap).clamp(max=1).flip(0)[: len(cosines)]
    return torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos())


@dataclasses.dataclass(frozen=True)
class SpectrumChange:
    """How a Jacobian's spectrum changes, in bins of equally many singular values, largest values first.

    Attributes:
        values: float64 (bins,), mean singular value before.
        difference: float64 (bins,), mean of after minus before.
        angle: float64 (bins,), mean principal angle in degrees between the left singular subspaces of a bin.
    """

    values: np.ndarray
    difference: np.ndarray
    angle: np.ndarray


def compare_spectra(before: Spectrum, after: Spectrum, bins: int = 30) -> SpectrumChange:
    """The changes of arXiv 2210.08363, App. C (Fig. 1 and 3), between two sets of images of equal size and order.

    Args:
        bins: their sizes differ by one at most.

    Raises:
        ValueError: spectra of different sizes, or fewer singular values than bins.
    """
    m = len(before.values)
    if m != len(after.values) or not 1 <= bins <= m:
        raise ValueError(
            f"the spectra have {m} and {len(after.values)} singular values, expected equally many, at least {bins}; "
            "give fewer bins, or spectra of the same images"
        )
    rows = []
    for some in np.array_split(np.arange(m), bins):
        one = slice(int(some[0]), int(some[-1]) + 1)
        angles = subspace_angles(before.left[:, one], after.left[:, one])
        change = (after.values[one] - before.values[one]).mean()
        rows.append((before.values[one].mean().item(), change.item(), math.degrees(angles.mean().item())))
    values, difference, angle = np.array(rows).T
    return SpectrumChange(values, difference, angle)
