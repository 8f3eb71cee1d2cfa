"""Turn a request into its job and run it: here, or as a Ray job of a cluster."""

from __future__ import annotations

from typing import Any

from jobs.dispatch.request import KINDS, JobRequest
from jobs.drift.settings import DriftSettings
from jobs.embed.settings import EmbedSettings
from jobs.engine import runner
from jobs.engine.job import Job
from jobs.evaluate.settings import EvaluateSettings
from jobs.lake.paths import LakePaths
from jobs.maintain.settings import MaintainSettings
from jobs.promote.settings import PromoteSettings
from jobs.stage.settings import StageSettings
from jobs.train.settings import TrainSettings


def job_of(work: JobRequest) -> Job:
    """The job itself; of maintain, which is several, there is none."""
    lake, settings = LakePaths(work.lake), KINDS[work.kind].model_validate(work.settings)
    match settings:
        case StageSettings():
            from jobs.stage.job import StageJob

            return StageJob(lake, settings, work.night, work.ray)
        case TrainSettings():
            from jobs.train.job import TrainJob

            return TrainJob(lake, settings, work.night, work.ray, fresh=work.fresh)
        case EmbedSettings():
            from jobs.embed.job import EmbedJob

            return EmbedJob(lake, settings, work.night, work.ray)
        case EvaluateSettings():
            from jobs.evaluate.job import EvaluateJob

            return EvaluateJob(lake, settings, work.night, work.ray)
        case DriftSettings():
            from jobs.drift.job import DriftJob

            return DriftJob(lake, settings, work.night)
        case PromoteSettings():
            from jobs.promote.job import PromoteJob

            return PromoteJob(lake, settings, work.night)
    raise AssertionError(f"{work.kind} is no job of one plan")


def run(work: JobRequest, asked_by: str = "") -> dict[str, Any]:
    """Run it here, or as a Ray job of a cluster that takes those.

    Returns a JobReport as a dict, or what maintain reports. asked_by: names who asks; the
    second time, a Ray job that has ended well since is not run once more.
    """
    if work.ray.takes_jobs:
        from jobs.dispatch.submit import run_on_cluster

        return run_on_cluster(work, asked_by)
    return run_here(work)


def run_here(work: JobRequest) -> dict[str, Any]:
    """Run it in this process."""
    if work.kind == "maintain":
        from jobs.maintain.run import maintain

        settings = MaintainSettings.model_validate(work.settings)
        return maintain(LakePaths(work.lake), settings, work.night, work.ray)
    return runner.run(job_of(work)).to_dict()
