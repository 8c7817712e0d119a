"""The server's automations: a lost run becomes Crashed, and `generate` is followed by `retrain` where asked.

They live in the server and are shown under Automations in the UI, where a person can switch each of them off.
"""

from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, RunDeployment
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from latebloom.flows.artifacts.publish import READY_EVENT, THEN_LABEL

__all__ = ["CHAIN", "FLOWS", "LOST", "RETRAIN", "chain", "ensure_automations", "lost"]

LOST = "latebloom: a lost run becomes Crashed"
CHAIN = "latebloom: retrain when generate is done"
RETRAIN = "retrain/retrain"

# The runs that the automations are about; a server may have others, whose heartbeats are slower.
FLOWS = (
    *("augment-and-retrain", "compare", "select", "plan", "generate", "retrain", "report"),
    *("coreset", "fit-generator", "export", "generate-part"),
)

_HEARTBEAT = "prefect.flow-run.heartbeat"
# A run in one of these has no process that could be lost. Prefect itself refuses to change any other final state.
_AT_REST = ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")


def lost(window: int = 90) -> AutomationCore:
    """The automation that marks a run Crashed whose process, or machine, is gone.

    Args:
        window: seconds without a heartbeat, at least 10; below twice the seconds between heartbeats
            (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) a run that lives would be marked.
    """
    return AutomationCore(
        name=LOST,
        description=f"A run that has sent a heartbeat sends another one, or ends, within {window} seconds.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)},
            for_each={"prefect.resource.id"},
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in _AT_REST)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=window),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"no sign of life for {window} s: its process was killed, or its machine is gone. "
                "Run it again with the same parameters: it goes on where it stopped",
            )
        ],
    )


def chain(client: SyncPrefectClient) -> AutomationCore:
    """The automation that runs `retrain` on the run folder of a `generate` that asked for it.

    Raises:
        ValueError: the server does not know the deployment that retrains.
    """
    try:
        deployment = client.read_deployment_by_name(RETRAIN)
    except ObjectNotFound:
        raise ValueError(
            f"the server at {client.api_url} knows no deployment {RETRAIN}; `latebloom up` registers it, "
            "or `prefect deploy --all`"
        ) from None
    return AutomationCore(
        name=CHAIN,
        description=f"The event {READY_EVENT} with {THEN_LABEL} = retrain runs {RETRAIN} on the event's run folder.",
        trigger=EventTrigger(
            match={THEN_LABEL: "retrain"},
            expect={READY_EVENT},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment.id,
                parameters={"run": {"__prefect_kind": "jinja", "template": "{{ event.payload.run }}"}},
            )
        ],
    )


def ensure_automations(window: int = 90) -> None:
    """Have both automations in the server that PREFECT_API_URL names, once each.

    One that is there is brought up to date; whether it is enabled stays as a person set it.

    Args:
        window: seconds without a heartbeat after which a run counts as lost.

    Raises:
        ValueError: the server does not know the deployment that retrains.
    """
    with get_client(sync_client=True) as client:
        for wanted in (lost(window), chain(client)):
            known = client.read_automations_by_name(wanted.name)
            if not known:
                client.create_automation(wanted)
                continue
            kept = wanted.model_copy(update={"enabled": known[0].enabled})
            # Only a change is sent: it makes the server forget the heartbeats that it waits for.
            if any(getattr(known[0], name) != getattr(kept, name) for name in AutomationCore.model_fields):
                client.update_automation(known[0].id, kept)
