"""A training's charts in an MLflow tracking server, where the environment names one."""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from jobs.errors import InputError
from jobs.telemetry.metrics import BadStep, Listener, Metric

log = logging.getLogger("latentlake")

MLFLOW = "MLFLOW_TRACKING_URI"
CLOSE_S = 30.0  # that a training's end waits for a slow server
BATCH = 500  # metrics a call; the server takes a thousand


class Mlflow(Listener):
    """A run in the tracking server that MLFLOW_TRACKING_URI names, found again by its tag.

    Calls go out in the background: a slow server holds up nothing, and one that is away costs its
    charts alone.
    """

    def __init__(self, model: str, version: str, settings: dict[str, Any]) -> None:
        """Raise InputError where the mlflow package is missing."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing calls home
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric as Logged
            from mlflow.entities import Param
        except ImportError as error:
            raise InputError(
                f"{MLFLOW} is set, but mlflow is not installed: pip install mlflow-skinny, or "
                "unset it"
            ) from error
        self._client, self._metric, self._param = MlflowClient(), Logged, Param
        self._about = (model, version, settings)
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A daemon: a server that never answers does not keep the process.
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    @override
    def metrics(self, metrics: Sequence[Metric]) -> None:
        now = int(time.time() * 1000)
        for metric in metrics:
            if not isinstance(metric.value, list):
                value = float(metric.value)
                self._waiting.put(self._metric(metric.name, value, now, metric.step))

    @override
    def bad_step(self, bad: BadStep) -> None:
        self._waiting.put(bad)

    @override
    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("mlflow: not all of the charts got there in %.0f s", CLOSE_S)

    def _send(self) -> None:
        try:
            run_id = self._run_id(*self._about)
            while self._sent(run_id, self._taken()):
                pass
            self._client.set_terminated(run_id)
        except Exception as error:  # noqa: BLE001
            # A thread's edge, of a foreign library; a chart is not worth a training.
            log.warning("mlflow is left out: %s", error)

    def _run_id(self, model: str, version: str, settings: dict[str, Any]) -> str:
        found = self._client.get_experiment_by_name(model)
        experiment = found.experiment_id if found else self._client.create_experiment(model)
        same = f"tags.latentlake_version = '{version}'"
        runs = self._client.search_runs([experiment], same, max_results=1)
        if runs:
            return runs[0].info.run_id
        tags = {"latentlake_version": version}
        run = self._client.create_run(experiment, run_name=f"{model}-{version}", tags=tags)
        params = [self._param(name, value) for name, value in flat(settings).items()]
        for start in range(0, len(params), 100):  # as many as the server takes
            self._client.log_batch(run.info.run_id, params=params[start : start + 100])
        return run.info.run_id

    def _taken(self) -> list[Any]:
        """Return what waits, at least one; None is the end."""
        found = [self._waiting.get()]
        while len(found) < BATCH and not self._waiting.empty():
            found.append(self._waiting.get())
        return found

    def _sent(self, run_id: str, items: list[Any]) -> bool:
        """Send what waits; return False at the end."""
        bad = [item for item in items if isinstance(item, BadStep)]
        metrics = [item for item in items if isinstance(item, self._metric)]
        if metrics:
            self._client.log_batch(run_id, metrics=metrics)
        for one in bad:
            self._client.set_tag(run_id, f"bad_step_{one.step}", one.reason[:500])
        return None not in items


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted names, as the server takes them."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[re.sub(r"[^\w./ -]", "_", prefix + name)] = str(value)[:500]
    return found
