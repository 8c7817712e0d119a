"""Train the classifiers of all seeds, going on from the checkpoints of an interrupted run. No Prefect in here."""

import contextlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path, digest_file, digest_json
from latebloom.flows.config.compare import ClassifierConfig
from latebloom.flows.run.processes import leads
from latebloom.flows.run.progress import meter, say, warn
from latebloom.flows.stages.knee import KneeSearch
from latebloom.train.augment.mixing import Mixer, StrongConfig
from latebloom.train.loop.checkpoint import load_fit, save_fit
from latebloom.train.loop.fit import FitConfig, FitState, History, fit
from latebloom.train.loop.log import RunLog
from latebloom.train.loop.validation import Validation

__all__ = ["Logs", "classifier_key", "fit_all", "fit_config_of", "fit_key", "redraw_key", "strong_key"]

CHECKPOINT_SECONDS = 30.0
# What only one optimizer reads. Elsewhere it stands at its default: changing it must not train the others again.
_OF_ONE = {"sam": ("rho", "sam_batchnorm", "sam_decay", "sam_sync")}


def fit_config_of(config: FitConfig, optimizer: str) -> FitConfig:
    """How an optimizer trains: as `config` says, without what only other optimizers read."""
    others = [name for owner, names in _OF_ONE.items() if owner != optimizer for name in names]
    defaults = {name: FitConfig.model_fields[name].default for name in others if name in FitConfig.model_fields}
    return config.model_copy(update={"optimizer": optimizer, **defaults})


def fit_key(config: FitConfig) -> dict[str, Any]:
    """What a digest names of how a classifier is trained."""
    return config.model_dump(mode="json")


def classifier_key(config: ClassifierConfig) -> dict[str, Any]:
    """What a digest names of a classifier: of weights from a file, what is in the file."""
    weights = digest_file(as_path(config.weights)) if config.weights else ""
    return {**config.model_dump(mode="json"), "weights": weights}


def strong_key(config: StrongConfig) -> dict[str, Any]:
    """What a digest names of an arm's strong augmentation: of a coreset from a file, what is in the file."""
    file = digest_file(as_path(config.file)) if config.file else ""
    return {**config.model_dump(mode="json"), "file": file}


def redraw_key(config: StrongConfig) -> dict[str, Any]:
    """What a digest names of how an arm without strong copies redraws its weak augmentation; nothing if each epoch."""
    if config.redraw == "epoch" or config.every == 1:
        return {}
    return {"redraw": {"every": config.every, "warm_epochs": config.warm_epochs}}


class Logs:
    """The logs of classifiers that are trained side by side, one folder each.

    Args:
        folders: of each classifier, by its number.
        parameters: of each, which MLflow shows.
    """

    def __init__(self, folders: Sequence[Path], parameters: Sequence[dict[str, Any]]) -> None:
        self._folders, self._parameters = folders, parameters
        self._open: dict[int, RunLog] = {}
        self._done: dict[int, int] = {}
        self._stack = contextlib.ExitStack()

    def begin(self, number: int, done: int) -> None:
        """Open the log of a classifier of which so many epochs are done."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log = RunLog(self._folders[number], done, self._parameters[number])
        ours = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        for text in ours if number == 0 else ():  # once, not for every seed
            warn(text)
        self._open[number], self._done[number] = self._stack.enter_context(log), done

    def write(self, number: int, history: History, mixer: Mixer | None) -> None:
        """Log the epochs that are new in a history."""
        for epoch in range(self._done[number], len(history.loss)):
            scalars = {
                "loss": history.loss[epoch],
                "error": history.error[epoch],
                "lr": history.lr[epoch],
                "seconds": history.seconds[epoch],
            }
            if history.validation_error:
                scalars["validation_error"] = history.validation_error[epoch]
            if mixer:
                scalars["selection_seconds"] = mixer.seconds
                scalars["selected"] = len(mixer.selection[1]) if mixer.selection else 0
            self._open[number].epoch(epoch + 1, **scalars)
        self._done[number] = len(history.loss)

    def end(self, number: int, **scalars: float) -> None:
        """Log what is known at the end."""
        if self._done[number]:  # a run of a few steps may have no whole epoch
            self._open[number].end(**scalars)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def fit_all(
    models: list[nn.Module],
    data: LabeledImages,
    rows: list[np.ndarray],
    fit_config: FitConfig,
    classifier: ClassifierConfig,
    seeds: list[int],
    title: str,
    folder: Path,
    total_steps: list[int],
    *,
    stop_epoch: int = 0,
    search: KneeSearch | None = None,
    mixers: list[Mixer] | None = None,
    redraw: StrongConfig | None = None,
    validation: Validation | None = None,
    logs: Logs | None = None,
    spent: list[float] | None = None,
) -> list[History]:
    """Train the classifiers of all seeds where they are, going on from the checkpoints in `folder`.

    Small ones as one network over all seeds, which is faster; others one after the other.

    Args:
        search: where the first that are trained stop, at most at `stop_epoch`; the others stop at the epoch found.
        redraw: without mixers, whose rounds keep their weak augmentation; None: it is drawn each epoch.
        validation: measures each one's error after each of its epochs.
        spent: gets the seconds of training, without what a process loads and compiles once.
    """
    together = classifier.model == "small-cnn" and not fit_config.compile
    histories: list[History] = []
    files: list[Path] = []
    groups = [list(range(len(models)))] if together else [[m] for m in range(len(models))]
    for group in groups:
        searching = search if group == groups[0] else None
        if search and not searching:
            assert search.found
            stop_epoch = search.found
        mine = [models[m] for m in group]
        mixing = [mixers[m] for m in group] if mixers else None
        file = folder / f"checkpoint-{group[0]}.safetensors"
        files.append(file)
        key = {
            "data": data.digest,
            "classifier": classifier_key(classifier),
            "rows": [digest_json(rows[m].tolist()) for m in group],
            "train": fit_key(fit_config),
            "stop": stop_epoch if not searching else {"horizon": stop_epoch, "patience": searching.patience},
            "steps": [total_steps[m] for m in group],
            "seeds": [seeds[m] for m in group],
        }
        if mixing:
            key["strong"] = strong_key(mixing[0].config)
        elif redraw:
            key |= redraw_key(redraw)
        if validation:
            key["validation"] = validation.data.digest
        digest = digest_json(key)
        start = load_fit(file, mine, digest)
        if start and leads():
            say(f"{title}: goes on at step {start.step:,}")
        lengths = [mixer.length for mixer in mixing] if mixing else [len(rows[m]) for m in group]
        ends = [
            min(total_steps[m], stop_epoch * fit_config.steps_per_epoch(length)) if stop_epoch else total_steps[m]
            for m, length in zip(group, lengths, strict=True)
        ]
        last = max(ends)
        label = (
            title if len(models) == 1 else f"{title}, {len(group)} seeds" if together else f"{title}, seed {group[0]}"
        )
        if searching and start and searching(mine, start.histories):
            histories += start.histories
            continue
        for place, m in enumerate(group):
            if logs:
                logs.begin(m, len(start.histories[place].loss) if start else 0)
        with meter(label, last, "steps", start.step if start else 0) as bar:
            saver = _Saver(file, mine, digest, 0 if together else last)
            each = _Each(saver, group, mixing, logs, searching)
            begin = time.perf_counter()
            histories += fit(
                mine,
                data,
                [rows[m] for m in group],
                fit_config,
                [seeds[m] for m in group],
                mixers=mixing,
                drawn=redraw.drawn if redraw else int,
                total_steps=[total_steps[m] for m in group],
                stop_epoch=stop_epoch,
                validation=validation,
                start=start,
                on_epoch=each,
                on_step=bar.reach,
            )
            if spent is not None:
                spent.append(time.perf_counter() - begin - each.first_use)
    for file in files if leads() else []:
        file.unlink(missing_ok=True)
    return histories


class _Saver:
    """Writes a checkpoint every half minute, at the end of an epoch.

    Where others are trained after these models, also at `last`, their last step (0: none are), or where they stop
    before.
    """

    def __init__(self, file: Path, models: list[nn.Module], key: str, last: int) -> None:
        self.file, self.models, self.key, self.last_step = file, models, key, last
        self.last = time.monotonic()

    def __call__(self, state: FitState, stops: bool) -> None:
        last = self.last_step and (stops or state.step == self.last_step)
        if time.monotonic() - self.last >= CHECKPOINT_SECONDS or last:
            save_fit(self.file, self.models, state, self.key)
            self.last = time.monotonic()


class _Each:
    """What is done when an epoch ends: log and search first, so that no checkpoint is ahead of them."""

    def __init__(
        self, saver: _Saver, group: list[int], mixers: list[Mixer] | None, logs: Logs | None, search: KneeSearch | None
    ) -> None:
        self.saver, self.group, self.mixers, self.logs, self.search = saver, group, mixers, logs, search
        self.first_use = 0.0

    def __call__(self, state: FitState) -> bool:
        self.first_use = state.first_use
        for place, number in enumerate(self.group):
            if self.logs:
                self.logs.write(number, state.histories[place], self.mixers[place] if self.mixers else None)
        stops = bool(self.search and self.search(self.saver.models, state.histories))
        self.saver(state, stops)
        return stops
