"""One task a job: what Prefect retries, times and shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from flows.prefect_env import prepare_prefect, quiet_prefect

prepare_prefect()

from prefect import Task, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402

from flows.nightly.progress import shown_in_prefect  # noqa: E402
from jobs.cluster.settings import RaySettings  # noqa: E402
from jobs.dispatch import run  # noqa: E402
from jobs.dispatch.request import JobRequest  # noqa: E402
from jobs.engine.interruptible import apart  # noqa: E402
from jobs.engine.report import JobReport  # noqa: E402
from jobs.errors import ClusterError, StorageError  # noqa: E402
from jobs.lake.paths import LakePaths  # noqa: E402
from jobs.maintain.run import maintained_text  # noqa: E402
from jobs.maintain.settings import MaintainSettings  # noqa: E402
from jobs.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from jobs.report.write import Report

quiet_prefect()

P = ParamSpec("P")
R = TypeVar("R")
RETRIES = 2


async def is_passing_fault(_task: Any, _run: Any, state: Any) -> bool:
    """Storage or cluster may answer the next time; a mistake stays one, and so does a timeout."""
    try:
        await state.aresult()
    except (StorageError, ClusterError):
        return True
    except BaseException:  # noqa: BLE001 - whatever else it was is not retried
        return False
    return False


RETRY: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": [5, 20],
    "retry_condition_fn": is_passing_fault,
    "persist_result": False,
}


# Tasks are called, not submitted: Ray wants the main thread.
@task(name="stage", task_run_name="stage {settings.dataset}", **RETRY)
def stage(settings: Settings, lake: str, night: str, ray: RaySettings) -> JobReport:
    """Stage what is new."""
    return _shown("dataset", JobRequest.of(settings, lake, night, ray))


@task(name="train", task_run_name="train {settings.model}", **RETRY)
def train(settings: Settings, lake: str, night: str, ray: RaySettings) -> JobReport:
    """Train a model."""
    return _shown("model", JobRequest.of(settings, lake, night, ray))


@task(name="embed", task_run_name="embed {settings.dataset}", **RETRY)
def embed(settings: Settings, lake: str, night: str, ray: RaySettings) -> JobReport:
    """Embed and score what is new."""
    return _shown("dataset", JobRequest.of(settings, lake, night, ray))


@task(name="evaluate", task_run_name="evaluate {settings.model}", **RETRY)
def evaluate(settings: Settings, lake: str, night: str, ray: RaySettings) -> JobReport:
    """Evaluate a bundle."""
    return _shown("model", JobRequest.of(settings, lake, night, ray))


@task(name="promote", task_run_name="promote {settings.model}", **RETRY)
def promote(settings: Settings, lake: str, night: str, ray: RaySettings) -> JobReport:
    """Promote a bundle, if the gate passes it."""
    return JobReport(**_done(JobRequest.of(settings, lake, night, ray)))


@task(name="drift", task_run_name="drift {settings.dataset}", **RETRY)
def drift(settings: Settings, lake: str, night: str, ray: RaySettings) -> JobReport:
    """Test the new images for drift."""
    return JobReport(**_done(JobRequest.of(settings, lake, night, ray)))


@task(name="report", task_run_name="report {dataset} {night}", **RETRY)
def report(dataset: str, model: str, lake: str, night: str) -> Report:
    """Write the night's report."""
    from jobs.report.write import write_report  # brings Bokeh: only where there is a page to write

    # Where a timeout takes effect: DuckDB and numpy answer when they are done.
    return apart(lambda: write_report(LakePaths(lake), dataset, model, night))


@task(name="maintain", task_run_name="maintain {settings.dataset}", **RETRY)
def maintain(settings: MaintainSettings, lake: str, night: str, ray: RaySettings) -> dict[str, Any]:
    """Compact and vacuum, and show what was done."""
    done = _done(JobRequest.of(settings, lake, night, ray))
    create_markdown_artifact(
        f"```\n{maintained_text(done)}\n```", description="What was merged and removed"
    )
    return done


def _shown(about: str, request: JobRequest) -> JobReport:
    """Run it with its progress in Prefect. about: the setting that says what it is about."""
    with shown_in_prefect(f"{request.kind} {request.settings[about]}"):
        return JobReport(**_done(request))


def _done(work: JobRequest) -> dict[str, Any]:
    # A run that is tried again hears of the jobs that it had submitted itself.
    return run.run(work, asked_by=flow_run.id or "")


def limited(made: Task[P, R], seconds: float | None) -> Task[P, R]:
    """Return the task, given up after as many seconds."""
    return made.with_options(timeout_seconds=seconds) if seconds is not None else made
