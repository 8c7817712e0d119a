"""Files that are either whole or absent, on disk or at a URL, and digests of their content.

A `Path` in Latebloom comes from `as_path`: an ordinary one, or for a URL a `RemotePath` (remote.py), which has the same
methods. A library that needs a local file reads it inside `local_file`.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "as_path",
    "atomic_folder",
    "atomic_path",
    "check_space",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "in_memory",
    "is_remote",
    "json_text",
    "kept_file",
    "list_folder",
    "local_file",
    "local_folder",
    "not_installed",
    "read_json",
    "read_table",
    "write_arrays",
    "write_bytes",
    "write_json",
]


# Where remote folders and files are kept for libraries that read only from disk.
_COPIES = "~/.cache/latebloom/remote"


def as_path(text: str) -> Path:
    """The path that `text` names: a local one, `~` expanded, or one at a URL such as s3://bucket/folder.

    Raises:
        ValueError: a URL of a kind that fsspec does not know.
    """
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return Path(text).expanduser()
    from latebloom.data.store.remote import RemotePath  # fsspec takes a tenth of a second, and most runs are local

    return cast(Path, RemotePath.of(text))


def is_remote(path: Path) -> bool:
    """Whether the path is at a URL."""
    return not isinstance(path, Path)


def _remote(path: Path) -> Any:
    """The same path, for the type checker, to which every `Path` is a local one."""
    return path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` if the block succeeds, else removed.

    A reader sees the old file or the whole new one, also after `kill -9`. The parent folder is made. For a remote path
    the temporary file is local, and is uploaded in one piece.

    Raises:
        OSError: full disk, read-only folder, a file in place of a folder; storage that cannot be used.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="latebloom-") as folder:
            temporary = Path(folder) / path.name  # storage derives the content type from the suffix
            temporary.touch()
            yield temporary
            _remote(path).upload(temporary)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes 0600, which others could not read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# The umask can only be read by setting it: once, while the process has one thread.
_UMASK = _read_umask()


@contextlib.contextmanager
def atomic_folder(path: Path, last: str) -> Iterator[Path]:
    """A temporary local folder to fill, which becomes `path` if the block succeeds.

    Args:
        path: new, or an empty folder.
        last: the file that makes the folder complete; to a remote folder it is uploaded last.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="latebloom-") as folder:
            temporary = Path(folder)
            yield temporary
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            names = [file.relative_to(temporary).as_posix() for file in files]
            for late in (False, True):
                chosen = [place for place, name in enumerate(names) if (name == last) == late]
                _remote(path).upload_many([files[place] for place in chosen], [names[place] for place in chosen])
        return
    path = path.absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o777 & ~_UMASK)
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise OSError where the disk of a local folder has fewer bytes free than `what` needs."""
    from rich.filesize import decimal

    free = shutil.disk_usage(folder).free
    if free < needed:
        words = f"no room for {what}: it needs about {decimal(needed)}, {decimal(free)} are free"
        raise OSError(errno.ENOSPC, words, str(folder))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def json_text(value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> str:
    """`value` as JSON for others to read: NaN and the infinities, for which JSON has no word, are null."""
    return json.dumps(_finite(value), indent=indent, sort_keys=sort_keys, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """Write `json_text` of `value` with sorted keys, so that equal values are equal files."""
    write_bytes(path, (json_text(value, sort_keys=True) + "\n").encode())


def read_json(path: Path, remedy: str = "delete it to have it made again") -> Any:
    """Read a JSON file. NaN, Infinity and -Infinity are numbers, as Python, and so diffusers, writes them.

    Args:
        remedy: what to do about a damaged file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or nested too deeply to be read; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error


def write_arrays(path: Path, **arrays: "np.ndarray") -> None:
    """Write arrays as .npz (no pickles). The same arrays give the same bytes."""
    import numpy as np  # here: the help of a command imports this module and should be quick

    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def local_file(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A local file for a with block: the file itself, or a temporary copy of a remote one.

    Raises:
        FileNotFoundError: on entering the block, there is no such remote file.
    """
    return _temporary_copy(path) if is_remote(path) else contextlib.nullcontext(path)


@contextlib.contextmanager
def _temporary_copy(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="latebloom-") as folder:
        local = Path(folder) / path.name
        _remote(path).download(local)
        yield local


def kept_file(path: Path) -> Path:
    """A local file that stays: the file itself, or a copy of a remote one, beside those of `local_folder`.

    Raises:
        FileNotFoundError: there is no such remote file.
    """
    if not is_remote(path):
        return path
    copy = _copy_of(path, _remote(path).version())
    if not copy.exists():
        with atomic_path(copy) as temporary:
            _remote(path).download(temporary)
    return copy


def _copy_of(path: Path, version: Any) -> Path:
    return Path(_COPIES).expanduser() / digest_json([str(path), version]) / path.name


def local_folder(path: Path) -> Path:
    """A local folder: the folder itself, or a copy of a remote one, kept under ~/.cache/latebloom/remote.

    It is copied again when the listing of the remote folder (names, sizes, ETags, times) has changed. Old copies stay.
    """
    if not is_remote(path):
        return path
    files = _remote(path).files()
    copy = _copy_of(path, files)
    if copy.exists():
        return copy
    try:
        with atomic_folder(copy, "") as temporary:
            for name in files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                _remote(path / name).download(temporary / name)
    except OSError:
        if not copy.exists():  # if it exists, another process was quicker
            raise
    return copy


def in_memory(paths: Sequence[Path]) -> Sequence[bytes | Path]:
    """The contents of remote files, fetched many at a time; local files stay paths, read when they are needed."""
    if not paths or not is_remote(paths[0]):
        return paths
    contents: list[bytes] = _remote(paths[0]).read_many(paths)
    return contents


def list_folder(folder: Path) -> list[tuple[Path, bool]]:
    """The entries of a folder, sorted, and whether each is a folder itself."""
    if is_remote(folder):
        return sorted(_remote(folder).entries())
    return sorted((entry, entry.is_dir()) for entry in folder.iterdir())


def read_table(path: Path, **options: Any) -> Any:
    """Read a parquet file as a pyarrow table; `options` are those of `pyarrow.parquet.read_table`."""
    import pyarrow.parquet  # takes long to import, and most commands read no parquet

    with local_file(path) as file:
        return pyarrow.parquet.read_table(file, **options)


def not_installed(what: str, package: str, extra: str) -> str:
    """What to say where the package of an extra is missing."""
    return f"{what} needs {package}, which is not installed; install Latebloom with the extra {extra} (README, Install)"


def digest_bytes(content: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, read in blocks."""
    with local_file(path) as local, local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no spaces, NaN and infinities as they are read."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_bytes(text.encode())
