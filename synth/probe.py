"""A short trial of a generator: seconds of a call, bytes of an image, and whether a batch fits into memory."""

import dataclasses
import functools
import time

import numpy as np
import pyarrow as pa
import torch

from latebloom.data.images import LabeledImages, encode_png
from latebloom.synth.config import SizeConfig
from latebloom.synth.generate import batch_key, frame_of, reference, wanted_of
from latebloom.synth.memory import BatchSizes, attempt, out_of_memory
from latebloom.synth.sampling.denoiser import Generator

__all__ = ["Probe", "probe"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Measured on a few images: seconds of one network evaluation of one image, bytes of one PNG."""

    seconds_per_call: float
    bytes_per_image: float


def probe(generator: Generator, data: LabeledImages, plan: pa.Table, sizes: SizeConfig, batch: BatchSizes) -> Probe:
    """Time the generator on images of the plan, in growing batches, up to the batch size or for about three seconds.

    A batch that does not fit into memory is found here, and remembered, before the long run begins.
    """
    if not plan.num_rows:
        return Probe(0.0, 0.0)
    rows = plan.slice(0, min(batch.most, plan.num_rows))
    few = rows.slice(0, min(64, rows.num_rows))
    images = [reference(data, source, sizes) for source in few["source_index"].to_pylist()]
    bytes_per_image = float(np.mean([len(encode_png(image)) for image in images]))
    frame = frame_of(images[0], generator, sizes)
    encoded = generator.encode(frame.forward(images[0][None], generator.channels))
    key = batch_key(frame)
    seconds, begin, size = np.inf, time.perf_counter(), 1
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
        seconds = min(seconds, measured)
        if size >= rows.num_rows or size >= batch.of(key) or time.perf_counter() - begin > 3:
            break
        size = min(size * 4, batch.of(key))
    return Probe(seconds, bytes_per_image)
