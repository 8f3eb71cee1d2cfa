"""Plans that their jobs have left behind: finished where they are published, else given up in time.

A job finishes what its own earlier calls began. Where nobody asks for the very same again, but with
other settings say, the plan would stay for ever, and vacuum would keep its files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from jobs.engine import commit as engine_commit
from jobs.engine import records
from jobs.engine.plan import Plan
from jobs.errors import LatentlakeError
from jobs.lake.documents import damaged, json_column
from jobs.lake.paths import LakePaths
from jobs.lake.storage import folder_names, join, names_in, read
from jobs.lake.walk import last_touched
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot

log = logging.getLogger("latentlake")

Runs = list[dict[str, Any]]  # rows of `catalog/runs`

DAY_S = 86_400.0
IDLE_DAYS = 1.0  # before that somebody may be at work on it
MOST_DAYS = 30.0
# What two plans of a job and target must share to be about the same work.
ABOUT = ("dataset", "model", "model_version", "alias", "source", "kind")


@dataclasses.dataclass(frozen=True)
class LeftPlan:
    """done: it was published, and now has its row in `catalog/runs`. days: since it was touched.

    why: it is given up.
    """

    job_id: str
    job: str
    target: str
    night: str
    days: float
    done: bool
    why: str = ""


def end_left_plans(
    lake: LakePaths, names: list[str] | None, *, now: float, dry_run: bool = False
) -> list[LeftPlan]:
    """End those that nobody has touched for a day and whose job has passed them over, or for 30.

    names: of datasets and models; only plans that are about one of them, all if None. now: seconds
    since 1970.
    """
    ended, runs = [], catalog.runs(lake)
    for plan, days in _idle(lake, names, now):
        entry = (plan.job_id, plan.job, plan.target, plan.night, round(days, 1))
        try:
            if _finished(lake, plan, runs, dry_run):
                ended.append(LeftPlan(*entry, done=True))
                continue
        except LatentlakeError as error:  # of a damaged log, say, which stops its own job alone
            log.warning("%s", error)
            continue
        why = _unwanted(plan, runs, days, now - days * DAY_S)
        if why:
            ended.append(LeftPlan(*entry, done=False, why=why))
            if not dry_run:
                records.give_up(lake, plan)
    return ended


def _idle(lake: LakePaths, names: list[str] | None, now: float) -> Iterator[tuple[Plan, float]]:
    """Plans that have not been touched for a day, with the days."""
    for job_id in folder_names(lake.all_units):
        plan = records.load_plan(lake, job_id)
        if plan is None or not (names is None or _is_about(plan, names)):
            continue
        # A training writes to its run.
        run = lake.run(f"{plan.target}-{plan.fingerprint}")
        touched = last_touched(lake.units(plan.job_id), run)
        days = (now - touched) / DAY_S if touched is not None else 0.0
        if days > IDLE_DAYS:
            yield plan, days


def _is_about(plan: Plan, names: list[str]) -> bool:
    targets = (plan.target, plan.settings.get("target"), plan.settings.get("dataset"))
    return any(name in names for name in targets)


def _finished(lake: LakePaths, plan: Plan, runs: Runs, dry_run: bool) -> bool:
    """Whether it is published in its first table; then the other tables and the row follow."""
    if any(run["job_id"] == plan.job_id for run in runs):
        if not dry_run:
            records.clear(lake, plan.job_id)
        return True
    folder = lake.units(plan.job_id)
    for name in names_in(folder):
        if not name.startswith("commit-"):
            continue
        uri = join(folder, name)
        record = records.commit_of(lake, read(uri), uri)
        if not record.files:
            raise damaged(uri, "it names no table")
        first = open_snapshot(join(lake.uri, next(iter(record.files))))
        if first is None or not first.has(plan.job_id):
            continue
        if first.commit_of(plan.job_id).get("commit") != record.name:
            continue
        if not dry_run:
            log.info("%s %s: finishing %s", plan.job, plan.target, plan.job_id)
            engine_commit.complete(lake, plan.job_id, record)
            versions = engine_commit.published_versions(plan.job_id, lake, list(record.files))
            engine_commit.record_run(lake, plan, versions, record.counts, record.seconds)
            records.clear(lake, plan.job_id)
        return True
    return False


def _unwanted(plan: Plan, runs: Runs, days: float, touched: float) -> str:
    """Why nobody will go on with it; empty where somebody may."""
    if days > MOST_DAYS:
        return f"nobody has gone on with it for {days:.0f} days"
    for run in runs:
        since = run["finished_at"].timestamp() > touched
        if since and (run["job"], run["target"]) == (plan.job, plan.target):
            config = json_column(run, "config")
            if all(config.get(name) == plan.settings.get(name) for name in ABOUT):
                return f"{run['job_id']} has been done since, with other settings or inputs"
    return ""
