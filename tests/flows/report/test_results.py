import dataclasses
import json
import math

import numpy as np
import pytest

from latebloom.flows.report.results import (
    ArmResult,
    Comparison,
    Confusion,
    GenerationCost,
    LevelResult,
    Report,
    SeedSelection,
    StageCost,
    arm_results,
    in_percent,
    interval,
    mean_and_std,
    p_value,
)
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import RetrainFacts

# ------------------------------------------------------------------------------------------------- arms


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
    apart = Comparison("ours-2", "sgd", "original", "sgd", 2, -0.02, 0.01, -0.15, 0.11, None, None, None)
    sam = dataclasses.replace(apart, optimizer="sam", rival_optimizer="sam", difference=0.5)
    across = dataclasses.replace(apart, rival_optimizer="sam", difference=0.25)
    original, ours = arm_results(both, 0.01, [sam, across, apart], {("ours-2", "sgd"): np.array([0.1, np.nan])})
    assert (ours.arm, ours.optimizer, ours.n) == ("ours-2", "sgd", 2)
    assert ours.mean == pytest.approx(0.04)
    assert ours.std == 0
    assert original.mean == pytest.approx(0.06)
    assert original.std == pytest.approx(math.sqrt(2 * 0.01**2))  # n - 1 below the sum of squares
    # The comparison with original of its own optimizer, not the others.
    assert (ours.difference, ours.standard_error, ours.ci_low, ours.ci_high) == (-0.02, 0.01, -0.15, 0.11)
    assert (original.difference, original.significant) == (None, None)
    assert (ours.images_added, ours.steps, ours.train_seconds) == (15, 200, 1.5)
    assert ours.generation_seconds == pytest.approx(20)  # 2,000 calls on average at 10 ms
    assert ours.train_error == [0.5, 0.1]
    assert (ours.class_errors, original.class_errors) == ([0.1, None], [])


def test_one_seed_has_no_std() -> None:
    (only,) = arm_results({("original", "sgd"): facts([0.05])}, 0.0, [], {})
    assert (only.mean, only.std) == (0.05, None)


def test_the_gain_of_a_selector_is_its_share_of_what_all_gains() -> None:
    weak, full = [0.10, 0.12, 0.11, 0.13], [0.06, 0.08, 0.07, 0.09]  # all seeds gain 4 points
    runs = {
        ("original", "sgd"): facts(weak),
        ("original+dea", "sgd"): facts([0.07, 0.09, 0.08, 0.10]),  # 3 points
        ("original+all", "sgd"): facts(full),
        ("original+dea", "sam"): facts(weak),  # nothing to compare it with
        ("original@original+dea", "sgd"): facts(full),
    }
    gains = [(one.gain, one.gain_low, one.gain_high) for one in arm_results(runs, 0.0, [], {})]
    assert gains[1] == (pytest.approx(0.75),) * 3
    assert [gains[place] for place in (0, 2, 3, 4)] == [(None, None, None)] * 4
    runs["original+all", "sgd"] = facts([0.10, 0.08, 0.13, 0.12])  # 0, 4, -2, 1 points: no one knows
    assert arm_results(runs, 0.0, [], {})[1].gain is None


# ------------------------------------------------------------------------------------------------- report.json


def test_a_report_survives_its_json(pristine: RunFolder) -> None:
    value = json.loads((pristine.path / "report.json").read_text())
    report = Report.from_json(value)
    assert json.loads(json.dumps(dataclasses.asdict(report))) == value
    for items, kind in (
        (report.arms, ArmResult),
        (report.comparisons, Comparison),
        (report.selections, SeedSelection),
        (report.levels, LevelResult),
        (report.stages, StageCost),
        (report.confusions, Confusion),
        (report.generation, GenerationCost),
    ):
        assert items
        assert all(type(item) is kind for item in items)


def test_a_report_of_another_shape_is_refused(pristine: RunFolder) -> None:
    value = json.loads((pristine.path / "report.json").read_text())
    with pytest.raises(TypeError, match="surprise"):
        Report.from_json({**value, "surprise": 1})


def test_numbers_in_words() -> None:
    assert interval(-0.012, 0.004) == "-1.20 to +0.40"
    assert interval(None, 0.004) == "–"
    assert [p_value(p) for p in (0.0004, 0.00123, 0.034, 0.5, 1.0)] == ["below 0.001", "0.0012", "0.034", "0.5", "1"]


def test_a_share_in_percent_has_its_spread_where_there_is_one() -> None:
    assert in_percent(0.0421) == "4.21"
    assert in_percent(*mean_and_std([0.04, 0.05])) == "4.50 ± 0.71"
    assert in_percent(*mean_and_std([0.04])) == "4.00"
    assert in_percent(-0.00001, 0.001, signed=True) == "+0.00 ± 0.10"  # no -0.00
