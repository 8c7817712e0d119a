"""Scores of single images, and the state that follows from them by thresholds."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from latebloom.data.states import STATES, THRESHOLDS, State, Threshold
from latebloom.synth.config import QualityConfig
from latebloom.synth.scoring.spread import Spread

__all__ = [
    "ClipScore",
    "RealFeatures",
    "ReferenceClassifier",
    "SafetyFlag",
    "Scores",
    "check_scorers",
    "contrast",
    "duplicate_distances",
    "fingerprints",
    "score",
    "states",
    "without_classifier",
]

# Images uint8 (n, H, W, C) to probabilities (n, num_classes) and features (n, D), the input of the last layer.
ReferenceClassifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Images and labels int64 (n,) to `clip_score` and `clip_margin`; `ClipScorer` is one.
ClipScore = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
# Images to `unsafe`; `SafetyScorer` is one.
SafetyFlag = Callable[[np.ndarray], np.ndarray]

_REAL_BLOCK = 8192  # real images compared at once
_FINGERPRINT_BLOCK = 2048  # fingerprints compared at once, on both sides
_PIXEL_BLOCK = 1 << 24  # pixel values in float64 at once: 128 MiB
_FINGERPRINT_SIDE = 8
# The scores that thresholds limit and the reference classifier measures.
_BY_CLASSIFIER = ("label_probability", "nearest_real_distance")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of n images, in the order of the columns. NaN in an optional one: not measured. All that need a classifier
    are NaN where there is none.

    Cosine distance is 1 less the cosine of two images' features in the reference classifier. It does not depend on the
    length of the features, so a threshold means the same for every network.

    Attributes:
        finite: bool (n,), whether the generator's output was.
        brightness: float64 (n,), mean over all pixels and channels in grey levels, 0..255; 0 is black.
        contrast: float64 (n,), of `contrast`.
        label_probability: float64 (n,), of the image's label under the reference classifier, 0..1.
        reference_label_probability: float64 (n,), the same of the reference itself, the real image.
        reference_distance: float64 (n,), root-mean-square difference to the reference in grey levels, 0..255.
        distance_ratio: float64 (n,), of `Spread.ratio`: distance to the reference by what the level's noise explains.
        feature_distance: float64 (n,), cosine distance to the reference, 0..2.
        nearest_real_distance: float64 (n,), cosine distance to the nearest real image that is not the reference, 0..2;
            inf where there is no other.
        nearest_real_index: int64 (n,), the row of that image; -1 where there is no other.
        clip_score: float64 (n,), optional: cosine of the image and its class's text under CLIP, -1..1.
        clip_margin: float64 (n,), optional: `clip_score` less that of the best other class, -2..2; inf where there is
            no other.
        unsafe: float64 (n,), optional: 1 where the safety checker flags the image, else 0.
        duplicate_distance: float64 (n,), optional: of `duplicate_distances`, which needs the whole set.
    """

    finite: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    label_probability: np.ndarray
    reference_label_probability: np.ndarray
    reference_distance: np.ndarray
    distance_ratio: np.ndarray
    feature_distance: np.ndarray
    nearest_real_distance: np.ndarray
    nearest_real_index: np.ndarray
    clip_score: np.ndarray
    clip_margin: np.ndarray
    unsafe: np.ndarray
    duplicate_distance: np.ndarray


@dataclasses.dataclass(frozen=True)
class RealFeatures:
    """Features of the real images in the reference classifier.

    Attributes:
        unit: float32 (N, D), each of length 1.
    """

    unit: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "RealFeatures":
        """From features (N, D) of any length."""
        return cls(_unit(features))

    def nearest_other(self, unit: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """int64 (n,): the real image nearest to each of `unit` (n, D), except for its source; -1 where there is none.

        Exact: compared with all real images, `_REAL_BLOCK` at once.
        """
        best = np.full(len(unit), -np.inf, np.float32)
        index = np.full(len(unit), -1)
        rows = np.arange(len(unit))
        for start in range(0, len(self.unit), _REAL_BLOCK):
            cosine = unit @ self.unit[start : start + _REAL_BLOCK].T  # (n, block)
            own = (start <= sources) & (sources < start + cosine.shape[1])
            cosine[own, sources[own] - start] = -np.inf
            column = cosine.argmax(1)
            better = cosine[rows, column] > best
            best[better] = cosine[rows, column][better]
            index[better] = start + column[better]
        return index


def score(
    images: np.ndarray,
    references: np.ndarray,
    finite: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    classifier: ReferenceClassifier | None,
    real: RealFeatures | None,
    originals: np.ndarray,
    spread: Spread,
    snr: np.ndarray,
    clip: ClipScore | None = None,
    safety: SafetyFlag | None = None,
) -> Scores:
    """Score images; `duplicate_distance` is left NaN.

    Args:
        images: uint8 (n, H, W, C).
        references: uint8 (n, H, W, C), what each was made from: a real image as resampling leaves it.
        finite: bool (n,).
        labels: int64 (n,).
        sources: int64 (n,), the row of each reference in `real`.
        originals: uint8 (m, H, W, C), the real images of the m distinct `sources`, in ascending order of these.
        spread: of the training images.
        snr: float64 (n,), of the noise that each image was made from; 0: pure noise, or not known in pixels.
        classifier: the reference classifier, whose features are in `real`; None of both: scores that need one are NaN.
    """
    assert (classifier is None) == (real is None)
    brightness, distance = np.empty(len(images)), np.empty(len(images))
    for rows in _blocks(images):
        pixels = images[rows].reshape(rows.stop - rows.start, -1).astype(np.float64)
        brightness[rows] = pixels.mean(1)
        pixels -= references[rows].reshape(pixels.shape)
        distance[rows] = np.sqrt((pixels**2).mean(1))
    unmeasured = np.full(len(images), np.nan)
    probability = of_reference = apart = to_nearest = unmeasured
    nearest = np.full(len(images), -1)
    if classifier is not None and real is not None:
        probabilities, features = classifier(images)
        of_originals, place = classifier(originals)[0], np.unique(sources, return_inverse=True)[1]
        probability = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        of_reference = of_originals[place, labels].astype(np.float64)
        unit = _unit(features)
        apart = _cosine_distance(unit, real.unit[sources])
        nearest = real.nearest_other(unit, sources)
        to_nearest = np.where(nearest < 0, np.inf, _cosine_distance(unit, real.unit[nearest]))
    clip_score, clip_margin = clip(images, labels) if clip else (unmeasured, unmeasured)
    return Scores(
        finite=finite,
        brightness=brightness,
        contrast=contrast(images),
        label_probability=probability,
        reference_label_probability=of_reference,
        reference_distance=distance,
        distance_ratio=spread.ratio(images, references, snr),
        feature_distance=apart,
        nearest_real_distance=to_nearest,
        nearest_real_index=nearest,
        clip_score=clip_score,
        clip_margin=clip_margin,
        unsafe=safety(images) if safety else unmeasured,
        duplicate_distance=unmeasured,
    )


def check_scorers(config: QualityConfig, *, clip: bool, safety: bool, classifier: bool = True) -> None:
    """Raise ValueError where a threshold needs a score that will not be measured; called before any image is made.

    Args:
        clip, safety, classifier: whether there are scorers of these kinds.
    """
    measured = {"clip_score": clip, "clip_margin": clip, "unsafe": safety} | dict.fromkeys(_BY_CLASSIFIER, classifier)
    for threshold, _ in THRESHOLDS.values():
        if not measured.get(threshold.score, True) and _is_on(config, threshold):
            remedy = threshold.remedy or "score with a reference classifier"
            raise ValueError(f"{_asked(config, threshold)}: {remedy}, or set it to {threshold.off}")


def without_classifier(config: QualityConfig) -> QualityConfig:
    """The thresholds where no classifier scores: `min_label_ratio`, which is on by default, is off."""
    return config.model_copy(update={"min_label_ratio": THRESHOLDS["min_label_ratio"][0].off})


def states(scores: Scores, config: QualityConfig) -> list[State]:
    """The state of each image: the first of `STATES` (data/states.py) with a threshold that it fails, else ok.

    Raises:
        ValueError: a threshold is on whose score was not measured.
    """
    conditions: dict[State, np.ndarray] = {}
    for name, state in STATES.items():
        if name == "nan":
            conditions[name] = ~scores.finite
        elif state.thresholds:
            conditions[name] = np.any([_fails(scores, config, threshold) for threshold in state.thresholds], 0)
    found: list[State] = np.select(list(conditions.values()), list(conditions), "ok").tolist()
    return found


def _fails(scores: Scores, config: QualityConfig, threshold: Threshold) -> np.ndarray:
    """bool (n,): which images fail a threshold."""
    values: np.ndarray = getattr(scores, threshold.score)
    if not _is_on(config, threshold):
        return np.zeros(len(values), bool)
    limit: float | bool = getattr(config, threshold.name)
    bound = np.full(len(values), float(limit))
    if threshold.times:
        bound *= getattr(scores, threshold.times)
    missing = int((np.isnan(values) | np.isnan(bound)).sum())
    if missing and threshold.remedy:
        raise ValueError(
            f"{_asked(config, threshold)}, but {missing} of {len(values)} images have no such score: "
            f"{threshold.remedy}, or set it to {threshold.off}"
        )
    if isinstance(limit, bool):
        return np.asarray(values > 0)
    # A NaN score must not pass: hence "not at least" instead of "below".
    return np.asarray(~(values <= bound) if threshold.ceiling else ~(values >= bound))


def _is_on(config: QualityConfig, threshold: Threshold) -> bool:
    return bool(getattr(config, threshold.name) != threshold.off)


def _asked(config: QualityConfig, threshold: Threshold) -> str:
    return f"quality.{threshold.name} is {getattr(config, threshold.name)}"


def contrast(images: np.ndarray) -> np.ndarray:
    """float64 (n,): standard deviation over the pixels of the channel that varies most, 0..127.5 grey levels.

    0 for an image of any one colour. Images are uint8 (n, H, W, C).
    """
    result = np.empty(len(images))
    for rows in _blocks(images):
        result[rows] = images[rows].astype(np.float64).std((1, 2)).max(1)
    return result


def fingerprints(images: np.ndarray) -> np.ndarray:
    """uint8 (n, 64 C): images uint8 (n, H, W, C) averaged to 8x8, in grey levels.

    A few bytes, stored with each image, with which near-duplicates are found without decoding the images. Two
    fingerprints are no further apart (root-mean-square) than the two images, except for rounding.
    """
    side, (n, height, width, channels) = _FINGERPRINT_SIDE, images.shape
    result = np.empty((n, side * side * channels), np.uint8)
    for rows in _blocks(images):
        across = np.tensordot(images[rows].astype(np.float64), _averages(width), (2, 1))  # (b, H, C, 8)
        both = np.tensordot(across, _averages(height), (1, 1))  # (b, C, 8, 8): x, then y
        result[rows] = np.rint(both.transpose(0, 3, 2, 1)).reshape(len(both), -1)
    return result


def _averages(length: int) -> np.ndarray:
    """float64 (8, length): the weights of `length` pixels in 8 equal shares; a pixel on a border counts in both."""
    share = length / _FINGERPRINT_SIDE
    begin = np.arange(_FINGERPRINT_SIDE)[:, None] * share
    pixel = np.arange(length)
    overlap = np.minimum(begin + share, pixel + 1) - np.maximum(begin, pixel)
    return np.asarray(overlap.clip(0) / share)


def duplicate_distances(prints: np.ndarray, labels: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Distance of each image to the nearest earlier one of its label, so that the first of a pair stays.

    Exact, in blocks: memory does not grow with the set.

    Args:
        prints: uint8 (n, D), `fingerprints` of the whole set in its order; D at most 192.
        labels: int64 (n,).
        among: bool (n,), which images count as earlier ones: those that are not kept out for another reason.

    Returns:
        float64 (n,): root-mean-square grey levels, 0..255; inf where there is no earlier image.
    """
    assert prints.shape[1] <= 192, "sums of squares must stay below 2^24"
    result = np.full(len(prints), np.inf)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)  # ascending, so in the order of the set
        values = prints[rows].astype(np.float32)
        squares = (values**2).sum(1)
        nearest = np.full(len(rows), np.inf, np.float32)  # |a - b|^2 - |a|^2
        for start in range(0, len(rows), _FINGERPRINT_BLOCK):
            here = slice(start, start + _FINGERPRINT_BLOCK)
            for other in range(0, start + 1, _FINGERPRINT_BLOCK):
                there = slice(other, other + _FINGERPRINT_BLOCK)
                # Exact in float32: integers up to 192 * 255^2 < 2^24, and even integers up to twice that.
                gap = squares[there] - 2 * (values[here] @ values[there].T)
                gap[:, ~among[rows[there]]] = np.inf
                if other == start:
                    gap[np.triu_indices(len(gap))] = np.inf  # itself, and what comes later
                nearest[here] = np.minimum(nearest[here], gap.min(1))
        result[rows] = np.sqrt((squares + nearest.astype(np.float64)) / prints.shape[1])
    return result


def _blocks(images: np.ndarray) -> Iterator[slice]:
    """Rows of images (n, H, W, C) that fit in memory as float64."""
    step = max(1, _PIXEL_BLOCK // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))


def _unit(features: np.ndarray) -> np.ndarray:
    """Features (n, D) at length 1, float32; zeros stay zeros."""
    features = features.astype(np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    np.divide(features, length, out=features, where=length > 0)
    return features


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (n,): 1 - cos of the rows of a and b (n, D), of length 1; exactly 0 for equal rows."""
    return np.asarray(((a.astype(np.float64) - b) ** 2).sum(1) / 2)
