"""What all tests share: one thread a process, and an S3 endpoint for those that ask for one."""

import os

# Before torch is imported: tests share the cores with each other and with the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

_bucket_numbers = itertools.count()


# Their tests share one Prefect server, so one process has them all, and begins with them, since they take longest.
SERVED = {
    f"tests/flows/{name}.py"
    for name in (
        *("runners/test_limits", "runners/test_locks", "runners/test_retries"),
        *("server/test_automations", "server/test_serve", "server/test_served"),
    )
}


class _ByFile(LoadFileScheduling):
    """A file's tests stay in one process, and so do those of all files of the server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "server" if file in SERVED else file


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one at the end: of the server, of flows, the others."""
    items.sort(key=lambda item: (item.location[0] not in SERVED, not item.location[0].startswith("tests/flows")))


def pytest_collection_finish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):  # several processes, and with them the fast tests alone
        served = {item.location[0] for item in session.items if "prefect_server" in getattr(item, "fixturenames", ())}
        assert served <= SERVED, f"{served - SERVED} need the server; add them to SERVED"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of moto's S3 server on a free loopback port: real HTTP, objects in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket; the environment says where it is, as a person's would."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    name = f"bucket-{next(_bucket_numbers)}"
    S3FileSystem.clear_instance_cache()  # one that a test before had made may ask another endpoint
    S3FileSystem().mkdir(name)
    return f"s3://{name}"
