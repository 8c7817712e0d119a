import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from listed import listed
from PIL import Image
from reports import HOSTILE, NOTHING, Page, report

from latebloom.flows.report.listing import Listing, in_script, write_list
from latebloom.flows.report.page import write_report
from latebloom.flows.report.sprites import shown_size, write_sheets


def written(folder: Path, found: Listing) -> str:
    return write_report(folder, report(), dataclasses.replace(NOTHING, listing=found)).read_text("utf-8")


def data(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="slow-data">(.*?)</script>', html, re.S)
    value: dict[str, Any] = json.loads(text)
    return value


def cell(folder: Path, sheets: dict[str, Any], place: int) -> np.ndarray:
    """The picture of this place, found as the script finds it."""
    each = sheets["across"] ** 2
    with Image.open(folder / "report" / sheets["files"][place // each]) as image:
        side = image.width // sheets["across"]
        left, top = place % sheets["across"] * side, place % each // sheets["across"] * side
        return np.asarray(image.crop((left, top, left + side, top + side)))


# ----------------------------------------------------------------------------------------------------- the values


def test_the_page_has_every_image_with_what_is_known_of_it(tmp_path: Path) -> None:
    found = data(written(tmp_path, listed(12)))
    assert found["names"][4] == "train/big dog/00004.png"
    assert [found[name][5] for name in ("rows", "labels", "predicted", "losses", "probability", "votes")] == [
        *(10, 2, 0),
        *(round(3 - 5 / 12, 4), round(5 / 12, 4)),
        "01",
    ]
    assert found["levels"] == ["10 of 100", "20 of 100"]
    assert found["states"][1][0] == "off label"
    assert found["variants"][4:6] == [[[0, 0], [1, 0]], [[0, 0], [1, 1]]]  # column and state
    assert found["starts"][4:6] == [8, 10]


def test_every_picture_lies_where_the_script_looks_for_it(tmp_path: Path) -> None:
    found = data(written(tmp_path, listed(401, side=8)))
    assert len(found["pictures"]["files"]) == 2
    assert found["pictures"]["shown"] == [64, 64]
    for image in (0, 19, 20, 399, 400):
        assert (cell(tmp_path, found["pictures"], image) == image % 200).all()
        for column, _ in found["variants"][image]:
            assert (cell(tmp_path, found["variant_pictures"], found["starts"][image] + column) == 200 + column).all()


def test_a_run_without_variants_has_a_list_without_them(tmp_path: Path) -> None:
    found = data(written(tmp_path, listed(3, levels=0)))
    assert (found["levels"], found["variants"], found["variant_pictures"]["files"]) == ([], [[], [], []], [])


def test_a_value_that_is_not_there_is_null(tmp_path: Path) -> None:
    found = dataclasses.replace(listed(2), losses=np.array([np.nan, 0.5]), predicted=np.array([-1, 1]))
    html = written(tmp_path, found)
    assert data(html)["losses"] == [None, 0.5]
    assert "train/cat/00000.png cat 0 – 0.000 – 1 of 2" in " ".join(" ".join(Page(html).texts).split())


def test_a_run_without_slow_images_has_no_list_and_no_script(tmp_path: Path) -> None:
    html = write_report(tmp_path, report(), NOTHING).read_text("utf-8")
    assert "<script" not in html
    assert "script-src" not in html
    assert not (tmp_path / "report").exists()


def test_the_table_of_select_is_linked_where_it_is_there(tmp_path: Path) -> None:
    assert "slow.csv" not in written(tmp_path, listed(2))
    (tmp_path / "slow.csv").touch()
    assert '<a href="slow.csv">' in written(tmp_path, listed(2))


def test_a_list_that_is_cut_says_so(tmp_path: Path) -> None:
    html = written(tmp_path, dataclasses.replace(listed(3), total=1234))
    assert "All slow images (1,234)" in html
    assert "The 3 first of them are listed." in html


# ------------------------------------------------------------------------------------------------------- the page


def test_without_a_script_the_first_hundred_are_shown(tmp_path: Path) -> None:
    html = written(tmp_path, listed(150))
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.S)
    page = Page(plain)
    names = [tag["title"] for kind, tag in page.tags if kind == "th" and "title" in tag]
    assert (len(names), names[0], names[-1]) == (100, "train/cat/00000.png", "train/cat/00099.png")
    text = " ".join(" ".join(page.texts).split())
    assert "The first 100;" in text
    assert "train/fox/00005.png fox 10 2.967 0.033 cat 1 of 2 off label" in text
    # Each picture is a part of a file: the reference of image 21 is the second of the second row.
    styles = [tag["style"] or "" for kind, tag in page.tags if kind == "span" and tag["title"] == names[21]]
    assert [re.search(r"background-position: (.*)", style)[1] for style in styles] == ["-64px -64px"]  # type: ignore


def test_names_are_text_everywhere(tmp_path: Path) -> None:
    names = [HOSTILE, '</script><script>alert("x")</script>', "it's \"quoted\"/' onload='x.png", "<!-- \u2028 -->"]
    found = dataclasses.replace(listed(4, names=names), class_names=["<img src=x onerror=alert(1)>", HOSTILE, "c"])
    html = written(tmp_path, found)
    page = Page(html)
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == ["application/json", None]
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert data(html)["names"] == names
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "th" and "title" in attributes]
    assert titles == names
    assert in_script({"</script>": "&<"}) == '{"\\u003c/script\\u003e":"\\u0026\\u003c"}'


def test_the_policy_lets_this_script_run_and_no_other(tmp_path: Path) -> None:
    html = written(tmp_path, listed(2))
    (policy,) = [tag["content"] or "" for _, tag in Page(html).tags if tag.get("http-equiv")]
    assert re.fullmatch(
        r"default-src 'none'; img-src data: 'self' file:; script-src 'sha256-[\w+/]{43}='; style-src 'unsafe-inline'",
        policy,
    )
    assert not re.search(r"https?://(?!www\.w3\.org)", html)


def test_ten_thousand_images_are_a_page_of_a_megabyte_and_few_files(tmp_path: Path) -> None:
    html = written(tmp_path, listed(10_000))
    assert len(html) < 1_500_000
    assert len(list((tmp_path / "report").iterdir())) == 25 + 50


# ------------------------------------------------------------------------------------------------------ the files


def test_equal_lists_are_equal_files_and_those_of_an_earlier_report_are_gone(tmp_path: Path) -> None:
    one = written(tmp_path, listed(500))
    files = {file.name: file.read_bytes() for file in (tmp_path / "report").iterdir()}
    (tmp_path / "report" / "mine.png").touch()
    assert written(tmp_path, listed(500)) == one
    assert {file.name for file in (tmp_path / "report").iterdir()} == {*files, "mine.png"}
    written(tmp_path, listed(3))
    assert len(list((tmp_path / "report").iterdir())) == 3
    write_list(tmp_path, None)
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["mine.png"]


@pytest.mark.parametrize(
    ("shape", "size", "ending"),
    [((8, 8, 1), (8, 8), "png"), ((16, 12, 3), (12, 16), "png"), ((32, 32, 3), (32, 32), "jpg"),
     ((224, 112, 3), (32, 64), "jpg")],
)  # fmt: skip
def test_small_pictures_are_kept_as_they_are_and_large_ones_fitted(
    tmp_path: Path, shape: tuple[int, int, int], size: tuple[int, int], ending: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    sheets = write_sheets(tmp_path, "slow", 21, lambda start, end: np.stack([image] * (end - start)))
    assert (sheets.width, sheets.height) == size
    (name,) = sheets.files
    assert re.fullmatch(rf"slow-000-[0-9a-f]{{8}}\.{ending}", name)
    with Image.open(tmp_path / name) as sheet:
        assert sheet.size == (20 * size[0], 2 * size[1])
        first = np.asarray(sheet)[: size[1], : size[0]]
        if ending == "png":
            np.testing.assert_array_equal(first.reshape(shape), image)


def test_a_picture_is_shown_at_a_whole_multiple_or_fitted() -> None:
    assert [shown_size(size, 64) for size in ((8, 8), (28, 28), (64, 48), (100, 200))] == [
        *((64, 64), (56, 56)),
        *((64, 48), (32, 64)),
    ]
