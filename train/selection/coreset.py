"""Which examples stand for a training set: a model's outputs on all of it in, rows and weights out."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from latebloom.data.seeds import numpy_rng
from latebloom.train.config import SCORED, CoresetConfig
from latebloom.train.config import CoresetMethod as Method
from latebloom.train.evaluate import losses_of
from latebloom.train.selection import pursuit, scores
from latebloom.train.selection.budgets import budgets
from latebloom.train.selection.facility import Points, facility_location_by_class
from latebloom.train.selection.gradients import (
    Moments,
    curvatures,
    last_layer_curvatures,
    last_layer_gradients,
    residuals,
    varying_curvature,
)

__all__ = [
    "Coreset",
    "CoresetConfig",
    "Evidence",
    "Method",
    "budgets",
    "normalised",
    "select_coreset",
    "updated_moments",
]

_CHUNK = 4096  # examples whose gradients are written out at a time
_MOST_BYTES = 16 << 30  # of adacore's last-layer gradients


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A model's outputs on the pool, the N examples that are selected from.

    Attributes:
        logits: float32 (N, C), eval mode, no augmentation.
        labels: int64 (N,).
        features: float32 (N, D), the input of the last layer, without the bias's 1.
        forgotten: float (N,), how often an example went from right to wrong in training, inf if it was never right; for
            forgetting.
        ensemble: logits and features of further models, for the means of el2n and grand.
        moments: averages over selections (see `updated_moments`), for adacore; None: these outputs alone.
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    forgotten: np.ndarray | None = None
    ensemble: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    moments: Moments | None = None


@dataclasses.dataclass(frozen=True)
class Coreset:
    """The selected examples.

    Attributes:
        indices: int64 (B,), rows of the pool, class after class; within a class in the order of their selection, or
            from the highest score down.
        weights: float32 (B,), how many examples of its class each one stands for (gamma). Within each class they sum to
            its size (gradmatch: to less, the larger its ridge beside the gradients). 1 for methods without weights.
        owner: int64 (N,), for each row of the pool the selected row that stands for it; -1 in a class of which nothing
            is selected. None for methods without facility location.
        scores: float32 (N,), of all rows, the highest selected first; inf where forgetting never saw an example right.
            None for methods that do not rank by one score.
    """

    indices: np.ndarray
    weights: np.ndarray
    owner: np.ndarray | None = None
    scores: np.ndarray | None = None


def normalised(weights: np.ndarray) -> np.ndarray:
    """Weights scaled to a mean of 1, float32 (B,), so that they do not change the learning rate.

    Raises:
        ValueError: their sum is not a positive number.
    """
    total = weights.sum(dtype=np.float64)
    if not (np.isfinite(total) and total > 0):
        raise ValueError(f"weights sum to {total}, expected a number above 0; select anew, or give weights=none")
    result: np.ndarray = (weights * (len(weights) / total)).astype(np.float32)
    return result


def select_coreset(
    evidence: Evidence, config: CoresetConfig, seed: int, *, threads: int = 0, device: str | None = None
) -> Coreset:
    """Select the examples that `config` asks for.

    By one score per example, the highest first, ties to the lowest row: random, max_loss (cross-entropy),
    least_confidence (1 - max p), entropy, margin (1 - (p1 - p2)), forgetting (events, never learned first), el2n
    (|p - y|) and grand (norm of the last layer's gradient), the last two as means over models.

    Greedily within each class: herding (mean of features), k_center (distance of features), contextual_diversity
    (k_center by symmetric KL of probabilities), craig and dea (facility location by distance of gradients), adacore
    (gradients over damped curvature), lcmat (gradients and curvature of the last layer), gradmatch (weights >= 0 whose
    gradients sum to the class's), glister (each example lowers the loss of its class most).

    A smaller budget gives a prefix of each class, except for gradmatch, which may drop a selected example again.

    Args:
        seed: of random, and of the first example of k_center and contextual_diversity.
        threads: of facility location, over classes; 0: as many as there are cores. adacore with the last layer's
            gradients writes out those of one class in each thread, 4 n C (D + 1) bytes.
        device: of facility location; None: the CPU.

    Raises:
        ValueError: evidence that is missing, does not fit or is not finite; a budget that `budgets` refuses; adacore's
            gradients would take more than 16 GiB.
    """
    _check(evidence, config)
    counts = budgets(evidence.labels, evidence.logits.shape[1], config)
    if config.method in SCORED:
        score = _score(evidence, config.method, seed)
        selected = scores.top(score, evidence.labels, counts, config.budget != "none")
        return Coreset(selected, np.ones(len(selected), np.float32), scores=score.astype(np.float32))
    if config.method in ("craig", "dea", "adacore", "lcmat"):
        medoids = facility_location_by_class(
            _points(evidence, config),
            evidence.labels,
            counts,
            threads=threads,
            device=device,
            similarity=config.dea_similarity if config.method == "dea" else "distance",
        )
        owner = np.full(len(evidence.labels), -1, np.int64)
        for label in np.flatnonzero(counts):
            owner[evidence.labels == label] = medoids[label].indices[medoids[label].owner]
        return Coreset(
            np.concatenate([one.indices for one in medoids]), np.concatenate([one.weights for one in medoids]), owner
        )
    found = [
        _pursued(evidence, config, np.flatnonzero(evidence.labels == label), int(counts[label]), seed)
        for label in np.flatnonzero(counts)
    ]
    return Coreset(np.concatenate([rows for rows, _ in found]), np.concatenate([gamma for _, gamma in found]))


def updated_moments(evidence: Evidence, config: CoresetConfig, moments: Moments | None = None) -> Moments:
    """Take the outputs on the whole pool into adacore's running averages; to be called before each selection.

    Args:
        moments: the averages so far, changed in place; None begins them. They take 8 N W bytes, with W = C, or
            C * (D + 1) for the last layer's gradients.

    Raises:
        ValueError: as `select_coreset`; here the 16 GiB include the averages.
    """
    _check(evidence, config)
    _check_memory(evidence, config, averaged=True)
    shared = _pool_curvature(evidence, config)
    size = len(evidence.labels)
    if moments is None:
        decays = config.adacore_gradient_decay, config.adacore_curvature_decay
        moments = Moments(size, _width(evidence, config), *decays)
    for start in range(0, size, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, size))
        gradients, curvature = _second_order(evidence, config, shared, rows)
        moments.update(rows, gradients, np.broadcast_to(curvature, gradients.shape))
    return moments


def _check(evidence: Evidence, config: CoresetConfig) -> None:
    method, n = config.method, len(evidence.labels)
    _check_outputs("pool", evidence.logits, evidence.labels, evidence.features)
    if method == "forgetting":
        if evidence.forgotten is None:
            raise ValueError(
                "Evidence.forgotten is None, but forgetting needs how often training forgot each example; take "
                "Mixer.forgotten of a training that counted it"
            )
        if evidence.forgotten.shape != (n,) or np.isnan(evidence.forgotten).any():
            raise ValueError(
                f"Evidence.forgotten is {evidence.forgotten.shape}, expected float ({n},) without NaN; give one each"
            )
    if method in ("el2n", "grand"):
        for logits, features in evidence.ensemble:
            _check_outputs("pool by a further model", logits, evidence.labels, features)
    if method == "adacore" and evidence.moments is not None and len(evidence.moments) != n:
        raise ValueError(f"moments are of {len(evidence.moments)} examples, the pool has {n}; begin new ones")


def _check_memory(evidence: Evidence, config: CoresetConfig, averaged: bool) -> None:
    """Raise ValueError if adacore's gradients of the last layer are too large to be written out."""
    largest = int(np.bincount(evidence.labels, minlength=1).max())
    rows = largest + (2 * len(evidence.labels) if averaged else 0)  # of one class, and both averages of all
    size = 4 * rows * _width(evidence, config)
    if config.gradient == "last_layer" and size > _MOST_BYTES:
        raise ValueError(
            f"adacore would write out {size / 2**30:.1f} GiB of the last layer's gradients, more than "
            f"{_MOST_BYTES / 2**30:.0f} GiB; give gradient=logits"
        )


def _check_outputs(whose: str, logits: np.ndarray, labels: np.ndarray, features: np.ndarray) -> None:
    if logits.ndim != 2 or features.ndim != 2 or not labels.shape == logits.shape[:1] == features.shape[:1]:
        raise ValueError(
            f"logits, labels and features of the {whose} are {logits.shape}, {labels.shape} and {features.shape}, "
            "expected (N, C), (N,) and (N, D); give one row of each for every example"
        )
    for name, array in (("logits", logits), ("features", features)):
        bad = int((~np.isfinite(array)).any(1).sum())
        if bad:
            raise ValueError(
                f"{bad} rows of the {name} of the {whose} are not finite: training diverged; lower the learning rate"
            )
    if len(labels) and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        raise ValueError(
            f"labels of the {whose} lie in {labels.min()}..{labels.max()}, expected 0..{logits.shape[1] - 1}; "
            "give logits of all classes"
        )


def _score(evidence: Evidence, method: Method, seed: int) -> np.ndarray:
    """float (N,), the highest selected first."""
    logits, labels = evidence.logits, evidence.labels
    outputs = ((logits, evidence.features), *evidence.ensemble)
    by_method: dict[Method, Callable[[], np.ndarray]] = {
        "random": lambda: numpy_rng(seed, "random coreset").random(len(labels)),
        "max_loss": lambda: losses_of(logits, labels),
        "least_confidence": lambda: scores.least_confidence(logits),
        "entropy": lambda: scores.entropy(logits),
        "margin": lambda: scores.margin(logits),
        "forgetting": lambda: np.asarray(evidence.forgotten),
        "el2n": lambda: scores.el2n([z for z, _ in outputs], labels),
        "grand": lambda: scores.grand(outputs, labels),
    }
    return by_method[method]()


def _with_one(features: np.ndarray) -> np.ndarray:
    """[feature, 1], float32 (n, D + 1): the last layer's gradients are residuals x these."""
    return np.pad(features.astype(np.float32), ((0, 0), (0, 1)), constant_values=1)


def _gradient(evidence: Evidence, config: CoresetConfig, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Residuals (n, C); with gradient=last_layer also the factors (n, D + 1) that make them that layer's gradients."""
    residual = residuals(evidence.logits[rows], evidence.labels[rows])
    return residual, _with_one(evidence.features[rows]) if config.gradient == "last_layer" else None


def _points(evidence: Evidence, config: CoresetConfig) -> Callable[[np.ndarray], Points]:
    """Where the examples of the rows (n,) stand, for facility location."""
    if config.method == "lcmat":
        return partial(_curved_points, evidence, config)
    if config.method != "adacore":
        return partial(_gradient_points, evidence, config)
    _check_memory(evidence, config, averaged=evidence.moments is not None)
    shared = _pool_curvature(evidence, config) if evidence.moments is None else None
    return partial(_preconditioned_points, evidence, config, shared)


def _gradient_points(evidence: Evidence, config: CoresetConfig, rows: np.ndarray) -> Points:
    residual, factors = _gradient(evidence, config, rows)
    return Points(residual, factors)


def _curved_points(evidence: Evidence, config: CoresetConfig, rows: np.ndarray) -> Points:
    """LCMat-S (arXiv 2303.04449), Eq. 10: its code's eps is rho / 2."""
    logits, features = evidence.logits[rows], evidence.features[rows]
    residual = residuals(logits, evidence.labels[rows])
    if config.lcmat_rho == 0:
        return Points(residual, _with_one(features))
    k = int(config.lcmat_k) if config.lcmat_k >= 1 else config.lcmat_k
    return Points(residual, _with_one(features), varying_curvature(logits, features, k), config.lcmat_rho / 2)


def _preconditioned_points(
    evidence: Evidence, config: CoresetConfig, shared: np.ndarray | None, rows: np.ndarray
) -> Points:
    """AdaCore (arXiv 2207.13887), Eq. 10. Damping keeps it finite where p saturates and curvature is 0."""
    if evidence.moments is None:
        gradients, curvature = _second_order(evidence, config, shared, rows)
    else:
        gradients, curvature = evidence.moments.gradients(rows), evidence.moments.curvatures(rows)
    return Points(gradients / (curvature + np.float32(config.adacore_damping)))


def _second_order(
    evidence: Evidence, config: CoresetConfig, shared: np.ndarray | None, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients float32 (n, W) and curvature float32 (n, W), or (W,) where it is `shared`."""
    logits, features = evidence.logits[rows], evidence.features[rows]
    residual = residuals(logits, evidence.labels[rows])
    if config.gradient == "logits":
        gradients, own = residual, curvatures
    else:
        gradients, own = last_layer_gradients(residual, features), partial(last_layer_curvatures, features=features)
    return gradients, (own(logits) if shared is None else shared).astype(np.float32)


def _width(evidence: Evidence, config: CoresetConfig) -> int:
    result: int = evidence.logits.shape[1] * (1 if config.gradient == "logits" else evidence.features.shape[1] + 1)
    return result


def _pool_curvature(evidence: Evidence, config: CoresetConfig) -> np.ndarray | None:
    """The Hessian diagonal float64 (W,) that all examples share; None where each has its own."""
    if config.adacore_curvature == "example":
        return None
    curvature = curvatures(evidence.logits).astype(np.float64)  # (N, C)
    if config.gradient == "logits":
        result: np.ndarray | None = curvature.mean(0)
        return result
    square = np.square(_with_one(evidence.features).astype(np.float64))  # (N, D + 1)
    return (curvature.T @ square / len(square)).ravel()


def _pursued(
    evidence: Evidence, config: CoresetConfig, rows: np.ndarray, budget: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The selected ones of the rows (n,) of a class, in the order of their selection, and weights."""
    if config.method == "gradmatch":
        places, weights = _gradmatch(evidence, config, rows, budget)
        return rows[places], weights
    first = int(numpy_rng(seed, "first pick", int(evidence.labels[rows[0]])).integers(len(rows)))
    by_method: dict[Method, Callable[[], np.ndarray]] = {
        "herding": lambda: pursuit.herding(evidence.features[rows], budget),
        "k_center": lambda: pursuit.k_center(evidence.features[rows], budget, first),
        "contextual_diversity": lambda: pursuit.contextual_diversity(evidence.logits[rows], budget, first),
        "glister": lambda: _glister(evidence, config, rows, budget),
    }
    return rows[by_method[config.method]()], np.ones(budget, np.float32)


def _glister(evidence: Evidence, config: CoresetConfig, rows: np.ndarray, budget: int) -> np.ndarray:
    residual, factors = _gradient(evidence, config, rows)
    logits, labels = evidence.logits[rows], evidence.labels[rows]
    return pursuit.glister(residual, factors, budget, config.glister_lr, logits, labels, factors)


def _gradmatch(
    evidence: Evidence, config: CoresetConfig, rows: np.ndarray, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    residual, factors = _gradient(evidence, config, rows)
    mean = residual.mean(0) if factors is None else residual.T @ factors / len(residual)
    target = mean.astype(np.float64) * len(rows)
    selected, weights = pursuit.matching_pursuit(residual, factors, target, budget, config.gradmatch_ridge)
    if not target.any():  # any weights match a target of 0
        weights = np.full(len(selected), len(rows) / len(selected), np.float32)
    return selected, weights
