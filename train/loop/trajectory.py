"""One model's part of a training run: its epochs and batches, its mixer, and what is summed over an epoch."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.batches import Pixels, epoch_order
from latebloom.train.augment.mixing import EpochRows, Mixer
from latebloom.train.config import FitConfig
from latebloom.train.evaluate import eval_mode, forward_pass
from latebloom.train.loop.epoch import Epoch
from latebloom.train.loop.step import Batch, autocast, losses_of_batch
from latebloom.train.loop.team import Team

__all__ = ["History", "Trajectory", "batch_ends"]


@dataclasses.dataclass
class History:
    """Per epoch, over the augmented examples: mean loss, error in 0..1, last learning rate, seconds.

    Seconds are of training alone. Of models that are trained together each has an equal part of them. The validation
    error, in 0..1, is measured after the epoch, where there is a validation split.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    error: list[float] = dataclasses.field(default_factory=list)
    lr: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list, compare=False)
    validation_error: list[float] = dataclasses.field(default_factory=list)


def batch_ends(length: int, config: FitConfig, processes: int) -> list[int]:
    """Where each batch of an epoch of `length` examples ends.

    Where fewer than two examples a process are left for the last batch, it and the one before share theirs evenly,
    since BatchNorm needs two values of a channel: 257 examples in batches of 256 are 129 and 128. (With a batch size of
    one or two, one example may be left all the same.)
    """
    size, steps = config.batch_size, config.steps_per_epoch(length)
    ends = [min((step + 1) * size, length) for step in range(steps)]
    begin = (steps - 2) * size
    if steps > 1 and ends[-1] - ends[-2] < 2 * processes:
        ends[-2] = begin + (ends[-1] - begin + 1) // 2
    return ends


class Trajectory:
    """One model's training, step by step.

    Args:
        labels: int64 (N,), of all rows of `pixels`, on its device.
        rows: int64 (n,), the model's training set.
        mixer: makes its epochs; None: an epoch is its rows, with the weak augmentation of the epoch that `drawn` gives.
        total: steps of the whole run.
        stop_epoch: stop after so many epochs; 0: after `total` steps.
        history: grows by one entry an epoch.
        sums: float64 (3,), loss, errors and examples of the current epoch so far; changed in place.
        together: how many models are trained as one.

    Attributes:
        per_epoch: steps.
        begin: when the current epoch began; later by what was no training.
        end: the step to stop at.
    """

    def __init__(
        self,
        model: nn.Module,
        pixels: Pixels,
        labels: Tensor,
        rows: np.ndarray,
        config: FitConfig,
        seed: int,
        mixer: Mixer | None,
        team: Team,
        total: int,
        stop_epoch: int,
        history: History,
        sums: Tensor,
        drawn: Callable[[int], int],
        together: int,
    ) -> None:
        self.model, self.pixels, self.labels, self.rows = model, pixels, labels, rows
        self.config, self.seed, self.mixer, self.team = config, seed, mixer, team
        self.history, self.sums, self.drawn, self.together = history, sums, drawn, together
        length = mixer.length if mixer else len(rows)
        self.per_epoch = config.steps_per_epoch(length)
        self._ends = batch_ends(length, config, team.size)
        self.end = min(total, stop_epoch * self.per_epoch) if stop_epoch else total
        self.number = -1  # of the current epoch
        self.begin = time.perf_counter()
        self.plan: EpochRows | None = None
        self.batches: Iterator[Batch] = iter(())
        self.right: Tensor | None = None  # int8 (L,) of this epoch's list: 1 right, 0 wrong, -1 not trained on yet

    def batch(self, step: int) -> Batch:
        """The batch of a step; after the first call, of the next step."""
        number, place = divmod(step, self.per_epoch)
        if number != self.number:
            self.number, self.begin = number, time.perf_counter()
            self.plan = self._plan(number)
            length = len(self.plan.rows)
            whole = np.split(epoch_order(length, self.seed, number), self._ends)[place : self.per_epoch]
            groups = [self.team.part(group) for group in whole]
            self.batches = self._epoch(self.plan).batches(groups)
            if self.mixer and self.mixer.counts and (self.right is None or not place):
                self.right = torch.full((length,), -1, dtype=torch.int8, device=self.labels.device)
        return next(self.batches)

    def size(self, step: int) -> int:
        """Images of a step, of which this process has a part."""
        place = step % self.per_epoch
        return self._ends[place] - (self._ends[place - 1] if place else 0)

    def note(self, batch: Batch, sums: Tensor, right: Tensor) -> None:
        """Add the result of a batch: float64 (3,) loss, errors and examples; bool (B,) which predictions are right."""
        self.sums += sums
        if self.right is not None:
            self.right[batch.places] = right.to(torch.int8)

    def close_epoch(self, steps: int, lr: float) -> bool:
        """After so many steps, write the history if an epoch ends here, and say so; to be called after each step.

        Raises:
            FloatingPointError: the epoch, or the unfinished one at the end of the run, has a loss that is not finite.
        """
        epoch_ends = steps % self.per_epoch == 0
        if not epoch_ends and steps < self.end:
            return False
        self.team.average_buffers(self.model)
        loss, errors, seen = self.team.total(self.sums).tolist()
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the training loss became {loss} in epoch {len(self.history.loss) + 1}; "
                f"lower the learning rate (now {self.config.lr})"
            )
        if epoch_ends:
            self.sums.zero_()
            self._count()
            self.history.loss.append(loss / seen)
            self.history.error.append(errors / seen)
            self.history.lr.append(lr)
            self.history.seconds.append((time.perf_counter() - self.begin) / self.together)
        return epoch_ends

    def state(self) -> dict[str, np.ndarray]:
        """Of the mixer, and `right` of the current epoch; {} without a mixer."""
        if not self.mixer:
            return {}
        right = {} if self.right is None else {"right": self.team.highest(self.right).cpu().numpy()}
        return self.mixer.state() | right

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        if self.mixer and state:
            self.mixer.restore(state)
            if "right" in state:
                self.right = torch.from_numpy(state["right"].copy()).to(self.labels.device)

    def _count(self) -> None:
        """Give the mixer what the epoch got right, if it counts that."""
        if self.right is None or not self.mixer or not self.plan:
            return
        right = self.team.highest(self.right).cpu().numpy()
        seen = np.flatnonzero((right >= 0) & ~self.plan.strong)
        rows, first = np.unique(self.plan.rows[seen], return_index=True)  # of a row seen twice, the first counts
        self.mixer.count(rows, right[seen[first]] == 1)
        self.right = None

    def _plan(self, number: int) -> EpochRows:
        if self.mixer:
            return self.mixer.epoch(number, self._forward_pass, self._strong_losses)
        n = len(self.rows)
        return EpochRows(np.arange(n), np.zeros(n, bool), None, {}, self.drawn(number))

    def _epoch(self, plan: EpochRows) -> Epoch:
        policy = self.mixer.policy if self.mixer else None
        return Epoch(self.pixels, self.labels, self.rows, plan, policy, self.config, self.seed)

    def _forward_pass(self) -> tuple[np.ndarray, np.ndarray]:
        n, device = len(self.rows), self.labels.device
        with autocast(self.config, device):
            logits, features = forward_pass(self.model, self.pixels, self.team.part(self.rows))
        return self.team.whole(logits, n, device), self.team.whole(features, n, device)

    def _strong_losses(self, plan: EpochRows) -> np.ndarray:
        epoch = self._epoch(plan)
        mine = self.team.part(epoch.strong)
        groups = [mine[i : i + 512] for i in range(0, len(mine), 512)]
        with eval_mode(self.model), torch.inference_mode(), autocast(self.config, self.labels.device):
            losses = [losses_of_batch(self.model, batch) for batch in epoch.batches(groups)]
        found = torch.cat(losses).cpu().numpy() if losses else np.empty(0, np.float32)
        return self.team.whole(found, len(epoch.strong), self.labels.device)
