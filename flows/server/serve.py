"""The process of `latebloom up` that serves all deployments: `python -P -m latebloom.flows.server.serve LIMIT`."""

import asyncio
import contextlib
import sys
from collections.abc import Iterable
from typing import Any

from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.utilities.services import critical_service_loop

from latebloom.flows.server.deployments import runner_deployments

__all__ = ["keep_what_a_person_set", "serve_deployments"]


def keep_what_a_person_set(deployments: Iterable[RunnerDeployment]) -> None:
    """Take out of deployments that the server knows what a person may have changed there since.

    Parameters, schedules, whether these are active, the pause and the limit of a deployment are ours only the first
    time: Prefect would set them back at each start.
    """
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            with contextlib.suppress(ObjectNotFound):
                client.read_deployment_by_name(deployment.full_name)
                deployment.schedules = None
                # Prefect sends what counts as set; an empty list of schedules would delete a person's.
                deployment.model_fields_set.difference_update(
                    {"parameters", "schedules", "paused", "concurrency_limit", "concurrency_options"}
                )


class _Serve(Runner):
    """What `prefect.serve` of Prefect 3.8 runs, with two of its faults fixed."""

    def handle_sigterm(self, *_: Any, **__: Any) -> None:
        """Wait for the runs to end, and say so of them.

        Prefect's only leaves: it forgets to await, and the runs die unreported when they next log a line.
        """
        self._ending = asyncio.get_running_loop().create_task(self.astop())

    async def _handle_cancellation_observer_failure(self) -> None:
        """Go on looking for runs to cancel when the server was away; Prefect's gives that up for good."""
        observer = self._cancelling_observer
        assert observer is not None
        await asyncio.sleep(observer.polling_interval)
        polling = critical_service_loop(observer._check_for_cancelled_flow_runs, observer.polling_interval)
        observer._polling_task = asyncio.create_task(polling)
        observer._polling_task.add_done_callback(observer._handle_polling_task_done)


def serve_deployments(limit: int) -> None:
    """Serve all deployments from this process until SIGTERM, which cancels the runs that it started.

    Args:
        limit: flow runs at a time, at least 1.
    """
    deployments = runner_deployments()
    keep_what_a_person_set(deployments)
    runner = _Serve(limit=limit, pause_on_shutdown=False)
    for deployment in deployments:
        runner.add_deployment(deployment)
    asyncio.run(runner.start())


if __name__ == "__main__":
    serve_deployments(int(sys.argv[1]))
