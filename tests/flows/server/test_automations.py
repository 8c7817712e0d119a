"""The automations in a real server: each is there once, the chain fires, a lost run becomes Crashed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.events import emit_event
from served import Server, wait_for

from latebloom.flows import pipeline
from latebloom.flows.runners import engine
from latebloom.flows.server import automations, deployed
from latebloom.flows.server.automations import CHAIN, FLOWS, LOST, READY_EVENT, RETRAIN, THEN_LABEL, ensure_automations


@flow(name="retrain")
def retrain(run: str = "") -> None:
    """Stands for the flow of the deployment; nobody runs it."""


@pytest.fixture
def deployment(server: Server) -> Any:
    """The id of the deployment that retrains."""
    return retrain.to_deployment(RETRAIN.partition("/")[2]).apply()


def emit(then: str, run: str) -> None:
    event = emit_event(
        READY_EVENT,
        resource={"prefect.resource.id": f"latebloom.run.{uuid.uuid4()}", THEN_LABEL: then},
        payload={"run": run},
    )
    assert event is not None


def started(client: SyncPrefectClient, deployment: Any) -> dict[str, Any]:
    """Flow runs of the deployment by their run folder."""
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    )
    return {run.parameters["run"]: run for run in runs}


def test_a_chain_without_its_deployment_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automations, "RETRAIN", "retrain/nobody-deployed-it")
    with pytest.raises(ValueError, match=r"knows no deployment retrain/nobody.*; `latebloom up` registers it"):
        ensure_automations()


def test_each_automation_is_there_once_and_stays_as_a_person_set_it(
    client: SyncPrefectClient, deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_automations()
    with monkeypatch.context() as patch:  # what is up to date is not sent again
        patch.setattr(SyncPrefectClient, "update_automation", None)
        ensure_automations()
    first = {name: client.read_automations_by_name(name) for name in (LOST, CHAIN)}
    assert [len(found) for found in first.values()] == [1, 1]
    assert all(found[0].enabled for found in first.values())

    client.pause_automation(first[CHAIN][0].id)
    ensure_automations(window=120)
    (again,), (paused,) = client.read_automations_by_name(LOST), client.read_automations_by_name(CHAIN)
    assert (again.id, again.enabled, again.trigger.within.seconds) == (first[LOST][0].id, True, 120)
    assert (paused.id, paused.enabled) == (first[CHAIN][0].id, False)
    client.resume_automation(paused.id)


def test_the_automations_are_about_all_our_flows() -> None:
    ours = {
        value.name
        for module in (pipeline, deployed)
        for value in vars(module).values()
        if isinstance(value, Flow | engine.Flow)
    }
    assert ours == set(FLOWS)


def test_a_finished_generate_is_followed_by_retrain_where_that_was_asked(
    client: SyncPrefectClient, deployment: Any
) -> None:
    ensure_automations()
    emit("nothing", "runs/alone")
    emit("retrain", "runs/chained")
    begin = time.monotonic()
    runs = wait_for(lambda: started(client, deployment), 60, "a run of the deployment")
    print(f"scheduled after {time.monotonic() - begin:.1f} s")
    assert list(runs) == ["runs/chained"]
    assert runs["runs/chained"].state.type in ("SCHEDULED", "PENDING")


_LOST_FLOW = """
import time
from prefect import flow

@flow(name="generate")
def lives() -> None:
    time.sleep(600)

lives()
"""


@pytest.mark.slow
def test_a_run_whose_process_was_killed_becomes_crashed(
    server: Server, client: SyncPrefectClient, deployment: Any, tmp_path: Path
) -> None:
    window = 35  # above the 30 s between heartbeats
    ensure_automations(window)
    script = tmp_path / "lives.py"
    script.write_text(textwrap.dedent(_LOST_FLOW))
    process = subprocess.Popen([sys.executable, script], env=server.env, start_new_session=True)
    try:
        run = wait_for(lambda: _running(client), 120, "the flow to be running")
        time.sleep(35)  # two heartbeats
        assert client.read_flow_run(run).state.is_running()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    killed = time.monotonic()
    state = wait_for(lambda: _final(client, run), 120, "the lost run to be Crashed")
    print(f"Crashed {time.monotonic() - killed:.0f} s after the kill")
    assert state.name == "Crashed"
    assert "Run it again with the same parameters" in state.message
    ensure_automations()


def _running(client: SyncPrefectClient) -> Any:
    runs = [run for run in client.read_flow_runs() if run.name and run.state and run.state.is_running()]
    return runs[0].id if runs else None


def _final(client: SyncPrefectClient, run: Any) -> Any:
    state = client.read_flow_run(run).state
    return state if state.is_final() else None
