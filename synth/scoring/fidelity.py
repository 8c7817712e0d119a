"""Scores of a whole set of images against real ones: Frechet distance, KID, precision and recall, on any features.

All of them depend on the number of images on each side. Compare scores only where both numbers are the same.
"""

import dataclasses
import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import numpy_rng
from latebloom.data.store import local_file, not_installed

__all__ = [
    "FeatureSet",
    "Fidelity",
    "InceptionFeatures",
    "compare",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
]

NEIGHBOURS = 3
SUBSETS = 100
SUBSET_SIZE = 1000
_DISTANCES = 1 << 24  # distances held at once: 128 MiB
_BATCH_SIZE = 64


class FeatureSet:
    """Features of a set of images, and their statistics, each computed once when it is first needed.

    Attributes:
        values: float64 (n, D).
    """

    def __init__(self, features: np.ndarray) -> None:
        self.values = features.astype(np.float64)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dimensions(self) -> int:
        return int(self.values.shape[1])

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """float64 (D,)."""
        return np.asarray(self.values.mean(0))

    @functools.cached_property
    def spread(self) -> np.ndarray:
        """float64 (min(n, D), D): a square root R of the covariance, R^T R (divided by n - 1)."""
        return np.asarray(np.linalg.qr((self.values - self.mean) / np.sqrt(len(self) - 1), mode="r"))

    @functools.cached_property
    def squares(self) -> np.ndarray:
        """float64 (n,): squared lengths."""
        return np.asarray((self.values**2).sum(1))

    @functools.cached_property
    def squared_radii(self) -> np.ndarray:
        """float64 (n,): squared distance of each image to the `NEIGHBOURS`-th nearest other one of the set."""
        blocks = [np.partition(gap, NEIGHBOURS, axis=1)[:, NEIGHBOURS] for gap in self.squared_distances(self)]
        return np.concatenate(blocks)  # place 0 is the image itself

    def squared_distances(self, other: "FeatureSet") -> Iterator[np.ndarray]:
        """Blocks of the (n, m) squared distances to another set, row after row; exactly 0 between equal images."""
        step = max(1, _DISTANCES // len(other))
        for start in range(0, len(self), step):
            here = slice(start, start + step)
            size = self.squares[here, None] + other.squares
            gap = size - 2 * self.values[here] @ other.values.T
            gap[gap < 1e-12 * size] = 0  # what rounding leaves
            yield gap


def frechet_distance(a: FeatureSet, b: FeatureSet) -> float:
    """Squared Frechet distance of the Gaussians with the sets' means and covariances (FID, arXiv 1706.08500, Eq. 6).

    Biased upwards in small sets. The bias is large where there are no more images than features.

    For covariances A = R^T R and B = S^T S, the trace of (A B)^(1/2) is the sum of the singular values of R S^T. So no
    root of a matrix is needed, which may be singular.

    Raises:
        ValueError: a set of fewer than 2 images, which has no covariance.
    """
    _at_least(2, a, b)
    overlap = np.linalg.svd(a.spread @ b.spread.T, compute_uv=False).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + (a.spread**2).sum() + (b.spread**2).sum() - 2 * overlap
    return max(0.0, float(distance))


def kernel_distance(a: FeatureSet, b: FeatureSet, seed: int) -> tuple[float, float]:
    """Kernel distance (KID, arXiv 1801.01401, Sec. 4): the unbiased estimate of MMD^2 with kernel (x y / D + 1)^3.

    It is unbiased at any size, so sets from one distribution give about 0, above or below.

    Args:
        seed: draws the subsets.

    Returns:
        Mean and standard deviation over 100 subsets of 1000 images a side, or of as many as the smaller side has. The
        deviation is that between subsets, not an error of the mean, since subsets overlap.

    Raises:
        ValueError: a set of fewer than 2 images.
    """
    _at_least(2, a, b)
    size = _subset_size(a, b)
    rng = numpy_rng(seed, "kernel distance")
    values = np.empty(SUBSETS)
    for number in range(SUBSETS):
        x = a.values[rng.choice(len(a), size, replace=False)]
        y = b.values[rng.choice(len(b), size, replace=False)]
        within = _off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y))
        values[number] = within - 2 * _kernel(x, y).mean()
    return float(values.mean()), float(values.std())


def _subset_size(a: FeatureSet, b: FeatureSet) -> int:
    return min(SUBSET_SIZE, len(a), len(b))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _off_diagonal_mean(kernel: np.ndarray) -> float:
    n = len(kernel)
    return float((kernel.sum() - kernel.trace()) / (n * (n - 1)))


def precision_recall(real: FeatureSet, synthetic: FeatureSet) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, Eq. 1 and 2) with 3 neighbours, each 0..1.

    An image's radius is its distance to its third neighbour. Precision is the fraction of synthetic images within the
    radius of a real one (are they realistic), recall that of real images within the radius of a synthetic one (are
    they diverse). Exact, over all pairs, in bounded memory.

    Raises:
        ValueError: a set of fewer than 4 images, which have no third neighbour.
    """
    _at_least(NEIGHBOURS + 1, real, synthetic)
    return _covered(synthetic, real), _covered(real, synthetic)


def _covered(points: FeatureSet, centres: FeatureSet) -> float:
    """The fraction of points within the radius of any centre."""
    inside = [(gap <= centres.squared_radii).any(1) for gap in points.squared_distances(centres)]
    return float(np.concatenate(inside).mean())


def _at_least(least: int, a: FeatureSet, b: FeatureSet) -> None:
    if min(len(a), len(b)) < least:
        raise ValueError(
            f"got sets of {len(a)} and {len(b)} images, expected at least {least} on each side; add images"
        )


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How near a set of synthetic images is to a set of real ones. None: too few images.

    Attributes:
        frechet: 0 for equal sets; of `frechet_distance`.
        kid, kid_std: about 0 for equal distributions; of `kernel_distance`.
        precision, recall: 0..1; of `precision_recall`.
        note: limits of these numbers; may be empty.
    """

    n_real: int
    n_synthetic: int
    frechet: float | None
    kid: float | None
    kid_std: float | None
    precision: float | None
    recall: float | None
    note: str


def compare(real: FeatureSet, synthetic: FeatureSet, seed: int) -> Fidelity:
    """All scores of two sets, with a note where a set is too small. `seed` draws KID's subsets."""
    fewest, notes = min(len(real), len(synthetic)), []
    frechet = kid = kid_std = precision = recall = None
    if fewest < 2:
        notes.append("one image is no set")
    else:
        frechet = frechet_distance(real, synthetic)
        kid, kid_std = kernel_distance(real, synthetic, seed)
        if fewest <= real.dimensions:
            notes.append(f"Frechet is biased upwards: {fewest} images for {real.dimensions} features")
        if fewest < SUBSET_SIZE:
            notes.append(f"KID from subsets of {fewest} images: its std says little")
    if fewest > NEIGHBOURS:
        precision, recall = precision_recall(real, synthetic)
    elif fewest >= 2:
        notes.append(f"precision and recall need {NEIGHBOURS + 1} images a side")
    return Fidelity(len(real), len(synthetic), frechet, kid, kid_std, precision, recall, "; ".join(notes))


@dataclasses.dataclass(frozen=True)
class InceptionFeatures:
    """The features of published FID and KID values: Inception-v3's 2048, as torch-fidelity ports the original.

    Attributes:
        network: torch-fidelity's `FeatureExtractorInceptionV3`, which also resizes as the original did.
        device: where it works.
    """

    network: Any
    device: torch.device

    @classmethod
    def load(cls, weights: Path, device: torch.device) -> "InceptionFeatures":
        """Load torch-fidelity's Inception weights from a file; nothing is downloaded.

        Raises:
            ValueError: torch-fidelity is not installed, no such file, or other weights in it.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(not_installed("an Inception score", "torch-fidelity", "fidelity")) from error
        if not weights.is_file():
            raise ValueError(f"no Inception weights at {weights}: get {URL_INCEPTION_V3} and name that file")
        try:
            # torch-fidelity unpickles the file without a check. A file that loads here holds tensors and no code.
            with local_file(weights) as file:
                torch.load(file, map_location="cpu", weights_only=True)
                network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
                )
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(f"{weights} does not hold the weights of {URL_INCEPTION_V3}: get that file") from error
        return cls(network.to(device).eval(), device)

    @torch.inference_mode()
    def __call__(self, data: LabeledImages) -> np.ndarray:
        """float32 (N, 2048), in the order of the images; grey is repeated in all three channels."""
        features = []
        for start in range(0, len(data), _BATCH_SIZE):
            pixels = data.pixels(np.arange(start, min(start + _BATCH_SIZE, len(data))))
            batch = torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2))).to(self.device)
            features.append(self.network(batch.expand(-1, 3, -1, -1))[0].cpu())
        return torch.cat(features).numpy()
