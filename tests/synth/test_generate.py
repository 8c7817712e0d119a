import dataclasses
import errno
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from latebloom.data.depth import Decoding
from latebloom.data.images import EncodedImages, LabeledImages, decode, encode_png
from latebloom.data.seeds import child_seed
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA
from latebloom.synth.config import QualityConfig, SampleConfig, SizeConfig
from latebloom.synth.generate import Drawn, Scorers, UnusableGenerator, describe, draw, drawn_rows, reference
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import Request, make_plan, requests
from latebloom.synth.probe import Probe, probe
from latebloom.synth.sampling.denoiser import Made, Wanted
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.synth.scoring.quality import RealFeatures, fingerprints
from latebloom.synth.scoring.spread import Spread

SAMPLE = SampleConfig(sampler="ddpm", grid=10, guidance_scale=1)
AS_STORED = SizeConfig(returned="source")
AT_ANY_DISTANCE = QualityConfig(max_distance_ratio=0)  # fakes draw what has nothing to do with the reference


def plan_of(data: LabeledImages, wanted: list[Request], grid: int = 10) -> pa.Table:
    return make_plan(wanted, data, grid, 7, lambda label, _: f"a photo of a {data.class_names[label]}")


def certain(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A classifier that finds each of five labels in every image; its features are the first two columns."""
    return np.ones((len(images), 5), np.float32), images[:, :, :2].reshape(len(images), -1).astype(np.float32)


def scorers(data: LabeledImages, **changes: Any) -> Scorers:
    real, spread = RealFeatures.of(certain(data.pixels())[1]), Spread.of(data.pixels, len(data))
    return dataclasses.replace(Scorers(certain, real, spread, pixel_noise=True), **changes)


def drawn_of(
    generator: Any, data: LabeledImages, plan: pa.Table, *, sizes: SizeConfig | None = None, batch_size: int = 4
) -> Drawn:
    return draw(generator, data, plan, sizes or SizeConfig(), BatchSizes(batch_size))


def part_of(
    generator: Any,
    data: LabeledImages,
    plan: pa.Table,
    *,
    quality: QualityConfig | None = None,
    scored_by: Scorers | None = None,
    **how: Any,
) -> pa.Table:
    drawn = drawn_of(generator, data, plan, **how)
    return describe(generator, data, plan, drawn, quality or QualityConfig(), scored_by or scorers(data))


def pixels(part: pa.Table) -> list[np.ndarray]:
    return [decode(cell["bytes"], cell["path"]) for cell in part["image"].to_pylist()]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def stored(*shapes: tuple[int, ...], crop: int = 8) -> LabeledImages:
    """Images of noise of these (H, W, C), stored as files, cut square when they are read; labels 0, 1, 2, 0, ..."""
    blobs = [encode_png(noise(row, *shape)) for row, shape in enumerate(shapes)]
    names = [f"{row}.png" for row in range(len(blobs))]
    images = EncodedImages(blobs, names, (crop, crop, shapes[0][2]), Decoding(crop))
    return LabeledImages(images, np.arange(len(shapes)) % 3, ("a", "b", "c"), "files")


# Rows


def test_a_part_has_the_rows_of_its_plan_and_says_how_each_image_was_made(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    sample = SampleConfig(sampler="ddim", grid=10, steps=5, guidance_scale=2.5)
    generator = LoopGenerator(fakes.Denoiser(fakes.gaussian([0.2] * 4, 0.5)), sample)
    # Sources before levels: the plan is not in the order of depth, in which they are made.
    plan = plan_of(tiny_images, requests(np.array([2, 4]), (3, 10, 5)))
    part = part_of(generator, tiny_images, plan)
    assert part.schema.equals(SYNTHETIC_SCHEMA)
    for name in plan.column_names:
        assert part[name].to_pylist() == plan[name].to_pylist(), name
    assert part["item_id"][0].as_py() == "0000002-3of10-v0"
    assert part["prompt"].to_pylist() == ["a photo of a bottom"] * 3 + ["a photo of a middle"] * 3
    assert [cell["path"] for cell in part["image"].to_pylist()] == [
        f"{name}.png" for name in plan["item_id"].to_pylist()
    ]
    # Ten of 1000 steps: 0, 111, 222, ...; level 3 starts at 222. Levels 3, 5, 10 in steps of two: 2, 3, 5.
    abar = fakes.cosine_alphas_cumprod(1000)
    log_snr = [math.log(abar[222] / (1 - abar[222])), math.log(abar[444] / (1 - abar[444])), -math.inf]
    assert part["log_snr"].to_pylist() == pytest.approx(log_snr * 2)
    assert part["timestep"].to_pylist() == [222.0, 444.0, 999.0] * 2
    assert part["strength"].to_pylist() == [0.223, 0.445, 1.0] * 2
    assert part["calls"].to_pylist() == [2, 3, 5] * 2
    assert part["attempt"].to_pylist() == [0] * 6
    assert part["guidance_scale"].to_pylist() == [2.5] * 6
    assert part["sampler"].to_pylist() == ["ddim"] * 6
    assert part["generator"].to_pylist() == ["fake"] * 6
    assert part["generator_digest"].to_pylist() == ["f" * 64] * 6


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_image_is_made_from_its_own_row_of_the_plan(
    fakes: SimpleNamespace, tiny_images: LabeledImages, batch_size: int
) -> None:
    def write(references: np.ndarray, wanted: Wanted) -> np.ndarray:
        for row, image in enumerate(references):
            image[0, :3, 0] = wanted.labels[row], wanted.levels[row], wanted.seeds[row] % 251
            image[0, 3, 0] = len(wanted.prompts[row])
        return references

    rng = np.random.default_rng(0)
    wanted = [
        Request(int(i), int(level), 0) for i, level in zip(rng.permutation(16), rng.integers(1, 11, 16), strict=True)
    ]
    plan = plan_of(tiny_images, [*wanted, Request(3, 2, 1), Request(3, 2, 2)])
    made = pixels(part_of(fakes.Generator(write), tiny_images, plan, batch_size=batch_size))
    assert len(made) == 18
    for row, image in zip(plan.to_pylist(), made, strict=True):
        expected = [row["label"], row["level_steps"], row["seed"] % 251, len(row["prompt"])]
        assert image[0, :4, 0].tolist() == expected
        np.testing.assert_array_equal(image[1:], tiny_images.pixels(np.array([row["source_index"]]))[0][1:])


def test_scores_are_of_the_image_and_its_own_reference(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    drawings = noise(0, 3, 8, 8, 1)  # for labels 0, 1, 2
    generator = fakes.Generator(lambda _, wanted: drawings[wanted.labels])
    plan = plan_of(tiny_images, requests(np.array([5, 0, 1, 4]), (2,)))
    part = part_of(generator, tiny_images, plan)
    expected = drawings[[0, 1, 1, 2]]
    np.testing.assert_array_equal(np.stack(pixels(part)), expected)
    references = tiny_images.pixels(np.array([0, 1, 4, 5])).astype(float)
    distance = ((expected - references) ** 2).mean((1, 2, 3)) ** 0.5
    assert part["reference_distance"].to_pylist() == pytest.approx(distance.tolist())
    assert part["contrast"].to_pylist() == pytest.approx(expected.std((1, 2, 3)).tolist())
    assert part["brightness"].to_pylist() == pytest.approx(expected.mean((1, 2, 3)).tolist())
    assert part["fingerprint"].to_pylist() == [print_.tobytes() for print_ in fingerprints(expected)]
    for name in ("clip_score", "clip_margin", "unsafe", "duplicate_distance"):
        assert np.isnan(part[name].to_numpy()).all(), name  # nobody measured them


def test_what_fails_a_threshold_is_a_row_with_a_state(fakes: SimpleNamespace) -> None:
    references, drawings = noise(0, 4, 8, 8, 1), noise(1, 4, 8, 8, 1)
    data = LabeledImages(references, np.arange(4), ("a", "b", "c", "d"), "here")
    drawings[0] = 90  # constant
    drawings[1] = references[1]

    def classifier(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, features = np.full((len(images), 4), 0.25), certain(images)[1]
        probability[(images == drawings[2]).all((1, 2, 3)), 2] = 0  # and not in its reference
        return probability, features

    plan = plan_of(data, [Request(i, 2 + i, 0) for i in range(4)])  # the deepest, made first, is last here
    generator = fakes.Generator(lambda _, wanted: drawings[wanted.labels])
    strict = part_of(generator, data, plan, scored_by=scorers(data, classifier=classifier), batch_size=2)
    assert strict["state"].to_pylist() == ["flat", "near_reference", "off_label", "ok"]
    assert strict["label_probability"].to_pylist() == [0.25, 0.25, 0, 0.25]
    assert strict["contrast"][0].as_py() == 0
    assert strict["reference_distance"][1].as_py() == 0
    assert strict["feature_distance"][1].as_py() == 0
    np.testing.assert_array_equal(np.stack(pixels(strict)), drawings)
    none = QualityConfig(min_contrast=0, min_label_ratio=0, min_distance=0)
    loose = part_of(generator, data, plan, scored_by=scorers(data, classifier=classifier), quality=none)
    assert loose["state"].to_pylist() == ["ok"] * 4


def test_scorers_see_the_images_in_plan_order_and_their_word_on_the_own_label_counts(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    seen: list[np.ndarray] = []

    def classifier(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(images) == 2:  # the references
            return np.full((2, 3), [[0.5], [0.25]], np.float32), certain(images)[1]
        seen.append(images)
        return np.arange(12, dtype=np.float32).reshape(4, 3) / 12, certain(images)[1]

    def clip(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(images)
        return labels / 10, labels / 20

    def safety(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return np.array([0.0, 1.0, 0.0, 0.0])

    plan = plan_of(tiny_images, requests(np.array([0, 1]), (5, 2)))
    scored_by = scorers(tiny_images, classifier=classifier, clip=clip, safety=safety)
    part = part_of(
        fakes.Generator(lambda references, _: 255 - references),
        tiny_images,
        plan,
        scored_by=scored_by,
        batch_size=3,
        quality=QualityConfig(drop_unsafe=True, min_label_ratio=0, max_distance_ratio=0),
    )
    assert len(seen) == 3
    for images in seen:
        np.testing.assert_array_equal(images, np.stack(pixels(part)))
    assert part["label"].to_pylist() == [0, 0, 1, 1]
    assert part["label_probability"].to_pylist() == pytest.approx([0 / 12, 3 / 12, 7 / 12, 10 / 12])
    assert part["reference_label_probability"].to_pylist() == [0.5, 0.5, 0.25, 0.25]
    assert part["clip_score"].to_pylist() == [0, 0, 0.1, 0.1]
    assert part["clip_margin"].to_pylist() == [0, 0, 0.05, 0.05]
    assert part["unsafe"].to_pylist() == [0, 1, 0, 0]
    assert part["state"].to_pylist() == ["ok", "unsafe", "ok", "ok"]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_neither_batches_nor_parts_nor_their_order_change_a_row(
    fakes: SimpleNamespace, tiny_images: LabeledImages, batch_size: int
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(6), (2, 7, 10)))

    def make(plan: pa.Table, batch_size: int) -> pa.Table:
        fake = fakes.Denoiser(fakes.gaussian([0.2, -0.2, 0.5, 0.0], 0.5), clip=True)
        return part_of(LoopGenerator(fake, SAMPLE), tiny_images, plan, batch_size=batch_size)

    whole = make(plan, 18)
    assert repr(make(plan, batch_size).to_pylist()) == repr(whole.to_pylist())  # NaN is NaN
    parts = pa.concat_tables([make(plan.slice(start, 5), 3) for start in range(0, 18, 5)])
    shuffled = np.random.default_rng(0).permutation(18)
    made = make(plan.take(shuffled), batch_size)
    for name in ("item_id", "image", "seed", "finite", "contrast", "reference_distance"):
        assert parts[name].to_pylist() == whole[name].to_pylist(), name
        assert made[name].to_pylist() == whole.take(shuffled)[name].to_pylist(), name


def test_progress_is_reported_after_each_batch_and_not_of_second_attempts(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    reported: list[int] = []
    plan = plan_of(tiny_images, requests(np.arange(5), (2,)))
    generator = fakes.Generator(lambda references, _: 0 * references)  # all black, so all are drawn again
    draw(generator, tiny_images, plan, SizeConfig(), BatchSizes(2), reported.append)
    assert reported == [2, 2, 1]
    assert [len(wanted) for wanted in generator.made] == [2, 2, 1] * 2


def test_images_of_like_depth_share_a_batch(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    generator = fakes.Generator()
    drawn_of(generator, tiny_images, plan_of(tiny_images, requests(np.array([0, 1]), (2, 9))), batch_size=2)
    assert [wanted.levels.tolist() for wanted in generator.made] == [[9, 9], [2, 2]]


def test_a_level_outside_the_grid_stops_a_part_before_any_image(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    generator = fakes.Generator()
    plan = plan_of(tiny_images, requests(np.array([0]), (50,)), grid=100)
    with pytest.raises(ValueError, match="level 50 of 10 does not exist"):
        drawn_of(generator, tiny_images, plan)
    assert generator.made == []


def test_an_empty_plan_is_an_empty_part(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    part = part_of(fakes.Generator(), tiny_images, plan_of(tiny_images, []))
    assert part.equals(SYNTHETIC_SCHEMA.empty_table())


# References


def test_a_reference_is_encoded_once_for_all_its_levels(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    generator = fakes.Generator(lambda references, _: 0 * references)  # and not again for the second attempts
    plan = plan_of(tiny_images, requests(np.arange(5), (2, 5, 5, 9)))
    drawn_of(generator, tiny_images, plan, batch_size=4)
    assert generator.encoded == [(4, 8, 8, 1), (1, 8, 8, 1)]
    assert sum(len(wanted) for wanted in generator.made) == 40


def test_references_are_images_as_trained_on_or_as_stored() -> None:
    data = stored((8, 16, 1), (20, 10, 1))
    for row, shape in enumerate([(8, 16, 1), (20, 10, 1)]):
        np.testing.assert_array_equal(reference(data, row, SizeConfig()), data.pixels(np.array([row]))[0])
        np.testing.assert_array_equal(reference(data, row, AS_STORED), noise(row, *shape))
    assert reference(data, 1, SizeConfig()).shape == (8, 8, 1)


def test_images_of_a_work_size_share_their_batches_and_come_back_in_plan_order_and_their_own_size(
    fakes: SimpleNamespace,
) -> None:
    # The generator works at a shorter side of 8 in multiples of 4: 8x16 and 10x20 become 8x16, 16x8 becomes 16x8,
    # 8x8 and 12x12 become 8x8.
    shapes = [(8, 8, 1), (16, 8, 1), (8, 16, 1), (12, 12, 1), (10, 20, 1)]
    data = stored(*shapes)
    generator = fakes.Generator(multiple=4)
    plan = plan_of(data, requests(np.arange(5), (2, 5)))
    drawn = drawn_of(generator, data, plan, sizes=AS_STORED)
    assert sorted(generator.encoded) == [(1, 16, 8, 1), (2, 8, 8, 1), (2, 8, 16, 1)]
    # Largest first, the deepest of a size first; source rows 2, 4 are wide, 1 is tall, 0 and 3 square.
    assert [(wanted.labels.tolist(), wanted.levels.tolist()) for wanted in generator.made] == [
        ([2, 1, 2, 1], [5, 5, 2, 2]),
        ([1, 1], [5, 2]),
        ([0, 0, 0, 0], [5, 5, 2, 2]),
    ]
    for row, source in enumerate(plan["source_index"].to_pylist()):
        image = drawn.images[row]
        assert image is not None
        assert image.shape == shapes[source]
        np.testing.assert_array_equal(decode(drawn.blobs[row], "x"), image)
    # At their own size: those that needed no resampling are the stored ones themselves.
    for row in range(6):
        np.testing.assert_array_equal(drawn.images[row], noise(row // 2, *shapes[row // 2]))
    part = describe(generator, data, plan, drawn, QualityConfig(), scorers(data))
    assert part["item_id"].to_pylist() == plan["item_id"].to_pylist()
    assert [image.shape for image in pixels(part)] == [shapes[source] for source in plan["source_index"].to_pylist()]


def test_images_kept_larger_are_scored_as_the_classifier_will_see_them(fakes: SimpleNamespace) -> None:
    data = stored((8, 16, 1), (20, 10, 1), (8, 8, 1))
    seen: list[np.ndarray] = []

    def classifier(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(images)
        return certain(images)

    plan = plan_of(data, requests(np.arange(3), (2,)))
    part = part_of(
        fakes.Generator(lambda references, _: 255 - references),
        data,
        plan,
        sizes=AS_STORED,
        scored_by=scorers(data, classifier=classifier),
    )
    blobs = [cell["bytes"] for cell in part["image"].to_pylist()]
    np.testing.assert_array_equal(seen[0], np.stack([decode(blob, "x", decoding=Decoding(8)) for blob in blobs]))
    assert [decode(blob, "x").shape for blob in blobs] == [(8, 16, 1), (20, 10, 1), (8, 8, 1)]


@pytest.mark.parametrize(("channels", "sizes"), [(1, SizeConfig()), (3, AS_STORED)])
def test_a_generator_that_changes_nothing_is_at_no_distance_even_at_another_size(
    fakes: SimpleNamespace, sizes: SizeConfig, channels: int
) -> None:
    # There and back through 20 pixels is not the same, but none of the generator's doing.
    data = stored((12, 12, 1), (9, 14, 1))
    generator = fakes.Generator(size=20, multiple=8, channels=channels)
    plan = plan_of(data, requests(np.arange(2), (2, 7)))
    part = part_of(generator, data, plan, sizes=sizes)
    assert {shape[3] for shape in generator.encoded} == {channels}
    assert min(shape[1] for shape in generator.encoded) == 24
    assert part["reference_distance"].to_pylist() == [0.0] * 4
    assert part["state"].to_pylist() == ["near_reference"] * 4
    assert not np.array_equal(pixels(part)[0], reference(data, 0, sizes))
    changed = fakes.Generator(lambda references, _: 255 - references, size=20, multiple=8, channels=channels)
    assert min(part_of(changed, data, plan, sizes=sizes)["reference_distance"].to_pylist()) > 50


# Second attempts


@dataclasses.dataclass
class Moody:
    """Draws noise of an image's seed; for labels in `nan` and `flat`, not until the second attempt or not at all."""

    plan: pa.Table
    nan: tuple[int, ...] = ()
    flat: tuple[int, ...] = ()
    mends: bool = True

    def __call__(self, references: np.ndarray, wanted: Wanted) -> Made:
        first = set(self.plan["seed"].to_pylist())
        finite = np.ones(len(wanted), bool)
        for row, (image, seed, label) in enumerate(zip(references, wanted.seeds, wanted.labels, strict=True)):
            image[:] = noise(seed % 2**32, *image.shape)
            if seed in first or not self.mends:
                if label in self.flat:
                    image[:] = 100
                    image[0, 0] = 101
                finite[row] = label not in self.nan
        return Made(references, finite)


def test_an_image_that_is_not_finite_or_flat_is_drawn_once_more_with_a_seed_of_its_own(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(6), (2,)))  # labels 0, 1, 2, 0, 1, 2
    generator = fakes.Generator(Moody(plan, nan=(0,), flat=(1,)))
    part = part_of(generator, tiny_images, plan, quality=AT_ANY_DISTANCE)
    before = plan["seed"].to_pylist()
    again = [child_seed(seed, "retry") for seed in before]
    expected = [again[0], again[1], before[2], again[3], again[4], before[5]]
    assert part["seed"].to_pylist() == expected
    assert part["attempt"].to_pylist() == [1, 1, 0, 1, 1, 0]
    assert part["finite"].to_pylist() == [True] * 6
    assert part["state"].to_pylist() == ["ok"] * 6
    for image, seed in zip(pixels(part), expected, strict=True):
        np.testing.assert_array_equal(image, noise(seed % 2**32, 8, 8, 1))
    assert [len(wanted) for wanted in generator.made] == [4, 2, 4]
    assert part["item_id"].to_pylist() == plan["item_id"].to_pylist()


def test_what_fails_twice_is_a_row_with_a_state(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    plan = plan_of(tiny_images, requests(np.arange(3), (2,)))
    generator = fakes.Generator(Moody(plan, nan=(0,), flat=(1,), mends=False))
    part = part_of(generator, tiny_images, plan, quality=AT_ANY_DISTANCE)
    assert part["state"].to_pylist() == ["nan", "flat", "ok"]
    assert part["finite"].to_pylist() == [False, True, True]
    assert part["attempt"].to_pylist() == [1, 1, 0]
    assert [len(wanted) for wanted in generator.made] == [3, 2]  # and no third time


def test_which_images_are_drawn_again_does_not_depend_on_thresholds(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    # Thresholds may move after the images are made.
    plan = plan_of(tiny_images, requests(np.arange(3), (2,)))
    for quality in (QualityConfig(min_contrast=0), QualityConfig(min_contrast=128, min_distance=200)):
        part = part_of(fakes.Generator(Moody(plan, flat=(1,))), tiny_images, plan, quality=quality)
        assert part["attempt"].to_pylist() == [0, 1, 0]


def test_an_image_drawn_again_is_what_it_would_be_in_any_other_part(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(6), (2,)))
    whole = part_of(fakes.Generator(Moody(plan, nan=(0,))), tiny_images, plan)
    parts = [part_of(fakes.Generator(Moody(plan, nan=(0,))), tiny_images, plan.slice(row, 1)) for row in range(6)]
    both = pa.concat_tables(parts)
    for name in ("image", "seed", "attempt"):
        assert both[name].to_pylist() == whole[name].to_pylist(), name


# Failures


def test_a_reference_that_cannot_be_read_fails_its_own_rows(fakes: SimpleNamespace, tmp_path: Path) -> None:
    files = [tmp_path / f"{row}.png" for row in range(4)]
    for row, file in enumerate(files):
        file.write_bytes(encode_png(noise(row, 8, 8, 1)))
    images = EncodedImages(files, [file.name for file in files], (8, 8, 1))
    data = LabeledImages(images, np.arange(4) % 3, ("a", "b", "c"), "files")
    plan = plan_of(data, requests(np.arange(4), (2, 5)))
    scored_by = scorers(data)
    files[1].unlink()
    files[2].write_bytes(b"no image any more")
    generator = fakes.Generator(lambda references, _: 255 - references)
    drawn = drawn_of(generator, data, plan)
    assert sorted(drawn.failures) == [2, 3, 4, 5]
    assert drawn.failures[2] == drawn.failures[3]
    assert drawn.failures[2].startswith("its reference, [1]: 1.png cannot be read as an image")
    assert "No such file" in drawn.failures[2]
    assert drawn.failures[4].startswith("its reference, [2]: 2.png cannot be read as an image")
    assert [image is None for image in drawn.images] == [False, False, True, True, True, True, False, False]
    part = describe(generator, data, plan, drawn, QualityConfig(), scored_by)
    assert part["item_id"].to_pylist() == [plan["item_id"][row].as_py() for row in (0, 1, 6, 7)]
    np.testing.assert_array_equal(np.stack(pixels(part))[2], 255 - noise(3, 8, 8, 1))
    assert part["source_index"].to_pylist() == [0, 0, 3, 3]


def test_a_reference_that_is_too_long_fails_its_own_rows(fakes: SimpleNamespace) -> None:
    data = stored((8, 8, 1), (8, 80, 1))
    plan = plan_of(data, requests(np.arange(2), (2,)))
    drawn = drawn_of(fakes.Generator(), data, plan, sizes=AS_STORED)
    assert drawn.images[0] is not None
    assert list(drawn.failures) == [1]
    assert drawn.failures[1].startswith("its reference, [1]: an image of 80x8 has one side 10.0 times the other")


def test_a_reference_that_was_replaced_or_goes_while_images_are_drawn(fakes: SimpleNamespace, tmp_path: Path) -> None:
    files = [tmp_path / f"{row}.png" for row in range(3)]
    for row, file in enumerate(files):
        file.write_bytes(encode_png(noise(row, 8, 8, 1)))
    images = EncodedImages(files, [file.name for file in files], (8, 8, 1))
    data = LabeledImages(images, np.arange(3), ("a", "b", "c"), "files", tuple(images.names))
    plan, scored_by = plan_of(data, requests(np.arange(3), (2,))), scorers(data)

    def change(references: np.ndarray, _: Wanted) -> np.ndarray:
        files[0].unlink(missing_ok=True)
        return 255 - references

    files[1].write_bytes(encode_png(noise(7, 8, 8, 1)))  # another picture of the same shape
    drawn = drawn_of(fakes.Generator(change), data, plan)
    assert drawn.failures == {
        1: "its reference, 1.png: it shows something else than when the plan was made; bring it back"
    }
    part = describe(fakes.Generator(), data, plan, drawn, QualityConfig(), scored_by)  # reads no file
    assert part["source_index"].to_pylist() == [0, 2]
    # What was made before of a reference that has gone since is no row, and stays known.
    again = draw(fakes.Generator(), data, plan, known=drawn_rows(plan, drawn, np.arange(3)))
    assert sorted(again.failures) == [0, 1]
    part = describe(fakes.Generator(), data, plan, again, QualityConfig(), scored_by)
    assert part["source_index"].to_pylist() == [2]
    assert drawn_rows(plan, again, np.arange(3))["source_index"].to_pylist() == [0, 2]


# A generator that makes nothing that can be used


def whole_of(generator: Any, data: LabeledImages, plan: pa.Table, part: pa.Table | None = None) -> Drawn:
    return draw(generator, data, plan if part is None else part, SizeConfig(), BatchSizes(2), whole=plan)


@pytest.mark.parametrize("kind", ["nan", "overflow", "flat"])
def test_a_generator_that_makes_nothing_usable_is_given_up_after_its_first_batch(
    fakes: SimpleNamespace, tiny_images: LabeledImages, kind: str
) -> None:
    def change(references: np.ndarray, _: Wanted) -> Made:
        good = np.full(len(references), kind == "flat")
        return Made(0 * references, good, good if kind == "nan" else ~good)

    generator, kept = fakes.Generator(change), []
    plan = plan_of(tiny_images, requests(np.arange(16), (2, 5, 9)))
    with pytest.raises(UnusableGenerator) as caught:
        draw(generator, tiny_images, plan.slice(0, 12), batch=BatchSizes(2), whole=plan, keep=kept.append)
    error = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
    assert (error.tried, error.nan, error.overflowed) == {
        "nan": (16, 16, 0),
        "overflow": (16, 16, 16),
        "flat": (16, 0, 0),
    }[kind]
    assert sum(len(wanted) for wanted in generator.made) == 2 + 2 * 16
    assert kept == []  # the same command meets the same again


def test_a_generator_that_raises_on_all_is_given_up_and_one_that_raises_on_a_part_is_not(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(16), (2, 5, 9)))
    part = plan.filter(pa.array(tiny_images.labels[plan["source_index"].to_numpy()] == 1))
    with pytest.raises(UnusableGenerator) as caught:
        whole_of(fakes.Generator(broken(set(tiny_images.labels.tolist()))), tiny_images, plan, part)
    assert isinstance(caught.value.__cause__, RuntimeError)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.tried, error.nan, error.work_sizes) == (16, 0, ["8x8"])
    assert error.raised == "RuntimeError: no such thing"
    drawn = whole_of(fakes.Generator(broken({1})), tiny_images, plan, part)
    assert sorted(drawn.failures) == list(range(part.num_rows))
    # Neither a full disk nor a lost GPU is the generator's fault.
    for fault in (OSError(errno.ENOSPC, "full"), RuntimeError("CUDA error: unspecified launch failure")):

        def fail(references: np.ndarray, _: Wanted, fault: Exception = fault) -> np.ndarray:
            raise fault

        with pytest.raises(type(fault), match=str(fault).replace("[", r"\[")) as caught:
            whole_of(fakes.Generator(fail), tiny_images, plan, part)
        assert caught.value is fault


def test_a_first_batch_of_bad_luck_ends_nothing(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    plan = plan_of(tiny_images, requests(np.arange(16), (2,)))
    part = plan.filter(pa.array(tiny_images.labels[plan["source_index"].to_numpy()] == 1))
    generator = fakes.Generator(Moody(plan, nan=(1,), mends=False))  # a class that it cannot make, all of the part
    drawn = whole_of(generator, tiny_images, plan, part)
    assert not drawn.finite.any()
    assert all(image is not None for image in drawn.images)
    # References of one colour have variants of one colour: no fault of the generator.
    plain = LabeledImages(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2, ("a", "b"), "plain")
    drawn = whole_of(fakes.Generator(), plain, plan_of(plain, requests(np.arange(4), (2,))))
    assert drawn.finite.all()


def broken(labels: set[int], when: Callable[[Wanted], bool] = lambda _: True) -> Callable[..., np.ndarray]:
    """A generator that fails on every batch with one of these labels."""

    def change(references: np.ndarray, wanted: Wanted) -> np.ndarray:
        if labels & set(wanted.labels.tolist()) and when(wanted):
            raise RuntimeError("no such thing")
        return 255 - references

    return change


def test_an_image_that_the_generator_fails_on_fails_alone(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    generator = fakes.Generator(broken({1}))
    plan = plan_of(tiny_images, requests(np.arange(4), (2,)))
    drawn = drawn_of(generator, tiny_images, plan)
    assert drawn.failures == {1: "RuntimeError: no such thing"}
    part = describe(generator, tiny_images, plan, drawn, QualityConfig(), scorers(tiny_images))
    assert part["source_index"].to_pylist() == [0, 2, 3]
    expected = 255 - tiny_images.pixels(np.array([0, 2, 3]))
    np.testing.assert_array_equal(np.stack(pixels(part)), expected)


def test_a_generator_that_fails_on_every_image_stops_the_part(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(4), (2,)))
    with pytest.raises(RuntimeError, match="no such thing"):
        drawn_of(fakes.Generator(broken({0, 1, 2})), tiny_images, plan)


def test_a_size_that_the_generator_cannot_work_at_fails_alone(fakes: SimpleNamespace) -> None:
    def change(references: np.ndarray, _: Wanted) -> np.ndarray:
        if references.shape[2] > 8:
            raise ValueError("width 16 is more than my positions")
        return references

    data = stored((8, 8, 1), (8, 16, 1), (8, 8, 1), (8, 16, 1), (8, 16, 1), (8, 16, 1))
    plan = plan_of(data, [Request(source, 5, 0) for source in range(6)])
    drawn = drawn_of(fakes.Generator(change), data, plan, sizes=AS_STORED)
    assert [image is not None for image in drawn.images] == [True, False, True, False, False, False]
    assert set(drawn.failures) == {1, 3, 4, 5}
    assert drawn.failures[5] == "ValueError: width 16 is more than my positions"
    wide = drawn_of(fakes.Generator(change), data, plan.slice(0, 1), sizes=AS_STORED)
    assert wide.failures == {}
    with pytest.raises(ValueError, match="more than my positions"):  # nothing came out: not the fault of the images
        drawn_of(fakes.Generator(change), data, plan.slice(3, 3), sizes=AS_STORED)


def test_an_encoder_that_fails_on_one_reference_fails_its_rows(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    class Encoder(fakes.Generator):  # type: ignore[misc, name-defined]
        def encode(self, images: np.ndarray) -> Tensor:
            if (images == tiny_images.pixels(np.array([1]))).all((1, 2, 3)).any():
                raise RuntimeError("cannot encode")
            return super().encode(images)

    plan = plan_of(tiny_images, requests(np.arange(3), (2, 5)))
    drawn = drawn_of(Encoder(), tiny_images, plan)
    assert drawn.failures == dict.fromkeys([2, 3], "RuntimeError: cannot encode")
    assert [image is None for image in drawn.images] == [False, False, True, True, False, False]


def test_a_second_attempt_that_fails_is_a_failure_and_the_first_is_not_kept(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(3), (2,)))
    first = set(plan["seed"].to_pylist())
    fail = broken({1}, lambda wanted: not first & set(wanted.seeds))

    def change(references: np.ndarray, wanted: Wanted) -> np.ndarray:
        made = fail(references, wanted)
        made[wanted.labels == 1] = 0
        return made

    generator = fakes.Generator(change)
    drawn = drawn_of(generator, tiny_images, plan)
    assert drawn.failures == {1: "RuntimeError: no such thing"}
    part = describe(generator, tiny_images, plan, drawn, QualityConfig(), scorers(tiny_images))
    assert part["source_index"].to_pylist() == [0, 2]


def test_a_part_of_failures_alone_has_no_rows(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    generator = fakes.Generator(broken({1}))
    plan = plan_of(tiny_images, requests(np.array([1]), (2,)))
    drawn = drawn_of(generator, tiny_images, plan)
    assert list(drawn.failures) == [0]
    part = describe(generator, tiny_images, plan, drawn, QualityConfig(), scorers(tiny_images))
    assert part.equals(SYNTHETIC_SCHEMA.empty_table())


def test_batches_that_do_not_fit_are_halved_and_the_images_stay_the_same(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(10), (2, 5)))
    reported: list[dict[str, int]] = []
    batch = BatchSizes(16, remember=lambda sizes: reported.append(dict(sizes)))
    small = draw(fakes.Generator(Moody(plan), fits=3), tiny_images, plan, SizeConfig(), batch)
    large = draw(fakes.Generator(Moody(plan)), tiny_images, plan, SizeConfig(), BatchSizes(16))
    assert small.blobs == large.blobs
    assert small.failures == {}
    assert reported == [{"make 8x8": size} for size in (8, 4, 2)]
    with pytest.raises(MemoryError, match=r"^not even one image fits into the memory \(make 8x8\)"):
        drawn_of(fakes.Generator(fits=0), tiny_images, plan)


def test_encoders_have_batch_sizes_of_their_own(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    class Encoder(fakes.Generator):  # type: ignore[misc, name-defined]
        def encode(self, images: np.ndarray) -> Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return super().encode(images)

    generator = Encoder(lambda references, _: 255 - references)
    batch = BatchSizes(4)
    drawn = draw(generator, tiny_images, plan_of(tiny_images, requests(np.arange(4), (2,))), SizeConfig(), batch)
    assert drawn.failures == {}
    assert [shape[0] for shape in generator.encoded] == [2, 2]
    assert [len(wanted) for wanted in generator.made] == [4]
    assert batch.known == {"encode 8x8": 2}


# The probe


def probe_of(generator: Any, data: LabeledImages, plan: pa.Table, batch: BatchSizes) -> Probe:
    return probe(generator, data, plan, SizeConfig(), batch)


def test_a_probe_measures_batches_that_grow_to_the_batch_size(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(16), (2, 5, 9)))  # 48 images
    for most, sizes in ((1, [1]), (4, [1, 4]), (20, [1, 4, 16, 20]), (100, [1, 4, 16, 64])):
        generator = fakes.Generator()
        measured = probe_of(generator, tiny_images, plan, BatchSizes(most))
        assert generator.timed == [min(size, 48) for size in sizes]
        assert measured.seconds_per_call == 1 / min(most, 48)  # the quickest
        assert generator.encoded == [(1, 8, 8, 1)]
        assert [wanted.levels.tolist() for wanted in generator.made] == [[2]]  # the trial, of the shallowest level


@pytest.mark.parametrize(("seconds", "made"), [(5.0, True), (5.1, False)])  # level 2 takes two calls
def test_a_probe_makes_one_image_where_that_takes_at_most_ten_seconds(
    fakes: SimpleNamespace, tiny_images: LabeledImages, seconds: float, made: bool
) -> None:
    class Slow(fakes.Generator):  # type: ignore[misc, name-defined]
        def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
            return seconds

    nan = Slow(lambda references, _: Made(references, np.zeros(len(references), bool)))
    trial = probe_of(nan, tiny_images, plan_of(tiny_images, requests(np.arange(3), (2, 9))), BatchSizes(4)).trial
    assert (trial is not None) == made
    assert trial is None or trial.finite.tolist() == [False]


def test_a_reference_that_cannot_be_used_stops_no_probe(fakes: SimpleNamespace) -> None:
    data = stored((8, 80, 1), (8, 8, 1))
    plan = plan_of(data, requests(np.arange(2), (2,)))
    assert probe(fakes.Generator(), data, plan, AS_STORED, BatchSizes(4)).seconds_per_call > 0
    assert probe(fakes.Generator(), data, plan.slice(0, 1), AS_STORED, BatchSizes(4)) == Probe(0.0, 0.0)


def test_a_probe_stops_growing_where_that_takes_long(
    fakes: SimpleNamespace, tiny_images: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr("latebloom.synth.probe.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    generator = fakes.Generator()
    probe_of(generator, tiny_images, plan_of(tiny_images, requests(np.arange(16), (2, 5, 9))), BatchSizes(100))
    assert generator.timed == [1, 4]


def test_what_does_not_fit_is_found_by_the_probe_and_remembered(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.arange(16), (2, 5, 9)))
    reported: list[dict[str, int]] = []
    batch = BatchSizes(64, remember=lambda sizes: reported.append(dict(sizes)))
    generator = fakes.Generator(fits=5)
    assert probe_of(generator, tiny_images, plan, batch).seconds_per_call == 1 / 4
    assert generator.timed == [1, 4, 16]
    assert reported == [{"make 8x8": 8}]
    # What was found is what a part begins with, and what the next probe grows to.
    drawn_of(again := fakes.Generator(), tiny_images, plan, batch_size=64)
    assert len(again.made[0]) == 48
    draw(again := fakes.Generator(Moody(plan)), tiny_images, plan, SizeConfig(), batch)
    assert len(again.made[0]) == 8
    probe_of(again := fakes.Generator(), tiny_images, plan, batch)
    assert again.timed == [1, 4, 8]
    with pytest.raises(MemoryError, match="not even one image fits"):
        probe_of(fakes.Generator(fits=0), tiny_images, plan, BatchSizes(4))


def test_a_generator_that_fails_fails_the_probe(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    class Broken(fakes.Generator):  # type: ignore[misc, name-defined]
        def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
            raise RuntimeError("no such thing")

    with pytest.raises(UnusableGenerator) as caught:
        probe_of(Broken(), tiny_images, plan_of(tiny_images, requests(np.arange(3), (2,))), BatchSizes(4))
    assert (caught.value.raised, caught.value.work_sizes) == ("RuntimeError: no such thing", ["8x8"])


def test_a_work_size_that_a_generator_fails_on_does_not_fail_the_probe(fakes: SimpleNamespace) -> None:
    data = stored((8, 8, 1), (8, 8, 1), (8, 16, 1))

    class Picky(fakes.Generator):  # type: ignore[misc, name-defined]
        def encode(self, images: np.ndarray) -> Tensor:
            if images.shape[2] == 8:
                raise RuntimeError("square")
            return super().encode(images)  # type: ignore[no-any-return]

    generator = Picky()
    assert probe(generator, data, plan_of(data, requests(np.arange(3), (2,))), AS_STORED, BatchSizes(4)) != Probe(0, 0)
    assert generator.encoded == [(1, 8, 16, 1)]


def test_a_probe_gives_the_mean_size_of_the_references_as_files(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    plan = plan_of(tiny_images, requests(np.array([0, 1, 5]), (5,)))
    sizes = [len(encode_png(tiny_images.pixels(np.array([row]))[0])) for row in (0, 1, 5)]
    assert probe_of(fakes.Generator(), tiny_images, plan, BatchSizes(64)).bytes_per_image == pytest.approx(
        sum(sizes) / 3
    )
    data = stored((8, 16, 1), (20, 10, 1))
    plan = plan_of(data, requests(np.arange(2), (5,)))
    measured = probe(fakes.Generator(), data, plan, AS_STORED, BatchSizes(64))
    assert measured.bytes_per_image == np.mean(
        [len(encode_png(noise(0, 8, 16, 1))), len(encode_png(noise(1, 20, 10, 1)))]
    )


# The config
