"""The flows as plain functions. On a Prefect server they run in tests/flows/server/test_served.py."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mortal
import numpy as np
import pytest
import unserved

from latebloom.data.config import DataConfig
from latebloom.data.images import encode_png
from latebloom.data.sources.load import load
from latebloom.data.store import read_json
from latebloom.data.synthetic import folder as synthetic
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows import pipeline, tasks
from latebloom.flows.config.compare import CompareConfig, RunConfig
from latebloom.flows.run.folder import Partial, RunFolder

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace
RunCommand = Callable[..., Any]


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """latebloom.flows.pipeline without Prefect."""
    unserved.unserve(monkeypatch.setattr)
    return pipeline


@pytest.fixture(scope="module")
def setting(settings: dict[str, Any]) -> RunConfig:
    return RunConfig(**settings)


def same_files(run: Path, other: Path, story: Story) -> None:
    """All files alike but for those that hold times."""
    ours, theirs = story.contents(run), story.contents(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if not name.startswith(("stages/", "synthetic/.parts/", "report.")):
            assert ours[name] == theirs[name], name


def test_compare_runs_all_stages_and_a_second_time_skips_them(
    flows: Any, tiny: Tiny, pristine: RunFolder, tmp_path: Path, story: Story
) -> None:
    page = flows.compare(tiny(), str(tmp_path / "run"))
    assert page == str(tmp_path / "run" / "report.html")
    assert Path(page).is_file()
    run = RunFolder(tmp_path / "run")
    same_files(run.path, pristine.path, story)  # as the stages make it without Prefect
    assert story.made(run) == {record["stage"] for record in run.records()} - {"frechet", "slow-list"}
    first = read_json(run.path / "report.json")
    flows.compare(tiny(), str(run.path))
    assert story.made(run) == set()
    second = read_json(run.path / "report.json")
    assert second["arms"] == first["arms"]
    assert [stage["skipped"] for stage in first["stages"]] == [False] * 6
    assert [stage["skipped"] for stage in second["stages"]] == [True] * 6


def test_augment_and_retrain_stands_beside_the_original_at_equal_epochs_and_equal_steps(
    flows: Any, setting: RunConfig, tmp_path: Path
) -> None:
    flows.augment_and_retrain(setting, str(tmp_path / "run"))
    report = read_json(tmp_path / "run" / "report.json")
    assert [arm["arm"] for arm in report["arms"]] == ["original", "original@ours-3", "ours-3"]
    assert {arm["optimizer"] for arm in report["arms"]} == {"sgd"}
    steps = {arm["arm"]: arm["steps"] for arm in report["arms"]}
    assert steps["original"] < steps["original@ours-3"] == steps["ours-3"]
    assert report["sentences"][-1].startswith("One seed cannot tell a difference from chance")


def test_the_stages_as_flows_of_their_own_are_the_whole_run(
    flows: Any, tiny: Tiny, pristine: RunFolder, tmp_path: Path, story: Story
) -> None:
    out, run = str(tmp_path / "run"), RunFolder(tmp_path / "run")
    assert flows.select(tiny(), out) == f"{out}/selection"
    assert story.made(run) == {"early", "select"}
    assert flows.plan(tiny(), out) == f"{out}/plan.parquet"
    assert story.made(run) == {"plan"}
    assert not (run.path / "synthetic").exists()
    assert flows.generate(tiny(), out) == f"{out}/synthetic"
    assert story.made(run) == {"generate"}
    assert flows.retrain(tiny(), out) == f"{out}/retrained"
    assert story.made(run) == {"generate", "retrain-original-sgd", "retrain-ours-3-sgd"}
    assert flows.report(tiny(), out) == f"{out}/report.html"
    same_files(run.path, pristine.path, story)


def test_retraining_begins_with_scouts_where_they_select(flows: Any, tiny: Tiny, tmp_path: Path, story: Story) -> None:
    scout = {"model": "small-cnn", "epochs": 1}
    strong = {"main": "coreset", "copies": 0, "coreset": {"fraction": 0.3}, "scout": scout}
    config = tiny({"arms": ("original", "original+craig"), "strong": strong, "train.epochs": 1})
    flows.retrain(config, str(tmp_path / "run"))
    run = RunFolder(tmp_path / "run")
    assert story.made(run) == {"scout", "retrain-original-sgd", "retrain-original+craig-sgd"}
    assert (run.path / "scout/seed-1.safetensors").is_file()
    flows.compare(config, str(tmp_path / "run"))  # no arm has slow examples: no early classifiers either
    assert story.made(run) == set()
    assert not (run.path / "early").exists()


def test_generate_goes_on_after_a_part_failed(
    flows: Any, tiny: Tiny, pristine: RunFolder, finished: RunFolder, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latebloom.flows.stages import synthesis

    for name in ("part-00001.parquet", "part-00003.parquet", "part-00005.parquet"):
        (finished.path / "synthetic" / name).unlink()
    real, numbers = synthesis.make_one_part, []

    def second_fails(run: RunFolder, config: CompareConfig, number: int, on_images: Any) -> dict[str, Any]:
        numbers.append(number)
        if len(numbers) == 2:
            raise OSError("the disk went away")
        return real(run, config, number, on_images)

    monkeypatch.setattr(synthesis, "make_one_part", second_fails)
    with pytest.raises(Partial, match=r"1 images or parts could not be made.*the disk went away"):
        flows.generate(tiny(), str(finished.path))
    flows.generate(tiny(), str(finished.path))
    assert numbers == [1, 3, 5, 3]
    same_files(finished.path, pristine.path, story)


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_a_part_that_two_died_of_is_left_for_the_next_time(
    flows: Any,
    run_command: RunCommand,
    pristine: RunFolder,
    finished: RunFolder,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from latebloom.flows.stages import synthesis

    for number, lives in ((2, "x"), (4, "xx")):  # no more parts than these: to start a process takes seconds
        (finished.path / f"synthetic/part-{number:05d}.parquet").unlink()
        mortal.deaths(finished, number).write_text(lives)
    monkeypatch.setattr(synthesis, "make_one_part", mortal.make_one_part)
    words = ("generate", "--out", str(finished.path), "--processes", "2")
    outcome = run_command(*words)
    assert outcome.code == 3, outcome.err
    assert outcome.err.splitlines()[-2:] == [
        f"partial: 1 images or parts could not be made, listed in {finished.path}/synthetic/failures.json; the first "
        "is part 4: RuntimeError: two processes died making it (killed, or out of memory); see the system's log",
        f"make the rest: latebloom {' '.join(words)}",
    ]
    assert mortal.deaths(finished, 2).read_text() == mortal.deaths(finished, 4).read_text() == ""
    made, whole = story.data_set(finished), story.data_set(pristine)
    assert whole.keys() - made.keys() == {"part-00004.parquet", "manifest.json"}
    assert made.keys() - whole.keys() == {"failures.json"}
    outcome = run_command(*words)
    assert outcome.code == 0, outcome.err
    assert "generate: 84 of 92 images done before, 1 of 12 parts to make" in outcome.err.splitlines()
    assert story.data_set(finished) == whole  # byte for byte what one process makes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 training and 6 test images of the digits 0, 1 and 2 as a folder of files."""
    splits = load(DataConfig())
    for part, data, count in (("train", splits.train, 8), ("test", splits.test, 2)):
        for label in range(3):
            for number, row in enumerate(np.flatnonzero(data.labels == label)[:count]):
                file = tmp_path / "photos" / part / str(label) / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode_png(data.pixels(np.array([row]))[0]))
    return tmp_path / "photos"


def test_a_reference_that_becomes_unreadable_costs_its_own_images_and_they_are_made_when_it_is_back(
    flows: Any,
    run_command: RunCommand,
    tiny: Tiny,
    photos: Path,
    story: Story,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from latebloom.flows.stages import synthesis

    (tmp_path / "c.json").write_text(
        tiny({"data": {"source": str(photos)}, "arms": ("all-3",), "seeds": 1}).model_dump_json()
    )
    gone, damaged = photos / "train/2/4.png", photos / "train/2/7.png"  # rows 20 and 23 of 24
    contents, real, drawn = {file: file.read_bytes() for file in (gone, damaged)}, synthesis.draw, []

    def second_loses_files(generator: Any, data: Any, plan: Any, *args: Any, known: Any, **more: Any) -> Any:
        there = known["item_id"].to_pylist()
        drawn.append([item for item in plan["item_id"].to_pylist() if item not in there])
        if len(drawn) == 2:
            gone.unlink()
            damaged.write_bytes(b"no image")
        return real(generator, data, plan, *args, known=known, **more)

    monkeypatch.setattr(synthesis, "draw", second_loses_files)
    words = ("generate", "--config", tmp_path / "c.json", "--out")
    outcome = run_command(*words, tmp_path / "run")
    assert outcome.code == 3, outcome.err
    assert "partial: 4 images or parts could not be made" in outcome.err.splitlines()[-2]
    failures = read_json(tmp_path / "run/synthetic/failures.json")
    lost = [f"00000{row}-{level}of10-v0" for row in (20, 23) for level in (3, 5)]
    assert sorted(failures) == lost
    assert f"No such file or directory: '{gone}'" in failures[lost[0]]
    assert failures[lost[2]].startswith(f"its reference, {damaged} cannot be read as an image")
    assert sum(map(len, drawn)) == 48
    assert not (tmp_path / "run/synthetic/manifest.json").exists()
    for file, content in contents.items():
        file.write_bytes(content)
    parts_before = len(drawn)
    assert run_command(*words, tmp_path / "run").code == 0
    assert sorted(item for items in drawn[parts_before:] for item in items) == lost
    assert run_command(*words, tmp_path / "undisturbed").code == 0
    assert story.data_set(RunFolder(tmp_path / "run")) == story.data_set(RunFolder(tmp_path / "undisturbed"))


@pytest.mark.parametrize("failure", ["no room for a part", "disk full", "read-only"])
def test_a_folder_that_takes_no_more_ends_the_command_in_one_line_and_the_same_command_goes_on(
    failure: str,
    flows: Any,
    run_command: RunCommand,
    finished: RunFolder,
    pristine: RunFolder,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from latebloom.flows.stages import synthesis

    (finished.path / "synthetic/manifest.json").unlink()
    for number in (8, 9, 10):
        (finished.path / f"synthetic/part-{number:05d}.parquet").unlink()
    drawn: list[int] = []
    real_draw, real_atomic = synthesis.draw, synthetic.atomic_path

    def draw(*args: Any, **more: Any) -> Any:
        drawn.append(1)
        return real_draw(*args, **more)

    def second_fails(path: Path) -> Any:
        if path.name == "part-00009.parquet":
            code = errno.ENOSPC if failure == "disk full" else errno.EACCES
            raise OSError(code, os.strerror(code), str(path))
        return real_atomic(path)

    words = ("generate", "--out", finished.path)
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "draw", draw)
        if failure == "no room for a part":
            patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
            error = r"error: \[Errno 28\] no room for the next part: it needs about .*, 10 bytes are free: '.*/run'"
        else:
            patch.setattr(synthetic, "atomic_path", second_fails)
            error = r"error: \[Errno (28|13)\] (No space left on device|Permission denied): '.*part-00009.parquet'"
        outcome = run_command(*words)
    assert outcome.code == 1
    assert re.fullmatch(error, outcome.err.splitlines()[-1])
    assert "Traceback" not in outcome.err
    made, whole = story.data_set(finished), story.data_set(pristine)
    left = {f"part-{number:05d}.parquet" for number in (8, 9, 10)}
    assert whole.keys() - made.keys() - {"manifest.json"} == left - ({"part-00008.parquet"} if drawn else set())
    assert len(drawn) == (0 if failure == "no room for a part" else 2)
    assert run_command(*words).code == 0
    assert story.data_set(finished) == whole


@pytest.fixture(params=["thread", pytest.param("processes", marks=pytest.mark.slow)])
def two_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run with `workers=2` trains in; a thread takes its place where that is not the point."""
    if request.param == "processes":
        request.getfixturevalue("two_processes")
        yield
        return
    # One: networks get their first weights from torch's random state, which threads share.
    with ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(tasks, "classifier_processes", lambda _: thread)
        yield


def test_two_workers_train_the_same_classifiers_as_one(
    flows: Any,
    tiny: Tiny,
    pristine: RunFolder,
    finished: RunFolder,
    story: Story,
    two_workers: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for arm in ("original", "ours-3"):
        (finished.path / f"stages/retrain-{arm}-sgd.json").unlink()
    flows.compare(tiny({"workers": 2}), str(finished.path))
    assert story.made(finished) == {"retrain-original-sgd", "retrain-ours-3-sgd"}
    errors = [arm["errors"] for arm in read_json(finished.path / "report.json")["arms"]]
    assert errors == [arm["errors"] for arm in read_json(pristine.path / "report.json")["arms"]]
    assert "retrain  2/2 arms  100%" in capfd.readouterr().err


def test_an_error_in_another_process_is_the_flows(
    flows: Any, tiny: Tiny, finished: RunFolder, two_workers: None
) -> None:
    (finished.path / "stages/retrain-ours-3-sgd.json").unlink()
    (finished.path / "synthetic/part-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"part-00002\.parquet is missing or damaged"):
        flows.retrain(tiny({"workers": 2}), str(finished.path))


def test_what_cannot_work_fails_the_flow_with_the_persons_error_and_before_anything_is_written(
    flows: Any, tiny: Tiny, settings: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="is neither a data set's name nor a path that exists"):
        flows.compare(tiny({"data.source": "nowhere"}), str(out))
    with pytest.raises(ValueError, match="separating epoch 4 lies beyond the 3 epochs of training"):
        flows.augment_and_retrain(RunConfig(**settings | {"slow": {"separating_epoch": 4}}), str(out))
    with pytest.raises(ValueError, match="has no finished stage 'early'"):
        flows.report(tiny(), str(out))
    with pytest.raises(ValueError, match=r"none of the arms \(original\) needs images"):
        flows.plan(tiny({"arms": ("original",)}), str(out))
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(ValueError, match="is a file, so"):
        flows.compare(tiny(), str(out))


def test_arms_without_synthetic_images_need_no_generator(flows: Any, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny({"arms": ("original", "upsample-2"), "generate.generator": "nowhere"})
    flows.compare(config, str(tmp_path / "run"))
    report = read_json(tmp_path / "run" / "report.json")
    assert (report["synthetic"], report["generator"], report["levels"]) == ({}, {}, [])
    assert not (tmp_path / "run" / "synthetic").exists()


def test_fit_generator_makes_one_that_a_run_can_use(flows: Any, tiny: Tiny, tmp_path: Path) -> None:
    from latebloom.flows.stages.fit_generator import FitGeneratorConfig

    config = FitGeneratorConfig(
        data={"train_limit": 20}, split="train", generator={"steps": 2, "channels": (8,), "batch_size": 4}
    )
    assert flows.fit_generator(config, str(tmp_path / "mine")) == str(tmp_path / "mine")
    flows.generate(tiny({"generate.generator": str(tmp_path / "mine")}), str(tmp_path / "run"))
    assert SyntheticFolder(tmp_path / "run" / "synthetic").manifest()["about"]["generator"] == "mine"


def test_the_command_line_runs_the_flow_and_prints_nothing_but_its_result(
    flows: Any, run_command: RunCommand, finished: RunFolder
) -> None:
    outcome = run_command("compare", "--out", finished.path, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == read_json(finished.path / "report.json")
    outcome = run_command("retrain", "--out", finished.path, "--set", "plan.levels=[4,5]")
    assert outcome.code == 1
    assert "was made with other settings" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_ctrl_c_within_a_flow_ends_the_command_as_one_would_expect(
    flows: Any, run_command: RunCommand, finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latebloom.flows.stages import select

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(select, "select_examples", pressed)
        outcome = run_command("select", "--out", finished.path)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    assert run_command("select", "--out", finished.path).code == 0


def test_retrain_alone_trains_arms_of_real_images(
    flows: Any, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--train-limit", "60", "--test-limit", "50", "--epochs", "1", "--seeds", "1", "--optimizers", "sgd")
    shown = run_command("retrain", "digits", "--arms", "original,original+random", "--strong-fraction", "0.5", *words)
    assert shown.code == 0, shown.err
    run = RunFolder(tmp_path / "runs/digits")
    assert {record["stage"] for record in run.records()} == {"retrain-original-sgd", "retrain-original+random-sgd"}
    assert "original+random  sgd  " in shown.out
    reported = run_command("report", "--out", run.path)
    assert reported.code == 0, reported.err
    assert "selected" in reported.out


def test_a_coreset_is_picked_in_a_flow(
    flows: Any, run_command: RunCommand, pristine: RunFolder, tmp_path: Path
) -> None:
    words = ("--train-limit", "60", "--epochs", "1", "--fraction", "0.2", "--method", "margin")
    shown = run_command("coreset", "digits", "--out", tmp_path / "run", *words)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[-1] == str(tmp_path / "run/coreset-margin.npz")
    assert not (tmp_path / "run/config.json").exists()  # what a run in this folder was asked for stays as it is
