import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latebloom.data.store import (
    atomic_path,
    digest_bytes,
    digest_file,
    digest_json,
    json_text,
    read_json,
    write_arrays,
    write_bytes,
    write_json,
)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def interrupted(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"new")
    assert files(tmp_path) == {"a/b/c.bin": b"new"}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"a long old content")
    write_bytes(tmp_path / "file", b"new")
    assert files(tmp_path) == {"file": b"new"}


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    # The umask is read when the module is imported, so another process is needed to see another one.
    code = "import os; os.umask(0o027)\nimport pathlib, sys; from latebloom.data.store import write_bytes\n"
    code += "write_bytes(pathlib.Path(sys.argv[1]), b'')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=True)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == path.parent  # so that the rename stays on one disk
        assert path.read_bytes() == b"old"
    assert files(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("there", [True, False])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert files(tmp_path) == ({"file": b"old"} if there else {})


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(tmp_path / "file", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == {"file": b"old"}


def test_a_folder_in_the_way_is_an_error_that_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "name", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["name"]


def test_a_file_where_a_folder_should_be_is_an_error_that_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "name" / "file", b"new")
    assert files(tmp_path) == {"name": b"old"}


def test_equal_arrays_are_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_arrays(tmp_path / name, a=np.arange(6).reshape(2, 3), b=np.array(["x", "yz"]))
    assert digest_file(tmp_path / "one") == digest_file(tmp_path / "two")
    with np.load(tmp_path / "one", allow_pickle=False) as archive:
        assert archive["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert archive["b"].tolist() == ["x", "yz"]


def test_arrays_that_need_a_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "file", a=np.array([{}, None]))
    assert files(tmp_path) == {}


def test_equal_values_are_equal_json(tmp_path: Path) -> None:
    write_json(tmp_path / "one", {"b": [1, 2.5, None], "a": "ä"})
    write_json(tmp_path / "two", {"a": "ä", "b": [1, 2.5, None]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_json(tmp_path / "one") == {"a": "ä", "b": [1, 2.5, None]}


def test_nan_and_infinity_are_null(tmp_path: Path) -> None:
    values = {"loss": [math.nan, 1.5, (-math.inf, 2)], "deep": {"a": math.inf}, "n": 3, "yes": True, "no": None}
    write_json(tmp_path / "file", values)
    expected = {"loss": [None, 1.5, [None, 2]], "deep": {"a": None}, "n": 3, "yes": True, "no": None}
    assert read_json(tmp_path / "file") == json.loads(json_text(values)) == expected
    assert json_text({"a": "ä", "b": math.nan}, indent=None) == '{"a": "ä", "b": null}'


def test_nan_and_infinity_are_read_and_have_digests_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": -Infinity, "b": [Infinity], "c": NaN}')  # as diffusers writes a config
    values = read_json(tmp_path / "file")
    assert (values["a"], values["b"], math.isnan(values["c"])) == (-math.inf, [math.inf], True)
    digests = {digest_json(value) for value in (-math.inf, math.inf, math.nan, None, "NaN", "Infinity", 0.0)}
    assert len(digests) == 7
    assert digest_json(values) == digest_json(read_json(tmp_path / "file"))


def test_what_is_not_json_is_named(tmp_path: Path) -> None:
    for content in [b"", b'{"half": ', b"\xff\xfe\x00", b"[" * 100_000]:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is not valid JSON .* delete it"):
            read_json(tmp_path / "config.json")


def test_a_missing_json_file_is_just_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "config.json")


def test_digests_are_sha256(tmp_path: Path) -> None:
    # The test vector of FIPS 180-4.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    write_bytes(tmp_path / "file", b"abc")
    assert digest_bytes(b"abc") == digest_file(tmp_path / "file") == abc


def test_the_digest_of_a_value_ignores_the_order_of_keys_alone() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json({"a": 1, "b": [1, 2]}) != digest_json({"a": 1, "b": [2, 1]})
    assert digest_json({"a": 1}) != digest_json({"a": "1"})
    assert digest_json({"a": 1}) == digest_bytes(b'{"a":1}')
