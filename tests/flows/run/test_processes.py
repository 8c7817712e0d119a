import functools
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import processes
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.processes import devices
from latebloom.flows.stages import synthesis

Tiny = Callable[..., CompareConfig]


def test_one_device_is_this_process() -> None:
    seen: list[int] = []

    def work(number: int, on_images: Callable[[int], None]) -> str:
        on_images(number)
        seen.append(number)
        return "done"

    reported: list[int] = []
    with devices(1, 0, reported.append) as place:
        assert place.call(work, 3) == "done"
    assert reported == seen == [3]


def test_a_device_is_free_again_after_a_call_that_failed() -> None:
    def fail(_: Any) -> None:
        raise ValueError("no")

    with devices(1, 0, lambda _: None) as place:
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                place.call(fail)


def test_one_device_makes_one_call_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int, _: Any) -> None:
        inside.append(number)
        most.append(len(inside))
        inside.remove(number)

    with devices(1, 0, lambda _: None) as place, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: place.call(work, number), range(50)))
    assert set(most) == {1}


# ------------------------------------------------------------------------------------------------- processes


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The GPU that each process was started for. None really is: calls are made in this one."""
    gpus: list[str | None] = []

    class FakePool:
        _processes = None

        def __init__(self, *_: Any, initargs: tuple[int, str | None, Any], **__: Any) -> None:
            gpus.append(initargs[1])

        def submit(self, _: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> SimpleNamespace:
            return SimpleNamespace(result=lambda: function(*args))

        def shutdown(self, **_: Any) -> None:
            pass

    monkeypatch.setattr(processes, "ProcessPoolExecutor", FakePool)
    return gpus


@pytest.mark.parametrize(("gpus", "seen"), [(0, [None] * 5), (2, ["0", "1", "0", "1", "0"]), (8, list("01234"))])
def test_processes_share_the_gpus_there_are(gpus: int, seen: list[str | None], started: list[str | None]) -> None:
    with devices(5, gpus, lambda _: None) as place:
        for _ in range(7):
            place.call(int)
    assert started == seen


@pytest.mark.parametrize(
    ("visible", "gpu", "left"), [(None, "1", "1"), ("", "1", "1"), ("4,6,7", "1", "6"), ("GPU-a,GPU-b", "0", "GPU-a")]
)
def test_a_list_of_gpus_that_the_person_gave_is_cut(
    visible: str | None, gpu: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monkeypatch.setattr(processes.os, "environ", environment)
    monkeypatch.setattr(processes.signal, "signal", lambda *_: None)
    monkeypatch.setattr(processes, "_die_with_parent", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    processes._start_process(1, gpu)
    assert environment["CUDA_VISIBLE_DEVICES"] == left


CUDA = RuntimeError("CUDA error: an illegal memory access was encountered")
DEAD = BrokenProcessPool("A process was terminated abruptly")
MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


def work(errors: list[Exception]) -> str:
    """Fails with these, one a time, then no more."""
    if errors:
        raise errors.pop(0)
    return "done"


@pytest.mark.parametrize("error", [CUDA, DEAD], ids=["cuda", "dead"])
def test_after_a_death_or_a_cuda_error_a_new_process_is_asked(error: Exception, started: list[str | None]) -> None:
    with devices(2, 0, lambda _: None) as place:
        assert place.call(work, [error]) == "done"
        assert len(started) == 2


@pytest.mark.parametrize(
    ("errors", "message", "ended"),
    [([CUDA, CUDA], "CUDA error", 2), ([CUDA, DEAD], "two processes died", 2), ([MEMORY], "CUDA out of memory", 0)],
    ids=["cuda twice", "dead at last", "memory"],
)
def test_what_fails_again_or_by_itself_is_the_callers_and_no_such_process_is_used_again(
    errors: list[Exception], message: str, ended: int, started: list[str | None]
) -> None:
    with devices(2, 0, lambda _: None) as place:
        with pytest.raises(RuntimeError, match=message):
            place.call(work, list(errors))
        for _ in range(4):
            assert place.call(work, []) == "done"
    assert len(started) == 2 + ended


def test_no_process_starts_once_they_are_stopped(started: list[str | None]) -> None:
    with devices(2, 0, lambda _: None) as place:

        def dies_of_it() -> None:
            place.stop()
            raise DEAD

        for function in (dies_of_it, int):
            with pytest.raises(BrokenProcessPool):
                place.call(function)
    assert len(started) == 1


def test_a_bar_that_fails_does_not_end_the_thread_that_listens() -> None:
    seen: list[int] = []

    def on_images(images: int) -> None:
        seen.append(images)
        raise OSError("no terminal")

    with devices(2, 0, on_images) as place:
        for images in (1, 2):
            place._reports.send(images)
        end = time.monotonic() + 30
        while len(seen) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert seen == [1, 2]


@pytest.mark.slow
def test_three_processes_and_small_batches_make_the_same_data_set(
    finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: SimpleNamespace
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    config = tiny({"generate.processes": 3, "generate.batch_size": 3})
    todo = synthesis.open_parts(finished, config)
    reported: list[int] = []
    with devices(3, 0, reported.append) as place, ThreadPoolExecutor(3) as threads:
        jobs = [threads.submit(place.call, synthesis.make_one_part, finished, config, n) for n in todo.parts]
        for job in jobs:
            job.result()
    synthesis.finish_synthetic(finished, config)
    assert sum(reported) == todo.images
    story.same_but_for_rounding(finished, pristine)


def test_threads_that_ask_at_once_get_one_pool_of_classifier_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Slow:
        def __init__(self, workers: int, **_: Any) -> None:
            begun.append(workers)
            time.sleep(0.05)  # the others ask meanwhile

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Slow)
    fresh = functools.lru_cache(maxsize=1)(processes.classifier_pool.__wrapped__)
    monkeypatch.setattr(processes, "classifier_pool", fresh)  # not the pool of the other tests
    with ThreadPoolExecutor(4) as threads:
        pools = list(threads.map(processes.classifier_processes, [2] * 4))
    assert begun == [2]
    assert len({id(pool) for pool in pools}) == 1
