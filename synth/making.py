"""What is finished of the images that are being drawn: counted by denoiser step, and kept every few seconds."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from latebloom.synth.sampling.steps import counted_steps

__all__ = ["Keeper", "Progress"]

KEEP_SECONDS = 2.0  # so much work at most, and the batch in the making, is lost where the process is killed

_used: set[tuple[str, str, int]] = set()  # generator, kind and size of the batches that this process has drawn


class Progress:
    """Counts images; within a batch by the share of its steps that are done. It never counts down.

    Args:
        on_images: gets what has been added, in images; a part of one where a batch has made a step.
        digest: of the generator.

    Attributes:
        first_use: seconds that the first steps took longer than the others: kernels are compiled and chosen then.
    """

    def __init__(self, on_images: Callable[[float], None] | None, digest: str) -> None:
        self._on_images, self._digest = on_images, digest
        self._finished: float = 0
        self._shown: float = 0
        self.first_use = 0.0

    @contextmanager
    def batch(self, kind: str, images: int, steps: int) -> Iterator[None]:
        """Around the drawing of a batch of one kind, in which each image makes so many steps in all."""
        ends, made = [time.perf_counter()], 0

        def on_step(moved: int) -> None:
            nonlocal made
            made += moved
            ends.append(time.perf_counter())
            self._show(self._finished + images * min(1.0, made / max(1, steps)))

        with counted_steps(on_step):
            yield
        took = np.diff(ends).tolist()
        shape = (self._digest, kind, images)
        if shape not in _used and len(took) > 1:
            self.first_use += max(0.0, took[0] - statistics.median(took[1:]))
        _used.add(shape)

    def finished(self, images: int) -> None:
        """Count a batch that is done."""
        self._finished += images
        self._show(self._finished)

    def _show(self, images: float) -> None:
        if images > self._shown and self._on_images:
            self._on_images(images - self._shown)
        self._shown = max(self._shown, images)


class Keeper:
    """Hands on the rows that are drawn, every few seconds, and where the drawing is ended.

    Args:
        keep: gets rows whose images are there; None: nothing is kept.
    """

    def __init__(self, keep: Callable[[np.ndarray], None] | None) -> None:
        self._keep = keep
        self._rows: list[np.ndarray] = []
        self._packed: list[Future[Any]] = []
        self._last = time.monotonic()

    def add(self, rows: np.ndarray, packed: Sequence[Future[Any]]) -> None:
        """Rows that are drawn, and what packs their images."""
        if self._keep is None:
            return
        self._rows.append(rows)
        self._packed += packed
        if time.monotonic() - self._last >= KEEP_SECONDS:
            self.flush()

    def forget(self, rows: np.ndarray) -> None:
        """Rows that are drawn again."""
        self._rows = [np.setdiff1d(some, rows) for some in self._rows]

    def flush(self) -> None:
        """Hand on what is left."""
        if self._keep is None or not self._rows:
            return
        for future in self._packed:
            future.result()
        self._keep(np.sort(np.concatenate(self._rows)))
        self._rows, self._packed, self._last = [], [], time.monotonic()
