"""Processes that train classifiers side by side. Apart from the tasks, so that they need not import Prefect."""

import functools
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

__all__ = ["classifier_processes"]


@functools.lru_cache(maxsize=1)
def classifier_processes(workers: int) -> ProcessPoolExecutor:
    """Processes that train classifiers side by side on the CPU; each imports what it needs once."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process, initargs=(threads,))


def _start_process(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A pool's process would wait for work for ever when its parent is killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
