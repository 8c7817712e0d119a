import base64
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image
from reports import HOSTILE, NO_COMPARISON, NOTHING, Page, arm, report

from latebloom.data.states import STATES
from latebloom.data.store import read_json
from latebloom.flows.report.charts import arm_charts, cluster_svg, early_chart, final_charts, sweep_charts
from latebloom.flows.report.page import (
    Cluster,
    ContactRow,
    Example,
    Flagged,
    Pictures,
    contact_sheet,
    write_report,
)
from latebloom.flows.report.results import (
    Confusion,
    GenerationCost,
    LevelResult,
    Limit,
    Report,
    ScoreHistogram,
    StageCost,
)
from latebloom.flows.report.table import how_to_read, report_table

RED, GREEN, BLUE, GOLD = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 200, 0)
WHITE = (255, 255, 255)
OFF_LABEL = (0xC2, 0x41, 0x0C)


def least() -> Report:
    """One arm, one seed, nothing synthetic, and no value where there may be none."""
    lonely = arm("original", errors=[0.05], mean=0.05, std=None, train_error=[], **NO_COMPARISON)
    return report(
        data={},
        generator={},
        generator_seen=None,
        early_errors=[],
        selections=[],
        jaccard=None,
        jaccard_chance=None,
        class_slow=[],
        synthetic={},
        levels=[],
        arms=[lonely],
        comparisons=[],
        sentences=[],
        warnings=[],
        stages=[],
        confusions=[],
        generation=[],
        command="latebloom compare digits",
        config={},
        changed=[],
        scores=[],
        versions={},
    )


def flat(colour: tuple[int, ...], height: int = 8, width: int = 8) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (height, width, 1))


def pictures() -> Pictures:
    rng = np.random.default_rng(0)
    contact = [ContactRow("zero, row 3", flat(RED), [("8 of 20", "ok", flat(GREEN)), ("16 of 20", "flat", flat(BLUE))])]
    clusters = [Cluster("zero", rng.normal(size=(20, 2)), np.arange(20) % 3 == 0)]
    return Pictures(
        [Example("slow one", flat((7,), 8, 8), "train/a/7.png")],
        [Example("fast one", flat(GOLD, 64, 48))],
        contact,
        clusters,
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report with everything in it. Read only."""
    folder = tmp_path_factory.mktemp("full")
    write_report(folder, report(), pictures())
    return folder


def written(folder: Path, values: Report, shown: Pictures = NOTHING) -> str:
    return write_report(folder, values, shown).read_text("utf-8")


# ----------------------------------------------------------------------------------------------------- the table


def test_the_table_holds_the_numbers_in_the_units_of_its_headings() -> None:
    assert report_table(report()) == [
        [
            "arm",
            "optimizer",
            "test error, %",
            "n, seeds",
            "difference, points",
            "95 %, over seeds",
            "p, adjusted",
            "images added",
            "steps",
            "training, s",
            "generation, s",
        ],
        ["original", "sgd", "11.00 ± 1.41", "2", "reference", "–", "–", "341", "1,320", "4.7", "1,235"],
        ["ours-2", "sgd", "11.00 ± 1.41", "2", "-3.00 *", "-4.50 to -1.50", "0.004", "341", "1,320", "4.7", "1,235"],
    ]


@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        ({"significant": False, "p_holm": 0.05}, ["-3.00", "-4.50 to -1.50", "0.05"]),
        ({"difference": 0.03, "ci_low": 0.01, "ci_high": 0.05}, ["+3.00 *", "+1.00 to +5.00", "0.004"]),  # worse too
        ({"difference": -0.00001, "significant": False}, ["+0.00", "-4.50 to -1.50", "0.004"]),  # no -0.00
        ({"p_holm": None, "significant": None}, ["-3.00", "-4.50 to -1.50", "–"]),  # few seeds: never marked
        ({"ci_low": None, "ci_high": None, "p_holm": None, "significant": None}, ["-3.00", "–", "–"]),
        (NO_COMPARISON, ["–", "–", "–"]),
    ],
)
def test_only_significant_differences_are_marked(changes: dict[str, Any], cells: list[str]) -> None:
    assert report_table(report(arms=[arm(**changes)]))[1][4:7] == cells


def test_the_mark_is_bold_in_the_page_and_nothing_else_is(tmp_path: Path) -> None:
    arms = [report().arms[0], arm("a-2"), arm("b-2", significant=False), arm("c-2", difference=0.03)]
    html = written(tmp_path, report(arms=arms))
    # Two of the table, and one of the list of comparisons.
    assert re.findall(r'<td class="marked">(.*?)</td>', html) == ["-3.00 *", "+3.00 *", "-3.00 *"]


def test_the_page_lists_every_comparison_with_both_intervals(full: Path) -> None:
    text = " ".join(" ".join(Page((full / "report.html").read_text("utf-8")).texts).split())
    assert "ours-2 sgd original sgd -3.00 * -4.50 to -1.50 -5.10 to +0.20 0.001 0.004" in text
    assert "ours-2 sgd original sam +1.00 – – 0.062 0.062" in text  # all seeds differ by the same: no interval


def test_a_cell_of_a_confusion_matrix_is_darker_the_more_of_its_class_it_has(full: Path) -> None:
    html = (full / "report.html").read_text("utf-8")
    assert re.findall(r"var\(--c4\) (\d+)%.*?>([\d.]+)<", html) == [("18", "4.5"), ("48", "12.0")]  # not right answers


def test_the_gain_of_a_selector_stands_beside_its_selection() -> None:
    strong = arm("original+dea", selections=3.0, selected=100.0, gain=0.851, gain_low=0.4, gain_high=1.302)
    header, *rows = report_table(report(arms=[arm("original"), strong, dataclasses.replace(strong, gain=None)]))
    assert [row[header.index("gain, % of all's")] for row in rows] == ["–", "85 (40 to 130)", "–"]


def test_what_a_mark_means_is_said_with_its_family_or_why_there_is_none() -> None:
    full = report()
    assert "Holm's correction for the 2 comparisons" in how_to_read(full)
    few = [dataclasses.replace(one, n=4) for one in full.comparisons]
    assert "below 5 seeds" in how_to_read(report(comparisons=few))
    assert "Holm" not in how_to_read(report(comparisons=few))
    assert how_to_read(least()) == ""


def test_rows_are_grouped_by_optimizer_in_the_order_given(tmp_path: Path) -> None:
    arms = [arm(name, optimizer) for name in ("original", "ours-5", "all-5") for optimizer in ("sam", "sgd")]
    assert [row[:2] for row in report_table(report(arms=arms))[1:]] == [
        ["original", "sam"],
        ["ours-5", "sam"],
        ["all-5", "sam"],
        ["original", "sgd"],
        ["ours-5", "sgd"],
        ["all-5", "sgd"],
    ]
    html = written(tmp_path, report(arms=arms, generation=[]))
    assert re.findall(r'<th scope="row">(\w+-\d)</th><td>(\w+)</td>', html) == [
        ("ours-5", "sam"),
        ("all-5", "sam"),
        ("ours-5", "sgd"),
        ("all-5", "sgd"),
    ]


def test_without_a_standard_deviation_the_mean_stands_alone() -> None:
    assert report_table(least())[1][2:5] == ["5.00", "1", "reference"]


# ------------------------------------------------------------------------------------------------------ the page


def test_the_page_shows_every_section_with_its_numbers(full: Path) -> None:
    page = Page((full / "report.html").read_text("utf-8"))
    text = " ".join(" ".join(page.texts).split())
    for shown in (
        "A title",
        "It paid.",
        "Read this first But look.",
        "training images 1,000",
        "classes 2: 0, 1",
        "image height, width, channels 8, 8, 1",
        "separating epoch 2",
        "after epoch 2, the knee of the curve",
        "0 331 33.1 43.21 1.23",  # seed, slow images, share %, error on slow %, on fast %
        "mean over pairs): 0.61 ; of random sets of the same sizes: 0.20",
        "zero 100 33.5 33.5 0.120 1.250",
        "one 100 0.0 0.0 0.400 –",
        "8 of 20 0.64 2,000 1,990 10 0.875 25.3",
        "size on disk, bytes 4,123,456",
        "trained on 250 of the 1,000 training images (25.0 %)",
        "early 31.2 812 run",
        "generate 412 1,400 skipped",
        "original (10.00 %)",  # last training error
        "All settings (3) seed 0 train.lr 0.1",
        "seeds 10 5",  # setting, value, default
        "0 4.50 4.50 +0.00 1 12.00 12.00 +0.00",  # classes by arms, with the difference to original
        "fast one",
        "slow one train/a/7.png",
        "label probability / reference label probability 0.6 0 ≥ 3 min_label_ratio 0.6; 7 without a value",
        "min_contrast is off",
        "0 95.5 4.5 1 12.0 88.0",
        "one zero 7.2",  # too many classes for a matrix
        "ours-2 341 10.0 820 24.0 2.4",
        'latebloom compare digits \\ --set seeds=10 \\ --set \'arms=["original","ours-2"]\'',
        "python 3.12",
    ):
        assert shown in text, shown


def test_every_state_has_its_column_its_colour_and_its_name(tmp_path: Path) -> None:
    colours = {name: state.colour for name, state in STATES.items() if name != "ok"}
    assert len(set(colours.values())) == len(colours)
    counts = {state: 100 + place for place, state in enumerate(STATES)}
    variants = [(f"{place + 1} of 20", state, flat(BLUE)) for place, state in enumerate(colours)]
    shown = Pictures([], [], [ContactRow("x", flat(RED), variants)], [])
    html = written(tmp_path, report(levels=[LevelResult("8 of 20", 0.6, 828, counts, 0.9, 25.3)]), shown)
    text = " ".join(" ".join(Page(html).texts).split())
    assert " ".join(f"{state.replace('_', ' ')}, images" for state in STATES) in text
    assert " ".join(map(str, counts.values())) in text
    for state, colour in colours.items():
        assert re.search(f'--state: {colour}">.*<span>{state.replace("_", " ")}</span>', html), state


def test_a_report_without_seeds_synthetic_images_or_values_says_so(tmp_path: Path) -> None:
    html = written(tmp_path, least())
    text = " ".join(Page(html).texts)
    assert "This run made no synthetic images." in text
    assert not re.search(r"None|nan|Undefined", text)
    for absent in ("The generator", "Slow and fast", "The slow set", "Training", "What it cost"):
        assert f"<h2>{absent}" not in html
    assert "Holm" not in text  # nothing is compared


def test_a_generator_that_does_not_say_what_it_saw_is_not_called_innocent(tmp_path: Path) -> None:
    assert "It does not say how many of the training images" in written(tmp_path, report(generator_seen=None))
    assert "trained on 0 of the 1,000 training images (0.0 %)" in written(tmp_path, report(generator_seen=0))


def test_pure_noise_has_no_log_snr(tmp_path: Path) -> None:
    noise = LevelResult("20 of 20", None, 7, {"nan": 7}, 0.0, 99.0)
    assert "20 of 20 pure noise 7 0 7 0.000 99.0" in " ".join(Page(written(tmp_path, report(levels=[noise]))).texts)


def test_nothing_in_the_input_becomes_markup(tmp_path: Path) -> None:
    image = flat(RED)
    values = report(
        title=HOSTILE,
        created=HOSTILE,
        data={HOSTILE: HOSTILE, "source": HOSTILE, "classes": [HOSTILE], "train": 10},
        generator={"name": HOSTILE},
        synthetic={"digest": HOSTILE},
        levels=[LevelResult("8 of 20", 0.1, 1, {HOSTILE: 1}, 0.5, 1.0)],
        class_slow=[[HOSTILE, 1, 1.0, 0.1, 0.2]],
        arms=[arm("original", HOSTILE), arm(HOSTILE, HOSTILE)],
        sentences=[HOSTILE],
        warnings=[HOSTILE],
        stages=[StageCost(HOSTILE, 1.0, 1.0, False)],
        comparisons=[dataclasses.replace(report().comparisons[0], arm=HOSTILE, rival=HOSTILE)],
        confusions=[
            Confusion(HOSTILE, HOSTILE, [[1.0]], []),
            Confusion(HOSTILE, HOSTILE, [], [[HOSTILE, HOSTILE, 1.0]]),
        ],
        generation=[GenerationCost(HOSTILE, 1.0, 1.0, 1, 1.0)],
        command=HOSTILE,
        config={HOSTILE: HOSTILE},
        changed=[[HOSTILE, HOSTILE, HOSTILE]],
        scores=[ScoreHistogram(HOSTILE, [0.0, 1.0], {HOSTILE: [1]}, [Limit(HOSTILE, 0.5, True)], 1, 1)],
        versions={HOSTILE: HOSTILE},
    )
    shown = Pictures(
        [Example(HOSTILE, image, HOSTILE)],
        [Example(HOSTILE, image, HOSTILE)],
        [ContactRow(HOSTILE, image, [("8 of 20", HOSTILE, image)], name=HOSTILE)],
        [Cluster(HOSTILE, np.zeros((2, 2)), np.array([True, False]))],
        [(HOSTILE, [Example(HOSTILE, image, HOSTILE)])],
        [Flagged(HOSTILE, 1, [(Example(HOSTILE, image, HOSTILE), Example(HOSTILE, image, HOSTILE))])],
    )
    page = Page(written(tmp_path, values, shown))
    assert {tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "form", "link")} == set()
    assert [sorted(attributes) for tag, attributes in page.tags if tag == "img"] == [
        ["alt", "height", "src", "width"]
    ] * 6
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.texts.count(HOSTILE) >= 20
    named = [attributes.get("aria-label") or attributes.get("title") for _, attributes in page.tags]
    assert f"{HOSTILE}, images" in page.texts  # a state nobody knows has its column
    assert f"Outputs of class {HOSTILE}" in named
    assert HOSTILE in named


def test_an_arm_name_is_text_in_its_chart_too(tmp_path: Path) -> None:
    page = Page(written(tmp_path, report(arms=[arm("original"), arm("<b>&$x^2$")])))
    assert page.texts.count("<b>&$x^2$") == 3  # in two tables and beside its row of the chart; $ starts no formula
    assert [text for text in page.texts if text.startswith("<b>&$x^2$ (")]  # and in the legend
    assert "b" not in {tag for tag, _ in page.tags}


def test_the_page_needs_nothing_from_elsewhere(full: Path) -> None:
    html = (full / "report.html").read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"'<)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    page = Page(html)
    assert page.images
    assert all(source.startswith("data:image/") for source in page.images)
    links = {attributes["href"] for tag, attributes in page.tags if tag in ("a", "link")}
    assert links == {"report.json", "contact_sheet.png"}
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    (policy,) = [tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_chart_takes_its_colours_from_the_page(full: Path) -> None:
    html = (full / "report.html").read_text("utf-8")
    assert html.count("<style") == 1  # a chart's own would hold for the whole page
    svgs = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(svgs) > 4
    assert not [svg for svg in svgs if re.search(r"#[0-9a-f]{6}\b", svg.replace("xlink:href", ""))]
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", html)) - {"--s0", "--s1"}  # of states, which have their own
    for scheme in re.findall(r":root \{(.*?)\}", html, re.S):  # light and dark
        assert used - {"--state", "--row"} <= set(re.findall(r"(--[a-z0-9-]+):", scheme))


@pytest.mark.parametrize("pixels", [flat((7,)), flat(GOLD, 64, 48)], ids=["grey", "rgb"])
def test_the_page_carries_the_very_pixels(tmp_path: Path, pixels: np.ndarray) -> None:
    pixels = pixels.copy()
    pixels[0, 1] = 99
    (source,) = Page(written(tmp_path, least(), Pictures([Example("x", pixels)], [], [], []))).images
    with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))) as image:
        assert image.mode == ("L" if pixels.shape[2] == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(28, 28, ("56", "56")), (64, 48, ("48", "64")), (144, 72, ("36", "72"))],
)
def test_an_image_is_shown_at_a_whole_multiple_or_fitted(
    tmp_path: Path, height: int, width: int, shown: tuple[str, str]
) -> None:
    page = Page(written(tmp_path, least(), Pictures([Example("x", flat(RED, height, width))], [], [], [])))
    ((_, attributes),) = [tag for tag in page.tags if tag[0] == "img"]
    assert (attributes["width"], attributes["height"]) == shown


def test_a_hundred_classes_and_large_images_stay_a_page_one_can_mail(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 512, 3)).astype(np.uint8)
    clusters = [Cluster(f"class {n}", rng.normal(size=(1000, 2)), np.arange(1000) % 2 == 0) for n in range(100)]
    html = written(tmp_path, least(), Pictures([Example("x", noise)] * 24, [Example("x", noise)] * 24, [], clusters))
    assert len(html) < 2_000_000
    assert all(f'<figcaption title="class {n}">class {n}</figcaption>' in html for n in range(100))
    assert "The other 80 classes" in html


# ----------------------------------------------------------------------------------------------------- the files


def test_report_json_reads_back_as_the_report(full: Path, tmp_path: Path) -> None:
    assert Report.from_json(read_json(full / "report.json")) == report()
    write_report(tmp_path, least(), NOTHING)
    assert Report.from_json(read_json(tmp_path / "report.json")) == least()


def test_equal_values_make_equal_files_whatever_matplotlib_is_set_to(full: Path, tmp_path: Path) -> None:
    before = matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["text.color"]
    with matplotlib.rc_context({"axes.linewidth": 9.0, "svg.fonttype": "path", "axes.grid": False}):
        write_report(tmp_path / "b", report(), pictures())
        assert matplotlib.rcParams["axes.linewidth"] == 9
    assert (matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["text.color"]) == before
    for name in ("report.json", "report.html", "contact_sheet.png"):
        assert (full / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {file.name for file in full.iterdir()} == {"report.json", "report.html", "contact_sheet.png"}


def test_a_contact_sheet_of_an_earlier_report_is_not_left_lying(tmp_path: Path) -> None:
    write_report(tmp_path, least(), pictures())
    assert (tmp_path / "contact_sheet.png").is_file()
    html = written(tmp_path, least(), NOTHING)
    assert not (tmp_path / "contact_sheet.png").exists()
    assert "contact_sheet.png" not in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [arm(mean=float("nan"))]}, r"report\['arms'\]\[0\]\['mean'\] is nan"),
        ({"jaccard": float("inf")}, r"report\['jaccard'\] is inf"),
        ({"config": {"seed": np.int64(3)}}, r"report\['config'\]\['seed'\] is a int64"),
    ],
)
def test_a_value_that_json_has_no_word_for_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        write_report(tmp_path, report(**changes), NOTHING)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_not_uint8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"got float64\(8, 8, 3\)"):
        write_report(tmp_path, report(), Pictures([Example("x", np.zeros((8, 8, 3)))], [], [], []))


def test_the_report_needs_neither_prefect_nor_pyplot() -> None:
    code = (
        "import sys; from latebloom.flows.report.charts import early_chart; "
        "from latebloom.flows.report.page import contact_sheet; "
        "assert 'matplotlib' not in sys.modules, 'imported too early'; assert early_chart([[0.5, 0.2]], 1); "
        "print([name for name in ('prefect', 'matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --------------------------------------------------------------------------------------------- the contact sheet


def box(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, width, height of the only rectangle of a colour; it must be filled."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(2))
    left, top = columns.min(), rows.min()
    width, height = columns.max() + 1 - left, rows.max() + 1 - top
    assert len(rows) == width * height
    return int(left), int(top), int(width), int(height)


def test_small_images_grow_crisp_by_a_whole_factor() -> None:
    four = np.array([[RED, GREEN], [BLUE, GOLD]], np.uint8)
    sheet = contact_sheet([ContactRow("x", four, [])], cell=97)  # 97 // 2 = 48 times
    left, top, width, height = box(sheet, RED)
    assert (width, height) == (48, 48)
    assert box(sheet, GREEN) == (left + 48, top, 48, 48)
    assert box(sheet, BLUE) == (left, top + 48, 48, 48)
    assert box(sheet, GOLD) == (left + 48, top + 48, 48, 48)


@pytest.mark.parametrize(("shape", "size"), [((2, 4), (96, 48)), ((64, 48), (48, 64)), ((400, 200), (48, 96))])
def test_the_aspect_is_kept(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert box(contact_sheet([ContactRow("x", flat(RED, *shape), [])]), RED)[2:] == size


def test_a_lower_image_stands_in_the_middle_of_its_row() -> None:
    sheet = contact_sheet([ContactRow("x", flat(RED), [("8 of 20", "ok", flat(GREEN, 4, 8))])])
    assert box(sheet, GREEN)[1] == box(sheet, RED)[1] + 24  # 48 of 96 pixels high


def test_grey_images_stay_grey() -> None:
    assert box(contact_sheet([ContactRow("x", flat((7,)), [])]), (7, 7, 7))[2:] == (96, 96)


def test_only_a_variant_that_is_not_ok_has_a_border_and_a_label() -> None:
    row = ContactRow("x", flat(RED), [("8 of 20", "ok", flat(GREEN)), ("16 of 20", "off_label", flat(BLUE))])
    sheet = contact_sheet([row])
    pixels = np.asarray(sheet)
    for colour, border in ((RED, WHITE), (GREEN, WHITE), (BLUE, OFF_LABEL)):
        left, top, width, height = box(sheet, colour)
        around = pixels[top - 4 : top + height + 4, left - 4 : left + width + 4]
        for distance in (1, 2, 3):
            edge = 4 - distance
            assert {tuple(side[edge, 4 - edge]) for side in (around, around[::-1])} == {border}
            assert {tuple(side[50, edge]) for side in (around, around[:, ::-1])} == {border}
        assert tuple(around[0, 50]) == WHITE
        label = pixels[top + height + 4 : top + height + 20, left : left + width]
        assert (label == OFF_LABEL).all(2).any() == (border == OFF_LABEL)


def test_each_variant_stands_in_the_column_of_its_level_deepest_last() -> None:
    rows = [
        ContactRow("x", flat((1,)), [("10 of 20", "ok", flat(RED)), ("16 of 20", "ok", flat(GREEN))]),
        ContactRow("y", flat((2,)), [("9 of 20", "ok", flat(GOLD)), ("16 of 20", "ok", flat(BLUE))]),
    ]
    sheet = contact_sheet(rows, cell=96)
    reference = box(sheet, (1, 1, 1))
    step = 96 + 8
    places = {name: box(sheet, colour)[0] for name, colour in (("9", GOLD), ("10", RED), ("16", GREEN), ("16b", BLUE))}
    assert places == {
        "9": reference[0] + step,
        "10": reference[0] + 2 * step,
        "16": reference[0] + 3 * step,
        "16b": reference[0] + 3 * step,
    }
    below = box(sheet, (2, 2, 2))
    assert below[0] == reference[0]
    assert below[1] >= reference[1] + 96
    assert box(sheet, GREEN)[1] == box(sheet, RED)[1] == reference[1]
    header = np.asarray(sheet)[: reference[1]]
    for place in range(4):  # reference and three levels have a heading
        assert (header[:, reference[0] + place * step :][:, :96] < 255).any()
    assert sheet.width == reference[0] + 4 * step


def test_a_level_made_twice_has_two_columns() -> None:
    twice = [("20 of 20", "ok", flat(GREEN)), ("20 of 20", "ok", flat(BLUE))]
    sheet = contact_sheet([ContactRow("x", flat(RED), twice)])
    assert box(sheet, BLUE)[0] - box(sheet, GREEN)[0] == box(sheet, GREEN)[0] - box(sheet, RED)[0] == 104


def test_a_long_caption_is_cut_and_does_not_push_the_images_away() -> None:
    short, long, longer = (contact_sheet([ContactRow("x" * length, flat(RED), [])]).width for length in (1, 500, 5000))
    assert short < long == longer < short + 220


@pytest.mark.parametrize(
    ("rows", "cell", "message"),
    [
        ([], 96, "needs at least one row"),
        ([ContactRow("x", flat(RED), [])], 8, "cells of at least 16 pixels, got 8"),
        ([ContactRow("x", flat(RED), [("deep", "ok", flat(RED))])], 96, "level 'deep' is not of the form \"8 of 20\""),
    ],
)
def test_a_contact_sheet_that_cannot_be_is_refused(rows: list[ContactRow], cell: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        contact_sheet(rows, cell)


# ---------------------------------------------------------------------------------------------------- the charts


@pytest.mark.parametrize("filled", [True, False])
def test_the_chart_has_a_dot_for_each_seed_and_a_ring_with_its_interval(filled: bool) -> None:
    original = arm("original", errors=[0.10, 0.12, 0.14])
    ours = arm("ours-2", errors=[0.08, 0.08, 0.08], significant=filled)
    ((optimizer, compared, svg),) = arm_charts([original, ours])
    assert (optimizer, compared) == ("sgd", True)
    assert "difference to original, percentage points" in svg
    # Differences of -2, -4 and -6 points: the ring is on the middle dot; the bar is t of two degrees of freedom, 4.303,
    # times 2 / sqrt(3) points, 4.968 to each side, where a dot is 2 points from the next.
    worst, middle, _ = map(float, re.findall(r'<use[^>]* x="([\d.]+)"[^>]*fill: var\(--c1\)', svg))
    (ring,) = re.findall(r'z\s*" style="stroke: var\(--ink\)"/>\s*</defs>\s*(?:<g[^>]*>\s*)?(<use[^>]*>)', svg)
    assert f' x="{middle}"' in ring
    (bar,) = re.findall(r'd="M ([\d.]+) [\d.]+ \sL ([\d.]+) [\d.]+ \s"[^>]*stroke: var\(--ink\); stroke-width: 2', svg)
    reach = 4.968 * (worst - middle) / 2
    assert [float(end) for end in bar] == pytest.approx([middle - reach, middle + reach], abs=0.02)
    assert ("fill: var(--ink)" in ring) == filled


def test_both_optimizers_share_a_scale() -> None:
    def ticks(svg: str) -> list[str]:
        return re.findall(r">(−?\d+\.?\d*)</text>", svg)

    narrow = [arm("original", errors=[0.10, 0.10]), arm(errors=[0.10, 0.09])]
    wide = [arm("original", "sam", errors=[0.10, 0.10]), arm(optimizer="sam", errors=[0.30, 0.00])]
    (_, _, first), (_, _, second) = arm_charts(narrow + wide)
    assert ticks(first) == ticks(second)
    assert len(ticks(first)) >= 3
    ((_, _, alone),) = arm_charts(narrow)
    assert ticks(alone) != ticks(first)


def test_without_original_the_errors_themselves_are_drawn() -> None:
    ((_, compared, svg),) = arm_charts([arm("ours-2"), arm("ours-5", std=None)])
    assert not compared
    assert "test error, %" in svg
    assert "difference" not in svg


def test_arms_that_cannot_be_paired_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="ours-2 has 1 seeds, original has 2"):
        arm_charts([arm("original"), arm("ours-2", errors=[0.1])])


def test_early_curves_are_one_line_a_seed_with_the_separating_epoch() -> None:
    svg = early_chart([[0.9, 0.5, 0.4], [0.8, 0.5, 0.3], []], 2)
    assert svg is not None
    assert svg.count("stroke: var(--c1)") == 2
    assert "separating epoch 2" in svg
    assert early_chart([[]], 1) is None
    one = early_chart([[0.5]], 1)
    assert one is not None
    assert "<use" in one


def test_arms_keep_their_line_in_every_chart_and_twenty_differ() -> None:
    names = [f"ours-{number}" for number in range(20)]
    arms = [arm(name, "sgd") for name in names] + [arm(name, "sam") for name in names[::-1]]
    (_, first, sgd), (_, second, sam) = final_charts(arms)
    assert len({(colour, dashes) for _, colour, dashes, _ in sgd}) == 20
    assert sorted(sgd) == sorted(sam)
    for svg in (first, second):
        assert len(set(re.findall(r"stroke-dasharray: ([^;\"]+)", svg))) == 2  # eight solid, eight dashed, four dotted
    assert final_charts([arm(train_error=[])]) == []


def test_cluster_points_keep_their_proportions() -> None:
    svg = cluster_svg("x", np.array([[0, 0], [2, 0], [0, 1]]), np.array([False, True, False]), 300)
    # 2 wide becomes 90 of 100 units, 5 from each edge; 1 high becomes 45 in the middle; y points up
    assert '<path class="fast" d="M5.0 72.5h.01M5.0 27.5h.01"/>' in svg
    assert '<path class="slow" d="M95.0 72.5h.01"/>' in svg
    assert svg.index("fast") < svg.index("slow")  # slow on top


def test_clusters_are_thinned_evenly_and_may_be_empty_or_one_point() -> None:
    line = np.stack([np.arange(101), np.zeros(101)], 1)
    thinned = cluster_svg("x", line, np.zeros(101, bool), 3)
    assert re.findall(r"M([\d.]+)", thinned) == ["5.0", "50.0", "95.0"]
    same = cluster_svg("x", np.ones((2, 2)), np.array([True, False]), 300)
    assert re.findall(r"M([\d.]+ [\d.]+)", same) == ["50.0 50.0", "50.0 50.0"]
    assert "<path" not in cluster_svg("x", np.empty((0, 2)), np.empty(0, bool), 300)
    with pytest.raises(AssertionError, match="class 'x' has points that are not finite"):
        cluster_svg("x", np.array([[0, np.nan]]), np.array([True]), 300)


# ---------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    ("names", "charts"),
    [
        # what is drawn: against what, and each line with its points
        (("original", "ours-2:L50", "ours-2:L80"), [("level", ["ours", "original"])]),
        (("original", "ours-2:L50", "ours-2:L80", "random-2:L50"), [("level", ["ours", "random", "original"])]),
        (("original", "ours-2", "ours-3", "upsample-2"), [("k", ["ours", "upsample"])]),
        (("ours-2", "ours-3"), [("k", ["ours"])]),
        # One point is no sweep. Arms of k = 3 differ in two levels. Equal steps and strong copies are other things.
        (("original", "ours-2:L50", "random-2:L80"), []),
        (("original", "ours-3:L50-70", "ours-3:L50-80"), []),
        (("original", "ours-2", "original@ours-2", "ours-2+dea"), []),
    ],
)
def test_arms_that_differ_in_level_or_k_alone_are_drawn_as_a_line(
    names: tuple[str, ...], charts: list[tuple[str, list[str]]]
) -> None:
    found = sweep_charts([arm(name) for name in names], [])
    assert [(what, [row[0] for row in legend]) for what, _, _, legend in found] == charts


def test_a_level_stands_with_its_log_snr_in_the_chart_and_its_distances_in_the_table(tmp_path: Path) -> None:
    levels = [
        LevelResult("50 of 100", 0.0066, 10, {"ok": 10}, 0.9, 20.0, frechet=0.1234, fid=10.67),
        LevelResult("100 of 100", None, 10, {"ok": 10}, 0.9, 30.0, frechet=0.5, fid=47.35),
    ]
    arms = [arm(name) for name in ("original", "ours-2:L50", "ours-2:L100")]
    html = written(tmp_path, report(levels=levels, arms=arms))
    text = " ".join(Page(html).texts)
    assert "By level and by k" in text
    assert "+0.0" in html
    assert ">noise<" in html
    assert "0.123 10.67" in text
    assert "0.500 47.35" in text
