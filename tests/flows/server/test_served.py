"""What people do in the Prefect UI: submit, schedule, chain.

A real server, the process that serves the deployments, and a process for each flow run.
"""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from served import Server, traps_sprung, wait_for
from serving import Serving

from latebloom.data.store import read_json
from latebloom.flows.server import deployed
from latebloom.flows.server.automations import RETRAIN
from latebloom.flows.server.deployed import GENERATE_FORM
from latebloom.flows.server.deployments import DEPLOYMENTS
from latebloom.flows.stages import fit_generator as stage

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("server")]

CONTINUE = "generate/generate-continue"


def filled(settings: dict[str, Any], folder: Path, **extras: Any) -> dict[str, Any]:
    """The form of `generate`, filled with these settings."""
    return {**GENERATE_FORM.values(settings), "folder": str(folder), **extras}


def test_submit_makes_a_data_set_and_the_state_says_where(
    serving: Serving, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = serving.submit("generate/generate-digits", filled(settings, tmp_path / "run"))
    state = serving.ended(run)
    assert (state.type, state.name) == (StateType.COMPLETED, "Completed"), state.message
    assert state.message == f"the synthetic data set is in {tmp_path}/run/synthetic"
    manifest = read_json(tmp_path / "run/synthetic/manifest.json")
    assert manifest["rows"] == manifest["states"]["ok"] > 0
    assert traps_sprung(serving.folder) == ""  # no module of the working directory was run
    assert not list(serving.folder.glob("runs*"))


@pytest.mark.slow
def test_generate_is_followed_by_retrain_where_that_was_asked(
    serving: Serving, settings: dict[str, Any], tmp_path: Path
) -> None:
    asked = {then: filled(settings, tmp_path / then, then=then) for then in ("nothing", "retrain")}
    first = [serving.submit("generate/generate-digits", parameters) for parameters in asked.values()]
    assert [serving.ended(run).name for run in first] == ["Completed", "Completed"]

    def chained() -> list[FlowRun]:
        return [run for run in serving.runs(RETRAIN) if str(tmp_path) in run.parameters["run"]]

    (retrain,) = wait_for(chained, 60, "retrain to be triggered")
    state = serving.ended(retrain.id)
    assert state.name == "Completed", state.message
    assert state.message
    assert state.message.startswith("test error: original sgd ")
    assert (tmp_path / "retrain/report.html").is_file()
    assert [run.parameters for run in chained()] == [{"run": f"{tmp_path}/retrain"}]


def test_a_fit_that_ended_early_goes_on_from_the_same_form_and_a_third_time_there_is_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    form: dict[str, Any] = {
        "source": "digits", "split": "train", "steps": 40, "folder": str(tmp_path / "mine"),
        "data": {"train_limit": 20}, "generator": {"channels": (8,), "batch_size": 4},
    }  # fmt: skip
    real = stage._Unfinished.write

    def write(unfinished: Any, moment: Any) -> None:
        real(unfinished, moment)
        if moment.step == 20:
            raise RuntimeError("the worker is gone")

    for name in ("CHECKPOINT_SECONDS", "CHECKPOINT_TIMES"):
        monkeypatch.setattr(stage, name, 0)
    monkeypatch.setattr(stage._Unfinished, "write", write)
    state = deployed.fit_generator(**form, return_state=True)
    assert (state.type, "the worker is gone" in str(state.message)) == (StateType.FAILED, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.partial"]
    monkeypatch.undo()
    for line in ("fit generator: goes on at step 20 of 40", "holds this generator already"):
        caplog.clear()
        state = deployed.fit_generator(**form, return_state=True)
        assert state.message == f"the generator is in {tmp_path}/mine; give this path as `generator`"
        assert line in caplog.text
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# ---------------------------------------------------------------------------------------------------------- schedules


def schedule(deployment: str, active: bool, **changes: Any) -> None:
    """Change a deployment's only schedule, as a person does in the UI."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(deployment)
        client.update_deployment_schedule(found.id, found.schedules[0].id, active=active, **changes)


def in_state(runs: list[FlowRun], kind: StateType) -> list[FlowRun]:
    return [run for run in runs if run.state_type == kind]


@pytest.mark.slow
def test_a_schedule_fires_and_while_a_run_works_the_next_is_cancelled(
    serving: Serving, settings: dict[str, Any], tmp_path: Path
) -> None:
    long = settings | {"sample": {"grid": 1000}, "plan": {"k": 3, "levels": (300, 500), "part_size": 1}}
    often = IntervalSchedule(interval=timedelta(seconds=5), anchor_date=datetime.now(UTC))
    given = filled(long, tmp_path / "run", until="")
    schedule(CONTINUE, True, schedule=often, max_scheduled_runs=3, parameters=given)

    def cancelled() -> list[FlowRun]:
        return in_state(serving.runs(CONTINUE), StateType.CANCELLED)

    try:
        (working,) = wait_for(lambda: in_state(serving.runs(CONTINUE), StateType.RUNNING), 600, "a scheduled run")
        before = len(cancelled())
        wait_for(lambda: len(cancelled()) > before, 60, "the next run to be cancelled")
        runs = serving.runs(CONTINUE)
        assert [run.id for run in in_state(runs, StateType.RUNNING)] == [working.id]
        assert all(run.auto_scheduled for run in runs)
        assert {run.state.message for run in cancelled() if run.state} == {"Deployment concurrency limit reached."}
        assert serving.runs("generate/generate-nightly") == []  # its schedule is paused
    finally:
        schedule(CONTINUE, False)
    wait_for(lambda: not in_state(serving.runs(CONTINUE), StateType.SCHEDULED), 60, "no more runs to be scheduled")
    serving.cancel(working.id)
    assert serving.ended(working.id).name == "Cancelled"


def prefect(server: Server, *words: str) -> str:
    """What `prefect WORD...` prints, on wide paper."""
    command = [sys.executable, "-m", "prefect", *words]
    wide = server.env | {"COLUMNS": "400"}
    return subprocess.run(command, env=wide, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_prefect_lists_the_deployments_and_their_schedules_as_paused(serving: Serving, server: Server) -> None:
    listed = prefect(server, "deployment", "ls")
    assert [one.full_name for one in DEPLOYMENTS if one.full_name not in listed] == []
    for name, timing in (("generate/generate-nightly", "0 22 * * *"), (CONTINUE, "interval")):
        (line,) = [row for row in prefect(server, "deployment", "schedule", "ls", name).splitlines() if timing in row]
        print(line)
        assert "False" in line
