"""A short trial of a generator: seconds of a call, bytes of an image, and whether a batch fits into memory."""

import contextlib
import dataclasses
import functools
import time

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from latebloom.data.images import LabeledImages, encode_png
from latebloom.synth.config import QualityConfig, SizeConfig
from latebloom.synth.generate import UnusableGenerator, batch_key, frame_of, reference, wanted_of
from latebloom.synth.memory import BatchSizes, attempt, device_lost, out_of_memory
from latebloom.synth.sampling.denoiser import Generator, Made, Wanted
from latebloom.synth.scoring.quality import contrast
from latebloom.synth.sizes import Frame

__all__ = ["Probe", "probe"]

_TRIAL_SECONDS = 10.0  # so long may the one image take that is made


@dataclasses.dataclass(frozen=True)
class Probe:
    """Measured on a few images: seconds of one network evaluation of one image, bytes of one PNG.

    Attributes:
        trial: one image of the shallowest level; None where it would take more than ten seconds.
    """

    seconds_per_call: float
    bytes_per_image: float
    trial: Made | None = None


def probe(generator: Generator, data: LabeledImages, plan: pa.Table, sizes: SizeConfig, batch: BatchSizes) -> Probe:
    """Time the generator on images of the plan, in growing batches, up to the batch size or for about three seconds.

    One image is made, too, where that is quick, so that a generator that makes NaN is seen. A batch that does not fit
    into memory is found here, and remembered, before the long run begins.

    Raises:
        UnusableGenerator: it raises on the first image of every work size.
        MemoryError: not even one image fits.
    """
    if not plan.num_rows:
        return Probe(0.0, 0.0)
    rows = plan.slice(0, min(batch.most, plan.num_rows))
    few = rows.slice(0, min(64, rows.num_rows))
    images: list[np.ndarray] = []
    frames: list[Frame] = []
    for source in few["source_index"].to_pylist():
        with contextlib.suppress(ValueError, OSError):  # it cannot be used; its variants will say why
            image = reference(data, source, sizes)
            frames.append(frame_of(image, generator, sizes))
            images.append(image)
    if not images:
        return Probe(0.0, 0.0)
    bytes_per_image = float(np.mean([len(encode_png(image)) for image in images]))
    failed: dict[Frame, Exception] = {}  # of the first image of each work size, until one of them can be made
    for image, frame in zip(images, frames, strict=True):
        if frame.bucket in {other.bucket for other in failed}:
            continue
        try:
            seconds, trial = _measured(generator, image, frame, rows, batch)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            if device_lost(error):
                raise
            failed[frame] = error
        else:
            return Probe(seconds, bytes_per_image, trial)
    first = next(iter(failed.values()))
    raise UnusableGenerator.by(first, list(failed)) from first


def _measured(
    generator: Generator, image: np.ndarray, frame: Frame, rows: pa.Table, batch: BatchSizes
) -> tuple[float, Made | None]:
    """Seconds of a call, and a trial image, of one reference, uint8 (H, W, C)."""
    key = batch_key(frame)
    encoded, error = attempt(functools.partial(generator.encode, frame.forward(image[None], generator.channels)))
    if encoded is None:
        assert error is not None
        if out_of_memory(error):
            batch.halve(key, 1)  # says what to do
        raise error
    alone, seconds, begin, size = np.inf, np.inf, time.perf_counter(), 1
    while True:
        some = rows.slice(0, size)
        repeated = encoded.expand(some.num_rows, *encoded.shape[1:])
        measured, error = attempt(functools.partial(generator.seconds_per_call, repeated, wanted_of(some)))
        if error is not None:
            if not out_of_memory(error):
                raise error
            error = None
            torch.cuda.empty_cache()
            batch.halve(key, size)
            break
        assert measured is not None
        alone = measured if size == 1 else alone
        seconds = min(seconds, measured)
        if size >= rows.num_rows or size >= batch.of(key) or time.perf_counter() - begin > 3:
            break
        size = min(size * 4, batch.of(key))
    flat = contrast(image[None])[0] < QualityConfig().min_contrast  # then its variant is, too
    return seconds, None if flat else _trial(generator, encoded, wanted_of(rows), alone)


def _trial(generator: Generator, encoded: Tensor, wanted: Wanted, seconds_per_call: float) -> Made | None:
    shallowest = np.array([np.argmin(wanted.levels)])
    calls = generator.level(int(wanted.levels[shallowest[0]])).calls * generator.calls_a_step
    if seconds_per_call * calls > _TRIAL_SECONDS:
        return None
    return attempt(functools.partial(generator.make, encoded, wanted.take(shallowest)))[0]
