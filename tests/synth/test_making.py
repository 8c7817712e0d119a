"""How the images of a part are counted and kept while they are drawn."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from latebloom.synth import making
from latebloom.synth.making import Keeper, Progress
from latebloom.synth.sampling.steps import counted_steps, step_done


def test_a_batch_counts_by_the_share_of_its_steps() -> None:
    counts: list[float] = []
    progress = Progress(counts.append, "a")
    with progress.batch("make 8x8", 4, 8):  # two images of 1 step and two of 3
        for images in (2, 2, 4):
            step_done(images)
    progress.finished(4)
    assert counts == [1, 1, 2]


def test_a_generator_without_steps_counts_by_batch() -> None:
    counts: list[float] = []
    progress = Progress(counts.append, "a")
    with progress.batch("make 8x8", 4, 8):
        pass
    progress.finished(4)
    assert counts == [4]


def test_a_batch_that_is_made_again_in_halves_never_counts_down() -> None:
    counts: list[float] = []
    progress = Progress(counts.append, "a")

    def no_room() -> None:
        with progress.batch("make 8x8", 4, 4):
            step_done(3)  # three quarters, then there is no room
            raise MemoryError

    with pytest.raises(MemoryError):
        no_room()
    for _ in range(2):
        with progress.batch("make 8x8", 2, 2):
            step_done(2)
        progress.finished(2)
    assert counts == [3, 1]


def test_steps_outside_of_a_batch_are_nobodys() -> None:
    step_done(3)
    heard: list[int] = []
    with counted_steps(heard.append):
        step_done(2)
    step_done(1)
    assert heard == [2]


def test_what_first_steps_take_longer_is_known_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_used", set())
    now = [0.0]
    monkeypatch.setattr(making.time, "perf_counter", lambda: now[0])

    def run(progress: Progress, seconds: list[float], images: int) -> None:
        with progress.batch("make 8x8", images, images * len(seconds)):
            for second in seconds:
                now[0] += second
                step_done(images)

    progress = Progress(None, "a")
    run(progress, [60.0, 2.0, 2.0, 3.0], 4)  # compiles for a minute
    assert progress.first_use == 58
    run(progress, [9.0, 2.0, 2.0], 4)
    assert progress.first_use == 58  # of this shape it was compiled before
    run(progress, [12.0, 2.0, 2.0], 3)
    assert progress.first_use == 68
    again = Progress(None, "a")  # the next part of the same process
    run(again, [5.0, 2.0], 4)
    assert again.first_use == 0


def done() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def test_rows_are_handed_on_every_few_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, kept = [0.0], []
    monkeypatch.setattr(making.time, "monotonic", lambda: now[0])
    keeper = Keeper(lambda rows: kept.append(rows.tolist()))
    keeper.add(np.array([4, 1]), [done()])
    assert kept == []
    now[0] = 5.0
    keeper.add(np.array([0]), [done()])
    assert kept == [[0, 1, 4]]
    keeper.add(np.array([7, 8]), [done()])
    keeper.forget(np.array([8]))
    keeper.flush()
    keeper.flush()
    assert kept == [[0, 1, 4], [7]]


def test_rows_are_handed_on_when_their_images_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "KEEP_SECONDS", 0.0)
    order: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        Keeper(lambda _: order.append("kept")).add(np.array([0]), [pool.submit(order.append, "packed")])
    assert order == ["packed", "kept"]
