"""One job a GPU: slots of Prefect's global concurrency limits, held on a host while it generates."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, StateType
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from latebloom.flows.run.progress import say, warn

__all__ = ["GPU_LIMIT", "ensure_limits", "leased", "limit_on_this_host", "slots"]

GPU_LIMIT = "gpu:{host}"
# The slots of a job that died are free after this time. One that lives renews them when three quarters of it are over,
# so a server may be away for the last quarter.
LEASE_SECONDS = 300.0
_AWAY_SECONDS = (5, 10, 15, 30, 60, 60, 120)  # between tries to reach a server: five minutes in all


def limit_on_this_host(name: str) -> str:
    """A limit's name with this host's in the place of {host}."""
    return name.replace("{host}", socket.gethostname())


@contextmanager
def slots(name: str, count: int, timeout_seconds: float | None = None) -> Iterator[None]:
    """Hold slots of a global concurrency limit for the block, once they are free.

    Args:
        name: of the limit; {host} in it stands for this host's name. Empty: nothing is held.
        count: how many slots, 1 or more.
        timeout_seconds: how long to wait for them; None: as long as it takes.

    Raises:
        ValueError: there is no such limit, it will never have so many slots, or the server stays away.
        TimeoutError: they were not free in this time.
    """
    if not name:
        yield
        return
    limit = limit_on_this_host(name)
    _check_once_there_is_a_server(limit, count)
    run = runtime.flow_run.id
    holder = ConcurrencyLeaseHolder(type="flow_run", id=run) if run else None
    with leased(limit, count, timeout_seconds=timeout_seconds, lease_duration=LEASE_SECONDS, holder=holder):
        yield


@contextmanager
def leased(limit: str, count: int, **options: Any) -> Iterator[None]:
    """Prefect's `concurrency` around hours of work, which a server that is away for a while must not end.

    A lease that can be neither renewed nor given back is only a warning: the slots are free when it has run out.
    """
    held = concurrency(limit, count, strict=True, raise_on_lease_renewal_failure=False, **options)
    held.__enter__()
    try:
        yield
    finally:
        try:
            held.__exit__(None, None, None)
        except httpx.HTTPError as error:
            warn(f"the Prefect server did not take back the slot of {limit} ({type(error).__name__}); it does so soon")


def _check_once_there_is_a_server(limit: str, count: int) -> None:
    """One that is started again just now ends no job."""
    for wait in (*_AWAY_SECONDS, None):
        try:
            with get_client(sync_client=True) as client:
                _check(client, limit, count)
        except httpx.ConnectError:
            if wait is None:
                raise ValueError(
                    f"the Prefect server with the concurrency limit {limit!r} stays away: no answer from "
                    f"{PREFECT_API_URL.value()}; start it with `latebloom up`, or leave parts.limit empty"
                ) from None
            say(f"the Prefect server does not answer, trying again in {wait} s")
            time.sleep(wait)
        else:
            return


def _check(client: SyncPrefectClient, limit: str, count: int) -> None:
    """Refuse what would never begin, and say what will have to wait."""
    try:
        found = client.read_global_concurrency_limit_by_name(limit)
    except ObjectNotFound:
        raise ValueError(
            f"Prefect has no concurrency limit {limit!r}; make it with `prefect gcl create {limit} --limit {count}`, "
            "or leave parts.limit empty"
        ) from None
    if found.limit < count:
        raise ValueError(
            f"concurrency limit {limit!r} has {found.limit} slots and {count} processes are to generate; give it more "
            f"with `prefect gcl update {limit} --limit {count}`, or lower generate.processes"
        )
    if found.limit - found.active_slots < count:
        say(
            f"waits for a slot of {limit}: {found.active_slots} of {found.limit} are taken; other runs now: "
            f"{', '.join(_running(client)) or 'none'}"
        )


def _running(client: SyncPrefectClient) -> list[str]:
    """The names of the other runs at work, a few of them: one of them holds the slot."""
    running: Any = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=running), limit=5)
    return [run.name for run in runs if str(run.id) != runtime.flow_run.id]


def ensure_limits() -> str:
    """Make this host's limit, a slot a GPU and at least one, where there is none yet; its name."""
    import torch

    limit = limit_on_this_host(GPU_LIMIT)
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(limit)  # what a person set it to stays
        except ObjectNotFound:
            create = GlobalConcurrencyLimitCreate(name=limit, limit=max(1, torch.cuda.device_count()))
            client.create_global_concurrency_limit(create)
    return limit
