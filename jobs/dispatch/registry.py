"""Every job of the project by name: its settings, what runs it, its command and its Prefect task.

Imports neither Ray nor torch: what runs a job is imported where it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Literal

from jobs.drift.settings import DriftSettings
from jobs.embed.settings import DropSettings, EmbedSettings, MapSettings
from jobs.errors import unknown_name
from jobs.evaluate.settings import EvaluateSettings
from jobs.maintain.settings import MaintainSettings
from jobs.promote.settings import PromoteSettings
from jobs.settings import Settings
from jobs.stage.settings import StageSettings
from jobs.sweep.settings import SweepSettings
from jobs.train.settings import TrainSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobKind:
    """What there is to know of a job before it runs.

    Attributes:
        runs: MODULE:NAME of its class or, where it is no job of one plan, of its function.
        command: the subcommand of `latentlake` that runs it.
        settings: None where its command calls it with plain arguments.
        makes: which of its settings names what it makes; None where it is no request, which a
            cluster could be given.
        task: its function in `flows.nightly.tasks`; None where no flow runs it.
        workers: whether its units run on Ray workers; else one process does it.
    """

    runs: str
    command: str
    settings: type[Settings] | None = None
    makes: Literal["dataset", "model"] | None = None
    task: str | None = None
    workers: bool = False

    @property
    def on_cluster(self) -> bool:
        """Whether it may be submitted as a Ray job, to http://HEAD:8265."""
        return self.makes is not None

    def load(self) -> Any:
        """Import what runs it."""
        module, _, name = self.runs.partition(":")
        return getattr(importlib.import_module(module), name)


JOBS: dict[str, JobKind] = {
    "stage": JobKind(
        runs="jobs.stage.job:StageJob",
        command="stage",
        settings=StageSettings,
        makes="dataset",
        task="stage",
        workers=True,
    ),
    "train": JobKind(
        runs="jobs.train.job:TrainJob",
        command="train",
        settings=TrainSettings,
        makes="model",
        task="train",
        workers=True,
    ),
    "embed": JobKind(
        runs="jobs.embed.job:EmbedJob",
        command="embed",
        settings=EmbedSettings,
        makes="model",
        task="embed",
        workers=True,
    ),
    "evaluate": JobKind(
        runs="jobs.evaluate.job:EvaluateJob",
        command="evaluate",
        settings=EvaluateSettings,
        makes="model",
        task="evaluate",
        workers=True,
    ),
    "drift": JobKind(
        runs="jobs.drift.job:DriftJob",
        command="drift",
        settings=DriftSettings,
        makes="model",
        task="drift",
    ),
    "promote": JobKind(
        runs="jobs.promote.job:PromoteJob",
        command="promote",
        settings=PromoteSettings,
        makes="model",
        task="promote",
    ),
    "drop": JobKind(
        runs="jobs.embed.drop:DropJob",
        command="drop",
        settings=DropSettings,
        makes="model",
    ),
    "map": JobKind(
        runs="jobs.embed.map:MapJob",
        command="map",
        settings=MapSettings,
        makes="model",
    ),
    "maintain": JobKind(
        runs="jobs.maintain.run:maintain",
        command="maintain",
        settings=MaintainSettings,
        makes="dataset",
        task="maintain",
        workers=True,
    ),
    # A part of maintain.
    "compact": JobKind(runs="jobs.maintain.compact:CompactJob", command="maintain", workers=True),
    "sweep": JobKind(
        runs="jobs.sweep.job:sweep", command="sweep", settings=SweepSettings, workers=True
    ),
    "index": JobKind(runs="jobs.search.index:build", command="index"),
    "report": JobKind(runs="jobs.report.write:write_report", command="report", task="report"),
}


def kind_of(settings: Settings) -> str:
    """Name the job whose settings these are."""
    return next(
        name for name, kind in JOBS.items() if kind.on_cluster and kind.settings is type(settings)
    )


def requested(name: str) -> JobKind:
    """Look up a job that a request may ask for. Raises InputError, which names those there are."""
    kind = JOBS.get(name)
    if kind is None or not kind.on_cluster:
        raise unknown_name("job", name, [known for known, kind in JOBS.items() if kind.on_cluster])
    return kind
