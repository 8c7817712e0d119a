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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from latebloom.data.store import digest_file, digest_json, is_remote, read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.origin import read_origin, remember, with_places

__all__ = [
    "LOCK",
    "Cost",
    "Key",
    "Outcome",
    "Partial",
    "Record",
    "RunFolder",
    "Stage",
    "Unusable",
    "measured",
    "read_config",
    "write_config",
]

LOCK = ".lock"  # the file in a run folder that a command at work holds


class Partial(RuntimeError):
    """Some of what was asked for could not be made; all else is kept, and the same command makes the rest."""


class Unusable(Partial):
    """The generator makes nothing that can be used; another setting is needed, and the same command makes no more."""


Facts = TypeVar("Facts")


@dataclasses.dataclass(frozen=True)
class Key(Generic[Facts]):
    """Which stage a record is of: flows/run/records.py has one of each.

    Attributes:
        name: of the record's file, without .json.
        facts: the model of what the stage found.
        remedy: what to do where the stage is not done yet.
    """

    name: str
    facts: type[Facts]
    remedy: str = "run `latebloom compare` in it"


class Record(pydantic.BaseModel, Generic[Facts], frozen=True, extra="forbid"):
    """What a finished stage wrote down.

    Attributes:
        digest: of the stage's inputs and the version of its code.
        outputs: SHA-256 of each file it wrote, by its path in the run folder.
        seconds: wall-clock time when it was really run.
        skipped: whether it was done before this time.
    """

    stage: str
    digest: str
    outputs: dict[str, str]
    facts: Facts
    seconds: float
    peak_memory_mb: float
    skipped: bool


@dataclasses.dataclass
class Cost:
    """What a block of work took, once it has ended; the memory is that of the whole process at its highest."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it made. Every stage has a record under `stages/`, written when it is done."""

    path: Path

    def stage(self, key: Key[Facts], version: int, inputs: dict[str, Any]) -> "Stage[Facts]":
        """A stage of this run.

        Args:
            version: of the code of the stage; a new one makes it run again.
            inputs: all that decides its outputs: configs and the digests of what it reads.
        """
        return Stage(self, key, digest_json({"stage": key.name, "version": version, "inputs": inputs}))

    @contextlib.contextmanager
    def locked(self, holder: str = "") -> Iterator[None]:
        """Keep the folder, which is made, to this process for the block; one at a URL cannot be.

        Args:
            holder: the name that others are shown; empty: this command.

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

    def record(self, key: Key[Facts]) -> Record[Facts]:
        """The record of a stage that is done.

        Raises:
            ValueError: it is not done, or its record is damaged; the message says what to do.
        """
        file = self.record_path(key)
        if not file.is_file():
            raise ValueError(f"{self.path} has no finished stage {key.name!r}: {key.remedy} first")
        content = read_json(file)
        try:
            return _model_of(key).model_validate(content)
        except pydantic.ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise ValueError(
                f"{file} is no record of this version ({place}: {error.errors()[0]['msg']}); delete it to have it made "
                "again"
            ) from error

    def record_path(self, key: Key[Any]) -> Path:
        """The file of a stage's record."""
        return self.path / "stages" / f"{key.name}.json"

    def has(self, key: Key[Any]) -> bool:
        """Whether a stage is done."""
        return self.record_path(key).is_file()

    def records(self) -> list[dict[str, Any]]:
        """The records of all stages that are done, as their files have them, by name."""
        return [read_json(file) for file in sorted((self.path / "stages").glob("*.json"))]


def _model_of(key: Key[Facts]) -> type[Record[Facts]]:
    return Record[key.facts]  # type: ignore[name-defined]  # a class that pydantic makes, once a process


class Outcome(Generic[Facts]):
    """What the block of a stage fills in.

    Attributes:
        outputs: files in the run folder that it wrote.
        facts: small values for the record.
    """

    def __init__(self) -> None:
        self.outputs: list[Path] = []
        self.facts: Facts | None = None


@dataclasses.dataclass(frozen=True)
class Stage(Generic[Facts]):
    """One stage: its digest, whether it is done, and its record."""

    run: RunFolder
    key: Key[Facts]
    digest: str

    def done(self, mark: bool = True) -> Record[Facts] | None:
        """The record where it has this digest and every output is what it says; else None: the stage is to be run.

        Args:
            mark: write down that the stage is skipped this time.
        """
        try:
            record = self.run.record(self.key)
        except ValueError:
            return None
        if record.digest != self.digest:
            return None
        for name, digest in record.outputs.items():
            file = self.run.path / name
            if not file.is_file() or digest_file(file) != digest:
                return None
        if mark and not record.skipped:
            record = record.model_copy(update={"skipped": True})
            write_json(self.run.record_path(self.key), record.model_dump(mode="json"))
        return record

    @contextlib.contextmanager
    def making(self) -> Iterator[Outcome[Facts]]:
        """Run the stage in this block, which fills the outcome; on a good end its record is written."""
        self.run.record_path(self.key).unlink(missing_ok=True)
        outcome = Outcome[Facts]()
        with measured() as cost:
            yield outcome
        assert outcome.facts is not None, f"stage {self.key.name} found nothing"
        self.finish(outcome.outputs, outcome.facts, cost)

    def finish(self, outputs: list[Path], facts: Facts, cost: Cost) -> None:
        """Write the record: the stage is done."""
        record = _model_of(self.key)(
            stage=self.key.name,
            digest=self.digest,
            outputs={str(path.relative_to(self.run.path)): digest_file(path) for path in outputs},
            facts=facts,
            seconds=cost.seconds,
            peak_memory_mb=cost.peak_memory_mb,
            skipped=False,
        )
        write_json(self.run.record_path(self.key), record.model_dump(mode="json"))


def read_config(run: Path) -> CompareConfig:
    """The config that a run folder was made with; the files that it names as they are found from here.

    Raises:
        ValueError: there is none.
    """
    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run} is no run folder: it has no config.json; name a data source to start a run in it")
    return CompareConfig.model_validate(with_places(run, read_json(file)))


def write_config(run: Path, config: CompareConfig, data: str = "") -> None:
    """Write down what a run folder is made with.

    Args:
        data: digest of the training images; empty: as it was.
    """
    origin = None if data else read_origin(run)
    remember(run, config, origin.digest if origin else data)
    write_json(run / "config.json", config.model_dump(mode="json"))


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """The cost of the block, filled in at its end."""
    _reset_peak_memory()
    cost = Cost()
    begin = time.perf_counter()
    yield cost
    cost.seconds = round(time.perf_counter() - begin, 3)
    cost.peak_memory_mb = round(_peak_memory_mb(), 1)


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
