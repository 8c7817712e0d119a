"""What the report says of a validation split, by numbers made by hand."""

import pytest

from latebloom.flows.report.results import ValidationResult
from latebloom.flows.report.validation import is_reported, sentences, validation_results
from latebloom.flows.run.records import RetrainFacts


def trained(by_epoch: list[list[float]], seconds: list[list[float]]) -> RetrainFacts:
    return RetrainFacts(
        seconds=1.0,
        errors=[0.5] * len(by_epoch),
        images_added=[0] * len(by_epoch),
        denoiser_calls=[0] * len(by_epoch),
        steps=[3] * len(by_epoch),
        train_error=[0.0],
        validation_errors=[curve[-1] for curve in by_epoch],
        validation_by_epoch=by_epoch,
        epoch_seconds=seconds,
    )


FACTS = {
    ("original", "sgd"): trained([[0.5, 0.4, 0.3], [0.7, 0.2, 0.3]], [[2, 2, 2], [2, 2, 4]]),
    # Of means 0.6, 0.29: at 0.3 or less after two epochs, which took 5 and 7 seconds.
    ("ours-2", "sgd"): trained([[0.6, 0.28], [0.6, 0.30]], [[2, 3], [3, 4]]),
    ("random-2", "sgd"): trained([[0.9, 0.8], [0.9, 0.6]], [[2, 3], [3, 4]]),
    ("ours-2", "sam"): trained([[0.9, 0.1]], [[2, 3]]),
}


def found(named: tuple[str, ...] = ()) -> dict[tuple[str, str], ValidationResult]:
    return {(one.arm, one.optimizer): one for one in validation_results(FACTS, named)}


def test_the_time_to_a_given_error_is_that_of_originals_mean_at_its_end() -> None:
    results = found()
    assert results["original", "sgd"].by_epoch == pytest.approx([0.6, 0.3, 0.3])
    assert results["original", "sgd"].mean == pytest.approx(0.3)
    assert (results["original", "sgd"].epochs_to_original, results["original", "sgd"].seconds_to_original) == (2, 4.0)
    assert (results["ours-2", "sgd"].epochs_to_original, results["ours-2", "sgd"].seconds_to_original) == (2, 6.0)
    assert results["random-2", "sgd"].epochs_to_original is None
    assert results["ours-2", "sam"].seconds_to_original is None  # no original with sam


def test_where_none_is_named_all_are() -> None:
    assert {one.status for one in found().values()} == {"named"}
    assert all(is_reported(name, list(found().values())) for name in FACTS)


def test_of_the_arms_that_are_not_named_the_best_of_each_optimizer_is_chosen() -> None:
    results = found(("original",))
    assert {name: one.status for name, one in results.items()} == {
        ("original", "sgd"): "named",
        ("ours-2", "sgd"): "chosen",
        ("random-2", "sgd"): "other",
        ("ours-2", "sam"): "chosen",
    }
    assert [name for name in FACTS if not is_reported(name, list(results.values()))] == [("random-2", "sgd")]
    assert {one.status for one in found(("ours-2",)).values()} == {"named", "other"}  # none is better than the named


def test_the_sentences_say_what_was_chosen_among_how_many() -> None:
    lines = sentences(list(found(("original",)).values()))
    assert "freely: original." in lines[0]
    assert "ours-2 with sgd was chosen among 3 arms" in lines[1]
    assert "ours-2 with sam was chosen among 1 arms" in lines[2]
    assert "other 1 are" in lines[3]


def test_without_a_validation_split_nothing_is_said_and_all_is_reported() -> None:
    plain = FACTS["original", "sgd"].model_copy(update={"validation_errors": [], "validation_by_epoch": []})
    assert validation_results({("original", "sgd"): plain}, ()) == []
    assert sentences([]) == []
    assert is_reported(("original", "sgd"), [])
