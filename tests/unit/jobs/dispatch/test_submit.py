"""Which submission is followed, submitted or taken for an answer, and what its end means.

The cluster is a list here; a real one is in integration/test_ray_jobs.py.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs.cluster.settings import RaySettings
from jobs.dispatch import submit
from jobs.dispatch.log_protocol import MARK
from jobs.dispatch.ray_jobs_client import SubmissionExists
from jobs.dispatch.request import JobRequest
from jobs.dispatch.submit import run_on_cluster, stop_all_of, submission_name
from jobs.errors import ClusterError, InputError, JobError
from jobs.stage.settings import StageSettings

FAR = RaySettings(address="http://head:8265")
WORK = JobRequest.of(
    StageSettings(source="s3://b/p", dataset="d"), "s3://b/lake", "2026-01-01", FAR
)
NAME = submission_name(WORK)
DONE = f"{MARK}{json.dumps({'result': {'job': 'stage'}})}\n"


class Cluster:
    """ends: by submission id, the status that a job has when it is looked at, and its log."""

    def __init__(self, ends: dict[str, tuple[JobStatus, str]]) -> None:
        self.ends = ends
        self.held: dict[str, JobDetails] = {}
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.interrupted = False

    def __call__(self, address: str) -> Cluster:
        return self

    def hold(self, number: int, status: JobStatus, asked_by: str = "", age_s: float = 1.0) -> None:
        name = f"{NAME}-{number}"
        self.held[name] = details(name, status, asked_by, age_s)

    def jobs(self) -> list[JobDetails]:
        return list(self.held.values())

    def submit(self, submission: str, metadata: dict[str, str], **_: Any) -> None:
        if submission in self.held:
            raise SubmissionExists
        self.submitted.append(submission.removeprefix(f"{NAME}-"))
        if self.interrupted:
            raise KeyboardInterrupt
        self.held[submission] = details(submission, JobStatus.RUNNING, metadata["asked_by"])

    def info(self, submission: str) -> JobDetails:
        status = self.ends[submission.removeprefix(f"{NAME}-")][0]
        return self.held[submission].model_copy(update={"status": status})

    def log(self, submission: str, within_s: float = 0.0) -> str:
        return self.ends[submission.removeprefix(f"{NAME}-")][1]

    def stop(self, submission: str) -> None:
        self.stopped.append(submission.removeprefix(f"{NAME}-"))


def details(name: str, status: JobStatus, asked_by: str = "", age_s: float = 1.0) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id=name,
        status=status,
        entrypoint="",
        start_time=int((time.time() - age_s) * 1000),
        metadata={"asked_by": asked_by},
    )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster({})
    monkeypatch.setattr(submit, "JobApi", made)
    return made


SUCCEEDED = (JobStatus.SUCCEEDED, DONE)
STOPPED = (JobStatus.STOPPED, "")


def test_what_runs_is_followed(cluster: Cluster) -> None:
    cluster.hold(1, JobStatus.SUCCEEDED)
    cluster.hold(2, JobStatus.RUNNING)
    cluster.ends = {"2": SUCCEEDED}
    assert run_on_cluster(WORK) == {"job": "stage"}
    assert cluster.submitted == []


def test_one_that_was_found_and_is_being_stopped_is_submitted_again(cluster: Cluster) -> None:
    """Cancelled, and started again at once."""
    cluster.hold(1, JobStatus.RUNNING)

    def stopped_meanwhile(submission: str) -> JobDetails:
        found = Cluster.info(cluster, submission)
        cluster.held[submission] = found
        return found

    cluster.info = stopped_meanwhile  # type: ignore[method-assign]
    cluster.ends = {"1": STOPPED, "2": SUCCEEDED}
    assert run_on_cluster(WORK) == {"job": "stage"}
    assert cluster.submitted == ["2"]


def test_ones_own_that_was_stopped_is_said(cluster: Cluster) -> None:
    cluster.ends = {"1": STOPPED}
    with pytest.raises(JobError, match="was stopped"):
        run_on_cluster(WORK)
    assert cluster.submitted == ["1"]


def test_a_submission_that_nobody_watches_is_not_waited_for(cluster: Cluster) -> None:
    cluster.hold(1, JobStatus.PENDING, age_s=2000)
    cluster.ends = {"2": SUCCEEDED}
    run_on_cluster(WORK)
    assert cluster.submitted == ["2"]


def test_one_that_is_young_is_waited_for(cluster: Cluster) -> None:
    cluster.hold(1, JobStatus.PENDING, age_s=200)
    cluster.ends = {"1": SUCCEEDED}
    run_on_cluster(WORK)
    assert cluster.submitted == []


@pytest.mark.parametrize(
    ("asked_by", "log", "submitted"),
    [("run 1", DONE, []), ("run 2", DONE, ["2"]), ("", DONE, ["2"]), ("run 1", "", ["2"])],
)
def test_an_answer_is_ones_own_and_can_be_read(
    cluster: Cluster, asked_by: str, log: str, submitted: list[str]
) -> None:
    cluster.hold(1, JobStatus.SUCCEEDED, "run 1")
    cluster.ends = {"1": (JobStatus.SUCCEEDED, log), "2": SUCCEEDED}
    assert run_on_cluster(WORK, asked_by) == {"job": "stage"}
    assert cluster.submitted == submitted


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"error_type": "RUNTIME_ENV_SETUP_FAILURE"}, InputError),
        ({"driver_exit_code": 1}, JobError),
        ({"driver_exit_code": 127}, JobError),
        ({"driver_exit_code": 137}, ClusterError),
        ({"driver_exit_code": -9}, ClusterError),
        ({"error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, ClusterError),
    ],
)
def test_only_a_fault_of_the_cluster_is_one(
    cluster: Cluster, told: dict[str, Any], error: type[Exception]
) -> None:
    cluster.ends = {"1": (JobStatus.FAILED, "the last line\n")}
    plain = cluster.info
    cluster.info = lambda name: plain(name).model_copy(update=told)  # type: ignore[method-assign]
    with pytest.raises(error, match="the last line"):
        run_on_cluster(WORK)


def test_what_is_cut_short_on_its_way_is_stopped(cluster: Cluster) -> None:
    cluster.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(WORK)
    assert cluster.stopped == ["1"]


def test_a_cancelled_runs_own_jobs_are_stopped(cluster: Cluster) -> None:
    cluster.hold(1, JobStatus.SUCCEEDED, "run 1")
    cluster.hold(2, JobStatus.RUNNING, "run 1")
    cluster.hold(3, JobStatus.RUNNING, "run 2")
    stop_all_of("http://head:8265", "run 1")
    assert cluster.stopped == ["2"]
