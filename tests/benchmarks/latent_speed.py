"""Images per second of the latent generator against diffusers' image-to-image pipeline, and what caching is worth.

Four ways to the same images of the same Stable Diffusion folder: references x levels, same number of network calls an
image. In one run, in turn.

    single   diffusers' pipeline, one image and one level a call, as its documentation shows it
    levels   diffusers' pipeline, one call a level with all references in a batch
    uncached our ragged batch, but every image encodes its reference and embeds its prompt anew
    ours     our ragged batch: a reference is encoded once for all its levels, a prompt embedded once a class

Without --folder the model is Stable Diffusion in miniature with random weights (tests/tiny_checkpoints.py): there the
time is that of calls, not of arithmetic, as it is for a small model on any machine.

    python tests/benchmarks/latent_speed.py [--folder DIR] [--references 16] [--repeats 3] [--device cpu]
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_checkpoints import save_tiny_sd

from latebloom.synth.config import SampleConfig
from latebloom.synth.generators.latent import LatentDenoiser, _embed
from latebloom.synth.sampling.denoiser import Wanted
from latebloom.synth.sampling.loop import LoopGenerator

LEVELS, GRID = (8, 10, 14, 16), 20
PROMPTS = ("a photo of a top", "a photo of a middle", "a photo of a bottom")


def pipeline_of(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """diffusers' own, with the same sampler: 20 DDIM steps."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder, use_safetensors=True, dtype=dtype).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ways(folder: Path, images: np.ndarray, device: str, dtype: torch.dtype) -> dict[str, Callable[[], float]]:
    """Each makes all images and says how many seconds it took."""
    pipeline = pipeline_of(folder, device, dtype)
    pictures = [Image.fromarray(image) for image in images]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(images))]
    settings = {"num_inference_steps": GRID, "guidance_scale": 3.0, "output_type": "np"}

    def single() -> float:
        begin = time.perf_counter()
        for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
            for level in LEVELS:
                seed = torch.Generator().manual_seed(i)
                pipeline(prompt, picture, strength=(level + 0.5) / GRID, generator=seed, **settings)
        return time.perf_counter() - begin

    def levels() -> float:
        begin = time.perf_counter()
        for level in LEVELS:
            seeds = [torch.Generator().manual_seed(i) for i in range(len(images))]
            pipeline(prompts, pictures, strength=(level + 0.5) / GRID, generator=seeds, **settings)
        return time.perf_counter() - begin

    sample = SampleConfig(sampler="ddim", grid=GRID, match="steps", guidance_scale=3)
    rows = np.repeat(np.arange(len(images)), len(LEVELS))
    wanted = Wanted(
        np.zeros(len(rows), np.int64),
        [prompts[row] for row in rows],
        np.tile(LEVELS, len(images)),
        list(range(len(rows))),
    )

    def ours() -> float:
        generator = LoopGenerator(LatentDenoiser.load(folder, torch.device(device), dtype=dtype), sample)
        begin = time.perf_counter()
        generator.prepare(PROMPTS)
        generator.make(generator.encode(images)[torch.from_numpy(rows)], wanted)
        return time.perf_counter() - begin

    def uncached() -> float:
        generator = LoopGenerator(LatentDenoiser.load(folder, torch.device(device), dtype=dtype), sample)
        generator.prepare(PROMPTS)  # reads the text encoders from disk; each prompt below does not
        encoders = generator.denoiser._text_encoders()  # type: ignore[attr-defined]
        begin = time.perf_counter()
        encoded = [generator.encode(images[row : row + 1]) for row in rows]
        for row in rows:
            _embed(prompts[row], encoders, False)
        generator.make(torch.cat(encoded), wanted)
        return time.perf_counter() - begin

    return {"single": single, "levels": levels, "uncached": uncached, "ours": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or save_tiny_sd(Path(scratch) / "sd")
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (options.references, options.size, options.size, 3), dtype=np.uint8)
        made = len(images) * len(LEVELS)
        rates: dict[str, list[float]] = {}
        tried = ways(folder, images, options.device, dtype)
        for repeat in range(options.repeats + 1):
            for name, way in tried.items():
                seconds = way()
                if repeat:  # the first is to warm up
                    rates.setdefault(name, []).append(made / seconds)
    for name, values in rates.items():
        print(f"{name:9s} {np.mean(values):8.2f} images/s")
    for other in ("single", "levels", "uncached"):
        ratios = np.array(rates["ours"]) / np.array(rates[other])
        spread = f"min {ratios.min():.2f}, max {ratios.max():.2f}, n = {len(ratios)}"
        print(f"ours / {other}: {ratios.mean():.2f} ({spread})")
    print(f"{made} images, {options.threads} thread(s), torch {torch.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
