"""Rows of a data set as tensors on a device, and the order in which an epoch visits them."""

import collections
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from latebloom.data.depth import BadImages
from latebloom.data.images import EncodedImages, LabeledImages
from latebloom.data.seeds import numpy_rng

__all__ = ["Pixels", "cores", "epoch_order"]

RESIDENT_BYTES = 4 << 30
_CHUNK = 8  # images that a thread decodes at a time: all threads work on the batch that is needed next
_LOAD = 256  # images of a batch while all of them are brought to the device


class Pixels:
    """Images as uint8 (n, C, H, W) on `device`, by row.

    All images are kept on the device when they fit. Else threads decode them, batch by batch. Threads suffice, since
    image decoders hold Python's lock for a small part of their time; no image is copied between processes, and threads
    are safe beside CUDA and end with their process.

    Args:
        resident_bytes: images fit if they take at most this, at a byte a value, and at most half of a CUDA device's
            free memory.
        workers: threads that decode; 0: as many as this process's share of the cores.
        ahead: batches that are decoded in advance and held in memory, at least 0.
        channels_last: batches have torch's memory format channels_last, else they are contiguous. The values are the
            same.
    """

    def __init__(
        self,
        data: LabeledImages,
        device: torch.device,
        resident_bytes: int = RESIDENT_BYTES,
        *,
        workers: int = 0,
        ahead: int = 4,
        channels_last: bool = False,
    ) -> None:
        assert workers >= 0 <= ahead
        self.data = data
        self.device = device
        self.workers = workers or cores()
        self.ahead = ahead
        self.channels_last = channels_last
        self.resident: Tensor | None = None  # uint8 (N, C, H, W), or with channels_last (N, H, W, C), contiguous
        if _fit(len(data) * int(np.prod(data.image_shape)), device, resident_bytes):
            self.resident = self._load()

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """uint8 (n, C, H, W) of the rows int64 (n,). For many batches, `batches` is faster."""
        return next(self.batches([rows]))

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """uint8 (n, C, H, W) of each int64 (n,) in `rows`, in their order.

        The batches do not depend on the number of threads, nor on where the images are. To continue in the middle of an
        epoch, give the rest of its rows.

        Raises:
            ValueError: an image cannot be decoded, or is gone; raised when its batch is due, with the image's name.
        """
        if self.resident is None:
            yield from self._streamed(rows)
        elif len(rows):
            # One transfer for all: sending each batch's rows alone would wait for the device's earlier work.
            order = torch.from_numpy(np.concatenate(rows)).to(self.device)
            for chosen in order.split([len(r) for r in rows]):
                batch = self.resident.index_select(0, chosen)  # twice as fast on the CPU as resident[chosen]
                yield batch.permute(0, 3, 1, 2) if self.channels_last else batch  # (n, C, H, W)

    def _streamed(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="latebloom-decode")
        under_way: collections.deque[tuple[Tensor, list[Future[None]]]] = collections.deque()
        try:
            for place in range(len(rows) + self.ahead):
                if place < len(rows):
                    under_way.append(self._begin(pool, rows[place]))
                if place >= self.ahead:
                    batch, parts = under_way.popleft()
                    try:
                        for part in parts:
                            part.result()
                    except BadImages as error:
                        everything = self.data.unreadable()  # so that a person hears of all of them at once
                        if not everything:
                            raise
                        raise BadImages(
                            {self.data.names[row]: why for row, why in everything.items()}
                        ) from error.__cause__
                    yield self._sent(batch)
        finally:  # also when the caller stops early
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, rows: np.ndarray) -> tuple[Tensor, list[Future[None]]]:
        """A batch uint8 (n, C, H, W) on the CPU, and the tasks that fill it."""
        cuda = self.device.type == "cuda"
        height, width, channels = self.data.image_shape
        shape = (len(rows), channels, height, width)
        # A CUDA device changes the layout faster, so there the batch has the decoders' own layout.
        last = torch.channels_last if self.channels_last or cuda else torch.contiguous_format
        batch = torch.empty(shape, dtype=torch.uint8, memory_format=last, pin_memory=cuda)
        target = batch.permute(0, 2, 3, 1).numpy()  # (n, H, W, C), the same memory

        chunk = _CHUNK if isinstance(self.data.images, EncodedImages) else max(len(rows), 1)

        def fill(start: int) -> None:
            target[start : start + chunk] = self.data.pixels(rows[start : start + chunk])

        return batch, [pool.submit(fill, start) for start in range(0, len(rows), chunk)]

    def _sent(self, batch: Tensor) -> Tensor:
        batch = batch.to(self.device, non_blocking=True)  # torch keeps pinned memory until the copy is made
        return batch if self.channels_last else batch.contiguous()

    def _load(self) -> Tensor:
        """All images on the device; they are never all held a second time in host memory."""
        height, width, channels = self.data.image_shape
        shape = (height, width, channels) if self.channels_last else (channels, height, width)
        everything = torch.empty((len(self.data), *shape), dtype=torch.uint8, device=self.device)
        start = 0
        for batch in self._streamed(np.array_split(np.arange(len(self.data)), -(-len(self.data) // _LOAD))):
            end = start + len(batch)
            everything[start:end] = batch.permute(0, 2, 3, 1) if self.channels_last else batch
            start = end
        return everything


def _fit(size: int, device: torch.device, limit: int) -> bool:
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] // 2:
        return False
    return size <= limit


def cores() -> int:
    """This process's share of the cores; torchrun and accelerate say how many processes they started here."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order int64 (n,) in which epoch `epoch` visits n examples. It depends on the arguments alone."""
    return numpy_rng(seed, "order", epoch).permutation(n)
