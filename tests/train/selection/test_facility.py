import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from latebloom.train.selection import facility
from latebloom.train.selection.facility import (
    Medoids,
    Points,
    Similarity,
    facility_location,
    facility_location_by_class,
)

Variants = dict[str, dict[str, object]]
# In memory and with rows on demand, by kernels and by torch.
VARIANTS: Variants = {
    "kernels": {},
    "kernels-on-demand": {"memory_bytes": 0},
    "torch": {"device": "cpu"},
    "torch-on-demand": {"device": "cpu", "memory_bytes": 0},
}


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, object]:
    return VARIANTS[request.param]


def points(kind: str, n: int = 150, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)

    def normal(d: int) -> np.ndarray:
        return rng.normal(size=(n, d)).astype(np.float32)

    if kind == "narrow":
        return Points(normal(5))
    if kind == "wide":  # through a matrix product
        return Points(normal(200) + 3)
    if kind == "clumped":  # most gradients are near 0 late in training, a few are not
        scale = np.where(rng.random(n) < 0.9, 1e-4, 1)[:, None]
        return Points((normal(100) * scale).astype(np.float32))
    if kind == "far":  # clumps far from each other and from 0: |a - b|^2 by a Gram matrix loses all digits
        return Points((np.arange(n) % 3 * 1000)[:, None].astype(np.float32) + normal(100))
    if kind == "outer":
        return Points(normal(4), np.abs(normal(70)))
    if kind == "near outer":  # one feature vector and one residual, hardly varied
        return Points(1 + normal(4) * np.float32(1e-3), 5 + normal(70) * np.float32(1e-3))
    if kind == "city":
        return Points(normal(5), None, normal(20), 0.05)
    assert kind == "all"
    return Points(normal(4), np.abs(normal(70)), normal(20), 0.3)


def test_ties_of_integer_points_go_to_the_lowest_index(variant: dict[str, object]) -> None:
    # Points on a line with mean 4.3, which float32 cannot take from them without rounding.
    line = np.array([[4], [5], [2], [3], [0], [3], [7], [7], [8], [4]], np.float32)
    assert facility_location(Points(line), 3, **variant).indices.tolist() == expected_on_a_line(line[:, 0], 3)
    for seed in range(60):
        some = np.random.default_rng(seed).integers(0, 10, (9, 1)).astype(np.float32)
        assert facility_location(Points(some), 4, **variant).indices.tolist() == expected_on_a_line(some[:, 0], 4)


def test_each_point_is_owned_by_the_medoid_that_its_weight_counts(variant: dict[str, object]) -> None:
    # Two classes on a line. In the first, clumps of three around 1 and 11: of the least row sums, those of rows 1 (10)
    # and 4 (2), row 1 is first; then row 2 (1) saves 9 + 9 + 7 = 25.
    line = np.array([0, 10, 1, 11, 2, 12, 50, 60, 51], np.float32)[:, None]
    labels = np.array([0] * 6 + [1] * 3)
    first, second = facility_location_by_class(Points(line), labels, np.array([2, 1]), **variant)  # type: ignore[arg-type]
    assert (first.indices.tolist(), first.owner.tolist()) == ([1, 2], [1, 0, 1, 0, 1, 0])
    assert first.weights.tolist() == np.bincount(first.owner).tolist() == [3, 3]
    assert (second.indices.tolist(), second.owner.tolist()) == ([8], [0, 0, 0])


def expected_on_a_line(line: np.ndarray, budget: int) -> list[int]:
    """Greedily in integers, where nothing is rounded."""
    apart = np.abs(line[:, None] - line).astype(np.int64)
    nearest, selected = np.full(len(line), apart.max()), list[int]()
    for _ in range(budget):
        gains = np.maximum(nearest - apart, 0).sum(1)
        gains[selected] = -1
        selected.append(int(gains.argmax()))
        nearest = np.minimum(nearest, apart[selected[-1]])
    return selected


KINDS = ["narrow", "wide", "clumped", "far", "outer", "near outer", "city", "all"]


def distances(points: Points, similarity: Similarity = "distance") -> np.ndarray:
    """float64 (n, n), written out with nothing clever."""
    x = points.vectors.astype(np.float64)
    if points.factors is not None:
        x = (x[:, :, None] * points.factors.astype(np.float64)[:, None, :]).reshape(len(x), -1)
    found = np.stack([np.linalg.norm(x - row, axis=1) for row in x])
    if points.city is not None:
        city = points.city.astype(np.float64)
        found += points.city_scale * np.stack([np.abs(city - row).sum(1) for row in city])
    return -np.expm1(-found / x.shape[1]) if similarity == "exp" else found


def objective(matrix: np.ndarray, chosen: np.ndarray) -> float:
    return float(matrix[chosen].min(0).sum())


def worst_shortfall(found: Medoids, matrix: np.ndarray, nothing: float) -> float:
    """By how much, relatively, a best's float64 gain falls short of the best possible one."""
    nearest = np.full(len(matrix), nothing)
    worst = 0.0
    for best in found.indices:
        gains = np.maximum(nearest - matrix, 0).sum(1)
        worst = max(worst, (gains.max() - gains[best]) / max(gains.max(), 1e-300))
        nearest = np.minimum(nearest, matrix[best])
    return worst


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_selected_example_gains_the_most_in_float64(kind: str) -> None:
    # Not the index list: two points that improve only each other tie exactly, and rounding then decides.
    some = points(kind)
    matrix = distances(some)
    for variant in VARIANTS.values():
        found = facility_location(some, 40, **variant)  # type: ignore[arg-type]
        assert worst_shortfall(found, matrix, matrix.max()) <= 1e-6
        assert found.weights.sum() == 150
        assert found.weights.min() >= 1
        assert (np.diff(found.gains) <= 0).all()
        owners = np.bincount(matrix[found.indices].argmin(0), minlength=40)
        assert np.abs(owners - found.weights).sum() <= 2  # near ties
        nearest = np.vstack([np.full(len(matrix), matrix.max()), np.minimum.accumulate(matrix[found.indices], 0)])
        np.testing.assert_allclose(found.gains, -np.diff(nearest.sum(1)), rtol=1e-4, atol=1e-6 * found.gains[0])
        assert found.indices.dtype == np.int64
        assert found.weights.dtype == np.float32
        assert found.gains.dtype == np.float64


def test_the_exponential_similarity_is_maximised_greedily(variant: dict[str, object]) -> None:
    # submodlib's Euclidean mode: exp(-distance / width), not squared.
    some = points("narrow")
    found = facility_location(some, 40, similarity="exp", **variant)  # type: ignore[arg-type]
    matrix = distances(some, "exp")
    assert worst_shortfall(found, matrix, 1.0) <= 1e-6
    value = np.maximum.accumulate(1 - matrix[found.indices], 0).sum(1)  # sum of the largest similarities
    np.testing.assert_allclose(np.cumsum(found.gains), value, rtol=1e-5)


def test_lazy_equals_naive_and_is_within_its_bound_of_brute_force(variant: dict[str, object]) -> None:
    for seed, n in enumerate((2, 7, 10)):
        some = points("narrow", n, seed)
        matrix = distances(some)
        for budget in range(1, n + 1):
            found = facility_location(some, budget, **variant)  # type: ignore[arg-type]
            naive: list[int] = []
            for _ in range(budget):
                left = [i for i in range(n) if i not in naive]
                naive.append(min(left, key=lambda i: objective(matrix, np.array([*naive, i]))))
            assert objective(matrix, found.indices) == pytest.approx(objective(matrix, np.array(naive)), rel=1e-6)
            best = min(objective(matrix, np.array(s)) for s in itertools.combinations(range(n), budget))
            nothing = n * matrix.max()
            assert nothing - objective(matrix, found.indices) >= (1 - np.exp(-1)) * (nothing - best) - 1e-6


# --- weights, order, edges -------------------------------------------------------------------------------------------


def test_four_points_on_a_line_by_hand(variant: dict[str, object]) -> None:
    # At 0, 1, 2, 10: row sums 13, 11, 11, 27, so index 1 first (the tie with 2 to the lowest), then 10 saves 9.
    some = Points(np.array([[0.0], [1], [2], [10]], np.float32))
    found = facility_location(some, 2, **variant)  # type: ignore[arg-type]
    assert found.indices.tolist() == [1, 3]
    # The peers' weights: DeepCore starts them at 1 and gets gamma + 1, [4, 2].
    assert found.weights.tolist() == [3, 1]
    # Nothing chosen is 10 away from all four, the largest distance: 40 - 11, then 9.
    assert found.gains.tolist() == [29, 9]


def test_a_smaller_budget_is_a_prefix(variant: dict[str, object]) -> None:
    some = points("narrow")
    large = facility_location(some, 60, **variant)  # type: ignore[arg-type]
    small = facility_location(some, 25, **variant)  # type: ignore[arg-type]
    assert np.array_equal(large.indices[:25], small.indices)
    assert np.array_equal(large.gains[:25], small.gains)


def test_a_budget_of_the_class_or_more_takes_all_in_greedy_order(variant: dict[str, object]) -> None:
    # submodlib raises for budget >= n, and the Data-Efficient Augmentation code then crashes on a minority class.
    some = points("narrow")
    for budget in (150, 10**9):
        found = facility_location(some, budget, **variant)  # type: ignore[arg-type]
    assert np.array_equal(np.sort(found.indices), np.arange(150))
    assert (found.weights == 1).all()
    assert np.array_equal(found.indices[:30], facility_location(some, 30, **variant).indices)  # type: ignore[arg-type]


def test_a_budget_of_nothing_and_a_single_point(variant: dict[str, object]) -> None:
    nothing = facility_location(points("narrow"), 0, **variant)  # type: ignore[arg-type]
    assert nothing.indices.tolist() == nothing.weights.tolist() == nothing.gains.tolist() == []
    one = facility_location(points("narrow", 1), 5, **variant)  # type: ignore[arg-type]
    assert (one.indices.tolist(), one.weights.tolist(), one.gains.tolist()) == ([0], [1], [0])


def test_constant_gradients_are_taken_by_index_and_own_themselves(variant: dict[str, object]) -> None:
    for kind in ("narrow", "wide", "all"):
        some = points(kind).take(np.zeros(20, np.int64))
        found = facility_location(some, 4, **variant)  # type: ignore[arg-type]
        assert found.indices.tolist() == [0, 1, 2, 3]
        assert found.weights.tolist() == [17, 1, 1, 1]
        assert found.gains.tolist() == [0, 0, 0, 0]


def test_duplicates_of_two_points(variant: dict[str, object]) -> None:
    # Five at 0 (0, 2, 4, 6, 8), five at 1: the first of each, then what is left by index, each its own medoid.
    some = Points((np.arange(10) % 2)[:, None].astype(np.float32))
    found = facility_location(some, 4, **variant)  # type: ignore[arg-type]
    assert found.indices.tolist() == [0, 1, 2, 3]
    assert found.weights.tolist() == [4, 4, 1, 1]
    assert found.gains.tolist() == [5, 5, 0, 0]


def test_bad_points_and_budgets_are_refused() -> None:
    variant: dict[str, object] = {}
    some = points("all", 10)
    some.vectors[3, 0] = np.nan
    with pytest.raises(ValueError, match="vectors of 1 of 10 points are not finite"):
        facility_location(some, 2, **variant)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        facility_location(some, 0, **variant)  # type: ignore[arg-type]
    some = points("all", 10)
    some.city[3, 0] = np.inf  # type: ignore[index]
    with pytest.raises(ValueError, match="city of 1 of 10"):
        facility_location(some, 2, **variant)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"factors are \(2, 1\), expected float \(3, d\) for 3 points"):
        facility_location(Points(np.ones((3, 1), np.float32), np.ones((2, 1), np.float32)), 2, **variant)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="city_scale is -1"):
        facility_location(Points(np.ones((3, 1), np.float32), None, np.ones((3, 1), np.float32), -1), 2)
    with pytest.raises(ValueError, match="expected one number >= 0 for each class"):
        facility_location(points("narrow"), -1, **variant)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="similarity is 'cosine', expected one of distance, exp"):
        facility_location(points("narrow"), 2, similarity="cosine", **variant)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are 10 points and 9 labels"):
        facility_location_by_class(points("narrow", 10), np.zeros(9, np.int64), np.array([1]))


# --- classes ---------------------------------------------------------------------------------------------------------


def classes(kind: str = "narrow") -> tuple[Points, np.ndarray, np.ndarray]:
    """Four classes of unlike sizes, mixed; class 2 is empty, class 3 has one example, -1 belongs to none."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, -1, 4], [90, 40, 1, 10, 70]))
    return points(kind, len(labels)), labels, np.array([9, 100, 5, 2, 0])


def test_classes_are_solved_on_their_own_and_give_rows_of_the_whole(variant: dict[str, object]) -> None:
    some, labels, budgets = classes()
    found = facility_location_by_class(some, labels, budgets, **variant)  # type: ignore[arg-type]
    assert [len(one.indices) for one in found] == [9, 40, 0, 1, 0]
    for label, one in enumerate(found):
        rows = np.flatnonzero(labels == label)
        alone = facility_location(some.take(rows), int(budgets[label]), **variant)  # type: ignore[arg-type]
        assert np.array_equal(rows[alone.indices], one.indices)
        assert np.array_equal(alone.weights, one.weights)
        np.testing.assert_allclose(one.gains, alone.gains, rtol=1e-12)
        assert one.weights.sum() == (len(rows) if budgets[label] else 0)


@pytest.mark.parametrize(("kind", "memory_bytes"), [("narrow", 1 << 30), ("all", 4 * 50**2), ("all", 0)])
def test_the_result_depends_neither_on_threads_nor_on_how_points_are_given(kind: str, memory_bytes: int) -> None:
    some, labels, budgets = classes(kind)
    alone = facility_location_by_class(some, labels, budgets, threads=1, memory_bytes=memory_bytes)
    for source in (some, some.take):
        for threads in (0, 5):
            found = facility_location_by_class(source, labels, budgets, threads=threads, memory_bytes=memory_bytes)
            for one, other in zip(alone, found, strict=True):
                assert np.array_equal(one.indices, other.indices)
                assert np.array_equal(one.weights, other.weights)
                assert np.array_equal(one.gains, other.gains)


def test_processes_of_one_launch_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    some, labels, budgets = classes()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    pools: list[int] = []
    pool = facility.ThreadPoolExecutor
    monkeypatch.setattr(facility, "ThreadPoolExecutor", lambda workers: (pools.append(workers), pool(workers))[1])
    for launched in ("1", "2", "4"):  # of one worker there is no pool
        monkeypatch.setenv("LOCAL_WORLD_SIZE", launched)
        facility_location_by_class(some, labels, budgets)
    assert pools == [3, 2]  # there are three classes


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    some, labels, budgets = classes()
    some.vectors[np.flatnonzero(labels == 1)[0]] = np.nan
    with pytest.raises(ValueError, match="1 of 40 points are not finite"):
        facility_location_by_class(some.take, labels, budgets, threads=3)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python as it is where numba is not installed."""
    from latebloom.train import selection

    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "latebloom.train.selection.facility_kernels", raising=False)
    monkeypatch.delattr(selection, "facility_kernels", raising=False)
    facility._kernels.cache_clear()
    yield
    facility._kernels.cache_clear()


def test_without_numba_torch_does_it_and_says_so(without_numba: None, caplog: pytest.LogCaptureFixture) -> None:
    some, labels, budgets = classes()
    found = facility_location_by_class(some, labels, budgets)
    assert "numba cannot be imported" in caplog.text
    by_torch = facility_location_by_class(some, labels, budgets, device="cpu")
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(found, by_torch, strict=True))
    matrix = distances(some)
    one = facility_location(some, 20)
    assert worst_shortfall(one, matrix, matrix.max()) <= 1e-6


def test_rows_on_demand_keep_memory_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # No array of n x n, 4 MB here, is made; the largest is 512 rows of a matrix product.
    sizes: list[int] = []

    def watched(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def inner(shape: int | tuple[int, ...], *args: object, **options: object) -> np.ndarray:
            sizes.append(int(np.prod(shape)))
            return make(shape, *args, **options)

        return inner

    monkeypatch.setattr(np, "empty", watched(np.empty))
    monkeypatch.setattr(np, "zeros", watched(np.zeros))
    found = facility_location(points("narrow", 1000), 20, memory_bytes=100_000)
    assert len(found.indices) == 20
    assert max(sizes) <= 64 * 1000


@pytest.mark.slow
def test_city_distances_are_never_written_out_by_coordinate() -> None:
    """LCMat's memory is O(n^2 + n K): all |c_i - c_j| of 400 x 400 x 200 numbers would be 122 MiB.

    By the highest resident size of a process of its own, which includes what numba and torch allocate.
    """
    code = """
import resource
import sys
import numpy as np
import torch
from latebloom.train.selection.facility import Points, facility_location

torch.set_num_threads(1)
unit = 1 if sys.platform == "darwin" else 1024
rng = np.random.default_rng(0)

def select(n, **variant):
    vectors, city = (rng.normal(size=(n, k)).astype(np.float32) for k in (10, 200))
    facility_location(Points(vectors, None, city, 0.1), 30, **variant)

for variant in ({}, {"memory_bytes": 0}, {"device": "cpu"}, {"device": "cpu", "memory_bytes": 0}):
    select(60, **variant)  # what compiling takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    select(400, **variant)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
"""
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    grown = [int(line) for line in result.stdout.split()]
    assert len(grown) == 4
    assert max(grown) < 400 * 400 * 200 * 4 / 4
