"""What a stage unit is given, by its kind."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.engine.corrections import Correction
from jobs.engine.plan import Unit
from jobs.sources.base import FileRange


@dataclasses.dataclass(frozen=True)
class ReadRanges:
    """Ranges of source files, to be staged."""

    parts: list[FileRange]

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit."""
        return Unit.of(fingerprint, {"parts": [part.to_json() for part in self.parts]})


@dataclasses.dataclass(frozen=True)
class LeavingOrder:
    """What leaves with source files that have gone.

    It is too large to go to every rewrite, which read it from the completion of this one.

    Attributes:
        order: `gone` files, `homes` that images move to, and the `night`.
    """

    order: dict[str, Any]

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit, which the job does itself."""
        return Unit.of(fingerprint, {"leaving": self.order}, "closing")


@dataclasses.dataclass(frozen=True)
class StageRewrite:
    """A published file, to be written again without rows that leave.

    Attributes:
        table: its table's name.
        path: within the table.
        order: id of the closing unit whose completion says what leaves.
    """

    table: str
    path: str
    order: str

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit."""
        inputs: dict[str, Any] = {"rewrite": self.table, "path": self.path, "order": self.order}
        return Unit.of(fingerprint, inputs, "rewrite")


def payload_of(unit: Unit) -> ReadRanges | StageRewrite | Correction:
    """Read what a unit is given."""
    inputs = unit.inputs
    match unit.kind:
        case "work":
            return ReadRanges([FileRange.from_json(raw) for raw in inputs["parts"]])
        case "rewrite":
            return StageRewrite(inputs["rewrite"], inputs["path"], inputs["order"])
        case "correction":
            return Correction.of_unit(unit)
    raise AssertionError(f"stage has no units of kind {unit.kind}")
