"""Synthetic data sets made from Python, by the shipped generator on eight digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import load
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.stages import from_python
from latebloom.flows.stages.from_python import synthesize
from latebloom.synth.config import GenerateConfig, QualityConfig, SampleConfig
from latebloom.synth.generate import draw
from latebloom.synth.generators.load import load_generator
from latebloom.synth.plan import make_plan, requests
from latebloom.synth.sampling.loop import LoopGenerator

FAST = SampleConfig(grid=10, steps=3, guidance_scale=1.0)


@pytest.fixture(scope="module")
def images() -> LabeledImages:
    return load(DataConfig(source="digits")).train.subset(np.arange(8))


def made(images: LabeledImages, out: Path, **changes: Any) -> SyntheticFolder:
    arguments: dict[str, Any] = {"levels": (4, 6), "seed": 5, "sample": FAST, "part_size": 2}
    return synthesize(images, [6, 1], "digits", out, **arguments | changes)


def test_it_has_a_variant_of_each_image_at_each_level_as_draw_makes_it(images: LabeledImages, tmp_path: Path) -> None:
    rows = made(images, tmp_path).rows()
    assert rows["source_index"].to_pylist() == [1, 1, 6, 6]
    assert rows["source_name"].to_pylist() == [images.names[row] for row in (1, 1, 6, 6)]
    assert rows["level_steps"].to_pylist() == [4, 6, 4, 6]
    generator = load_generator(GenerateConfig(generator="digits"), FAST)
    plan = make_plan(requests(np.array([1, 6]), (4, 6)), images, 10, 5)
    assert [image["bytes"] for image in rows["image"].to_pylist()] == draw(generator, images, plan).blobs


def test_an_interrupted_call_goes_on_and_a_finished_one_draws_nothing(
    images: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments, **more)

    monkeypatch.setattr(from_python, "draw", counted)
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "one")
    with pytest.raises(ValueError, match="one not finished yet"):
        SyntheticFolder(tmp_path / "one").manifest()
    made(images, tmp_path / "one")
    assert len(calls) == 3  # the second part once more, the first no more
    made(images, tmp_path / "one")
    assert len(calls) == 3
    whole = made(images, tmp_path / "other")
    assert whole.manifest() == SyntheticFolder(tmp_path / "one").manifest()


def test_an_interrupted_part_goes_on_where_it_was_and_progress_is_by_step(
    images: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[float] = []
    known: list[int] = []

    def stopped(*arguments: Any, **more: Any) -> Any:
        known.append(more["known"].num_rows)
        add = arguments[5]

        def on_images(count: float) -> None:
            add(count)
            moves.append(count)
            if sum(moves) > 2.4 and len(known) == 1:
                raise KeyboardInterrupt

        return draw(*arguments[:5], on_images, **more)

    monkeypatch.setattr(from_python, "draw", stopped)
    generator = GenerateConfig(generator="digits", batch_size=2)
    every_step = SampleConfig(grid=10, guidance_scale=1.0)
    arguments: dict[str, Any] = {"levels": (4, 6), "seed": 5, "sample": every_step, "part_size": 4}
    with pytest.raises(KeyboardInterrupt):
        synthesize(images, [6, 1], generator, tmp_path / "one", **arguments)
    assert 0 < min(moves) < 1
    folder = synthesize(images, [6, 1], generator, tmp_path / "one", **arguments)
    assert known == [0, 2]  # the first batch was kept
    assert not list((tmp_path / "one/.cache").glob("*.parquet"))
    whole = synthesize(images, [6, 1], generator, tmp_path / "other", **arguments)
    assert folder.rows()["image"].to_pylist() == whole.rows()["image"].to_pylist()


def test_images_that_were_made_before_the_data_grew_are_not_made_again(
    images: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    make = LoopGenerator.make
    monkeypatch.setattr(LoopGenerator, "make", lambda *args: drawn.append(len(args[2])) or make(*args))
    small = images.subset(np.arange(1, 8))
    synthesize(small, [5, 0], "digits", tmp_path / "grown", levels=(4, 6), seed=5, sample=FAST, part_size=3)
    assert sum(drawn) == 4
    grown, fresh = (
        synthesize(images, [6, 1, 3], "digits", tmp_path / name, levels=(4, 6), seed=5, sample=FAST, part_size=3)
        for name in ("grown", "fresh")
    )
    assert sum(drawn) == 4 + 2 + 6  # what is new, and all of it
    assert grown.rows()["image"].to_pylist() == fresh.rows()["image"].to_pylist()


def test_a_classifier_scores_the_label(images: LabeledImages, tmp_path: Path) -> None:
    sure_of_one = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        sure_of_one[1].weight.zero_()
        sure_of_one[1].bias.copy_(torch.arange(10) == 1)  # e / (e + 9) for class 1, 1 / (e + 9) for the others
    rows = made(images, tmp_path / "with", classifier=sure_of_one).rows()
    expected = np.where(images.labels[[1, 1, 6, 6]] == 1, np.e, 1) / (np.e + 9)
    assert rows["label_probability"].to_numpy() == pytest.approx(expected)
    without = made(images, tmp_path / "without")
    assert np.isnan(without.rows()["label_probability"].to_numpy()).all()
    assert without.manifest()["states"]["ok"] == 4
    assert json.loads((tmp_path / "without" / "manifest.json").read_text())["about"]["quality"]["min_label_ratio"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": (11,)}, "level 11 of 10 does not exist"),
        ({"quality": QualityConfig(min_label_probability=0.5)}, "score with a reference classifier"),
        ({"part_size": 0}, "part_size is 0"),
        ({"classifier": nn.Conv2d(3, 10, 3)}, r"cannot take these images, float32 \(n, 1, 8, 8\)"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str, images: LabeledImages, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        made(images, tmp_path, **changes)


def test_images_that_fail_are_named_and_the_others_kept(
    images: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **more: Any) -> Any:
        drawn = draw(*arguments, **more)
        drawn.images[0] = None
        drawn.failures[0] = "a broken reference"
        return drawn

    with monkeypatch.context() as patch:
        patch.setattr(from_python, "draw", failing)
        with pytest.raises(RuntimeError, match=r"2 of 4 images could not be made; the first is .*: a broken reference"):
            made(images, tmp_path)
    assert made(images, tmp_path).manifest()["rows"] == 4
