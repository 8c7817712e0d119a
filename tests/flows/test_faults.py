"""Whatever is killed, damaged, full or forbidden: the same command goes on, to the data set of a quiet day."""

import contextlib
import errno
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mortal
import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import unserved

from latebloom.data.states import STATES
from latebloom.data.store import read_json, write_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import processes
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages import checks, synthesis
from latebloom.flows.stages.loaders import generator_of

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace
RunCommand = Callable[..., Any]


@pytest.fixture
def command(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs `latebloom WORD...` in this process and without Prefect."""
    unserved.unserve(monkeypatch.setattr)
    return run_command


@pytest.fixture
def planned(finished: RunFolder) -> RunFolder:
    """The finished run without its synthetic images."""
    shutil.rmtree(finished.path / "synthetic")
    (finished.path / "stages/generate.json").unlink()
    return finished


def temporary_files(run: RunFolder) -> list[Path]:
    return list(run.path.rglob("*.tmp"))


# ------------------------------------------------------------------------------------------------- killed


def alive(group: int) -> list[str]:
    """The command lines of the processes of a group, but for those that are dead and not yet buried."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if int(its_group) == group and state not in "ZX":
            found.append(f"{folder.name} {words}")
    return found


def ended(process: Any) -> int | None:
    """The exit code of a process of either kind."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def wait(process: Any, seconds: float = 300) -> int:
    end = time.monotonic() + seconds
    while (code := ended(process)) is None:
        assert time.monotonic() < end, f"process {process.pid} hangs"
        time.sleep(0.002)
    return code


class Storm:
    """Kills a command, and starts it again, until it ends well.

    Args:
        start: starts the command.
        run: its run folder; where it stands is seen by the records of parts in it.
        dice: chooses moments.
    """

    def __init__(self, start: Callable[[], Any], run: RunFolder, dice: random.Random) -> None:
        self.start, self.run, self.dice = start, run, dice
        self.victims = itertools.cycle(["main", "worker", "group"])
        self.kills = dict.fromkeys(["main", "worker", "group"], 0)
        self.groups: list[int] = []

    def parts(self) -> int:
        return len(list((self.run.path / "synthetic/.parts").glob("part-*.json")))

    def until_it_ends_well(self, most: int) -> None:
        """With at most so many kills."""
        before = sum(self.kills.values())
        while True:
            process = self.start()
            self.groups.append(process.pid)
            while ended(process) is None and sum(self.kills.values()) - before < most:
                self._kill(process)
            code = wait(process)
            if code == 0:
                return
            assert code in (-signal.SIGKILL, 3), code  # 3: two processes died making one part

    def _kill(self, process: Any) -> None:
        """One kill, some parts and a moment from now, unless the process ends before."""
        parts = self.parts() + self.dice.choice([0, 1, 1, 2, 2, 3])
        while ended(process) is None and self.parts() < parts:
            time.sleep(0.001)
        time.sleep(self.dice.uniform(0, 0.1))
        lines = [line for line in alive(process.pid) if re.search("spawn_main|forkserver", line)]
        workers = [pid for line in lines if (pid := int(line.split()[0])) != process.pid]
        victim = next(self.victims)
        try:
            if victim == "worker":
                if not workers:  # not yet, or it needs none
                    return
                os.kill(self.dice.choice(workers), signal.SIGKILL)
                self.kills[victim] += 1
                return
            if victim == "main":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended meanwhile
        self.kills[victim] += wait(process) == -signal.SIGKILL

    def survivors(self, but: str = "\n") -> list[str]:
        """What still lives of all commands after a while: a process takes a moment to see that its parent is gone."""
        end = time.monotonic() + 30
        while left := [line for group in self.groups for line in alive(group) if but not in line]:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        return left


# RunCommand, a second slower at each part.
SLOW_COMMAND = """
import signal
import mortal
from latebloom.flows.cli import app as cli; from latebloom.flows.stages import synthesis
synthesis.make_one_part = mortal.make_one_part_slowly
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this is run in the background
cli.main()
"""
# Holds the lock of a run folder.
HOLD = """
import sys
from pathlib import Path
from latebloom.flows.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes in /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_a_command_ends_with_the_same_data_set(
    count: int, planned: RunFolder, pristine: RunFolder, story: Story, tmp_path: Path
) -> None:
    words = ["generate", "--out", str(planned.path), "--processes", str(count)]
    storm = Storm(lambda: unserved.start_command(words, tmp_path / "log"), planned, random.Random(count))
    while sum(storm.kills.values()) < 18:  # 36 in all
        shutil.rmtree(planned.path / "synthetic", ignore_errors=True)
        storm.until_it_ends_well(most=9)
        assert story.data_set(planned) == story.data_set(pristine)
        assert temporary_files(planned) == []
    assert storm.survivors() == []
    print(f"{count} processes: {storm.kills}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_before_any_change_of_a_file_a_command_ends_with_the_same_data_set(
    planned: RunFolder, story: Story, tmp_path: Path
) -> None:
    words = ["generate", "--out", str(planned.path), "--set", "plan.part_size=50"]  # two parts
    assert wait(unserved.start_command(words, tmp_path / "log")) == 0
    whole = story.data_set(planned)
    kills = 0
    while True:
        shutil.rmtree(planned.path / "synthetic")
        (planned.path / "stages/generate.json").unlink(missing_ok=True)
        code = wait(unserved.start_command(words, tmp_path / "log", operation=kills + 1))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert wait(unserved.start_command(words, tmp_path / "log")) == 0
        assert story.data_set(planned) == whole, f"killed before change {kills}"
        assert temporary_files(planned) == [], f"killed before change {kills}"
    print(f"{kills} kills")
    assert kills > 30  # six files, each made, opened, given its permissions and its name


@pytest.mark.slow
@needs_proc
@pytest.mark.timeout(600)
def test_killed_with_prefect_and_all_a_command_ends_with_the_same_data_set(
    planned: RunFolder, pristine: RunFolder, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    words = [
        sys.executable,
        "-m",
        "latebloom.flows.cli.app",
        "generate",
        "--out",
        str(planned.path),
        "--processes",
        "2",
    ]

    def start() -> Any:
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)

    storm = Storm(start, planned, random.Random(0))
    storm.until_it_ends_well(most=3)
    assert story.data_set(planned) == story.data_set(pristine)
    assert temporary_files(planned) == []
    left = storm.survivors(but="uvicorn")  # Prefect's server does not see that it was left alone
    orphans = [line for group in storm.groups for line in alive(group)]
    for line in orphans:
        os.kill(int(line.split()[0]), signal.SIGKILL)
    assert left == []
    print(f"with Prefect: {storm.kills}; {len(orphans)} servers of Prefect left")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_process_killed_while_it_reports_does_not_silence_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "multiprocessing", SimpleNamespace(get_context=lambda _: unserved.context()))
    due, reported = tmp_path / "due", list[int]()
    with processes.devices(2, 0, reported.append) as place:
        for _ in range(2):
            due.touch()
            place.call(mortal.die_while_reporting, due)  # by one that is killed, and by the one in its place
        for _ in range(2):
            place.call(mortal.die_while_reporting, due)
    assert reported == [1, 1, 1, 1]


# ------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("number", "to_group", "processes_asked"),
    [(signal.SIGINT, True, 1), (signal.SIGINT, True, 2), (signal.SIGTERM, True, 2), (signal.SIGTERM, False, 1)],
)
def test_a_signal_ends_a_command_with_prefect_and_all_in_seconds_and_in_one_line(
    number: signal.Signals,
    to_group: bool,
    processes_asked: int,
    planned: RunFolder,
    pristine: RunFolder,
    story: Story,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PYTHONPATH", str(Path(mortal.__file__).parent))
    words = [sys.executable, "-c", SLOW_COMMAND, "generate", "--out", str(planned.path)]
    words += ["--processes", str(processes_asked)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    try:
        while not list((planned.path / "synthetic").glob("part-*.parquet")):
            assert ended(process) is None
            time.sleep(0.05)
        os.killpg(process.pid, number) if to_group else os.kill(process.pid, number)
        assert wait(process, 15) == 128 + number
        lines = (tmp_path / "log").read_text().splitlines()
        assert lines[-1] == "interrupted; the same command goes on where this one stopped"
        assert "Traceback" not in "".join(lines)
        assert len(list((planned.path / "synthetic").glob("part-*.parquet"))) < 12
        end = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert alive(process.pid) == []  # nor Prefect's server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert wait(unserved.start_command(["generate", "--out", str(planned.path)], tmp_path / "log")) == 0
    assert story.data_set(planned) == story.data_set(pristine)


# RunCommand, half a second slower at each batch.
SLOW_BATCHES = SLOW_COMMAND.replace("make_one_part_slowly", "make_one_part_in_slow_batches")


@pytest.mark.slow
@needs_proc
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "to_group", "words"),
    [
        (signal.SIGINT, True, ["--processes", "1"]),
        (signal.SIGINT, True, ["--processes", "2"]),
        (signal.SIGTERM, False, ["--processes", "2"]),
        (signal.SIGTERM, True, ["--processes", "2"]),
        (signal.SIGINT, False, ["--processes", "2", "--max-seconds", "600"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_the_batches_that_were_finished_before_a_signal_are_used_again(
    number: signal.Signals,
    to_group: bool,
    words: list[str],
    planned: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(mortal.__file__).parent), *sys.path]))
    words = ["generate", "--out", str(planned.path), "--set", "plan.part_size=40", *words]
    words += ["--generate-batch-size", "2"]
    with (tmp_path / "log").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_BATCHES, *words], stdout=file, stderr=file, start_new_session=True
        )

    def finished() -> int:
        return sum(int(file.read_text() or 0) for file in tmp_path.glob("made-*"))

    try:
        while finished() < 12:
            assert ended(process) is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        shown = finished()
        os.killpg(process.pid, number) if to_group else os.kill(process.pid, number)
        assert wait(process, 15) == 128 + number
        end = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert alive(process.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not list((planned.path / "synthetic").glob("part-*.parquet"))  # all of it is of the middle of parts
    assert wait(unserved.start_command(words, tmp_path / "again")) == 0
    (line,) = re.findall(
        r"generate: 0 of .*; (\d+) images made before are used again", (tmp_path / "again").read_text()
    )
    print(f"{number.name}: {shown} images were finished, {line} are used again")
    assert int(line) >= shown


@pytest.mark.slow
@needs_proc
@pytest.mark.timeout(300)
def test_a_useless_generator_ends_two_processes_with_3_and_leaves_none(
    planned: RunFolder, generator: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / generator.name
    shutil.copytree(generator, broken)
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["class_embedding.weight"][:] = torch.nan
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    words = ["generate", "--out", str(planned.path), "--generator", str(broken), "--processes", "2"]
    process = unserved.start_command(words, tmp_path / "log")
    assert wait(process) == 3
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"error: generator {broken} makes no image that can be used: of 16 references")
    assert alive(process.pid) == []


# ------------------------------------------------------------------------------------------------- locked


def test_two_commands_are_not_at_work_in_one_folder(
    finished: RunFolder, command: RunCommand, story: Story, tmp_path: Path
) -> None:
    before = story.times(finished.path)
    words = [sys.executable, "-c", HOLD, str(finished.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        outcome = command("generate", "--out", finished.path)
        assert outcome.code == 1
        assert f"(process {other.pid} on " in outcome.err.splitlines()[-1]
        assert outcome.err.splitlines()[-1].endswith(f" is at work in {finished.path}; wait for it, or end it")
        assert story.times(finished.path) == before
        other.kill()
    assert command("generate", "--out", finished.path).code == 0


def test_what_a_killed_command_left_is_removed_and_no_file_of_others(finished: RunFolder, tiny: Tiny) -> None:
    ours = ["", "stages", "early/seed-0", "selection/cluster", "synthetic", "synthetic/.parts", "retrained/ours-3-sgd"]
    theirs = [".vimrc.tmp", "synthetic/.notes.tmp", "mine/.part-00001.parquet.ab_12xyz.tmp", "early/x.ab_12xyz.tmp"]
    (finished.path / "mine").mkdir()
    strays = [finished.path / folder / ".part-00001.parquet.ab_12xyz.tmp" for folder in ours]
    others = [finished.path / name for name in theirs]
    for file in (*strays, *others):
        file.touch()
    checks.open_run(tiny(), str(finished.path))
    assert [file for file in strays if file.exists()] == []
    assert all(file.exists() for file in others)


# ------------------------------------------------------------------------------------------------- a part that fails


def failing_at(parts: set[int], error: Exception, calls: list[int]) -> Callable[..., Any]:
    """`synthesis.make_one_part` that fails at some parts."""
    make_one_part = synthesis.make_one_part

    def make(run: RunFolder, config: CompareConfig, number: int, on_images: Callable[[int], None]) -> dict[str, Any]:
        calls.append(number)
        if number in parts:
            raise error
        return make_one_part(run, config, number, on_images)

    return make


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("no\nsuch")])
def test_a_part_that_fails_leaves_the_others_alone_and_its_traceback(
    error: Exception, planned: RunFolder, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(synthesis, "make_one_part", failing_at({0, 1, 3, 4, 11}, error, calls))  # never three in a row
    outcome = command("generate", "--out", planned.path)
    assert (outcome.code, calls) == (3, list(range(12)))
    last_line = f"{type(error).__name__}: {error}"
    assert f"; the first is part 0: {last_line.splitlines()[0]}" in outcome.err
    assert "partial: 5 images or parts could not be made" in outcome.err
    failures = read_json(planned.path / "synthetic/failures.json")
    assert list(failures) == ["part 0", "part 1", "part 11", "part 3", "part 4"]
    assert failures["part 0"].startswith(f"{last_line}\nTraceback (most recent call last):\n")
    assert "raise error" in failures["part 0"]


@pytest.mark.parametrize(
    ("error", "parts_tried"),
    [
        (ValueError("no GPU any more"), 4),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2),
        (MemoryError("no memory"), 2),
    ],
)
def test_three_parts_in_a_row_or_a_folder_that_takes_no_more_end_it_with_that_error(
    error: Exception, parts_tried: int, planned: RunFolder, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(synthesis, "make_one_part", failing_at(set(range(1, 12)), error, calls))
    outcome = command("generate", "--out", planned.path)
    assert (outcome.code, len(calls)) == (1, parts_tried)
    assert outcome.err.splitlines()[-1] == f"error: {error}"


# ------------------------------------------------------------------------------------------------- NaN


def test_images_that_a_model_cannot_make_are_marked_and_all_others_are_as_ever(
    finished: RunFolder,
    pristine: RunFolder,
    generator: Path,
    command: RunCommand,
    story: Story,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken" / generator.name
    shutil.copytree(generator, broken)
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["class_embedding.weight"][3] = torch.nan
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    outcome = command("generate", "--out", finished.path, "--generator", broken)
    assert outcome.code == 0, outcome.err
    folder = SyntheticFolder(finished.path / "synthetic")
    made, whole = folder.rows(), SyntheticFolder(pristine.path / "synthetic").rows()
    threes = np.array(whole["label"]) == 3
    assert 0 < threes.sum() < len(threes)
    lost = made.filter(pa.array(threes))
    assert set(lost["state"].to_pylist()) == {"nan"}
    assert set(lost["attempt"].to_pylist()) == {1}
    assert set(lost["finite"].to_pylist()) == {False}
    assert lost["item_id"] == whole.filter(pa.array(threes))["item_id"]
    others = [table.filter(pa.array(~threes)).drop_columns("generator_digest") for table in (made, whole)]
    assert str(others[0].to_pylist()) == str(others[1].to_pylist())  # as words, NaN is NaN: the scores nobody asked for
    assert folder.manifest()["states"] | {"nan": 0, "ok": 0} == dict.fromkeys(STATES, 0)
    assert folder.manifest()["states"]["nan"] == threes.sum()
    before = story.times(finished.path / "synthetic")
    shutil.rmtree(finished.path / ".done")  # the receipt, with which no part is looked at
    again = command("generate", "--out", finished.path, "--generator", broken)
    assert (again.code, "0 of 12 parts to make" in again.err) == (0, True)
    parts = {name for name in before if "part-" in name}
    after = story.times(finished.path / "synthetic")
    assert {name: after[name] for name in parts} == {name: before[name] for name in parts}


# ------------------------------------------------------------------------------------------------- damaged


def test_no_bit_of_a_record_can_flip_unseen(finished: RunFolder) -> None:
    folder = SyntheticFolder(finished.path / "synthetic")
    file = folder.path / ".parts/part-00001.json"
    content = file.read_bytes()
    key = read_json(file)["key"]
    assert folder.kept_part(1, key)
    for place in range(len(content)):  # of every byte one bit
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert folder.kept_part(1, key) is None, place


@pytest.mark.parametrize(
    "change",
    [{"rows": 9}, {"failures": []}],
    ids=lambda change: next(iter(change)),
)
def test_a_part_with_a_wrong_record_is_made_again_and_no_other(
    change: dict[str, Any], finished: RunFolder, pristine: RunFolder, command: RunCommand, story: Story
) -> None:
    times = story.times(finished.path / "synthetic")
    file = finished.path / "synthetic/.parts/part-00001.json"
    write_json(file, read_json(file) | change)
    assert command("generate", "--out", finished.path).code == 0
    assert story.data_set(finished) == story.data_set(pristine)
    now = story.times(finished.path / "synthetic")
    rewritten = {name for name in now if now[name] != times[name]}
    assert rewritten == {"part-00001.parquet", ".parts/part-00001.json", "manifest.json"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"KEY": {"make 8x8": 0}}'],
)
def test_damaged_batch_sizes_are_removed_in_one_line_and_found_out_again(
    content: str, planned: RunFolder, pristine: RunFolder, tiny: Tiny, command: RunCommand, story: Story
) -> None:
    file = planned.path / "batch_sizes.json"
    file.write_text(content.replace("KEY", f"cpu {generator_of(tiny()).digest[:16]}"))
    outcome = command("generate", "--out", planned.path)
    assert outcome.code == 0
    line = f"generate: {file} was damaged and is removed; which batches fit is measured again"
    assert outcome.err.splitlines().count(line) == 1
    assert not file.exists()
    assert story.data_set(planned) == story.data_set(pristine)


# ------------------------------------------------------------------------------------------------- full, forbidden


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "latebloom-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room for anything else."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_on_a_disk_that_is_full_again_and_again_what_was_finished_stays(
    disk: Path, planned: RunFolder, pristine: RunFolder, command: RunCommand, story: Story
) -> None:
    shutil.copytree(planned.path, disk / "run")
    run, whole = RunFolder(disk / "run"), story.data_set(pristine)
    ballast = fill(disk)
    full = []
    while True:
        before = story.times(run.path / "synthetic")
        outcome = command("generate", "--out", run.path)
        if outcome.code == 0:
            break
        assert outcome.code == 1
        assert "Traceback" not in outcome.err
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert errors == outcome.err.splitlines()[-1:]
        assert re.search(r"(?i)no space left on device|no room for the next part", errors[0])
        full.append("No space left" in errors[0])
        assert temporary_files(run) == []
        # Nothing is half there: what has a name is what it will be in the end.
        made = story.data_set(run)
        assert {name: whole[name] for name in made} == made
        after = story.times(run.path / "synthetic")
        kept = {name for name in before if f".parts/{Path(name).stem}.json" in before}
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        os.truncate(ballast, ballast.stat().st_size - 6 * 4096)
    assert story.data_set(run) == whole
    assert sum(full) > 4  # not only for want of the room that a part is forecast to need


def test_a_disk_that_becomes_read_only_ends_it_in_one_line_and_once_it_is_not_it_goes_on(
    disk: Path,
    planned: RunFolder,
    pristine: RunFolder,
    command: RunCommand,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(planned.path, disk / "run")
    run, draw, drawn = RunFolder(disk / "run"), synthesis.draw, []

    def third_locks(*args: Any, **options: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 3:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        return draw(*args, **options)

    monkeypatch.setattr(synthesis, "draw", third_locks)
    with monkeypatch.context() as patch:
        # A disk with a file that is open for writing cannot be made read-only by hand.
        patch.setattr(RunFolder, "locked", lambda *_: contextlib.nullcontext())
        outcome = command("generate", "--out", run.path)
    assert outcome.code == 1
    assert re.fullmatch(r"error: \[Errno 30\] Read-only file system: '.*part-00002.*'", outcome.err.splitlines()[-1])
    assert "Traceback" not in outcome.err
    locked = command("generate", "--out", run.path)
    assert locked.code == 1
    assert locked.err.splitlines()[-1].startswith("error: [Errno 30] Read-only file system: ")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert temporary_files(run) == []
    assert command("generate", "--out", run.path).code == 0
    assert len(drawn) == 3 + 10  # of 12 parts, two were done
    assert story.data_set(run) == story.data_set(pristine)
