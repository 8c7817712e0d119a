"""Rows of a data set as tensors on a device, and the order in which an epoch visits them."""

import numpy as np
import torch
from torch import Tensor

from data.images import LabeledImages
from data.seeds import numpy_rng

__all__ = ["Pixels", "epoch_order"]

RESIDENT_BYTES = 4 << 30


class Pixels:
    """Images as uint8 (n, C, H, W) on `device`, by row.

    They live on the device when all of them fit in `resident_bytes`; else each batch is decoded and sent.
    """

    def __init__(self, data: LabeledImages, device: torch.device, resident_bytes: int = RESIDENT_BYTES) -> None:
        self.data = data
        self.device = device
        self.resident: Tensor | None = None
        if len(data) * int(np.prod(data.image_shape)) <= resident_bytes:
            self.resident = _to_tensor(data.pixels()).to(device)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """uint8 (n, C, H, W) of the rows int64 (n,)."""
        if self.resident is not None:
            return self.resident[torch.from_numpy(rows).to(self.device)]
        return _to_tensor(self.data.pixels(rows)).to(self.device)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    # A copy in every case: torch warns of read-only arrays, such as memory-mapped ones.
    return torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C"))  # (N, C, H, W)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation int64 (n,) in which epoch `epoch` visits n examples. Depends on nothing else."""
    return numpy_rng(seed, "order", epoch).permutation(n)
