"""What facility location takes and gives."""

import dataclasses
from typing import Literal

import numpy as np

__all__ = ["Medoids", "Points", "Similarity"]

Similarity = Literal["distance", "exp"]


@dataclasses.dataclass(frozen=True)
class Points:
    """Where n examples stand: D_ij = |x_i - x_j|_2 + city_scale * |c_i - c_j|_1.

    Attributes:
        vectors: float32 (n, d), x itself where there are no factors.
        factors: float32 (n, e), or None. With them x_i is the outer product of vectors_i and factors_i, of d * e
            numbers, which is never written out.
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
        return self.vectors.shape[1] * (1 if self.factors is None else self.factors.shape[1])

    def take(self, rows: np.ndarray) -> "Points":
        """The points `rows`, int (n,)."""
        factors = None if self.factors is None else self.factors[rows]
        city = None if self.city is None else self.city[rows]
        return Points(self.vectors[rows], factors, city, self.city_scale)

    def check(self, n: int) -> None:
        """Raise ValueError unless these are n finite points."""
        for name, part in (("vectors", self.vectors), ("factors", self.factors), ("city", self.city)):
            if part is None:
                continue
            if part.ndim != 2 or len(part) != n or part.shape[1] == 0:
                raise ValueError(f"expected {name} of {n} points, float ({n}, d), got {part.shape}")
            if not np.isfinite(part).all():
                bad = int((~np.isfinite(part)).any(1).sum())
                raise ValueError(f"{name} of {bad} of {n} points are not finite; the model that gave them has diverged")
        if not (np.isfinite(self.city_scale) and self.city_scale >= 0):
            raise ValueError(f"city_scale = {self.city_scale}; expected a finite number >= 0")


@dataclasses.dataclass(frozen=True)
class Medoids:
    """The chosen examples.

    Attributes:
        indices: int64 (B,) in greedy order, ties to the lowest index. A smaller budget gives a prefix.
        weights: float32 (B,), how many points have this medoid as their nearest, ties to the earlier one; a medoid
            always is its own. They sum to n.
        gains: float64 (B,), what each saved; never rising. The first is counted from the largest distance for every
            point (similarity "exp": from none).
    """

    indices: np.ndarray
    weights: np.ndarray
    gains: np.ndarray
