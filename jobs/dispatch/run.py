"""Turn a request into its job and run it: here, or as a Ray job of a cluster."""

from __future__ import annotations

from typing import Any

from jobs.dispatch.registry import JOBS, JobKind
from jobs.dispatch.request import JobRequest
from jobs.engine import runner
from jobs.engine.job import Job
from jobs.lake.paths import LakePaths


def job_of(request: JobRequest) -> Job:
    """Make the job; of maintain, which is several, there is none."""
    kind = JOBS[request.kind]
    job = kind.load()
    assert issubclass(job, Job), f"{request.kind} is no job of one plan"
    more = {"fresh": request.fresh} if request.kind == "train" else {}
    return job(*_arguments(request, kind), **more)


def run(request: JobRequest, asked_by: str = "") -> dict[str, Any]:
    """Run it here, or as a Ray job of a cluster that takes those.

    Args:
        request: the job and its settings.
        asked_by: who asks. For the same one, a Ray job that has ended well since is not run again.

    Returns:
        A JobReport as a dict, or what maintain reports.
    """
    if request.ray.takes_jobs:
        from jobs.dispatch.submit import run_on_cluster

        return run_on_cluster(request, asked_by)
    return run_here(request)


def run_here(request: JobRequest) -> dict[str, Any]:
    """Run it in this process."""
    kind = JOBS[request.kind]
    if request.kind == "maintain":
        return kind.load()(*_arguments(request, kind))
    return runner.run(job_of(request)).to_dict()


def _arguments(request: JobRequest, kind: JobKind) -> tuple[Any, ...]:
    """As every job takes them: lake, settings, night and, for its workers, Ray."""
    assert kind.settings is not None
    settings = kind.settings.model_validate(request.settings)
    ray = (request.ray,) if kind.workers else ()
    return (LakePaths(request.lake), settings, request.night, *ray)
