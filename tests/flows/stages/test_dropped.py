"""The filter must not undo the method: what is dropped, of whom, and what is said of it."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages, encode_png
from latebloom.data.sources.load import load
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.run.records import SELECT
from latebloom.flows.stages import dropped, synthesis
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.dropped import Quartile, quartiles
from latebloom.flows.stages.training_sets import images_for, training_set
from latebloom.flows.stages.usable import unmeasured
from latebloom.synth.config import QualityConfig
from latebloom.synth.generate import Drawn
from latebloom.synth.scoring.quality import RealFeatures, Scores, score, states
from latebloom.synth.scoring.spread import Spread
from latebloom.train.config import FitConfig
from latebloom.train.evaluate import features_of, softmax
from latebloom.train.loop.fit import fit
from latebloom.train.models.build import build

Tiny = Callable[..., CompareConfig]
OLD = QualityConfig(min_label_ratio=0, max_distance_ratio=0, min_label_probability=0.01)


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[np.ndarray], np.ndarray]], None]:
    """Makes the generator draw what a function makes of a reference, uint8 (H, W, C)."""
    real = synthesis.draw

    def replace(make: Callable[[np.ndarray], np.ndarray]) -> None:
        def draw(*args: Any, **how: Any) -> Drawn:
            drawn = real(*args, **how)
            images = [None if image is None else make(image) for image in drawn.unchanged]
            blobs = [b"" if image is None else encode_png(image) for image in images]
            return dataclasses.replace(drawn, images=images, blobs=blobs, finite=np.ones(len(images), bool))

        monkeypatch.setattr(synthesis, "draw", draw)

    return replace


def test_copies_of_the_slow_are_all_trained_on(
    drawing: Callable[..., None], story: SimpleNamespace, tiny: Tiny, tmp_path: Path
) -> None:
    """A perfect generator at level 0: the filter takes (k - 1) times the slow."""
    drawing(lambda reference: reference)
    config = tiny({"quality": QualityConfig(min_distance=0).model_dump()})
    run = RunContext(story.with_images(tmp_path / "run", config), config)
    (arm,) = (arm for arm in config.parsed_arms if arm.kind == "synthetic")
    rows = training_set(run, arm, images_for(run, {arm.name})).rows
    assert [len(own) - 60 for own in rows] == [2 * slow for slow in run.folder.record(SELECT).facts.slow]
    assert dropped.warnings(run, dropped.columns_of_filter(run)) == []


def test_static_is_never_ok_and_is_said_to_look_like_noise(
    drawing: Callable[..., None],
    story: SimpleNamespace,
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    drawing(lambda reference: rng.integers(0, 256, reference.shape).astype(np.uint8))
    config = tiny({"quality": QualityConfig(min_label_ratio=0).model_dump(), "plan.levels": (3, 10), "seeds": 1})
    run = RunContext(story.with_images(tmp_path / "run", config), config)
    found = run.synthetic.manifest()["states"]
    assert found["far_from_reference"] == run.plan.num_rows
    said = capsys.readouterr().err
    assert "warning: The variants of ours-3 LOOK LIKE NOISE" in said
    assert "dropped by quartile of the reference's early loss" in said
    assert any("LOOK LIKE NOISE" in line for line in gather._warnings(run, has_slow=True, table=run.synthetic.rows()))


def test_a_score_that_was_asked_for_and_is_nan_everywhere_is_warned_of(tiny: Tiny) -> None:
    nan, some = [np.nan] * 3, [np.nan, 0.5, 0.5]
    config = tiny({"scores": {"clip": "a-folder", "safety": True}})

    def told(config: CompareConfig, **columns: list[float]) -> list[str]:
        whole = dict.fromkeys(("clip_score", "unsafe", "label_probability"), nan) | columns
        return [line.partition(" ")[0] for line in unmeasured(config, pa.table(whole))]

    assert told(config) == ["clip_score", "unsafe", "label_probability"]
    assert told(config, clip_score=some, label_probability=some) == ["unsafe"]
    assert told(tiny({})) == ["label_probability"]
    (line,) = unmeasured(tiny({}), pa.table({"label_probability": nan}))
    assert line == (
        "label_probability is NaN for all 3 images: the model of the reference classifier is damaged; name another one"
    )


def hopeless(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A classifier of 200 classes that knows nothing; another image, other logits."""
    logits = np.stack([np.random.default_rng(int(image.sum(dtype=np.int64))).normal(size=200) for image in images])
    return softmax(3 * logits), images.reshape(len(images), -1).astype(np.float32)


def scores_of(images: np.ndarray, data: LabeledImages, classifier: Any) -> Scores:
    """Images made of every one of the data, at pure noise."""
    n = len(images)
    pixels = data.pixels()
    real = RealFeatures.of(classifier(pixels)[1])
    spread = Spread.of(data.pixels, n)
    ok, rows = np.ones(n, bool), np.arange(n)
    return score(images, pixels, ok, data.labels, rows, classifier, real, pixels, spread, np.zeros(n))


def test_copies_of_200_classes_under_a_hopeless_classifier_are_all_ok() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 6, 6, 1)).astype(np.uint8)
    data = LabeledImages(pixels, np.arange(400) % 200, tuple(map(str, range(200))), "static")
    found = scores_of(pixels, data, hopeless)
    assert (found.label_probability < 0.01).mean() > 0.5
    assert set(states(found, QualityConfig(min_distance=0))) == {"ok"}
    assert "off_label" in states(found, OLD)


def test_the_classes_alone_move_no_state() -> None:
    """A classifier spreads the same doubt over 10 or over 1,000 classes: chance is 0.1 or 0.001."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)

    def found(classes: int) -> list[str]:
        def even(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            known = (images[:, None] == pixels[None]).all((2, 3, 4)).any(1)
            probability = np.full((len(images), classes), 1 / classes)
            probability[~known] *= np.linspace(0.01, 1, len(images))[~known][:, None]
            return probability, images.reshape(len(images), -1).astype(np.float32)

        data = LabeledImages(pixels, np.zeros(20, np.int64), tuple(map(str, range(classes))), "static")
        return list(states(scores_of(other, data, even), QualityConfig()))

    assert found(10) == found(1000)
    assert set(found(10)) == {"ok", "off_label"}


def columns(probability: list[float], drop: list[int], per: int = 2) -> pa.Table:
    """References with these probabilities, with `per` variants each, of which the first `drop` are dropped."""
    return pa.table(
        {
            "source_index": np.repeat(np.arange(len(drop)) * 7, per),
            "reference_label_probability": np.repeat(probability, per),
            "state": [state for n in drop for state in ["off_label"] * n + ["ok"] * (per - n)],
        }
    )


def test_quartiles_by_hand() -> None:
    # From the most to the least probable: rows 1, 3, 5 and 0, 2, 4, of two quartiles each of one or two references.
    table = columns([0.3, 0.9, 0.2, 0.8, 0.1, 0.7], [1, 0, 2, 0, 2, 1])
    # Ranks 0..5 times 4 / 6: 0, 0, 1, 2, 2, 3.
    assert quartiles(table, ("ok",)) == [Quartile(4, 0), Quartile(2, 1), Quartile(4, 3), Quartile(2, 2)]
    assert quartiles(table, ("ok", "off_label"))[3] == Quartile(2, 0)
    assert quartiles(table.slice(0, 0), ("ok",)) == [Quartile(0, 0)] * 4


@pytest.mark.parametrize(
    ("counts", "warned"),
    [
        ([0, 0, 0, 0], False),
        ([10, 10, 10, 12], False),
        ([5, 5, 5, 9], False),  # not twice as many
        ([0, 0, 0, 2], False),  # by chance
        ([0, 0, 2, 43], True),  # what the absolute threshold did on CIFAR-10
        ([100, 100, 100, 100], False),
    ],
)
def test_a_warning_where_the_slowest_lose_much_more(counts: list[int], warned: bool) -> None:
    assert bool(dropped._unequal([Quartile(100, count) for count in counts])) is warned


def cifar10() -> Path:
    return Path(os.environ.get("LATEBLOOM_CIFAR10", Path(__file__).parents[4] / "shared" / "cifar10"))


@pytest.mark.skipif(not cifar10().is_dir(), reason="no CIFAR-10 as parquet at ../shared/cifar10 or LATEBLOOM_CIFAR10")
@pytest.mark.slow
def test_on_cifar10_a_poor_generators_drops_do_not_fall_on_the_slowest() -> None:
    """600 images; the generator averages squares of 8 pixels. By quartile of the reference's early probability."""
    data = load(DataConfig(source=str(cifar10()), train_limit=600, test_limit=10)).train
    model = build("small-cnn", 10, (32, 32, 3), 0, 8)
    fit([model], data, [np.arange(600)], FitConfig(epochs=16, batch_size=50, lr=0.05), [0])

    def classifier(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = features_of(model, LabeledImages(images, data.labels[: len(images)], data.class_names, ""))
        return softmax(logits), features

    squares = data.pixels().reshape(600, 4, 8, 4, 8, 3).mean((2, 4))
    found = scores_of(np.rint(squares.repeat(8, 1).repeat(8, 2)).astype(np.uint8), data, classifier)

    def shares(quality: QualityConfig) -> list[float]:
        table = pa.table(
            {
                "source_index": np.arange(600),
                "reference_label_probability": found.reference_label_probability,
                "state": states(found, quality),
            }
        )
        return [quartile.share for quartile in quartiles(table, ("ok",))]

    old, new = shares(OLD), shares(QualityConfig())
    assert old[3] - max(old[:3]) > 0.05, old
    assert new[3] - max(new[:3]) < 0.03, new
