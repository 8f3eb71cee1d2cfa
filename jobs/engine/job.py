"""One pattern for all distributed work: plan, execute, commit."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.engine.plan import CommitPlan, Completion, Plan, Unit
from jobs.lake.paths import LakePaths
from jobs.tables.delta import Snapshot, Table

log = logging.getLogger("latentlake")


class StalePlan(Exception):
    """The tables have changed in a way that a plan's work does not fit any more: plan anew."""


class Job(abc.ABC):
    """What differs from job to job. `runner.run` does what does not."""

    name: str
    rows_counted: str  # the count that throughput is stated in
    stop_after_recovery: bool = False  # whether finishing an earlier plan is enough for one call

    def __init__(self, lake: LakePaths, target: str) -> None:
        self.lake = lake
        self.target = target

    @abc.abstractmethod
    def plan(self) -> Plan:
        """Plan from what is published and what the inputs list; the plan may be empty."""

    def units(self, plan: Plan) -> Iterator[Unit]:
        """Return the plan's units, in order; of a plan that was saved, those that were saved with
        it."""
        return iter(plan.units)

    def planned_units(self, plan: Plan) -> list[Unit]:
        """All units of a fresh plan, nothing saved: for a dry run."""
        return list(plan.units)

    def planned_removals(self) -> list[str]:
        """Return what the plan found to have left its inputs: for a dry run."""
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
    def tables(self, plan: Plan) -> Sequence[Table]:
        """Return the tables it publishes, in commit order."""

    @abc.abstractmethod
    def owns(self, plan: Plan) -> bool:
        """Whether a plan that was left behind is of this very work; others are left alone."""

    @abc.abstractmethod
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        """Run units as they come; each leaves a completion record."""

    def close(self, plan: Plan, unit: Unit, attempt: str) -> Completion:
        """Do a unit of kind closing, in this process."""
        raise AssertionError(f"{self.name} has no closing units")

    @abc.abstractmethod
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        """Compare what was done with what is published at `head`. Decides only; writes no file.

        Returns units that must run first (rows that another unit or job has published meanwhile
        are dropped so), or what to publish. Raises JobError to publish nothing, StalePlan to
        plan anew.
        """

    def idle(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        """Return what is said, and counted, where the plan is empty."""
        return "nothing to do", {}

    def is_whole(self, plan: Plan) -> bool:
        """Whether the plan has all that was missing; else another one follows in the same call."""
        return True

    def post_commit(self, plan: Plan) -> None:  # noqa: B027 - most jobs have nothing to add
        """Make what derives from the tables, once they are published. May be done again."""
