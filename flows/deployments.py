"""The flows of a nightly config as Prefect deployments: what `serve` and prefect.yaml register."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, cast

from flows.environment import HEARTBEAT_S, prepare_prefect

prepare_prefect()

from prefect import Flow  # noqa: E402
from prefect.automations import Automation  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import WorkPoolCreate  # noqa: E402
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType  # noqa: E402
from prefect.deployments.runner import RunnerDeployment  # noqa: E402
from prefect.events.actions import ChangeFlowRunState  # noqa: E402
from prefect.events.schemas.automations import EventTrigger, Posture  # noqa: E402
from prefect.exceptions import ObjectAlreadyExists  # noqa: E402
from prefect.schedules import Cron, Schedule  # noqa: E402
from prefect.types.entrypoint import EntrypointType  # noqa: E402

from flows import on_request  # noqa: E402
from flows.nightly import nightly  # noqa: E402
from jobs.errors import InputError  # noqa: E402
from jobs.nightly_config import NightlySettings  # noqa: E402

FLOWS: dict[str, Flow[Any, Any]] = {
    "nightly": nightly,
    "train": on_request.train,
    "embed": on_request.embed,
    "backfill": on_request.backfill,
    "maintain": on_request.maintain,
}
# Of runs: what our log says goes to the UI.
TALKATIVE = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_EXTRA_LOGGERS": "latentlake"}
LOST_AFTER_S = 3 * HEARTBEAT_S
WATCHDOG = "latentlake: runs without a heartbeat have crashed"
ENDED = [f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")]


def schedule_of(config: str, settings: NightlySettings) -> Schedule | None:
    """Raises InputError for a time that is none."""
    held = settings.schedule
    try:
        return Cron(held.cron, timezone=held.timezone) if held is not None else None
    except ValueError as error:
        raise InputError(f"{config}: schedule.cron: {error}") from error


def deploy(config: str, settings: NightlySettings, pool: str, workdir: str) -> list[str]:
    """Registers the flows of a config; returns the names of their deployments.

    workdir: where runs work, for paths that are relative.
    """
    path = config if "://" in config else str(Path(config).absolute())
    names = []
    for name, flow in FLOWS.items():
        schedule = schedule_of(config, settings) if name == "nightly" else None
        made = RunnerDeployment.from_flow(
            flow,
            name=settings.stage.dataset,
            schedule=schedule,
            # Another run of the same waits for it; they would be right at once, too, and slower.
            concurrency_limit=ConcurrencyLimitConfig(limit=1),
            parameters={"config": path},
            tags=["latentlake", settings.stage.dataset],
            description=(flow.description or "").split("\n\n")[0],
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=pool,
            job_variables={"working_dir": workdir, "env": TALKATIVE},
        )
        made.apply()
        names.append(f"{flow.name}/{settings.stage.dataset}")
    return names


def make_pool(name: str) -> None:
    """A process work pool, if there is none of that name."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:
            return


def watch_heartbeats() -> None:
    """Makes the automation, or brings the one of its name up to date."""
    made = watchdog()
    try:
        made.id = cast(Automation, Automation.read(name=WATCHDOG)).id
    except ValueError:  # there is none
        made.create()
    else:
        made.update()


def watchdog() -> Automation:
    """A run whose process was killed is not `Running` for ever."""
    return Automation(
        name=WATCHDOG,
        trigger=EventTrigger(
            after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ENDED},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=dt.timedelta(seconds=LOST_AFTER_S),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=f"no heartbeat for {LOST_AFTER_S} s: its process was lost; run it again, "
                "it goes on where it stopped",
            )
        ],
    )
