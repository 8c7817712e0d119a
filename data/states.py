"""The states of synthetic images: name, meaning, colour, and the thresholds that decide. A new one is a row here.

Its threshold is a field of `QualityConfig`, and its score one of `Scores`, both in synth/scoring/quality.py.
"""

import dataclasses
from typing import Literal

__all__ = ["OTHER_COLOUR", "STATES", "THRESHOLDS", "ImageState", "State", "Threshold"]

State = Literal[
    "ok", "nan", "flat", "unsafe", "off_label", "far_from_reference", "near_reference", "near_real", "duplicate"
]

_CLIP = "name a CLIP model in scores.clip"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A limit of a score.

    Attributes:
        name: of the setting in `quality`. An image fails below it; where it is a switch, above 0.
        score: the column that it limits.
        remedy: how to have the score measured, where it is not always; empty: an image without it fails.
        off: the setting's value that lets every image pass; None: it is always on.
        times: the limit is the setting times this column; empty: the setting itself.
        ceiling: an image fails above the limit instead.
    """

    name: str
    score: str
    remedy: str = ""
    off: float | None = None
    times: str = ""
    ceiling: bool = False


@dataclasses.dataclass(frozen=True)
class ImageState:
    """What a state means.

    Attributes:
        words: for people.
        colour: of borders and words, CSS.
        thresholds: an image that fails one of them, and none of an earlier state, has this state.
    """

    words: str
    colour: str
    thresholds: tuple[Threshold, ...] = ()


# `ok` passes all; the others are checked in this order. `nan` follows from the column `finite`.
STATES: dict[State, ImageState] = {
    "ok": ImageState("may be trained on", "#1f2328"),
    "nan": ImageState("the generator's output was not finite", "#7b3294"),
    "flat": ImageState(
        "hardly any contrast: one colour, as of a blanked image", "#0f766e", (Threshold("min_contrast", "contrast"),)
    ),
    "unsafe": ImageState(
        "the safety checker flagged it",
        "#be185d",
        (
            Threshold(
                "drop_unsafe", "unsafe", "turn scores.safety on with a generator that ships a safety checker", False
            ),
        ),
    ),
    "off_label": ImageState(
        "a classifier sees too little of its label in it",
        "#c2410c",
        (
            Threshold("min_label_ratio", "label_probability", off=0, times="reference_label_probability"),
            Threshold("min_label_probability", "label_probability", off=0),
            Threshold("min_clip_score", "clip_score", _CLIP, -1.0),
            Threshold("min_clip_margin", "clip_margin", _CLIP, -2.0),
        ),
    ),
    "far_from_reference": ImageState(
        "differs from its reference by more than the noise of its level explains",
        "#a16207",
        (Threshold("max_distance_ratio", "distance_ratio", off=0, ceiling=True),),
    ),
    "near_reference": ImageState(
        "hardly differs from its reference", "#1d4ed8", (Threshold("min_distance", "reference_distance"),)
    ),
    "near_real": ImageState(
        "hardly differs from another real image",
        "#0369a1",
        (Threshold("min_real_distance", "nearest_real_distance", "score with a reference classifier", 0.0),),
    ),
    "duplicate": ImageState(
        "hardly differs from another image of the set",
        "#6b7280",
        (Threshold("min_duplicate_distance", "duplicate_distance", "measure it over the whole set", 0.0),),
    ),
}
OTHER_COLOUR = "#b00020"  # of a state that another version wrote
# By the name of a threshold: it, and the state of what fails it.
THRESHOLDS: dict[str, tuple[Threshold, State]] = {
    threshold.name: (threshold, name) for name, state in STATES.items() for threshold in state.thresholds
}
