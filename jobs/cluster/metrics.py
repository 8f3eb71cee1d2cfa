"""What a worker's units did, as metrics that Ray serves to Prometheus."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from jobs.engine.plan import Completion

SECONDS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
TAGS = ("kind", "target")  # Prometheus has a label `job` of its own


class UnitMetrics:
    """Of one kind of job and one target: units, what they counted, and how long each took."""

    def __init__(self, kind: str, target: str) -> None:
        self.tags = {"kind": kind, "target": target}
        self.units = Counter("latentlake_units", "Units that are done", TAGS)
        self.counts = Counter(
            "latentlake_counts", "Rows, refusals and files of units that are done", (*TAGS, "count")
        )
        self.seconds = Histogram("latentlake_unit_seconds", "Of a unit", SECONDS, TAGS)

    def add(self, completion: Completion) -> None:
        """Count a unit that is done."""
        self.units.inc(1, self.tags)
        self.seconds.observe(max(completion.seconds, 1e-6), self.tags)
        for name, value in completion.counts.items():
            if value > 0:
                self.counts.inc(value, {**self.tags, "count": name})
