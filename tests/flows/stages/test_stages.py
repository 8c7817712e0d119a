"""The whole story by its stages: what is made, what is made again, and what is left alone."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import child_seed
from latebloom.data.sources.load import Splits, load
from latebloom.data.store import digest_file, read_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import EARLY, GENERATE, PLAN, SELECT, RetrainFacts, retrain_key
from latebloom.flows.stages import checks, context, fitting, loaders, scorers, select, synthesis, training
from latebloom.flows.stages.classifiers import classifier_seeds
from latebloom.train.selection.slow import Method

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace

BEFORE_RETRAINING = {"early", "select", "plan", "generate"}
BOTH_ARMS = {"retrain-original-sgd", "retrain-ours-3-sgd"}


def selected(run: RunFolder, method: Method, number: int) -> np.ndarray:
    with np.load(context.selection_path(run, method, number)) as arrays:
        return arrays["indices"]


def synthetic(run: RunFolder) -> pa.Table:
    return SyntheticFolder(run.path / "synthetic").rows()


def facts(run: RunFolder, arm: str) -> RetrainFacts:
    return run.record(retrain_key(arm, "sgd")).facts


# --------------------------------------------------------------------------------------- what a run consists of


def test_a_run_folder_holds_what_the_design_says(pristine: RunFolder, story: Story) -> None:
    # The pictures of the page are named by what they show.
    names = {name for name in story.contents(pristine.path) if not name.startswith("report/")}
    seeds = ("seed-0", "seed-1")
    assert names == {
        "config.json",
        *(f"early/{seed}/{file}" for seed in seeds for file in ("model.safetensors", "outputs.npz", "config.json")),
        *(f"selection/cluster/{seed}.npz" for seed in seeds),
        "plan.parquet",
        *(f"synthetic/{part['file']}" for part in read_json(pristine.path / "synthetic/manifest.json")["parts"]),
        *(f"synthetic/.parts/{file.name}" for file in (pristine.path / "synthetic/.parts").iterdir()),
        "synthetic/manifest.json",
        *(f"retrained/{arm}-sgd/{seed}.safetensors" for arm in ("original", "ours-3") for seed in seeds),
        *(
            f"retrained/{arm}-sgd/{file}"
            for arm in ("original", "ours-3")
            for file in ("predictions.npz", "config.json")
        ),
        *(f"stages/{stage}.json" for stage in BEFORE_RETRAINING | BOTH_ARMS | {"frechet", "slow-list"}),
        "slow.csv",
        "report.json",
        "report.html",
        "contact_sheet.png",
    }


def test_every_classifier_that_is_trained_again_has_a_log_of_its_epochs(pristine: RunFolder) -> None:
    for arm in ("original", "ours-3"):
        record = facts(pristine, arm)
        for number in (0, 1):
            folder = pristine.path / f"retrained/{arm}-sgd/log/seed-{number}"
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            assert [line["epoch"] for line in lines] == [1, 2, 3]
            assert [line["test_error"] for line in lines if "test_error" in line] == [record.errors[number]]
            assert len(list((folder / "tensorboard").iterdir())) == 1
            if number == 0:
                assert [line["error"] for line in lines] == record.train_error


def test_the_predicted_class_of_each_test_image_is_kept_by_seed(pristine: RunFolder, tiny: Tiny) -> None:
    labels = load(tiny().data).test.labels
    for arm in ("original", "ours-3"):
        with np.load(pristine.path / f"retrained/{arm}-sgd/predictions.npz") as arrays:
            predictions = arrays["test"]
        assert (predictions.dtype, predictions.shape) == (np.int32, (2, len(labels)))
        assert (predictions != labels).mean(1).tolist() == facts(pristine, arm).errors


def test_the_outputs_of_the_early_classifier_are_a_row_an_image(pristine: RunFolder, tiny: Tiny) -> None:
    train = load(tiny().data).train
    with np.load(pristine.path / "early/seed-0/outputs.npz") as outputs:
        assert outputs["logits"].shape == (60, 10)
        assert outputs["labels"].tolist() == train.labels.tolist()
        expected = np.log(np.exp(outputs["logits"].astype(float)).sum(1)) - outputs["logits"][range(60), train.labels]
        np.testing.assert_allclose(outputs["losses"], expected, rtol=1e-5)


def test_seeds_begin_and_end_differently(pristine: RunFolder) -> None:
    for place in ("early/{}/model.safetensors", "retrained/ours-3-sgd/{}.safetensors"):
        assert digest_file(pristine.path / place.format("seed-0")) != digest_file(
            pristine.path / place.format("seed-1")
        )


def test_arms_of_a_seed_start_from_the_same_weights(tiny: Tiny) -> None:
    # The root seed of a classifier follows from the run's seed and its number alone.
    assert classifier_seeds(tiny()) == [child_seed(0, "classifier", 0), child_seed(0, "classifier", 1)]
    assert classifier_seeds(tiny({"seeds": 1})) == classifier_seeds(tiny())[:1]


def test_the_data_set_is_n_plus_k_minus_1_times_the_slow(many_arms: SimpleNamespace) -> None:
    slow = many_arms.run.record(SELECT).facts.slow
    assert all(10 < count < 50 for count in slow)  # of 60
    for arm, factor in (("original", 0), ("original@ours-3", 0), ("upsample-3", 2), ("random-3", 2), ("ours-3", 2)):
        assert facts(many_arms.run, arm).images_added == [factor * count for count in slow], arm
    assert facts(many_arms.run, "noise-2").images_added == slow


def test_steps_are_epochs_of_the_batches_of_the_enlarged_set(many_arms: SimpleNamespace) -> None:
    slow = many_arms.run.record(SELECT).facts.slow
    assert facts(many_arms.run, "original").steps == [3 * 4, 3 * 4]  # 3 epochs of 60 / 16 batches, the last one short
    for arm, factor in (("ours-3", 2), ("random-3", 2), ("upsample-3", 2), ("noise-2", 1)):
        assert facts(many_arms.run, arm).steps == [3 * -(-(60 + factor * count) // 16) for count in slow], arm


def test_the_original_at_equal_steps_takes_as_many_steps_and_no_other_image(many_arms: SimpleNamespace) -> None:
    assert facts(many_arms.run, "original@ours-3").steps == facts(many_arms.run, "ours-3").steps
    assert facts(many_arms.run, "original@ours-3").steps != facts(many_arms.run, "original").steps
    config = read_json(many_arms.run.path / "retrained/original@ours-3-sgd/config.json")
    assert config["examples"] == read_json(many_arms.run.path / "retrained/original-sgd/config.json")["examples"]


def test_calls_are_counted_by_level_and_twice_with_guidance(many_arms: SimpleNamespace) -> None:
    slow = many_arms.run.record(SELECT).facts.slow
    calls = {"original": 0, "upsample-3": 0, "ours-3": 3 + 5, "random-3": 3 + 5, "noise-2": 10}
    for arm, steps in calls.items():
        assert facts(many_arms.run, arm).denoiser_calls == [2 * steps * count for count in slow], arm
    levels = synthetic(many_arms.run)["level_steps"].to_pylist()
    assert many_arms.run.record(GENERATE).facts.denoiser_calls == 2 * sum(levels)


def test_random_takes_as_many_of_each_class_as_the_clusters(many_arms: SimpleNamespace) -> None:
    labels = load(many_arms.config.data).train.labels
    for number in (0, 1):
        clustered = selected(many_arms.run, "cluster", number)
        drawn = selected(many_arms.run, "random", number)
        assert (
            np.bincount(labels[drawn], minlength=10).tolist() == np.bincount(labels[clustered], minlength=10).tolist()
        )
        assert drawn.tolist() != clustered.tolist()


def test_a_synthetic_image_has_label_and_digest_of_its_source(many_arms: SimpleNamespace) -> None:
    train = load(many_arms.config.data).train
    table = synthetic(many_arms.run)
    sources = table["source_index"].to_numpy()
    assert table["label"].to_pylist() == train.labels[sources].tolist()
    assert table["source_sha256"].to_pylist() == [train.sha256[source] for source in sources]


def test_what_is_made_is_what_the_arms_of_all_seeds_want_and_no_more(many_arms: SimpleNamespace) -> None:
    table = synthetic(many_arms.run)
    made = set(zip(table["source_index"].to_pylist(), table["level_steps"].to_pylist(), strict=True))
    by_method = {
        method: {int(row) for number in (0, 1) for row in selected(many_arms.run, method, number)}
        for method in ("cluster", "random")
    }
    varied = {(row, level) for row in by_method["cluster"] | by_method["random"] for level in (3, 5)}
    assert made == varied | {(row, 10) for row in by_method["cluster"]}
    assert table.num_rows == len(made)


def test_pure_noise_is_level_s_of_s(many_arms: SimpleNamespace) -> None:
    table = synthetic(many_arms.run)
    noise = table.filter(pa.compute.equal(table["level_steps"], 10))
    assert noise.num_rows > 0
    assert set(noise["level_grid"].to_pylist()) == {10}
    assert set(noise["log_snr"].to_pylist()) == {-np.inf}
    assert set(noise["strength"].to_pylist()) == {1.0}


def test_states_that_are_not_ok_keep_an_image_out_of_training(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    contrast = np.median(synthetic(finished)["contrast"].to_numpy())
    config = tiny({"quality.min_contrast": float(contrast)})
    story.all_stages(finished.path, config)
    table = synthetic(finished)
    expected = []
    for number in (0, 1):
        mine = np.isin(table["source_index"].to_numpy(), selected(finished, "cluster", number))
        expected.append(int((mine & (table["contrast"].to_numpy() >= contrast)).sum()))
    slow = finished.record(SELECT).facts.slow
    assert facts(finished, "ours-3").images_added == expected
    assert all(count < 2 * s for count, s in zip(expected, slow, strict=True))
    assert facts(finished, "original").images_added == [0, 0]


# --------------------------------------------------------------------------------------- what is made again


def test_a_second_call_skips_every_stage_and_writes_nothing_anew(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    contents, times = story.contents(finished.path), story.times(finished.path)
    story.all_stages(finished.path, tiny())
    assert story.made(finished) == set()
    again = story.times(finished.path)
    rewritten = {name for name in again if again[name] != times.get(name)}
    # Records learn that their stage was skipped; the config and the manifest are written again, the same.
    assert rewritten <= {
        "config.json",
        "origin.json",
        "synthetic/manifest.json",
        *(f"stages/{s}.json" for s in BEFORE_RETRAINING | BOTH_ARMS | {"slow-list"}),
    }
    for name, content in story.contents(finished.path).items():
        if name.startswith("stages/") and name != "stages/frechet.json":  # the report's, which is not written again
            assert json.loads(content) == {**json.loads(contents[name]), "skipped": True}
        else:
            assert content == contents[name], name
    story.all_stages(finished.path, tiny())
    third = story.times(finished.path)
    assert {name for name in third if third[name] != again[name]} <= {
        "config.json",
        "origin.json",
        "synthetic/manifest.json",
    }


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"workers": 2, "generate.processes": 1, "train.rho": 0.2}, set()),  # rho is of SAM, these arms are SGD's
        ({"quality.min_distance": 1e-6}, {"generate"}),  # a threshold that moves no state
        ({"data.test_limit": 40}, BOTH_ARMS),
        ({"plan.part_size": 11}, {"generate"}),  # other files, the same images
        ({"plan.levels": (2, 5)}, {"plan", "generate", "retrain-ours-3-sgd"}),
        # This generator reads no prompt, and its images have its size already.
        ({"prompts.templates": ("the digit {name}",), "sizes.filter": "lanczos"}, {"plan", "generate"}),
        ({"slow.space": "logits"}, {"select", "plan", "generate", "retrain-ours-3-sgd"}),
        ({"slow.separating_epoch": 2}, {"early", "select", "plan", "generate", "retrain-ours-3-sgd"}),
        ({"train.lr": 0.04}, BEFORE_RETRAINING | BOTH_ARMS),
        ({"optimizers": ("sgd", "sam")}, {"retrain-original-sam", "retrain-ours-3-sam"}),
        ({"arms": ("original", "ours-3", "upsample-3")}, {"retrain-upsample-3-sgd"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_setting_runs_the_stages_again_that_depend_on_it_and_no_other(
    changes: dict[str, Any], made: set[str], finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    story.all_stages(finished.path, tiny(changes))
    assert story.made(finished) == made


def test_another_mapping_of_classes_makes_images_of_the_other_classes(
    finished: RunFolder, tiny: Tiny, story: Story, tmp_path: Path
) -> None:
    before = synthetic(finished)
    (tmp_path / "map.json").write_text(json.dumps({str(digit): 9 - digit for digit in range(10)}))
    story.all_stages(finished.path, tiny({"generate.classes": str(tmp_path / "map.json")}))
    assert story.made(finished) == {"plan", "generate", "retrain-ours-3-sgd"}
    after = synthetic(finished)
    assert after["label"].equals(before["label"])
    assert after["generator_label"].to_pylist() == [9 - label for label in before["label"].to_pylist()]
    assert not after["image"].equals(before["image"])


def test_rho_runs_the_arms_of_sam_again_and_nothing_else(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    both = tiny({"optimizers": ("sgd", "sam")})
    story.all_stages(finished.path, both)
    story.all_stages(finished.path, tiny({"optimizers": ("sgd", "sam"), "train.rho": 0.5}))
    assert story.made(finished) == {"retrain-original-sam", "retrain-ours-3-sam"}


def test_a_run_that_was_changed_and_changed_back_is_what_it_was(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    before = story.contents(finished.path)
    story.all_stages(finished.path, tiny({"plan.levels": (2, 5), "train.lr": 0.04}))
    story.all_stages(finished.path, tiny())
    now = story.contents(finished.path)
    for name in before:
        if not name.startswith(("stages/", "synthetic/.parts/")):  # these tell the time
            assert now[name] == before[name], name


def test_a_generator_is_its_weights_wherever_it_lies(
    finished: RunFolder, tiny: Tiny, story: Story, generator: Path, tmp_path: Path
) -> None:
    shutil.copytree(generator, tmp_path / "moved")
    shutil.copytree(generator, tmp_path / "other")
    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({name: tensor * np.float32(1.5) for name, tensor in tensors.items()}, weights)
    moved, other = (tiny({"generate.generator": str(tmp_path / name)}) for name in ("moved", "other"))
    before = story.data_set(finished)
    story.all_stages(finished.path, moved)
    assert story.made(finished) == set()
    assert story.data_set(finished) == before
    story.all_stages(finished.path, other)
    assert story.made(finished) == {"plan", "generate", "retrain-ours-3-sgd"}
    now = story.data_set(finished)
    assert not any(now[name] == before[name] for name in before)


def test_scores_are_those_of_the_early_classifier_of_now(tiny: Tiny, story: Story, tmp_path: Path) -> None:
    # With `all` the plan stays the same whatever the early classifier says.
    early, late = (tiny({"arms": ("all-3",), "slow.separating_epoch": epoch, "plan.part_size": 60}) for epoch in (1, 2))
    changed = story.up_to_plan(tmp_path / "changed", early)
    story.make_images(changed, early)
    plan, scores = digest_file(changed.path / "plan.parquet"), synthetic(changed)["label_probability"].to_pylist()
    story.up_to_plan(changed.path, late)
    story.make_images(changed, late)
    assert digest_file(changed.path / "plan.parquet") == plan
    assert synthetic(changed)["label_probability"].to_pylist() != scores
    fresh = story.up_to_plan(tmp_path / "fresh", late)
    story.make_images(fresh, late)
    assert story.data_set(changed) == story.data_set(fresh)


def test_a_new_arm_leaves_the_finished_ones_alone(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    times = story.times(finished.path)
    story.all_stages(finished.path, tiny({"arms": ("original", "ours-3", "random-3", "original@random-3")}))
    # The selection, the plan and the parts grow; what the old arms train on does not change.
    assert story.made(finished) == {
        "select",
        "plan",
        "generate",
        "retrain-random-3-sgd",
        "retrain-original@random-3-sgd",
    }
    now = story.times(finished.path)
    for arm in ("original", "ours-3"):
        for file in ("seed-0.safetensors", "seed-1.safetensors", "config.json"):
            name = f"retrained/{arm}-sgd/{file}"
            assert now[name] == times[name]


def test_thresholds_move_without_generating_again(
    finished: RunFolder, tiny: Tiny, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = tiny({"quality.min_contrast": float(np.median(synthetic(finished)["contrast"].to_numpy()))})
    fresh = story.up_to_plan(tmp_path / "fresh", strict)
    story.make_images(fresh, strict)
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "draw", _never)
        assert story.make_images(finished, strict) == []
        assert story.contents(finished.path / "synthetic").keys() == story.contents(fresh.path / "synthetic").keys()
        states = SyntheticFolder(finished.path / "synthetic").manifest()["states"]
        assert abs(states["flat"] - states["ok"]) <= 1  # below and above the median
        # And it is the data set that these thresholds give from the start.
        assert story.data_set(finished) == story.data_set(fresh)
        story.make_images(finished, tiny())
    assert SyntheticFolder(finished.path / "synthetic").manifest()["states"]["flat"] == 0


def _never(*_: object, **__: object) -> Any:
    raise AssertionError("images were made again")


# --------------------------------------------------------------------------------------- what is damaged


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flip_a_byte, "part-00001.parquet"),
        (Path.unlink, "part-00001.parquet"),
        (cut_in_half, ".parts/part-00001.json"),
        (empty, ".parts/part-00001.json"),
    ],
)
def test_a_damaged_part_is_made_again_and_no_other(
    damage: Callable[[Path], None], name: str, finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    before, times = story.data_set(finished), story.times(finished.path / "synthetic")
    damage(finished.path / "synthetic" / name)
    if name.endswith("parquet"):
        with pytest.raises(ValueError, match=r"part-00001\.parquet is missing or damaged"):
            synthetic(finished)
    assert story.make_images(finished, tiny()) == [1]
    assert story.data_set(finished) == before  # the manifest with its digest included
    now = story.times(finished.path / "synthetic")
    rewritten = {file for file in now if now[file] != times[file]}
    assert rewritten == {"part-00001.parquet", ".parts/part-00001.json", "manifest.json"}


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink])
def test_a_damaged_manifest_is_written_again_the_same(
    damage: Callable[[Path], None], finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    before = story.data_set(finished)
    damage(finished.path / "synthetic" / "manifest.json")
    assert story.make_images(finished, tiny()) == []
    assert story.data_set(finished) == before


@pytest.mark.parametrize(
    ("damage", "name", "made"),
    [
        (flip_a_byte, "early/seed-1/outputs.npz", {"early"}),
        (Path.unlink, "early/seed-0/model.safetensors", {"early"}),
        (flip_a_byte, "selection/cluster/seed-1.npz", {"select"}),
        (flip_a_byte, "plan.parquet", {"plan"}),
        (Path.unlink, "retrained/ours-3-sgd/seed-0.safetensors", {"retrain-ours-3-sgd"}),
        (flip_a_byte, "retrained/original-sgd/config.json", {"retrain-original-sgd"}),
        (flip_a_byte, "stages/early.json", {"early"}),
        (Path.unlink, "stages/retrain-original-sgd.json", {"retrain-original-sgd"}),
    ],
)
def test_a_damaged_output_is_made_again_the_same_and_nothing_after_it(
    damage: Callable[[Path], None], name: str, made: set[str], finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    before = story.contents(finished.path)
    damage(finished.path / name)
    story.all_stages(finished.path, tiny())
    assert story.made(finished) == made
    now = story.contents(finished.path)
    assert now.keys() == before.keys()
    for file in before:
        if not file.startswith("stages/"):
            assert now[file] == before[file], file


def test_parts_of_a_longer_plan_do_not_stay_behind(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    story.make_images(finished, tiny({"plan.part_size": 50}))
    files = {file.name for file in (finished.path / "synthetic").glob("*.parquet")}
    assert files == {part["file"] for part in SyntheticFolder(finished.path / "synthetic").manifest()["parts"]}
    assert len(files) == 2


def test_there_is_no_data_set_from_the_moment_a_part_is_to_be_made_until_all_are(
    finished: RunFolder, tiny: Tiny
) -> None:
    (finished.path / "synthetic" / "part-00001.parquet").unlink()
    synthesis.open_parts(finished, tiny())
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        training.retrain_arm(finished, tiny(), "ours-3", "sam")
    assert not (finished.path / "retrained/ours-3-sam").exists()


def test_a_data_set_of_other_settings_is_refused(finished: RunFolder, tiny: Tiny) -> None:
    slow = finished.record(SELECT).facts.slow[0]
    words = rf"made with other settings: {slow} of {2 * slow} images of arm ours-3, seed 0, are not in it; run `"
    with pytest.raises(ValueError, match=words):
        training.retrain_arm(finished, tiny({"plan.levels": (4, 5)}), "ours-3", "sgd")
    with pytest.raises(ValueError, match=f"{2 * slow} of {2 * slow} images of arm ours-3"):
        training.retrain_arm(finished, tiny({"sample.grid": 20}), "ours-3", "sgd")


def test_images_of_which_none_is_ok_are_no_training_set(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    config = tiny({"quality.min_contrast": 128})
    story.make_images(finished, config)
    with pytest.raises(ValueError, match=r"none of the \d+ images in .*synthetic is ok; look at their states"):
        training.retrain_arm(finished, config, "ours-3", "sgd")
    training.retrain_arm(finished, config, "original", "sgd")  # needs none
    told = tiny({"quality.min_contrast": 128, "train_states": ("ok", "flat")})
    training.retrain_arm(finished, told, "ours-3", "sgd")
    added = finished.record(retrain_key("ours-3", "sgd")).facts.images_added
    assert added == [2 * slow for slow in finished.record(SELECT).facts.slow]  # k - 1 each


def test_classes_that_have_no_slow_half_are_named_before_it_is_refused(
    tmp_path: Path, tiny: Tiny, story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny({"data.train_limit": 10, "train.batch_size": 4})  # one image a class
    run = checks.open_run(config, str(tmp_path / "run"))
    training.train_early(run, config)
    with pytest.raises(ValueError, match=r"no class has a slow half.*see the warnings above"):
        select.select_examples(run, config)
    assert "warning: seed 0: no slow half in class 0, 1, 2" in capsys.readouterr().err
    assert not (run.path / "stages/select.json").exists()


# --------------------------------------------------------------------------------------- what changes nothing


@pytest.fixture
def planned(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """The finished run without its synthetic images."""
    shutil.rmtree(finished.path / "synthetic")
    return finished


def test_parts_made_backwards_are_the_same_files(
    planned: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story
) -> None:
    assert len(story.make_images(planned, tiny(), backwards=True)) > 5
    assert story.data_set(planned) == story.data_set(pristine)


def test_the_batch_size_changes_no_image(planned: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story) -> None:
    story.make_images(planned, tiny({"generate.batch_size": 5}))
    story.same_but_for_rounding(planned, pristine)


def test_every_image_has_a_seed_of_its_own_that_follows_from_the_runs(pristine: RunFolder) -> None:
    table = synthetic(pristine)
    assert len(set(table["item_id"].to_pylist())) == table.num_rows
    # No digit is there twice, so each stands first among its equals; levels of 10, one variant at each.
    names = zip(table["source_sha256"].to_pylist(), table["level_steps"].to_pylist(), strict=True)
    assert table["seed"].to_pylist() == [child_seed(0, "image", digest, 0, steps, 10, 0) for digest, steps in names]
    assert len({image["bytes"] for image in table["image"].to_pylist()}) == table.num_rows


def test_the_test_split_has_no_part_in_anything_before_retraining(
    tmp_path: Path, pristine: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loaders.images_of

    def shuffled(config: CompareConfig) -> Splits:
        splits = real(config)
        labels = np.random.default_rng(0).permutation(splits.test.labels)
        test = LabeledImages(255 - splits.test.pixels(), labels, splits.test.class_names, "shuffled")
        return Splits(splits.train, test, splits.generator)

    monkeypatch.setattr(loaders, "images_of", shuffled)
    monkeypatch.setattr(checks, "images_of", shuffled)
    monkeypatch.setattr(scorers, "images_of", shuffled)
    run = story.up_to_plan(tmp_path / "run", tiny())
    story.make_images(run, tiny())
    training.retrain_arm(run, tiny(), "ours-3", "sgd")
    now, before = story.contents(run.path), story.contents(pristine.path)
    for name in now:
        if name.startswith(("early/", "selection/", "plan", "synthetic/p", "synthetic/m", "retrained/ours-3-sgd/seed")):
            assert now[name] == before[name], name
    assert facts(run, "ours-3").errors != facts(pristine, "ours-3").errors  # the shuffling is seen at all


@pytest.mark.slow  # two processes that import torch; by threads, tests/flows/test_pipeline.py has it
def test_classifiers_trained_side_by_side_in_processes_are_those_trained_in_turn(
    pristine: RunFolder, finished: RunFolder, tiny: Tiny, two_processes: ProcessPoolExecutor
) -> None:
    shutil.rmtree(finished.path / "retrained")
    jobs = [two_processes.submit(training.retrain_arm, finished, tiny(), arm, "sgd") for arm in tiny().arms]
    for job in jobs:
        job.result(timeout=120)
    for arm in tiny().arms:
        assert not finished.record(retrain_key(arm, "sgd")).skipped
        assert facts(finished, arm).errors == facts(pristine, arm).errors
        assert facts(finished, arm).train_error == facts(pristine, arm).train_error


def test_networks_too_large_to_train_together_are_trained_one_after_the_other_and_kept(
    finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"classifier.model": "preact-resnet18", "arms": ("original",)})
    run = checks.open_run(config, str(finished.path))
    training.train_early(run, config)
    select.select_examples(run, config)
    real, starts = fitting.fit, []

    def second_fails(models: Any, *args: Any, **kwargs: Any) -> Any:
        starts.append(kwargs["start"].step if kwargs["start"] else 0)
        if len(starts) == 2:
            raise OSError("the machine went away")
        return real(models, *args, **kwargs)

    monkeypatch.setattr(fitting, "fit", second_fails)
    with pytest.raises(OSError, match="went away"):
        training.retrain_arm(run, config, "original", "sgd")
    training.retrain_arm(run, config, "original", "sgd")
    # The first one was done (12 steps), so it is not trained again; the second one starts anew.
    assert starts == [0, 0, 12, 0]
    assert not list(run.path.rglob("checkpoint*"))
    weights = [digest_file(run.path / f"retrained/original-sgd/seed-{n}.safetensors") for n in (0, 1)]
    errors, curve = facts(run, "original").errors, facts(run, "original").train_error
    (run.path / "stages/retrain-original-sgd.json").unlink()
    training.retrain_arm(run, config, "original", "sgd")
    assert starts[4:] == [0, 0]
    assert [digest_file(run.path / f"retrained/original-sgd/seed-{n}.safetensors") for n in (0, 1)] == weights
    assert (facts(run, "original").errors, facts(run, "original").train_error) == (errors, curve)
    assert len(curve) == 3


# --------------------------------------------------------------------------------------- early training, forecast


def test_the_separating_epoch_is_the_one_that_was_asked_for_or_the_knee(
    tmp_path: Path, tiny: Tiny, pristine: RunFolder
) -> None:
    asked = pristine.record(EARLY).facts
    assert (asked.separating_epoch, asked.by_knee) == (1, False)
    assert [len(errors) for errors in asked.errors] == [1, 1]
    config = tiny({"slow.separating_epoch": 0, "train.epochs": 24})
    run = checks.open_run(config, str(tmp_path / "run"))
    training.train_early(run, config)
    knee = run.record(EARLY).facts
    assert knee.by_knee
    assert knee.epochs_of_training == 24
    assert knee.epochs[0] == knee.epochs[1] <= 6  # it looks at a quarter of the run
    assert 1 <= knee.separating_epoch <= knee.epochs[0]
    assert {path.name for path in (run.path / "early").iterdir()} == {"seed-0", "seed-1"}
    # The weights are those of that epoch of the whole run, whoever chose it.
    chosen = tiny({"slow.separating_epoch": knee.separating_epoch, "train.epochs": 24})
    other = checks.open_run(chosen, str(tmp_path / "other"))
    training.train_early(other, chosen)
    for name in ("model.safetensors", "outputs.npz"):
        assert digest_file(run.path / "early/seed-1" / name) == digest_file(other.path / "early/seed-1" / name)


@pytest.mark.parametrize("model", ["small-cnn", "resnet20"])
def test_no_early_epoch_is_trained_twice_to_find_the_knee(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Interrupted after its second epoch too. Of seeds trained one after the other all have the knee of the first."""
    changes = {"classifier": {"model": model, "width": 4}, "slow": {"patience": 1}, "train.epochs": 40, "train.lr": 0.1}
    config, real, save, trained = tiny(changes), fitting.fit, fitting.save_fit, []

    def counting(models: Any, *args: Any, on_epoch: Any, **options: Any) -> Any:
        def note(state: Any) -> Any:
            trained.append(len(state.histories[0].loss))
            return on_epoch(state)

        return real(models, *args, on_epoch=note, **options)

    def stops_after_two(file: Path, models: Any, state: Any, key: str) -> None:
        save(file, models, state, key)
        if state.step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(fitting, "fit", counting)
    whole = checks.open_run(config, str(tmp_path / "whole"))
    training.train_early(whole, config)
    facts = whole.record(EARLY).facts
    knee, first = facts.separating_epoch, facts.epochs[0]
    assert 2 <= knee < first < 10
    assert facts.epochs == ([first, first] if model == "small-cnn" else [first, knee])
    assert trained == [*range(1, first + 1), *(range(1, knee + 1) if model != "small-cnn" else ())]

    trained.clear()
    run = checks.open_run(config, str(tmp_path / "run"))
    monkeypatch.setattr(fitting, "save_fit", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        training.train_early(run, config)
    assert list((run.path / "early").glob("epoch-2-*"))
    monkeypatch.setattr(fitting, "save_fit", save)
    training.train_early(run, config)
    assert trained == [*range(1, first + 1), *(range(1, knee + 1) if model != "small-cnn" else ())]
    for name in ("seed-0", "seed-1"):
        for file in ("model.safetensors", "outputs.npz"):
            assert digest_file(run.path / "early" / name / file) == digest_file(whole.path / "early" / name / file)
    asked = tiny(changes | {"slow": {"separating_epoch": knee}})
    other = checks.open_run(asked, str(tmp_path / "other"))
    training.train_early(other, asked)
    for name in ("seed-0", "seed-1"):
        file = f"early/{name}/model.safetensors"
        assert digest_file(run.path / file) == digest_file(other.path / file)


def test_the_forecast_counts_what_is_then_made(pristine: RunFolder) -> None:
    forecast = pristine.record(PLAN).facts.forecast
    table = synthetic(pristine)
    levels = table["level_steps"].to_pylist()
    assert forecast.images == table.num_rows
    assert forecast.per_level == {"3 of 10": levels.count(3), "5 of 10": levels.count(5)}
    assert sum(forecast.per_class.values()) == table.num_rows
    assert forecast.denoiser_calls == pristine.record(GENERATE).facts.denoiser_calls
    assert forecast.seconds > 0
    assert forecast.bytes > 0
