"""How far a variant may be from its reference: what the noise of its level explains.

Let x be an image, x_t = alpha x + sigma e its noised form with signal-to-noise ratio s = alpha^2 / sigma^2, and x' a
sample of the posterior of x given x_t, which is what a perfect generator draws. Then x and x' are exchangeable given
x_t, and E|x' - x|^2 = 2 E|x - E[x | x_t]|^2, twice the least mean squared error. That is at most the error of the best
linear estimator which treats the coefficients of an orthonormal basis one by one (Wiener's filter): v / (1 + s v) for a
coefficient of variance v. So the expected squared difference of a coefficient is at most 2 v / (1 + s v), at pure noise
2 v, the one of two unrelated images.

The bound holds in every orthonormal basis. Two are looked at: pixels, which know that the border of a digit is empty,
and frequencies (cosine transform over rows, columns and channels), which know that photographs are smooth.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

__all__ = ["Spread"]

_SAMPLE = 5000  # training images that variances are estimated from, at most
_BLOCK = 1 << 22  # pixel values in float32 at once: 16 MiB
_GROUP = 5  # a group has at least a fifth of all coefficients: an image may have a few where others have none
_FLOOR_GREY = 3.0  # grey levels: what rounding and resampling do to an image
_FLOOR_SHARE = 0.15  # of the training images' standard deviation
_HALF_RANGE = 127.5  # grey levels; noise is added to images in -1..1


@dataclasses.dataclass(frozen=True)
class Spread:
    """How much the training images differ, in groups of coefficients that vary about equally.

    Attributes:
        bases: for pixels and for frequencies: variance float64 (D,) of each coefficient, image range -1..1, and the
            coefficients int64 of each group.
        floor: what is added to the explained energy of a coefficient, so that rare content in places that hardly ever
            vary (a stroke at the border) is not infinitely far.
    """

    bases: tuple[tuple[np.ndarray, tuple[np.ndarray, ...]], ...]
    floor: float

    @classmethod
    def of(cls, pixels: Callable[[np.ndarray], np.ndarray], count: int) -> "Spread":
        """From at most 5,000 training images, evenly spaced.

        Args:
            pixels: int64 rows to images uint8 (n, H, W, C).
            count: how many images there are.
        """
        rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).round().astype(np.int64))
        step = _step(pixels(rows[:1]))
        sums, squares = [0.0, 0.0], [0.0, 0.0]
        for start in range(0, len(rows), step):
            images = _ranged(pixels(rows[start : start + step]))
            for number, coefficients in enumerate(_coefficients(images)):
                sums[number] += coefficients.sum(0, np.float64)
                squares[number] += (coefficients**2).sum(0, np.float64)
        variances = [
            np.maximum(square / len(rows) - (total / len(rows)) ** 2, 0)
            for total, square in zip(sums, squares, strict=True)
        ]
        floor = max((_FLOOR_GREY / _HALF_RANGE) ** 2, _FLOOR_SHARE**2 * float(np.mean(variances[0])))
        return cls(tuple((v, _groups(v + floor)) for v in variances), floor)

    def ratio(self, images: np.ndarray, references: np.ndarray, snr: np.ndarray) -> np.ndarray:
        """Distance to the reference by the distance that noise explains, the largest over all groups, float64 (n,).

        About 1 or less for a perfect generator at every level, 0 for a copy, and large for static, which differs where
        images hardly do.

        Args:
            images, references: uint8 (n, H, W, C).
            snr: float64 (n,), signal-to-noise ratio in pixels of these images; 0: pure noise.
        """
        result = np.empty(len(images))
        step = _step(images)
        for start in range(0, len(images), step):
            here = slice(start, start + step)
            apart = _ranged(images[here]) - _ranged(references[here])
            ratios = []
            for coefficients, (variance, groups) in zip(_coefficients(apart), self.bases, strict=True):
                energy = coefficients**2  # (b, D)
                explained = 2 * variance / (1 + snr[here, None] * variance) + self.floor  # (b, D)
                for group in (*groups, np.arange(len(variance))):
                    ratios.append(energy[:, group].mean(1, np.float64) / explained[:, group].mean(1))
            result[here] = np.sqrt(np.max(ratios, 0))
        return result


def _coefficients(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W, C) as pixels and as frequencies, each (n, D)."""
    from scipy import fft  # type: ignore[import-untyped]  # here: most commands score nothing

    frequencies = fft.dctn(images, axes=(1, 2, 3), norm="ortho")
    return images.reshape(len(images), -1), np.asarray(frequencies).reshape(len(images), -1)


def _groups(variance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Coefficients of about equal variance (D,): by factors of 4, largest first, small groups joined to the next."""
    factor = np.floor(np.log2(variance) / 2)
    groups: list[np.ndarray] = []
    open_group = np.empty(0, np.int64)
    for value in np.unique(factor)[::-1]:
        open_group = np.concatenate([open_group, np.flatnonzero(factor == value)])
        if len(open_group) * _GROUP >= len(variance):
            groups.append(open_group)
            open_group = np.empty(0, np.int64)
    if len(open_group):  # the rest joins the last one
        groups[-1:] = [np.concatenate([*groups[-1:], open_group])]
    return tuple(groups)


def _ranged(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in -1..1."""
    return pixels.astype(np.float32) / np.float32(_HALF_RANGE) - 1


def _step(images: np.ndarray) -> int:
    return max(1, _BLOCK // int(np.prod(images.shape[1:])))
