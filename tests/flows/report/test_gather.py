import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import load
from latebloom.data.store import read_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.report.details import confusions
from latebloom.flows.report.pictures import drawn
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import EARLY, GENERATE, PLAN, SELECT, EarlyFacts, retrain_key
from latebloom.flows.stages import planning
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.loaders import generator_of, images_of

Tiny = Callable[..., CompareConfig]


def images(counts: list[int]) -> LabeledImages:
    """So many images of class a, b, ..."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return LabeledImages(np.zeros((len(labels), 8, 8, 1), np.uint8), labels, tuple("abcdef"[: len(counts)]), "hand")


def sets(*members: list[int]) -> list[np.ndarray]:
    return [np.array(rows, np.int64) for rows in members]


# ------------------------------------------------------------------------------------------------- overlap


def test_the_overlap_is_the_mean_over_all_pairs_of_seeds() -> None:
    # {0,1} and {1,2} share 1 of 3; {0,1} and {0,1} all; {1,2} and {0,1} 1 of 3.
    assert gather._mean_jaccard(sets([0, 1], [1, 2], [0, 1])) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert gather._mean_jaccard(sets([0, 1], [2, 3])) == 0


def test_one_seed_overlaps_with_nothing() -> None:
    assert gather._mean_jaccard(sets([0, 1])) is None
    assert gather._chance_jaccard(sets([0, 1]), images([2, 2]), 0) is None


def test_chance_keeps_to_the_classes() -> None:
    # Both of a; both of a and both of b: whatever is drawn, they share 2 of 4.
    assert gather._chance_jaccard(sets([0, 1], [0, 1, 2, 3]), images([2, 2]), 0) == 0.5
    # One of the single a, whatever is drawn: 1 of 1.
    assert gather._chance_jaccard(sets([0], [0]), images([1, 50]), 0) == 1.0


def test_chance_is_what_sets_at_random_share() -> None:
    # Half of 1,000 twice: 250 shared of 750. A drawing is off by 0.01, the mean of 20 by 0.003.
    rows = list(range(500))
    chance = gather._chance_jaccard(sets(rows, rows), images([1000, 1]), 0)
    assert chance == pytest.approx(1 / 3, abs=0.015)
    assert chance == gather._chance_jaccard(sets(rows, rows), images([1000, 1]), 0)  # the same report every time


# ------------------------------------------------------------------------------------------------- classes, levels


def test_losses_of_a_class_are_means_over_the_seeds_that_have_them() -> None:
    nan = float("nan")
    losses = [[[0.2, 1.0], [0.5, nan], [0.4, nan]], [[0.4, 2.0], [0.7, 3.0], [0.6, nan]]]
    rows = gather._classes(images([2, 2, 1]), sets([0, 1], [1, 2]), [np.array(one) for one in losses])
    assert rows == [
        # name, images, slow images (mean over seeds), mean loss of the fast, of the slow
        ["a", 2, 1.5, pytest.approx(0.3), pytest.approx(1.5)],
        ["b", 2, 0.5, pytest.approx(0.6), pytest.approx(3.0)],
        ["c", 1, 0.0, pytest.approx(0.5), None],  # no seed found a slow half: no loss, rather than 0
    ]


def test_a_level_is_summed_up_by_hand() -> None:
    columns: dict[str, list[Any]] = {
        "level_steps": [8, 8, 8, 20],
        "level_grid": [20, 20, 20, 20],
        "log_snr": [0.6, 0.6, 0.6, -np.inf],
        "state": ["ok", "flat", "ok", "off_label"],
        "label_probability": [0.9, 0.3, 0.6, 0.001],
        "reference_distance": [10.0, 20.0, 60.0, 70.0],
    }
    near, noise = gather._by_level(pa.table(columns))
    assert (near.level, near.log_snr, near.images, near.states) == ("8 of 20", 0.6, 3, {"flat": 1, "ok": 2})
    assert near.label_probability == pytest.approx(0.6)
    assert near.reference_distance == pytest.approx(30)
    assert (noise.level, noise.log_snr, noise.states) == ("20 of 20", None, {"off_label": 1})


def test_errors_of_slow_and_fast_are_shares_of_each() -> None:
    wrong = np.array([True, True, False, False, True])
    found = gather._selection(1, np.array([0, 2]), wrong)
    assert (found.seed, found.count, found.fraction) == (1, 2, 0.4)
    assert (found.slow_error, found.fast_error) == (pytest.approx(1 / 2), pytest.approx(2 / 3))
    none, everything = (gather._selection(0, rows, wrong) for rows in sets([], list(range(5))))
    assert (none.fraction, none.slow_error, none.fast_error) == (0, 0, 0.6)  # an empty half has no error
    assert (everything.fraction, everything.slow_error, everything.fast_error) == (1, 0.6, 0)


# ------------------------------------------------------------------------------------------------- warnings


def generator_warnings(run: RunFolder, config: CompareConfig) -> list[str]:
    return gather._generator_warnings(config, run.record(PLAN).facts.generator)


@pytest.mark.parametrize(
    ("own", "others", "warned"),
    [(60, 0, True), (1, 0, True), (60, 1, False), (0, 40, False)],
    ids=["all of the training images", "one of them", "all and one other", "others only"],
)
def test_a_generator_that_saw_the_training_images_only_is_warned_of(
    own: int, others: int, warned: bool, finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = images_of(tiny()).train
    fake = copy.copy(generator_of(tiny()))
    fake.trained_on = frozenset([*train.sha256[:own], *(f"{number:064d}" for number in range(others))])
    monkeypatch.setattr(planning, "generator_of", lambda _: fake)
    (finished.path / "stages" / "plan.json").unlink()
    planning.plan_images(finished, tiny())
    assert finished.record(PLAN).facts.generator.seen == own
    lines = generator_warnings(finished, tiny())
    assert len(lines) == warned
    assert all("seen only the classifier's own training images: no gain is to be expected" in line for line in lines)


def test_the_shipped_generator_is_said_to_stand_in_for_a_pretrained_one(pristine: RunFolder, tiny: Tiny) -> None:
    assert generator_warnings(pristine, tiny()) == []
    (line,) = generator_warnings(pristine, tiny({"generate.generator": "digits"}))
    assert "trained by this project on 800 digits that are neither training nor test images" in line


@pytest.mark.parametrize(
    ("errors", "epoch", "warned"),
    [
        ([[0.5, 0.09], [0.5, 0.10]], 2, "9.5%"),  # the mean of the seeds, at the separating epoch
        ([[0.5, 0.09], [0.5, 0.11]], 2, None),  # 10 % is not under 10 %
        ([[0.5, 0.01], [0.5, 0.01]], 1, None),
    ],
)
def test_early_classifiers_that_know_too_much_already_are_warned_of(
    errors: list[list[float]], epoch: int, warned: str | None
) -> None:
    early = EarlyFacts(separating_epoch=epoch, by_knee=False, errors=errors, losses=[])
    lines = gather._early_warnings(early)
    assert len(lines) == (warned is not None)
    assert all(f"a training error of {warned} at the separating epoch" in line for line in lines)


# ------------------------------------------------------------------------------------------------- the whole report


@pytest.fixture(scope="module")
def reported(many_arms: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A copy of the run of all arms with its report."""
    run = RunFolder(tmp_path_factory.mktemp("reported") / "run")
    shutil.copytree(many_arms.run.path, run.path)
    page = gather.write(run, many_arms.config)
    return SimpleNamespace(run=run, config=many_arms.config, page=page, json=read_json(run.path / "report.json"))


def test_a_report_gathers_what_the_stages_recorded(reported: SimpleNamespace) -> None:
    report, run = reported.json, reported.run
    assert reported.page == run.path / "report.html"
    assert report["data"] == {
        "source": "digits",
        "train": 60,
        "test": 50,
        "classes": list("0123456789"),
        "image_shape": [8, 8, 1],
    }
    assert [arm["arm"] for arm in report["arms"]] == list(reported.config.arms)
    for arm in report["arms"]:
        facts = run.record(retrain_key(arm["arm"], "sgd")).facts
        assert (arm["errors"], arm["train_error"]) == (facts.errors, facts.train_error)
        assert arm["images_added"] == np.mean(facts.images_added)
    early = run.record(EARLY).facts
    assert (report["separating_epoch"], report["separating_epoch_chosen"]) == (1, False)
    assert report["early_errors"] == early.errors
    assert [one["count"] for one in report["selections"]] == run.record(SELECT).facts.slow
    assert report["config"] == reported.config.model_dump(mode="json")
    assert [stage["stage"] for stage in report["stages"]] == [
        "early",
        "select",
        "plan",
        "generate",
        *(f"retrain-{arm}-sgd" for arm in reported.config.arms),
    ]


def test_a_report_says_what_was_made_and_what_it_cost(reported: SimpleNamespace) -> None:
    made, report = reported.run.record(GENERATE), reported.json
    folder = SyntheticFolder(reported.run.path / "synthetic")
    manifest = folder.manifest()
    quartiles = report["synthetic"].pop("dropped_by_quartile_of_loss")
    assert set(quartiles) == {"fastest", "second", "third", "slowest"}
    assert sum(quartile["made"] for quartile in quartiles.values()) == manifest["rows"]
    assert report["synthetic"] == {
        "rows": manifest["rows"],
        "states": manifest["states"],
        "digest": manifest["digest"],
        "bytes": sum(file.stat().st_size for file in folder.path.glob("*.parquet")),
        "denoiser_calls": made.facts.denoiser_calls,
        "seconds": made.seconds,
    }
    by_arm = {arm["arm"]: arm["generation_seconds"] for arm in report["arms"]}
    calls = {arm: np.mean(reported.run.record(retrain_key(arm, "sgd")).facts.denoiser_calls) for arm in by_arm}
    for arm, seconds in by_arm.items():
        assert seconds == pytest.approx(made.seconds * calls[arm] / made.facts.denoiser_calls), arm
    assert by_arm["original"] == by_arm["upsample-3"] == 0


def test_a_report_counts_what_all_seeds_make_beside_what_one_uses(reported: SimpleNamespace) -> None:
    run = RunContext(reported.run, reported.config)
    costs = {cost["arm"]: cost for cost in reported.json["generation"]}
    by_arm = {arm["arm"]: arm["generation_seconds"] for arm in reported.json["arms"]}
    assert "original" not in costs
    sets = [set(run.selected("cluster", number).tolist()) for number in range(reported.config.seeds)]
    assert costs["ours-3"]["images"] == np.mean([2 * len(rows) for rows in sets])
    assert costs["ours-3"]["images_of_all_seeds"] == 2 * len(set.union(*sets))
    assert len(set.union(*sets)) > len(sets[0])  # the seeds do not agree: all make more than one uses
    for name, cost in costs.items():
        assert cost["seconds"] == pytest.approx(by_arm[name]), name
        assert cost["seconds_of_all_seeds"] * cost["images"] == pytest.approx(
            cost["seconds"] * cost["images_of_all_seeds"]
        )


def test_a_report_breaks_errors_down_by_class_as_the_predictions_have_them(reported: SimpleNamespace) -> None:
    test = load(reported.config.data).test
    for arm in reported.json["arms"]:
        with np.load(reported.run.path / "retrained" / f"{arm['arm']}-sgd" / "predictions.npz") as kept:
            wrong = kept["test"] != test.labels
        assert wrong.mean(1).tolist() == pytest.approx(arm["errors"])
        for label, error in enumerate(arm["class_errors"]):
            assert error == pytest.approx(wrong[:, test.labels == label].mean())
    assert reported.json["confusions"][0]["arm"] == "original"
    for one in reported.json["confusions"]:
        matrix = np.array(one["matrix"])
        assert matrix.sum(1).tolist() == pytest.approx(test.class_counts().tolist())
        (mean,) = (np.mean(arm["errors"]) for arm in reported.json["arms"] if arm["arm"] == one["arm"])
        assert 1 - matrix.trace() / matrix.sum() == pytest.approx(mean)
    assert all(one["images_low"] is not None for one in reported.json["comparisons"])


def test_a_run_that_kept_no_predictions_has_a_report(reported: SimpleNamespace, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(reported.run.path, run.path)
    for file in run.path.glob("retrained/*/predictions.npz"):
        file.unlink()
    gather.write(run, reported.config)
    report = read_json(run.path / "report.json")
    assert report["confusions"] == []
    assert all(arm["class_errors"] == [] for arm in report["arms"])
    assert all(one["images_low"] is None and one["ci_low"] is not None for one in report["comparisons"])


def test_many_classes_have_the_pairs_that_are_confused_most() -> None:
    labels = np.arange(40)
    test = LabeledImages(np.zeros((40, 8, 8, 1), np.uint8), labels, tuple(f"class {n}" for n in range(40)), "hand")
    predicted = np.stack([labels, labels])
    predicted[:, 7], predicted[0, 3] = 9, 5
    (one,) = confusions({("original", "sgd"): predicted}, test)
    assert one.matrix == []
    assert one.pairs == [["class 7", "class 9", 1.0], ["class 3", "class 5", 0.5]]


def test_a_report_names_the_levels_deepest_last_and_pure_noise_without_a_number(reported: SimpleNamespace) -> None:
    levels = {level["level"]: level for level in reported.json["levels"]}
    assert list(levels) == ["3 of 10", "5 of 10", "10 of 10"]
    assert levels["3 of 10"]["log_snr"] > levels["5 of 10"]["log_snr"]
    assert levels["10 of 10"]["log_snr"] is None
    assert sum(level["images"] for level in levels.values()) == reported.json["synthetic"]["rows"]


def test_a_report_says_whether_the_generator_saw_the_training_images(reported: SimpleNamespace) -> None:
    assert reported.json["generator"]["name"] == "tiny"
    assert reported.json["generator"]["trained_on"] == "40 digits"
    assert reported.json["generator_seen"] == 0  # its 40 are of those kept apart


def test_the_pictures_are_of_the_first_seeds_slow_and_fast_images(reported: SimpleNamespace) -> None:
    train = load(reported.config.data).train
    run = RunContext(reported.run, reported.config)
    slow = run.selected("cluster", 0)
    table = SyntheticFolder(reported.run.path / "synthetic").rows()
    pictures = drawn(run, slow, table)
    is_slow = {train.pixels(np.array([row]))[0].tobytes() for row in slow}
    assert len(pictures.slow) == len(pictures.fast) == 24
    assert all(one.pixels.tobytes() in is_slow for one in pictures.slow)
    assert not any(one.pixels.tobytes() in is_slow for one in pictures.fast)
    assert len(pictures.contact) == 12
    for row in pictures.contact:
        number = train.names.index(row.name)
        assert number in slow
        assert row.caption == train.class_names[train.labels[number]]
        assert row.reference.tobytes() == train.pixels(np.array([number]))[0].tobytes()
        assert [level for level, _, _ in row.variants] == ["3 of 10", "5 of 10", "10 of 10"]
        for level, state, image in row.variants:
            (item,) = (
                item
                for item in table.to_pylist()
                if item["source_index"] == number and f"{item['level_steps']} of 10" == level
            )
            assert state == item["state"]
            assert image.shape == (8, 8, 1)
    assert [cluster.class_name for cluster in pictures.clusters] == list("0123456789")
    for label, cluster in enumerate(pictures.clusters):
        assert cluster.points.shape == (6, 2)
        assert cluster.slow.sum() == (train.labels[slow] == label).sum()


def test_a_report_of_a_run_that_is_not_finished_names_the_stage(finished: RunFolder, tiny: Tiny) -> None:
    (finished.path / "stages/retrain-ours-3-sgd.json").unlink()
    with pytest.raises(ValueError, match="no finished stage 'retrain-ours-3-sgd'"):
        gather.write(finished, tiny())
