"""One job a GPU: who waits for a slot, who gets it, and what is refused."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
import torch
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from served import Server, free_port, wait_for

from latebloom.flows.runners import limits
from latebloom.flows.runners.limits import ensure_limits, slots

# A job of its own: it says when it holds the slot, holds it until it gets a line, and says when it has let go.
HOLDS = """
import sys
from latebloom.flows.runners.limits import slots
with slots(sys.argv[1], 1):
    print("holds", flush=True)
    sys.stdin.readline()
    print("ends", flush=True)
print("free", flush=True)
"""


@pytest.fixture
def limit(client: SyncPrefectClient) -> str:
    """The name of a new limit with one slot."""
    name = f"gpu:{uuid4()}"
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    return name


def taken(client: SyncPrefectClient, limit: str) -> int:
    return client.read_global_concurrency_limit_by_name(limit).active_slots


def test_no_name_asks_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "get_client", None)
    with slots("", 3):
        pass


def test_a_server_that_stays_away_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def no_client(**_: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(limits, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(limits, "get_client", no_client)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ValueError, match=r"^the Prefect server .* stays away: no answer from http://127.*start it with"),
        slots("gpu:here", 1),
    ):
        pass
    assert sum(waits) == 300


@pytest.mark.slow
def test_the_second_job_waits_says_so_once_and_begins_when_the_first_has_ended(
    server: Server, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-c", HOLDS, limit]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=server.env) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        second = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=server.env
        )
        assert second.stderr is not None
        waits = second.stderr.readline()
        assert waits == f"waits for a slot of {limit}: 1 of 1 are taken; other runs now: none\n"
        time.sleep(3)
        assert second.poll() is None
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.read() == "ends\nfree\n"
    said, _ = second.communicate("\n", timeout=90)
    assert said == "holds\nends\nfree\n"
    assert second.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_slot_of_a_job_that_is_killed_comes_free_again(
    server: Server, client: SyncPrefectClient, limit: str
) -> None:
    words = [sys.executable, "-c", HOLDS, limit]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=server.env) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        first.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert taken(client, limit) == 1
    wait_for(lambda: taken(client, limit) == 0, limits.LEASE_SECONDS + 60, "the lease to end")
    print(f"the slot of a killed job was free after {time.monotonic() - begin:.0f} s")
    with slots(limit, 1):
        pass


def test_slots_on_a_server(
    client: SyncPrefectClient, limit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held for the block, free after an error, not waited for beyond the time, refused where there will be none."""
    with slots(limit, 1):
        assert taken(client, limit) == 1
        with pytest.raises(TimeoutError), slots(limit, 1, timeout_seconds=1):
            pass
    assert capsys.readouterr().err == f"waits for a slot of {limit}: 1 of 1 are taken; other runs now: none\n"
    with pytest.raises(RuntimeError, match="broken"), slots(limit, 1):
        raise RuntimeError("broken")
    assert taken(client, limit) == 0

    with pytest.raises(ValueError, match="`prefect gcl create gpu:nowhere --limit 1`"), slots("gpu:nowhere", 1):
        pass
    with pytest.raises(ValueError, match="has 1 slots and 2 processes are to generate"), slots(limit, 2):
        pass

    # A server that is away: at the begin it is waited for, at the end it costs no work.
    nowhere = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}
    with ExitStack() as away, ExitStack() as after:
        away.enter_context(temporary_settings(nowhere))
        monkeypatch.setattr(limits, "time", SimpleNamespace(sleep=lambda _: away.close()))  # it is there again
        with slots(limit, 1):
            after.enter_context(temporary_settings(nowhere))
    said = capsys.readouterr().err
    assert said.startswith("the Prefect server does not answer, trying again in 5 s\n")
    assert f"the Prefect server did not take back the slot of {limit} (ConnectError)" in said


def test_this_hosts_limit_is_made_once_and_what_a_person_set_it_to_stays(client: SyncPrefectClient) -> None:
    name = ensure_limits()
    assert name == f"gpu:{socket.gethostname()}"
    made = client.read_global_concurrency_limit_by_name(name)
    assert made.limit == max(1, torch.cuda.device_count())
    client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=made.limit + 2))
    assert ensure_limits() == name
    assert client.read_global_concurrency_limit_by_name(name).limit == made.limit + 2
