"""`latebloom up` and `latebloom down`: what runs is kept, what died is started again, nothing is left alive."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Server, free_port, wait_for

from latebloom.flows.server import up
from latebloom.flows.server.up import Background, bring_down, bring_up

_SLEEPS = "import time; print('a line', flush=True); time.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a person who has set nothing of Prefect's."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "LATEBLOOM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / up.FOLDER).mkdir()
    return tmp_path


@pytest.fixture
def background(folder: Path) -> Iterator[Background]:
    process = Background("sleeper")
    yield process
    if known := process.facts():
        os.killpg(known["pid"], signal.SIGKILL)


def group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def start(background: Background, program: str) -> int:
    background.start([sys.executable, "-c", program], dict(os.environ), {"what": "sleeps"})
    known = background.facts()
    assert known is not None
    return int(known["pid"])


# ------------------------------------------------------------------------------------------------------ one process


def test_a_process_is_known_as_long_as_it_lives(background: Background) -> None:
    assert background.facts() is None
    assert not background.stop(1)
    pid = start(background, _SLEEPS)
    assert background.facts() == {"pid": pid, "what": "sleeps"}
    assert os.getsid(pid) == pid != os.getsid(0)  # the end of the terminal is not its end
    background.wait_until(lambda: "a line" in background.log.read_text())
    assert background.stop(10)
    assert background.facts() is None
    wait_for(lambda: not group_lives(pid), 10, "the end of the process")


def test_another_process_with_the_number_of_a_dead_one_is_left_alone(background: Background) -> None:
    other = subprocess.Popen([sys.executable, "-c", _SLEEPS], stdout=subprocess.DEVNULL)
    try:
        background.file.write_text(json.dumps({"pid": other.pid}))
        assert background.facts() is None
        assert not background.stop(1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_what_does_not_heed_sigterm_is_killed_with_its_children(background: Background, tmp_path: Path) -> None:
    deaf = "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    start(background, f"{deaf} subprocess.run([sys.executable, '-c', {_SLEEPS!r}])")
    background.wait_until(lambda: "a line" in background.log.read_text())
    assert background.stop(0.2)
    assert background.facts() is None


def test_a_process_that_ends_too_soon_is_an_error_with_the_end_of_its_log(
    background: Background, capsys: pytest.CaptureFixture[str]
) -> None:
    start(background, "print('no such thing'); raise SystemExit(3)")
    with pytest.raises(ChildProcessError, match=r"sleeper ended; above is the end of \.latebloom/sleeper\.log"):
        background.wait_until(lambda: False)
    assert "no such thing" in capsys.readouterr().err


def test_a_second_one_is_not_started(background: Background) -> None:
    pid = start(background, _SLEEPS)
    with pytest.raises(BlockingIOError):
        start(background, _SLEEPS)
    known = background.facts()
    assert known is not None
    assert known["pid"] == pid


# -------------------------------------------------------------------------------------------------- before anything


def test_a_port_in_use_is_an_error(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is taken; give another --port, or serve to .*:{port}/api"):
            bring_up(port, 1)


def test_a_named_server_that_does_not_answer_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(ValueError, match="where no server answers; start it, or unset PREFECT_API_URL"):
        bring_up(free_port(), 1)


def test_a_named_server_goes_before_one_that_was_started_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = "http://127.0.0.1:4200/api", "http://prefect.example/api"
    monkeypatch.setattr(up, "_answers", bool)
    Background("server").start([sys.executable, "-c", _SLEEPS], dict(os.environ), {"api": here})
    try:
        assert up._server(4200) == here
        assert up._is_own(here)
        monkeypatch.setenv("PREFECT_API_URL", there)
        assert up._server(4200) == there
        assert not up._is_own(there)
    finally:
        Background("server").stop(1)


def test_only_one_command_is_at_work(folder: Path) -> None:
    with up._alone(), pytest.raises(ValueError, match="another `latebloom up` or `latebloom down` is at work"):
        bring_down()


def test_down_where_nothing_is_up_says_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bring_down() == []
    assert capsys.readouterr() == ("", "")


def test_a_persons_own_server_is_spoken_to_with_that_persons_settings(folder: Path, monkeypatch: Any) -> None:
    api = "http://prefect.example/api"
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")
    for name in ("OMP_WAIT_POLICY", "PYTHONSAFEPATH"):
        monkeypatch.delenv(name, raising=False)
    assert up._environment(api, own=False) == {
        "PREFECT_API_URL": api,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
        "PREFECT_CLIENT_MAX_RETRIES": "9",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONSAFEPATH": "1",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    assert up._environment(api, own=True)["PREFECT_HOME"] == str(folder / ".latebloom/prefect")


# ------------------------------------------------------------------------------------------------- really up and down


def command(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["latebloom", *words], capture_output=True, text=True, timeout=400, check=check)


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory in which nothing stays alive."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(folder / "home"))
    yield folder
    for name in ("serve", "files", "server"):
        Background(name, folder / up.FOLDER).stop(60)


def pids() -> dict[str, int]:
    known = {name: Background(name).facts() for name in ("server", "files", "serve")}
    return {name: facts["pid"] for name, facts in known.items() if facts is not None}


def states(place: Path) -> list[str]:
    """Of all runs, as the server's database has them."""
    with contextlib.closing(sqlite3.connect(place / ".latebloom" / "prefect" / "prefect.db")) as database:
        return [name for (name,) in database.execute("select state_name from flow_run")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_up_and_down(place: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    up = command("up", "--port", str(port), "--limit", "2")
    assert f"click      http://127.0.0.1:{port}/v2/deployments" in up.stdout
    assert f"terminal   export PREFECT_API_URL={api}" in up.stdout
    first = pids()
    assert set(first) == {"server", "files", "serve"}

    ours = os.environ | {"PREFECT_API_URL": api}
    listed = subprocess.run(["prefect", "deployment", "ls"], env=ours, capture_output=True, text=True, check=True)
    assert "augment-and-retrain/augment-digits" in listed.stdout
    assert "generate/generate-nightly" in listed.stdout

    # What links in the UI begin with is the folder of runs.
    (place / "runs" / "one").mkdir(parents=True)
    (place / "runs" / "one" / "report.html").write_text("a report")
    url = next(line.split()[1] for line in up.stdout.splitlines() if line.startswith("reports"))
    with urllib.request.urlopen(f"{url}/one/report.html") as response:
        assert response.read() == b"a report"

    again = command("up", "--port", str(port))
    assert f"the server runs already: {api}" in again.stderr
    assert "the deployments are served already" in again.stderr
    assert pids() == first

    for name in ("serve", "server"):
        os.killpg(first[name], signal.SIGKILL)
    wait_for(lambda: set(pids()) == {"files"}, 10, "the end of what was killed")
    restarted = command("up", "--port", str(port))
    assert restarted.stderr.splitlines()[:2] == ["starting the server", "registering the deployments"]
    second = pids()
    assert set(second) == {"server", "files", "serve"}
    assert second["files"] == first["files"]

    subprocess.run(["prefect", "deployment", "run", "augment-and-retrain/augment-digits"], env=ours, check=True)
    wait_for(lambda: states(place) == ["Running"], 120, "the run to begin")
    down = command("down")
    assert "ended the run" in down.stdout
    assert "all is down" in down.stdout
    assert states(place) == ["Cancelled"]
    assert pids() == {}
    for name, pid in second.items():
        wait_for(lambda pid=pid: not group_lives(pid), 10, f"the end of {name}")
    assert "all is down" in command("down").stdout
    assert not (place / "home" / ".prefect").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_up_serves_to_a_server_that_is_there(place: Path, prefect_server: Server, monkeypatch: Any) -> None:
    for name, value in prefect_server.env.items():
        if name.startswith("PREFECT_"):
            monkeypatch.setenv(name, value)
    up = command("up")
    assert f"PREFECT_API_URL names a server that answers, so none is started: {prefect_server.url}" in up.stderr
    assert set(pids()) == {"files", "serve"}
    command("down")
    assert pids() == {}
    with urllib.request.urlopen(f"{prefect_server.url}/health") as response:
        assert response.status == 200
