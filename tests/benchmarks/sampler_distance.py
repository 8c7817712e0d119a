"""What the balanced preset saves: distance to the solution against denoiser calls, of two deterministic samplers.

The shipped digits generator, 64 references, level 50 and 80 of 100, the same noise for all. The solution is DDIM with
every one of the 1,000 timesteps. Printed: root-mean-square distance to it (of a range of 2) by sampler and calls, and
how many calls of DDIM reach the distance of DPM-Solver++(2M) with 25 steps. The paper preset's ancestral sampler draws
fresh noise at every step and has no solution to be near to: it takes 100 steps where balanced takes 25.

    python tests/benchmarks/sampler_distance.py [--references 64] [--threads 1]
"""

import argparse
import platform
import time

import numpy as np
import torch

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.synth.config import GenerateConfig, SampleConfig, Sampler
from latebloom.synth.generators.find import generator_folder
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.sample import denoise

STEPS = (10, 15, 20, 25, 35, 50, 75, 100, 150, 200, 300, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train = load(DataConfig(source="digits")).train
    denoiser = PixelDenoiser.load(generator_folder(GenerateConfig(generator="digits")), torch.device("cpu"))
    rows = np.arange(options.references)
    references = denoiser.encode(train.pixels(rows))
    conditions = denoiser.conditions(train.labels[rows], [])

    def run(sampler: Sampler, steps: int, level: int) -> tuple[torch.Tensor, float]:
        begin = time.perf_counter()
        sample = SampleConfig(sampler=sampler, grid=1000, steps=steps, guidance_scale=3)
        x0 = denoise(denoiser, references, conditions, np.full(len(rows), 10 * level), rows.tolist(), sample)
        return x0, time.perf_counter() - begin

    for level in (50, 80):
        solution, _ = run("ddim", 1000, level)
        distances: dict[str, dict[int, float]] = {"ddim": {}, "dpm++2m": {}}
        seconds: dict[str, dict[int, float]] = {"ddim": {}, "dpm++2m": {}}
        samplers: tuple[Sampler, ...] = ("ddim", "dpm++2m")
        for steps in STEPS:
            for sampler in samplers:
                x0, seconds[sampler][steps] = run(sampler, steps, level)
                distances[sampler][steps] = float((x0 - solution).square().mean().sqrt())
            print(f"level {level}, {steps:3d} steps: " + ", ".join(f"{s} {d[steps]:.4f}" for s, d in distances.items()))
        near = distances["dpm++2m"][25]
        enough = next((steps for steps in STEPS if distances["ddim"][steps] <= near), None)
        if enough is None:
            print(f"level {level}: DDIM of {STEPS[-1]} steps is not as near as DPM-Solver++ with 25 ({near:.4f})")
        else:
            ratio = seconds["ddim"][enough] / seconds["dpm++2m"][25]
            print(
                f"level {level}: DDIM needs {enough} steps to be as near as DPM-Solver++ with 25 ({near:.4f}): "
                f"{ratio:.1f} times the seconds"
            )
        _, ancestral = run("ddpm", 100, level)
        print(f"level {level}: paper preset's 100 ancestral steps take {ancestral / seconds['dpm++2m'][25]:.1f} times")
    machine = f"{options.threads} thread(s), torch {torch.__version__}, {platform.machine()}"
    print(f"{options.references} references, {machine}")


if __name__ == "__main__":
    main()
