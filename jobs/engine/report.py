"""What a job tells when it ends."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobReport:
    """What one call of a job did. `units` is what it executed itself; 0 units: nothing to do."""

    job: str
    target: str
    job_ids: list[str] = dataclasses.field(default_factory=list)
    units: int = 0
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    rows_per_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)


# Counts that do not add up: the later one is reported.
LATEST = ("fewest_flaggable", "drifted", "arrivals", "reference")


def merged(first: JobReport, second: JobReport) -> JobReport:
    """Two runs of one job as one report."""
    if not first.job_ids:
        return second
    counts = dict(first.counts)
    for name, value in second.counts.items():
        both = name not in LATEST and _adds_up(value) and _adds_up(counts.get(name))
        counts[name] = counts[name] + value if both else value
    return dataclasses.replace(
        second,
        job_ids=first.job_ids + second.job_ids,
        units=first.units + second.units,
        counts=counts,
        seconds=first.seconds + second.seconds,
    )


def _adds_up(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
