"""The rules by which images become uint8 pixels, the same for a whole data set; and numbers of more than 8 bits."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np

from latebloom.data.config import DataConfig
from latebloom.data.names import listed

__all__ = [
    "DEFAULT",
    "BadImage",
    "BadImages",
    "Decoding",
    "and_others",
    "check_finite",
    "refuse_deep",
    "to_8_bits",
]

_CHUNK = 256  # images of an array that are made 8 bits at once


class BadImage(ValueError):
    """An image that cannot be used.

    Attributes:
        kind: what is wrong with it, in the words by which problems are counted.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both, or it could not come back from another process
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])


class BadImages(ValueError):
    """Images of a data set that cannot be used, all of them; its words are those of the first and name the others.

    Attributes:
        found: what is wrong, by the image's name.
    """

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__(dict(found))
        self.found = dict(found)

    def __str__(self) -> str:
        first, *others = self.found
        return and_others(self.found[first], others)


def and_others(first: str, others: Sequence[str], then: str = "") -> str:
    """What is wrong with an image, the names of others with which something is, and what to do then."""
    return f"{first} ({len(others):,} more: {listed(others, 9)}{then})" if others else first


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the images of a data set become uint8 pixels.

    Attributes:
        size: if positive, the shorter side is resized to it (bicubic, antialiased) and the centre square is cut out.
        background: what transparent pixels are laid on.
        depth: what is done with images of more than 8 bits, as `DataConfig.depth`.
        scale: with depth "data", the two values that become 0 and 255; what lies beyond them is clipped.
        animated: what is done with files of several frames or pages.
    """

    size: int = 0
    background: Literal["white", "black", "grey"] = "white"
    depth: Literal["refuse", "type", "data"] = "refuse"
    scale: tuple[float, float] = (0.0, 1.0)
    animated: Literal["refuse", "first"] = "refuse"

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """The rules of a config. With depth "data" the scale is still to be found in the training images."""
        return cls(config.image_size, config.background, config.depth, animated=config.animated)


DEFAULT = Decoding()


def to_8_bits(values: np.ndarray, name: str, decoding: Decoding) -> np.ndarray:
    """Make an array of numbers uint8 by the rules of depth; uint8 stays as it is.

    Args:
        values: numbers of any type and shape.
        name: for errors.

    Raises:
        BadImage: more than 8 bits are to be refused, NaN, or values that the rule does not cover.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise BadImage("not numbers", f"{name} is {values.dtype}; expected uint8, 0..255")
    if decoding.depth == "refuse":
        refuse_deep(f"{name} is {values.dtype}")
    check_finite(values, name)
    low, high = _range(values, name, decoding)
    eight = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK].astype(np.float64)
        eight[start : start + _CHUNK] = np.clip(np.rint((part - low) * (255 / (high - low))), 0, 255)
    return eight


def _range(values: np.ndarray, name: str, decoding: Decoding) -> tuple[float, float]:
    """The two values that become 0 and 255."""
    if decoding.depth == "data":
        return decoding.scale
    if values.dtype.kind == "f":
        if values.size and (values.min() < 0 or values.max() > 1):
            raise BadImage(
                "values outside 0..1",
                f"{name} has floats from {values.min():g} to {values.max():g}; data.depth=type expects 0..1, so scale "
                "them, or set data.depth=data",
            )
        return 0.0, 1.0
    if values.dtype.kind == "i":
        raise BadImage(
            "signed integers",
            f"{name} is {values.dtype}, a type with a sign, whose range says nothing of the images; set "
            "data.depth=data, or convert the values to uint8 or uint16",
        )
    return 0.0, float(np.iinfo(values.dtype).max)


def refuse_deep(what: str) -> None:
    raise BadImage(
        "more than 8 bits",
        f"{what}, more than 8 bits; set data.depth=type (the range of the type becomes 0..255) or data.depth=data "
        "(the range of the training images), or convert it",
    )


def check_finite(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage("NaN pixels", f"{name} has NaN or infinite pixels; repair or remove it")
