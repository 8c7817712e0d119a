"""Several processes, each with a device, that train one model together; a process alone is a team of one."""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed
from torch import Tensor

__all__ = ["Team", "join"]


class Team:
    """The processes of torch's default process group, or this one alone where there is none.

    Each takes every `size`-th example of a batch, beginning with its `rank`, and sums gradients with the others. Their
    weights are equal at the start and so stay equal. Only the leading process writes files.
    """

    def __init__(self) -> None:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.size = torch.distributed.get_world_size() if together else 1
        self.rank = torch.distributed.get_rank() if together else 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def part(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of rows (n, ...)."""
        return rows[self.rank :: self.size]

    def whole(self, part: np.ndarray, n: int, device: torch.device) -> np.ndarray:
        """The array (n, ...) of which each process has its `part`; the same bits for all."""
        if self.size == 1:
            return part
        every = torch.zeros((n, *part.shape[1:]), dtype=torch.from_numpy(part).dtype, device=device)
        every[self.rank :: self.size] = torch.from_numpy(part).to(device)
        torch.distributed.all_reduce(every)  # sums with zeros
        return every.cpu().numpy()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM) if self.size > 1 else values

    def highest(self, values: Tensor) -> Tensor:
        """Of each value the highest of any process."""
        return self._reduced(values, torch.distributed.ReduceOp.MAX) if self.size > 1 else values

    def sum_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace each `.grad` by its sum over all processes, in one transfer."""
        grads = [w.grad for w in weights if w.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        torch.distributed.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)])

    def average_buffers(self, model: torch.nn.Module) -> None:
        """Make BatchNorm's running statistics the mean over all processes; each has those of its share of the data."""
        for buffer in model.buffers() if self.size > 1 else ():
            if buffer.is_floating_point():
                buffer.copy_(self.total(buffer) / self.size)

    def _reduced(self, values: Tensor, how: "torch.distributed.ReduceOp.RedOpType") -> Tensor:
        copy = values.clone()
        torch.distributed.all_reduce(copy, how)
        return copy


def join() -> torch.device | None:
    """Join the processes that `accelerate launch` or torchrun started: this one's device, or None if it is alone.

    To be called once, before any training; `fit` then trains on this process's share.

    Raises:
        ValueError: started as one of several processes where accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    try:
        import accelerate  # type: ignore[import-untyped]  # half a second, and only several processes need it
    except ImportError:
        raise ValueError("several processes need accelerate, which is not installed: pip install accelerate") from None
    result: torch.device | None = accelerate.PartialState().device
    return result
