"""Jobs whose units run in this process: all of a job but Ray, so that tests can crash it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pytest

from jobs.cluster.pool_job import PoolJob
from jobs.cluster.settings import RaySettings
from jobs.embed.job import EmbedJob
from jobs.embed.settings import EmbedSettings
from jobs.engine import records
from jobs.engine.job import Job
from jobs.engine.plan import Plan, Unit
from jobs.engine.records import save_completion
from jobs.engine.runner import run
from jobs.evaluate.job import EvaluateJob
from jobs.evaluate.settings import EvaluateSettings
from jobs.lake.paths import LakePaths
from jobs.maintain.compact import CompactJob
from jobs.stage.job import StageJob
from jobs.stage.settings import StageSettings
from jobs.telemetry.metrics import Telemetry
from jobs.train.job import TrainJob
from jobs.train.settings import TrainSettings
from jobs.train.task import TrainTask

NIGHT = "2026-01-01"
TELEMETRY: Telemetry | None = None  # of trainings; a test may want to hear them


class Inline(PoolJob):
    """Does its units here, and tells which."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.executed: list[str] = []

    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        made = self.worker()(self.lake, plan.context)
        for unit in units:
            save_completion(self.lake, plan.job_id, made.execute(unit, uuid.uuid4().hex[:8]))
            self.executed.append(unit.unit_id)


class InlineStage(Inline, StageJob):
    def __init__(self, lake: LakePaths, source: Path | str, night: str = NIGHT, **settings) -> None:
        values = {"height": 28, "width": 28, "channels": 1, "rows_per_unit": 100} | settings
        staged = StageSettings(**{"source": str(source), "dataset": "d", **values})
        super().__init__(lake, staged, night, RaySettings())


class Overtaken(Job):
    """Another job, its `rival`, publishes between this one's work and its commit."""

    rival: Job | None = None

    def settle(self, plan, completions, head):
        settled = super().settle(plan, completions, head)
        if self.rival is not None and not isinstance(settled, list):
            rival, self.rival = self.rival, None
            # At the same moment: the rival has not seen this job's plan.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(records, "unfinished_plans", lambda *a: [])
                run(rival)
        return settled


class OvertakenStage(Overtaken, InlineStage):
    def __init__(self, lake: LakePaths, source: Path | str, rival: Job, **settings) -> None:
        super().__init__(lake, source, **settings)
        self.rival = rival


class InlineEmbed(Inline, EmbedJob):
    def __init__(self, lake: LakePaths, night: str = NIGHT, **settings) -> None:
        values = {"dataset": "d", "model": "m"} | settings
        super().__init__(lake, EmbedSettings(**values), night, RaySettings())


class OvertakenEmbed(Overtaken, InlineEmbed):
    def __init__(self, lake: LakePaths, rival: Job, **settings) -> None:
        super().__init__(lake, **settings)
        self.rival = rival


class InlineEvaluate(Inline, EvaluateJob):
    def __init__(self, lake: LakePaths, night: str = NIGHT, **settings) -> None:
        values = {"dataset": "d", "model": "m", "samples": 4, "resamples": 100} | settings
        super().__init__(lake, EvaluateSettings(**values), night, RaySettings())


class OvertakenEvaluate(Overtaken, InlineEvaluate):
    def __init__(self, lake: LakePaths, rival: Job, **settings) -> None:
        super().__init__(lake, **settings)
        self.rival = rival


class InlineCompact(Inline, CompactJob):
    @classmethod
    def of(
        cls, lake: LakePaths, kind: str = "dataset", name: str = "d", night: str = NIGHT
    ) -> Self:
        return cls(lake, kind, name, night, RaySettings(), None)


class InlineTrain(TrainJob):
    """Training by one rank in this process: the worker's own loop, without Ray Train."""

    def __init__(self, lake: LakePaths, night: str = NIGHT, **settings) -> None:
        values = {
            "epochs": 2,
            "latent_dim": 4,
            "network": {"kind": "mlp", "widths": [32]},
            "batch_size": 64,
            "score_batch": 64,
            "score_samples": 2,
        } | settings
        trained = TrainSettings.model_validate({"dataset": "d", "model": "m", **values})
        super().__init__(lake, trained, night, RaySettings())
        self.executed: list[str] = []

    def fit(self, order: TrainTask) -> None:
        from jobs.train.finalize import publish
        from jobs.train.loop import Training
        from jobs.train.rank import Rank

        training = Training(order, Rank(), TELEMETRY)
        training.restore()
        training.run()
        publish(training, started=time.time())
        self.executed.append(order.version)
