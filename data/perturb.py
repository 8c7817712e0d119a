"""Harder training sets: wrong labels and unequal classes, decided by a seed and recorded."""

import dataclasses

import numpy as np

from latebloom.data.config import PerturbConfig
from latebloom.data.images import LabeledImages

__all__ = ["Perturbed", "class_shares", "noise_targets", "perturb"]

# Mistakes that people would make, from "Making Deep Neural Networks Robust to Label Noise" (arXiv 1609.03683).
_CIFAR10_PAIRS = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}
_CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}


@dataclasses.dataclass(frozen=True)
class Perturbed:
    """What `perturb` made.

    Attributes:
        data: the kept images, in their old order, with the labels to train on.
        kept: int64 (n,) ascending, the rows of the input that were kept; `input.labels[kept]` are the true labels.
        flipped: int64 ascending, the rows of `data` whose label was changed.
    """

    data: LabeledImages
    kept: np.ndarray
    flipped: np.ndarray


def perturb(data: LabeledImages, config: PerturbConfig, seed: int) -> Perturbed:
    """Remove images by class, then change labels, as `config` says.

    For training images only; test images stay as they are.

    - Imbalance: of the n images of class c, floor(n * share_c) are drawn (`class_shares`), at least one unless the
      share is 0. A class without images (linear with linear_least 0) keeps its name and number, so a model still has
      an output for it. (A data set that is read with such a class is refused, see data/sources.)
    - Symmetric noise: exactly round(p * n) of all images, drawn without regard to class (not stratified).
    - Asymmetric noise: exactly round(p * n_c) of the images of each affected class c (`noise_targets`).

    With the same seed, a larger noise fraction makes the same changes and more, and a stronger imbalance keeps a subset
    of the images that a weaker one keeps.

    Raises:
        ValueError: noise with a single class, or an imbalance that leaves no image.
    """
    kept = np.arange(len(data))
    if config.imbalance != "none":
        kept = _kept(data.labels, class_shares(config, data.num_classes), seed)
        if not len(kept):
            raise ValueError(f"{data.origin}: the imbalance leaves no image; give a linear_least above 0")
    labels = data.labels[kept]
    if config.noise != "none":
        labels = _noisy(labels, data.class_names, config, seed)
    flipped = np.flatnonzero(labels != data.labels[kept])
    if len(kept) == len(data) and not len(flipped):
        return Perturbed(data, kept, flipped)
    names = [config.imbalance] * (config.imbalance != "none") + [f"{config.noise} noise"] * (config.noise != "none")
    made = dataclasses.replace(data.subset(kept, f"{data.origin} ({', '.join(names)})"), labels=labels)
    return Perturbed(made, kept, flipped)


def class_shares(config: PerturbConfig, num_classes: int) -> np.ndarray:
    """float64 (C,): the share of its images that each class keeps, 0 to 1.

    long_tailed: factor^(-c / (C - 1)), "Class-Balanced Loss Based on Effective Number of Samples" (arXiv 1901.05555).
    linear: max(c / C, linear_least); c / C is "10c%" of ten classes in "Adaptive Second Order Coresets for
    Data-efficient Machine Learning" (arXiv 2207.13887), whose 22,500 of CIFAR-10's images have none of class 0.
    """
    c = np.arange(num_classes)
    if config.imbalance == "long_tailed":
        return config.imbalance_factor ** (-c / max(num_classes - 1, 1))
    if config.imbalance == "linear":
        return np.maximum(c / num_classes, config.linear_least)
    return np.ones(num_classes)


def noise_targets(class_names: tuple[str, ...]) -> np.ndarray:
    """int64 (C,): the class that asymmetric noise turns each class into; an unaffected class has itself.

    CIFAR-10's published pairs where the class names are CIFAR-10's, in any order; else c + 1 modulo C, as published
    for CIFAR-100 (both arXiv 1609.03683).
    """
    if set(class_names) == _CIFAR10 and len(class_names) == len(_CIFAR10):
        return np.array([class_names.index(_CIFAR10_PAIRS.get(name, name)) for name in class_names])
    return (np.arange(len(class_names)) + 1) % len(class_names)


def _kept(labels: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    from latebloom.data.seeds import numpy_rng  # torch: an import of seconds that help texts should not wait for

    parts = []
    for c, share in enumerate(shares):
        rows = numpy_rng(seed, "imbalance", c).permutation(np.flatnonzero(labels == c))
        count = int(len(rows) * share + 1e-9)  # rounded down, as published; 5000 * 100^-1 must be 50, not 49
        parts.append(rows[: max(count, 1 if share else 0)])
    return np.sort(np.concatenate(parts))


def _noisy(labels: np.ndarray, class_names: tuple[str, ...], config: PerturbConfig, seed: int) -> np.ndarray:
    from latebloom.data.seeds import numpy_rng

    num_classes = len(class_names)
    if num_classes < 2:
        raise ValueError(f"got {num_classes} class, expected at least 2 for label noise; set perturb.noise to none")
    noisy = labels.copy()
    if config.noise == "symmetric":
        rng = numpy_rng(seed, "noise", "symmetric")
        offsets = rng.integers(1, num_classes, len(labels))  # drawn for all: they do not depend on the fraction
        rows = rng.permutation(len(labels))[: round(config.noise_fraction * len(labels))]
        noisy[rows] = (labels[rows] + offsets[rows]) % num_classes
        return noisy
    for c, target in enumerate(noise_targets(class_names)):
        rows = numpy_rng(seed, "noise", "asymmetric", c).permutation(np.flatnonzero(labels == c))
        noisy[rows[: round(config.noise_fraction * len(rows))]] = target
    return noisy
