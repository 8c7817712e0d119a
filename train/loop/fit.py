"""The training loop: early and final, SGD, SAM and AdaHessian, with or without strong copies, one model or many."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.batches import Pixels, epoch_order
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_rng, torch_stream
from latebloom.train.augment.mixing import EpochRows, Mixer
from latebloom.train.config import FitConfig
from latebloom.train.evaluate import eval_mode, forward_pass
from latebloom.train.loop.epoch import Epoch
from latebloom.train.loop.optim import AdaHessian, learning_rate
from latebloom.train.loop.step import Batch, Gradients, autocast, losses_of_batch
from latebloom.train.loop.team import Team

__all__ = ["FitConfig", "FitState", "History", "fit"]

# On a CPU, channels last is no faster for models with fewer weights.
CHANNELS_LAST_WEIGHTS = 100_000


@dataclasses.dataclass
class History:
    """Per epoch, over the augmented examples: mean loss, error in 0..1, last learning rate, seconds."""

    loss: list[float] = dataclasses.field(default_factory=list)
    error: list[float] = dataclasses.field(default_factory=list)
    lr: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list, compare=False)


@dataclasses.dataclass
class FitState:
    """What a run needs, beside the weights, to continue as if it had never stopped.

    Random numbers need no state: the order and the augmentation of an epoch follow from its number.

    Attributes:
        step: optimizer steps done.
        slots: per model, the optimizer's tensors by "slot/parameter" (none before the first step).
        histories: per model.
        partial: per model, sums of the current epoch: loss, errors, examples.
        mixers: per model, the state of its mixer, and `right` of the current epoch; {} without a mixer.
    """

    step: int
    slots: list[dict[str, Tensor]]
    histories: list[History]
    partial: np.ndarray
    mixers: list[dict[str, np.ndarray]]


def fit(
    models: Sequence[nn.Module],
    data: LabeledImages,
    rows: Sequence[np.ndarray],
    config: FitConfig,
    seeds: Sequence[int],
    *,
    mixers: Sequence[Mixer] | None = None,
    total_steps: Sequence[int] | None = None,
    stop_epoch: int = 0,
    device: torch.device | None = None,
    start: FitState | None = None,
    on_epoch: Callable[[FitState], None] | None = None,
) -> list[History]:
    """Train each model on its own rows of `data`, in place.

    Several models of one architecture run as one network with a batch dimension over models (torch.func), which is
    faster for small ones; each becomes what it would become alone, up to float rounding. Models with dropout cannot be
    trained together: they would draw other masks than alone.

    Of several processes (see team.py) each trains on its share of every batch, BatchNorm included.

    Args:
        models: on any device, all of one architecture.
        rows: per model, int64 (n_m,) rows of `data` that are its training set; a row may be there several times.
        seeds: per model; the order of its examples and their augmentation follow from it.
        mixers: per model, a fresh one for its rows, which makes its epochs; None: an epoch is its rows.
        total_steps: per model, a number of steps instead of the config's; the schedule is of this length.
        stop_epoch: stop each model after so many of its epochs, without changing the schedule; 0: never.
        start: a state from `on_epoch` to continue from; the models must hold the weights of that moment.
        on_epoch: called whenever the model with the most steps an epoch ends one, and at the end. With several
            processes it is called only in the leading one, but all must pass one, or none: they gather its state.

    Returns:
        Per model, its history.

    Raises:
        ValueError: no rows, rows out of range, settings that several models or processes cannot have, or processes that
            would start at different steps.
        FloatingPointError: the loss became NaN or infinite.
    """
    team = Team()
    lengths = [mixer.length for mixer in mixers] if mixers is not None else [len(r) for r in rows]
    _check(models, data, rows, config, seeds, team, lengths)
    device = device or next(models[0].parameters()).device
    channels_last = len(models) == 1 and (device.type == "cuda" or _size(models[0]) >= CHANNELS_LAST_WEIGHTS)
    pixels = Pixels(data, device, channels_last=channels_last)
    labels = torch.from_numpy(data.labels).to(device)
    per_epoch = [config.steps_per_epoch(length) for length in lengths]
    totals = list(total_steps) if total_steps is not None else [config.total_steps(length) for length in lengths]
    ends = [min(t, stop_epoch * e) if stop_epoch else t for t, e in zip(totals, per_epoch, strict=True)]
    for model in models:
        model.to(device).train()
        if channels_last:
            model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(models, config)
    forwards = [torch.compile(model) if config.compile else model for model in models]
    gradients = Gradients(config, models, optimizer, forwards, team.sum_gradients if team.size > 1 else None)
    state = start or FitState(
        0, [{} for _ in models], [History() for _ in models], np.zeros((len(models), 3)), [{} for _ in models]
    )
    _check_start(state.step, team, device)
    _restore_slots(optimizer, models, state)
    trajectories = [
        _Trajectory(model, own, seed, config, pixels, labels, mixers[m] if mixers is not None else None, team)
        for m, (model, own, seed) in enumerate(zip(models, rows, seeds, strict=True))
    ]
    for trajectory, saved in zip(trajectories, state.mixers, strict=True):
        trajectory.restore(saved)
    partial = state.partial if team.leads else np.zeros_like(state.partial)
    sums = torch.tensor(partial, device=device)  # (M, 3) float64: loss, errors, examples of this epoch
    whole = {m: min(config.batch_size, length) for m, length in enumerate(lengths)}

    for step in range(state.step, max(ends)):
        active = [m for m in range(len(models)) if step < ends[m]]
        batches: dict[int, Batch] = {}
        for m in active:
            batches[m] = trajectories[m].batch(*divmod(step, per_epoch[m]))
            optimizer.param_groups[m]["lr"] = learning_rate(config, step, totals[m])
        generators = [torch_rng(seed, "hessian", step) for seed in seeds] if config.optimizer == "adahessian" else []
        with torch_stream(seeds[active[0]], "dropout", step, *([team.rank] if team.rank else [])):
            results = gradients(batches, whole, generators)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the optimizer skips a finished model, which gets no new gradient
        for m, (result, right) in results.items():
            sums[m] += result
            trajectories[m].note(batches[m].places, right)
        state.step = step + 1
        for m in active:
            epoch_ends = state.step % per_epoch[m] == 0
            if not epoch_ends and state.step < ends[m]:
                continue
            team.average_buffers(models[m])
            loss, errors, seen = team.total(sums[m]).tolist()
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the training loss became {loss} in epoch {len(state.histories[m].loss) + 1}; "
                    f"lower the learning rate (now {config.lr})"
                )
            if epoch_ends:
                sums[m] = 0
                history = state.histories[m]
                history.loss.append(loss / seen)
                history.error.append(errors / seen)
                history.lr.append(optimizer.param_groups[m]["lr"])
                history.seconds.append(trajectories[m].end())
        if on_epoch and (state.step % max(per_epoch) == 0 or state.step == max(ends)):
            for model in models:  # also in the middle of an epoch: all processes continue from what one writes
                team.average_buffers(model)
            state.partial = team.total(sums).cpu().numpy()
            state.mixers = [trajectory.state() for trajectory in trajectories]
            _save_slots(optimizer, models, state)
            if team.leads:
                on_epoch(state)
    return state.histories


def _check(
    models: Sequence[nn.Module],
    data: LabeledImages,
    rows: Sequence[np.ndarray],
    config: FitConfig,
    seeds: Sequence[int],
    team: Team,
    lengths: Sequence[int],
) -> None:
    assert len(models) == len(rows) == len(seeds) > 0
    for chosen in rows:
        if len(chosen) == 0:
            raise ValueError(f"{data.origin}: no training rows were given; give at least one")
        if chosen.min() < 0 or chosen.max() >= len(data):
            raise ValueError(
                f"{data.origin}: training rows lie in {chosen.min()}..{chosen.max()}, expected 0..{len(data) - 1}; "
                "give rows of these images"
            )
    if config.compile and len(models) > 1:
        raise ValueError(f"compile is for a model trained alone, not for {len(models)} together; give compile=false")
    if team.size > 1 and config.optimizer == "adahessian":
        raise ValueError(f"adahessian trains in one process, not in {team.size}; give optimizer sgd or sam")
    if len(models) > 1 and any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in models[0].modules()):
        raise ValueError("models with dropout cannot be trained together; train one after the other")
    if min(config.batch_size, *map(len, rows), *lengths) < team.size:
        raise ValueError(
            f"{team.size} processes need batches of {team.size} images or more; start fewer, or raise batch_size"
        )


def _check_start(step: int, team: Team, device: torch.device) -> None:
    """Raise ValueError in all processes unless all start at the same step: each reads its own checkpoint."""
    last, first = team.highest(torch.tensor([step, -step], device=device)).tolist()
    if last != -first:
        raise ValueError(
            f"the processes would continue from different steps, {-first} to {last}; give all of them one shared folder"
        )


class _Trajectory:
    """One model's training: its batches, and its mixer."""

    def __init__(
        self,
        model: nn.Module,
        rows: np.ndarray,
        seed: int,
        config: FitConfig,
        pixels: Pixels,
        labels: Tensor,
        mixer: Mixer | None,
        team: Team,
    ) -> None:
        self.model, self.rows, self.seed, self.config = model, rows, seed, config
        self.pixels, self.labels = pixels, labels
        self.mixer, self.team = mixer, team
        self.number = -1  # of the current epoch
        self.begin = time.perf_counter()
        self.plan: EpochRows | None = None
        self.batches: Iterator[Batch] = iter(())
        self.right: Tensor | None = None  # int8 (L,) of this epoch's list: 1 right, 0 wrong, -1 not trained on yet

    def batch(self, number: int, place: int) -> Batch:
        """The batch `place` of epoch `number`; after the first call, the next batch in order."""
        if number != self.number:
            self.number, self.begin = number, time.perf_counter()
            self.plan = self._plan(number)
            length, size = len(self.plan.rows), self.config.batch_size
            order = epoch_order(length, self.seed, number)
            whole = self.config.steps_per_epoch(length)
            groups = [self.team.part(order[p * size : (p + 1) * size]) for p in range(place, whole)]
            self.batches = self._epoch(self.plan).batches(groups)
            if self.mixer and self.mixer.counts and (self.right is None or not place):
                self.right = torch.full((length,), -1, dtype=torch.int8, device=self.labels.device)
        return next(self.batches)

    def note(self, places: Tensor, right: Tensor) -> None:
        """Keep which of a batch's predictions were right, for a mixer that counts."""
        if self.right is not None:
            self.right[places] = right.to(torch.int8)

    def end(self) -> float:
        """End the epoch; returns its seconds."""
        if self.right is not None and self.mixer and self.plan:
            right = self.team.highest(self.right).cpu().numpy()
            seen = np.flatnonzero((right >= 0) & ~self.plan.strong)
            rows, first = np.unique(
                self.plan.rows[seen], return_index=True
            )  # if a row was seen twice, the first counts
            self.mixer.count(rows, right[seen[first]] == 1)
            self.right = None
        return time.perf_counter() - self.begin

    def state(self) -> dict[str, np.ndarray]:
        if not self.mixer:
            return {}
        right = {} if self.right is None else {"right": self.team.highest(self.right).cpu().numpy()}
        return self.mixer.state() | right

    def restore(self, state: dict[str, np.ndarray]) -> None:
        if self.mixer and state:
            self.mixer.restore(state)
            if "right" in state:
                self.right = torch.from_numpy(state["right"].copy()).to(self.labels.device)

    def _plan(self, number: int) -> EpochRows:
        if self.mixer:
            return self.mixer.epoch(number, self._forward_pass, self._strong_losses)
        n = len(self.rows)
        return EpochRows(np.arange(n), np.zeros(n, bool), None, {}, number)

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


def _size(model: nn.Module) -> int:
    return sum(w.numel() for w in model.parameters())


def _optimizer(models: Sequence[nn.Module], config: FitConfig) -> torch.optim.Optimizer:
    groups = [{"params": list(model.parameters())} for model in models]
    if config.optimizer == "adahessian":
        return AdaHessian(groups, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        foreach=True,
    )


def _save_slots(optimizer: torch.optim.Optimizer, models: Sequence[nn.Module], state: FitState) -> None:
    for m, model in enumerate(models):
        state.slots[m] = {
            f"{slot}/{name}": value
            for name, weight in model.named_parameters()
            for slot, value in optimizer.state[weight].items()
            if value is not None
        }


def _restore_slots(optimizer: torch.optim.Optimizer, models: Sequence[nn.Module], state: FitState) -> None:
    for model, slots in zip(models, state.slots, strict=True):
        for key, value in slots.items():
            slot, name = key.split("/", 1)
            weight = model.get_parameter(name)
            if value.shape == weight.shape:  # in the weight's layout, as the optimizer made it
                value = torch.empty_like(weight).copy_(value).detach()
            else:  # a count of steps
                value = value.clone()
            optimizer.state[weight][slot] = value
