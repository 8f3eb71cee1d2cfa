"""A job's other end: what a Ray job of ours runs on the cluster, `python -m jobs.submitted`."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import sys
import traceback
from typing import Any

from jobs import collector, wire
from jobs.errors import InputError, JobError, LatentlakeError
from jobs.progress import listening
from jobs.work import Work

WORK = "LATENTLAKE_WORK"  # of the environment: the work, as JSON
VERSION = "LATENTLAKE_VERSION"  # of who submits


def version() -> str:
    """Of the latentlake that runs here."""
    return importlib.metadata.version("latentlake")


def main() -> int:
    """Exit code 0, or that of the error that was told."""
    collector.seldom()
    log = logging.getLogger("latentlake")
    log.setLevel(logging.INFO)
    log.addHandler(wire.LogLines())
    log.propagate = False
    # By default a stopped Ray job's driver is gone at once, and its training goes on for a while.
    signal.signal(signal.SIGTERM, _stop)
    try:
        _same_version(os.environ[VERSION])
        work = Work.model_validate_json(os.environ[WORK])
        with listening(wire.tell_progress):
            wire.tell("result", work.run_here())
    except LatentlakeError as error:
        wire.tell_error(error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - told on the other side, and not tried again
        traceback.print_exc()
        wire.tell_error(JobError(f"{type(error).__name__}: {error}"))
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


if __name__ == "__main__":
    sys.exit(main())
