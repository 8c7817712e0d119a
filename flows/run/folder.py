"""The run folder, and stages that are complete when their digest says so."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import resource
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latebloom.data.store import digest_file, digest_json, is_remote, read_json, write_json
from latebloom.flows.config.compare import CompareConfig

__all__ = ["LOCK", "Partial", "RunFolder", "Stage", "measured", "read_config"]

LOCK = ".lock"  # the file in a run folder that a command at work holds


class Partial(RuntimeError):
    """Some of what was asked for could not be made; all else is kept, and the same command makes the rest."""


# What makes the stages that others need.
_HOW = {
    "early": "run `latebloom select`",
    "select": "run `latebloom select`",
    "plan": "run `latebloom generate`",
    "generate": "run `latebloom generate`",
}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it made. Every stage has a record under `stages/`, written when it is done."""

    path: Path

    def stage(self, name: str, version: int, inputs: dict[str, Any]) -> "Stage":
        """A stage of this run.

        Args:
            version: of the code of the stage; a new one makes it run again.
            inputs: all that decides its outputs: configs and the digests of what it reads.
        """
        return Stage(self, name, digest_json({"stage": name, "version": version, "inputs": inputs}))

    @contextlib.contextmanager
    def locked(self, holder: str = "") -> Iterator[None]:
        """Keep the folder, which is made, to this process for the block; one at a URL cannot be.

        Args:
            holder: what others are told is at work here; empty: this command.

        Raises:
            ValueError: another process has it.
        """
        if is_remote(self.path):
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a") as file:  # stays: to remove it would let two others lock two files
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.signed()} is at work in {self.path}; wait for it, or end it") from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # some shared file systems have no locks
                    raise
            self.sign(holder)
            yield

    def sign(self, holder: str = "") -> None:
        """Write down who is at work here, for those that `locked` refuses. It stays, and holds nothing by itself."""
        name = holder or shlex.join(["latebloom", *sys.argv[1:]])
        (self.path / LOCK).write_text(f"{name} (process {os.getpid()} on {socket.gethostname()})\n")

    def signed(self) -> str:
        """Who was the last to be at work here."""
        try:
            return (self.path / LOCK).read_text().strip() or "another command"
        except FileNotFoundError:
            return "another command"

    def record(self, name: str) -> dict[str, Any]:
        """The record of a stage that is done.

        Raises:
            ValueError: it is not done; the message says what to run.
        """
        file = self.path / "stages" / f"{name}.json"
        if not self.has(name):
            raise ValueError(
                f"{self.path} has no finished stage {name!r}: {_HOW.get(name, 'run `latebloom compare` in it')} first"
            )
        return read_json(file)

    def has(self, name: str) -> bool:
        """Whether a stage is done."""
        return (self.path / "stages" / f"{name}.json").is_file()

    def records(self) -> list[dict[str, Any]]:
        """The records of all stages that are done, by name."""
        return [read_json(file) for file in sorted((self.path / "stages").glob("*.json"))]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its digest, whether it is done, and its record."""

    run: RunFolder
    name: str
    digest: str

    @property
    def record_path(self) -> Path:
        return self.run.path / "stages" / f"{self.name}.json"

    def is_done(self, mark: bool = True) -> bool:
        """Whether the record has this digest and every output is what it says. Marks it as skipped this time."""
        try:
            record = read_json(self.record_path)
        except (FileNotFoundError, ValueError):
            return False
        if record.get("digest") != self.digest:
            return False
        for name, digest in record["outputs"].items():
            file = self.run.path / name
            if not file.is_file() or digest_file(file) != digest:
                return False
        if mark and not record["skipped"]:
            write_json(self.record_path, {**record, "skipped": True})
        return True

    @contextlib.contextmanager
    def making(self, outputs: Sequence[Path], facts: dict[str, Any] | None = None) -> Iterator[None]:
        """Run the stage in this block; on a good end its record is written, with time and peak memory.

        Args:
            outputs: files in the run folder that the block writes; it may append to the list.
            facts: small values for the record; the block may fill it.
        """
        self.record_path.unlink(missing_ok=True)
        with measured() as cost:
            yield
        self.finish(outputs, facts or {}, cost)

    def finish(self, outputs: Sequence[Path], facts: dict[str, Any], cost: dict[str, float]) -> None:
        """Write the record: the stage is done. `cost` is what `measured` filled."""
        record = {
            "stage": self.name,
            "digest": self.digest,
            "outputs": {str(path.relative_to(self.run.path)): digest_file(path) for path in outputs},
            "facts": facts,
            "seconds": cost["seconds"],
            "peak_memory_mb": cost["peak_memory_mb"],
            "skipped": False,
        }
        write_json(self.record_path, record)


def read_config(run: Path) -> CompareConfig:
    """The config that a run folder was made with.

    Raises:
        ValueError: there is none.
    """
    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run} is no run folder: it has no config.json; name a data source to start a run in it")
    return CompareConfig.model_validate(read_json(file))


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Wall-clock `seconds` and `peak_memory_mb` (of the whole process) of the block, filled in at its end."""
    _reset_peak_memory()
    cost: dict[str, float] = {}
    begin = time.perf_counter()
    yield cost
    cost["seconds"] = round(time.perf_counter() - begin, 3)
    cost["peak_memory_mb"] = round(_peak_memory_mb(), 1)


def _reset_peak_memory() -> None:
    # Linux: 5 resets the high-water mark (proc(5)). Elsewhere, or where it is forbidden, the mark is the process's.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
