"""Make the images of a plan, a part at a time: arrays in, rows out."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pydantic
import torch
from pydantic import Field

from data.images import LabeledImages, encode_png
from data.synthetic import SYNTHETIC_SCHEMA
from synth.denoiser import Denoiser
from synth.levels import NoiseGrid
from synth.quality import QualityConfig, score, states
from synth.sample import SampleConfig, check_guidance, denoise

__all__ = ["GenerateConfig", "Judge", "Probe", "make_part", "probe"]

# uint8 (n, H, W, C) to probabilities float (n, num_classes): who says whether an image still shows its label.
Judge = Callable[[np.ndarray], np.ndarray]


class GenerateConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Which generator makes the images, and how many at once."""

    generator: str = Field("digits", description="A shipped generator by name, or the path of a diffusers folder")
    batch_size: int = Field(256, ge=1, le=65_536, description="Images denoised together, 1 to 65,536; changes no image")


def make_part(
    denoiser: Denoiser,
    data: LabeledImages,
    plan: pa.Table,
    sample: SampleConfig,
    quality: QualityConfig,
    judge: Judge,
    batch_size: int,
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """Make, score and encode the images of `plan` (rows of `PLAN_SCHEMA`); same order, `SYNTHETIC_SCHEMA`.

    Args:
        data: the images that `source_index` points into.
        judge: the classifier that scores labels.
        on_images: told the number of images finished, after each batch.
    """
    grid = NoiseGrid.of(denoiser.alphas_cumprod, sample.grid)
    labels = plan["label"].to_numpy()
    levels = plan["level_steps"].to_numpy()
    sources = plan["source_index"].to_numpy()
    seeds = plan["seed"].to_numpy()
    images = np.empty((plan.num_rows, *data.image_shape), np.uint8)
    finite = np.empty(plan.num_rows, bool)
    # Batches of like depth: an image waits in no batch for its level to be reached.
    order = np.argsort(-levels, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        references = denoiser.encode(data.pixels(sources[rows]))
        x0 = denoise(denoiser, references, labels[rows], levels[rows], seeds[rows].tolist(), sample)
        finite[rows] = torch.isfinite(x0).flatten(1).all(1).cpu().numpy()
        images[rows] = denoiser.decode(x0, data.image_shape)
        if on_images:
            on_images(len(rows))
    probability = judge(images)[np.arange(len(labels)), labels]
    scores = score(images, data.pixels(sources), finite, probability)
    columns = {name: plan[name] for name in plan.column_names} | {
        "image": [
            {"bytes": encode_png(image), "path": f"{name}.png"}
            for image, name in zip(images, plan["item_id"].to_pylist(), strict=True)
        ],
        "log_snr": [grid.log_snr(int(level)) for level in levels],
        "strength": [grid.strength(int(level)) for level in levels],
        "guidance_scale": [sample.guidance_scale] * len(labels),
        "sampler": [sample.sampler] * len(labels),
        "generator": [denoiser.name] * len(labels),
        "generator_digest": [denoiser.digest] * len(labels),
        **dataclasses.asdict(scores),
        "state": states(scores, quality),
    }
    return pa.table({name: columns[name] for name in SYNTHETIC_SCHEMA.names}, schema=SYNTHETIC_SCHEMA)


@dataclasses.dataclass(frozen=True)
class Probe:
    """Measured on a few images: seconds of one network evaluation of one image, bytes of one PNG."""

    seconds_per_call: float
    bytes_per_image: float


def probe(denoiser: Denoiser, data: LabeledImages, plan: pa.Table, sample: SampleConfig, batch_size: int) -> Probe:
    """Time the denoiser on one batch of the plan for about a second, after one call to warm up."""
    check_guidance(denoiser, sample)
    rows = plan.slice(0, min(batch_size, plan.num_rows))
    sources = rows["source_index"].to_numpy()
    references = denoiser.encode(data.pixels(sources))
    labels = torch.tensor(rows["label"].to_numpy()).to(denoiser.device)
    guided = sample.guidance_scale != 1
    if guided:
        references, labels = torch.cat([references, references]), torch.cat([labels, torch.full_like(labels, -1)])
    timestep = int(NoiseGrid.of(denoiser.alphas_cumprod, sample.grid).timesteps[sample.grid // 2])
    denoiser.predict(references, timestep, labels).cpu()
    calls, begin = 0, time.perf_counter()
    while calls < 3 or (time.perf_counter() - begin < 1.0 and calls < 20):
        denoiser.predict(references, timestep, labels).cpu()  # .cpu() waits for a GPU to be done
        calls += 1
    seconds = (time.perf_counter() - begin) / calls / len(references)
    sizes = [len(encode_png(image)) for image in data.pixels(sources[:64])]
    return Probe(seconds, float(np.mean(sizes)))
