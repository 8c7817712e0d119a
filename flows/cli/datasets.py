"""`latebloom export`, `inspect`, `filter` and `fidelity`: what is done with a synthetic data set once it is made."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latebloom.data.store import as_path, json_text, write_bytes
from latebloom.flows.cli.options import Command
from latebloom.flows.cli.parse import nested
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.resolve import check_names, made

if TYPE_CHECKING:
    from latebloom.data.synthetic.card import Summary

__all__ = ["add_dataset_commands"]

_MOST_CLASSES = 40  # in a table on the terminal

Run = Annotated[str, typer.Argument(help="Run folder, path or URL")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output")]


def add_dataset_commands(app: typer.Typer) -> None:
    """Register `export`, `inspect`, `filter` and `fidelity`."""
    app.command("export", cls=Command)(_export)
    app.command("inspect", cls=Command)(_inspect)
    app.command("filter", cls=Command)(_filter)
    app.command("fidelity", cls=Command)(_fidelity)


def _export(
    source: Annotated[str, typer.Argument(help="Run folder, or a synthetic data set; path or URL", metavar="RUN")],
    destination: Annotated[
        str, typer.Argument(help="Folder to write, path or URL; must be new or empty", metavar="DEST")
    ],
    kind: Annotated[str, typer.Option("--format", help="imagefolder, webdataset or npz")] = "imagefolder",
    states: Annotated[str, typer.Option("--states", help="Images of these states, such as ok,near_reference")] = "ok",
    with_real: Annotated[
        bool, typer.Option("--with-real", help="The real training and test images too: a whole data set")
    ] = False,
    shard_images: Annotated[int, typer.Option("--shard-images", min=1, help="Most images a webdataset tar")] = 10_000,
    as_json: Json = False,
) -> None:
    """Write the synthetic data set for others to read, with a dataset card."""
    from latebloom.data.synthetic.export import EXPORT_FORMATS
    from latebloom.flows.stages.export import export_run

    if kind not in EXPORT_FORMATS:
        raise UsageError(f"--format is one of {', '.join(EXPORT_FORMATS)}, got {kind!r}")
    wanted = [state.strip() for state in states.split(",") if state.strip()]
    counts = export_run(source, destination, kind, wanted, with_real, shard_images)
    target = as_path(destination)
    print(json_text({"path": str(target), "images": counts}) if as_json else target)


def _inspect(
    source: Run,
    item: Annotated[
        str, typer.Argument(help="One image, to see all about it: its file name, or its item id", metavar="IMAGE")
    ] = "",
    by: Annotated[
        str, typer.Option("--sheet", help="Contact sheet by state, level or a score, such as label_probability")
    ] = "",
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="References on a contact sheet")] = 12,
    as_json: Json = False,
) -> None:
    """Show counts and scores of the synthetic data set, draw a contact sheet, or show all about one image."""
    from latebloom.data.synthetic.card import summarise
    from latebloom.flows.report.inspect import columns_of, details_of, sheet
    from latebloom.flows.stages.export import located

    if item and by:
        raise UsageError("give an image or --sheet, not both")
    run = as_path(source)
    folder, config = located(run)
    if not item and not by:
        manifest = folder.manifest()
        summary = summarise(columns_of(folder), manifest["class_names"])
        if as_json:
            print(json_text({"digest": manifest["digest"], **_summary_json(summary)}))
        else:
            _print_summary(summary)
        return
    if config is None:
        raise ValueError(f"{source} has no config.json, which says what the references are; give the run folder")
    from latebloom.flows.run.folder import RunFolder
    from latebloom.flows.stages.context import RunContext

    context = RunContext(RunFolder(run), config)
    if by:
        file = _write_png(run, f"sheet-{by}", sheet(folder, context.splits.train, by, rows, config.seed))
        print(json_text({"picture": str(file)}) if as_json else file)
        return
    details = details_of(context, item)
    file = _write_png(run, details.name, details.strip)
    if as_json:
        print(json_text({**details.sections, "picture": str(file)}))
    else:
        _print_details(details.sections)
        print(file)


def _filter(
    source: Run,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A threshold, such as quality.min_distance=2; repeatable"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Move the thresholds: restate every image by the scores it has, without generating."""
    changes = nested(None, {}, settings)
    if set(changes) != {"quality"} or not isinstance(changes["quality"], dict):
        raise UsageError("give thresholds to move, and nothing else, such as --set quality.min_distance=2")
    check_names(CompareConfig, changes)
    made(CompareConfig, changes)  # values out of their range
    from latebloom.flows.stages.filtering import move_thresholds

    moved = move_thresholds(as_path(source), changes["quality"])
    if as_json:
        print(json_text({"before": moved.before, "after": moved.after, "out_of_date": moved.out_of_date}))
        return
    from rich.console import Console

    from latebloom.flows.cli.tables import table

    states = [state for state in moved.before if moved.before[state] or moved.after[state]]
    rows = [(state, f"{moved.before[state]:,}", f"{moved.after[state]:,}") for state in states]
    console = Console()
    console.print(table("", ["state", "before", "after"], rows))
    if moved.out_of_date:
        console.print(
            f"trained on the images of before: {', '.join(moved.out_of_date)}; "
            f"`latebloom retrain --out {source}` trains them again",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _fidelity(
    source: Run,
    inception_weights: Annotated[
        str, typer.Option("--inception-weights", help="torch-fidelity's file, path or URL: FID and KID as published")
    ] = "",
    as_json: Json = False,
) -> None:
    """Score the synthetic images against the training images as sets: Frechet distance, KID, precision, recall."""
    from latebloom.flows.stages.fidelity import measure

    run = as_path(source)
    result = measure(run, as_path(inception_weights) if inception_weights else None)
    if as_json:
        print(json_text(result))
        return
    from rich.console import Console

    from latebloom.flows.cli.tables import table

    header = ("features", "of", "n", "Frechet", "KID x 1000", "precision", "recall")
    rows = []
    for row in result["rows"]:
        kid = "-" if row["kid"] is None else f"{1000 * row['kid']:.2f} ± {1000 * row['kid_std']:.2f}"
        scores = ["-" if row[name] is None else f"{row[name]:.3g}" for name in ("frechet", "precision", "recall")]
        rows.append([row["features"], row["images"], f"{row['n_synthetic']:,}", scores[0], kid, *scores[1:]])
    console = Console()
    console.print(table("Against the training images", header, rows))
    console.print("Rows of different n do not compare; read them against the references", style="dim")
    for row in result["rows"]:
        if row["note"]:
            console.print(f"! {row['features']}, {row['images']}: {row['note']}", markup=False, highlight=False)
    print(run / "synthetic-fidelity.json")


def _write_png(run: Path, name: str, picture: Any) -> Path:
    file = run / "inspect" / f"{name}.png"
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_bytes(file, buffer.getvalue())
    return file


# ------------------------------------------------------------------------------------------------- on the terminal


def _summary_json(summary: "Summary") -> dict[str, Any]:
    from latebloom.data.synthetic.card import QUANTILES

    scores = {
        name: {f"{share:.0%}": value for share, value in zip(QUANTILES, values, strict=True)}
        for name, values in summary.scores.items()
    }
    return {**vars(summary), "scores": scores}


def _print_summary(summary: "Summary") -> None:
    from rich.console import Console

    from latebloom.data.states import STATES
    from latebloom.data.synthetic.card import QUANTILES
    from latebloom.flows.cli.tables import table

    console, states = Console(), list(summary.states)
    console.print(
        table(
            f"{summary.images:,} images",
            ["state", "images", "share", "meaning"],
            [
                (state, f"{count:,}", f"{count / summary.images:.1%}", STATES[state].words if state in STATES else "")
                for state, count in summary.states.items()
            ],
        )
    )
    for what, counts in (("level", summary.levels), ("class", summary.classes)):
        shown = list(counts.items())[:_MOST_CLASSES]
        rows = [
            (name, f"{sum(own.values()):,}", *(f"{own.get(state, 0):,}" for state in states)) for name, own in shown
        ]
        console.print()
        console.print(table("", [what, "images", *states], rows))
        if len(counts) > len(shown):
            console.print(f"... and {len(counts) - len(shown):,} more; --json has all")
    console.print()
    quantiles = [f"{share:.0%}" for share in QUANTILES]
    rows = [(name, *(f"{value:.4g}" for value in values)) for name, values in summary.scores.items()]
    console.print(table("", ["score", *quantiles], rows))


def _print_details(sections: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for heading, section in sections.items():
        for place, (name, value) in enumerate(section.items()):
            table.add_row(heading if place == 0 else "", escape(name), escape(_said(value)))
    Console().print(table)


def _said(value: Any) -> str:
    if isinstance(value, dict) and "level" in value:  # a variant
        return f"{value['level']}, {value['state']}: {value['why']}"
    if isinstance(value, dict):  # a threshold
        if value["passes"] is None:
            return f"{value['score']} not measured"
        verdict = "passes" if value["passes"] else "does not pass"
        return f"{value['score']} {_said(value['value'])}, limit {_said(value['limit'])}: {verdict}"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
