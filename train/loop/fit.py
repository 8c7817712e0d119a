"""The training loop: early and final, SGD, SAM and AdaHessian, with or without strong copies, one model or many."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.batches import Pixels
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_rng, torch_stream
from latebloom.train.augment.mixing import Mixer
from latebloom.train.config import FitConfig
from latebloom.train.loop.optim import SGD, AdaHessian, learning_rate
from latebloom.train.loop.step import Gradients
from latebloom.train.loop.team import Team
from latebloom.train.loop.trajectory import History, Trajectory, batch_ends
from latebloom.train.loop.validation import Validation

__all__ = ["FitConfig", "FitState", "History", "fit"]

# On a CPU, channels last is no faster for models with fewer weights.
CHANNELS_LAST_WEIGHTS = 100_000


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
        first_use: seconds that all up to the first step of this process took longer than the second step: packages
            are loaded, kernels chosen and compiled then. They are in no epoch's seconds, and no checkpoint has them.
    """

    step: int
    slots: list[dict[str, Tensor]]
    histories: list[History]
    partial: np.ndarray
    mixers: list[dict[str, np.ndarray]]
    first_use: float = 0.0


def fit(
    models: Sequence[nn.Module],
    data: LabeledImages,
    rows: Sequence[np.ndarray],
    config: FitConfig,
    seeds: Sequence[int],
    *,
    mixers: Sequence[Mixer] | None = None,
    drawn: Callable[[int], int] = int,
    total_steps: Sequence[int] | None = None,
    stop_epoch: int = 0,
    validation: Validation | None = None,
    device: torch.device | None = None,
    start: FitState | None = None,
    on_epoch: Callable[[FitState], bool | None] | None = None,
    on_step: Callable[[int], None] | None = None,
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
        drawn: without mixers, the epoch whose weak augmentation an epoch has, as `StrongConfig.drawn`; by default its
            own.
        total_steps: per model, a number of steps instead of the config's; the schedule is of this length.
        stop_epoch: stop each model after so many of its epochs, without changing the schedule; 0: never.
        validation: measures each model's error after each of its epochs.
        start: a state from `on_epoch` to continue from; the models must hold the weights of that moment.
        on_epoch: called whenever the model with the most steps an epoch ends one, and at the end. With several
            processes it is called only in the leading one, but all must pass one, or none: they gather its state.
            In a process alone it may return True to end training there.
        on_step: called after each optimizer step with the number of steps done.

    Returns:
        Per model, its history.

    Raises:
        ValueError: no rows, rows out of range, settings that several models or processes cannot have, or processes that
            would start at different steps.
        FloatingPointError: the loss became NaN or infinite.
    """
    entry = time.perf_counter()
    team = Team()
    lengths = [mixer.length for mixer in mixers] if mixers is not None else [len(r) for r in rows]
    _check(models, data, rows, config, seeds, team, lengths)
    device = device or next(models[0].parameters()).device
    channels_last = len(models) == 1 and (device.type == "cuda" or _size(models[0]) >= CHANNELS_LAST_WEIGHTS)
    pixels = Pixels(data, device, channels_last=channels_last)
    labels = torch.from_numpy(data.labels).to(device)
    totals = list(total_steps) if total_steps is not None else [config.total_steps(length) for length in lengths]
    for model in models:
        model.to(device).train()
        if channels_last:
            model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(models, config)
    forwards = [torch.compile(model) if config.compile else model for model in models]
    gradients = Gradients(config, models, optimizer, forwards, team)
    state = start or FitState(
        0, [{} for _ in models], [History() for _ in models], np.zeros((len(models), 3)), [{} for _ in models]
    )
    _check_start(state.step, team, device)
    _restore_slots(optimizer, models, state)
    # (M, 3) float64: loss, errors, examples of the current epoch
    sums = torch.tensor(state.partial if team.leads else np.zeros_like(state.partial), device=device)
    makers: Sequence[Mixer | None] = mixers if mixers is not None else [None] * len(models)
    trajectories = [
        Trajectory(
            model,
            pixels,
            labels,
            own,
            config,
            seed,
            mixer,
            team,
            total,
            stop_epoch,
            history,
            own_sums,
            drawn,
            len(models),
        )
        for model, own, seed, mixer, total, history, own_sums in zip(
            models, rows, seeds, makers, totals, state.histories, sums, strict=True
        )
    ]
    for trajectory, saved in zip(trajectories, state.mixers, strict=True):
        trajectory.restore(saved)
    last, longest = max(t.end for t in trajectories), max(t.per_epoch for t in trajectories)

    took: list[float] = []  # seconds of the first two steps
    for step in range(state.step, last):
        step_begin, epochs = time.perf_counter(), [trajectory.number for trajectory in trajectories]
        active = [m for m, trajectory in enumerate(trajectories) if step < trajectory.end]
        batches = {m: trajectories[m].batch(step) for m in active}
        for m in active:
            optimizer.param_groups[m]["lr"] = learning_rate(config, step, totals[m])
        generators = [torch_rng(seed, "hessian", step) for seed in seeds] if config.optimizer == "adahessian" else []
        with torch_stream(seeds[active[0]], "dropout", step, *([team.rank] if team.rank else [])):
            results = gradients(batches, {m: trajectories[m].size(step) for m in active}, generators)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the optimizer skips a finished model, which gets no new gradient
        state.step = step + 1
        for m, (result, right) in results.items():
            trajectories[m].note(batches[m], result, right)
        if len(took) < 2:
            took.append(time.perf_counter() - (step_begin if took else entry))
            if len(took) == 2:
                state.first_use = max(0.0, took[0] - took[1])
                for trajectory, number in zip(trajectories, epochs, strict=True):
                    if trajectory.number == number:
                        trajectory.begin = max(trajectory.begin, step_begin - took[1])
        for m in active:
            ends = trajectories[m].close_epoch(state.step, optimizer.param_groups[m]["lr"])
            if ends and validation:
                before = validation.seconds
                state.histories[m].validation_error.append(validation.error(models[m], team))
                for trajectory in trajectories:
                    trajectory.begin += validation.seconds - before
        if on_step:
            on_step(state.step)
        if on_epoch and (state.step % longest == 0 or state.step == last):
            for model in models:  # also in the middle of an epoch: all processes continue from what one writes
                team.average_buffers(model)
            state.partial = team.total(sums).cpu().numpy()
            state.mixers = [trajectory.state() for trajectory in trajectories]
            _save_slots(optimizer, models, state)
            if team.leads and on_epoch(state):
                assert team.size == 1
                break
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
    smallest = min(np.diff([0, *batch_ends(length, config, team.size)]).min() for length in lengths)
    if min(smallest, *map(len, rows)) < team.size:
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


def _size(model: nn.Module) -> int:
    return sum(w.numel() for w in model.parameters())


def _optimizer(models: Sequence[nn.Module], config: FitConfig) -> torch.optim.Optimizer:
    groups = [{"params": list(model.parameters())} for model in models]
    if config.optimizer == "adahessian":
        return AdaHessian(groups, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay)
    in_loss = config.optimizer == "sam" and config.sam_decay == "ascent"
    return SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=0.0 if in_loss else config.weight_decay,
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
