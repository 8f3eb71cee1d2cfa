"""promote and rollback across crashes and rivals: one row a move, and who loses is told."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
from typing import Any

import pytest

from jobs.bundles import aliases as bundles_aliases
from jobs.bundles.aliases import history, moves
from jobs.engine import commit as engine_commit
from jobs.engine import records, runner
from jobs.engine.report import JobReport
from jobs.errors import InputError, JobError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import folder_names
from jobs.promote.job import PromoteJob
from jobs.promote.settings import PromoteSettings
from jobs.tables import catalog
from jobs.tables.delta import Snapshot
from tests.inline import NIGHT, InlineTrain
from tests.limits import SOON_S
from tests.promotions import (
    SECOND,
    THIRD,
    Evaluated,
    champion,
    folder,
    gated,
    named,
    promote,
    promotion,
    rollback,
    rollback_job,
    with_bundles,
)
from tests.unit.jobs.promote.test_gate import differences


@pytest.fixture
def lake(trained: LakePaths) -> LakePaths:
    return with_bundles(trained)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    return Evaluated(monkeypatch)


CRASHES = ("after the plan", "before the commit", "after the commit", "after the run", "clearing")


class Killed(BaseException):
    pass


def kill(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    real_commit, real_record = Snapshot.commit, engine_commit.record_run

    def commit(self: Snapshot, *arguments: Any, **how: Any) -> int:
        if self.uri.endswith("aliases"):
            if where == "after the commit":
                real_commit(self, *arguments, **how)
            raise Killed
        return real_commit(self, *arguments, **how)

    def record_run(*arguments: Any) -> None:
        real_record(*arguments)
        raise Killed

    if where == "after the plan":
        monkeypatch.setattr(PromoteJob, "settle", die)
    elif where.endswith("the commit"):
        monkeypatch.setattr(Snapshot, "commit", commit)
    elif where == "after the run":
        monkeypatch.setattr(engine_commit, "record_run", record_run)
    else:
        monkeypatch.setattr(records, "clear", die)


@pytest.mark.parametrize("where", CRASHES)
@pytest.mark.parametrize("back", [False, True])
def test_killed_anywhere_and_run_again_it_is_done_once(
    lake: LakePaths, where: str, back: bool
) -> None:
    first = champion(lake)
    promote(lake, SECOND)

    def call(night: str) -> JobReport:
        return rollback(lake, night) if back else promote(lake, THIRD, night)

    with pytest.MonkeyPatch.context() as patch:
        kill(patch, where)
        with pytest.raises(Killed):
            call(NIGHT)
    again = call("2026-01-02")
    goal = first if back else THIRD
    assert named(lake) == [first, SECOND, goal]
    assert again.counts["promoted"] is True
    assert again.counts["version"] == goal
    rows = [row for row in catalog.runs(lake) if row["job_id"] in again.job_ids]
    assert len(rows) == 1
    assert folder_names(lake.all_units) == []
    assert history(lake, "m")[-1]["at"] is not None


def test_a_rollback_that_says_from_where_goes_back_once(lake: LakePaths) -> None:
    """However often it is run: after a crash nobody knows whether it had been done."""
    first = champion(lake)
    promote(lake, SECOND)
    promote(lake, THIRD)
    for _ in range(3):
        report = runner.run(PromoteJob(lake, back(THIRD), NIGHT))
        assert report.counts["version"] == SECOND
    assert named(lake) == [first, SECOND, THIRD, SECOND]
    assert runner.run(PromoteJob(lake, back(SECOND), NIGHT)).counts["version"] == first
    with pytest.raises(InputError, match=f"names {first}, not {THIRD}; nothing was changed"):
        runner.run(PromoteJob(lake, back(THIRD), NIGHT))
    assert named(lake)[-1] == first


def back(version: str) -> PromoteSettings:
    return PromoteSettings(model="m", back=True, back_from=version)


@pytest.mark.parametrize("asked", [True, False])
def test_what_a_killed_rollback_left_is_finished_by_one_from_there_alone(
    lake: LakePaths, asked: bool
) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, "before the commit")
        with pytest.raises(Killed):
            runner.run(PromoteJob(lake, back(SECOND), NIGHT))
    report = (
        runner.run(PromoteJob(lake, back(SECOND if asked else first), NIGHT)) if asked else None
    )
    if report is None:
        with pytest.raises(InputError, match="nothing was changed"):
            runner.run(PromoteJob(lake, back(first), NIGHT))
    assert named(lake) == ([first, SECOND, first] if asked else [first, SECOND])


def test_what_a_killed_refusal_left_is_told_and_judged_again(lake: LakePaths, evaluated) -> None:
    evaluated.refuses()
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, "after the run")
        with pytest.raises(Killed):
            gated(lake, SECOND)
    assert not gated(lake, SECOND).counts["promoted"]
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, "after the commit")
        with pytest.raises(Killed):
            gated(lake, THIRD)
    evaluated.found, evaluated.job_id = differences(), "evaluate-2"
    assert gated(lake, THIRD).counts["promoted"] is True
    assert champion(lake) == THIRD


@pytest.mark.parametrize("where", ["after the plan", "after the commit"])
def test_a_plan_that_was_left_behind_does_not_undo_what_came_since(
    lake: LakePaths, where: str
) -> None:
    first = champion(lake)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, where)
        with pytest.raises(Killed):
            promote(lake, SECOND)
    promote(lake, THIRD, by="bob")
    # A new request, of somebody who can see what holds now: it is done, as its own move.
    report = promote(lake, SECOND)
    assert report.counts["promoted"] is True
    assert report.counts["held"] == THIRD
    mine = [SECOND] if where == "after the commit" else []
    assert named(lake) == [first, *mine, THIRD, SECOND]
    assert records.unfinished_plans(lake, "promote", "m") == []


class Overtaken(PromoteJob):
    """A rival moves the alias between this one's decision and its commit."""

    rival: PromoteJob | None = None

    def settle(self, plan, completions, head):
        settled = super().settle(plan, completions, head)
        if self.rival is not None:
            rival, self.rival = self.rival, None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(records, "unfinished_plans", lambda *a: [])
                runner.run(rival)
        return settled


def overtaken(moving: PromoteJob, rival: PromoteJob) -> Overtaken:
    made = Overtaken(moving.lake, moving.settings, moving.night)
    made.rival = rival
    return made


def test_who_is_overtaken_is_told_by_whom_and_nothing_is_changed(lake: LakePaths) -> None:
    first = champion(lake)
    mine = overtaken(promotion(lake, SECOND), promotion(lake, THIRD, by="bob"))
    told = f"champion of m was moved to {THIRD} by bob .job promote-.*nothing was changed"
    with pytest.raises(JobError, match=told):
        runner.run(mine)
    assert named(lake) == [first, THIRD]
    # Its plan is gone: the next call is a decision of its own.
    assert records.unfinished_plans(lake, "promote", "m") == []
    assert promote(lake, SECOND).counts["held"] == THIRD


class OvertakenEarly(PromoteJob):
    """The rival lands after this one has looked whether it is published, before it settles."""

    rival: PromoteJob | None = None

    def settle(self, plan, completions, head):
        if self.rival is not None:
            rival, self.rival = self.rival, None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(records, "unfinished_plans", lambda *a: [])
                runner.run(rival)
        return super().settle(plan, completions, head)


def test_the_same_call_twice_at_once_is_done_once_and_told_to_both(lake: LakePaths) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    mine = OvertakenEarly(lake, rollback_job(lake).settings, NIGHT)
    mine.rival = rollback_job(lake)
    assert runner.run(mine).counts["promoted"] is True
    assert named(lake) == [first, SECOND, first]


def test_a_second_rollback_at_the_same_time_does_not_go_back_twice(lake: LakePaths) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    promote(lake, THIRD)
    mine = overtaken(rollback_job(lake), rollback_job(lake, by="bob"))
    with pytest.raises(JobError, match=f"was moved to {SECOND} by bob .*rollback again"):
        runner.run(mine)
    assert named(lake) == [first, SECOND, THIRD, SECOND]


@pytest.mark.parametrize("rival", ["ann", "bob"])
def test_two_that_want_the_same_get_it_once(lake: LakePaths, rival: str) -> None:
    first = champion(lake)
    mine = overtaken(promotion(lake, SECOND), promotion(lake, SECOND, by=rival))
    runner.run(mine)
    assert named(lake) == [first, SECOND]
    assert moves(lake, "m", "champion")[-1]["moved_by"] == rival
    assert records.unfinished_plans(lake, "promote", "m") == []


def test_another_alias_that_moves_meanwhile_is_no_hindrance(lake: LakePaths) -> None:
    mine = overtaken(promotion(lake, SECOND), promotion(lake, THIRD, alias="canary"))
    assert runner.run(mine).counts["promoted"]
    assert catalog.aliases(lake, "m") == {"champion": SECOND, "canary": THIRD}
    sequences = [r["sequence"] for r in catalog.catalog_rows(lake, "aliases")]
    assert sorted(sequences) == [1, 2, 3]


def test_of_many_threads_exactly_one_wins_and_the_others_are_told(lake: LakePaths) -> None:
    first = champion(lake)
    versions = [f"{n:012x}" for n in range(6)]
    for version in versions:
        shutil.copytree(folder(lake, first), folder(lake, version))
    planned = threading.Barrier(len(versions))
    outcomes: dict[str, Any] = {}

    class AtOnce(PromoteJob):
        def plan(self):
            plan = super().plan()
            planned.wait(SOON_S)
            return plan

    def run(version: str) -> None:
        asked = promotion(lake, version, by=version)
        try:
            outcomes[version] = runner.run(AtOnce(lake, asked.settings, NIGHT)).counts["promoted"]
        except JobError as error:
            outcomes[version] = str(error)

    threads = [threading.Thread(target=run, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    (winner,) = [version for version, outcome in outcomes.items() if outcome is True]
    assert named(lake) == [first, winner]
    losers = [outcome for outcome in outcomes.values() if outcome is not True]
    assert len(losers) == 5
    assert all(f"was moved to {winner} by {winner} (job" in outcome for outcome in losers)


def _in_a_process(uri: str, version: str, barrier: Any, outcomes: Any) -> None:
    class AtOnce(PromoteJob):
        def plan(self):
            plan = super().plan()
            barrier.wait(SOON_S)
            return plan

    asked = promotion(LakePaths(uri), version, by=version)
    try:
        outcomes.put((version, runner.run(AtOnce(asked.lake, asked.settings, NIGHT)).counts["why"]))
    except JobError as error:
        outcomes.put((None, str(error)))


def test_of_two_processes_exactly_one_wins(lake: LakePaths) -> None:
    first = champion(lake)
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_in_a_process, args=(lake.uri, version, barrier, outcomes))
        for version in (SECOND, THIRD)
    ]
    for process in processes:
        process.start()
    ended = [outcomes.get(timeout=SOON_S) for _ in processes]
    for process in processes:
        process.join(SOON_S)
    (winner,) = [version for version, _ in ended if version is not None]
    (loser,) = [text for version, text in ended if version is None]
    assert f"moved to {winner} by {winner}" in loser
    assert named(lake) == [first, winner]


def test_a_training_that_promotes_meanwhile_overtakes(lake: LakePaths) -> None:
    mine = overtaken(promotion(lake, SECOND), promotion(lake, THIRD))
    mine.rival = InlineTrain(lake, seed=1, promote=True)  # type: ignore[assignment]
    with pytest.raises(JobError, match=rf"by {bundles_aliases.user()} \(job train-"):
        runner.run(mine)
    row = moves(lake, "m", "champion")[-1]
    assert (row["reason"], row["night"]) == ("promoted on request", NIGHT)
