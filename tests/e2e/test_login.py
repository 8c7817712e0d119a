"""The Prefect UI of a server that docs/operations/secure-server.sh started: it asks for the password."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from secured import SecuredServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[SecuredServer]:
    with SecuredServer(tmp_path).running() as server:
        yield server


def test_the_password_opens_the_ui_and_a_wrong_one_does_not(secured, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Debian's; its sandbox does not start as root, which is what containers run as.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(secured.url)
        password = page.locator("input[type=password]")

        password.fill("latebloom:wrong")
        page.get_by_role("button", name="Login").click()
        sync_api.expect(page.get_by_text("Invalid credentials")).to_be_visible(timeout=60_000)
        assert "/login" in page.url

        password.fill(secured.auth)
        page.get_by_role("button", name="Login").click()
        page.wait_for_url(re.compile("/dashboard"))
        sync_api.expect(page.get_by_text("Run a task or flow to get started")).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "dashboard.png")
        browser.close()
