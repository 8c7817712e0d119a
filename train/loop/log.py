"""The log of a training run, one entry an epoch: JSON lines and TensorBoard always, MLflow if it is configured."""

import importlib.util
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from latebloom.data.store import is_remote, read_json, write_bytes, write_json

__all__ = ["RunLog"]

_LINES = "log.jsonl"
_EVENTS = "tensorboard"
_MLFLOW = "mlflow.json"


class RunLog:
    """The log of one training run in its folder, one entry an epoch; to be used in a `with` block.

    - `log.jsonl`: one JSON object an epoch, on disk as soon as the epoch is.
    - `tensorboard/`: the same numbers as event files; a local folder only.
    - MLflow, when MLFLOW_TRACKING_URI is set and mlflow is installed: the same numbers as metrics of a run, whose id is
      kept in `mlflow.json`, so that a resumed run goes on in it. The experiment is MLFLOW_EXPERIMENT_NAME or latebloom.

    A run that is killed and resumed has each epoch once: entries after the epoch that it resumes from are dropped.
    """

    def __init__(self, folder: Path, resume_epoch: int = 0, parameters: Mapping[str, Any] | None = None) -> None:
        """Open the log.

        Args:
            folder: local or remote; made when there is none.
            resume_epoch: finished epochs, which stay in the log; 0 starts a new log.
            parameters: the run's parameters for MLflow.

        Raises:
            OSError: the folder cannot be written, or the MLflow server not be used.
        """
        assert resume_epoch >= 0
        self._folder = folder
        self._lines = _read_lines(folder / _LINES, resume_epoch) if resume_epoch else []
        self._rewrite()
        self._events: Any = None
        self._mlflow: _MLflowRun | None = None
        if is_remote(folder):
            warnings.warn(f"{folder} is remote: it gets {_LINES} but no TensorBoard files", stacklevel=2)
        else:
            from torch.utils.tensorboard import SummaryWriter  # half a second, and only training needs it

            for stale in [] if resume_epoch else list((folder / _EVENTS).glob("events.out.tfevents.*")):
                stale.unlink()
            # TensorBoard then ignores this step and later ones in earlier files of the folder.
            self._events = SummaryWriter(str(folder / _EVENTS), purge_step=resume_epoch + 1)
        if os.environ.get("MLFLOW_TRACKING_URI"):
            if importlib.util.find_spec("mlflow"):
                self._mlflow = _MLflowRun(folder, resume_epoch, parameters or {})
            else:
                warnings.warn(
                    "MLFLOW_TRACKING_URI is set but mlflow is not installed: nothing goes there", stacklevel=2
                )

    def epoch(self, number: int, **scalars: float) -> None:
        """Log the numbers of an epoch.

        Args:
            number: of the epoch, from 1, each above the one before.
            scalars: by name, such as loss, error (0..1), lr, seconds. One that is not finite becomes null in log.jsonl.
        """
        last = int(self._lines[-1]["epoch"]) if self._lines else 0
        if number <= last:
            raise ValueError(f"the log has epoch {last} already, got {number}; resume it from epoch {number - 1}")
        self._lines.append({"epoch": number} | {name: float(value) for name, value in scalars.items()})
        if is_remote(self._folder):
            self._rewrite()  # object stores cannot append
        else:
            with (self._folder / _LINES).open("a", encoding="utf-8") as file:
                file.write(_text(self._lines[-1]))
        self._send(number, {"epoch": number} | scalars)

    def end(self, **scalars: float) -> None:
        """Add numbers that are known only at the end, such as test_error, to the last epoch's."""
        if not self._lines:
            raise ValueError("the log has no epoch yet, so nothing can end")
        self._lines[-1] |= {name: float(value) for name, value in scalars.items()}
        self._rewrite()
        self._send(int(self._lines[-1]["epoch"]), scalars)

    def close(self, status: str = "FINISHED") -> None:
        """Write what is pending; `status` is MLflow's: FINISHED, FAILED or KILLED."""
        if self._events:
            self._events.close()
        if self._mlflow:
            self._mlflow.close(status)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.close("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    def _rewrite(self) -> None:
        write_bytes(self._folder / _LINES, "".join(map(_text, self._lines)).encode())

    def _send(self, number: int, scalars: Mapping[str, float]) -> None:
        if self._events:
            for name in scalars.keys() - {"epoch"}:
                self._events.add_scalar(name, scalars[name], number)
            self._events.flush()
        if self._mlflow:
            self._mlflow.send(number, scalars)


def _text(line: Mapping[str, float]) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _read_lines(path: Path, last: int) -> list[dict[str, float]]:
    """The lines of epochs 1 to `last`. After them there may be later ones, and half a line from a killed run."""
    lines: list[dict[str, float]] = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("epoch"), int) and line["epoch"] <= last:
            lines.append({name: math.nan if value is None else value for name, value in line.items()})
    if len(lines) < last:
        # Its loss and weights come from the checkpoint, so the run itself is whole.
        warnings.warn(f"{path} has {len(lines)} of the {last} epochs that are done; the others stay out", stacklevel=3)
    return lines


class _MLflowRun:
    """One run on an MLflow server, by its client: the fluent interface has one active run a process."""

    def __init__(self, folder: Path, resume_epoch: int, parameters: Mapping[str, Any]) -> None:
        import mlflow  # type: ignore[import-not-found]

        self._metric, self._exception = mlflow.entities.Metric, mlflow.exceptions.MlflowException
        self._broken = False
        self._sent = 0
        uri = os.environ["MLFLOW_TRACKING_URI"]
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            known = read_json(folder / _MLFLOW) if resume_epoch and (folder / _MLFLOW).exists() else {}
            if known.get("tracking_uri") == uri:
                self._id = known["run_id"]
                self._client.update_run(self._id, status="RUNNING")
                # A server keeps what it got: epochs logged before the kill are not sent again.
                self._sent = max((m.step for m in self._client.get_metric_history(self._id, "epoch")), default=0)
                return
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "latebloom")
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._id = self._client.create_run(number, run_name=folder.name).info.run_id
            shown = [mlflow.entities.Param(key, str(value)) for key, value in parameters.items()]
            self._client.log_batch(self._id, params=shown)
        except self._exception as error:
            raise OSError(f"MLflow at {uri} cannot be used ({error}); correct or unset MLFLOW_TRACKING_URI") from error
        write_json(folder / _MLFLOW, {"run_id": self._id, "tracking_uri": uri})

    def send(self, number: int, scalars: Mapping[str, float]) -> None:
        if self._broken or ("epoch" in scalars and number <= self._sent):
            return
        now = int(time.time() * 1000)
        try:
            self._client.log_batch(self._id, [self._metric(k, float(v), now, number) for k, v in scalars.items()])
        except self._exception as error:  # hours of training are worth more than their curve
            self._broken = True
            warnings.warn(f"MLflow takes no more metrics ({error}); they go on in {_LINES}", stacklevel=4)

    def close(self, status: str) -> None:
        if not self._broken:
            self._client.set_terminated(self._id, status)
