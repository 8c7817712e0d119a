"""The process that serves the deployments leaves alone what a person set in the UI."""

from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.schedules import Cron

from latebloom.flows.server.serve import keep_what_a_person_set


@flow(name="tended")
def tended(run: str = "") -> None:
    """Stands for a flow with a schedule."""


def deploy(name: str) -> Any:
    """As at each `latebloom up`; the deployment as the server has it then."""
    scheduled = tended.to_deployment(name, schedule=Cron("0 22 * * *", active=False, slug="nightly"))
    plain = tended.to_deployment(f"{name}-plain", concurrency_limit=1)
    keep_what_a_person_set([scheduled, plain])
    for deployment in (scheduled, plain):
        deployment.apply()
    with get_client(sync_client=True) as client:
        return [client.read_deployment_by_name(f"tended/{one}") for one in (name, f"{name}-plain")]


def test_what_a_person_set_in_the_ui_outlives_the_next_start(client: SyncPrefectClient) -> None:
    scheduled, plain = deploy("kept")
    assert [(one.slug, one.active) for one in scheduled.schedules] == [("nightly", False)]
    client.update_deployment_schedule(scheduled.id, scheduled.schedules[0].id, active=True)
    client.create_deployment_schedules(plain.id, [(CronSchedule(cron="0 5 * * *"), True)])
    client.pause_deployment(plain.id)
    client.update_deployment(plain.id, DeploymentUpdate(parameters={"run": "mine"}))

    again, plain_again = deploy("kept")
    assert [(one.slug, one.active) for one in again.schedules] == [("nightly", True)]
    assert again.schedules[0].id == scheduled.schedules[0].id
    assert [one.schedule.cron for one in plain_again.schedules] == ["0 5 * * *"]
    assert (again.paused, plain_again.paused) == (False, True)
    assert plain_again.parameters == {"run": "mine"}

    client.delete_deployment_schedule(again.id, again.schedules[0].id)
    assert deploy("kept")[0].schedules == []
