import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.spatial.distance import cosine as cosine_distance

from latebloom.data.states import STATES
from latebloom.synth.config import QualityConfig
from latebloom.synth.scoring import quality
from latebloom.synth.scoring.quality import (
    RealFeatures,
    Scores,
    check_scorers,
    contrast,
    duplicate_distances,
    fingerprints,
    score,
    states,
    without_classifier,
)
from latebloom.synth.scoring.spread import Spread

NAN = math.nan
# One image that is well in every respect, with all that can be measured.
WELL: dict[str, Any] = {
    "finite": True,
    "brightness": 100.0,
    "contrast": 50.0,
    "label_probability": 0.9,
    "reference_label_probability": 0.95,
    "reference_distance": 20.0,
    "distance_ratio": 0.8,
    "feature_distance": 0.3,
    "nearest_real_distance": 0.2,
    "nearest_real_index": 4,
    "clip_score": 0.25,
    "clip_margin": 0.05,
    "unsafe": 0.0,
    "duplicate_distance": 15.0,
}
UNMEASURED = {"clip_score": NAN, "clip_margin": NAN, "unsafe": NAN, "duplicate_distance": NAN}
ALL_ON = QualityConfig(
    drop_unsafe=True,
    min_clip_score=0.2,
    min_clip_margin=0.0,
    min_real_distance=0.1,
    min_duplicate_distance=5.0,
)


def image(*pixels: int) -> np.ndarray:
    """A 2x2 grey image."""
    return np.array(pixels, np.uint8).reshape(2, 2, 1)


def scores(*changes: dict[str, Any]) -> Scores:
    """One image each, well but for its changes."""
    return Scores(**{name: np.array([(WELL | change)[name] for change in changes]) for name in WELL})


def state(config: QualityConfig | None = None, **changes: Any) -> str:
    return states(scores(changes), config or QualityConfig())[0]


def features_are_corners(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A classifier of two classes whose features are an image's two upper pixels; class 0 has 3/4."""
    return np.tile([[0.75, 0.25]], (len(images), 1)).astype(np.float32), images[:, 0, :2, 0].astype(np.float32)


def made(images: np.ndarray, references: np.ndarray, **changes: Any) -> Scores:
    n = len(images)
    arguments: dict[str, Any] = {
        "finite": np.ones(n, bool),
        "labels": np.zeros(n, np.int64),
        "sources": np.arange(n),
        "classifier": features_are_corners,
        "real": RealFeatures.of(features_are_corners(references)[1]),
        "spread": Spread.of(references.__getitem__, n),
        "snr": np.zeros(n),
    }
    sources = changes.get("sources", np.arange(n))
    arguments["originals"] = references[np.unique(sources, return_index=True)[1]]
    return score(images, references, **arguments | changes)


def test_pixel_scores_by_hand() -> None:
    images = np.stack([image(0, 0, 255, 255), image(7, 7, 7, 7), image(1, 3, 1, 3)])
    references = np.stack([image(0, 0, 255, 255), image(4, 10, 7, 7), image(255, 3, 1, 3)])
    result = made(images, references, finite=np.array([True, False, True]), labels=np.array([0, 1, 0]))
    assert result.brightness.tolist() == [127.5, 7, 2]
    assert result.contrast.tolist() == [127.5, 0, 1]
    # Differences: none; 3, -3, 0, 0 with mean square 18 / 4; -254, 0, 0, 0 with 254^2 / 4. Not wrapped at 8 bits.
    assert result.reference_distance.tolist() == pytest.approx([0, 4.5**0.5, 127])
    assert result.finite.tolist() == [True, False, True]
    assert result.label_probability.tolist() == [0.75, 0.25, 0.75]
    assert all(len(values) == 3 for values in vars(result).values())


def test_one_colour_is_flat_and_contrast_is_that_of_the_liveliest_channel() -> None:
    red = np.zeros((2, 2, 2, 3), np.uint8)
    red[..., 0] = 255
    red[1, 0, :, 2] = 100  # the upper half also blue: deviations of 50 in that channel alone
    result = made(red, red)
    assert result.brightness.tolist() == pytest.approx([85, 85 + 50 / 3])
    assert result.contrast.tolist() == contrast(red).tolist() == [0, 50]


def test_distances_in_the_classifiers_features_by_hand() -> None:
    # Features of the real images: (3, 4), (4, 3), (0, 9); of the made ones: (30, 40), (5, 0).
    real = np.stack([image(3, 4, 0, 0), image(4, 3, 0, 0), image(0, 9, 0, 0)])
    images = np.stack([image(30, 40, 0, 0), image(5, 0, 0, 0)])
    sources = np.array([0, 2])
    known = RealFeatures.of(features_are_corners(real)[1])
    result = made(images, real[sources], sources=sources, real=known)
    # (30, 40) is along its reference (3, 4); (4, 3) is next, at cos = 24/25. (5, 0): (0, 9) is at right angles,
    # (4, 3) at cos = 4/5, nearer than (3, 4).
    assert result.feature_distance.tolist() == pytest.approx([0, 1], abs=1e-7)
    assert result.nearest_real_index.tolist() == [1, 1]
    assert result.nearest_real_distance.tolist() == pytest.approx([1 / 25, 1 / 5])
    assert result.nearest_real_index.dtype == np.int64


def test_a_copy_of_its_reference_is_at_exactly_0_and_the_reference_is_not_its_nearest_other() -> None:
    images = np.random.default_rng(0).integers(1, 256, (20, 2, 2, 1), dtype=np.uint8)
    result = made(images, images)
    assert result.feature_distance.tolist() == [0.0] * 20
    assert not (result.nearest_real_index == np.arange(20)).any()


def test_a_copy_of_another_real_image_is_found() -> None:
    real = np.random.default_rng(0).integers(1, 256, (20, 2, 2, 1), dtype=np.uint8)
    result = made(real[[7]], real[[3]], sources=np.array([3]), real=RealFeatures.of(features_are_corners(real)[1]))
    assert (result.nearest_real_index[0], result.nearest_real_distance[0]) == (7, 0)


def test_with_one_real_image_there_is_no_other() -> None:
    result = made(image(1, 2, 3, 4)[None], image(4, 3, 2, 1)[None])
    assert (result.nearest_real_index[0], result.nearest_real_distance[0]) == (-1, math.inf)


@pytest.mark.parametrize("block", [7, 8192])
def test_the_nearest_real_image_is_that_of_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_REAL_BLOCK", block)
    rng = np.random.default_rng(0)
    real, features, sources = rng.normal(size=(50, 6)), rng.normal(size=(12, 6)), rng.integers(0, 50, 12)
    pixels = np.zeros((12, 2, 2, 1), np.uint8)
    result = made(
        pixels,
        pixels,
        sources=sources,
        classifier=lambda images: (np.full((len(images), 1), 0.5), features),
        real=RealFeatures.of(real),
    )
    distance = np.array([[cosine_distance(a, b) for b in real] for a in features])
    np.testing.assert_allclose(result.feature_distance, distance[np.arange(12), sources], atol=1e-6)
    distance[np.arange(12), sources] = np.inf
    assert result.nearest_real_index.tolist() == distance.argmin(1).tolist()
    np.testing.assert_allclose(result.nearest_real_distance, distance.min(1), atol=1e-6)


def test_what_no_scorer_measures_is_nan() -> None:
    images = np.stack([image(0, 9, 0, 9), image(0, 9, 9, 9)])
    plain = made(images, images)
    for name in UNMEASURED:
        assert np.isnan(getattr(plain, name)).all()
    labels = np.array([1, 0])
    result = made(
        images,
        images,
        labels=labels,
        clip=lambda seen, of: (seen.sum((1, 2, 3)) / 100, of - 0.5),
        safety=lambda seen: (seen[:, 1, 0, 0] > 0).astype(np.float64),
    )
    assert result.clip_score.tolist() == [0.18, 0.27]
    assert result.clip_margin.tolist() == [0.5, -0.5]
    assert result.unsafe.tolist() == [0, 1]
    assert np.isnan(result.duplicate_distance).all()


def test_without_a_classifier_its_scores_are_nan_and_the_thresholds_on_them_are_off_or_refused() -> None:
    images = np.stack([image(0, 0, 255, 255)])
    result = made(images, images, classifier=None, real=None)
    by_classifier = ("label_probability", "reference_label_probability", "feature_distance", "nearest_real_distance")
    assert all(np.isnan(getattr(result, name)).all() for name in by_classifier)
    assert result.nearest_real_index.tolist() == [-1]
    assert result.reference_distance.tolist() == [0]
    assert states(result, QualityConfig(min_distance=0)) == ["off_label"]  # what was not measured does not pass
    assert states(result, without_classifier(QualityConfig(min_distance=0))) == ["ok"]
    check_scorers(without_classifier(QualityConfig()), clip=False, safety=False, classifier=False)
    for changes in ({"min_label_probability": 0.5}, {"min_real_distance": 0.1}):
        config = without_classifier(QualityConfig(**changes))
        with pytest.raises(ValueError, match=r"score with a reference classifier, or set it to 0"):
            check_scorers(config, clip=False, safety=False, classifier=False)


def test_blocks_change_no_score_and_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    for values in [1, 10, 1 << 24]:
        images, references = np.random.default_rng(0).integers(0, 256, (2, 9, 3, 5, 1), dtype=np.uint8)
        expected, prints = made(images, references), fingerprints(images)
        monkeypatch.setattr(quality, "_PIXEL_BLOCK", values)
        result = made(images, references)
        for name in ("brightness", "contrast", "reference_distance"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        np.testing.assert_array_equal(fingerprints(images), prints)


def test_states_by_the_default_thresholds() -> None:
    for changes, expected in [
        ({}, "ok"),
        ({"finite": False}, "nan"),
        ({"contrast": 1.99}, "flat"),
        ({"label_probability": 0.0949}, "off_label"),  # of the reference's 0.95
        ({"label_probability": 1.1e-9, "reference_label_probability": 1e-8}, "ok"),  # as doubtful as its reference
        ({"label_probability": 0.0, "reference_label_probability": 0.0}, "ok"),
        ({"distance_ratio": 4.51}, "far_from_reference"),
        ({"reference_distance": 0.99}, "near_reference"),
        # At a threshold an image is in.
        ({"contrast": 2.0, "label_probability": 0.1 * 0.95, "reference_distance": 1.0}, "ok"),
        # A NaN score is no pass.
        ({"contrast": NAN}, "flat"),
        ({"label_probability": NAN}, "off_label"),
        ({"reference_label_probability": NAN}, "off_label"),
        ({"reference_distance": NAN}, "near_reference"),
        ({"distance_ratio": NAN}, "far_from_reference"),
        # The others are off until they are asked for, measured or not.
        ({"unsafe": 1.0, "clip_score": -1.0, "clip_margin": -2.0}, "ok"),
        ({"nearest_real_distance": 0.0, "duplicate_distance": 0.0}, "ok"),
        (UNMEASURED, "ok"),
    ]:
        assert state(**changes) == expected


def test_states_with_every_threshold_on() -> None:
    for changes, expected in [
        ({}, "ok"),
        ({"unsafe": 1.0}, "unsafe"),
        ({"clip_score": 0.19}, "off_label"),
        ({"clip_margin": -0.01}, "off_label"),
        ({"nearest_real_distance": 0.09}, "near_real"),
        ({"duplicate_distance": 4.9}, "duplicate"),
        ({"clip_score": 0.2, "clip_margin": 0.0, "nearest_real_distance": 0.1, "duplicate_distance": 5.0}, "ok"),
        # Where there is no other class, real image or earlier image, none is too near.
        ({"clip_margin": math.inf, "nearest_real_distance": math.inf, "duplicate_distance": math.inf}, "ok"),
    ]:
        assert state(ALL_ON, **changes) == expected


def test_the_first_condition_that_holds_is_the_state() -> None:
    bad = {
        "finite": False,
        "contrast": 0.0,
        "unsafe": 1.0,
        "label_probability": 0.0,
        "distance_ratio": 9.0,
        "reference_distance": 0.0,
        "nearest_real_distance": 0.0,
        "duplicate_distance": 0.0,
    }
    seen = []
    for name in list(bad):
        seen.append(state(ALL_ON, **bad))
        del bad[name]
    assert seen == [state for state in STATES if state != "ok"]


def test_states_keep_the_order_of_the_images_and_of_none_there_are_none() -> None:
    many = scores({}, {"finite": False}, {"contrast": 0.0}, {"label_probability": 0.0}, {"reference_distance": 0.0})
    assert states(many, QualityConfig()) == ["ok", "nan", "flat", "off_label", "near_reference"]
    assert states(Scores(**{name: values[:0] for name, values in vars(many).items()}), ALL_ON) == []


def test_thresholds_move() -> None:
    for threshold, value, changes, without in [
        ("min_contrast", 60.0, {}, "flat"),
        ("min_contrast", 0.0, {"contrast": 0.0}, "ok"),
        ("min_label_probability", 0.95, {}, "off_label"),
        ("min_label_ratio", 0.95, {}, "off_label"),
        ("min_label_ratio", 0.0, {"label_probability": 0.0}, "ok"),
        ("max_distance_ratio", 0.79, {}, "far_from_reference"),
        ("max_distance_ratio", 0.0, {"distance_ratio": 99.0}, "ok"),
        ("min_distance", 21.0, {}, "near_reference"),
        ("min_distance", 0.0, {"reference_distance": 0.0}, "ok"),
        ("drop_unsafe", True, {"unsafe": 1.0}, "unsafe"),
        ("min_clip_score", 0.3, {}, "off_label"),
        ("min_clip_margin", 0.1, {}, "off_label"),
        ("min_real_distance", 0.25, {}, "near_real"),
        ("min_duplicate_distance", 16.0, {}, "duplicate"),
    ]:
        assert state(QualityConfig(**{threshold: value}), **changes) == without  # type: ignore[arg-type]
        assert state(**changes) != without  # the default says otherwise


def test_a_threshold_on_what_was_not_measured_is_refused() -> None:
    for threshold, value, missing, message in [
        ("drop_unsafe", True, "unsafe", "turn scores.safety on with a generator that ships a safety checker"),
        ("min_clip_score", 0.2, "clip_score", "name a CLIP model in scores.clip"),
        ("min_clip_margin", 0.0, "clip_margin", "name a CLIP model in scores.clip"),
        ("min_duplicate_distance", 3.0, "duplicate_distance", "measure it over the whole set"),
    ]:
        config = QualityConfig(**{threshold: value})  # type: ignore[arg-type]
        what = f"^quality.{threshold} is {value}, but 1 of 2 images have no such score: {message}, or set it to "
        with pytest.raises(ValueError, match=what):
            states(scores({}, {missing: NAN}), config)


def test_a_threshold_on_what_will_not_be_measured_is_refused_before_images_are_made() -> None:
    for config, message in [
        (
            QualityConfig(min_clip_score=0.2),
            "quality.min_clip_score is 0.2: name a CLIP model in scores.clip, or set it to -1.0",
        ),
        (
            QualityConfig(min_clip_margin=0.1),
            "quality.min_clip_margin is 0.1: name a CLIP model in scores.clip, or set it to -2.0",
        ),
        (
            QualityConfig(drop_unsafe=True),
            "quality.drop_unsafe is True: turn scores.safety on with a generator that ships a safety checker, or set "
            "it to False",
        ),
    ]:
        clips, checks = config.min_clip_score != -1 or config.min_clip_margin != -2, config.drop_unsafe
        check_scorers(config, clip=clips, safety=checks)
        with pytest.raises(ValueError) as refused:
            check_scorers(config, clip=not clips, safety=not checks)
        assert str(refused.value) == message


def test_without_optional_thresholds_no_scorer_is_needed() -> None:
    check_scorers(QualityConfig(min_real_distance=0.1, min_duplicate_distance=1), clip=False, safety=False)


def test_fingerprints_by_hand() -> None:
    # 16x16: each 2x2 square averages to one byte. The top left one holds 0, 1, 2, 4: 1.75, rounded to 2.
    images = np.zeros((1, 16, 16, 1), np.uint8)
    images[0, :2, :2, 0] = [[0, 1], [2, 4]]
    images[0, 2:4, 14:] = 200  # the second row's last square
    prints = fingerprints(images)
    assert prints.dtype == np.uint8
    assert prints.shape == (1, 64)
    assert np.flatnonzero(prints[0]).tolist() == [0, 15]
    assert prints[0, [0, 15]].tolist() == [2, 200]


def test_a_fingerprint_of_8x8_is_the_image_itself() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fingerprints(images), images.reshape(3, -1))


def test_a_pixel_on_a_border_counts_in_both_shares() -> None:
    # 12 px in 8 shares of 1.5: the second share holds half of pixel 1 (90) and pixel 2 (0): 45 / 1.5 = 30.
    images = np.zeros((1, 12, 12, 1), np.uint8)
    images[:, :, 1] = 90
    assert fingerprints(images)[0, :4].tolist() == [30, 30, 0, 0]


def test_fingerprints_are_no_further_apart_than_the_images() -> None:
    for side in [16, 24, 40]:
        a, b = np.random.default_rng(0).integers(0, 256, (2, 6, side, side, 3)).astype(np.uint8)
        b[3:] = np.clip(a[3:] + 2.0, 0, 255)  # near-duplicates
        between = fingerprints(a).astype(float) - fingerprints(b)
        apart = np.sqrt(((a.astype(float) - b) ** 2).mean((1, 2, 3)))
        assert (np.sqrt((between**2).mean(1)) <= apart + 1).all()  # each of the two is rounded by half a level at most


def test_duplicates_by_hand() -> None:
    # Prints of 4 bytes; distances are |difference| / 2 where one byte differs.
    prints = np.array([[0, 0, 0, 0], [6, 0, 0, 0], [6, 0, 0, 0], [8, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    labels, everything = np.array([0, 0, 1, 0, 1]), np.ones(5, bool)
    assert duplicate_distances(prints, labels, everything).tolist() == [math.inf, 3, math.inf, 1, 3]
    # Without image 1, image 3 has only image 0 before it; image 1 is measured all the same.
    among = np.array([True, False, True, True, True])
    assert duplicate_distances(prints, labels, among).tolist() == [math.inf, 3, math.inf, 4, 3]


def test_duplicate_distances_are_those_of_all_pairs_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for block, values in [(1, 64), (3, 192), (2048, 192)]:
        monkeypatch.setattr(quality, "_FINGERPRINT_BLOCK", block)
        rng = np.random.default_rng(0)
        prints = rng.choice(np.array([0, 1, 254, 255], np.uint8), (40, values))
        prints[0], prints[1] = 0, 255  # as far apart as can be
        labels, among = rng.integers(0, 3, 40), rng.random(40) < 0.7
        labels[:2], among[0] = 0, True
        squares = cdist(prints.astype(np.int64), prints.astype(np.int64), "sqeuclidean")
        earlier = np.tri(40, 40, -1, bool) & (labels[:, None] == labels) & among
        expected = np.sqrt(np.where(earlier, squares, np.inf).min(1) / values)
        result = duplicate_distances(prints, labels, among)
        assert result[1] == 255
        np.testing.assert_array_equal(result, expected)


def test_the_first_of_two_copies_stays() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    images[2] = images[0]
    distances = duplicate_distances(fingerprints(images), np.zeros(4, np.int64), np.ones(4, bool))
    many = scores(*({"duplicate_distance": distance} for distance in distances))
    assert states(many, QualityConfig(min_duplicate_distance=1.0)) == ["ok", "ok", "duplicate", "ok"]
