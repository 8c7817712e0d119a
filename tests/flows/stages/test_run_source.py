import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.data.store import read_json, write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.run.origin import usual_folder
from latebloom.flows.run.resolve import resolve
from latebloom.flows.stages import checks, synthesis, training
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.run_source import check_source, claim

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace


def image_folder(path: Path, per_class: int = 6, first: int = 0) -> Path:
    """Digits as PNG files of two splits and three classes."""
    splits = load(DataConfig())
    for name, data in (("train", splits.train), ("test", splits.test)):
        for label in range(3):
            place = path / name / f"class {label}"
            place.mkdir(parents=True, exist_ok=True)
            for row in np.flatnonzero(data.labels == label)[first : first + per_class]:
                Image.fromarray(data.pixels(np.array([row]))[0, :, :, 0]).save(place / f"{row:03}.png")
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, generator: Path, story: Story) -> Path:
    """A folder with images, a generator and a finished run of them; its settings name relative paths. Read only."""
    place = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        image_folder(Path("digits/of mine"))
        shutil.copytree(generator, "nets/tiny")
        named = {"data": {"source": "digits/of mine"}, "generate.generator": "nets/tiny", "generate.classes": "order"}
        config = tiny({**named, "seeds": 1, "train.epochs": 1})
        gather.write(story.all_stages(usual_folder("digits/of mine"), config), config)
    return place


@pytest.fixture
def moved(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project at another place, and none of the old one in reach; the run folder."""
    shutil.copytree(project, tmp_path / "new place")
    origin = tmp_path / "new place/runs/of mine/origin.json"
    write_json(origin, _renamed(read_json(origin), str(project), "/gone"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "new place/runs/of mine"


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {name: _renamed(inner, old, new) for name, inner in value.items()}
    return value.replace(old, new) if isinstance(value, str) else value


def test_a_moved_run_goes_on_from_any_directory(
    moved: Path, story: Story, run_command: Callable[..., Any], tmp_path: Path
) -> None:
    before = story.contents(moved)
    config, folder = resolve(moved, {}, "retrain")
    assert config.data.source == str(tmp_path / "new place/digits/of mine")
    checks.check_inputs(config, "retrain")
    checks.check_folder(config, str(folder), "retrain")
    run = checks.open_run(config, str(folder))
    for arm in config.arms:
        training.retrain_arm(run, config, arm, "sgd")
        assert training.arm_is_done(run, config, arm, "sgd")
    assert synthesis.open_parts(run, config).parts == []
    gather.write(run, config)
    new = {name for name, content in story.contents(moved).items() if before.get(name) != content}
    assert {name for name in new if not name.startswith("stages/")} == {"config.json", "report.html", "report.json"}
    item = RunContext(run, config).synthetic.rows()["item_id"][0].as_py()
    for words in (["inspect", moved, item], ["export", moved, tmp_path / "out", "--with-real"]):
        outcome = run_command(*words)
        assert (outcome.code, outcome.err) == (0, outcome.err), outcome.err
    assert list((tmp_path / "out/test").rglob("*.png"))


def test_no_file_but_its_origin_has_a_path_of_this_machine(project: Path) -> None:
    run = project / "runs/of mine"
    named = [path.name for path in run.rglob("*") if path.is_file() and str(project).encode() in path.read_bytes()]
    assert named == ["origin.json"]


def test_data_that_are_gone_are_named_with_the_way_back(moved: Path, run_command: Callable[..., Any]) -> None:
    shutil.rmtree(moved.parents[1] / "digits")
    known = r"of mine was made of digits/of mine \(/gone/digits/of mine\), which is not there any more"
    with pytest.raises(UsageError, match=f"{known}; .*latebloom select SOURCE --out {re.escape(str(moved))}"):
        resolve(moved, {}, "report")
    outcome = run_command("inspect", moved, "--sheet", "state")
    assert outcome.code == 2
    assert re.search(known, outcome.err)


def test_a_source_with_out_says_where_the_data_are_now(moved: Path, tmp_path: Path, story: Story) -> None:
    (moved.parents[1] / "digits/of mine").rename(tmp_path / "images")
    config, folder = resolve(moved, {"data": {"source": "../images"}}, "report")
    assert config == read_config(moved).model_copy(
        update={"data": DataConfig(source="../images"), "generate": config.generate}
    )
    checks.check_folder(config, str(folder), "report")
    run = checks.open_run(config, str(folder))
    assert story.made(run) - {"frechet"} == story.made(RunFolder(moved))
    assert resolve(moved, {}, "report")[0].data.source == "../images"


def test_another_source_in_a_run_folder_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, story: Story
) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(Path("mine"), first=6)
    run = project / "runs/of mine"
    before = story.contents(run)
    config = tiny({"data": {"source": "mine"}, "seeds": 1})
    refused = (
        f"{run} is a run folder of digits/of mine .*, and mine .{tmp_path}/mine. has other images.* --out .*/mine$"
    )
    for refuse in (check_source, claim):
        with pytest.raises(UsageError, match=refused):
            refuse(run, config)
    with pytest.raises(UsageError, match=refused):
        checks.check_folder(config, str(run), "compare")
    assert story.contents(run) == before


@pytest.mark.parametrize("changes", [{}, {"data.train_limit": 9}], ids=["as before", "fewer of them"])
def test_the_same_images_at_another_place_are_the_same_source(
    project: Path, tmp_path: Path, tiny: Tiny, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "mine")
    check_source(project / "runs/of mine", tiny({"data": {"source": str(tmp_path / "mine")}} | changes))
    assert "the run goes on with them" in capsys.readouterr().err


def test_the_same_place_is_the_same_source_however_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny({"data": {"source": str(image_folder(Path("mine"))), "train_limit": 0}, "arms": ("original",)})
    run = checks.open_run(config, "run")
    image_folder(Path("mine"), per_class=8)
    check_source(run.path, tiny({"data": {"source": "../" + tmp_path.name + "/mine"}}))


def test_no_run_folder_lies_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    monkeypatch.chdir(image_folder(tmp_path / "mine"))
    with pytest.raises(UsageError, match=f"runs/x lies in the data .{tmp_path}/mine.*give a place outside"):
        checks.check_folder(tiny({"data": {"source": "."}}), "runs/x", "compare")
    assert sorted(path.name for path in Path().iterdir()) == ["test", "train"]
