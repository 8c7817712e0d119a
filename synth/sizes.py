"""From an image's own size to the size that a generator works at, and back.

The shorter side becomes the work size and the longer side keeps the proportion. Then both are padded by reflection to a
size that the generator takes; the padding is cut off again afterwards. Nothing is stretched, no edge is lost.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from latebloom.synth.config import Filter, SizeConfig

__all__ = ["Frame", "buckets", "check_channels", "work_size_warning"]


_MAX_ASPECT = 4  # the memory of a batch is set by its area: at 512 pixels this is 512x2048
_STEPS_A_SIZE = 8  # longer sides of a bucket are an eighth of the shorter one apart


@dataclasses.dataclass(frozen=True)
class Frame:
    """How images of one size go to a generator and come back.

    Attributes:
        source: (height, width) of the images.
        scaled: (height, width) after resampling.
        bucket: (height, width) after padding both sides equally: what the generator gets.
        filter: of the resampling, there and back.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    bucket: tuple[int, int]
    filter: Filter

    @classmethod
    def of(cls, height: int, width: int, *, size: int, multiple: int, config: SizeConfig, largest: int = 0) -> "Frame":
        """The frame of images of height x width for a generator.

        Both sides are scaled alike, but for rounding; with `config.stretch` both become the work size. The bucket's
        shorter side is the next multiple of `multiple`. Its longer side grows in steps of an eighth of the shorter one,
        so that photos of any shape share a few buckets, and with them batches and compiled graphs.

        Args:
            size: the side that the generator was trained at; used where the config names no work size. 0: it is not
                known; images then stay in their size.
            multiple: both sides of the bucket are multiples of it.
            largest: a side of the bucket is at most that long; 0: as long as you like.

        Raises:
            ValueError: one side is more than 4 times the other, and the image may not be stretched; or the bucket is
                too large.
        """
        shorter, longer = sorted((height, width))
        work = config.work_size or size or shorter
        if config.stretch:
            scaled = (work, work)
        elif longer > _MAX_ASPECT * shorter:
            raise ValueError(
                f"an image of {width}x{height} has one side {longer / shorter:.1f} times the other, expected at most "
                f"{_MAX_ASPECT} times; crop it, give an image size (--image-size) to cut out the centre square, or "
                "set sizes.stretch"
            )
        else:
            scaled = (round(height * work / shorter), round(width * work / shorter))
        side = _up(work, multiple)
        step = max(side // _STEPS_A_SIZE // multiple, 1) * multiple
        bucket = (side + _up(max(scaled[0] - side, 0), step), side + _up(max(scaled[1] - side, 0), step))
        if 0 < largest < max(bucket):
            raise ValueError(
                f"an image of {width}x{height} would go to the generator as {bucket[1]}x{bucket[0]}, expected sides of "
                f"at most {largest}, where its table of positions ends; set a smaller --work-size than {work}"
            )
        return cls((height, width), scaled, bucket, config.filter)

    def forward(self, images: np.ndarray, channels: int) -> np.ndarray:
        """Images of the source size, uint8 (n, H, W, C), to uint8 (n, bucket height, bucket width, channels).

        Grey is repeated in all channels of a colour generator. The result may be the very array that came in.

        Raises:
            ValueError: colour images for a grey generator.
        """
        assert images.shape[1:3] == self.source, (images.shape, self.source)
        check_channels(images.shape[3], channels)
        images = _resized(images, self.scaled, self.filter)
        if self.bucket != self.scaled:
            (top, left), (below, right) = self._margins()
            images = np.pad(images, ((0, 0), (top, below), (left, right), (0, 0)), mode="reflect")
        return images if images.shape[3] == channels else np.repeat(images, channels, axis=3)

    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(top, left) and (bottom, right), equal but for an odd pixel."""
        rows, columns = self.bucket[0] - self.scaled[0], self.bucket[1] - self.scaled[1]
        return (rows // 2, columns // 2), (rows - rows // 2, columns - columns // 2)

    def back(self, images: np.ndarray, channels: int) -> np.ndarray:
        """Images of the bucket's size, uint8 (n, bucket height, bucket width, c), to uint8 (n, H, W, channels).

        Colour becomes grey as its luminance (ITU-R 601-2).
        """
        assert images.shape[1:3] == self.bucket, (images.shape, self.bucket)
        top, left = self._margins()[0]
        images = images[:, top : top + self.scaled[0], left : left + self.scaled[1]]
        if images.shape[3] != channels:
            images = _each(images, lambda image: image.convert("L"))
        return _resized(images, self.source, self.filter)


def buckets(frames: Sequence[Frame]) -> dict[tuple[int, int], np.ndarray]:
    """The rows, int64 ascending, of each (height, width) that the generator will see.

    Images of several sizes may share a bucket, and so a batch. The largest area comes first, so that running out of
    memory shows at once.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, frame in enumerate(frames):
        rows.setdefault(frame.bucket, []).append(row)
    largest_first = sorted(rows, key=lambda bucket: (-bucket[0] * bucket[1], bucket))
    return {bucket: np.array(rows[bucket], np.int64) for bucket in largest_first}


def check_channels(source: int, generator: int) -> None:
    """Raise ValueError where images with `source` channels cannot go to a generator with `generator` channels."""
    if source == 3 and generator == 1:
        raise ValueError(
            "the images are in colour and the generator makes grey ones; name a generator with 3 channels, or convert "
            "the images to 8-bit grey first"
        )


def work_size_warning(work_size: int, trained_size: int) -> str | None:
    """A warning where a generator works at a size far from the one it was trained at; else None."""
    if not trained_size:
        return None
    if work_size < trained_size:
        return (
            f"the generator works at {work_size} pixels and was trained at {trained_size}: below its size a model "
            f"makes blurred and broken objects; set sizes.work_size to 0 or {trained_size}"
        )
    if work_size >= 2 * trained_size:
        return (
            f"the generator works at {work_size} pixels and was trained at {trained_size}: at twice its size or more a "
            "model repeats objects, the more so the deeper the level; set sizes.work_size below "
            f"{2 * trained_size}"
        )
    return None


def _up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def _resized(images: np.ndarray, size: tuple[int, int], name: Filter) -> np.ndarray:
    if images.shape[1:3] == size:
        return images
    height, width = size
    return _each(images, lambda image: image.resize((width, height), Image.Resampling[name.upper()]))


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Change each image, uint8 (n, H, W, C), with Pillow, whose grey images have no channel axis."""
    made = [np.asarray(change(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image))) for image in images]
    stacked = np.stack(made)
    return stacked[..., None] if stacked.ndim == 3 else stacked
