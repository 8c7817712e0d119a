"""The flows with everything in S3: moto's server on loopback, started by the `bucket` fixture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from s3fs import S3FileSystem

from latebloom.data.store import as_path, is_remote, read_json, write_bytes
from latebloom.flows.cli import slow_tables
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.run.origin import ORIGIN
from latebloom.flows.stages import fit_generator
from latebloom.flows.stages.fit_generator import FitGeneratorConfig
from latebloom.synth.config import GenerateConfig
from latebloom.synth.generators.find import generator_folder

Tiny = Callable[..., CompareConfig]


def upload(local: Path, url: str) -> None:
    for file in local.rglob("*"):
        if file.is_file():
            S3FileSystem().put_file(str(file), f"{url}/{file.relative_to(local).as_posix()}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of remote generators go below it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def stages_of(run: RunFolder) -> dict[str, Any]:
    """What each stage depended on and made."""
    return {record["stage"]: (record["digest"], record["outputs"]) for record in run.records()}


@pytest.fixture(scope="module")
def small(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, story: SimpleNamespace) -> SimpleNamespace:
    """A finished run of one arm and one seed in three parts, and its config. Read only: every file costs requests."""
    config = tiny({"arms": ("ours-3",), "seeds": 1, "train.epochs": 1, "plan.part_size": 20})
    run = story.all_stages(tmp_path_factory.mktemp("small") / "run", config)
    gather.write(run, config)
    return SimpleNamespace(config=config, run=run)


def test_a_run_in_s3_makes_what_a_local_one_makes(
    bucket: str, small: SimpleNamespace, story: SimpleNamespace, generator: Path
) -> None:
    upload(generator, f"{bucket}/models/{generator.name}")
    generate = small.config.generate.model_copy(update={"generator": f"{bucket}/models/{generator.name}"})
    config = small.config.model_copy(update={"generate": generate})
    run = story.all_stages(f"{bucket}/run", config)
    assert is_remote(run.path)
    assert read_config(run.path) == config
    page = gather.write(run, config)
    assert stages_of(run) == stages_of(small.run)
    assert str(page) == f"{bucket}/run/report.html"
    files = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    logs = {"retrained/ours-3-sgd/log/seed-0/log.jsonl"}
    assert files == set(story.contents(small.run.path)) | logs | {ORIGIN}  # there is no TensorBoard in s3
    story.all_stages(f"{bucket}/run", config)
    assert story.made(run) == set()
    # As after a kill: what is missing is made again, and only that.
    (run.path / "synthetic" / "part-00001.parquet").unlink()
    assert story.make_images(run, config) == [1]
    assert stages_of(run) == stages_of(small.run)


@pytest.mark.slow
def test_a_finished_run_is_used_in_s3_as_on_disk(
    bucket: str, run_command: Any, story: SimpleNamespace, small: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(small.run.path, tmp_path / "run")
    upload(tmp_path / "run", f"{bucket}/run")
    runs = [str(tmp_path / "run"), f"{bucket}/run"]
    outs = [str(tmp_path / "out"), f"{bucket}/out"]
    assert [run_command("export", run, out).out for run, out in zip(runs, outs, strict=True)] == [
        f"{o}\n" for o in outs
    ]
    here, there = (story.contents(as_path(out)) for out in outs)
    assert len(here) > 2
    assert there == here
    assert f"{bucket}/out is not empty; export to a new folder" in run_command("export", runs[1], outs[1]).err

    item = json.loads(here["train/metadata.jsonl"].splitlines()[0])["item_id"]
    details = [json.loads(run_command("inspect", run, item, "--json").out) for run in runs]
    pictures = [one.pop("picture") for one in details]
    assert details[0] == details[1]
    assert pictures[1] == f"{bucket}/run/inspect/{item}.png"
    assert as_path(pictures[1]).read_bytes() == Path(pictures[0]).read_bytes()

    half = details[0]["scores"]["label_probability"]
    words = ("--set", f"quality.min_label_probability={half}", "--json")
    moved = [json.loads(run_command("filter", run, *words).out) for run in runs]
    assert moved[0] == moved[1]
    assert moved[1]["before"] != moved[1]["after"]
    manifests = [read_json(as_path(run) / "synthetic" / "manifest.json") for run in runs]
    assert manifests[0] == manifests[1]

    scores = [json.loads(run_command("fidelity", run, "--json").out) for run in runs]
    assert scores[0] == scores[1] == read_json(as_path(f"{bucket}/run/synthetic-fidelity.json"))


def test_a_generator_is_written_to_s3_and_read_back(bucket: str, home: Path) -> None:
    settings = {"steps": 2, "channels": (32,), "batch_size": 4, "size": 8}
    config = FitGeneratorConfig(data={"source": "digits"}, generator=settings, device="cpu")
    url = f"{bucket}/models/new"
    assert fit_generator.fit_and_save(config, as_path(url)) == url
    _, there = fit_generator.check_fit(config, as_path(url))
    assert there
    copy = generator_folder(GenerateConfig(generator=url))
    assert copy.is_relative_to(home)
    assert copy.name == "new"
    assert len(read_json(copy / "latebloom.json")["trained_on_sha256"]) == 800
    assert generator_folder(GenerateConfig(generator=url)) == copy
    with pytest.raises(ValueError, match=f"{url} is not empty and holds something else"):
        fit_generator.check_fit(config.model_copy(update={"seed": 1}), as_path(url))
    with pytest.raises(ValueError, match=f"no generator at '{bucket}/models/old'"):
        generator_folder(GenerateConfig(generator=f"{bucket}/models/old"))


def test_a_command_takes_urls(
    bucket: str, run_command: Any, fake_flows: Any, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, str]] = []
    fake_flows.select = lambda config, out: asked.append((config, out))
    monkeypatch.setattr(slow_tables, "print_slow", lambda *_: None)
    settings = tiny().model_dump(mode="json")
    write_bytes(as_path(f"{bucket}/settings.json"), json.dumps(settings).encode())
    outcome = run_command("select", "--config", f"{bucket}/settings.json", "--out", f"{bucket}/runs/a")
    assert (outcome.code, outcome.err.count("error")) == (0, 0), outcome.err
    assert asked == [(tiny(), f"{bucket}/runs/a")]


def test_a_bucket_that_is_missing_is_one_line(bucket: str, run_command: Any, fake_flows: Any) -> None:
    outcome = run_command("select", "digits", "--out", f"{bucket}-not/run")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == (
        f"error: {bucket}-not/run/origin.json: there is no such bucket; make it, or correct its name"
    )


def test_a_file_cannot_be_a_run_folder(bucket: str, run_command: Any, fake_flows: Any) -> None:
    write_bytes(as_path(f"{bucket}/run"), b"")
    outcome = run_command("select", "digits", "--out", f"{bucket}/run")
    assert outcome.code == 1
    assert f"{bucket}/run is a file, so {bucket}/run cannot be a run folder" in outcome.err
