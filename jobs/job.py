"""One pattern for all distributed work: plan, execute, commit."""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Sequence
from typing import Any

from jobs import publish, records
from jobs.job_report import JobReport, merged
from jobs.lake import Lake
from jobs.tables import Conflict, Snapshot, Table
from jobs.units import Completion, Output, Plan, Unit, total_counts

log = logging.getLogger("latentlake")


class Job(abc.ABC):
    """What differs from job to job. `run` below does what does not."""

    name: str
    rows_counted: str  # the count that throughput is stated in
    one_a_call: bool = False  # whether finishing an earlier plan is enough for one call

    def __init__(self, lake: Lake, target: str) -> None:
        self.lake = lake
        self.target = target

    @abc.abstractmethod
    def plan(self) -> Plan:
        """A function of what is published and what the inputs list; no units: nothing to do."""

    @property
    @abc.abstractmethod
    def first_table(self) -> str:
        """URI of the first of its tables, the one that jobs compete for."""

    @abc.abstractmethod
    def tables(self, plan: Plan) -> list[Table]:
        """The tables it publishes, in commit order."""

    @abc.abstractmethod
    def claims(self, plan: Plan) -> bool:
        """Whether a plan that was left behind is of this very work; others are left alone."""

    @abc.abstractmethod
    def is_current(self, plan: Plan) -> bool:
        """Whether a plan that this job claims can still be finished as it is."""

    @abc.abstractmethod
    def execute(self, plan: Plan, units: Sequence[Unit]) -> None:
        """Runs units; each leaves a completion record."""

    @abc.abstractmethod
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | dict[str, list[Output]]:
        """Holds what was done against what is published at `head`.

        Returns units that must run first (rows that another unit or job has published meanwhile
        are dropped so), or the files to commit by table URI. Raises JobError to publish nothing.
        """

    def summarise(
        self, plan: Plan, completions: dict[str, Completion], files: dict[str, list[Output]]
    ) -> dict[str, Any]:
        """The counts to report; by default those of the completions, added up."""
        return total_counts(list(completions.values()))


def run(job: Job) -> JobReport:
    """Finishes what an earlier run of the job left, then plans and does what is missing."""
    report = JobReport(job=job.name, target=job.target)
    publish.recover(job.lake, job.first_table)
    for plan in records.unfinished_plans(job.lake, job.name, job.target):
        if not job.claims(plan):
            continue
        if publish.is_published(plan, job.tables(plan)) or job.is_current(plan):
            log.info("%s %s: finishing %s", job.name, job.target, plan.job_id)
            report = merged(report, _finish(job, plan))
        else:
            log.info("%s %s: %s is out of date, dropped", job.name, job.target, plan.job_id)
            records.drop(job.lake, plan.job_id)
    if report.job_ids and job.one_a_call:
        return report
    plan = job.plan()
    if not plan.units:
        log.info("%s %s: nothing to do", job.name, job.target)
        return report
    return merged(report, _finish(job, records.save_plan(job.lake, plan)))


def _finish(job: Job, plan: Plan) -> JobReport:
    started = time.monotonic()
    tables = job.tables(plan)
    executed: set[str] = set()

    def one_round() -> tuple[dict[str, Any], float]:
        head = publish.completed_head(job.lake, tables)
        if publish.is_published(plan, tables):
            return publish.told_of(job.lake, plan, tables[0])
        completions = _execute_all(job, plan, plan.units, executed)
        settled = job.settle(plan, completions, head)
        while isinstance(settled, list):
            completions |= _execute_all(job, plan, settled, executed)
            settled = job.settle(plan, completions, head)
        worked = sum(completion.seconds for completion in completions.values())
        counts = {**job.summarise(plan, completions, settled), "unit_seconds": worked}
        record = records.CommitRecord(settled, counts, time.monotonic() - started)
        publish.commit(job.lake, plan, head, record)
        return counts, record.seconds

    counts, seconds = publish.retrying(one_round, f"{job.name} {job.target}")
    versions = publish.published_versions(plan, job.lake, tables)
    publish.record_run(job.lake, plan, versions, counts, seconds)
    records.clear(job.lake, plan.job_id)
    rows = counts.get(job.rows_counted, 0)
    return JobReport(
        job=job.name,
        target=job.target,
        job_ids=[plan.job_id],
        units=len(executed),
        counts=counts,
        versions=versions,
        seconds=seconds,
        rows_per_s=rows / seconds if rows else None,
    )


def _execute_all(
    job: Job, plan: Plan, units: Sequence[Unit], executed: set[str]
) -> dict[str, Completion]:
    done = records.load_completions(job.lake, plan.job_id, units)
    missing = [unit for unit in units if unit.unit_id not in done]
    if missing:
        log.info("%s %s: %d of %d units to do", job.name, job.target, len(missing), len(units))
        job.execute(plan, missing)
        executed.update(unit.unit_id for unit in missing)
        done |= records.load_completions(job.lake, plan.job_id, missing)
    lost = [unit.unit_id for unit in units if unit.unit_id not in done]
    if lost:
        # Another run of the same job may have committed and cleared the records meanwhile.
        raise Conflict(f"{plan.job_id}: no completion of {lost[0]}")
    return done
