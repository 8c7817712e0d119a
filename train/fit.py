"""One training loop: early and final, SGD and SAM, weighted or not, one model or many small ones together."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from data.batches import Pixels, epoch_order
from data.images import LabeledImages
from data.seeds import torch_rng, torch_stream
from train.augment import crop_and_flip
from train.optim import batchnorm_statistics_kept, learning_rate, sam_ascent

__all__ = ["FitConfig", "FitState", "History", "fit"]


class FitConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How a classifier is trained. The defaults are the papers' CIFAR setting (2505.21574, App. F.1)."""

    optimizer: Literal["sgd", "sam"] = Field(
        "sgd", description="sgd: SGD with momentum; sam: the same after SAM's ascent"
    )
    epochs: int = Field(200, ge=1, le=100_000, description="Passes over the training set, 1 to 100,000")
    steps: int = Field(0, ge=0, description="Optimizer steps in all instead of epochs; 0 counts epochs")
    batch_size: int = Field(
        128, ge=1, le=65_536, description="Images a step, 1 to 65,536; a last short batch is dropped"
    )
    lr: float = Field(0.1, gt=0, le=100, description="Peak learning rate, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, 0 to below 1")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="L2 weight decay, in the optimizer only, 0 to 1")
    rho: float = Field(0.1, ge=0, le=10, description="Radius of SAM's ascent, 0 to 10; SGD ignores it")
    sam_batchnorm: Literal["first_pass", "both"] = Field(
        "first_pass", description="In which of SAM's two passes BatchNorm's running statistics move"
    )
    schedule: Literal["milestones", "cosine", "constant"] = Field(
        "milestones", description="Shape of the learning rate"
    )
    milestones: tuple[float, ...] = Field(
        (0.5, 0.75), description="Fractions of the run, each in 0 to 1, at which the rate is multiplied by lr_decay"
    )
    lr_decay: float = Field(0.1, gt=0, le=1, description="Factor at each milestone, above 0 to 1")
    warmup: float = Field(0.0, ge=0, lt=1, description="Fraction of the run with a linearly rising rate, 0 to below 1")
    crop_padding: int = Field(4, ge=0, le=64, description="Random crop: zero padding in pixels, 0 (none) to 64")
    flip: bool = Field(True, description="Random horizontal flip; wrong for digits and letters")

    @pydantic.field_validator("milestones")
    @classmethod
    def _fractions(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < m < 1 for m in milestones) or list(milestones) != sorted(milestones):
            raise ValueError(f"milestones are ascending fractions between 0 and 1, got {milestones}")
        return milestones

    def steps_per_epoch(self, n: int) -> int:
        """Whole batches in n examples; a set smaller than a batch is one batch."""
        return max(1, n // self.batch_size)

    def total_steps(self, n: int) -> int:
        """Optimizer steps of the whole run on n examples."""
        return self.steps or self.epochs * self.steps_per_epoch(n)

    def total_epochs(self, n: int) -> int:
        """Whole epochs of the whole run on n examples, at least one."""
        return max(1, self.total_steps(n) // self.steps_per_epoch(n))


@dataclasses.dataclass
class History:
    """Per epoch, over the examples as they were trained on: mean loss, and error in 0..1."""

    loss: list[float] = dataclasses.field(default_factory=list)
    error: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class FitState:
    """All that a run needs, beside the weights, to go on as if it had never stopped.

    Random numbers need no state: the order of an epoch and the augmentation of a step follow from their numbers.

    Attributes:
        step: optimizer steps done.
        momenta: per model, momentum buffers by parameter name (none before the first step).
        histories: per model.
        partial: per model, sums of the epoch under way: loss, errors, examples.
    """

    step: int
    momenta: list[dict[str, Tensor]]
    histories: list[History]
    partial: np.ndarray


def fit(
    models: Sequence[nn.Module],
    data: LabeledImages,
    rows: Sequence[np.ndarray],
    config: FitConfig,
    seeds: Sequence[int],
    *,
    weights: np.ndarray | None = None,
    total_steps: Sequence[int] | None = None,
    stop_epoch: int = 0,
    device: torch.device | None = None,
    start: FitState | None = None,
    on_epoch: Callable[[FitState], None] | None = None,
) -> list[History]:
    """Train each model on its own rows of `data`, in place.

    Several models of one architecture are run as one network with a batch dimension over models (torch.func), which
    is faster for small ones; each gets what it would get alone, up to float rounding. Models with dropout are not
    for training together: alone and together they would draw other masks.

    Args:
        models: on any device, all of one architecture.
        rows: per model, int64 (n_m,) rows of `data` that make up an epoch; a row may stand there several times.
        seeds: per model; its order of examples and its augmentation follow from it.
        weights: float (len(data),), the factor on each example's cross-entropy before the mean over the batch.
        total_steps: per model, a budget that overrides the config's (the schedule stretches with it).
        stop_epoch: stop each model after so many of its epochs, the schedule still that of the whole run; 0: never.
        start: a state from `on_epoch` to go on from; the models must hold the weights of that moment.
        on_epoch: called whenever the model with the most steps an epoch ends one, and at the end.

    Returns:
        Per model, its history.

    Raises:
        ValueError: no rows, rows out of range, weights that are negative or not finite.
        FloatingPointError: the loss became NaN or infinite.
    """
    _check(models, data, rows, seeds, weights)
    device = device or next(models[0].parameters()).device
    pixels = Pixels(data, device)
    labels = torch.from_numpy(data.labels).to(device)
    scale = None if weights is None else torch.from_numpy(np.asarray(weights, np.float32)).to(device)
    per_epoch = [config.steps_per_epoch(len(r)) for r in rows]
    totals = list(total_steps) if total_steps is not None else [config.total_steps(len(r)) for r in rows]
    ends = [min(t, stop_epoch * e) if stop_epoch else t for t, e in zip(totals, per_epoch, strict=True)]
    for model in models:
        model.to(device).train()
    optimizer = torch.optim.SGD(
        [{"params": list(model.parameters())} for model in models],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    state = start or FitState(0, [{} for _ in models], [History() for _ in models], np.zeros((len(models), 3)))
    _restore_momenta(optimizer, models, state)
    orders: dict[int, tuple[int, np.ndarray]] = {}  # per model, its epoch and the rows in the order of that epoch
    sums = torch.tensor(state.partial, device=device)  # (M, 3) float64: loss, errors, examples of this epoch

    for step in range(state.step, max(ends)):
        active = [m for m in range(len(models)) if step < ends[m]]
        batches: dict[int, _Batch] = {}  # by size: sets smaller than a batch cannot be stacked with others
        for m in active:
            epoch, place = divmod(step, per_epoch[m])
            if m not in orders or orders[m][0] != epoch:
                orders[m] = epoch, rows[m][epoch_order(len(rows[m]), seeds[m], epoch)]
            chosen = orders[m][1][place * config.batch_size : (place + 1) * config.batch_size]
            images = pixels[chosen]  # (B, C, H, W) uint8
            if config.crop_padding or config.flip:
                generator = torch_rng(seeds[m], "augment", step)
                images = crop_and_flip(images, config.crop_padding, config.flip, generator)
            batches.setdefault(len(chosen), _Batch()).add(m, models[m], images, chosen)
            optimizer.param_groups[m]["lr"] = learning_rate(
                step,
                totals[m],
                peak=config.lr,
                schedule=config.schedule,
                milestones=config.milestones,
                decay=config.lr_decay,
                warmup=config.warmup,
            )
        with torch_stream(seeds[active[0]], "dropout", step):
            for batch in batches.values():
                sums[batch.places] += batch.step(labels, scale, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # a model that is done has no gradient and is left alone
        state.step = step + 1
        for m in active:
            epoch_ends = state.step % per_epoch[m] == 0
            if not epoch_ends and state.step < ends[m]:
                continue
            loss, errors, seen = sums[m].tolist()
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the training loss became {loss} in epoch {len(state.histories[m].loss) + 1}; "
                    f"lower the learning rate (now {config.lr})"
                )
            if epoch_ends:
                sums[m] = 0
                state.histories[m].loss.append(loss / seen)
                state.histories[m].error.append(errors / seen)
        if on_epoch and (state.step % max(per_epoch) == 0 or state.step == max(ends)):
            state.partial = sums.cpu().numpy()
            _save_momenta(optimizer, models, state)
            on_epoch(state)
    return state.histories


def _check(
    models: Sequence[nn.Module],
    data: LabeledImages,
    rows: Sequence[np.ndarray],
    seeds: Sequence[int],
    weights: np.ndarray | None,
) -> None:
    assert len(models) == len(rows) == len(seeds) > 0
    for chosen in rows:
        if len(chosen) == 0:
            raise ValueError(f"{data.origin}: no training rows were given")
        if chosen.min() < 0 or chosen.max() >= len(data):
            raise ValueError(f"{data.origin}: training rows must lie in 0..{len(data) - 1}")
    if weights is not None and (len(weights) != len(data) or not np.isfinite(weights).all() or (weights < 0).any()):
        raise ValueError(f"weights must be {len(data)} finite numbers >= 0, one for each image")


@dataclasses.dataclass
class _Batch:
    """The models that take a batch of one size, with what each of them sees."""

    places: list[int] = dataclasses.field(default_factory=list)
    models: list[nn.Module] = dataclasses.field(default_factory=list)
    images: list[Tensor] = dataclasses.field(default_factory=list)
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, place: int, model: nn.Module, images: Tensor, rows: np.ndarray) -> None:
        self.places.append(place)
        self.models.append(model)
        self.images.append(images)
        self.rows.append(rows)

    def step(self, labels: Tensor, scale: Tensor | None, config: FitConfig) -> Tensor:
        """Leave in `.grad` what the optimizer shall follow; float64 (M, 3): summed loss, errors and count."""
        images = torch.stack(self.images).float().div_(255)  # (M, B, C, H, W) in [0, 1]
        rows = torch.from_numpy(np.stack(self.rows)).to(labels.device)  # (M, B)
        targets = labels[rows]
        factors = None if scale is None else scale[rows]
        result = self._backward(images, targets, factors)
        if config.optimizer == "sam":
            weights = [list(model.parameters()) for model in self.models]
            with contextlib.ExitStack() as stack:
                stack.enter_context(sam_ascent(weights, config.rho))
                if config.sam_batchnorm == "first_pass":
                    for model in self.models:
                        stack.enter_context(batchnorm_statistics_kept(model))
                for group in weights:
                    for w in group:
                        w.grad = None
                self._backward(images, targets, factors)
        return result

    def _backward(self, images: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
        logits = _logits_together(self.models, images)  # (M, B, K)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)  # (M, B)
        weighted = losses if factors is None else losses * factors
        # The mean over each model's batch and the sum over models: no model sees another's gradient.
        weighted.mean(1).sum().backward()
        with torch.no_grad():
            errors = logits.argmax(2) != targets
            count = torch.full_like(losses, 1.0)
            return torch.stack([losses, errors, count], 2).double().sum(1)  # (M, 3)


def _logits_together(models: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Logits (M, B, K) of M models of one architecture on their own images (M, B, C, H, W)."""
    if len(models) == 1:
        return models[0](images[0])[None]
    first = models[0]
    parameters = {n: torch.stack([m.get_parameter(n) for m in models]) for n, _ in first.named_parameters()}
    buffers = {n: torch.stack([m.get_buffer(n) for m in models]) for n, _ in first.named_buffers()}
    # BatchNorm updates the stacked buffers in place, not those of `first`.
    logits = torch.func.vmap(lambda p, b, x: functional_call(first, (p, b), (x,)))(parameters, buffers, images)
    if buffers:
        own = [m.get_buffer(n) for n in buffers for m in models]
        torch._foreach_copy_(own, [b for stacked in buffers.values() for b in stacked.unbind()])
    return logits


def _save_momenta(optimizer: torch.optim.SGD, models: Sequence[nn.Module], state: FitState) -> None:
    for m, model in enumerate(models):
        buffers = {n: optimizer.state[p].get("momentum_buffer") for n, p in model.named_parameters()}
        state.momenta[m] = {n: b for n, b in buffers.items() if b is not None}


def _restore_momenta(optimizer: torch.optim.SGD, models: Sequence[nn.Module], state: FitState) -> None:
    for model, buffers in zip(models, state.momenta, strict=True):
        for name, buffer in buffers.items():
            weight = model.get_parameter(name)
            optimizer.state[weight]["momentum_buffer"] = buffer.detach().to(weight.device, copy=True)
