"""A scout selects once for all arms of its seed; nothing outside the selection is trained on after it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latebloom.data.store import digest_file, read_json
from latebloom.flows.artifacts.pages import stage_page
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.report.results import Report
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import SCOUT, RetrainFacts, retrain_key
from latebloom.flows.stages import checks, fitting, scout, training
from latebloom.flows.stages.loaders import images_of
from latebloom.flows.stages.rounds import read_rounds
from latebloom.train.augment.mixing import EpochRows, Mixer
from latebloom.train.config import CoresetConfig
from latebloom.train.selection.coreset import Evidence, select_coreset

Tiny = Callable[..., CompareConfig]
ARMS = ("original+max_loss", "original+craig", "original+forgetting")
SCOUT_OF = {"model": "small-cnn", "epochs": 2}
ALONE = {"strong.main": "coreset", "strong.copies": 0, "strong.coreset": {"fraction": 0.3}, "strong.scout": SCOUT_OF}


@pytest.fixture(scope="module")
def scouted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three selectors by one scout, and what each epoch of each training consisted of, by arm."""
    config = tiny({"arms": ARMS, **ALONE})
    run = checks.open_run(config, str(tmp_path_factory.mktemp("scouted") / "run"))
    checks.check_inputs(config, "retrain")
    scout.train_scouts(run, config)
    trained: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    real = Mixer.epoch

    def seen(mixer: Mixer, *args: object) -> EpochRows:
        plan = real(mixer, *args)  # type: ignore[arg-type]
        assert mixer.selection
        trained[f"original+{mixer.config.selector}"].append((plan.rows, mixer.selection[1]))
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixer, "epoch", seen)
        for arm in ARMS:
            trained[arm] = []
            training.retrain_arm(run, config, arm, "sgd")
    return SimpleNamespace(config=config, run=run, trained=trained)


def facts(run: RunFolder, arm: str) -> RetrainFacts:
    return run.record(retrain_key(arm, "sgd")).facts


def test_nothing_outside_the_selection_is_trained_on(scouted: SimpleNamespace) -> None:
    for arm in ARMS:
        assert len(scouted.trained[arm]) == 2 * 3  # seeds and epochs
        for rows, selected in scouted.trained[arm]:
            assert sorted(rows) == sorted(selected)
            assert len(rows) < 60
        strong = facts(scouted.run, arm).strong
        assert strong.selections == 1


def test_the_arms_of_a_seed_share_its_scout(scouted: SimpleNamespace) -> None:
    weights = [digest_file(scouted.run.path / f"scout/seed-{number}.safetensors") for number in (0, 1)]
    assert len(set(weights)) == 2
    for arm in ARMS:
        assert facts(scouted.run, arm).scouts == weights
    record = scouted.run.record(SCOUT).facts
    assert (record.model, record.epochs, len(record.errors)) == ("small-cnn", 2, 2)


def test_each_arm_has_the_selection_by_its_scouts_outputs(scouted: SimpleNamespace) -> None:
    with np.load(scouted.run.path / "scout/seed-1.npz") as arrays:
        logits, features, forgotten = (arrays[name] for name in ("logits", "features", "forgotten"))
    labels = images_of(scouted.config).train.labels
    evidence = Evidence(logits, labels, features, forgotten=forgotten)
    for arm in ARMS:
        expected = select_coreset(evidence, CoresetConfig(fraction=0.3, method=arm.partition("+")[2]), 0)
        rounds = read_rounds(scouted.run.path / f"retrained/{arm}-sgd", 1)
        assert rounds is not None
        assert rounds.epochs.tolist() == [0]
        np.testing.assert_array_equal(rounds.indices, expected.indices)
        np.testing.assert_array_equal(rounds.gamma, expected.weights)
        np.testing.assert_array_equal(rounds.owner, [] if expected.owner is None else expected.owner)


def test_a_scout_is_trained_once_and_another_one_again(scouted: SimpleNamespace, tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(scouted.run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    scout.train_scouts(run, scouted.config)
    assert run.record(SCOUT).skipped
    longer = tiny({"arms": ARMS, **ALONE, "strong.scout": {**SCOUT_OF, "epochs": 3}})
    assert not training.arm_is_done(run, longer, "original+craig", "sgd")
    scout.train_scouts(run, longer)
    assert not run.record(SCOUT).skipped


def test_a_scout_may_be_another_network(tiny: Tiny, tmp_path: Path) -> None:
    other = {"strong.scout": {"model": "resnet20", "epochs": 1}, "seeds": 1}
    config = tiny({"arms": ("original", "original+craig"), **ALONE, **other})
    run = checks.open_run(config, str(tmp_path / "run"))
    assert config.wants_scout
    scout.train_scouts(run, config)
    for arm in config.arms:
        training.retrain_arm(run, config, arm, "sgd")
    assert facts(run, "original").strong is None
    assert facts(run, "original+craig").strong.selections == 1


def test_a_scout_selects_of_synthetic_images_too(finished: RunFolder, tiny: Tiny) -> None:
    config = tiny({"arms": ("original", "ours-3", "ours-3+craig"), **ALONE})
    scout.train_scouts(finished, config)
    training.retrain_arm(finished, config, "ours-3+craig", "sgd")
    strong = facts(finished, "ours-3+craig").strong
    assert 0 < strong.selected_synthetic < 1
    rounds = read_rounds(finished.path / "retrained/ours-3+craig-sgd", 0)
    assert rounds is not None
    assert rounds.indices.max() >= 60
    forgetting = tiny({"arms": ("original", "ours-3+forgetting"), **ALONE})
    with pytest.raises(ValueError, match=r"arm ours-3\+forgetting selects by what a scout forgot"):
        checks.check_inputs(forgetting, "retrain")


def test_a_process_that_does_not_lead_trains_the_scouts_too_and_writes_nothing(
    scouted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scouted.run.path, tmp_path / "run")
    run, trained = RunFolder(tmp_path / "run"), []
    for stage in ("scout", "retrain-original+max_loss-sgd"):
        (run.path / "stages" / f"{stage}.json").unlink()
    real = fitting.fit

    def fit(*args: Any, **more: Any) -> Any:
        trained.append(1)
        return real(*args, **more)

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    training.follow(run, scouted.config)
    assert trained == [1, 1]  # scouts and the arm that is not done, each for all seeds together
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_the_server_is_shown_what_the_scouts_are(scouted: SimpleNamespace) -> None:
    page = stage_page(scouted.run, SCOUT)
    assert "| network | small-cnn |" in page
    assert "| epochs | 2 |" in page


def test_the_report_has_what_the_scouts_cost(scouted: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(scouted.run.path, tmp_path / "run")
    gather.write(RunFolder(tmp_path / "run"), scouted.config)
    report = Report.from_json(read_json(tmp_path / "run/report.json"))
    assert [stage.seconds > 0 for stage in report.stages if stage.stage == "scout"] == [True]
    assert {one["arm"]: one["rounds"] for one in report.selectors["usage"]} == dict.fromkeys(ARMS, 1)


def test_warm_epochs_outside_a_given_selection_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="warm_epochs=2 with a scout"):
        tiny({"arms": ("original+craig",), **ALONE, "strong.warm_epochs": 2})
    alone = {"strong.main": "coreset", "strong.copies": 0, "strong.warm_epochs": 2}
    with pytest.raises(ValueError, match="warm_epochs=2 would train on examples outside the file's"):
        tiny({"arms": ("original+file",), **alone, "strong.file": "coreset-craig.npz"})
    assert not tiny({"arms": ("original", "original+all"), "strong.scout": SCOUT_OF}).wants_scout
