"""Parts made by runs of a deployment, on whatever workers its work pool has: other machines with the same storage.

The files in the run folder count, not the state of a run. The parts that a run did not make are asked for again. A run
whose process is gone, which Prefect may show as running for ever, is found by its missing heartbeats.
"""

import dataclasses
import itertools
import time
from functools import partial
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling, Crashed

from latebloom.data.store import digest_json, is_remote
from latebloom.data.synthetic.folder import PartRecord, SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, Unusable
from latebloom.flows.run.progress import say, warn
from latebloom.flows.runners.queue import Made, PartQueue
from latebloom.flows.stages.synthesis import part_keys

__all__ = ["PartRuns"]

ATTEMPTS = 3
POLL_SECONDS = 2.0
BEAT_SECONDS = 180.0  # Prefect's default, where a run has not beaten twice yet
MISSED_BEATS = 3  # a run that misses so many is lost
CANCELLING_SECONDS = 300.0  # that a worker may take to end a run that was cancelled
UNTAKEN_SECONDS = 60.0  # after so long without a worker that takes a run, a line says so
KEYS = 100  # looked up at once
PENDING_SECONDS = 1800.0  # that a worker may take to start a run: a cluster may fetch an image first
LATE_FILES_SECONDS = 60.0  # that a shared file system may take to show a new file


@dataclasses.dataclass
class _Asked:
    """Parts that a run was asked for, and the state that it was last seen in."""

    numbers: list[int]  # those that are not there yet
    key: str
    attempts: int
    id: UUID
    name: str
    state: UUID | None = None
    since: float = 0.0  # when it was first seen in this state
    running: float | None = None  # when it was first seen at work
    seconds: float = 0.0  # that its parts took, without the time they waited
    beat: UUID | None = None
    beat_since: float = 0.0


class PartRuns:
    """Runs of a deployment that make the parts of a job.

    Raises:
        ValueError: there is no server that stays, or no such deployment on it.
    """

    def __init__(self, run: RunFolder, config: CompareConfig) -> None:
        name = config.parts.deployment
        if not get_current_settings().api.url:
            raise ValueError(
                "runner runs needs a Prefect server that workers reach; start one with `latebloom up`, or name it in "
                "PREFECT_API_URL"
            )
        with get_client(sync_client=True) as client:
            try:
                client.read_deployment_by_name(name)
            except ObjectNotFound:
                raise ValueError(
                    f"no deployment {name} on {client.api_url}; make it with `latebloom up` or `prefect deploy`"
                ) from None
        self._path = run.path if is_remote(run.path) else run.path.absolute()
        self._parts, self._at_a_time = config.parts, config.generate.processes
        self._folder, self._keys = SyntheticFolder(run.path / "synthetic"), part_keys(run, config)
        # Of another folder or another plan it is another job.
        self._job = digest_json({"run": str(self._path), "parts": self._keys})[:16]
        self._asked: dict[UUID, _Asked] = {}
        self._taken = False  # a worker has taken a run, or a line has said that none does

    def made(self, queue: PartQueue) -> Made:
        """Each part when it is there, or when no run could make it."""
        with get_client(sync_client=True) as client:
            self._client: SyncPrefectClient = client
            begin = time.monotonic()
            try:
                while True:
                    self._ask_for_more(queue)
                    if not self._asked:
                        return
                    runs = self._read()
                    self._say_if_none_is_taken(runs, begin)
                    for asked in list(self._asked.values()):
                        if asked.id in runs:
                            yield from self._update(asked, runs[asked.id], queue)
                        else:
                            yield from self._end(asked, "was deleted", again=True)
                    time.sleep(POLL_SECONDS)
            finally:
                self._cancel_all()  # none where all went well

    def _ask_for_more(self, queue: PartQueue) -> None:
        while not self._at_a_time or len(self._asked) < self._at_a_time:
            numbers = queue.take(self._parts.parts_a_run)
            if not numbers:
                return
            block = numbers[0] // self._parts.parts_a_run
            self._ask(numbers, f"{self._job}-{block}x{self._parts.parts_a_run}", 1)

    def _ask(self, numbers: list[int], key: str, attempts: int) -> None:
        """Ask for parts; where an earlier command did and its run has not ended, that run is taken over."""
        before = self._asked_before(key)
        run = next((before[number] for number in sorted(before, reverse=True) if _goes_on(before[number])), None)
        if run is None:
            words = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
            asked = run_deployment(
                self._parts.deployment,
                parameters={"run": str(self._path), "numbers": numbers, "limit": self._parts.limit},
                flow_run_name=f"{self._path.name} parts {words}",
                timeout=0,
                idempotency_key=f"{key}-{1 + max(before, default=0)}",
            )
            assert isinstance(asked, FlowRun)
            run = asked
        self._asked[run.id] = _Asked(list(numbers), key, attempts, run.id, run.name)

    def _asked_before(self, key: str) -> dict[int, FlowRun]:
        """The runs that were ever asked for under a key, by the number that follows it; some may be deleted."""
        found: dict[int, FlowRun] = {}
        for first in itertools.count(1, KEYS):
            numbers = {f"{key}-{number}": number for number in range(first, first + KEYS)}
            keys = FlowRunFilterIdempotencyKey(any_=list(numbers))
            runs = self._client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=keys))
            if not runs:
                break
            found |= {numbers[str(run.idempotency_key)]: run for run in runs}
        return found

    def _read(self) -> dict[UUID, FlowRun]:
        """The runs that were asked for as the server has them, by id, without those that were deleted."""
        ids, runs = list(self._asked), []
        for start in range(0, len(ids), 200):  # as many as it lists at once
            some = FlowRunFilterId(any_=ids[start : start + 200])
            runs += self._client.read_flow_runs(flow_run_filter=FlowRunFilter(id=some), limit=200)
        return {run.id: run for run in runs}

    def _say_if_none_is_taken(self, runs: dict[UUID, FlowRun], begin: float) -> None:
        """A worker with one place, which this very run has, is the likely reason."""
        if any(run.state and not run.state.is_scheduled() for run in runs.values()):
            self._taken = True
        if not self._taken and time.monotonic() - begin > UNTAKEN_SECONDS:
            self._taken = True
            say(
                f"generate: no worker has begun any of the runs of {self._parts.deployment} yet; they need room "
                "beside this run: latebloom up --limit 2, or another worker (docs/operations.md)"
            )

    def _cancel_all(self) -> None:
        for asked in self._asked.values():
            try:
                self._client.set_flow_run_state(asked.id, Cancelling(message="the job that asked for it has ended"))
            except (httpx.HTTPError, ObjectNotFound) as error:  # the others, and why the job ends, come first
                warn(f"{asked.name} was not cancelled ({type(error).__name__}); it makes its parts in vain")

    def _update(self, asked: _Asked, run: FlowRun, queue: PartQueue) -> Made:
        """The parts of a run that are there now, and what becomes of the others where it has ended."""
        state, now = run.state, time.monotonic()
        assert state is not None
        if state.id != asked.state:
            asked.state, asked.since = state.id, now
        if state.is_running() and asked.running is None:
            asked.running = now
        yield from self._there(asked, done=state.is_completed())
        if asked.numbers and not state.is_final():
            if state.is_scheduled() and queue.is_over:
                self._give_back(asked, queue)
            elif state.is_cancelling() and now - asked.since > CANCELLING_SECONDS:
                ended: State[Any] = Cancelled(message="no worker has ended it")
                self._client.set_flow_run_state(asked.id, ended, force=True)
            elif self._is_lost(asked, run):
                say(f"generate: {asked.name} has shown no sign of life for long; its parts are asked for again")
                self._client.set_flow_run_state(
                    asked.id, Crashed(message="no heartbeat: its process or its host is gone"), force=True
                )
            return
        if asked.numbers and state.is_completed() and now - asked.since < LATE_FILES_SECONDS:
            return
        if asked.running is not None:
            queue.took(min(asked.seconds, now - asked.running))  # a run may make some of its parts side by side
        if state.name == Unusable.__name__:  # every other run would end so
            raise Unusable(state.message)
        how = f"ended as {state.name}: {(state.message or 'without a word').partition(chr(10))[0]}"
        yield from self._end(asked, how, again=not state.is_cancelled())

    def _end(self, asked: _Asked, how: str, again: bool) -> Made:
        """Ask again for the parts that a run did not make, or give them up."""
        del self._asked[asked.id]
        if asked.numbers and again and asked.attempts < ATTEMPTS:
            say(f"generate: {asked.name} {how}; what it did not make is asked for again")
            self._ask(asked.numbers, asked.key, asked.attempts + 1)
        else:
            for number in asked.numbers:
                yield number, partial(self._last_word, number, asked, how)

    def _there(self, asked: _Asked, done: bool) -> Made:
        """The parts that are there. A part with failed images counts once the run is done: before, it may be older."""
        for number in list(asked.numbers):
            record = self._folder.kept_part(number, self._keys[number])
            if record and (done or not record.failures):
                asked.numbers.remove(number)
                asked.seconds += record.seconds
                yield number, partial(_given, record)

    def _last_word(self, number: int, asked: _Asked, how: str) -> PartRecord:
        record = self._folder.kept_part(number, self._keys[number])
        if record is None:
            raise RuntimeError(f"{asked.attempts} runs of {self._parts.deployment} did not make it; the last {how}")
        return record

    def _give_back(self, asked: _Asked, queue: PartQueue) -> None:
        """Cancel a run that no worker took before the time was over, and put its parts back."""
        self._client.set_flow_run_state(asked.id, Cancelling(message="the time of the job is over"))
        queue.give_back(asked.numbers)
        del self._asked[asked.id]

    def _is_lost(self, asked: _Asked, run: FlowRun) -> bool:
        """Whether a run that should be at work is gone; never where its worker sends no heartbeats."""
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


def _given(record: PartRecord) -> PartRecord:
    return record


def _goes_on(run: FlowRun) -> bool:
    return run.state is None or not (run.state.is_final() or run.state.is_cancelling())
