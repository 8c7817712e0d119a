"""`slowlane ...`: the flows from a terminal. Heavy packages are imported when a command runs, not for `--help`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.store import as_path
from flows.dataset_commands import add_dataset_commands
from flows.interruption import Interruption
from flows.settings import names, nested, numbers, resolve

if TYPE_CHECKING:
    from flows.config import CompareConfig, RunConfig

__all__ = ["app", "main"]

app = typer.Typer(
    name="slowlane",
    help="Find the training images a classifier learns slowly, make faithful variants of just those with a diffusion "
    "model, retrain, and see whether it paid. An interrupted command goes on where it stopped when it is run again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Source = Annotated[
    str,
    typer.Argument(
        help="digits, cifar10, cifar100, flowers102, fgvc-aircraft, or a path: an image folder (train/CLASS/*, "
        "test/CLASS/*), a MedMNIST-style .npz, a folder of Hugging Face parquet. Left out: that of the run folder",
        show_default=False,
    ),
]


def _option(words: str, *names: str) -> Any:
    return typer.Option(*names, help=words, show_default=False)


Out = Annotated[str | None, _option("Run folder, path or URL [runs/SOURCE]", "--out", "-o")]
Json = Annotated[bool, _option("Print the result as JSON on standard output", "--json")]
ConfigFile = Annotated[str | None, _option("Settings from a .toml or .json file", "--config", "-c")]
Settings = Annotated[
    list[str] | None,
    _option("Any setting as KEY=VALUE, such as train.lr=0.05 or plan.levels=[40,50]; repeatable", "--set", "-s"),
]
Generator = Annotated[
    str | None, _option("A shipped generator, the path of a diffusers folder, or a hub id", "--generator", "-g")
]
Kind = Annotated[str | None, _option("auto, pixel, latent, pipeline or diffusemix", "--kind")]
Sampling = Annotated[
    str | None,
    _option(
        "paper (100 ancestral steps, guidance 3), balanced (25 of DPM-Solver++) or fast (8, for LCM and Turbo models)",
        "--sampling",
    ),
]
Prompt = Annotated[
    list[str] | None, _option('Prompt with {name} for the class, such as "a photo of a {name}"; repeatable', "--prompt")
]
WorkSize = Annotated[int | None, _option("Shorter side in pixels that the generator sees", "--work-size")]
MakeBatch = Annotated[int | None, _option("Images denoised together, at most", "--generate-batch-size")]
Processes = Annotated[int | None, _option("Processes that generate; 0: one a GPU", "--processes")]
K = Annotated[int | None, _option("Images per slow example, the real one counted", "--k")]
Levels = Annotated[str | None, _option("k - 1 levels in steps of the grid, such as 40,50,70,80", "--levels")]
Epochs = Annotated[int | None, _option("Epochs of training", "--epochs")]
BatchSize = Annotated[int | None, _option("Images a training step", "--batch-size")]
Model = Annotated[str | None, _option("small-cnn, preact-resnet18 or torchvision:NAME", "--model")]
Optimizer = Annotated[str | None, _option("sgd or sam", "--optimizer")]
ImageSize = Annotated[int | None, _option("Resize the shorter side and cut square, in pixels", "--image-size")]
TrainLimit = Annotated[int | None, _option("Use a stratified draw of so many training images", "--train-limit")]
TestLimit = Annotated[int | None, _option("Use a stratified draw of so many test images", "--test-limit")]
Separating = Annotated[
    int | None, _option("Epoch of early training to judge by; 0 finds the knee", "--separating-epoch")
]
Seed = Annotated[int | None, _option("Root of every random stream", "--seed")]
Device = Annotated[str | None, _option("auto, cpu or cuda", "--device")]
Arms = Annotated[str | None, _option("Arms to compare, such as original,upsample-2,random-5,ours-5", "--arms")]
Optimizers = Annotated[str | None, _option("sgd,sam or one of them", "--optimizers")]
Seeds = Annotated[int | None, _option("Classifiers an arm", "--seeds")]
Workers = Annotated[int | None, _option("Processes that train classifiers side by side", "--workers")]


_STAGES = {
    "run": "Augment the slow-learnable images, retrain, and report beside the original: one setting, one seed.",
    "compare": "Compare arms over optimizers and seeds, and report.",
    "select": "Train the early classifiers and choose the slow-learnable images.",
    "plan": "Say what would be generated and what it would cost; generate nothing.",
    "generate": "Make the synthetic data set.",
    "retrain": "Retrain the classifiers on the synthetic data set of a run folder.",
    "report": "Write report.json and report.html of a run folder whose classifiers are trained.",
}


def _add_stage(stage: str, words: str) -> None:
    """All stage commands take the same settings, so that one can go on where another stopped."""

    def command(
        source: Source = "",
        out: Out = None,
        generator: Generator = None,
        kind: Kind = None,
        sampling: Sampling = None,
        prompt: Prompt = None,
        work_size: WorkSize = None,
        generate_batch_size: MakeBatch = None,
        processes: Processes = None,
        k: K = None,
        levels: Levels = None,
        model: Model = None,
        epochs: Epochs = None,
        batch_size: BatchSize = None,
        optimizer: Optimizer = None,
        separating_epoch: Separating = None,
        image_size: ImageSize = None,
        train_limit: TrainLimit = None,
        test_limit: TestLimit = None,
        seed: Seed = None,
        device: Device = None,
        arms: Arms = None,
        optimizers: Optimizers = None,
        seeds: Seeds = None,
        workers: Workers = None,
        config: ConfigFile = None,
        settings: Settings = None,
        as_json: Json = False,
    ) -> None:
        given = {
            "data.source": source or None,
            "generate.generator": generator,
            "generate.kind": kind,
            "generate.batch_size": generate_batch_size,
            "generate.processes": processes,
            "prompts.templates": prompt or None,
            "sizes.work_size": work_size,
            "plan.k": k,
            "plan.levels": numbers(levels),
            "classifier.model": model,
            "train.epochs": epochs,
            "train.batch_size": batch_size,
            "train.optimizer": optimizer,
            "slow.separating_epoch": separating_epoch,
            "data.image_size": image_size,
            "data.train_limit": train_limit,
            "data.test_limit": test_limit,
            "seed": seed,
            "device": device,
            "arms": names(arms),
            "optimizers": names(optimizers),
            "seeds": seeds,
            "workers": workers,
        }
        resolved, folder = resolve(as_path(out) if out else None, nested(config, given, settings), stage, sampling)
        _run_flow(stage, resolved, folder, as_json)

    app.command(stage, help=words)(command)


for _stage, _words in _STAGES.items():
    _add_stage(_stage, _words)
add_dataset_commands(app)


@app.command("demo")
def demo(
    out: Out = None,
    seeds: Annotated[int, typer.Option(help="Classifiers an arm")] = 10,
    workers: Annotated[int, typer.Option(help="Processes that train classifiers side by side")] = 2,
    as_json: Json = False,
) -> None:
    """Compare seven arms on scikit-learn's digits with SGD and SAM: real images, nothing to download."""
    from flows.config import CompareConfig, demo_config

    config = CompareConfig(**{**dict(demo_config()), "seeds": seeds, "workers": workers})
    _run_flow("compare", config, as_path(out) if out else Path("runs") / "demo", as_json)


@app.command("fit-generator")
def fit_generator(
    source: Source,
    out: Annotated[str, typer.Argument(help="Folder to write the generator to; must be new or empty")],
    steps: Annotated[int | None, _option("Optimizer steps", "--steps")] = None,
    channels: Annotated[str | None, _option("Channels of each UNet level, such as 32,64,64", "--channels")] = None,
    size: Annotated[int | None, _option("Side in pixels that the model works at", "--size")] = None,
    split: Annotated[str | None, _option("generator (kept apart, digits only) or train", "--split")] = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    train_limit: TrainLimit = None,
    seed: Seed = None,
    device: Device = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Train a small class-conditional pixel generator (UNet2DModel) on a data set."""
    given = {
        "generator.steps": steps,
        "generator.channels": numbers(channels),
        "generator.size": size,
        "generator.batch_size": batch_size,
        "data.source": source,
        "data.image_size": image_size,
        "data.train_limit": train_limit,
        "split": split,
        "seed": seed,
        "device": device,
    }
    from flows.generator import FitGeneratorConfig, check_fit

    resolved = FitGeneratorConfig(
        **{"split": "generator" if source == "digits" else "train"} | nested(config, given, settings)
    )
    check_fit(resolved, as_path(out))  # the flow does too; here, before a server starts
    _prepare_prefect()
    from flows.pipeline import fit_generator as flow

    print(flow(resolved, out))


def _prepare_prefect() -> None:
    """Settings that suit a terminal, where the person has not set them: our own lines instead of Prefect's."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if "PREFECT_API_URL" not in os.environ:
        # The log of a server that ends with the command is for nobody, and what cannot be sent to it is complained of.
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    # Without PREFECT_API_URL a server starts with the flow; on a busy machine that takes longer than its default.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def _run_flow(kind: str, config: "CompareConfig | RunConfig", folder: Path, as_json: bool) -> None:
    from flows.config import CompareConfig, one_setting
    from flows.progress import say
    from flows.run import RunFolder
    from flows.stages import check_folder, check_inputs

    say(f"{kind}: {config.data.source} in {folder}")
    # The flow checks them too. Here it takes a second, and no server has to start before a typing error is named.
    comparison = config if isinstance(config, CompareConfig) else one_setting(config)
    check_inputs(comparison, kind)
    check_folder(comparison, str(folder), kind)
    _prepare_prefect()
    from flows import pipeline

    flow = pipeline.augment_and_retrain if kind == "run" else getattr(pipeline, kind)
    result = flow(config, str(folder))
    if kind in ("run", "compare", "report"):
        _print_report(folder, as_json)
    elif as_json:
        print(json.dumps({"result": result, "stages": RunFolder(folder).records()}, indent=2))
    else:
        if kind == "plan":
            _print_forecast(RunFolder(folder).record("plan")["facts"]["forecast"])
        print(result)


def _print_forecast(forecast: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from flows.progress import duration

    table = Table("", "", "images", title="Forecast", box=None, title_justify="left")
    for level, count in sorted(forecast["per_level"].items(), key=lambda item: int(item[0].split()[0])):
        table.add_row("level", level, f"{count:,}")
    for name, count in forecast["per_class"].items():
        table.add_row("class", name, f"{count:,}")
    table.add_row("in all", "", f"{forecast['images']:,}")
    console = Console()
    console.print(table)
    console.print(
        f"{forecast['denoiser_calls']:,} denoiser calls, about {duration(forecast['seconds'])} on this device and "
        f"{decimal(forecast['bytes'])}",
        highlight=False,
    )


def _print_report(folder: Path, as_json: bool) -> None:
    from flows.report import report_table

    text = (folder / "report.json").read_text()
    if as_json:
        print(text, end="")
        return
    from rich.console import Console
    from rich.table import Table

    from flows.results import Report

    report = Report.from_json(json.loads(text))
    _, *rows = report_table(report)
    header = ("arm", "opt", "test err, %", "n", "diff, points", "added", "steps", "train s", "gen s")
    table = Table(title=report.title, box=None, padding=(0, 1, 0, 0), title_justify="left")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print("diff: mean over seeds to original, ± its standard error; * beyond two of them", style="dim")
    for line in _overlap(report) + report.sentences:
        console.print(f"- {line}", markup=False, highlight=False)
    for line in report.warnings:
        console.print(f"! {line}", markup=False, highlight=False)
    print(folder / "report.html")


def _overlap(report: Any) -> list[str]:
    if report.jaccard is None:
        return []
    return [
        f"Two seeds' slow sets overlap by {report.jaccard:.2f} (Jaccard, mean over pairs); sets drawn by lot would by "
        f"{report.jaccard_chance:.2f}."
    ]


def main() -> None:
    """Run the command.

    Exit code 0; 1 for what the person can mend, said in one line; 2 for wrong usage; 3 for a synthetic data set that is
    made but for some images; 130 for Ctrl-C, 143 for SIGTERM.
    """
    # Before torch is imported: on busy cores, threads that spin while they wait cost small networks a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with Interruption():
        _run_app()


def _run_app() -> None:
    import pydantic

    from flows.run import Partial

    try:
        app(standalone_mode=True)
    except Partial as partial:
        print(f"partial: {' '.join(str(partial).split())}", file=sys.stderr)
        print(f"make the rest: {shlex.join(['slowlane', *sys.argv[1:]])}", file=sys.stderr)
        sys.exit(3)
    except pydantic.ValidationError as error:
        _fail("; ".join(_one_error(e) for e in error.errors()))
    except (ValueError, FloatingPointError, MemoryError, OSError) as error:
        _fail(str(error))


def _one_error(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "there is no such setting"
    given = "" if error["type"] in ("value_error", "extra_forbidden") else f", got {error['input']!r}"
    return f"{place}: {message}{given}" if place else f"{message}{given}"


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
