"""A validation split: nothing is trained on it or selected from it, and each epoch's error on it is kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydantic
import pytest

from latebloom.data.config import PerturbConfig
from latebloom.data.store import read_json
from latebloom.flows.cli.tables import print_errors, print_report
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.report.results import Report, in_percent
from latebloom.flows.report.validation import validation_table
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import SELECT, RetrainFacts, retrain_key
from latebloom.flows.stages.checks import check_inputs
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.loaders import images_of
from latebloom.flows.stages.training import arm_is_done
from latebloom.flows.stages.training_sets import images_for, training_set

Tiny = Callable[..., CompareConfig]
ARMS = ("original", "ours-3", "upsample-3", "original+random")
SPLIT = {"data.validation_fraction": 0.2, "arms": ARMS, "strong.coreset": {"fraction": 0.5}}


@pytest.fixture(scope="module")
def held_out(tiny: Tiny, story: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run with a validation split of 10 or so of 60 digits, and its config. Read only."""
    config = tiny(SPLIT)
    return SimpleNamespace(config=config, run=story.all_stages(tmp_path_factory.mktemp("held out") / "run", config))


def facts(run: RunFolder, arm: str) -> RetrainFacts:
    return run.record(retrain_key(arm, "sgd")).facts


def test_no_validation_image_is_trained_on_by_any_arm_or_selected(held_out: SimpleNamespace) -> None:
    run = RunContext(held_out.run, held_out.config)
    validation = run.splits.validation
    assert validation is not None
    assert len(validation) + len(run.splits.train) == 60
    kept_out = set(validation.sha256)
    assert len(kept_out) == len(validation) >= 10
    for arm in held_out.config.parsed_arms:
        images = images_for(run, {arm.name})
        for rows in training_set(run, arm, images).rows:
            assert not kept_out & {images.data.sha256[row] for row in rows}
    (outputs,) = run.early_arrays(0, "labels")
    assert outputs.tolist() == run.splits.train.labels.tolist()
    assert run.selected("cluster", 0).max() < len(run.splits.train)
    sources = run.plan["source_index"].to_numpy()
    assert len(sources)
    assert sources.max() < len(run.splits.train)
    assert all(count < len(run.splits.train) for count in held_out.run.record(SELECT).facts.slow)


def test_the_validation_error_of_each_epoch_is_kept(held_out: SimpleNamespace) -> None:
    validation = images_of(held_out.config).validation
    assert validation is not None
    for arm in ARMS:
        found, place = facts(held_out.run, arm), held_out.run.path / f"retrained/{arm}-sgd"
        with np.load(place / "predictions.npz") as arrays:
            assert arrays["test"].shape == (2, 50)
            predicted = arrays["validation"]
        assert (predicted.dtype, predicted.shape) == (np.int32, (2, len(validation)))
        assert (predicted != validation.labels).mean(1).tolist() == found.validation_errors
        assert [curve[-1] for curve in found.validation_by_epoch] == found.validation_errors
        assert [len(curve) for curve in found.validation_by_epoch] == [3, 3]
        assert [len(seconds) for seconds in found.epoch_seconds] == [3, 3]
        lines = [json.loads(line) for line in (place / "log/seed-1/log.jsonl").read_text().splitlines()]
        assert [line["validation_error"] for line in lines] == found.validation_by_epoch[1]


def test_without_a_validation_split_there_is_no_validation_error(pristine: RunFolder) -> None:
    found = facts(pristine, "original")
    assert (found.validation_errors, found.validation_by_epoch) == ([], [])
    assert [len(seconds) for seconds in found.epoch_seconds] == [3, 3]
    with np.load(pristine.path / "retrained/original-sgd/predictions.npz") as arrays:
        assert arrays.files == ["test"]


def test_the_report_has_the_test_error_of_what_was_named_and_of_what_validation_chose(
    held_out: SimpleNamespace, tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(held_out.run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    gather.write(run, held_out.config)
    report = Report.from_json(read_json(run.path / "report.json"))
    assert [one.arm for one in report.validation] == [arm.arm for arm in report.arms] == list(ARMS)
    assert report.data["validation"] == 60 - report.data["train"]
    assert "<h2>Validation</h2>" in (run.path / "report.html").read_text()

    gather.write(run, tiny(SPLIT | {"named": ("original",)}))
    report = Report.from_json(read_json(run.path / "report.json"))
    means = {one.arm: one.mean for one in report.validation}
    best = min(means, key=means.__getitem__)
    assert {arm.arm for arm in report.arms} == {"original", best}
    assert {one.arm for one in report.comparisons} <= {"original", best}
    assert list(means) == list(ARMS)
    for arm in set(ARMS) - {"original", best}:
        (row,) = [row for row in validation_table(report) if row[0] == arm]
        assert (row[3], row[6]) == ("–", "not reported")
    print_report(run.path, as_json=False)
    shown = capsys.readouterr().out.partition("Validation")[2].splitlines()
    for one in report.validation:  # the terminal has every validation error
        (line,) = [line for line in shown if line.startswith(f"{one.arm} ")]
        assert in_percent(one.mean, one.std) in line


def test_retrain_prints_no_test_error_that_something_could_be_chosen_by(
    held_out: SimpleNamespace, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    print_errors(held_out.run, held_out.config)
    assert all("validation error" in line and "test error" in line for line in capsys.readouterr().out.splitlines())
    print_errors(held_out.run, tiny(SPLIT | {"named": ("original",)}))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    means = {arm: np.mean(facts(held_out.run, arm).validation_errors) for arm in ARMS}
    shown = {"original", min(ARMS, key=means.__getitem__)}
    assert {arm for arm, line in lines.items() if "test error" in line} == shown
    assert all("validation error" in line for line in lines.values())


def test_arms_that_cannot_be_named_are_refused(tiny: Tiny) -> None:
    with pytest.raises(pydantic.ValidationError, match="named has ours-9, which is not among the arms"):
        tiny(SPLIT | {"named": ("ours-9",)})
    with pytest.raises(ValueError, match=r"named needs a validation split .*; give data\.validation_fraction too"):
        check_inputs(tiny(SPLIT | {"named": ("original",), "data.validation_fraction": 0.0}))


def test_another_split_trains_again_and_the_same_does_not(held_out: SimpleNamespace, tiny: Tiny) -> None:
    assert arm_is_done(held_out.run, held_out.config, "original", "sgd")
    for other in ({"data.validation_fraction": 0.3}, {"data.subset_seed": 1}):
        assert not arm_is_done(held_out.run, tiny(SPLIT | other), "original", "sgd")


def test_what_makes_training_harder_leaves_the_validation_split_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    plain = images_of(tiny(SPLIT))
    harder = images_of(tiny(SPLIT | {"perturb": PerturbConfig(noise="symmetric", imbalance="long_tailed")}))
    assert plain.validation is not None
    assert harder.validation is not None
    assert harder.validation.digest == plain.validation.digest
    assert harder.train.digest != plain.train.digest
