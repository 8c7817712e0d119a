"""How many examples of a coreset are selected of each class."""

import numpy as np

from latebloom.train.config import SCORED, CoresetConfig

__all__ = ["budgets", "in_proportion"]


def budgets(labels: np.ndarray, num_classes: int, config: CoresetConfig) -> np.ndarray:
    """How many examples are selected of each class: int64 (C,), at most its size; they sum to the number asked for.

    That number is the fraction of all examples, rounded half up, or per_class times the number of classes with
    examples, at most all. `equal` gives each class as many as its size allows and the rest to larger classes.
    `proportional` rounds by largest remainders, with at least one for each class. Remainders go to the lowest classes.
    For `none` only the sum counts.

    Args:
        labels: int64 (N,).

    Raises:
        ValueError: nothing to select, fewer examples than classes, `none` with a method that works class by class,
            or labels out of range.
    """
    if config.budget == "none" and config.method not in SCORED:
        raise ValueError(
            f"budget is none, but {config.method} selects class by class; give budget equal or proportional, or one of "
            f"{', '.join(SCORED)}"
        )
    if len(labels) == 0:
        raise ValueError("there are no examples to select from; give a training set")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    sizes = np.bincount(labels, minlength=num_classes).astype(np.int64)
    classes = int((sizes > 0).sum())
    if config.per_class:
        asked, total = f"per_class {config.per_class}", min(config.per_class * classes, len(labels))
    else:
        asked, total = f"fraction {config.fraction:g}", int(config.fraction * len(labels) + 0.5)
    least = 1 if config.budget == "none" else classes
    if total < least:
        raise ValueError(
            f"{asked} of {len(labels)} examples is {total}; expected at least {least}, one per class: "
            f"give a fraction of {least / len(labels):.2g} or more"
            if least > 1
            else f"{asked} of {len(labels)} examples is none; give a fraction of {1 / len(labels):.2g} or more"
        )
    if config.budget == "equal":
        return _evenly(sizes, total)
    return in_proportion(sizes, total, at_least=0 if config.budget == "none" else 1)


def _evenly(sizes: np.ndarray, total: int) -> np.ndarray:
    """The highest number that every class can give (or all of a smaller one), and one more each for the rest."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle - 1)
    dealt: np.ndarray = np.minimum(sizes, low)
    dealt[np.flatnonzero(sizes > low)[: total - dealt.sum()]] += 1
    return dealt


def in_proportion(sizes: np.ndarray, total: int, at_least: int = 1) -> np.ndarray:
    """`total` (at most all) shared among the classes in proportion to their sizes int64 (C,): int64 (C,).

    Rounded by largest remainders, ties to the lowest class.

    Args:
        at_least: for each class with examples, 0 or 1; 1 needs a total of at least the number of such classes.
    """
    shares: tuple[np.ndarray, np.ndarray] = np.divmod(sizes * total, sizes.sum())  # integers: no rounding decides
    dealt, remainder = shares
    dealt[np.argsort(-remainder, kind="stable")[: total - dealt.sum()]] += 1
    for label in np.flatnonzero((sizes > 0) & (dealt < at_least)):
        dealt[dealt.argmax()] -= 1
        dealt[label] = 1
    return dealt
