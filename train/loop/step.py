"""The gradients of one step, of one model or of many small ones as one network, for SGD, SAM and AdaHessian."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from latebloom.train.config import FitConfig
from latebloom.train.loop.optim import AdaHessian, batchnorm_statistics_kept, sam_ascent
from latebloom.train.loop.team import Team

__all__ = ["Batch", "Gradients", "autocast", "losses_of_batch"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One model's examples of a step, on its device.

    Attributes:
        images: uint8 (B, C, H, W), augmented.
        targets: int64 (B,).
        places: int64 (B,), places in the epoch's list of examples.
        factors: float32 (B,), factors of the losses; None: 1.
        partners: int64 (B,), labels of the images that Mixup mixed into these; None: no Mixup.
        shares: float32 (B,), the share of an image's own label, 1 where it has no partner.
    """

    images: Tensor
    targets: Tensor
    places: Tensor
    factors: Tensor | None = None
    partners: Tensor | None = None
    shares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)


class Gradients:
    """Computes the gradients of a step into `.grad`.

    Args:
        optimizer: an `AdaHessian` if the config says so; others are not used here.
        forwards: per model, the function of its logits: itself, or itself compiled.
        team: the processes that have the rest of each batch.
    """

    def __init__(
        self,
        config: FitConfig,
        models: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        forwards: Sequence[Callable[[Tensor], Tensor]],
        team: Team,
    ) -> None:
        self.config, self.models, self.optimizer = config, models, optimizer
        self.forwards, self.team = forwards, team
        self.weights = [list(model.parameters()) for model in models]

    def __call__(
        self, batches: dict[int, Batch], whole: dict[int, int], generators: Sequence[torch.Generator]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """One step's gradients of the models that are keys of `batches`.

        Args:
            whole: per model, the images of the step: more than its batch where other processes have the rest.
            generators: per model, where AdaHessian draws from.

        Returns:
            Per model: float64 (3,) summed loss without factors, errors and count; bool (B,) which are right.
        """
        # By size, since batches of different sizes cannot be stacked: by the whole step's, as it is in all processes.
        together: dict[int, list[int]] = {}
        for m in batches:
            together.setdefault(whole[m], []).append(m)
        results: dict[int, tuple[Tensor, Tensor]] = {}
        graphs: dict[int, list[Tensor | None]] = {}
        for group in together.values():
            mine = [batches[m] for m in group]
            # The mean over each model's batch and the sum over models, so models do not change each other's gradients.
            totals = [whole[m] for m in group]
            results |= dict(zip(group, self._passes(group, mine, totals, graphs), strict=True))
        if self.config.optimizer == "adahessian":
            self._adahessian(graphs, generators)
        return results

    def _passes(
        self, group: list[int], batches: list[Batch], totals: list[int], graphs: dict[int, list[Tensor | None]]
    ) -> list[tuple[Tensor, Tensor]]:
        config = self.config
        results = self._backward(group, batches, totals, graphs)
        weights = [self.weights[m] for m in group]
        flat = [w for own in weights for w in own]
        if config.optimizer == "sam":
            self._add_decay(flat)
            if self.team.size > 1 and config.sam_sync == "global":
                self.team.sum_gradients(flat)
            with contextlib.ExitStack() as stack:
                stack.enter_context(sam_ascent(weights, config.rho))
                if config.sam_batchnorm == "first_pass":
                    for m in group:
                        stack.enter_context(batchnorm_statistics_kept(self.models[m]))
                for w in flat:
                    w.grad = None
                self._backward(group, batches, totals, graphs)
                self._add_decay(flat)
        if self.team.size > 1 and config.optimizer != "adahessian":
            self.team.sum_gradients(flat)
        return results

    def _add_decay(self, weights: Sequence[Tensor]) -> None:
        """Add the gradient of weight_decay / 2 * ||w||^2 where SAM has it in the loss; a process adds its share."""
        decay = self.config.weight_decay / self.team.size
        with_grad = [w for w in weights if w.grad is not None]
        if self.config.sam_decay == "ascent" and decay:
            with torch.no_grad():
                torch._foreach_add_([w.grad for w in with_grad if w.grad is not None], with_grad, alpha=decay)

    def _backward(
        self, group: list[int], batches: list[Batch], totals: list[int], graphs: dict[int, list[Tensor | None]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Add the gradient of each model's mean loss over its step to `.grad`, micro-batch after micro-batch."""
        stacked = _stack(batches)
        parts = [stacked] if self.config.accumulate == 1 else _split(stacked, self.config.accumulate)
        size = stacked.targets.shape[1]
        plain = len(parts) == 1 and all(total == size for total in totals)
        sums, hits = [], []
        for part in parts:
            logits = self._logits(group, part.images)  # (M, b, K)
            losses = _losses(logits, part)  # (M, b)
            weighted = losses if part.factors is None else losses * part.factors
            if plain:
                loss = weighted.mean(1).sum()
            else:
                loss = torch.stack([w.sum() / total for w, total in zip(weighted, totals, strict=True)]).sum()
            if self.config.optimizer == "adahessian":
                own = [w for m in group for w in self.weights[m]]
                gradients = torch.autograd.grad(loss, own, create_graph=True, allow_unused=True)
                for m in group:
                    graphs[m] = list(gradients[: len(self.weights[m])])
                    gradients = gradients[len(self.weights[m]) :]
            else:
                loss.backward()
            with torch.no_grad():
                right = logits.argmax(2) == part.targets
                count = torch.full_like(losses, 1.0)
                sums.append(torch.stack([losses, ~right, count], 2).double().sum(1))  # (M, 3)
                hits.append(right)
        total_sums = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        return list(zip(total_sums, torch.cat(hits, 1), strict=True))

    def _logits(self, group: list[int], images: Tensor) -> Tensor:
        """Logits float32 (M, B, K) of the group's models on their own images uint8 (M, B, C, H, W)."""
        with autocast(self.config, images.device):
            if len(group) == 1:
                x = images[0].float().div_(255)  # [0, 1]
                if _is_channels_last(self.weights[group[0]]):
                    x = x.contiguous(memory_format=torch.channels_last)
                logits = self.forwards[group[0]](x)[None]
            else:
                logits = _logits_together([self.models[m] for m in group], images.float().div_(255))
        return logits.float()

    def _adahessian(self, graphs: dict[int, list[Tensor | None]], generators: Sequence[torch.Generator]) -> None:
        assert isinstance(self.optimizer, AdaHessian)
        every: list[Tensor | None] = []
        for m, weights in enumerate(self.weights):
            gradients = graphs.get(m, [None] * len(weights))
            for w, gradient in zip(weights, gradients, strict=True):
                w.grad = None if gradient is None else gradient.detach()
            every += gradients
        self.optimizer.estimate(every, generators)


def autocast(config: FitConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a network runs at the config's precision."""
    if config.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def losses_of_batch(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """Losses float32 (B,) of one model, without factors."""
    return _losses(model(batch.images.float().div_(255)).float()[None], _stack([batch]))[0]


def _is_channels_last(weights: Sequence[Tensor]) -> bool:
    return any(
        w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights
    )


def _stack(batches: list[Batch]) -> Batch:
    """Batches of one size as one, each tensor with a first dimension over models."""
    if len(batches) == 1:  # views
        values = vars(batches[0])
        return Batch(**{name: value[None] for name, value in values.items() if value is not None})
    stacked = {field.name: _stacked(field.name, batches) for field in dataclasses.fields(Batch)}
    return Batch(**{name: value for name, value in stacked.items() if value is not None})


def _stacked(name: str, batches: list[Batch]) -> Tensor | None:
    values = [getattr(batch, name) for batch in batches]
    if all(value is None for value in values):
        return None
    neutral = {"factors": 1.0, "shares": 1.0}
    filled = []
    for batch, value in zip(batches, values, strict=True):
        if value is None:
            value = batch.targets if name == "partners" else torch.full_like(batch.targets, neutral[name]).float()
        filled.append(value)
    return torch.stack(filled)


def _split(stacked: Batch, parts: int) -> list[Batch]:
    """A stacked batch in up to `parts` pieces along the second dimension."""
    pieces = {name: value.chunk(parts, 1) for name, value in vars(stacked).items() if value is not None}
    return [Batch(**dict(zip(pieces, values, strict=True))) for values in zip(*pieces.values(), strict=True)]


def _losses(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy float32 (M, B); with Mixup the mean of both labels' by their shares."""
    flat = logits.flatten(0, 1)
    losses = F.cross_entropy(flat, batch.targets.flatten(), reduction="none").view_as(batch.targets)
    if batch.partners is None or batch.shares is None:
        return losses
    others = F.cross_entropy(flat, batch.partners.flatten(), reduction="none").view_as(batch.targets)
    return batch.shares * losses + (1 - batch.shares) * others


def _logits_together(models: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Logits (M, B, K) of M models of one architecture on their own images (M, B, C, H, W)."""
    first = models[0]
    parameters = {n: torch.stack([m.get_parameter(n) for m in models]) for n, _ in first.named_parameters()}
    buffers = {n: torch.stack([m.get_buffer(n) for m in models]) for n, _ in first.named_buffers()}
    # BatchNorm updates the stacked buffers in place, not those of `first`.
    logits = torch.func.vmap(lambda p, b, x: functional_call(first, (p, b), (x,)))(parameters, buffers, images)
    if buffers:
        own = [m.get_buffer(n) for n in buffers for m in models]
        torch._foreach_copy_(own, [b for stacked in buffers.values() for b in stacked.unbind()])
    result: Tensor = logits
    return result
