from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latebloom.flows.report.histograms import histogram_svg
from latebloom.flows.report.results import Limit, ScoreHistogram
from latebloom.flows.report.scores import flagged_rows, score_histograms

SCORES = (
    *("brightness", "contrast", "label_probability", "reference_label_probability", "reference_distance"),
    *("distance_ratio", "nearest_real_distance", "clip_score", "clip_margin", "unsafe", "duplicate_distance"),
)
QUALITY = {"min_contrast": 2.0, "min_label_ratio": 0.5, "min_label_probability": 0.0, "max_distance_ratio": 4.0}


def table(states: list[str], **scores: list[float]) -> pa.Table:
    """Rows of these states; scores that are not given were not measured."""
    missing = [float("nan")] * len(states)
    return pa.table({"state": states, **{name: scores.get(name, missing) for name in SCORES}})


def histogram(name: str, rows: pa.Table, **quality: Any) -> ScoreHistogram:
    (found,) = (one for one in score_histograms(rows, QUALITY | quality) if one.score == name)
    return found


def test_only_scores_that_were_measured_are_shown() -> None:
    rows = table(["ok", "ok"], contrast=[10.0, 20.0], distance_ratio=[1.0, 2.0])
    assert [one.score for one in score_histograms(rows, QUALITY)] == ["contrast", "distance_ratio"]
    assert score_histograms(rows.slice(0, 0), QUALITY) == []


def test_a_score_is_counted_by_state_over_its_range_and_its_thresholds() -> None:
    found = histogram("contrast", table(["ok", "flat", "ok"], contrast=[32.0, 3.0, 17.0]))
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (2.0, 32.0, 31)  # from the threshold on
    assert {state: np.flatnonzero(counts).tolist() for state, counts in found.counts.items()} == {
        "ok": [15, 29],
        "flat": [1],
    }
    assert found.limits == [Limit("min_contrast", 2.0, True)]


def test_a_ratio_is_that_of_its_columns_and_a_threshold_may_be_off() -> None:
    rows = table(["ok"] * 4, label_probability=[0.2, 0.3, 0.4, 0.1], reference_label_probability=[0.4, 0.3, 0.0, 0.1])
    found = histogram("label_probability / reference_label_probability", rows)
    assert (found.edges[0], found.edges[-1]) == (0.5, 1.0)
    assert found.missing == 1  # nothing divides by 0
    (plain,) = histogram("label_probability", rows).limits
    assert (plain.name, plain.on) == ("min_label_probability", False)


def test_few_values_far_above_all_others_are_in_the_last_bin() -> None:
    found = histogram("distance_ratio", table(["ok"] * 100, distance_ratio=[*np.linspace(0, 2, 99), 1000.0]))
    assert found.edges[-1] == 5.0  # 1.25 times the threshold
    assert (found.beyond, found.counts["ok"][-1], sum(found.counts["ok"])) == (1, 1, 100)


def test_equal_values_have_a_histogram_and_infinite_ones_none() -> None:
    found = histogram("brightness", table(["ok", "ok", "ok"], brightness=[7.0, 7.0, np.inf]))
    assert (found.edges[0], found.edges[-1], found.missing, sum(found.counts["ok"])) == (6.5, 7.5, 1, 2)


def test_those_that_miss_a_threshold_by_most_come_first() -> None:
    rows = table(
        ["off_label", "ok", "off_label", "flat", "off_label", "far_from_reference", "nan"],
        label_probability=[0.2, 0.9, 0.01, 0.5, 0.1, 0.9, 0.0],
        reference_label_probability=[0.5, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0],
        contrast=[9.0, 9.0, 9.0, 1.5, 9.0, 9.0, 0.0],
        distance_ratio=[1.0, 1.0, 1.0, 1.0, 1.0, 8.0, 1.0],
    )
    assert flagged_rows(rows, QUALITY, 2) == {
        "nan": [(6, "")],
        "flat": [(3, "min_contrast 2, here 1.5")],
        "off_label": [(2, "min_label_ratio 0.5, here 0.02"), (4, "min_label_ratio 0.5, here 0.1")],
        "far_from_reference": [(5, "max_distance_ratio 4, here 8")],
    }


def test_a_switch_and_a_state_of_another_version_are_flagged_too() -> None:
    rows = table(["unsafe", "odd"], unsafe=[1.0, 0.0])
    found = flagged_rows(rows, {"drop_unsafe": True}, 5)
    assert found == {"unsafe": [(0, "drop_unsafe on, here 1")], "odd": [(1, "")]}
    assert score_histograms(rows, {"drop_unsafe": True}) == []


@pytest.mark.parametrize(("value", "anchor"), [(0.0, "start"), (1.5, "middle"), (3.0, "end")])
def test_bars_are_stacked_with_the_flagged_below_and_a_line_at_the_threshold(value: float, anchor: str) -> None:
    limits = [Limit("min_x", value, True), Limit("min_y", 2.0, False)]
    svg = histogram_svg(
        ScoreHistogram("x", [0.0, 1.0, 3.0], {"ok": [6, 0], "flat": [2, 8]}, limits, 0, 0), ["ok", "flat"]
    )
    # 88 units are the 8 of the highest bin: flat from 112 up by 22, ok above it by 66.
    assert 'y="90.0" width="95.4" height="22.0" style="fill: var(--s1)"' in svg
    assert 'y="24.0" width="95.4" height="66.0" style="fill: var(--s0)"' in svg
    assert svg.count("<rect") == 3
    assert svg.count("stroke-dasharray") == 1
    assert f'text-anchor="{anchor}">{value:g}</text>' in svg
