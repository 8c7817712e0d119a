import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest
import torch
from torch import Tensor

from data.images import LabeledImages, decode, encode_png
from data.synthetic import SYNTHETIC_SCHEMA
from synth.generate import GenerateConfig, make_part, probe
from synth.plan import Request, make_plan, requests
from synth.quality import QualityConfig
from synth.sample import SampleConfig

SAMPLE = SampleConfig(sampler="ddpm", grid=10, guidance_scale=1)


def certain(images: np.ndarray) -> np.ndarray:
    """A judge that finds each of three labels in every image."""
    return np.ones((len(images), 3), np.float32)


def make(denoiser: Any, data: LabeledImages, plan: pa.Table, **changes: Any) -> pa.Table:
    settings: dict[str, Any] = {"sample": SAMPLE, "quality": QualityConfig(), "judge": certain, "batch_size": 4}
    return make_part(denoiser, data, plan, **settings | changes)


def pixels(part: pa.Table) -> np.ndarray:
    return np.stack([decode(cell["bytes"], cell["path"]) for cell in part["image"].to_pylist()])


def test_a_part_has_the_rows_of_its_plan_and_says_how_each_image_was_made(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    fake = fakes.Denoiser(fakes.gaussian([0.2] * 4, 0.5))
    # Sources before levels: the plan is not in the order of depth, in which they are made.
    plan = make_plan(requests(np.array([2, 4]), (3, 10, 5)), tiny_images, 10, 7)
    sample = SampleConfig(sampler="ddim", grid=10, guidance_scale=2.5)
    part = make(fake, tiny_images, plan, sample=sample)
    assert part.schema.equals(SYNTHETIC_SCHEMA)
    for name in plan.column_names:
        assert part[name].to_pylist() == plan[name].to_pylist(), name
    assert part["item_id"][0].as_py() == "0000002-3of10-v0"
    assert [cell["path"] for cell in part["image"].to_pylist()] == [
        f"{name}.png" for name in plan["item_id"].to_pylist()
    ]
    # Ten of 1000 steps: 0, 111, 222, ...; level 3 starts at 222.
    abar = fakes.cosine_alphas_cumprod(1000)
    log_snr = [math.log(abar[222] / (1 - abar[222])), math.log(abar[444] / (1 - abar[444])), -math.inf]
    assert part["log_snr"].to_pylist() == pytest.approx(log_snr * 2)
    assert part["strength"].to_pylist() == [0.3, 0.5, 1.0] * 2
    assert part["guidance_scale"].to_pylist() == [2.5] * 6
    assert part["sampler"].to_pylist() == ["ddim"] * 6
    assert part["generator"].to_pylist() == ["fake"] * 6
    assert part["generator_digest"].to_pylist() == ["f" * 64] * 6


def test_every_image_is_made_from_its_own_row_of_the_plan(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    # Each pixel as far from black as label, timestep of the start and reference say, so a mixed-up row shows.
    start: dict[int, float] = {}

    def believe(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        level = torch.tensor([start.setdefault(int(label), abar) for label in labels])
        return (labels / 4 - 0.5 * level)[:, None, None, None].expand_as(x)

    plan = make_plan([Request(0, 3, 0), Request(1, 10, 0), Request(2, 5, 0)], tiny_images, 10, 7)
    made = pixels(make(fakes.Denoiser(believe), tiny_images, plan, batch_size=2))
    abar = fakes.cosine_alphas_cumprod(1000)
    for row, (label, timestep) in enumerate([(0, 222), (1, 999), (2, 444)]):
        assert made[row, 0, 0, 0] == round((label / 4 - 0.5 * abar[timestep] + 1) * 127.5)


def test_the_images_are_the_decoded_output_of_the_generator(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)  # what the generator sees for labels 0, 1, 2
    fake = fakes.Denoiser(fakes.picture(torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1))
    plan = make_plan(requests(np.array([5, 0, 1, 4]), (2,)), tiny_images, 10, 7)
    part = make(fake, tiny_images, plan)
    np.testing.assert_array_equal(pixels(part), drawn[[0, 1, 1, 2]])
    references = tiny_images.pixels(np.array([0, 1, 4, 5])).astype(float)
    distance = ((drawn[[0, 1, 1, 2]] - references) ** 2).mean((1, 2, 3)) ** 0.5
    assert part["reference_distance"].to_pylist() == pytest.approx(distance.tolist())
    assert part["contrast"].to_pylist() == pytest.approx(drawn[[0, 1, 1, 2]].std((1, 2, 3)).tolist())


def test_failures_are_rows_with_a_state(fakes: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    data = LabeledImages(references, np.arange(5), ("a", "b", "c", "d", "e"), "here")
    drawn = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    drawn[1] = 90  # constant
    drawn[2] = references[2]
    target = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1
    target[0, 0, 3, 3] = math.nan

    def judge(images: np.ndarray) -> np.ndarray:
        probability = np.full((5, 5), 0.25)
        probability[3, 3] = 0
        return probability

    plan = make_plan([Request(i, 2 + i, 0) for i in range(5)], data, 10, 7)  # the deepest, made first, is last here
    part = make(fakes.Denoiser(fakes.picture(target)), data, plan, judge=judge, batch_size=2)
    assert part["state"].to_pylist() == ["nan", "flat", "near_reference", "off_label", "ok"]
    assert part["finite"].to_pylist() == [False, True, True, True, True]
    assert part["label_probability"].to_pylist() == [0.25, 0.25, 0.25, 0, 0.25]
    assert part["contrast"][1].as_py() == 0
    assert part["reference_distance"][2].as_py() == 0
    made = pixels(part)
    np.testing.assert_array_equal(made[1:], drawn[1:])
    assert made[0, 3, 3, 0] == 0  # NaN is black, and the rest of that image is kept to look at
    np.testing.assert_array_equal(np.delete(made[0].ravel(), 27), np.delete(drawn[0].ravel(), 27))
    loose = make(
        fakes.Denoiser(fakes.picture(target)),
        data,
        plan,
        judge=judge,
        quality=QualityConfig(min_contrast=0, min_label_probability=0, min_distance=0),
    )
    assert loose["state"].to_pylist() == ["nan", "ok", "ok", "ok", "ok"]


def test_the_judge_sees_the_images_once_in_plan_order_and_its_word_on_the_own_label_counts(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    seen: list[np.ndarray] = []

    def judge(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return np.arange(12, dtype=np.float32).reshape(4, 3) / 12

    plan = make_plan(requests(np.array([0, 1]), (5, 2)), tiny_images, 10, 7)
    part = make(fakes.Denoiser(fakes.gaussian([0.2] * 3, 0.5)), tiny_images, plan, judge=judge, batch_size=3)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], pixels(part))
    assert part["label"].to_pylist() == [0, 0, 1, 1]
    assert part["label_probability"].to_pylist() == pytest.approx([0 / 12, 3 / 12, 7 / 12, 10 / 12])


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_neither_batches_nor_parts_nor_their_order_change_a_row(
    fakes: SimpleNamespace, tiny_images: LabeledImages, batch_size: int
) -> None:
    plan = make_plan(requests(np.arange(6), (2, 7, 10)), tiny_images, 10, 7)
    belief = fakes.gaussian([0.2, -0.2, 0.5, 0.0], 0.5)
    whole = make(fakes.Denoiser(belief), tiny_images, plan, batch_size=18)
    assert make(fakes.Denoiser(belief), tiny_images, plan, batch_size=batch_size).equals(whole)
    parts = [make(fakes.Denoiser(belief), tiny_images, plan.slice(start, 5), batch_size=3) for start in range(0, 18, 5)]
    assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()
    shuffled = np.random.default_rng(0).permutation(18)
    made = make(fakes.Denoiser(belief), tiny_images, plan.take(shuffled), batch_size=batch_size)
    assert made.to_pylist() == whole.take(shuffled).to_pylist()


def test_progress_is_told_after_each_batch(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    told: list[int] = []
    plan = make_plan(requests(np.arange(5), (2,)), tiny_images, 10, 7)
    make(fakes.Denoiser(fakes.constant([0.0] * 4)), tiny_images, plan, batch_size=2, on_images=told.append)
    assert told == [2, 2, 1]


def test_images_of_like_depth_share_a_batch(fakes: SimpleNamespace, tiny_images: LabeledImages) -> None:
    # Levels 9, 2, 9, 2 in batches of two: 9 calls of two images and 2 of two, not 9 + 9.
    fake = fakes.Denoiser(fakes.constant([0.0] * 4))
    plan = make_plan(requests(np.array([0, 1]), (2, 9)), tiny_images, 10, 7)
    make(fake, tiny_images, plan, batch_size=2)
    assert [len(labels) for _, labels in fake.calls] == [2] * 11


def test_a_level_outside_the_grid_stops_a_part_before_any_call(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0] * 4))
    plan = make_plan(requests(np.array([0]), (50,)), tiny_images, 100, 7)
    with pytest.raises(ValueError, match="level 50 of 10 does not exist"):
        make(fake, tiny_images, plan)
    assert fake.calls == []


# The probe


@pytest.mark.parametrize(("guidance", "evaluations"), [(1.0, 3), (3.0, 6)])
def test_a_probe_measures_one_evaluation_of_one_image(
    fakes: SimpleNamespace,
    tiny_images: LabeledImages,
    monkeypatch: pytest.MonkeyPatch,
    guidance: float,
    evaluations: int,
) -> None:
    clock = 0.0

    def believe(x: Tensor, abar: float, labels: Tensor) -> Tensor:
        nonlocal clock
        clock += 0.6  # seconds a call
        return x

    monkeypatch.setattr("synth.generate.time", SimpleNamespace(perf_counter=lambda: clock))
    fake = fakes.Denoiser(believe)
    plan = make_plan(requests(np.array([0, 1, 5]), (5,)), tiny_images, 10, 7)
    sample = SampleConfig(grid=10, guidance_scale=guidance)
    measured = probe(fake, tiny_images, plan, sample, batch_size=64)
    assert measured.seconds_per_call == pytest.approx(0.6 / evaluations)
    assert len(fake.calls) == 4  # one to warm up, then three at least
    labels = [0, 1, 2] if guidance == 1 else [0, 1, 2, -1, -1, -1]
    assert all(call == (555, labels) for call in fake.calls)  # the sixth of ten timesteps: the middle
    sizes = [len(encode_png(tiny_images.pixels(np.array([row]))[0])) for row in (0, 1, 5)]
    assert measured.bytes_per_image == pytest.approx(sum(sizes) / 3)


def test_a_probe_of_a_quick_generator_ends_after_twenty_calls(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0] * 4))
    plan = make_plan(requests(np.arange(5), (5,)), tiny_images, 10, 7)
    measured = probe(fake, tiny_images, plan, SAMPLE, batch_size=2)
    assert 0 < measured.seconds_per_call < 1
    assert measured.bytes_per_image > 0
    assert [len(labels) for _, labels in fake.calls] == [2] * 21


def test_a_probe_refuses_guidance_that_the_generator_cannot_give(
    fakes: SimpleNamespace, tiny_images: LabeledImages
) -> None:
    fake = fakes.Denoiser(fakes.constant([0.0] * 3), unconditional=False)
    plan = make_plan(requests(np.arange(5), (5,)), tiny_images, 10, 7)
    with pytest.raises(ValueError, match="trained without an unconditional branch: set the guidance scale to 1"):
        probe(fake, tiny_images, plan, SampleConfig(grid=10, guidance_scale=3), batch_size=2)
    assert fake.calls == []


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 65_537}, {"batchsize": 4}])
def test_a_config_outside_its_bounds_is_refused_by_the_name_of_the_field(bad: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
        GenerateConfig(**bad)
