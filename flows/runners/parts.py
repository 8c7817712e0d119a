"""Where the parts of a plan are made: in this process, in others, on Dask, on Ray, or as runs of a deployment.

A part is decided by its rows of the plan, so whoever makes it, the data set is the same.
"""

import errno
import importlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from traceback import format_exception
from types import ModuleType
from typing import TYPE_CHECKING, Any

from latebloom.data.store import as_path, not_installed
from latebloom.data.synthetic.folder import PartRecord
from latebloom.flows.config.compare import CompareConfig, PartsConfig
from latebloom.flows.run.budget import Deadline, Unfinished
from latebloom.flows.run.folder import Partial, RunFolder, Unusable, read_config
from latebloom.flows.run.processes import Devices, devices
from latebloom.flows.run.progress import Meter, meter
from latebloom.flows.runners.engine import task
from latebloom.flows.runners.queue import Made, PartQueue
from latebloom.flows.stages import synthesis
from latebloom.flows.stages.context import forget_models
from latebloom.flows.stages.loaders import device_of
from latebloom.flows.stages.planning import generator_processes

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

__all__ = ["make_numbered", "make_part", "make_part_there", "make_parts"]


@task("make part {number}")
def make_part(run: Path, config: CompareConfig, number: int, place: Any) -> PartRecord:
    """Make one part of the synthetic data set: minutes of work, kept once it is done. Its record."""
    assert isinstance(place, Devices)
    return place.call(synthesis.make_one_part, RunFolder(run), config, number)


@task("make part {number}")
def make_part_there(run: Path, config: CompareConfig, number: int) -> PartRecord:
    """The same in a worker of Dask or Ray, where it is the process that has a device."""
    return _make_there(run, config, number)


_one_at_a_time = threading.Lock()  # a Dask worker may have several threads, and one device


def _make_there(run: Path, config: CompareConfig, number: int) -> PartRecord:
    with _one_at_a_time, slots(config.parts.limit, 1):
        return synthesis.make_one_part(RunFolder(run), config, number, _uncounted)


def slots(name: str, count: int, timeout_seconds: float | None = None) -> AbstractContextManager[None]:
    """Slots of a concurrency limit, as `limits.slots`; without a name none, and no Prefect is imported."""
    if not name:
        return nullcontext()
    from latebloom.flows.runners import limits

    return limits.slots(name, count, timeout_seconds)


def _uncounted(_images: float) -> None:
    """Images are counted where the job is, by finished parts."""


# Errors of a folder that takes nothing more. They end the job at once, since every other part would meet the same.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_FAILURES_IN_A_ROW = 3


def make_parts(
    run: Path, config: CompareConfig, parts: list[int], bar: Meter, deadline: Deadline | None = None
) -> None:
    """Make parts on the runner that the config names. What fails leaves the others alone.

    Args:
        deadline: no part begins that would end after it, as long as the longest so far took; None: there is none.

    Raises:
        Partial: some images, or whole parts, could not be made.
        Unusable: the generator makes nothing that can be used.
        Unfinished: the deadline came first.
        ValueError: the runner is not installed, or cannot run.
        OSError, MemoryError: nothing more can be made: a full disk, a folder that is read-only, too little memory.
        Exception: that of the third part to fail in a row; it is no fault of the parts.
    """
    queue = PartQueue(parts, deadline)
    failed = _collected(_RUNNERS[config.parts.runner](run, config, queue, bar), config, queue, bar)
    synthesis.check_failures(RunFolder(run), config, failed)
    if queue.left:
        raise Unfinished(
            f"{len(parts) - len(queue.left)} of {len(parts)} missing parts were made in the time; "
            "the same again makes the rest"
        )


def make_numbered(run: str, numbers: list[int], limit: str) -> None:
    """Make parts of a run's plan on this host: the work of the `generate-part` deployment.

    The run folder's own config decides what is made. Parts that are there stay. Images that could not be made are in
    the records of their parts, where the job that asked for them finds them.

    Args:
        run: the run folder, path or URL.
        numbers: of the parts, from 0.
        limit: name of the concurrency limit that is held meanwhile; empty: none.

    Raises:
        ValueError: no run folder, no plan in it, or no such part.
        Partial: whole parts could not be made.
    """
    folder = RunFolder(as_path(run))
    config = read_config(folder.path)
    here = config.model_copy(
        update={"parts": PartsConfig(limit=limit), "generate": config.generate.model_copy(update={"processes": 0})}
    )
    todo = synthesis.parts_left(folder, here, numbers)
    if not todo.parts:
        return
    queue = PartQueue(todo.parts)
    with meter("generate", todo.images, "images", todo.images_done, in_parts=True) as bar:
        failed = _collected(_where_it_is(folder.path, here, queue, bar), here, queue, bar)
    whole = [f"{name}: {error.partition(chr(10))[0]}" for name, error in failed.items() if name.startswith("part ")]
    if whole:
        raise Partial(f"{len(whole)} of {len(numbers)} parts could not be made; the first is {whole[0]}")


def _collected(made: Made, config: CompareConfig, queue: PartQueue, bar: Meter) -> dict[str, str]:
    """Count the images that are made; returns the errors of those that could not be, by item id or part."""
    failed: dict[str, str] = {}
    in_a_row, first = 0, True
    with closing(made):  # an error here ends the processes, or cancels the runs
        for number, result in made:
            try:
                record = result()
            except Exception as error:
                in_a_row += 1
                full = isinstance(error, OSError) and error.errno in _NO_ROOM
                if full or isinstance(error, MemoryError | Unusable) or in_a_row == _FAILURES_IN_A_ROW:
                    raise
                # The part's own fault: the others go on, and its error is reported at the end.
                failed[f"part {number}"] = f"{type(error).__name__}: {error}\n{''.join(format_exception(error))}"
            else:
                in_a_row = 0
                if first:
                    synthesis.warn_of_unusable(record, config)
                first = False
                queue.took(record.seconds)
                bar.add(0, record.states)
                failed |= record.failures
    return failed


def _where_it_is(run: Path, config: CompareConfig, queue: PartQueue, bar: Meter) -> Made:
    """One process a GPU, or as many as were asked for; where that is one, this process."""
    return _on_devices(run, config, queue, bar, generator_processes(config))


def _in_this_process(run: Path, config: CompareConfig, queue: PartQueue, bar: Meter) -> Made:
    return _on_devices(run, config, queue, bar, 1)


def _in_processes(run: Path, config: CompareConfig, queue: PartQueue, bar: Meter) -> Made:
    return _on_devices(run, config, queue, bar, generator_processes(config), apart=True)


def _on_devices(
    run: Path, config: CompareConfig, queue: PartQueue, bar: Meter, count: int, apart: bool = False
) -> Made:
    if queue.is_over:
        return
    count = min(count, len(queue.left))
    gpus = _gpus(config)
    if count > 1 or apart:
        forget_models()  # each process loads its own
    with ExitStack() as held:
        try:
            held.enter_context(slots(config.parts.limit, count, queue.seconds_left))
        except TimeoutError:  # the deadline came while others had them: nothing is begun
            return
        place = held.enter_context(devices(count, gpus, bar.add, apart))
        if count == 1:
            yield from _one_by_one(run, config, queue, place)
        else:
            yield from _side_by_side(lambda number: make_part.submit(run, config, number, place), count, queue)


def _gpus(config: CompareConfig) -> int:
    """How many GPUs of this host a run may use."""
    import torch

    return torch.cuda.device_count() if device_of(config.device).type == "cuda" else 0


def _one_by_one(run: Path, config: CompareConfig, queue: PartQueue, place: Devices) -> Made:
    """In this very thread, where Ctrl-C ends it at once."""
    while taken := queue.take():
        yield taken[0], partial(make_part, run, config, taken[0], place)


def _side_by_side(submit: "Callable[[int], PrefectFuture[PartRecord]]", width: int, queue: PartQueue) -> Made:
    """So many parts at a time; each when it is done."""
    flying: dict[Any, int] = {}
    done: SimpleQueue[Any] = SimpleQueue()
    while True:
        while len(flying) < width and (taken := queue.take()):
            future = submit(taken[0])
            flying[future] = taken[0]
            future.add_done_callback(done.put)
        if not flying:
            return
        future = done.get()
        yield flying.pop(future), future.result


def _on_dask(run: Path, config: CompareConfig, queue: PartQueue, bar: Meter) -> Made:
    """In the workers of a Dask cluster, one part at a time each."""
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")  # Dask logs every connection, also in its workers
    prefect_dask, distributed = _installed("prefect_dask", "dask"), _installed("distributed", "dask")
    count, address = min(generator_processes(config), len(queue.left)), config.parts.address
    if address:
        runner = prefect_dask.DaskTaskRunner(address=address)
    else:
        forget_models()
        runner = prefect_dask.DaskTaskRunner(
            cluster_class=distributed.SpecCluster, cluster_kwargs=_local_dask(distributed, count, _gpus(config))
        )
    with runner:
        workers = len(runner.client.scheduler_info(n_workers=-1)["workers"])
        width = config.generate.processes or max(1, workers)
        yield from _on_workers(run, config, queue, bar, runner, width)


def _local_dask(distributed: ModuleType, count: int, gpus: int) -> dict[str, Any]:
    """A Dask cluster of `count` processes on this host; it is heard of on the loopback interface alone."""
    nobody = {"host": "127.0.0.1", "dashboard": False}
    threads = max(1, (os.cpu_count() or 1) // count)
    workers = {}
    for place in range(count):
        env = {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": _gpu(place % gpus)} if gpus else {})
        options = {"nthreads": 1, "memory_limit": 0, "env": env, **nobody}
        workers[place] = {"cls": distributed.Nanny, "options": options}
    scheduler = {"cls": distributed.Scheduler, "options": {"port": 0, "dashboard_address": ":0", **nobody}}
    return {"workers": workers, "scheduler": scheduler}


def _gpu(number: int) -> str:
    """A GPU's name by its place among those that this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def _on_ray(run: Path, config: CompareConfig, queue: PartQueue, bar: Meter) -> Made:
    """In the workers of a Ray cluster, one part at a time and, where it has GPUs, one GPU each."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports on its users where nobody says otherwise
    prefect_ray, ray = _installed("prefect_ray", "ray"), _installed("ray", "ray")
    address = config.parts.address
    if address:
        runner = prefect_ray.RayTaskRunner(address=address)
    else:
        count = min(generator_processes(config), len(queue.left))
        forget_models()
        runner = prefect_ray.RayTaskRunner(
            init_kwargs={
                "num_cpus": count,
                "include_dashboard": False,
                "log_to_driver": False,
                "logging_level": "ERROR",
            }
        )
    with runner:
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0)) if config.device != "cpu" else 0
        with prefect_ray.context.remote_options(num_cpus=1, num_gpus=1 if gpus else 0):
            width = config.generate.processes or gpus or int(has["CPU"])
            yield from _on_workers(run, config, queue, bar, runner, width)


def _on_workers(
    run: Path, config: CompareConfig, queue: PartQueue, bar: Meter, runner: "TaskRunner[Any]", width: int
) -> Made:
    def submit(number: int) -> "PrefectFuture[PartRecord]":
        future: PrefectFuture[PartRecord] = runner.submit(
            make_part_there.task, {"run": run, "config": config, "number": number}
        )
        return future

    for number, result in _side_by_side(submit, width, queue):
        yield number, partial(_counted, result, bar)


def _counted(result: Callable[[], PartRecord], bar: Meter) -> PartRecord:
    record = result()
    bar.add(record.rows)
    return record


def _installed(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ValueError(not_installed(f"the runner {extra}", f"prefect-{extra}", extra)) from None


def _as_runs(run: Path, config: CompareConfig, queue: PartQueue, bar: Meter) -> Made:
    """As runs of a deployment, made by whatever workers its work pool has."""
    from latebloom.flows.runners.deployment_runs import PartRuns

    for number, result in PartRuns(RunFolder(run), config).made(queue):
        yield number, partial(_counted, result, bar)


_RUNNERS: dict[str, Callable[[Path, CompareConfig, PartQueue, Meter], Made]] = {
    "auto": _where_it_is,
    "threads": _in_this_process,
    "processes": _in_processes,
    "dask": _on_dask,
    "ray": _on_ray,
    "runs": _as_runs,
}
