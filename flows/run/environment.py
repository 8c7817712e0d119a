"""The environment of a process that runs flows: Prefect's settings, and where run folders are."""

import os
from pathlib import Path

from latebloom.data.store import as_path

__all__ = ["RUN_ENVIRONMENT", "prepare_prefect", "runs_root"]

# What every process that runs flows has in its environment, where the person has not set it.
RUN_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the automation for lost runs waits for three of them
    "PREFECT_CLIENT_MAX_RETRIES": "9",  # a server that is away for a quarter of an hour costs no night's work
    "OMP_WAIT_POLICY": "PASSIVE",  # on busy cores, threads that spin cost small networks a factor of ten
    # No Python process that is started has the working directory on its path: a `queue.py` there is the user's own.
    "PYTHONSAFEPATH": "1",
}


def prepare_prefect() -> None:
    """Settings that suit a terminal, where the person has not set them: our own lines instead of Prefect's."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name, value in RUN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ:
        # Nobody reads the log of a server that ends with the command, and Prefect complains of what it cannot send.
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    # Without PREFECT_API_URL a server starts with the flow; on a busy machine that takes longer than its default.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def runs_root() -> Path:
    """Where a run folder with a relative name is: in LATEBLOOM_RUNS, a path or URL, or in the folder runs/."""
    return as_path(os.environ.get("LATEBLOOM_RUNS") or "runs")
