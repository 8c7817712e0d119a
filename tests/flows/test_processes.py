import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from flows import synthesis
from flows.config import CompareConfig
from flows.processes import devices
from flows.run import RunFolder

Tiny = Callable[..., CompareConfig]


def test_one_device_is_this_process() -> None:
    seen: list[int] = []

    def work(number: int, on_images: Callable[[int], None]) -> str:
        on_images(number)
        seen.append(number)
        return "done"

    reported: list[int] = []
    with devices(1, False, reported.append) as place:
        assert place.call(work, 3) == "done"
    assert reported == seen == [3]


def test_a_device_is_free_again_after_a_call_that_failed() -> None:
    def fail(_: Any) -> None:
        raise ValueError("no")

    with devices(1, False, lambda _: None) as place:
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

    with devices(1, False, lambda _: None) as place, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: place.call(work, number), range(50)))
    assert set(most) == {1}


@pytest.mark.slow
def test_three_processes_and_small_batches_make_the_same_data_set(
    finished: RunFolder, pristine: RunFolder, tiny: Tiny, story: SimpleNamespace
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    config = tiny({"generate.processes": 3, "generate.batch_size": 3})
    todo = synthesis.open_parts(finished, config)
    reported: list[int] = []
    with devices(3, False, reported.append) as place, ThreadPoolExecutor(3) as threads:
        jobs = [threads.submit(place.call, synthesis.make_one_part, finished, config, n) for n in todo.parts]
        for job in jobs:
            job.result()
    synthesis.finish_synthetic(finished, config)
    assert sum(reported) == todo.images
    story.same_but_for_rounding(finished, pristine)
