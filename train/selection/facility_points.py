"""The arguments and results of facility location: points and medoids."""

import dataclasses
from typing import Literal

import numpy as np

__all__ = ["Medoids", "Points", "Similarity"]

Similarity = Literal["distance", "exp"]


@dataclasses.dataclass(frozen=True)
class Points:
    """n examples as points, with distances D_ij = |x_i - x_j|_2 + city_scale * |c_i - c_j|_1.

    Attributes:
        vectors: float32 (n, d), x itself without factors.
        factors: float32 (n, e), or None. With them x_i is the outer product of vectors_i and factors_i, d * e numbers
            that are never written out.
        city: float32 (n, K), or None.
        city_scale: >= 0.
    """

    vectors: np.ndarray
    factors: np.ndarray | None = None
    city: np.ndarray | None = None
    city_scale: float = 0.0

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Numbers a point: d, or d * e."""
        width: int = self.vectors.shape[1] * (1 if self.factors is None else self.factors.shape[1])
        return width

    def take(self, rows: np.ndarray) -> "Points":
        """The points `rows`, int (n,)."""
        factors = None if self.factors is None else self.factors[rows]
        city = None if self.city is None else self.city[rows]
        return Points(self.vectors[rows], factors, city, self.city_scale)

    @staticmethod
    def centre(part: np.ndarray) -> np.ndarray:
        """What is subtracted from a part (n, d) before products, float64 (d,): its mean, rounded if all are integers.

        Centring changes no distance, and less cancels. Integers stay integers, so that equal distances stay equal.
        """
        mean: np.ndarray = part.mean(0, dtype=np.float64)
        return np.rint(mean) if (part == np.rint(part)).all() else mean

    def check(self, n: int) -> None:
        """Raise ValueError unless these are n finite points."""
        for name, part in (("vectors", self.vectors), ("factors", self.factors), ("city", self.city)):
            if part is None:
                continue
            if part.ndim != 2 or len(part) != n or part.shape[1] == 0:
                raise ValueError(
                    f"{name} are {part.shape}, expected float ({n}, d) for {n} points; give one row a point"
                )
            if not np.isfinite(part).all():
                bad = int((~np.isfinite(part)).any(1).sum())
                raise ValueError(
                    f"{name} of {bad} of {n} points are not finite: the model has diverged; lower its learning rate"
                )
        if not (np.isfinite(self.city_scale) and self.city_scale >= 0):
            raise ValueError(f"city_scale is {self.city_scale}, expected a finite number >= 0")


@dataclasses.dataclass(frozen=True)
class Medoids:
    """The selected examples.

    Attributes:
        indices: int64 (B,) in greedy order, ties to the lowest index. A smaller budget gives a prefix. Gains are tied
            where they are equal in floating point: of integer points with distances that are integers, exactly.
        weights: float32 (B,), how many points are nearest to this medoid, ties to the earlier one; a medoid is always
            nearest to itself. They sum to n.
        gains: float64 (B,), by how much each lowered the sum of distances; never rising. For the first, every point
            starts at the largest distance (similarity "exp": at similarity 0).
        owner: int64 (n,), for each point the place in `indices` of its medoid.
    """

    indices: np.ndarray
    weights: np.ndarray
    gains: np.ndarray
    owner: np.ndarray
