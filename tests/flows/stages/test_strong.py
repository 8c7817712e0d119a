"""Arms with strong copies: what they train on, what is told of them, and how they go on after an interruption."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from latebloom.data.sources.load import load
from latebloom.data.store import digest_file, read_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.report.results import Report
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import RetrainFacts, retrain_key
from latebloom.flows.stages import checks, fitting, training
from latebloom.flows.stages.fitting import fit_config_of
from latebloom.flows.stages.loaders import images_of
from latebloom.flows.stages.rounds import read_rounds
from latebloom.train.config import FitConfig

Tiny = Callable[..., CompareConfig]
RunCommand = Callable[..., Any]

REAL = 60  # of the tiny run
HALF = {"fraction": 0.5}
SEED_0 = "retrained/original-sgd/seed-0.safetensors"
ARMS = ("original", "original@original+random", "original+random", "original+all", "original+random@original")


def retrained(path: Path, config: CompareConfig) -> RunFolder:
    run = checks.open_run(config, str(path))
    for arm in config.arms:
        for optimizer in config.optimizers:
            training.retrain_arm(run, config, arm, optimizer)
    return run


@pytest.fixture(scope="module")
def direct(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Real images alone, in a folder that no other stage has been in."""
    config = tiny({"arms": ARMS, "strong.coreset": HALF, "strong.copies": 2, "strong.every": 2})
    return SimpleNamespace(config=config, run=retrained(tmp_path_factory.mktemp("direct") / "run", config))


def facts(run: RunFolder, arm: str, optimizer: str = "sgd") -> RetrainFacts:
    return run.record(retrain_key(arm, optimizer)).facts


# ------------------------------------------------------------------------------------------- what is trained


def test_what_an_optimizer_does_not_read_does_not_train_it_again() -> None:
    asked = FitConfig(rho=0.5, sam_batchnorm="both", sam_decay="ascent", lr=0.3)
    for optimizer in ("sgd", "adahessian"):
        assert fit_config_of(asked, optimizer) == FitConfig(optimizer=optimizer, lr=0.3)
    assert fit_config_of(asked, "sam") == asked.model_copy(update={"optimizer": "sam"})


def test_arms_of_real_images_need_no_other_stage(direct: SimpleNamespace) -> None:
    assert {path.name for path in direct.run.path.iterdir()} == {"config.json", "origin.json", "retrained", "stages"}
    assert all(facts(direct.run, arm).images_added == [0, 0] for arm in ARMS)
    assert all(facts(direct.run, arm).denoiser_calls == [0, 0] for arm in ARMS)


def test_strong_copies_make_epochs_longer_and_equal_steps_count_them(direct: SimpleNamespace) -> None:
    # Epochs of 60, of 60 + 2 * 30 and of 60 + 2 * 60 images, in batches of 16, three times.
    steps = {arm: facts(direct.run, arm).steps[0] for arm in ARMS}
    picked = facts(direct.run, "original+random").strong.selected
    assert steps["original"] == 3 * 4
    assert steps["original+all"] == 3 * 12
    assert steps["original+random"] == 3 * -(-(60 + 2 * int(picked)) // 16)
    assert steps["original@original+random"] == steps["original+random"]
    assert steps["original+random@original"] == steps["original"]


def test_an_arm_without_selection_keeps_its_augmentation_for_a_round_too(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = fitting.fit, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        drawn.append([kwargs["drawn"](epoch) for epoch in range(5)])
        return real(*args, **kwargs)

    monkeypatch.setattr(fitting, "fit", noting)
    arms = {"arms": ("original", "original@original+random", "original+random"), "seeds": 1, "train.crop_padding": 1}
    for strong, epochs in (
        ({"strong.redraw": "round", "strong.every": 2, "strong.warm_epochs": 1}, [0, 1, 1, 3, 3]),
        ({"strong.redraw": "epoch", "strong.every": 2, "strong.warm_epochs": 1}, [0, 1, 2, 3, 4]),
    ):
        drawn.clear()
        retrained(tmp_path / "run", tiny(arms | strong | {"strong.coreset": HALF}))  # another policy trains again
        assert drawn == [epochs] * 3
    drawn.clear()
    retrained(tmp_path / "run", tiny(arms | {"strong.every": 1, "strong.coreset": HALF}))
    assert len(drawn) == 1  # where each epoch draws anew, rounds are nothing to the arms without selection


def test_what_was_picked_and_copied_is_recorded(direct: SimpleNamespace) -> None:
    strong = facts(direct.run, "original+random").strong
    assert 25 <= strong.selected <= 35  # half of each class
    assert strong.selections == 2  # before epochs 1 and 3
    assert strong.selection_seconds > 0
    assert strong.strong_copies == pytest.approx(2 * strong.selected * 3, rel=0.1)
    assert strong.selected_synthetic is strong.pool_synthetic is None
    assert facts(direct.run, "original+all").strong.selected == REAL
    assert facts(direct.run, "original").strong is None


def test_strong_copies_are_trained_on(direct: SimpleNamespace) -> None:
    weights = {arm: digest_file(direct.run.path / f"retrained/{arm}-sgd/seed-0.safetensors") for arm in ARMS}
    assert len(set(weights.values())) == len(ARMS)


def test_a_setting_of_strong_copies_trains_only_their_arms_again(direct: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(direct.run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    changed = CompareConfig.model_validate(
        {**direct.config.model_dump(mode="json"), "strong": {"coreset": HALF, "copies": 2, "every": 3}}
    )
    done = {arm: training.arm_is_done(run, changed, arm, "sgd") for arm in ARMS}
    assert done == {arm: "+" not in arm.partition("@")[0] for arm in ARMS}  # the length of an epoch is the same


def test_the_log_of_an_arm_says_what_selection_took(direct: SimpleNamespace) -> None:
    text = (direct.run.path / "retrained/original+random-sgd/log/seed-0/log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["selected"] for line in lines] == [facts(direct.run, "original+random").strong.selected] * 3
    assert 0 < lines[0]["selection_seconds"] <= lines[-1]["selection_seconds"]


def test_an_interrupted_arm_goes_on_to_the_same_weights_and_one_log(
    direct: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = checks.open_run(direct.config, str(tmp_path / "run"))
    real, saved = fitting.save_fit, []

    def second_stops(*args: Any) -> None:
        real(*args)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(fitting, "save_fit", second_stops)
    with pytest.raises(KeyboardInterrupt):
        training.retrain_arm(run, direct.config, "original+random", "sgd")
    training.retrain_arm(run, direct.config, "original+random", "sgd")
    name = "retrained/original+random-sgd"
    for number in (0, 1):
        file = f"{name}/seed-{number}.safetensors"
        assert digest_file(run.path / file) == digest_file(direct.run.path / file)
        text = (run.path / f"{name}/log/seed-{number}/log.jsonl").read_text()
        assert [json.loads(line)["epoch"] for line in text.splitlines()] == [1, 2, 3]
        rounds = read_rounds(run.path / name, number)  # of which one was made before the interruption, one after
        assert rounds is not None
        assert rounds.epochs.tolist() == [0, 2]
        assert [len(one) for one in rounds.sets] == [int(facts(run, "original+random").strong.selected)] * 2
        file = f"{name}/selections-seed-{number}.npz"
        assert digest_file(run.path / file) == digest_file(direct.run.path / file)
    assert not (run.path / name / "rounds").exists()
    assert read_rounds(direct.run.path / "retrained/original+all-sgd", 0) is None  # which selects nothing
    ours, theirs = (facts(one, "original+random").strong for one in (run, direct.run))
    assert ours == theirs.model_copy(update={"selection_seconds": ours.selection_seconds})


@pytest.mark.parametrize("optimizer", ["sam", "adahessian"])
def test_other_optimizers_take_strong_copies(optimizer: str, tiny: Tiny, tmp_path: Path) -> None:
    changes = {"arms": ("original+all",), "optimizers": (optimizer,), "seeds": 1, "train.epochs": 1, "train.lr": 0.01}
    run = retrained(tmp_path / "run", tiny(changes))
    assert facts(run, "original+all", optimizer).steps == [8]  # of 120 images in batches of 16


# ------------------------------------------------------------------------------ on top of synthetic images


def test_strong_copies_are_of_synthetic_images_too(finished: RunFolder, tiny: Tiny) -> None:
    config = tiny({"arms": ("original", "ours-3", "ours-3+random"), "strong.coreset": HALF})
    training.retrain_arm(finished, config, "ours-3+random", "sgd")
    found = facts(finished, "ours-3+random")
    rows = [REAL + added for added in facts(finished, "ours-3").images_added]
    assert found.images_added == facts(finished, "ours-3").images_added
    assert found.strong.pool_synthetic == pytest.approx(np.mean([1 - REAL / n for n in rows]))
    assert 0.2 < found.strong.selected_synthetic < 0.8
    assert found.denoiser_calls == facts(finished, "ours-3").denoiser_calls
    gather.write(finished, config)
    report = Report.from_json(read_json(finished.path / "report.json"))
    told = " ".join(report.sentences)
    assert "ours-3+random against the same images without strong copies (ours-3)" in told
    assert "% are synthetic, as are" in told


# ------------------------------------------------------------------------------------------------ the report


def test_a_run_without_early_classifiers_has_a_report(direct: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(direct.run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    checks.check_folder(direct.config, str(run.path), "report")
    page = gather.write(run, direct.config).read_text()
    report = Report.from_json(read_json(run.path / "report.json"))
    assert [arm.arm for arm in report.arms] == list(ARMS)
    assert report.selections == report.class_slow == report.early_errors == []
    assert {stage.stage for stage in report.stages} == {f"retrain-{arm}-sgd" for arm in ARMS}
    told = " ".join(report.sentences)
    assert "(original@original+random)" in told
    assert "strong copies of every image (original+all)" in told
    assert "s of a training that takes" in told
    assert "selection, s" in page
    assert "The slow set" not in page


def test_columns_of_strong_copies_are_there_only_where_an_arm_has_some(pristine: RunFolder) -> None:
    assert "selection, s" not in (pristine.path / "report.html").read_text()


# ------------------------------------------------------------------------------------------ weights from a file


def test_weights_from_a_file_are_where_training_starts(pristine: RunFolder, tiny: Tiny, tmp_path: Path) -> None:
    weights = pristine.path / SEED_0
    config = tiny({"arms": ("original",), "classifier.weights": str(weights), "seeds": 1, "train.lr": 1e-6})
    run = retrained(tmp_path / "run", config)
    begun, ended = (load_file(file)["conv1.weight"] for file in (weights, run.path / SEED_0))
    np.testing.assert_allclose(begun, ended, atol=1e-3)  # so small a rate moves little
    assert read_json(run.path / "retrained/original-sgd/config.json")["classifier"]["weights"] == digest_file(weights)


def test_a_file_that_changed_is_other_weights(pristine: RunFolder, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    shutil.copy(pristine.path / SEED_0, file)
    config = tiny({"arms": ("original",), "classifier.weights": str(file), "seeds": 1, "train.epochs": 1})
    run = retrained(tmp_path / "run", config)
    assert training.arm_is_done(run, config, "original", "sgd")
    shutil.copy(pristine.path / "retrained/original-sgd/seed-1.safetensors", file)
    assert not training.arm_is_done(run, config, "original", "sgd")


# --------------------------------------------------------------------------------- a training set made harder


@pytest.fixture(scope="module")
def harder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    changes = {"perturb.noise": "symmetric", "perturb.noise_fraction": 0.25, "perturb.imbalance": "long_tailed"}
    changes |= {"perturb.imbalance_factor": 3, "strong.coreset": HALF, "seeds": 1}
    config = tiny({**changes, "arms": ("original", "original+random")})
    run = retrained(tmp_path_factory.mktemp("harder") / "run", config)
    return SimpleNamespace(config=config, run=run)


def test_training_images_are_made_harder_and_test_images_are_not(harder: SimpleNamespace) -> None:
    plain, now = load(harder.config.data), images_of(harder.config)
    with np.load(harder.run.path / "perturbed.npz") as arrays:
        kept, flipped = arrays["kept"], arrays["flipped"]
    assert len(now.train) == len(kept) < len(plain.train)
    assert (now.train.pixels() == plain.train.pixels(kept)).all()
    assert np.flatnonzero(now.train.labels != plain.train.labels[kept]).tolist() == flipped.tolist()
    assert len(flipped) == round(0.25 * len(kept))
    assert now.test.digest == plain.test.digest
    inputs = read_json(harder.run.path / "retrained/original-sgd/config.json")
    assert inputs["train"] == now.train.digest != plain.train.digest


def test_every_stage_sees_the_harder_set(harder: SimpleNamespace, tmp_path: Path) -> None:
    run = checks.open_run(harder.config, str(tmp_path / "run"))
    training.train_early(run, harder.config)
    with np.load(run.path / "early/seed-0/outputs.npz") as outputs:
        assert outputs["labels"].tolist() == images_of(harder.config).train.labels.tolist()


def test_the_report_says_that_the_set_was_made_harder(harder: SimpleNamespace) -> None:
    gather.write(harder.run, harder.config)
    report = Report.from_json(read_json(harder.run.path / "report.json"))
    train = images_of(harder.config).train
    most, least = train.class_counts().max(), train.class_counts().min()
    wrong = round(0.25 * len(train))
    assert report.warnings[0] == (
        f"The training images were made harder before anything was trained: classes were made unequal (long_tailed: "
        f"{most} to {least} images a class, {len(train)} in all) and {wrong} of {len(train)} labels "
        f"({wrong / len(train):.0%}) are wrong on purpose (symmetric noise)."
    )
    assert report.data["wrong_labels"] == wrong
    assert sum(report.data["images_of_each_class"].values()) == len(train)


def test_a_run_with_its_images_as_they_came_has_no_such_file(
    harder: SimpleNamespace, tiny: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(harder.run.path, tmp_path / "run")
    checks.open_run(tiny(), str(tmp_path / "run"))
    assert not (tmp_path / "run/perturbed.npz").exists()


# ------------------------------------------------------------------------- several processes that train together


def test_a_process_that_does_not_lead_trains_and_neither_writes_nor_talks(
    direct: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    real, trained = fitting.fit, []

    def fit(*args: Any, **more: Any) -> Any:
        trained.append(1)
        return real(*args, **more)

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(fitting, "save_fit", None)  # not to be called
    shutil.copytree(direct.run.path / "retrained/original-sgd", tmp_path / "retrained/original-sgd")
    (tmp_path / "stages").mkdir()
    shutil.copy(direct.run.path / "stages/retrain-original-sgd.json", tmp_path / "stages")
    config = direct.config.model_copy(update={"arms": ("original", "original+all")})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    training.follow(RunFolder(tmp_path), config)
    assert trained == [1]  # the arm that is done is skipped by all
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("compare", "digits"),
            "only `latebloom retrain` trains in several processes; start `latebloom compare` alone",
        ),
        (("retrain", "digits", "--arms", "original", "--workers", "2"), "give --workers 1"),
        (("retrain", "digits", "--arms", "original", "--optimizers", "adahessian"), "and no adahessian"),
    ],
)
def test_what_is_not_for_several_processes_is_said_once(
    words: tuple[str, ...],
    error: str,
    run_command: RunCommand,
    fake_flows: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shown = run_command(*words, "--out", tmp_path / "run")
        assert shown.code == 1
        assert (error in shown.err) == (rank == "0")
        assert rank == "0" or shown.err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # two processes, each with a start of seconds
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    words = ["retrain", "digits", "--train-limit", "60", "--test-limit", "50", "--epochs", "2", "--seeds", "1"]
    words += [
        "--optimizers",
        "sgd",
        "--arms",
        "original,original+random",
        "--strong-fraction",
        "0.5",
        "--device",
        "cpu",
    ]
    for name, launch in (
        ("alone", []),
        ("team", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        command = [sys.executable, *launch, "-m", "latebloom.flows.cli.app", *words, "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3  # said once: two arms and the folder
    for arm in ("original", "original+random"):
        ours, theirs = (facts(RunFolder(tmp_path / name), arm) for name in ("team", "alone"))
        assert ours.steps == theirs.steps
        np.testing.assert_allclose(ours.train_error, theirs.train_error, atol=0.2)  # BatchNorm sees halves
