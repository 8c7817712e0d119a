"""What the tests of docs/operations/secure-server.sh share: its server, and a PostgreSQL of their own."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from served import free_port, wait_for

__all__ = ["SCRIPT", "SecuredServer", "postgres", "postgres_programs"]

SCRIPT = Path(__file__).parents[2] / "docs" / "operations" / "secure-server.sh"

_START_SECONDS = 180.0  # a cold start on a busy machine


class SecuredServer:
    """The server of secure-server.sh on a free loopback port.

    Attributes:
        url: what a person types into the browser; `api` is the address of the API below it.
        auth: user name and password, as Prefect takes them: "user:password".
        home: its PREFECT_HOME, where an SQLite database would be.
        client_env: environment for a subprocess that speaks to this server.
    """

    def __init__(self, folder: Path, database: str = "") -> None:
        self.folder, self.port, self.auth = folder, free_port(), f"latebloom:{secrets.token_hex(16)}"
        self.url = f"http://127.0.0.1:{self.port}"
        self.api, self.home = f"{self.url}/api", folder / "home"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{ours['PATH']}"
        home = ours | {"PREFECT_HOME": str(self.home), "PATH": path}
        self.client_env = home | {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.auth}
        self._env = home | ({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {})

    @contextlib.contextmanager
    def running(self) -> Iterator["SecuredServer"]:
        """Start it by the script, with the password in a file, and wait until it answers; ended on the way out."""
        password = self.folder / "auth"
        password.touch(mode=0o600)
        password.write_text(self.auth + "\n")
        log = self.folder / "server.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [SCRIPT, "--port", str(self.port), "--auth-file", password],
                env=self._env, stdout=out, stderr=out, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

        def answers() -> bool:
            assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.api}/health", timeout=5).status_code == 200
            return False

        try:
            wait_for(answers, _START_SECONDS, f"the server at {self.api}; its log is {log}")
            yield self
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def postgres_programs() -> Path | None:
    """The folder with initdb and postgres, which Debian keeps off PATH; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A PostgreSQL on a free loopback port, in a folder that goes with it; its URL for Prefect."""
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    # Not below pytest's folder, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        folder, port, password = Path(name), free_port(), secrets.token_hex(16)
        (folder / "password").write_text(password)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        cluster = folder / "cluster"
        initdb = [programs / "initdb", "-D", cluster, "-U", "prefect", "-A", "scram-sha-256", "--no-sync",
                  "--pwfile", folder / "password"]  # fmt: skip
        subprocess.run(initdb, user=user, cwd=folder, check=True, capture_output=True)
        serve = [
            programs / "postgres",
            "-D",
            cluster,
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "fsync=off",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(serve, user=user, cwd=folder, stdout=log, stderr=log)

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            return "ready to accept connections" in (folder / "log").read_text()

        try:
            wait_for(ready, 60, "PostgreSQL")
            yield f"postgresql+asyncpg://prefect:{password}@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # its fast shutdown
            process.wait(60)
