"""What a run shows in the Prefect UI, where a server stays; elsewhere nothing, and no Prefect is imported for it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Key, RunFolder
from latebloom.flows.runners.engine import server_stays

__all__ = ["report_done", "shown_progress", "stage_done", "synthetic_done"]


def shown_progress() -> AbstractContextManager[None]:
    """Within the block, meters are shown in the UI too, and their lines are few."""
    if not server_stays():
        return nullcontext()
    from latebloom.flows.artifacts import publish

    return publish.shown_progress()


def stage_done(run: RunFolder, key: Key[Any]) -> None:
    """Show what a stage made."""
    if server_stays():
        from latebloom.flows.artifacts import publish

        publish.stage_done(run, key)


def synthetic_done(run: RunFolder, config: CompareConfig) -> None:
    """Show the synthetic data set of a run, with a contact sheet, and where it came from."""
    if server_stays():
        from latebloom.flows.artifacts import publish

        publish.synthetic_done(run, config)


def report_done(run: RunFolder) -> None:
    """Show the result of a run, with the comparison plot, and where its classifiers came from."""
    if server_stays():
        from latebloom.flows.artifacts import publish

        publish.report_done(run)
