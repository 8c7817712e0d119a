"""docs/operations/secure-server.sh: what it refuses to start, and what the server that it starts lets through."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from secured import SCRIPT, SecuredServer, postgres, postgres_programs

GOOD = "latebloom:9f86d081884c7d659a2feaa0"

FLOW = """
from prefect import flow

@flow(log_prints=True)
def add(a: int, b: int) -> int:
    print("adding")
    return a + b

assert add(2, 3) == 5
"""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder with a `prefect` that only says how it was called, and in which environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "prefect").write_text('#!/bin/sh\necho "called $*"\nenv\n')
    (folder / "prefect").chmod(0o755)
    return folder


@pytest.fixture
def script(bin_folder: Path, tmp_path: Path):
    """Runs the script with these words and this environment; nothing is started."""

    def run(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{bin_folder}:/usr/bin:/bin", **env}
        return subprocess.run([SCRIPT, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def test_a_good_password_starts_a_server_that_asks_for_it(script):
    done = script(PREFECT_SERVER_API_AUTH_STRING=GOOD)
    assert done.returncode == 0, done.stderr
    assert "called server start --host 127.0.0.1 --port 4200" in done.stdout
    settings = dict(line.split("=", 1) for line in done.stdout.splitlines() if re.match("PREFECT_|DO_NOT", line))
    assert settings == {
        "PREFECT_SERVER_API_AUTH_STRING": GOOD,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:4200",
        "PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def test_prefect_knows_every_setting_by_that_name():
    from prefect import settings

    exported = re.findall(r"^export (PREFECT_\w+)=", SCRIPT.read_text(), re.MULTILINE)
    assert len(exported) == 7
    assert [name for name in exported if not hasattr(settings, name)] == []


@pytest.mark.parametrize(
    ("auth", "why"),
    [
        ("", "no password"),
        ("9f86d081884c7d659a2feaa0", "no colon"),
        ("admin:pass", "the password has 4 characters"),
        ("latebloom:9f86d081884c7d6", "the password has 15 characters"),
        ("admin:MyPassword9f86d081884", "looks like an example"),
        ("latebloom:changeme-changeme", "looks like an example"),
        ("latebloom:9f86d081 884c7d659a2f", "spaces"),
        ("latebloom:9f86d081884c7d659a2fé", "beyond ASCII"),
    ],
)
def test_a_bad_password_starts_nothing(script, auth, why):
    done = script(PREFECT_SERVER_API_AUTH_STRING=auth)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"secure-server.sh: .*{why}.*\n", done.stderr)
    assert len(auth) < 8 or auth not in done.stderr  # refusals end in logs


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--port", "0"), "expected 1 to 65535"),
        (("--port", "65536"), "expected 1 to 65535"),
        (("--host", "0.0.0.0"), "give --url too"),
        (("--url", "http://prefect.example.org"), "over plain http"),
        (("--url", "https://prefect.example.org/ui"), "without a path"),
        (("--url", "*"), "expected one origin"),
        (("--auth-file", "missing"), "no such file"),
        (("--port",), "needs a value"),
    ],
)
def test_a_bad_option_starts_nothing(script, words, why):
    done = script(*words, PREFECT_SERVER_API_AUTH_STRING=GOOD)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr


def test_the_password_from_a_file_that_only_its_owner_reads(script, tmp_path):
    file = tmp_path / "auth"
    file.write_text(GOOD + "\n")
    file.chmod(0o644)
    done = script("--auth-file", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert "chmod 600" in done.stderr
    file.chmod(0o600)
    assert f"PREFECT_SERVER_API_AUTH_STRING={GOOD}\n" in script("--auth-file", file).stdout


def test_a_proxy_on_another_machine(script):
    words = ("--host", "0.0.0.0", "--port", "4300", "--url", "https://prefect.example.org/")
    done = script(*words, PREFECT_SERVER_API_AUTH_STRING=GOOD)
    assert "called server start --host 0.0.0.0 --port 4300" in done.stdout
    assert "PREFECT_SERVER_UI_API_URL=https://prefect.example.org/api\n" in done.stdout
    assert "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=https://prefect.example.org\n" in done.stdout


def test_a_database_that_prefect_cannot_use_is_refused_without_its_password(script):
    url = "postgresql://prefect:hidden@db/prefect"  # psycopg's, and Prefect needs asyncpg's
    done = script(PREFECT_SERVER_API_AUTH_STRING=GOOD, PREFECT_SERVER_DATABASE_CONNECTION_URL=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected postgresql+asyncpg:" in done.stderr
    assert "hidden" not in done.stderr


def test_usage(script):
    assert script("--help").stdout.startswith("usage: secure-server.sh")
    assert script("--password", "x").returncode == 2


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    """The server that the script starts, on each database."""
    folder = tmp_path_factory.mktemp("secured")
    if request.param == "SQLite":
        with SecuredServer(folder).running() as server:
            assert (server.home / "prefect.db").exists()
            yield server
        return
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here")
    with postgres(programs) as url, SecuredServer(folder, url).running() as server:
        assert not (server.home / "prefect.db").exists()
        yield server


def _basic(auth: str) -> httpx.BasicAuth:
    return httpx.BasicAuth(*auth.split(":", 1))


def _token(server: SecuredServer) -> dict[str, str]:
    answer = httpx.get(f"{server.api}/csrf-token", params={"client": "test"}, auth=_basic(server.auth))
    return {"Prefect-Csrf-Token": answer.json()["token"], "Prefect-Csrf-Client": "test"}


@pytest.mark.slow
def test_who_has_no_password_or_a_wrong_one_is_refused(secured):
    assert httpx.get(f"{secured.api}/admin/version").status_code == 401
    assert httpx.get(f"{secured.api}/admin/version", auth=_basic("latebloom:wrong")).status_code == 401
    assert httpx.get(f"{secured.api}/admin/version", auth=_basic(secured.auth)).status_code == 200


@pytest.mark.slow
def test_another_origin_is_not_let_in(secured):
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    foreign = httpx.options(f"{secured.api}/flows/filter", headers=ask | {"Origin": "https://evil.example"})
    assert foreign.status_code == 400
    assert "access-control-allow-origin" not in foreign.headers
    read = httpx.get(
        f"{secured.api}/admin/version", auth=_basic(secured.auth), headers={"Origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in read.headers  # so a browser does not show it to that page
    own = httpx.options(f"{secured.api}/flows/filter", headers=ask | {"Origin": secured.url})
    assert own.headers["access-control-allow-origin"] == secured.url


@pytest.mark.slow
def test_a_change_needs_the_csrf_token(secured):
    flow = {"name": "made-by-a-request"}
    without = httpx.post(f"{secured.api}/flows/", json=flow, auth=_basic(secured.auth))
    assert (without.status_code, without.json()["detail"]) == (403, "Missing CSRF token.")
    made_up = {"Prefect-Csrf-Token": "made-up", "Prefect-Csrf-Client": "test"}
    assert httpx.post(f"{secured.api}/flows/", json=flow, auth=_basic(secured.auth), headers=made_up).status_code == 403
    made = httpx.post(f"{secured.api}/flows/", json=flow, auth=_basic(secured.auth), headers=_token(secured))
    assert made.status_code == 201


@pytest.mark.slow
def test_a_client_with_the_password_runs_a_flow(secured, tmp_path):
    (tmp_path / "add.py").write_text(FLOW)
    run = [sys.executable, "add.py"]
    done = subprocess.run(run, env=secured.client_env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    asked = {"auth": _basic(secured.auth), "headers": _token(secured)}
    runs = httpx.post(f"{secured.api}/flow_runs/filter", json={}, **asked).json()
    assert [run["state_type"] for run in runs] == ["COMPLETED"]
    logs = httpx.post(f"{secured.api}/logs/filter", json={}, **asked).json()
    assert "adding" in [log["message"] for log in logs]

    stranger = secured.client_env | {"PREFECT_API_AUTH_STRING": "latebloom:wrong"}
    refused = subprocess.run(run, env=stranger, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert refused.returncode != 0
    assert "401" in refused.stderr
