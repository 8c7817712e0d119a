"""How the settings of the digits demo were chosen, without its 797 test images.

The 1,000 other images are split anew for every split: 200 train the classifier, 500 train a generator, 300 validate.
For each candidate setting it prints the paired difference of `ours` to the original in points of validation error,
over splits times seeds, and its standard error over splits times seeds.

    python tests/benchmarks/tune_digits.py --splits 4 --seeds 10 [--generator-steps 1000]
"""

import argparse
import itertools
import time

import numpy as np
import torch

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages, concat
from latebloom.data.seeds import child_seed, numpy_rng
from latebloom.data.sources.load import digits_split, load
from latebloom.flows.config.arms import parse_arm
from latebloom.flows.config.compare import preset
from latebloom.flows.stages.training_sets import Pool, arm_rows
from latebloom.synth.config import GeneratorConfig, SampleConfig, SizeConfig, paper_levels
from latebloom.synth.fit import TRAIN_TIMESTEPS, fit_generator
from latebloom.synth.generate import draw
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import make_plan, requests
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.train.evaluate import error_rate, logits_of
from latebloom.train.loop.fit import FitConfig, fit
from latebloom.train.models.build import build
from latebloom.train.selection.slow import select_slow


def all_but_test() -> LabeledImages:
    """The 1,000 digits that no test uses: the training and the generator split."""
    splits = load(DataConfig(source="digits"))
    assert splits.generator is not None
    assert len(digits_split()["test"]) == 797
    return concat(splits.train, splits.generator)


def train(data: LabeledImages, rows: list[np.ndarray], config: FitConfig, seeds: list[int], stop: int = 0) -> list:
    """One classifier a seed, trained together."""
    models = [build("small-cnn", 10, (8, 8, 1), seed, 8) for seed in seeds]
    fit(models, data, rows, config, seeds, stop_epoch=stop)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--generator-steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = all_but_test()
    config = FitConfig(**preset("digits")["train"])
    results: dict[str, list[np.ndarray]] = {}
    for split in range(options.splits):
        order = numpy_rng(split, "tune digits").permutation(len(data))
        own, other, held_out = (data.subset(rows) for rows in np.split(order, [200, 700]))
        seeds = [child_seed(split, "seed", number) for number in range(options.seeds)]
        begin = time.perf_counter()
        fitted = fit_generator(other, GeneratorConfig(steps=options.generator_steps), split, torch.device("cpu"))
        print(f"split {split}: generator {time.perf_counter() - begin:.0f} s", flush=True)
        from diffusers import DDPMScheduler

        schedule = DDPMScheduler(num_train_timesteps=TRAIN_TIMESTEPS, beta_schedule="squaredcos_cap_v2")
        denoiser = PixelDenoiser(
            fitted.unet,
            schedule.alphas_cumprod.double().numpy(),
            "v_prediction",
            num_classes=10,
            name="tuning",
            digest="tuning",
        )
        original = train(own, [np.arange(200)] * len(seeds), config, seeds)
        base = np.array([error_rate(logits_of(model, held_out), held_out.labels) for model in original])
        results.setdefault("original (error)", []).append(base)
        selections = {}
        for epoch in (1, 2, 3):
            early = train(own, [np.arange(200)] * len(seeds), config, seeds, stop=epoch)
            for space in ("softmax", "logits") if epoch == 2 else ("softmax",):
                selections[f"epoch {epoch}, {space}"] = [
                    select_slow(logits_of(model, own), own.labels, "cluster", seed, space=space).indices
                    for model, seed in zip(early, seeds, strict=True)
                ]
        selections["all"] = [np.arange(200)] * len(seeds)
        for (grid, guidance), sampler in itertools.product(((20, 1.0), (20, 3.0), (100, 3.0)), ("ddpm", "dpm++2m")):
            if grid == 100 and sampler != "ddpm":
                continue
            sample = SampleConfig(sampler=sampler, grid=grid, guidance_scale=guidance)
            levels = paper_levels(5, grid)
            plan = make_plan(requests(np.arange(200), levels), own, grid, split, lambda *_: "")
            drawn = draw(LoopGenerator(denoiser, sample), own, plan, SizeConfig(), BatchSizes(256))
            usable = plan.filter(drawn.finite)
            images = np.stack([image for image in drawn.images if image is not None])[drawn.finite]
            labels = usable["label"].to_numpy()
            pool_images = concat(own, LabeledImages(images, labels, own.class_names, "synthetic"))
            pool = Pool.of(200, usable)
            for name, chosen in selections.items():
                if grid == 100 and name not in ("epoch 2, softmax", "all"):
                    continue
                rows = [arm_rows(parse_arm("ours-5"), c, levels, pool) for c in chosen]
                models = train(pool_images, rows, config, seeds)
                errors = np.array([error_rate(logits_of(model, held_out), held_out.labels) for model in models])
                results.setdefault(f"{sampler} {grid} steps, guidance {guidance:g}: {name}", []).append(errors - base)
    print("\npoints of validation error; difference to original unless said")
    for name, values in results.items():
        flat = 100 * np.concatenate(values)
        print(f"{name:55s} {flat.mean():+6.2f} +- {flat.std(ddof=1) / np.sqrt(len(flat)):.2f}  n={len(flat)}")


if __name__ == "__main__":
    main()
