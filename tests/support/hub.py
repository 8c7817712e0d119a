"""A hub on this machine: one repository of files, answered as huggingface_hub asks for them."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

__all__ = ["Hub", "served_hub"]


class Hub:
    """A repository, whatever its name, at one commit.

    Attributes:
        files: content by path. May be changed between two requests.
        commit: the commit of every branch and tag.
        asked: the paths of the files that were downloaded, with the byte that each began at.
        breaks_after: bytes of a file after which the connection is lost; None: never.
        url: where it is.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.commit = hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()
        self.asked: list[tuple[str, int]] = []
        self.breaks_after: int | None = None
        self.url = ""


@contextmanager
def served_hub(files: Mapping[str, bytes], cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one, with an empty cache."""
    hub = Hub(files)

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/api/") and "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in hub.files.items()
                ]
                return self._send(json.dumps(entries).encode())
            if path.startswith("/api/"):
                return self._send(json.dumps({"id": "some/model", "sha": hub.commit, "siblings": []}).encode())
            name = path.split("/resolve/")[1].partition("/")[2]
            if name not in hub.files:
                return self._send(b"", status=404)
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            if self.command == "GET":
                hub.asked.append((name, begin))
            content = hub.files[name]
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            return self._send(content[begin:], status=206 if begin else 200, headers=headers)

        do_HEAD = do_GET

        def _send(self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                cut = hub.breaks_after if headers else None
                self.wfile.write(content[:cut])
                self.close_connection = cut is not None and cut < len(content)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    at = "huggingface_hub.constants."
    with (
        patch(f"{at}ENDPOINT", hub.url),
        patch(f"{at}HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"),
        patch(f"{at}HF_HUB_CACHE", str(cache)),
    ):
        yield hub
    server.shutdown()
    thread.join()
    server.server_close()
