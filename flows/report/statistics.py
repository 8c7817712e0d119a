"""What a comparison of classifiers can show, over training seeds and over test images. Arrays in, numbers out."""

import dataclasses

import numpy as np

__all__ = [
    "LEAST_SEEDS",
    "SIGNIFICANCE",
    "PairedT",
    "class_errors",
    "confused_pairs",
    "confusion",
    "half_width",
    "holm",
    "image_interval",
    "mcnemar",
    "paired_t",
    "ratio_of_means",
]

LEAST_SEEDS = 5  # below, a report makes no verdict: an interval of two seeds is 12.7 standard errors to each side
SIGNIFICANCE = 0.05  # of a whole table, not of one comparison
COVERAGE = 0.95  # of every interval
RESAMPLES = 2_000
SAME = 1e-9  # errors are counts over test images: what differs by less is rounding of floats


@dataclasses.dataclass(frozen=True)
class PairedT:
    """Paired t tests, one an entry: each array has the shape of the differences without their last axis.

    Attributes:
        mean: of the differences.
        standard_error: of that mean; NaN for one seed.
        low, high: the 95 % confidence interval of the mean; NaN where the seeds have no spread.
        p: two-sided, of a mean of zero; NaN for one seed.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def paired_t(differences: np.ndarray) -> PairedT:
    """Student's paired t test over seeds, n - 1 degrees of freedom.

    Test errors are counts, so that all n differences can be equal. Their variance says nothing then. The p value is
    that of the exact sign-flip test, 2^(1 - n), or 1 where all are zero, and there is no interval.

    Args:
        differences: float (..., n), error minus error of the same seed.
    """
    n = differences.shape[-1]
    mean = differences.mean(-1)
    if n < 2:
        none = np.full(mean.shape, np.nan)
        return PairedT(mean, none, none, none, none)
    equal = np.ptp(differences, -1) < SAME
    error = np.where(equal, 0.0, differences.std(-1, ddof=1) / np.sqrt(n))
    half = np.where(equal, np.nan, half_width(error, n))
    statistic = np.abs(mean) / np.where(equal, 1.0, error)
    flipped = np.where(np.abs(mean) < SAME, 1.0, 2.0 ** (1 - n))
    from scipy import special  # type: ignore[import-untyped]  # here: a table of errors needs none of it

    p = np.where(equal, flipped, 2 * special.stdtr(n - 1, -statistic))
    return PairedT(mean, error, mean - half, mean + half, p)


def half_width(standard_error: np.ndarray, n: int) -> np.ndarray:
    """Half of the 95 % t interval of a mean over n seeds, 2 or more, by its standard error."""
    from scipy import special

    return np.asarray(special.stdtrit(n - 1, (1 + COVERAGE) / 2) * standard_error)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values of a family; those below a level are the family's at that level (Holm, 1979).

    Args:
        p: float (..., m), the family along the last axis, no NaN.
    """
    m = p.shape[-1]
    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.take_along_axis(p, order, -1) * np.arange(m, 0, -1)  # the smallest times m, the next times m - 1, ...
    raised = np.minimum(np.maximum.accumulate(stepped, -1), 1.0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, raised, -1)
    return adjusted


# ----------------------------------------------------------------------------------------------- over test images


def image_interval(wrong: np.ndarray, rival: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """How far the difference of two arms, averaged over their seeds, depends on which test images there are.

    A paired bootstrap: test images are drawn with replacement, 2,000 times, the classifiers stay as they are. Means
    over seeds take few distinct values, so counts of these are drawn, which is the same.

    Args:
        wrong, rival: bool (seeds, T), whether a test image is misclassified.

    Returns:
        Standard error, low and high of the 95 % percentile interval of mean(wrong) - mean(rival).
    """
    differences = wrong.mean(0) - rival.mean(0)  # (T,)
    values, counts = np.unique(np.round(differences, 9), return_counts=True)
    drawn = rng.multinomial(len(differences), counts / counts.sum(), RESAMPLES)  # (RESAMPLES, values)
    means = drawn @ values / len(differences)
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(means.std(ddof=1)), float(low), float(high)


def mcnemar(wrong: np.ndarray, rival: np.ndarray) -> float:
    """McNemar's exact test of two classifiers on the same test images: two-sided p value.

    Args:
        wrong, rival: bool (T,), whether a test image is misclassified.
    """
    only, only_rival = int((wrong & ~rival).sum()), int((rival & ~wrong).sum())
    from scipy import special

    return min(1.0, 2 * float(special.bdtr(min(only, only_rival), only + only_rival, 0.5)))


# ------------------------------------------------------------------------------------------------- ratio, classes


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float, float] | None:
    """The ratio of two means over the same seeds with its 95 % interval by Fieller's theorem (Fieller, 1954).

    The ratio of each seed would have no mean: its denominator may be near zero.

    Args:
        numerator, denominator: float (n,).

    Returns:
        Ratio, low, high. None where the interval of the denominator reaches zero, or for one seed.
    """
    n = len(numerator)
    if n < 2:
        return None
    x, y = float(numerator.mean()), float(denominator.mean())
    (xx, xy), (_, yy) = np.cov(numerator, denominator) / n
    t2 = float(half_width(np.ones(()), n)) ** 2
    a, b, c = y * y - t2 * yy, x * y - t2 * xy, x * x - t2 * xx  # a r^2 - 2 b r + c = 0 at both ends
    if y < SAME or a <= 0:
        return None
    root = float(np.sqrt(max(0.0, b * b - a * c)))
    return x / y, (b - root) / a, (b + root) / a


def class_errors(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Test error of each class, mean over seeds: float (C,), NaN for a class without test images.

    Args:
        predicted: int (seeds, T).
        labels: int (T,).
    """
    wrong = np.bincount(labels, (predicted != labels).mean(0), minlength=classes)
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts > 0, wrong / np.maximum(counts, 1), np.nan)


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """How many test images of each class (row) are taken for each class (column), mean over seeds: float (C, C)."""
    flat = labels * classes + predicted  # (seeds, T)
    return np.asarray(np.bincount(flat.ravel(), minlength=classes**2).reshape(classes, classes) / len(predicted))


def confused_pairs(predicted: np.ndarray, labels: np.ndarray, most: int) -> list[tuple[int, int, float]]:
    """The pairs (class, class it is taken for, test images, mean over seeds) that are confused most, most first."""
    truth = np.broadcast_to(labels, predicted.shape)
    wrong = predicted != truth
    pairs, counts = np.unique(np.stack([truth[wrong], predicted[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[0, i]), int(pairs[1, i]), float(counts[i]) / len(predicted)) for i in order]
