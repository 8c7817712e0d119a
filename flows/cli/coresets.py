"""`latebloom coreset`: pick the examples that stand for a training set."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from latebloom.data.store import as_path
from latebloom.flows.cli.options import (
    BatchSize,
    ConfigFile,
    Device,
    Epochs,
    ImageSize,
    Json,
    Model,
    Out,
    Preset,
    Seed,
    Settings,
    Source,
    TrainLimit,
    option,
)
from latebloom.flows.cli.resolve import nested
from latebloom.flows.config.merge import merge
from latebloom.flows.run.environment import prepare_prefect
from latebloom.flows.run.resolve import named_preset, named_source

if TYPE_CHECKING:
    from latebloom.flows.stages.coreset import CoresetRunConfig

__all__ = ["add_coreset_command", "resolve_coreset"]

Method = Annotated[
    str | None, option("random, max_loss, el2n, k_center, herding, craig, dea, adacore, lcmat, ...", "--method", "-m")
]
Fraction = Annotated[float | None, option("Share of the images to pick, above 0 to 1", "--fraction", "-f")]
Checkpoint = Annotated[
    str | None, option("Weights of a classifier that a run wrote (.safetensors), of --model", "--checkpoint")
]
Seeds = Annotated[int | None, option("Classifiers that el2n and grand take the mean of", "--seeds")]
WithSynthetic = Annotated[
    bool, typer.Option("--with-synthetic", help="Pick from the usable synthetic images of the run folder too")
]


def add_coreset_command(app: typer.Typer) -> None:
    """Register `coreset`."""
    app.command("coreset")(_coreset)


def _coreset(
    source: Source = "",
    out: Out = None,
    preset: Preset = None,
    method: Method = None,
    fraction: Fraction = None,
    checkpoint: Checkpoint = None,
    with_synthetic: WithSynthetic = False,
    model: Model = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seeds: Seeds = None,
    image_size: ImageSize = None,
    train_limit: TrainLimit = None,
    seed: Seed = None,
    device: Device = None,
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Pick the images that stand for a training set, with weights: by a checkpoint, by a run's early classifier, or
    by a classifier that is trained for it (10 epochs unless --epochs says another number)."""
    given = {
        "data.source": source or None,
        "coreset.method": method,
        "coreset.fraction": fraction,
        "checkpoint": checkpoint,
        "with_synthetic": with_synthetic or None,
        "classifier.model": model,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "seeds": seeds,
        "data.image_size": image_size,
        "data.train_limit": train_limit,
        "seed": seed,
        "device": device,
    }
    resolved, folder = resolve_coreset(as_path(out) if out else None, nested(config, given, settings), preset)
    from latebloom.flows.run.progress import say
    from latebloom.flows.stages.coreset import check_coreset

    say(f"coreset: {resolved.coreset.method} of {resolved.data.source} in {folder}")
    check_coreset(resolved)  # the flow does too; here, before a server starts
    prepare_prefect()
    from latebloom.flows import pipeline

    told = pipeline.coreset(resolved, str(folder))
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        _print(told, folder)


def resolve_coreset(
    out: Path | None, settings: dict[str, Any], row: str | None = None
) -> "tuple[CoresetRunConfig, Path]":
    """The config of `latebloom coreset` and the folder it writes to.

    A source starts from its preset. Without one, the run folder says what the data are and its early classifiers look.

    Args:
        row: name of a preset of a row of the papers: its data, classifier, training but for the epochs, and how it
            picks. Of it, a run folder without a source takes the latter alone.
    """
    from latebloom.flows.config.compare import preset
    from latebloom.flows.run.folder import read_config
    from latebloom.flows.stages.coreset import CoresetRunConfig

    ten = {"train": {"epochs": 10}}
    if row is not None:
        in_run = out is not None and (out / "config.json").is_file() and not named_source(settings)
        settings = merge(_picking(row, in_run), settings)
    source = named_source(settings)
    if source is not None:
        known = {name: value for name, value in preset(source).items() if name in CoresetRunConfig.model_fields}
        base = merge(merge(known, ten), {"data": {"source": source}})
        path = Path(str(source))
        out = out or Path("runs") / (path.expanduser().resolve().stem if "/" in str(source) else path.stem)
    elif out is not None:
        before = read_config(out).model_dump(mode="json")
        taken = {name: before[name] for name in ("data", "perturb", "classifier", "train", "seed", "device")}
        base = merge(taken, {**ten, "run": str(out)})
        base["train"]["optimizer"] = "sgd"
    else:
        raise typer.BadParameter("name a data source, or the run folder of an earlier command with --out")
    return CoresetRunConfig(**merge(base, settings)), out


def _picking(row: str, in_run: bool) -> dict[str, Any]:
    """What a row of the papers says of picking a coreset."""
    from latebloom.train.config import CoresetMethod

    published = named_preset(row)
    strong = published.get("strong", {})
    selector = strong.get("selector")
    if selector not in get_args(CoresetMethod):
        raise typer.BadParameter(f"preset {row} picks no coreset; give --method and --fraction")
    taken = {"coreset": {**strong.get("coreset", {}), "method": selector}}
    if not in_run:
        taken |= {name: published[name] for name in ("data", "perturb", "classifier", "train") if name in published}
        taken["train"] = {name: value for name, value in taken.get("train", {}).items() if name != "epochs"}
    return taken


def _print(told: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    synthetic = bool(told["synthetic_images"])
    header = ["class", "images", "picked", "share, %", *(["of them synthetic"] if synthetic else []), "weight"]
    table = Table(title=f"{told['method']} of {told['origin']}", box=None, padding=(0, 1, 0, 0), title_justify="left")
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for row in told["classes"]:
        share = f"{100 * row['picked'] / row['images']:.1f}" if row["images"] else "–"
        of_them = [f"{row['picked_synthetic']:,}"] if synthetic else []
        cells = [f"{row['images']:,}", f"{row['picked']:,}", share, *of_them, f"{row['weight']:,.1f}"]
        table.add_row(row["class"], *cells)
    console = Console()
    console.print(table)
    seconds, ours, lot = told["seconds"], told["objective"], told["objective_by_lot"]
    lines = [
        f"{told['picked']:,} of {told['images']:,} images: selection {seconds['selection']:.2f} s, the look before it "
        f"{seconds['look']:.2f} s" + (f", training {seconds['training']:.1f} s" if seconds["training"] else ""),
        f"mean distance of a gradient to the nearest pick's {ours['coverage']:.4f}, by lot {lot['coverage']:.4f}; "
        f"error of the mean gradient {ours['gradient_error']:.4f}, by lot {lot['gradient_error']:.4f}",
    ]
    if synthetic:
        lines.append(
            f"{told['picked_synthetic'] / max(1, told['picked']):.0%} of the picks are synthetic, as are "
            f"{told['synthetic_images'] / told['images']:.0%} of the images"
        )
    for line in lines:
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    print(folder / told["file"])
