"""Images per second of training on a GPU, beside what the device could do, and the seconds of selecting there.

PreAct-ResNet18 on 32-pixel images as the papers train it (batch 128, crop, flip; SGD and SAM; float32 and bfloat16,
compiled and not), on CIFAR-10 where --data names it, else on noise of its shape. Utilisation is the network's
floating-point operations (torch's counter, forward and backward) times images per second, over the rate of a large
matrix product on the same device. Selection: CRAIG's facility location of 50,000 examples of 10 classes at 10 %, on the
device and in numba on the CPU. --epochs 200 trains one whole run and says its test error and time.

    python tests/benchmarks/gpu_training.py [--device cuda] [--data FOLDER] [--epochs 200] [--repeats 3] [--tiny]

--tiny and --device cpu try the script itself.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import Splits, load
from latebloom.train.evaluate import error_rate, logits_of
from latebloom.train.loop.fit import FitConfig, fit
from latebloom.train.models.build import build
from latebloom.train.selection.facility import Points, facility_location_by_class


def noise(n: int) -> LabeledImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)
    return LabeledImages(pixels, rng.integers(0, 10, n), tuple("abcdefghij"), "noise")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """Floating-point operations per second of a large matrix product."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds(lambda: a @ a, device)
    return 2 * side**3 * 10 / seconds(lambda: [a @ a for _ in range(10)], device)


def flops_per_image(width: int, device: torch.device) -> float:
    """Of a forward and a backward pass."""
    model = build("preact-resnet18", 10, (32, 32, 3), 0, width=width).to(device)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(8, 3, 32, 32, device=device)).sum().backward()
    return counter.get_total_flops() / 8


def epoch_seconds(
    data: LabeledImages, config: FitConfig, width: int, repeats: int, device: torch.device
) -> list[float]:
    """Of the epochs after the first, which compiles and warms up."""
    ends: list[float] = []

    def note(_: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    model = build("preact-resnet18", 10, (32, 32, 3), 0, width=width)
    config = config.model_copy(update={"epochs": 1 + repeats})
    fit([model], data, [np.arange(len(data))], config, [0], device=device, on_epoch=note)
    return np.diff(ends).tolist()


def train_rates(train: LabeledImages, width: int, repeats: int, compiled: list[bool], device: torch.device) -> None:
    per_image = flops_per_image(width, device)
    side = 8192 if device.type == "cuda" else 512
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        peak = matmul_rate(dtype, device, side)
        for optimizer, passes in (("sgd", 1), ("sam", 2)):
            for compile_it in compiled:
                config = FitConfig(optimizer=optimizer, precision=precision, compile=compile_it)  # type: ignore[arg-type]
                rates = [len(train) / s for s in epoch_seconds(train, config, width, repeats, device)]
                rate = statistics.mean(rates)
                share = rate * per_image * passes / peak
                print(
                    f"{precision} {optimizer}{', compiled' if compile_it else ''}: {rate:,.0f} images/s "
                    f"({min(rates):,.0f} to {max(rates):,.0f}, n = {len(rates)}), {share:.1%} of a matrix product's "
                    f"{peak / 1e12:.2f} Tflop/s",
                    flush=True,
                )


def select_rates(n: int, repeats: int, device: torch.device) -> None:
    rng = np.random.default_rng(0)
    points = Points(rng.normal(size=(n, 10)).astype(np.float32))
    labels, budgets = np.arange(n) % 10, np.full(10, n // 100)
    for where in (device, None):
        times = [
            seconds(lambda: facility_location_by_class(points, labels, budgets, device=where), device)  # noqa: B023
            for _ in range(1 + repeats)
        ][1:]
        name = "numba, all cores" if where is None else f"torch on {device}"
        print(f"select 10 % of {n:,}, {name}: {statistics.mean(times):.3f} s ({min(times):.3f} to {max(times):.3f})")


def whole_run(splits: Splits, epochs: int, width: int, device: torch.device) -> None:
    for optimizer in ("sgd", "sam"):
        model = build("preact-resnet18", 10, (32, 32, 3), 0, width=width)
        config = FitConfig(optimizer=optimizer, epochs=epochs, precision="bfloat16")  # type: ignore[arg-type]
        rows = np.arange(len(splits.train))
        took = seconds(lambda: fit([model], splits.train, [rows], config, [0], device=device), device)  # noqa: B023
        error = error_rate(logits_of(model, splits.test), splits.test.labels)
        print(f"{optimizer}, {epochs} epochs: test error {error:.2%} in {took:,.0f} s, one seed", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", default="", help="what DataConfig takes as source; empty: noise")
    parser.add_argument("--epochs", type=int, default=0, help="of a whole run with SGD and with SAM; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="few images and a narrow network")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"torch {torch.__version__}, {name}")
    # Not narrower: torch 2.15 crashes on a CPU in the backward pass of a 1x1 convolution of 4 channels with stride 2.
    n, width = (256, 8) if options.tiny else (50_000, 64)
    splits = load(DataConfig(source=options.data)) if options.data else Splits(noise(n), noise(n // 5), None)
    compiled = [False] if options.no_compile or options.tiny else [False, True]
    train_rates(splits.train, width, options.repeats, compiled, device)
    select_rates(2_000 if options.tiny else 50_000, options.repeats, device)
    if options.epochs:
        whole_run(splits, options.epochs, width, device)


if __name__ == "__main__":
    main()
