"""Plans that their jobs have left behind: finished where they are published, else given up in time.

A job finishes what its own earlier calls began. Where nobody asks for the very same again, but with
other settings say, the plan would stay for ever, and vacuum would keep its files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

from jobs import catalog, publish, records
from jobs.documents import damaged, json_column
from jobs.errors import LatentlakeError
from jobs.lake import Lake
from jobs.listing import walk
from jobs.storage import folder_names, join, read
from jobs.tables import open_snapshot
from jobs.units import Plan

log = logging.getLogger("latentlake")

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
    lake: Lake, names: list[str] | None, *, now: float, dry_run: bool = False
) -> list[LeftPlan]:
    """Ends those that nobody has touched for a day and whose job has passed them over, or for 30.

    names: of datasets and models; only plans that are about one of them, all if None. now: seconds
    since 1970.
    """
    ended = []
    for plan, days in _idle(lake, names, now):
        told = (plan.job_id, plan.job, plan.target, plan.night, round(days, 1))
        try:
            if _finished(lake, plan, dry_run):
                ended.append(LeftPlan(*told, done=True))
                continue
        except LatentlakeError as error:  # of a damaged log, say, which stops its own job alone
            log.warning("%s", error)
            continue
        why = _unwanted(lake, plan, days, now - days * DAY_S)
        if why:
            ended.append(LeftPlan(*told, done=False, why=why))
            if not dry_run:
                records.give_up(lake, plan)
    return ended


def _idle(lake: Lake, names: list[str] | None, now: float) -> Iterator[tuple[Plan, float]]:
    """Plans that have not been touched for a day, with the days."""
    for job_id in folder_names(lake.all_units):
        plan = records.load_plan(lake, job_id)
        if plan is None or not (names is None or _is_about(plan, names)):
            continue
        days = (now - _touched(lake, plan, now)) / DAY_S
        if days > IDLE_DAYS:
            yield plan, days


def _is_about(plan: Plan, names: list[str]) -> bool:
    told = (plan.target, plan.settings.get("target"), plan.settings.get("dataset"))
    return any(name in names for name in told)


def _touched(lake: Lake, plan: Plan, now: float) -> float:
    """When anything of it was written last, seconds since 1970; a training writes to its run."""
    folders = [lake.units(plan.job_id), lake.run(f"{plan.target}-{plan.fingerprint}")]
    return max((entry["modified"] for folder in folders for entry in walk(folder)), default=now)


def _finished(lake: Lake, plan: Plan, dry_run: bool) -> bool:
    """Whether it is published in its first table; then the other tables and the row follow."""
    if any(job_id == plan.job_id for job_id, _ in catalog.versions_of_runs(lake)):
        if not dry_run:
            records.clear(lake, plan.job_id)
        return True
    for uri in list(_commits(lake, plan)):
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
            publish.complete(lake, plan.job_id, record)
            versions = publish.published_versions(plan.job_id, lake, list(record.files))
            publish.record_run(lake, plan, versions, record.counts, record.seconds)
            records.clear(lake, plan.job_id)
        return True
    return False


def _commits(lake: Lake, plan: Plan) -> Iterator[str]:
    for entry in walk(lake.units(plan.job_id)):
        if entry["uri"].rsplit("/", 1)[-1].startswith("commit-"):
            yield entry["uri"]


def _unwanted(lake: Lake, plan: Plan, days: float, touched: float) -> str:
    """Why nobody will go on with it; empty where somebody may."""
    if days > MOST_DAYS:
        return f"nobody has gone on with it for {days:.0f} days"
    for run in catalog.runs(lake):
        since = run["finished_at"].timestamp() > touched
        if since and (run["job"], run["target"]) == (plan.job, plan.target):
            config = json_column(run, "config")
            if all(config.get(name) == plan.settings.get(name) for name in ABOUT):
                return f"{run['job_id']} has been done since, with other settings or inputs"
    return ""
