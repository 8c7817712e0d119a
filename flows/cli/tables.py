"""What the stage commands print when they are done."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report.results import Report, in_percent, mean_and_std
from latebloom.flows.report.validation import is_reported, validation_results
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import duration
from latebloom.flows.run.records import retrain_key

__all__ = ["print_errors", "print_forecast", "print_report", "print_whole", "table"]

_WORDS = ("", "arm", "class", "opt", "meaning", "of", "predicted", "status")  # columns of words, beside the first one


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines: numbers to the right, and no cell of theirs cut off."""
    made = Table(title=escape(title) or None, box=None, padding=(0, 1, 0, 0), title_justify="left")
    for place, name in enumerate(header):
        words = place == 0 or name in _WORDS
        made.add_column(escape(name), justify="left" if words else "right", no_wrap=name != "meaning")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def print_forecast(forecast: dict[str, Any]) -> None:
    """What a plan will make and take, by level and class."""
    rows = [
        ["level", level, f"{count:,}"]
        for level, count in sorted(forecast["per_level"].items(), key=lambda item: int(item[0].split()[0]))
    ]
    rows += [["class", name, f"{count:,}"] for name, count in forecast["per_class"].items()]
    rows.append(["in all", "", f"{forecast['images']:,}"])
    console = Console()
    console.print(table("Forecast", ["", "", "images"], rows))
    console.print(
        f"{forecast['denoiser_calls']:,} denoiser calls, about {duration(forecast['seconds'])} on this device and "
        f"{decimal(forecast['bytes'])}",
        highlight=False,
    )


def print_errors(run: RunFolder, config: CompareConfig) -> None:
    """The errors of the arms of a config, a line each: on test images where the report has them, and on validation."""
    names: list[tuple[str, str]] = [(arm, optimizer) for optimizer in config.optimizers for arm in config.arms]
    facts = {name: run.record(retrain_key(*name)).facts for name in names}
    validated = validation_results(facts, config.named)
    width = max(map(len, config.arms))
    for (arm, optimizer), fact in facts.items():
        errors = {"validation": fact.validation_errors, "test": fact.errors}
        if not is_reported((arm, optimizer), validated):
            del errors["test"]  # so that nothing can be chosen by it
        shown = [f"{in_percent(*mean_and_std(found))} % {what} error" for what, found in errors.items() if found]
        print(f"{arm:{width}}  {optimizer}  {', '.join(shown)}, n = {len(fact.errors)}")


def print_report(folder: Path, as_json: bool) -> None:
    """The report of a run folder as a table with its sentences, or as it is in report.json."""
    from latebloom.flows.report.table import how_to_read, report_table
    from latebloom.flows.report.validation import validation_table

    text = (folder / "report.json").read_text()
    if as_json:
        print(text, end="")
        return
    report = Report.from_json(json.loads(text))
    _, *rows = report_table(report)
    short = ("arm", "opt", "test err, %", "n", "diff, points", "95 %", "p adj", "added", "steps", "train s", "gen s")
    header = (*short, "gain %", "selected", "synth %", "strong", "select s")[: len(rows[0])]
    console = Console()
    print_whole(console, table(report.title, header, rows))
    if words := how_to_read(report):
        console.print(words, style="dim")
    if report.validation:
        _, *rows = validation_table(report)
        header = ("arm", "opt", "validation err, %", "test err, %", "epochs to original's", "s to it", "status")
        print_whole(console, table("Validation", header, rows))
    for line in _overlap(report) + report.sentences:
        console.print(f"- {line}", markup=False, highlight=False)
    for line in report.warnings:
        console.print(f"! {line}", markup=False, highlight=False)
    print(folder / "report.html")


def print_whole(console: Console, made: Table) -> None:
    """Never narrower than its words: a cell cut to "a…" says less than a line that wraps."""
    whole = console.measure(made, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(console.width, whole)).print(made)


def _overlap(report: Report) -> list[str]:
    lines = _overlap_of_seeds(report)
    if slow := report.selectors.get("slow"):
        pairs = [
            f"{slow['methods'][i]} and {slow['methods'][j]} {slow['jaccard'][i][j]:.2f}"
            for i, j in itertools.combinations(range(len(slow["methods"])), 2)
        ]
        lines.append(f"Methods of slow examples overlap by (Jaccard, mean over seeds): {', '.join(pairs)}.")
    return lines


def _overlap_of_seeds(report: Report) -> list[str]:
    if report.jaccard is None:
        return []
    return [
        f"Two seeds' slow sets overlap by {report.jaccard:.2f} (Jaccard, mean over pairs); random sets would by "
        f"{report.jaccard_chance:.2f}."
    ]
