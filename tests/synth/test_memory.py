import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from latebloom.synth.memory import BatchSizes, attempt, in_batches, out_of_memory


class Worker:
    """Doubles rows, as long as no more than `fits` come at once; those in `bad` it cannot do.

    Attributes:
        tried: the rows of each call.
    """

    def __init__(self, fits: int = 10**6, bad: set[int] | None = None) -> None:
        self.fits = fits
        self.bad = bad or set()
        self.tried: list[list[int]] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.tried.append(rows.tolist())
        if len(rows) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if found := self.bad & set(rows.tolist()):
            raise RuntimeError(f"row {min(found)}\n  is  bad")
        return 2 * rows


def work(
    worker: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch: BatchSizes
) -> tuple[list[list[int]], list[int], dict[int, str]]:
    """The batches that came out, all results, and the failures."""
    failures: dict[int, str] = {}
    done = list(in_batches(rows, worker, batch, "make 8x8", failures))
    return [chosen.tolist() for chosen, _ in done], np.concatenate([[], *(made for _, made in done)]).tolist(), failures


def test_rows_go_in_batches_in_their_order() -> None:
    worker = Worker()
    batches, results, failures = work(worker, np.array([5, 3, 9, 0, 7]), BatchSizes(2))
    assert batches == worker.tried == [[5, 3], [9, 0], [7]]
    assert results == [10, 6, 18, 0, 14]
    assert failures == {}
    assert work(worker, np.array([], np.int64), BatchSizes(2)) == ([], [], {})


def test_where_memory_runs_out_batches_are_halved_until_they_fit_and_nothing_is_done_twice() -> None:
    worker, remembered = Worker(fits=3), list[dict[str, int]]()
    batch = BatchSizes(8, remember=lambda sizes: remembered.append(dict(sizes)))
    batches, results, failures = work(worker, np.arange(9), batch)
    assert [len(rows) for rows in worker.tried] == [8, 4, 2, 2, 2, 2, 1]
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert results == [2 * row for row in range(9)]
    assert failures == {}
    assert remembered == [{"make 8x8": 4}, {"make 8x8": 2}]
    assert (batch.of("make 8x8"), batch.of("make 16x16")) == (2, 8)  # other sizes are other matters


def test_a_last_small_batch_that_does_not_fit_halves_what_it_was() -> None:
    worker, batch = Worker(fits=1), BatchSizes(100)
    assert work(worker, np.arange(3), batch)[1] == [0, 2, 4]
    assert [len(rows) for rows in worker.tried] == [3, 1, 1, 1]
    assert batch.of("make 8x8") == 1


def test_sizes_found_before_are_begun_with_and_the_most_still_counts() -> None:
    worker = Worker(fits=3)
    known = {"make 8x8": 2, "make 4x4": 64}
    batch = BatchSizes(8, known)
    work(worker, np.arange(4), batch)
    assert [len(rows) for rows in worker.tried] == [2, 2]
    assert batch.of("make 4x4") == 8
    batch.halve("make 4x4", 8)
    assert known == {"make 8x8": 2, "make 4x4": 64}  # not ours to change


def test_memory_without_room_for_one_image_is_refused_with_advice() -> None:
    worker, failures = Worker(fits=0), dict[int, str]()
    message = (
        r"^not even one image fits into the memory \(make 8x8\); set a smaller sizes\.work_size, set "
        r"generate\.dtype to bfloat16, or free the device$"
    )
    with pytest.raises(MemoryError, match=message):
        list(in_batches(np.arange(4), worker, BatchSizes(4), "make 8x8", failures))
    assert [len(rows) for rows in worker.tried] == [4, 2, 1]
    assert failures == {}


def test_a_call_that_is_filled_up_to_more_images_than_fit_names_the_setting() -> None:
    worker = Worker(fits=3)
    with pytest.raises(MemoryError, match=r"^4 images do not fit .*; set a smaller sample\.deterministic, or"):
        work(worker, np.arange(9), BatchSizes(8, at_once=4))
    assert [len(rows) for rows in worker.tried] == [8, 4]  # 2 and 1 would be filled up to 4


def test_what_did_not_fit_is_freed_before_the_next_try() -> None:
    class Tensors:
        pass

    alive: list[weakref.ref[Tensors]] = []

    def call(rows: np.ndarray) -> np.ndarray:
        assert all(one() is None for one in alive)
        big = Tensors()
        alive.append(weakref.ref(big))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    assert work(call, np.arange(4), BatchSizes(4))[1] == [0, 1, 2, 3]
    assert len(alive) == 6


def test_one_bad_image_fails_alone() -> None:
    worker = Worker(bad={1, 4})
    batches, results, failures = work(worker, np.arange(6), BatchSizes(3))
    assert worker.tried == [[0, 1, 2], [0], [1], [2], [3, 4, 5], [3], [4], [5]]
    assert batches == [[0], [2], [3], [5]]
    assert results == [0, 4, 6, 10]
    assert failures == {1: "RuntimeError: row 1 is bad", 4: "RuntimeError: row 4 is bad"}  # on one line


def test_a_batch_of_one_bad_image_is_a_failure_of_it() -> None:
    worker = Worker(bad={1})
    _, results, failures = work(worker, np.arange(3), BatchSizes(1))
    assert results == [0, 4]
    assert failures == {1: "RuntimeError: row 1 is bad"}
    assert worker.tried == [[0], [1], [2]]


def test_a_batch_that_fails_on_every_image_fails_alone_where_others_went_well() -> None:
    worker = Worker(bad={2, 3, 4, 5})
    batches, results, failures = work(worker, np.arange(7), BatchSizes(2))
    assert batches == [[0, 1], [6]]
    assert results == [0, 2, 12]
    assert sorted(failures) == [2, 3, 4, 5]
    assert worker.tried == [[0, 1], [2, 3], [2], [3], [4, 5], [4], [5], [6]]


def test_rows_that_all_fail_from_the_beginning_are_not_all_tried() -> None:
    worker = Worker(bad=set(range(100)))
    with pytest.raises(RuntimeError, match="row 2"):
        work(worker, np.arange(100), BatchSizes(50))
    assert worker.tried == [list(range(50)), [0], [1], [2]]


def test_a_device_that_is_gone_ends_it_at_once() -> None:
    def call(rows: np.ndarray) -> np.ndarray:
        if rows[0] == 4:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return rows

    with pytest.raises(RuntimeError, match="illegal memory access"):
        work(call, np.arange(8), BatchSizes(2))


def test_stopping_is_no_failure() -> None:
    def stop(rows: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(stop, np.arange(2), BatchSizes(2))


def test_an_attempt_gives_the_result_or_the_error() -> None:
    assert attempt(lambda: 3) == (3, None)
    assert attempt(lambda: None) == (None, None)
    result, error = attempt(lambda: int("x"))
    assert result is None
    assert isinstance(error, ValueError)


def test_running_out_of_memory_is_recognised() -> None:
    for error, memory in [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (MemoryError("Unable to allocate 9 GiB for an array"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough values"), False),
    ]:
        assert out_of_memory(error) == memory


def test_torch_runs_out_of_the_machines_memory_in_those_words() -> None:
    _, error = attempt(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert error is not None
    assert out_of_memory(error)


def test_rows_that_come_one_at_a_time_and_all_fail_end_it_at_the_third() -> None:
    worker = Worker(bad=set(range(9)))
    with pytest.raises(RuntimeError, match="row 2"):
        work(worker, np.arange(9), BatchSizes(1))
    assert worker.tried == [[0], [1], [2]]


def test_rows_that_come_one_at_a_time_fail_alone_once_one_went_well() -> None:
    _, results, failures = work(Worker(bad={0, 1, 3, 4, 5}), np.arange(7), BatchSizes(1))
    assert results == [4, 12]
    assert sorted(failures) == [0, 1, 3, 4, 5]
