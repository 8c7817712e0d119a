"""The deployments that people trigger and schedule, in one table. `serve` and prefect.yaml are made from it.

`python -m latebloom.flows.server.deployments > prefect.yaml` writes that file again after a change.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import ParameterSchema

from latebloom.flows.config.compare import RunConfig, preset
from latebloom.flows.config.merge import merge
from latebloom.flows.config.presets import PRESETS
from latebloom.flows.run.environment import RUN_ENVIRONMENT
from latebloom.flows.runners.limits import GPU_LIMIT
from latebloom.flows.server import deployed

__all__ = ["DEPLOYMENTS", "WORK_POOL", "Deployment", "prefect_yaml", "runner_deployments"]

WORK_POOL = "latebloom"  # where `prefect deploy --all` puts them


@dataclasses.dataclass(frozen=True)
class Deployment:
    """One deployment of a flow: a form filled in advance.

    Attributes:
        description: Markdown, what it makes and what that costs.
        queue: work queue in the pool; workers with a GPU poll `gpu` and `parts`. A job on `gpu` may wait for `parts`.
        one_at_a_time: a run that would begin while another one runs is cancelled, which suits schedules.
    """

    flow: Flow[..., Any]
    name: str
    description: str
    tags: tuple[str, ...]
    queue: str = "gpu"
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: DeploymentScheduleCreate | None = None
    one_at_a_time: bool = False

    @property
    def full_name(self) -> str:
        """FLOW/NAME, as Prefect shows it."""
        return f"{self.flow.name}/{self.name}"

    @property
    def concurrency(self) -> ConcurrencyLimitConfig | None:
        """Its limit of runs at a time, where it has one."""
        if not self.one_at_a_time:
            return None
        return ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)


_RESUMES = "Submit the same parameters again after an interruption: it goes on where it stopped."
_WHOLE = (
    "Trains a classifier to its separating epoch, takes the half of each class that it learns slowly, makes k - 1 "
    "variants of just those images with the diffusion model, and retrains beside the original at equal epochs and at "
    "equal steps. **Makes** a run folder with the synthetic data set, classifiers and `report.html`. "
)
_SET = (
    "**Makes** a synthetic data set: parquet parts with every image's source, level, seed and scores, and a manifest, "
    "written last. "
)
_YOURS = {"data": {"source": "path/to/images"}, "generate": {"generator": "path/to/diffusers-folder"}}
_CIFAR = {"data": {"source": "cifar10"}, "generate": {"generator": "path/to/diffusers-folder"}}
_PAPER = {name: part for name, part in PRESETS["tada-cifar10"].settings.items() if name in RunConfig.model_fields}
_LIMIT = {"parts": {"limit": GPU_LIMIT}}
_NIGHTLY = DeploymentScheduleCreate(
    schedule=CronSchedule(cron="0 22 * * *", timezone="Europe/Berlin"),
    active=False,
    slug="nightly",
    parameters={"until": "07:00 Europe/Berlin", "then": "retrain"},
)
_CONTINUE = DeploymentScheduleCreate(
    schedule=IntervalSchedule(
        interval=datetime.timedelta(minutes=30), anchor_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    ),
    active=False,
    slug="continue",
)

DEPLOYMENTS = (
    Deployment(
        deployed.augment_and_retrain,
        "augment-digits",
        f"{_WHOLE}**Costs** about half a minute on two cores, downloads nothing. Quick run starts it. {_RESUMES}",
        ("run", "digits"),
    ),
    Deployment(
        deployed.augment_and_retrain,
        "augment-cifar10-paper",
        f"{_WHOLE}CIFAR-10 as the preset tada-cifar10 has it: the settings of arXiv 2505.21574, which filters nothing, "
        "and of the code that it follows; give a class-conditional generator. **Costs** about 100,000 images (k = 5) "
        f"of 120 denoiser calls each and three trainings of 200 epochs: days on one GPU. {_RESUMES}",
        ("run", "paper"),
        parameters=deployed.RUN_FORM.values(merge(_PAPER, merge(_CIFAR, _LIMIT))),
    ),
    Deployment(
        deployed.augment_and_retrain,
        "augment-your-folder",
        f"{_WHOLE}Give an image folder (`train/CLASS/*`, `test/CLASS/*`), a MedMNIST-style `.npz` or a folder of "
        "Hugging Face parquet, and a diffusers folder or hub id. **Costs** what the log line `plan:` forecasts; to "
        f"know before, run `latebloom plan`. {_RESUMES}",
        ("run",),
        parameters=deployed.RUN_FORM.values(merge(preset("your-folder"), merge(_YOURS, _LIMIT))),
    ),
    Deployment(
        deployed.compare,
        "compare-digits",
        "Compares seven arms with each other over optimizers and seeds, among them the baselines that could embarrass "
        "the method. **Makes** a run folder with all classifiers and `report.html`. **Costs** one generation for all "
        f"arms and arms x optimizers x seeds trainings; the demo two minutes on two cores. {_RESUMES}",
        ("run", "digits"),
    ),
    Deployment(
        deployed.select,
        "select",
        "Trains the early classifier and chooses the slow-learnable images. **Makes** `selection/` and `outputs.npz` "
        f"in a run folder, and no images. **Costs** a few epochs of training. {_RESUMES}",
        ("stage",),
    ),
    Deployment(
        deployed.generate,
        "generate-digits",
        f"{_SET}**Costs** what the log line `plan:` forecasts; seconds for the digits. {_RESUMES}",
        ("stage", "digits"),
    ),
    Deployment(
        deployed.generate,
        "generate-nightly",
        f"{_SET}Every night from 22:00, until 07:00 at the latest, then `retrain/retrain` on it. Its schedule is "
        "paused: set your data set and generator, then switch it on. The next night goes on where a night stopped.",
        ("stage", "schedule"),
        schedule=_NIGHTLY,
        one_at_a_time=True,
    ),
    Deployment(
        deployed.generate,
        "generate-continue",
        f"{_SET}Every 30 minutes it goes on with an unfinished plan, between 22:00 and 07:00 only, and does nothing "
        "when it is whole. Its schedule is paused. A run that would begin while another one works is cancelled.",
        ("stage", "schedule"),
        parameters={"until": "22:00-07:00"},
        schedule=_CONTINUE,
        one_at_a_time=True,
    ),
    Deployment(
        deployed.retrain,
        "retrain",
        "Retrains the classifiers of a run folder on its synthetic data set. **Makes** classifiers and `report.html` "
        f"in that folder. **Costs** arms x optimizers x seeds trainings. {_RESUMES}",
        ("stage",),
    ),
    Deployment(
        deployed.fit_generator,
        "fit-generator",
        "Trains a small class-conditional pixel generator (`UNet2DModel`). **Makes** a diffusers folder. **Costs** a "
        f"minute on two cores with the defaults (digits). {_RESUMES}",
        ("generator",),
    ),
    Deployment(
        deployed.export,
        "export",
        "Writes a synthetic data set as image folder, WebDataset or `.npz`, with a dataset card. **Costs** disk only.",
        ("data",),
        queue="cpu",
    ),
    Deployment(
        deployed.generate_part,
        "generate-part",
        "Makes some parts of a run's synthetic data set. `generate` with the runner `runs` starts these for workers to "
        "share; nobody has to trigger one.",
        ("part",),
        queue="parts",
    ),
)


class _Closed(ParameterSchema):
    """The schema of a form that takes no other fields: a run with one that it does not know is refused, not crashed."""

    additionalProperties: Literal[False] = False


def runner_deployments() -> list[RunnerDeployment]:
    """The deployments for `prefect.serve`."""
    made = [
        RunnerDeployment.from_flow(
            one.flow,
            name=one.name,
            description=one.description,
            tags=list(one.tags),
            parameters=dict(one.parameters),
            schedules=[one.schedule] if one.schedule else [],
            concurrency_limit=one.concurrency,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for one in DEPLOYMENTS
    ]
    for deployment in made:
        schema = deployment._parameter_openapi_schema
        deployment._parameter_openapi_schema = _Closed(**schema.model_dump())
    return made


def prefect_yaml() -> str:
    """The deployments for `prefect deploy --all`: the same, in a work pool."""
    head = (
        "# Written by `python -m latebloom.flows.server.deployments > prefect.yaml`; a test keeps it so.\n"
        "# `prefect deploy --all` puts these into the work pool named here, which must exist (docs/operations.md).\n"
    )
    whole = {
        "name": "latebloom",
        "build": None,
        "push": None,
        # None at all, as workers have Latebloom installed; null would be a change into the folder it was deployed from.
        "pull": [],
        "deployments": [_as_yaml(one) for one in DEPLOYMENTS],
    }
    return f"{head}{yaml.safe_dump(whole, sort_keys=False, width=110, allow_unicode=True)}"


def _as_yaml(one: Deployment) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": one.name,
        "description": one.description,
        "tags": list(one.tags),
        "entrypoint": f"{one.flow.fn.__module__}.{one.flow.fn.__name__}",
        "parameters": dict(one.parameters),
        "work_pool": {"name": WORK_POOL, "work_queue_name": one.queue, "job_variables": {"env": dict(RUN_ENVIRONMENT)}},
    }
    if one.schedule:
        timing = one.schedule.schedule.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        entry["schedules"] = [
            {**timing, "active": False, "slug": one.schedule.slug, "parameters": dict(one.schedule.parameters)}
        ]
    if one.concurrency:
        entry["concurrency_limit"] = one.concurrency.model_dump(mode="json", include={"limit", "collision_strategy"})
    return entry


if __name__ == "__main__":
    print(prefect_yaml(), end="")
