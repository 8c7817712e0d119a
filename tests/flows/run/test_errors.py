"""What may pass by itself, by the real errors of the packages that reach storage and the hub."""

import errno
import http.server
import os
import pickle
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec.exceptions
import httpx
import huggingface_hub
import pytest
import requests
import torch
import urllib3.exceptions
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from s3fs.errors import translate_boto_error
from served import free_port

from latebloom.data.store import as_path
from latebloom.flows.run.errors import annotate, transient
from latebloom.synth.config import GenerateConfig
from latebloom.synth.generators.find import generator_folder

REQUEST = httpx.Request("GET", "https://example.org")
SOCKET = SimpleNamespace(host="example.org", port=443, ssl=True)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def in_passing(error: BaseException, context: BaseException) -> BaseException:
    """Raised while another was dealt with."""
    error.__context__ = context
    return error


def from_s3(code: str, status: int) -> BaseException:
    """What data/store/remote.py raises when S3 answers so."""
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return caused(
        OSError("s3://b/x cannot be used"), translate_boto_error(botocore.exceptions.ClientError(answer, "Get"))
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), "ECONNRESET"),
        (TimeoutError("too long"), "TimeoutError"),
        (OSError(errno.ESTALE, "stale file handle"), "ESTALE"),
        (OSError(errno.EIO, "input/output error"), "EIO"),
        (OSError(errno.ETIMEDOUT, "timed out"), "ETIMEDOUT"),
        (socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution"), "gaierror"),
        (httpx.ConnectError("refused", request=REQUEST), "ConnectError"),
        (httpx.ReadTimeout("slow", request=REQUEST), "ReadTimeout"),
        (httpx.RemoteProtocolError("closed", request=REQUEST), "RemoteProtocolError"),
        (requests.exceptions.ConnectionError("refused"), "ConnectionError"),
        (requests.exceptions.ChunkedEncodingError("broken off"), "ChunkedEncodingError"),
        (requests.exceptions.ReadTimeout("slow"), "ReadTimeout"),
        (urllib3.exceptions.ProtocolError("broken off"), "ProtocolError"),
        (aiohttp.ServerDisconnectedError(), "ServerDisconnectedError"),
        (aiohttp.ClientPayloadError("broken off"), "ClientPayloadError"),
        (aiohttp.ClientConnectorError(SOCKET, OSError(errno.ECONNREFUSED, "refused")), "ECONNREFUSED"),  # type: ignore[arg-type]
        (botocore.exceptions.EndpointConnectionError(endpoint_url="x"), "EndpointConnectionError"),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="x"), "ConnectTimeoutError"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="x"), "ReadTimeoutError"),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="x"), "ConnectionClosedError"),
        (botocore.exceptions.ResponseStreamingError(error="x"), "ResponseStreamingError"),
        (fsspec.exceptions.FSTimeoutError(), "FSTimeoutError"),
        (from_s3("SlowDown", 503), "EBUSY"),
        (from_s3("InternalError", 500), "EREMOTEIO"),
        (from_s3("RequestTimeout", 400), "TimeoutError"),
        (from_s3("TooManyRequests", 429), "EIO"),
        (caused(ValueError("cannot be fetched"), httpx.ConnectError("refused", request=REQUEST)), "ConnectError"),
        (in_passing(OSError("cannot be used"), ConnectionAbortedError("gone")), "ConnectionAbortedError"),
    ],
)
def test_what_may_pass(error: BaseException, reason: str) -> None:
    assert transient(error) == reason


@pytest.mark.parametrize(
    "error",
    [
        ValueError("k is 1"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        PermissionError(errno.EACCES, "denied"),
        IsADirectoryError(errno.EISDIR, "a folder"),
        OSError(errno.ENOSPC, "no space left"),
        OSError(errno.EROFS, "read-only"),
        OSError("the disk went away"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        AssertionError(),
        KeyError("name"),
        in_passing(KeyError("name"), ConnectionResetError("reset")),  # our bug in dealing with it
        in_passing(TypeError("None"), TimeoutError("slow")),
        botocore.exceptions.NoCredentialsError(),
        from_s3("AccessDenied", 403),
        from_s3("NoSuchKey", 404),
        from_s3("NoSuchBucket", 404),
        from_s3("InvalidArgument", 400),
        caused(ValueError("cannot be fetched"), LocalEntryNotFoundError("not in the cache")),
        caused(LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("HF_HUB_OFFLINE")),
        caused(requests.exceptions.SSLError("bad"), ssl.SSLCertVerificationError("self-signed")),
        caused(httpx.ConnectError("bad", request=REQUEST), ssl.SSLCertVerificationError("self-signed")),
        httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(404)),
    ],
    ids=repr,
)
def test_what_stays_as_it_is(error: BaseException) -> None:
    assert transient(error) == ""


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, ""), (404, ""), (408, "HTTP 408"), (429, "HTTP 429"), (500, "HTTP 500"), (503, "HTTP 503")],
)
def test_a_status_tells(status: int, reason: str) -> None:
    errors = (
        httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status)),
        requests.exceptions.HTTPError("no", response=SimpleNamespace(status_code=status)),  # type: ignore[arg-type]
        aiohttp.ClientResponseError(SimpleNamespace(real_url="x"), (), status=status),  # type: ignore[arg-type]
    )
    assert [transient(error) for error in errors] == [reason] * 3


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert transient(first) == ""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every question with the same status."""

    status = 503

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """Why fetching a generator from a hub at a URL may work a little later."""
    real = huggingface_hub.snapshot_download

    def fetch(url: str) -> str:
        monkeypatch.setattr(
            huggingface_hub,
            "snapshot_download",
            lambda *args, **more: real(*args, **more, endpoint=url, cache_dir=tmp_path),
        )
        with pytest.raises(ValueError, match="could not be fetched from the hub") as caught:
            generator_folder(GenerateConfig(generator="owner/name", revision="main"))
        return transient(caught.value)

    return fetch


@pytest.mark.parametrize(
    ("status", "reason"),
    [(503, "HTTP 503"), (500, "HTTP 500"), (429, "HTTP 429"), (404, ""), (401, ""), (403, ""), (400, "")],
)
def test_a_hub_that_is_down_is_not_a_name_that_is_wrong(
    status: int, reason: str, hub: str, fetched: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "status", status)
    assert fetched(hub) == reason


def test_a_hub_that_cannot_be_reached_may_come_back(fetched: Callable[[str], str]) -> None:
    assert fetched(f"http://127.0.0.1:{free_port()}") == "ConnectError"


def test_storage_that_cannot_be_reached_may_come_back_and_what_is_not_there_does_not(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(url: str) -> str:
        with pytest.raises(OSError) as caught:
            as_path(url).read_bytes()
        return transient(caught.value)

    assert reason(f"{bucket}/nothing") == ""
    assert reason(f"{bucket}-not/nothing") == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # else the storage of before is asked
    assert reason(f"{bucket}/nothing") == "EndpointConnectionError"


def _lose(kind: type[Exception]) -> None:
    raise OSError("cannot be used") from kind("gone")


@pytest.mark.parametrize(("kind", "reason"), [(ConnectionResetError, "ConnectionResetError"), (PermissionError, "")])
def test_why_an_error_may_pass_goes_with_it_to_another_process(kind: type[Exception], reason: str) -> None:
    with pytest.raises(OSError, match="cannot be used") as caught:
        annotate(_lose, kind)
    there = pickle.loads(pickle.dumps(caught.value))
    there.__cause__ = None  # lost on the way, but where Dask, imported, keeps it
    assert transient(there) == reason


def test_what_a_call_returns_comes_back() -> None:
    assert annotate(os.path.basename, "a/b") == "b"
