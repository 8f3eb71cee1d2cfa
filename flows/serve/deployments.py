"""The flows of a nightly config as Prefect deployments: what `serve` and prefect.yaml register."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from flows.prefect_env import HEARTBEAT, NO_SURPRISES, TAG, WORKDIR, prepare_prefect

prepare_prefect()

from prefect import Flow  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import WorkPoolCreate  # noqa: E402
from prefect.client.schemas.objects import ConcurrencyLimitConfig  # noqa: E402
from prefect.client.schemas.schedules import CronSchedule  # noqa: E402
from prefect.deployments.runner import RunnerDeployment  # noqa: E402
from prefect.exceptions import ObjectAlreadyExists  # noqa: E402
from prefect.schedules import Cron  # noqa: E402
from prefect.types.entrypoint import EntrypointType  # noqa: E402

from flows.nightly import manual_flows  # noqa: E402
from flows.nightly.flow import nightly  # noqa: E402
from flows.nightly.settings import NightlySettings  # noqa: E402
from jobs.errors import InputError  # noqa: E402

FLOWS: dict[str, Flow[Any, Any]] = {
    "nightly": nightly,
    "train": manual_flows.train,
    "embed": manual_flows.embed,
    "backfill": manual_flows.backfill,
    "maintain": manual_flows.maintain,
}
# Of runs: what our log says goes to the UI, and the watch knows how often they send a heartbeat.
# Not in the worker's environment, because a pool's worker need not be ours.
OF_RUNS = {
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "latentlake",
    **HEARTBEAT,
    **NO_SURPRISES,
}
NOBODYS = "/"  # a folder that nobody but the machine's owner writes to
CONFIGURED = "latentlake-config"  # the slug of the schedule that is the config's


def schedule_of(config: str, settings: NightlySettings) -> CronSchedule | None:
    """Raise InputError for a time that is none."""
    schedule = settings.schedule
    if schedule is None:
        return None
    try:
        Cron(schedule.cron, timezone=schedule.timezone)  # says what is wrong in fewer words
    except ValueError as error:
        raise InputError(f"{config}: schedule.cron: {error}") from error
    return CronSchedule(cron=schedule.cron, timezone=schedule.timezone)


def deploy(config: str, settings: NightlySettings, pool: str, workdir: str) -> list[str]:
    """Register the flows of a config; returns the names of their deployments.

    What somebody did on a deployment's page stays: schedules made there, what is paused.
    workdir: where runs work, for paths that are relative. They begin elsewhere: Prefect imports
    from where they begin (3.8), and this may be a folder that others write to.
    """
    path = config if "://" in config else str(Path(config).absolute())
    dataset = settings.stage.dataset
    make_queue(dataset, pool)
    names = []
    for name, flow in FLOWS.items():
        made = RunnerDeployment.from_flow(
            flow,
            name=dataset,
            # Workers poll the queue, which may give two of them a run each; this is not. Runs
            # at once would be right, too, and slower.
            concurrency_limit=ConcurrencyLimitConfig(limit=1),
            parameters={"config": path},
            tags=[TAG, dataset],
            description=(flow.description or "").split("\n\n")[0],
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=pool,
            work_queue_name=dataset,
            job_variables={"working_dir": NOBODYS, "env": OF_RUNS | {WORKDIR: workdir}},
        )
        # An update that says nothing of these leaves them; one that says None takes them away.
        made.model_fields_set.difference_update({"schedules", "paused"})
        made_id = cast(UUID, made.apply())
        _follow(made_id, schedule_of(config, settings) if name == "nightly" else None)
        names.append(f"{flow.name}/{dataset}")
    return names


def _follow(deployment_id: UUID, wanted: CronSchedule | None) -> None:
    """Set the schedule to what the config says; on or off it is as somebody left it."""
    with get_client(sync_client=True) as client:
        schedules = client.read_deployment_schedules(deployment_id)
        ours = [one for one in schedules if one.slug == CONFIGURED]
        # A version before this one gave it no slug.
        ours = ours or [one for one in schedules if one.schedule == wanted][:1]
        for one in ours:
            if wanted is None:
                client.delete_deployment_schedule(deployment_id, one.id)
            elif (one.slug, one.schedule) != (CONFIGURED, wanted):
                client.update_deployment_schedule(
                    deployment_id, one.id, schedule=wanted, slug=CONFIGURED
                )
        if wanted is not None and not ours:
            client.create_deployment_schedules(deployment_id, [(wanted, True)], slug=CONFIGURED)


def make_pool(name: str) -> None:
    """Make a process work pool, if there is none of that name."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:
            return


def make_queue(dataset: str, pool: str) -> None:
    """Make a work queue for the runs of a dataset, one at a time, if there is none of that name.

    It counts the runs that there are: no slot is taken that a killed process could keep.
    """

    async def make() -> None:
        async with get_client() as client:
            with contextlib.suppress(ObjectAlreadyExists):
                await client.create_work_queue(dataset, concurrency_limit=1, work_pool_name=pool)

    asyncio.run(make())
