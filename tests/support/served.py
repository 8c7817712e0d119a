"""A real Prefect server for tests: `prefect server start` on a free loopback port, with a home of its own.

A test that asks for the fixture `server` gets a `Server`, and Prefect's clients in this process speak to it meanwhile.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from latebloom.flows.run.environment import RUN_ENVIRONMENT

__all__ = ["Server", "free_port", "lay_traps", "traps_sprung", "wait_for"]

_START_SECONDS = 180.0  # a cold start on a busy machine

# So that schedules, late runs, events and automations act within a second or two. It keeps most of a core busy.
_QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "3",
    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.2",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "0.2",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
}


# What a user may have in the working directory: names of our rooms, of our old modules, and of Python's own.
_TRAPS = ("train.py", "synth.py", "utils.py", "queue.py", "select.py", "types.py", "signal.py", "logging.py")


def lay_traps(folder: Path) -> None:
    """Put a user's modules into a folder, each of which leaves a mark and ends the process that runs it."""
    trap = f"open({str(folder / 'sprung')!r}, 'a').write(__file__ + '\\n'); print('a trap'); raise SystemExit(9)\n"
    for name in (*_TRAPS, "data/__init__.py", "flows/__init__.py", "tests/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(trap)


def traps_sprung(folder: Path) -> str:
    """The modules of `lay_traps` that were run, a line each."""
    mark = folder / "sprung"
    return mark.read_text() if mark.exists() else ""


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of a condition that is asked again and again.

    Raises:
        AssertionError: it had none within these seconds; says `what` was waited for.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
    return value


class Server:
    """`prefect server start` in a process group of its own, which `kill` ends as `kill -9` does.

    Args:
        folder: for its home and its log.
        quick: schedules, late runs and lost runs are looked after every second.

    Attributes:
        url: of the API, as in PREFECT_API_URL.
        env: the environment of this process with what makes Prefect in a subprocess speak to this server.
        log: file with what the server printed.
    """

    def __init__(self, folder: Path, quick: bool = False) -> None:
        self._loops = _QUICK if quick else {}
        self.home, self.log, self.port = folder / "home", folder / "server.log", free_port()
        self.home.mkdir(parents=True)
        self.url = f"http://127.0.0.1:{self.port}/api"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.env = (
            ours
            | RUN_ENVIRONMENT
            | {
                "PREFECT_API_URL": self.url,
                "PREFECT_HOME": str(self.home),
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_UI_ENABLED": "false",  # its files take seconds to be put in place
                "DO_NOT_TRACK": "1",
            }
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on its port and its database, and wait until it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                command, env=self.env | self._loops, stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )

        def answers() -> bool:
            assert process.poll() is None, f"the server ended: {self.log.read_text()[-2000:]}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
            return False

        wait_for(answers, _START_SECONDS, f"the server at {self.url}; its log is {self.log}")

    def kill(self) -> None:
        """End it at once, and whatever it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """While it is entered, Prefect in this process and in the subprocesses that it starts speaks to this server."""
        from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME
        from prefect.settings import temporary_settings as settings

        names = {name for name in {*self.env, *os.environ} if name.startswith("PREFECT_") or name == "DO_NOT_TRACK"}
        before = {name: os.environ.get(name) for name in names}
        _set_environment({name: self.env.get(name) for name in names})
        # A flow run in this process would wait a second for its heartbeat's end.
        quick = {PREFECT_API_URL: self.url, PREFECT_HOME: self.home, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        try:
            with settings(quick):
                yield
        finally:
            _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
