"""Flows and tasks, with Prefect where there is a server that stays, without it elsewhere.

`PREFECT_API_URL`, or the profile in use, names such a server: it shows a run while it works, and keeps its history. A
server that ends with the command shows nobody anything, and costs ten CPU seconds; so a command without one calls the
same functions, with the same retries, and imports no Prefect.
"""

import concurrent.futures
import functools
import os
import random
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from latebloom.flows.run.errors import transient
from latebloom.flows.run.progress import say

if TYPE_CHECKING:
    import prefect
    from prefect.client.schemas.objects import State, TaskRun

__all__ = [
    "Flow",
    "Task",
    "as_completed",
    "flow",
    "in_flow_run",
    "may_pass",
    "run_name",
    "scheduled_start",
    "server_stays",
    "task",
]

P = ParamSpec("P")
R = TypeVar("R")

# Of tasks around what reads or writes storage or the hub. Each wait is drawn at random from less than half to twice of
# these seconds, so that many workers do not come back at once.
_WAITS = (5.0, 10.0, 20.0)
_CLUSTERS = ("dask", "ray")  # runners that take tasks of Prefect alone


class Task(Generic[P, R]):
    """A function as a task: of Prefect within a run of it, else called here, and tried again where an error may pass.

    Attributes:
        fn: the function itself.
    """

    def __init__(self, fn: Callable[P, R], name: str, waits: tuple[float, ...] = _WAITS) -> None:
        functools.update_wrapper(self, fn)
        self.fn, self.name, self.waits = fn, name, waits

    def __call__(self, *args: P.args, **given: P.kwargs) -> R:
        if in_flow_run():
            return self.task(*args, **given)
        for wait in self.waits:
            try:
                return self.fn(*args, **given)
            except Exception as error:
                if not _passes(self._run_name(*args, **given), error):
                    raise
            time.sleep(wait * random.uniform(0.5, 2))  # no image depends on it
        return self.fn(*args, **given)

    def submit(self, *args: P.args, **given: P.kwargs) -> Any:
        """Begin it in a thread; a future, as `concurrent.futures` or Prefect has them."""
        return self.task.submit(*args, **given) if in_flow_run() else _threads().submit(self, *args, **given)

    @functools.cached_property
    def task(self) -> "prefect.Task[P, R]":
        """The same as a task of Prefect."""
        import prefect
        from prefect.cache_policies import NO_CACHE

        make = prefect.task(
            task_run_name=self.name,
            cache_policy=NO_CACHE,
            retries=len(self.waits),
            retry_delay_seconds=list(self.waits),
            retry_jitter_factor=1.0,
            retry_condition_fn=may_pass,
        )
        return make(self.fn)

    def with_waits(self, *waits: float) -> "Task[P, R]":
        """The same with other waits before it is tried again."""
        return Task(self.fn, self.name, waits)

    def _run_name(self, *args: P.args, **given: P.kwargs) -> str:
        names = self.fn.__code__.co_varnames
        return self.name.format(**dict(zip(names, args, strict=False)), **given)


def task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task of a function.

    Args:
        name: of a run of it, with the function's arguments in {braces}.
    """
    return lambda fn: Task(fn, name)


class Flow(Generic[P, R]):
    """A function as a flow: a run on the server where one stays, else a call.

    Attributes:
        fn: the function itself.
        name: of the flow.
    """

    def __init__(self, fn: Callable[P, R], name: str, run_name: str) -> None:
        functools.update_wrapper(self, fn)
        self.fn, self.name, self._run_name = fn, name, run_name

    def __call__(self, *args: P.args, **given: P.kwargs) -> R:
        runners = [getattr(getattr(one, "parts", None), "runner", "") for one in args]
        if server_stays() or any(runner in _CLUSTERS for runner in runners):
            return self.flow(*args, **given)
        return self.fn(*args, **given)

    @functools.cached_property
    def flow(self) -> "prefect.Flow[P, R]":
        """The same as a flow of Prefect."""
        import prefect

        return prefect.flow(name=self.name, flow_run_name=self._run_name)(self.fn)


def flow(name: str, run_name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a flow of a function.

    Args:
        run_name: of a run of it, with the function's arguments in {braces}.
    """
    return lambda fn: Flow(fn, name, run_name)


def as_completed(futures: Iterable[Any]) -> Iterator[Any]:
    """The futures of `Task.submit`, each when it is done."""
    if not in_flow_run():
        return concurrent.futures.as_completed(futures)
    from prefect.futures import as_completed as prefects

    return prefects(list(futures))


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(64, "latebloom")  # they wait for processes that do the work


def in_flow_run() -> bool:
    """Whether this is called within a run of a flow of Prefect."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def run_name() -> str:
    """The name of the run that this is called within; empty: of none."""
    from prefect import runtime

    return runtime.flow_run.name or ""


def scheduled_start() -> datetime | None:
    """When the run that this is called within was to start; None: it is no run."""
    if not in_flow_run():
        return None
    from prefect import runtime

    start: datetime = runtime.flow_run.scheduled_start_time
    return start


def server_stays() -> bool:
    """Whether there is a Prefect server that outlives the command: somebody may look at the run there."""
    if "prefect" not in sys.modules and not _names_a_server():
        return False
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() is not None


def _names_a_server() -> bool:
    """Whether the environment or a file may name one. Prefect takes two seconds to import, so it is asked only then."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = _read(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"))
    if profiles:
        try:
            found = tomllib.loads(profiles)
        except tomllib.TOMLDecodeError:
            return True  # Prefect says what is wrong with it
        active = os.environ.get("PREFECT_PROFILE") or found.get("active", "")
        if "PREFECT_API_URL" in found.get("profiles", {}).get(active, {}):
            return True
    here = {name: _read(Path(name)) for name in (".env", "prefect.toml", "pyproject.toml")}
    return (
        "PREFECT_API_URL" in here[".env"] or "url" in here["prefect.toml"] or "tool.prefect" in here["pyproject.toml"]
    )


def _read(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""


def may_pass(_task: "prefect.Task[Any, Any]", run: "TaskRun", state: "State[Any]") -> bool:
    """Whether a task that failed is tried again; Prefect asks only while it has tries left. Says why."""
    return isinstance(state.data, BaseException) and _passes(run.name, state.data)


def _passes(name: str, error: BaseException) -> bool:
    reason = transient(error)
    if reason:
        say(f"{name}: {reason}, trying again soon: {' '.join(str(error).split())}")
    return bool(reason)
