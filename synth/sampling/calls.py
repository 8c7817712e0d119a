"""Network calls of one shape on one thread: what they make of an image then depends on that image alone.

Libraries choose their kernels by the shape of a batch, and split its sums among threads. So the same row gives other
last bits in a batch of 7 than in one of 8, and with two threads also in another place of the batch. In calls of equal
shape on one thread each row is computed in the same way wherever it stands and whatever stands beside it.
"""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["fixed_shapes", "in_calls", "on_one_thread"]

T = TypeVar("T")
P = ParamSpec("P")


class _Deterministic(Protocol):
    device: torch.device

    @property
    def deterministic(self) -> int: ...


S = TypeVar("S", bound=_Deterministic)


def fixed_shapes(*rows: Tensor, size: int = 0) -> list[Tensor]:
    """Tensors (n, ...) filled up with their own first rows to `size` rows; 0: to the next power of two.

    Only the first n rows of the result count. A compiled network needs few shapes: compiling one graph takes minutes,
    and batches have many sizes, since a ragged batch grows as images join and the last batch is short.
    """
    count = len(rows[0])
    repeat = torch.arange(size or 1 << (count - 1).bit_length(), device=rows[0].device) % count
    return [tensor[repeat.to(tensor.device)] for tensor in rows]


def in_calls(call: Callable[..., Tensor], *rows: Tensor, size: int) -> Tensor:
    """`call` of tensors (n, ...), which gives (n, ...), in calls of exactly `size` rows; 0: in one call as they are."""
    if not size:
        return call(*rows)
    chunks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return torch.cat([call(*fixed_shapes(*chunk, size=size))[: len(chunk[0])] for chunk in chunks])


def on_one_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A generator's method that computes on one thread of the CPU where its `deterministic` is set."""

    @functools.wraps(method)
    def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        threads = torch.get_num_threads()
        if not self.deterministic or self.device.type != "cpu" or threads == 1:
            return method(self, *args, **kwargs)
        torch.set_num_threads(1)
        try:
            return method(self, *args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapped
