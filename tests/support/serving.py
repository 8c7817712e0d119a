"""One process that serves all deployments to the server of the tests, as `latebloom up` starts it, and their runs.

A run is a process of its own, and may have others: they are found in /proc by the name of the flow run, which is in
their environment.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from served import Server, wait_for

from latebloom.flows.runners.limits import ensure_limits
from latebloom.flows.server.automations import ensure_automations

__all__ = ["Serving", "processes_of"]

_START_SECONDS = 180.0  # a cold start on a busy machine
_RUNS_AT_A_TIME = 4
_LAST_ONE = "generate-part/generate-part"


class Serving:
    """The process that serves, in a process group of its own. Use it while the server of the tests is in use.

    Args:
        folder: its working directory.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.folder, self.log = folder, folder / "serve.log"
        self._env = server.env | {"PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        self._process: subprocess.Popen[bytes] | None = None

    def set_up(self) -> None:
        """Limits, deployments and automations, and the process; nothing that other tests had deployed."""
        with get_client(sync_client=True) as client:
            for known in client.read_deployments():
                client.delete_deployment(known.id)
        ensure_limits()
        self.start()
        ensure_automations()

    def start(self) -> None:
        """Start it, and wait until it asks for runs."""
        before = _polled()
        command = [sys.executable, "-P", "-m", "latebloom.flows.server.serve", str(_RUNS_AT_A_TIME)]
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                command, env=self._env, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

        def asks() -> bool:
            assert process.poll() is None, f"it ended: {self.log.read_text()[-2000:]}"
            return _polled() != before

        wait_for(asks, _START_SECONDS, f"the deployments to be served; the log is {self.log}")

    def kill(self) -> None:
        """End it at once, and no run that it started."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it and all that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.kill()

    def submit(self, deployment: str, parameters: dict[str, Any]) -> UUID:
        """As Submit in the UI does; the flow run's id."""
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def state(self, run: UUID) -> State:
        """What a run is at."""
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
        assert state is not None
        return state

    def ended(self, run: UUID, seconds: float = 600) -> State:
        """The final state of a run, waited for."""
        wait_for(lambda: self.state(run).is_final(), seconds, f"the end of run {run}; the log is {self.log}")
        return self.state(run)

    def cancel(self, run: UUID) -> None:
        """As Cancel in the UI does."""
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling())

    def runs(self, deployment: str) -> list[FlowRun]:
        """All runs of a deployment."""
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[found.id]))
            return client.read_flow_runs(flow_run_filter=only)


def _polled() -> Any:
    """When runs were last asked for; None where the deployments are not registered."""
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        return client.read_deployment_by_name(_LAST_ONE).last_polled
    return None


def processes_of(run: UUID) -> list[int]:
    """The processes of a flow run that live: its own one first, then those that it started."""
    mark, found = f"PREFECT__FLOW_RUN_ID={run}\0".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # ended meanwhile; another's
            environment = (folder / "environ").read_bytes()  # empty of what is dead and not yet buried
            if mark in environment + b"\0":
                found.append(int(folder.name))
    return sorted(found)
