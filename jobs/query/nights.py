"""The nights of a model: what each tested and flagged, and whether its p-values are valid."""

from __future__ import annotations

import dataclasses

from jobs.query.api import Embeddings


@dataclasses.dataclass(frozen=True)
class NightCounts:
    """calibration_valid: of all its batches, and no drift was found. why: it is not.
    drift_tested: of every dataset that has a batch."""

    night: str
    tested: int
    flagged: int
    alpha: float
    calibration_valid: bool
    why: str = ""
    drift_tested: bool = True


def nights(of: Embeddings) -> list[NightCounts]:
    """Newest first, over all datasets."""
    mine = "model = ? AND model_version = ?"
    params = [of.model, of.version]
    found = of.lake.sql(
        f"""
        SELECT b.night, sum(tested) AS tested, sum(flagged) AS flagged, max(alpha) AS alpha,
               bool_and(coalesce(calibration_valid, true)) AS computed_alike,
               bool_or(d.drifted) AS drifted, bool_and(d.drifted IS NOT NULL) AS drift_tested
        FROM (SELECT * FROM batches WHERE {mine}) b
        LEFT JOIN (SELECT night, dataset, bool_or(drifted) AS drifted FROM drift
                   WHERE {mine} AND test = 'combined' GROUP BY night, dataset) d
               ON d.night = b.night AND d.dataset = b.dataset
        GROUP BY b.night ORDER BY b.night DESC
        """,
        [*params, *params],
    )
    return [_night(row) for row in found.to_pylist()]


def _night(row: dict) -> NightCounts:
    why = []
    if row["drifted"]:
        why.append("drift was found: the images are not like those of the calibration any more")
    elif not row["computed_alike"]:
        why.append("drift was found, or scores and calibration were computed differently")
    return NightCounts(
        row["night"],
        int(row["tested"] or 0),
        int(row["flagged"] or 0),
        float(row["alpha"] or 0.0),
        not why,
        "; ".join(why),
        row["drift_tested"],
    )
