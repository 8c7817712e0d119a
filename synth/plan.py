"""The plan: one row for each image to make; and a forecast of what it will cost."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from latebloom.data.images import LabeledImages, digest_pixels
from latebloom.data.seeds import child_seed

__all__ = ["PLAN_SCHEMA", "Forecast", "Request", "deciding", "forecast", "item_id", "make_plan", "requests"]

PLAN_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("source_index", pa.int64()),
        ("source_name", pa.string()),
        ("source_sha256", pa.string()),
        ("variant", pa.int64()),
        ("label", pa.int64()),
        ("generator_label", pa.int64()),
        ("level_steps", pa.int64()),
        ("level_grid", pa.int64()),
        ("seed", pa.int64()),
        ("prompt", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True, order=True)
class Request:
    """One image to make: a reference, a level, and its number among the images of both (0, 1, ...)."""

    source_index: int
    steps: int
    variant: int


def requests(indices: np.ndarray, levels: Sequence[int]) -> list[Request]:
    """A variant of each reference at each level; a level given twice makes two variants."""
    numbered = [(level, levels[:place].count(level)) for place, level in enumerate(levels)]
    return [Request(int(index), steps, variant) for index in indices for steps, variant in numbered]


def item_id(request: Request, grid: int) -> str:
    """The name of an image in its plan: `0000017-50of100-v0`. It moves with the row of its reference."""
    return f"{request.source_index:07d}-{request.steps}of{grid}-v{request.variant}"


def make_plan(
    wanted: Iterable[Request],
    data: LabeledImages,
    grid: int = 100,
    seed: int = 0,
    prompt: Callable[[int, int], str] | None = None,
    *,
    generator_labels: Sequence[int] | None = None,
    whole: bool = False,
) -> pa.Table:
    """One row for each image to make (`PLAN_SCHEMA`), by source, level and variant; a repeated request is one row.

    The seed of an image follows from the root seed, the pixels of its reference, the level, the variant and, among
    equal references, its order in `data`: not from rows, names or classes. So it stays where the data grow. No two
    images of a plan have one seed.

    `source_name` is the reference's name in `data`. It decides nothing of an image.

    Args:
        prompt: gives the text for a label and the seed of an image; None: "a photo of a {class name}".
        generator_labels: by label, what a class-conditional generator is given for it; None: it goes by the prompt.
        whole: the references are the source images as they are stored, not cut as the classifier sees them.

    Raises:
        ValueError: a source index outside the data, or a level outside the grid.
    """
    prompt = prompt or (lambda label, _: f"a photo of a {data.class_names[label]}")
    rows = sorted(set(wanted))
    for request in rows:
        if not 0 <= request.source_index < len(data):
            raise ValueError(f"source index {request.source_index} is outside the {len(data)} images of {data.origin}")
        if not 1 <= request.steps <= grid:
            raise ValueError(f"level {request.steps} of {grid} does not exist: levels go from 1 to {grid}")
    names = [item_id(request, grid) for request in rows]
    labels = [int(data.labels[request.source_index]) for request in rows]
    pictures = _pictures(data, {request.source_index for request in rows}, whole)
    seeds = [child_seed(seed, "image", *pictures[row.source_index], row.steps, grid, row.variant) for row in rows]
    columns = {
        "item_id": names,
        "source_index": [request.source_index for request in rows],
        "source_name": [data.names[request.source_index] for request in rows],
        "source_sha256": [data.sha256[request.source_index] for request in rows],
        "variant": [request.variant for request in rows],
        "label": labels,
        "generator_label": [None if generator_labels is None else generator_labels[label] for label in labels],
        "level_steps": [request.steps for request in rows],
        "level_grid": [grid] * len(rows),
        "seed": seeds,
        "prompt": [prompt(label, image_seed) for label, image_seed in zip(labels, seeds, strict=True)],
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def _pictures(data: LabeledImages, sources: set[int], whole: bool) -> dict[int, tuple[str, int]]:
    """Of each source the digest of the reference, and how many equal ones stand before it in all of `data`."""
    digests = list(data.sha256)
    if whole and data.crop:
        # What is cut away may differ where the rest does not; what differs in the rest differs as a whole.
        alike = {digests[source] for source in sources}
        for row in [row for row, digest in enumerate(digests) if digest in alike]:
            digests[row] = digest_pixels(data.whole(np.array([row]))[0])
    found, before = {}, Counter[str]()
    for row, digest in enumerate(digests):
        if row in sources:
            found[row] = digest, before[digest]
        before[digest] += 1
    return found


def deciding(rows: pa.Table) -> dict[str, list[Any]]:
    """The columns of rows of a plan that decide images: not the names of the references, nor a column without values.

    So a plan of a version that lacked such a column keeps its digest.
    """
    names = [name for name in rows.column_names if name != "source_name" and rows[name].null_count < rows.num_rows]
    return {name: rows[name].to_pylist() for name in names}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a plan will make, and its cost.

    Attributes:
        images: rows of the plan.
        per_class: images by class name.
        per_level: images by "R of S".
        denoiser_calls: network evaluations of one image, those without condition (guidance) included.
        bytes: of PNG images, estimated.
        seconds: on this device, estimated from a probe.
    """

    images: int
    per_class: dict[str, int]
    per_level: dict[str, int]
    denoiser_calls: int
    bytes: int
    seconds: float


def forecast(
    plan: pa.Table,
    data: LabeledImages,
    calls: Callable[[int], int],
    *,
    seconds_per_call: float,
    bytes_per_image: float,
    processes: int = 1,
) -> Forecast:
    """The forecast of a plan, from a probe's measurements of one call and one image.

    Args:
        calls: network evaluations that an image of a level takes.
        processes: how many devices share the work.
    """
    labels = plan["label"].to_numpy()
    steps = plan["level_steps"].to_numpy()
    counts = np.bincount(labels, minlength=data.num_classes)
    levels = sorted(set(zip(steps.tolist(), plan["level_grid"].to_pylist(), strict=True)))
    at_level = {r: int((steps == r).sum()) for r, _ in levels}
    all_calls = sum(count * calls(r) for r, count in at_level.items())
    return Forecast(
        images=plan.num_rows,
        per_class={name: int(count) for name, count in zip(data.class_names, counts, strict=True)},
        per_level={f"{r} of {s}": at_level[r] for r, s in levels},
        denoiser_calls=all_calls,
        bytes=round(plan.num_rows * bytes_per_image),
        seconds=all_calls * seconds_per_call / processes,
    )
