"""maintain: compaction, then vacuum, of a lake or a part of it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from jobs.cluster.settings import RaySettings
from jobs.engine import runner
from jobs.errors import unknown_name
from jobs.lake.paths import LakePaths
from jobs.maintain.abandoned_plans import end_left_plans
from jobs.maintain.compact import CompactJob
from jobs.maintain.settings import MaintainSettings
from jobs.maintain.vacuum import vacuum
from jobs.tables import catalog


def maintain(
    lake: LakePaths,
    settings: MaintainSettings,
    night: str,
    ray_settings: RaySettings,
    *,
    dry_run: bool = False,
    compact_job: type[CompactJob] = CompactJob,
) -> dict[str, Any]:
    """Return what was merged, by dataset and model, and what was removed.

    Raises InputError for an unknown dataset or model.
    """
    datasets, models = _chosen(lake, settings)
    done: dict[str, Any] = {"dry_run": dry_run, "compacted": [], "left_plans": []}
    done["vacuumed"] = None
    parts = [("dataset", name) for name in datasets] + [("model", name) for name in models]
    for kind, name in parts if settings.compact else ():
        work = compact_job(lake, kind, name, night, ray_settings, settings.workers)
        if dry_run:
            units = runner.planned(work).units
            files = sum(len(unit.inputs["paths"]) for unit in units)
            counts: dict[str, Any] = {"files_merged": files, "files_made": len(units)}
        else:
            counts = runner.run(work).counts
        done["compacted"].append({kind: name, **counts})
    if settings.vacuum:
        whole = settings.dataset is None and settings.model is None
        names = None if whole else [*datasets, *models]
        ended = end_left_plans(lake, names, now=time.time(), dry_run=dry_run)
        done["left_plans"] = [dataclasses.asdict(plan) for plan in ended]
        removed = vacuum(lake, datasets, models, keep_days=settings.keep_days, dry_run=dry_run)
        done["vacuumed"] = dataclasses.asdict(removed)
    return done


def _chosen(lake: LakePaths, settings: MaintainSettings) -> tuple[list[str], list[str]]:
    only = settings.dataset is not None or settings.model is not None
    chosen = []
    for kind, wanted, known in (
        ("dataset", settings.dataset, catalog.datasets(lake)),
        ("model", settings.model, catalog.models(lake)),
    ):
        if wanted is not None and wanted not in known:
            raise unknown_name(kind, wanted, known)
        chosen.append([wanted] if wanted is not None else [] if only else known)
    return chosen[0], chosen[1]


def maintained_text(done: dict[str, Any]) -> str:
    """Return the same for people."""
    would = "would be " if done["dry_run"] else ""
    lines = []
    for part in done["compacted"]:
        kind = "dataset" if "dataset" in part else "model"
        merged, made = part.get("files_merged", 0), part.get("files_made", 0)
        text = f"{merged} files {would}merged into {made}" if merged else "nothing to merge"
        lines.append(f"{kind} {part[kind]}: {text}")
    for plan in done["left_plans"]:
        what = f"{plan['job']} {plan['target']} of {plan['night']} ({plan['job_id']})"
        if plan["done"]:
            lines.append(f"{what} was published, and {would}finished")
        else:
            lines.append(f"{what} {would or 'was '}given up: {plan['why']}")
    if done["vacuumed"] is not None:
        removed = done["vacuumed"]
        lines.append(
            f"{removed['files']} files, {removed['bytes'] / 2**20:,.1f} MiB, and the remains of "
            f"{removed['plans']} plans {would}removed"
        )
    return "\n".join(lines) or "nothing to maintain"
