"""What a job does about the runs that make its parts, as they come and go: against a server that is made up."""

import itertools
import shutil
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Failed, Pending, Running, Scheduled
from prefect.types._datetime import now

from latebloom.data.store import read_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.budget import Deadline
from latebloom.flows.run.folder import RunFolder, Unusable
from latebloom.flows.runners import deployment_runs
from latebloom.flows.runners.deployment_runs import PartRuns
from latebloom.flows.runners.queue import PartQueue

Tiny = Callable[..., CompareConfig]
Move = Callable[[FlowRun], State]


class Imagined:
    """A server. Each time it is asked about its runs, the next of `moves` says what has become of one of them."""

    api_url = "http://imagined/api"

    def __init__(self, finished: RunFolder) -> None:
        self.runs: list[FlowRun] = []
        self.states_set: list[tuple[str, str]] = []  # a run's key and the state that the job gave it
        self.beats: list[Any] = []
        self.moves: dict[str, list[Move]] = {}
        self.made, self.synthetic = finished.path / "made", finished.path / "synthetic"
        shutil.move(self.synthetic, self.made)

    def make(self, *numbers: int) -> None:
        """Let parts be there."""
        (self.synthetic / ".parts").mkdir(parents=True, exist_ok=True)
        for number in numbers:
            for name in (f"part-{number:05d}.parquet", f".parts/part-{number:05d}.json"):
                shutil.copy(self.made / name, self.synthetic / name)

    def makes(self, *numbers: int, then: Callable[[], State] = Completed) -> Move:
        """A run that has made these parts, and is in this state."""

        def move(_: FlowRun) -> State:
            self.make(*numbers)
            return then()

        return move

    # What PartRuns asks of Prefect's client.

    def __enter__(self) -> "Imagined":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_deployment_by_name(self, name: str) -> None:
        if name != "generate-part/generate-part":
            raise ObjectNotFound(Exception(name))

    def run_deployment(self, name: str, **asked: Any) -> FlowRun:
        assert asked["timeout"] == 0
        run = FlowRun(flow_id=uuid4(), name=asked["flow_run_name"], state=Scheduled(), parameters=asked["parameters"])
        run.idempotency_key = asked["idempotency_key"]
        for other in self.runs:
            if other.idempotency_key == run.idempotency_key:
                return other  # as the real one does
        self.runs.append(run)
        return run

    def read_flow_runs(self, flow_run_filter: Any, **_: Any) -> list[FlowRun]:
        if flow_run_filter.idempotency_key:
            return [run for run in self.runs if run.idempotency_key in flow_run_filter.idempotency_key.any_]
        found = [run for run in self.runs if run.id in flow_run_filter.id.any_]
        for run in found:
            moves = self.moves.get(key_of(run), [])
            assert run.state is not None
            if moves and not run.state.is_final():
                run.state = moves.pop(0)(run)
        return found

    def read_events(self, *_: Any, limit: int) -> SimpleNamespace:
        return SimpleNamespace(events=self.beats[:limit])

    def set_flow_run_state(self, flow_run_id: UUID, state: State, force: bool = False) -> None:
        run = next((run for run in self.runs if run.id == flow_run_id), None)
        if run is None:
            raise ObjectNotFound(Exception(str(flow_run_id)))
        self.states_set.append((key_of(run), state.name))
        run.state = state


def key_of(run: FlowRun) -> str:
    """`0-1` for the first run that was asked for the first block of parts."""
    assert run.idempotency_key is not None
    block, _, number = run.idempotency_key.partition("-")[2].partition("x4-")
    return f"{block}-{number}"


def running(_: FlowRun) -> State:
    return Running()


@pytest.fixture
def imagined(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Imagined:
    server = Imagined(finished)
    monkeypatch.setattr(deployment_runs, "get_client", lambda **_: server)
    monkeypatch.setattr(deployment_runs, "run_deployment", server.run_deployment)
    seconds = itertools.count(step=10.0)  # that the job waits for and looks at
    monkeypatch.setattr(deployment_runs, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(seconds)))
    return server


def ask(finished: RunFolder, config: CompareConfig, queue: PartQueue) -> dict[int, str]:
    """What becomes of each part: `made`, or the error."""
    ends = {}
    with temporary_settings({PREFECT_API_URL: Imagined.api_url}):
        for number, result in PartRuns(finished, config).made(queue):
            try:
                result()
                ends[number] = "made"
            except RuntimeError as error:
                ends[number] = str(error)
    return ends


@pytest.fixture
def config(tiny: Tiny) -> CompareConfig:
    return tiny({"parts.runner": "runs", "parts.parts_a_run": 4})


def test_a_run_is_asked_for_a_block_of_parts_and_given_their_folder(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    imagined.moves = {"0-1": [running, imagined.makes(1, 2, 3)], "1-1": [imagined.makes(4, 5)]}
    assert ask(finished, config, PartQueue([1, 2, 3, 4, 5])) == dict.fromkeys([4, 5, 1, 2, 3], "made")
    assert [run.parameters for run in imagined.runs] == [
        {"run": str(finished.path), "numbers": [1, 2, 3], "limit": ""},
        {"run": str(finished.path), "numbers": [4, 5], "limit": ""},
    ]
    assert [run.name for run in imagined.runs] == ["run parts 1 to 3", "run parts 4 to 5"]
    assert imagined.states_set == []


def test_parts_count_as_soon_as_they_are_there(imagined: Imagined, finished: RunFolder, config: CompareConfig) -> None:
    imagined.moves = {"0-1": [imagined.makes(1, then=Running), imagined.makes(0, then=Running), lambda _: Completed()]}
    assert list(ask(finished, config, PartQueue([0, 1]))) == [1, 0]


def test_no_more_runs_are_asked_for_at_a_time_than_processes(
    imagined: Imagined, finished: RunFolder, tiny: Tiny
) -> None:
    config = tiny({"parts.runner": "runs", "parts.parts_a_run": 4, "generate.processes": 1})
    imagined.moves = {"0-1": [running, imagined.makes(0)], "1-1": [imagined.makes(4)], "2-1": [imagined.makes(8)]}
    at_work: list[int] = []
    read = imagined.read_flow_runs
    imagined.read_flow_runs = lambda **asked: (
        at_work.append(  # type: ignore[method-assign]
            sum(not run.state.is_final() for run in imagined.runs)
        )
        or read(**asked)
    )
    assert set(ask(finished, config, PartQueue([0, 4, 8]))) == {0, 4, 8}
    assert max(at_work) == 1


def test_what_a_run_leaves_is_asked_for_again_under_another_key(
    imagined: Imagined, finished: RunFolder, config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    imagined.moves = {
        "0-1": [imagined.makes(0, then=lambda: Failed(message="Partial: 2 of 3\nmore"))],
        "0-2": [imagined.makes(1, 2)],
    }
    assert ask(finished, config, PartQueue([0, 1, 2])) == dict.fromkeys([0, 1, 2], "made")
    assert [run.parameters["numbers"] for run in imagined.runs] == [[0, 1, 2], [1, 2]]
    assert "run parts 0 to 2 ended as Failed: Partial: 2 of 3; what it did not make" in capsys.readouterr().err


def test_after_three_runs_a_part_has_failed_and_the_last_one_says_why(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    imagined.moves = {f"0-{number}": [lambda _: Failed(message="no GPU")] for number in (1, 2, 3)}
    imagined.moves["1-1"] = [imagined.makes(4)]
    assert ask(finished, config, PartQueue([0, 4])) == {
        4: "made",
        0: "3 runs of generate-part/generate-part did not make it; the last ended as Failed: no GPU",
    }
    assert len(imagined.runs) == 4


def test_a_run_whose_generator_makes_nothing_usable_ends_the_job_at_once(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    imagined.moves = {"0-1": [lambda _: Failed(name="Unusable", message="generator G makes no image")]}
    with pytest.raises(Unusable, match="generator G makes no image"):
        ask(finished, config, PartQueue([0, 4]))
    assert len(imagined.runs) == 2
    assert ("1-1", "Cancelling") in imagined.states_set


def test_what_a_person_cancelled_is_not_asked_for_again(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    imagined.moves = {"0-1": [lambda _: Cancelled(message="by me")]}
    assert "ended as Cancelled: by me" in ask(finished, config, PartQueue([0]))[0]
    assert len(imagined.runs) == 1


def test_files_that_show_late_are_waited_for(imagined: Imagined, finished: RunFolder, config: CompareConfig) -> None:
    read = imagined.read_flow_runs
    looks = itertools.count()

    def later(**asked: Any) -> list[FlowRun]:
        if asked["flow_run_filter"].id and next(looks) == 2:
            imagined.make(0)
        return read(**asked)

    imagined.read_flow_runs = later  # type: ignore[method-assign]
    imagined.moves = {"0-1": [lambda _: Completed()]}
    assert ask(finished, config, PartQueue([0])) == {0: "made"}
    assert len(imagined.runs) == 1


def test_a_run_of_an_earlier_command_is_taken_over_and_ended_ones_are_not(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    with temporary_settings({PREFECT_API_URL: Imagined.api_url}):  # a command that is killed when it has asked twice
        killed = PartRuns(finished, config)
        killed._client = imagined  # type: ignore[assignment]
        for attempt in (1, 2):
            killed._ask([0, 1], f"{killed._job}-0x4", attempt)
            if attempt == 1:
                imagined.runs[0].state = Failed()
    imagined.moves = {"0-2": [running, imagined.makes(0, 1)]}
    assert ask(finished, config, PartQueue([0, 1])) == {0: "made", 1: "made"}
    assert len(imagined.runs) == 2
    shutil.rmtree(imagined.synthetic)
    imagined.moves = {"0-3": [imagined.makes(0, 1)]}  # both have ended by now, and a person removed what they made
    assert ask(finished, config, PartQueue([0, 1])) == {0: "made", 1: "made"}
    assert len(imagined.runs) == 3


@pytest.fixture
def earlier(imagined: Imagined, finished: RunFolder, config: CompareConfig) -> Callable[..., None]:
    """What an earlier command asked for and left: a run of the first block in each of these states."""

    def asks(*states: State) -> None:
        with temporary_settings({PREFECT_API_URL: Imagined.api_url}):
            before = PartRuns(finished, config)
        before._client = imagined  # type: ignore[assignment]
        for state in states:
            before._ask([0], f"{before._job}-0x4", 1)
            imagined.runs[-1].state = state

    return asks


def test_a_run_of_an_earlier_command_that_is_being_cancelled_is_not_taken_over(
    imagined: Imagined, finished: RunFolder, config: CompareConfig, earlier: Callable[..., None]
) -> None:
    earlier(Cancelling())
    imagined.moves = {"0-2": [imagined.makes(0)]}
    assert ask(finished, config, PartQueue([0])) == {0: "made"}


def test_a_run_that_nobody_ends_when_it_is_cancelled_is_cancelled_by_the_job(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    cancelling = Cancelling()
    imagined.moves = {"0-1": [running] + [lambda _: cancelling] * 100}
    assert "ended as Cancelled: no worker has ended it" in ask(finished, config, PartQueue([0]))[0]
    assert imagined.states_set == [("0-1", "Cancelled")]


def test_what_was_to_be_made_by_runs_that_are_deleted_is_asked_for_again_but_not_for_ever(
    imagined: Imagined, finished: RunFolder, config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    read, looks = imagined.read_flow_runs, itertools.count()

    def deleted(**asked: Any) -> list[FlowRun]:
        if asked["flow_run_filter"].id:
            assert next(looks) < 100, "a job that never ends"
            imagined.runs.clear()
        return read(**asked)

    imagined.read_flow_runs = deleted  # type: ignore[method-assign]
    assert ask(finished, config, PartQueue([0])) == {
        0: "3 runs of generate-part/generate-part did not make it; the last was deleted"
    }
    assert "run parts 0 was deleted; what it did not make is asked for again" in capsys.readouterr().err


@pytest.mark.parametrize(("ended", "deleted", "next_one"), [(2, 1, 3), (100, 0, 101), (230, 99, 231)])
def test_a_new_run_has_a_key_that_no_run_of_an_earlier_command_has(
    ended: int,
    deleted: int,
    next_one: int,
    imagined: Imagined,
    finished: RunFolder,
    config: CompareConfig,
    earlier: Callable[..., None],
) -> None:
    earlier(*[Failed() for _ in range(ended)])
    del imagined.runs[:deleted]
    imagined.moves = {f"0-{next_one}": [imagined.makes(0)]}
    assert ask(finished, config, PartQueue([0])) == {0: "made"}
    assert key_of(imagined.runs[-1]) == f"0-{next_one}"


def test_where_no_worker_takes_a_run_one_line_says_what_is_missing(
    imagined: Imagined, finished: RunFolder, config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for state in (Scheduled(), Running()):
        imagined.runs.clear()
        shutil.rmtree(imagined.synthetic, ignore_errors=True)
        stays: list[Move] = [lambda _, state=state: state] * 50  # type: ignore[misc]
        imagined.moves = {"0-1": [*stays, imagined.makes(0)], "1-1": [*stays, imagined.makes(4)]}
        ask(finished, config, PartQueue([0, 4]))
        lines.append(
            capsys.readouterr().err.count("no worker has begun any of the runs of generate-part/generate-part yet")
        )
    assert lines == [1, 0]


def test_what_a_run_waits_for_a_slot_does_not_count_as_the_time_that_parts_take(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    imagined.moves = {"0-1": [running] * 50 + [imagined.makes(0, 1)]}
    queue = PartQueue([0, 1])
    ask(finished, config, queue)
    records = [read_json(imagined.synthetic / f".parts/part-0000{number}.json") for number in (0, 1)]
    assert queue._longest == sum(record["seconds"] for record in records) < 500


def test_a_run_that_cannot_be_cancelled_hides_no_error_and_the_others_are_cancelled(
    imagined: Imagined, finished: RunFolder, config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    imagined.moves = {"0-1": [imagined.makes(0, then=Running)]}
    with temporary_settings({PREFECT_API_URL: Imagined.api_url}):
        made = PartRuns(finished, config).made(PartQueue([0, 1, 4]))
        next(made)
        del imagined.runs[0]
        with pytest.raises(OSError, match="full"):
            made.throw(OSError("the disk is full"))
    assert imagined.states_set == [("1-1", "Cancelling")]
    assert "run parts 0 to 1 was not cancelled (ObjectNotFound)" in capsys.readouterr().err


def test_another_run_folder_is_another_job(imagined: Imagined, finished: RunFolder, config: CompareConfig) -> None:
    copy = finished.path.parent / "copy"
    shutil.copytree(finished.path, copy)
    with temporary_settings({PREFECT_API_URL: Imagined.api_url}):
        assert PartRuns(finished, config)._job != PartRuns(RunFolder(copy), config)._job


def beat(seconds_ago: float) -> SimpleNamespace:
    return SimpleNamespace(id=uuid4(), occurred=now() - timedelta(seconds=seconds_ago))


def test_a_run_without_heartbeats_is_lost_and_its_parts_are_asked_for_again(
    imagined: Imagined, finished: RunFolder, config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    imagined.beats = [beat(0), beat(30)]
    imagined.moves = {"0-1": [running], "0-2": [imagined.makes(0)]}
    assert ask(finished, config, PartQueue([0])) == {0: "made"}
    assert imagined.states_set == [("0-1", "Crashed")]
    assert "no sign of life" in capsys.readouterr().err


def test_a_run_with_heartbeats_or_whose_worker_sends_none_is_waited_for(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    for beats in ([], [beat(0), beat(30)]):
        imagined.runs.clear()
        imagined.beats = beats

        def beats_on(_: FlowRun) -> State:
            imagined.beats[:1] = [beat(0)] if imagined.beats else []
            return Running()

        imagined.moves = {"0-1": [beats_on] * 50 + [imagined.makes(0)]}
        shutil.rmtree(imagined.synthetic, ignore_errors=True)
        assert ask(finished, config, PartQueue([0])) == {0: "made"}
        assert imagined.states_set == []


def test_a_run_that_no_worker_gets_to_start_is_lost_after_half_an_hour(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    pending = Pending()
    imagined.moves = {"0-1": [lambda _: pending], "0-2": [imagined.makes(0)]}
    assert ask(finished, config, PartQueue([0])) == {0: "made"}
    assert imagined.states_set == [("0-1", "Crashed")]


def test_when_the_time_is_over_runs_that_have_not_begun_are_taken_back_and_others_end(
    imagined: Imagined, finished: RunFolder, config: CompareConfig
) -> None:
    clock = [0.0]

    def over(_: FlowRun) -> State:
        clock[0] = 1000.0
        return Running()

    imagined.moves = {"0-1": [over, imagined.makes(0, 1)]}
    queue = PartQueue([0, 1, 4, 8], Deadline(500, lambda: clock[0]))
    assert ask(finished, config, queue) == {0: "made", 1: "made"}
    assert queue.left == [4, 8]
    assert imagined.states_set == [("1-1", "Cancelling"), ("2-1", "Cancelling")]


def test_a_job_that_ends_early_cancels_its_runs(imagined: Imagined, finished: RunFolder, config: CompareConfig) -> None:
    imagined.moves = {"0-1": [imagined.makes(0, then=Running)]}
    with temporary_settings({PREFECT_API_URL: Imagined.api_url}):
        made = PartRuns(finished, config).made(PartQueue([0, 1, 4]))
        assert next(made)[0] == 0
        made.close()
    assert imagined.states_set == [("0-1", "Cancelling"), ("1-1", "Cancelling")]


def test_what_cannot_work_is_refused_before_anything_is_asked_for(
    imagined: Imagined, finished: RunFolder, tiny: Tiny
) -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ValueError, match="needs a Prefect server"):
        PartRuns(finished, tiny())
    other = tiny({"parts.runner": "runs", "parts.deployment": "generate-part/other"})
    with (
        temporary_settings({PREFECT_API_URL: Imagined.api_url}),
        pytest.raises(ValueError, match="no deployment generate-part/other on http://imagined/api"),
    ):
        PartRuns(finished, other)
