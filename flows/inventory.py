"""What a lake holds, for `latentlake list`."""

from __future__ import annotations

import logging
from typing import Any

from flows.output import records_text
from jobs.bundles.manifest import read_about
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot

log = logging.getLogger("latentlake")

RUNS_SHOWN = 10


def inventory(lake: LakePaths) -> dict[str, Any]:
    """Datasets, models, aliases and runs, as plain values."""
    return {
        "lake": lake.uri,
        "datasets": [_dataset(lake, name) for name in catalog.datasets(lake)],
        "models": [row for name in catalog.models(lake) for row in _bundles(lake, name)],
        "runs": [_run(row) for row in catalog.runs(lake)[-RUNS_SHOWN:]],
    }


def _dataset(lake: LakePaths, name: str) -> dict[str, Any]:
    uri = lake.dataset(name, "images")
    version = catalog.published_versions(lake).get(lake.name_of(uri))
    snapshot = open_snapshot(uri, version) if version is not None else None
    rows = snapshot.partition_rows({}) if snapshot is not None else 0
    return {"dataset": name, "images_version": version, "images": rows}


def _bundles(lake: LakePaths, model: str) -> list[dict[str, Any]]:
    named = catalog.aliases(lake, model)
    rows = []
    for version in catalog.bundle_versions(lake, model):
        row = {
            "model": model,
            "version": version,
            "aliases": ", ".join(a for a, v in named.items() if v == version),
        }
        rows.append(row | _told(lake, model, version))
    return rows


def _told(lake: LakePaths, model: str, version: str) -> dict[str, Any]:
    """Return what its bundle says; nothing, and a word in the log, where it is damaged."""
    try:
        about = read_about(lake, model, version)
    except InputError as error:
        log.warning("%s", error)
        return dict.fromkeys(("dataset", "images_version", "validation_nats"))
    return {
        "dataset": about["data"]["dataset"],
        "images_version": about["data"]["images_version"],
        "validation_nats": about["metrics"]["validation_nats"],
    }


def _run(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("job", "target", "night", "finished_at", "seconds", "job_id")
    return {key: str(row[key]) if key == "finished_at" else row[key] for key in keys}


def inventory_text(found: dict[str, Any]) -> str:
    """Write the inventory for people."""
    parts = [f"lake {found['lake']}"]
    for kind in ("datasets", "models", "runs"):
        parts.append(f"\n{kind}\n{records_text(found[kind]) if found[kind] else 'none yet'}")
    return "\n".join(parts)
