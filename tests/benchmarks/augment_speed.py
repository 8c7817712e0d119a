"""Images per second of strong augmentation: each policy beside torchvision.transforms.v2, each operation beside kornia.

The peer is what a Dataset's transform does: one image at a time, as a tensor, without the cost of a DataLoader. It has
no Wu et al. 2020: that one stands beside RandAugment of as many operations. Both run in turns in one process, and the
ratio is that of the medians. What is timed includes drawing, in CPU seconds of the process (on a GPU in seconds).

kornia (in the `peers` group) takes batches as floats with a magnitude for each image; its time includes the conversion
from uint8 and back, as ours are uint8 at both ends. The last columns have the share of values that differ from
torchvision's on the same images and magnitudes, and the largest difference in grey levels; kornia's floats are rounded
or cut off, whichever is nearer to torchvision.

    python tests/benchmarks/augment_speed.py [--rounds 5] [--threads 1] [--device cpu] [--operations]
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

from latebloom.train.augment.image_ops import CODES, apply_operations
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
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    for _ in range(repeats):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / repeats


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


def kornia_operations() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Operations of kornia on float images (B, C, H, W) in [0, 1] and our magnitudes (B,), nearest to torchvision's."""
    from kornia import enhance, filters
    from kornia.geometry import transform as moves

    def none(m: Tensor) -> Tensor:
        return torch.zeros_like(m)

    def sheared(x: Tensor, m: Tensor, axis: int) -> Tensor:
        # torchvision shears about the upper left corner: the translation that its matrix has.
        height, width = x.shape[2:]
        theta = torch.eye(3).repeat(len(x), 1, 1)
        theta[:, axis, 1 - axis] = -m
        theta[:, axis, 2] = -m * 0.5
        return moves.warp_affine(x, theta[:, :2], (height, width), mode="nearest")

    def turned(x: Tensor, m: Tensor) -> Tensor:
        return moves.rotate(x, m, mode="nearest")

    def sharpened(x: Tensor, m: Tensor) -> Tensor:
        return enhance.sharpness(x, 1 + m)

    return {
        "ShearX": lambda x, m: sheared(x, m, 0),
        "ShearY": lambda x, m: sheared(x, m, 1),
        "TranslateX": lambda x, m: moves.translate(x, torch.stack((m.trunc(), none(m)), 1), mode="nearest"),
        "TranslateY": lambda x, m: moves.translate(x, torch.stack((none(m), m.trunc()), 1), mode="nearest"),
        "Rotate": turned,
        "Brightness": lambda x, m: enhance.adjust_brightness_accumulative(x, 1 + m),
        "Color": lambda x, m: enhance.adjust_saturation_with_gray_subtraction(x, 1 + m),
        "Contrast": lambda x, m: enhance.adjust_contrast_with_mean_subtraction(x, 1 + m),
        "Sharpness": sharpened,
        "Posterize": lambda x, m: enhance.posterize(x, m.int()),
        "Solarize": lambda x, m: enhance.solarize(x, m),
        "AutoContrast": lambda x, _: enhance.normalize_min_max(x),
        "Equalize": lambda x, _: enhance.equalize(x),
        "Invert": lambda x, _: enhance.invert(x),
        "GaussianBlur": lambda x, m: filters.gaussian_blur2d(x, (5, 5), m[:, None].expand(-1, 2)),
    }


def magnitudes_of(name: str, batch: int) -> Tensor:
    ends = {"Posterize": (1.0, 8.0), "Solarize": (0.1, 0.9), "GaussianBlur": (0.1, 2.0), "Rotate": (-30.0, 30.0)}
    ends |= dict.fromkeys(("TranslateX", "TranslateY"), (-9.0, 9.0)) | dict.fromkeys(("ShearX", "ShearY"), (-0.3, 0.3))
    values = torch.linspace(*ends.get(name, (-0.9, 0.9)), batch)
    return values.round() if name == "Posterize" else values


def torchvisions(image: Tensor, name: str, magnitude: float) -> Tensor:
    if name == "GaussianBlur":
        return v2.functional.gaussian_blur(image, [5, 5], [magnitude, magnitude])
    transform = v2.TrivialAugmentWide()
    return transform._apply_image_or_video_transform(image, name, magnitude, transform.interpolation, transform._fill)


def compare_operations(batch: int, side: int, rounds: int, repeats: int) -> None:
    images = images_of(batch, side)
    for name, operation in kornia_operations().items():
        magnitudes = magnitudes_of(name, batch)
        code = torch.full((batch,), CODES[name])

        def ours(code: Tensor = code, magnitudes: Tensor = magnitudes) -> Tensor:
            return apply_operations(images, code, magnitudes)

        def theirs(half: float = 0.5, operation: Any = operation, magnitudes: Tensor = magnitudes) -> Tensor:
            floats = operation(images.float().div_(255), magnitudes)
            return (floats * 255 + half).clamp_(0, 255).to(torch.uint8)

        expected = torch.stack(
            [torchvisions(*pair) for pair in zip(images, [name] * batch, magnitudes.tolist(), strict=True)]
        )
        off = [(found.int() - expected.int()).abs() for found in (ours(), theirs(0.5), theirs(0.01))]
        off = [off[0], min(off[1:], key=lambda distance: float((distance > 0).float().mean()))]
        equality = [f"{100 * (distance > 0).float().mean():6.2f} % {int(distance.max()):4d}" for distance in off]
        times = [(seconds(ours, repeats), seconds(theirs, repeats)) for _ in range(rounds)]
        rates = [[batch / value for value in column] for column in zip(*times, strict=True)]
        shown = [f"{statistics.mean(rate):9,.0f} ({min(rate):,.0f}-{max(rate):,.0f})" for rate in rates]
        ratio = statistics.median(rates[0]) / statistics.median(rates[1])
        print(f"{side:4d} px  {name:14s} {shown[0]:>30s} {shown[1]:>28s} {ratio:6.1f} {equality[0]} {equality[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where our batches lie; torchvision's images stay on the CPU")
    parser.add_argument("--operations", action="store_true", help="only the comparison with kornia, by operation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.operations:
        import kornia

        print(
            f"torch {torch.__version__}, kornia {kornia.__version__}, {options.threads} thread(s), n = {options.rounds}"
        )
        print(
            f"{'':9s} {'operation':14s} {'ours, images/s':>30s} {'kornia, images/s':>28s} {'ratio':>6s} ours off, its"
        )
        for batch, side, repeats in ((128, 32, 5), (32, 224, 1)):
            compare_operations(batch, side, options.rounds, repeats)
        return
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
