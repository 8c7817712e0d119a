"""The estimate of a training step's memory against what the process took: peak resident memory, a fresh one a repeat.

`python tests/benchmarks/step_memory.py [--repeats 3]`
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
    ("resnet20", 32, "sgd"),
    ("torchvision:resnet18", 224, "sgd"),
    ("preact-resnet18", 32, "sgd"),
    ("preact-resnet18", 32, "sam"),
]
BATCHES = {32: (32, 128), 224: (4, 16)}


def peaks(model: str, side: int, optimizer: str) -> None:
    """Print the peak in MB after a step of each batch size in this process, after one step of two images."""
    torch.set_num_threads(1)
    network = build(model, 10, (side, side, 3), 0)
    most = max(BATCHES[side])
    images = np.random.default_rng(0).integers(0, 256, (most, side, side, 3), np.uint8)
    data = LabeledImages(images, np.arange(most) % 10, tuple("0123456789"), "noise")
    for size in (2, *BATCHES[side]):
        fit([network], data, [np.arange(size)], FitConfig(optimizer=optimizer, batch_size=size, steps=1), [0])  # type: ignore[arg-type]
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3)
    asked = parser.parse_args()
    if asked.one:
        model, side, optimizer = asked.one
        peaks(model, int(side), optimizer)
        return
    for model, side, optimizer in CASES:
        config = FitConfig(optimizer=optimizer)  # type: ignore[arg-type]
        estimate = step_memory(build(model, 10, (side, side, 3), 0), (side, side, 3), config)
        command = [sys.executable, __file__, "--one", model, str(side), optimizer]
        found = [list(map(float, subprocess.check_output(command).split())) for _ in range(asked.repeats)]
        low, high = BATCHES[side]
        shares = [(one[2] - one[1]) / (high - low) for one in found]
        print(
            f"{model} {side} px {optimizer}: estimated {estimate.per_image / 1e6:.2f} MB an image, measured "
            f"{np.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}, n = {len(shares)}), ratio "
            f"{estimate.per_image / 1e6 / np.mean(shares):.2f}; peaks in MB at batches {(2, low, high)}: "
            f"{[[round(peak) for peak in one] for one in found]}; fixed {estimate.fixed / 1e6:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
