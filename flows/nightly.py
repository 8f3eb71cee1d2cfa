"""The nightly flow: stage what is new, train where there is no champion, embed what is new."""

from __future__ import annotations

from typing import Any

from flows.environment import prepare_prefect, quiet_prefect

prepare_prefect()

from prefect import flow, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402

from flows.progress import shown_in_prefect  # noqa: E402
from jobs import catalog, job  # noqa: E402
from jobs.config import (  # noqa: E402
    EmbedSettings,
    NightlySettings,
    RaySettings,
    StageSettings,
    TrainSettings,
    valid_night,
)
from jobs.embed import EmbedJob  # noqa: E402
from jobs.errors import StorageError  # noqa: E402
from jobs.job_report import JobReport  # noqa: E402
from jobs.lake import Lake  # noqa: E402
from jobs.stage import StageJob  # noqa: E402
from jobs.storage import resolve_uri  # noqa: E402
from jobs.train import TrainJob  # noqa: E402

quiet_prefect()

STORAGE_RETRIES = 2


async def _is_storage_fault(_task: Any, _run: Any, state: Any) -> bool:
    """Storage may answer the next time; a user's mistake stays one."""
    try:
        await state.aresult()
    except StorageError:
        return True
    except BaseException:  # noqa: BLE001 - whatever else it was is not retried
        return False
    return False


RETRY: dict[str, Any] = {
    "retries": STORAGE_RETRIES,
    "retry_delay_seconds": [5, 20],
    "retry_condition_fn": _is_storage_fault,
    "persist_result": False,
}


# Tasks are called, not submitted: Ray wants the main thread.
@task(name="stage", task_run_name="stage {settings.dataset}", **RETRY)
def stage(lake: str, settings: StageSettings, night: str, ray: RaySettings) -> JobReport:
    with shown_in_prefect(f"stage {settings.dataset}"):
        return job.run(StageJob(Lake(lake), settings, night, ray))


@task(name="train", task_run_name="train {settings.model}", **RETRY)
def train(lake: str, settings: TrainSettings, night: str, ray: RaySettings) -> JobReport:
    return job.run(TrainJob(Lake(lake), settings, night, ray))


@task(name="embed", task_run_name="embed {settings.dataset}", **RETRY)
def embed(lake: str, settings: EmbedSettings, night: str, ray: RaySettings) -> JobReport:
    with shown_in_prefect(f"embed {settings.dataset}"):
        return job.run(EmbedJob(Lake(lake), settings, night, ray))


def needs_training(lake: str, settings: TrainSettings) -> bool:
    """First light's rule: train when no bundle has the alias yet."""
    if settings.model not in catalog.models(Lake(lake)):
        return True
    return settings.alias not in catalog.aliases(Lake(lake), settings.model)


@flow(name="nightly", flow_run_name="nightly {settings.stage.dataset} {night}")
def nightly(settings: NightlySettings, night: str) -> list[JobReport]:
    """Stages what is new, trains where there is no champion yet, embeds what is new."""
    lake, night = resolve_uri(settings.lake), valid_night(night)
    reports = [stage(lake, settings.stage, night, settings.ray)]
    if needs_training(lake, settings.train):
        reports.append(train(lake, settings.train, night, settings.ray))
    reports.append(embed(lake, settings.embed, night, settings.ray))
    create_markdown_artifact(key="nightly-summary", markdown=summary(reports, night))
    return reports


def summary(reports: list[JobReport], night: str) -> str:
    """What the night did, as a Markdown table."""
    lines = [f"# Night {night}", "", "| job | target | did |", "|---|---|---|"]
    for report in reports:
        lines.append(f"| {report.job} | {report.target} | {told(report)} |")
    return "\n".join(lines)


def told(report: JobReport) -> str:
    """A report in a line: every count that is not zero, then the time."""
    if not report.job_ids:
        return "nothing to do"
    parts = []
    for name, value in report.counts.items():
        if isinstance(value, float):
            parts.append(f"{name.replace('_', ' ')} {value:,.1f}")
        elif isinstance(value, str):
            parts.append(f"{name.replace('_', ' ')} {value}")
        elif value:
            parts.append(f"{name.replace('_', ' ')} {value:,}")
    return f"{', '.join(parts)} in {report.seconds:.1f} s"
