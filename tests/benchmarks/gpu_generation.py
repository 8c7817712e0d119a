"""Images per second of generation on a GPU, beside what the device could do.

Two models with random weights, since only their arithmetic counts: one of the size of Stable Diffusion 1.5 at 512
pixels (860 million weights) and a class-conditional pixel model at 64 pixels. References at levels 40, 50, 70, 80 of
100 in one ragged batch, `balanced` sampling (DPM-Solver++, 25 steps, guidance 3), bfloat16, compiled and not.
Utilisation is the network's floating-point operations (torch's counter) over the time of the loop, over the rate of a
large matrix product on the same device; the rate of a large copy stands beside it.

    python tests/benchmarks/gpu_generation.py [--device cuda] [--batch 64] [--repeats 3] [--tiny] [--no-compile]

--tiny and --device cpu try the script itself.
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
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_checkpoints import save_tiny_sd, save_tiny_tokenizer

from latebloom.synth.config import SampleConfig
from latebloom.synth.generators.latent import LatentDenoiser
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.denoiser import Denoiser, Wanted
from latebloom.synth.sampling.loop import LoopGenerator

LEVELS = (40, 50, 70, 80)
PROMPTS = ("a photo of a top", "a photo of a middle")


def save_sd15(folder: Path) -> Path:
    """A folder like Stable Diffusion 1.5's, of its size, with random weights in bfloat16."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = save_tiny_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
        force_upcast=False,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_pixel(folder: Path, tiny: bool) -> Path:
    """A class-conditional pixel model: 64 pixels, 128 to 512 channels, attention at 16 and 8 pixels."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16 if tiny else 64,
        block_out_channels=(16, 32) if tiny else (128, 256, 384, 512),
        down_block_types=("DownBlock2D", "DownBlock2D")
        if tiny
        else ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D")
        if tiny
        else ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8 if tiny else 32,
        num_class_embeds=1001,
    )
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(folder)
    (folder / "latebloom.json").write_text('{"class_names": [' + ", ".join(f'"{i}"' for i in range(1000)) + "]}")
    return folder


def seconds(call: Callable[[], Any], device: str, repeats: int) -> list[float]:
    """Of each repeat, after one call to warm up."""
    times = []
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat:
            times.append(time.perf_counter() - begin)
    return times


def roofline(device: str, tiny: bool) -> float:
    """Floating-point operations a second of a bfloat16 matrix product; prints it and the bytes a second of a copy."""
    side = 512 if tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / min(seconds(lambda: a @ b, device, 10))
    block = torch.empty((1 << 20 if tiny else 1 << 30), dtype=torch.uint8, device=device)
    moved = 2 * block.numel() / min(seconds(block.clone, device, 10))
    print(f"device: matrix product {rate / 1e12:.1f} Tflop/s in bfloat16, copy {moved / 1e9:.0f} GB/s", flush=True)
    return rate


def measure(name: str, denoiser: Denoiser, size: int, batch: int, device: str, repeats: int, rate: float) -> None:
    generator = LoopGenerator(denoiser, SampleConfig(sampler="dpm++2m", steps=25, guidance_scale=3))
    generator.prepare(PROMPTS)
    images = np.random.default_rng(0).integers(0, 256, (batch // 4, size, size, 3), dtype=np.uint8)
    encoded = generator.encode(images).repeat_interleave(4, 0)
    labels = np.arange(batch) % 2
    wanted = Wanted(labels, [PROMPTS[i] for i in labels], np.resize(LEVELS, batch), list(range(batch)))
    x, conditions = encoded[:1], denoiser.conditions(labels[:1], [PROMPTS[0]])
    with FlopCounterMode(display=False) as counter:
        denoiser.predict(x, torch.zeros(1, dtype=torch.int64, device=x.device), conditions)
    calls = 2 * sum(generator.level(int(level)).calls for level in wanted.levels)
    times = seconds(lambda: generator.make(encoded, wanted), device, repeats)
    rates = batch / np.array(times)
    used = counter.get_total_flops() * calls / np.array(times) / rate
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device == "cuda" else ""
    print(
        f"{name}, batch {batch}: {rates.mean():.2f} images/s (min {rates.min():.2f}, max {rates.max():.2f}, n = "
        f"{repeats}), {calls / batch:.1f} network calls an image of {counter.get_total_flops() / 1e9:.1f} Gflop, "
        f"{used.mean():.0%} of the matrix product's rate{memory}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pixel-batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    where = torch.device(options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    rate = roofline(options.device, options.tiny)
    with tempfile.TemporaryDirectory() as scratch:
        pixel = save_pixel(Path(scratch) / "pixel", options.tiny)
        latent = (save_tiny_sd if options.tiny else save_sd15)(Path(scratch) / "latent")
        for compiled in (False,) if options.no_compile else (False, True):
            how = "compiled" if compiled else "eager"
            model: Denoiser = PixelDenoiser.load(pixel, where, torch.bfloat16, compiled)
            batch = options.batch if options.tiny else options.pixel_batch
            measure(f"pixel {model.size} px, {how}", model, model.size, batch, options.device, options.repeats, rate)
            model = LatentDenoiser.load(latent, where, dtype=torch.bfloat16, compile=compiled)
            measure(
                f"latent {model.size} px, {how}",
                model,
                model.size,
                options.batch,
                options.device,
                options.repeats,
                rate,
            )


if __name__ == "__main__":
    main()
