"""What a run shows in the Prefect UI while it works and after each stage, and the event that automations await.

Nothing is sent without a server that outlives the command (`PREFECT_API_URL`): nobody could look at it.
"""

import contextvars
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.artifacts import pages
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Key, RunFolder
from latebloom.flows.run.progress import Meter, say, shown_by, warn
from latebloom.flows.runners.engine import server_stays

__all__ = [
    "READY_EVENT",
    "THEN_LABEL",
    "ArtifactMeter",
    "emit_ready",
    "report_done",
    "shown_progress",
    "stage_done",
    "synthetic_done",
]

READY_EVENT = "latebloom.synthetic.ready"
THEN_LABEL = "latebloom.then"  # of the event's resource: what is to come next

ARTIFACT_INTERVAL = 5.0
LOG_INTERVAL = 60.0

T = TypeVar("T")


def shown_progress() -> AbstractContextManager[None]:
    """Within the block, meters are shown in the UI too, and their lines are few."""
    return shown_by(ArtifactMeter) if server_stays() else nullcontext()


class ArtifactMeter(Meter):
    """A meter as a progress artifact, with a line in the log for every part, or a minute where there are no parts.

    A thread of its own sends what is done every few seconds, so that no work waits for the server.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, in_parts: bool = False) -> None:
        super().__init__(title, total, unit, done, in_parts)
        self._key = _key("progress", title.partition(",")[0])  # what follows the comma is which of several
        self._artifact: UUID | None = None
        self._said: tuple[float, int] = (done, 0)
        self._show()
        self._closed = threading.Event()
        # In the context of the run: its settings, and its id for an artifact that could not be made at once.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._keep_showing,), daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        _, counted = self._said
        if self.in_parts:
            due = self._now()[1] > counted
        else:
            due = time.monotonic() - self.last >= LOG_INTERVAL and self.done < self.total
        if due:
            self._say()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        if self._said != self._now():
            self._say()
        self._show()

    def _now(self) -> tuple[float, int]:
        return self.done, sum(self.counts.values())

    def _say(self) -> None:
        self.last, self._said = time.monotonic(), self._now()
        say(self.line())

    def _keep_showing(self) -> None:
        shown = self._now()
        while not self._closed.wait(ARTIFACT_INTERVAL):
            if shown != self._now():
                shown = self._now()
                self._show()

    def _show(self) -> None:
        with self.lock:
            percent, line = 100 * min(1.0, self.done / max(1, self.total)), self.line()
        if self._artifact is None:
            self._artifact = _sent(_create, self._key, percent, line)
        else:
            _sent(_update, self._artifact, percent, line)


def _create(key: str, percent: float, line: str) -> UUID:
    made = create_progress_artifact(percent, key, line)
    assert isinstance(made, UUID)  # within an event loop, which no stage has, it would be a coroutine
    return made


def _update(artifact: UUID, percent: float, line: str) -> None:
    # Not update_progress_artifact, which opens a client at every call and leaves it to the garbage collector.
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=percent, description=line))


def stage_done(run: RunFolder, key: Key[Any]) -> None:
    """Show what a stage made."""
    if server_stays():
        _publish(_key("stage", key.name), pages.stage_page(run, key), f"{key.name} in {run.path}")


def synthetic_done(run: RunFolder, config: CompareConfig) -> None:
    """Show the synthetic data set of a run, with a contact sheet, and where it came from."""
    if server_stays():
        _publish("synthetic-set", pages.synthetic_page(run, config), f"synthetic data set in {run.path}")
        _publish_lineage(run)


def report_done(run: RunFolder) -> None:
    """Show the result of a run, with the comparison plot, and where its classifiers came from."""
    if server_stays():
        _publish("report", pages.report_page(run), f"report of {run.path}")
        _publish_lineage(run)


def _publish_lineage(run: RunFolder) -> None:
    _publish("lineage", pages.lineage_page(run), f"lineage of what is in {run.path}")


def _publish(key: str, markdown: str, description: str) -> None:
    _sent(create_markdown_artifact, markdown, key, description)


def _sent(send: Callable[..., T], *args: Any) -> T | None:
    """What `send(*args)` returns; None where the server does not take it: no work of hours may end for a picture."""
    try:
        # Seconds of trying, not the minutes that a run's state is worth.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 2}):
            return send(*args)
    except (httpx.HTTPError, ObjectNotFound) as error:  # away, busy, or a person has deleted the artifact
        warn(f"the Prefect server did not take an artifact ({type(error).__name__}); the work goes on without it")
        return None


def _key(*words: str) -> str:
    """A key as Prefect wants it: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def emit_ready(run: RunFolder, then: str) -> None:
    """Send the event that the synthetic data set of a run is finished, for automations that wait for it.

    Args:
        then: what the person wants next, `nothing` or `retrain`; a label that automations match.

    Raises:
        ValueError: it is not finished.
    """
    folder = SyntheticFolder(run.path / "synthetic")
    manifest = folder.manifest()
    emit_event(
        READY_EVENT,
        resource={
            "prefect.resource.id": f"latebloom.synthetic.{manifest['digest']}",
            "prefect.resource.name": str(folder.path),
            THEN_LABEL: then,
            "latebloom.run": str(run.path),
        },
        payload={
            "run": str(run.path),
            "manifest": str(folder.path / "manifest.json"),
            "digest": manifest["digest"],
            "images": manifest["rows"],
            "states": manifest["states"],
        },
    )
    EventsWorker.instance().drain()  # sent, before the process may end
