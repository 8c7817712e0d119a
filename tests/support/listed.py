"""A list of slow images as a run would find it, of any length."""

from collections.abc import Sequence

import numpy as np

from latebloom.flows.report.listing import Listing


def listed(count: int, levels: int = 2, side: int = 8, channels: int = 1, names: Sequence[str] = ()) -> Listing:
    """`count` images of three classes; image i is all i % 200, its variant of column l all 200 + l.

    The loss falls with i, image i is in row 2 i, every third is taken for another class, seed 0 chose the even ones
    and seed 1 the others. The last variant of every fifth image is off_label.
    """
    place = np.arange(count)
    variants = np.stack(np.meshgrid(place, np.arange(levels), indexing="ij"), -1).reshape(-1, 2)
    off = (variants[:, 0] % 5 == 0) & (variants[:, 1] == levels - 1)

    def plain(values: np.ndarray) -> np.ndarray:
        return np.tile(values.astype(np.uint8)[:, None, None, None], (1, side, side, channels))

    return Listing(
        total=count,
        class_names=("cat", "big dog", "fox"),
        names=names or [f"train/{('cat', 'big dog', 'fox')[i % 3]}/{i:05d}.png" for i in range(count)],
        rows=2 * place,
        labels=place % 3,
        predicted=np.where(place % 3 == 2, 0, place % 3),
        losses=3 - place / max(1, count),
        probability=place / max(1, count),
        votes=np.stack([place % 2 == 0, place % 2 == 1], 1),
        voters=["seed 0", "seed 1"],
        levels=[f"{10 * (level + 1)} of 100" for level in range(levels)],
        variants=np.column_stack([variants, off]).astype(int),
        states=["ok", "off_label"],
        pictures=lambda start, end: plain(place[start:end] % 200),
        variant_pictures=lambda start, end: plain(200 + variants[start:end, 1]),
    )
