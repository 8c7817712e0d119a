"""The error on images that nothing is trained on, after each epoch."""

import time

import numpy as np
import torch
from torch import nn

from latebloom.data.batches import Pixels
from latebloom.data.images import LabeledImages
from latebloom.train.evaluate import logits_of_rows
from latebloom.train.loop.team import Team

__all__ = ["Validation"]


class Validation:
    """Measures errors on a validation split: in eval mode, in float32, without augmentation.

    Attributes:
        seconds: that it took so far.
    """

    def __init__(self, data: LabeledImages) -> None:
        self.data = data
        self.seconds = 0.0
        self._pixels: Pixels | None = None

    def error(self, model: nn.Module, team: Team) -> float:
        """The model's error 0..1; of several processes each measures its share, and all have the result."""
        begin = time.perf_counter()
        device = next(model.parameters()).device
        if self._pixels is None or self._pixels.device != device:
            self._pixels = Pixels(self.data, device)
        rows, wrong = team.part(np.arange(len(self.data))), 0
        if len(rows):
            wrong = int((logits_of_rows(model, self._pixels, rows).argmax(1) != self.data.labels[rows]).sum())
        everywhere = float(team.total(torch.tensor(wrong, dtype=torch.float64, device=device)))
        self.seconds += time.perf_counter() - begin
        return everywhere / len(self.data)
