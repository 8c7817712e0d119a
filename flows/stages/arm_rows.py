"""Which rows of real and synthetic images each arm trains on."""

import dataclasses

import numpy as np
import pyarrow as pa

from latebloom.flows.config.arms import Arm

__all__ = ["Pool", "arm_rows"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Real training images 0..n_real-1, followed by the usable synthetic ones.

    Attributes:
        n_real: how many real images.
        rows: by (source index, level steps, variant), the row of the synthetic image; those not `ok` are absent.
        items: the same by item id.
    """

    n_real: int
    rows: dict[tuple[int, int, int], int]
    items: dict[str, int]

    @classmethod
    def of(cls, n_real: int, usable: pa.Table) -> "Pool":
        """The pool of `usable` rows of a synthetic data set, in their order after the real images."""
        keys = zip(*(usable[name].to_pylist() for name in ("source_index", "level_steps", "variant")), strict=True)
        names = usable["item_id"].to_pylist()
        places = range(n_real, n_real + len(names))
        return cls(n_real, dict(zip(keys, places, strict=True)), dict(zip(names, places, strict=True)))


def arm_rows(arm: Arm, selected: np.ndarray, levels: tuple[int, ...], pool: Pool) -> np.ndarray:
    """The rows int64 of an arm's training set: all real ones, then the copies or variants of the selected.

    Args:
        selected: int64 (S,), the examples of the arm's method and seed.
        levels: of the arm, one a variant.
    """
    real = np.arange(pool.n_real)
    if arm.kind == "original":
        return real
    if arm.kind == "upsample":
        return np.concatenate([real, np.repeat(selected, arm.k - 1)])
    wanted = [
        (int(index), level, levels[:place].count(level)) for index in selected for place, level in enumerate(levels)
    ]
    return np.concatenate([real, np.array([pool.rows[key] for key in wanted if key in pool.rows], np.int64)])
