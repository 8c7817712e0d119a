"""SAM as a step before an ordinary optimizer, and learning-rate schedules."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["batchnorm_statistics_kept", "learning_rate", "sam_ascent"]


@contextlib.contextmanager
def sam_ascent(models: Sequence[Sequence[Tensor]], rho: float) -> Iterator[None]:
    """Within the block the weights w stand at w + rho * g / ||g||_2, g being what `.grad` holds on entry.

    Compute the gradient again inside; on leaving, w is back bit for bit and `.grad` is left as it is (the SAM
    gradient), so that any optimizer may step. Weight decay belongs to that optimizer and takes no part in the ascent.
    Foret et al., arXiv 2010.01412, Eq. 2, with 1e-12 added to the norm as in the public implementations.

    Args:
        models: the weights of each model; every model has a norm of its own. Weights without a gradient stay put.
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

    For SAM's second pass: the weights there are not those that will be evaluated.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    schedule: Literal["milestones", "cosine", "constant"],
    milestones: Sequence[float],
    decay: float,
    warmup: float,
) -> float:
    """The learning rate of step `step` (from 0) of `total_steps`.

    Args:
        milestones: fractions of the run, each in (0, 1); the rate is multiplied by `decay` at each one passed.
        warmup: fraction of the run over which the rate rises linearly to the schedule's value; the first step
            already moves.
    """
    progress = step / total_steps
    rate = peak
    if schedule == "milestones":
        rate *= decay ** sum(progress >= milestone for milestone in milestones)
    elif schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * progress))
    warmup_steps = warmup * total_steps
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else rate
