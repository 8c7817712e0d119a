"""`latebloom coreset`: what it picks from, by whom, and what it writes."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latebloom.data.sources.load import load
from latebloom.data.store import digest_file, read_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import coreset_key
from latebloom.flows.run.resolve import resolve_coreset
from latebloom.flows.stages import coreset
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.coreset import CoresetRunConfig, check_coreset, write_coreset
from latebloom.flows.stages.loaders import images_of
from latebloom.train.evaluate import features_of
from latebloom.train.selection.coreset import CoresetConfig, Evidence, select_coreset

Tiny = Callable[..., CompareConfig]
RunCommand = Callable[..., Any]

PLAIN: dict[str, Any] = {
    "data": {"source": "digits", "train_limit": 60, "test_limit": 50},
    "classifier": {"model": "small-cnn", "width": 4},
    "train": {"epochs": 2, "batch_size": 16, "lr": 0.05, "crop_padding": 0, "flip": False},
    "device": "cpu",
}


def asked(method: str, **more: Any) -> CoresetRunConfig:
    return CoresetRunConfig(**{**PLAIN, "coreset": {"method": method, "fraction": 0.2}, **more})


def of_run(run: RunFolder, method: str, **more: Any) -> CoresetRunConfig:
    return asked(method, **{"run": str(run.path), **more})


def arrays_of(run: RunFolder, method: str) -> dict[str, np.ndarray]:
    with np.load(run.path / f"coreset-{method}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """CRAIG by a classifier that was trained for it."""
    run, config = RunFolder(tmp_path_factory.mktemp("coreset")), asked("craig")
    check_coreset(config)
    return SimpleNamespace(run=run, config=config, told=write_coreset(run, config).model_dump(mode="json"))


# ------------------------------------------------------------------------------------------------ what is written


def test_picks_are_rows_with_labels_and_weights_class_after_class(trained: SimpleNamespace) -> None:
    arrays, train = arrays_of(trained.run, "craig"), load(trained.config.data).train
    indices, labels = arrays["indices"], arrays["labels"]
    assert set(arrays) == {"indices", "labels", "weights", "source", "sha256", "names", "owner"}
    assert len(indices) == len(set(indices.tolist())) == 12  # a fifth of 60
    assert labels.tolist() == train.labels[indices].tolist() == sorted(labels.tolist())
    assert set(arrays["source"].tolist()) == {"real"}
    assert np.bincount(labels, arrays["weights"], 10).tolist() == train.class_counts().tolist()  # gamma
    owner = arrays["owner"]  # of every image, the selected one of its class that stands for it
    assert train.labels[owner].tolist() == train.labels.tolist()
    assert np.bincount(owner, minlength=60)[indices].tolist() == arrays["weights"].tolist()


def test_the_record_says_how_and_by_whom(trained: SimpleNamespace) -> None:
    told = read_json(trained.run.path / "coreset-craig.json")
    assert told == trained.told
    assert told["method"] == told["coreset"]["method"] == "craig"
    assert told["data"] == load(trained.config.data).train.digest
    assert told["weights"] == [digest_file(trained.run.path / "coreset/others/seed-0.safetensors")]
    assert (told["images"], told["synthetic_images"], told["selected"]) == (60, 0, 12)
    assert set(told["seconds"]) == {"training", "forward_pass", "selection"}
    assert min(told["seconds"].values()) > 0
    assert [row["selected"] for row in told["classes"]] == np.bincount(
        arrays_of(trained.run, "craig")["labels"]
    ).tolist()
    assert sum(row["weight"] for row in told["classes"]) == 60


def test_the_second_method_looks_by_the_same_classifier_and_the_first_is_not_picked_again(
    trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "fit_all", None)  # not to be called
    told = write_coreset(trained.run, asked("max_loss"))
    assert told.weights == trained.told["weights"]
    arrays, labels = arrays_of(trained.run, "max_loss"), load(trained.config.data).train.labels
    assert arrays["scores"].shape == (60,)  # of all images, from which any smaller or larger selection follows
    for label in range(10):
        own, selected = np.flatnonzero(labels == label), arrays["indices"][arrays["labels"] == label]
        assert own[np.argsort(-arrays["scores"][own], kind="stable")][: len(selected)].tolist() == selected.tolist()
    assert not trained.run.record(coreset_key("craig")).skipped
    monkeypatch.setattr(coreset, "select_coreset", None)
    assert write_coreset(trained.run, trained.config).model_dump(mode="json") == trained.told
    assert trained.run.record(coreset_key("craig")).skipped


def test_coverage_and_gradient_error_are_what_they_say() -> None:
    # Two classes with two images each: at logits (0, 0) and label 0 the gradient is (-1/2, 1/2), and so on.
    logits = np.array([[0, 0], [50, 0], [0, 0], [0, 50]], np.float32)
    evidence = Evidence(logits, np.array([0, 0, 1, 1]), np.zeros((4, 1), np.float32))
    half = math.sqrt(0.5)  # length of (-1/2, 1/2)
    hard = SimpleNamespace(indices=np.array([0, 2]), weights=np.array([2, 2], np.float32))
    found = coreset._objective(evidence, hard)
    assert found.coverage == pytest.approx(half / 2)  # the easy ones are that far from the hard ones
    assert found.gradient_error == pytest.approx(0)  # both classes' gradients cancel
    one = SimpleNamespace(indices=np.array([0]), weights=np.array([4], np.float32))
    found = coreset._objective(evidence, one)
    assert found.coverage == pytest.approx(half / 2)  # of its class alone
    assert found.gradient_error == pytest.approx(half / (half / 2))
    every = SimpleNamespace(indices=np.arange(4), weights=np.ones(4, np.float32))
    assert coreset._objective(evidence, every).model_dump() == pytest.approx({"coverage": 0, "gradient_error": 0})


# ------------------------------------------------------------------------------------------------------ by whom


def test_the_early_classifier_of_a_run_looks(finished: RunFolder, tiny: Tiny) -> None:
    config = of_run(finished, "max_loss")
    check_coreset(config)
    told = write_coreset(finished, config)
    assert told.weights == [digest_file(finished.path / "early/seed-0/model.safetensors")]
    assert told.seconds.training == 0
    with np.load(finished.path / "early/seed-0/outputs.npz") as outputs:
        losses, labels = outputs["losses"], outputs["labels"]
    worst = [max(np.flatnonzero(labels == c), key=lambda row: losses[row]) for c in range(10)]
    arrays = arrays_of(finished, "max_loss")
    assert [arrays["indices"][arrays["labels"] == c][0] for c in range(10)] == worst


def test_el2n_is_the_mean_over_classifiers(finished: RunFolder, tiny: Tiny) -> None:
    write_coreset(finished, of_run(finished, "el2n", seeds=2))
    train = images_of(tiny()).train
    first, second = (features_of(model, train) for model in RunContext(finished, tiny()).reference)
    evidence = Evidence(first[0], train.labels, first[1], ensemble=(second,))
    expected = select_coreset(evidence, CoresetConfig(method="el2n", fraction=0.2), 0)
    assert arrays_of(finished, "el2n")["indices"].tolist() == expected.indices.tolist()


def test_a_checkpoint_looks(finished: RunFolder, tmp_path: Path) -> None:
    checkpoint = finished.path / "retrained/original-sgd/seed-1.safetensors"
    told = write_coreset(RunFolder(tmp_path / "out"), asked("craig", checkpoint=str(checkpoint)))
    assert told.weights == [digest_file(checkpoint)]
    assert not (tmp_path / "out/coreset").exists()  # nothing was trained


def test_forgetting_is_counted_in_training(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_coreset(run, asked("forgetting", train={**PLAIN["train"], "epochs": 5}))
    with np.load(tmp_path / "coreset/forgetting/forgotten.npz") as arrays:
        forgotten = arrays["forgotten"]
    assert len(forgotten) == 60
    assert np.isinf(forgotten).any()  # five epochs do not teach every image
    arrays = arrays_of(run, "forgetting")
    for c in range(10):  # the most forgotten of each class
        mine = forgotten[load(asked("forgetting").data).train.labels == c]
        picked = forgotten[arrays["indices"][arrays["labels"] == c]]
        assert sorted(picked, reverse=True) == sorted(mine, reverse=True)[: len(picked)]


# ------------------------------------------------------------------------------------------- on synthetic images


def test_picks_from_real_and_synthetic_images_name_their_source(finished: RunFolder) -> None:
    config = of_run(finished, "k_center", with_synthetic=True)
    check_coreset(config)
    told = write_coreset(finished, config)
    table = SyntheticFolder(finished.path / "synthetic").rows()
    items, arrays = table["item_id"].to_pylist(), arrays_of(finished, "k_center")
    assert told.images == 60 + len(items)
    for index, source, label in zip(arrays["indices"], arrays["source"], arrays["labels"], strict=True):
        assert source == ("real" if index < 60 else items[index - 60])
        if index >= 60:
            assert label == table["label"][int(index) - 60].as_py()
    assert told.selected_synthetic == (arrays["source"] != "real").sum() > 0


# --------------------------------------------------------------------------------------------------- the command


def test_a_source_starts_from_its_preset_with_ten_epochs(tmp_path: Path) -> None:
    config, folder = resolve_coreset(None, {"data": {"source": "digits"}, "coreset": {"method": "craig"}})
    assert (config.classifier.model, config.train.epochs, config.run) == ("small-cnn", 10, "")
    assert folder == Path("runs/digits")
    assert resolve_coreset(None, {"data": {"source": "digits"}, "train": {"epochs": 3}})[0].train.epochs == 3


def test_a_run_folder_says_what_the_data_are(pristine: RunFolder, tiny: Tiny) -> None:
    config, folder = resolve_coreset(pristine.path, {"coreset": {"method": "dea"}})
    assert (config.data, config.classifier, config.run) == (tiny().data, tiny().classifier, str(pristine.path))
    assert folder == pristine.path
    assert not config.trains


def test_the_command_prints_a_table_or_json(
    run_command: RunCommand, fake_flows: Any, trained: SimpleNamespace, tmp_path: Path
) -> None:
    fake_flows.coreset = lambda config, _: {**trained.told, "seed": config.seed}
    words = ("coreset", "digits", "--out", tmp_path / "run", "--method", "craig", "--fraction", "0.2", "--seed", "7")
    shown = run_command(*words)
    assert shown.code == 0, shown.err
    assert "12 of 60 images: selection" in shown.out
    assert "at random" in shown.out
    assert shown.out.splitlines()[-1] == str(tmp_path / "run/coreset-craig.npz")
    assert json.loads(run_command(*words, "--json").out) == {**trained.told, "seed": 7}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("digits", "--fraction", "0.001"), "give a fraction of"),
        (("digits", "--checkpoint", "nothing.safetensors"), "there is no checkpoint at nothing.safetensors"),
        (("--out", "nowhere"), "nowhere is no run folder"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_trained(
    words: tuple[str, ...],
    error: str,
    run_command: RunCommand,
    fake_flows: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run_command("coreset", *words)
    assert shown.code == 1
    assert shown.err.splitlines()[-1].startswith("error: ")
    assert len([line for line in shown.err.splitlines() if line.startswith("error")]) == 1
    assert re.search(error, shown.err), shown.err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_classifier_is_refused(
    run_command: RunCommand, fake_flows: Any, pristine: RunFolder, tmp_path: Path
) -> None:
    file = pristine.path / "early/seed-0/model.safetensors"  # of width 4, where the preset has 8
    shown = run_command("coreset", "digits", "--out", tmp_path / "run", "--checkpoint", file)
    assert shown.code == 1
    assert f"{file} does not hold the weights of this classifier" in shown.err


def test_more_seeds_than_early_classifiers_are_refused(
    run_command: RunCommand, fake_flows: Any, pristine: RunFolder
) -> None:
    shown = run_command("coreset", "--out", pristine.path, "--method", "el2n", "--seeds", "3")
    assert shown.code == 1
    assert "has 2 early classifiers, not 3" in shown.err


def test_a_command_with_nothing_to_select_says_so_and_prints_the_same(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["coreset", "digits", "--out", tmp_path / "run", "--method", "herding", "--fraction", "0.3", "--json"]
    words += ["--epochs", "1", "--set", "data.train_limit=60", "--set", "classifier.model=small-cnn"]
    first = run_command(*words)
    assert first.code == 0, first.err
    monkeypatch.setattr(coreset, "check_coreset", None)
    again = run_command(*words)
    assert (again.code, json.loads(again.out)) == (0, json.loads(first.out))
    assert "coreset: herding was selected before, and no file has changed since" in again.err
    (tmp_path / "run/coreset-herding.csv").write_text("changed")
    monkeypatch.undo()
    assert "and no file has changed" not in run_command(*words).err
