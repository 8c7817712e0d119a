import os
from pathlib import Path

import pytest

from latebloom.data.config import DataConfig
from latebloom.data.store import as_path, read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.folder import read_config, write_config
from latebloom.flows.run.origin import free_folder, lies_in, place_of, read_origin, remember, usual_folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("LATEBLOOM_RUNS", raising=False)


def config(source: str, **more: object) -> CompareConfig:
    return CompareConfig(data=DataConfig(source=source), **more)  # type: ignore[arg-type]


def run_of(source: str, run: str | Path) -> Path:
    remember(Path(run), config(source), f"digest of {source}")
    return Path(run)


def folder(path: str) -> str:
    Path(path).mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("cats.npz", "cats"),
        ("../data/cats.csv", "cats"),
        ("cats.parquet", "cats"),
        ("cats-0001.tar", "cats-0001"),
        ("cats.v1", "cats.v1"),
        ("./cats.v2/", "cats.v2"),
        ("big cats", "big cats"),
        ("s3://bucket/cats.v1", "cats.v1"),
        ("s3://bucket/cats.npz", "cats"),
    ],
)
def test_a_run_folder_has_the_whole_name_of_its_source(source: str, name: str) -> None:
    assert usual_folder(source) == Path("runs") / name


def test_a_folder_that_is_called_like_a_file_keeps_its_name() -> None:
    assert usual_folder(folder("cats.npz")) == Path("runs/cats.npz")


def test_run_folders_are_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEBLOOM_RUNS", "/somewhere")
    assert usual_folder("cats") == Path("/somewhere/cats")


@pytest.mark.parametrize(("here", "source"), [(".", "."), ("train", ".."), ("train/cat", "../.."), (".", "../flowers")])
def test_in_the_data_the_run_folder_is_beside_them(
    here: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "flowers"
    (data / "train/cat").mkdir(parents=True)
    monkeypatch.chdir(data / here)
    assert usual_folder(source) == tmp_path / "runs/flowers"
    assert f"run folders are in {tmp_path}/runs: here they would lie in the data" in capsys.readouterr().err


@pytest.mark.parametrize("source", [".", ".."])
def test_a_point_has_the_name_of_its_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    monkeypatch.setenv("LATEBLOOM_RUNS", str(tmp_path / "elsewhere"))
    assert usual_folder(source).name == ("b" if source == "." else "a")


def test_a_place_for_run_folders_in_the_data_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATEBLOOM_RUNS", "runs")
    with pytest.raises(UsageError, match=f"LATEBLOOM_RUNS is runs, which lies in the data .{tmp_path}/work.*outside"):
        usual_folder(".")


def test_the_whole_disk_has_no_name() -> None:
    with pytest.raises(UsageError, match="give a place outside with --out"):
        usual_folder("/")


def test_two_sources_of_one_name_have_two_folders() -> None:
    sources = [folder(f"{above}/cats") for above in ("a", "b", "c/b", "d/c/b")]
    found = [run_of(source, usual_folder(source)) for source in sources]
    assert [path.name for path in found] == ["cats", "b-cats", "c-b-cats", "d-c-b-cats"]
    assert [usual_folder(source) for source in sources] == found  # and each finds its own again
    assert free_folder(sources[1], found[0]) == found[1]  # also where it is refused in another's


def test_a_name_and_a_folder_of_that_name_have_two_run_folders(tmp_path: Path) -> None:
    run_of("digits", "runs/digits")
    assert usual_folder(folder("./digits")) == Path("runs/work-digits")
    assert free_folder("digits", Path("runs/digits")) == Path("runs/digits-2")


def test_data_that_are_gone_may_be_those_of_the_same_name_elsewhere() -> None:
    run_of(folder("a/cats"), "runs/cats")
    Path("a/cats").rmdir()
    assert usual_folder(folder("b/cats")) == Path("runs/cats")  # whose images are compared before anything is written
    assert free_folder("b/cats", Path("runs/cats")) == Path("runs/b-cats")


@pytest.mark.parametrize(
    ("path", "source", "lies"),
    [
        ("data/runs", "data", True),
        ("data", "data", True),
        ("data-runs", "data", False),
        ("runs", "digits", False),
        ("runs", "data/file.npz", False),
        ("s3://b/data/runs", "s3://b/data", True),
        ("s3://b/data-runs", "s3://b/data", False),
        ("data/runs", "s3://b/data", False),
    ],
)
def test_what_lies_in_the_data(path: str, source: str, lies: bool) -> None:
    folder("data")
    assert lies_in(as_path(path), source) == lies


def test_a_link_into_the_data_lies_in_them(tmp_path: Path) -> None:
    folder("data/inner")
    Path("link").symlink_to("data/inner")
    assert lies_in(Path("link/runs"), "data")


def test_a_run_folder_says_of_what_it_is(tmp_path: Path) -> None:
    run = run_of(folder("cats"), "runs/cats")
    origin = read_origin(run)
    assert origin is not None
    assert (origin.source, origin.place, origin.digest) == ("cats", str(tmp_path / "work/cats"), "digest of cats")
    assert origin.paths["data.source"].from_run == "../../cats"
    assert read_origin(Path("runs/none")) is None


def test_a_run_folder_of_a_version_before_is_of_the_source_in_its_config() -> None:
    write_json(Path("runs/cats/config.json"), config("cats").model_dump(mode="json"))
    origin = read_origin(Path("runs/cats"))
    assert origin is not None
    assert (origin.place, origin.digest) == (place_of("cats"), "")


def test_names_ids_and_the_usual_download_folder_are_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    folder("digits")
    folder("home/.cache/latebloom")
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    write_config(Path("runs/digits"), config("digits", generate={"generator": "digits"}), "d")
    assert read_json(Path("runs/digits/origin.json"))["paths"] == {}


@pytest.mark.parametrize("move", ["nothing", "the working directory", "run and data", "the run alone"])
def test_the_files_of_a_run_are_found_again(move: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("in/cats", "in/net"):
        folder(path)
    Path("in/names.csv").write_text("class,name\n")
    settings = {"generate": {"generator": "in/net"}, "prompts": {"names": "in/names.csv"}}
    write_config(Path("in/runs/cats"), config("in/cats", **settings), "d")
    run, data = tmp_path / "work/in/runs/cats", tmp_path / "work/in"
    if move == "the working directory":
        monkeypatch.chdir(folder(str(tmp_path / "other")))
        folder("in/cats")  # another folder, of that name here
    elif move == "run and data":
        data = Path("in").rename(tmp_path / "new")
        run = data / "runs/cats"
    elif move == "the run alone":
        run = run.rename(tmp_path / "run")
    found = read_config(run)
    named = [found.data.source, found.generate.generator, found.prompts.names]
    if move in ("nothing", "the run alone"):
        assert named == ["in/cats", "in/net", "in/names.csv"]  # as they were typed
    else:
        assert named == [str(data / name) for name in ("cats", "net", "names.csv")]


def test_where_a_path_was_replaced_it_is_found_after_the_next_move_too(tmp_path: Path) -> None:
    folder("in/cats")
    write_config(Path("in/runs/cats"), config("in/cats"), "d")
    for name in ("b", "c"):
        data = Path("in" if name == "b" else tmp_path / "b").rename(tmp_path / name)
        found = read_config(data / "runs/cats")
        assert found.data.source == str(data / "cats")
        write_config(data / "runs/cats", found)
    origin = read_origin(tmp_path / "c/runs/cats")
    assert origin is not None
    assert origin.digest == "d"


def test_a_damaged_file_is_named() -> None:
    os.makedirs("runs/cats")  # noqa: PTH103
    Path("runs/cats/origin.json").write_text("{}")
    with pytest.raises(ValueError, match=r"runs/cats/origin.json is damaged .*; remove it"):
        usual_folder("cats")
