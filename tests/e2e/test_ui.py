"""The Prefect UI as a person uses it, in a browser: forms, runs, artifacts, schedules, Cancel."""

import json
import re
from typing import Any

import httpx
import psutil
import pytest
from served import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_RUN_SECONDS = 300  # of the demo on a busy machine
# 312 images of 300 steps, each with two calls of the denoiser: minutes, in parts of seconds.
_LONG = {"sample": {"grid": 500, "guidance_scale": 3.0}, "plan": {"part_size": 4}}


@pytest.fixture
def expect() -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    return expect


def open_form(page, up, name: str) -> None:
    """From the list of deployments to the form of one, click by click, until its fields are there."""
    page.goto(f"{up.ui}/deployments")
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    field(page, "source").wait_for()


def field(page, name: str) -> Any:
    return page.get_by_label(f"{name} (Optional)", exact=True)


def submit(page) -> str:
    """Press Submit and go to the page of the run; its id."""
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("link", name="View run").click()
    page.wait_for_url(re.compile("/runs/flow-run/"))
    return str(page.url.rpartition("/")[2].partition("?")[0])


def logs(up, run: str) -> list[str]:
    asked = {"logs": {"flow_run_id": {"any_": [run]}}}
    return [log["message"] for log in httpx.post(f"{up.api}/logs/filter", json=asked, timeout=60).json()]


def runs(up) -> int:
    return int(httpx.post(f"{up.api}/flow_runs/count", json={}, timeout=60).json())


def open_artifact(page, key: str) -> None:
    """From the artifacts of a run to the newest of this key."""
    page.get_by_role("link", name=re.compile(f"MARKDOWN {key} ")).first.click()
    page.get_by_role("main").locator("a[href*='/artifacts/artifact/']").first.click()
    page.get_by_role("tab", name="Raw").wait_for()


def widths(page) -> list[int]:
    """Of the pictures in a markdown, in pixels of their own; 0 is one that did not show."""
    return page.locator("main img").evaluate_all("found => found.map(image => image.naturalWidth)")


def test_submit_runs_the_demo_and_its_artifacts_show(page, up, shot, expect):
    open_form(page, up, "augment-digits")
    assert field(page, "source").input_value() == "digits"
    assert field(page, "epochs").first.input_value() == "30"  # the second is that of the scout
    shot("form")

    run = submit(page)
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=1000 * _RUN_SECONDS)
    expect(page.get_by_role("listitem").filter(has_text="digits by digits seed 0").first).to_be_visible()
    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_text(re.compile("^generate .*296/296 images")).first).to_be_visible()
    shot("logs")
    assert not [line for line in logs(up, run) if re.search(r"[\r\n\x1b\u2588]|it/s", line)]  # no progress bar
    page.get_by_role("tab", name="Details").click()
    expect(page.get_by_text(re.compile(r"test error: original sgd \d+\.\d\d %"))).to_be_visible()
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_role("link", name="retrain ours-5 with sgd")).to_be_visible()
    shot("task-runs")

    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_role("link", name=re.compile("MARKDOWN synthetic-set "))).to_be_visible()
    shot("artifacts")
    open_artifact(page, "report")
    expect(page.locator("main svg[id^=mermaid] .node").first).to_be_visible()
    expect(page.get_by_role("img", name="contact sheet")).to_be_visible()
    assert len(widths(page)) == 2
    assert min(widths(page)) > 100
    shot("report-artifact")

    link = page.get_by_role("link", name=re.compile(r"report\.html$")).get_attribute("href")
    page.goto(link)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    shot("report")


def test_the_form_refuses_a_value_out_of_range_and_no_run_is_made(page, up, shot, expect):
    open_form(page, up, "generate-digits")
    before = runs(up)
    field(page, "k").fill("1")
    page.get_by_role("button", name="Submit").click()
    expect(field(page, "k")).to_be_focused()
    assert "greater than or equal to 2" in field(page, "k").evaluate("field => field.validationMessage")
    shot("refused-by-the-form")
    expect(page.get_by_role("link", name="View run")).to_have_count(0)
    assert runs(up) == before


def test_what_only_the_whole_refuses_fails_with_one_line(page, up, shot, expect):
    open_form(page, up, "generate-digits")
    page.get_by_role("button", name="Add item").first.click()
    level = page.get_by_role("group").filter(has=page.get_by_role("button", name="Drag to reorder")).first
    level.get_by_role("spinbutton").first.fill("30")
    submit(page)
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible(timeout=1000 * _RUN_SECONDS)
    shot("failed")
    page.get_by_role("tab", name="Details").click()
    expect(page.get_by_text("k = 5 needs 4 levels (k counts the real image), got 1")).to_be_visible()
    shot("failed-details")


def test_a_preset_is_sent_with_the_rest_of_the_form(page, up, shot):
    open_form(page, up, "augment-cifar10-paper")
    shot("preset")
    page.route("**/create_flow_run", lambda route: route.abort())  # days of work
    with page.expect_request("**/create_flow_run") as request:
        page.get_by_role("button", name="Submit").click()
    sent = request.value.post_data_json["parameters"]
    assert (sent["source"], sent["epochs"], sent["k"]) == ("cifar10", 200, 5)
    assert (sent["train"]["lr"], sent["train"]["momentum"]) == (0.1, 0.9)  # the preset's; the form's default
    assert sent["parts"]["limit"] == "gpu:{host}"


def test_cancel_ends_the_process_and_keeps_what_was_made(page, up, shot, expect):
    deployment = httpx.get(f"{up.api}/deployments/name/generate/generate-digits", timeout=60).json()["id"]
    page.goto(f"{up.ui}/deployments/deployment/{deployment}/run?parameters={json.dumps(_LONG)}")
    field(page, "source").wait_for()
    run = submit(page)

    def parts() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in up.folder.glob("runs/generate-*/synthetic/part-*.parquet")}

    wait_for(lambda: len(parts()) >= 2, _RUN_SECONDS, "two parts")
    before = parts()
    assert processes(run)
    shot("before-cancel")
    page.get_by_role("button", name="Open menu").click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel Flow Run").click()
    expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible(timeout=120_000)
    shot("cancelled")
    wait_for(lambda: not processes(run), 60, f"the processes of {run} to end: {processes(run)}")
    assert parts().items() >= before.items()
    assert not list(up.folder.glob("runs/generate-*/synthetic/manifest.json"))


def processes(run: str) -> list[int]:
    """The processes of a flow run: Prefect gives them its id, which their children inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                found.append(process.pid)
        except (psutil.AccessDenied, psutil.NoSuchProcess):  # another's, or just ended
            continue
    return found


def test_schedules_are_listed_and_paused(page, up, shot, expect):
    page.goto(f"{up.ui}/deployments")
    for name in ("generate-nightly", "generate-continue"):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        expect(row.get_by_text("1 schedules")).to_be_visible()
    shot("deployments")
    page.get_by_role("link", name="generate-nightly", exact=True).click()
    expect(page.get_by_text(re.compile("10:00 PM"))).to_be_visible()
    expect(page.get_by_role("switch").first).not_to_be_checked()
    shot("nightly")
