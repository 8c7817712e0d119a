"""What can go wrong while images are made: memory, thresholds, and what a plan tells of its generator."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from digits import save_digits

from latebloom.data.images import encode_png
from latebloom.data.store import read_json, write_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Partial, RunFolder
from latebloom.flows.run.records import PLAN
from latebloom.flows.stages import loaders, planning, select, synthesis, training
from latebloom.flows.stages.classifiers import new_classifiers
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.fidelity import measure
from latebloom.flows.stages.filtering import move_thresholds
from latebloom.flows.stages.loaders import generator_of, images_of
from latebloom.synth import making
from latebloom.synth.plan import PLAN_SCHEMA
from latebloom.synth.probe import Probe
from latebloom.synth.sampling.denoiser import Made, Wanted
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.train.evaluate import logits_of, softmax
from latebloom.train.loop.checkpoint import load_model

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace


def never(*_: object, **__: object) -> Any:
    raise AssertionError("images were made again")


@pytest.fixture
def planned(finished: RunFolder) -> RunFolder:
    """The finished run without its synthetic images."""
    shutil.rmtree(finished.path / "synthetic")
    return finished


# ------------------------------------------------------------------------------------------------- memory


class Narrow:
    """A generator on a device that has room for so many images at once."""

    def __init__(self, real: Any, most: int) -> None:
        self.real, self.most = real, most
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def make(self, references: torch.Tensor, wanted: Wanted) -> Made:
        self.asked.append(len(wanted))
        if len(wanted) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real.make(references, wanted)


def test_batches_that_do_not_fit_are_halved_once_and_for_all_and_change_no_image(
    planned: RunFolder,
    pristine: RunFolder,
    tiny: Tiny,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    narrow = Narrow(generator_of(tiny()), 4)
    monkeypatch.setattr(synthesis, "generator_of", lambda _: narrow)
    story.make_images(planned, tiny())
    assert narrow.asked[:4] == [8, 4, 4, 4]  # parts of 8
    assert max(narrow.asked[1:]) == 4
    assert "generate: out of memory; batches of 4 to make 8x8" in capsys.readouterr().err.splitlines()
    assert read_json(planned.path / "batch_sizes.json") == {f"cpu {narrow.digest[:16]}": {"make 8x8": 4}}
    story.same_but_for_rounding(planned, pristine)
    shutil.rmtree(planned.path / "synthetic")
    narrow.asked.clear()
    story.make_images(planned, tiny())  # as another process would, or the same command another day
    assert max(narrow.asked) == 4
    story.same_but_for_rounding(planned, pristine)


def test_a_device_without_room_for_one_image_ends_it_with_what_to_do(
    planned: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = Narrow(generator_of(tiny()), 0)
    monkeypatch.setattr(synthesis, "generator_of", lambda _: narrow)
    with pytest.raises(MemoryError, match=r"not even one image fits into the memory \(make 8x8\); set a smaller"):
        story.make_images(planned, tiny())
    assert not (planned.path / "synthetic").exists()


# ------------------------------------------------------------------------------------------------- ended in the middle


class Ended:
    """A generator that is ended by Ctrl-C in its n-th call; `made` has the images of each call that it finished."""

    def __init__(self, real: Any, call: int, folder: Path) -> None:
        self.real, self.call, self.folder = real, call, folder
        self.made: list[int] = []
        self.kept = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def make(self, references: torch.Tensor, wanted: Wanted) -> Made:
        if len(self.made) + 1 == self.call:
            self.kept = len(list((self.folder / "synthetic/.cache").glob("*.parquet")))
            raise KeyboardInterrupt
        self.made.append(len(wanted))
        return self.real.make(references, wanted)


@pytest.mark.parametrize("seconds", [1000.0, 0.0])
def test_the_batches_of_a_part_that_was_ended_are_not_made_again(
    seconds: float, planned: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny({"generate.batch_size": 3})  # parts of 8: three batches each
    shutil.copytree(planned.path, tmp_path / "undisturbed")
    undisturbed = RunFolder(tmp_path / "undisturbed")
    story.make_images(undisturbed, config)
    monkeypatch.setattr(making, "KEEP_SECONDS", seconds)
    first = Ended(generator_of(config), 6, planned.path)  # in the last batch of the second part
    monkeypatch.setattr(synthesis, "generator_of", lambda _: first)
    with pytest.raises(KeyboardInterrupt):
        story.make_images(planned, config)
    assert first.made == [3, 3, 2, 3, 3]
    assert first.kept == (0 if seconds else 2)  # a process that is killed keeps what it had time to
    second = Ended(generator_of(config), 0, planned.path)
    monkeypatch.setattr(synthesis, "generator_of", lambda _: second)
    story.make_images(planned, config)
    assert second.made[:2] == [2, 3]
    images = SyntheticFolder(undisturbed.path / "synthetic").rows().num_rows
    assert sum(first.made) + sum(second.made) == images
    assert story.data_set(planned) == story.data_set(undisturbed)
    assert not list((planned.path / "synthetic/.cache").glob("*"))


def test_images_are_counted_by_denoiser_step(planned: RunFolder, tiny: Tiny, story: Story) -> None:
    config, counts = tiny({"generate.batch_size": 8}), []
    synthesis.open_parts(planned, config)
    synthesis.make_one_part(planned, config, 0, counts.append)
    # One batch of 8 images: of levels 3 and 5 of 10, the deepest first, so it takes 5 steps.
    assert len(counts) >= 5
    assert all(count > 0 for count in counts)
    assert sum(counts) == pytest.approx(8)
    again: list[float] = []
    synthesis.make_one_part(planned, config, 0, again.append)  # all are known
    assert again == [8]


# ------------------------------------------------------------------------------------------------- what failed


def test_what_failed_is_listed_until_all_is_made(finished: RunFolder, tiny: Tiny) -> None:
    file = finished.path / "synthetic" / "failures.json"
    with pytest.raises(Partial) as caught:
        synthesis.check_failures(finished, tiny(), {"part 2": "it broke\nhere", "0000003-5of10-v0": "so did this"})
    words = f"2 images or parts could not be made, listed in {file}; the first is part 2: it broke"
    assert str(caught.value) == words
    assert read_json(file) == {"part 2": "it broke\nhere", "0000003-5of10-v0": "so did this"}
    with pytest.raises(Partial):  # a whole part is never left out
        synthesis.check_failures(finished, tiny({"generate.leave_out_failed": True}), {"part 2": "it broke"})
    synthesis.check_failures(finished, tiny(), {})
    assert not file.exists()
    file.write_text("{}")  # of a command that was killed after its last part
    synthesis.finish_synthetic(finished, tiny())
    assert not file.exists()


# ------------------------------------------------------------------------------------------------- duplicates


def test_duplicates_are_found_over_the_whole_set_and_without_making_it_again(
    finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = tiny({"quality.min_duplicate_distance": 255})  # all images are: of each class the first is left
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "draw", never)
        assert story.make_images(finished, alike) == []
        moved = story.data_set(finished)
        table = SyntheticFolder(finished.path / "synthetic").rows()
        seen: set[int] = set()
        for label, state in zip(table["label"].to_pylist(), table["state"].to_pylist(), strict=True):
            assert state == ("duplicate" if label in seen else "ok")
            seen.add(label)
        story.make_images(finished, tiny())
        assert story.data_set(finished) == story.data_set(pristine)
    shutil.rmtree(finished.path / "synthetic")
    story.make_images(finished, alike)
    assert story.data_set(finished) == moved


# ------------------------------------------------------------------------------------------ the reference classifier


def test_a_reference_classifier_that_is_named_scores_in_place_of_the_early_classifiers(
    finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    folder = SyntheticFolder(finished.path / "synthetic")
    before = folder.rows()
    file = finished.path / "retrained/ours-3-sgd/seed-1.safetensors"
    story.make_images(finished, tiny({"scores.reference_classifier": str(file)}))
    now = folder.rows()
    assert now.select([*PLAN_SCHEMA.names, "image"]) == before.select([*PLAN_SCHEMA.names, "image"])
    train = images_of(tiny()).train
    reference = new_classifiers(tiny({"seeds": 1}), train)[0]
    load_model(file, reference)
    seen = softmax(logits_of(reference, folder.images(now, train)))
    expected = seen[np.arange(len(seen)), now["label"].to_numpy()]
    np.testing.assert_allclose(now["label_probability"].to_numpy(), expected, rtol=1e-5)
    assert not np.allclose(before["label_probability"].to_numpy(), expected, rtol=1e-2)


# ------------------------------------------------------------------------------------------------- the plan


def test_a_plan_tells_of_its_generator_and_so_does_the_data_set(pristine: RunFolder, tiny: Tiny) -> None:
    generator = generator_of(tiny())
    planned = pristine.record(PLAN).facts.generator
    assert planned.config["generator"] == tiny().generate.generator
    assert planned.model_dump(exclude={"config"}) == {
        "name": "tiny",
        "digest": generator.digest,
        "licence": generator.licence,
        "trained_on": "40 digits",
        "seen": 0,
        "only_these": False,
    }
    about = SyntheticFolder(pristine.path / "synthetic").manifest()["about"]
    assert (about["generator"], about["generator_digest"]) == ("tiny", generator.digest)


def test_images_that_fail_are_left_out_where_that_is_asked_for_and_tried_again_the_next_time(
    planned: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, item = LoopGenerator.make, SyntheticFolder(pristine.path / "synthetic").rows().slice(9, 1).to_pylist()[0]

    def moody(self: LoopGenerator, references: Any, wanted: Wanted) -> Made:
        if item["seed"] in wanted.seeds:
            raise RuntimeError("no")
        return make(self, references, wanted)

    config = tiny({"generate.leave_out_failed": True})
    monkeypatch.setattr(LoopGenerator, "make", moody)
    story.make_images(planned, config)
    folder = SyntheticFolder(planned.path / "synthetic")
    assert folder.manifest()["about"]["left_out"] == [item["item_id"]]
    assert folder.manifest()["rows"] == SyntheticFolder(pristine.path / "synthetic").manifest()["rows"] - 1
    training.retrain_arm(planned, config, "ours-3", "sgd")
    monkeypatch.setattr(LoopGenerator, "make", make)
    assert len(story.make_images(planned, tiny())) == 1
    assert folder.manifest() == SyntheticFolder(pristine.path / "synthetic").manifest()


OTHER_PLANS: list[dict[str, Any]] = [
    {"plan.part_size": 40},
    {"arms": ("original", "ours-3", "random-3")},
    {"seeds": 3},
]


@pytest.mark.parametrize("changes", OTHER_PLANS, ids=lambda changes: "-".join(changes))
def test_images_that_fit_another_plan_are_not_drawn_again(
    changes: dict[str, Any],
    finished: RunFolder,
    tmp_path: Path,
    tiny: Tiny,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = set(SyntheticFolder(finished.path / "synthetic").rows()["item_id"].to_pylist())
    config = tiny(changes)
    made: list[int] = []
    make = LoopGenerator.make
    training.train_early(finished, config)
    select.select_examples(finished, config)
    planning.plan_images(finished, config)
    monkeypatch.setattr(LoopGenerator, "make", lambda *args: made.append(len(args[2])) or make(*args))
    story.make_images(finished, config)
    items = SyntheticFolder(finished.path / "synthetic").rows()["item_id"].to_pylist()
    assert sum(made) == len(set(items) - before)
    if "seeds" not in changes:  # with other early classifiers the reference classifier is another, and so are scores
        story.same_but_for_rounding(finished, story.with_images(tmp_path / "fresh", config))
    assert not list((finished.path / "synthetic").glob(".cache/*"))


def test_another_reference_classifier_scores_the_images_that_are_there(
    finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SyntheticFolder(finished.path / "synthetic").rows()
    manifest = (finished.path / "synthetic" / "manifest.json").read_bytes()
    monkeypatch.setattr(LoopGenerator, "make", never)
    config = tiny(
        {"scores": {"reference_classifier": str(finished.path / "retrained/original-sgd/seed-0.safetensors")}}
    )
    story.make_images(finished, config)
    after = SyntheticFolder(finished.path / "synthetic").rows()
    assert after["image"].equals(before["image"])
    assert after["label_probability"].to_pylist() != before["label_probability"].to_pylist()
    story.make_images(finished, tiny())
    assert (finished.path / "synthetic" / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"sample.guidance_scale": 2}, "sample"),
        ({"sizes": {"work_size": 16}}, "sizes"),
        ({"prompts": {"negative": "blur"}}, "negative_prompt"),
        ({"generate.classes": "order"}, "classes"),
        ({"data.subset_seed": 1}, "data"),
        ({"seed": 5}, "seed"),
        ({"generate.generator": "digits"}, "generate"),
        ({"quality.min_contrast": 5}, "quality"),
    ],
)
def test_a_data_set_of_other_settings_is_not_taken_for_what_is_asked(
    changes: dict[str, Any], differ: str, pristine: RunFolder, tiny: Tiny
) -> None:
    synthesis.check_made(RunContext(pristine, tiny()))
    command = "filter" if differ == "quality" else "generate"
    with pytest.raises(ValueError, match=rf"made with other settings \({differ}\) .*; run `latebloom {command}` first"):
        synthesis.check_made(RunContext(pristine, tiny(changes)))


def test_a_generator_that_changed_since_the_plan_is_refused(
    finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy.copy(generator_of(tiny()))
    other.digest = "0" * 64
    (finished.path / "synthetic" / "part-00000.parquet").unlink()
    monkeypatch.setattr(synthesis, "generator_of", lambda _: other)
    with pytest.raises(ValueError, match="generator tiny is not the one that was planned"):
        synthesis.make_one_part(finished, tiny(), 0, lambda _: None)


def test_processes_are_as_many_as_asked_for_and_one_on_the_cpu(tiny: Tiny) -> None:
    assert planning.generator_processes(tiny()) == 1
    assert planning.generator_processes(tiny({"generate.processes": 3})) == 3


def test_processes_share_the_time_that_is_forecast(
    finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "probe", lambda *_: Probe(2.0, 100.0))
    calls = finished.record(PLAN).facts.forecast.denoiser_calls
    (finished.path / "stages/plan.json").unlink()
    planning.plan_images(finished, tiny({"generate.processes": 3}))
    forecast = finished.record(PLAN).facts.forecast
    assert forecast.seconds == pytest.approx(2 * calls / 3)
    assert forecast.bytes == 100 * forecast.images


# ------------------------------------------------------------------------------------------------- names


@pytest.fixture
def named(tmp_path: Path, tiny: Tiny, story: Story) -> tuple[RunFolder, CompareConfig, Path]:
    """A run up to its images on the image folder `tmp_path / "mine"`: digits, five a class; and that folder."""
    mine = save_digits(tmp_path / "mine")
    config = tiny({"data": {"source": str(mine)}, "seeds": 1})
    return story.with_images(tmp_path / "run", config), config, mine


def again(run: RunFolder, config: CompareConfig, story: Story) -> list[int]:
    """The stages up to the images once more, as another process would; the parts that were made."""
    loaders._images.cache_clear()
    story.up_to_plan(run.path, config)
    made: list[int] = story.make_images(run, config)
    return made


def names_of_rows(run: RunFolder) -> dict[str, str]:
    """By item id, the reference's name that the data set has."""
    rows = SyntheticFolder(run.path / "synthetic").rows()
    return dict(zip(rows["item_id"].to_pylist(), rows["source_name"].to_pylist(), strict=True))


def test_a_renamed_file_is_renamed_in_the_data_set_and_no_image_is_made_again(
    named: tuple[RunFolder, CompareConfig, Path], story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config, mine = named
    before, rows = names_of_rows(run), SyntheticFolder(run.path / "synthetic").rows()
    old = rows["source_name"][0].as_py()
    new = old.replace(".png", " (big cat).png")  # "3.png" and "3 (big cat).png": the order of the folder stays
    for module, name in (
        (synthesis, "draw"),
        (synthesis, "describe"),
        (planning, "probe"),
        (training, "fit_all"),
    ):
        monkeypatch.setattr(module, name, never)
    (mine / old).rename(mine / new)
    parts = {file.name: file.read_bytes() for file in (run.path / "synthetic").glob("part-*.parquet")}
    assert again(run, config, story) == []
    assert names_of_rows(run) == {item: new if name == old else name for item, name in before.items()}
    now = SyntheticFolder(run.path / "synthetic").rows()
    exact = ["item_id", "image", "seed", "label_probability", "state"]
    assert now.select(exact) == rows.select(exact)
    changed = [name for name, content in parts.items() if (run.path / "synthetic" / name).read_bytes() != content]
    assert changed == ["part-00000.parquet"]  # only what has that reference is written again
    synthesis.check_made(RunContext(run, config))
    assert again(run, config, story) == []
    assert names_of_rows(run) == {item: new if name == old else name for item, name in before.items()}


# ------------------------------------------------------------------------------------------------- a growing data set


def images_by_reference(run: RunFolder) -> dict[tuple[str, int], bytes]:
    """The PNG of each image, by the name of its reference and its level."""
    rows = SyntheticFolder(run.path / "synthetic").rows()
    columns = (rows[name].to_pylist() for name in ("source_name", "level_steps", "image"))
    return {(name, level): image["bytes"] for name, level, image in zip(*columns, strict=True)}


def test_a_data_set_that_has_grown_keeps_its_images_and_ends_as_one_made_from_nothing(
    named: tuple[RunFolder, CompareConfig, Path],
    tiny: Tiny,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run, _, mine = named
    config = tiny({"data": {"source": str(mine)}, "seeds": 1, "arms": ("original", "all-3")})
    again(run, config, story)  # two images of each of fifty, in parts of eight
    before = images_by_reference(run)
    assert len(before) == 100
    (mine / "train/0/-first.png").write_bytes(encode_png(np.full((8, 8, 1), 90, np.uint8)))  # all rows move
    (mine / "train/5/2.png").rename(mine / "train/5/renamed.png")
    (mine / "train/7/4.png").unlink()
    made: list[int] = []
    make = LoopGenerator.make
    monkeypatch.setattr(LoopGenerator, "make", lambda *args: made.append(len(args[2])) or make(*args))
    loaders._images.cache_clear()
    for work in (lambda: move_thresholds(run.path, {"min_contrast": 3}), lambda: measure(run.path)):
        with pytest.raises(ValueError, match=r"was made of other images or classes than .* `latebloom generate` first"):
            work()
    assert len(again(run, config, story)) == 13  # every part holds other images now
    assert sum(made) == 2  # of the new one
    fresh = story.with_images(tmp_path / "fresh", config)
    assert sum(made) == 102
    after = images_by_reference(run)
    assert after == images_by_reference(fresh)
    assert story.data_set(run) == story.data_set(fresh)
    kept = {name: image for name, image in after.items() if name in before}
    assert len(kept) == 96  # all but the new one and the renamed one
    assert kept == {name: before[name] for name in kept}
    for level in (3, 5):
        assert after["train/5/renamed.png", level] == before["train/5/2.png", level]
    rows, train = SyntheticFolder(run.path / "synthetic").rows(), images_of(config).train
    sources = rows["source_index"].to_pylist()
    assert rows["source_name"].to_pylist() == [train.names[source] for source in sources]
    assert rows["source_sha256"].to_pylist() == [train.sha256[source] for source in sources]
    assert not list((run.path / "synthetic").glob(".cache/*"))


def test_a_plan_of_a_version_with_other_seeds_is_made_anew_and_said_to_be(
    named: tuple[RunFolder, CompareConfig, Path], story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config, _ = named
    plan = pq.read_table(run.path / "plan.parquet")
    pq.write_table(plan.drop_columns(["generator_label"]), run.path / "plan.parquet")
    stage = read_json(run.path / "stages/plan.json")
    write_json(run.path / "stages/plan.json", {**stage, "digest": "0" * 64})
    before = images_by_reference(run)
    again(run, config, story)
    assert "older version, with other seeds: all of its images are made anew" in capsys.readouterr().err
    assert pq.read_table(run.path / "plan.parquet").equals(plan)
    assert images_by_reference(run) == before
