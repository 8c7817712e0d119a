import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pydantic
import pytest

from latebloom.data.depth import Decoding
from latebloom.data.images import EncodedImages, LabeledImages, digest_pixels, encode_png
from latebloom.data.seeds import child_seed
from latebloom.synth.config import PlanConfig
from latebloom.synth.plan import PLAN_SCHEMA, Request, forecast, item_id, make_plan, requests

SLOW = np.array([1, 5, 12])


def named(label: int, seed: int) -> str:
    return ("top", "middle", "bottom")[label]


def plan_of(data: LabeledImages, k: int, grid: int = 100, seed: int = 7) -> pa.Table:
    return make_plan(requests(SLOW, PlanConfig(k=k).steps(grid)), data, grid, seed, named)


# Requests and names


def test_each_reference_gets_each_level() -> None:
    made = requests(np.array([5, 1]), (50, 70))
    assert made == [Request(5, 50, 0), Request(5, 70, 0), Request(1, 50, 0), Request(1, 70, 0)]
    assert all(type(request.source_index) is int for request in made)


def test_a_repeated_level_makes_another_variant() -> None:
    assert requests(np.array([3]), (50, 40, 50, 50)) == [
        Request(3, 50, 0),
        Request(3, 40, 0),
        Request(3, 50, 1),
        Request(3, 50, 2),
    ]


def test_names_say_source_level_and_variant() -> None:
    assert item_id(Request(17, 50, 0), 100) == "0000017-50of100-v0"
    assert item_id(Request(12_345_678, 1, 12), 20) == "12345678-1of20-v12"


# Plans


def test_a_plan_adds_k_minus_one_images_per_slow_one(tiny_images: LabeledImages) -> None:
    for k in (2, 4, 5):
        assert plan_of(tiny_images, k).num_rows == (k - 1) * len(SLOW)


def test_a_plan_row_by_row(tiny_images: LabeledImages) -> None:
    plan = make_plan(
        [Request(5, 8, 0), Request(1, 10, 1), Request(1, 10, 0), Request(1, 4, 0)], tiny_images, 20, 7, named
    )
    assert plan.schema.equals(PLAN_SCHEMA)
    # Images are labelled 0, 1, 2, 0, 1, 2, ...: 1 is a "middle", 5 a "bottom".
    assert plan.drop(["seed", "source_sha256"]).to_pylist() == [
        {
            "item_id": f"000000{source}-{level}of20-v{variant}",
            "source_index": source,
            "source_name": f"[{source}]",
            "variant": variant,
            "label": label,
            "generator_label": None,
            "level_steps": level,
            "level_grid": 20,
            "prompt": name,
        }
        for source, level, variant, label, name in [
            (1, 4, 0, 1, "middle"),
            (1, 10, 0, 1, "middle"),
            (1, 10, 1, 1, "middle"),
            (5, 8, 0, 2, "bottom"),
        ]
    ]


def test_every_image_has_the_label_of_its_source(tiny_images: LabeledImages) -> None:
    plan = plan_of(tiny_images, 5)
    assert plan["label"].to_pylist() == tiny_images.labels[plan["source_index"].to_numpy()].tolist()
    assert len(set(plan["label"].to_pylist())) > 1


def test_every_prompt_is_made_of_the_images_label_and_seed(tiny_images: LabeledImages) -> None:
    asked: list[tuple[int, int]] = []

    def prompt(label: int, seed: int) -> str:
        asked.append((label, seed))
        return f"{label} of {seed}"

    plan = make_plan(requests(SLOW, (50, 70)), tiny_images, 100, 7, prompt)
    rows = list(zip(plan["label"].to_pylist(), plan["seed"].to_pylist(), strict=True))
    assert asked == rows
    assert plan["prompt"].to_pylist() == [f"{label} of {seed}" for label, seed in rows]


def test_every_image_carries_the_name_of_its_source(tiny_images: LabeledImages) -> None:
    names = tuple(f"train/big cat/{row:03d}.png" for row in range(len(tiny_images)))
    named = dataclasses.replace(tiny_images, names=names)
    plan, other = make_plan(requests(SLOW, (50,)), named), make_plan(requests(SLOW, (50,)), tiny_images)
    assert plan["source_name"].to_pylist() == [f"train/big cat/{row:03d}.png" for row in SLOW]
    assert plan.drop(["source_name"]) == other.drop(["source_name"])  # no seed depends on a name


def test_every_image_carries_the_digest_of_its_source(tiny_images: LabeledImages) -> None:
    plan = plan_of(tiny_images, 2)
    pixels = tiny_images.pixels(SLOW)
    expected = [hashlib.sha256(b"(8, 8, 1)" + image.tobytes()).hexdigest() for image in pixels]
    assert plan["source_sha256"].to_pylist() == expected


def test_seeds_stay_what_they_were_in_every_version() -> None:
    # A changed number here makes other images of every plan ever written.
    black = LabeledImages(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]), ("top", "middle"), "two equal images")
    plan = make_plan([Request(0, 50, 0), Request(0, 40, 1), Request(1, 50, 0)], black, 100, 7, named)
    digest = hashlib.sha256(b"(1, 1, 1)\0").hexdigest()
    # What `data.seeds.child_seed` makes of the root, the picture, how many equal ones are before it, level, grid and
    # variant; by hand: the first eight bytes of the SHA-256 of this JSON, halved.
    names = [f'[7, "image", "{digest}", {place}]' for place in ("0, 40, 100, 1", "0, 50, 100, 0", "1, 50, 100, 0")]
    hashes = [hashlib.sha256(name.encode()).digest() for name in names]
    assert plan["seed"].to_pylist() == [int.from_bytes(value[:8], "big") >> 1 for value in hashes]
    assert plan["seed"].to_pylist() == [8639060582514929717, 1486548147878060396, 3651062802690034435]


def test_the_order_of_equal_images_counts_also_those_that_no_image_is_made_of() -> None:
    black = LabeledImages(np.zeros((3, 1, 1, 1), np.uint8), np.zeros(3, np.int64), ("top",), "equal images")
    alone = make_plan([Request(2, 50, 0)], black, 100, 7, named)
    together = make_plan([Request(row, 50, 0) for row in range(3)], black, 100, 7, named)
    assert alone["seed"].to_pylist() == together["seed"].to_pylist()[2:]


def test_where_references_are_whole_images_what_is_cut_away_counts() -> None:
    wide = np.zeros((4, 4, 8, 1), np.uint8)
    wide[:, :, 2:6] = np.random.default_rng(0).integers(0, 256, (4, 4, 1))  # all equal in the square that is cut out
    wide[1, :, 0], wide[3] = 9, 7  # the first and the third equal in all; the last in nothing
    blobs = [encode_png(image) for image in wide]
    seeds = {}
    for whole in (False, True):
        images = EncodedImages(blobs, list("abcd"), (4, 4, 1), Decoding(4))
        data = LabeledImages(images, np.zeros(4, np.int64), ("top",), "wide images")
        plan = make_plan(requests(np.arange(4), (50,)), data, 100, 7, named, whole=whole)
        seeds[whole] = plan["seed"].to_pylist()
        orders = [0, 0, 1, 0] if whole else [0, 1, 2, 0]
        digests = [digest_pixels(image) for image in (wide if whole else wide[:, :, 2:6])]
        named_so = zip(digests, orders, strict=True)
        assert seeds[whole] == [child_seed(7, "image", digest, order, 50, 100, 0) for digest, order in named_so]


def test_every_image_has_a_seed_of_its_own(tiny_images: LabeledImages) -> None:
    plan = make_plan(requests(np.arange(16), (50, 50, 40)), tiny_images, 100, 7, named)
    assert len(set(plan["seed"].to_pylist())) == 48
    other = make_plan(requests(np.arange(16), (50, 50, 40)), tiny_images, 100, 8, named)
    assert not set(plan["seed"].to_pylist()) & set(other["seed"].to_pylist())


def test_the_images_of_k_2_are_among_those_of_k_5(tiny_images: LabeledImages) -> None:
    few, many = plan_of(tiny_images, 2).to_pylist(), plan_of(tiny_images, 5).to_pylist()
    assert len(few) == 3
    assert all(row in many for row in few)


def test_neither_order_nor_repetition_of_requests_changes_a_plan(tiny_images: LabeledImages) -> None:
    wanted = requests(SLOW, (70, 50))
    plan = make_plan(wanted, tiny_images, 100, 7, named)
    assert plan.num_rows == 6
    assert make_plan([*reversed(wanted), *wanted], tiny_images, 100, 7, named).equals(plan)
    assert make_plan(iter(wanted), tiny_images, 100, 7, named).equals(plan)


def test_a_plan_for_nothing_is_empty(tiny_images: LabeledImages) -> None:
    plan = make_plan([], tiny_images, 100, 7, named)
    assert plan.num_rows == 0
    assert plan.schema.equals(PLAN_SCHEMA)


def test_a_source_outside_the_data_is_refused(tiny_images: LabeledImages) -> None:
    for index in [-1, 16]:
        with pytest.raises(ValueError, match=f"^source index {index} is outside the 16 images of rows of light$"):
            make_plan([Request(0, 50, 0), Request(index, 50, 0)], tiny_images, 100, 7, named)


def test_a_level_outside_the_grid_is_refused(tiny_images: LabeledImages) -> None:
    for level in [-1, 0, 101]:
        message = f"^level {level} of 100 does not exist: levels go from 1 to 100$"
        with pytest.raises(ValueError, match=message):
            make_plan([Request(0, level, 0)], tiny_images, 100, 7, named)
        with pytest.raises(ValueError, match=message):
            PlanConfig(k=3, levels=(50, level)).steps(100)


# The config


def test_without_levels_they_are_the_papers() -> None:
    assert PlanConfig().steps(100) == (40, 50, 70, 80)
    assert PlanConfig(k=2).steps(20) == (10,)
    assert PlanConfig(k=3).steps(100) == (50, 70)


def test_own_levels_are_taken_as_they_are() -> None:
    assert PlanConfig(k=4, levels=(60, 1, 60)).steps(60) == (60, 1, 60)


def test_a_config_outside_its_bounds_is_refused() -> None:
    for bad, message in [
        ({"k": 3, "levels": (50,)}, r"k = 3 needs 2 levels \(k counts the real image\), got 1"),
        ({"k": 2, "levels": (50, 70)}, r"k = 2 needs 1 levels \(k counts the real image\), got 2"),
    ]:
        with pytest.raises(pydantic.ValidationError, match=message):
            PlanConfig(**bad)


# The forecast


def test_a_forecast_by_hand(tiny_images: LabeledImages) -> None:
    for calls, total, seconds, processes in [
        ({10: 10, 15: 15}, 75, 37.5, 1),
        ({10: 20, 15: 30}, 150, 75.0, 3),  # with guidance
        ({10: 3, 15: 4}, 21, 10.5, 1),  # in fewer steps
    ]:
        # Image 1 is a "middle" and 5 a "bottom"; each at 10 and 15, and 1 once more at 10 and 15.
        wanted = [*requests(np.array([1]), (10, 15, 10, 15)), *requests(np.array([5]), (10, 15))]
        plan = make_plan(wanted, tiny_images, 20, 0, named)
        what = forecast(
            plan, tiny_images, calls.__getitem__, seconds_per_call=0.5, bytes_per_image=100.25, processes=processes
        )
        assert what.images == 6
        assert what.per_class == {"top": 0, "middle": 4, "bottom": 2}
        assert what.per_level == {"10 of 20": 3, "15 of 20": 3}
        assert what.denoiser_calls == total  # 3 of each level
        assert what.seconds == pytest.approx(seconds / processes)
        assert what.bytes == 602  # 601.5


def test_levels_are_forecast_in_their_order(tiny_images: LabeledImages) -> None:
    plan = make_plan(requests(np.array([1]), (100, 9, 50)), tiny_images, 100, 0, named)
    what = forecast(plan, tiny_images, lambda steps: steps, seconds_per_call=1, bytes_per_image=1)
    assert list(what.per_level) == ["9 of 100", "50 of 100", "100 of 100"]


def test_the_forecast_of_an_empty_plan_is_nothing(tiny_images: LabeledImages) -> None:
    plan = make_plan([], tiny_images, 20, 0, named)
    what = forecast(plan, tiny_images, lambda steps: steps, seconds_per_call=0.5, bytes_per_image=100)
    assert (what.images, what.denoiser_calls, what.bytes, what.seconds, what.per_level) == (0, 0, 0, 0.0, {})
    assert what.per_class == {"top": 0, "middle": 0, "bottom": 0}
