"""Which examples stand for a training set: what a model says of the pool in, rows and weights out."""

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
    """What a model says of the pool of N examples that is picked from.

    Attributes:
        logits: float32 (N, C), eval mode, no augmentation.
        labels: int64 (N,).
        features: float32 (N, D), the input of the last layer, without the bias's 1.
        forgotten: float (N,), how often training forgot an example, inf where it never learned it; for forgetting.
        ensemble: logits and features of further models, for the means of el2n and grand.
        validation: logits, labels and features of a validation set, for glister and gradmatch; None: the pool.
        moments: averages over selections (see `updated_moments`), for adacore; None: this look alone.
        diagonal: float (C,) or, of the last layer, (C * (D + 1),): a Hessian's diagonal that all examples share, such
            as the mean over examples of Hutchinson's estimate; for adacore with adacore_curvature=given.
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    forgotten: np.ndarray | None = None
    ensemble: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    moments: Moments | None = None
    diagonal: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Coreset:
    """The picked examples.

    Attributes:
        indices: int64 (B,), rows of the pool, class after class; within a class in the order they were picked, or from
            the highest score down.
        weights: float32 (B,), how many examples of its class each one stands for (gamma): they sum to the class size
            within each class (gradmatch's to less, the smaller gradients are beside its ridge); 1 where there are none.
    """

    indices: np.ndarray
    weights: np.ndarray


def normalised(weights: np.ndarray) -> np.ndarray:
    """Weights scaled to a mean of 1, float32 (B,), so that they do not change the learning rate.

    Raises:
        ValueError: they sum to nothing.
    """
    total = weights.sum(dtype=np.float64)
    if not (np.isfinite(total) and total > 0):
        raise ValueError(f"weights sum to {total}, so they have no mean to scale by")
    return (weights * (len(weights) / total)).astype(np.float32)


def select_coreset(
    evidence: Evidence, config: CoresetConfig, seed: int, *, threads: int = 0, device: str | None = None
) -> Coreset:
    """Pick the examples that `config` asks for.

    By one score per example, the highest first, ties to the lowest row:
    random (by lot), max_loss (cross-entropy), least_confidence (1 - max p), entropy, margin (1 - (p1 - p2)), forgetting
    (events, never learned first), el2n (|p - y|) and grand (norm of the last layer's gradient), both means over models.

    Greedily within each class: herding (mean of features), k_center (distance of features), contextual_diversity
    (k_center by symmetric KL of probabilities), craig and dea (facility location by distance of gradients), adacore
    (gradients over damped curvature), lcmat (gradients and curvature of the last layer), gradmatch (weights >= 0 whose
    gradients sum to the class's), glister (each pick lowers the validation loss most).

    A smaller budget gives a prefix of each class for all methods but gradmatch, whose picks may leave again.

    Args:
        seed: of random, and of the first pick of k_center and contextual_diversity.
        threads: of facility location, over classes; 0: as many as there are cores. adacore with the last layer's
            gradients writes out those of a class in each, 4 n C (D + 1) bytes.
        device: of facility location; None: the CPU.

    Raises:
        ValueError: evidence that is missing, does not fit or is not finite; a budget that `budgets` refuses; adacore's
            gradients would pass 16 GiB.
    """
    _check(evidence, config)
    counts = budgets(evidence.labels, evidence.logits.shape[1], config)
    if config.method in SCORED:
        picked = scores.top(_score(evidence, config.method, seed), evidence.labels, counts, config.budget != "none")
        return Coreset(picked, np.ones(len(picked), np.float32))
    if config.method in _POINTS:
        if config.method == "adacore":
            _check_memory(evidence, config, averaged=evidence.moments is not None)
        if config.method == "adacore" and evidence.moments is None:
            evidence = _with_diagonal(evidence, config)
        medoids = facility_location_by_class(
            partial(_POINTS[config.method], evidence, config),
            evidence.labels,
            counts,
            threads=threads,
            device=device,
            similarity=config.dea_similarity if config.method == "dea" else "distance",
        )
        found = [(one.indices, one.weights) for one in medoids]
    else:
        found = [
            _pursued(evidence, config, np.flatnonzero(evidence.labels == label), int(counts[label]), seed)
            for label in np.flatnonzero(counts)
        ]
    return Coreset(np.concatenate([rows for rows, _ in found]), np.concatenate([gamma for _, gamma in found]))


def updated_moments(evidence: Evidence, config: CoresetConfig, moments: Moments | None = None) -> Moments:
    """Take a look of the whole pool into adacore's running averages; call it before each selection.

    Args:
        moments: those of the looks before, changed in place; None begins them. They take 8 N W bytes, W = C, or
            C * (D + 1) with the last layer's gradients.

    Raises:
        ValueError: as `select_coreset` does, with the averages in the 16 GiB.
    """
    _check(evidence, config)
    _check_memory(evidence, config, averaged=True)
    evidence = _with_diagonal(evidence, config)
    size = len(evidence.labels)
    if moments is None:
        decays = config.adacore_gradient_decay, config.adacore_curvature_decay
        moments = Moments(size, _width(evidence, config), *decays)
    for start in range(0, size, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, size))
        gradients, curvature = _second_order(evidence, config, rows)
        moments.update(rows, gradients, np.broadcast_to(curvature, gradients.shape))
    return moments


def _check(evidence: Evidence, config: CoresetConfig) -> None:
    method, (n, classes) = config.method, _check_look("pool", evidence.logits, evidence.labels, evidence.features)
    if method == "forgetting":
        if evidence.forgotten is None:
            raise ValueError(
                "forgetting needs the forgetting events of training: give Evidence.forgotten, as forgetting_events "
                "makes it of which examples were right in each epoch"
            )
        if evidence.forgotten.shape != (n,) or np.isnan(evidence.forgotten).any():
            raise ValueError(f"expected forgetting events float ({n},) without NaN, got {evidence.forgotten.shape}")
    if method in ("el2n", "grand"):
        for logits, features in evidence.ensemble:
            _check_look("pool by a further model", logits, evidence.labels, features)
    if method in ("gradmatch", "glister") and evidence.validation is not None:
        logits, labels, features = evidence.validation
        _check_look("validation set", logits, labels, features)
        if logits.shape[1] != classes or features.shape[1] != evidence.features.shape[1]:
            raise ValueError(
                f"the validation set has {logits.shape[1]} classes and {features.shape[1]} features, "
                f"the pool {classes} and {evidence.features.shape[1]}; one model must have looked at both"
            )
    if method == "adacore" and evidence.moments is not None and len(evidence.moments) != n:
        raise ValueError(f"moments are of {len(evidence.moments)} examples, the pool has {n}")


def _check_memory(evidence: Evidence, config: CoresetConfig, averaged: bool) -> None:
    """Raise ValueError where adacore's gradients of the last layer are too large to be written out."""
    largest = int(np.bincount(evidence.labels, minlength=1).max())
    rows = largest + (2 * len(evidence.labels) if averaged else 0)  # of one class, and both averages of all
    size = 4 * rows * _width(evidence, config)
    if config.gradient == "last_layer" and size > _MOST_BYTES:
        raise ValueError(
            f"adacore would write out {size / 2**30:.1f} GiB of the last layer's gradients, more than "
            f"{_MOST_BYTES / 2**30:.0f} GiB; give gradient=logits"
        )


def _check_look(whose: str, logits: np.ndarray, labels: np.ndarray, features: np.ndarray) -> tuple[int, int]:
    if logits.ndim != 2 or features.ndim != 2 or not labels.shape == logits.shape[:1] == features.shape[:1]:
        raise ValueError(
            f"expected logits (N, C), labels (N,) and features (N, D) of the {whose}, got {logits.shape}, "
            f"{labels.shape} and {features.shape}"
        )
    for name, array in (("logits", logits), ("features", features)):
        bad = int((~np.isfinite(array)).any(1).sum())
        if bad:
            raise ValueError(f"{bad} rows of the {name} of the {whose} are not finite; has training diverged?")
    if len(labels) and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        raise ValueError(
            f"labels of the {whose} must lie in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}"
        )
    return logits.shape


def _score(evidence: Evidence, method: Method, seed: int) -> np.ndarray:
    """float (N,), the highest picked first."""
    logits, labels = evidence.logits, evidence.labels
    looks = ((logits, evidence.features), *evidence.ensemble)
    by_method: dict[Method, Callable[[], np.ndarray]] = {
        "random": lambda: numpy_rng(seed, "random coreset").random(len(labels)),
        "max_loss": lambda: losses_of(logits, labels),
        "least_confidence": lambda: scores.least_confidence(logits),
        "entropy": lambda: scores.entropy(logits),
        "margin": lambda: scores.margin(logits),
        "forgetting": lambda: np.asarray(evidence.forgotten),
        "el2n": lambda: scores.el2n([z for z, _ in looks], labels),
        "grand": lambda: scores.grand(looks, labels),
    }
    return by_method[method]()


def _with_one(features: np.ndarray) -> np.ndarray:
    """[feature, 1], float32 (n, D + 1): the last layer's gradients are residuals x these."""
    return np.pad(features.astype(np.float32), ((0, 0), (0, 1)), constant_values=1)


def _gradient(evidence: Evidence, config: CoresetConfig, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Residuals (n, C), and the factors (n, D + 1) that make them the last layer's gradients, if these are asked."""
    residual = residuals(evidence.logits[rows], evidence.labels[rows])
    return residual, _with_one(evidence.features[rows]) if config.gradient == "last_layer" else None


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


def _preconditioned_points(evidence: Evidence, config: CoresetConfig, rows: np.ndarray) -> Points:
    """AdaCore (arXiv 2207.13887), Eq. 10. Damping keeps it finite where p saturates and curvature is 0."""
    if evidence.moments is None:
        gradients, curvature = _second_order(evidence, config, rows)
    else:
        gradients, curvature = evidence.moments.gradients(rows), evidence.moments.curvatures(rows)
    return Points(gradients / (curvature + np.float32(config.adacore_damping)))


def _second_order(evidence: Evidence, config: CoresetConfig, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients float32 (n, W) and curvature float32 (n, W), or (W,) where all share one."""
    logits, features = evidence.logits[rows], evidence.features[rows]
    residual = residuals(logits, evidence.labels[rows])
    if config.gradient == "logits":
        gradients = residual
        curvature = curvatures(logits) if evidence.diagonal is None else evidence.diagonal
    else:
        gradients = last_layer_gradients(residual, features)
        curvature = last_layer_curvatures(logits, features) if evidence.diagonal is None else evidence.diagonal
    return gradients, curvature.astype(np.float32)


def _width(evidence: Evidence, config: CoresetConfig) -> int:
    return evidence.logits.shape[1] * (1 if config.gradient == "logits" else evidence.features.shape[1] + 1)


def _with_diagonal(evidence: Evidence, config: CoresetConfig) -> Evidence:
    """The evidence with the curvature that all examples share, or None where each has its own."""
    width, diagonal = _width(evidence, config), evidence.diagonal
    if config.adacore_curvature == "example":
        diagonal = None
    elif config.adacore_curvature == "pool":
        diagonal = curvatures(evidence.logits).astype(np.float64)  # (N, C)
        square = np.square(_with_one(evidence.features).astype(np.float64))  # (N, D + 1)
        diagonal = diagonal.mean(0) if config.gradient == "logits" else (diagonal.T @ square / len(square)).ravel()
    elif diagonal is None:
        raise ValueError("adacore_curvature=given needs a Hessian's diagonal: give Evidence.diagonal, or take pool")
    elif diagonal.shape != (width,) or not (np.isfinite(diagonal).all() and (diagonal >= 0).all()):
        raise ValueError(f"expected a diagonal ({width},), finite and >= 0, got {diagonal.shape}; clip or average it")
    return dataclasses.replace(evidence, diagonal=diagonal)


def _pursued(
    evidence: Evidence, config: CoresetConfig, rows: np.ndarray, budget: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Picks among the rows (n,) of one class, in their order, and weights."""
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


def _validation(evidence: Evidence, rows: np.ndarray) -> Evidence:
    """The validation examples of the class of `rows`; the pool's where no others are given."""
    label = evidence.labels[rows[0]]
    if evidence.validation is None:
        return Evidence(evidence.logits[rows], evidence.labels[rows], evidence.features[rows])
    logits, labels, features = evidence.validation
    mine = labels == label
    if not mine.any():
        raise ValueError(f"the validation set has no example of class {label}; give some, or no validation set")
    return Evidence(logits[mine], labels[mine], features[mine])


def _glister(evidence: Evidence, config: CoresetConfig, rows: np.ndarray, budget: int) -> np.ndarray:
    theirs = _validation(evidence, rows)
    their_factors = _with_one(theirs.features) if config.gradient == "last_layer" else None
    residual, factors = _gradient(evidence, config, rows)
    return pursuit.glister(residual, factors, budget, config.glister_lr, theirs.logits, theirs.labels, their_factors)


def _gradmatch(
    evidence: Evidence, config: CoresetConfig, rows: np.ndarray, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    theirs = _validation(evidence, rows)
    residual, factors = _gradient(theirs, config, np.arange(len(theirs.labels)))
    mean = residual.mean(0) if factors is None else residual.T @ factors / len(residual)
    target = mean.astype(np.float64) * len(rows)
    picks, weights = pursuit.matching_pursuit(
        *_gradient(evidence, config, rows), target, budget, config.gradmatch_ridge
    )
    if not target.any():  # nothing to match: all are as good
        weights = np.full(len(picks), len(rows) / len(picks), np.float32)
    return picks, weights


_POINTS: dict[Method, Callable[[Evidence, CoresetConfig, np.ndarray], Points]] = {
    "craig": _gradient_points,
    "dea": _gradient_points,
    "adacore": _preconditioned_points,
    "lcmat": _curved_points,
}
