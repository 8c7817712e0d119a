"""Images per second of the denoising loop against the loop that a diffusers user would write.

The naive loop noises one image to one level and steps a scheduler for it, one network call a step, as every
image-to-image pipeline of diffusers does for one image and one strength. Same model, same machine, same levels, same
number of network calls per image, one run, the two ways in turn.

    python tests/benchmarks/denoise_speed.py [--images 480] [--naive-images 24] [--threads 1] [--repeats 3]
"""

import argparse
import platform
import time

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.synth.config import GenerateConfig, SampleConfig
from latebloom.synth.generators.find import generator_folder
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.sample import denoise

LEVELS = (40, 50, 70, 80)


def naive(
    unet: UNet2DModel, scheduler: DDPMScheduler, image: torch.Tensor, label: int, level: int, seed: int, guidance: float
) -> None:
    """One image from one level of 100, as a diffusers user would: guidance in a batch of two."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(100)
    timesteps = scheduler.timesteps[100 - level :]
    x = scheduler.add_noise(image, torch.randn(image.shape, generator=generator), timesteps[:1])
    labels = torch.tensor([label, 10])
    with torch.inference_mode():
        for timestep in timesteps:
            if guidance == 1:
                output = unet(x, timestep, class_labels=labels[:1]).sample
            else:
                conditional, unconditional = unet(torch.cat([x, x]), timestep, class_labels=labels).sample.chunk(2)
                output = unconditional + guidance * (conditional - unconditional)
            x = scheduler.step(output, timestep, x, generator=generator).prev_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--naive-images", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train = load(DataConfig(source="digits")).train
    denoiser = PixelDenoiser.load(generator_folder(GenerateConfig(generator="digits")), torch.device("cpu"))
    unet = UNet2DModel.from_pretrained(generator_folder(GenerateConfig(generator="digits")), subfolder="unet").eval()
    scheduler = DDPMScheduler.from_pretrained(
        generator_folder(GenerateConfig(generator="digits")), subfolder="scheduler"
    )
    rows = np.arange(options.images) % len(train)
    levels = np.resize(LEVELS, options.images)
    references = denoiser.encode(train.pixels(rows))
    conditions = denoiser.conditions(train.labels[rows], [])
    for guidance in (1.0, 3.0):
        ratios = []
        for repeat in range(options.repeats):
            begin = time.perf_counter()
            for i in range(options.naive_images):
                label, level = int(train.labels[rows[i]]), int(levels[i])
                naive(unet, scheduler, references[i : i + 1], label, level, i, guidance)
            slow = options.naive_images / (time.perf_counter() - begin)
            begin = time.perf_counter()
            sample = SampleConfig(guidance_scale=guidance)
            denoise(denoiser, references, conditions, levels, list(range(options.images)), sample)
            fast = options.images / (time.perf_counter() - begin)
            ratios.append(fast / slow)
            print(
                f"guidance {guidance:g}, repeat {repeat}: one image and level a call {slow:.2f} images/s, "
                f"ragged batch {fast:.2f} images/s"
            )
        print(
            f"guidance {guidance:g}: ratio {np.mean(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f}, "
            f"n = {len(ratios)}); {options.images} images, {options.threads} thread(s), torch {torch.__version__}, "
            f"{platform.machine()}"
        )


if __name__ == "__main__":
    main()
