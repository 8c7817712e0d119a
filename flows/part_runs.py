"""Parts made by runs of a deployment, on whatever workers its work pool has: other machines with the same storage.

What counts is what lies in the run folder, not what a run's state says. A run that ends without all of its parts is
asked for again; one whose process is gone, which Prefect may show as running for ever, is found by its heartbeats.
"""

import dataclasses
import time
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Crashed

from data.store import digest_json, is_remote
from data.synthetic import SyntheticFolder
from flows.config import CompareConfig
from flows.handout import Handout, Made
from flows.progress import say
from flows.run import RunFolder
from flows.synthesis import part_keys

__all__ = ["PartRuns"]

ATTEMPTS = 3
POLL_SECONDS = 2.0
BEAT_SECONDS = 180.0  # Prefect's default, where a run has not beaten twice yet
MISSED_BEATS = 3  # a run that misses so many is lost
PENDING_SECONDS = 1800.0  # as long may a worker take to start a run: a cluster may fetch an image first
LATE_FILES_SECONDS = 60.0  # a shared file system may show a new file only so long after it was written


@dataclasses.dataclass
class _Asked:
    """Parts that a run was asked for, and what was seen of it last."""

    numbers: list[int]  # those that are not there yet
    key: str
    attempts: int
    id: UUID
    name: str
    state: UUID | None = None
    since: float = 0.0  # it has this state
    running: float | None = None  # since then it is at work
    beat: UUID | None = None
    beat_since: float = 0.0


class PartRuns:
    """Runs that make the parts of a job.

    Raises:
        ValueError: there is no server that stays, or no such deployment on it.
    """

    def __init__(self, run: RunFolder, config: CompareConfig) -> None:
        name = config.parts.deployment
        if not get_current_settings().api.url:
            raise ValueError(
                "runner runs needs a Prefect server that workers reach; start one with `slowlane up`, or name it in "
                "PREFECT_API_URL"
            )
        with get_client(sync_client=True) as client:
            try:
                client.read_deployment_by_name(name)
            except ObjectNotFound:
                raise ValueError(
                    f"there is no deployment {name} on {client.api_url}; make it with `slowlane up` or `prefect deploy`"
                ) from None
        self._path = run.path if is_remote(run.path) else run.path.absolute()
        self._parts, self._at_a_time = config.parts, config.generate.processes
        self._folder, self._keys = SyntheticFolder(run.path / "synthetic"), part_keys(run, config)
        # Of another folder or another plan it is another job.
        self._job = digest_json({"run": str(self._path), "parts": self._keys})[:16]
        self._asked: dict[UUID, _Asked] = {}

    def made(self, handout: Handout) -> Made:
        """Each part when it is there, or when no run could make it."""
        with get_client(sync_client=True) as client:
            self._client: SyncPrefectClient = client
            try:
                while True:
                    self._ask_for_more(handout)
                    if not self._asked:
                        return
                    for run in self._read():
                        yield from self._look(self._asked[run.id], run, handout)
                    time.sleep(POLL_SECONDS)
            finally:
                for asked in self._asked.values():  # none where all went well
                    client.set_flow_run_state(asked.id, Cancelling(message="the job that asked for it has ended"))

    def _ask_for_more(self, handout: Handout) -> None:
        while not self._at_a_time or len(self._asked) < self._at_a_time:
            numbers = handout.take(self._parts.parts_a_run)
            if not numbers:
                return
            block = numbers[0] // self._parts.parts_a_run
            self._ask(numbers, f"{self._job}-{block}x{self._parts.parts_a_run}", 1)

    def _ask(self, numbers: list[int], key: str, attempts: int) -> None:
        """Ask for parts; where an earlier command did, and its run is still to end, that one is taken."""
        keys = FlowRunFilterIdempotencyKey(any_=[f"{key}-{number}" for number in range(1, 101)])
        before = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(idempotency_key=keys), sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
        run = next((run for run in before if run.state is None or not run.state.is_final()), None)
        if run is None:
            words = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
            asked = run_deployment(
                self._parts.deployment,
                parameters={"run": str(self._path), "numbers": numbers, "limit": self._parts.limit},
                flow_run_name=f"{self._path.name} parts {words}",
                timeout=0,
                idempotency_key=f"{key}-{len(before) + 1}",
            )
            assert isinstance(asked, FlowRun)
            run = asked
        self._asked[run.id] = _Asked(list(numbers), key, attempts, run.id, run.name)

    def _read(self) -> list[FlowRun]:
        """What the server says of the runs that are asked for."""
        ids, runs = list(self._asked), []
        for start in range(0, len(ids), 200):  # as many as it tells at once
            some = FlowRunFilterId(any_=ids[start : start + 200])
            runs += self._client.read_flow_runs(flow_run_filter=FlowRunFilter(id=some), limit=200)
        return runs

    def _look(self, asked: _Asked, run: FlowRun, handout: Handout) -> Made:
        """The parts of a run that are there now, and what becomes of the others where it has ended."""
        state, now = run.state, time.monotonic()
        assert state is not None
        if state.id != asked.state:
            asked.state, asked.since = state.id, now
        if state.is_running() and asked.running is None:
            asked.running = now
        yield from self._there(asked, done=state.is_completed())
        if asked.numbers and not state.is_final():
            if state.is_scheduled() and handout.is_over:
                self._give_back(asked, handout)
            elif self._is_lost(asked, run):
                say(f"generate: {asked.name} has shown no sign of life for long; its parts are asked for again")
                self._client.set_flow_run_state(
                    asked.id, Crashed(message="no heartbeat: its process or its host is gone"), force=True
                )
            return
        if asked.numbers and state.is_completed() and now - asked.since < LATE_FILES_SECONDS:
            return
        del self._asked[asked.id]
        if asked.running is not None:
            handout.took(now - asked.running)
        if asked.numbers and not state.is_cancelled() and asked.attempts < ATTEMPTS:
            say(f"generate: {asked.name} {_ended(run)}; what it did not make is asked for again")
            self._ask(asked.numbers, asked.key, asked.attempts + 1)
        else:
            for number in asked.numbers:
                yield number, partial(self._last_word, number, asked, run)

    def _there(self, asked: _Asked, done: bool) -> Made:
        """The parts that are there; while the run is at work those with images that failed may be older than it."""
        for number in list(asked.numbers):
            record = self._folder.kept_part(number, self._keys[number])
            if record and (done or not record["failures"]):
                asked.numbers.remove(number)
                yield number, partial(_given, record)

    def _last_word(self, number: int, asked: _Asked, run: FlowRun) -> dict[str, Any]:
        record = self._folder.kept_part(number, self._keys[number])
        if record is None:
            raise RuntimeError(
                f"{asked.attempts} runs of {self._parts.deployment} did not make it; the last {_ended(run)}"
            )
        return record

    def _give_back(self, asked: _Asked, handout: Handout) -> None:
        """The time is over before any worker took it."""
        self._client.set_flow_run_state(asked.id, Cancelling(message="the time of the job is over"))
        handout.give_back(asked.numbers)
        del self._asked[asked.id]

    def _is_lost(self, asked: _Asked, run: FlowRun) -> bool:
        """Whether a run that should be at work is gone; one whose worker sends no heartbeats is never known to be."""
        assert run.state is not None
        now = time.monotonic()
        if run.state.is_pending():
            return now - asked.since > PENDING_SECONDS
        if not run.state.is_running():
            return False
        beats = self._client.read_events(
            EventFilter(
                event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
                resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
            ),
            limit=2,
        ).events
        if not beats:
            return False
        if beats[0].id != asked.beat:
            asked.beat, asked.beat_since = beats[0].id, now
        apart = (beats[0].occurred - beats[1].occurred).total_seconds() if len(beats) > 1 else BEAT_SECONDS
        return now - asked.beat_since > MISSED_BEATS * max(apart, 30.0)


def _given(record: dict[str, Any]) -> dict[str, Any]:
    return record


def _ended(run: FlowRun) -> str:
    assert run.state is not None
    return f"ended as {run.state.name}: {(run.state.message or 'without a word').partition(chr(10))[0]}"
