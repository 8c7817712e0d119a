import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from latebloom.flows.report.results import ArmResult, Comparison, Name
from latebloom.flows.report.verdicts import compare, family, leading, sentences

Errors = Mapping[str, Sequence[float]]
BASE = [0.10, 0.12, 0.11, 0.13, 0.09]
BETTER = [0.08, 0.09, 0.09, 0.10, 0.07]  # -2, -3, -2, -3, -2 points


def result(arm: str, errors: Sequence[float], optimizer: str = "sgd") -> ArmResult:
    mean = sum(errors) / len(errors)
    return ArmResult(arm, optimizer, list(errors), mean, None, 0.0, 100.0, 1.0, 0.0, [])


def said(errors: Mapping[Name, Sequence[float]], wrong: Mapping[Name, np.ndarray] | None = None) -> list[str]:
    compared = compare(errors, wrong or {}, 0)
    return sentences([result(arm, values, by) for (arm, by), values in errors.items()], compared, 800)


def with_sgd(errors: Errors) -> dict[Name, Sequence[float]]:
    return {(arm, "sgd"): values for arm, values in errors.items()}


def only(errors: Errors, wrong: Mapping[Name, np.ndarray] | None = None) -> Comparison:
    (one,) = compare(with_sgd(errors), wrong or {}, 0)
    return one


# ------------------------------------------------------------------------------------------------- the family


def test_the_family_is_the_table_and_the_sentences_each_pair_once() -> None:
    arms = ["original", "original@ours-5", "random-5", "ours-2", "ours-5"]
    pairs = family([(arm, optimizer) for optimizer in ("sgd", "sam") for arm in arms])
    table = [((arm, by), ("original", by)) for by in ("sgd", "sam") for arm in arms[1:]]
    more = [(("ours-5", by), (rival, by)) for by in ("sgd", "sam") for rival in ("original@ours-5", "random-5")]
    assert pairs == [*table, *more, (("ours-5", "sgd"), ("original", "sam"))]


def test_two_selectors_are_one_pair_whichever_speaks() -> None:
    pairs = family([(arm, "sgd") for arm in ("original", "original+random", "original+all", "original+dea")])
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 6  # of four arms


def test_arms_without_the_original_have_no_table_to_correct() -> None:
    assert family([("ours-5", "sgd"), ("upsample-3", "sgd")]) == []
    assert compare({("ours-5", "sgd"): [0.1] * 5}, {}, 0) == []


def test_the_p_values_are_adjusted_for_all_pairs() -> None:
    rng = np.random.default_rng(0)
    errors = with_sgd({arm: 0.1 + 0.01 * rng.standard_normal(6) for arm in ("original", "ours-5", "random-5", "all-5")})
    found = compare(errors, {}, 0)
    assert len(found) == 5  # three with original, ours with two others
    p = [one.p for one in found]
    assert None not in p
    smallest = min(found, key=lambda one: one.p or 0)
    assert smallest.p_holm == pytest.approx(5 * (smallest.p or 0))
    assert all(one.significant == ((one.p_holm or 0) < 0.05) for one in found)


# ------------------------------------------------------------------------------------------------- a comparison


def test_a_comparison_by_hand() -> None:
    one = only({"original": BASE, "ours-2": BETTER})
    assert one.difference == pytest.approx(-0.024)
    error = math.sqrt(0.3) / 5**0.5 / 100  # squares about -2.4: 3 x 0.16 + 2 x 0.36 = 1.2, by n - 1
    assert one.standard_error == pytest.approx(error)
    assert one.ci_low == pytest.approx(-0.024 - 2.7764 * error, abs=1e-6)
    assert one.p == one.p_holm == pytest.approx(0.0006, abs=0.0001)  # a family of one
    assert one.significant


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_below_five_seeds_there_is_no_verdict(n: int) -> None:
    one = only({"original": BASE[:n], "ours-2": [error - 0.05 - 0.001 * i for i, error in enumerate(BASE[:n])]})
    assert (one.p, one.p_holm, one.significant) == (None, None, None)
    assert (one.ci_low is None) == (n == 1)


def test_equal_differences_of_five_seeds_are_not_significant_and_of_ten_are() -> None:
    five = only({"original": BASE, "ours-2": [error - 0.01 for error in BASE]})
    assert (five.p, five.significant, five.ci_low) == (pytest.approx(1 / 16), False, None)
    ten = only({"original": BASE * 2, "ours-2": [error - 0.01 for error in BASE * 2]})
    assert (ten.p, ten.significant) == (pytest.approx(2 / 1024), True)
    none = only({"original": BASE, "ours-2": BASE})
    assert (none.difference, none.p, none.significant) == (0, 1, False)


def test_the_interval_over_test_images_needs_the_predictions_of_both() -> None:
    wrong = {("original", "sgd"): np.zeros((5, 50), bool), ("ours-2", "sgd"): np.zeros((5, 50), bool)}
    wrong["ours-2", "sgd"][:, :10] = True
    one = only({"original": BASE, "ours-2": BETTER}, wrong)
    assert one.images_error == pytest.approx(math.sqrt(0.2 * 0.8 / 50), rel=0.1)
    assert one.images_low is not None
    assert one.images_high is not None
    assert one.images_low < 0.2 < one.images_high
    assert one.mcnemar is None
    del wrong["original", "sgd"]
    assert only({"original": BASE, "ours-2": BETTER}, wrong).images_low is None


def test_other_arms_do_not_change_what_is_drawn_for_a_pair() -> None:
    rng = np.random.default_rng(0)
    wrong = {(arm, "sgd"): rng.random((5, 200)) < 0.3 for arm in ("original", "upsample-2", "ours-2")}
    errors = with_sgd(dict.fromkeys(("original", "upsample-2", "ours-2"), BASE))
    three = {one.arm: one for one in compare(errors, wrong, 7) if one.rival == "original"}
    del errors["upsample-2", "sgd"]
    (two,) = compare(errors, wrong, 7)
    assert two.images_low == three["ours-2"].images_low
    assert two.images_low != compare(errors, wrong, 8)[0].images_low


def test_one_seed_has_mcnemars_test() -> None:
    wrong = {("original", "sgd"): np.eye(1, 50, 0, bool), ("ours-2", "sgd"): np.zeros((1, 50), bool)}
    wrong["ours-2", "sgd"][0, 1:6] = True
    assert only({"original": [0.02], "ours-2": [0.1]}, wrong).mcnemar == pytest.approx(14 / 64)  # 1 of 6, two-sided


# ------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("errors", "verdict", "numbers"),
    [
        (
            BETTER,
            "lower",
            "8.60 % against 11.00 % test error, -2.40 points (95 %: -3.08 to -1.72 over 5 seeds), p below",
        ),
        ([0.12, 0.15, 0.13, 0.16, 0.11], "higher", "13.40 % against 11.00 % test error, +2.40 points"),
        ([0.09, 0.13, 0.10, 0.14, 0.08], "no difference that these seeds can show", "10.80 % against 11.00 %"),
        (BASE, "no difference that these seeds can show", "11.00 % against 11.00 % test error, +0.00 points"),
    ],
    ids=["better", "worse", "not to tell apart", "the same"],
)
def test_a_sentence_says_what_the_numbers_say_whichever_way_they_fall(
    errors: list[float], verdict: str, numbers: str
) -> None:
    line = said(with_sgd({"original": BASE, "ours-2": errors}))[0]
    assert line.startswith(f"ours-2 against the real images alone (original). SGD: {verdict}; {numbers}")


@pytest.mark.parametrize("n", [1, 3, 4])
def test_few_seeds_give_numbers_and_why_there_is_no_verdict(n: int) -> None:
    first, last = said(with_sgd({"original": BASE[:n], "ours-2": BETTER[:n]}))
    assert "% test error, -2" in first
    assert not [word for word in ("lower", "higher", "no difference", " p ") if word in first]
    assert "no verdict below 5 seeds" in last


def test_a_difference_that_other_test_images_could_turn_is_said_to_be() -> None:
    # The same classifiers err on 24 of 1,000 images less, 236 for the better: sure of seeds, not of images.
    wrong = {("original", "sgd"): np.zeros((5, 1000), bool), ("ours-2", "sgd"): np.zeros((5, 1000), bool)}
    wrong["original", "sgd"][:, :260] = wrong["ours-2", "sgd"][:, 260:496] = True
    turned = said(with_sgd({"original": BASE, "ours-2": BETTER}), wrong)[0]
    assert "lower; " in turned
    assert turned.endswith("Another test set of this size could show the opposite.")
    wrong["ours-2", "sgd"][:, 280:] = False
    assert "Another test set" not in said(with_sgd({"original": BASE, "ours-2": BETTER}), wrong)[0]


def test_the_last_sentence_says_what_a_verdict_rests_on() -> None:
    last = said(with_sgd({"original": BASE, "ours-2": BASE}))[-1]
    assert (
        "paired t tests over 5 training seeds, adjusted by Holm's correction for all comparisons of this report, 1;"
        in last
    )
    assert "800 test images, of which one is 0.12 points" in last


def test_ours_is_held_against_every_rival_that_was_run_and_no_other() -> None:
    arms = [
        "original",
        "original@ours-5",
        "upsample-2",
        "random-5",
        "high_loss-5",
        "misclassified-5",
        "noise-5",
        "all-5",
    ]
    lines = said(with_sgd(dict.fromkeys([*arms, "random-2", "noise-2", "ours-2", "ours-5"], BASE)))
    assert all(line.startswith("ours-5 against ") for line in lines[:-1])  # the largest k speaks
    rivals = [line.partition("(")[2].partition(")")[0] for line in lines[:-1]]
    assert sorted(rivals) == sorted(arms)


def test_ours_with_sgd_is_held_against_the_original_with_sam() -> None:
    errors = {(arm, by): BASE for arm in ("original", "ours-2") for by in ("sgd", "sam")}
    lines = said(errors)
    assert len(lines) == 3
    assert lines[1].startswith("ours-2 with SGD against the real images alone with SAM (original SAM): no difference")


def test_a_pair_of_arms_has_one_line_with_all_optimizers() -> None:
    errors = {(arm, by): BASE for by in ("sgd", "sam") for arm in ("original", "random-2", "ours-2")}
    errors["ours-2", "sam"] = BETTER
    first, second, *_ = said(errors)
    assert "(original). SGD: no difference" in first
    assert "SAM: lower; 8.60 % against 11.00 %" in first
    assert "(random-2). SGD: " in second


def test_a_difference_that_only_the_correction_takes_away_is_said_to_be() -> None:
    # -2, 0, -2, -3, -1 points: t = 3.138 with 4 degrees of freedom, p 0.035: no verdict among three.
    close = [error - by for error, by in zip(BASE, (0.02, 0.0, 0.02, 0.03, 0.01), strict=True)]
    assert "SGD: lower; " in said(with_sgd({"original": BASE, "ours-2": close}))[0]
    both = said(with_sgd({"original": BASE, "random-2": [error + 0.001 for error in BASE], "ours-2": close}))
    assert "SGD: no difference that holds among 3 comparisons; " in both[0]
    assert "p 0.035, adjusted 0.087" in both[0]


def test_an_arm_with_levels_is_held_against_rivals_at_its_levels_or_at_any() -> None:
    arms = ["original", "random-2", "random-2:L50", "all-2", "ours-2:L50", "ours-2:L70", "original@ours-2:L50"]
    pairs = family([(arm, "sgd") for arm in arms])
    assert [rival for (arm, _), (rival, _) in pairs if arm == "ours-2:L50"] == [
        "original",
        "original@ours-2:L50",
        "random-2:L50",
        "all-2",
    ]


def test_a_selector_with_a_budget_of_its_own_has_sentences() -> None:
    lines = said(with_sgd(dict.fromkeys(["original", "original+random", "original+max_loss:none"], BASE)))
    assert any(
        one.startswith("original+max_loss:none against strong copies of images selected at random") for one in lines
    )


@pytest.mark.parametrize(
    ("arms", "leads"),
    [
        (["ours-2:L50", "ours-3:L50-70", "ours-3"], "ours-3:L50-70"),  # of two with the largest k the first named
        (["ours-10", "ours-9"], "ours-10"),  # the largest number, not the last word
        (["ours-2+dea", "ours-2@original"], None),
        (["original", "upsample-2"], None),
    ],
)
def test_the_arm_that_the_sentences_are_about_is_named_by_k_and_not_by_its_error(
    arms: list[str], leads: str | None
) -> None:
    assert leading(arms) == leads


@pytest.mark.parametrize("arms", [["original", "upsample-2"], ["original", "ours-2@original"]])
def test_without_ours_there_is_nothing_to_claim(arms: list[str]) -> None:
    lines = said(with_sgd(dict.fromkeys(arms, BASE)))
    assert len(lines) == 1
    assert lines[0].startswith("A verdict is")


def test_without_the_original_too_there_is_nothing_to_say() -> None:
    assert said(with_sgd({"random-5": BASE})) == []


def test_no_results_have_no_sentences() -> None:
    assert sentences([], [], 1000) == []
