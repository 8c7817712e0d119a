"""The same data set, whoever makes its parts, and what becomes of a job whose workers fail."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import psutil
import pydantic
import pytest
from hesitant import generate_part
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from served import Server, wait_for

from latebloom.data.store import read_json
from latebloom.data.synthetic.folder import PartRecord
from latebloom.flows.config.compare import CompareConfig, PartsConfig
from latebloom.flows.run.budget import Deadline, Unfinished
from latebloom.flows.run.folder import Partial, RunFolder
from latebloom.flows.run.progress import Meter, meter, shown_by
from latebloom.flows.runners import parts as runners
from latebloom.flows.stages import checks, synthesis

TESTS = Path(__file__).parents[2] / "support"
Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace


@flow
def job(run: Path, config: CompareConfig) -> int:
    """The part of a flow that makes images; how many were counted."""
    folder = RunFolder(run)
    todo = synthesis.open_parts(folder, config)
    with meter("generate", todo.images, "images", todo.images_done) as bar:
        runners.make_parts(run, config, todo.parts, bar)
    synthesis.finish_synthetic(folder, config)
    return bar.done


@pytest.mark.parametrize(
    "changes",
    [
        {"parts.runner": "processes", "generate.processes": 2},
        {"parts.runner": "processes", "generate.processes": 1},
        {"parts.runner": "dask", "generate.processes": 2},
        {"parts.runner": "ray", "generate.processes": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes that import torch, on a busy machine
def test_every_runner_makes_the_same_data_set(
    changes: dict[str, Any], finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story, server: Server
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    images = job(finished.path, tiny(changes))
    assert story.data_set(finished) == story.data_set(pristine)
    assert images == synthesis.open_parts(finished, tiny()).images_done


def test_who_makes_the_parts_is_no_reason_to_make_anything_again(finished: RunFolder, tiny: Tiny, story: Story) -> None:
    parts = {"runner": "runs", "parts_a_run": 9, "deployment": "a/b", "limit": "gpu:{host}"}
    config = tiny({f"parts.{name}": value for name, value in parts.items()})
    assert story.made(story.all_stages(finished.path, config)) == set()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"runner": "threads", "address": "tcp://host:8786"},
            "address is for the runners dask and ray, not for threads",
        ),
        ({"runner": "slurm"}, "'auto', 'threads', 'processes', 'dask', 'ray' or 'runs'"),
        ({"deployment": "generate-part"}, "match pattern"),
        ({"parts_a_run": 0}, "greater than or equal to 1"),
    ],
)
def test_a_runner_that_cannot_be_is_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        PartsConfig(**parts)


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_runner_that_is_not_installed_says_what_to_install(
    runner: str, finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"prefect_{runner}", None)
    with pytest.raises(ValueError, match=rf"runner {runner} needs prefect-{runner}, which is not installed; install"):
        runners.make_parts(finished.path, tiny({"parts.runner": runner}), [0], Meter("", 1, "images"))


@pytest.mark.parametrize(
    ("gpus", "visible", "seen"),
    [(0, None, [None, None, None]), (2, None, ["0", "1", "0"]), (2, "4,GPU-a", ["4", "GPU-a", "4"])],
)
def test_the_workers_of_a_local_dask_cluster_have_a_gpu_each(
    gpus: int, visible: str | None, seen: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners.os, "environ", {"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    workers = runners._local_dask(distributed, 3, gpus)["workers"]
    assert [workers[place]["options"]["env"].get("CUDA_VISIBLE_DEVICES") for place in range(3)] == seen
    assert {(one["options"]["nthreads"], one["options"]["host"]) for one in workers.values()} == {(1, "127.0.0.1")}


# ------------------------------------------------------------------------------------------------- without a server


@pytest.fixture
def no_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are made by the function of their task."""
    monkeypatch.setattr(runners, "make_part", runners.make_part.fn)


def test_when_the_time_is_over_what_is_made_stays_and_the_rest_is_counted(
    no_prefect: None, finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    todo = synthesis.open_parts(finished, tiny())
    deadline = Deadline(500, lambda: 0 if len(story.data_set(finished)) < 2 else 1000)
    with pytest.raises(
        Unfinished, match=r"^2 of 12 missing parts were made in the time; the same again makes the rest$"
    ):
        runners.make_parts(finished.path, tiny(), todo.parts, Meter("", todo.images, "images"), deadline)
    made = story.data_set(finished)
    assert set(made) == {"part-00000.parquet", "part-00001.parquet"}
    assert made.items() <= story.data_set(pristine).items()


def test_the_limit_is_held_while_parts_are_made(
    no_prefect: None, finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    @contextlib.contextmanager
    def slots(name: str, count: int, timeout_seconds: float | None) -> Iterator[None]:
        held.append((name, count, timeout_seconds))
        yield
        held.append("free")

    monkeypatch.setattr(runners, "slots", slots)
    monkeypatch.setattr(synthesis, "make_one_part", lambda *asked: held.append(asked[2]) or RECORD)
    config = tiny({"parts.runner": "threads", "parts.limit": "gpu:{host}"})
    runners.make_parts(finished.path, config, [0, 3], Meter("", 14, "images"))
    assert held == [("gpu:{host}", 1, None), 0, 3, "free"]


RECORD = PartRecord("key", "made", "part-00000.parquet", 7, "", {"ok": 7}, {}, 20.0, 0.0)


def test_a_slot_is_waited_for_until_the_deadline_and_no_longer(
    no_prefect: None, finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float | None] = []

    @contextlib.contextmanager
    def slots(name: str, count: int, timeout_seconds: float | None) -> Iterator[None]:
        waited.append(timeout_seconds)
        raise TimeoutError
        yield

    monkeypatch.setattr(runners, "slots", slots)
    config = tiny({"parts.runner": "threads", "parts.limit": "gpu:{host}"})
    for now in (40.0, 100.0):  # after the deadline none is asked for
        with pytest.raises(Unfinished, match=r"^0 of 2 missing parts were made in the time"):
            runners.make_parts(
                finished.path, config, [0, 3], Meter("", 14, "images"), Deadline(100, lambda now=now: now)
            )
    assert waited == [60]


def test_parts_take_as_long_as_their_records_say_and_not_what_they_waited_for_a_slot(
    no_prefect: None, finished: RunFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(synthesis, "make_one_part", lambda *asked: made.append(asked[2]) or RECORD)
    with pytest.raises(Unfinished, match=r"^1 of 3 missing parts"):  # another of 20 s does not fit into the last 15
        runners.make_parts(
            finished.path,
            tiny({"parts.runner": "threads"}),
            [0, 1, 2],
            Meter("", 21, "images"),
            Deadline(100, lambda: 85.0),
        )
    assert made == [0]


def test_numbered_parts_are_counted_by_part(no_prefect: None, finished: RunFolder) -> None:
    (finished.path / "synthetic/part-00002.parquet").unlink()
    meters: list[bool] = []

    class Shown(Meter):
        def close(self) -> None:
            meters.append(self.in_parts)

    with shown_by(Shown):
        runners.make_numbered(str(finished.path), [2], "")
    assert meters == [True]


def test_numbered_parts_are_made_and_no_others(
    no_prefect: None, finished: RunFolder, pristine: RunFolder, story: Story
) -> None:
    for number in (2, 3, 4):
        (finished.path / f"synthetic/part-0000{number}.parquet").unlink()
    before = story.times(finished.path)
    runners.make_numbered(str(finished.path), [1, 2, 4], "")
    after = story.times(finished.path)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"synthetic/{name}" for n in (2, 4) for name in (f"part-0000{n}.parquet", f".parts/part-0000{n}.json")
    }
    whole = story.data_set(pristine)
    del whole["part-00003.parquet"]
    assert story.data_set(finished) == whole


@pytest.mark.parametrize(("numbers", "named"), [([0, 12], 12), ([-1], -1)])
def test_a_part_that_is_not_in_the_plan_is_refused(numbers: list[int], named: int, pristine: RunFolder) -> None:
    with pytest.raises(ValueError, match=rf"part {named} was asked for, but .* has parts 0 to 11; ask for one"):
        runners.make_numbered(str(pristine.path), numbers, "")


def test_numbered_parts_of_no_run_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        runners.make_numbered(str(tmp_path), [0], "")


def test_of_numbered_parts_that_fail_the_others_are_made_and_what_lies_in_the_folder_is_not_touched(
    no_prefect: None, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 3, 4):
        (finished.path / f"synthetic/part-0000{number}.parquet").unlink()
    real = synthesis.make_one_part

    def fails(run: RunFolder, config: CompareConfig, number: int, on_images: Any) -> dict[str, Any]:
        if number == 3:
            raise RuntimeError("no such\nthing")
        return real(run, config, number, on_images)

    monkeypatch.setattr(synthesis, "make_one_part", fails)
    with pytest.raises(Partial, match=r"^1 of 3 parts could not be made; the first is part 3: RuntimeError: no such$"):
        runners.make_numbered(str(finished.path), [2, 3, 4], "")
    assert [n for n in (2, 3, 4) if (finished.path / f"synthetic/part-0000{n}.parquet").exists()] == [2, 4]
    assert not (finished.path / "synthetic/failures.json").exists()  # it is the job's


def test_a_part_that_another_has_made_meanwhile_is_not_written_again(
    finished: RunFolder, tiny: Tiny, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, draw = finished.path / "synthetic/part-00002.parquet", synthesis.draw
    kept = part.rename(part.with_suffix(".kept"))

    def another_is_quicker(*args: Any, **kwargs: Any) -> Any:
        kept.rename(part)
        return draw(*args, **kwargs)

    monkeypatch.setattr(synthesis, "draw", another_is_quicker)
    record = read_json(finished.path / "synthetic/.parts/part-00002.json")
    before = story.times(finished.path / "synthetic")
    assert synthesis.make_one_part(finished, tiny(), 2, lambda _: None).sha256 == record["sha256"]
    after = story.times(finished.path / "synthetic")
    assert {name: when for name, when in after.items() if "part-00002" in name} == {
        "part-00002.parquet": before["part-00002.kept"],
        ".parts/part-00002.json": before[".parts/part-00002.json"],
    }


# ------------------------------------------------------------------------------------------------- runs of a deployment


@pytest.fixture
def two_workers(server: Server, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two `prefect worker start` of a work pool that has the deployment generate-part/generate-part."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="parts", type="process"))
    RunnerDeployment.from_flow(
        generate_part, name="part", work_pool_name="parts", entrypoint_type=EntrypointType.MODULE_PATH
    ).apply()
    words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "parts", "--limit", "1", "--name"]
    env = server.env | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent))), "OMP_NUM_THREADS": "1"}
    workers = []
    for name in ("first", "second"):
        with (tmp_path / f"{name}.log").open("wb") as log:
            workers.append(
                subprocess.Popen([*words, name], env=env, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
            )
    yield workers
    for worker in workers:
        kill(worker)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and the flow runs that it started, as `kill -9` does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(worker.pid).children(recursive=True):
            child.kill()
    worker.kill()
    worker.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_share_a_job_and_it_ends_though_one_of_them_is_killed(
    two_workers: list[subprocess.Popen[bytes]], finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: Story
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    config = tiny({"parts.runner": "runs", "parts.parts_a_run": 4})
    checks.open_run(config, str(finished.path))
    (finished.path.parent / "hesitate").touch()
    stopped = finished.path.parent / "stopped"

    def kill_the_one_that_stops() -> int:
        pid = int(wait_for(lambda: stopped.exists() and stopped.read_text(), 300, "a run that stops"))
        (victim,) = [
            worker
            for worker in two_workers
            if pid in [child.pid for child in psutil.Process(worker.pid).children(recursive=True)]
        ]
        kill(victim)
        return pid

    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill_the_one_that_stops)
        images = job(finished.path, config)
    assert story.data_set(finished) == story.data_set(pristine)
    assert images == synthesis.open_parts(finished, config).images_done
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.deployment_id]
    ends = {run.state_name for run in runs}
    assert ends == {"Completed", "Crashed"}
    assert {run.infrastructure_pid.rpartition(":")[2] for run in runs if run.state_name == "Crashed"} == {
        str(killed.result())
    }
    assert all(run.parent_task_run_id for run in runs)  # they show below the job
