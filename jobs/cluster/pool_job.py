"""A job whose units run in a pool of Ray actors."""

from __future__ import annotations

import abc
from collections.abc import Iterable

from typing_extensions import override

from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import WorkerFactory, Workers
from jobs.engine.job import Job
from jobs.engine.plan import Plan, Unit
from jobs.lake.paths import LakePaths


class PoolJob(Job):
    """A job whose units run in a pool of Ray actors."""

    def __init__(
        self,
        lake: LakePaths,
        target: str,
        night: str,
        ray_settings: RaySettings,
        workers: int | None,
    ) -> None:
        """workers: None for one a CPU."""
        super().__init__(lake, target)
        self.night = night
        self.ray_settings = ray_settings
        self.workers = Workers(workers)

    @abc.abstractmethod
    def worker(self) -> WorkerFactory:
        """Return what each actor makes once, to do its units with."""

    @override
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        from jobs.cluster import executor  # brings Ray: only where there is work

        executor.run_units(
            self.worker(),
            self.lake,
            plan,
            units,
            workers=self.workers,
            ray_settings=self.ray_settings,
            report_count=self.rows_counted,
        )
