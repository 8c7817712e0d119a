"""The estimate of a training step's memory against what the process took: peak resident memory, a fresh one a row.

`python tests/benchmarks/step_memory.py`
"""

import argparse
import resource
import subprocess
import sys

import numpy as np
import torch

from latebloom.data.images import LabeledImages
from latebloom.train.config import FitConfig
from latebloom.train.loop.fit import fit
from latebloom.train.memory import step_memory
from latebloom.train.models.build import build

CASES = [
    ("preact-resnet18", 32, "sgd"),
    ("preact-resnet18", 32, "sam"),
    ("resnet20", 32, "sgd"),
    ("torchvision:resnet18", 224, "sgd"),
]
BATCHES = {32: (64, 128, 256), 224: (8, 16, 32)}


def peak(model: str, side: int, optimizer: str, batch: int) -> None:
    """Print the peak in MB of two steps in this process; two steps of two images went before."""
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    data = LabeledImages(images, np.arange(batch) % 10, tuple("0123456789"), "noise")
    network = build(model, 10, (side, side, 3), 0)
    for size in (2, batch):
        fit([network], data, [np.arange(size)], FitConfig(optimizer=optimizer, batch_size=size, steps=2), [0])  # type: ignore[arg-type]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4)
    asked = parser.parse_args()
    if asked.one:
        model, side, optimizer, batch = asked.one
        peak(model, int(side), optimizer, int(batch))
        return
    for model, side, optimizer in CASES:
        config = FitConfig(optimizer=optimizer)  # type: ignore[arg-type]
        estimate = step_memory(build(model, 10, (side, side, 3), 0), (side, side, 3), config)
        command = [sys.executable, __file__, "--one", model, str(side), optimizer]
        peaks = [float(subprocess.check_output([*command, str(batch)])) for batch in BATCHES[side]]
        sizes = BATCHES[side]
        measured = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])
        print(
            f"{model} {side} px {optimizer}: estimated {estimate.per_image / 1e6:.2f} MB an image, measured "
            f"{measured:.2f}, ratio {estimate.per_image / 1e6 / measured:.2f}; "
            f"peaks {[round(one) for one in peaks]} MB at batches {sizes}; fixed {estimate.fixed / 1e6:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
