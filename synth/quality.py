"""Per-image scores, and the state that follows from them by thresholds."""

import dataclasses

import numpy as np
import pydantic
from pydantic import Field

from data.synthetic import State

__all__ = ["QualityConfig", "Scores", "score", "states"]


class QualityConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Thresholds that keep an image out of training. The scores are kept, so these move without generating again."""

    min_contrast: float = Field(
        2.0, ge=0, le=128, description="flat below: standard deviation of the pixels in grey levels, 0 to 128"
    )
    min_label_probability: float = Field(
        0.01,
        ge=0,
        le=1,
        description="off_label below: probability of the label under the early classifier, 0 (never) to 1. "
        "Keep it low: the early classifier doubts many real slow examples too",
    )
    min_distance: float = Field(
        1.0, ge=0, le=255, description="near_reference below: root-mean-square distance to the reference in grey levels"
    )


@dataclasses.dataclass(frozen=True)
class Scores:
    """Per image of a batch of n.

    Attributes:
        finite: bool (n,), whether the generator's output was.
        contrast: float64 (n,), standard deviation over all pixels and channels in grey levels, 0..127.5.
        label_probability: float64 (n,), of the image's label under the judging classifier, 0..1.
        reference_distance: float64 (n,), root-mean-square difference to the reference in grey levels, 0..255.
    """

    finite: np.ndarray
    contrast: np.ndarray
    label_probability: np.ndarray
    reference_distance: np.ndarray


def score(images: np.ndarray, references: np.ndarray, finite: np.ndarray, label_probability: np.ndarray) -> Scores:
    """Score images against their references, both uint8 (n, H, W, C)."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    difference = pixels - references.reshape(len(images), -1)
    return Scores(finite, pixels.std(1), label_probability, np.sqrt((difference**2).mean(1)))


def states(scores: Scores, config: QualityConfig) -> list[State]:
    """The state of each image: the first of nan, flat, off_label, near_reference that holds, else ok."""
    result = []
    for finite, contrast, probability, distance in zip(
        scores.finite, scores.contrast, scores.label_probability, scores.reference_distance, strict=True
    ):
        state: State = "ok"
        if not finite:
            state = "nan"
        elif not contrast >= config.min_contrast:  # a NaN score is no pass
            state = "flat"
        elif not probability >= config.min_label_probability:
            state = "off_label"
        elif not distance >= config.min_distance:
            state = "near_reference"
        result.append(state)
    return result
