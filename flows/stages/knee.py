"""Looks for the separating epoch while the early classifiers are trained. No Prefect."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from latebloom.train.loop.checkpoint import load_model, save_model
from latebloom.train.loop.fit import History
from latebloom.train.selection.knee import earliest_knee, knee_so_far

__all__ = ["KneeSearch"]


class KneeSearch:
    """Finds the knee of the mean error of the models that are trained first, and keeps the weights that it may need.

    Weights of each epoch lie in `folder` while their epoch may still be the knee. So a training that was interrupted
    goes on, and no epoch is trained again.

    Attributes:
        found: the separating epoch; 0 while it is looked for.
    """

    def __init__(self, folder: Path, horizon: int, patience: int) -> None:
        self.folder, self.horizon, self.patience = folder, horizon, patience
        self.found = 0
        self.count = 0  # models that are trained first

    def __call__(self, models: Sequence[nn.Module], histories: Sequence[History]) -> bool:
        """At the end of an epoch of these models, or where they go on from it: whether to stop."""
        errors = np.mean([history.error for history in histories], 0).tolist()
        self.count = len(models)
        for number, model in enumerate(models):
            save_model(self._file(max(1, len(errors)), number), model)
        first = earliest_knee(errors, self.horizon)
        for epoch in range(1, first):
            self._drop(epoch)
        self.found = (knee_so_far(errors, self.horizon, self.patience) or 0) if errors else 1  # a run of a few steps
        return bool(self.found)

    def restore(self, models: Sequence[nn.Module]) -> None:
        """Load the weights of the knee into the models that were trained past it."""
        for number, model in enumerate(models[: self.count]):
            load_model(self._file(self.found, number), model)

    def clean(self) -> None:
        """Remove what was kept."""
        for epoch in range(1, self.horizon + 1):
            self._drop(epoch)

    def _drop(self, epoch: int) -> None:
        for number in range(self.count):
            self._file(epoch, number).unlink(missing_ok=True)

    def _file(self, epoch: int, number: int) -> Path:
        return self.folder / f"epoch-{epoch}-seed-{number}.safetensors"
