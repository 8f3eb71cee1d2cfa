"""Jobs that meet each other: clearing and creating, losing again and again, clocks, lost power."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.engine import commit as engine_commit
from jobs.engine import records, runner
from jobs.engine.job import StalePlan
from jobs.errors import JobError
from jobs.evaluate.results import standing
from jobs.lake.paths import LakePaths
from jobs.lake.storage import begin, create_or_keep, delete_tree, folder_names
from jobs.schemas.catalog import ALIASES
from jobs.tables import catalog
from jobs.tables.conflicts import CommitConflict
from jobs.tables.delta import Table
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import InlineEvaluate, InlineStage
from tests.limits import SOON_S
from tests.rounds import ROUNDS


def together(*acts: Any) -> list[BaseException]:
    errors: list[BaseException] = []

    def run(act: Any) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_clearing_and_creating_in_one_folder_disturb_each_other_never(lake: LakePaths) -> None:
    create_or_keep(f"{lake.uri}/x", b"")
    begin(lake.uri)

    def create(name: str) -> None:
        for number in range(200):
            create_or_keep(f"{lake.units('job-1')}/completions/{name}-{number}.json", b"{}")

    def clear() -> None:
        for _ in range(200):
            delete_tree(lake.units("job-1"))

    assert together(lambda: create("a"), lambda: create("b"), clear, clear) == []
    delete_tree(lake.units("job-1"))
    assert folder_names(lake.all_units) == []


def staged(uri: str, source: Path, gate: Any) -> None:
    gate.wait(SOON_S)
    runner.run(InlineStage(LakePaths(uri), source, rows_per_unit=20))


@pytest.mark.slow
def test_several_processes_of_one_job_all_end_well(tmp_path: Path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(100), broken=[7])
    forked = multiprocessing.get_context("forkserver")
    for number in range(2 * ROUNDS):
        lake = LakePaths((tmp_path / f"lake{number}").as_uri())
        gate = forked.Barrier(3)
        processes = [
            forked.Process(target=staged, args=(lake.uri, tmp_path / "s", gate)) for _ in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SOON_S)
            assert process.exitcode == 0
        assert staged_labels(lake) == labels_of([i for i in range(100) if i != 7])
        assert len(catalog.runs(lake)) == 1
        left = folder_names(lake.all_units)
        assert not [one for one in left if records.load_plan(lake, one) is not None]


def test_a_plan_is_the_last_thing_that_is_cleared(
    lake: LakePaths, source: Path, monkeypatch
) -> None:
    """Cut short anywhere, the next run sees that it was done."""
    waiting = InlineStage(lake, source.parent)
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    gone: list[bool] = []
    real = shutil.rmtree

    def watched(path: Path, *arguments: Any, **how: Any) -> None:
        gone.append(records.load_plan(lake, plan.job_id) is not None)
        real(path, *arguments, **how)

    monkeypatch.setattr(shutil, "rmtree", watched)
    records.clear(lake, plan.job_id)
    assert len(gone) > 1
    assert all(gone)
    assert folder_names(lake.all_units) == []


def test_a_job_that_loses_every_time_says_to_whom(lake: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr(engine_commit.time, "sleep", lambda seconds: None)
    table = Table(lake.catalog("aliases"), ALIASES)
    engine_commit.append_rows(table, "promote-0123456789abcdef", [])

    def lose() -> None:
        raise CommitConflict

    with pytest.raises(JobError, match="the last of them promote-0123456789abcdef; run it again"):
        engine_commit.retrying(lose, "promote m", table.uri)


def test_a_job_whose_plans_are_always_out_of_date_waits_longer_each_time(
    lake: LakePaths, source: Path, monkeypatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(engine_commit.time, "sleep", slept.append)
    monkeypatch.setattr(engine_commit.random, "uniform", lambda low, high: high)

    class Late(InlineStage):
        def settle(self, plan, completions, head):
            raise StalePlan("somebody was first")

    with pytest.raises(JobError, match="3 plans were out of date before they were done"):
        runner.run(Late(lake, source.parent))
    assert slept == sorted(slept)
    assert len(slept) == 3


# Clocks


class Clock(dt.datetime):
    at: dt.datetime

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return cls.at


def test_a_clock_that_is_set_back_turns_no_order_round(trained: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr(engine_commit.dt, "datetime", Clock)
    Clock.at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    first = runner.run(InlineEvaluate(trained, samples=4))
    Clock.at = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    second = runner.run(InlineEvaluate(trained, samples=8))
    monkeypatch.undo()
    ids = [run["job_id"] for run in catalog.runs(trained)]
    assert ids[-2:] == [*first.job_ids, *second.job_ids]
    (version,) = catalog.bundle_versions(trained, "m")
    (told,) = {row["job_id"] for row in standing(trained, "m", version, "d")}
    assert told == second.job_ids[0]
    assert runner.run(InlineEvaluate(trained, samples=8)).units == 0


def test_rows_of_an_older_release_come_before_those_that_are_numbered(
    trained: LakePaths, monkeypatch
) -> None:
    rows = [
        {"job_id": "c", "sequence": 8, "finished_at": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)},
        {"job_id": "b", "sequence": None, "finished_at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)},
        {"job_id": "a", "finished_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)},
        {"job_id": "d", "sequence": 9, "finished_at": dt.datetime(2019, 1, 1, tzinfo=dt.UTC)},
    ]
    monkeypatch.setattr(catalog, "catalog_rows", lambda lake, table: rows)
    assert [row["job_id"] for row in catalog.runs(trained)] == ["a", "b", "c", "d"]


# Lost power


def test_a_commit_is_on_disk_before_what_could_redo_it_goes(
    lake: LakePaths, source: Path, monkeypatch
) -> None:
    """Each file that a commit names and the commit itself, with their names in their folders."""
    done: list[str] = []
    real_sync, real_clear = os.fsync, records.clear

    def fsync(handle: int) -> None:
        real_sync(handle)
        done.append(str(Path(f"/proc/self/fd/{handle}").readlink()))

    def clear(lake: LakePaths, job_id: str) -> None:
        done.append("clear")
        real_clear(lake, job_id)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(records, "clear", clear)
    runner.run(InlineStage(lake, source.parent))
    root = Path(lake.uri.removeprefix("file://"))
    cleared = done.index("clear")
    for table in ("datasets/d/images", "datasets/d/sources", "catalog/runs"):
        for path in [root / table, *(root / table).parents][: 4 if "datasets" in table else 3]:
            assert str(path) in done[:cleared], path
        entry = root / table / "_delta_log" / f"{1:020}.json"
        synced = done.index(str(entry))
        assert synced < cleared
        assert str(entry.parent) in done[synced:cleared]
        assert str(root / table) in done[:synced]  # the names of its files, before the commit


def test_what_a_killed_process_committed_is_synced_by_the_next(
    lake: LakePaths, half_done: Path, source: Path, monkeypatch
) -> None:
    synced: list[str] = []
    real = engine_commit.sync_commit

    def sync_commit(uri: str, version: int) -> None:
        synced.append(uri)
        real(uri, version)

    monkeypatch.setattr(engine_commit, "sync_commit", sync_commit)
    runner.run(InlineStage(lake, source.parent))
    assert {lake.dataset("d", name) for name in ("quarantine", "sources", "images")} <= set(synced)
