"""Units, plans and completions: pure descriptions of distributed work.

A plan is a list of units; a unit's id derives from its inputs and the fingerprint of the
config, so the same work always has the same name. Nothing here reads, writes or schedules.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

from jobs.hashing import digest
from jobs.tables.data_file import Output

UnitKind = Literal["work", "correction", "rewrite", "summary", "closing"]


@dataclasses.dataclass(frozen=True)
class Unit:
    """One independent piece of work: named inputs in, named outputs out.

    Attributes:
        unit_id: derives from the inputs and the config's fingerprint.
        inputs: as JSON has them; each room has types for those of its kinds.
        kind: work is planned. What settling asks for: a correction writes a unit's outputs again
            without rows that are published elsewhere, a rewrite a published file without rows that
            leave, a summary brings together what the others found, and closing, which the job
            does itself, writes what follows from all of them.
    """

    unit_id: str
    inputs: dict[str, Any]
    kind: UnitKind = "work"

    @classmethod
    def of(cls, fingerprint: str, inputs: dict[str, Any], kind: UnitKind = "work") -> Unit:
        """Name a unit after its inputs."""
        return cls(digest(fingerprint, inputs), inputs, kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one job will do. `base` names the table versions that the planning looked at.

    key: what it is about where its units do not tell, because they come while it runs, or because
    it has none but something to settle. A plan with neither has nothing to do.
    """

    job: str
    target: str
    fingerprint: str
    night: str
    base: dict[str, int]
    settings: dict[str, Any]
    units: list[Unit] = dataclasses.field(default_factory=list)
    key: list[Any] = dataclasses.field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.units and not self.key

    @property
    def job_id(self) -> str:
        """Name the job after what it does."""
        # `base` stays out: other jobs may publish between a crash and the rerun.
        ids = [unit.unit_id for unit in self.units]
        about = (self.job, self.target, self.fingerprint, self.night, self.key, ids)
        return f"{self.job}-{digest(*about)}"

    @property
    def context(self) -> JobContext:
        """Return what all of its units share."""
        return JobContext(
            job_id=self.job_id, night=self.night, base=self.base, settings=self.settings
        )

    @property
    def checksum(self) -> str:
        """Of what its id does not tell."""
        return digest(self.settings, self.base)

    def to_json(self) -> bytes:
        """Write it as JSON."""
        return json.dumps(dataclasses.asdict(self) | {"checksum": self.checksum}).encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobContext:
    """What all units of a job share: a plan without its units."""

    job_id: str
    night: str
    base: dict[str, int]
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """What one unit did. Written after its outputs; the first one of a unit wins.

    kind: of the unit. replaces: by table, paths of published files that the outputs take the
    place of.
    """

    unit_id: str
    attempt: str
    outputs: list[Output]
    counts: dict[str, int]
    seconds: float
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    replaces: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    kind: UnitKind = "work"

    def to_json(self) -> bytes:
        """Write it as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    def outputs_of(self, table: str) -> list[Output]:
        """Return the files that it wrote for a table."""
        return [output for output in self.outputs if output.table == table]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommitPlan:
    """What a job publishes: files to add and paths to remove, by table URI, in commit order.

    same_rows: rows only move to other files, which readers of changes pass over.
    """

    files: dict[str, list[Output]]
    removed: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    same_rows: bool = False


def total_counts(completions: Sequence[Completion]) -> dict[str, int]:
    """Return the counts of all completions, added up by name."""
    totals: dict[str, int] = {}
    for completion in completions:
        for name, count in completion.counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals


def slices(rows: int, size: int) -> list[tuple[int, int]]:
    """[start, stop) ranges that cover `rows` once, none longer than `size`, of even length."""
    if rows == 0:
        return []
    pieces = -(-rows // size)
    bounds = [rows * i // pieces for i in range(pieces + 1)]
    return list(itertools.pairwise(bounds))
