"""What a SAM step costs in SGD steps, and our epoch beside the DataLoader loop that everyone writes.

    .venv/bin/python tests/benchmarks/train_speed.py --models resnet20 preact-resnet18 --width 16

Everything in one run, in turns, so that a busy machine slows all of it alike; on a CPU by CPU seconds of all processes
as well, which other programs do not count in. The plain loop is what one finds in most
repositories: a data set of PIL images with torchvision's RandomCrop, RandomHorizontalFlip and ToTensor in a
DataLoader, float32, contiguous, torch.optim.SGD, `loss.item()` at every step. It trains the same network.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_stream
from latebloom.train.loop.fit import FitConfig, fit
from latebloom.train.models.build import build


class PilImages(Dataset):
    """As torchvision.datasets.CIFAR10: arrays that become PIL images that are transformed."""

    def __init__(self, data: LabeledImages) -> None:
        self.pixels, self.labels = data.pixels(), data.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[row])), self.labels[row]


Seconds = tuple[float, float]  # wall, CPU


def now() -> Seconds:
    """CPU seconds are of this process and of its workers that have ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), sum(os.times()[:4])


def since(begin: Seconds) -> Seconds:
    end = now()
    return end[0] - begin[0], end[1] - begin[1]


def plain_epoch(model: nn.Module, data: LabeledImages, batch: int, workers: int, device: torch.device) -> Seconds:
    """Seconds of one epoch."""
    loader = DataLoader(
        PilImages(data), batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=device.type == "cuda"
    )
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    begin, total = now(), 0.0
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return since(begin)


def our_epoch(model: nn.Module, data: LabeledImages, config: FitConfig, device: torch.device) -> Seconds:
    """Seconds of the second of two epochs; moving the images to the device is not in it."""
    ends: list[Seconds] = []
    fit([model], data, [np.arange(len(data))], config, [0], device=device, on_epoch=lambda _: ends.append(now()))
    return ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "preact-resnet18"])
    parser.add_argument("--width", type=int, default=16, help="of preact-resnet18's stem; 64 is the paper's")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the plain loop's DataLoader")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (arguments.images, 32, 32, 3)).astype(np.uint8)
    data = LabeledImages(pixels, rng.integers(0, 10, arguments.images), tuple("abcdefghij"), "noise")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {name}, {arguments.threads} threads, "
        f"{arguments.images} images of 32 px, batch {arguments.batch}, {arguments.precision}, "
        f"{arguments.repeats} repeats"
    )
    counted = arguments.images // arguments.batch * arguments.batch
    for model_name in arguments.models:
        width = arguments.width if model_name == "preact-resnet18" else 0

        def fresh(model_name: str = model_name, width: int = width) -> nn.Module:
            return build(model_name, 10, (32, 32, 3), 0, width=width)

        def ours(optimizer: str, fresh: Callable[[], nn.Module] = fresh) -> Seconds:
            config = FitConfig(
                optimizer=optimizer,  # type: ignore[arg-type]
                epochs=2,
                batch_size=arguments.batch,
                precision=arguments.precision,
                compile=arguments.compile,
            )
            return our_epoch(fresh(), data, config, device)

        def plain(workers: int, fresh: Callable[[], nn.Module] = fresh) -> Seconds:
            with torch_stream(0, "plain"):
                return plain_epoch(fresh(), data, arguments.batch, workers, device)

        ways: dict[str, Callable[[], Seconds]] = {"sgd": lambda: ours("sgd"), "sam": lambda: ours("sam")}
        for count in arguments.workers:
            ways[f"plain loop, {count} workers"] = lambda count=count: plain(count)  # type: ignore[misc]
        seconds: dict[str, list[Seconds]] = {way: [] for way in ways}
        for _ in range(arguments.repeats):
            for way, run in ways.items():
                seconds[way].append(run())
        print(f"{model_name}" + (f", width {width}" if width else ""))
        for way, values in seconds.items():
            wall, cpu = (
                [mine[kind] / theirs[kind] for mine, theirs in zip(values, seconds["sgd"], strict=True)]
                for kind in (0, 1)
            )
            walls, cpus = ([value[kind] for value in values] for kind in (0, 1))
            print(
                f"  {way:22s} {counted / statistics.mean(walls):6.0f} images/s, {counted / statistics.mean(cpus):6.0f} "
                f"a CPU second; epoch {min(walls):.2f} to {max(walls):.2f} s, CPU {min(cpus):.2f} to {max(cpus):.2f}"
            )
            for kind, ratios in (("wall", wall), ("CPU", cpu)):
                print(
                    f"  {'':22s} of sgd's {kind} seconds {statistics.mean(ratios):.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f}, n {len(ratios)})"
                )


if __name__ == "__main__":
    main()
