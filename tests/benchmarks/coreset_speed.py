"""CPU seconds of exact facility location, against apricot-select, submodlib and the usual ways of writing it.

One process, one thread, process time; every comparison is a ratio within this run. Peers run on one class and are
scaled by the number of classes; what is scaled is said. A peer that cannot be imported is reported as absent. The
memory floor is what the same work would cost if it only moved memory: writing the n x n distances once and streaming
the rows that lazy greedy really reads, both measured here.

    python tests/benchmarks/coreset_speed.py [--repeats 3] [--quick]
"""

import argparse
import importlib.metadata
import math
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from latebloom.train.selection import facility
from latebloom.train.selection.facility import Points, facility_location, facility_location_by_class
from latebloom.train.selection.gradients import varying_curvature

Case = tuple[str, int, int, int]
CASES: list[Case] = [
    ("CIFAR-10, logits", 10, 5000, 10),
    ("Tiny-ImageNet, logits", 200, 500, 200),
    ("one ImageNet class, logits", 1, 1300, 1000),
]
QUICK: list[Case] = [("quick", 3, 120, 10), ("quick, wide", 2, 100, 80)]


def cpu_seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """After one run that is not counted: compilation, first touch of memory."""
    torch.set_num_threads(1)  # apricot's imports put it back to all cores
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return seconds


def said(seconds: list[float]) -> str:
    return f"{np.mean(seconds):.4g} s ({min(seconds):.4g}-{max(seconds):.4g}, n = {len(seconds)})"


def gradients(classes: int, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Residuals p - y as of a half-trained network, (classes * n, width), and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), n)
    logits = rng.normal(size=(len(labels), width)).astype(np.float32) * 2
    logits[np.arange(len(labels)), labels % width] += rng.gamma(2, 2, len(labels)).astype(np.float32)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(labels)), labels % width] -= 1
    return p, labels


def objective(points: np.ndarray, chosen: np.ndarray) -> float:
    return float(
        torch.cdist(torch.from_numpy(points[chosen]).double(), torch.from_numpy(points).double()).amin(0).sum()
    )


def apricot(points: np.ndarray, budget: int) -> np.ndarray:
    from apricot import FacilityLocationSelection

    x = torch.from_numpy(points)
    distance = torch.cdist(x, x).numpy()
    selector = FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy")
    return selector.fit((distance.max() - distance).astype(np.float64)).ranking


def submodlib(points: np.ndarray, budget: int) -> np.ndarray:
    """Its own Euclidean kernel, exp(-distance / width): as the Data-Efficient Augmentation code calls it."""
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(points), mode="dense", data=points, metric="euclidean")
    picks = function.maximize(budget=budget, optimizer="LazyGreedy", stopIfZeroGain=False, show_progress=False)
    return np.array([index for index, _ in picks])


PEERS = {"apricot-select": apricot, "submodlib-py": submodlib}


def memory_floor(n: int, rows_read: int, repeats: int) -> list[float]:
    """Seconds to write n x n float32 into memory that is there, and to read `rows_read` rows of it."""
    matrix = torch.zeros(n, n)

    def move() -> None:
        matrix.fill_(1)
        for _ in range(rows_read // n):
            matrix.sum()
        matrix[: rows_read % n].sum()

    return cpu_seconds(move, repeats)


def in_steps(points: Points, budget: int, repeats: int) -> tuple[list[float], list[float], int]:
    """One class: seconds of the distances, seconds of everything, rows read."""
    kernels = facility._kernels()
    assert kernels is not None, "numba is needed for this measurement"
    n = len(points)
    matrix = np.empty((n, n), np.float32)

    def fill() -> object:
        return facility._measure(kernels, facility._space(kernels, points, "distance"), matrix)

    def everything() -> int:
        return facility._in_memory(kernels, facility._space(kernels, points, "distance"), budget, matrix)[1]

    return cpu_seconds(fill, repeats), cpu_seconds(everything, repeats), everything()


def against_peers(case: Case, fraction: float, repeats: int) -> None:
    name, classes, n, width = case
    points, labels = gradients(classes, n, width)
    budget = round(fraction * n)
    first = points[:n]
    print(f"{name}: {classes} x {n} x {width}, {fraction:.0%}, {budget} a class")
    ours = cpu_seconds(
        lambda: facility_location_by_class(Points(points), labels, np.full(classes, budget), threads=1), repeats
    )
    print(f"  all classes, weights included    {said(ours)}")
    filled, whole, read = in_steps(Points(first), budget, repeats)
    print(f"  one class                        {said(whole)}, of it distances {said(filled)}")
    if n >= 2000:  # a smaller matrix stays in the cache, and what costs is arithmetic
        floor = memory_floor(n, read, repeats)
        print(
            f"  its memory floor                 {said(floor)}: 1 write and {read / n:.1f} reads of {n} x {n}; "
            f"ratio {np.mean(whole) / np.mean(floor):.2f}; with the distances computed rather than written "
            f"{np.mean(whole) / (np.mean(filled) + np.mean(floor)):.2f}"
        )
    best = objective(first, facility_location(Points(first), budget).indices)
    for peer, select in PEERS.items():
        try:
            select(first[:50], 5)
        except ImportError as error:
            print(f"  {peer:<32} absent: {error}")
            continue
        seconds = []
        for _ in range(repeats if n <= 1300 else 1):
            begin = time.process_time()
            picks = select(first, budget)
            seconds.append(time.process_time() - begin)
        print(
            f"  {peer:<32} {said(seconds)} for one class, {np.mean(seconds) * classes:.3g} s for {classes} (scaled); "
            f"ratio {np.mean(seconds) * classes / np.mean(ours):.0f}, "
            f"its objective {objective(first, picks) / best:.4f} of ours"
        )


def last_layer(n: int, width: int, repeats: int) -> None:
    """The gradient of a whole last layer, width x 10: factored, and written out."""
    residual, _ = gradients(1, n, 10)
    features = np.abs(np.random.default_rng(1).normal(size=(n, width))).astype(np.float32)
    with_one = np.concatenate([features, np.ones((n, 1), np.float32)], 1)
    factored, _, _ = in_steps(Points(residual, with_one), n // 10, repeats)
    matrix = torch.empty(n, n)

    def written_out() -> None:
        outer = torch.from_numpy((residual[:, :, None] * with_one[:, None]).reshape(n, -1))
        square = outer.square().sum(1)
        torch.mm(outer, outer.T, out=matrix)
        matrix.mul_(-2).add_(square[:, None]).add_(square).clamp_(min=0).sqrt_()

    dense = cpu_seconds(written_out, 1 if n > 1000 else repeats)
    print(f"last layer {width} x 10, distances of {n}")
    print(f"  factored                         {said(factored)}")
    print(f"  written out                      {said(dense)}, ratio {np.mean(dense) / np.mean(factored):.1f}")


def lcmat(n: int, k: int, repeats: int) -> None:
    """LCMat-S of one class: gradients of the last layer and the k most varying curvatures in city block distance."""
    rng = np.random.default_rng(2)
    residual, _ = gradients(1, n, 10)
    logits = rng.normal(size=(n, 10)).astype(np.float32) * 2
    features = np.abs(rng.normal(size=(n, 512))).astype(np.float32)
    with_one = np.concatenate([features, np.ones((n, 1), np.float32)], 1)
    whole = cpu_seconds(
        lambda: facility_location(Points(residual, with_one, varying_curvature(logits, features, k), 0.05), n // 10),
        repeats,
    )
    city = varying_curvature(logits, features, k)
    chosen = cpu_seconds(lambda: varying_curvature(logits, features, k), repeats)
    tiny = np.zeros((n, 1), np.float32)
    with_city, _, _ = in_steps(Points(tiny, None, city, 0.05), 1, repeats)
    without, _, _ = in_steps(Points(tiny), 1, repeats)
    ours = np.mean(with_city) - np.mean(without)
    few = min(n, 1000)
    c = torch.from_numpy(city)
    cdist = cpu_seconds(lambda: torch.cdist(c, c, p=1), 1)
    broadcast = cpu_seconds(lambda: np.abs(city[:few, None] - city[None, :few]).sum(2), 1)
    scaled = np.mean(broadcast) * (n / few) ** 2
    print(f"LCMat-S, one class of {n}, last layer 512 x 10, K = {k}, 10%")
    print(f"  everything                       {said(whole)}, of it choosing the K dimensions {said(chosen)}")
    print(f"  the city block term              {ours:.4g} s")
    print(f"  torch.cdist(p=1)                 {said(cdist)}, ratio {np.mean(cdist) / ours:.1f}")
    print(f"  broadcasting, {few} scaled to {n}  {scaled:.4g} s, ratio {scaled / ours:.0f}")


def peak_rss() -> float:
    """MiB. Not `ru_maxrss`, which a new process inherits from its parent; NaN where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), math.nan)


def bounded(
    n: int, budget: int, memory_bytes: int, answer: "multiprocessing.Queue[tuple[float, float, float]]"
) -> None:
    torch.set_num_threads(1)
    points, _ = gradients(1, n, 10)
    # Compiled before it is measured.
    facility_location(Points(points[:200]), 5, memory_bytes=0)
    before = peak_rss()
    begin = time.process_time()
    facility_location(Points(points), budget, memory_bytes=memory_bytes)
    seconds = time.process_time() - begin
    answer.put((seconds, before, peak_rss()))


def large_class(n: int, fraction: float, memory_bytes: int) -> None:
    """In a process of its own, so that the peak of its memory is its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=bounded, args=(n, round(fraction * n), memory_bytes, answer))
    process.start()
    seconds, before, peak = answer.get()
    process.join()
    print(
        f"one class of {n} x 10, {fraction:.0%}, matrix bounded to {memory_bytes >> 20} MiB (whole: "
        f"{4 * n * n >> 20} MiB): {seconds:.3g} s (n = 1), peak RSS {before:.0f} -> {peak:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = []
    for package in ("torch", "numpy", "numba", *PEERS):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    print(f"one thread, CPU seconds; {', '.join(versions)}, Python {platform.python_version()}")
    for case in QUICK if options.quick else CASES:
        for fraction in (0.1, 0.3):
            against_peers(case, fraction, options.repeats)
    last_layer(300 if options.quick else 5000, 512, options.repeats)
    lcmat(300 if options.quick else 5000, 100, options.repeats)
    large_class(2000 if options.quick else 50_000, 0.1, (1 if options.quick else 256) << 20)


if __name__ == "__main__":
    main()
