"""Run a job: plan, execute, settle, commit."""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.engine import commit as engine_commit
from jobs.engine import records
from jobs.engine.job import Job, StalePlan, log
from jobs.engine.plan import Completion, Plan, Unit, UnitKind
from jobs.engine.report import JobReport, merged
from jobs.errors import JobError
from jobs.lake.storage import begin, hold_new
from jobs.tables.conflicts import CommitConflict
from jobs.tables.log_check import require_whole

REPLANS = 3


def planned(job: Job) -> Plan:
    """Return what the job would do now. Raises InputError where a table that it plans by is
    damaged."""
    require_whole(job.lake, job.relies_on)
    return job.plan()


def run(job: Job) -> JobReport:
    """Finishes what an earlier run of the job left, then plans and does what is missing."""
    report = JobReport(job=job.name, target=job.target)
    begin(job.lake.uri)
    require_whole(job.lake, job.relies_on)
    engine_commit.recover(job.lake, job.first_table)
    for plan in records.unfinished_plans(job.lake, job.name, job.target):
        if job.owns(plan):
            log.info("%s %s: finishing %s", job.name, job.target, plan.job_id)
            records.say_resumed(job.lake, plan.job_id)
            done = _finish_or_drop(job, plan)
            report = merged(report, done) if done is not None else report
    if report.job_ids and job.stop_after_recovery:
        return report
    replans = 0
    checked = not report.job_ids
    while replans < REPLANS:
        plan = job.plan() if checked else planned(job)
        checked = False  # what was finished took its time
        if plan.is_empty:
            text, counts = job.idle(plan)
            log.info("%s %s: %s", job.name, job.target, text)
            return dataclasses.replace(report, counts=report.counts or counts)
        saved = records.save_plan(job.lake, plan)
        if saved.job_id in report.job_ids:
            raise JobError(f"{job.name} {job.target}: {saved.job_id} left its work undone")
        done = _finish_or_drop(job, saved)
        if done is None:
            replans += 1
            engine_commit.back_off(replans)
            continue
        report = merged(report, done)
        if job.is_whole(plan):
            return report
    raise JobError(
        f"{job.name} {job.target}: tables or source keep changing, {REPLANS} plans were out of "
        f"date before they were done{engine_commit.winner(job.first_table)}; run it again"
    )


def _finish_or_drop(job: Job, plan: Plan) -> JobReport | None:
    try:
        return _finish(job, plan)
    except StalePlan as reason:
        log.info("%s %s: %s is out of date (%s)", job.name, job.target, plan.job_id, reason)
        records.drop(job.lake, plan.job_id)
        return None


def _finish(job: Job, plan: Plan) -> JobReport:
    started = time.monotonic()
    hold_new(job.lake.uri)  # the plan lies in it
    tables = job.tables(plan)
    work = _Work(job, plan)

    def one_round() -> tuple[dict[str, Any], float]:
        head = engine_commit.completed_head(job.lake, tables)
        if engine_commit.is_published(plan, tables):
            return engine_commit.published_counts(job.lake, plan, tables[0])
        completions = work.of_the_plan()
        settled = job.settle(plan, completions, head)
        while isinstance(settled, list):
            completions |= work.of(settled)
            settled = job.settle(plan, completions, head)
        worked = sum(completion.seconds for completion in completions.values())
        counts = {**settled.counts, "unit_seconds": worked}
        named = job.lake.name_of
        record = records.CommitRecord(
            {named(uri): outputs for uri, outputs in settled.files.items()},
            counts,
            time.monotonic() - started,
            {named(uri): paths for uri, paths in settled.removed.items()},
            settled.same_rows,
            {named(table.uri): table.delta_schema for table in tables},
        )
        engine_commit.commit(job.lake, plan, head, record)
        return counts, record.seconds

    counts, seconds = engine_commit.retrying(one_round, f"{job.name} {job.target}", job.first_table)
    names = [job.lake.name_of(table.uri) for table in tables]
    versions = engine_commit.published_versions(plan.job_id, job.lake, names)
    engine_commit.record_run(job.lake, plan, versions, counts, seconds)
    job.post_commit(plan)
    records.clear(job.lake, plan.job_id)
    rows = counts.get(job.rows_counted, 0)
    return JobReport(
        job=job.name,
        target=job.target,
        job_ids=[plan.job_id],
        units=len(work.executed),
        counts=counts,
        versions=versions,
        seconds=seconds,
        rows_per_s=rows / seconds if rows else None,
    )


class _Work:
    """The units of one plan: those that have no completion yet are executed."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self.job = job
        self.plan = plan
        self.executed: set[str] = set()
        self.planned: list[str] | None = None
        self.kinds: dict[str, UnitKind] = {}

    def of_the_plan(self) -> dict[str, Completion]:
        if self.planned is None:
            self.planned = self._execute(self.job.units(self.plan))
        return self._completions(self.planned)

    def of(self, units: Sequence[Unit]) -> dict[str, Completion]:
        return self._completions(self._execute(iter(units)))

    def _execute(self, units: Iterator[Unit]) -> list[str]:
        """Run what is not done; returns the ids of all, in order."""
        done = records.completed_units(self.job.lake, self.plan.job_id)
        order: list[str] = []

        def missing() -> Iterator[Unit]:
            for unit in units:
                order.append(unit.unit_id)
                self.kinds[unit.unit_id] = unit.kind
                if unit.unit_id in done:
                    continue
                if unit.kind == "closing":
                    closed = self.job.close(self.plan, unit, uuid.uuid4().hex[:8])
                    records.save_completion(self.job.lake, self.plan.job_id, closed)
                else:
                    self.executed.add(unit.unit_id)
                    yield unit

        waiting = missing()
        first = next(waiting, None)
        if first is not None:
            self.job.execute(self.plan, itertools.chain([first], waiting))
        return order

    def _completions(self, unit_ids: list[str]) -> dict[str, Completion]:
        found = records.load_completions(self.job.lake, self.plan.job_id, unit_ids)
        for unit_id in [one for one, made in found.items() if made.kind != self.kinds[one]]:
            log.warning("%s: the completion of %s is of another kind", self.plan.job_id, unit_id)
            records.discard_completion(self.job.lake, self.plan.job_id, unit_id)
            del found[unit_id]
        lost = next((unit_id for unit_id in unit_ids if unit_id not in found), None)
        if lost is not None:
            # Another run of the same job may have committed and cleared the records meanwhile, or
            # it could not be read and has to be done again.
            self.planned = None
            raise CommitConflict(f"{self.plan.job_id}: no completion of {lost}")
        return found
