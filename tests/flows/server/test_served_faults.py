"""Whatever is cancelled, killed or away under a served run: the same parameters end with the data set of a quiet day.

A real server, the process that serves the deployments, and a process for each flow run.
"""

import contextlib
import copy
import math
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from served import Server, wait_for
from serving import Serving, processes_of

from latebloom.flows.config.compare import RunConfig, one_setting
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.server.automations import ensure_automations
from latebloom.flows.server.deployed import GENERATE_FORM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("server")]

DEPLOYMENT = "generate/generate-digits"
ONE_AT_A_TIME = "generate/generate-continue"
Story = SimpleNamespace


@pytest.fixture(scope="module")
def long_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings of a generation of twenty parts of one image; ten seconds or more in all."""
    return copy.deepcopy(settings) | {
        "data": {"source": "digits", "train_limit": 20, "test_limit": 20},
        "plan": {"k": 3, "levels": (150, 250), "part_size": 1},
        "sample": {"grid": 1000},
    }


@pytest.fixture(scope="module")
def quiet_day(long_settings: dict[str, Any], story: Story, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Its data set, made in one go and without Prefect: the files, and how many seconds it took."""
    begin = time.monotonic()
    config = one_setting(RunConfig(**long_settings))
    run = story.up_to_plan(tmp_path_factory.mktemp("whole") / "run", config)
    story.make_images(run, config)
    return SimpleNamespace(files=story.data_set(run), seconds=time.monotonic() - begin)


@pytest.fixture
def whole(quiet_day: Story) -> dict[str, bytes]:
    """The files of the data set as they should be."""
    files: dict[str, bytes] = quiet_day.files
    return files


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of the run that a test disturbs."""
    return RunFolder(tmp_path / "run")


@pytest.fixture
def parameters(long_settings: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """The form of the long generation, filled."""
    return {**GENERATE_FORM.values(long_settings), "folder": str(run.path), "until": ""}


@pytest.fixture
def in_two_processes(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same in two processes that make parts side by side."""
    return {**parameters, "generate": {**parameters["generate"], "processes": 2}}


def parts(run: RunFolder) -> dict[str, tuple[int, int]]:
    """Name, time and inode of the parts that are done."""
    done = (run.path / "synthetic" / f"{record.stem}.parquet" for record in run.path.glob("synthetic/.parts/*.json"))
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in done}


def more_parts(run: RunFolder, more: int = 3) -> None:
    """Wait until some more parts are done; others are still to be made."""
    wanted = len(parts(run)) + more
    wait_for(lambda: len(parts(run)) >= wanted, 600, f"{wanted} parts to be made")
    assert not (run.path / "synthetic/manifest.json").exists()


def gone(run: UUID) -> None:
    """Wait until a flow run has no process any more."""
    begin = time.monotonic()
    wait_for(lambda: not processes_of(run), 60, "the processes of the run to end")
    print(f"no process after {time.monotonic() - begin:.1f} s")


def kill(run: UUID) -> None:
    """`kill -9` of all processes of a flow run."""
    for process in processes_of(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def go_on(serving: Serving, run: RunFolder, whole: dict[str, bytes], story: Story) -> Callable[[dict[str, Any]], None]:
    """Submits the same parameters again: what is missing is made, and it is all as on a quiet day."""

    def go_on(parameters: dict[str, Any]) -> None:
        before = parts(run)
        assert 1 <= len(before) < 20
        begin = time.monotonic()
        state = serving.ended(serving.submit(DEPLOYMENT, parameters))
        print(f"{state.name} {time.monotonic() - begin:.1f} s after it was submitted again")
        assert state.name == "Completed", state.message
        assert story.data_set(run) == whole
        after = parts(run)
        assert {name: after[name] for name in before} == before

    return go_on


def test_cancelled_in_the_ui_it_ends_with_its_processes_and_keeps_what_was_finished(
    serving: Serving, run: RunFolder, in_two_processes: dict[str, Any], go_on: Callable[..., None]
) -> None:
    flow_run = serving.submit(DEPLOYMENT, in_two_processes)
    more_parts(run)
    assert len(processes_of(flow_run)) >= 3  # its own, and two that make parts
    begin = time.monotonic()
    serving.cancel(flow_run)
    state = serving.ended(flow_run)
    print(f"{state.name} after {time.monotonic() - begin:.1f} s")
    assert state.name == "Cancelled"
    gone(flow_run)
    go_on(in_two_processes)


def test_a_killed_run_is_crashed_at_once_and_its_processes_die_with_it(
    serving: Serving, run: RunFolder, in_two_processes: dict[str, Any], go_on: Callable[..., None]
) -> None:
    """Its own process alone is killed; the two that make parts see for themselves that their parent is gone."""
    flow_run = serving.submit(DEPLOYMENT, in_two_processes)
    more_parts(run)
    assert len(processes_of(flow_run)) >= 3
    begin = time.monotonic()
    os.kill(processes_of(flow_run)[0], signal.SIGKILL)
    gone(flow_run)
    state = serving.ended(flow_run, 60)
    print(f"{state.name} after {time.monotonic() - begin:.1f} s: {state.message}")
    assert state.name == "Crashed"
    go_on(in_two_processes)


def test_killed_with_all_its_processes_a_run_is_crashed_at_once(
    serving: Serving, run: RunFolder, parameters: dict[str, Any], go_on: Callable[..., None]
) -> None:
    flow_run = serving.submit(DEPLOYMENT, parameters)
    more_parts(run)
    begin = time.monotonic()
    kill(flow_run)
    state = serving.ended(flow_run, 60)
    print(f"{state.name} after {time.monotonic() - begin:.1f} s: {state.message}")
    assert state.name == "Crashed"
    go_on(parameters)


def test_without_the_process_that_serves_a_run_goes_on_and_that_can_be_started_again(
    serving: Serving, run: RunFolder, parameters: dict[str, Any], whole: dict[str, bytes], story: Story
) -> None:
    flow_run = serving.submit(DEPLOYMENT, parameters)
    more_parts(run)
    serving.kill()
    try:
        state = serving.ended(flow_run)
        assert state.name == "Completed", state.message
        assert story.data_set(run) == whole
    finally:
        serving.start()
    again = serving.ended(serving.submit(DEPLOYMENT, parameters))
    assert again.name == "Completed", again.message


def test_a_server_that_is_away_for_a_while_costs_no_work(
    prefect_server: Server,
    serving: Serving,
    run: RunFolder,
    parameters: dict[str, Any],
    whole: dict[str, bytes],
    story: Story,
) -> None:
    """No part needs the server: all are made without it. Then the run waits for it, up to 17 minutes, and Completes.

    So also where the run holds slots: of its deployment, and of this host's GPU. Both are free afterwards, and the
    next run, which the same process serves, can be cancelled.
    """
    given = {**parameters, "parts": {"limit": "gpu:{host}"}}
    flow_run = serving.submit(ONE_AT_A_TIME, given)
    more_parts(run)
    prefect_server.kill()
    try:
        wait_for(lambda: len(parts(run)) == 20, 600, "all parts to be made without a server")
    finally:
        prefect_server.start()
    begin = time.monotonic()
    state = serving.ended(flow_run)
    print(f"{state.name} {time.monotonic() - begin:.1f} s after the server was back")
    assert state.name == "Completed", state.message
    assert story.data_set(run) == whole
    other = RunFolder(run.path.with_name("other"))
    second = serving.submit(ONE_AT_A_TIME, {**given, "folder": str(other.path)})
    more_parts(other, 1)
    serving.cancel(second)
    assert serving.ended(second).name == "Cancelled"


def test_after_a_power_cut_a_run_does_not_stay_running(
    serving: Serving, run: RunFolder, parameters: dict[str, Any], go_on: Callable[..., None]
) -> None:
    """Nobody reports to the server, which misses the heartbeats; and the slot of the dead run becomes free."""
    given = {**parameters, "parts": {"limit": "gpu:{host}"}}
    ensure_automations(window=40)  # seconds; heartbeats come every 30
    try:
        flow_run = serving.submit(DEPLOYMENT, given)
        more_parts(run)
        begin = time.monotonic()
        serving.kill()
        kill(flow_run)
        gone(flow_run)
        assert serving.state(flow_run).name == "Running"
        state = serving.ended(flow_run, 120)
        print(f"{state.name} after {time.monotonic() - begin:.1f} s: {state.message}")
        assert state.name == "Crashed"
        assert state.message.startswith("no sign of life for 40 s")
    finally:
        ensure_automations()
        serving.start()
    go_on(given)


def test_in_a_folder_that_another_run_holds_it_fails_and_says_who_holds_it(
    serving: Serving, run: RunFolder, parameters: dict[str, Any], whole: dict[str, bytes], story: Story
) -> None:
    with run.locked("flow run 'first'"):
        second = serving.ended(serving.submit(DEPLOYMENT, parameters))
    assert second.name == "Failed"
    holder = rf"flow run 'first' \(process {os.getpid()} on .+\)"
    assert re.fullmatch(rf"{holder} is at work in {run.path}; wait for it, or end it", second.message or "")
    again = serving.ended(serving.submit(DEPLOYMENT, parameters))
    assert again.name == "Completed", again.message
    assert story.data_set(run) == whole


def test_out_of_its_time_it_ends_as_unfinished_and_the_next_run_makes_the_rest(
    serving: Serving, run: RunFolder, parameters: dict[str, Any], quiet_day: Story, go_on: Callable[..., None]
) -> None:
    """The time counts from the start of the run, so it is given more and more until some parts, not all, are made."""
    seconds = 15
    while not parts(run):
        seconds += math.ceil(quiet_day.seconds / 2)
        state = serving.ended(serving.submit(DEPLOYMENT, {**parameters, "max_seconds": seconds}))
        print(f"in {seconds} s: {state.message}")
        assert (state.type, state.name) == (StateType.COMPLETED, "Unfinished")
    assert f"{len(parts(run))} of 20 missing parts were made in the time" in (state.message or "")
    assert not (run.path / "synthetic/manifest.json").exists()
    go_on(parameters)
