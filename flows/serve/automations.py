"""Automations that end runs whose process was lost: what `serve` and heartbeat.yaml make."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager
from typing import cast

from flows.prefect_env import HEARTBEAT_S, TAG, prepare_prefect

prepare_prefect()

from prefect import tags  # noqa: E402
from prefect.automations import Automation  # noqa: E402
from prefect.client.schemas.objects import StateType  # noqa: E402
from prefect.events.actions import ChangeFlowRunState  # noqa: E402
from prefect.events.schemas.automations import EventTrigger, Posture  # noqa: E402
from prefect.events.schemas.events import ResourceSpecification  # noqa: E402

LOST_AFTER_S = 3 * HEARTBEAT_S
# A pod may wait for its image, or for a node that is still to come, for 900 s (work-pool.json).
NEVER_BEGAN_S = 1200

BEAT = "prefect.flow-run.heartbeat"
# What Prefect calls a run that runs; the others are of runs that are run again.
BEGUN = [f"prefect.flow-run.{state}" for state in ("Running", "Retrying", "Rerunning")]
# A run in one of these has no process that could be lost.
AT_REST = [
    f"prefect.flow-run.{state}"
    for state in (
        "Completed",
        "Failed",
        "TimedOut",
        "Cancelled",
        "Crashed",
        "Paused",
        "Suspended",
        "Scheduled",
        "AwaitingRetry",
    )
]


def tagged() -> AbstractContextManager[set[str]]:
    """For a run that has no deployment, from which the others have their tags."""
    return tags(TAG)


def watch_runs() -> None:
    """Make the automations, or bring those of their names up to date."""
    for made in watches():
        try:
            made.id = cast(Automation, Automation.read(name=made.name)).id
        except ValueError:  # there is none
            made.create()
        else:
            made.update()


def watches() -> list[Automation]:
    """End runs whose process was killed: none is `Running` for ever, nor `Pending`, which would
    hold up its dataset's queue."""
    return [
        _watch(
            "latentlake: runs without a heartbeat have crashed",
            {*BEGUN, BEAT},
            {BEAT, *AT_REST},
            LOST_AFTER_S,
            f"no heartbeat for {LOST_AFTER_S} s: its process was lost; run it again, it goes on "
            "where it stopped",
        ),
        _watch(
            "latentlake: runs that never began have crashed",
            {"prefect.flow-run.Pending"},
            {*BEGUN, BEAT, *AT_REST},
            NEVER_BEGAN_S,
            f"it did not begin within {NEVER_BEGAN_S} s: its worker was lost; run it again",
        ),
    ]


def _watch(
    name: str, after: set[str], expect: set[str], seconds: float, message: str
) -> Automation:
    return Automation(
        name=name,
        trigger=EventTrigger(
            after=after,
            expect=expect,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            # Ours alone: other flows of the server have heartbeats of other lengths, or none.
            match_related=ResourceSpecification(
                {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=dt.timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(name=None, state=StateType.CRASHED, force=False, message=message)
        ],
    )
