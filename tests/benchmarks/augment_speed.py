"""Images per second of each strong policy on whole batches, beside torchvision.transforms.v2 image by image.

The peer is what a Dataset's transform does: one image at a time, as a tensor, without the cost of a DataLoader. It has
no Wu et al. 2020: that one stands beside RandAugment of as many operations. Both run in turns in one process, and the
ratio is that of the medians. What is timed includes drawing.

    python tests/benchmarks/augment_speed.py [--rounds 5] [--threads 1] [--device cpu]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, get_args

import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from latebloom.train.augment.policies import PolicyConfig, PolicyName, make_policy


def peer(name: str, side: int) -> Any:
    if name.startswith("autoaugment"):
        return v2.AutoAugment(v2.AutoAugmentPolicy[name.removeprefix("autoaugment_").upper()])
    if name == "cutout":  # a square of 16 pixels
        share = 16 * 16 / side**2
        return v2.RandomErasing(p=1, scale=(share, share), ratio=(1, 1))
    if name == "perturb":
        return v2.Compose([v2.ColorJitter(brightness=0.2), v2.GaussianBlur(5, (0.1, 2.0))])
    kinds = {"trivialaugment": v2.TrivialAugmentWide, "augmix": v2.AugMix}
    return kinds.get(name, v2.RandAugment)()


def images_of(count: int, side: int) -> Tensor:
    """Smooth random colour images: equalize and autocontrast have something to do."""
    small = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
    return (255 * images).to(torch.uint8)


def seconds(work: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def compare(name: PolicyName, batch: int, side: int, rounds: int, repeats: int, device: str) -> None:
    host = images_of(batch, side)
    images, generator = host.to(device), torch.Generator().manual_seed(0)
    policy, transform = make_policy(PolicyConfig(policy=name), 3, side, side), peer(name, side)
    first = torch.zeros(batch, dtype=torch.int64)

    def ours() -> Tensor:
        return policy.apply(images, policy.candidate(policy.draw(batch, generator), first))

    def theirs() -> Tensor:
        return torch.stack([transform(image) for image in host])

    ours(), theirs()
    torch.manual_seed(0)
    times = [(seconds(ours, repeats), seconds(theirs, 1)) for _ in range(rounds)]
    rates = [[batch / value for value in column] for column in zip(*times, strict=True)]
    shown = [f"{statistics.mean(rate):9,.0f} ({min(rate):,.0f}-{max(rate):,.0f})" for rate in rates]
    ratio = statistics.median(rates[0]) / statistics.median(rates[1])
    print(f"{side:4d} px  {name:22s} {shown[0]:>30s} {shown[1]:>30s} {ratio:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where our batches lie; torchvision's images stay on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {options.threads} thread(s), ours on "
        f"{options.device}, n = {options.rounds} rounds; images/s mean (min-max)"
    )
    print(f"{'':7s}  {'policy':22s} {'ours, batched':>30s} {'torchvision v2, one by one':>30s} {'ratio':>8s}")
    for batch, side, repeats in ((128, 32, 5), (32, 224, 1)):
        for name in get_args(PolicyName):
            compare(name, batch, side, options.rounds, repeats, options.device)
    start = time.perf_counter()
    for name in get_args(PolicyName):
        make_policy(PolicyConfig(policy=name), 3, 32, 32).draw(100_000, torch.Generator().manual_seed(0))
    print(f"drawing 100,000 images' choices of all {len(get_args(PolicyName))}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
