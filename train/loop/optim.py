"""SAM as a step before an ordinary optimizer, AdaHessian, and learning-rate schedules."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latebloom.train.config import FitConfig

__all__ = ["SAM", "SGD", "AdaHessian", "batchnorm_statistics_kept", "learning_rate", "sam_ascent"]


@contextlib.contextmanager
def sam_ascent(models: Sequence[Sequence[Tensor]], rho: float) -> Iterator[None]:
    """Within the block the weights w stand at w + rho * g / ||g||_2, g being what `.grad` holds on entry.

    Compute the gradient again inside. After the block w is restored bit for bit, and `.grad` holds the SAM gradient, so
    that any optimizer can step. Weight decay that belongs to that optimizer has no part in the ascent; L2 in the loss
    has, as in g. Foret et al., arXiv 2010.01412, Eq. 2, with 1e-12 added to the norm as in the public implementations.

    Args:
        models: the weights of each model, each with a norm of its own. Weights without a gradient do not move.
        rho: radius of the ascent, >= 0.
    """
    moved = [w for weights in models for w in weights if w.grad is not None]
    with torch.no_grad():
        before = [w.clone() for w in moved]
        for weights in models:
            with_grad = [w for w in weights if w.grad is not None]
            if not with_grad:
                continue
            grads = [w.grad for w in with_grad if w.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_add_(with_grad, torch._foreach_mul(grads, rho / (norm + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)


@contextlib.contextmanager
def batchnorm_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm layers normalise by the batch as in training but leave their running statistics.

    For SAM's second pass, whose weights are not those that will be evaluated.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


class SAM:
    """SAM around any torch optimizer, for a training loop that is not ours: `sam.step(closure)` instead of its `step`.

        sam = SAM(optimizer, model, rho=0.05)
        ...
        criterion(model(x), y).backward()
        sam.step(lambda: criterion(model(x), y))
        optimizer.zero_grad()

    The optimizer stays what it was: schedulers, `zero_grad` and `state_dict` go to it. BatchNorm's running statistics
    are those of the first pass. Not for float16 with a GradScaler; bfloat16 needs none.

    Args:
        optimizer: steps by the SAM gradient; its parameters are those that ascend.
        model: whose BatchNorm statistics are kept in the second pass.
        rho: radius of the ascent, >= 0; 0.05 to 0.2 are usual.

    Raises:
        ValueError: a negative rho.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, rho: float = 0.05) -> None:
        if not rho >= 0:
            raise ValueError(f"rho is {rho}, expected a number from 0; 0.05 to 0.2 are usual")
        self.optimizer, self.model, self.rho = optimizer, model, rho

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Ascend along `.grad`, take the gradient of the closure's loss there, come back, step; that loss, detached.

        Args:
            closure: the loss of the same batch, without `backward`.
        """
        weights = [w for group in self.optimizer.param_groups for w in group["params"]]
        with sam_ascent([weights], self.rho), batchnorm_statistics_kept(self.model):
            self.optimizer.zero_grad()
            loss = closure()
            loss.backward()
        self.optimizer.step()
        return loss.detach()


_add_param_group, _zero_grad, _step = (
    inspect.unwrap(method)
    for method in (torch.optim.SGD.add_param_group, torch.optim.SGD.zero_grad, torch.optim.SGD.step)
)


class SGD(torch.optim.SGD):
    """`torch.optim.SGD`, number for number, without the import of torch's compiler.

    torch wraps these methods so that its compiler does not enter them, and imports it for that: two CPU seconds before
    the first step of every process. Here no optimizer is compiled.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        _add_param_group(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        _zero_grad(self, set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As torch's."""
        return _step(self, closure)


EPS = 1e-4  # added to AdaHessian's denominator, as published


class AdaHessian(torch.optim.Optimizer):
    """Adam with the squared gradient replaced by the squared diagonal of the Hessian (arXiv 2006.00719, Alg. 1).

    One step is

        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        optimizer.estimate(gradients, generator)  # Hessian-vector products; the graph is freed
        for w, g in zip(weights, gradients): w.grad = g.detach()
        optimizer.step()

    and not `loss.backward(create_graph=True)`, which ties `.grad` and the graph into a cycle that only the garbage
    collector frees. Weight decay is decoupled: w shrinks by lr * weight_decay * w and no moment sees it.

    Args:
        params: as for any torch optimizer.
        lr: above 0; the paper's for ResNets on CIFAR-10.
        betas: decay of the mean gradient and of the mean squared Hessian diagonal, each in [0, 1).
        weight_decay: >= 0.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0 or not weight_decay >= 0:
            raise ValueError(f"lr is {lr} and weight_decay {weight_decay}, expected lr > 0 and weight_decay >= 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}, expected two numbers from 0 to below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._diagonals: dict[Tensor, Tensor] = {}  # of the current step

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's; an unused estimate is dropped."""
        super().__setstate__(state)
        self._diagonals = {}

    def estimate(
        self, gradients: Sequence[Tensor | None], generator: torch.Generator | Sequence[torch.Generator]
    ) -> None:
        """Estimate the Hessian's diagonal for the next `step`: |v * Hv| for one Rademacher vector v (Hutchinson).

        Of a convolution's kernel (O, I, h, w) it is averaged over h and w (the paper's spatial averaging).

        Args:
            gradients: for each parameter of all groups, in their order, its gradient made with create_graph=True, or
                None for one that stays as it is. Their graph is freed.
            generator: on the CPU, so that v is the same on any device; or one for each group, so that models trained
                together draw what each would draw alone.
        """
        groups = [group["params"] for group in self.param_groups]
        generators = [generator] * len(groups) if isinstance(generator, torch.Generator) else list(generator)
        assert len(generators) == len(groups)
        assert len(gradients) == sum(map(len, groups))
        owners = [(w, own) for weights, own in zip(groups, generators, strict=True) for w in weights]
        weights, outputs, vectors = [], [], []
        for (w, own), gradient in zip(owners, gradients, strict=True):
            if gradient is None:
                continue
            signs = torch.randint(2, w.shape, generator=own, dtype=torch.int8) * 2 - 1
            weights.append(w)
            if gradient.requires_grad:  # else it does not depend on any weight, and adds nothing
                outputs.append(gradient)
                vectors.append(signs.to(gradient))
        if outputs:
            products = torch.autograd.grad(outputs, weights, vectors, materialize_grads=True)
        else:
            products = tuple(map(torch.zeros_like, weights))
        self._diagonals = {w: _spatial_mean(hv.abs()) for w, hv in zip(weights, products, strict=True)}  # |v| = 1

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the weights that have a `.grad`; each of them must have had its `estimate`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._step_group(group, weights)
        self._diagonals = {}
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        for w in weights:
            if w not in self._diagonals:
                raise ValueError(
                    "AdaHessian got gradients without an estimate of the Hessian; call estimate before step"
                )
            if not self.state[w]:
                self.state[w] |= {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(w),
                    "exp_hessian_diag_sq": torch.zeros_like(w),
                }
        beta1, beta2 = group["betas"]
        states = [self.state[w] for w in weights]
        for state in states:
            state["step"] += 1
        steps = [int(state["step"]) for state in states]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_hessian_diag_sq"] for state in states]
        diagonals = [self._diagonals[w] for w in weights]
        torch._foreach_lerp_(means, [w.grad for w in weights if w.grad is not None], 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, diagonals, diagonals, 1 - beta2)
        scale = torch._foreach_div(squares, [1 - beta2**t for t in steps])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, EPS)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(weights, means, scale, [-group["lr"] / (1 - beta1**t) for t in steps])


def _spatial_mean(diagonal: Tensor) -> Tensor:
    """Of a convolution's kernel (O, I, h, w), every entry replaced by the mean over its h and w."""
    if diagonal.ndim != 4:
        return diagonal
    return diagonal.mean((2, 3), keepdim=True).expand_as(diagonal).contiguous()


def learning_rate(config: FitConfig, step: int, total_steps: int) -> float:
    """The learning rate of step `step` (from 0) of `total_steps`; with warmup the first one is above 0 too."""
    progress = step / total_steps
    rate = config.lr
    if config.schedule == "milestones":
        rate *= config.lr_decay ** sum(progress >= milestone for milestone in config.milestones)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * progress))
    warmup_steps = config.warmup * total_steps
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else rate
