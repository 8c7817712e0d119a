"""One number per example, the highest selected first: baselines of coreset selection."""

from collections.abc import Sequence

import numpy as np

from latebloom.train.evaluate import softmax
from latebloom.train.selection.gradients import gradient_norms, residuals

__all__ = ["el2n", "entropy", "grand", "least_confidence", "margin", "top"]


def least_confidence(logits: np.ndarray) -> np.ndarray:
    """1 - max p, float64 (N,) in [0, 1 - 1/C], of logits (N, C). Summed from the other p: 1 - p would round to 0."""
    p = softmax(logits)
    p[np.arange(len(p)), p.argmax(1)] = 0
    result: np.ndarray = p.sum(1)
    return result


def entropy(logits: np.ndarray) -> np.ndarray:
    """-sum p log p in nats, float64 (N,) in [0, log C], of logits (N, C); finite where p is 0."""
    p = softmax(logits)
    result: np.ndarray = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    return result


def margin(logits: np.ndarray) -> np.ndarray:
    """1 - (p1 - p2), the two largest p, float64 (N,) in [0, 1], of logits (N, C).

    Raises:
        ValueError: a single class.
    """
    if logits.shape[1] < 2:
        raise ValueError("margin got logits of 1 class, expected 2 or more; choose another method")
    second, first = np.partition(softmax(logits), -2, axis=1)[:, -2:].T
    result: np.ndarray = 1 - (first - second)
    return result


def el2n(logits: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Mean over models of |p - y|_2, float64 (N,); logits (N, C) of each. Deep Learning on a Data Diet, Def. 2.2."""
    result: np.ndarray = np.stack([gradient_norms(residuals(one, labels)) for one in logits]).mean(0, dtype=np.float64)
    return result


def grand(outputs: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray) -> np.ndarray:
    """Mean over models of the norm of the last layer's gradient, float64 (N,); logits and features of each.

    Deep Learning on a Data Diet (arXiv 2107.07075), Def. 2.1, for the last layer. The norm is of each example's own
    loss, so it does not depend on batches. (DeepCore uses batch means, so examples in a short last batch score higher.)
    """
    norms = [gradient_norms(residuals(logits, labels), features) for logits, features in outputs]
    result: np.ndarray = np.stack(norms).mean(0, dtype=np.float64)
    return result


def top(score: np.ndarray, labels: np.ndarray, budgets: np.ndarray, by_class: bool) -> np.ndarray:
    """The rows with the highest score, ties to the lowest row: class after class, the highest first in each.

    Args:
        score: float (N,), inf allowed.
        budgets: int64 (C,), how many rows of each class; without `by_class` only their sum counts, over all classes.
    """
    order = np.argsort(-score, kind="stable")
    if not by_class:
        order = order[: budgets.sum()]
    grouped = order[np.argsort(labels[order], kind="stable")]
    if not by_class:
        return grouped
    starts = np.searchsorted(labels[grouped], np.arange(len(budgets)))
    return np.concatenate([grouped[start : start + count] for start, count in zip(starts, budgets, strict=True)])
