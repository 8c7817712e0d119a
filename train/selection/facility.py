"""Exact facility location: the B examples of a class with the smallest sum of distances from all of the class to them.

Minimises L(S) = sum_i min_{j in S} D_ij greedily (CRAIG, "Coresets for Data-efficient Training of Machine Learning
Models", Alg. 1; within 1 - 1/e of the best). Without an auxiliary element or a constant minus distance: the first
example has the smallest row sum, every further one lowers L most. With numba's compiled loops; with torch where numba
cannot be imported or a device is given.
"""

import contextlib
import functools
import heapq
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch

from latebloom.data.batches import cores
from latebloom.train.selection import facility_torch
from latebloom.train.selection.facility_points import Medoids, Points, Similarity

__all__ = ["Medoids", "Points", "Similarity", "facility_location", "facility_location_by_class"]

Gate = contextlib.AbstractContextManager[Any]

_OPEN: Gate = contextlib.nullcontext()
_log = logging.getLogger(__name__)

MEMORY_BYTES = 4 << 30
# Distances of points up to this width are summed directly: faster than a matrix product, and exact.
_DIRECT_WIDTH = 48
# Rows of one matrix product; a multiple of the kernels' tile.
_ROWS = 256
# Most rows that are computed at once on demand.
_MOST_ROWS = 64


def facility_location(
    points: Points,
    budget: int,
    *,
    memory_bytes: int = MEMORY_BYTES,
    similarity: Similarity = "distance",
    device: torch.device | str | None = None,
) -> Medoids:
    """Choose `budget` of n points greedily so that the sum of distances to the nearest chosen one is least.

    Args:
        points: of one class.
        budget: >= 0; n or more takes all n, in greedy order.
        memory_bytes: bound of the distance matrix, 4 n^2 bytes. If it does not fit, rows are computed on demand: the
            same result, slower.
        similarity: "distance" is C - D with any constant C; "exp" is exp(-D / width), with width numbers a point
            (what the Data-Efficient Augmentation code, arXiv 2210.08363, gets from submodlib's Euclidean mode).
        device: None: compiled loops on the CPU; else torch on that device.

    Raises:
        ValueError: points that are not finite or do not match, or a negative budget.
    """
    labels = np.zeros(len(points), np.int64)
    (found,) = facility_location_by_class(
        points, labels, np.array([budget]), threads=1, memory_bytes=memory_bytes, similarity=similarity, device=device
    )
    return found


def facility_location_by_class(
    points: Points | Callable[[np.ndarray], Points],
    labels: np.ndarray,
    budgets: np.ndarray,
    *,
    threads: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    similarity: Similarity = "distance",
    device: torch.device | str | None = None,
) -> list[Medoids]:
    """`facility_location` within each class, classes in parallel; the result does not depend on the threads.

    Args:
        points: of all examples, or a function from rows int64 (n,) to their points. It is called once for each class,
            from several threads.
        labels: int64 (N,) in 0..C-1, or outside for examples to leave out.
        budgets: int (C,), each as in `facility_location`.
        threads: classes at once; 0: as many as this process has cores. On a device classes run as one batch.
        memory_bytes: bound of all distance matrices at one time.

    Returns:
        One for each class; its indices are rows of the whole data, its owners those of the rows of the class in
        their order (empty where the budget is 0).

    Raises:
        ValueError: as `facility_location`, or points and labels that do not match.
    """
    budgets = np.asarray(budgets, np.int64)
    if budgets.ndim != 1 or (len(budgets) and budgets.min() < 0):
        raise ValueError(f"budgets are {budgets.tolist()}, expected one number >= 0 for each class; correct them")
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity is {similarity!r}, expected one of {', '.join(get_args(Similarity))}")
    if isinstance(points, Points) and len(points) != len(labels):
        raise ValueError(f"there are {len(points)} points and {len(labels)} labels; give one label for each point")
    if isinstance(points, Points):
        points.check(len(labels))
    rows = [np.flatnonzero(labels == label) for label in range(len(budgets))]
    counts = np.minimum([len(own) for own in rows], budgets).astype(np.int64)

    def points_of(label: int) -> Points:
        if isinstance(points, Points):
            return points.take(rows[label])
        own = points(rows[label])
        own.check(len(rows[label]))
        return own

    kernels = _kernels() if device is None else None
    busy = [label for label in range(len(budgets)) if counts[label] > 0]
    local: dict[int, Medoids] = {}
    if kernels is None:
        sizes = {label: len(rows[label]) for label in busy}
        for group in facility_torch.groups(sizes, memory_bytes):
            found = facility_torch.solve(
                [points_of(label) for label in group],
                [int(counts[label]) for label in group],
                similarity,
                torch.device(device or "cpu"),
                memory_bytes,
            )
            local |= dict(zip(group, found, strict=True))
    else:
        local = _in_threads(kernels, points_of, rows, counts, busy, threads, memory_bytes, similarity)
    nothing = Medoids(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0), np.zeros(0, np.int64))
    return [
        Medoids(rows[label][found.indices], found.weights, found.gains, found.owner)
        for label, found in ((label, local.get(label, nothing)) for label in range(len(budgets)))
    ]


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from latebloom.train.selection import facility_kernels
    except ImportError:
        _log.warning("numba cannot be imported: facility location runs in torch, some times slower")
        return None
    return facility_kernels


def _in_threads(
    kernels: ModuleType,
    points_of: Callable[[int], Points],
    rows: list[np.ndarray],
    counts: np.ndarray,
    busy: list[int],
    threads: int,
    memory_bytes: int,
    similarity: Similarity,
) -> dict[int, Medoids]:
    """Each class in `busy` on a pool of threads, each thread with one buffer for distance matrices."""
    # Whether a class fits depends on its size alone, so that results do not depend on the threads.
    held = [4 * len(rows[label]) ** 2 for label in busy if 4 * len(rows[label]) ** 2 <= memory_bytes]
    largest = max(held, default=0)
    workers = max(1, min(threads or cores(), len(busy), memory_bytes // max(largest, 1)))
    buffers: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    for _ in range(workers):
        buffers.put(np.empty(largest // 4, np.float32))

    # A matrix product has its own threads: no more products at once than the cores allow.
    gate = threading.BoundedSemaphore(max(1, cores() // torch.get_num_threads()))

    def one(label: int) -> Medoids:
        points = points_of(label)
        space = _space(kernels, points, similarity)
        buffer = buffers.get()
        try:
            if len(points) ** 2 <= len(buffer):
                matrix = buffer[: len(points) ** 2].reshape(len(points), len(points))
                return _in_memory(kernels, space, int(counts[label]), matrix, gate)[0]
            return _on_demand(kernels, space, int(counts[label]), gate)
        finally:
            buffers.put(buffer)

    # The largest first, so that no large class runs alone at the end.
    order = sorted(busy, key=lambda label: -len(rows[label]))
    if workers == 1:
        return {label: one(label) for label in order}
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(order, pool.map(one, order), strict=True))


def _space(kernels: ModuleType, points: Points, similarity: Similarity) -> Any:
    n = len(points)

    def centred(part: np.ndarray | None) -> tuple[np.ndarray, ...]:
        if part is None:
            return np.zeros((n, 0), np.float32), np.zeros((0, n), np.float32), np.zeros(n, np.float32), np.zeros(n)
        wide = part.astype(np.float64)
        own = np.ascontiguousarray(wide - Points.centre(part), dtype=np.float32)  # (n, d)
        square = np.einsum("nd,nd->n", own, own)
        # Only narrow parts are read by columns.
        columns = own[:, :0].T if own.shape[1] > _DIRECT_WIDTH else own.T
        return own, np.ascontiguousarray(columns), square, np.einsum("nd,nd->n", wide, wide)

    city = np.zeros((n, 0), np.float32)
    if points.city is not None and points.city_scale > 0:
        city = np.ascontiguousarray(points.city * np.float32(points.city_scale), dtype=np.float32)
    width = float(points.width) if similarity == "exp" else 0.0
    return kernels.Space(*centred(points.vectors), *centred(points.factors), city, np.ascontiguousarray(city.T), width)


class _Products:
    """Blocks of rows of the Gram matrices of the wide parts, in reused buffers; `gate` limits products at once."""

    def __init__(self, space: Any, rows: int, gate: Gate) -> None:
        n = len(space.v)
        wide = [part.shape[1] > _DIRECT_WIDTH for part in (space.v, space.f)]
        # A copy is always aligned in memory alike; the last bits of a product may depend on the alignment.
        self._parts = [
            torch.from_numpy(part).clone() if w else None for part, w in zip((space.v, space.f), wide, strict=True)
        ]
        self._buffers = [torch.empty(rows * n if w else 0) for w in wide]
        self._none = np.zeros((0, 0), np.float32)
        self._gate = gate

    def __bool__(self) -> bool:
        return any(part is not None for part in self._parts)

    def __call__(self, rows: slice | np.ndarray, start: int) -> list[np.ndarray]:
        """Products of `rows` with all points from `start` on, (b, n - start), or (0, 0) for a narrow part."""
        found = []
        for part, buffer in zip(self._parts, self._buffers, strict=True):
            if part is None:
                found.append(self._none)
                continue
            left, right = part[rows], part[start:].T
            out = buffer[: len(left) * right.shape[1]].view(len(left), right.shape[1])
            with self._gate:
                found.append(torch.mm(left, right, out=out).numpy())
        return found


def _measure(kernels: ModuleType, space: Any, matrix: np.ndarray, gate: Gate = _OPEN) -> tuple[np.ndarray, float]:
    """Fill the distance matrix (unless it is (0, 0)); returns row sums float64 (n,) and the largest distance."""
    n = len(space.v)
    sums = np.zeros(n)
    products = _Products(space, min(n, _ROWS), gate)
    step = _ROWS if products else n
    largest = 0.0
    for start in range(0, n, step):
        stop = min(start + step, n)
        grams = products(slice(start, stop), start)
        largest = max(largest, float(kernels.fill(space, start, stop, *grams, matrix, sums)))
    return sums, largest


def _in_memory(
    kernels: ModuleType, space: Any, budget: int, matrix: np.ndarray, gate: Gate = _OPEN
) -> tuple[Medoids, int]:
    """Lazy greedy on the whole matrix; returns the medoids and how many rows were read."""
    sums, largest = _measure(kernels, space, matrix, gate)
    selected, gains, owner, order, keys = _start(sums, largest, budget, space)
    nearest = matrix[selected[0]].copy()
    filled, read = kernels.greedy(matrix, order, keys, nearest, owner, selected, gains)
    return _finished(selected, gains, owner, filled), read


def _start(
    sums: np.ndarray, largest: float, budget: int, space: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The first example, and upper bounds of all other gains: their gains if they were the first.

    Before the first, every point is at the largest distance (similarity "exp": at similarity 0).
    """
    keys = len(sums) * (1.0 if space.exp_width else largest) - sums
    order = np.argsort(sums, kind="stable")
    selected, gains = np.zeros(budget, np.int64), np.zeros(budget)
    selected[0], gains[0] = order[0], keys[order[0]]
    return selected, gains, np.zeros(len(sums), np.int64), order, keys


def _finished(selected: np.ndarray, gains: np.ndarray, owner: np.ndarray, filled: int) -> Medoids:
    """When no candidate gains any more, the rest are taken by index: each coincides with a medoid."""
    if filled < len(selected):
        left = np.setdiff1d(np.arange(len(owner)), selected[:filled])[: len(selected) - filled]
        selected[filled:] = left
        owner[left] = np.arange(filled, len(selected))
    weights = np.bincount(owner, minlength=len(selected)).astype(np.float32)
    return Medoids(selected, weights, gains, owner)


def _on_demand(kernels: ModuleType, space: Any, budget: int, gate: Gate) -> Medoids:
    """Lazy greedy with rows computed on demand, more of them at once the longer it takes to find the best."""
    n = len(space.v)
    most = min(n, _MOST_ROWS)
    products = _Products(space, most, gate)
    sums, largest = _measure(kernels, space, np.zeros((0, 0), np.float32), gate)
    selected, gains, owner, order, keys = _start(sums, largest, budget, space)
    rows, fresh_gains = np.empty((most, n), np.float32), np.empty(most)

    def made(wanted: np.ndarray) -> np.ndarray:
        out = rows[: len(wanted)]
        kernels.distance_rows(space, wanted, *products(wanted, 0), out)
        return out

    nearest = made(selected[:1])[0].copy()
    heap = [(-keys[i], int(i), 0) for i in order[1:]]  # sorted, so a heap: best key first, ties to the lowest index
    for rank in range(1, budget):
        count = 1
        while heap[0][0] < 0 and heap[0][2] != rank:
            wanted = [heapq.heappop(heap) for _ in range(min(count, len(heap)))]
            stale = np.array([i for _, i, stamp in wanted if stamp != rank])
            kernels.row_gains(made(stale), nearest, fresh_gains)
            for item in wanted:
                if item[2] == rank:
                    heapq.heappush(heap, item)
            for i, gain in zip(stale.tolist(), fresh_gains.tolist(), strict=False):
                heapq.heappush(heap, (-gain, i, rank))
            count = min(2 * count, most)
        if heap[0][0] >= 0:
            return _finished(selected, gains, owner, rank)
        key, best, _ = heapq.heappop(heap)
        selected[rank], gains[rank] = best, -key
        kernels.take(made(selected[rank : rank + 1])[0], best, rank, nearest, owner)
    return _finished(selected, gains, owner, budget)
