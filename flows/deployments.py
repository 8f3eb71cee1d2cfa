"""The flows of a nightly config as Prefect deployments: what `serve` and prefect.yaml register."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.environment import HEARTBEAT, TAG, prepare_prefect

prepare_prefect()

from prefect import Flow  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import WorkPoolCreate  # noqa: E402
from prefect.client.schemas.objects import ConcurrencyLimitConfig  # noqa: E402
from prefect.deployments.runner import RunnerDeployment  # noqa: E402
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
# Of runs: what our log says goes to the UI, and the watch knows how often they are heard of. Not in
# the worker's environment, because a pool's worker need not be ours.
OF_RUNS = {
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "latentlake",
    **HEARTBEAT,
}


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
            tags=[TAG, settings.stage.dataset],
            description=(flow.description or "").split("\n\n")[0],
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=pool,
            job_variables={"working_dir": workdir, "env": OF_RUNS},
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
