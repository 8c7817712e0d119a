"""Chromium, and Latebloom as `latebloom up` leaves it, for tests that look at the Prefect UI."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from served import free_port

# Debian's; its sandbox does not start as root, which is what containers run as.
_CHROMIUM = os.environ.get("LATEBLOOM_CHROMIUM", "/usr/bin/chromium")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PAGE_MILLISECONDS = 60_000  # of a busy machine


class Up(NamedTuple):
    """What `latebloom up` started: where the UI and the API are, and the folder in which it was called."""

    ui: str
    api: str
    folder: Path


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Latebloom on a free port, served by the command that a person types."""
    latebloom = Path(sys.executable).with_name("latebloom")
    folder, port = tmp_path_factory.mktemp("up"), free_port()
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LATEBLOOM_"))}
    try:
        subprocess.run([latebloom, "up", "--port", str(port)], cwd=folder, env=ours, check=True, timeout=600)
        yield Up(f"http://127.0.0.1:{port}/v2", f"http://127.0.0.1:{port}/api", folder)
    finally:
        subprocess.run([latebloom, "down"], cwd=folder, env=ours, check=True, timeout=300)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make e2e")
    if not Path(_CHROMIUM).is_file():
        pytest.skip(f"needs Chromium: there is none at {_CHROMIUM}; LATEBLOOM_CHROMIUM names another one")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[object]:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(_PAGE_MILLISECONDS)
    yield page
    page.close()


@pytest.fixture
def shot(page, tmp_path: Path) -> Callable[[str], None]:
    """Takes a picture of the page, for a person to look at, into LATEBLOOM_SHOTS or the test's own folder."""
    folder = Path(os.environ.get("LATEBLOOM_SHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png", animations="disabled")
