"""`latebloom ...`: the flows from a terminal. Heavy packages are imported when a command runs, not for `--help`."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

import latebloom
from latebloom.data.store import as_path, json_text
from latebloom.flows.cli.checking import add_check_command
from latebloom.flows.cli.coresets import add_coreset_command
from latebloom.flows.cli.datasets import add_dataset_commands
from latebloom.flows.cli.describe import add_describing_commands
from latebloom.flows.cli.options import (
    CONFIG,
    JSON,
    OUT,
    PRESET,
    SET,
    Command,
    Options,
    argument,
    command_line,
    option,
    refusal,
    source,
)
from latebloom.flows.cli.parse import nested
from latebloom.flows.cli.serving import add_serving_commands
from latebloom.flows.config.compare import SAMPLING, CompareConfig, RunConfig, demo_config, one_setting
from latebloom.flows.config.settings import OF_GENERATOR, short
from latebloom.flows.config.tools import FitGeneratorConfig
from latebloom.flows.run.budget import Budget
from latebloom.flows.run.environment import RUN_ENVIRONMENT, prepare_prefect, runs_root
from latebloom.flows.run.errors import UsageError, one_line
from latebloom.flows.run.folder import Partial, Unusable
from latebloom.flows.run.interruption import Interruption
from latebloom.flows.run.progress import say
from latebloom.flows.run.resolve import made, resolve, resolve_generator

__all__ = ["app", "main"]

app = typer.Typer(
    name="latebloom",
    help="Find the training images a classifier learns slowly, make faithful variants of just those with a diffusion "
    "model, retrain, and see whether it paid. An interrupted command goes on where it stopped when it is run again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
)

# What the stages of a command read. All else is as the run folder says, or as --set.
_TRAINING = (
    *("image_size", "train_limit", "test_limit", "model", "epochs", "batch_size"),
    *("seeds", "workers", "seed", "device"),
)
_EARLY = (*_TRAINING, "separating_epoch", "outputs", "indices")
_MAKING = (
    *("k", "levels", "generator", "kind", "prompt", "work_size", "generate_batch_size", "processes"),
    *("reference_classifier", "arms"),
)
_STRONG = ("strong_fraction", "policy", "coreset")
_COMPARISON = ("arms", "optimizers", "seeds", "workers")

_STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "run": (
        "Augment the slow-learnable images, retrain, and report beside the original: one setting, one seed.",
        tuple(name for name in (*_EARLY, *_MAKING, "optimizer", "strong", *_STRONG) if name not in _COMPARISON),
    ),
    "compare": ("Compare arms over optimizers and seeds, and report.", (*_EARLY, *_MAKING, *_STRONG, "optimizers")),
    "select": ("Train the early classifiers and choose the slow-learnable images.", _EARLY),
    "plan": ("Show what would be generated and what it would cost; generate nothing.", (*_EARLY, *_MAKING)),
    "generate": ("Make the synthetic data set.", (*_EARLY, *_MAKING)),
    "retrain": (
        "Retrain the classifiers on the synthetic data set of a run folder.",
        (*_TRAINING, "optimizer", "strong", *_STRONG, "arms", "optimizers"),
    ),
    "report": (
        "Write report.json and report.html of a run folder whose classifiers are trained.",
        ("arms", "optimizers", "seeds"),
    ),
}
_SAMPLING = option(
    "sampling",
    str,
    "paper (100 ancestral steps, guidance 3), balanced (25 of DPM-Solver++) or fast (8, for LCM and Turbo models); "
    "over the preset, under single settings",
    "|".join(SAMPLING),
)
_DEFAULTS = (
    "Defaults are those of a new run on a data set of your own; digits has some of its own, and a "
    "run folder named by --out without a SOURCE keeps what it was made with."
)


def _add_stage(stage: str, about: str, names: tuple[str, ...]) -> None:
    """A command of a stage shows what the stage reads; all take the same settings with --set and --config."""
    options = Options(RunConfig if stage == "run" else CompareConfig, short(*names))
    budget = Options(Budget, {name: name for name in Budget.model_fields} if stage == "generate" else {})
    sampling = [_SAMPLING] if "generator" in names else []

    @command_line(
        [source(RunConfig), OUT, *options.parameters, *sampling, *budget.parameters, PRESET, CONFIG, SET, JSON]
    )
    def command(**given: Any) -> None:
        more = [made(Budget, budget.given(given))] if stage == "generate" else []
        settings = nested(given["config"], {"data.source": given["source"], **options.given(given)}, given["set"])
        out = as_path(given["out"]) if given["out"] else None
        config, folder = resolve(out, settings, stage, given.get("sampling"), given["preset"])
        _run_flow(stage, config, folder, given["json"], *more)

    app.command(stage, help=about, epilog=_DEFAULTS, cls=Command)(command)


for _stage, (_about, _names) in _STAGES.items():
    _add_stage(_stage, _about, _names)
add_check_command(app)
add_coreset_command(app)
add_dataset_commands(app)
add_serving_commands(app)
add_describing_commands(app)

_DEMO = Options(
    CompareConfig, short("seeds", "workers"), {"seeds": demo_config().seeds, "workers": demo_config().workers}
)


@command_line([OUT, *_DEMO.parameters, JSON])
def _demo(**given: Any) -> None:
    """Compare seven arms on scikit-learn's digits with SGD and SAM: real images, nothing to download."""
    settings = {**dict(demo_config()), **_DEMO.given(given)}
    _run_flow(
        "compare",
        made(CompareConfig, settings),
        as_path(given["out"]) if given["out"] else runs_root() / "demo",
        given["json"],
    )


_FIT = Options(FitGeneratorConfig, OF_GENERATOR, {"split": "generator for digits, else train"})
_DESTINATION = argument("out", "Folder to write the generator to, path or URL; must be new or empty")


@command_line([source(FitGeneratorConfig, needed=True), _DESTINATION, *_FIT.parameters, CONFIG, SET])
def _fit_generator(**given: Any) -> None:
    """Train a small class-conditional pixel generator (UNet2DModel) on a data set."""
    settings = nested(given["config"], {"data.source": given["source"], **_FIT.given(given)}, given["set"])
    config, out = resolve_generator(settings), given["out"]
    from latebloom.flows.stages.fitted import images_to_fit, is_fitted
    from latebloom.synth.generators.card import read_card

    if read_card(as_path(out)) and is_fitted(config, as_path(out), images_to_fit(config)):
        say(f"{out} holds this generator already")
        print(out)
        return
    from latebloom.flows.stages.fit_generator import check_fit  # imports torch

    check_fit(config, as_path(out))  # the flow does too; here, before a server starts
    prepare_prefect()
    from latebloom.flows.pipeline import fit_generator as flow

    print(flow(config, out))


app.command("demo", cls=Command)(_demo)
app.command("fit-generator", cls=Command)(_fit_generator)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"latebloom {latebloom.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit")
    ] = False,
) -> None:
    pass


def _run_flow(kind: str, config: CompareConfig | RunConfig, folder: Path, as_json: bool, *more: Budget) -> None:
    """Run a flow and print what came out.

    Args:
        more: what this flow takes beside its config and its run folder.
    """
    from latebloom.flows.cli.tables import print_errors, print_forecast, print_report
    from latebloom.flows.run.folder import RunFolder
    from latebloom.flows.run.processes import team_size
    from latebloom.flows.run.receipt import Receipt
    from latebloom.flows.run.records import PLAN

    say(f"{kind}: {config.data.source} in {folder}")
    comparison = config if isinstance(config, CompareConfig) else one_setting(config)
    receipt = Receipt(folder, comparison)
    if team_size() == 1 and receipt.holds(kind):
        say(f"{kind}: all was done before, and no file has changed since")
        result = str(folder / _RESULTS[kind])
    else:
        _check(comparison, folder, kind)
        if not _joined(comparison, kind):
            from latebloom.flows.stages.training import follow

            follow(RunFolder(folder), comparison)
            return
        prepare_prefect()
        from latebloom.flows import pipeline

        flow = pipeline.augment_and_retrain if kind == "run" else getattr(pipeline, kind)
        result = flow(config, str(folder), *more)
        receipt.write(_covered(kind, comparison))
    if kind in ("run", "compare", "report"):
        print_report(folder, as_json)
    elif kind == "select":
        from latebloom.flows.cli.slow_tables import print_slow

        print_slow(RunFolder(folder), result, as_json)
    elif as_json:
        print(json_text({"result": result, "stages": RunFolder(folder).records()}))
    else:
        if kind == "plan":
            print_forecast(vars(RunFolder(folder).record(PLAN).facts.forecast))
        if kind == "retrain":
            print_errors(RunFolder(folder), comparison)
        print(result)


# What each command makes in the run folder, as its flow returns it.
_RESULTS = {
    **dict.fromkeys(("run", "compare", "report"), "report.html"),
    "select": "selection",
    "plan": "plan.parquet",
    "generate": "synthetic",
    "retrain": "retrained",
}


def _covered(kind: str, config: CompareConfig) -> set[str]:
    """The commands that have nothing left to do when one of this kind has ended."""
    before = {"plan": {"select"}, "generate": {"select", "plan"}}.get(kind, set())
    if kind in ("run", "compare"):
        before = {"run", "compare", "retrain", "report"}
        before |= {"select"} if config.wants_slow else set()
        before |= {"plan", "generate"} if config.wants_slow and config.wants_synthetic else set()
    return {kind, *before}


def _check(config: CompareConfig, folder: Path, kind: str) -> None:
    """Refuse what cannot work: first what costs least, and all before a server starts. The flow checks it too."""
    from latebloom.flows.stages.inputs import check_data, check_folder

    check_folder(config, str(folder), kind)
    check_data(config, kind)
    from latebloom.flows.stages.checks import check_inputs  # imports torch

    check_inputs(config, kind, str(folder))


def _joined(config: CompareConfig, kind: str) -> bool:
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

    Exit code 0; 1 for what the person can fix, said in one line; 2 for a command or a setting that cannot be; 3 for a
    synthetic data set of which some images could not be made, or not in the time, or none that can be used; 130 for
    Ctrl-C, 143 for SIGTERM.
    """
    for name in ("OMP_WAIT_POLICY", "PYTHONSAFEPATH"):  # before torch is imported, and before a process is started
        os.environ.setdefault(name, RUN_ENVIRONMENT[name])
    with Interruption():
        sys.exit(_run_app())


def _run_app() -> int:
    try:
        code: object = app(prog_name="latebloom", standalone_mode=False)
    except Unusable as unusable:
        return _fail(one_line(unusable), code=3)
    except Partial as partial:
        print(f"partial: {' '.join(str(partial).split())}", file=sys.stderr)
        print(f"make the rest: {shlex.join(['latebloom', *sys.argv[1:]])}", file=sys.stderr)
        return 3
    except TyperException as error:
        if len(sys.argv) == 1:
            print(error.format_message(), file=sys.stderr)  # the help
            return 2
        return _fail(refusal(error, typer.main.get_command(app)), code=2)
    except UsageError as error:
        return _fail(str(error), code=2)
    except (ValueError, FloatingPointError, MemoryError, OSError) as error:
        return _fail(one_line(error))
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 1) -> int:
    from latebloom.flows.run.processes import leads

    if leads():  # the others of its team meet the same
        print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
