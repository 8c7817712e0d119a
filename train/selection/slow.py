"""Which examples are learned slowly: arrays in, indices out (paper 2505.21574, section 4.2 and Alg. 1)."""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from latebloom.data.seeds import child_seed, numpy_rng
from latebloom.train.config import SlowConfig
from latebloom.train.config import SlowMethod as Method
from latebloom.train.evaluate import losses_of, softmax

__all__ = [
    "Method",
    "Selection",
    "SlowConfig",
    "jaccard",
    "mean_outputs",
    "select_by_losses",
    "select_given",
    "select_slow",
    "separating_epoch",
    "smoothed",
]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The chosen examples and how they came about.

    Attributes:
        indices: int64 (S,), ascending.
        cluster: int64 (N,): 1 where 2-means calls the example slow, else 0, whatever the method.
        mean_loss: float64 (C, 2): mean loss of the fast and the slow cluster of each class, NaN where empty.
    """

    indices: np.ndarray
    cluster: np.ndarray
    mean_loss: np.ndarray


def select_slow(
    logits: np.ndarray,
    labels: np.ndarray,
    method: Method = "cluster",
    seed: int = 0,
    *,
    space: Literal["softmax", "logits"] = "softmax",
) -> Selection:
    """Choose the examples to augment from the outputs of an early model.

    `cluster` runs 2-means within each class and takes the cluster with the higher mean loss, whatever its size.
    `misclassified` takes all that the model gets wrong, however many. `high_loss`, `misclassified_matched` and `random`
    take as many of each class as `cluster` does, so that they compare at equal cost: the highest losses; a random part
    of the wrong ones, or all of them and random others where they are too few; and any at random. `all` takes every
    example.

    A class with one example, or whose outputs are all equal, has no slow half: `cluster` and those that compare at its
    cost choose nothing of it, and a warning says so.

    Args:
        logits: float (N, C), eval mode, no augmentation.
        labels: int64 (N,).
        seed: of the k-means starts and of what is random. The same rows in another order give the same choice (but for
            `random` and `misclassified_matched`, which draw positions).

    Raises:
        ValueError: logits that are not finite or do not fit the labels.
    """
    if logits.ndim != 2 or len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"logits are {logits.shape} and labels {labels.shape}, expected (N, C) and (N,); give one row and one "
            "label for each image"
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(1).sum())
        raise ValueError(f"{bad} rows of the logits are not finite: training diverged; lower the learning rate")
    num_classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels lie in {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}; give logits of all classes"
        )
    outputs = softmax(logits) if space == "softmax" else logits.astype(np.float64)
    losses, wrong = losses_of(logits, labels), logits.argmax(1) != labels
    cluster, mean_loss, without_slow = _clusters(outputs, losses, labels, num_classes, seed)
    _warn(without_slow, method)
    return _chosen(cluster, mean_loss, labels, method, seed, losses, wrong)


def select_by_losses(
    losses: np.ndarray, labels: np.ndarray, num_classes: int, method: Method = "cluster", seed: int = 0
) -> Selection:
    """As `select_slow` where only the losses of an early model are known: 2-means runs on the losses of each class.

    Args:
        losses: float (N,), of each image with its label.
        labels: int64 (N,).

    Raises:
        ValueError: losses that are not finite or do not fit the labels; `misclassified` and `misclassified_matched`,
            which need to know what the model took an image for.
    """
    if losses.shape != labels.shape or losses.ndim != 1:
        raise ValueError(
            f"losses are {losses.shape} and labels {labels.shape}, expected (N,); give one of each an image"
        )
    if not np.isfinite(losses).all():
        raise ValueError(f"{int((~np.isfinite(losses)).sum())} losses are not finite; give a finite one for each image")
    losses = losses.astype(np.float64)
    cluster, mean_loss, without_slow = _clusters(losses[:, None], losses, labels, num_classes, seed)
    _warn(without_slow, method)
    return _chosen(cluster, mean_loss, labels, method, seed, losses, None)


def select_given(
    indices: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    method: Method = "cluster",
    seed: int = 0,
    *,
    losses: np.ndarray | None = None,
    wrong: np.ndarray | None = None,
) -> Selection:
    """As `select_slow` where the slow examples themselves are given: `cluster` takes these, others as many per class.

    Args:
        indices: int64 (S,), the slow examples, each once.
        labels: int64 (N,).
        losses: float (N,); None: not known, and `high_loss` is refused.
        wrong: bool (N,), what the early model gets wrong; None: not known, and `misclassified` and
            `misclassified_matched` are refused.

    Raises:
        ValueError: indices that are not there, or a method that needs what is not known.
    """
    if len(indices) and (indices.min() < 0 or indices.max() >= len(labels)):
        raise ValueError(f"indices lie in {indices.min()}..{indices.max()}, expected 0..{len(labels) - 1}")
    cluster = np.zeros(len(labels), np.int64)
    cluster[indices] = 1
    mean_loss = np.full((num_classes, 2), np.nan)
    if losses is not None:
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            mean_loss[label] = [_mean(losses[rows[cluster[rows] == half]]) for half in (0, 1)]
    return _chosen(cluster, mean_loss, labels, method, seed, losses, wrong)


def _clusters(
    outputs: np.ndarray, losses: np.ndarray, labels: np.ndarray, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """`cluster` and `mean_loss` of a `Selection`, and the classes without a slow half."""
    cluster = np.zeros(len(labels), np.int64)
    mean_loss = np.full((num_classes, 2), np.nan)
    without_slow = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        halves = _two_means(outputs[rows], child_seed(seed, "two-means", int(label)))
        means = [_mean(losses[rows[halves == half]]) for half in (0, 1)]
        if np.isnan(means).any():
            without_slow.append(int(label))
            mean_loss[label, 0] = _mean(losses[rows])
            continue
        slow = int(means[1] > means[0])
        cluster[rows] = halves == slow
        mean_loss[label] = means[1 - slow], means[slow]
    return cluster, mean_loss, without_slow


def _warn(without_slow: list[int], method: Method) -> None:
    if without_slow and method not in ("all", "misclassified"):
        warnings.warn(
            f"no slow half in class {', '.join(map(str, without_slow))}: a single example or equal outputs; "
            "nothing of it is augmented",
            stacklevel=3,
        )


def _chosen(
    cluster: np.ndarray,
    mean_loss: np.ndarray,
    labels: np.ndarray,
    method: Method,
    seed: int,
    losses: np.ndarray | None,
    wrong: np.ndarray | None,
) -> Selection:
    """What a method chooses, beside the cluster of all."""
    if method == "high_loss" and losses is None:
        raise ValueError("high_loss needs the losses of an early model; give its outputs, or another method")
    if method in ("misclassified", "misclassified_matched") and wrong is None:
        raise ValueError(f"{method} needs the logits of an early model; give them, or another method")
    num_classes = len(mean_loss)
    score = _score(method, cluster, losses, wrong, seed)
    counted = cluster == 1
    if method == "all":
        counted = np.ones(len(labels), bool)
    elif method == "misclassified" and wrong is not None:
        counted = wrong
    budget = np.bincount(labels[counted], minlength=num_classes)
    chosen = [_top(np.flatnonzero(labels == label), score, budget[label]) for label in range(num_classes)]
    return Selection(np.sort(np.concatenate(chosen)), cluster, mean_loss)


def mean_outputs(logits: Iterable[np.ndarray], space: Literal["softmax", "logits"] = "softmax") -> np.ndarray:
    """Logits float64 (N, C) of what several models say together: their mean probabilities, or their mean logits.

    Args:
        logits: float (N, C) of each model, one after the other; at least one.
        space: softmax: the result is the logarithm of the mean probabilities, whose softmax these are.
    """
    total, models = np.zeros(()), 0
    for one in logits:
        total = total + (softmax(one) if space == "softmax" else one.astype(np.float64))
        models += 1
    mean: np.ndarray = total / models
    together: np.ndarray = np.log(np.maximum(mean, np.finfo(np.float64).tiny)) if space == "softmax" else mean
    return together


def _two_means(outputs: np.ndarray, seed: int) -> np.ndarray:
    """Cluster (0 or 1) of each row of (n, C); all 0 where the rows are not two distinct points."""
    from sklearn.cluster import KMeans

    if len(np.unique(outputs, axis=0)) < 2:
        return np.zeros(len(outputs), np.int64)
    # k-means++ draws rows by position: sort them first, so that the order they came in does not matter.
    order = np.lexsort(outputs.T)
    halves = np.empty(len(outputs), np.int64)
    halves[order] = KMeans(2, n_init=10, random_state=seed % 2**32).fit_predict(outputs[order])
    return halves


def _mean(losses: np.ndarray) -> float:
    """NaN of nothing. Exactly summed: with rounding, the order of the rows could decide between two equal means."""
    return math.fsum(losses) / len(losses) if len(losses) else math.nan


def _score(
    method: Method, cluster: np.ndarray, losses: np.ndarray | None, wrong: np.ndarray | None, seed: int
) -> np.ndarray:
    """float64 (N,): those with the highest score of a class are taken first."""
    if method == "cluster":
        return cluster.astype(np.float64)
    if method == "high_loss" and losses is not None:
        return losses
    if method == "misclassified" and wrong is not None:
        return wrong.astype(np.float64)
    if method == "misclassified_matched" and wrong is not None:
        matched: np.ndarray = numpy_rng(seed, "random misclassified").random(len(cluster)) + wrong
        return matched
    if method == "random":
        return numpy_rng(seed, "random selection").random(len(cluster))
    return np.zeros(len(cluster))


def _top(rows: np.ndarray, score: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows with the highest score, ties to the lowest row."""
    return rows[np.argsort(-score[rows], kind="stable")[:count]]


def separating_epoch(errors: Sequence[float]) -> int:
    """The epoch (from 1) at which the training error stops falling fast: the knee of its smoothed curve.

    The curve is averaged over three epochs, its ends kept; its knee is the point farthest below the straight line
    from its first to its last value. The rule of Nguyen et al. (arXiv 2404.17768) in words is "where the reduction of
    training error starts to slow".

    Args:
        errors: training error of epochs 1, 2, ... Fewer than three, or a curve that never falls below its chord: the
            last epoch.
    """
    if len(errors) < 3:
        return max(1, len(errors))
    smooth = smoothed(errors)
    chord = np.linspace(smooth[0], smooth[-1], len(smooth))
    depth = chord - smooth
    return int(depth.argmax()) + 1 if depth.max() > 1e-9 else len(errors)


def smoothed(errors: Sequence[float]) -> np.ndarray:
    """Means float64 (E,) over three epochs of at least two errors; the first and the last are kept."""
    # An odd reflection keeps both ends as they are, so that a straight line stays one.
    padded = np.pad(np.asarray(errors, np.float64), 1, mode="reflect", reflect_type="odd")
    return np.convolve(padded, np.ones(3) / 3, mode="valid")


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A and B| / |A or B| of two index sets, 0..1; 1 for two empty ones."""
    union = np.union1d(first, second)
    return len(np.intersect1d(first, second)) / len(union) if len(union) else 1.0
