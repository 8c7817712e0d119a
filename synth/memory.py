"""Batches that fit into memory, and in which one bad image does not fail the others."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar, cast

import numpy as np
import torch

__all__ = ["BatchSizes", "attempt", "device_lost", "in_batches", "out_of_memory", "words"]

T = TypeVar("T")


class BatchSizes:
    """How many images fit into one call: at most `most`, halved where memory runs out, and remembered.

    Args:
        known: sizes found before, by key.
        remember: called with all sizes when one changes.
        at_once: how many images every call of the generator holds, however many are asked for (sample.deterministic);
            0: as many as are asked for.
    """

    def __init__(
        self,
        most: int,
        known: Mapping[str, int] | None = None,
        remember: Callable[[dict[str, int]], None] | None = None,
        at_once: int = 0,
    ) -> None:
        self.most = most
        self.known = dict(known or {})
        self._remember = remember
        self._at_once = at_once

    def of(self, key: str) -> int:
        """The size for calls of one kind."""
        return min(self.most, self.known.get(key, self.most))

    def halve(self, key: str, tried: int) -> None:
        """A call of `tried` images did not fit.

        Raises:
            MemoryError: it was a single one, or fewer would be filled up to as many.
        """
        if self._at_once > 1 and tried <= self._at_once:
            raise MemoryError(
                f"{self._at_once} images do not fit into the memory at once ({key}); set a smaller "
                "sample.deterministic, or a smaller sizes.work_size"
            )
        if tried == 1:
            raise MemoryError(
                f"not even one image fits into the memory ({key}); set a smaller sizes.work_size, set generate.dtype "
                "to bfloat16, or free the device"
            )
        self.known[key] = tried // 2
        if self._remember:
            self._remember(self.known)


def in_batches(
    rows: np.ndarray, call: Callable[[np.ndarray], T], batch: BatchSizes, key: str, failures: dict[int, str]
) -> Iterator[tuple[np.ndarray, T]]:
    """(rows, `call` of them) in batches; smaller ones where memory runs out, single ones where a batch fails.

    Args:
        failures: gets, by row, what `call` raised for that row alone.

    Raises:
        MemoryError: not even one row fits.
        Exception: what `call` raised, where the first three rows tried alone failed and nothing succeeded before: the
            fault is then not in the rows. Also where the error leaves the device unusable.
    """
    waiting, succeeded, failed_alone = [rows], False, 0  # a stack: the last goes next
    while waiting:
        chosen, size = waiting.pop(), batch.of(key)
        if len(chosen) > size:
            waiting += [chosen[size:], chosen[:size]]
            continue
        if not len(chosen):
            continue
        result, error = attempt(functools.partial(call, chosen))
        if error is None:
            succeeded = True
            yield chosen, cast(T, result)
        elif out_of_memory(error):
            error = None  # its traceback holds the tensors of the call that did not fit
            torch.cuda.empty_cache()
            batch.halve(key, len(chosen))
            waiting.append(chosen)
        elif device_lost(error):
            raise error  # all later calls of this process would fail too
        elif len(chosen) > 1:
            waiting += [chosen[place : place + 1] for place in reversed(range(len(chosen)))]
        else:
            failed_alone += 1
            if not succeeded and failed_alone == 3:
                raise error
            failures[int(chosen[0])] = words(error)


def attempt(call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result of `call`, or what it raised. Once the caller drops the error, the tensors of the call are freed."""
    try:
        return call(), None
    except Exception as error:  # the caller decides by its kind
        return None, error


def out_of_memory(error: Exception) -> bool:
    """Whether the device's or the machine's memory ran out."""
    message = str(error).lower()  # torch's allocator on the CPU, CUDA's libraries
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in message for text in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def device_lost(error: Exception) -> bool:
    """Whether an error leaves the GPU unusable for this process."""
    return "CUDA error" in str(error)


def words(error: Exception) -> str:
    """An error on one line, kind and message, as it is stored with the row that failed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
