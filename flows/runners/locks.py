"""A run folder for one flow at a time: on disk by a lock of the system, at a URL by a limit on the Prefect server."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from latebloom.data.store import digest_json, is_remote
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import say
from latebloom.flows.runners.engine import run_name, server_stays

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["held", "limit_of"]

# The shortest that Prefect has: the server frees the slot of a holder that dies so long after it last heard of it.
LEASE_SECONDS = 60.0
# Longer than a dead holder keeps it (the server looks every 15 s, and others may ask every 40 s), so a run that was
# killed can be started again at once, and waits.
WAIT_SECONDS = 120.0


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Keep a run folder to this flow for the block.

    One at a URL is kept where all machines that could work in it share a Prefect server, which PREFECT_API_URL names.

    Raises:
        ValueError: another has it. On disk that is said at once; at a URL after two minutes, in which a holder that
            died would have lost it.
    """
    if not is_remote(run.path):
        with run.locked(_holder()):
            yield
    elif server_stays():
        with _slot(run):
            yield
    else:
        yield


def _holder() -> str:
    return f"flow run {run_name()!r}" if server_stays() else ""


def limit_of(run: RunFolder) -> str:
    """The name of the Prefect concurrency limit that stands for a run folder at a URL."""
    return f"latebloom-run-{digest_json(str(run.path))[:16]}"


@contextmanager
def _slot(run: RunFolder) -> Iterator[None]:
    from prefect.client.orchestration import get_client

    from latebloom.flows.runners.limits import leased

    name = limit_of(run)
    with get_client(sync_client=True) as client:
        if _taken(client, name):
            say(f"waits {WAIT_SECONDS:.0f} s for {run.path}: {run.signed()} is at work in it")
    # What is made is whole and has its digest also where two are at work, as when the lease was lost.
    slot = leased(name, 1, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS)
    with ExitStack() as stack:
        try:
            stack.enter_context(slot)
        except TimeoutError:
            raise ValueError(f"{run.signed()} is at work in {run.path}; wait for it, or end it") from None
        run.sign(_holder())
        yield


def _taken(client: "SyncPrefectClient", name: str) -> bool:
    """Whether the limit has no slot left; it is made where there is none yet."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with suppress(ObjectNotFound):
        return client.read_global_concurrency_limit_by_name(name).active_slots > 0
    with suppress(ObjectAlreadyExists):  # another was quicker
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    return False
