"""The report that people read: report.json, contact_sheet.png and report.html, from values and pictures."""

import base64
import bisect
import dataclasses
import hashlib
import importlib.resources
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from latebloom.data.names import shortened
from latebloom.data.states import STATES
from latebloom.data.store import write_bytes, write_json
from latebloom.flows.config.command import dotted
from latebloom.flows.report.charts import arm_charts, cluster_svg, early_chart, final_charts, sweep_charts
from latebloom.flows.report.histograms import histogram_svg
from latebloom.flows.report.listing import Listing, colour_of, in_script, write_list
from latebloom.flows.report.results import Confusion, Report
from latebloom.flows.report.sprites import shown_size
from latebloom.flows.report.table import (
    comparison_table,
    errors_by_class,
    how_to_read,
    in_order,
    percent,
    report_table,
    seconds,
)
from latebloom.flows.report.validation import as_arms, validation_table

__all__ = ["Cluster", "ContactRow", "Example", "Flagged", "Pictures", "contact_sheet", "write_report"]

# What a dict of the report calls a thing, and what a person would.
NAMES = {
    "train": "training images",
    "test": "test images",
    "validation": "validation images",
    "validation_digest": "digest of the validation split",
    "image_shape": "image height, width, channels",
    "rows": "images made",
    "bytes": "size on disk, bytes",
    "seconds": "generation, s",
}

SMALL_PICTURES = 72  # longest side in CSS pixels
CONTACT_CELL = 96
CLUSTER_POINTS = 12_000  # drawn on the whole page; a class shows at most 300 of its points


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture with its caption, and the name of its file, which stands below."""

    caption: str
    pixels: np.ndarray  # uint8 (H, W, C)
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Flagged:
    """Variants of one state that keeps them out of training, each beside its reference.

    Attributes:
        images: how many have this state; some of them are shown.
        pairs: the reference, and the variant.
    """

    state: str
    images: int
    pairs: list[tuple[Example, Example]]


@dataclasses.dataclass(frozen=True)
class ContactRow:
    """One reference and its variants."""

    caption: str
    reference: np.ndarray  # uint8 (H, W, C)
    variants: list[tuple[str, str, np.ndarray]]  # level "8 of 20", state, uint8 (H, W, C); deepest level last
    notes: dict[str, str] = dataclasses.field(default_factory=dict)  # by column: what to write below its image
    name: str = ""  # of the reference's file, below the caption


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One class in the plane of the first two principal components of its early outputs."""

    class_name: str
    points: np.ndarray  # float (n, 2)
    slow: np.ndarray  # bool (n,)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the report shows beside the numbers. Any of the lists may be empty."""

    slow: list[Example]
    fast: list[Example]
    contact: list[ContactRow]
    clusters: list[Cluster]
    selected: list[tuple[str, list[Example]]] = dataclasses.field(default_factory=list)  # by title
    flagged: list[Flagged] = dataclasses.field(default_factory=list)
    listing: Listing | None = None


# ---------------------------------------------------------------------------------------------------- numbers


def _fixed(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}"


def _plain(value: Any) -> str:
    """Any JSON value in words."""
    if value is None or value in ("", [], {}):
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return str(value)


def _assert_json(value: Any, name: str) -> None:
    """Stop at the first value that JSON has no word for, by its name."""
    if isinstance(value, dict):
        for key, part in value.items():
            _assert_json(part, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            _assert_json(part, f"{name}[{place}]")
    else:
        plain = value is None or isinstance(value, str | bool | int | float)
        assert plain, f"{name} is a {type(value).__name__}; JSON has none"
        assert not isinstance(value, float) or math.isfinite(value), f"{name} is {value}; use None for no value"


# ------------------------------------------------------------------------------------------------------ files


def write_report(folder: Path, report: Report, pictures: Pictures) -> Path:
    """Write report.json, contact_sheet.png (where there is a row for it) and report.html, the page people open.

    Equal values and pictures give equal files.

    Returns:
        The path of report.html.
    """
    content = dataclasses.asdict(report)
    _assert_json(content, "report")
    write_json(folder / "report.json", content)
    sheet = folder / "contact_sheet.png"
    if pictures.contact:
        write_bytes(sheet, _encoded(contact_sheet(pictures.contact), "PNG"))
    else:
        sheet.unlink(missing_ok=True)  # of an earlier report in the same folder
    page = folder / "report.html"
    listed = write_list(folder, pictures.listing)
    table = "slow.csv" if (folder / "slow.csv").is_file() else ""
    write_bytes(page, _html(report, pictures, listed, table).encode())
    return page


def _source(name: str) -> str:
    """The text of a file beside this one."""
    return importlib.resources.files("latebloom.flows.report").joinpath(name).read_text("utf-8")


def _html(report: Report, pictures: Pictures, listed: dict[str, Any], table: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "seconds": seconds,
        "fixed": _fixed,
        "plain": _plain,
        "name": lambda key: NAMES.get(key, str(key).replace("_", " ")),
        "small": lambda pixels: _img(pixels, SMALL_PICTURES),
        "cell": lambda pixels: _img(pixels, CONTACT_CELL),
        "shortened": shortened,
    }
    template = environment.get_template("report.html.j2")
    script = _source("slow.js")
    columns, validated = _columns(pictures.contact), as_arms(report.validation)
    header, *rows = report_table(report)
    pair_header, *pairs = comparison_table(report)
    shown = min(300, max(40, CLUSTER_POINTS // max(1, len(pictures.clusters))))
    states = {state for level in report.levels for state in level.states} | {"ok"}
    scored = _in_order({state for one in report.scores for state in one.counts})
    return template.render(
        report=report,
        pictures=pictures,
        header=header,
        rows=list(zip(rows, [arm.significant for arm in in_order(report)], strict=True)),
        how_to_read=how_to_read(report),
        pair_header=pair_header,
        pairs=list(zip(pairs, [one.significant for one in report.comparisons], strict=True)),
        has_seen_images=any(one.images_low is not None for one in report.comparisons),
        confusions=[(one, _shades(one)) for one in report.confusions],
        command=_in_lines(report.command),
        arm_charts=arm_charts(report.arms),
        early_chart=early_chart(report.early_errors, report.separating_epoch),
        final_charts=final_charts(report.arms),
        sweep_charts=sweep_charts(report.arms, report.levels),
        validation=validation_table(report),
        validation_charts=final_charts(validated, "validation"),
        validation_sweeps=sweep_charts(validated, report.levels, "validation"),
        columns=columns,
        contact=[(row, _cells(row, columns)) for row in pictures.contact],
        colour_of=colour_of,
        slow=listed,
        slow_total=pictures.listing.total if pictures.listing else 0,
        slow_csv=table,
        slow_data=in_script(listed),
        slow_script=Markup(script),
        # The page may run this one script, by its digest.
        script_policy=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        clusters=[
            (one.class_name, cluster_svg(one.class_name, one.points, one.slow, shown)) for one in pictures.clusters
        ],
        cluster_points=shown,
        has_frechet=any(level.frechet is not None for level in report.levels),
        has_fid=any(level.fid is not None for level in report.levels),
        states=_in_order(states),
        scored_states=scored,
        state_words={name: state.words for name, state in STATES.items()},
        histograms=[(one, histogram_svg(one, scored)) for one in report.scores],
        errors_by_class=errors_by_class(report),
        settings=list(dotted(report.config)),
    )


def _in_order(states: set[str]) -> list[str]:
    """States as they are checked, those of another version last."""
    return [state for state in STATES if state in states] + sorted(states - set(STATES))


def _shades(confusion: Confusion) -> list[list[int]]:
    """How dark each cell of a confusion matrix is, 0 to 80 %: by its share of the row, right answers not at all."""
    return [
        [0 if row == column else min(80, round(400 * images / (sum(line) or 1))) for column, images in enumerate(line)]
        for row, line in enumerate(confusion.matrix)
    ]


def _in_lines(command: str) -> str:
    """A command line, each --set on its own."""
    return command.replace(" --set ", " \\\n  --set ")


# --------------------------------------------------------------------------------------------------- pictures


def contact_sheet(
    rows: list[ContactRow], cell: int = CONTACT_CELL, title: str = "", columns: Sequence[str] = ()
) -> Image.Image:
    """A labelled grid: each row a reference, then its variants under the level they were made at.

    Small images grow by a whole factor without smoothing, larger ones are fitted into `cell` x `cell` pixels. An image
    whose state is not ok has a coloured border and its state below it.

    Args:
        title: above the captions.
        columns: headings where they are not the levels; a variant then has its heading in place of the level.

    Raises:
        ValueError: no rows, or cells too small to label.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    if cell < 16:
        raise ValueError(f"a contact sheet needs cells of at least 16 pixels, got {cell}")
    pad, line_height = 8, 15
    label_height = 24 + (line_height if any(row.notes for row in rows) else 0)  # below an image: its note, its state
    font = _font(11)
    columns = columns or _columns(rows)
    title = _fit(title, font, 200)
    captions = [[_fit(text, font, 200) for text in (row.caption, row.name) if text] for row in rows]
    left = pad + math.ceil(max(font.getlength(text) for text in (title, *itertools.chain(*captions)))) + pad
    grid = [[("", "ok", row.reference), *_cells(row, columns)] for row in rows]
    tiles = [[None if found is None else _scaled(found[2], cell) for found in line] for line in grid]
    tile_height = max(tile.height for line in tiles for tile in line if tile is not None)
    head = 24 + pad
    size = (left + (1 + len(columns)) * (cell + pad), head + len(rows) * (tile_height + label_height))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((pad, pad), title, "#57606a", font, anchor="lt")
    for place, heading in enumerate(["reference", *columns]):
        middle = left + place * (cell + pad) + cell / 2
        draw.text((middle, pad), _fit(heading, font, cell), "#57606a", font, anchor="mt")
    for line, (row, caption, found_line, tile_line) in enumerate(zip(rows, captions, grid, tiles, strict=True)):
        top = head + line * (tile_height + label_height)
        for below, text in enumerate(caption):
            middle = top + tile_height / 2 + (below - (len(caption) - 1) / 2) * line_height
            draw.text((pad, middle), text, "#57606a" if below else "#1f2328", font, anchor="lm")
        for place, (found, tile) in enumerate(zip(found_line, tile_line, strict=True)):
            if found is None or tile is None:
                continue
            heading, state, _ = found
            x = left + place * (cell + pad) + (cell - tile.width) // 2
            y = top + (tile_height - tile.height) // 2
            labels = [(row.notes[heading], "#57606a")] if heading in row.notes else []
            if state != "ok":
                colour = colour_of(state)
                draw.rectangle((x - 3, y - 3, x + tile.width + 2, y + tile.height + 2), fill=colour)
                labels += [(state.replace("_", " "), colour)]
            middle = left + place * (cell + pad) + cell / 2
            for below, (text, colour) in enumerate(labels):
                height = top + tile_height + 5 + below * line_height
                draw.text((middle, height), _fit(text, font, cell + pad), colour, font, "mt")
            sheet.paste(tile, (x, y))
    return sheet


def _columns(rows: Sequence[ContactRow]) -> list[str]:
    """The level of each column, deepest last. A level that some row has twice has two columns."""
    most: Counter[str] = Counter()
    for row in rows:
        most |= Counter(level for level, _, _ in row.variants)
    return sorted(most.elements(), key=_depth)


def _depth(level: str) -> float:
    found = re.fullmatch(r"(\d+) of ([1-9]\d*)", level)
    if not found:
        raise ValueError(f'level {level!r} is not of the form "8 of 20"')
    return int(found[1]) / int(found[2])


def _cells(row: ContactRow, columns: Sequence[str]) -> list[tuple[str, str, np.ndarray] | None]:
    """The variant of each column, None where the row has none."""
    left = list(row.variants)
    cells: list[tuple[str, str, np.ndarray] | None] = []
    for column in columns:
        place = next((place for place, (level, _, _) in enumerate(left) if level == column), None)
        cells.append(None if place is None else left.pop(place))
    return cells


def _picture(pixels: np.ndarray) -> Image.Image:
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)
    assert fits, f"a picture is uint8 (H, W, 1 or 3), got {pixels.dtype}{pixels.shape}"
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _scaled(pixels: np.ndarray, longest: int) -> Image.Image:
    picture = _picture(pixels)
    grows = max(picture.size) <= longest
    method = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return picture.resize(shown_size(picture.size, longest), method)


def _img(pixels: np.ndarray, longest: int) -> Markup:
    """An <img> at most `longest` CSS pixels long that carries its own pixels, reduced to what a sharp screen shows."""
    picture = _picture(pixels)
    width, height = shown_size(picture.size, longest)
    kind = "PNG"
    if max(picture.size) > 2 * longest:
        picture, kind = _scaled(pixels, 2 * longest), "JPEG"
    data = base64.b64encode(_encoded(picture, kind)).decode()
    source = f"data:image/{kind.lower()};base64,{data}"
    return Markup('<img alt="" width="{}" height="{}" src="{}">').format(width, height, source)


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # brings a font that has more letters than Pillow's own

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` on one line, cut in the middle where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    too_many = bisect.bisect_right(range(1, len(text)), width, key=lambda most: font.getlength(shortened(text, most)))
    return shortened(text, max(1, too_many))
