import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from served import Server, wait_for

from latebloom.data.store import read_json
from latebloom.flows import pipeline
from latebloom.flows.artifacts import publish
from latebloom.flows.artifacts.publish import ArtifactMeter, emit_ready, shown_progress
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import progress
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import Meter, meter
from latebloom.flows.run.records import SELECT
from latebloom.flows.runners.engine import server_stays


class Sent(list[tuple[float, str]]):
    """What meters sent in place of artifacts, percent and line; may fail first."""

    error: Exception | None = None

    def create(self, key: str, percent: float, line: str) -> UUID:
        return self.update(uuid4(), percent, line)

    def update(self, artifact: UUID, percent: float, line: str) -> UUID:
        if self.error:
            raise self.error
        self.append((percent, line))
        return artifact


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Artifacts of meters go here, and updates come only when one ends."""
    kept = Sent()
    monkeypatch.setattr(publish, "_create", kept.create)
    monkeypatch.setattr(publish, "_update", kept.update)
    monkeypatch.setattr(publish, "ARTIFACT_INTERVAL", 3600)
    return kept


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock of meters, which stands still otherwise."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(publish, "time", clock)

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_a_generation_has_one_line_a_part(
    sent: Sent, wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ArtifactMeter("generate", 40, "images", in_parts=True)
    for _ in range(2):
        for _ in range(4):
            wait(100)
            bar.add(5)
        bar.add(0, {"ok": 19, "flat": 1})
    bar.close()
    # 20 images in 400 s are 0.05 a second.
    assert capsys.readouterr().err.splitlines() == [
        "generate  50% of 40 images  0.05 images/s  7 min to go  ok 19, flat 1",
        "generate  40/40 images  100%  0.05 images/s  in 13 min  ok 38, flat 2",
    ]
    assert sent == [
        (0, "generate  0% of 40 images"),
        (100, "generate  40/40 images  100%  0.05 images/s  in 13 min  ok 38, flat 2"),
    ]


def test_training_has_a_line_a_minute_at_most_and_one_at_its_end(
    sent: Sent, wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ArtifactMeter("ours-5 sgd, seed 0", 100, "steps")
    for _ in range(10):
        wait(25)
        bar.add(10)
    bar.close()
    # After 75, 150 and 225 s, and at the end.
    shares = [line.split("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert shares == ["30%", "60%", "90%", "100%"]


def test_work_that_ends_early_says_how_far_it_came(
    sent: Sent, wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ArtifactMeter("train", 10, "steps", done=2)
    bar.add(3)
    bar.close()
    assert [percent for percent, _ in sent] == [20, 50]
    assert capsys.readouterr().err == "train  5/10 steps  50%\n"


def test_work_that_did_nothing_has_no_line(sent: Sent, capsys: pytest.CaptureFixture[str]) -> None:
    ArtifactMeter("generate", 0, "images").close()
    ArtifactMeter("generate", 40, "images", done=40).close()
    assert capsys.readouterr().err == ""
    assert [percent for percent, _ in sent] == [0, 0, 100, 100]


def test_the_artifact_follows_within_the_interval(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "ARTIFACT_INTERVAL", 0.01)
    bar = ArtifactMeter("train", 4, "steps")
    bar.add(1)
    wait_for(lambda: sent[-1][0] == 25, 10, "an update")
    time.sleep(0.1)
    assert len(sent) == 2  # nothing is sent while nothing happens
    bar.add(3)
    bar.close()
    assert sent[-1][0] == 100


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.HTTPStatusError("503", request=httpx.Request("GET", "http://x"), response=httpx.Response(503)),
        ObjectNotFound(Exception("deleted")),
    ],
    ids=["away", "busy", "deleted"],
)
def test_a_server_that_does_not_answer_ends_no_work(
    error: Exception, sent: Sent, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.warn.cache_clear()
    sent.error = error
    bar = ArtifactMeter("train", 4, "steps")
    bar._show()
    assert capsys.readouterr().err.count("warning: the Prefect server did not take an artifact") == 1  # once
    sent.error = None
    bar.add(4)
    bar.close()
    assert [percent for percent, _ in sent] == [100]


def test_our_own_mistakes_are_not_taken_for_a_lost_server(sent: Sent) -> None:
    sent.error = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        ArtifactMeter("train", 4, "steps")


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("generate", "progress-generate"),
        ("original@ours-5+craig sam, 3 seeds", "progress-original-ours-5-craig-sam"),
    ],
)
def test_artifacts_have_keys_that_prefect_takes(
    title: str, key: str, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    monkeypatch.setattr(publish, "_create", lambda key, *_: keys.append(key))
    ArtifactMeter(title, 0, "steps").close()
    assert set(keys) == {key}


def test_without_a_server_that_stays_nothing_is_shown(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "create_markdown_artifact", lambda *_: pytest.fail("an artifact was made"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert not server_stays()
        publish.stage_done(finished, SELECT)
        publish.report_done(finished)
        with shown_progress(), meter("train", 1, "steps") as bar:
            assert type(bar) is Meter


def test_with_one_the_meters_are_shown_by_it(sent: Sent) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert server_stays()
        with shown_progress(), meter("train", 1, "steps") as bar:
            assert type(bar) is ArtifactMeter


def test_a_set_that_is_not_finished_is_not_announced(finished: RunFolder) -> None:
    (finished.path / "synthetic" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        emit_ready(finished, "retrain")


# --------------------------------------------------------------------------------------------- on a real server


def artifacts_of(flow_run: UUID) -> dict[str, list[Artifact]]:
    """The artifacts of a flow run by key, oldest first."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        found: dict[str, list[Artifact]] = {}
        for artifact in client.read_artifacts(artifact_filter=wanted, limit=200):
            found.setdefault(str(artifact.key), []).append(artifact)
    return found


def events_of(name: str) -> list[dict[str, Any]]:
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}})
    return list(answer.json()["events"])


@pytest.mark.slow
def test_a_run_is_seen_from_its_first_stage_to_its_report(
    server: Server, tiny: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    out = tmp_path / "run"

    @flow(log_prints=True)
    def watched_run() -> None:
        pipeline.compare.fn(tiny(), str(out))
        emit_ready(RunFolder(out), "retrain")

    state = watched_run(return_state=True)
    assert state.is_completed(), state.message
    flow_run = state.state_details.flow_run_id
    assert flow_run is not None
    manifest = read_json(out / "synthetic" / "manifest.json")

    found = artifacts_of(flow_run)
    stages = {f"stage-{name}" for name in ("early", "select", "plan", "retrain-original-sgd", "retrain-ours-3-sgd")}
    bars = {f"progress-{name}" for name in ("early-training-to-1", "generate", "original-sgd", "ours-3-sgd")}
    assert set(found) == stages | bars | {"synthetic-set", "report", "lineage"}
    for artifacts in found.values():
        assert all(str(out) in str(one.data) for one in artifacts if one.type == "markdown")
        assert all(one.data == 100 for one in artifacts if one.type == "progress")
        assert all(len(str(one.data)) < 400_000 for one in artifacts)
    [generated] = found["progress-generate"]
    assert f"{manifest['rows']}/{manifest['rows']} images  100%" in str(generated.description)
    assert f"ok {manifest['rows']}" in str(generated.description)
    [shown] = found["synthetic-set"]
    assert "data:image/png;base64," in str(shown.data)

    def logged() -> list[str]:
        with get_client(sync_client=True) as client:
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run])), limit=200)
        return [log.message for log in logs]

    # A line for each part of seven images, though they are milliseconds apart; what tasks say is there too.
    parts = len(manifest["parts"])
    lines = wait_for(
        lambda: [m for m in logged() if m.startswith("generate  ")] if len(logged()) > 20 else [], 30, "logs"
    )
    assert len(lines) == parts
    assert any(message.startswith("selection: ") for message in logged())
    assert not any("━" in message or "\r" in message for message in logged())

    [event] = wait_for(lambda: events_of("latebloom.synthetic.ready"), 30, "the event")
    assert event["resource"]["prefect.resource.id"] == f"latebloom.synthetic.{manifest['digest']}"
    assert event["resource"]["latebloom.then"] == "retrain"
    assert event["payload"] == {
        "run": str(out),
        "manifest": f"{out}/synthetic/manifest.json",
        "digest": manifest["digest"],
        "images": manifest["rows"],
        "states": manifest["states"],
    }
    assert f"prefect.flow-run.{flow_run}" in [one["prefect.resource.id"] for one in event["related"]]
