"""Corrections: a unit's outputs written again, without rows that are published elsewhere.

Units do not talk to each other. What two units of a job, or two jobs at once, both produced is
found before the commit, and a correction unit writes what is left under new names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.engine.plan import Completion, Unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
    """What a correction unit is given.

    Attributes:
        of: the unit of the plan whose outputs are written again.
        generation: how often they have been, this time included.
        outputs: paths of what it has written last, by table.
        counts: what it counted.
        drop: what is to be left out, in the job's own terms.
    """

    of: str
    generation: int
    outputs: dict[str, list[str]]
    counts: dict[str, int]
    drop: dict[str, Any]

    def unit(self, fingerprint: str) -> Unit:
        """Make it a unit."""
        inputs = dataclasses.asdict(self)
        return Unit.of(fingerprint, {**inputs.pop("drop"), **inputs}, "correction")

    @classmethod
    def of_unit(cls, unit: Unit) -> Correction:
        """Read what a correction unit is given."""
        own = {field.name for field in dataclasses.fields(cls)} - {"drop"}
        drop = {key: value for key, value in unit.inputs.items() if key not in own}
        return cls(**{key: unit.inputs[key] for key in own}, drop=drop)

    @property
    def details(self) -> dict[str, Any]:
        """What its completion must carry."""
        return {"of": self.of, "generation": self.generation}


def corrected_unit(completion: Completion) -> str:
    """Return the unit of the plan that a completion, or a correction of it, is about."""
    return completion.details["of"] if completion.kind == "correction" else completion.unit_id


def latest_completions(completions: dict[str, Completion]) -> dict[str, Completion]:
    """By unit of the plan: its completion, or that of the last correction of it."""
    latest: dict[str, Completion] = {}
    for completion in completions.values():
        of = corrected_unit(completion)
        known = latest.get(of)
        if known is None or _generation(completion) > _generation(known):
            latest[of] = completion
    return latest


def correction_unit(fingerprint: str, completion: Completion, drop: dict[str, Any]) -> Unit:
    """drop: what the job's worker shall leave out, in the job's own terms."""
    paths: dict[str, list[str]] = {}
    for output in completion.outputs:
        paths.setdefault(output.table, []).append(output.path)
    return Correction(
        of=corrected_unit(completion),
        generation=_generation(completion) + 1,
        outputs=paths,
        counts=completion.counts,
        drop=drop,
    ).unit(fingerprint)


def _generation(completion: Completion) -> int:
    return completion.details["generation"] if completion.kind == "correction" else 0
