"""Compiled loops of facility location. Importing this needs numba; nothing else may import it at its top.

What makes them fast: a row is sliced first and looped over by `range(len(row))`, so that the loop is vectorised; no
Python objects, so that threads run in parallel (`nogil`); tiles that stay in the cache. The compiler may reorder sums,
but the same code always adds in the same order.
"""

from typing import NamedTuple

import numba
import numpy as np

__all__ = ["TILE", "Space", "distance_rows", "fill", "greedy", "row_gains", "take"]

# Rows of a tile, and its most columns; rows are long because each begins with some slicing.
TILE = 128
_WIDTH = 384
# Blocks of a sum in float32, added up in float64.
_BLOCK = 512
# Where |a - b|^2 is below this share of |a|^2 + |b|^2, the Gram matrix has lost it; such pairs are computed directly.
_CLOSE = np.float32(1e-3)
_ZERO = np.float32(0)
_FAST = {"reassoc", "nsz", "nnan", "ninf", "contract"}
_kernel = numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")


class Space(NamedTuple):
    """Points in the layout of the kernels. An absent part has width 0. `_t` is the contiguous transpose.

    Attributes:
        v: float32 (n, d), centred; v_t (d, n); v_square float32 (n,), |v|^2; v_norm float64 (n,), |v|^2
            before centring.
        f: the factors in the same way.
        city: float32 (n, K), scaled already; city_t (K, n).
        exp_width: 0, or D of the similarity exp(-distance / D).
    """

    v: np.ndarray
    v_t: np.ndarray
    v_square: np.ndarray
    v_norm: np.ndarray
    f: np.ndarray
    f_t: np.ndarray
    f_square: np.ndarray
    f_norm: np.ndarray
    city: np.ndarray
    city_t: np.ndarray
    exp_width: float


@_kernel
def _direct(point, others_t, j0, out):  # type: ignore[no-untyped-def]
    """out[j] = |point - others_j|^2, no cancellation."""
    width = len(out)
    for j in range(width):
        out[j] = _ZERO
    whole = len(point) // 4 * 4
    # Four coordinates a pass: the sums are loaded and stored a quarter as often.
    for k in range(0, whole, 4):
        x0, x1, x2, x3 = point[k], point[k + 1], point[k + 2], point[k + 3]
        column0, column1 = others_t[k, j0 : j0 + width], others_t[k + 1, j0 : j0 + width]
        column2, column3 = others_t[k + 2, j0 : j0 + width], others_t[k + 3, j0 : j0 + width]
        for j in range(len(out)):
            e0, e1, e2, e3 = x0 - column0[j], x1 - column1[j], x2 - column2[j], x3 - column3[j]
            out[j] += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)
    for k in range(whole, len(point)):
        x = point[k]
        column = others_t[k, j0 : j0 + width]
        for j in range(len(out)):
            e = x - column[j]
            out[j] += e * e


@_kernel
def _from_gram(i, j0, points, square, gram, out):  # type: ignore[no-untyped-def]
    """out[j] = |p_i|^2 + |p_j|^2 - 2 p_i.p_j, where gram holds the last product; close pairs directly."""
    squares = square[j0 : j0 + len(out)]
    mine = square[i]
    close = 0
    for j in range(len(out)):
        total = mine + squares[j]
        value = total - np.float32(2) * gram[j]
        close += value < _CLOSE * total
        out[j] = value
    if close == 0:
        return
    point = points[i]
    for j in range(len(out)):
        if out[j] < _CLOSE * (mine + squares[j]):
            other = points[j0 + j]
            value = _ZERO
            for k in range(len(point)):
                e = point[k] - other[k]
                value += e * e
            out[j] = value


@_kernel
def _city(point, others_t, j0, out):  # type: ignore[no-untyped-def]
    """out[j] += |point - others_j|_1."""
    for k in range(len(point)):
        x = point[k]
        column = others_t[k, j0 : j0 + len(out)]
        for j in range(len(out)):
            out[j] += abs(x - column[j])


@_kernel
def _saturate(scale, out):  # type: ignore[no-untyped-def]
    """out[j] = 1 - exp(-out[j] * scale), so that this similarity is minimised as a distance too.

    By multiplications alone, so that it is vectorised: the series of E(x) = exp(-x) - 1 at x / 128, then seven times
    E(2x) = E(x) (2 + E(x)), which keeps the relative precision of small values.
    """
    for j in range(len(out)):
        x = -min(out[j] * scale, np.float32(20)) / np.float32(128)
        e = np.float32(1 / 720)
        for c in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0):
            e = e * x + np.float32(c)
        e *= x
        for _ in range(7):
            e *= np.float32(2) + e
        out[j] = -e


@_kernel
def _distances(space, i, j0, gram_v, gram_f, out, buffer):  # type: ignore[no-untyped-def]
    """out[j] = distance of point i to point j0 + j; gram_* are empty where d is taken directly."""
    j1 = j0 + len(out)
    if len(gram_v) == 0:
        _direct(space.v[i], space.v_t, j0, out)
    else:
        _from_gram(i, j0, space.v, space.v_square, gram_v, out)
    if space.f.shape[1] > 0:
        if len(gram_f) == 0:
            _direct(space.f[i], space.f_t, j0, buffer)
        else:
            _from_gram(i, j0, space.f, space.f_square, gram_f, buffer)
        # |a x p - b x q|^2 from x = |a - b|^2, y = |p - q|^2 and the four norms: both differences are computed without
        # cancellation, so near points keep their distance.
        a, p = space.v_norm[i], space.f_norm[i]
        bs, qs = space.v_norm[j0:j1], space.f_norm[j0:j1]
        for j in range(len(out)):
            b, q = bs[j], qs[j]
            x, y = np.float64(out[j]), np.float64(buffer[j])
            value = 0.5 * (x * (p + q) + y * (a + b) - x * y + (a - b) * (p - q))
            out[j] = np.float32(np.sqrt(max(value, 0.0)))
    else:
        for j in range(len(out)):
            out[j] = np.sqrt(max(out[j], _ZERO))
    if space.city.shape[1] > 0:
        _city(space.city[i], space.city_t, j0, out)
    if space.exp_width > 0:
        _saturate(np.float32(1 / space.exp_width), out)


@_kernel
def fill(space, i0, i1, gram_v, gram_f, matrix, sums):  # type: ignore[no-untyped-def]
    """Distances of points i0..i1 to all points from i0 on, into both halves of `matrix`; the largest of them.

    Args:
        i0, i1: multiples of TILE, or n.
        gram_v, gram_f: float32 (i1 - i0, n - i0) products of centred points, or (0, 0).
        matrix: float32 (n, n), or (0, 0) to keep the sums only.
        sums: float64 (n,), to which the row sums are added.
    """
    n = len(space.v)
    # 16 floats more than a power of two: else a column's numbers would share few lines of the cache.
    tile = np.empty((TILE, _WIDTH + 16), np.float32)
    below = np.empty(_WIDTH, np.float32)
    buffer = np.empty(_WIDTH, np.float32)
    empty = np.empty(0, np.float32)
    largest = _ZERO
    for a0 in range(i0, i1, TILE):
        a1 = min(a0 + TILE, i1)
        j0, j1 = a0, a1  # the diagonal first
        while j0 < n:
            found = _tile(space, i0, a0, a1, j0, j1, gram_v, gram_f, matrix, sums, tile, below, buffer, empty)
            largest = max(largest, found)
            j0, j1 = j1, min(j1 + _WIDTH, n)
    return largest


@_kernel
def _tile(space, i0, a0, a1, j0, j1, gram_v, gram_f, matrix, sums, tile, below, buffer, empty):  # type: ignore[no-untyped-def]
    """Distances of points a0..a1 to points j0..j1, and off the diagonal their transpose."""
    width = j1 - j0
    column_sums = below[:width]
    column_sums[:] = _ZERO
    largest = _ZERO
    for a in range(a1 - a0):
        i = a0 + a
        g_v = gram_v[i - i0, j0 - i0 : j1 - i0] if len(gram_v) else empty
        g_f = gram_f[i - i0, j0 - i0 : j1 - i0] if len(gram_f) else empty
        row = tile[a, :width]
        _distances(space, i, j0, g_v, g_f, row, buffer[:width])
        if j0 == a0:
            row[a] = _ZERO
        total = _ZERO
        for j in range(len(row)):
            value = row[j]
            total += value
            column_sums[j] += value
            largest = max(largest, value)
        sums[i] += total
        if len(matrix):
            matrix[i, j0:j1] = row
    if j0 == a0:
        return largest
    for j in range(width):
        sums[j0 + j] += column_sums[j]
    if len(matrix):
        for j in range(width):
            target = matrix[j0 + j, a0:a1]
            for a in range(len(target)):
                target[a] = tile[a, j]
    return largest


@_kernel
def distance_rows(space, rows, gram_v, gram_f, out):  # type: ignore[no-untyped-def]
    """out float32 (b, n): the distances of the points `rows` to all points; gram_* (b, n) or (0, 0)."""
    n = len(space.v)
    buffer = np.empty(_WIDTH, np.float32)
    empty = np.empty(0, np.float32)
    for j0 in range(0, n, _WIDTH):
        j1 = min(j0 + _WIDTH, n)
        for a in range(len(rows)):
            g_v = gram_v[a, j0:j1] if len(gram_v) else empty
            g_f = gram_f[a, j0:j1] if len(gram_f) else empty
            _distances(space, rows[a], j0, g_v, g_f, out[a, j0:j1], buffer[: j1 - j0])
    for a in range(len(rows)):
        out[a, rows[a]] = _ZERO


@_kernel
def _gain(row, nearest):  # type: ignore[no-untyped-def]
    """Sum of max(0, nearest - row): the gain of the candidate of this row."""
    total = 0.0
    for start in range(0, len(row), _BLOCK):
        distances, now = row[start : start + _BLOCK], nearest[start : start + _BLOCK]
        block = _ZERO
        for j in range(len(distances)):
            block += max(now[j] - distances[j], _ZERO)
        total += np.float64(block)
    return total


@_kernel
def row_gains(rows, nearest, out):  # type: ignore[no-untyped-def]
    """out[a] = gain of the candidate whose distances are rows[a], of (b, n)."""
    for a in range(len(rows)):
        out[a] = _gain(rows[a], nearest)


@_kernel
def _sift(heap, size, keys):  # type: ignore[no-untyped-def]
    """Let the top of the heap sink: highest key first, ties to the lowest index."""
    item = heap[0]
    key = keys[item]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        best = heap[child]
        if child + 1 < size:
            other = heap[child + 1]
            if keys[other] > keys[best] or (keys[other] == keys[best] and other < best):
                best = other
                child += 1
        if keys[best] < key or (keys[best] == key and best > item):
            break
        heap[at] = best
        at = child
    heap[at] = item


@_kernel
def greedy(matrix, order, keys, nearest, owner, selected, gains):  # type: ignore[no-untyped-def]
    """Lazy greedy (Minoux) from the second example on.

    A gain never grows as examples are selected, not even in float32: every sum runs in the same order over terms that
    do not grow. So a candidate whose gain is up to date and at least all other bounds is the best.

    Args:
        matrix: float32 (n, n).
        order: int64 (n,), candidates by falling key, which is a heap; the first is selected[0]. Overwritten.
        keys: float64 (n,), upper bounds of the gains. Overwritten.
        nearest: float32 (n,), distance to the nearest selected example; owner int64 (n,), its rank. Updated.
        selected, gains: int64 and float64 (B,), filled from 1 on.

    Returns:
        How many of `selected` are filled, fewer than B if no candidate gains any more; how many rows were read.
    """
    n = len(matrix)
    heap = order[1:]
    size = n - 1
    fresh = np.zeros(n, np.int64)
    read = 0
    rank = 1
    while rank < len(selected):
        top = heap[0]
        if keys[top] <= 0.0:
            break
        if fresh[top] != rank:
            keys[top] = _gain(matrix[top], nearest)
            fresh[top] = rank
            read += 1
            _sift(heap, size, keys)
            continue
        selected[rank] = top
        gains[rank] = keys[top]
        row = matrix[top]
        take(row, top, rank, nearest, owner)
        read += 1
        size -= 1
        heap[0] = heap[size]
        _sift(heap, size, keys)
        rank += 1
    return rank, read


@_kernel
def take(row, new, rank, nearest, owner):  # type: ignore[no-untyped-def]
    """Points nearer to `new` than to any selected before change their owner; `new` always owns itself."""
    for j in range(len(row)):
        if row[j] < nearest[j]:
            nearest[j] = row[j]
            owner[j] = rank
    owner[new] = rank
