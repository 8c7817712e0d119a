"""`latebloom WORD...` without Prefect, whatever the environment names: flows and tasks are plain functions.

Also as processes that fork from a server which has imported everything before, so that one starts in a moment. A module
of its own, since those processes import it by name.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from latebloom.flows import tasks
from latebloom.flows.artifacts import show
from latebloom.flows.cli import app
from latebloom.flows.run import processes
from latebloom.flows.runners import engine, locks
from latebloom.flows.runners import parts as runners

__all__ = ["context", "start_command", "start_work", "unserve"]

# Imported once for all processes. Not this module: the server's path is not that of the tests.
_IMPORTED = [
    "latebloom.flows.pipeline",
    "diffusers.models.unets.unet_2d",
    "diffusers.schedulers.scheduling_ddpm",
    "sklearn.datasets",
]
_start_process = processes._start_process


def unserve(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Take Prefect out of the flows. `set_attribute` is `setattr`, or pytest's `monkeypatch.setattr`."""
    for module in (engine, locks, show):
        set_attribute(module, "server_stays", lambda: False)
    for module in (tasks, runners):
        for value in vars(module).values():
            if isinstance(value, engine.Task):
                set_attribute(value, "waits", ())  # nothing is tried again
    set_attribute(app, "prepare_prefect", lambda: None)


def context() -> Any:
    """Of processes that fork from the server."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(_IMPORTED)
    return made


def start_command(words: list[str], log: Path, operation: int = 0) -> Any:
    """Start `latebloom WORD...` in a process, and a process group, of its own; its pid is the group's.

    Args:
        log: file that standard output and error are added to.
        operation: the process kills itself before its n-th change of a file below --out; 0: it does not.
    """
    forks = context()
    multiprocessing.forkserver.ensure_running()
    server: Any = multiprocessing.forkserver._forkserver
    process = forks.Process(target=_command, args=(words, log, operation, server._forkserver_address))
    process.start()
    return process


def start_work(work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Start `work(*args, reached)` in a process of its own; the process, and the event `reached` that it sets."""
    forks = context()
    reached = forks.Event()
    process = forks.Process(target=_work, args=(work, *args, reached))
    process.start()
    return process, reached


def _work(work: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    work(*args)


def _command(words: list[str], log: Path, operation: int, server: str) -> None:
    os.setpgid(0, 0)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    unserve(setattr)
    # The processes that this one starts fork from the same server.
    known: Any = multiprocessing.forkserver._forkserver
    known._forkserver_address, known.ensure_running = server, lambda: None
    ours: Any = processes
    ours.multiprocessing = SimpleNamespace(get_context=lambda _: multiprocessing.get_context("forkserver"))
    ours._start_process = _start_in_group
    if operation:
        _die_at(operation, words[words.index("--out") + 1])
    sys.argv = ["latebloom", *words]
    app.main()


def _start_in_group(*args: Any) -> None:
    parent: Any = multiprocessing.parent_process()
    try:
        os.setpgid(0, parent.pid)
    except OSError:
        os._exit(1)  # the parent was killed meanwhile
    _start_process(*args)


def _die_at(operation: int, folder: str) -> None:
    """Kill this process before its n-th change of a file below a folder."""
    left = operation

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            changes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in ("os.rename", "os.remove", "os.chmod", "os.mkdir")
        if changes and str(args[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
