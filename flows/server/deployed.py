"""The flows of `flows/pipeline.py` behind the forms that a person fills in the Prefect UI: what deployments run.

An error that a person can fix ends a run as Failed with one line, as it ends a command with exit code 1.
"""

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import pydantic
from prefect import flow, runtime
from prefect.context import FlowRunContext
from prefect.flows import Flow
from prefect.states import Completed, Failed
from pydantic import Field
from rich.console import Console

from latebloom.data.states import State
from latebloom.data.store import as_path, digest_json, is_remote, read_json
from latebloom.data.synthetic.export import ExportFormat
from latebloom.flows import pipeline
from latebloom.flows.artifacts import publish
from latebloom.flows.config.compare import CompareConfig, RunConfig, demo_config, one_setting, preset
from latebloom.flows.config.merge import differences, put
from latebloom.flows.config.settings import OF_GENERATOR, short
from latebloom.flows.config.tools import FitGeneratorConfig
from latebloom.flows.report.results import Report
from latebloom.flows.run.budget import Budget, Unfinished
from latebloom.flows.run.environment import runs_root
from latebloom.flows.run.errors import one_line
from latebloom.flows.run.folder import Partial, RunFolder, Unusable
from latebloom.flows.run.resolve import resolve
from latebloom.flows.runners import engine
from latebloom.flows.runners.limits import GPU_LIMIT
from latebloom.flows.server.forms import Form, left_open

__all__ = [
    "COMPARE_FORM",
    "FIT_FORM",
    "RUN_FORM",
    "augment_and_retrain",
    "compare",
    "export",
    "fit_generator",
    "generate",
    "generate_part",
    "retrain",
    "select",
]


class RetrainRequest(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What to retrain; what is left at 0 or empty is as the run folder says."""

    run: str = Field(min_length=1, description="Run folder, path or URL, of an earlier run")


_RETRAINED = short("arms", "optimizers", "seeds", "workers", "model", "epochs", "batch_size", "lr")
_LEFT_OPEN: dict[str, Any] = {
    name: left_open(CompareConfig, setting, "as in the run folder") for name, setting in _RETRAINED.items()
}
_RetrainForm = pydantic.create_model("RetrainRequest", __base__=RetrainRequest, **_LEFT_OPEN)


class ExportRequest(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What to write, and where."""

    run: str = Field(min_length=1, description="Run folder or synthetic data set, path or URL")
    destination: str = Field(min_length=1, description="Folder to write, path or URL; must be new or empty")
    format: ExportFormat = Field(
        "imagefolder", description="imagefolder with metadata.jsonl, webdataset tars, or MedMNIST-style npz"
    )
    states: tuple[State, ...] = Field(("ok",), min_length=1, description="Images of these states")
    with_real: bool = Field(False, description="The real training and test images too: a whole data set")


class PartRequest(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Parts of a run's synthetic data set that one worker makes."""

    run: str = Field(min_length=1, description="Run folder, path or URL, that every worker reaches")
    numbers: tuple[int, ...] = Field(min_length=1, description="Numbers of the parts, from 0")
    limit: str = Field(
        GPU_LIMIT,
        description="Prefect concurrency limit that is held meanwhile; {host} is the worker's name; empty: none",
    )


Folder = Annotated[
    str,
    Field(
        description="Run folder to make, or to go on with, path or URL. Empty: a folder named after the settings. A "
        "relative path, and an empty one, is in the folder runs/, or LATEBLOOM_RUNS where the worker sets it"
    ),
]

_MAKING = short("source", "generator", "k", "levels")
_CLASSIFYING = short("model", "epochs", "separating_epoch")
_LAST = short("seed", "device")
_EARLY_GROUPS = {"data": "data", "perturb": "perturb", "classifier": "classifier", "train": "train", "slow": "slow"}
_MAKING_GROUPS = {
    name: name
    for name in ("plan", "sample", "generate", "sizes", "prompts", "diffusemix", "scores", "quality", "parts")
}
_STRONG_GROUPS = {
    "strong": "strong",
    "coreset": "strong.coreset",
    "policy": "strong.policy",
    "scout": "strong.scout",
}
_FOLDER: dict[str, tuple[Any, Any]] = {"folder": (Folder, "")}
# Pressing Submit runs the digits demo; one job at a time generates on a host.
_DEMO = {**preset("digits"), "parts": {"limit": GPU_LIMIT}}

RUN_FORM = Form(
    RunConfig,
    {**_MAKING, **_CLASSIFYING, **short("optimizer"), **_LAST, **short("train_states")},
    {**_EARLY_GROUPS, **_MAKING_GROUPS, **_STRONG_GROUPS},
    _DEMO,
    _FOLDER,
)
COMPARE_FORM = Form(
    CompareConfig,
    {
        **short("arms", "optimizers", "seeds", "workers"),
        **_MAKING,
        **_CLASSIFYING,
        **_LAST,
        **short("train_states"),
    },
    {**_EARLY_GROUPS, **_MAKING_GROUPS, **_STRONG_GROUPS},
    {**_DEMO, "seeds": demo_config().seeds, "workers": demo_config().workers},
    _FOLDER,
)
SELECT_FORM = Form(
    RunConfig,
    {**short("source"), **_CLASSIFYING, "method": "slow.method", **_LAST},
    _EARLY_GROUPS,
    _DEMO,
    _FOLDER,
)
GENERATE_FORM = Form(
    RunConfig,
    {**_MAKING, **_CLASSIFYING, **_LAST},
    {**_EARLY_GROUPS, **_MAKING_GROUPS},
    _DEMO,
    {
        "then": (
            Annotated[
                Literal["nothing", "retrain"],
                Field(description="What begins when the data set is whole: retrain runs retrain/retrain on it"),
            ],
            "nothing",
        ),
        **{
            name: (Annotated[info.annotation, Field(description=info.description), *info.metadata], info.default)
            for name, info in Budget.model_fields.items()
        },
        **_FOLDER,
    },
)
FIT_FORM = Form(
    FitGeneratorConfig,
    {name: OF_GENERATOR[name] for name in ("source", "split", "steps", "size", "seed", "device")},
    {"data": "data", "generator": "generator"},
    {},
    {"folder": (Annotated[str, Field(description="Folder for the generator, new or empty; empty: as for runs")], "")},
)

RETRAIN_FORM = Form(_RetrainForm, {name: name for name in _RetrainForm.model_fields})
EXPORT_FORM = Form(ExportRequest, {name: name for name in ExportRequest.model_fields})
PART_FORM = Form(PartRequest, {name: name for name in PartRequest.model_fields})


def _name() -> str:
    """What a run works on: data set, generator, seed."""
    given = runtime.flow_run.parameters
    if "numbers" in given:
        return f"{_last(given['run'])} parts {', '.join(map(str, given['numbers']))}"
    if "run" in given:
        return _last(given["run"])
    parts = [_last(given["source"])]
    if isinstance(given.get("generator"), str) and given["generator"]:
        parts.append(f"by {_last(given['generator'])}")
    return " ".join([*parts, f"seed {given['seed']}"])


def _last(path: str) -> str:
    return PurePosixPath(path).name or path


def _place(folder: str, kind: str, config: pydantic.BaseModel) -> str:
    """The run folder of a form.

    Raises:
        ValueError: it would be in a folder that goes with the run.
    """
    if not folder:
        settings = config.model_dump(mode="json")
        names = [kind, _last(settings["data"]["source"])]
        generator = settings.get("generate", {}).get("generator")
        names += [_last(generator)] if generator else []
        plain = re.sub(r"[^\w.-]+", "-", "-".join([*names, f"seed{settings['seed']}"]))
        folder = f"{plain}-{digest_json(_decisive(config))[:8]}"
    return _whole(folder)


def _decisive(config: pydantic.BaseModel) -> dict[str, Any]:
    """What decides what is made, as far as it is not the default: a default that a new version adds changes nothing."""
    exclude: Any = {"parts": True, "device": True, "workers": True, "generate": {"processes"}}
    asked, default = (one.model_dump(mode="json", exclude=exclude) for one in (config, type(config)()))
    return differences(asked, default)


def _whole(folder: str) -> str:
    """A folder that a form names: as it stands, or below the root of run folders where it is relative.

    Raises:
        ValueError: it would be in a folder that goes with the run.
    """
    path = as_path(folder)
    if is_remote(path) or path.is_absolute():
        return folder
    root, context = runs_root(), FlowRunContext.get()
    in_a_pool = context is not None and context.flow_run is not None and bool(context.flow_run.work_pool_name)
    if in_a_pool and not (is_remote(root) or root.is_absolute()):
        raise ValueError(
            f"the folder {folder!r} is relative, and a worker's own is gone after the run; give a whole path or a URL, "
            "or set LATEBLOOM_RUNS to one where the worker runs"
        )
    return str((root if is_remote(root) else root.absolute()) / folder)


def _stay_quiet(console: Console) -> None:
    """Print no more lines once nobody reads them. Rich would end the process, but a run outlives `serve`."""
    console.quiet = True


def _settled(work: Callable[..., Any]) -> Callable[..., Any]:
    """The flow function whose expected errors become the final state, in one line."""

    @functools.wraps(work)
    def settled(**given: Any) -> Any:
        Console.on_broken_pipe = _stay_quiet  # type: ignore[assignment, method-assign]
        try:
            return work(**given)
        except Unfinished as unfinished:
            return Completed(name="Unfinished", message=one_line(unfinished))
        except Unusable as unusable:
            return Failed(name=Unusable.__name__, message=one_line(unusable))
        except Partial as partial:
            return Failed(name="Partial", message=f"{one_line(partial)}; the same parameters make the rest")
        except (ValueError, FloatingPointError, MemoryError, OSError) as error:  # pydantic's is a ValueError
            return Failed(message=one_line(error))

    return settled


def _offered(of: engine.Flow[..., Any], form: Form) -> Callable[[Callable[..., Any]], Flow[..., Any]]:
    """A flow of the pipeline as the UI offers it: its parameters are a form, its expected errors final states.

    Decorates the function that calls the flow with what a filled form means, and says in a state what came out.
    """

    def offer(call: Callable[..., Any]) -> Flow[..., Any]:
        call.__doc__ = inspect.cleandoc(of.fn.__doc__ or "").partition("\n\n")[0]
        return flow(name=of.name, flow_run_name=_name, log_prints=True)(_settled(form(call)))

    return offer


@_offered(pipeline.augment_and_retrain, RUN_FORM)
def augment_and_retrain(config: RunConfig, folder: str) -> Any:
    return _reported(pipeline.augment_and_retrain.fn(config, _place(folder, "run", config)))


@_offered(pipeline.compare, COMPARE_FORM)
def compare(config: CompareConfig, folder: str) -> Any:
    return _reported(pipeline.compare.fn(config, _place(folder, "compare", config)))


@_offered(pipeline.select, SELECT_FORM)
def select(config: RunConfig, folder: str) -> Any:
    return pipeline.select.fn(one_setting(config), _place(folder, "select", config))


@_offered(pipeline.generate, GENERATE_FORM)
def generate(config: RunConfig, then: str, max_seconds: int, until: str, folder: str) -> Any:
    budget = Budget(max_seconds=max_seconds, until=until)
    run = _place(folder, "generate", config)
    made = pipeline.generate.fn(one_setting(config), run, budget)
    publish.emit_ready(RunFolder(as_path(run)), then)
    return Completed(message=f"the synthetic data set is in {made}")


@_offered(pipeline.retrain, RETRAIN_FORM)
def retrain(asked: RetrainRequest) -> Any:
    settings: dict[str, Any] = {}
    for name, value in asked.model_dump(exclude={"run"}).items():
        if value:
            put(settings, _RETRAINED[name], value)
    config, folder = resolve(as_path(_whole(asked.run)), settings, "retrain")
    pipeline.retrain.fn(config, str(folder))
    return _reported(pipeline.report.fn(config, str(folder)))


@_offered(pipeline.fit_generator, FIT_FORM)
def fit_generator(config: FitGeneratorConfig, folder: str) -> Any:
    made = pipeline.fit_generator.fn(config, _place(folder, "generator", config))
    return Completed(message=f"the generator is in {made}; give this path as `generator`")


@_offered(pipeline.export, EXPORT_FORM)
def export(asked: ExportRequest) -> Any:
    destination = _whole(asked.destination)
    counts = pipeline.export.fn(_whole(asked.run), destination, asked.format, asked.states, asked.with_real)
    return Completed(message=f"{sum(counts.values()):,} images in {destination}")


@_offered(pipeline.generate_part, PART_FORM)
def generate_part(asked: PartRequest) -> Any:
    return pipeline.generate_part.fn(_whole(asked.run), asked.numbers, asked.limit)


def _reported(page: str) -> Any:
    """The final state of what ends with a report, with the test errors in one line."""
    report = Report.from_json(read_json(as_path(page).with_name("report.json")))
    errors = [f"{arm.arm} {arm.optimizer} {100 * arm.mean:.2f} %" for arm in report.arms]
    return Completed(message=f"test error: {', '.join(errors)}; {page}")
