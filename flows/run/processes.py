"""Processes that work side by side. Apart from the tasks, so that they need not import Prefect.

Why not `loky` (3.6, tried): the death of one process fails the calls of all others and breaks the pool for good, where
here that one alone is replaced. Its processes go on with their calls after a `kill -9` of the parent. All processes of
a pool have one environment, where here each sees a GPU of its own.
"""

import functools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from latebloom.flows.run.errors import annotate

__all__ = [
    "Devices",
    "classifier_processes",
    "devices",
    "leads",
    "noted",
    "send_note",
    "sends_notes",
    "team_size",
]

T = TypeVar("T")
STOP_SECONDS = 3.0  # less than a command has after Ctrl-C (flows/run/interruption.py)


def team_size() -> int:
    """How many processes `accelerate launch` or torchrun started that train together; 1: this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the one of its team that writes and talks."""
    return team_size() == 1 or os.environ.get("RANK", "0") == "0"


_ONE_POOL = threading.Lock()
Note = Callable[[str, str], None]  # gets what a process is at, and how far it is
_listeners: list[Note] = []


def classifier_processes(workers: int) -> ProcessPoolExecutor:
    """Processes that train classifiers side by side on the CPU; each imports what it needs once.

    One pool for all callers: tasks ask from several threads at once, and a cache alone would let each begin one.
    """
    with _ONE_POOL:
        return classifier_pool(workers)


@functools.lru_cache(maxsize=1)
def classifier_pool(workers: int) -> ProcessPoolExecutor:
    """The pool of `classifier_processes`, which asks for it one thread at a time."""
    context = multiprocessing.get_context("spawn")
    received, notes = context.Pipe(duplex=False)  # a pipe, as in `Devices`
    threading.Thread(target=_hand_on, args=(received,), daemon=True).start()
    start = (workers, None, None, notes)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process, initargs=start)


def _hand_on(received: Any) -> None:
    with suppress(EOFError, OSError):
        while True:
            name, words = received.recv()
            for listener in list(_listeners):
                with suppress(Exception):  # else the processes would wait at a full pipe for ever
                    listener(name, words)


@contextmanager
def noted(listener: Note) -> Iterator[None]:
    """Within the block `listener` gets what the processes of `classifier_processes` say of their work."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Devices:
    """Where calls are made one at a time each: this process, or several of their own.

    Args:
        count: of processes; with 1, calls are made in this one.
        gpus: how many GPUs there are: process i sees GPU i % gpus alone. With 0 they share the cores.
        on_images: gets the number of images that a call reports through the callback that is its last argument.
        apart: a single process is another one too.
    """

    def __init__(self, count: int, gpus: int, on_images: Callable[[float], None], apart: bool = False) -> None:
        self._gpus, self._count, self._on_images = gpus, count, on_images
        self._here = count == 1 and not apart
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(count):
            self._free.put(place)
        if self._here:
            return
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()  # none starts once they are stopped
        self._stopped = False
        self._pools: dict[int, ProcessPoolExecutor] = {}
        # Not a queue: it has a lock, which a process that is killed while it reports would keep for ever. Many may
        # write to a pipe without one, since it takes so few bytes at once (POSIX: up to PIPE_BUF).
        self._received, self._reports = self._context.Pipe(duplex=False)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args, on_images)` where a device is free, waiting for one. From any thread.

        A process that dies (killed, or out of memory), or that meets a CUDA error, after which CUDA does nothing more
        in it, is replaced, and the call made once more.

        Raises:
            RuntimeError: that one died too.
        """
        place = self._free.get()
        try:
            if self._here:
                return function(*args, self._on_images)
            try:
                return self._submit(place, function, args).result()
            except Exception as error:
                if not self._replaced(place, error):
                    raise
            try:
                return self._submit(place, function, args).result()
            except Exception as error:
                if self._replaced(place, error) and isinstance(error, BrokenProcessPool):
                    raise RuntimeError(
                        "two processes died making it (killed, or out of memory); see the system's log"
                    ) from error
                raise
        finally:
            self._free.put(place)

    def _submit(self, place: int, function: Callable[..., T], args: tuple[Any, ...]) -> Future[T]:
        with self._lock:
            if self._stopped:
                raise BrokenProcessPool("the processes were stopped")
            if place not in self._pools:
                gpu = str(place % self._gpus) if self._gpus else None
                start = (self._count, gpu, self._reports)
                self._pools[place] = ProcessPoolExecutor(
                    1, mp_context=self._context, initializer=_start_process, initargs=start
                )
            return self._pools[place].submit(_reporting, function, args)  # it is here that the process starts

    def _replaced(self, place: int, error: Exception) -> bool:
        """Whether after this error a process must be another one; then the next call starts it."""
        if not isinstance(error, BrokenProcessPool) and "CUDA error" not in str(error):
            return False
        with self._lock:
            if self._stopped:
                return False
            pool = self._pools.pop(place)
        _kill(pool)
        pool.shutdown(wait=False)
        return True

    def _listen(self) -> None:
        while (images := self._received.recv()) is not None:
            # Were this thread to end, the processes would wait at a full pipe for ever.
            with suppress(Exception):
                self._on_images(images)

    def stop(self) -> None:
        """End the processes: in good order, so that they keep what they have made, or after a moment in any case."""
        if not self._here:
            with self._lock:
                self._stopped = True
                running = [process for pool in self._pools.values() for process in (pool._processes or {}).values()]
            for process in running:
                process.terminate()
            end = time.monotonic() + STOP_SECONDS
            for process in running:
                process.join(max(0.0, end - time.monotonic()))
                process.kill()

    def close(self) -> None:
        """End the processes; calls that wait for one are not made any more."""
        for _ in range(self._count):
            self._free.get()
        if not self._here:
            for pool in self._pools.values():
                pool.shutdown(cancel_futures=True)
            self._reports.send(None)
            self._listener.join()
            self._received.close()
            self._reports.close()


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


@contextmanager
def devices(count: int, gpus: int, on_images: Callable[[float], None], apart: bool = False) -> Iterator[Devices]:
    """`Devices` that are closed at the end of the block, and stopped where it ends with an error or Ctrl-C."""
    opened = Devices(count, gpus, on_images, apart)
    try:
        yield opened
    except BaseException:
        opened.stop()
        raise
    finally:
        opened.close()


_reports: Any = None  # the pipe of this process, when it is one of `Devices`
_notes: Any = None  # the same, when it trains classifiers
_at_work = False  # within a call of `Devices`


def sends_notes() -> bool:
    """Whether this process trains beside others and says to the one that started it how far it is."""
    return _notes is not None


def send_note(name: str, words: str) -> None:
    """Say to the process that started this one how far something is; empty words: it has ended."""
    with suppress(OSError):  # that process has ended
        _notes.send((name, words))


def _reporting(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    global _at_work
    _at_work = True
    try:
        return annotate(function, *args, _reports.send)
    except KeyboardInterrupt:  # of `_end_in_order`; what was made is kept by now
        os._exit(128 + signal.SIGTERM)
    finally:
        _at_work = False


def _end_in_order(_number: int, _frame: Any) -> None:
    """SIGTERM: what is at work gets the chance to keep what it has made."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one comes where the whole group was sent the first
    if not _at_work:
        os._exit(128 + signal.SIGTERM)
    raise KeyboardInterrupt


def _start_process(side_by_side: int, gpu: str | None = None, reports: Any = None, notes: Any = None) -> None:
    global _reports, _notes
    _reports, _notes = reports, notes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal; the parent ends this one
    signal.signal(signal.SIGTERM, _end_in_order)
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
