import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latebloom.data.images import LabeledImages
from latebloom.data.store import read_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import EARLY, SELECT
from latebloom.flows.stages import checks, coreset, given, inputs, loaders, training
from latebloom.flows.stages.classifiers import early_folder
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.filtering import move_thresholds
from latebloom.train.selection.slow import Method

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace
ARMS = ("original", "ours-3", "random-3", "high_loss-3", "misclassified-3", "misclassified_matched-3")


@pytest.fixture(scope="module")
def ours(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, story: Story) -> RunFolder:
    """The data set of two seeds and all methods, by early classifiers of ours. Read only."""
    return story.with_images(tmp_path_factory.mktemp("ours") / "run", tiny({"arms": ARMS}))  # type: ignore[no-any-return]


def early(run: RunFolder, name: str) -> np.ndarray:
    """An array of the outputs of both seeds."""
    arrays = []
    for number in range(2):
        with np.load(early_folder(run, number) / "outputs.npz") as found:
            arrays.append(found[name])
    return np.stack(arrays)


def save(folder: Path, **arrays: np.ndarray) -> str:
    file = folder / "mine.npz"
    np.savez(file, **arrays)
    return str(file)


def selections(run: RunFolder) -> dict[str, list[np.ndarray]]:
    files = sorted((run.path / "selection").rglob("*.npz"))
    found = {}
    for file in files:
        with np.load(file) as arrays:
            found[str(file.relative_to(run.path))] = [arrays[name] for name in ("indices", "cluster", "mean_loss")]
    return found


def images(run: RunFolder) -> pa.Table:
    """What was made, without the scores."""
    table = RunContext(run, loaders_config(run)).synthetic.rows()
    return table.select(["item_id", "image", "seed", "level_steps", "source_index"])


def loaders_config(run: RunFolder) -> CompareConfig:
    return CompareConfig.model_validate(read_json(run.path / "config.json"))


def train(tiny: Tiny) -> LabeledImages:
    return loaders.images_of(tiny()).train


# ------------------------------------------------------------------------------- the outputs of ours, given back


@pytest.mark.parametrize("way", ["logits", "probabilities", "by name in another order", "with more images"])
def test_outputs_of_our_early_classifiers_select_and_make_the_same(
    way: str, ours: RunFolder, tiny: Tiny, story: Story, tmp_path: Path
) -> None:
    logits, labels = early(ours, "logits"), early(ours, "labels")[0]
    names = np.array([f"/home/me/{name}" for name in train(tiny).names])
    if way == "logits":
        file = save(tmp_path, logits=logits, labels=labels)
    elif way == "probabilities":
        exponent = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
        file = save(tmp_path, probabilities=exponent / exponent.sum(-1, keepdims=True), labels=labels)
    else:
        order = np.random.default_rng(0).permutation(len(labels))
        more = np.zeros((2, 0 if "order" in way else 3, 10), np.float32)
        others = np.array([f"/home/me/other-{n}.png" for n in range(more.shape[1])], dtype=names.dtype)
        file = save(
            tmp_path, logits=np.concatenate([logits[:, order], more], 1), names=np.concatenate([names[order], others])
        )
    config = tiny({"arms": ARMS, "slow.outputs": file})
    run = story.with_images(tmp_path / "run", config)
    for name, (indices, cluster, mean_loss) in selections(run).items():
        same = selections(ours)[name]
        assert np.array_equal(indices, same[0]), name
        assert np.array_equal(cluster, same[1])
        assert np.allclose(mean_loss, same[2], equal_nan=True, rtol=1e-5)
    assert images(run) == images(ours)
    assert not list(run.path.rglob("model.safetensors"))
    assert run.record(EARLY).facts.model_dump(include={"given", "given_seeds", "errors"}) == {
        "given": "logits",
        "given_seeds": 2,
        "errors": [],
    }
    second = story.with_images(tmp_path / "run", config)
    assert story.made(second) == set()


def test_indices_of_ours_make_the_same_images(ours: RunFolder, tiny: Tiny, story: Story, tmp_path: Path) -> None:
    alone = story.with_images(tmp_path / "alone", tiny({"seeds": 1}))
    file = shutil.copy(alone.path / "selection/cluster/seed-0.npz", tmp_path)
    run = story.with_images(tmp_path / "run", tiny({"seeds": 1, "slow.indices": str(file)}))
    assert (run.path / "plan.parquet").read_bytes() == (alone.path / "plan.parquet").read_bytes()
    assert images(run) == images(alone)
    assert run.record(EARLY).facts.given == "indices"


@pytest.mark.parametrize("kind", ["npy", "rows.txt", "names.txt", "slow.csv", "names.csv"])
def test_slow_images_are_named_by_row_or_file(
    kind: str, ours: RunFolder, tiny: Tiny, story: Story, tmp_path: Path
) -> None:
    data, rows = train(tiny), np.array([4, 17, 33])
    file = tmp_path / kind
    if kind == "npy":
        file = file.with_suffix(".npy")
        np.save(file, rows[::-1])
    elif kind == "rows.txt":
        file.write_text("4\n33\n\n17\n")
    elif kind == "names.txt":
        file.write_text("\n".join(data.names[row] for row in rows))
    elif kind == "names.csv":
        file.write_text("class,file\n" + "\n".join(f"x,{data.names[row]}" for row in rows))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "class", "row", "slow"])
            writer.writerows([name, "x", row, "yes" if row in rows else "no"] for row, name in enumerate(data.names))
    config = tiny({"arms": ("original", "ours-3", "random-3", "all-3"), "slow.indices": str(file)})
    run = story.up_to_plan(tmp_path / "run", config)
    context = RunContext(run, config)
    methods: list[Method] = ["cluster", "random", "all"]
    chosen = {method: [context.selected(method, number) for number in (0, 1)] for method in methods}
    for one, other in chosen.values():
        assert np.array_equal(one, other)  # one choice serves all seeds
    assert chosen["cluster"][0].tolist() == rows.tolist()
    assert np.bincount(data.labels[chosen["random"][0]]).tolist() == np.bincount(data.labels[rows]).tolist()
    assert len(chosen["all"][0]) == len(data)


def test_our_own_slow_list_can_be_given_back(ours: RunFolder, tiny: Tiny, tmp_path: Path) -> None:
    with (ours.path / "slow.csv").open(newline="") as stream:
        slow = sorted(int(line["row"]) for line in csv.DictReader(stream) if line["slow"] == "yes")
    found = given.given_of(tiny({"slow.indices": str(ours.path / "slow.csv")}))
    assert found.indices is not None
    assert found.indices.tolist() == slow


# ------------------------------------------------------------------------------------------------- less is known


def test_losses_alone_are_split_within_each_class(tiny: Tiny, story: Story, tmp_path: Path) -> None:
    data = train(tiny)
    losses = np.where(np.arange(len(data)) % 3 == 0, 2.0, 0.1)
    file = save(tmp_path, losses=losses)
    config = tiny({"arms": ("original", "ours-3", "high_loss-3"), "slow.outputs": file})
    run = story.up_to_plan(tmp_path / "run", config)
    context = RunContext(run, config)
    for method in ("cluster", "high_loss"):
        assert context.selected(method, 1).tolist() == list(range(0, len(data), 3))  # type: ignore[arg-type]
    of_fast, of_slow = context.selection("cluster", 0)["mean_loss"].T
    assert np.allclose(of_fast, 0.1)
    assert np.allclose(np.delete(of_slow, 1), 2)  # all losses of class 1 are equal
    assert run.record(SELECT).facts.slow == [20, 20]
    with (run.path / "slow.csv").open(newline="") as stream:
        line = next(csv.DictReader(stream))
    assert (line["loss"], line["predicted"], line["probability"], line["slow"]) == ("2", "", "", "yes")


@pytest.mark.parametrize(
    ("what", "arms", "refused"),
    [
        ("losses", ("original", "ours-3", "misclassified-3"), "misclassified-3 need the logits or probabilities"),
        ("losses", ("upsample-3", "misclassified_matched-3"), "misclassified_matched-3 need the logits"),
        ("indices", ("ours-3", "high_loss-3", "misclassified-3"), "high_loss-3, misclassified-3 need the outputs"),
    ],
)
def test_arms_that_need_more_than_is_given_are_refused_by_name(
    what: str, arms: tuple[str, ...], refused: str, tiny: Tiny, tmp_path: Path
) -> None:
    file = save(tmp_path, losses=np.zeros(60), indices=np.array([3]))
    setting = "slow.outputs" if what == "losses" else "slow.indices"
    with pytest.raises(
        UsageError, match=f"the arms {refused}.*and {what} alone are given; give these too, or name other"
    ):
        inputs.check_data(tiny({"arms": arms, setting: file}), "select")


def test_indices_and_outputs_together_serve_every_arm(
    ours: RunFolder, tiny: Tiny, story: Story, tmp_path: Path
) -> None:
    outputs = save(tmp_path, logits=early(ours, "logits")[0], labels=early(ours, "labels")[0])
    (tmp_path / "rows.txt").write_text("0\n1\n2\n59\n")
    config = tiny({"arms": ARMS, "slow.outputs": outputs, "slow.indices": str(tmp_path / "rows.txt")})
    context = RunContext(story.up_to_plan(tmp_path / "run", config), config)
    assert context.selected("cluster", 1).tolist() == [0, 1, 2, 59]
    labels, losses = early(ours, "labels")[0], early(ours, "losses")[0]
    for label in np.unique(labels[[0, 1, 2, 59]]):
        rows = np.flatnonzero(labels == label)
        count = int((labels[[0, 1, 2, 59]] == label).sum())
        top = rows[np.argsort(-losses[rows], kind="stable")[:count]]
        assert np.isin(top, context.selected("high_loss", 0)).all()


# --------------------------------------------------------------------------------------------- scores and the report


@pytest.mark.parametrize("what", ["logits", "losses", "indices"])
def test_a_whole_run_from_what_is_given(
    what: str, ours: RunFolder, tiny: Tiny, story: Story, tmp_path: Path, run_command: Callable[..., Any]
) -> None:
    if what == "indices":
        changes = {"slow.indices": save(tmp_path, indices=np.arange(0, 60, 4))}
    else:
        changes = {"slow.outputs": save(tmp_path, **{what: early(ours, what)[0]}, labels=early(ours, "labels")[0])}
    config = tiny(changes | {"quality.min_label_ratio": 0.1, "train.epochs": 1})
    checks.check_inputs(config, "compare")
    run = story.all_stages(tmp_path / "run", config)
    page = gather.write(run, config)
    report = read_json(run.path / "report.json")
    assert "NaN" not in (run.path / "report.json").read_text().replace("NaN of", "")
    assert report["early_errors"] == []
    assert report["jaccard"] is None
    assert any("No early classifier was trained" in line for line in report["warnings"])
    assert any("No classifier scored the synthetic images" in line for line in report["warnings"])
    assert page.stat().st_size > 10_000
    table = RunContext(run, config).synthetic.rows()
    assert set(table["state"].to_pylist()) == {"ok"}
    assert np.isnan(table["label_probability"].to_numpy()).all()
    assert RunContext(run, config).synthetic.manifest()["about"]["quality"]["min_label_ratio"] == 0
    config_again = loaders_config(run)
    inputs.check_folder(config_again, str(run.path), "report")
    outcome = run_command("inspect", run.path, table["item_id"][0].as_py(), "--json")
    assert outcome.code == 0, outcome.err
    outcome = run_command("fidelity", run.path)
    assert "its early outputs were given; give --inception-weights" in outcome.err
    with pytest.raises(ValueError, match=r"min_label_probability is 0.5: score with a reference classifier"):
        move_thresholds(run.path, {"min_label_probability": 0.5})


def test_a_named_classifier_scores_as_the_early_ones_do(
    ours: RunFolder, tiny: Tiny, story: Story, tmp_path: Path
) -> None:
    alone = story.with_images(tmp_path / "alone", tiny({"seeds": 1}))
    changes = {
        "seeds": 1,
        "slow.indices": str(alone.path / "selection/cluster/seed-0.npz"),
        "scores.reference_classifier": str(alone.path / "early/seed-0/model.safetensors"),
    }
    config = tiny(changes)
    run = story.with_images(tmp_path / "run", config)
    tables = [RunContext(one, config).synthetic.rows() for one in (run, alone)]
    assert repr(tables[0].to_pylist()) == repr(tables[1].to_pylist())  # NaN equals NaN so


def test_a_threshold_that_needs_a_classifier_is_refused_without_one(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny({"slow.indices": save(tmp_path, indices=np.arange(9)), "quality.min_label_ratio": 0.3})
    with pytest.raises(ValueError, match=r"min_label_ratio is 0.3: score with a reference classifier, or set it to 0"):
        checks.check_inputs(config, "compare")


def test_a_coreset_has_no_early_classifier_to_ask(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny({"slow.indices": save(tmp_path, indices=np.arange(9))})
    run = checks.open_run(config, str(tmp_path / "run"))
    training.train_early(run, config)
    asked = coreset.CoresetRunConfig(data=config.data, classifier=config.classifier, run=str(run.path))
    with pytest.raises(ValueError, match="was selected from given indices, so it has no early classifier to ask"):
        coreset.check_coreset(asked)


# --------------------------------------------------------------------------------------------------- what is refused

LABELS = np.repeat(np.arange(10), 6)


def _mine(**changes: Any) -> dict[str, np.ndarray]:
    """Arrays that are well but for some; None takes one away."""
    arrays: dict[str, Any] = {"logits": np.zeros((60, 10)), "labels": LABELS} | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": None}, "has logits and neither labels nor names"),
        ({"logits": None}, "has the arrays labels; expected logits or probabilities"),
        ({"logits": np.zeros((60, 9))}, "has 9 classes, and the training images have 10"),
        ({"logits": np.zeros((3, 60, 10))}, "has outputs of 3 seeds, and 2 are asked for; give --seeds 3"),
        ({"logits": np.zeros(60)}, r"logits are float64\(60,\), expected numbers \(N, C\) or \(seeds, N, C\)"),
        ({"logits": np.zeros((59, 10)), "labels": LABELS[:59]}, "has 59 rows, and there are 60 training images"),
        ({"logits": np.full((60, 10), np.nan)}, r"logits of row 0 are not finite \(60 such rows\)"),
        ({"labels": LABELS[:59]}, r"labels are \(59,\) beside logits of 60 images"),
        (
            {"logits": None, "probabilities": np.full((60, 10), 0.2)},
            "probabilities of row 0 are not 0 or more with a sum",
        ),
        ({"logits": None, "losses": np.full(60, -1.0)}, "losses are below 0"),
        ({"names": np.array(["x.png"] * 60)}, "60 of 60 names are of no training image, such as x.png"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        given.given_of(tiny({"slow.outputs": save(tmp_path, **_mine(**arrays))}))


def test_labels_tell_of_another_order_and_of_classes_that_are_numbered_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    own = train(tiny).labels
    other, turned = own.copy(), 9 - own
    other[[2, 5]] = own[[2, 5]] - 1
    first = int(own[2])
    for labels, message in (
        (
            other,
            f"the labels of 2 of 60 rows are others here: row 2 has {first - 1}, .* has {first} .*give the array names",
        ),
        (
            turned,
            "the labels of 60 of 60 rows are others here: .*its classes are numbered otherwise; here they are 0, 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            given.given_of(tiny({"slow.outputs": save(tmp_path, **_mine(labels=labels))}))
    named = np.array([str(label) for label in own])  # the classes of digits are called so
    given.given_of(tiny({"slow.outputs": save(tmp_path, **_mine(labels=named))}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "60\n", "has row 60 .1 such rows., and the 60 training images have the rows 0 to 59"),
        ("a.txt", "3\n3\n4\n", "has row 3 more than once .1 too many."),
        ("a.txt", "", "names no image"),
        (
            "a.txt",
            "cat/1.png\n",
            "1 of 1 names are of no training image, such as cat/1.png; .* are called like 'digits",
        ),
        ("a.csv", "x,y\n1,2\n", "has the columns x, y; expected file"),
        ("a.csv", "row\n1\nb\n", "has 'b' in the column row"),
        ("a.json", "[1]", "is no .npz, .npy, .txt or .csv"),
        ("a.npz", "no zip", "cannot be read"),
    ],
)
def test_slow_images_that_do_not_fit_are_refused(
    name: str, content: str, message: str, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        given.given_of(tiny({"slow.indices": str(tmp_path / name)}))


def test_a_file_that_is_not_there_is_named(tiny: Tiny) -> None:
    for setting in ("slow.outputs", "slow.indices"):
        with pytest.raises(ValueError, match=r"there is no file none.npz; give the path of one"):
            given.given_of(tiny({setting: "none.npz"}))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train/cat/1.png", 0),
        ("cat/1.png", 0),
        ("/data/train/cat/1.png", 0),
        ("C:\\data\\train\\dog\\1.png", 1),
        ("2.png", 2),
        ("other/2.png", -1),  # not ours: another folder than ours stands before
    ],
)
def test_an_image_is_found_by_its_name_or_an_end_of_it_that_only_it_has(name: str, row: int) -> None:
    names = ("train/cat/1.png", "train/dog/1.png", "train/dog/2.png")
    data = LabeledImages(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, int), ("a",), "three", names)
    if row < 0:
        with pytest.raises(ValueError, match="1 of 1 names are of no training image"):
            given._places("f", [name], data, others=False)
    else:
        assert given._places("f", [name], data, others=False).tolist() == [row]
    with pytest.raises(ValueError, match=r"'1.png' is the end of several names"):
        given._places("f", ["1.png"], data, others=False)
