"""What a runner costs beside the work: milliseconds a part that does nothing, and seconds until the first one is done.

    python tests/benchmarks/runner_overhead.py            threads, processes, dask, ray
    python tests/benchmarks/runner_overhead.py threads    one of them

With a Prefect server of its own on a free port. Read the ratios: the times are those of this machine.
"""

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from served import Server

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.progress import Meter
from latebloom.flows.runners import parts as runners
from latebloom.flows.runners.queue import PartQueue
from latebloom.flows.stages import synthesis

PARTS = 40
RUNNERS = ("threads", "processes", "dask", "ray")


def nothing(*_: Any) -> dict[str, Any]:
    """Instead of making a part."""
    return {"rows": 0, "states": {}, "failures": {}, "cost": {"seconds": 0.0}}


@task(task_run_name="make part {number}", cache_policy=NO_CACHE)
def nothing_there(run: Path, config: CompareConfig, number: int) -> dict[str, Any]:
    """The same for the workers of Dask and Ray, which are sent it whole."""
    return {"rows": 0, "states": {}, "failures": {}, "cost": {"seconds": 0.0}}


@flow
def job(run: Path, config: CompareConfig) -> list[float]:
    """When each part was there, in seconds since the begin."""
    begin, done = time.perf_counter(), []
    for _, result in runners._RUNNERS[config.parts.runner](
        run, config, PartQueue(range(PARTS)), Meter("", 0, "images")
    ):
        result()
        done.append(time.perf_counter() - begin)
    return done


def measure(runner: str) -> None:
    """Print a line of the table."""
    config = CompareConfig(parts={"runner": runner}, generate={"processes": 1}, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        done = job(Path(folder), config)
    steps = np.array([later - before for before, later in pairwise(done)]) * 1000
    low, middle, high = np.percentile(steps, [25, 50, 75])
    print(f"{runner:<10} {done[0]:>8.1f} {middle:>12.0f} {low:>8.0f} to {high:.0f} {len(steps):>6}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        server = Server(Path(home))
        server.start()
        try:
            with (
                server.used(),
                mock.patch.object(synthesis, "make_one_part", nothing),
                mock.patch.object(runners, "make_part_there", nothing_there),
            ):
                print(f"{'runner':<10} {'first, s':>8} {'ms a part':>12} {'quartiles':>12} {'n':>6}")
                for name in sys.argv[1:] or RUNNERS:
                    measure(name)
        finally:
            server.kill()
