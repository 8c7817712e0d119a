"""Facility location in torch: many classes at once, padded to one size, on any device.

Used without numba, and by `select_coreset(device=)`, to which the commands give no device yet.
"""

import numpy as np
import torch
from torch import Tensor

from latebloom.train.selection.facility_points import Medoids, Points, Similarity

__all__ = ["groups", "solve"]


def groups(sizes: dict[int, int], memory_bytes: int) -> list[list[int]]:
    """Classes of similar size together, as many as fit into `memory_bytes` with one (n, n) float32 matrix each.

    A class that does not fit is a group of its own.
    """
    found: list[list[int]] = []
    room = 0
    for label in sorted(sizes, key=lambda label: -sizes[label]):
        # A new group begins before padding costs more than a factor of four in memory.
        if found and room > 0 and 2 * sizes[label] > sizes[found[-1][0]]:
            found[-1].append(label)
            room -= 1
        else:
            found.append([label])
            room = memory_bytes // (4 * sizes[label] ** 2) - 1
    return found


def solve(
    classes: list[Points], budgets: list[int], similarity: Similarity, device: torch.device, memory_bytes: int
) -> list[Medoids]:
    """Lazy greedy for all `classes` at once; `budgets` in 1..n each.

    Every step computes the gains of the candidates with the highest old gains in each class, and selects a candidate
    whose new gain is at least all others. Distances come from float64 Gram matrices and are kept in float32: the whole
    matrices if they fit into `memory_bytes`, else rows on demand.
    """
    sizes = torch.tensor([len(points) for points in classes], device=device)  # (G,)
    counts = torch.tensor(budgets, device=device)
    n = int(sizes.max())
    rows = _Rows(classes, n, similarity, device)
    there = torch.arange(n, device=device) < sizes[:, None]  # (G, n)
    sums, largest = rows.prepare(4 * len(classes) * n * n <= memory_bytes)
    which = torch.arange(len(classes), device=device)
    index = torch.arange(n, device=device).expand(len(classes), n)

    start = torch.ones_like(largest) if similarity == "exp" else largest
    gone = torch.tensor(-torch.inf, dtype=torch.float64, device=device)
    keys = torch.where(there, (sizes * start)[:, None] - sums, gone)  # (G, n)
    stamp = torch.zeros_like(index)
    nearest = torch.where(there, torch.inf, 0.0).float()
    owner = torch.zeros_like(index)
    done = torch.zeros_like(counts)
    selected = torch.zeros(len(classes), max(budgets), dtype=torch.int64, device=device)
    gains = torch.zeros(selected.shape, dtype=torch.float64, device=device)
    together = min(n, 64 if device.type != "cpu" else 16)
    step = 0
    while True:
        best = keys.amax(1)  # (G,)
        best_index = torch.where(keys == best[:, None], index, n).amin(1)  # ties to the lowest index
        # Gains of 0 are not computed again: such candidates coincide with medoids.
        settled = (stamp[which, best_index] == done) | (best <= 0)
        now = settled & (done < counts)
        place = done.clamp(max=selected.shape[1] - 1)
        selected[which, place] = torch.where(now, best_index, selected[which, place])
        gains[which, place] = torch.where(now, best.clamp(min=0), gains[which, place])
        row = rows(best_index[:, None])[:, 0]  # (G, n)
        nearer = (row < nearest) & now[:, None]
        nearest = torch.where(nearer, row, nearest)
        mine = nearer | ((index == best_index[:, None]) & now[:, None])
        owner = torch.where(mine, done[:, None], owner)
        keys[which, best_index] = torch.where(now, gone, keys[which, best_index])
        done += now
        step += 1
        if step % 8 == 0 and bool((done >= counts).all()):
            break
        old = torch.where(stamp < done[:, None], keys, gone)
        value, wanted = old.topk(together, 1)  # (G, b)
        saved = (nearest[:, None] - rows(wanted)).clamp_(min=0).sum(2, dtype=torch.float64)
        usable = value > gone
        keys.scatter_(1, wanted, torch.where(usable, saved, keys.gather(1, wanted)))
        stamp.scatter_(1, wanted, torch.where(usable, done[:, None], stamp.gather(1, wanted)))
    found = []
    for i, budget in enumerate(budgets):
        own = owner[i, : sizes[i]]
        parts = selected[i, :budget], own.bincount(minlength=budget).float(), gains[i, :budget], own
        found.append(Medoids(*(part.cpu().numpy() for part in parts)))
    return found


class _Rows:
    """Rows of the distance matrices of several classes; 0 in the columns of padding."""

    def __init__(self, classes: list[Points], n: int, similarity: Similarity, device: torch.device) -> None:
        def padded(parts: list[Tensor]) -> Tensor:
            out = parts[0].new_zeros(len(parts), n, parts[0].shape[1])
            for i, part in enumerate(parts):
                out[i, : len(part)] = part
            return out.to(device)

        def centred(part: np.ndarray) -> Tensor:
            return torch.from_numpy(part.astype(np.float64) - Points.centre(part))

        vectors = [torch.from_numpy(points.vectors).double() for points in classes]
        self._parts = [padded([centred(points.vectors) for points in classes])]
        self._norms = [padded([part.square().sum(1, keepdim=True) for part in vectors])[..., 0]]
        if classes[0].factors is not None:
            factors = [torch.from_numpy(points.factors).double() for points in classes if points.factors is not None]
            self._parts.append(padded([centred(points.factors) for points in classes if points.factors is not None]))
            self._norms.append(padded([part.square().sum(1, keepdim=True) for part in factors])[..., 0])
        self._city: Tensor | None = None
        if classes[0].city is not None and classes[0].city_scale > 0:
            self._city = padded([torch.from_numpy(points.city).float() * points.city_scale for points in classes])
        self._width = classes[0].width if similarity == "exp" else 0
        self._squares = [part.square().sum(2) for part in self._parts]  # (G, n)
        self._sizes = torch.tensor([len(points) for points in classes], device=device)
        self._there = torch.arange(n, device=device) < self._sizes[:, None]
        self._which = torch.arange(len(classes), device=device)[:, None]
        self._matrix: Tensor | None = None

    def __call__(self, wanted: Tensor) -> Tensor:
        """float32 (G, b, n): the distances of the points `wanted` (G, b) to all of their class."""
        return self._made(wanted) if self._matrix is None else self._matrix[self._which, wanted]

    def prepare(self, keep: bool) -> tuple[Tensor, Tensor]:
        """Row sums float64 (G, n) and largest distances (G,); with `keep` the whole matrices are kept."""
        many, n = self._there.shape
        sums = torch.zeros(many, n, dtype=torch.float64, device=self._there.device)
        largest = torch.zeros(many, dtype=torch.float64, device=self._there.device)
        matrix = torch.empty(many, n, n, device=self._there.device) if keep else None
        block = max(1, min(n, (1 << 25) // (many * n)))  # 256 MB in float64
        for start in range(0, n, block):
            rows = torch.arange(start, min(start + block, n), device=self._there.device)
            made = self._made(rows.expand(many, -1))
            made *= self._there[:, rows, None]
            sums[:, rows] = made.sum(2, dtype=torch.float64)
            largest = torch.maximum(largest, made.amax((1, 2)))
            if matrix is not None:
                matrix[:, rows] = made
        self._matrix = matrix
        return sums, largest

    def _made(self, wanted: Tensor) -> Tensor:
        which = self._which
        # |a - b|^2 without the centre; the product of two such parts as in the kernels.
        apart = [
            (square[which, wanted][:, :, None] + square[:, None] - 2 * part[which, wanted] @ part.mT).clamp_(min=0)
            for part, square in zip(self._parts, self._squares, strict=True)
        ]  # (G, b, n) each
        if len(apart) == 1:
            square = apart[0]
        else:
            x, y = apart
            a, p = (norm[which, wanted][:, :, None] for norm in self._norms)
            b, q = (norm[:, None] for norm in self._norms)
            square = (x * (p + q) + y * (a + b) - x * y + (a - b) * (p - q)) / 2
        own = torch.arange(square.shape[2], device=square.device) == wanted[:, :, None]
        distance = torch.where(own | ~self._there[:, None], 0, square.clamp_(min=0).sqrt_()).float()
        if self._city is not None:
            distance += torch.cdist(self._city[which, wanted], self._city, p=1) * self._there[:, None]
        if self._width:
            distance = -torch.expm1(-distance.double() / self._width).float()
        return distance
