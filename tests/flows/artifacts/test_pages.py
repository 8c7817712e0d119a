import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latebloom.data.store import read_json, write_json
from latebloom.flows.artifacts.pages import (
    PICTURE_BYTES,
    lineage_page,
    picture,
    report_page,
    stage_page,
    synthetic_page,
)
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import EARLY, PLAN, SELECT, retrain_key


def rows(markdown: str) -> dict[str, str]:
    """The rows of a page's table, by their first cell."""
    return dict(re.findall(r"^\| ([^-].*?) \| (.*) \|$", markdown, re.MULTILINE))


def pictures(markdown: str) -> list[tuple[str, bytes]]:
    """Kind and content of the pictures in a page."""
    found = re.findall(r"!\[[^]]*]\(data:image/([a-z+]+);base64,([^)]*)\)", markdown)
    return [(kind, base64.b64decode(content, validate=True)) for kind, content in found]


def test_a_stage_says_what_it_made_and_where_and_what_it_cost(finished: RunFolder) -> None:
    file = finished.path / "stages" / "select.json"
    record = {**read_json(file), "seconds": 4.24, "peak_memory_mb": 1234.4, "skipped": False}
    record["facts"] |= {"slow": [31, 1028], "union": {"cluster": 1040}}
    write_json(file, record)
    page = stage_page(finished, SELECT)
    assert page.startswith("# Slow examples\n")
    assert rows(page) == {
        "run folder": f"`{finished.path}`",
        "slow examples, by seed": "31, 1,028",
        "of one seed or another": "1,040",
        "this time": "made",
        "took": "4.2 s",
        "peak memory": "1,234 MB",
        "digest": f"`{record['digest']}`",
    }
    assert "`selection/`" in page


def test_a_stage_that_was_skipped_says_so(finished: RunFolder) -> None:
    file = finished.path / "stages" / "early.json"
    write_json(file, {**read_json(file), "seconds": 100, "skipped": True})
    found = rows(stage_page(finished, EARLY))
    assert found["this time"].startswith("skipped")
    assert found["took"] == "2 min when it was made"
    assert found["separating epoch"] == "1, as given"


def test_the_plan_says_what_it_will_cost(finished: RunFolder) -> None:
    found = rows(stage_page(finished, PLAN))
    forecast = finished.record(PLAN).facts.forecast
    assert found["images to make"] == f"{forecast.images:,}"
    assert re.fullmatch(r"\d+ at 3 of 10, \d+ at 5 of 10", found["of each level"])
    assert found["generator"].startswith("tiny, digest `")


def test_an_arm_says_its_error_and_where_it_came_from(finished: RunFolder) -> None:
    file = finished.path / "stages" / "retrain-ours-3-sgd.json"
    record = read_json(file)
    record["facts"] |= {"errors": [0.1, 0.2], "images_added": [40, 50], "steps": [1000, 1001]}
    write_json(file, record)
    page = stage_page(finished, retrain_key("ours-3", "sgd"))
    assert page.startswith("# Classifiers of ours-3-sgd\n")
    # The standard deviation of 10 and 20 is 10 / sqrt(2).
    assert rows(page)["test error"] == "15.00 ± 7.07 %, n = 2 seeds"
    assert rows(page)["images added"] == "45 (mean over seeds)"
    assert "```mermaid\nflowchart LR\n" in page


def test_a_stage_that_is_not_done_has_no_page(finished: RunFolder) -> None:
    (finished.path / "stages" / "plan.json").unlink()
    with pytest.raises(ValueError, match="no finished stage 'plan'"):
        stage_page(finished, PLAN)


def test_the_synthetic_set_shows_its_counts_and_a_contact_sheet(
    finished: RunFolder, tiny: Callable[..., CompareConfig]
) -> None:
    manifest = read_json(finished.path / "synthetic" / "manifest.json")
    page = synthetic_page(finished, tiny())
    found = rows(page)
    assert found["images"] == str(manifest["rows"])
    assert found["states"] == f"ok {manifest['rows']}"
    assert found["parts"] == str(len(manifest["parts"]))
    assert found["digest"] == f"`{manifest['digest']}`"
    [(kind, content)] = pictures(page)
    assert kind == "png"
    with Image.open(io.BytesIO(content)) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * 112  # a reference and two levels


def test_the_report_shows_results_charts_and_sentences(finished: RunFolder) -> None:
    page = report_page(finished)
    report = read_json(finished.path / "report.json")
    assert "| arm | optimizer | test error, % | n, seeds | difference, points | 95 %, over seeds |\n" in page
    assert re.search(r"^\| ours-3 \| sgd \| \d+\.\d\d ± \d+\.\d\d \| 2 \| [+-]\d", page, re.MULTILINE)
    for sentence in report["sentences"]:
        assert f"- {sentence}" in page
    chart, sheet = pictures(page)
    assert (chart[0], sheet[0]) == ("svg+xml", "png")
    root = ElementTree.fromstring(chart[1])
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["width"] == "440"
    assert b"var(--" not in chart[1]


def test_a_report_links_to_its_page_only_where_that_can_be_read(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATEBLOOM_RUNS_URL", raising=False)
    assert f"Report: `{finished.path}/report.html`" in report_page(finished)
    monkeypatch.setenv("LATEBLOOM_RUNS_URL", "http://127.0.0.1:4300/runs/")
    assert f"Report: `{finished.path}/report.html`" in report_page(finished)  # it is not below runs/
    monkeypatch.chdir(finished.path.parent)
    Path("runs").mkdir()
    finished.path.rename("runs/a b")
    page = report_page(RunFolder(Path("runs/a b")))
    assert "Report: [runs/a b/report.html](http://127.0.0.1:4300/runs/a%20b/report.html)" in page


def test_links_go_by_the_root_of_run_folders_that_the_worker_has(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATEBLOOM_RUNS_URL", "https://latebloom.example/runs")
    monkeypatch.setenv("LATEBLOOM_RUNS", str(finished.path.parent))
    link = f"[{finished.path}/report.html](https://latebloom.example/runs/{finished.path.name}/report.html)"
    assert f"Report: {link}" in report_page(finished)
    monkeypatch.setenv("LATEBLOOM_RUNS", "s3://bucket/runs")
    assert f"Report: `{finished.path}/report.html`" in report_page(finished)


def test_a_run_without_a_report_has_no_report_page(finished: RunFolder) -> None:
    (finished.path / "report.json").unlink()
    with pytest.raises(FileNotFoundError):
        report_page(finished)


def test_lineage_names_the_run_folder(finished: RunFolder) -> None:
    assert f"Run folder: `{finished.path}`\n\n```mermaid\nflowchart LR\n" in lineage_page(finished)


def test_a_small_picture_is_carried_as_it_is() -> None:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    [(kind, content)] = pictures(picture(image, "ten by ten"))
    assert kind == "png"
    with Image.open(io.BytesIO(content)) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(image))


@pytest.mark.parametrize(("side", "same_size"), [(400, True), (800, False)])
def test_a_large_picture_is_carried_within_the_limit(side: int, same_size: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)  # nothing is harder to compress
    [(kind, content)] = pictures(picture(Image.fromarray(noise), "noise"))
    assert kind == "jpeg"
    assert len(content) <= PICTURE_BYTES
    with Image.open(io.BytesIO(content)) as shown:
        assert shown.format == "JPEG"
        assert (shown.width == side) is same_size
        assert shown.width == shown.height
