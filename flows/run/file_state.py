"""Whether files are as they were: names, sizes and times of many files at a moment, as one digest. Light to import."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latebloom.data.store import digest_file

__all__ = ["FileState", "files_below", "path_named", "texts_of"]

# A file that changed less than this before it was looked at may change again and keep size and time: file systems
# have ticks, of up to two seconds. Such a file is known by its content.
_RACY_NS = 2_000_000_000

Found = tuple[str, Path, bool]  # the name it goes by, the file, whether it is known by content


class FileState:
    """Files at a time, as one digest.

    Args:
        at: nanoseconds since 1970, not after the first file is looked at.

    Attributes:
        content: the time and the digest, as JSON takes them.
    """

    def __init__(self, files: Iterable[Found], at: int) -> None:
        digest = hashlib.sha256()
        for name, path, by_content in files:
            stat = path.stat()
            line: list[Any] = [name]
            if not by_content:
                line += [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if by_content or max(stat.st_mtime_ns, stat.st_ctime_ns) > at - _RACY_NS:
                line.append(digest_file(path))
            digest.update(json.dumps(line).encode())
        self.content = {"at": at, "digest": digest.hexdigest()}


def files_below(name: str, root: Path, without: Path | None = None) -> Iterator[Found]:
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


def texts_of(settings: Any) -> Iterator[str]:
    """The texts among nested settings."""
    if isinstance(settings, str) and settings:
        yield settings
    elif isinstance(settings, dict):
        for value in settings.values():
            yield from texts_of(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from texts_of(value)


def path_named(text: str) -> Path | None:
    """The file or folder that a setting names, as PATH or PATH@SCALE; None: there is none."""
    for name in (text, text.rpartition("@")[0]):
        # These say no to a text that is too long for a path; Path.exists raises.
        if name and os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111
            return Path(name).expanduser()
    return None
