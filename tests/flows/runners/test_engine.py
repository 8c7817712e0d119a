"""Whether Prefect is used, without importing it; and flows and tasks as plain calls. With it: test_retries.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latebloom.flows.runners import engine

SCRIPT = """
import sys
from latebloom.flows.runners.engine import server_stays
print(server_stays(), "prefect" in sys.modules)
"""
PROFILES = 'active = "{}"\n[profiles.ephemeral]\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'


def asked(folder: Path, **more: str) -> str:
    """What a fresh process says: whether a server stays, and whether it had to import Prefect to know."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = ours | {"PREFECT_HOME": str(folder / "home")} | more
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_without_a_server_prefect_is_not_imported(tmp_path: Path) -> None:
    assert asked(tmp_path) == "False False"


@pytest.mark.parametrize(
    ("active", "environment", "named"),
    [
        ("ephemeral", {}, False),
        ("mine", {}, True),
        ("ephemeral", {"PREFECT_PROFILE": "mine"}, True),
        ("ephemeral", {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, True),
    ],
)
def test_a_server_is_named_by_the_environment_or_the_profile(
    active: str, environment: dict[str, str], named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "profiles.toml").write_text(PROFILES.format(active))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert engine._names_a_server() is named


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (".env", "PREFECT_API_URL=http://127.0.0.1:9/api", True),
        ("prefect.toml", '[api]\nurl = "http://127.0.0.1:9/api"', True),
        ("pyproject.toml", "[tool.prefect.api]\n", True),
        ("pyproject.toml", "[tool.ruff]\n", False),
    ],
)
def test_or_by_a_file_of_the_current_folder(
    file: str, content: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    (tmp_path / file).write_text(content)
    assert engine._names_a_server() is named


def test_tasks_that_are_submitted_without_a_server_are_futures() -> None:
    @engine.task("double {n}")
    def double(n: int) -> int:
        return 2 * n

    futures = [double.submit(n) for n in range(3)]
    assert sorted(future.result() for future in engine.as_completed(futures)) == [0, 2, 4]
    assert double(4) == 8
    assert double.task.name == "double"
