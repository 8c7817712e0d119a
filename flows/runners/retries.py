"""Retries of tasks: after an error of the network or of storage a task waits and tries again, after others not."""

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from latebloom.flows.run.errors import transient
from latebloom.flows.run.progress import say

__all__ = ["RETRIES", "may_pass"]


def may_pass(_task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed is tried again; Prefect asks only while it has tries left. Says why."""
    error = state.data
    reason = transient(error) if isinstance(error, BaseException) else ""
    if reason:
        say(f"{run.name}: {reason}, trying again soon: {' '.join(str(error).split())}")
    return bool(reason)


# For `@task(...)` around what reads or writes storage or the hub. The waits are about 5, 10 and 20 seconds, each drawn
# at random from less than half to twice of that, so that many workers do not come back at once.
RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 1.0,
    "retry_condition_fn": may_pass,
}
