"""What the Prefect UI shows of a run: markdown with the pictures inside. No Prefect in here."""

import base64
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from PIL import Image
from rich.filesize import decimal

from latebloom.data.store import is_remote, read_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import lineage
from latebloom.flows.report.charts import arm_charts
from latebloom.flows.report.inspect import sheet
from latebloom.flows.report.results import Report, in_percent, mean_and_std
from latebloom.flows.report.table import how_to_read, report_table
from latebloom.flows.run.environment import runs_root
from latebloom.flows.run.folder import Key, Record, RunFolder
from latebloom.flows.run.progress import duration
from latebloom.flows.run.records import GENERATE, EarlyFacts, PlanFacts, RetrainFacts, ScoutFacts, SelectFacts
from latebloom.flows.stages.loaders import images_of

__all__ = ["lineage_page", "picture", "report_page", "stage_page", "synthetic_page"]

# Of one picture. Prefect takes artifacts of any size (36 MB was), but its list of artifacts loads them all whole.
PICTURE_BYTES = 250_000
SHEET_ROWS = 8
COLUMNS = 6  # arm, optimizer, error, n, difference, interval; more do not fit, and the report has them
# The colours of the report's page in the light: a chart that stands alone has no page to take them from.
PALETTE = {
    "ink": "#1f2328", "muted": "#5d6670", "line": "#d8dde3",
    "c0": "#57606a", "c1": "#2563eb", "c2": "#c2620a", "c3": "#047857",
    "c4": "#c81e1e", "c5": "#7c3aed", "c6": "#0e7490", "c7": "#be185d",
}  # fmt: skip

Rows = list[tuple[str, str]]


def stage_page(run: RunFolder, key: Key[Any]) -> str:
    """What a finished stage made, where, and what it cost.

    Raises:
        ValueError: it is not done.
    """
    record = run.record(key)
    title, rows, further = _STAGES[key.facts](record.facts)
    if key.facts is RetrainFacts:
        title = f"Classifiers of {key.name.removeprefix('retrain-')}"
        further += f"\n\n{lineage_page(run)}"
    return _page(title, run, rows + _cost(record, record.digest), further)


def synthetic_page(run: RunFolder, config: CompareConfig) -> str:
    """The synthetic data set of a run: its counts and cost, and a contact sheet of references with their variants.

    Raises:
        ValueError: it is not finished.
    """
    folder = SyntheticFolder(run.path / "synthetic")
    manifest, record = folder.manifest(), run.record(GENERATE)
    images, about = manifest["rows"], manifest["about"]
    rows = [
        ("images", f"{images:,}"),
        ("states", ", ".join(f"{state} {count:,}" for state, count in manifest["states"].items() if count)),
        ("parts", f"{len(manifest['parts']):,}"),
        ("size", decimal(sum((folder.path / part["file"]).stat().st_size for part in manifest["parts"]))),
        ("generator", f"{about['generator']}, digest `{lineage.short(about['generator_digest'])}`"),
        ("licence of the generator", about["generator_licence"]),
        ("denoiser calls", f"{record.facts.denoiser_calls:,}"),
        ("speed", f"{images / max(record.seconds, 1e-3):,.2f} images/s"),
    ]
    further = "Next: `retrained/` and the report, or `latebloom inspect` for every score of an image."
    if images:
        seen = sheet(folder, images_of(config).train, "level", SHEET_ROWS, config.seed)
        further = f"{picture(seen, 'references, each beside its variants by level')}\n\n{further}"
    # The digest of the data set, which others name it by, not that of the stage.
    cost = _cost(record, manifest["digest"])
    return _page("Synthetic data set", run, [row for row in rows if row[1]] + cost, further)


def report_page(run: RunFolder) -> str:
    """The result of a run: error of each arm, the comparison plot, the sentences, and where the report is.

    Raises:
        OSError: there is no report yet.
    """
    report = Report.from_json(read_json(run.path / "report.json"))
    table = _table([row[:COLUMNS] for row in report_table(report)])
    blocks = [f"# {report.title}", f"Report: {_link(run.path / 'report.html')}", table]
    blocks.append(_cell(how_to_read(report)))
    for optimizer, compared, chart in arm_charts(report.arms):
        what = "difference to original" if compared else "test error"
        blocks.append(f"**{optimizer}**: {what} of each arm\n\n{_chart(chart, f'{what} with {optimizer}')}")
    blocks.append("\n".join(f"- {line}" for line in [*report.sentences, *report.warnings]))
    if (run.path / "contact_sheet.png").is_file():
        with Image.open(io.BytesIO((run.path / "contact_sheet.png").read_bytes())) as seen:
            blocks.append(f"## References and their variants\n\n{picture(seen, 'contact sheet')}")
    return "\n\n".join([*blocks, lineage_page(run)])


def lineage_page(run: RunFolder) -> str:
    """What came from what, as a diagram."""
    words = (
        "Classifiers: test error, or validation error where there is a validation split, mean ± standard deviation "
        "over seeds. Hexadecimal digits: the start of a digest."
    )
    return f"## Lineage\n\nRun folder: {_link(run.path)}\n\n```mermaid\n{lineage.diagram(run)}\n```\n\n{words}"


# ---------------------------------------------------------------------------------------------------- stages


def _early(facts: EarlyFacts) -> tuple[str, Rows, str]:
    if facts.given:
        return "Early classifiers", [("given", facts.given)], "None is trained. Next: the slow examples."
    epoch = facts.separating_epoch
    errors = [curve[epoch - 1] for curve in facts.errors]
    rows = [
        ("classifiers", f"{len(errors)}"),
        ("separating epoch", f"{epoch}, {'found by the knee rule' if facts.by_knee else 'as given'}"),
        ("training error there", f"{100 * np.mean(errors):.1f} %"),
    ]
    return "Early classifiers", rows, "Weights and outputs: `early/`. Next: the slow examples."


def _select(facts: SelectFacts) -> tuple[str, Rows, str]:
    rows = [("slow examples, by seed", ", ".join(f"{count:,}" for count in facts.slow))]
    if len(facts.slow) > 1 and facts.union:
        rows.append(("of one seed or another", f"{facts.union['cluster']:,}"))
    warnings = "".join(f"- {line}\n" for line in facts.warnings)
    return "Slow examples", rows, f"{warnings}\nIndices: `selection/`. Next: the plan, or `latebloom select`."


def _scout(facts: ScoutFacts) -> tuple[str, Rows, str]:
    errors = ", ".join(f"{error:.1%}" for error in facts.errors)
    rows = [("network", facts.model), ("epochs", f"{facts.epochs:,}"), ("training error, by seed", errors)]
    return "Scouts", rows, "They only select: weights and outputs are in `scout/`. Next: retraining."


def _plan(facts: PlanFacts) -> tuple[str, Rows, str]:
    cost = facts.forecast
    rows = [
        ("images to make", f"{cost.images:,}"),
        ("of each level", ", ".join(f"{count:,} at {level}" for level, count in cost.per_level.items())),
        ("denoiser calls", f"{cost.denoiser_calls:,}"),
        ("forecast", f"{duration(cost.seconds)} on this device, {decimal(cost.bytes)}"),
        ("generator", f"{facts.generator.name}, digest `{lineage.short(facts.generator.digest)}`"),
    ]
    return "Plan", rows, "A row per image: `plan.parquet`. Next: `synthetic/`."


def _retrain(facts: RetrainFacts) -> tuple[str, Rows, str]:
    # With a validation split the report alone says whose test error is shown.
    errors = facts.validation_errors or facts.errors
    rows = [
        (
            "validation error" if facts.validation_errors else "test error",
            f"{in_percent(*mean_and_std(errors))} %, n = {len(errors)} seeds",
        ),
        ("images added", f"{np.mean(facts.images_added):,.0f} (mean over seeds)"),
        ("steps", f"{np.mean(facts.steps):,.0f} (mean over seeds)"),
        ("training", f"{duration(facts.seconds)} a classifier"),
    ]
    return "Classifiers", rows, "Weights and logs: `retrained/`. Next: the report, which compares the arms."


_STAGES: dict[type, Callable[[Any], tuple[str, Rows, str]]] = {
    EarlyFacts: _early,
    SelectFacts: _select,
    ScoutFacts: _scout,
    PlanFacts: _plan,
    RetrainFacts: _retrain,
}


def _cost(record: Record[Any], digest: str) -> Rows:
    return [
        ("this time", "skipped: it was done before and nothing it depends on changed" if record.skipped else "made"),
        ("took", f"{duration(record.seconds)}{' when it was made' if record.skipped else ''}"),
        ("peak memory", f"{record.peak_memory_mb:,.0f} MB"),
        ("digest", f"`{digest}`"),
    ]


# -------------------------------------------------------------------------------------------------- markdown


def _page(title: str, run: RunFolder, rows: Rows, further: str) -> str:
    table = _table([["", ""], ["run folder", _link(run.path)], *map(list, rows)])
    return f"# {title}\n\n{table}\n\n{further.strip()}"


def _table(rows: list[list[str]]) -> str:
    """A markdown table of a row of headings and others."""
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def _cell(text: str) -> str:
    return re.sub(r"([|*])", r"\\\1", text)


def _link(path: Path) -> str:
    """A link to what lies below the root of run folders, where a browser can read that; else the path in words."""
    base, root = os.environ.get("LATEBLOOM_RUNS_URL", ""), runs_root()
    whole, root = (place if is_remote(place) else place.absolute() for place in (path, root))
    if base and is_remote(path) == is_remote(root) and whole.is_relative_to(root):
        return f"[{path}]({base.rstrip('/')}/{quote(whole.relative_to(root).as_posix())})"
    return f"`{path}`"


def picture(image: Image.Image, words: str) -> str:
    """Markdown that carries a picture in itself: PNG, or where that is too large JPEG, smaller until it fits."""
    content, kind = _encoded(image, "PNG"), "png"
    while len(content) > PICTURE_BYTES:
        content, kind = _encoded(image.convert("RGB"), "JPEG"), "jpeg"
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    return _inline(content, kind, words)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True)
    return buffer.getvalue()


def _chart(svg: Markup, words: str) -> str:
    """Markdown that carries a chart of the report, in the colours of its page."""
    alone = re.sub(r"var\(--(\w+)\)", lambda found: PALETTE[found[1]], svg)
    size = re.search(r'viewBox="0 0 (\S+) (\S+)"', alone)
    assert size, "a chart has a viewBox"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size[1]}" '
    style = f'height="{size[2]}" style="background: white; font-family: system-ui, sans-serif" '
    return _inline(alone.replace("<svg ", head + style, 1).encode(), "svg+xml", words)


def _inline(content: bytes, kind: str, words: str) -> str:
    return f"![{words}](data:image/{kind};base64,{base64.b64encode(content).decode()})"
