"""What is left when a run is killed, the disk is full or a folder cannot be written, and that it goes on from there."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mortal
import numpy as np
import pytest
import unserved

from latebloom.data.store import digest_file, read_json
from latebloom.data.store import files as store
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.run.records import retrain_key
from latebloom.flows.stages import fitting, training
from latebloom.flows.stages.context import selection_path
from latebloom.train.loop.fit import FitState

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace


@pytest.fixture(scope="module")
def killed_runs(pristine: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Run folders whose process was killed (-9): while it wrote the third part, and in epoch 3 of 3."""
    generate, retrain = (RunFolder(tmp_path_factory.mktemp("killed") / "run") for _ in range(2))
    shutil.copytree(pristine.path, generate.path)
    shutil.rmtree(generate.path / "synthetic")
    shutil.copytree(pristine.path, retrain.path)
    for work, run in ((mortal.make_parts_until_the_third, generate), (mortal.retrain_until_the_last_epoch, retrain)):
        process, reached = unserved.start_work(work, run)
        try:
            assert reached.wait(120)
        finally:
            process.kill()
            process.join(30)
        assert process.exitcode == -signal.SIGKILL
    return SimpleNamespace(generate=generate, retrain=retrain)


@pytest.fixture
def killed(killed_runs: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Copies of the two, for a test of its own."""
    for name, run in vars(killed_runs).items():
        shutil.copytree(run.path, tmp_path / name)
    return SimpleNamespace(**{name: RunFolder(tmp_path / name) for name in vars(killed_runs)})


def test_generation_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    killed: SimpleNamespace, pristine: RunFolder, tiny: Tiny, story: Story
) -> None:
    run, whole = killed.generate, story.data_set(pristine)
    before = story.times(run.path / "synthetic")
    finished_before = {name for n in (0, 1) for name in (f"part-0000{n}.parquet", f".parts/part-0000{n}.json")}
    (half_written,) = before.keys() - finished_before  # and no manifest: no data set
    assert half_written.startswith(".part-00002.parquet.")
    assert story.make_images(run, tiny()) == list(range(2, len(whole) - 1))
    assert story.data_set(run) == whole  # byte for byte, the manifest too, and what was half-written is gone
    after = story.times(run.path / "synthetic")
    assert {name: after[name] for name in finished_before} == {name: before[name] for name in finished_before}


def test_generation_by_two_processes_that_was_killed_goes_on_to_the_same_data_set(
    finished: RunFolder, pristine: RunFolder, story: Story, tmp_path: Path
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    words = ["generate", "--out", str(finished.path), "--processes", "2"]
    process = unserved.start_command(words, tmp_path / "log")
    end = time.monotonic() + 120
    while len(list((finished.path / "synthetic/.parts").glob("part-*.json"))) < 2:  # both are in the middle of another
        assert process.exitcode is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not (finished.path / "synthetic/manifest.json").exists()
    again = unserved.start_command(words, tmp_path / "log")
    again.join(120)
    assert again.exitcode == 0, (tmp_path / "log").read_text()
    assert story.data_set(finished) == story.data_set(pristine)


def test_training_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    killed: SimpleNamespace, finished: RunFolder, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(finished.path)
    training.retrain_arm(finished, config, "ours-3", "sam")  # never interrupted
    run = killed.retrain
    assert not (run.path / "stages/retrain-ours-3-sam.json").exists()
    real, started = fitting.load_fit, []

    def load_fit(*args: Any) -> FitState | None:
        state = real(*args)
        started.append(state.step if state else 0)
        return state

    monkeypatch.setattr(fitting, "load_fit", load_fit)
    training.retrain_arm(run, config, "ours-3", "sam")
    # Seeds have sets of other sizes: an epoch ends when the longest does.
    steps = max(run.record(retrain_key("ours-3", "sam")).facts.steps)
    assert started == [steps * 2 // 3]
    folder = Path("retrained/ours-3-sam")
    assert story.contents(run.path / folder) == story.contents(finished.path / folder)  # and no checkpoint is left
    ours, theirs = (r.record(retrain_key("ours-3", "sam")).facts for r in (run, finished))
    took = {"seconds": ours.seconds, "epoch_seconds": ours.epoch_seconds}
    assert ours == theirs.model_copy(update=took)  # errors, and the curve of all three epochs
    assert len(ours.train_error) == 3


@pytest.mark.parametrize(
    "changes",
    [{"train.rho": 0.5}, {"classifier.width": 5}, {"data.test_limit": 40}, {}],
    ids=lambda changes: next(iter(changes), "another selection"),
)
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    changes: dict[str, Any], killed: SimpleNamespace, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed.retrain
    assert (run.path / "retrained/ours-3-sam/checkpoint-0.safetensors").exists()
    if not changes:
        with np.load(selection_path(run, "cluster", 0)) as arrays:
            fewer = {**arrays, "indices": arrays["indices"][:-1]}
        store.write_arrays(selection_path(run, "cluster", 0), **fewer)
    real, started = fitting.load_fit, []

    def load_fit(*args: Any) -> FitState | None:
        started.append(real(*args))
        return started[-1]

    monkeypatch.setattr(fitting, "load_fit", load_fit)
    training.retrain_arm(run, tiny(changes), "ours-3", "sam")
    # How many test images there are has no part in training.
    assert (started == [None]) == (changes != {"data.test_limit": 40})


# ------------------------------------------------------------------------------------------------- a full disk


def full_after(files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes so many more files; then it is full."""
    real, count = os.fsync, [0]

    def fsync(handle: int) -> None:
        count[0] += 1
        if count[0] > files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(store.os, "fsync", fsync)


@pytest.mark.parametrize("files", [4, 5], ids=["at a part", "at its record"])
def test_a_full_disk_stops_generation_and_what_was_finished_stays(
    files: int, finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    with monkeypatch.context() as patch:
        full_after(files, patch)  # a part and its record are two files: two parts fit
        with pytest.raises(OSError, match="No space left on device"):
            story.make_images(finished, tiny())
    names = set(story.contents(finished.path / "synthetic"))
    whole = {f"part-0000{n}.parquet" for n in (0, 1)} | {f".parts/part-0000{n}.json" for n in (0, 1)}
    assert names == whole | ({"part-00002.parquet"} if files == 5 else set())  # nothing half-written
    before = story.times(finished.path / "synthetic")
    assert story.make_images(finished, tiny())[0] == 2
    assert story.data_set(finished) == story.data_set(pristine)
    after = story.times(finished.path / "synthetic")
    assert {name: after[name] for name in whole} == {name: before[name] for name in whole}


@pytest.mark.parametrize("files", [1, 5])
def test_a_full_disk_in_any_other_stage_leaves_it_to_be_run_again(
    files: int, tmp_path: Path, pristine: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full_after(files, patch)
        with pytest.raises(OSError, match="No space left on device"):
            story.up_to_plan(tmp_path / "run", tiny())
    left = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(left) == files
    assert not [name for name in left if name.endswith(".tmp")]
    run = story.up_to_plan(tmp_path / "run", tiny())
    for name in ("early/seed-1/outputs.npz", "selection/cluster/seed-1.npz", "plan.parquet"):
        assert digest_file(run.path / name) == digest_file(pristine.path / name)


def test_a_full_disk_at_a_checkpoint_leaves_no_half_checkpoint_and_no_result(
    finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    with monkeypatch.context() as patch:
        full_after(3, patch)  # the logs of two seeds and the first epoch's fit, the second's does not
        with pytest.raises(OSError, match="No space left on device"):
            training.retrain_arm(finished, tiny(), "original", "sam")
    left = {file.name for file in (finished.path / "retrained/original-sam").iterdir()}
    assert left == {"checkpoint-0.safetensors", "log"}
    training.retrain_arm(finished, tiny(), "original", "sam")
    assert finished.record(retrain_key("original", "sam")).facts.steps == [12, 12]


# ------------------------------------------------------------------------------------------------- no permission


@pytest.mark.parametrize("name", ["synthetic", "synthetic/.parts"])
def test_a_file_where_a_folder_should_be_is_an_error_and_stays(
    name: str, finished: RunFolder, tiny: Tiny, story: Story
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    (finished.path / name).parent.mkdir(exist_ok=True)
    (finished.path / name).write_text("mine")
    with pytest.raises((FileExistsError, NotADirectoryError), match=name):
        story.make_images(finished, tiny())
    assert (finished.path / name).read_text() == "mine"
    assert not (finished.path / "synthetic" / "manifest.json").exists()


def test_a_folder_that_must_not_be_written_is_left_as_it_was(
    finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = story.times(finished.path)

    def refuse(*args: object, dir: Path, **kwargs: object) -> tuple[int, str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        story.all_stages(finished.path, tiny({"train.lr": 0.04}))
    assert story.times(finished.path) == before


def test_a_stage_that_cannot_write_loses_its_old_record_so_that_nothing_is_taken_for_done(
    finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_after(0, monkeypatch)
    with pytest.raises(OSError, match="No space"):
        training.train_early(finished, tiny({"train.lr": 0.04}))
    assert not (finished.path / "stages/early.json").exists()
    assert read_json(finished.path / "stages/select.json")["stage"] == "select"


def test_a_data_set_is_whole_again_after_an_old_manifest_was_taken_away(
    finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished.path / "synthetic/part-00000.parquet").unlink()
    with monkeypatch.context() as patch:
        full_after(0, patch)
        with pytest.raises(OSError, match="No space"):
            story.make_images(finished, tiny())
    folder = SyntheticFolder(finished.path / "synthetic")
    with pytest.raises(ValueError, match="not finished yet"):
        folder.rows()
    assert story.make_images(finished, tiny()) == [0]
    assert folder.damaged() == []


# ------------------------------------------------------------------------------------------------- signals

# A command that hears no signal: it hangs in the block, as where a library swallows what our handler raises.
HANG = """
import signal, sys, time
from latebloom.flows.run import interruption
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this is run in the background
interruption.SECONDS = float(sys.argv[1])
with interruption.Interruption():
    if sys.argv[2] == "taken":
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        print("now", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        if sys.argv[2] == "ends":
            raise
        print("heard", flush=True)
        time.sleep(600)
"""
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("seconds", "how", "numbers", "code"),
    [
        (600, "ends", [INT], 130),
        (600, "ends", [TERM], 143),
        (0.2, "hangs", [INT], 130),
        (0.2, "hangs", [TERM], 143),
        (0.2, "taken", [TERM], 143),  # as Prefect does it
        (600, "hangs", [INT, INT], 130),
    ],
)
def test_a_signal_ends_a_command_whatever_it_is_at(seconds: float, how: str, numbers: list[int], code: int) -> None:
    words = [sys.executable, "-c", HANG, str(seconds), how]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(numbers[0])
        for number in numbers[1:]:
            assert process.stdout.readline() == "heard\n"
            process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code
        assert said == "interrupted; the same command goes on where this one stopped\n"
