"""Corrections: a unit's outputs written again, without rows that are published elsewhere.

Units do not talk to each other. What two units of a job, or two jobs at once, both produced is
found before the commit, and a correction unit writes what is left under new names.
"""

from __future__ import annotations

from typing import Any

from jobs.engine.plan import Completion, Unit


def latest_completions(completions: dict[str, Completion]) -> dict[str, Completion]:
    """By unit of the plan: its completion, or that of the last correction of it."""
    latest: dict[str, Completion] = {}
    for unit_id, completion in completions.items():
        of = completion.details.get("of", unit_id)
        known = latest.get(of)
        if known is None or _generation(completion) > _generation(known):
            latest[of] = completion
    return latest


def correction_unit(fingerprint: str, completion: Completion, drop: dict[str, Any]) -> Unit:
    """drop: what the job's worker shall leave out, in the job's own terms."""
    return Unit.of(
        fingerprint,
        {
            "of": completion.details.get("of", completion.unit_id),
            "generation": _generation(completion) + 1,
            "outputs": _paths(completion),
            "counts": completion.counts,
            **drop,
        },
    )


def _paths(completion: Completion) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for output in completion.outputs:
        paths.setdefault(output.table, []).append(output.path)
    return paths


def is_correction(unit: Unit) -> bool:
    return "of" in unit.inputs


def correction_details(unit: Unit) -> dict[str, Any]:
    """What a correction's completion must carry."""
    return {"of": unit.inputs["of"], "generation": unit.inputs["generation"]}


def _generation(completion: Completion) -> int:
    return completion.details.get("generation", 0)
