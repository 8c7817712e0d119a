"""Thin tasks around the stages. Paths and configs go in, small values come out, never arrays.

Stages skip themselves by digest, so Prefect's cache stays off: it would not see a changed file or changed code. They
also go on where they were, so a task that lost its storage or the hub is tried again.
"""

from pathlib import Path
from typing import Any

from latebloom.flows.artifacts import show
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.run.errors import annotate
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.processes import classifier_processes
from latebloom.flows.run.records import EARLY, PLAN, SCOUT, SELECT, retrain_key
from latebloom.flows.runners.engine import task
from latebloom.flows.stages import checks, coreset, planning, scout, select, synthesis, training
from latebloom.flows.stages.coreset import CoresetRunConfig

__all__ = [
    "check_inputs",
    "finish_synthetic",
    "open_parts",
    "open_run",
    "plan_images",
    "retrain_arm",
    "select_examples",
    "train_early",
    "train_scouts",
    "write_coreset",
    "write_report",
]


@task("check inputs")
def check_inputs(config: CompareConfig, out: str, kind: str) -> None:
    """Refuse what cannot work before anything is trained."""
    checks.check_inputs(config, kind, out)
    checks.check_folder(config, out, kind)


@task("open the run folder")
def open_run(config: CompareConfig, out: str) -> Path:
    """Make the run folder, and write down in it what was asked; its path."""
    return checks.open_run(config, out).path


@task("train early classifiers")
def train_early(run: Path, config: CompareConfig) -> None:
    """Train every seed's classifier to the separating epoch."""
    training.train_early(RunFolder(run), config)
    show.stage_done(RunFolder(run), EARLY)


@task("select slow examples")
def select_examples(run: Path, config: CompareConfig) -> None:
    """Choose the examples to augment from the early outputs."""
    select.select_examples(RunFolder(run), config)
    show.stage_done(RunFolder(run), SELECT)


@task("plan images")
def plan_images(run: Path, config: CompareConfig) -> None:
    """Write the plan and its forecast of the cost."""
    planning.plan_images(RunFolder(run), config)
    show.stage_done(RunFolder(run), PLAN)


@task("find parts to make")
def open_parts(run: Path, config: CompareConfig) -> synthesis.PartsToMake:
    """Which parts of the synthetic data set are still to be made."""
    return synthesis.open_parts(RunFolder(run), config)


@task("finish the synthetic data set")
def finish_synthetic(run: Path, config: CompareConfig) -> str:
    """Write the manifest, last; its digest."""
    digest = synthesis.finish_synthetic(RunFolder(run), config)
    show.synthetic_done(RunFolder(run), config)
    return digest


@task("train scouts")
def train_scouts(run: Path, config: CompareConfig) -> None:
    """Train every seed's scout, which selects for all arms of that seed."""
    scout.train_scouts(RunFolder(run), config)
    show.stage_done(RunFolder(run), SCOUT)


@task("retrain {arm} with {optimizer}")
def retrain_arm(run: Path, config: CompareConfig, arm: str, optimizer: str) -> None:
    """Train one arm with one optimizer for all seeds, in a process of its own where the config has several."""
    if config.workers == 1:
        training.retrain_arm(RunFolder(run), config, arm, optimizer)
    else:
        pool = classifier_processes(config.workers)
        pool.submit(annotate, training.retrain_arm, RunFolder(run), config, arm, optimizer).result()
    show.stage_done(RunFolder(run), retrain_key(arm, optimizer))


@task("select a coreset")
def write_coreset(out: Path, config: CoresetRunConfig) -> dict[str, Any]:
    """Select a coreset and write it; its record."""
    return coreset.write_coreset(RunFolder(out), config).model_dump(mode="json")


@task("write the report")
def write_report(run: Path, config: CompareConfig) -> str:
    """Write report.json and report.html; the path of the latter."""
    page = str(gather.write(RunFolder(run), config))
    show.report_done(RunFolder(run))
    return page
