"""What `quality.max_distance_ratio` and `quality.min_label_ratio` drop, on digits and on CIFAR-10.

First the distance to the reference by the distance that the noise of the level explains: of the shipped generator's
digits, of static (each value drawn evenly from 0 to 255), one grey, and another real image of the class. Then, with
--cifar, the share that two thresholds of the label's probability drop by quartile of the reference's early probability.

    python tests/benchmarks/filter_distances.py [--cifar FOLDER]
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import load
from latebloom.synth.config import GenerateConfig, QualityConfig, SampleConfig
from latebloom.synth.generate import draw
from latebloom.synth.generators.load import load_generator
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import make_plan, requests
from latebloom.synth.sampling.levels import glide_log_snr
from latebloom.synth.scoring.spread import Spread
from latebloom.train.config import FitConfig
from latebloom.train.evaluate import logits_of, softmax
from latebloom.train.loop.fit import fit
from latebloom.train.models.build import build

LEVELS = (10, 25, 40, 50, 70, 80, 100)
LIMIT = QualityConfig().max_distance_ratio
RNG = np.random.default_rng(0)


def line(name: str, level: int, ratio: np.ndarray) -> None:
    low, middle, high = np.quantile(ratio, [0, 0.5, 0.995])
    print(
        f"| {name:<26} | {level:3d} | {len(ratio):4d} | {low:5.2f} | {middle:5.2f} | {high:5.2f} | {ratio.max():5.2f} "
        f"| {(ratio > LIMIT).mean():6.1%} |"
    )


def others(spread: Spread, references: np.ndarray, others: np.ndarray, level: int, log_snr: float, data: str) -> None:
    """What is no variant of the references, uint8 (n, H, W, C)."""
    made = {
        "static": RNG.integers(0, 256, references.shape).astype(np.uint8),
        "one grey": np.full_like(references, 128),
        "another image of the class": others,
        "a copy": references,
    }
    for name, images in made.items():
        line(f"{data}{name}", level, spread.ratio(images, references, np.full(len(images), np.exp(log_snr))))


def same_class(labels: np.ndarray) -> np.ndarray:
    """Another row of the same class, for each row."""
    rows = [RNG.choice(np.setdiff1d(np.flatnonzero(labels == label), [row])) for row, label in enumerate(labels)]
    return np.array(rows)


def digits() -> None:
    train = load(DataConfig(source="digits")).train
    spread, n = Spread.of(train.pixels, len(train)), len(train)
    generator = load_generator(
        GenerateConfig(generator="digits"), SampleConfig(grid=100, guidance_scale=1), device=torch.device("cpu")
    )
    for level in LEVELS:
        plan = make_plan(list(requests(np.arange(n), (level,))), train, 100, 0, lambda *_: "")
        drawn = draw(generator, train, plan, batch=BatchSizes(256))
        images = np.stack([image for image in drawn.images if image is not None])
        log_snr = generator.level(level).log_snr
        line("digits, shipped generator", level, spread.ratio(images, train.pixels(), np.full(n, np.exp(log_snr))))
        others(spread, train.pixels(), train.pixels()[same_class(train.labels)], level, log_snr, "digits, ")


def cifar(folder: str) -> None:
    data = load(DataConfig(source=folder, train_limit=2000, test_limit=10)).train
    spread, pixels = Spread.of(data.pixels, len(data)), data.pixels()
    log_snr = np.append(glide_log_snr(100)[:-1], -np.inf)
    other = pixels[same_class(data.labels)]
    for level in LEVELS:
        others(spread, pixels, other, level, float(log_snr[level - 1]), "CIFAR-10, ")
    quartiles(data)


def quartiles(data: LabeledImages) -> None:
    """What is dropped, from the quartile with the highest early probability to that with the lowest."""
    pixels, n = data.pixels(), len(data)
    model = build("small-cnn", 10, data.image_shape, 0, 8)
    fit([model], data, [np.arange(n)], FitConfig(epochs=12, batch_size=50, lr=0.05), [0])

    def probability(images: np.ndarray) -> np.ndarray:
        named = LabeledImages(images, data.labels, data.class_names, "made")
        return np.asarray(softmax(logits_of(model, named))[np.arange(n), data.labels])

    def squares(side: int) -> np.ndarray:
        count = 32 // side
        mean = pixels.reshape(n, count, side, count, side, 3).mean((2, 4))
        return mean.repeat(side, 1).repeat(side, 2)

    mixed = pixels / 2 + pixels[RNG.permutation(n)] / 2
    made: dict[str, Callable[[], np.ndarray]] = {
        "squares of 4 pixels": lambda: squares(4),
        "squares of 8 pixels": lambda: squares(8),
        "half another image": lambda: mixed,
        "copies": lambda: pixels,
    }
    real = probability(pixels)
    quartile = np.argsort(np.argsort(-real)) * 4 // n
    for name, images in made.items():
        own = probability(np.rint(images()).astype(np.uint8))
        for rule, drops in (("below 0.01", own < 0.01), ("below 0.1 of the reference's", own < 0.1 * real)):
            shares = ", ".join(f"{drops[quartile == q].mean():.1%}" for q in range(4))
            print(f"| {name:<20} | {rule:<28} | {shares} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", help="CIFAR-10 as a folder of parquet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| images | level of 100 | n | lowest | median | 99.5 % | highest | above {LIMIT} |")
    digits()
    if options.cifar:
        cifar(options.cifar)


if __name__ == "__main__":
    main()
