"""What ends with a cancelled run: also jobs on a cluster that its process could not stop."""

from __future__ import annotations

import logging
from typing import Any

from flows.nightly.settings import load_nightly

log = logging.getLogger("latentlake")


def stop_jobs(flow: Any, flow_run: Any, state: Any) -> None:
    """Stop the run's jobs on a cluster: a hook of flows, which their worker runs.

    Between two attempts nobody listens, and a process that ends too slowly is killed.
    """
    try:
        settings = load_nightly(flow_run.parameters["config"])
        if settings.ray.takes_jobs:
            from jobs.dispatch.submit import stop_all_of

            stop_all_of(str(settings.ray.address), str(flow_run.id))
    except Exception as error:  # noqa: BLE001 - the run is cancelled, whatever else is wrong
        log.warning("cancelled, but its Ray jobs could not be looked for: %s", error)
