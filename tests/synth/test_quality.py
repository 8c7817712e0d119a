from typing import Any

import numpy as np
import pydantic
import pytest

from synth.quality import QualityConfig, Scores, score, states


def image(*pixels: int) -> np.ndarray:
    """A 2x2 grey image."""
    return np.array(pixels, np.uint8).reshape(2, 2, 1)


def scores(**changes: Any) -> Scores:
    """One image that is well in every respect, but for `changes`."""
    well: dict[str, Any] = {"finite": True, "contrast": 50.0, "label_probability": 0.9, "reference_distance": 20.0}
    return Scores(**{name: np.array([value]) for name, value in (well | changes).items()})


def state(config: QualityConfig | None = None, **changes: Any) -> str:
    return states(scores(**changes), config or QualityConfig())[0]


def test_scores_by_hand() -> None:
    images = np.stack([image(0, 0, 255, 255), image(7, 7, 7, 7), image(1, 3, 1, 3)])
    references = np.stack([image(0, 0, 255, 255), image(4, 10, 7, 7), image(255, 3, 1, 3)])
    finite, probability = np.array([True, False, True]), np.array([0.1, 0.2, 0.3])
    made = score(images, references, finite, probability)
    assert made.contrast.tolist() == [127.5, 0, 1]
    # Differences: none; 3, -3, 0, 0 with mean square 18 / 4; -254, 0, 0, 0 with 254^2 / 4. Not wrapped at 8 bits.
    assert made.reference_distance.tolist() == pytest.approx([0, 4.5**0.5, 127])
    assert made.finite is finite
    assert made.label_probability is probability


def test_colour_counts_as_contrast() -> None:
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255  # every pixel alike, but two channels of three dark: mean 85, deviations 170, -85, -85
    made = score(red, red, np.ones(1, bool), np.ones(1))
    assert made.contrast.tolist() == pytest.approx([((170**2 + 2 * 85**2) / 3) ** 0.5])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok"),
        ({"finite": False}, "nan"),
        ({"contrast": 1.99}, "flat"),
        ({"label_probability": 0.0099}, "off_label"),
        ({"reference_distance": 0.99}, "near_reference"),
        # At a threshold an image is in.
        ({"contrast": 2.0, "label_probability": 0.01, "reference_distance": 1.0}, "ok"),
    ],
)
def test_each_state_has_its_threshold(changes: dict[str, Any], expected: str) -> None:
    assert state(**changes) == expected


def test_the_first_failing_of_nan_flat_off_label_near_reference_is_the_state() -> None:
    bad = {"finite": False, "contrast": 0.0, "label_probability": 0.0, "reference_distance": 0.0}
    seen = []
    for name in list(bad):
        seen.append(state(**bad))
        del bad[name]
    assert seen == ["nan", "flat", "off_label", "near_reference"]


def test_states_keep_the_order_of_the_images() -> None:
    many = Scores(
        np.array([True, False, True, True, True]),
        np.array([9.0, 9.0, 0.0, 9.0, 9.0]),
        np.array([0.9, 0.9, 0.9, 0.0, 0.9]),
        np.array([9.0, 9.0, 9.0, 9.0, 0.0]),
    )
    assert states(many, QualityConfig()) == ["ok", "nan", "flat", "off_label", "near_reference"]


@pytest.mark.parametrize(
    ("threshold", "value", "changes", "without"),
    [
        ("min_contrast", 60.0, {}, "flat"),
        ("min_contrast", 0.0, {"contrast": 0.0}, "ok"),
        ("min_label_probability", 0.95, {}, "off_label"),
        ("min_label_probability", 0.0, {"label_probability": 0.0}, "ok"),
        ("min_distance", 21.0, {}, "near_reference"),
        ("min_distance", 0.0, {"reference_distance": 0.0}, "ok"),
    ],
)
def test_thresholds_move(threshold: str, value: float, changes: dict[str, float], without: str) -> None:
    assert state(QualityConfig(**{threshold: value}), **changes) == without
    assert state(**changes) != without  # the default says otherwise


@pytest.mark.parametrize(
    "bad",
    [
        {"min_contrast": -1},
        {"min_contrast": 129},
        {"min_label_probability": 1.1},
        {"min_distance": -0.1},
        {"min_distance": 256},
        {"max_contrast": 5},
    ],
)
def test_a_config_outside_its_bounds_is_refused_by_the_name_of_the_field(bad: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
        QualityConfig(**bad)  # type: ignore[arg-type]
