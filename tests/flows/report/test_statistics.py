"""Intervals and p values, held against scipy.stats, sums by hand and their own null."""

import math

import numpy as np
import pytest
from scipy import stats

from latebloom.flows.report.statistics import (
    class_errors,
    confused_pairs,
    confusion,
    holm,
    image_interval,
    mcnemar,
    paired_t,
    ratio_of_means,
)
from tests.benchmarks.null_verdicts import Rule, false_tables, power, simulated

# ------------------------------------------------------------------------------------------------- over seeds


def test_the_paired_t_test_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        errors, base = rng.random((2, n))
        found, expected = paired_t(errors - base), stats.ttest_rel(errors, base)
        interval = expected.confidence_interval(0.95)
        assert float(found.p) == pytest.approx(expected.pvalue)
        assert (float(found.low), float(found.high)) == pytest.approx((interval.low, interval.high))


def test_an_interval_over_seeds_by_hand() -> None:
    # Differences -1, -2, -3 %: mean -2, standard deviation 1, over sqrt(3); t of 2 degrees of freedom 4.303.
    found = paired_t(np.array([-0.01, -0.02, -0.03]))
    assert float(found.mean) == pytest.approx(-0.02)
    assert float(found.standard_error) == pytest.approx(0.01 / math.sqrt(3))
    assert float(found.high) == pytest.approx(-0.02 + 4.3027 * 0.01 / math.sqrt(3), abs=1e-6)


def test_equal_differences_are_no_certainty() -> None:
    # Five seeds that are each one image of 800 better: a t test would divide by zero and call p 0.
    five = paired_t(np.full(5, -1 / 800))
    assert float(five.p) == pytest.approx(2 / 2**5)  # of 32 sign patterns two are as extreme
    assert np.isnan(five.low)
    assert float(paired_t(np.full(10, -1 / 800)).p) == pytest.approx(2 / 2**10)
    assert float(paired_t(np.zeros(5)).p) == 1
    rounded = np.subtract([0.09, 0.19, 0.29], [0.10, 0.20, 0.30])  # equal but for the rounding of floats
    assert float(paired_t(rounded).p) == pytest.approx(2 / 2**3)


def test_one_seed_has_no_interval() -> None:
    one = paired_t(np.array([-0.25]))
    assert float(one.mean) == -0.25
    assert np.isnan([one.standard_error, one.low, one.high, one.p]).all()


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, never below the one before
        ([0.9, 0.5], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(np.array(p)).tolist() == pytest.approx(adjusted)
    assert holm(np.array([p, p[::-1]])).tolist() == [pytest.approx(adjusted), pytest.approx(adjusted[::-1])]


# ------------------------------------------------------------------------------------------------- over test images


def test_the_spread_over_test_images_is_that_of_a_paired_difference() -> None:
    # Of 1,000 images 30 are wrong for one only and 10 for the other only: d is +1, -1 or 0.
    wrong, rival = np.zeros((2, 1, 1000), bool)
    wrong[0, :30] = rival[0, 30:40] = True
    error, low, high = image_interval(wrong, rival, np.random.default_rng(0))
    exact = math.sqrt((40 / 1000 - 0.02**2) / 1000)
    assert error == pytest.approx(exact, rel=0.05)
    assert (low, high) == (pytest.approx(0.02 - 1.96 * exact, abs=0.002), pytest.approx(0.02 + 1.96 * exact, abs=0.002))


def test_drawing_counts_of_values_is_drawing_images() -> None:
    rng = np.random.default_rng(1)
    wrong, rival = rng.random((2, 3, 200)) < 0.2
    error, low, high = image_interval(wrong, rival, np.random.default_rng(0))
    rows = rng.integers(0, 200, (4000, 200))
    means = (wrong.mean(0) - rival.mean(0))[rows].mean(1)
    assert error == pytest.approx(means.std(), rel=0.06)
    assert (low, high) == (
        pytest.approx(np.quantile(means, 0.025), abs=0.005),
        pytest.approx(np.quantile(means, 0.975), abs=0.005),
    )


def test_two_arms_that_err_alike_differ_on_no_test_set() -> None:
    wrong = np.eye(3, 50, dtype=bool)
    assert image_interval(wrong, wrong, np.random.default_rng(0)) == (0, 0, 0)


@pytest.mark.parametrize(("only", "only_rival"), [(0, 0), (1, 0), (0, 6), (5, 5), (3, 12)])
def test_mcnemar_is_the_binomial_test_of_the_images_where_two_differ(only: int, only_rival: int) -> None:
    wrong, rival = np.zeros((2, 40), bool)
    wrong[:only] = rival[only : only + only_rival] = True
    wrong[30:] = rival[30:] = True  # both wrong: says nothing
    expected = stats.binomtest(only, only + only_rival).pvalue if only + only_rival else 1
    assert mcnemar(wrong, rival) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------- ratios, classes


def test_a_ratio_is_of_the_means_and_needs_a_denominator_that_is_not_zero() -> None:
    gain, full = np.array([0.010, 0.012, 0.014, 0.012]), np.array([0.02, 0.02, 0.02, 0.02])
    found = ratio_of_means(gain, full)
    assert found is not None
    ratio, low, high = found
    assert ratio == pytest.approx(0.6)
    half = 3.1824 * gain.std(ddof=1) / 2 / 0.02  # an exact denominator: the t interval of the numerator over it
    assert (low, high) == (pytest.approx(0.6 - half, abs=1e-4), pytest.approx(0.6 + half, abs=1e-4))
    assert ratio_of_means(gain, np.array([0.02, -0.01, 0.01, -0.01])) is None  # the seeds do not say what full gains
    assert ratio_of_means(gain, -full) is None
    assert ratio_of_means(gain[:1], full[:1]) is None


def test_the_interval_of_a_ratio_covers_it() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 1, (2000, 5))  # what both share
    full = 4 + seeds + rng.normal(0, 0.5, seeds.shape)
    part = 2.4 + seeds + rng.normal(0, 0.5, seeds.shape)
    found = [ratio_of_means(x, y) for x, y in zip(part, full, strict=True)]
    covered = [low <= 0.6 <= high for one in found if one for _, low, high in [one]]
    assert len(covered) > 1900
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_errors_of_classes_and_what_is_taken_for_what_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 1, 3])
    predicted = np.array([[0, 1, 1, 1, 0, 3], [0, 1, 1, 0, 0, 1]])
    errors = class_errors(predicted, labels, 4)
    assert errors[[0, 1, 3]].tolist() == pytest.approx([1 / 2, 3 / 6, 1 / 2])
    assert np.isnan(errors[2])  # no test image
    assert confusion(predicted, labels, 4).tolist() == [[1, 1, 0, 0], [1.5, 1.5, 0, 0], [0] * 4, [0, 0.5, 0, 0.5]]
    assert confused_pairs(predicted, labels, 2) == [(1, 0, 1.5), (0, 1, 1.0)]
    assert confused_pairs(labels[None], labels, 2) == []


# ------------------------------------------------------------------------------------------------- the null


@pytest.mark.parametrize("n", [5, 10, 20])
def test_tables_of_equal_arms_have_a_verdict_in_under_5_percent(n: int) -> None:
    tables = 1000
    errors = simulated(tables, n, np.random.default_rng(n))
    bound = stats.binom.ppf(0.999, tables, 0.05) / tables  # 0.072: chance passes it once in a thousand
    assert false_tables(errors, Rule.NOW) <= bound
    assert false_tables(errors, Rule.BEFORE) > 2 * bound  # two standard errors: what was reported before


def test_below_five_seeds_no_table_has_a_verdict() -> None:
    assert false_tables(simulated(200, 4, np.random.default_rng(0)), Rule.NOW) == 0


def test_a_large_difference_is_found() -> None:
    # One of twelve arms is 2 points better, which is 5 standard deviations of a paired difference.
    assert power(simulated(300, 10, np.random.default_rng(0), better=0.02)) > 0.95
