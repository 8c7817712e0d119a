"""Whatever is killed, damaged, full or forbidden: the same command goes on, and ends with the data set of a quiet day."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import unserved

from data.store import digest_json, read_json, write_json
from data.synthetic import SyntheticFolder
from flows import synthesis
from flows.config import CompareConfig
from flows.inputs import generator_of
from flows.processes import devices
from flows.run import RunFolder

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace
Slowlane = Callable[..., Any]


@pytest.fixture
def command(slowlane: Slowlane, monkeypatch: pytest.MonkeyPatch) -> Slowlane:
    """Runs `slowlane WORD...` in this process and without Prefect."""
    unserved.unserve(monkeypatch.setattr)
    return slowlane


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


def wait(process: Any, seconds: float = 120) -> int:
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
        dice: chooses moments and victims.
    """

    def __init__(self, start: Callable[[], Any], run: RunFolder, dice: random.Random) -> None:
        self.start, self.run, self.dice = start, run, dice
        self.kills = {"main": 0, "worker": 0, "group": 0}
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
        workers = [int(line.split()[0]) for line in alive(process.pid) if "resource_tracker" not in line]
        workers = [pid for pid in workers if pid != process.pid]
        victim = self.dice.choice(["main", "worker", "group"] if workers else ["main", "group"])
        try:
            if victim == "worker":
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

    def survivors(self) -> list[str]:
        """What still lives of all commands after a while: a process takes a moment to see that its parent is gone."""
        end = time.monotonic() + 30
        while (left := [line for group in self.groups for line in alive(group)]) and time.monotonic() < end:
            time.sleep(0.05)
        return left


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes in /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_a_command_ends_with_the_same_data_set(
    count: int, planned: RunFolder, pristine: RunFolder, story: Story, tmp_path: Path
) -> None:
    words = ["generate", "--out", str(planned.path), "--processes", str(count)]
    storm = Storm(
        lambda: unserved.start_command(words, str(tmp_path / "log")), planned, random.Random(f"{count} processes")
    )
    while sum(storm.kills.values()) < 30:
        shutil.rmtree(planned.path / "synthetic", ignore_errors=True)
        storm.until_it_ends_well(most=12)
        assert story.data_set(planned) == story.data_set(pristine)
        assert temporary_files(planned) == []
    assert storm.survivors() == []
    print(f"{count} processes: {storm.kills}")
