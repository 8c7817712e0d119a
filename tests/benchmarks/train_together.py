"""Seconds a classifier: ten small CNNs trained together against one after the other, in one run.

python tests/benchmarks/train_together.py [--models 10] [--repeats 3]
"""

import argparse
import platform
import time

import numpy as np
import torch

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.flows.config.compare import preset
from latebloom.train.loop.fit import FitConfig, fit
from latebloom.train.models.build import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train = load(DataConfig(source="digits")).train
    config = FitConfig(**preset("digits")["train"])
    rows = np.arange(len(train))

    def seconds(seeds: list[int]) -> float:
        models = [build("small-cnn", train.num_classes, train.image_shape, seed) for seed in seeds]
        begin = time.perf_counter()
        fit(models, train, [rows] * len(models), config, seeds)
        return (time.perf_counter() - begin) / len(seeds)

    seconds([0])  # imports and first calls
    ratios = []
    for repeat in range(options.repeats):
        alone = np.mean([seconds([seed]) for seed in range(options.models)])
        together = seconds(list(range(options.models)))
        ratios.append(alone / together)
        print(f"repeat {repeat}: alone {alone:.3f} s a model, {options.models} together {together:.3f} s a model")
    print(
        f"ratio {np.mean(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}, n = {len(ratios)}); "
        f"{config.total_steps(len(train))} steps of {config.batch_size}, one thread, torch {torch.__version__}, "
        f"{platform.machine()}"
    )


if __name__ == "__main__":
    main()
