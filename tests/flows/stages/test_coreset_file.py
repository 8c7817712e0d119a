"""Training on a coreset that `latebloom coreset` wrote: from its file to the rows of an arm."""

import functools
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latebloom.data.images import LabeledImages
from latebloom.data.store import digest_file, read_json, write_arrays
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.arms import parse_arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import RetrainFacts, retrain_key
from latebloom.flows.run.resolve import resolve, resolve_coreset
from latebloom.flows.stages import checks, fitting, training
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.coreset import CoresetRunConfig, check_coreset, write_coreset
from latebloom.flows.stages.coreset_file import SelectedExamples, as_coreset, on_images, read_selected
from latebloom.flows.stages.loaders import images_of
from latebloom.train.augment.mixing import Mixer
from latebloom.train.selection.coreset import Coreset

Tiny = Callable[..., CompareConfig]
RunCommand = Callable[..., Any]

ALONE = {"strong.main": "coreset", "strong.copies": 0, "train.batch_size": 4}
REAL = 60  # of the tiny run
LABELS = np.array([0, 1, 2, 0, 1, 2])


def facts(run: RunFolder, arm: str) -> RetrainFacts:
    return run.record(retrain_key(arm, "sgd")).facts


def picks_of(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def changed(file: Path, out: Path, **arrays: np.ndarray) -> Path:
    write_arrays(out, **{**picks_of(file), **arrays})
    return out


@pytest.fixture(scope="module")
def picked(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CRAIG's fifth of the tiny run's 60 images, by a classifier of one epoch."""
    config = tiny()
    asked = CoresetRunConfig(
        data=config.data,
        classifier=config.classifier,
        train=config.train.model_copy(update={"epochs": 1}),
        coreset={"method": "craig", "fraction": 0.2},  # type: ignore[arg-type]
        device="cpu",
    )
    check_coreset(asked)
    run = RunFolder(tmp_path_factory.mktemp("coreset"))
    write_coreset(run, asked)
    return run.path / "coreset-craig.npz"


@pytest.fixture(scope="module")
def alone(tiny: Tiny, picked: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Trained on the picks alone, in an empty folder."""
    config = tiny({"arms": ("original+file",), "strong.file": str(picked), "strong.weights": "normalised", **ALONE})
    checks.check_inputs(config, "retrain")
    run = checks.open_run(config, str(tmp_path_factory.mktemp("alone") / "run"))
    training.retrain_arm(run, config, "original+file", "sgd")
    return SimpleNamespace(config=config, run=run)


# ----------------------------------------------------------------------------------------------- what is trained on


def test_the_picks_alone_are_trained_on_with_their_weights(alone: SimpleNamespace, picked: Path) -> None:
    found, arrays = facts(alone.run, "original+file"), picks_of(picked)
    assert found.steps == [3 * (12 // 4)] * 2  # a fifth of 60 images
    assert (found.strong.selected, found.strong.selections) == (12, 1)
    assert found.strong.strong_copies == 0
    job = training._job(RunContext(alone.run, alone.config), "original+file", "sgd")
    assert job.training.mixers is not None
    for mixer in job.training.mixers:
        plan = mixer.epoch(0, None, None)  # type: ignore[arg-type]  # it asks no classifier
        assert plan.rows.tolist() == arrays["indices"].tolist()
        assert plan.weights is not None
        np.testing.assert_allclose(plan.weights, arrays["weights"] / arrays["weights"].mean(), rtol=1e-6)


def test_the_same_picks_elsewhere_are_not_trained_again_and_others_are(
    alone: SimpleNamespace, picked: Path, tmp_path: Path
) -> None:
    inputs = read_json(alone.run.path / "retrained/original+file-sgd/config.json")
    assert inputs["strong"]["file"] == digest_file(picked)

    def done(file: Path) -> bool:
        strong = alone.config.strong.model_copy(update={"file": str(file)})
        return training.arm_is_done(
            alone.run, alone.config.model_copy(update={"strong": strong}), "original+file", "sgd"
        )

    moved = changed(picked, tmp_path / "moved.npz")
    assert done(moved)
    heavier = changed(picked, tmp_path / "moved.npz", weights=picks_of(picked)["weights"] * 2)
    assert not done(heavier)


def test_a_file_is_nothing_to_arms_that_do_not_read_it(alone: SimpleNamespace) -> None:
    for name in ("original", "original+random"):
        assert alone.config.strong_of(parse_arm(name)).file == ""
    strong = fitting.strong_key(alone.config.strong_of(parse_arm("original+random")))
    assert strong["file"] == ""


def test_an_interrupted_arm_goes_on_and_not_with_another_file(
    alone: SimpleNamespace, picked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = changed(picked, tmp_path / "picked.npz")
    strong = alone.config.strong.model_copy(update={"file": str(file)})
    config = alone.config.model_copy(update={"strong": strong})
    run = checks.open_run(config, str(tmp_path / "run"))
    train = functools.partial(training.retrain_arm, run, config, "original+file", "sgd")
    save, load = fitting.save_fit, fitting.load_fit
    starts: list[int] = []

    def stops(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    def loads(*args: Any) -> Any:
        start = load(*args)
        starts.append(start.step if start else 0)
        return start

    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(fitting, "load_fit", loads)
    with monkeypatch.context() as once:
        once.setattr(fitting, "save_fit", stops)
        with pytest.raises(KeyboardInterrupt):
            train()
        weights = picks_of(picked)["weights"]
        changed(picked, file, weights=weights[::-1].copy())
        with pytest.raises(KeyboardInterrupt):
            train()
        assert starts == [0, 0]
        changed(picked, file)
        with pytest.raises(KeyboardInterrupt):
            train()
    train()
    assert starts == [0, 0, 0, 3]  # of one epoch: the other file's checkpoint is not gone on from, its own is
    for number in (0, 1):
        name = f"retrained/original+file-sgd/seed-{number}.safetensors"
        assert digest_file(run.path / name) == digest_file(alone.run.path / name)


# ---------------------------------------------------------------------------------------------------- synthetic picks


def of_real_and_synthetic(run: RunFolder, tiny: Tiny) -> Path:
    config = tiny()
    asked = CoresetRunConfig(
        data=config.data,
        classifier=config.classifier,
        run=str(run.path),
        with_synthetic=True,
        coreset={"method": "k_center", "fraction": 0.3},  # type: ignore[arg-type]
        device="cpu",
    )
    write_coreset(run, asked)
    return run.path / "coreset-k_center.npz"


def test_synthetic_picks_are_the_images_with_their_item_ids(finished: RunFolder, tiny: Tiny) -> None:
    file = of_real_and_synthetic(finished, tiny)
    picks, items = picks_of(file), SyntheticFolder(finished.path / "synthetic").rows()["item_id"].to_pylist()
    config = tiny({"arms": ("ours-3+file",), "seeds": 1, "strong.file": str(file)})
    job = training._job(RunContext(finished, tiny({"arms": ("ours-3",), "seeds": 1})), "ours-3", "sgd")
    data, (rows,) = job.images.data, job.training.rows
    held = [source == "real" or REAL + items.index(source) in rows for source in picks["source"].tolist()]
    missing = held.count(False)
    if missing:
        message = f"{missing} of the {len(held)} examples of .* that arm ours-3.file, seed 0, does not"
        with pytest.raises(ValueError, match=message):
            checks.check_folder(config, str(finished.path), "retrain")
        file = changed(file, file.with_name("held.npz"), **{name: array[held] for name, array in picks.items()})
        config = config.model_copy(update={"strong": config.strong.model_copy(update={"file": str(file)})})
    checks.check_inputs(config, "retrain")
    checks.check_folder(config, str(finished.path), "retrain")
    picks = picks_of(file)
    (mixer,) = training._job(RunContext(finished, config), "ours-3+file", "sgd").training.mixers or []
    assert mixer.given is not None
    chosen = rows[mixer.given.indices]
    names = ["real" if row < REAL else items[row - REAL] for row in chosen]
    assert names == picks["source"].tolist()
    assert "real" in names
    assert set(names) != {"real"}
    assert data.labels[chosen].tolist() == picks["labels"].tolist()
    # A data set that has grown has moved the item ids: the pictures are what they were.
    moved = np.array(["real" if name == "real" else items[items.index(name) - 1] for name in picks["source"].tolist()])
    other = changed(file, file.with_name("moved.npz"), **{**picks, "source": moved})
    strong = config.strong.model_copy(update={"file": str(other)})
    again = RunContext(finished, config.model_copy(update={"strong": strong}))
    (same,) = training._job(again, "ours-3+file", "sgd").training.mixers or []
    assert same.given is not None
    assert same.given.indices.tolist() == mixer.given.indices.tolist()
    training.retrain_arm(finished, config, "ours-3+file", "sgd")
    share = np.mean(picks["source"] != "real")
    assert facts(finished, "ours-3+file").strong.selected_synthetic == pytest.approx(share)


def test_an_arm_without_synthetic_images_refuses_synthetic_picks(finished: RunFolder, tiny: Tiny) -> None:
    file = of_real_and_synthetic(finished, tiny)
    source = picks_of(file)["source"]
    config = tiny({"arms": ("original+file",), "strong.file": str(file)})
    message = f"{(source != 'real').sum()} of the {len(source)} examples of .* images that arm original.file does not"
    with pytest.raises(ValueError, match=message):
        checks.check_inputs(config, "retrain")


def test_of_an_image_that_an_arm_has_several_times_the_first_is_picked(tmp_path: Path) -> None:
    write_arrays(
        tmp_path / "p.npz",
        indices=np.array([3, 1]),
        labels=np.array([0, 1]),
        weights=np.array([2.0, 4.0]),
        source=np.array(["real", "real"]),
    )
    rows = np.array([0, 1, 2, 3, 4, 5, 3, 1, 1])  # as upsample-K has them
    given = as_coreset("arm", read_selected(str(tmp_path / "p.npz")), LABELS, rows, 6, {})
    assert (given.indices.tolist(), given.weights.tolist()) == ([3, 1], [2, 4])


# ----------------------------------------------------------------------------------------------------------- bad files


def write_bad(folder: Path, how: str) -> Path:
    """A file of the four picks 0, 1, 2, 3 of `LABELS`, with one thing wrong."""
    file = folder / "p.npz"
    arrays: dict[str, Any] = {
        "indices": np.array([0, 3, 1, 2]),
        "labels": np.array([0, 0, 1, 2]),
        "weights": np.ones(4, np.float32),
        "source": np.array(["real"] * 4),
    }
    changes: dict[str, dict[str, Any]] = {
        "nan": {"weights": np.array([1, np.nan, 1, -np.inf])},
        "negative": {"weights": np.array([1, 1, 1, -1.0])},
        "too large": {"weights": np.array([1, 1, 1, 1e300])},
        "all zero": {"weights": np.zeros(4)},
        "no picks": {name: array[:0] for name, array in arrays.items()},
        "outside": {"indices": np.array([0, 3, 1, 6])},
        "below": {"indices": np.array([0, 3, -1, 2])},
        "labels": {"labels": np.array([0, 0, 2, 1])},
        "twice": {"indices": np.array([0, 0, 1, 2])},
        "short": {"labels": np.array([0, 0, 1])},
        "floats": {"indices": np.array([0.0, 3, 1, 2])},
        "synthetic": {"source": np.array(["real", "i-1", "i-2", "real"])},
    }
    if how == "absent":
        return file
    if how == "folder":
        file.mkdir()
    elif how == "text":
        file.write_text("indices\n0\n")
    elif how == "pickle":
        file.write_bytes(pickle.dumps(arrays))
    elif how == "pickle inside":
        np.savez(file, **{**arrays, "source": np.array(["real", None, 3, {}], object)})
    elif how == "array missing":
        np.savez(file, **{name: array for name, array in arrays.items() if name != "weights"})
    elif how == "no array":
        np.savez(file, **{name: array for name, array in arrays.items() if name != "weights"})
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("weights.npy", "1 1 1 1")
    elif how == "cut":
        np.savez(file, **arrays)
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "damaged":
        np.savez(file, **arrays)
        content = file.read_bytes()
        place = content.index(arrays["indices"].tobytes())
        file.write_bytes(content[:place] + b"\7" + content[place + 1 :])
    else:
        np.savez(file, **{**arrays, **changes[how]})
    return file


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", "there is no coreset at .*p.npz; give a coreset-METHOD.npz"),
        ("folder", "there is no coreset at"),
        ("text", "is not an .npz archive"),
        ("pickle", "is not an .npz archive"),
        ("pickle inside", r"cannot be read \(Object arrays cannot be loaded"),
        ("cut", "is not an .npz archive"),
        ("damaged", r"cannot be read \(Bad CRC"),
        ("array missing", "has no array weights; expected indices, labels, weights, source"),
        ("no array", r"weights is \|S7\(\) beside"),
        ("short", r"labels is int64\(3,\) beside \(4,\) of indices"),
        ("floats", r"indices is float64\(4,\)"),
        ("nan", r"example 1 has weight nan \(2 such examples\)"),
        ("negative", r"example 3 has weight -1.0 \(1 such examples\)"),
        ("too large", "example 3 has weight inf"),
        ("all zero", "has 4 examples, none with a weight above 0"),
        ("no picks", "has 0 examples"),
        ("outside", r"its example 3 is image 6, here there are 6 training images \(1 such examples\)"),
        ("below", "another data set: its example 2 is image -1"),
        ("labels", r"another data set: its example 2, image 1, has label 2 there and 1 here \(2 such examples\)"),
        ("twice", "has 1 images a second time"),
        ("synthetic", "2 of the 4 examples of .* are synthetic images that arm original.file does not"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused(how: str, message: str, tmp_path: Path) -> None:
    file = write_bad(tmp_path, how)
    with pytest.raises(ValueError, match=message) as error:
        as_coreset("arm original+file", read_selected(str(file)), LABELS, np.arange(6), 6, {})
    assert "\n" not in str(error.value)


def test_the_picks_of_the_tests_are_right_but_for_what_is_wrong(tmp_path: Path) -> None:
    write_bad(tmp_path, "negative")
    file = changed(tmp_path / "p.npz", tmp_path / "q.npz", weights=np.arange(4))
    given = as_coreset("arm", read_selected(str(file)), LABELS, np.arange(6), 6, {})
    assert (given.indices.tolist(), given.weights.tolist()) == ([0, 3, 1, 2], [0, 1, 2, 3])


def test_other_pictures_at_the_same_rows_are_refused(tiny: Tiny, picked: Path, tmp_path: Path) -> None:
    """An image that is added to a folder shifts those behind it, and labels may fit all the same."""
    train = images_of(tiny()).train
    picks = picks_of(picked)
    assert on_images(read_selected(str(picked)), train).indices.tolist() == picks["indices"].tolist()
    assert picks["sha256"].tolist() == [train.sha256[row] for row in picks["indices"]]
    assert picks["names"].tolist() == [train.names[row] for row in picks["indices"]]
    others = picks["sha256"].copy()
    others[2] = "0" * 64
    file = changed(picked, tmp_path / "p.npz", sha256=others)
    with pytest.raises(ValueError, match=rf"its example 2, '{re.escape(picks['names'][2])}', is not among the 60 tr"):
        on_images(read_selected(str(file)), train)
    unnamed = changed(picked, tmp_path / "u.npz", sha256=others, names=np.full(len(others), ""))
    with pytest.raises(ValueError, match=rf"its example 2, image {picks['indices'][2]}, is not among the 60 training"):
        on_images(read_selected(str(unnamed)), train)
    nothing = np.full(len(others), "")
    untold = changed(picked, tmp_path / "q.npz", sha256=nothing, names=nothing)
    assert on_images(read_selected(str(untold)), train).indices.tolist() == picks["indices"].tolist()


# -------------------------------------------------------------------------------------------------------------- names


def four(names: tuple[str, ...], values: tuple[int, ...]) -> LabeledImages:
    """Grey 1x1 images of these values and names, labelled 0, 1, 0, 1."""
    images = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    return LabeledImages(images, np.arange(len(values)) % 2, ("a", "b"), "four", names)


def of_rows(data: LabeledImages, rows: list[int], tmp_path: Path) -> SelectedExamples:
    """The examples of a file that has these rows of `data`."""
    write_arrays(
        tmp_path / "p.npz",
        indices=np.array(rows),
        labels=data.labels[rows],
        weights=np.ones(len(rows)),
        source=np.full(len(rows), "real"),
        sha256=np.array(data.sha256)[rows],
        names=np.array(data.names)[rows],
    )
    return read_selected(str(tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("names", "values", "rows"),
    [
        (("a/1", "b/1", "a/2", "b/2"), (1, 2, 3, 4), [1, 2]),  # nothing moved
        (("a/0", "b/0", "a/1", "b/1", "a/2"), (9, 8, 1, 2, 3), [3, 4]),  # two images came in before them
        (("a/x", "b/x", "a/y", "b/y"), (3, 4, 1, 2), [3, 0]),  # renamed and moved
        (("a/1", "b/1", "a/2", "b/2"), (2, 1, 2, 3), [0, 3]),  # by the pixels, whatever has the name now
        (("a/0", "b/1", "a/2", "b/2"), (2, 2, 3, 3), [1, 2]),  # of equal images those of the name
    ],
)
def test_a_coreset_finds_its_images_after_they_moved(
    names: tuple[str, ...], values: tuple[int, ...], rows: list[int], tmp_path: Path
) -> None:
    selected = of_rows(four(("a/1", "b/1", "a/2", "b/2"), (1, 2, 3, 4)), [1, 2], tmp_path)
    assert on_images(selected, four(names, values)).indices.tolist() == rows


def test_a_table_of_names_is_a_coreset(tmp_path: Path) -> None:
    data = four(("train/a/1.png", "train/b/1.png", "train/a/2.png", "train/b/2.png"), (1, 2, 3, 4))
    (tmp_path / "mine.csv").write_text("file,weight\ntrain/b/2.png,3\na/2.png,0.5\n")
    selected = on_images(read_selected(str(tmp_path / "mine.csv")), data)
    assert (selected.indices.tolist(), selected.weights.tolist()) == ([3, 2], [3, 0.5])
    given = as_coreset("arm", selected, data.labels, np.arange(4), 4, {})
    assert (given.indices.tolist(), given.weights.tolist()) == ([3, 2], [3, 0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\n1.png\n", "has name; expected a column file"),
        ("file\n", "has no row; expected a column file"),
        ("file\n1.png\n", "'1.png' names 2 images: train/a/1.png, train/b/1.png; give more of the name"),
        ("file\na/1.png\na/3.png\n", "example 1, 'a/3.png', is not among the 4 training images"),
        ("file,weight\na/1.png,much\n", "row 1 has weight 'much'; expected a number"),
        ("file,weight\na/1.png,1\n,1\n", "row 2 has no file"),
        ("file,weight\na/1.png,-1\n", "example 0 has weight -1.0"),
        ("file\n\xe4", "cannot be read as a table"),
    ],
)
def test_a_table_that_names_no_image_is_refused(text: str, message: str, tmp_path: Path) -> None:
    data = four(("train/a/1.png", "train/b/1.png", "train/a/2.png", "train/b/2.png"), (1, 2, 3, 4))
    (tmp_path / "mine.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(message)):
        on_images(read_selected(str(tmp_path / "mine.csv")), data)


def test_the_table_that_is_written_is_the_coreset_too(tiny: Tiny, picked: Path) -> None:
    train, table = images_of(tiny()).train, read_selected(str(picked.with_suffix(".csv")))
    first, second = on_images(read_selected(str(picked)), train), on_images(table, train)
    for name in ("indices", "labels", "weights", "source", "sha256", "names"):
        assert getattr(first, name).tolist() == getattr(second, name).tolist()


def test_another_data_set_is_refused_before_anything_is_written(
    picked: Path, run_command: RunCommand, fake_flows: Any, tmp_path: Path
) -> None:
    words = ("retrain", "digits", "--out", tmp_path / "run", "--train-limit", "50", "--coreset", picked)
    shown = run_command(*words)  # 50 other digits
    assert shown.code == 1
    assert shown.err.splitlines()[-1].startswith(f"error: {picked} is of another data set: its example ")
    assert not (tmp_path / "run").exists()
    shown = run_command("retrain", "digits", "--out", tmp_path / "run", "--arms", "original+file")
    assert shown.code == 2
    assert "selector file needs a coreset, and strong.file is empty; give a coreset-METHOD.npz there" in shown.err


# --------------------------------------------------------------------------------------------------------- the command


def asked(kind: str, row: str | None = None, arms: tuple[str, ...] = (), **strong: Any) -> Any:
    settings = {"data": {"source": "digits"}, "strong": {"file": "p.npz", **strong}, **({"arms": arms} if arms else {})}
    return resolve(None, settings, kind, None, row)[0]


def test_retrain_with_a_coreset_trains_on_the_picks_alone_unless_told_otherwise() -> None:
    config = asked("retrain")
    assert config.arms == ("original+file",)
    assert (config.strong.main, config.strong.copies) == ("coreset", 0)
    assert asked("retrain", main="full").strong.copies == 1
    assert asked("retrain", where="in_place").strong.main == "full"
    named = asked("retrain", arms=("original", "original+file"))
    assert named.arms == ("original", "original+file")
    assert (named.strong.main, named.strong.copies) == ("full", 1)
    row = asked("retrain", "dea-cifar10-tiny")
    assert row.arms == ("original+file",)
    assert (row.strong.main, row.strong.copies) == ("coreset", 1)  # as the paper mixes them
    assert asked("run").strong.selector == "file"


def test_a_coreset_that_no_arm_would_train_on_is_refused() -> None:
    for kind, arms in (("compare", ()), ("retrain", ("original", "original+random"))):
        with pytest.raises(ValueError, match=r"a coreset is named \(p.npz\), but no arm trains on it"):
            asked(kind, arms=arms)
    with pytest.raises(ValueError, match="no arm trains on it"):
        asked("run", selector="random")


def test_the_option_is_the_setting(picked: Path, run_command: RunCommand, fake_flows: Any, tmp_path: Path) -> None:
    found: list[CompareConfig] = []
    fake_flows.retrain = lambda config, _: found.append(config)
    limits = ("--train-limit", "60", "--test-limit", "50", "--seeds", "1", "--batch-size", "4", "--json")
    words = ("retrain", "digits", *limits, "--out")
    shown = run_command(*words, tmp_path / "run", "--coreset", picked)
    assert shown.code == 0, shown.err
    settings = (f"strong.file={picked}", "strong.main=coreset", "strong.copies=0")
    shown = run_command(
        *words, tmp_path / "other", "--arms", "original+file", *(word for one in settings for word in ("--set", one))
    )
    assert shown.code == 0, shown.err
    assert found[0] == found[1]
    assert found[0].strong.file == str(picked)


@pytest.mark.parametrize("preset", ["lcmat-cifar10", "adacore-cifar10"])
def test_a_row_of_the_papers_trains_on_nothing_outside_the_file(preset: str, picked: Path) -> None:
    config, _ = resolve(None, {"strong": {"file": str(picked)}, "data": {"source": "digits"}}, "retrain", row=preset)
    (arm,) = config.parsed_arms
    strong = config.strong_of(arm)
    assert (strong.selector, strong.main, strong.copies, strong.warm_epochs) == ("file", "coreset", 0, 0)
    assert not strong.scout.model
    labels = np.arange(60) % 10
    mixer = Mixer(strong, labels, 10, (8, 8, 1), 0, Coreset(np.array([7, 3]), np.ones(2, np.float32)))
    for number in range(12):
        plan = mixer.epoch(number, lambda: pytest.fail("asked"), lambda _: pytest.fail("asked"))
        assert sorted(plan.rows) == [3, 7]


def test_a_coreset_is_picked_as_a_row_of_the_papers_picks(pristine: RunFolder) -> None:
    config, folder = resolve_coreset(None, {"coreset": {"fraction": 0.3}}, "lcmat-cifar10")
    assert (config.coreset.method, config.coreset.fraction, config.coreset.gradient) == ("lcmat", 0.3, "last_layer")
    assert (config.data.source, config.classifier.model, config.train.epochs) == ("cifar10", "resnet18", 10)
    assert folder == Path("runs/cifar10")
    config, _ = resolve_coreset(pristine.path, {}, "lcmat-cifar10")
    assert (config.coreset.method, config.data.source, config.classifier.model) == ("lcmat", "digits", "small-cnn")
    with pytest.raises(UsageError, match="preset tada-cifar10 selects no coreset"):
        resolve_coreset(None, {}, "tada-cifar10")
