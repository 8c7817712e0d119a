"""Processes that work side by side. Apart from the tasks, so that they need not import Prefect."""

import functools
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

__all__ = ["Devices", "classifier_processes", "devices"]


@functools.lru_cache(maxsize=1)
def classifier_processes(workers: int) -> ProcessPoolExecutor:
    """Processes that train classifiers side by side on the CPU; each imports what it needs once."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process, initargs=(workers,))


class Devices:
    """Where calls are made one at a time each: this process, or several of their own with a GPU each.

    Args:
        count: of processes; with 1, calls are made in this one.
        gpus: whether process i sees GPU i alone. Without, they share the cores.
        on_images: told the number of images that a call, which gets a callback as its last argument, reports.
    """

    def __init__(self, count: int, gpus: bool, on_images: Callable[[int], None]) -> None:
        self._gpus, self._count, self._on_images = gpus, count, on_images
        self._free: queue.SimpleQueue[tuple[int, ProcessPoolExecutor | None]] = queue.SimpleQueue()
        if count == 1:
            self._free.put((0, None))
            return
        self._context = multiprocessing.get_context("spawn")
        self._stopped = False
        self._running: dict[int, ProcessPoolExecutor] = {}
        # Not a queue: it has a lock, which a process that is killed while it reports would keep for ever. Many may
        # write to a pipe without one, since it takes so few bytes at once (POSIX: up to PIPE_BUF).
        self._received, self._reports = self._context.Pipe(duplex=False)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        for place in range(count):
            self._free.put((place, self._start(place)))

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args, on_images)` where a device is free, waiting for one. From any thread.

        A process that dies (killed, or out of memory) is replaced, and the call made once more.

        Raises:
            RuntimeError: that one died too.
        """
        place, pool = self._free.get()
        try:
            if pool is None:
                return function(*args, self._on_images)
            for _ in range(2):
                try:
                    return pool.submit(_reporting, function, args).result()
                except BrokenProcessPool:
                    pool.shutdown(wait=False)
                    if self._stopped:
                        raise
                    pool = self._start(place)
            raise RuntimeError("two processes died making it (killed, or out of memory); see the system's log")
        finally:
            self._free.put((place, pool))

    def _start(self, place: int) -> ProcessPoolExecutor:
        gpu = str(place) if self._gpus else None
        start = (self._count, gpu, self._reports)
        pool = ProcessPoolExecutor(1, mp_context=self._context, initializer=_start_process, initargs=start)
        self._running[place] = pool
        return pool

    def _listen(self) -> None:
        while (images := self._received.recv()) is not None:
            self._on_images(images)

    def stop(self) -> None:
        """Kill the processes, whatever they are at: what is written is whole, and what is not is made again."""
        if self._count > 1:
            self._stopped = True
            for pool in self._running.values():
                for process in list((pool._processes or {}).values()):
                    process.kill()

    def close(self) -> None:
        """End the processes; calls that wait for one are not made any more."""
        for _ in range(self._count):
            _, pool = self._free.get()
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        if self._count > 1:
            self._reports.send(None)
            self._listener.join()
            self._received.close()
            self._reports.close()


@contextmanager
def devices(count: int, gpus: bool, on_images: Callable[[int], None]) -> Iterator[Devices]:
    """`Devices` that are closed at the end of the block, and stopped where it ends with an error or Ctrl-C."""
    opened = Devices(count, gpus, on_images)
    try:
        yield opened
    except BaseException:
        opened.stop()
        raise
    finally:
        opened.close()


_reports: Any = None  # the pipe of this process, when it is one of `Devices`


def _reporting(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args, _reports.send)


def _start_process(side_by_side: int, gpu: str | None = None, reports: Any = None) -> None:
    global _reports
    _reports = reports
    if gpu is not None:
        # Before torch looks for GPUs. A list that the person gave is cut down, not replaced.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(gpu)] if visible else gpu
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // side_by_side))
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A pool's process would wait for work for ever when its parent is killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
