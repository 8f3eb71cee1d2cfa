"""A job's progress in the Prefect UI: a bar, and the line that a terminal shows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from jobs.engine.progress import Progress, listening

log = logging.getLogger("latentlake")


@contextlib.contextmanager
def shown_in_prefect(name: str) -> Iterator[None]:
    """Show the progress of jobs run meanwhile as an artifact of the running task.

    name: what the artifact's key is made of, such as `stage photos`.
    """
    key = "".join(c if c.isalnum() else "-" for c in name.lower())
    artifacts: list[UUID] = []

    def show(progress: Progress) -> None:
        try:
            _show(progress)
        except Exception as error:  # noqa: BLE001 - a bar is not worth the work
            log.debug("progress: %s", error)

    def _show(progress: Progress) -> None:
        # While units are being planned, the share of those that are known.
        share = 100.0 * progress.done / max(progress.planned, 1)
        if artifacts:
            update_progress_artifact(artifacts[0], share, str(progress))
        else:
            # In a task that is no coroutine, this is none either.
            artifacts.append(cast(UUID, create_progress_artifact(share, key, str(progress))))

    with listening(show):
        yield
