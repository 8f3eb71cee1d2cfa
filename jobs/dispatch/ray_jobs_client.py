"""A cluster's job API (`http://HEAD:8265`), with bounds on every wait."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from jobs.errors import ClusterError, InputError

log = logging.getLogger("latentlake")

T = TypeVar("T")

POLL_S = 1.0
CONNECT_S = 10.0
LOST_S = 120.0  # that a cluster may be silent, once it has answered
STOP_S = 5.0  # that a stop is waited for; it goes on without us
# What Ray's client would put in the place of the address that it is given.
REPLACES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_SILENT = re.compile(r"status code 5\d\d")  # a dashboard that starts anew, an agent that has gone


class SubmissionExists(Exception):
    """A submission of that id is there."""


class _Client(JobSubmissionClient):
    """Ray's, whose requests have no timeout (2.60)."""

    timeout_s = (5.0, 30.0)  # to connect, and for the next bytes

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=self.timeout_s, **options)


class JobApi:
    """Asks again while the cluster does not answer.

    Raises ClusterError where it goes on not answering, or refuses; InputError for a wrong token.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        with _by_its_address():
            self._client = self._asked(lambda: _Client(address), CONNECT_S)

    def jobs(self) -> list[JobDetails]:
        """All that the cluster remembers and that were submitted."""
        return [job for job in self._asked(self._client.list_jobs) if job.submission_id]

    def info(self, submission: str) -> JobDetails:
        """Ask for a submission's state."""
        return self._asked(lambda: self._client.get_job_info(submission))

    def log(self, submission: str, within_s: float = LOST_S) -> str:
        """As it is now."""
        return self._asked(lambda: self._client.get_job_logs(submission), within_s)

    def submit(self, submission: str, **what: Any) -> None:
        """Submit it. Raises SubmissionExists where there is one of that id."""

        def submit() -> None:
            try:
                self._client.submit_job(submission_id=submission, **what)
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise SubmissionExists from error
                raise

        self._asked(submit)

    def stop(self, submission: str) -> None:
        """Asks for its end, also while it is only on its way, and waits for it a while.

        Raises nothing: whatever cuts a run short is what its run should tell.
        """
        log.warning("stopping the Ray job %s", submission)
        self._client.timeout_s = (1.0, 2.0)
        deadline = time.monotonic() + STOP_S
        why: object = "it is still ending"
        while time.monotonic() < deadline:
            try:
                self._client.stop_job(submission)
                if self._client.get_job_status(submission).is_terminal():
                    return
            except Exception as error:  # noqa: BLE001 - a cluster that has gone, a job not there yet
                why = error
            time.sleep(0.5)
        log.warning("the Ray job %s was to stop; not seen to have ended: %s", submission, why)

    def _asked(self, ask: Callable[[], T], within_s: float = LOST_S) -> T:
        deadline = time.monotonic() + within_s
        while True:
            try:
                return ask()
            except AuthenticationError as error:
                raise InputError(self._told(f": {error}")) from error
            except (OSError, RuntimeError) as error:  # requests' own are OSErrors
                if isinstance(error, RuntimeError) and not _SILENT.search(str(error)):
                    raise ClusterError(self._told(f": {error}")) from error
                if time.monotonic() > deadline:
                    raise ClusterError(self._told(f" does not answer: {error}")) from error
                log.debug("%s", self._told(f": {error}"))
            time.sleep(POLL_S)

    def _told(self, what: str) -> str:
        """Without what may be a password in the address."""
        return re.sub(r"//[^/@\s]*@", "//", f"the Ray cluster at {self._address}{what}")


@contextlib.contextmanager
def _by_its_address() -> Iterator[None]:
    removed = {name: os.environ.pop(name) for name in REPLACES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)
