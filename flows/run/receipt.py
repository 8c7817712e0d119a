"""What a command leaves in its run folder when it ends well: by it the next one knows that nothing is left to do.

To compute the digests of all stages, every image is decoded and torch imported. A receipt is an earlier answer to the
same question, for the same settings and code, while no file that was read or made has changed. It never says more than
that: where it does not hold, the stages are asked as always.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import latebloom
from latebloom.data.config import NAMED
from latebloom.data.store import digest_file, is_remote, read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import LOCK

__all__ = ["Receipt"]

_FOLDER = ".done"
# A file that changed less than this before it was looked at may change again and keep size and time: file systems
# have ticks, of up to two seconds. Such a file is known by its content.
_RACY_NS = 2_000_000_000
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Receipt:
    """The receipts of a run folder, as a command sees them that begins now.

    Args:
        folder: the run folder.
        config: what is asked for.
    """

    def __init__(self, folder: Path, config: CompareConfig) -> None:
        self._folder, self._config = folder, config.model_dump(mode="json")
        self._known = not is_remote(folder) and not any("://" in text for text in _texts(self._config))
        # Looked at before anything is read: what changes later is not what was read.
        self._began = time.time_ns()
        self._read = _State(self._inputs, self._began) if self._known else None

    def holds(self, kind: str) -> bool:
        """Whether all that a command of this kind would do has been done, and no file has changed since."""
        file = self._file(kind)
        if not self._known or not file.is_file():
            return False
        try:
            receipt = read_json(file)
            config, inputs, outputs = receipt["config"], receipt["inputs"], receipt["outputs"]
            read, made = _State(self._inputs, inputs["at"]), _State(self._outputs, outputs["at"])
        except (ValueError, LookupError, TypeError, OSError):  # damaged, or a file went away meanwhile
            return False
        return bool(config == self._config and inputs == read.content and outputs == made.content)

    def write(self, kinds: Iterable[str]) -> None:
        """Write down that commands of these kinds have nothing left to do."""
        if not self._known or (self._folder / "synthetic" / "failures.json").exists():
            return  # images that failed are tried again each time
        assert self._read
        made = _State(self._outputs, time.time_ns())
        content = {"config": self._config, "inputs": self._read.content, "outputs": made.content}
        for kind in kinds:
            write_json(self._file(kind), content)

    def _file(self, kind: str) -> Path:
        return self._folder / _FOLDER / f"{kind}.json"

    def _inputs(self) -> Iterator[tuple[str, Path, bool]]:
        """The code, and every file and folder that a setting names."""
        yield from _files("code", Path(latebloom.__file__).parent)
        named = self._config["data"]["source"] in NAMED
        for text in sorted(set(_texts(self._config))):
            if text == self._config["data"]["root"] and not named:
                continue
            path = Path(text).expanduser()
            if not path.exists() and _HUB_ID.fullmatch(text):
                path = _hub_cache() / f"models--{text.replace('/', '--')}"
            if path.exists():
                yield from _files(text, path, self._folder)

    def _outputs(self) -> Iterator[tuple[str, Path, bool]]:
        """What is in the run folder; JSON files by content, since they are written again with the same."""
        for name, path, _ in _files("", self._folder):
            if path.name != LOCK and path.parent.name != _FOLDER:
                yield name, path, path.suffix == ".json"


class _State:
    """Files at a time, as one digest."""

    def __init__(self, files: Any, at: int) -> None:
        digest = hashlib.sha256()
        for name, path, by_content in files():
            stat = path.stat()
            line: list[Any] = [name]
            if not by_content:
                line += [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if by_content or max(stat.st_mtime_ns, stat.st_ctime_ns) > at - _RACY_NS:
                line.append(digest_file(path))
            digest.update(json.dumps(line).encode())
        self.content = {"at": at, "digest": digest.hexdigest()}


def _files(name: str, root: Path, without: Path | None = None) -> Iterator[tuple[str, Path, bool]]:
    """The files below a path, with names, in one order; links are followed, folders of links to themselves once."""
    if root.is_file():
        yield name, root, False
        return
    seen = set()
    for place, folders, files in os.walk(root, followlinks=True):
        here = Path(place)
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in seen or (without and without.exists() and here.samefile(without)):
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for file in sorted(files):
            path = here / file
            if path.is_file():
                yield f"{name}:{path.relative_to(root)}", path, False


def _texts(settings: Any) -> Iterator[str]:
    """The texts among nested settings."""
    if isinstance(settings, str) and settings:
        yield settings
    elif isinstance(settings, dict):
        for value in settings.values():
            yield from _texts(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _texts(value)


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
