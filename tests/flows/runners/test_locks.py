"""One flow at a time in a run folder: on disk, and at a URL among all that share a Prefect server."""

import contextvars
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from served import Server

from latebloom.data.store import as_path
from latebloom.flows import pipeline
from latebloom.flows.run.folder import LOCK, RunFolder
from latebloom.flows.runners import locks
from latebloom.flows.stages import synthesis

HERE = f"(process {os.getpid()} on {socket.gethostname()})"


def test_a_folder_on_disk_is_refused_at_once_with_who_has_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked("flow run 'nightly'"):
        with pytest.raises(ValueError) as caught, run.locked():
            pass
        assert str(caught.value) == f"flow run 'nightly' {HERE} is at work in {run.path}; wait for it, or end it"
    with run.locked():
        pass


def test_without_a_name_the_holder_is_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/latebloom", "generate", "--prompt", "a {name}"])
    run = RunFolder(tmp_path)
    with run.locked(), pytest.raises(ValueError, match=re.escape("latebloom generate --prompt 'a {name}' (process ")):
        run.locked().__enter__()


def test_a_holder_that_has_not_signed_yet_is_another_command(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.signed() == "another command"
    (tmp_path / LOCK).touch()
    assert run.signed() == "another command"


def test_the_limit_of_a_folder_is_the_same_however_it_is_written() -> None:
    name = locks.limit_of(RunFolder(as_path("memory://runs/a")))
    assert re.fullmatch(r"latebloom-run-[0-9a-f]{16}", name)
    assert name == locks.limit_of(RunFolder(as_path("memory://runs/a/")))
    assert name != locks.limit_of(RunFolder(as_path("memory://runs/b")))


def test_without_a_server_that_stays_a_url_is_not_locked() -> None:
    run = RunFolder(as_path("memory://runs/unserved"))
    with locks.held(run), locks.held(run):
        pass


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 2.0)


@pytest.mark.slow
def test_of_two_runs_in_a_folder_at_a_url_the_second_is_refused_and_the_first_is_not_disturbed(
    server: Server,
    impatient: None,
    bucket: str,
    tiny: Any,
    pristine: RunFolder,
    story: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = f"{bucket}/run"
    at_work, go_on, real = threading.Event(), threading.Event(), synthesis.make_one_part

    def waits(*args: Any) -> Any:
        at_work.set()
        assert go_on.wait(240)
        return real(*args)

    monkeypatch.setattr(synthesis, "make_one_part", waits)
    results: list[str] = []
    # A thread has Prefect's settings of the start of the process, unless it is given those of now.
    settings = contextvars.copy_context()
    first = threading.Thread(target=lambda: results.append(settings.run(pipeline.generate, tiny(), out)))
    first.start()
    try:
        assert at_work.wait(240)
        with pytest.raises(ValueError) as caught:
            pipeline.generate(tiny({"plan.levels": (4, 5)}), out)
    finally:
        go_on.set()
        first.join()
    assert str(caught.value) == f"flow run {out!r} {HERE} is at work in {out}; wait for it, or end it"
    assert f"waits 2 s for {out}: flow run {out!r} {HERE} is at work in it" in capsys.readouterr().err
    assert results == [f"{out}/synthetic"]
    files = {name: (as_path(out) / "synthetic" / name).read_bytes() for name in story.data_set(pristine)}
    assert files == story.data_set(pristine)


def holds(url: str) -> str:
    with locks.held(RunFolder(as_path(url))):
        return "held"


def test_a_folder_at_a_url_is_kept_by_a_limit_of_the_server(server: Server, impatient: None) -> None:
    with locks.held(RunFolder(as_path("memory://runs/one"))):
        assert holds("memory://runs/two") == "held"
        with pytest.raises(ValueError, match=r"\(process \d+ on .+\) is at work in memory://runs/one; wait for it, or"):
            holds("memory://runs/one")
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(locks.limit_of(RunFolder(as_path("memory://runs/one"))))
    assert (limit.limit, limit.active_slots) == (1, 0)


_HOLDER = """
import sys, time
from latebloom.data.store import as_path
from latebloom.flows.runners import locks
from latebloom.flows.run.folder import RunFolder
with locks.held(RunFolder(as_path(sys.argv[1]))):
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_who_waits_gets_the_folder_of_one_that_was_killed(server: Server, bucket: str) -> None:
    url = f"{bucket}/killed"
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, url], env=server.env | dict(os.environ), stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"holds\n"
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    begin = time.monotonic()
    assert holds(url) == "held"
    assert time.monotonic() - begin > 20  # its lease had to run out first
