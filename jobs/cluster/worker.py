"""What does a job's units, and how many there are."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Protocol

from jobs.engine.plan import Completion, JobContext, Unit
from jobs.lake.paths import LakePaths


class Worker(Protocol):
    """Does a job's units, one at a time; made once an actor."""

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Read the unit's inputs, write its outputs under names that carry the attempt."""
        ...


WorkerFactory = Callable[[LakePaths, JobContext], Worker]


@dataclasses.dataclass(frozen=True)
class ImportedWorker:
    """A factory that imports the worker's class where units are done.

    Most bring torch, which takes seconds, and the driver needs none of it.
    """

    module: str
    name: str

    def __call__(self, lake: LakePaths, context: JobContext) -> Worker:
        """Import the class and make one."""
        return getattr(importlib.import_module(self.module), self.name)(lake, context)


@dataclasses.dataclass(frozen=True)
class Workers:
    """Those of a pool: one CPU each.

    most: None for one a free CPU. least: a job begins with as many, and takes more as they find
    room; None where it wants all of them. device: of each; cuda, a GPU each, or auto, which is
    cuda where there are enough GPUs. units_at_once: that a worker has in hand, so that it reads
    and writes one while another is computed.
    """

    most: int | None
    least: int | None = None
    device: str = "cpu"
    units_at_once: int = 1
