"""The flows, a line per stage: find the slow examples, make variants of them, retrain, report.

Stages that are done are skipped, so running a flow again goes on where it stopped. Where a Prefect server stays, a flow
is a run on it; the Prefect UI offers these flows behind forms (flows/server/deployed.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latebloom.data.store import as_path
from latebloom.data.synthetic.export import ExportFormat
from latebloom.flows import tasks
from latebloom.flows.artifacts.show import shown_progress
from latebloom.flows.config.compare import CompareConfig, RunConfig, one_setting
from latebloom.flows.run.budget import Budget, Deadline, Unfinished
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.processes import noted
from latebloom.flows.run.progress import meter, say
from latebloom.flows.runners.engine import as_completed, flow, scheduled_start
from latebloom.flows.runners.locks import held
from latebloom.flows.runners.parts import make_numbered, make_parts
from latebloom.flows.stages.coreset import CoresetRunConfig, check_coreset
from latebloom.flows.stages.export import export_run
from latebloom.flows.stages.fit_generator import FitGeneratorConfig, fit_and_save
from latebloom.flows.stages.training import arm_is_done

__all__ = [
    "augment_and_retrain",
    "compare",
    "coreset",
    "export",
    "fit_generator",
    "generate",
    "generate_part",
    "plan",
    "report",
    "retrain",
    "select",
]

_NO_END = Budget()


@flow(name="augment-and-retrain", run_name="{out}")
def augment_and_retrain(config: RunConfig, out: str) -> str:
    """Find the slow-learnable images, make variants of them, retrain, and report beside the original.

    Args:
        config: the setting.
        out: the run folder; an unfinished run in it goes on.
    """
    return _all_stages(one_setting(config), out)


@flow(name="compare", run_name="{out}")
def compare(config: CompareConfig, out: str) -> str:
    """Compare arms with each other over optimizers and seeds, and report.

    Args:
        config: the setting, the arms, the optimizers, the number of seeds.
        out: the run folder; an unfinished run in it goes on.
    """
    return _all_stages(config, out)


def _all_stages(config: CompareConfig, out: str) -> str:
    with _opened(config, out, "compare") as run:
        if config.wants_slow:
            tasks.train_early(run, config)
            tasks.select_examples(run, config)
        if config.wants_synthetic:
            tasks.plan_images(run, config)
            _generate(run, config)
        _retrain(run, config)
        return tasks.write_report(run, config)


@flow(name="select", run_name="{out}")
def select(config: CompareConfig, out: str) -> str:
    """Train the early classifiers and choose the slow-learnable images; makes no images."""
    with _opened(config, out, "select") as run:
        tasks.train_early(run, config)
        tasks.select_examples(run, config)
        return str(run / "selection")


@flow(name="plan", run_name="{out}")
def plan(config: CompareConfig, out: str) -> str:
    """Forecast what would be generated and what it would cost; generates nothing."""
    with _opened(config, out, "plan") as run:
        tasks.train_early(run, config)
        tasks.select_examples(run, config)
        tasks.plan_images(run, config)
        return str(run / "plan.parquet")


@flow(name="generate", run_name="{out}")
def generate(config: CompareConfig, out: str, budget: Budget = _NO_END) -> str:
    """Make the synthetic data set: early training, selection, plan, then part after part.

    Args:
        config: the setting, the arms, the optimizers, the number of seeds.
        out: the run folder; an unfinished run in it goes on.
        budget: how long this run may work; the next one goes on.

    Raises:
        Unfinished: the time was over before all was made.
    """
    deadline = Deadline.of(budget, scheduled_start())
    if not deadline.allows(0):
        raise Unfinished(f"this is no time to work (until: {budget.until}), so nothing was begun; the next run goes on")
    with _opened(config, out, "generate") as run:
        tasks.train_early(run, config)
        tasks.select_examples(run, config)
        tasks.plan_images(run, config)
        _generate(run, config, deadline)
        return str(run / "synthetic")


@flow(name="retrain", run_name="{out}")
def retrain(config: CompareConfig, out: str) -> str:
    """Retrain the classifiers of all arms on the synthetic data set that a run has."""
    with _opened(config, out, "retrain") as run:
        _retrain(run, config)
        return str(run / "retrained")


@flow(name="report", run_name="{out}")
def report(config: CompareConfig, out: str) -> str:
    """Write the report of a run whose classifiers are trained."""
    with _opened(config, out, "report") as run:
        return tasks.write_report(run, config)


@flow(name="coreset", run_name="{out}")
def coreset(config: CoresetRunConfig, out: str) -> dict[str, Any]:
    """Select the images that stand for a training set, with weights.

    Args:
        config: what is selected from, by what classifier, and how.
        out: the folder that gets coreset-METHOD.npz and coreset-METHOD.json; may be a run folder.
    """
    check_coreset(config)
    with held(RunFolder(as_path(out))):
        return tasks.write_coreset(as_path(out), config)


@flow(name="fit-generator", run_name="{out}")
def fit_generator(config: FitGeneratorConfig, out: str) -> str:
    """Train a small class-conditional pixel generator on a data set."""
    with shown_progress():
        return fit_and_save(config, as_path(out))


@flow(name="export", run_name="{destination}")
def export(run: str, destination: str, kind: ExportFormat, states: Sequence[str], with_real: bool) -> dict[str, int]:
    """Write a synthetic data set for others to read, with a dataset card; the number of images of each split."""
    with shown_progress():
        return export_run(run, destination, kind, states, with_real)


@flow(name="generate-part", run_name="{run} parts {numbers}")
def generate_part(run: str, numbers: Sequence[int], limit: str) -> None:
    """Make some parts of the synthetic data set of a run; `generate` with the runner `runs` starts these."""
    with shown_progress():
        make_numbered(run, list(numbers), limit)


@contextmanager
def _opened(config: CompareConfig, out: str, kind: str) -> Iterator[Path]:
    """The run folder, checked, and locked while the flow works in it."""
    tasks.check_inputs(config, out, kind)
    with held(RunFolder(as_path(out))), shown_progress():
        yield tasks.open_run(config, out)


def _generate(run: Path, config: CompareConfig, deadline: Deadline | None = None) -> None:
    todo = tasks.open_parts(run, config)
    if todo.parts:
        with meter("generate", todo.images, "images", todo.images_done, in_parts=True) as bar:
            make_parts(run, config, todo.parts, bar, deadline)
    tasks.finish_synthetic(run, config)


def _retrain(run: Path, config: CompareConfig) -> None:
    if config.wants_scout:
        tasks.train_scouts(run, config)
    arms = [(arm, optimizer) for arm in config.arms for optimizer in config.optimizers]
    if config.workers == 1:
        for arm, optimizer in arms:
            tasks.retrain_arm(run, config, arm, optimizer)
    else:
        # One after the other before any process starts: each check reads the whole synthetic data set.
        todo = [arm for arm in arms if not arm_is_done(RunFolder(run), config, *arm)]
        with meter("retrain", len(arms), "arms", len(arms) - len(todo)) as bar, noted(bar.note):
            if todo:
                say(f"retrain: {len(todo)} of {len(arms)} arms to train, in {config.workers} processes that now start")
            # The process pool behind the task takes as many at a time as the config says.
            for future in as_completed([tasks.retrain_arm.submit(run, config, *arm) for arm in todo]):
                future.result()
                bar.add(1)
