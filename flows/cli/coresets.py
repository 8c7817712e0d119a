"""`latebloom coreset`: select the examples that stand for a training set."""

from pathlib import Path
from typing import Any

import typer

from latebloom.data.store import as_path, json_text, read_json
from latebloom.flows.cli.options import CONFIG, JSON, OUT, PRESET, SET, Command, Options, command_line, source
from latebloom.flows.cli.parse import nested
from latebloom.flows.config.settings import OF_CORESET
from latebloom.flows.config.tools import CoresetRunConfig
from latebloom.flows.run.environment import prepare_prefect
from latebloom.flows.run.progress import say
from latebloom.flows.run.receipt import Receipt
from latebloom.flows.run.resolve import resolve_coreset
from latebloom.train.models.names import check_name

__all__ = ["add_coreset_command"]

_OPTIONS = Options(CoresetRunConfig, OF_CORESET)


def add_coreset_command(app: typer.Typer) -> None:
    """Register `coreset`."""
    app.command("coreset", cls=Command)(_coreset)


@command_line([source(CoresetRunConfig), OUT, *_OPTIONS.parameters, PRESET, CONFIG, SET, JSON])
def _coreset(**given: Any) -> None:
    """Select the images that stand for a training set, with weights: by a checkpoint, by a run's early classifier, or
    by a classifier that is trained for it."""
    settings = nested(given["config"], {"data.source": given["source"], **_OPTIONS.given(given)}, given["set"])
    config, folder = resolve_coreset(as_path(given["out"]) if given["out"] else None, settings, given["preset"])
    method = config.coreset.method
    say(f"coreset: {method} of {config.data.source} in {folder}")
    check_name(config.classifier.model)
    receipt, kind = Receipt(folder, config), f"coreset-{method}"
    about = folder / f"coreset-{method}.json"
    if about.is_file() and receipt.holds(kind):
        say(f"coreset: {method} was selected before, and no file has changed since")
        found = read_json(about)
    else:
        found = _selected(config, folder)
        receipt.write([kind])
    if given["json"]:
        print(json_text(found))
    else:
        _print(found, folder)


def _selected(config: CoresetRunConfig, folder: Path) -> dict[str, Any]:
    from latebloom.flows.stages.coreset import check_coreset  # imports torch
    from latebloom.flows.stages.run_source import check_source

    check_coreset(config)  # the flow does too; here, before a server starts
    check_source(folder, config.as_run)
    prepare_prefect()
    from latebloom.flows import pipeline

    return pipeline.coreset(config, str(folder))


def _print(found: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from latebloom.flows.cli.tables import table

    synthetic = bool(found["synthetic_images"])
    header = ["class", "images", "selected", "share, %", *(["of them synthetic"] if synthetic else []), "weight"]
    rows = []
    for row in found["classes"]:
        share = f"{100 * row['selected'] / row['images']:.1f}" if row["images"] else "–"
        of_them = [f"{row['selected_synthetic']:,}"] if synthetic else []
        rows.append(
            [row["name"], f"{row['images']:,}", f"{row['selected']:,}", share, *of_them, f"{row['weight']:,.1f}"]
        )
    console = Console()
    console.print(table(f"{found['method']} of {found['origin']}", header, rows))
    seconds, ours, random = found["seconds"], found["objective"], found["objective_random"]
    training = f", training {seconds['training']:.1f} s" if seconds["training"] else ""
    lines = [
        f"{found['selected']:,} of {found['images']:,} images: selection {seconds['selection']:.2f} s, forward pass "
        f"before it {seconds['forward_pass']:.2f} s{training}",
        f"mean distance of a gradient to that of the nearest selected image {ours['coverage']:.4f}, at random "
        f"{random['coverage']:.4f}; error of the mean gradient {ours['gradient_error']:.4f}, at random "
        f"{random['gradient_error']:.4f}",
    ]
    if synthetic:
        lines.append(
            f"{found['selected_synthetic'] / max(1, found['selected']):.0%} of the selected images are synthetic, "
            f"as are {found['synthetic_images'] / found['images']:.0%} of all"
        )
    for line in lines:
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    print(folder / found["file"])
