import dataclasses
import importlib.machinery
import json
import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from latebloom.data.store import as_path
from latebloom.train.loop.log import RunLog


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: per tag, steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_each_epoch_is_a_line_and_a_point_on_a_curve(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.epoch(1, loss=2.5, lr=0.1)
        assert lines(tmp_path / "run") == [{"epoch": 1, "loss": 2.5, "lr": 0.1}]  # on disk at once
        log.epoch(2, loss=1.25, lr=0.01)
        log.end(test_error=0.25)
    assert lines(tmp_path / "run") == [
        {"epoch": 1, "loss": 2.5, "lr": 0.1},
        {"epoch": 2, "loss": 1.25, "lr": 0.01, "test_error": 0.25},
    ]
    assert events(tmp_path / "run") == {
        "loss": [(1, 2.5), (2, 1.25)],
        "lr": [(1, 0.1), (2, 0.01)],
        "test_error": [(2, 0.25)],
    }


def test_a_run_that_was_killed_and_resumed_has_each_epoch_once(tmp_path: Path) -> None:
    killed = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        killed.epoch(epoch, loss=epoch)
    killed.close()
    # TensorBoard reads files in the order of their names, which begin with the second they were made in.
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')  # killed while it wrote
    with RunLog(tmp_path, 1) as log:  # its last checkpoint was of epoch 1
        assert lines(tmp_path) == [{"epoch": 1, "loss": 1}]
        log.epoch(2, loss=20.0)
        log.epoch(3, loss=30.0)
    assert lines(tmp_path) == [{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": 20}, {"epoch": 3, "loss": 30}]
    assert events(tmp_path) == {"loss": [(1, 1), (2, 20), (3, 30)]}


def test_a_run_that_starts_anew_in_its_folder_forgets_the_old_one(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with RunLog(tmp_path) as log:
            log.epoch(1, loss=loss)
    assert lines(tmp_path) == [{"epoch": 1, "loss": 2}]
    assert events(tmp_path) == {"loss": [(1, 2)]}


def test_a_log_that_lacks_epochs_warns_and_continues(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"epoch": 1, "loss": null}\nnot json\n[]\n{"epoch": "2"}\n')
    with pytest.warns(UserWarning, match="has 1 of the 2 epochs that are done"):
        log = RunLog(tmp_path, 2)
    log.epoch(3, loss=1.0)
    log.close()
    assert lines(tmp_path) == [{"epoch": 1, "loss": None}, {"epoch": 3, "loss": 1}]


def test_what_is_not_finite_is_null_since_json_has_no_nan(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.epoch(1, loss=math.nan, lr=math.inf)
    assert lines(tmp_path) == [{"epoch": 1, "loss": None, "lr": None}]


def test_an_epoch_twice_and_an_end_without_epochs_are_refused(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    with pytest.raises(ValueError, match="no epoch yet"):
        log.end(test_error=0.5)
    log.epoch(1, loss=1.0)
    with pytest.raises(ValueError, match="has epoch 1 already"):
        log.epoch(1, loss=1.0)
    log.close()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("object stores cannot append")


def test_a_remote_folder_gets_the_lines_only_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = as_path("memory://log-test/run")
    monkeypatch.setattr(type(folder), "open", refuse)
    with pytest.warns(UserWarning, match="no TensorBoard files"):
        log = RunLog(folder)
    log.epoch(1, loss=1.0)
    log.epoch(2, loss=2.0)
    log.close()
    with pytest.warns(UserWarning, match="no TensorBoard files"), RunLog(folder, 1) as log:
        log.epoch(2, loss=3.0)
    text = (folder / "log.jsonl").read_bytes().decode()
    assert [json.loads(line) for line in text.splitlines()] == [{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": 3}]
    assert not (folder / "tensorboard").exists()


class MlflowException(Exception):
    pass


@dataclasses.dataclass
class Metric:
    key: str
    value: float
    timestamp: int
    step: int


class Server:
    """Stands in for an MLflow server: experiments by name, runs with their metrics, parameters and status."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.metrics: list[list[Metric]] = []
        self.params: list[dict[str, str]] = []
        self.status: list[str] = []
        self.down = False

    def client(self, tracking_uri: str) -> "Server":
        if self.down:
            raise MlflowException("connection refused")
        assert tracking_uri == "http://server"
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment: str, run_name: str) -> Any:
        assert (experiment, run_name) == ("0", "run")
        self.metrics.append([])
        self.params.append({})
        self.status.append("RUNNING")
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=str(len(self.metrics) - 1)))

    def update_run(self, run: str, status: str) -> None:
        self.status[int(run)] = status

    def get_metric_history(self, run: str, key: str) -> list[Metric]:
        return [metric for metric in self.metrics[int(run)] if metric.key == key]

    def log_batch(self, run: str, metrics: list[Metric] = [], params: list[Any] = []) -> None:  # noqa: B006
        if self.down:
            raise MlflowException("connection refused")
        self.metrics[int(run)] += metrics
        self.params[int(run)] |= dict(params)

    def set_terminated(self, run: str, status: str) -> None:
        self.status[int(run)] = status

    def points(self, key: str) -> list[tuple[int, float]]:
        (metrics,) = self.metrics
        return [(metric.step, metric.value) for metric in metrics if metric.key == key]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    mlflow = types.ModuleType("mlflow")
    mlflow.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
    contents = {
        "MlflowClient": server.client,
        "entities": types.SimpleNamespace(Metric=Metric, Param=lambda key, value: (key, value)),
        "exceptions": types.SimpleNamespace(MlflowException=MlflowException),
    }
    vars(mlflow).update(contents)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    return server


def test_nothing_goes_to_mlflow_unasked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with RunLog(tmp_path) as log:
        log.epoch(1, loss=1.0)
    assert server.metrics == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.jsonl", "tensorboard"]


def test_mlflow_gets_the_numbers_where_it_is_asked_for(server: Server, tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", parameters={"seed": 3}) as log:
        log.epoch(1, loss=2.0)
        log.epoch(2, loss=1.0)
        log.end(test_error=0.5)
    assert server.experiments == {"latebloom": "0"}
    assert server.params == [{"seed": "3"}]
    assert server.points("loss") == [(1, 2), (2, 1)]
    assert server.points("test_error") == [(2, 0.5)]
    assert server.status == ["FINISHED"]


def failing(folder: Path, kind: type[BaseException]) -> None:
    with RunLog(folder) as log:
        log.epoch(1, loss=1.0)
        raise kind


@pytest.mark.parametrize(("kind", "status"), [(KeyboardInterrupt, "KILLED"), (FloatingPointError, "FAILED")])
def test_mlflow_learns_how_the_run_ended(
    server: Server, tmp_path: Path, kind: type[BaseException], status: str
) -> None:
    with pytest.raises(kind):
        failing(tmp_path / "run", kind)
    assert server.status == [status]


def test_a_resumed_run_goes_on_in_its_mlflow_run_with_each_epoch_once(server: Server, tmp_path: Path) -> None:
    killed = RunLog(tmp_path / "run")
    for epoch in (1, 2, 3):
        killed.epoch(epoch, loss=epoch)
    with RunLog(tmp_path / "run", 1) as log:
        assert server.status == ["RUNNING"]
        for epoch in (2, 3, 4):
            log.epoch(epoch, loss=epoch)
    killed.close()
    assert server.points("loss") == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_an_mlflow_server_that_cannot_be_reached_is_an_error_at_the_start(server: Server, tmp_path: Path) -> None:
    server.down = True
    with pytest.raises(OSError, match="MLflow at http://server cannot be used"):
        RunLog(tmp_path / "run")


def test_an_mlflow_server_that_goes_down_does_not_take_the_training_with_it(server: Server, tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        server.down = True
        with pytest.warns(UserWarning, match="takes no more metrics"):
            log.epoch(1, loss=1.0)
        log.epoch(2, loss=2.0)  # one warning
    assert len(lines(tmp_path / "run")) == 2


def test_an_address_without_the_package_gets_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.warns(UserWarning, match="mlflow is not installed"):
        RunLog(tmp_path).close()
