"""What an image depends on besides itself, and what it costs to end that (`sample.deterministic`).

`table`: the same images drawn in other batches, parts, orders and numbers of processes, and after an interruption;
compared with one process and batches of 256. Cells are images that differ / values that differ / largest difference in
grey levels. The models are tiny ones of random weights: a `UNet2DModel` at 64 pixels, Stable Diffusion in our loop,
Stable Diffusion 3 by its pipeline.

`cost`: images per CPU second of one thread, with the setting over without it, in one run, for a `UNet2DModel` at 32
pixels and ragged levels.

    python tests/benchmarks/invariance.py table [--references 17] [--deterministic 8] [--kinds pixel latent pipeline]
    python tests/benchmarks/invariance.py cost [--repeats 5] [--limits 32 256] [--steps 0]
"""

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latebloom.data.images import LabeledImages
from latebloom.synth.config import GenerateConfig, SampleConfig
from latebloom.synth.generate import draw
from latebloom.synth.generators.load import load_generator
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import make_plan, requests
from latebloom.synth.sampling.denoiser import Generator, Wanted
from latebloom.synth.sampling.loop import LoopGenerator

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_checkpoints import save_tiny_sd
from tiny_pipelines import save_tiny_sd3

CORES = os.cpu_count() or 1
NAMES = ("top", "middle", "bottom")


def unet(side: int) -> Any:
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=side,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=8,
            add_attention=False,
            num_class_embeds=4,
        )


def save_pixel(folder: Path) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(unet(64), scheduler).save_pretrained(folder)
    (folder / "latebloom.json").write_text('{"class_names": ["top", "middle", "bottom"]}')
    return folder


# ---------------------------------------------------------------------------------------------------- the table


class Stopped(KeyboardInterrupt):
    """In the middle of a part, as Ctrl-C would."""


def drawn(generator: Generator, data: LabeledImages, plan: pa.Table, *, batch: int, threads: int) -> np.ndarray:
    """uint8 (n, H, W, C)."""
    torch.set_num_threads(threads)
    return np.stack(
        [image for image in draw(generator, data, plan, batch=BatchSizes(batch)).images if image is not None]
    )


def resumed(generator: Generator, data: LabeledImages, plan: pa.Table) -> np.ndarray:
    """Drawn in batches of 7 until half of it is there, and then on with what was kept, in batches of 256."""
    kept: list[pa.Table] = []
    made = 0.0

    def stop(images: float) -> None:
        nonlocal made
        made += images
        if made >= plan.num_rows / 2:
            raise Stopped

    torch.set_num_threads(CORES)
    with contextlib.suppress(Stopped):
        draw(generator, data, plan, batch=BatchSizes(7), on_images=stop, keep=kept.append)
    known = pa.concat_tables(kept)
    assert 0 < known.num_rows < plan.num_rows
    images = draw(generator, data, plan, batch=BatchSizes(256), known=known).images
    return np.stack([image for image in images if image is not None])


Way = Callable[[Generator, LabeledImages, pa.Table], np.ndarray]


def ways() -> dict[str, Way]:
    def batches(batch: int, threads: int = CORES) -> Way:
        return lambda generator, data, plan: drawn(generator, data, plan, batch=batch, threads=threads)

    def parts(generator: Generator, data: LabeledImages, plan: pa.Table) -> np.ndarray:
        pieces = [plan.slice(start, 20) for start in range(0, plan.num_rows, 20)]
        return np.concatenate([drawn(generator, data, piece, batch=256, threads=CORES) for piece in pieces])

    def order(generator: Generator, data: LabeledImages, plan: pa.Table) -> np.ndarray:
        rows = np.random.default_rng(0).permutation(plan.num_rows)
        made = drawn(generator, data, plan.take(rows), batch=256, threads=CORES)
        return made[np.argsort(rows)]

    return {
        "batches of 1": batches(1),
        "batches of 7": batches(7),
        "batches of 64": batches(64),
        "parts of 20": parts,
        "another order": order,
        "2 processes": batches(256, max(1, CORES // 2)),
        "3 processes": batches(256, max(1, CORES // 3)),
        "interrupted and resumed": resumed,
    }


def difference(images: np.ndarray, other: np.ndarray) -> str:
    apart = np.abs(images.astype(int) - other.astype(int))
    if not apart.any():
        return "0"
    return f"{(apart.reshape(len(apart), -1).max(1) > 0).sum()} / {(apart > 0).sum():,} / {apart.max()}"


def table(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = {
            "pixel": (save_pixel(root / "pixel"), 64),
            "latent": (save_tiny_sd(root / "sd"), 16),
            "pipeline": (save_tiny_sd3(root / "sd3"), 32),
        }
        cells: dict[tuple[str, str], dict[str, list[str]]] = {}
        for kind in options.kinds:
            folder, side = folders[kind]
            images = np.random.default_rng(0).integers(0, 256, (options.references, side, side, 3), dtype=np.uint8)
            data = LabeledImages(images, np.arange(len(images)) % 3, NAMES, "noise")
            plan = make_plan(requests(np.arange(len(images)), (2, 3, 4, 4)), data, 5, prompt=lambda *_: "a photo")
            for dtype in options.dtypes:
                for n in (0, options.deterministic):
                    sample = SampleConfig(sampler="ddim", grid=5, deterministic=n)
                    config = GenerateConfig(generator=str(folder), kind=kind, dtype=dtype)
                    generator = load_generator(config, sample)
                    generator.prepare(["a photo"])
                    base = drawn(generator, data, plan, batch=256, threads=CORES)
                    for name, way in ways().items():
                        row = cells.setdefault((dtype, name), {}).setdefault(kind, [])
                        row.append(difference(way(generator, data, plan), base))
                        print(kind, dtype, n, name, row[-1], flush=True)
        print(f"\n| | {' | '.join(f'{kind}, off | on' for kind in options.kinds)} |")
        print("|---" * (1 + 2 * len(options.kinds)) + "|")
        for (dtype, name), row in cells.items():
            print(f"| {dtype}, {name} | {' | '.join(cell for kind in options.kinds for cell in row[kind])} |")
        print(
            f"\n{plan.num_rows} images, sample.deterministic {options.deterministic}, {CORES} cores, torch "
            f"{torch.__version__}, {platform.machine()}"
        )


# ---------------------------------------------------------------------------------------------------- the cost


def cost(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    denoiser = PixelDenoiser(unet(32), abar, "v_prediction", num_classes=3, name="x", digest="x")
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)

    def speed(limit: int, n: int, count: int) -> float:
        sample = SampleConfig(sampler="ddim", grid=10, steps=options.steps, deterministic=n)
        generator = LoopGenerator(denoiser, sample)
        wanted = Wanted(np.arange(count) % 3, [""] * count, np.resize((4, 5, 7, 8), count), range(count))
        begin = time.process_time()
        for start in range(0, count, limit):
            rows = np.arange(start, min(start + limit, count))
            generator.make(generator.encode(images[rows]), wanted.take(rows))
        return count / (time.process_time() - begin)

    for limit in options.limits:
        count = max(limit, 64)
        speed(limit, 0, limit)
        ratios: dict[int, list[float]] = {8: [], 16: [], 32: []}
        plain = []
        for _ in range(options.repeats):
            plain.append(speed(limit, 0, count))
            for n in ratios:
                ratios[n].append(speed(limit, n, count) / plain[-1])
        print(f"batches of {limit}: off {np.mean(plain):.1f} images a CPU second")
        for n, found in ratios.items():
            print(
                f"  {n}: {np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f}) of it, n = {len(found)}",
                flush=True,
            )
    print(f"one thread, torch {torch.__version__}, {platform.machine()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("table")
    one.add_argument("--references", type=int, default=17)
    one.add_argument("--deterministic", type=int, default=8)
    one.add_argument("--kinds", nargs="+", default=["pixel", "latent", "pipeline"])
    one.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    one.set_defaults(run=table)
    two = commands.add_parser("cost")
    two.add_argument("--repeats", type=int, default=5)
    two.add_argument("--limits", type=int, nargs="+", default=[32, 256], help="images in a batch, at most")
    two.add_argument("--steps", type=int, default=0, help="from pure noise; 0: all ten of the grid")
    two.set_defaults(run=cost)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
