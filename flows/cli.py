"""`slowlane ...`: the flows from a terminal. Heavy packages are imported when a command runs, not for `--help`."""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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


Out = Annotated[Path | None, _option("Run folder [runs/SOURCE]", "--out", "-o")]
Json = Annotated[bool, _option("Print the result as JSON on standard output", "--json")]
ConfigFile = Annotated[Path | None, _option("Settings from a .toml or .json file", "--config", "-c")]
Settings = Annotated[
    list[str] | None,
    _option("Any setting as KEY=VALUE, such as train.lr=0.05 or plan.levels=[40,50]; repeatable", "--set", "-s"),
]
Generator = Annotated[str | None, _option("A shipped generator or the path of a diffusers folder", "--generator", "-g")]
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


def _settings(file: Path | None, given: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Nested settings: a file's, over them the options that were given, over them the `--set` ones."""
    settings = _read_settings(file) if file else {}
    for key, value in given.items():
        if value is not None:
            _put(settings, key, value)
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--set takes KEY=VALUE, got {assignment!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        _put(settings, key, value)
    return settings


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"there is no config file at {file}")
    if file.suffix not in (".toml", ".json"):
        raise ValueError(f"{file} is neither .toml nor .json")
    try:
        settings = tomllib.loads(file.read_text()) if file.suffix == ".toml" else json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}, expected settings by name")
    return settings


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise ValueError(f"{key} is no setting: {name} has no settings of its own")
    settings[last] = value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None) -> list[int] | None:
    names = _names(text)
    try:
        return None if names is None else [int(name) for name in names]
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers with commas between, got {text!r}") from None


def _resolve(out: Path | None, settings: dict[str, Any], kind: str) -> tuple[Any, Path]:
    """The config of a command and its run folder.

    A source starts from its preset. Without one, the run folder says what was asked before.
    """
    from flows.config import CompareConfig, RunConfig, one_setting, preset, read_config, setting_of

    many = sorted({"arms", "optimizers", "seeds", "workers"} & set(settings))
    if kind == "run" and many:
        raise typer.BadParameter(f"run is one setting and one seed; {', '.join(many)} can be given to compare")
    compares = kind == "compare" or many not in ([], ["workers"])
    data = settings.get("data")
    source = data.get("source") if isinstance(data, dict) else data
    if source is not None:
        base = _merge(preset(source), {"data": {"source": source}})
        path = Path(str(source))
        folder = out or Path("runs") / (path.expanduser().resolve().stem if "/" in str(source) else path.stem)
    elif out is not None:
        folder, before = out, read_config(out)
        setting = None if compares else setting_of(before)
        if kind == "run" and setting is None:
            raise ValueError(f"{out} holds a comparison; go on with `slowlane compare --out {out}`")
        compares = setting is None
        base = (before if setting is None else setting).model_dump(mode="json")
        base |= {} if kind == "run" else {"workers": before.workers}
    else:
        raise typer.BadParameter("name a data source, or the run folder of an earlier command with --out")
    merged = _merge(base, settings)
    if kind == "run":
        return RunConfig(**merged), folder
    if compares:
        return CompareConfig(**merged), folder
    workers = merged.pop("workers", 1)
    return CompareConfig(**{**dict(one_setting(RunConfig(**merged))), "workers": workers}), folder


_STAGES = {
    "run": "Augment the slow-learnable images, retrain, and report beside the original: one setting, one seed.",
    "compare": "Compare arms over optimizers and seeds, and report.",
    "select": "Train the early classifiers and choose the slow-learnable images.",
    "plan": "Say what would be generated and what it would cost; generate nothing.",
    "generate": "Make the synthetic data set.",
    "retrain": "Retrain the classifiers on the synthetic data set of a run folder.",
    "report": "Write report.json and report.html of a run folder whose classifiers are trained.",
}


def _add_stage(kind: str, words: str) -> None:
    """All stage commands take the same settings, so that one can go on where another stopped."""

    def command(
        source: Source = "",
        out: Out = None,
        generator: Generator = None,
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
            "plan.k": k,
            "plan.levels": _numbers(levels),
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
            "arms": _names(arms),
            "optimizers": _names(optimizers),
            "seeds": seeds,
            "workers": workers,
        }
        resolved, folder = _resolve(out and out.expanduser(), _settings(config, given, settings), kind)
        _run_flow(kind, resolved, folder, as_json)

    app.command(kind, help=words)(command)


for _kind, _words in _STAGES.items():
    _add_stage(_kind, _words)


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
    _run_flow("compare", config, out.expanduser() if out else Path("runs") / "demo", as_json)


@app.command("fit-generator")
def fit_generator(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder to write the generator to; must be new or empty")],
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
        "generator.channels": _numbers(channels),
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
        **{"split": "generator" if source == "digits" else "train"} | _settings(config, given, settings)
    )
    check_fit(resolved, out.expanduser())  # the flow does too; here, before a server starts
    _prepare_prefect()
    from flows.pipeline import fit_generator as flow

    print(flow(resolved, str(out)))


def _prepare_prefect() -> None:
    """Settings that suit a terminal, where the person has not set them: our own lines instead of Prefect's."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
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
    check_inputs(comparison)
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
    from rich.table import Table

    table = Table("", "", "images", title="Forecast", box=None, title_justify="left")
    for level, count in sorted(forecast["per_level"].items(), key=lambda item: int(item[0].split()[0])):
        table.add_row("level", level, f"{count:,}")
    for name, count in forecast["per_class"].items():
        table.add_row("class", name, f"{count:,}")
    table.add_row("in all", "", f"{forecast['images']:,}")
    Console().print(table)


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

    Exit code 0; 1 for what the person can mend, said in one line; 2 for wrong usage; 130 for Ctrl-C.
    """
    # Before torch is imported: on busy cores, threads that spin while they wait cost small networks a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import pydantic

    try:
        app(standalone_mode=True)
    except pydantic.ValidationError as error:
        _fail("; ".join(_one_error(e) for e in error.errors()))
    except (ValueError, FloatingPointError, OSError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer makes this of Ctrl-C
            raise
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


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
