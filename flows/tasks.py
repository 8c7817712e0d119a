"""Thin Prefect tasks around the stages. Paths and configs go in, small values come out, never arrays.

Stages skip themselves by digest, so Prefect's cache stays off: it would not see a changed file or changed code.
"""

import errno
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import format_exception
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed

from flows import coreset, planning, stages, summary, synthesis, training
from flows.config import CompareConfig
from flows.coreset import CoresetRunConfig
from flows.inputs import device_of, forget_generator
from flows.processes import Devices, classifier_processes, devices
from flows.progress import Meter
from flows.run import RunFolder

__all__ = [
    "check_inputs",
    "finish_synthetic",
    "make_part",
    "make_parts",
    "pick_coreset",
    "plan_images",
    "retrain_arm",
    "select_examples",
    "train_early",
    "write_report",
]


@task(task_run_name="check inputs", cache_policy=NO_CACHE)
def check_inputs(config: CompareConfig, kind: str) -> None:
    """Refuse what cannot work before anything is trained."""
    stages.check_inputs(config, kind)


@task(task_run_name="train early classifiers", cache_policy=NO_CACHE)
def train_early(run: Path, config: CompareConfig) -> None:
    """Train every seed's classifier to the separating epoch."""
    training.train_early(RunFolder(run), config)


@task(task_run_name="select slow examples", cache_policy=NO_CACHE)
def select_examples(run: Path, config: CompareConfig) -> None:
    """Choose the examples to augment from the early outputs."""
    stages.select_examples(RunFolder(run), config)


@task(task_run_name="plan images", cache_policy=NO_CACHE)
def plan_images(run: Path, config: CompareConfig) -> None:
    """Write the plan and say what it will cost."""
    planning.plan_images(RunFolder(run), config)


@task(task_run_name="make part {number}", cache_policy=NO_CACHE)
def make_part(run: Path, config: CompareConfig, number: int, place: Any) -> dict[str, Any]:
    """Make one part of the synthetic data set: minutes of work, kept once it is done. Its record."""
    assert isinstance(place, Devices)
    synthesis.check_space(RunFolder(run), config, number)
    return place.call(synthesis.make_one_part, RunFolder(run), config, number)


# What ends the job at once, as more of it would meet the same: the folder takes nothing more.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_FAILURES_IN_A_ROW = 3


def make_parts(run: Path, config: CompareConfig, parts: list[int], bar: Meter) -> None:
    """Make parts, on every device one at a time. What fails leaves the others alone.

    Raises:
        Partial: some images, or whole parts, could not be made.
        OSError, MemoryError: nothing more can be made: a full disk, a folder that is read-only, too little memory.
        Exception: that of the third part to fail in a row; it is no fault of the parts.
    """
    failed: dict[str, str] = {}
    in_a_row = 0
    count, on_gpu = min(planning.generator_processes(config), len(parts)), device_of(config.device).type == "cuda"
    if count > 1:
        forget_generator()  # each process loads its own
    with devices(count, torch.cuda.device_count() if on_gpu else 0, bar.add) as place:
        for number, result in _made(run, config, parts, place, count):
            try:
                record = result()
            except Exception as error:
                in_a_row += 1
                ends = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
                if ends or in_a_row == _FAILURES_IN_A_ROW:
                    raise
                # The part's own fault: the others go on, and it is told in the end.
                failed[f"part {number}"] = f"{type(error).__name__}: {error}\n{''.join(format_exception(error))}"
            else:
                in_a_row = 0
                bar.add(0, record["states"])
                failed |= record["failures"]
    synthesis.check_failures(RunFolder(run), config, failed)


def _made(
    run: Path, config: CompareConfig, parts: list[int], place: Devices, count: int
) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Each part when it is done, with what gives its record or raises what went wrong."""
    if count == 1:  # in this very thread, where Ctrl-C ends it at once
        for number in parts:
            yield number, functools.partial(make_part, run, config, number, place)
        return
    rest = list(reversed(parts))
    flying: dict[PrefectFuture[dict[str, Any]], int] = {}
    while rest or flying:
        while rest and len(flying) < count:
            number = rest.pop()
            flying[make_part.submit(run, config, number, place)] = number
        future = next(as_completed(list(flying)))
        yield flying.pop(future), future.result


@task(task_run_name="finish the synthetic data set", cache_policy=NO_CACHE)
def finish_synthetic(run: Path, config: CompareConfig) -> str:
    """Write the manifest, last; its digest."""
    return synthesis.finish_synthetic(RunFolder(run), config)


@task(task_run_name="retrain {arm} with {optimizer}", cache_policy=NO_CACHE)
def retrain_arm(run: Path, config: CompareConfig, arm: str, optimizer: str) -> None:
    """Train one arm with one optimizer for all seeds, in a process of its own where the config has several."""
    if config.workers == 1:
        training.retrain_arm(RunFolder(run), config, arm, optimizer)
    else:
        classifier_processes(config.workers).submit(
            training.retrain_arm, RunFolder(run), config, arm, optimizer
        ).result()


@task(task_run_name="pick a coreset", cache_policy=NO_CACHE)
def pick_coreset(out: Path, config: CoresetRunConfig) -> dict[str, Any]:
    """Pick a coreset and write it; what its record says."""
    return coreset.pick_coreset(RunFolder(out), config)


@task(task_run_name="write the report", cache_policy=NO_CACHE)
def write_report(run: Path, config: CompareConfig) -> str:
    """Write report.json and report.html; the path of the latter."""
    return str(summary.write(RunFolder(run), config))
