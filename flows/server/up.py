"""`latebloom up` and `latebloom down`: a Prefect server, and a process that serves all deployments, in the background.

Three processes that outlive the command: Prefect's server, the one that serves the deployments and starts their runs,
and one through which a browser reads `runs/`. All on loopback. Their logs, and the server's database, are in
`.latebloom/` of the working directory.

Why not `prefect server start --background` (3.8): it throws away the server's log, it does not wait until the server
answers, and it knows the server by a number in a file. After a `kill -9` it refuses to start another one, and
`prefect server stop` ends whatever process has that number by then.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from latebloom.data.store import is_remote
from latebloom.flows.run.environment import RUN_ENVIRONMENT, runs_root
from latebloom.flows.run.progress import say

__all__ = ["Background", "Place", "bring_down", "bring_up"]

FOLDER = Path(".latebloom")
# As long as a cold start on a busy machine can take.
_START_SECONDS = 180.0
# Prefect gives a flow run 30 s to end before it kills it.
_SERVE_END_SECONDS = 60.0
_END_SECONDS = 20.0
_LOG_LINES = 12
_PYTHON = (sys.executable, "-P")  # the working directory, where the user's own modules lie, is not on its path


class Place(NamedTuple):
    """Where what is up can be reached."""

    api: str
    runs: str

    @property
    def ui(self) -> str:
        """The address to open in a browser."""
        return self.api.removesuffix("/api")


class Background:
    """A process that outlives the command that starts it.

    It has its file open, and locked, as long as it lives. So no other process that later got the same number is
    mistaken for it. (`filelock` cannot pass a lock on to a child process.)
    """

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.name = name
        self.file, self.log = folder / f"{name}.json", folder / f"{name}.log"

    def facts(self) -> dict[str, Any] | None:
        """Its `pid` and what was noted about it at its start; None where it does not live."""
        if not self.file.exists():
            return None
        with self.file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                known: dict[str, Any] = json.load(file)
                return known
        return None

    def start(
        self, command: list[str], environment: dict[str, str], about: dict[str, Any], folder: Path | None = None
    ) -> None:
        """Start it in a session of its own; what it prints is added to its log. It must not live yet.

        Args:
            about: is noted beside its `pid`.
            folder: its working directory; None: that of this process.
        """
        with self.file.open("a+") as file, self.log.open("ab") as log:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[file.fileno()],
                start_new_session=True,
            )
            # Where it ends before this process does, it is not to stay a zombie.
            threading.Thread(target=process.wait, daemon=True).start()
            file.truncate(0)
            json.dump({"pid": process.pid, **about}, file)

    def wait_until(self, ready: Callable[[], object]) -> None:
        """Wait for what shows that it is ready.

        Raises:
            ChildProcessError: it ended, or was not ready in time; the last lines of its log are said before.
        """
        end = time.monotonic() + _START_SECONDS
        while not ready():
            if self.facts() is None or time.monotonic() > end:
                what = "ended" if self.facts() is None else f"is not ready after {_START_SECONDS:.0f} s"
                for line in self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]:
                    say(line)
                raise ChildProcessError(f"{self.name} {what}; above is the end of {self.log}")
            time.sleep(0.2)

    def stop(self, seconds: float) -> bool:
        """End it by SIGTERM, after that many seconds by SIGKILL, with what it left behind; whether it lived."""
        known = self.facts()
        if known is None:
            return False
        os.kill(known["pid"], signal.SIGTERM)
        end = time.monotonic() + seconds
        while self.facts() is not None and time.monotonic() < end:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(known["pid"], signal.SIGKILL)
        while self.facts() is not None:
            time.sleep(0.1)
        return True


def bring_up(port: int, limit: int) -> Place:
    """Start what does not run yet, and wait until all of it is ready.

    Args:
        port: of the server, which listens on loopback. Where PREFECT_API_URL names a server that answers, that one is
            used and none is started.
        limit: flow runs at a time, at least 1.

    Raises:
        ValueError: the port is taken, or PREFECT_API_URL names a server that does not answer.
        ChildProcessError: a process did not start; the last lines of its log are said before.
    """
    with _alone():
        api = _server(port)
        # Before Prefect is imported: it reads its settings once.
        os.environ.update(_environment(api, _is_own(api)))
        from latebloom.flows.runners.limits import ensure_limits

        ensure_limits()
        runs = _files(port + 1)
        _serve(api, runs, limit)
        from latebloom.flows.server.automations import ensure_automations

        ensure_automations()
        return Place(api, runs)


def bring_down() -> list[str]:
    """End what `bring_up` started, the flow runs first.

    Returns:
        The names of the runs that this ended.
    """
    with _alone():
        serve, ended = Background("serve"), []
        known = serve.facts()
        if known is not None:
            os.environ.update(_environment(known["api"], _is_own(known["api"])))
            answers = _answers(known["api"])
            before = _runs("RUNNING", "PENDING") if answers else {}
            serve.stop(_SERVE_END_SECONDS)
            after = _runs("CANCELLED", "CRASHED") if before else {}
            ended = [name for run, name in before.items() if run in after]
            say("the deployments are no longer served")
        Background("files").stop(_END_SECONDS)
        if Background("server").stop(_END_SECONDS):
            say("the server has ended")
        return ended


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other `latebloom up` and `latebloom down` of this working directory out for the block.

    Raises:
        ValueError: one is at work.
    """
    FOLDER.mkdir(exist_ok=True)
    try:
        held = FileLock(FOLDER / ".lock").acquire(blocking=False)
    except Timeout:
        raise ValueError("another `latebloom up` or `latebloom down` is at work here; wait for it") from None
    with held:
        yield


# ------------------------------------------------------------------------------------------------------ the server


def _server(port: int) -> str:
    """The API's address of a server that answers; started where there is none."""
    server, given = Background("server"), os.environ.get("PREFECT_API_URL", "").rstrip("/")
    known, ours = server.facts(), f"http://127.0.0.1:{port}/api"
    if known is not None and given in ("", known["api"]):
        say(f"the server runs already: {known['api']}")
        server.wait_until(lambda: _answers(known["api"]))  # a command before may have been interrupted
        return str(known["api"])
    if given and _answers(given):
        say(f"PREFECT_API_URL names a server that answers, so none is started: {given}")
        return given
    if given not in ("", ours):  # `ours`: what the last `latebloom up` said to export
        raise ValueError(
            f"PREFECT_API_URL is {given}, where no server answers; start it, "
            "or unset PREFECT_API_URL to have one started here"
        )
    if not _free(port):
        raise ValueError(
            f"port {port} is taken; give another --port, or serve to the Prefect server there: "
            f"export PREFECT_API_URL={ours}"
        )
    say("starting the server")
    command = [*_PYTHON, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # In our folder: Prefect reads `.env`, `prefect.toml` and `pyproject.toml` of the working directory, and what a
    # person set there for Prefect, such as a database, is not meant for the server of Latebloom.
    server.start(command, os.environ | _environment(ours, own=True), {"api": ours}, FOLDER)
    server.wait_until(lambda: _answers(ours))
    return ours


def _is_own(api: str) -> bool:
    known = Background("server").facts()
    return known is not None and known["api"] == api


def _environment(api: str, own: bool) -> dict[str, str]:
    """What makes Prefect speak to a server; to a person's own one with that person's settings, the secrets too."""
    defaults = RUN_ENVIRONMENT | {
        # In memory, what a run holds of a limit would be lost with the server: the slot stays taken, the run is ended.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    home = {"PREFECT_HOME": str(FOLDER.resolve() / "prefect")} if own else {}
    given = {name: os.environ[name] for name in defaults.keys() & os.environ}
    return defaults | given | home | {"PREFECT_API_URL": api}


def _answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


# -------------------------------------------------------------------------------------------------- the deployments


def _files(port: int) -> str:
    """The address at which a browser reads the folder of runs; links in the UI begin with it."""
    if given := os.environ.get("LATEBLOOM_RUNS_URL"):
        return given
    root = runs_root()
    if is_remote(root):
        say(
            "LATEBLOOM_RUNS is a URL: reports have no links in the UI until LATEBLOOM_RUNS_URL says where they are read"
        )
        return ""
    files = Background("files")
    known = files.facts()
    if known is None:
        root.mkdir(parents=True, exist_ok=True)
        if not _free(port):
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
        command = [*_PYTHON, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(root), str(port)]
        known = {"url": f"http://127.0.0.1:{port}"}
        files.start(command, dict(os.environ), known)
    return str(known["url"])


def _serve(api: str, runs: str, limit: int) -> None:
    serve = Background("serve")
    known = serve.facts()
    if known is not None and known["api"] != api:
        raise ValueError(
            f"the deployments are served to {known['api']}, not to {api}; name that server, or end it: latebloom down"
        )
    if known is not None:
        say("the deployments are served already")
        return
    if pooled := _in_a_pool():
        raise ValueError(
            f"{pooled} on this server belongs to a work pool, by `prefect deploy`: start workers for it "
            "(docs/operations.md), or delete the deployments of `prefect deploy` first"
        )
    say("registering the deployments")
    before = _polled()
    command = [*_PYTHON, "-m", "latebloom.flows.server.serve", str(limit)]
    serve.start(command, os.environ | {"LATEBLOOM_RUNS_URL": runs}, {"api": api})
    serve.wait_until(lambda: _polled() != before)


def _in_a_pool() -> str:
    """A deployment of ours that workers take the runs of; its runs would be taken by both. Empty: there is none."""
    from prefect.client.orchestration import get_client

    from latebloom.flows.server.automations import FLOWS

    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows() if flow.name in FLOWS}
        pooled = [one for one in client.read_deployments() if one.work_pool_name and one.flow_id in flows]
    return f"{flows[pooled[0].flow_id]}/{pooled[0].name}" if pooled else ""


def _polled() -> Any:
    """When runs of the deployments were last asked for; all are registered before, and asked for together."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from latebloom.flows.server.automations import RETRAIN

    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(RETRAIN).last_polled
        except ObjectNotFound:
            return None


def _runs(*states: str) -> dict[Any, str]:
    """The names of the runs that are in one of these states, by the id of the flow run; the last 200."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType(state) for state in states]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=wanted), sort=FlowRunSort.END_TIME_DESC)
    return {run.id: run.name for run in runs}
