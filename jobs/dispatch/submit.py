"""Runs a job as a Ray job of a cluster: submits it once, follows it, ends it when it is given up.

The submission's id comes from the work alone. Whoever asks for the same work while it runs, after a
retry or from another machine, follows the one that is there.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus

from jobs.dispatch.log_protocol import VERSION, WORK, LogReader, version
from jobs.dispatch.ray_jobs_client import POLL_S, JobApi, SubmissionExists
from jobs.dispatch.request import JobRequest
from jobs.errors import ClusterError, InputError, JobError, LatentlakeError
from jobs.hashing import digest
from jobs.lake.paths import valid_name
from jobs.lake.storage import resolve_uri
from jobs.lake.uri import refuse_credentials

log = logging.getLogger("latentlake")

BYTES_PER_S = 200_000  # of a log that is read whole each time, at most
LOG_S = 20.0  # that the log of a job that has ended may be away
START_S = 1200.0  # Ray itself gives a job up that has not begun after 900
DRIVER_STOP_S = 15  # that a driver has for ending its workers, until Ray ends it
STOPPED_ROUNDS = 3
KILLED = 128  # exit codes from here on are signals
ENTRY = "python -P -m jobs.submitted"  # which every release has, and asks for the version


def run_on_cluster(work: JobRequest, asked_by: str = "") -> dict[str, Any]:
    """Run it there and return what the job returns.

    Raises the job's own error, or ClusterError where the cluster loses it.

    asked_by: who hears of a submission of theirs that has ended well meanwhile; nobody if empty.
    """
    work = _for_elsewhere(work)
    run = _Run(JobApi(str(work.ray.address)), work, asked_by)
    try:
        return run.result()
    except LatentlakeError:  # its own, or a cluster that may still be at it
        raise
    except BaseException:
        if run.submission:
            run.api.stop(run.submission)
        raise


def stop_all_of(address: str, asked_by: str) -> None:
    """End the jobs that a run had requested, where it could not do so itself."""
    api = JobApi(address)
    for job in api.jobs():
        if not job.status.is_terminal() and _asked_by(job) == asked_by:
            api.stop(str(job.submission_id))


def submission_name(work: JobRequest) -> str:
    """Of all submissions of this work, such as latentlake-stage-photos-2026-11-21-0123456789ab."""
    values = work.model_dump(mode="json", exclude={"ray": {"address", "wheel"}})
    key = digest(values, version(), _content(work.ray.wheel), length=12)
    target = "".join(c if c.isalnum() else "-" for c in work.target)[:63]
    return f"latentlake-{work.kind}-{target}-{work.night}-{key}"


def _for_elsewhere(work: JobRequest) -> JobRequest:
    """With names that hold there: a path is one of this side. Raises InputError for a wrong one."""
    for kind in ("dataset", "model"):
        if (name := work.settings.get(kind)) is not None:
            valid_name(kind, name.partition("@")[0])
    source = work.settings.get("source")
    if source is None:
        return work
    if "://" in source:
        refuse_credentials(source)  # the cluster shows the settings of its jobs
        return work
    return work.model_copy(update={"settings": work.settings | {"source": resolve_uri(source)}})


def _content(wheel: str | None) -> str | None:
    if wheel is None:
        return None
    try:
        return digest(Path(wheel).read_bytes().hex())
    except OSError as error:
        raise InputError(f"cannot read the wheel {wheel}: {error.strerror}") from error


@contextlib.contextmanager
def _shipped(wheel: str | None) -> Iterator[dict[str, Any]]:
    """Make a runtime environment with the code of a wheel, or with none: the image's is taken.

    As a working directory, which Ray knows by its content. A wheel among `py_modules` it knows by
    its file name, so that a changed one would not arrive, and installs with all its dependencies
    (Ray 2.60).
    """
    if wheel is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="ll-wheel-") as folder:
        packed = shutil.copy(wheel, Path(folder) / "latentlake.zip")
        yield {"working_dir": str(packed)}


class _Run:
    """One call's way to the result of its work."""

    def __init__(self, api: JobApi, work: JobRequest, asked_by: str) -> None:
        self.api = api
        self.work = work
        self.asked_by = asked_by
        self.name = submission_name(work)
        self.submission = ""  # that is followed, or was requested and may come

    def result(self) -> dict[str, Any]:
        for left in reversed(range(STOPPED_ROUNDS)):
            last = self._newest()
            found = last is not None and not last.status.is_terminal() and not _is_stuck(last)
            if last is not None and found:
                self.submission = str(last.submission_id)
                log.info("following the Ray job %s", self.submission)
            elif (answer := self._answer(last)) is not None:
                return answer
            else:
                found = not self._submit(last)
            info, reader = self._follow()
            # One that was found may be ending already, by whoever had requested it.
            if not (found and left and info.status == JobStatus.STOPPED):
                return _outcome(self.submission, info, reader)
        raise AssertionError("unreachable")

    def _newest(self) -> JobDetails | None:
        """Of the submissions of this work."""
        names = f"{self.name}-"
        found = [job for job in self.api.jobs() if str(job.submission_id).startswith(names)]
        return max(found, key=_number, default=None)

    def _answer(self, last: JobDetails | None) -> dict[str, Any] | None:
        """Of a job that has ended well, that the same had submitted and may not know of."""
        if last is None or last.status != JobStatus.SUCCEEDED:
            return None
        if not self.asked_by or _asked_by(last) != self.asked_by:
            return None
        return self._read(last, LogReader()).result

    def _submit(self, last: JobDetails | None) -> bool:
        """Whether it was this one that did."""
        number = _number(last) if last is not None else 0
        local = self.work.ray.model_copy(update={"address": "auto", "wheel": None})
        request = self.work.model_copy(update={"ray": local}).model_dump_json()
        env = {WORK: request, VERSION: version(), "RAY_JOB_STOP_WAIT_TIME_S": str(DRIVER_STOP_S)}
        self.submission = f"{self.name}-{number + 1}"
        with _shipped(self.work.ray.wheel) as runtime_env:
            try:
                self.api.submit(
                    self.submission,
                    entrypoint=ENTRY,
                    runtime_env={**runtime_env, "env_vars": env},
                    metadata={"asked_by": self.asked_by, "latentlake": version()},
                )
            except (
                SubmissionExists
            ):  # another one asks for the same, or an answer to ourselves was lost
                log.info("following the Ray job %s", self.submission)
                return False
        log.info("submitted as the Ray job %s", self.submission)
        return True

    def _follow(self) -> tuple[JobDetails, LogReader]:
        """Pass its log on until it ends."""
        log, next_read = LogReader(), 0.0
        while True:
            info = self.api.info(self.submission)
            if info.status.is_terminal():
                return info, self._read(info, log)
            if time.monotonic() >= next_read:
                read = 0
                with contextlib.suppress(ClusterError):  # of the log alone: the job goes on
                    read = log.text(self.api.log(self.submission, within_s=0.0))
                next_read = time.monotonic() + max(POLL_S, read / BYTES_PER_S)
            time.sleep(POLL_S)

    def _read(self, info: JobDetails, log: LogReader) -> LogReader:
        """All that a job that has ended reported; where its log is away, what was read before."""
        with contextlib.suppress(ClusterError):
            log.text(self.api.log(str(info.submission_id), LOG_S), all_of_it=True)
        return log


def _number(job: JobDetails) -> int:
    number = str(job.submission_id).rsplit("-", 1)[1]
    return int(number) if number.isdigit() else 0


def _is_stuck(job: JobDetails) -> bool:
    """Nobody watches over it: its submission was cut off half-way."""
    waited = time.time() - (job.start_time or 0) / 1000
    return job.status == JobStatus.PENDING and waited > START_S


def _asked_by(job: JobDetails) -> str | None:
    return (job.metadata or {}).get("asked_by")


def _outcome(submission: str, info: JobDetails, log: LogReader) -> dict[str, Any]:
    if info.status == JobStatus.SUCCEEDED and log.result is not None:
        return log.result
    if log.error is not None:
        raise log.error
    if info.status == JobStatus.STOPPED:
        raise JobError(f"the Ray job {submission} was stopped; run it again, it goes on from there")
    message = f"the Ray job {submission} {info.status}: {info.message}"
    message = "\n".join([message, *log.last])
    if info.error_type == "RUNTIME_ENV_SETUP_FAILURE":
        raise InputError(message)
    if 0 < (info.driver_exit_code or 0) < KILLED:
        raise JobError(message)
    raise ClusterError(message)
