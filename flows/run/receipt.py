"""What a command leaves in its run folder when it ends well: by it the next one knows that nothing is left to do.

To compute the digests of all stages, every image is decoded and torch imported. A receipt is an earlier answer to the
same question, for the same settings and code, while no file that was read or made has changed. It never says more than
that: where it does not hold, the stages are asked as always.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import latebloom
from latebloom.data.config import NAMED
from latebloom.data.store import is_remote, read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.config.tools import CoresetRunConfig
from latebloom.flows.run.file_state import FileState, Found, files_below, path_named, texts_of
from latebloom.flows.run.folder import LOCK

__all__ = ["Receipt"]

_FOLDER = ".done"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Receipt:
    """The receipts of a run folder, as a command sees them that begins now.

    Args:
        folder: the run folder.
        config: what is asked for, with its data source.
    """

    def __init__(self, folder: Path, config: CompareConfig | CoresetRunConfig) -> None:
        self._folder, self._config = folder, config.model_dump(mode="json")
        self._known = not is_remote(folder) and not any("://" in text for text in texts_of(self._config))
        # Looked at before anything is read: what changes later is not what was read.
        self._began = time.time_ns()
        self._read = FileState(self._inputs(), self._began) if self._known else None

    def holds(self, kind: str) -> bool:
        """Whether all that a command of this kind would do has been done, and no file has changed since."""
        file = self._file(kind)
        if not self._known or not file.is_file():
            return False
        try:
            receipt = read_json(file)
            config, inputs, outputs = receipt["config"], receipt["inputs"], receipt["outputs"]
            read, made = FileState(self._inputs(), inputs["at"]), FileState(self._outputs(), outputs["at"])
        except (ValueError, LookupError, TypeError, OSError):  # damaged, or a file went away meanwhile
            return False
        return bool(config == self._config and inputs == read.content and outputs == made.content)

    def write(self, kinds: Iterable[str]) -> None:
        """Write down that commands of these kinds have nothing left to do."""
        if not self._known or (self._folder / "synthetic" / "failures.json").exists():
            return  # images that failed are tried again each time
        assert self._read
        made = FileState(self._outputs(), time.time_ns())
        content = {"config": self._config, "inputs": self._read.content, "outputs": made.content}
        for kind in kinds:
            write_json(self._file(kind), content)

    def _file(self, kind: str) -> Path:
        return self._folder / _FOLDER / f"{kind}.json"

    def _inputs(self) -> Iterator[Found]:
        """The code, and every file and folder that a setting names."""
        yield from files_below("code", Path(latebloom.__file__).parent)
        named = self._config["data"]["source"] in NAMED
        for text in sorted(set(texts_of(self._config))):
            if text == self._config["data"]["root"] and not named:
                continue
            path = path_named(text)
            if not path and _HUB_ID.fullmatch(text):
                path = _hub_cache() / f"models--{text.replace('/', '--')}"
            if path and path.exists():
                yield from files_below(text, path, self._folder)

    def _outputs(self) -> Iterator[Found]:
        """What is in the run folder; JSON files by content, since they are written again with the same."""
        for name, path, _ in files_below("", self._folder):
            if path.name != LOCK and path.parent.name != _FOLDER:
                yield name, path, path.suffix == ".json"


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
