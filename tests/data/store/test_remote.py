import pickle
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from latebloom.data.config import DataConfig
from latebloom.data.images import encode_png
from latebloom.data.sources.load import load
from latebloom.data.store import (
    as_path,
    atomic_folder,
    atomic_path,
    digest_file,
    in_memory,
    is_remote,
    kept_file,
    list_folder,
    local_file,
    local_folder,
    read_json,
    read_table,
    write_arrays,
    write_bytes,
    write_json,
)
from latebloom.data.store.remote import RemotePath


def upload(local: Path, url: str) -> None:
    """Copy a folder as another program would."""
    for file in local.rglob("*"):
        if file.is_file():
            S3FileSystem().put_file(str(file), f"{url}/{file.relative_to(local).as_posix()}")


# ------------------------------------------------------------------------------------------------- what a path is


def test_a_path_is_local_unless_it_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, path in {
        "runs/digits": Path("runs/digits"),
        "~/runs": tmp_path / "runs",
        "/a:b/c": Path("/a:b/c"),
        "file:///a/b": Path("/a/b"),
    }.items():
        assert as_path(text) == path
        assert not is_remote(as_path(text))
    assert is_remote(as_path("s3://bucket/run"))


def test_a_remote_path_behaves_as_a_path() -> None:
    path = as_path("s3://bucket/run/")
    file = path / "early" / "seed-0" / "model.safetensors"
    assert str(path) == "s3://bucket/run"
    assert str(file) == "s3://bucket/run/early/seed-0/model.safetensors"
    assert (file.name, file.stem, file.suffix, file.parent.name) == (
        "model.safetensors",
        "model",
        ".safetensors",
        "seed-0",
    )
    assert str(file.relative_to(path)) == "early/seed-0/model.safetensors"
    assert file == as_path(str(file))
    assert hash(file) == hash(as_path(str(file)))
    assert pickle.loads(pickle.dumps(file)) == file


def test_a_url_of_an_unknown_kind_is_named() -> None:
    for url in ["nowhere://bucket/run", "S3 ://bucket/run"]:
        with pytest.raises(
            ValueError, match=f"{url} is of no storage that fsspec knows; give a local path or a URL like s3"
        ):
            as_path(url)


# --------------------------------------------------------------------------------------------- writing and reading


def fill(folder: Path) -> None:
    """All functions that write."""
    write_bytes(folder / "a.bin", b"old")
    write_bytes(folder / "a.bin", b"new")
    write_json(folder / "deep" / "er" / "b.json", {"b": [1, 2.5, None], "a": "ä"})
    write_arrays(folder / "deep" / "c.npz", x=np.arange(6).reshape(2, 3))
    with atomic_path(folder / "part-0.parquet") as temporary:
        pq.write_table(pa.table({"n": [1, 2]}), temporary)
    write_bytes(folder / "gone", b"")
    (folder / "gone").unlink()
    (folder / "gone").unlink(missing_ok=True)


def read_all(folder: Path) -> dict[str, Any]:
    """All functions that read."""
    with local_file(folder / "deep" / "c.npz") as file, np.load(file) as arrays:
        x = arrays["x"].tolist()
    with (folder / "a.bin").open("rb") as opened:
        first = opened.read(1)
    names = ("", "a.bin", "deep", "deep/er", "deep/er/b.json", "gone", "gone/at/all")
    return {
        "kinds": [((folder / n).exists(), (folder / n).is_file(), (folder / n).is_dir()) for n in names],
        "listed": [(path.name, is_folder) for path, is_folder in list_folder(folder)],
        "iterdir": sorted(path.name for path in folder.iterdir()),
        "glob": [str(path.relative_to(folder)) for path in folder.glob("part-*.parquet")],
        "none": list((folder / "gone").glob("*.json")),
        "rglob": sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json")),
        "bytes": (folder / "a.bin").read_bytes(),
        "first": first,
        "text": (folder / "deep" / "er" / "b.json").read_text(encoding="utf-8"),
        "json": read_json(folder / "deep" / "er" / "b.json"),
        "size": (folder / "a.bin").stat().st_size,
        "arrays": x,
        "table": read_table(folder / "part-0.parquet", columns=["n"]).to_pydict(),
        "digests": [digest_file(folder / name) for name in ("a.bin", "deep/c.npz", "part-0.parquet")],
    }


def test_all_that_is_written_reads_as_on_disk(bucket: str, tmp_path: Path) -> None:
    seen = []
    for folder in (tmp_path / "run", as_path(f"{bucket}/run")):
        fill(folder)
        seen.append(read_all(folder))
    assert seen[1] == seen[0]
    assert seen[1]["kinds"] == [
        (True, False, True),
        (True, True, False),
        (True, False, True),
        (True, False, True),
        (True, True, False),
        (False, False, False),
        (False, False, False),
    ]
    assert seen[1]["bytes"] == b"new"


def test_a_missing_file_is_just_missing(bucket: str) -> None:
    path = as_path(f"{bucket}/none.json")
    readers: list[Callable[[Path], Any]] = [read_json, digest_file, read_table, Path.unlink, Path.read_bytes]
    for read in readers:
        ask = getattr(path, read.__name__, None) if read.__qualname__.startswith("Path") else None
        with pytest.raises(FileNotFoundError, match=f"there is no file {path}"):
            ask() if ask else read(path)


@pytest.mark.parametrize("there", [True, False])
def test_an_exception_leaves_the_old_object_and_nothing_else(bucket: str, there: bool) -> None:
    path = as_path(f"{bucket}/run/file")
    if there:
        write_bytes(path, b"old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {str(file): file.read_bytes() for file in as_path(bucket).rglob("*") if file.is_file()} == (
        {str(path): b"old"} if there else {}
    )


def test_what_another_process_writes_or_removes_is_seen_at_once(bucket: str) -> None:
    folder = as_path(f"{bucket}/run")
    write_bytes(folder / "one", b"1")
    assert [path.name for path in folder.iterdir()] == ["one"]
    other = S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{bucket}/run/two", b"2")
    other.rm_file(f"{bucket}/run/one")
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert ((folder / "one").is_file(), (folder / "two").is_file()) == (False, True)


def test_many_files_are_fetched_by_their_very_names(bucket: str) -> None:
    names = ["a [1].png", "a*.png", "a?.png", "ä b.png"]
    for name in names:
        write_bytes(as_path(bucket) / name, name.encode())
    paths = [as_path(bucket) / name for name in names]
    assert in_memory(paths) == [name.encode() for name in names]
    with pytest.raises(FileNotFoundError, match=f"there is no file {bucket}/b.png"):
        in_memory([paths[0], as_path(bucket) / "b.png"])
    assert in_memory([]) == []


# --------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_uploaded_with_the_file_that_makes_it_one_at_last(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Sequence[str]] = []
    upload_many = RemotePath.upload_many

    def spy(self: RemotePath, local: Sequence[Path], names: Sequence[str]) -> None:
        order.append(names)
        upload_many(self, local, names)

    monkeypatch.setattr(RemotePath, "upload_many", spy)
    with atomic_folder(as_path(f"{bucket}/model"), "index.json") as temporary:
        for name in ("index.json", "unet/weights", "z"):
            write_bytes(temporary / name, name.encode())
    assert order == [["unet/weights", "z"], ["index.json"]]
    assert as_path(f"{bucket}/model/unet/weights").read_bytes() == b"unet/weights"


def test_an_exception_uploads_nothing_of_a_folder(bucket: str) -> None:
    def interrupted() -> None:
        with atomic_folder(as_path(f"{bucket}/model"), "index.json") as temporary:
            write_bytes(temporary / "index.json", b"")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list_folder(as_path(bucket)) == []


def test_a_folder_is_copied_once_until_a_file_in_it_changes(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    remote = as_path(f"{bucket}/models/mine")
    write_bytes(remote / "index.json", b"1")
    write_bytes(remote / "unet" / "weights", b"abc")
    copy = local_folder(remote)
    assert copy.name == "mine"
    assert copy.is_relative_to(tmp_path / ".cache" / "latebloom")
    assert {str(f.relative_to(copy)): f.read_bytes() for f in copy.rglob("*") if f.is_file()} == {
        "index.json": b"1",
        "unet/weights": b"abc",
    }
    (copy / "mark").touch()
    assert (local_folder(remote) / "mark").exists()
    write_bytes(remote / "unet" / "weights", b"xyz")  # of the same size
    assert (local_folder(remote) / "unet" / "weights").read_bytes() == b"xyz"
    assert local_folder(tmp_path) == tmp_path


def test_a_file_is_kept_until_it_changes(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    remote = as_path(f"{bucket}/style.safetensors")
    write_bytes(remote, b"abc")
    write_bytes(as_path(f"{bucket}/other.safetensors"), b"none of it")
    copy = kept_file(remote)
    assert (copy.name, copy.read_bytes()) == ("style.safetensors", b"abc")
    assert [file.name for file in tmp_path.rglob("*.safetensors")] == [copy.name]
    written = copy.stat().st_ino
    assert kept_file(remote).stat().st_ino == written
    write_bytes(remote, b"xyz")  # of the same size
    assert kept_file(remote).read_bytes() == b"xyz"
    assert kept_file(copy) == copy


# --------------------------------------------------------------------------------------------------------- sources


def image_folder(path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                image = encode_png(rng.integers(0, 256, (9, 10, 3), np.uint8))
                write_bytes(path / split / name / f"{number} [x].png", image)
    write_bytes(path / "train" / "cat" / "notes.txt", b"kept beside the images")


def npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{what}": values
        for split in ("train", "test")
        for what, values in (("images", rng.integers(0, 256, (4, 8, 8), np.uint8)), ("labels", np.array([0, 1, 0, 1])))
    }
    write_arrays(path / "set.npz", **arrays)


def parquet(path: Path) -> None:
    rng = np.random.default_rng(0)
    path.mkdir()
    for split in ("train", "test"):
        blobs = [encode_png(rng.integers(0, 256, (8, 8, 1), np.uint8)) for _ in range(4)]
        pq.write_table(pa.table({"image": blobs, "label": [0, 1, 0, 1]}), path / f"{split}-0.parquet")


@pytest.mark.parametrize(("make", "file"), [(image_folder, ""), (npz, "/set.npz"), (parquet, "")])
def test_a_source_is_the_same_at_a_url(make: Callable[[Path], None], file: str, bucket: str, tmp_path: Path) -> None:
    make(tmp_path / "set")
    upload(tmp_path / "set", f"{bucket}/set")
    here, there = (load(DataConfig(source=f"{place}/set{file}")) for place in (tmp_path, bucket))
    for split in ("train", "test"):
        mine, theirs = getattr(here, split), getattr(there, split)
        assert theirs.digest == mine.digest
        assert theirs.class_names == mine.class_names
        assert theirs.origin == mine.origin.replace(str(tmp_path), bucket)


def test_empty_objects_that_stand_for_folders_are_skipped(bucket: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    upload(tmp_path / "set", f"{bucket}/set")
    for name in ("", "train/", "train/cat/", "test/"):
        S3FileSystem().pipe_file(f"{bucket}/set/{name}", b"")
    assert load(DataConfig(source=f"{bucket}/set")).train.class_counts().tolist() == [3, 3]


def test_what_is_wrong_in_a_remote_source_is_named_by_its_url(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{bucket}/set is neither a data set's name nor a path that exists"):
        load(DataConfig(source=f"{bucket}/set"))
    image_folder(tmp_path / "set")
    write_bytes(tmp_path / "set" / "train" / "dog" / "x.png", b"no image")
    upload(tmp_path / "set", f"{bucket}/set")
    with pytest.raises(ValueError, match=f"{bucket}/set/train/dog/x.png cannot be read as an image"):
        load(DataConfig(source=f"{bucket}/set"))
    with pytest.raises(ValueError, match=f"root {bucket}/sets is a URL, but data sets with a name need a local folder"):
        load(DataConfig(source="cifar10", root=f"{bucket}/sets"))


# ---------------------------------------------------------------------------------------------------------- errors


def write_folder(path: Path) -> None:
    with atomic_folder(path, "last") as temporary:
        (temporary / "first").touch()


def requests_to(path: Path) -> list[Callable[[], Any]]:
    """One of each kind of request to the storage."""
    return [
        path.exists,
        path.is_dir,
        lambda: list_folder(path),
        lambda: read_json(path),
        lambda: digest_file(path),
        lambda: in_memory([path]),
        lambda: write_json(path, 1),
        lambda: path.unlink(missing_ok=True),
        lambda: local_folder(path),
        lambda: kept_file(path),
        lambda: write_folder(path),
    ]


def assert_all_say(path: Path, message: str, *, some: bool = False) -> None:
    for ask in requests_to(path)[:: 3 if some else 1]:
        with pytest.raises(OSError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_missing_bucket_is_named_and_not_made(bucket: str) -> None:
    assert_all_say(
        as_path(f"{bucket}-not/run"), f"^{bucket}-not/run: there is no such bucket; make it, or correct its name$"
    )
    as_path(f"{bucket}-not/run").mkdir(parents=True)
    assert not S3FileSystem().exists(f"{bucket}-not")


@pytest.fixture
def new_client(bucket: str) -> Iterator[None]:
    """s3fs keeps a client, which keeps the environment that it was made in."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("new_client")
def test_a_refused_connection_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert_all_say(
        as_path(f"{bucket}/run"),
        f'^{bucket}/run cannot be used .Could not connect to the endpoint URL: "http://127.0.0.1:9/.*; '
        "check the address, the network and, for S3, AWS_ENDPOINT_URL_S3$",
        some=True,
    )


@pytest.mark.usefixtures("new_client")
def test_missing_credentials_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_all_say(
        as_path(f"{bucket}/run"),
        f"^{bucket}/run cannot be used .Unable to locate credentials.; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and ",
        some=True,
    )


def test_denied_access_is_named(bucket: str, s3_endpoint: str) -> None:
    def let_in_without_rights(count: str) -> None:
        url, headers = f"{s3_endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, count.encode(), headers)).close()

    let_in_without_rights("0")  # moto then asks each key for its rights, and knows none
    try:
        assert_all_say(as_path(f"{bucket}/run"), f"^{bucket}/run: access denied .*; the credentials need", some=True)
    finally:
        let_in_without_rights("inf")


def test_a_missing_package_is_named() -> None:
    code = """
import sys
sys.modules["s3fs"] = None  # as if it were not installed
from latebloom.data.store import as_path
path = as_path("s3://bucket/run") / "config.json"
try:
    path.is_file()
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == (
        "s3://bucket/run/config.json needs s3fs, which is not installed; install Latebloom with the extra s3 (README, "
        "Install)\n"
    )
