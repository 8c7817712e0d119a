"""`latebloom up` and `latebloom down`: everything that is run from the Prefect UI, in one command."""

from typing import Annotated

import typer

from latebloom.flows.cli.options import Command

__all__ = ["add_serving_commands"]


def add_serving_commands(app: typer.Typer) -> None:
    """Register `up` and `down`."""
    app.command("up", cls=Command)(_up)
    app.command("down", cls=Command)(_down)


def _up(
    port: Annotated[
        int, typer.Option("--port", min=1, max=65534, help="Port of the Prefect server, on loopback")
    ] = 4200,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Flow runs at a time; the rest wait. A GPU has a limit of its own")
    ] = 4,
) -> None:
    """Start a Prefect server with its UI, and serve all deployments; what runs already is kept.

    Its logs and its database are in .latebloom/ of the working directory. Where PREFECT_API_URL names a server that
    answers, the deployments are served to that one.
    """
    from latebloom.flows.server.up import FOLDER, bring_up

    place = bring_up(port, limit)
    print(f"click      {place.ui}/v2/deployments")
    print(f"terminal   export PREFECT_API_URL={place.api}")
    if place.runs:
        print(f"reports    {place.runs}")
    print(f"logs       {FOLDER}/server.log, {FOLDER}/serve.log")
    print("end        latebloom down, or make down")


def _down() -> None:
    """End the served deployments with the runs that they started, then the server. What is recorded stays."""
    from latebloom.flows.server.up import bring_down

    ended = bring_down()
    for name in ended:
        print(f"ended the run {name}; run again with the same parameters, it goes on where it stopped")
    print("all is down; `latebloom up` starts it again")
