"""Tasks that lose storage or the hub are tried again, by the engine of Prefect; an error of the person ends them."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.states import Completed, Failed
from served import Server

from latebloom.flows import pipeline, tasks
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.runners import parts as runners
from latebloom.flows.runners.engine import Task, may_pass
from latebloom.flows.stages import checks, synthesis

RUN: Any = SimpleNamespace(name="make part 3")
LOST = OSError("s3://b/x cannot be used")
LOST.__cause__ = ConnectionResetError(errno.ECONNRESET, "reset")


def test_what_may_pass_is_tried_again_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = None
    assert may_pass(task, RUN, Failed(data=LOST))
    assert capsys.readouterr().err == "make part 3: ECONNRESET, trying again soon: s3://b/x cannot be used\n"
    assert not may_pass(task, RUN, Failed(data=ValueError("k is 1")))
    assert not may_pass(task, RUN, Failed(message="no error"))
    assert not may_pass(task, RUN, Completed())
    assert capsys.readouterr().err == ""


def test_every_task_has_retries_with_back_off_and_jitter() -> None:
    found = [one for module in (tasks, runners) for one in vars(module).values() if isinstance(one, Task)]
    assert len(found) >= 10
    for one in found:
        made = one.task
        assert (made.retries, made.retry_delay_seconds) == (3, [5, 10, 20]), one.name
        assert (made.retry_jitter_factor, made.retry_condition_fn) == (1.0, may_pass), one.name


def run_alone(task: Task[..., Any], *args: Any) -> None:
    """A flow with one task, that does not wait between tries."""
    at_once = task.with_waits(0, 0, 0)

    @flow(name="one-task")
    def alone() -> None:
        at_once(*args)

    alone()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What the next calls of `checks.check_inputs` raise; each call takes one."""
    left: list[BaseException | None] = []

    def check(*_: object) -> None:
        error = left.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr(checks, "check_inputs", check)
    return left


def test_a_task_that_loses_its_storage_is_tried_again_and_a_persons_error_ends_it(
    server: Server, calls: list[BaseException | None], tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls += [LOST, TimeoutError("slow"), ValueError("k is 1"), None]
    with pytest.raises(ValueError, match="k is 1"):
        run_alone(tasks.check_inputs, tiny(), str(tmp_path), "select")
    assert calls == [None]
    said = [line for line in capsys.readouterr().err.splitlines() if "trying again" in line]
    assert said == [
        "check inputs: ECONNRESET, trying again soon: s3://b/x cannot be used",
        "check inputs: TimeoutError, trying again soon: slow",
    ]


def test_without_a_server_a_task_is_tried_again_as_well(
    calls: list[BaseException | None], tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_once = tasks.check_inputs.with_waits(0, 0, 0)
    calls += [LOST, None]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(checks, "check_folder", lambda *_: None)
        at_once(tiny(), str(tmp_path), "select")
    assert "check inputs: ECONNRESET, trying again soon" in capsys.readouterr().err
    calls += [LOST, LOST, LOST, LOST, None]
    with pytest.raises(OSError, match="s3://b/x cannot be used"):
        at_once(tiny(), str(tmp_path), "select")
    assert calls == [None]  # three tries after the first, and no more


@pytest.mark.slow
def test_a_part_that_could_not_be_written_is_made_again_before_it_counts_as_failed(
    server: Server,
    tiny: Any,
    pristine: RunFolder,
    finished: RunFolder,
    story: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in (1, 3):
        (finished.path / f"synthetic/part-{number:05d}.parquet").unlink()
    real, numbers = synthesis.make_one_part, []

    def loses_the_first_two(run: RunFolder, config: CompareConfig, number: int, on_images: Any) -> Any:
        numbers.append(number)
        if len(numbers) <= 2:
            raise LOST
        return real(run, config, number, on_images)

    monkeypatch.setattr(synthesis, "make_one_part", loses_the_first_two)
    monkeypatch.setattr(runners, "make_part", runners.make_part.with_waits(0, 0, 0))
    pipeline.generate(tiny(), str(finished.path))
    assert numbers == [1, 1, 1, 3]
    assert story.data_set(finished) == story.data_set(pristine)
