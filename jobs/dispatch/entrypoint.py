"""The other end of a submission: what `python -m jobs.submitted` does on the cluster."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from typing import Any

from jobs import garbage_collection
from jobs.dispatch import log_protocol
from jobs.dispatch.log_protocol import VERSION, WORK, version
from jobs.dispatch.request import JobRequest
from jobs.dispatch.run import run_here
from jobs.engine.progress import listening
from jobs.errors import InputError, JobError, LatentlakeError


def main() -> int:
    """Exit code 0, or that of the error that was reported."""
    garbage_collection.seldom()
    log = logging.getLogger("latentlake")
    log.setLevel(logging.INFO)
    log.addHandler(log_protocol.LogLines())
    log.propagate = False
    # By default a stopped Ray job's driver is gone at once, and its training goes on for a while.
    signal.signal(signal.SIGTERM, _stop)
    try:
        _same_version(os.environ[VERSION])
        work = JobRequest.model_validate_json(os.environ[WORK])
        with listening(log_protocol.tell_progress):
            log_protocol.tell("result", run_here(work))
    except LatentlakeError as error:
        log_protocol.tell_error(error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - reported on the other side, and not tried again
        traceback.print_exc()
        log_protocol.tell_error(JobError(f"{type(error).__name__}: {error}"))
        return JobError.exit_code
    return 0


def _same_version(theirs: str) -> None:
    if theirs != version():
        raise InputError(
            f"the cluster has latentlake {version()}, this side {theirs}: bring its image up to "
            "date, or name a wheel to ship with `wheel:`"
        )


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt
