"""What drift has found so far, as the catalog has it."""

from __future__ import annotations

from typing import Any

from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import DRIFT
from jobs.tables import catalog


def judgements(lake: LakePaths, model: str, version: str, dataset: str) -> list[dict[str, Any]]:
    """Return the combined rows of a model version and dataset, oldest first."""
    rows = _rows(lake, model, version, dataset)
    return sorted((r for r in rows if r["test"] == "combined"), key=lambda r: r["sequence"])


def latest(
    lake: LakePaths, model: str, version: str, dataset: str, night: str | None = None
) -> list[dict[str, Any]]:
    """All rows of the last judgement, of a night's last one where given: the combined one first,
    then by p-value. Empty where there is none."""
    rows = _rows(lake, model, version, dataset)
    chosen = [row for row in rows if night is None or row["night"] == night]
    last = max((row["sequence"] for row in chosen), default=None)
    found = [row for row in chosen if row["sequence"] == last]
    return sorted(found, key=lambda row: (row["test"] != "combined", row["p_value"] or 0.0))


def drift_found(lake: LakePaths, model: str, version: str, dataset: str, after: int = -1) -> bool:
    """Whether drift was found on the last night that tested anything, in images of a later version
    than `after`."""
    tested = [r for r in judgements(lake, model, version, dataset) if r["drifted"] is not None]
    return any(
        row["drifted"] and row["last_version"] > after
        for row in tested
        if row["night"] == tested[-1]["night"]
    )


def _rows(lake: LakePaths, model: str, version: str, dataset: str) -> list[dict[str, Any]]:
    wanted = {"model": model, "model_version": version, "dataset": dataset}
    rows = catalog.catalog_rows(lake, DRIFT.name)
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]
