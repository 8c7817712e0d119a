"""Make the images of a plan, a part at a time: arrays in, rows out."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from latebloom.data.images import LabeledImages, cut, decode, digest_pixels, encode_png
from latebloom.data.seeds import child_seed
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA
from latebloom.synth.config import QualityConfig, SizeConfig
from latebloom.synth.making import Keeper, Progress
from latebloom.synth.memory import BatchSizes, device_lost, in_batches, words
from latebloom.synth.sampling.denoiser import Generator, Made, Wanted
from latebloom.synth.scoring.quality import (
    ClipScore,
    RealFeatures,
    ReferenceClassifier,
    SafetyFlag,
    contrast,
    fingerprints,
    score,
    states,
)
from latebloom.synth.scoring.spread import Spread
from latebloom.synth.sizes import Frame, buckets

__all__ = [
    "Drawn",
    "Scorers",
    "UnusableGenerator",
    "batch_key",
    "describe",
    "draw",
    "drawn_rows",
    "drawn_seeds",
    "frame_of",
    "kept_where_ended",
    "reference",
    "wanted_of",
]

# An image of less contrast than this, in grey levels, gets its one retry. Not a threshold of the config: those may
# move after the images are made, and which images were retried must not depend on when they did.
_FLAT = 2.0
_TRIED = 16  # images of the whole plan by which a generator is judged whose first batch is unusable


class UnusableGenerator(RuntimeError):
    """A generator made nothing that can be used, of references from all over the plan and also at the second attempt.

    Attributes:
        tried: how many images.
        nan: how many of them were not finite.
        overflowed: how many of these by the decoder alone.
        raised: what it raised on all of them, on one line; empty: it made images.
        work_sizes: of the images that it raised on, such as "640x512".
    """

    def __init__(
        self, tried: int, nan: int = 0, overflowed: int = 0, raised: str = "", work_sizes: Sequence[str] = ()
    ) -> None:
        super().__init__(tried, nan, overflowed, raised, work_sizes)
        self.tried, self.nan, self.overflowed = tried, nan, overflowed
        self.raised, self.work_sizes = raised, work_sizes

    @classmethod
    def by(cls, error: Exception, frames: Sequence[Frame]) -> "UnusableGenerator":
        """Of a generator that raises on references of these frames."""
        return cls(len(frames), raised=words(error), work_sizes=[_name(size) for size in buckets(frames)])


@dataclasses.dataclass(frozen=True)
class Scorers:
    """What images are scored with.

    Attributes:
        classifier: the reference classifier; None: scores that need one are not measured.
        real: features of the training images, by the same classifier; None with it.
        spread: how much the training images differ.
        unreadable: training images that could not be read, and why, by name: features and spread are of the others.
        pixel_noise: whether the generator adds its noise to pixels. Where it does not, the noise of a level says
            nothing of pixels, and a variant may be as far from its reference as any other image.
        clip: CLIP score and margin of images and their labels.
        safety: the safety checker's flag.
    """

    classifier: ReferenceClassifier | None
    real: RealFeatures | None
    spread: Spread
    pixel_noise: bool
    clip: ClipScore | None = None
    safety: SafetyFlag | None = None
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The images of the n rows of a plan.

    Attributes:
        images: of each row uint8 (H, W, C) in the size of its reference; None where it failed.
        blobs: the same as PNG.
        unchanged: of each row its reference, resized to the work size and back, as if the generator changed nothing.
        originals: by source index its image as the classifier sees it, uint8 (H, W, C).
        finite: bool (n,).
        overflowed: bool (n,), not finite by the decoder alone.
        seeds: int64 (n,), the seeds that were used.
        attempts: int64 (n,), 0, or 1 for a retry.
        failures: by row, what went wrong with it.
        errors: what the generator raised for all images of a work size.
        first_use: seconds that first steps took longer than later ones: compilation, which is no cost of an image.
    """

    images: list[np.ndarray | None]
    blobs: list[bytes]
    unchanged: list[np.ndarray | None]
    originals: dict[int, np.ndarray]
    finite: np.ndarray
    overflowed: np.ndarray
    seeds: np.ndarray
    attempts: np.ndarray
    failures: dict[int, str] = dataclasses.field(default_factory=dict)
    errors: list[Exception] = dataclasses.field(default_factory=list)
    first_use: float = 0.0


def draw(
    generator: Generator,
    data: LabeledImages,
    plan: pa.Table,
    sizes: SizeConfig = SizeConfig(),
    batch: BatchSizes | None = None,
    on_images: Callable[[float], None] | None = None,
    known: pa.Table | None = None,
    keep: Callable[[pa.Table], None] | None = None,
    whole: pa.Table | None = None,
) -> Drawn:
    """Draw the images of `plan` (rows of `PLAN_SCHEMA`): the work of the device.

    Every reference is encoded once for all its levels. Rows of one work size are drawn together, deepest levels first,
    so that images of a batch take about the same number of steps. An image that is flat or not finite is drawn once
    more, with a seed derived from its own. Where a reference cannot be read or is another one by now, or the generator
    fails on an image or a work size, only those rows fail.

    Args:
        data: the images that `source_index` points into.
        batch: how many images are drawn together at most; None: 64.
        on_images: called with how many images were added, after each denoiser step with the share of the batch that
            it is; first with the number of the known ones. Their sum is the number of images finished.
        known: rows (`SYNTHETIC_SCHEMA`) of images that this generator drew before, for this plan or another, in any
            order; they are not drawn again.
        keep: gets rows of images that are final, in the columns that `known` needs, every few seconds and where the
            drawing is ended from outside.
        whole: the plan that `plan` is a part of. Where all images of the first batch are flat or not finite, or the
            generator raises on all of `plan`, some from all over it are drawn, and these decide whether the generator
            is unusable. None: that is not looked at.

    Raises:
        MemoryError: not even one image fits.
        UnusableGenerator: it makes nothing but flat images and such that are not finite, or raises on all.
        Exception: whatever the generator raised, where it made no image at all and others were not looked at, or the
            device is unusable.
    """
    batch = batch or BatchSizes(64)
    count = plan.num_rows
    wanted = wanted_of(plan)
    seeds = plan["seed"].to_numpy().copy()
    nothing: list[None] = [None] * count
    finite, overflowed = np.zeros((2, count), bool)
    drawn = Drawn([*nothing], [b""] * count, [*nothing], {}, finite, overflowed, seeds, np.zeros_like(seeds))
    if known is not None:
        _recall(plan, known, data.image_shape[2], drawn)
    todo = np.array([row for row, image in enumerate(drawn.images) if image is None], np.int64)
    if on_images and len(todo) < count:
        on_images(count - len(todo))
    references = _References(generator, data, plan, sizes, batch, drawn)
    check = None
    if whole is not None and not any(_usable(drawn, row) for row in range(count)):
        check = functools.partial(_check_usable, generator, data, whole, sizes, batch)
    progress, keeper = (
        Progress(on_images, generator.digest),
        Keeper(keep and functools.partial(_keep, plan, drawn, keep)),
    )
    try:
        for rows in references.groups():
            rows = np.intersect1d(rows, todo)
            _draw_rows(generator, references, wanted, rows, batch, drawn, progress, keeper, check)
            check = None if any(drawn.images[row] is not None for row in rows.tolist()) else check
        again = np.array([row for row in todo.tolist() if _failed(drawn.images[row], drawn.finite[row])], np.int64)
        if len(again):
            keeper.forget(again)
            seeds[again] = [_retry_seed(int(seed)) for seed in seeds[again]]
            drawn.attempts[again] = 1
            retry, silent = dataclasses.replace(wanted, seeds=seeds.tolist()), Progress(None, generator.digest)
            for rows in references.groups():
                _draw_rows(generator, references, retry, np.intersect1d(rows, again), batch, drawn, silent, keeper)
    except BaseException:
        with contextlib.suppress(OSError):  # of a full disk; what ended it is what a person should hear of
            keeper.flush()
        raise
    if drawn.errors and all(image is None for image in drawn.images):
        if check is None:
            raise drawn.errors[0]
        check()  # it makes others: only these rows fail
    return dataclasses.replace(drawn, first_use=progress.first_use)


def _check_usable(
    generator: Generator, data: LabeledImages, whole: pa.Table, sizes: SizeConfig, batch: BatchSizes
) -> None:
    """Raise `UnusableGenerator` where nothing can be used of what it makes of references from all over a plan."""
    rows = np.unique(np.linspace(0, whole.num_rows - 1, min(_TRIED, whole.num_rows)).round().astype(np.int64))
    some = whole.take(rows)
    try:
        drawn = draw(generator, data, some, sizes, batch)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # what it raised on all of them
        if device_lost(error):
            raise
        frames = []
        for source in some["source_index"].to_pylist():
            with contextlib.suppress(ValueError, OSError):  # no reference
                frames.append(frame_of(reference(data, source, sizes), generator, sizes))
        raise UnusableGenerator.by(error, frames) from error
    tried = [row for row in range(len(rows)) if drawn.images[row] is not None]
    if tried and not any(_usable(drawn, row) for row in tried):
        raise UnusableGenerator(len(tried), int((~drawn.finite[tried]).sum()), int(drawn.overflowed[tried].sum()))


def _usable(drawn: Drawn, row: int) -> bool:
    """Whether an image is there and is well, or is flat as its reference is, which is no fault of the generator."""
    image, unchanged = drawn.images[row], drawn.unchanged[row]
    if image is None:
        return False
    flat_anyway = unchanged is not None and _failed(unchanged, finite=True)
    return bool(drawn.finite[row]) and (flat_anyway or not _failed(image, finite=True))


def _keep(plan: pa.Table, drawn: Drawn, keep: Callable[[pa.Table], None], rows: np.ndarray) -> None:
    if (some := drawn_rows(plan, drawn, rows)).num_rows:
        keep(some)


def drawn_rows(plan: pa.Table, drawn: Drawn, rows: np.ndarray) -> pa.Table:
    """Images that were drawn of some rows of `plan`, as `draw` takes them for known ones.

    Those that are not there, or that are to be drawn once more, are left out.
    """
    final = [
        row
        for row in rows.tolist()
        if drawn.images[row] is not None
        and (drawn.attempts[row] or not _failed(drawn.images[row], bool(drawn.finite[row])))
    ]
    some = plan.take(np.array(final, np.int64))
    names = some["item_id"].to_pylist()
    columns: dict[str, Any] = {name: some[name] for name in some.column_names if name in SYNTHETIC_SCHEMA.names}
    columns["image"] = [
        {"bytes": drawn.blobs[row], "path": f"{name}.png"} for row, name in zip(final, names, strict=True)
    ]
    columns |= {"seed": drawn.seeds[final], "attempt": drawn.attempts[final], "finite": drawn.finite[final]}
    return pa.table(columns, schema=pa.schema([SYNTHETIC_SCHEMA.field(name) for name in columns]))


@contextlib.contextmanager
def kept_where_ended(plan: pa.Table, drawn: Drawn, keep: Callable[[pa.Table], None]) -> Iterator[None]:
    """Around what is done with drawn images until they are written: where it is ended, `keep` gets them."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            _keep(plan, drawn, keep, np.arange(plan.num_rows))
        raise


def wanted_of(plan: pa.Table) -> Wanted:
    """What a generator is asked for, of the rows of a plan."""
    labels = pc.coalesce(plan["generator_label"], plan["label"]).to_numpy()
    return Wanted(labels, plan["prompt"].to_pylist(), plan["level_steps"].to_numpy(), plan["seed"].to_pylist())


def drawn_seeds(plan: pa.Table) -> list[int]:
    """The seeds by which images of these rows of a plan may have been drawn: each row's own, and that of its retry."""
    seeds = plan["seed"].to_pylist()
    return [*seeds, *map(_retry_seed, seeds)]


def _retry_seed(seed: int) -> int:
    return child_seed(seed, "retry")


def _recall(plan: pa.Table, known: pa.Table, channels: int, drawn: Drawn) -> None:
    """Put known images in their places.

    A known image is found by its seed, in which reference, level, variant and root seed are, and by what the generator
    was conditioned with: not by its row, which moves where the data grow.
    """
    columns = ("seed", "generator_label", "prompt")
    there, wanted = (zip(*(table[name].to_pylist() for name in columns), strict=True) for table in (known, plan))
    found = {_drawn_by(*row): number for number, row in enumerate(there)}
    for place, (seed, *condition) in enumerate(wanted):
        for attempt, own in enumerate((seed, _retry_seed(seed))):
            row = found.get(_drawn_by(own, *condition))
            if row is not None:
                blob = known["image"][row].as_py()["bytes"]
                drawn.blobs[place] = blob
                drawn.images[place] = decode(blob, plan["item_id"][place].as_py(), channels=channels)
                drawn.finite[place] = known["finite"][row].as_py()
                drawn.seeds[place], drawn.attempts[place] = own, attempt
                break


def _drawn_by(seed: int, generator_label: int | None, prompt: str) -> tuple[int, int | str]:
    """What an image is drawn by: its seed, and the generator's label for it or, where it has none, the prompt."""
    return seed, prompt if generator_label is None else generator_label


def _failed(image: np.ndarray | None, finite: bool) -> bool:
    return image is not None and (not finite or float(contrast(image[None])[0]) < _FLAT)


class _References:
    """The references of the rows of a part, each read, resized to the work size and encoded once."""

    def __init__(
        self,
        generator: Generator,
        data: LabeledImages,
        plan: pa.Table,
        sizes: SizeConfig,
        batch: BatchSizes,
        drawn: Drawn,
    ) -> None:
        failures, sources = drawn.failures, plan["source_index"].to_numpy()
        planned = dict(zip(sources.tolist(), plan["source_sha256"].to_pylist(), strict=True))
        self.channels = data.image_shape[2]
        self.rows: dict[int, np.ndarray] = {int(s): np.flatnonzero(sources == s) for s in np.unique(sources)}
        self.frames: dict[int, Frame] = {}
        self.encoded: dict[int, Tensor] = {}
        images: dict[int, np.ndarray] = {}
        for source, rows in self.rows.items():
            try:
                images[source] = reference(data, source, sizes)
                original = cut(images[source], data.crop)
                if digest_pixels(original) != planned[source]:
                    raise ValueError("it shows something else than when the plan was made; bring it back")
                frame = frame_of(images[source], generator, sizes)
            except (ValueError, OSError) as error:
                why = words(error) if isinstance(error, OSError) else str(error)
                named = why if data.names[source] in why else f"{data.names[source]}: {why}"
                failures |= dict.fromkeys(rows.tolist(), f"its reference, {named}")
                continue
            self.frames[source], drawn.originals[source] = frame, original
            there = frame.forward(images[source][None], generator.channels)
            back = frame.back(there, self.channels)[0]
            for row in rows.tolist():
                drawn.unchanged[row] = back
        # Scores need every reference; the generator needs only those whose images are not known.
        absent = np.array(
            [s for s in self.frames if any(drawn.images[row] is None for row in self.rows[s].tolist())], np.int64
        )
        for bucket, places in buckets([self.frames[source] for source in absent.tolist()]).items():

            def encode(chosen: np.ndarray) -> Tensor:
                framed = [self.frames[s].forward(images[s][None], generator.channels) for s in chosen.tolist()]
                return generator.encode(np.concatenate(framed))

            broken: dict[int, str] = {}
            with _size_apart(drawn, absent[places], broken):
                for chosen, encoded in in_batches(absent[places], encode, batch, f"encode {_name(bucket)}", broken):
                    self.encoded |= zip(chosen.tolist(), encoded, strict=True)
            for source, why in broken.items():
                self.encoded.pop(source, None)
                failures |= dict.fromkeys(self.rows[source].tolist(), why)
        self.source_of = sources

    def groups(self) -> list[np.ndarray]:
        """The rows whose references are there, by work size, largest first."""
        sources = list(self.encoded)
        grouped = buckets([self.frames[source] for source in sources]).values()
        return [np.sort(np.concatenate([self.rows[sources[place]] for place in places])) for places in grouped]

    def of(self, rows: np.ndarray) -> Tensor:
        """Encoded references of rows of one work size, (n, ...)."""
        return torch.stack([self.encoded[int(source)] for source in self.source_of[rows]])

    def frame(self, row: int) -> Frame:
        return self.frames[int(self.source_of[row])]


def _draw_rows(
    generator: Generator,
    references: _References,
    wanted: Wanted,
    rows: np.ndarray,
    batch: BatchSizes,
    drawn: Drawn,
    progress: Progress,
    keeper: Keeper,
    check: Callable[[], None] | None = None,
) -> None:
    """Draw rows of one work size into `drawn`.

    Args:
        check: called where nothing of the first batch can be used.
    """
    if not len(rows):
        return
    calls = dict.fromkeys(rows.tolist(), 0)
    for level in np.unique(wanted.levels[rows]).tolist():
        calls |= dict.fromkeys(rows[wanted.levels[rows] == level].tolist(), generator.level(level).calls)
    rows = np.array(sorted(rows.tolist(), key=lambda row: -calls[row]), np.int64)
    key = batch_key(references.frame(int(rows[0])))

    def make(some: np.ndarray) -> Made:
        with progress.batch(key, len(some), sum(calls[row] for row in some.tolist())):
            return generator.make(references.of(some), wanted.take(some))

    def finish(row: int, image: np.ndarray) -> None:
        drawn.images[row] = back = references.frame(row).back(image[None], references.channels)[0]
        drawn.blobs[row] = encode_png(back)

    broken: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:  # the device goes on while images are resampled and packed
        finished = []
        with _size_apart(drawn, rows, broken):
            for chosen, made in in_batches(rows, make, batch, key, broken):
                drawn.finite[chosen] = made.finite
                drawn.overflowed[chosen] = False if made.denoised is None else made.denoised & ~made.finite
                packed = [pool.submit(finish, *item) for item in zip(chosen.tolist(), made.images, strict=True)]
                finished += packed
                progress.finished(len(chosen))
                keeper.add(chosen, packed)
                if check:
                    for future in packed:
                        future.result()
                    if not any(_usable(drawn, row) for row in chosen.tolist()):
                        check()
                    check = None
        for future in finished:
            future.result()
    drawn.failures.update(broken)
    for row in broken:
        drawn.images[row] = None  # also a first attempt, whose second one failed


@contextlib.contextmanager
def _size_apart(drawn: Drawn, rows: np.ndarray, broken: dict[int, str]) -> Iterator[None]:
    """Where the generator fails on all images of one work size, the other sizes are still drawn."""
    try:
        yield
    except (MemoryError, UnusableGenerator):
        raise
    except Exception as error:
        if device_lost(error):
            raise
        drawn.errors.append(error)
        broken |= dict.fromkeys(rows.tolist(), words(error))


def reference(data: LabeledImages, source: int, sizes: SizeConfig) -> np.ndarray:
    """The reference of a source index, uint8 (H, W, C): as the classifier sees it, or the whole source image."""
    rows = np.array([source])
    return data.whole(rows)[0] if sizes.returned == "source" else data.pixels(rows)[0]


def frame_of(image: np.ndarray, generator: Generator, sizes: SizeConfig) -> Frame:
    """How a reference, uint8 (H, W, C), is fitted to the size that the generator works at."""
    height, width, _ = image.shape
    return Frame.of(
        height, width, size=generator.size, multiple=generator.multiple, largest=generator.largest, config=sizes
    )


def batch_key(frame: Frame) -> str:
    """Under which key `BatchSizes` knows how many images of this work size are made together."""
    return f"make {_name(frame.bucket)}"


def _name(bucket: tuple[int, int]) -> str:
    return f"{bucket[1]}x{bucket[0]}"


def describe(
    generator: Generator,
    data: LabeledImages,
    plan: pa.Table,
    drawn: Drawn,
    quality: QualityConfig,
    scorers: Scorers,
    sizes: SizeConfig = SizeConfig(),
) -> pa.Table:
    """Score what was drawn of `plan`: rows of `SYNTHETIC_SCHEMA` in the same order, without those that failed.

    Images are scored as the classifier will see them: at the training size, also where they are stored larger. No image
    is read again: a reference may have become unreadable while images were drawn.
    """
    there = (image is not None and row not in drawn.failures for row, image in enumerate(drawn.images))
    rows = np.flatnonzero(np.fromiter(there, bool, len(drawn.images)))
    if not len(rows):
        return SYNTHETIC_SCHEMA.empty_table()
    plan = plan.take(rows)
    names = plan["item_id"].to_pylist()
    labels, sources = plan["label"].to_numpy(), plan["source_index"].to_numpy()
    seen = _as_trained(drawn.images, rows, data)
    levels = {steps: generator.level(steps) for steps in set(plan["level_steps"].to_pylist())}
    row_levels = [levels[steps] for steps in plan["level_steps"].to_pylist()]
    # Where the generator works at a smaller size, its noise hides more of an image. Where it works at a larger one it
    # hides less, how much depends on the resampling; then the bound is a loose one.
    side = min(data.image_shape[:2])
    scale = min(1.0, (sizes.work_size or generator.size or side) / side) ** 2
    snr = np.exp([level.log_snr for level in row_levels]) * scale if scorers.pixel_noise else np.zeros(len(rows))
    scores = score(
        seen,
        _as_trained(drawn.unchanged, rows, data),
        drawn.finite[rows],
        labels,
        sources,
        scorers.classifier,
        scorers.real,
        np.stack([drawn.originals[source] for source in np.unique(sources).tolist()]),
        scorers.spread,
        snr,
        scorers.clip,
        scorers.safety,
    )
    columns = {name: plan[name] for name in plan.column_names} | {
        "image": [{"bytes": drawn.blobs[row], "path": f"{name}.png"} for row, name in zip(rows, names, strict=True)],
        "seed": drawn.seeds[rows],
        "attempt": drawn.attempts[rows],
        "calls": [level.calls for level in row_levels],
        "timestep": [level.timestep for level in row_levels],
        "log_snr": [level.log_snr for level in row_levels],
        "strength": [level.strength for level in row_levels],
        "guidance_scale": [generator.guidance_scale] * len(rows),
        "sampler": [generator.sampler] * len(rows),
        "generator": [generator.name] * len(rows),
        "generator_digest": [generator.digest] * len(rows),
        "fingerprint": [row.tobytes() for row in fingerprints(seen)],
        **dataclasses.asdict(scores),
        # Duplicates are found later, in the whole set.
        "state": states(scores, quality.model_copy(update={"min_duplicate_distance": 0})),
    }
    return pa.table({name: columns[name] for name in SYNTHETIC_SCHEMA.names}, schema=SYNTHETIC_SCHEMA)


def _as_trained(images: list[np.ndarray | None], rows: np.ndarray, data: LabeledImages) -> np.ndarray:
    """uint8 (n, H, W, C) of some images as the classifier will see them."""
    return np.stack([cut(image, data.crop) for image in (images[row] for row in rows) if image is not None])
