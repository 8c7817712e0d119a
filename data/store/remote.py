"""Paths that are URLs, such as s3://bucket/folder: fsspec's storage behind the methods of `pathlib.Path`.

Object stores have no folders: a folder exists while it has files, and need not be made before a file is written.
Nothing is cached between two calls, since another process may have written in between.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from fsspec import AbstractFileSystem
from upath.extensions import ProxyUPath

from latebloom.data.store.files import not_installed

__all__ = ["RemotePath"]

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's, which need not be installed


class RemotePath(ProxyUPath):
    """A path at a URL, with those methods of `pathlib.Path` that Latebloom uses. It can be pickled.

    Raises:
        ValueError: by `of`, the URL's protocol is unknown; by a method, the protocol's package is not installed.
        FileNotFoundError: by a method, there is no such file.
        OSError: by a method, the storage cannot be used: no such bucket, no credentials, access denied, no connection.
    """

    __slots__ = ()

    @classmethod
    def of(cls, url: str) -> "RemotePath":
        """The path at a URL."""
        protocol, _, _ = url.partition("://")
        # fsspec would cache listings and miss what other processes write.
        options: dict[str, Any] = {"use_listings_cache": False} if protocol in _OBJECT_STORES else {}
        with contextlib.suppress(ValueError):  # raised for an unknown protocol
            path = cls(url.rstrip("/"), **options)
            if path.protocol:  # without one, upath makes a local path of it
                return path
        raise ValueError(
            f"{url} is of no storage that fsspec knows; give a local path or a URL like s3://bucket/folder"
        )

    @contextlib.contextmanager
    def _storage(self) -> Iterator[AbstractFileSystem]:
        """The storage; any error of it in this block becomes one line that names the URL."""
        try:
            yield self.fs
        except ImportError as error:  # fsspec imports the package behind a protocol when it is first used
            if self.protocol in ("s3", "s3a"):
                raise ValueError(not_installed(str(self), "s3fs", "s3")) from error
            raise ValueError(
                f"{self} needs the fsspec package for {self.protocol}, which is not installed; install it with pip"
            ) from error
        except FileNotFoundError as error:
            if _reason(error) == "NoSuchBucket":
                raise OSError(f"{self}: there is no such bucket; make it, or correct its name") from error
            raise FileNotFoundError(f"there is no file {self}") from error
        except PermissionError as error:
            raise PermissionError(
                f"{self}: access denied ({error}); the credentials need the right to list, read, write and delete there"
            ) from error
        except Exception as error:  # each storage has its own kinds, few of them an OSError
            if _reason(error) in _NO_CREDENTIALS:
                advice = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            else:
                advice = "check the address, the network and, for S3, AWS_ENDPOINT_URL_S3"
            raise OSError(f"{self} cannot be used ({str(error) or type(error).__name__}); {advice}") from error

    def _kind(self) -> Literal["file", "directory", ""]:
        # Not fsspec's isfile and isdir: they return False where the storage cannot be reached.
        with contextlib.suppress(FileNotFoundError), self._storage() as storage:
            kind: Literal["file", "directory"] = storage.info(self.path)["type"]
            return kind
        return ""

    def exists(self, **_: Any) -> bool:
        return self._kind() != ""

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def stat(self, **_: Any) -> Any:
        with self._storage():
            return super().stat()

    def entries(self) -> list[tuple["RemotePath", bool]]:
        """The entries of the folder, and whether each is a folder itself, by one request."""
        with self._storage() as storage:
            found = storage.ls(self.path, detail=True)
        kinds = {info["name"].rstrip("/"): info["type"] == "directory" for info in found}
        kinds.pop(self.path, None)  # an empty object with which some tools mark a folder
        return [(self / name.rpartition("/")[2], is_folder) for name, is_folder in kinds.items()]

    def iterdir(self) -> Iterator["RemotePath"]:
        return (entry for entry, _ in self.entries())

    def glob(self, pattern: str, **options: Any) -> Iterator["RemotePath"]:
        with self._storage():
            return iter(list(super().glob(pattern, **options)))

    def open(self, *args: Any, **options: Any) -> Any:
        with self._storage():
            return super().open(*args, **options)

    def read_bytes(self) -> bytes:
        with self._storage() as storage:
            return bytes(storage.cat_file(self.path))

    def read_text(self, *args: Any, **options: Any) -> str:
        with self._storage():
            return super().read_text(*args, **options)

    def unlink(self, missing_ok: bool = False) -> None:
        if not self.is_file():
            if missing_ok:
                return
            raise FileNotFoundError(f"there is no file {self}")
        with self._storage() as storage:
            storage.rm_file(self.path)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing. fsspec would make a missing bucket, whose name is more often a typing error."""

    def download(self, local: Path) -> None:
        """Copy the file to a local name."""
        with self._storage() as storage:
            storage.get_file(self.path, str(local))

    def upload(self, local: Path) -> None:
        """Copy a local file here. In an object store it appears as a whole or not at all."""
        with self._storage() as storage:
            storage.put_file(str(local), self.path)

    def upload_many(self, local: Sequence[Path], names: Sequence[str]) -> None:
        """Copy local files into the folder under these names, many at a time."""
        with self._storage() as storage:
            storage.put([str(file) for file in local], [(self / name).path for name in names])

    def version(self) -> str:
        """A text that changes when the file does.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._storage() as storage:
            return _version(storage.info(self.path))

    def files(self) -> dict[str, str]:
        """Every file below the folder by its path in it, with a text that changes when the file does."""
        with self._storage() as storage:
            found = storage.find(self.path, detail=True)
        return {
            name.removeprefix(self.path).lstrip("/"): _version(info)
            for name, info in sorted(found.items())
            if not name.endswith("/")
        }

    @staticmethod
    def read_many(paths: Sequence["RemotePath"]) -> list[bytes]:
        """The bytes of files of one storage, of many at a time."""
        if not paths:
            return []
        with paths[0]._storage() as storage:
            # no ranges: the whole files
            contents: list[bytes] = storage.cat_ranges([path.path for path in paths], None, None)
        for path, content in zip(paths, contents, strict=True):
            if isinstance(content, Exception):
                with path._storage():
                    raise content
        return contents


def _version(info: dict[str, Any]) -> str:
    return repr(sorted(info.items()))


def _reason(error: BaseException | None) -> str:
    """S3's error code where there is one, else the name of the exception."""
    name = type(error).__name__
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", name))
        error = error.__cause__ or error.__context__
    return name
