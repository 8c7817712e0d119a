"""`latebloom ...`: the flows from a terminal. Heavy packages are imported when a command runs, not for `--help`."""

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latebloom.data.store import as_path
from latebloom.flows.cli.coresets import add_coreset_command
from latebloom.flows.cli.datasets import add_dataset_commands
from latebloom.flows.cli.options import (
    Arms,
    BatchSize,
    ConfigFile,
    Coreset,
    Device,
    Epochs,
    Generator,
    ImageSize,
    Json,
    K,
    Kind,
    Levels,
    MakeBatch,
    MaxSeconds,
    Model,
    Optimizer,
    Optimizers,
    Out,
    Policy,
    Preset,
    Processes,
    Prompt,
    Sampling,
    Seed,
    Seeds,
    Separating,
    Settings,
    Source,
    Strong,
    StrongFraction,
    TestLimit,
    TrainLimit,
    Until,
    Workers,
    WorkSize,
    option,
)
from latebloom.flows.cli.resolve import names, nested, numbers
from latebloom.flows.cli.serving import add_serving_commands
from latebloom.flows.run.environment import RUN_ENVIRONMENT, prepare_prefect
from latebloom.flows.run.errors import one_line
from latebloom.flows.run.interruption import Interruption
from latebloom.flows.run.resolve import resolve

if TYPE_CHECKING:
    from latebloom.flows.config.compare import CompareConfig, RunConfig
    from latebloom.flows.run.budget import Budget

__all__ = ["app", "main"]

app = typer.Typer(
    name="latebloom",
    help="Find the training images a classifier learns slowly, make faithful variants of just those with a diffusion "
    "model, retrain, and see whether it paid. An interrupted command goes on where it stopped when it is run again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

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
        preset: Preset = None,
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
        strong: Strong = None,
        strong_fraction: StrongFraction = None,
        coreset: Coreset = None,
        policy: Policy = None,
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
        max_seconds: MaxSeconds = 0,
        until: Until = "",
        config: ConfigFile = None,
        settings: Settings = None,
        as_json: Json = False,
    ) -> None:
        from latebloom.flows.run.budget import Budget

        more = [Budget(max_seconds=max_seconds, until=until)] if stage == "generate" else []
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
            "strong.selector": strong,
            "strong.coreset.fraction": strong_fraction,
            "strong.file": coreset,
            "strong.policy.policy": policy,
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
        resolved, folder = resolve(
            as_path(out) if out else None, nested(config, given, settings), stage, sampling, preset
        )
        _run_flow(stage, resolved, folder, as_json, *more)

    if stage != "generate":
        _leave_out(command, "max_seconds", "until")
    app.command(stage, help=words)(command)


def _leave_out(command: Callable[..., None], *names: str) -> None:
    """Hide arguments, which then keep their defaults, from Typer."""
    signature = inspect.signature(command)
    kept = [argument for name, argument in signature.parameters.items() if name not in names]
    vars(command)["__signature__"] = signature.replace(parameters=kept)


for _stage, _words in _STAGES.items():
    _add_stage(_stage, _words)
add_coreset_command(app)
add_dataset_commands(app)
add_serving_commands(app)


@app.command("presets")
def presets() -> None:
    """List the settings of the papers' rows that --preset takes."""
    from latebloom.flows.config.presets import PRESETS

    width = max(map(len, PRESETS))
    for name, one in PRESETS.items():
        print(f"{name:{width}}  {one.about}")


@app.command("demo")
def demo(
    out: Out = None,
    seeds: Annotated[int, typer.Option(help="Classifiers an arm")] = 10,
    workers: Annotated[int, typer.Option(help="Processes that train classifiers side by side")] = 2,
    as_json: Json = False,
) -> None:
    """Compare seven arms on scikit-learn's digits with SGD and SAM: real images, nothing to download."""
    from latebloom.flows.config.compare import CompareConfig, demo_config

    config = CompareConfig(**{**dict(demo_config()), "seeds": seeds, "workers": workers})
    _run_flow("compare", config, as_path(out) if out else Path("runs") / "demo", as_json)


@app.command("fit-generator")
def fit_generator(
    source: Source,
    out: Annotated[str, typer.Argument(help="Folder to write the generator to; must be new or empty")],
    steps: Annotated[int | None, option("Optimizer steps", "--steps")] = None,
    channels: Annotated[str | None, option("Channels of each UNet level, such as 32,64,64", "--channels")] = None,
    size: Annotated[int | None, option("Side in pixels that the model works at", "--size")] = None,
    split: Annotated[str | None, option("generator (kept apart, digits only) or train", "--split")] = None,
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
    from latebloom.flows.stages.fit_generator import FitGeneratorConfig, check_fit

    resolved = FitGeneratorConfig(
        **{"split": "generator" if source == "digits" else "train"} | nested(config, given, settings)
    )
    check_fit(resolved, as_path(out))  # the flow does too; here, before a server starts
    prepare_prefect()
    from latebloom.flows.pipeline import fit_generator as flow

    print(flow(resolved, out))


def _run_flow(kind: str, config: "CompareConfig | RunConfig", folder: Path, as_json: bool, *more: "Budget") -> None:
    """Run a flow and print what came out.

    Args:
        more: what this flow takes beside its config and its run folder.
    """
    from latebloom.flows.cli.tables import print_errors, print_forecast, print_report
    from latebloom.flows.config.compare import CompareConfig, one_setting
    from latebloom.flows.run.folder import RunFolder
    from latebloom.flows.run.progress import say
    from latebloom.flows.stages.checks import check_folder, check_inputs

    say(f"{kind}: {config.data.source} in {folder}")
    # The flow checks them too. Here it takes a second, and no server has to start before a typing error is named.
    comparison = config if isinstance(config, CompareConfig) else one_setting(config)
    check_inputs(comparison, kind)
    check_folder(comparison, str(folder), kind)
    if not _joined(comparison, kind):
        from latebloom.flows.stages.training import follow

        follow(RunFolder(folder), comparison)
        return
    prepare_prefect()
    from latebloom.flows import pipeline

    flow = pipeline.augment_and_retrain if kind == "run" else getattr(pipeline, kind)
    result = flow(config, str(folder), *more)
    if kind in ("run", "compare", "report"):
        print_report(folder, as_json)
    elif as_json:
        print(json.dumps({"result": result, "stages": RunFolder(folder).records()}, indent=2))
    else:
        if kind == "plan":
            print_forecast(RunFolder(folder).record("plan")["facts"]["forecast"])
        if kind == "retrain":
            print_errors(RunFolder(folder), comparison)
        print(result)


def _joined(config: "CompareConfig", kind: str) -> bool:
    """Join the processes that train together, where there are several; whether this one leads.

    Raises:
        ValueError: a command or setting that is not for several processes.
    """
    from latebloom.flows.run.processes import leads, team_size

    if team_size() == 1:
        return True
    if kind != "retrain":
        raise ValueError(f"only `latebloom retrain` trains in several processes; start `latebloom {kind}` alone")
    if config.workers > 1 or "adahessian" in config.optimizers:
        raise ValueError("several processes train one arm after the other: give --workers 1, and no adahessian")
    from latebloom.train.loop.team import join

    join()
    return leads()


def main() -> None:
    """Run the command.

    Exit code 0; 1 for what the person can mend, said in one line; 2 for wrong usage; 3 for a synthetic data set of
    which some images could not be made, or not in the time; 130 for Ctrl-C, 143 for SIGTERM.
    """
    for name in ("OMP_WAIT_POLICY", "PYTHONSAFEPATH"):  # before torch is imported, and before a process is started
        os.environ.setdefault(name, RUN_ENVIRONMENT[name])
    with Interruption():
        _run_app()


def _run_app() -> None:
    from latebloom.flows.run.errors import UsageError
    from latebloom.flows.run.folder import Partial

    try:
        app(standalone_mode=True)
    except Partial as partial:
        print(f"partial: {' '.join(str(partial).split())}", file=sys.stderr)
        print(f"make the rest: {shlex.join(['latebloom', *sys.argv[1:]])}", file=sys.stderr)
        sys.exit(3)
    except UsageError as error:
        _fail(str(error), code=2)
    except (ValueError, FloatingPointError, MemoryError, OSError) as error:
        _fail(one_line(error))


def _fail(message: str, code: int = 1) -> None:
    from latebloom.flows.run.processes import leads

    if leads():  # the others of its team meet the same
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
