"""One pattern for all distributed work: plan, execute, commit."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from jobs import publish, records
from jobs.config import RaySettings
from jobs.conflicts import Conflict
from jobs.errors import JobError
from jobs.job_report import JobReport, merged
from jobs.lake import Lake
from jobs.log_check import require_whole
from jobs.storage import begin, hold_new
from jobs.tables import Snapshot, Table
from jobs.units import Completion, JobContext, Plan, Settled, Unit

log = logging.getLogger("latentlake")

REPLANS = 3


class OutOfDate(Exception):
    """The tables have changed in a way that a plan's work does not fit any more: plan anew."""


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
        """A function of what is published and what the inputs list; may be empty."""

    def units(self, plan: Plan) -> Iterator[Unit]:
        """The plan's units, in order; of a plan that was saved, those that were saved with it."""
        return iter(plan.units)

    def planned_units(self, plan: Plan) -> list[Unit]:
        """All units of a fresh plan, nothing saved: for a dry run."""
        return list(plan.units)

    def planned_removals(self) -> list[str]:
        """What the plan found to have left its inputs: for a dry run."""
        return []

    @property
    @abc.abstractmethod
    def first_table(self) -> str:
        """URI of the first of its tables, the one that jobs compete for."""

    @property
    def relies_on(self) -> list[str]:
        """URIs of the tables that it plans by; their logs are checked before."""
        return [self.first_table]

    @abc.abstractmethod
    def tables(self, plan: Plan) -> list[Table]:
        """The tables it publishes, in commit order."""

    @abc.abstractmethod
    def claims(self, plan: Plan) -> bool:
        """Whether a plan that was left behind is of this very work; others are left alone."""

    @abc.abstractmethod
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        """Runs units as they come; each leaves a completion record."""

    @abc.abstractmethod
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | Settled:
        """Holds what was done against what is published at `head`.

        Returns units that must run first (rows that another unit or job has published meanwhile
        are dropped so), or what to publish. Raises JobError to publish nothing, OutOfDate to
        plan anew.
        """

    def idle(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        """What is said, and counted, where the plan is empty."""
        return "nothing to do", {}

    def is_whole(self, plan: Plan) -> bool:
        """Whether the plan has all that was missing; else another one follows in the same call."""
        return True

    def after(self, plan: Plan) -> None:  # noqa: B027 - most jobs have nothing to add
        """What derives from the tables, once they are published. May be done again."""


class Worker(Protocol):
    """Does a job's units, one at a time; made once an actor."""

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Reads the unit's inputs, writes its outputs under names that carry the attempt."""
        ...


WorkerFactory = Callable[[Lake, JobContext], Worker]


@dataclasses.dataclass(frozen=True)
class ImportedWorker:
    """A factory that imports the worker's class where units are done.

    Most bring torch, which takes seconds, and the driver needs none of it.
    """

    module: str
    name: str

    def __call__(self, lake: Lake, context: JobContext) -> Worker:
        return getattr(importlib.import_module(self.module), self.name)(lake, context)


@dataclasses.dataclass(frozen=True)
class Workers:
    """Those of a pool: one CPU each.

    most: None for one a free CPU. least: a job begins with as many, and takes more as they find
    room; None where it wants all of them. device: of each; cuda, a GPU each, or auto, which is
    cuda where there are enough GPUs. units_at_once: that a worker has in hand, so that it reads
    and writes one while another is computed.
    """

    most: int | None
    least: int | None = None
    device: str = "cpu"
    units_at_once: int = 1


class PoolJob(Job):
    """A job whose units run in a pool of Ray actors."""

    def __init__(
        self, lake: Lake, target: str, night: str, ray_settings: RaySettings, workers: int | None
    ) -> None:
        """workers: None for one a CPU."""
        super().__init__(lake, target)
        self.night = night
        self.ray_settings = ray_settings
        self.workers = Workers(workers)

    @abc.abstractmethod
    def worker(self) -> WorkerFactory:
        """What each actor makes once, to do its units with."""

    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        from jobs import execute  # brings Ray: only where there is work

        execute.run_units(
            self.worker(),
            self.lake,
            plan,
            units,
            workers=self.workers,
            ray_settings=self.ray_settings,
            report_count=self.rows_counted,
        )


def planned(job: Job) -> Plan:
    """What the job would do now. Raises InputError where a table that it plans by is damaged."""
    require_whole(job.lake, job.relies_on)
    return job.plan()


def run(job: Job) -> JobReport:
    """Finishes what an earlier run of the job left, then plans and does what is missing."""
    report = JobReport(job=job.name, target=job.target)
    begin(job.lake.uri)
    require_whole(job.lake, job.relies_on)
    publish.recover(job.lake, job.first_table)
    for plan in records.unfinished_plans(job.lake, job.name, job.target):
        if job.claims(plan):
            log.info("%s %s: finishing %s", job.name, job.target, plan.job_id)
            records.say_resumed(job.lake, plan.job_id)
            done = _finish_or_drop(job, plan)
            report = merged(report, done) if done is not None else report
    if report.job_ids and job.one_a_call:
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
            publish.back_off(replans)
            continue
        report = merged(report, done)
        if job.is_whole(plan):
            return report
    raise JobError(
        f"{job.name} {job.target}: tables or source keep changing, {REPLANS} plans were out of "
        f"date before they were done{publish.winner(job.first_table)}; run it again"
    )


def _finish_or_drop(job: Job, plan: Plan) -> JobReport | None:
    try:
        return _finish(job, plan)
    except OutOfDate as reason:
        log.info("%s %s: %s is out of date (%s)", job.name, job.target, plan.job_id, reason)
        records.drop(job.lake, plan.job_id)
        return None


def _finish(job: Job, plan: Plan) -> JobReport:
    started = time.monotonic()
    hold_new(job.lake.uri)  # the plan lies in it
    tables = job.tables(plan)
    work = _Work(job, plan)

    def one_round() -> tuple[dict[str, Any], float]:
        head = publish.completed_head(job.lake, tables)
        if publish.is_published(plan, tables):
            return publish.told_of(job.lake, plan, tables[0])
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
        publish.commit(job.lake, plan, head, record)
        return counts, record.seconds

    counts, seconds = publish.retrying(one_round, f"{job.name} {job.target}", job.first_table)
    names = [job.lake.name_of(table.uri) for table in tables]
    versions = publish.published_versions(plan.job_id, job.lake, names)
    publish.record_run(job.lake, plan, versions, counts, seconds)
    job.after(plan)
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

    def of_the_plan(self) -> dict[str, Completion]:
        if self.planned is None:
            self.planned = self._execute(self.job.units(self.plan))
        return self._completions(self.planned)

    def of(self, units: Sequence[Unit]) -> dict[str, Completion]:
        return self._completions(self._execute(iter(units)))

    def _execute(self, units: Iterator[Unit]) -> list[str]:
        """Runs what is not done; returns the ids of all, in order."""
        done = records.completed_units(self.job.lake, self.plan.job_id)
        order: list[str] = []

        def missing() -> Iterator[Unit]:
            for unit in units:
                order.append(unit.unit_id)
                if unit.unit_id not in done:
                    self.executed.add(unit.unit_id)
                    yield unit

        waiting = missing()
        first = next(waiting, None)
        if first is not None:
            self.job.execute(self.plan, itertools.chain([first], waiting))
        return order

    def _completions(self, unit_ids: list[str]) -> dict[str, Completion]:
        found = records.load_completions(self.job.lake, self.plan.job_id, unit_ids)
        lost = next((unit_id for unit_id in unit_ids if unit_id not in found), None)
        if lost is not None:
            # Another run of the same job may have committed and cleared the records meanwhile, or
            # it could not be read and has to be done again.
            self.planned = None
            raise Conflict(f"{self.plan.job_id}: no completion of {lost}")
        return found
