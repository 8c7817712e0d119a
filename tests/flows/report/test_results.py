import dataclasses
import json
import math
from collections.abc import Sequence

import pytest

from latebloom.flows.report.results import (
    ArmResult,
    LevelResult,
    Report,
    SeedSelection,
    StageCost,
    arm_results,
    in_percent,
    mean_and_std,
    paired,
    sentences,
)
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import RetrainFacts


def result(arm: str, errors: Sequence[float], optimizer: str = "sgd", images_added: float = 0.0) -> ArmResult:
    return ArmResult(
        arm=arm,
        optimizer=optimizer,
        errors=list(errors),
        mean=sum(errors) / len(errors),
        std=None,
        difference=None,
        standard_error=None,
        images_added=images_added,
        steps=100.0,
        train_seconds=1.0,
        generation_seconds=0.0,
        train_error=[],
    )


# ------------------------------------------------------------------------------------------------- paired statistics


def test_a_paired_difference_is_the_mean_of_the_seeds_own_with_its_standard_error() -> None:
    # Differences -1, -2, -3 %: mean -2 %, sample standard deviation 1 %, over sqrt(3).
    difference, standard_error = paired([0.04, 0.05, 0.06], [0.05, 0.07, 0.09])
    assert difference == pytest.approx(-0.02)
    assert standard_error == pytest.approx(0.01 / math.sqrt(3))


def test_pairing_takes_out_what_the_seeds_share() -> None:
    # Seeds apart by 10 %, differences all alike: unpaired this would drown.
    difference, standard_error = paired([0.09, 0.19, 0.29], [0.10, 0.20, 0.30])
    assert difference == pytest.approx(-0.01)
    assert standard_error == pytest.approx(0, abs=1e-12)


def test_one_pair_has_a_difference_and_no_standard_error() -> None:
    assert paired([0.25], [0.5]) == (-0.25, None)


def facts(errors: list[float], **changes: object) -> RetrainFacts:
    plain: dict[str, object] = {
        "errors": errors,
        "images_added": [10, 20],
        "steps": [100, 300],
        "seconds": 1.5,
        "denoiser_calls": [1000, 3000],
        "train_error": [0.5, 0.1],
    }
    return RetrainFacts.model_validate(plain | changes)


def test_an_arm_is_summed_up_over_its_seeds() -> None:
    both = {("original", "sgd"): facts([0.05, 0.07]), ("ours-2", "sgd"): facts([0.04, 0.04])}
    original, ours = arm_results(both, seconds_per_call=0.01)
    assert (ours.arm, ours.optimizer, ours.n) == ("ours-2", "sgd", 2)
    assert ours.mean == pytest.approx(0.04)
    assert ours.std == 0
    assert original.mean == pytest.approx(0.06)
    assert original.std == pytest.approx(math.sqrt(2 * 0.01**2))  # n - 1 below the sum of squares
    assert ours.difference == pytest.approx(-0.02)  # of -1 % and -3 %
    assert ours.standard_error == pytest.approx(0.01)
    assert (original.difference, original.standard_error) == (0, 0)
    assert (ours.images_added, ours.steps, ours.train_seconds) == (15, 200, 1.5)
    assert ours.generation_seconds == pytest.approx(20)  # 2,000 calls on average at 10 ms
    assert ours.train_error == [0.5, 0.1]


def test_each_optimizer_is_compared_with_its_own_original() -> None:
    mixed = {
        ("original", "sgd"): facts([0.10, 0.10]),
        ("original", "sam"): facts([0.06, 0.06]),
        ("ours-2", "sam"): facts([0.05, 0.05]),
    }
    assert arm_results(mixed, 0.0)[2].difference == pytest.approx(-0.01)


def test_without_the_original_there_is_no_difference() -> None:
    (alone,) = arm_results({("ours-2", "sgd"): facts([0.05, 0.05])}, 0.0)
    assert (alone.difference, alone.standard_error) == (None, None)


def test_one_seed_has_neither_std_nor_standard_error() -> None:
    both = {("original", "sgd"): facts([0.05]), ("ours-2", "sgd"): facts([0.04])}
    _, ours = arm_results(both, 0.0)
    assert (ours.std, ours.standard_error) == (None, None)
    assert ours.difference == pytest.approx(-0.01)


# ------------------------------------------------------------------------------------------------- sentences

ORIGINAL = [0.10, 0.12, 0.11]


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        (
            # Differences -2, -3, -4: -3 +- 1 / sqrt(3) = 0.58, five standard errors.
            [0.08, 0.09, 0.07],
            "lower; 8.00 % against 11.00 % test error (-3.00 ± 0.58 points, n = 3)",
        ),
        (
            [0.12, 0.15, 0.15],  # +2, +3, +4
            "higher; 14.00 % against 11.00 % test error (+3.00 ± 0.58 points, n = 3)",
        ),
        (
            # -1, -3, +1: -1 +- 2 / sqrt(3) = 1.15, less than one standard error.
            [0.09, 0.09, 0.12],
            "no difference that these seeds can show; 10.00 % against 11.00 % test error (-1.00 ± 1.15 points, n = 3)",
        ),
        (
            [0.10, 0.12, 0.11],
            "no difference that these seeds can show; 11.00 % against 11.00 % test error (+0.00 ± 0.00 points, n = 3)",
        ),
    ],
    ids=["better", "worse", "not to tell apart", "the same"],
)
def test_a_sentence_says_what_the_numbers_say_whichever_way_they_fall(errors: list[float], words: str) -> None:
    lines = sentences([result("original", ORIGINAL), result("ours-2", errors)], 1000)
    assert lines[0] == f"SGD: ours-2 against the real images alone (original): {words}."


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        # -2 +- 1 is exactly two standard errors, which does not count yet; -2 +- 0.98 does.
        ([-3.0, -1.0], "no difference that these seeds can show"),
        ([-2.98, -1.02], "lower"),
        ([3.0, 1.0], "no difference that these seeds can show"),
        ([2.98, 1.02], "higher"),
    ],
)
def test_a_difference_counts_beyond_two_standard_errors(last: list[float], verdict: str) -> None:
    ours = [(50 + difference) / 100 for difference in last]
    lines = sentences([result("original", [0.5, 0.5]), result("ours-2", ours)], 1000)
    assert f"(original): {verdict}; " in lines[0]


def test_one_seed_gives_numbers_but_no_verdict() -> None:
    lines = sentences([result("original", [0.10]), result("ours-2", [0.05])], 1000)
    assert lines == [
        "SGD: ours-2 against the real images alone (original): 5.00 % against 10.00 % test error, one seed each.",
        "One seed cannot tell a difference from chance: run `latebloom compare` with several.",
    ]


def test_several_seeds_say_what_the_standard_error_does_not_cover() -> None:
    lines = sentences([result("original", ORIGINAL), result("ours-2", ORIGINAL)], 800)
    assert lines[-1] == (
        "The ± is the standard error over 3 training seeds on one split and one synthetic set; it does not cover the "
        "choice of the 800 test images, of which one is 0.12 points."
    )


def test_ours_is_held_against_every_rival_that_was_run_and_no_other() -> None:
    arms = ["original", "original@ours-5", "upsample-2", "random-5", "random-2", "all-5", "ours-2", "ours-5"]
    lines = sentences([result(arm, ORIGINAL) for arm in arms], 1000)
    assert [line.partition("(")[2].partition(")")[0] for line in lines[:-1]] == [
        "original",
        "original@ours-5",
        "upsample-2",
        "random-5",
        "all-5",
    ]
    assert all(line.startswith("SGD: ours-5 against ") for line in lines[:-1])  # the largest k speaks


def test_the_largest_k_is_the_largest_number_not_the_last_word() -> None:
    lines = sentences([result(arm, ORIGINAL) for arm in ("original", "ours-10", "ours-9")], 1000)
    assert lines[0].startswith("SGD: ours-10 against")


def test_what_all_costs_more_is_said() -> None:
    arms = [result("ours-5", ORIGINAL, images_added=100), result("all-5", ORIGINAL, images_added=250)]
    assert sentences(arms, 1000)[1] == "all-5 makes 250 images where ours-5 makes 100: 2.5 times the generation."


def test_each_optimizer_has_its_own_sentences() -> None:
    results = [result(arm, ORIGINAL, optimizer) for arm in ("original", "ours-2") for optimizer in ("sgd", "sam")]
    lines = sentences(results, 1000)
    assert [line.partition(":")[0] for line in lines[:-1]] == ["SGD", "SAM"]


@pytest.mark.parametrize("arms", [["original", "upsample-2"], ["original", "ours-2@original"], ["random-5"]])
def test_without_ours_there_is_nothing_to_claim(arms: list[str]) -> None:
    lines = sentences([result(arm, ORIGINAL) for arm in arms], 1000)
    assert len(lines) == 1
    assert lines[0].startswith("The ± is")


def test_no_results_have_no_sentences() -> None:
    assert sentences([], 1000) == []


# ------------------------------------------------------------------------------------------------- report.json


def test_a_report_survives_its_json(pristine: RunFolder) -> None:
    value = json.loads((pristine.path / "report.json").read_text())
    report = Report.from_json(value)
    assert json.loads(json.dumps(dataclasses.asdict(report))) == value
    for items, kind in (
        (report.arms, ArmResult),
        (report.selections, SeedSelection),
        (report.levels, LevelResult),
        (report.stages, StageCost),
    ):
        assert items
        assert all(type(item) is kind for item in items)


def test_a_report_of_another_shape_is_refused(pristine: RunFolder) -> None:
    value = json.loads((pristine.path / "report.json").read_text())
    with pytest.raises(TypeError, match="surprise"):
        Report.from_json({**value, "surprise": 1})


def test_a_share_in_percent_has_its_spread_where_there_is_one() -> None:
    assert in_percent(0.0421) == "4.21"
    assert in_percent(*mean_and_std([0.04, 0.05])) == "4.50 ± 0.71"
    assert in_percent(*mean_and_std([0.04])) == "4.00"
    assert in_percent(-0.00001, 0.001, signed=True) == "+0.00 ± 0.10"  # no -0.00
