"""promote and rollback as a whole: one row a move, whoever races, dies or comes late."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from jobs import alias_history, catalog, job, publish, records, views
from jobs.alias_history import before, history, moves
from jobs.errors import InputError, JobError
from jobs.job_report import JobReport
from jobs.judge_config import GateRule, PromoteSettings
from jobs.lake import Lake
from jobs.promote import PromoteJob
from jobs.schema import ALIASES
from jobs.storage import folder_names, local_path
from jobs.tables import Snapshot, open_snapshot
from tests.inline import NIGHT, InlineTrain
from tests.unit.jobs.test_gate import bundle, differences

SECOND, THIRD = "b" * 12, "c" * 12


@pytest.fixture
def lake(trained: Lake) -> Lake:
    """Model `m` with its champion and two more bundles, of the same weights."""
    first = champion(trained)
    for version in (SECOND, THIRD):
        shutil.copytree(folder(trained, first), folder(trained, version))
    return trained


def folder(lake: Lake, version: str) -> Path:
    path = local_path(lake.bundle("m", version))
    assert path is not None
    return path


def champion(lake: Lake) -> str:
    return catalog.aliases(lake, "m")["champion"]


class Evaluated:
    """What evaluate and compare would tell, by version; all are equal but where they are not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.found = differences()
        self.asked: list[tuple[str, str, str]] = []
        self.job_id = "evaluate-1"
        monkeypatch.setattr("jobs.promote.latest", self.latest)
        monkeypatch.setattr("jobs.promote.compare", self.compare)

    def latest(self, lake: Lake, model: str, version: str, dataset: str) -> list[dict[str, Any]]:
        rows = self.rows.get(version, bundle())
        return [{**row, "job_id": self.job_id} for row in rows]

    def compare(self, lake: Lake, first: str, second: str, dataset: str, **_how: Any) -> Any:
        self.asked.append((first, second, dataset))
        return self.found

    def refuses(self) -> None:
        self.found = differences((1.0, 2.0, 3.0))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    return Evaluated(monkeypatch)


def promotion(lake: Lake, version: str, night: str = NIGHT, **settings: Any) -> PromoteJob:
    """Without the gate, if it is not asked for."""
    values = {"model": f"m@{version}", "rule": None, "by": "ann"} | settings
    return PromoteJob(lake, PromoteSettings.model_validate(values), night)


def promote(lake: Lake, version: str, night: str = NIGHT, **settings: Any) -> JobReport:
    return job.run(promotion(lake, version, night, **settings))


def gated(lake: Lake, version: str, **settings: Any) -> JobReport:
    return promote(lake, version, **{"rule": GateRule(), **settings})


def rollback_job(lake: Lake, night: str = NIGHT, **settings: Any) -> PromoteJob:
    values = {"model": "m", "back": True, "by": "ann"} | settings
    return PromoteJob(lake, PromoteSettings.model_validate(values), night)


def rollback(lake: Lake, night: str = NIGHT, **settings: Any) -> JobReport:
    return job.run(rollback_job(lake, night, **settings))


def named(lake: Lake, alias: str = "champion") -> list[str]:
    return [row["version"] for row in moves(lake, "m", alias)]


def test_a_promotion_is_one_row_that_tells_who_when_why(lake: Lake, evaluated) -> None:
    first = champion(lake)
    report = gated(lake, SECOND, by="ann", reason="finer", night="2026-01-02")
    assert champion(lake) == SECOND
    assert report.counts["promoted"] is True
    assert (report.counts["version"], report.counts["held"]) == (SECOND, first)
    assert [check["passes"] for check in report.counts["checks"]] == [True] * 5
    assert evaluated.asked == [(f"m@{first}", f"m@{SECOND}", "d")]
    row = moves(lake, "m", "champion")[-1]
    assert (row["by"], row["night"], row["job_id"]) == ("ann", "2026-01-02", *report.job_ids)
    assert row["reason"].startswith(f"finer; passed the gate against {first}: the bound gains 2 ")
    told = history(lake, "m")
    assert [(each["from"], each["to"]) for each in told] == [(None, first), (first, SECOND)]
    assert all(each["at"] is not None and each["by"] for each in told)
    # So readers see it that are not ours, and every move is a version of the table of its own.
    table = pl.scan_delta(lake.catalog("aliases")).sort("sequence").collect()
    assert table["version"].to_list() == [first, SECOND]
    held = open_snapshot(lake.catalog("aliases"))
    assert held is not None
    older = open_snapshot(lake.catalog("aliases"), held.version - 1)
    assert older is not None
    assert len(older.read(["version"])) == 1
    assert folder_names(lake.all_units) == []


def test_a_refused_challenger_is_told_and_moves_nothing(lake: Lake, evaluated) -> None:
    first = champion(lake)
    evaluated.refuses()
    report = gated(lake, SECOND)
    assert report.counts["promoted"] is False
    assert (report.counts["version"], report.counts["held"]) == (SECOND, first)
    why = report.counts["why"]
    assert why.startswith(f"m@{SECOND} did not pass the gate, m@{first} stays champion: the bound ")
    assert named(lake) == [first]
    # It is on record, and asked again it is the same answer, not a second one.
    assert gated(lake, SECOND).counts["why"] == why
    runs = [row for row in catalog.runs(lake) if row["job"] == "promote"]
    assert [json.loads(row["counts"])["promoted"] for row in runs] == [False]
    assert folder_names(lake.all_units) == []


def test_what_is_evaluated_anew_is_judged_anew_on_the_same_night(lake: Lake, evaluated) -> None:
    evaluated.refuses()
    assert not gated(lake, SECOND).counts["promoted"]
    evaluated.found, evaluated.job_id = differences(), "evaluate-2"
    assert gated(lake, SECOND).counts["promoted"]


def test_force_asks_nothing_and_keeps_the_users_reason(lake: Lake, monkeypatch) -> None:
    monkeypatch.setattr("jobs.promote.latest", None)
    monkeypatch.setattr("jobs.promote.compare", None)
    report = promote(lake, SECOND, reason="the old one is blind")
    assert report.counts["promoted"]
    assert moves(lake, "m", "champion")[-1]["reason"] == "the old one is blind"


def test_what_is_champion_already_is_nothing_to_do(lake: Lake) -> None:
    first = champion(lake)
    report = promote(lake, first)
    assert report.job_ids == []
    assert report.counts["why"] == f"m@{first} is champion already"
    assert named(lake) == [first]


def test_the_first_bundle_of_an_alias_passes(lake: Lake, monkeypatch) -> None:
    def nothing(*_: Any) -> Any:
        raise InputError("not evaluated")

    monkeypatch.setattr("jobs.promote.latest", nothing)
    report = gated(lake, SECOND, alias="canary")
    assert report.counts["promoted"]
    assert "first bundle of the alias" in report.counts["why"]
    assert "nothing is known of its calibration" in report.counts["checks"][1]["told"]
    assert catalog.aliases(lake, "m")["canary"] == SECOND


def test_an_alias_may_name_the_challenger(lake: Lake) -> None:
    promote(lake, SECOND, alias="canary")
    promote(lake, "canary")
    assert champion(lake) == SECOND


def test_other_likelihoods_do_not_pass_on_nats(lake: Lake, evaluated) -> None:
    path = folder(lake, SECOND) / "model.json"
    about = json.loads(path.read_text())
    assert about["config"]["likelihood"]["kind"] != "categorical"
    about["config"]["likelihood"]["kind"] = "categorical"
    path.write_text(json.dumps(about))
    why = gated(lake, SECOND).counts["why"]
    assert "the bound cannot be compared: their likelihoods differ" in why
    assert "categorical" in why


def test_there_and_back_and_there_again_are_moves_of_their_own(lake: Lake) -> None:
    first = champion(lake)
    for version in (SECOND, first, SECOND):
        assert promote(lake, version).counts["promoted"]
    assert named(lake) == [first, SECOND, first, SECOND]
    assert [row["sequence"] for row in moves(lake, "m", "champion")] == [1, 2, 3, 4]


# Rollbacks.


def told(*steps: str) -> list[dict[str, Any]]:
    """Rows of an alias: `a` is a promotion, `<a` what a rollback went back to."""
    return [
        {"version": step[-1], "job_id": ("rollback-1" if step[0] == "<" else "promote-1")}
        for step in steps
    ]


@pytest.mark.parametrize(
    ("steps", "goes_to"),
    [
        ("", None),
        ("a", None),
        ("a b", "a"),
        ("a b c", "b"),
        ("a b c <b", "a"),  # on, not back and forth
        ("a b c <b <a", None),
        ("a b <a c", "a"),  # what was rolled back does not come up again
        ("a b <a c <a", None),
        ("a b a", "b"),  # promoted back on purpose
        ("a b a <b", "a"),
        ("a b a <b <a", None),
        ("a a b", "a"),
        ("a a", None),
    ],
)
def test_a_rollback_undoes_the_last_promotion_that_still_holds(steps: str, goes_to) -> None:
    assert before(told(*steps.split())) == goes_to


def test_rollbacks_go_further_back_until_nothing_is_left(lake: Lake) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    promote(lake, THIRD)
    report = rollback(lake, reason="flags everything")
    assert (report.counts["version"], report.counts["held"]) == (SECOND, THIRD)
    rollback(lake)
    assert named(lake) == [first, SECOND, THIRD, SECOND, first]
    assert [row["reason"] for row in moves(lake, "m", "champion")][3:] == [
        "flags everything",
        f"back from {SECOND}",
    ]
    with pytest.raises(InputError, match=f"has named nothing before {first}"):
        rollback(lake)
    runs = [row["job"] for row in catalog.runs(lake)]
    assert runs[-4:] == ["promote", "promote", "rollback", "rollback"]


def test_a_rollback_to_a_bundle_that_is_gone_is_refused(lake: Lake) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    shutil.rmtree(folder(lake, first))
    with pytest.raises(InputError, match=f"that bundle is gone; promote one of: {SECOND}, {THIRD}"):
        rollback(lake)
    assert champion(lake) == SECOND


# Crashes and races.

CRASHES = ("after the plan", "before the commit", "after the commit", "after the run", "clearing")


class Killed(BaseException):
    pass


def kill(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    real_commit, real_record = Snapshot.commit, publish.record_run

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
        monkeypatch.setattr(publish, "record_run", record_run)
    else:
        monkeypatch.setattr(records, "clear", die)


@pytest.mark.parametrize("where", CRASHES)
@pytest.mark.parametrize("back", [False, True])
def test_killed_anywhere_and_run_again_it_is_done_once(lake: Lake, where: str, back: bool) -> None:
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


def test_what_a_killed_refusal_left_is_told_and_judged_again(lake: Lake, evaluated) -> None:
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
def test_a_plan_that_was_left_behind_does_not_undo_what_came_since(lake: Lake, where: str) -> None:
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
                job.run(rival)
        return settled


def overtaken(moving: PromoteJob, rival: PromoteJob) -> Overtaken:
    made = Overtaken(moving.lake, moving.settings, moving.night)
    made.rival = rival
    return made


def test_who_is_overtaken_is_told_by_whom_and_nothing_is_changed(lake: Lake) -> None:
    first = champion(lake)
    mine = overtaken(promotion(lake, SECOND), promotion(lake, THIRD, by="bob"))
    told = f"champion of m was moved to {THIRD} by bob .job promote-.*nothing was changed"
    with pytest.raises(JobError, match=told):
        job.run(mine)
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
                job.run(rival)
        return super().settle(plan, completions, head)


def test_the_same_call_twice_at_once_is_done_once_and_told_to_both(lake: Lake) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    mine = OvertakenEarly(lake, rollback_job(lake).settings, NIGHT)
    mine.rival = rollback_job(lake)
    assert job.run(mine).counts["promoted"] is True
    assert named(lake) == [first, SECOND, first]


def test_a_second_rollback_at_the_same_time_does_not_go_back_twice(lake: Lake) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    promote(lake, THIRD)
    mine = overtaken(rollback_job(lake), rollback_job(lake, by="bob"))
    with pytest.raises(JobError, match=f"was moved to {SECOND} by bob .*rollback again"):
        job.run(mine)
    assert named(lake) == [first, SECOND, THIRD, SECOND]


@pytest.mark.parametrize("rival", ["ann", "bob"])
def test_two_that_want_the_same_get_it_once(lake: Lake, rival: str) -> None:
    first = champion(lake)
    mine = overtaken(promotion(lake, SECOND), promotion(lake, SECOND, by=rival))
    job.run(mine)
    assert named(lake) == [first, SECOND]
    assert moves(lake, "m", "champion")[-1]["by"] == rival
    assert records.unfinished_plans(lake, "promote", "m") == []


def test_another_alias_that_moves_meanwhile_is_no_hindrance(lake: Lake) -> None:
    mine = overtaken(promotion(lake, SECOND), promotion(lake, THIRD, alias="canary"))
    assert job.run(mine).counts["promoted"]
    assert catalog.aliases(lake, "m") == {"champion": SECOND, "canary": THIRD}
    sequences = [r["sequence"] for r in catalog.catalog_rows(lake, "aliases")]
    assert sorted(sequences) == [1, 2, 3]


def test_of_many_threads_exactly_one_wins_and_the_others_are_told(lake: Lake) -> None:
    first = champion(lake)
    versions = [f"{n:012x}" for n in range(6)]
    for version in versions:
        shutil.copytree(folder(lake, first), folder(lake, version))
    planned = threading.Barrier(len(versions))
    outcomes: dict[str, Any] = {}

    class AtOnce(PromoteJob):
        def plan(self):
            plan = super().plan()
            planned.wait(30)
            return plan

    def run(version: str) -> None:
        asked = promotion(lake, version, by=version)
        try:
            outcomes[version] = job.run(AtOnce(lake, asked.settings, NIGHT)).counts["promoted"]
        except JobError as error:
            outcomes[version] = str(error)

    threads = [threading.Thread(target=run, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (winner,) = [version for version, outcome in outcomes.items() if outcome is True]
    assert named(lake) == [first, winner]
    losers = [outcome for outcome in outcomes.values() if outcome is not True]
    assert len(losers) == 5
    assert all(f"was moved to {winner} by {winner} (job" in outcome for outcome in losers)


def _in_a_process(uri: str, version: str, barrier: Any, outcomes: Any) -> None:
    class AtOnce(PromoteJob):
        def plan(self):
            plan = super().plan()
            barrier.wait(60)
            return plan

    asked = promotion(Lake(uri), version, by=version)
    try:
        outcomes.put((version, job.run(AtOnce(asked.lake, asked.settings, NIGHT)).counts["why"]))
    except JobError as error:
        outcomes.put((None, str(error)))


def test_of_two_processes_exactly_one_wins(lake: Lake) -> None:
    first = champion(lake)
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_in_a_process, args=(lake.uri, version, barrier, outcomes))
        for version in (SECOND, THIRD)
    ]
    for process in processes:
        process.start()
    ended = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    (winner,) = [version for version, _ in ended if version is not None]
    (loser,) = [text for version, text in ended if version is None]
    assert f"moved to {winner} by {winner}" in loser
    assert named(lake) == [first, winner]


def test_a_training_that_promotes_meanwhile_overtakes(lake: Lake) -> None:
    mine = overtaken(promotion(lake, SECOND), promotion(lake, THIRD))
    mine.rival = InlineTrain(lake, seed=1, promote=True)  # type: ignore[assignment]
    with pytest.raises(JobError, match=rf"by {alias_history.user()} \(job train-"):
        job.run(mine)
    row = moves(lake, "m", "champion")[-1]
    assert (row["reason"], row["night"]) == ("promoted on request", NIGHT)


# Older lakes, and mistakes.


def test_an_alias_table_of_before_is_read_and_widened(staged: Lake) -> None:
    kept = [f for f in ALIASES.schema if f.name not in ("by", "night")]
    older = dataclasses.replace(ALIASES, schema=pa.schema(kept))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("train", "alias_history"):
            patch.setattr(f"jobs.{module}.ALIASES", older)
        job.run(InlineTrain(staged))
    first = champion(staged)
    held = open_snapshot(staged.catalog("aliases"))
    assert held is not None
    assert "by" not in held.schema.names
    assert moves(staged, "m", "champion")[0]["by"] is None
    shutil.copytree(folder(staged, first), folder(staged, SECOND))
    promote(staged, SECOND)
    told = [(row["version"], row["by"], row["night"]) for row in moves(staged, "m", "champion")]
    assert told == [(first, None, None), (SECOND, "ann", NIGHT)]
    shown = views.sql(staged, 'SELECT "by" FROM aliases ORDER BY sequence').to_pylist()
    assert shown == [{"by": None}, {"by": "ann"}]
    rollback(staged)
    assert champion(staged) == first


def test_mistakes_end_in_a_sentence(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    first = champion(lake)
    for model, told in (
        ("m", "say which version becomes champion, as in m@VERSION"),
        ("x@champion", "unknown model 'x'; known: m"),
        ("m@nothing", f"unknown version or alias of model 'm': 'nothing'; known: .*{SECOND}"),
    ):
        with pytest.raises(InputError, match=told):
            promote(lake, "", model=model)
    with pytest.raises(InputError, match="alias name 'No Good' is not usable"):
        promote(lake, SECOND, alias="No Good")
    with pytest.raises(InputError, match="is the name of a bundle; use another one"):
        promote(lake, SECOND, alias=THIRD)
    with pytest.raises(InputError, match="unknown alias of model 'm': 'canary'; known: champion"):
        rollback(lake, alias="canary")
    with pytest.raises(InputError, match="name the model alone, as in latentlake rollback m"):
        rollback(lake, model="m@champion")
    with pytest.raises(InputError, match="unknown model 'x'; known: m"):
        rollback(lake, model="x")
    monkeypatch.setattr("jobs.promote.latest", lambda lake, model, version, dataset: [])
    told = f"m@{SECOND} has not been evaluated on d; run latentlake evaluate --dataset d --model m@"
    with pytest.raises(InputError, match=told):
        gated(lake, SECOND)
    known = {SECOND: bundle()}
    monkeypatch.setattr(
        "jobs.promote.latest",
        lambda la, m, v, d: [{**row, "job_id": "e"} for row in known.get(v, [])],
    )
    with pytest.raises(InputError, match=f"m@{first} has not been evaluated on d"):
        gated(lake, SECOND)
    assert named(lake) == [first]
    assert folder_names(lake.all_units) == []
