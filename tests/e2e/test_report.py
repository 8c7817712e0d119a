"""The list of slow images in a browser, opened from disk as a person opens it."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from listed import listed
from reports import HOSTILE, NOTHING, report

from latebloom.flows.report.listing import Listing
from latebloom.flows.report.page import write_report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def opened(page, tmp_path):
    """Opens the page of a list; a script's error or a refused file fails the test."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))

    def open_(found: Listing):
        page.goto(write_report(tmp_path, report(), dataclasses.replace(NOTHING, listing=found)).as_uri())
        return page

    yield open_
    assert not said


def names(page) -> list[str]:
    return page.eval_on_selector_all("#slow-list tbody th", "rows => rows.map(row => row.title)")


def test_the_list_is_found_in_and_sorted(opened) -> None:
    page = opened(listed(1000))
    assert names(page)[:2] == ["train/cat/00000.png", "train/big dog/00001.png"]
    page.fill("#slow-list input", "BIG 0000")
    page.wait_for_selector("#slow-list output:text-is('3 of 1,000 images')")
    assert names(page) == [f"train/big dog/0000{n}.png" for n in (1, 4, 7)]
    page.fill("#slow-list input", "")
    page.click("#slow-list button[data-key=row]")  # numbers: the largest first
    assert names(page)[0] == "train/cat/00999.png"
    page.focus("#slow-list button[data-key=name]")
    page.keyboard.press("Enter")
    assert names(page)[:2] == ["train/big dog/00001.png", "train/big dog/00004.png"]
    page.keyboard.press("Enter")
    assert names(page)[0] == "train/fox/00998.png"
    assert page.get_attribute("#slow-list th:has([data-key=name])", "aria-sort") == "descending"


def test_only_what_is_in_view_is_in_the_page_and_keys_move_it(opened) -> None:
    page = opened(listed(1000))
    assert len(names(page)) < 30
    page.focus("#slow-list .window")
    page.keyboard.press("End")
    page.wait_for_selector('#slow-list tbody th[title$="999.png"]')
    assert len(names(page)) < 30


def test_pictures_are_loaded_from_beside_the_page(opened) -> None:
    page = opened(listed(10))
    page.wait_for_load_state("networkidle")
    assert page.is_hidden("#slow-list .missing")


def test_a_page_without_its_pictures_says_what_is_missing(page, tmp_path: Path) -> None:
    whole = write_report(tmp_path, report(), dataclasses.replace(NOTHING, listing=listed(10)))
    (tmp_path / "alone").mkdir()
    page.goto(Path(shutil.copy(whole, tmp_path / "alone")).as_uri())
    page.wait_for_selector("#slow-list .missing")
    assert "Copy both." in page.inner_text("#slow-list .missing")
    assert len(names(page)) == 10


def test_names_never_run(opened) -> None:
    hostile = [HOSTILE, "</script><script>alert(1)</script>", "it's \"quoted\"' onmouseover='alert(1)"]
    found = dataclasses.replace(listed(3, names=hostile), class_names=["<img src=x onerror=alert(1)>", HOSTILE, "c"])
    page = opened(found)
    assert names(page) == hostile
    assert page.locator("img[src=x]").count() == 0
